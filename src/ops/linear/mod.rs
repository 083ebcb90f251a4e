//! Matrix products with weights, alone and with all that may follow on their accumulators.

mod arg_max;
mod cases;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod choose;
mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod rope;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod wgmma;

use super::{Case, CpuIo, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};
use crate::ops::elementwise::Act;
use crate::ops::norm::{SQUARES_COLUMNS, STATS_COLUMNS, row_stats_shape, squares_shape};
pub use arg_max::LinearArgMax;
pub use rope::{Angles, LinearRope};

/// `y = x wᵀ (+ b)`, sums in f32, one rounding.
///
/// ins: x `[T, K]`, w `[N, K]`, b `[N]` if `bias`; outs: y `[T, N]`, of x's type, or f32 if `out_f32` (logits).
#[derive(Clone, PartialEq, Debug)]
pub struct Linear {
    pub bias: bool,
    pub out_f32: bool,
}

/// What happens to a sum and its bias.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinearAct {
    None,
    /// With the error function.
    Gelu,
    Relu,
    /// `silu(gate) · up` (Shazeer 2020). Rows of w (and b) are blocks of 8 gate rows and 8 up rows in turn.
    Swiglu,
}

impl LinearAct {
    /// Number of weight rows behind one output column.
    pub const fn rows_per_col(self) -> usize {
        match self {
            LinearAct::Swiglu => 2,
            _ => 1,
        }
    }
}

/// A norm of x, by its epsilon, that has become a part of the product behind it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum NormBefore {
    None,
    /// [`RmsNorm`](crate::ops::norm::RmsNorm) of x with gain g stands for x, in f32. On a GPU for one row, see
    /// [`norms_in_front`].
    Rms(f32),
    /// The same for many rows, begun ([`RmsBegin`](crate::ops::norm::RmsBegin)) where x was made: z is multiplied instead of x,
    /// and the sums by the factor of their row. For gates and ups, and for [`LinearRope`] with a table.
    BegunRms(f32),
    /// A LayerNorm whose gain is in w ([`Recipe::centred`](crate::core::Recipe::centred)): the sums are divided by the deviation
    /// of their row, sqrt(var + eps), and d, what the norm's shift adds, comes to the bias. Without scale, SwiGLU and rotation.
    Layer(f32),
}

impl NormBefore {
    /// Which of its inputs it has: g, then d and the statistics, then z and the squares.
    fn gives(self) -> [bool; 3] {
        [
            matches!(self, NormBefore::Rms(_) | NormBefore::BegunRms(_)),
            matches!(self, NormBefore::Layer(_)),
            matches!(self, NormBefore::BegunRms(_)),
        ]
    }
}

/// `y = act(x wᵀ + b)` or `y = r + s · (x wᵀ + b)`, all in f32 on the accumulators, one rounding at the end, perhaps with a
/// norm of x for x. An activation has neither s nor r beside it, and its y is of x's type, for kernels make it as exact as
/// 16 bits want.
///
/// ins: x `[T, K]`, w `[N, K]`, then those asked for, in this order: b `[N]`, s `[M]`, r `[T, M]`, g `[K]`, d `[N]` and
/// x's [`RowStats`](crate::ops::norm::RowStats), z and squares of x's [`RmsBegin`](crate::ops::norm::RmsBegin), the gain
/// `[M]` of y's; outs: y `[T, M]` with M = N, or N / 2 after SwiGLU, and y's own statistics with `stats`, or what begins
/// its RmsNorm with `begins`. r may share memory with y, unless it is a table: see `table_at`.
#[derive(Clone, PartialEq, Debug)]
pub struct LinearFused {
    pub bias: bool,
    pub act: LinearAct,
    pub scale: bool,
    pub residual: bool,
    /// r is a table `[R >= T, W]`, the same in every run: its row t is added to columns `table_at ..` of row t. A
    /// multiple of 8, as W and M then are.
    pub table_at: Option<usize>,
    pub norm: NormBefore,
    /// For the LayerNorm of y; M is whole 64s, and y of x's type.
    pub stats: bool,
    /// The RmsNorm of y; M is whole 32s, no scale, activation, norm or other statistics, and y of x's type.
    pub begins: bool,
    pub out_f32: bool,
}

impl LinearFused {
    /// What `op` computes.
    pub fn of(op: &Linear) -> LinearFused {
        let Linear { bias, out_f32 } = *op;
        LinearFused {
            bias,
            act: LinearAct::None,
            scale: false,
            residual: false,
            table_at: None,
            norm: NormBefore::None,
            stats: false,
            begins: false,
            out_f32,
        }
    }

    /// The product alone, if nothing but its bias follows it and no norm is in front.
    pub fn alone(&self) -> Option<Linear> {
        let plain = Linear { bias: self.bias, out_f32: self.out_f32 };
        (*self == LinearFused::of(&plain)).then_some(plain)
    }
}

