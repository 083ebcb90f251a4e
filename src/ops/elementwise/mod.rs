//! Ops on one element at a time.

mod act;

pub use act::Act;
