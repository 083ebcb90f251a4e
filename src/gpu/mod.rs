//! The device, ignorant of ops: the only home of the CUDA driver.

pub mod embedded;
