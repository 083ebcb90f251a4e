//! vivace: a from-scratch CUDA inference engine for VITA-1.5.

pub mod core;
pub mod cpu;
pub mod engine;
pub mod exec;
pub mod fuse;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod graph;
pub mod media;
pub mod models;
pub mod ops;
pub mod plan;
pub mod text;
pub mod weights;
