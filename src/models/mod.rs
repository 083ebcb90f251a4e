//! The models, written in primitive ops, and their configurations.

mod builder;
pub mod config;
pub mod intern_vit;
pub mod qwen2;
pub mod whale;
