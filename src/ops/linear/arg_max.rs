//! The product that gives logits, and the largest of them.

use super::{LinearFused, NormBefore, cases, cpu, multiplies};
use crate::core::{Cost, DType, Desc, Result, Shape};
use crate::ops::sample::ArgMax;
use crate::ops::{Case, CpuIo, OpDef, mismatch};

/// `x wᵀ` in f32, and [`ArgMax`] of it. With `norm`, an epsilon, as [`LinearFused`] with [`NormBefore::Rms`]. On a GPU for one row, see
/// [`LinearArgMax::takes`].
///
/// ins: x `[T, K]`, w `[V, K]`, and g `[K]` with `norm`; outs: logits f32 `[T, V]`, ids u32 `[T]`.
#[derive(Clone, PartialEq, Debug)]
pub struct LinearArgMax {
    pub norm: Option<f32>,
    pub limit: u32,
}

impl LinearArgMax {
    /// Whether there is a kernel for `rows` rows over `k` elements: that of one row.
    pub fn takes(rows: usize, k: usize) -> bool {
        rows == 1 && k.is_multiple_of(8)
    }

    /// The two ops that it stands for.
    pub fn parts(&self) -> (LinearFused, ArgMax) {
        let logits = LinearFused::of(&super::Linear { bias: false, out_f32: true });
        (
            LinearFused { norm: self.norm.map_or(NormBefore::None, NormBefore::Rms), ..logits },
            ArgMax { limit: self.limit },
        )
    }
}

impl OpDef for LinearArgMax {
    const NAME: &'static str = "LinearArgMax";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, w, gain @ ..]
                if multiplies(x, w)
                    && self.limit > 0
                    && gain.len() == usize::from(self.norm.is_some())
                    && gain.iter().all(|g| g.shape.dims() == [x.cols()]) =>
            {
                Ok(vec![(DType::F32, x.shape.with_cols(w.rows())), (DType::U32, Shape::new(&[x.rows()]))])
            }
            _ => {
                let gain = if self.norm.is_some() { ", g [K]" } else { "" };
                Err(mismatch(Self::NAME, &format!("x [T, K], w [V, K]{gain} and a limit above 0"), ins))
            }
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        super::cost(ins, outs)
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::linear_arg_max(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::linear_arg_max()
    }
}
