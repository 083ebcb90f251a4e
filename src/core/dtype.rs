//! Element types.

use half::{bf16, f16};

/// What one element of a tensor is. Sums, statistics and angles are f32 whatever the tensor's type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum DType {
    F32,
    F16,
    BF16,
    U32,
}

impl DType {
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    pub const fn is_float(self) -> bool {
        !matches!(self, DType::U32)
    }

    /// Spelling in dumps and kernel symbols.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
        }
    }

    /// `torch_dtype` of a config, with or without the `torch.` prefix.
    pub fn from_torch(name: &str) -> Option<DType> {
        match name.trim_start_matches("torch.") {
            "bfloat16" | "bf16" => Some(DType::BF16),
            "float16" | "half" | "f16" => Some(DType::F16),
            "float32" | "float" | "f32" => Some(DType::F32),
            _ => None,
        }
    }

    /// `x` rounded to nearest even in this type and widened again; identity for f32 and u32.
    pub fn round(self, x: f32) -> f32 {
        match self {
            DType::F16 => f16::from_f32(x).to_f32(),
            DType::BF16 => bf16::from_f32(x).to_f32(),
            DType::F32 | DType::U32 => x,
        }
    }

    /// Rounds every element in place, see [`DType::round`].
    pub fn round_slice(self, xs: &mut [f32]) {
        if matches!(self, DType::F16 | DType::BF16) {
            xs.iter_mut().for_each(|x| *x = self.round(*x));
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        assert_eq!(DType::BF16.round(1.0 + 1.0 / 256.0), 1.0); // half way between 1 and 1 + 2^-7
        assert_eq!(DType::BF16.round(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(DType::F16.round(65520.0), f32::INFINITY);
        assert_eq!(DType::F32.round(0.1), 0.1);
    }
}
