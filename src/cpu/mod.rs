//! Compute of the CPU reference backend that more than one family uses.

pub mod gemm;
