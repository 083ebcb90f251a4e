//! Where checkpoint tensors come from, as loaders see it.

use crate::core::{DType, Error, Result};

/// What a source knows of a tensor without touching its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// `None` for a type that no weight may have.
    pub dtype: Option<DType>,
    /// The type in lower case, known or not: `bf16`, `i64`.
    pub stored_as: String,
    pub shape: Vec<usize>,
}

impl Info {
    pub fn new(dtype: DType, shape: &[usize]) -> Info {
        Info { dtype: Some(dtype), stored_as: dtype.name().to_owned(), shape: shape.to_vec() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `[18944, 3584] bf16`, for messages.
    pub fn brief(&self) -> String {
        format!("{:?} {}", self.shape, self.stored_as)
    }

    /// The type as a weight may have it.
    pub fn float(&self, name: &str, place: &str) -> Result<DType> {
        self.dtype.ok_or_else(|| {
            Error::input(format!("{name}: expected bf16, f16 or f32, found {} in {place}", self.stored_as))
        })
    }
}

/// Everything that a synthetic tensor's values follow from: element i is `centre + scale · u(state, i)`, rounded to
/// the tensor's type.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SynthSpec {
    pub state: u64,
    pub centre: f32,
    pub scale: f32,
}

/// A checkpoint: named, typed tensors in row-major order, little-endian.
pub trait Source: Send + Sync {
    /// All names, in the source's own order.
    fn names(&self) -> Vec<String>;

    fn info(&self, name: &str) -> Option<Info>;

    /// The stored bytes, without any alignment. A synthetic tensor is made on the first call and kept.
    ///
    /// [`Error::Input`] when there is no such tensor.
    fn bytes(&self, name: &str) -> Result<&[u8]>;

    /// How to make the values instead of reading them; `None` for stored tensors.
    fn synth(&self, name: &str) -> Option<SynthSpec> {
        let _ = name;
        None
    }

    /// Where the tensor is, for messages: `model-00001-of-00004.safetensors`.
    fn place(&self, name: &str) -> String;

    /// The source in a few words, for messages.
    fn describe(&self) -> String;

    /// As [`Source::info`]; [`Error::Input`] when there is no such tensor.
    fn need(&self, name: &str) -> Result<Info> {
        self.info(name).ok_or_else(|| Error::input(format!("{name}: no such tensor in {}", self.describe())))
    }
}
