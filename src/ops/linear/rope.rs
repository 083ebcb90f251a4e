//! The product that gives q, k and v, down to the KV cache.

use super::cases;
use super::cpu;
use super::multiplies;
use crate::core::{Cost, DType, Desc, Result, Shape};
use crate::ops::rope::{RopeKvAppend, is_cache, shared_out, shares};
use crate::ops::{Case, CpuIo, OpDef, mismatch};

/// [`RopeKvAppend`] of `x wᵀ + b`, all in f32 on the accumulators: q and the rows of the cache are rounded once. With
/// `norm` as [`LinearFused`](super::LinearFused). On a GPU for few rows, see [`LinearRope::takes`].
///
/// ins: x `[T, K]`, w `[(H + 2G) · D, K]`, b `[(H + 2G) · D]`, kv state `[2, B·G, S_max, D]`, and g `[K]` with `norm`;
/// outs: q `[T, H · D]`, the same state.
#[derive(Clone, PartialEq, Debug)]
pub struct LinearRope {
    pub norm: Option<f32>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub theta: f32,
    pub sequences: usize,
}

impl LinearRope {
    /// Whether there is a kernel for `rows` rows, of one sequence or one of each, over `k` elements that gives heads of
    /// `head_dim`: the two halves of a head come from one CTA, in blocks of 8 of each. Of 9 to 16 rows the product and what
    /// follows are faster apart (13.5 against 20.9 us at K = 3584).
    pub fn takes(rows: usize, sequences: usize, k: usize, head_dim: usize) -> bool {
        (1..=8).contains(&rows)
            && (sequences == 1 || sequences == rows)
            && k.is_multiple_of(8)
            && head_dim.is_multiple_of(16)
            && (16..=256).contains(&head_dim)
    }

    /// What follows the product.
    pub fn rope(&self) -> RopeKvAppend {
        let LinearRope { norm: _, heads, kv_heads, head_dim, theta, sequences } = *self;
        RopeKvAppend { heads, kv_heads, head_dim, theta, sequences }
    }
}

impl OpDef for LinearRope {
    const NAME: &'static str = "LinearRope";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let (h, g, d, sequences) = (self.heads, self.kv_heads, self.head_dim, self.sequences);
        let n = (h + 2 * g) * d;
        match ins {
            [x, w, b, kv, gain @ ..]
                if multiplies(x, w)
                    && w.rows() == n
                    && b.shape.dims() == [n]
                    && d.is_multiple_of(2)
                    && x.dtype == kv.dtype
                    && shared_out(x.rows(), sequences)
                    && is_cache(kv, sequences * g, d)
                    && gain.len() == usize::from(self.norm.is_some())
                    && gain.iter().all(|g| g.shape.dims() == [x.cols()]) =>
            {
                Ok(vec![(x.dtype, x.shape.with_cols(h * d)), (kv.dtype, kv.shape)])
            }
            _ => {
                let gain = if self.norm.is_some() { ", g [K]" } else { "" };
                let wants = format!(
                    "x [T, K], w [N, K], b [N] with N = ({h} + 2·{g}) · {d}, a cache [2, {}, S_max, {d}] of x's type\
                     {gain}{}",
                    sequences * g,
                    shares(sequences)
                );
                Err(mismatch(Self::NAME, &wants, ins))
            }
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        let (t, k, n) = (ins[0].rows(), ins[0].cols(), ins[1].rows());
        let appended = 2 * t * self.kv_heads * self.head_dim * ins[3].dtype.bytes();
        let read = |i: &[&Desc]| i.iter().map(|d| d.bytes()).sum::<u64>();
        Cost {
            flops: (2 * t * k * n + 3 * t * (self.heads + self.kv_heads) * self.head_dim) as u64,
            read_bytes: read(&ins[..3]) + read(&ins[4..]),
            written_bytes: outs[0].bytes() + appended as u64,
        }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(3, 1)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::linear_rope(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::linear_rope()
    }
}
