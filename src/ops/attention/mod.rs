//! Scaled dot-product attention, one op for three models; and the ops that bring Whale's scores into its form.

mod cases;
#[cfg(any(feature = "cuda", test))]
mod choose;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", test))]
mod lengths;
#[cfg(any(feature = "cuda", test))]
mod wgmma;
mod whale;

use std::ops::Range;

use super::{Case, CpuIo, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};
pub use whale::{AddKeys, KeyBias, SinTable};

/// Which keys a query sees, within its sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mask {
    Full,
    /// Keys up to the query's own position.
    Causal,
    /// Query i sees its own chunk of `size` keys and `left` chunks before it; `left < 0` is all of them.
    Chunk {
        size: usize,
        left: i64,
    },
}

impl Mask {
    /// The keys that the query at position `i` sees among `n`.
    pub fn keys(self, i: usize, n: usize) -> Range<usize> {
        match self {
            Mask::Full => 0..n,
            Mask::Causal => 0..n.min(i + 1),
            Mask::Chunk { size, left } => {
                let chunk = i / size;
                let first = usize::try_from(left).map_or(0, |left| chunk.saturating_sub(left));
                first * size..n.min((chunk + 1) * size)
            }
        }
    }
}

/// Where q, k and v come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Three tensors.
    Separate,
    /// Column ranges of one: q, then k, then v.
    Packed,
    /// k and v from the cache, where the heads of sequence b are `b·G..(b + 1)·G`. `kv_bucket` is at least the `kv_len`
    /// of every run of the graph: it fixes the grid.
    Cache { kv_bucket: usize },
}

/// The sequences that the T rows of an attention are, one after another: a row sees keys of its own alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Batch {
    /// This many, T / n rows each.
    Equal(usize),
    /// Of these lengths, T together; a sequence may have no rows. Not with a cache, where one step holds for all.
    Lengths(Vec<usize>),
}

impl Batch {
    /// How many sequences.
    pub fn sequences(&self) -> usize {
        match self {
            Batch::Equal(n) => *n,
            Batch::Lengths(lengths) => lengths.len(),
        }
    }

    /// Rows of each sequence, of `t` in all.
    pub fn rows(&self, t: usize) -> Vec<usize> {
        match self {
            Batch::Equal(n) => vec![t / n; *n],
            Batch::Lengths(lengths) => lengths.clone(),
        }
    }

    /// Whether `t` rows are such sequences.
    fn fits(&self, t: usize) -> bool {
        match self {
            Batch::Equal(n) => *n > 0 && t.is_multiple_of(*n),
            Batch::Lengths(lengths) => !lengths.is_empty() && lengths.iter().sum::<usize>() == t,
        }
    }
}

/// `out_i = Σ_j p_ij v_j`, `p_i = softmax_j(scale · q_i·k_j + bias_j)` over the keys that the mask lets through.
/// Query head h reads kv head `h / (heads / kv_heads)`. Scores, softmax and sums in f32, one rounding (on the GPU p
/// is rounded to the activation type as an operand of the second product).
///
/// | source | ins | keys |
/// | --- | --- | --- |
/// | Separate | q `[T, H·D]`, k `[T, G·D]`, v `[T, G·D]` | the rows of the query's sequence |
/// | Packed | qkv `[T, (H + 2G)·D]` | the same |
/// | Cache | q `[T, H·D]`, kv state `[2, n·G, S_max, D]` of `Equal(n)` | row i of a sequence is position `step.pos + i`; its cache up to there |
///
/// With `bias`, one more input, f32 `[H, T]`, or of one sequence `[H, R >= T]`: column j is added to the scaled scores of the
/// key in row j of all T. A bias of -inf hides a key; a row that sees no key gives 0. With a cache, rows of a sequence from
/// `step.valid_rows` on give 0; the other sources know no padding rows. outs: `[T, H·D]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub mask: Mask,
    pub source: Source,
    pub batch: Batch,
    pub bias: bool,
}

impl Attention {
    /// (query, key) pairs of one head, at the end of the bucket for a cache.
    fn pairs(&self, t: usize, s_max: usize) -> u64 {
        let of_sequence = |rows: usize| {
            let (pos, n) = match self.source {
                Source::Cache { kv_bucket } => {
                    let n = kv_bucket.min(s_max).max(rows);
                    (n - rows, n)
                }
                _ => (0, rows),
            };
            (0..rows).map(|i| self.mask.keys(pos + i, n).len() as u64).sum::<u64>()
        };
        self.batch.rows(t).into_iter().map(of_sequence).sum()
    }

