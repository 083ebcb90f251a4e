//! Reading what is not a regular file: of a pipe nobody knows the length beforehand.

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;

use crate::core::error::{Error, Result};
use crate::ensure_input;

/// What is read at most of a picture or sound that does not come from a regular file: an hour of CD sound is 0.6 GiB.
pub const MOST_PIPED_BYTES: u64 = 1 << 30;

/// Reads `input` to its end; `name` stands in messages.
///
/// # Errors
/// `Input` for more than [`MOST_PIPED_BYTES`], `Io` for what cannot be read.
pub fn read_piped(input: impl Read, name: &str) -> Result<Vec<u8>> {
    read_up_to(input, MOST_PIPED_BYTES, name)
}

/// Reads a file: a regular one however long it is, anything else as [`read_piped`].
pub(super) fn read_path(path: &Path) -> Result<Vec<u8>> {
    read_path_up_to(path, MOST_PIPED_BYTES)
}

#[cfg(unix)]
pub(super) fn is_pipe(meta: &Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&meta.file_type())
}

#[cfg(not(unix))]
pub(super) fn is_pipe(_: &Metadata) -> bool {
    false
}

fn read_path_up_to(path: &Path, most: u64) -> Result<Vec<u8>> {
    let io = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return read_up_to(file, most, &path.display().to_string());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

fn read_up_to(input: impl Read, most: u64, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more tells the end from the limit.
    input.take(most + 1).read_to_end(&mut bytes).map_err(|e| Error::io(name, e))?;
    ensure_input!(
        bytes.len() as u64 <= most,
        "{name}: up to {most} bytes expected where something else than a regular file is read, found more; \
         give less, or a file"
    );
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_refused_at_the_limit() {
        let message = |read: Result<Vec<u8>>| read.unwrap_err().to_string();
        let refused = message(read_path_up_to(Path::new("/dev/zero"), 1000));
        assert!(refused.starts_with("/dev/zero: up to 1000 bytes expected"), "{refused}");
        assert!(message(read_up_to(std::io::repeat(7), 10, "-")).starts_with("-: up to 10 bytes"));
        assert_eq!(read_up_to(&[7; 10][..], 10, "-").unwrap(), [7; 10]);
        assert!(message(read_path(Path::new("/"))).starts_with("/: "), "a folder");
    }

    #[test]
    fn a_regular_file_has_no_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 2000]).unwrap();
        assert_eq!(read_path_up_to(file.path(), 1000).unwrap().len(), 2000);
    }
}
