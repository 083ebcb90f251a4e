//! What every other folder may import: element types, shapes, tensor descriptions, weight recipes, errors.

pub mod error;