/// What a CTA of the product for 2 to 16 rows holds of a row of x.
const FEW_ROWS_K: usize = 3584;

/// Whether a product of `rows` rows over `k` elements may take the norm of its input in front of it: for one row. Of 8
/// rows that gained nothing, and of 16 it lost (kernels/gemm/LADDER.md).
pub fn norms_in_front(rows: usize, k: usize) -> bool {
    rows == 1 && k.is_multiple_of(8)
}

/// Whether a product of `rows` rows gains where a LayerNorm before it has gone into its weight: while kernels are short, and
/// a norm is one more to wait for. Where the power limit rules, a pass over memory costs less than the same statistics on
/// the way (kernels/gemm/LADDER.md: a tile of 1025 rows gained 4 %, four tiles lost 2).
pub fn gains_behind_norm(rows: usize) -> bool {
    rows <= 2048
}

/// Whether an RmsNorm between two products of `rows` rows of `cols` columns is begun by the one and ended by the other. One row
/// has it in front of the latter ([`norms_in_front`]), products of 2 to 16 rows know no factors, and for more than 128 the
/// former has no kernel that begins one. For bf16: a row times its gain, before it is divided by its norm, may be too large
/// for f16.
pub fn begins_norms(rows: usize, cols: usize, dtype: DType) -> bool {
    (17..=128).contains(&rows) && cols.is_multiple_of(SQUARES_COLUMNS) && dtype == DType::BF16
}

fn cost(ins: &[&Desc], outs: &[&Desc]) -> Cost {
    let (t, k, n) = (ins[0].rows() as u64, ins[0].cols() as u64, ins[1].rows() as u64);
    Cost {
        flops: 2 * t * k * n,
        read_bytes: ins.iter().map(|d| d.bytes()).sum(),
        written_bytes: outs.iter().map(|d| d.bytes()).sum(),
    }
}

fn out_type(x: &Desc, out_f32: bool) -> DType {
    if out_f32 { DType::F32 } else { x.dtype }
}

/// Whether x and w are matrices with a common K.
fn multiplies(x: &Desc, w: &Desc) -> bool {
    w.shape.rank() == 2 && x.shape.rank() >= 1 && x.cols() == w.cols()
}

impl OpDef for Linear {
    const NAME: &'static str = "Linear";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, w, rest @ ..]
                if multiplies(x, w)
                    && rest.len() == usize::from(self.bias)
                    && rest.iter().all(|b| b.shape.dims() == [w.rows()]) =>
            {
                Ok(vec![(out_type(x, self.out_f32), x.shape.with_cols(w.rows()))])
            }
            _ if self.bias => Err(mismatch(Self::NAME, "x [T, K], w [N, K], b [N]", ins)),
            _ => Err(mismatch(Self::NAME, "x [T, K], w [N, K]", ins)),
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        cost(ins, outs)
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::linear(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::linear()
    }
}

impl LinearFused {
    /// Indices of b, s, r, g, d and the statistics, z and squares, and the gain of y's norm among the inputs.
    fn optional_inputs(&self) -> [Option<usize>; 9] {
        let mut next = 2;
        let [norm, behind, begun] = self.norm.gives();
        let given = [self.bias, self.scale, self.residual, norm, behind, behind, begun, begun, self.begins];
        given.map(|given| {
            let at = given.then_some(next);
            next += usize::from(given);
            at
        })
    }

    fn acts_alone(&self) -> bool {
        self.act == LinearAct::None || !self.scale && !self.residual && !self.out_f32
    }

    fn wants(&self) -> String {
        let mut wants = "x [T, K], w [N, K]".to_owned();
        let [norm, behind, begun] = self.norm.gives();
        let m = if self.act == LinearAct::Swiglu { "N/2" } else { "N" };
        for (given, what) in [
            (self.bias, "b [N]".to_owned()),
            (self.scale, format!("s [{m}]")),
            (self.residual && self.table_at.is_none(), format!("r [T, {m}]")),
            (
                self.table_at.is_some(),
                self.table_at.map_or(String::new(), |at| {
                    format!("r [R >= T, W] with {at} + W <= {m}, all three multiples of 8")
                }),
            ),
            (norm, "g [K]".to_owned()),
            (behind, "d [N], f32 statistics [K/64, T, 2] of x, no scale or gates".to_owned()),
            (begun, "z as x, f32 squares [K/32, T], gates".to_owned()),
            (!self.acts_alone(), "no activation beside a scale, a residual or f32 y".to_owned()),
            (self.begins, format!("gain [{m}], no scale, activation, norm or statistics")),
        ] {
            if given {
                wants = format!("{wants}, {what}");
            }
        }
        let wants = if self.stats { format!("{wants}, 16-bit y with N % 64 == 0") } else { wants };
        let wants = if self.begins { format!("{wants}, 16-bit y with N % 32 == 0") } else { wants };
        if self.act == LinearAct::Swiglu { format!("{wants} with N % 16 == 0") } else { wants }
    }
}

