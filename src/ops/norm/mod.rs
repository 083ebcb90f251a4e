//! Normalisation over the last axis.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::{Case, CpuIo, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};

/// `y = w · x / sqrt(mean(x²) + eps)` (Zhang and Sennrich 2019; Qwen2RMSNorm). Statistics in f32, one rounding.
///
/// ins: x `[T, C]`, w `[C]`; outs: y `[T, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct RmsNorm {
    pub eps: f32,
}

impl OpDef for RmsNorm {
    const NAME: &'static str = "RmsNorm";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, w] if w.shape.dims() == [x.cols()] => Ok(vec![(x.dtype, x.shape)]),
            _ => Err(mismatch(Self::NAME, "x [T, C], w [C]", ins)),
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        let n = ins[0].shape.len() as u64;
        Cost { flops: 4 * n, read_bytes: ins[0].bytes() + ins[1].bytes(), written_bytes: outs[0].bytes() }
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::rms_norm(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, c: usize| {
            Case::new(format!("t{t}_c{c}"), RmsNorm { eps: 1e-6 }).act(&[t, c]).weight(&[c])
        };
        let mut all: Vec<_> = [(1, 896), (17, 896), (1025, 128), (3, 8)].map(|(t, c)| case(t, c)).into();
        all.extend([1, 512, 4096].map(|t| case(t, 3584).bench()));
        all
    }
}
