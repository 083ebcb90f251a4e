//! The device, ignorant of ops: the only home of the CUDA driver and of NVML.

pub mod convert;
mod crew;
pub mod device;
mod driver;
pub mod embedded;
pub mod fill;
mod fold;
pub mod launch;
pub mod memory;
pub mod modules;
pub mod power;
#[cfg(test)]
mod sass;
pub mod staging;
pub mod stream;
pub mod tensor_map;
