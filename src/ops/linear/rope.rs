//! The product that gives q, k and v, down to the KV cache.

use super::cases;
use super::cpu;
use super::{FEW_ROWS_K, NormBefore, multiplies};
use crate::core::{Cost, DType, Desc, Result, Shape};
use crate::ops::norm::squares_shape;
use crate::ops::rope::{RopeKvAppend, has_pairs, is_cache, shared_out, shares};
use crate::ops::{Case, CpuIo, OpDef, mismatch};

/// [`RopeKvAppend`] of `x wᵀ + b`, all in f32 on the accumulators: q and the rows of the cache are rounded once,
/// perhaps with an RmsNorm of x for x. With `table` the angles are those of a
/// [`RopeTable`](crate::ops::rope::RopeTable): many rows and heads have them in common. Which rows a GPU takes says
/// [`LinearRope::angles`]; with a norm one, or where it has been begun those with a table.
///
/// ins: x `[T, K]`, w `[(H + 2G) · D, K]` and b `[(H + 2G) · D]` with the rows of every head in pairs, kv state `[2,
/// B·G, S_max, D]`, then those asked for: table `[T, D]` f32, of one sequence alone, g `[K]` with a norm, z and squares of x's
/// [`RmsBegin`](crate::ops::norm::RmsBegin); outs: q `[T, H · D]`, the same state.
#[derive(Clone, PartialEq, Debug)]
pub struct LinearRope {
    pub norm: NormBefore,
    pub table: bool,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub theta: f32,
    pub sequences: usize,
}

/// Where a product has its angles from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Angles {
    /// Every CTA computes those that it needs.
    Computed,
    Table,
}

impl LinearRope {
    /// How kernels for `rows` rows, of one sequence or few of one each, over `k` elements that give heads of `head_dim`
    /// come by their angles; `None` where there are none.
    pub fn angles(rows: usize, sequences: usize, k: usize, head_dim: usize) -> Option<Angles> {
        let fits = k.is_multiple_of(8) && has_pairs(head_dim) && head_dim <= 256;
        match rows {
            1 if fits && sequences == 1 => Some(Angles::Computed),
            2..=8 if fits && k <= FEW_ROWS_K && sequences == 1 => Some(Angles::Computed),
            // All rows have the same angles.
            2..=16 if fits && k <= FEW_ROWS_K && sequences == rows => Some(Angles::Computed),
            17.. if fits && sequences == 1 => Some(Angles::Table),
            _ => None,
        }
    }

    /// The table and the gain, as far as they are asked for.
    fn rest_fits(&self, x: &Desc, rest: &[&Desc]) -> bool {
        let optional = self.optional_inputs();
        let [table, gain, z, squares] = optional;
        let norm_fits = match self.norm {
            NormBefore::None | NormBefore::Rms(_) => true,
            NormBefore::BegunRms(_) => self.table,
            NormBefore::Layer(_) => false,
        };
        let given = |i: Option<usize>| i.and_then(|i| rest.get(i - 4));
        rest.len() == optional.iter().flatten().count()
            && norm_fits
            && given(z).is_none_or(|z| z.shape == x.shape && z.dtype == x.dtype)
            && given(squares).is_none_or(|s| s.dtype == DType::F32 && Some(s.shape) == squares_shape(x))
            && (self.sequences == 1 || table.is_none())
            && given(table)
                .is_none_or(|t| t.shape.dims() == [x.rows(), self.head_dim] && t.dtype == DType::F32)
            && given(gain).is_none_or(|g| g.shape.dims() == [x.cols()])
    }

    /// Indices of table, gain, z and squares among the inputs.
    pub fn optional_inputs(&self) -> [Option<usize>; 4] {
        let mut next = 4;
        let [norm, _, begun] = self.norm.gives();
        [self.table, norm, begun, begun].map(|given| {
            let at = given.then_some(next);
            next += usize::from(given);
            at
        })
    }

    /// What follows the product.
    pub fn rope(&self) -> RopeKvAppend {
        let LinearRope { norm: _, table: _, heads, kv_heads, head_dim, theta, sequences } = *self;
        RopeKvAppend { heads, kv_heads, head_dim, theta, sequences }
    }
}

impl OpDef for LinearRope {
    const NAME: &'static str = "LinearRope";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let (h, g, d, sequences) = (self.heads, self.kv_heads, self.head_dim, self.sequences);
        let n = (h + 2 * g) * d;
        match ins {
            [x, w, b, kv, rest @ ..]
                if multiplies(x, w)
                    && w.rows() == n
                    && b.shape.dims() == [n]
                    && has_pairs(d)
                    && x.dtype == kv.dtype
                    && shared_out(x.rows(), sequences)
                    && is_cache(kv, sequences * g, d)
                    && self.rest_fits(x, rest) =>
            {
                Ok(vec![(x.dtype, x.shape.with_cols(h * d)), (kv.dtype, kv.shape)])
            }
            _ => {
                let table = if self.table { format!(", a table [T, {d}] f32") } else { String::new() };
                let norm = match self.norm {
                    NormBefore::None => "",
                    NormBefore::Rms(_) => ", g [K]",
                    NormBefore::BegunRms(_) => ", g [K], z as x, f32 squares [K/32, T] and a table",
                    NormBefore::Layer(_) => " and no LayerNorm",
                };
                let wants = format!(
                    "x [T, K], w [N, K], b [N] with N = ({h} + 2·{g}) · {d} and {d} % 16 == 0, a cache [2, {}, S_max, \
                     {d}] of x's type{table}{norm}{}",
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
        let [_, gain, z, _] = self.optional_inputs();
        let unread = gain.filter(|_| z.is_some()).map_or(0, |g| ins[0].bytes() + ins[g].bytes());
        Cost {
            flops: (2 * t * k * n + 3 * t * (self.heads + self.kv_heads) * self.head_dim) as u64,
            read_bytes: read(&ins[..3]) + read(&ins[4..]) - unread,
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
