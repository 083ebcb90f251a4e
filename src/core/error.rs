//! One error type for the crate. A message names the tensor, file or flag, what was expected and what was found.

use std::path::{Path, PathBuf};

/// Everything that can go wrong, split by whose turn it is to act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller gave something that cannot be used: a flag, a file, a checkpoint, a prompt. Exit code 2.
    #[error("{0}")]
    Input(String),
    /// A file could not be read or written. Exit code 2.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The input was fine and the run still failed: out of memory, driver error, missing kernels. Exit code 1.
    #[error("{0}")]
    Runtime(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn input(message: impl Into<String>) -> Self {
        Error::Input(message.into())
    }

    pub fn runtime(message: impl Into<String>) -> Self {
        Error::Runtime(message.into())
    }

    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }

    /// Puts `prefix: ` before the message and keeps the kind.
    pub fn context(self, prefix: impl std::fmt::Display) -> Self {
        match self {
            Error::Input(m) => Error::Input(format!("{prefix}: {m}")),
            Error::Runtime(m) => Error::Runtime(format!("{prefix}: {m}")),
            Error::Io { path, source } => Error::Input(format!("{prefix}: {}: {source}", path.display())),
        }
    }

    /// The exit code of the command line: 2 for usage and input, 1 for what failed at run time.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Input(_) | Error::Io { .. } => 2,
            Error::Runtime(_) => 1,
        }
    }
}

/// Returns [`Error::Input`] with a formatted message.
#[macro_export]
macro_rules! bail_input {
    ($($arg:tt)*) => { return Err($crate::core::error::Error::Input(format!($($arg)*))) };
}

/// Returns [`Error::Runtime`] with a formatted message.
#[macro_export]
macro_rules! bail_runtime {
    ($($arg:tt)*) => { return Err($crate::core::error::Error::Runtime(format!($($arg)*))) };
}

/// Returns [`Error::Input`] with a formatted message unless the condition holds.
#[macro_export]
macro_rules! ensure_input {
    ($cond:expr, $($arg:tt)*) => { if !($cond) { $crate::bail_input!($($arg)*) } };
}
