//! What every other folder may import: element types, shapes, tensor descriptions, weight recipes, errors.

pub mod desc;
pub mod dtype;
pub mod error;
pub mod host;
pub mod recipe;
pub mod shape;
pub(crate) mod switch;

pub use desc::{Cost, Desc, Place, Step, Tensor};
pub use dtype::DType;
pub use error::{Error, Result};
pub use host::{HostData, HostSlice, HostTensor, HostWeight};
pub use recipe::{Fold, Part, Recipe};
pub use shape::Shape;
pub(crate) use switch::asked;
