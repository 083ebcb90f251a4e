//! NaN and infinity in stored tensors.

use rayon::prelude::*;

use super::Source;
use crate::core::{DType, Result};

/// The first element of a tensor that is not finite.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct NonFinite {
    pub name: String,
    /// Row-major.
    pub index: usize,
    /// `NaN`, `inf` or `-inf`.
    pub value: String,
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: expected finite values, found {} at element {}", self.name, self.value, self.index)
    }
}

/// Elements that one task looks at.
const TASK: usize = 1 << 20;

/// Scans one tensor; tensors that are not floats have nothing to find.
pub fn first_non_finite(source: &dyn Source, name: &str) -> Result<Option<NonFinite>> {
    let Some(dtype) = source.need(name)?.dtype else { return Ok(None) };
    let bytes = source.bytes(name)?;
    let size = dtype.bytes();
    let hit = bytes
        .par_chunks(TASK * size)
        .enumerate()
        .filter_map(|(task, bytes)| position(dtype, bytes).map(|i| task * TASK + i))
        .min();
    Ok(hit.map(|index| {
        let mut value = [0.0];
        super::convert::widen(dtype, &bytes[index * size..(index + 1) * size], &mut value);
        NonFinite { name: name.to_owned(), index, value: value[0].to_string() }
    }))
}

/// An exponent of all ones is NaN or infinity.
fn position(dtype: DType, bytes: &[u8]) -> Option<usize> {
    let half =
        |mask: u16| bytes.as_chunks::<2>().0.iter().position(|b| u16::from_le_bytes(*b) & mask == mask);
    match dtype {
        DType::BF16 => half(0x7f80),
        DType::F16 => half(0x7c00),
        DType::F32 => {
            let mask = 0x7f80_0000;
            bytes.as_chunks::<4>().0.iter().position(|b| u32::from_le_bytes(*b) & mask == mask)
        }
        DType::U32 => None,
    }
}
