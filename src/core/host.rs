//! Tensors in host memory, as the CPU backend and the comparisons see them.

use std::ops::Range;

use super::{desc::Desc, dtype::DType, shape::Shape};

/// Values of one tensor, widened to f32 (floats) or as they are (ids).
#[derive(Clone, PartialEq, Debug)]
pub enum HostData {
    F32(Vec<f32>),
    U32(Vec<u32>),
}

impl HostData {
    pub fn len(&self) -> usize {
        match self {
            HostData::F32(v) => v.len(),
            HostData::U32(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The floats; empty for ids.
    pub fn f32s(&self) -> &[f32] {
        match self {
            HostData::F32(v) => v,
            HostData::U32(_) => &[],
        }
    }

    /// The ids; empty for floats.
    pub fn u32s(&self) -> &[u32] {
        match self {
            HostData::U32(v) => v,
            HostData::F32(_) => &[],
        }
    }

    /// The values, borrowed.
    pub fn as_slice(&self) -> HostSlice<'_> {
        match self {
            HostData::F32(v) => HostSlice::F32(v),
            HostData::U32(v) => HostSlice::U32(v),
        }
    }

    /// `len` elements that no reader can take for values: NaN, or an id beyond every vocabulary.
    pub fn poison(dtype: DType, len: usize) -> HostData {
        match dtype {
            DType::U32 => HostData::U32(vec![0x7fff_ffff; len]),
            _ => HostData::F32(vec![f32::NAN; len]),
        }
    }

    pub fn zeros(dtype: DType, len: usize) -> HostData {
        match dtype {
            DType::U32 => HostData::U32(vec![0; len]),
            _ => HostData::F32(vec![0.0; len]),
        }
    }
}

/// Values of one tensor, where they are: writing them makes no copy on the way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum HostSlice<'a> {
    F32(&'a [f32]),
    U32(&'a [u32]),
    /// The bytes of u32 words, the first one lowest; zeros fill up the last word.
    Bytes(&'a [u8]),
}

impl HostSlice<'_> {
    /// Elements of the tensor.
    pub fn len(&self) -> usize {
        match self {
            HostSlice::F32(v) => v.len(),
            HostSlice::U32(v) => v.len(),
            HostSlice::Bytes(v) => v.len().div_ceil(4),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn is_float(&self) -> bool {
        matches!(self, HostSlice::F32(_))
    }
}

/// A tensor read back from a backend.
#[derive(Clone, PartialEq, Debug)]
pub struct HostTensor {
    pub desc: Desc,
    pub data: HostData,
}

/// A weight as the CPU reads it: through its recipe, straight from the mapped or synthesised checkpoint tensors.
pub trait HostWeight: Send + Sync {
    fn shape(&self) -> Shape;

    fn dtype(&self) -> DType;

    /// Widens rows `rows` (all columns; a vector is one row) into `out`, `rows.len() * cols` values.
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]);

    /// The whole weight in f32; for vectors and small tables.
    fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape().len()];
        self.read_rows(0..self.shape().rows(), &mut out);
        out
    }
}