    fn wants(&self) -> String {
        let (h, g, d) = (self.heads, self.kv_heads, self.head_dim);
        let ins = match self.source {
            Source::Separate => format!("q [T, {}], k and v [T, {}] of q's type", h * d, g * d),
            Source::Packed => format!("qkv [T, {}]", (h + 2 * g) * d),
            Source::Cache { .. } => {
                let (cols, all) = (h * d, self.batch.sequences() * g);
                let equal = match self.batch {
                    Batch::Equal(_) => "",
                    Batch::Lengths(_) => ", sequences of equal length (one step holds for all)",
                };
                format!(
                    "q [T, {cols}], kv [2, {all}, S_max, {d}] of q's type{equal}, a causal mask and no bias"
                )
            }
        };
        let bias = if self.bias {
            format!(", bias [{h}, T] f32 (of one sequence: [{h}, R >= T])")
        } else {
            String::new()
        };
        let rows = match &self.batch {
            Batch::Equal(n) => format!("T % {n} = 0"),
            Batch::Lengths(lengths) => {
                let sum: usize = lengths.iter().sum();
                format!("T = {sum}, the rows of {} sequences", lengths.len())
            }
        };
        format!("{ins}{bias}; {rows}, and {h} query heads on {g} kv heads")
    }

    fn fits(&self, ins: &[&Desc]) -> bool {
        let (h, g, d) = (self.heads, self.kv_heads, self.head_dim);
        if h * g * d == 0 || h % g != 0 || matches!(self.mask, Mask::Chunk { size: 0, .. }) {
            return false;
        }
        let (data, bias) = match (ins, self.bias) {
            ([data @ .., bias], true) => (data, Some(bias)),
            (data, _) => (data, None),
        };
        let Some(t) = data.first().map(|x| x.rows()) else {
            return false;
        };
        let is = |x: &Desc, cols: usize| {
            x.shape.dims() == [t, cols] && x.dtype == data[0].dtype && x.dtype.is_float()
        };
        let fits = match (self.source, data) {
            (Source::Separate, [q, k, v]) => is(q, h * d) && is(k, g * d) && is(v, g * d),
            (Source::Packed, [qkv]) => is(qkv, (h + 2 * g) * d),
            (Source::Cache { .. }, [q, kv]) => {
                let dims = kv.shape.dims();
                is(q, h * d)
                    && kv.dtype == q.dtype
                    && matches!(dims, [2, heads, _, dim] if *heads == self.batch.sequences() * g && *dim == d)
                    && matches!(self.batch, Batch::Equal(_))
                    && (self.mask == Mask::Causal && !self.bias)
            }
            _ => false,
        };
        let bias_fits = bias.is_none_or(|b| match b.shape.dims() {
            [heads, keys] => {
                *heads == h
                    && b.dtype == DType::F32
                    && (*keys == t || self.batch.sequences() == 1 && *keys > t)
            }
            _ => false,
        });
        fits && bias_fits && self.batch.fits(t)
    }
}

impl OpDef for Attention {
    const NAME: &'static str = "Attention";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        if !self.fits(ins) {
            return Err(mismatch(Self::NAME, &self.wants(), ins));
        }
        Ok(vec![(ins[0].dtype, Shape::new(&[ins[0].rows(), self.heads * self.head_dim]))])
    }

    /// The pairs behind the mask count, and of a cache the rows of the bucket.
    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        let t = ins[0].rows();
        let (s_max, read_bytes) = match self.source {
            Source::Cache { kv_bucket } => {
                let s_max = ins[1].shape[2];
                let row_bytes =
                    2 * self.batch.sequences() * self.kv_heads * self.head_dim * ins[1].dtype.bytes();
                (s_max, ins[0].bytes() + (kv_bucket.min(s_max) * row_bytes) as u64)
            }
            _ => (0, ins.iter().map(|d| d.bytes()).sum()),
        };
        let flops = 4 * (self.heads * self.head_dim) as u64 * self.pairs(t, s_max);
        Cost { flops, read_bytes, written_bytes: outs[0].bytes() }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::attention(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::attention()
    }
}

#[cfg(test)]
mod tests;
