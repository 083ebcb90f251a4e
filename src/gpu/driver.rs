//! The driver's answers as errors of this crate.

use cudarc::driver::result::DriverError;

use crate::core::{Error, Result};

/// `Err` with what was being done and what the driver says.
pub(super) fn check<T>(
    result: std::result::Result<T, DriverError>,
    doing: impl FnOnce() -> String,
) -> Result<T> {
    result.map_err(|e| Error::runtime(format!("{}: CUDA says {}", doing(), describe(e))))
}

fn describe(e: DriverError) -> String {
    let name = e.error_name().map(|n| n.to_string_lossy().into_owned());
    let text = e.error_string().map(|s| s.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{name} ({text})"),
        _ => format!("error {}", e.0 as u32),
    }
}