impl OpDef for LinearFused {
    const NAME: &'static str = "LinearFused";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let optional = self.optional_inputs();
        let [b, s, r, g, d, stats, z, squares, gain_of_y] = optional;
        if ins.len() != 2 + optional.iter().flatten().count() || !multiplies(ins[0], ins[1]) {
            return Err(mismatch(Self::NAME, &self.wants(), ins));
        }
        let n = ins[1].rows();
        let out = ins[0].shape.with_cols(n / self.act.rows_per_col());
        let fits = self.acts_alone()
            && (self.act != LinearAct::Swiglu || n.is_multiple_of(16))
            && b.is_none_or(|b| ins[b].shape.dims() == [n])
            && s.is_none_or(|s| ins[s].shape.dims() == [out.cols()])
            && match (r, self.table_at) {
                (None, None) => true,
                (None, Some(_)) => false,
                (Some(r), None) => ins[r].shape == out && ins[r].dtype == ins[0].dtype,
                (Some(r), Some(at)) => {
                    let (table, m) = (ins[r], out.cols());
                    let whole = [at, table.cols(), m].iter().all(|n| n.is_multiple_of(8));
                    let inside = table.rows() >= ins[0].rows() && at + table.cols() <= m;
                    table.shape.rank() == 2 && whole && inside && table.dtype == ins[0].dtype
                }
            }
            && g.is_none_or(|g| ins[g].shape.dims() == [ins[0].cols()])
            && d.is_none_or(|d| ins[d].shape.dims() == [n] && !self.scale && self.act != LinearAct::Swiglu)
            && stats.is_none_or(|at| {
                ins[at].dtype == DType::F32 && Some(ins[at].shape) == row_stats_shape(ins[0])
            })
            && (!self.stats || !self.out_f32 && out.cols().is_multiple_of(STATS_COLUMNS))
            && z.is_none_or(|z| {
                let gates = self.act == LinearAct::Swiglu;
                ins[z].shape == ins[0].shape && ins[z].dtype == ins[0].dtype && gates
            })
            && squares
                .is_none_or(|at| ins[at].dtype == DType::F32 && Some(ins[at].shape) == squares_shape(ins[0]))
            && gain_of_y.is_none_or(|at| {
                let alone = !self.scale
                    && !self.stats
                    && self.act == LinearAct::None
                    && self.norm == NormBefore::None;
                let whole = !self.out_f32 && out.cols().is_multiple_of(SQUARES_COLUMNS);
                ins[at].shape.dims() == [out.cols()] && alone && whole
            });
        if !fits {
            return Err(mismatch(Self::NAME, &self.wants(), ins));
        }
        let y = (out_type(ins[0], self.out_f32), out);
        let stats = (DType::F32, Shape::new(&[out.cols() / STATS_COLUMNS, ins[0].rows(), 2]));
        let squares = (DType::F32, Shape::new(&[out.cols() / SQUARES_COLUMNS, ins[0].rows()]));
        Ok(match (self.stats, self.begins) {
            (true, _) => vec![y, stats],
            (_, true) => vec![y, y, squares],
            _ => vec![y],
        })
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        let all = cost(ins, outs);
        // z is read in place of x and its gain.
        let [_, _, _, gain, _, _, z, ..] = self.optional_inputs();
        let unread = gain.filter(|_| z.is_some()).map_or(0, |g| ins[0].bytes() + ins[g].bytes());
        let all = Cost { read_bytes: all.read_bytes - unread, ..all };
        match (self.optional_inputs()[2], self.table_at) {
            // Of a table the rows of this run.
            (Some(r), Some(_)) => {
                let unread =
                    ins[r].rows().saturating_sub(ins[0].rows()) * ins[r].cols() * ins[r].dtype.bytes();
                Cost { read_bytes: all.read_bytes - unread as u64, ..all }
            }
            _ => all,
        }
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        match self.optional_inputs()[2].filter(|_| self.table_at.is_none()) {
            Some(2) if !self.out_f32 => &[(2, 0)],
            Some(3) if !self.out_f32 => &[(3, 0)],
            Some(4) if !self.out_f32 => &[(4, 0)],
            _ => &[],
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::linear_fused(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::linear_fused()
    }
}

impl LinearAct {
    /// The activation of one value; `None` for SwiGLU, which takes two.
    fn unary(self) -> Option<Act> {
        match self {
            LinearAct::None => Some(Act::None),
            LinearAct::Gelu => Some(Act::Gelu),
            LinearAct::Relu => Some(Act::Relu),
            LinearAct::Swiglu => None,
        }
    }
}

#[cfg(test)]
mod tests;
