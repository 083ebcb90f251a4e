//! The models, written in primitive ops, and their configurations.

pub mod config;
