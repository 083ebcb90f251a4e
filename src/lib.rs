//! vivace: a from-scratch CUDA inference engine for VITA-1.5.

pub mod core;
pub mod graph;
pub mod ops;
pub mod plan;
