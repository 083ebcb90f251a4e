//! Normalisation over the last axis. Statistics in f32.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::elementwise::Act;
use super::{Case, CpuIo, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};
pub(crate) use cpu::{begin_rms, rms_rows, row_stats, rstd_of_rows, rstd_of_squares};
#[cfg(feature = "cuda")]
pub(crate) use cuda::{rms_begin as launch_rms_begin, row_stats as launch_row_stats};

/// `y = w · x / sqrt(mean(x²) + eps)` (Zhang and Sennrich 2019; Qwen2RMSNorm). One rounding.
///
/// ins: x `[T, C]`, w `[C]`; outs: y `[T, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct RmsNorm {
    pub eps: f32,
}

/// `y = scale · act(w · (x - mean) / sqrt(var + eps) + b)` (Ba et al. 2016), var over C. One rounding.
///
/// ins: x `[T, C]`, w `[C]`, b `[C]`; outs: y `[T, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct LayerNorm {
    pub eps: f32,
    pub act: Act,
    pub scale: f32,
}

/// `h = x + r` and `y = RmsNorm(h)`. h is rounded once, y is computed from the rounded h.
///
/// ins: x `[T, C]`, r `[T, C]`, w `[C]`; outs: h, y `[T, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct AddRmsNorm {
    pub eps: f32,
}

/// `h = x + r` and `y = LayerNorm(h)`. h is rounded once, y is computed from the rounded h.
///
/// ins: x `[T, C]`, r `[T, C]`, w `[C]`, b `[C]`; outs: h, y `[T, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct AddLayerNorm {
    pub eps: f32,
}

/// What a product behind a LayerNorm of x has to know of its rows: of every 64 columns their mean and the sum of their
/// squared deviations from it, which add up to the variance of a row without a loss where means are far from zero.
///
/// ins: x `[T, C]`, C % 64 == 0; outs: f32 `[C / 64, T, 2]`.
#[derive(Clone, PartialEq, Debug)]
pub struct RowStats;

/// What of an [`RmsNorm`] of x can be done before a row is there as a whole: z = w · x, rounded once, and of every 32 columns
/// the sum of the squares of x. A product of z makes up the rest, by a factor of its sums.
///
/// ins: x `[T, C]`, w `[C]`, C % 32 == 0; outs: z `[T, C]`, f32 `[C / 32, T]`.
#[derive(Clone, PartialEq, Debug)]
pub struct RmsBegin;

/// Columns of a sum of [`RmsBegin`].
pub const SQUARES_COLUMNS: usize = 32;

/// The shape of the sums of [`RmsBegin`] of `x`.
pub(crate) fn squares_shape(x: &Desc) -> Option<Shape> {
    let whole = x.shape.rank() >= 1 && x.cols().is_multiple_of(SQUARES_COLUMNS);
    whole.then(|| Shape::new(&[x.cols() / SQUARES_COLUMNS, x.rows()]))
}

/// Columns of a mean of [`RowStats`].
pub const STATS_COLUMNS: usize = 64;

/// The shape of what [`RowStats`] says of `x`.
pub(crate) fn row_stats_shape(x: &Desc) -> Option<Shape> {
    let whole = x.shape.rank() >= 1 && x.cols().is_multiple_of(STATS_COLUMNS);
    whole.then(|| Shape::new(&[x.cols() / STATS_COLUMNS, x.rows(), 2]))
}

impl LayerNorm {
    /// Nothing after the norm.
    pub fn plain(eps: f32) -> LayerNorm {
        LayerNorm { eps, act: Act::None, scale: 1.0 }
    }
}

/// Ragged shapes that every norm is tested at: small widths, one vector, more vectors than threads.
const RAGGED: [(usize, usize); 5] = [(1, 896), (17, 896), (1025, 128), (3, 8), (5, 8192)];

/// Every input read once, every output written once; `flops` per element of the first output.
fn cost(flops: u64, ins: &[&Desc], outs: &[&Desc]) -> Cost {
    Cost {
        flops: flops * outs[0].shape.len() as u64,
        read_bytes: ins.iter().map(|d| d.bytes()).sum(),
        written_bytes: outs.iter().map(|d| d.bytes()).sum(),
    }
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
        cost(4, ins, outs)
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
        let mut all: Vec<_> = RAGGED.map(|(t, c)| case(t, c)).into();
        all.extend([1, 512, 4096].map(|t| case(t, 3584).bench()));
        all
    }
}

impl OpDef for LayerNorm {
    const NAME: &'static str = "LayerNorm";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, w, b] if w.shape.dims() == [x.cols()] && b.shape == w.shape => Ok(vec![(x.dtype, x.shape)]),
            _ => Err(mismatch(Self::NAME, "x [T, C], w [C], b [C]", ins)),
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        cost(8, ins, outs)
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::layer_norm(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |name: &str, op: LayerNorm, t: usize, c: usize| {
            Case::new(format!("{name}t{t}_c{c}"), op).act(&[t, c]).weight(&[c]).weight(&[c])
        };
        let plain = LayerNorm::plain(1e-6);
        let mut all: Vec<_> = RAGGED.map(|(t, c)| case("", plain.clone(), t, c)).into();
        // A mean far from 0 shows a variance computed as E[x²] - E[x]².
        let far = super::Fill::Uniform { centre: 100.0, scale: 1.0 };
        let op = LayerNorm::plain(1e-5);
        all.push(Case::new("far_t17_c1032", op).act_with(&[17, 1032], far).weight(&[1032]).weight(&[1032]));
        all.push(case("relu_", LayerNorm { eps: 1e-5, act: Act::Relu, scale: 32.0 }, 17, 1024));
        all.push(case("gelu_", LayerNorm { eps: 1e-3, act: Act::Gelu, scale: 1.0 }, 17, 2048));
        all.extend([1025, 13325].map(|t| case("", plain.clone(), t, 1024).bench()));
        all
    }
}

impl OpDef for AddRmsNorm {
    const NAME: &'static str = "AddRmsNorm";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, r, w] if r.shape == x.shape && r.dtype == x.dtype && w.shape.dims() == [x.cols()] => {
                Ok(vec![(x.dtype, x.shape); 2])
            }
            _ => Err(mismatch(Self::NAME, "x [T, C], r as x, w [C]", ins)),
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        cost(5, ins, outs)
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::add_rms_norm(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, c: usize| {
            let op = AddRmsNorm { eps: 1e-6 };
            Case::new(format!("t{t}_c{c}"), op).act(&[t, c]).act(&[t, c]).weight(&[c])
        };
        let mut all: Vec<_> = RAGGED.map(|(t, c)| case(t, c)).into();
        all.extend([1, 512, 4096].map(|t| case(t, 3584).bench()));
        all
    }
}

impl OpDef for AddLayerNorm {
    const NAME: &'static str = "AddLayerNorm";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, r, w, b]
                if r.shape == x.shape
                    && r.dtype == x.dtype
                    && w.shape.dims() == [x.cols()]
                    && b.shape == w.shape =>
            {
                Ok(vec![(x.dtype, x.shape); 2])
            }
            _ => Err(mismatch(Self::NAME, "x [T, C], r as x, w [C], b [C]", ins)),
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        cost(9, ins, outs)
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::add_layer_norm(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, c: usize| {
            let op = AddLayerNorm { eps: 1e-6 };
            Case::new(format!("t{t}_c{c}"), op).act(&[t, c]).act(&[t, c]).weight(&[c]).weight(&[c])
        };
        let mut all: Vec<_> = RAGGED.map(|(t, c)| case(t, c)).into();
        all.extend([1025, 13325].map(|t| case(t, 1024).bench()));
        all
    }
}

impl OpDef for RowStats {
    const NAME: &'static str = "RowStats";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x] if let Some(shape) = row_stats_shape(x) => Ok(vec![(DType::F32, shape)]),
            _ => Err(mismatch(Self::NAME, "x [T, C] with C % 64 == 0", ins)),
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        Cost { flops: 4 * ins[0].shape.len() as u64, ..cost(0, ins, outs) }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        let (x, c) = (io.ins.f32s(0)?, io.ins.extent(0).1);
        cpu::row_stats(x, c, io.outs.f32s(0)?);
        Ok(())
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, c: usize| Case::new(format!("t{t}_c{c}"), RowStats).act(&[t, c]);
        let far = super::Fill::Uniform { centre: 100.0, scale: 1.0 };
        let mut all: Vec<_> =
            [(1, 64), (3, 896), (17, 1024), (1025, 128), (5, 4096)].map(|(t, c)| case(t, c)).into();
        all.push(Case::new("far_t17_c1088", RowStats).act_with(&[17, 1088], far));
        all.extend([1025, 13325].map(|t| case(t, 1024).bench()));
        all
    }
}

impl OpDef for RmsBegin {
    const NAME: &'static str = "RmsBegin";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, w]
                if w.shape.dims() == [x.cols()]
                    && let Some(squares) = squares_shape(x) =>
            {
                Ok(vec![(x.dtype, x.shape), (DType::F32, squares)])
            }
            _ => Err(mismatch(Self::NAME, "x [T, C] with C % 32 == 0, w [C]", ins)),
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        cost(3, ins, outs)
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        let (x, w) = (io.ins.f32s(0)?, io.ins.vector(1)?);
        let [z, squares] = io.outs.first_f32s()?;
        cpu::begin_rms(x, &w, z, squares);
        Ok(())
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, c: usize| Case::new(format!("t{t}_c{c}"), RmsBegin).act(&[t, c]).weight(&[c]);
        let mut all: Vec<_> =
            [(1, 32), (3, 896), (17, 1024), (129, 96), (5, 4096)].map(|(t, c)| case(t, c)).into();
        all.push(case(128, 3584).bench());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Step;
    use crate::ops::testing::{floats, run};

    #[test]
    fn layer_norm_of_a_ramp() {
        // mean 2.5, variance 1.25
        let x = floats("x", &[1, 4], &[1.0, 2.0, 3.0, 4.0]);
        let (w, b) = (floats("w", &[4], &[1.0, 1.0, 2.0, 1.0]), floats("b", &[4], &[0.0, 0.0, 1.0, 0.0]));
        let op = LayerNorm { eps: 0.0, act: Act::Relu, scale: 10.0 };
        let y = run(op, Step::default(), vec![x, w, b]).unwrap();
        let s = 1.25f32.sqrt();
        for (got, want) in y[0].f32s().iter().zip([0.0, 0.0, 10.0 * (2.0 * 0.5 / s + 1.0), 15.0 / s]) {
            assert!((got - want).abs() < 1e-5, "{got} != {want}");
        }
    }

    #[test]
    fn added_norms_agree_with_add_then_norm() {
        let (xs, rs) = ([0.5f32, -1.25, 3.0, 0.1], [2.0f32, 0.3, -1.0, 4.0]);
        let sum: Vec<f32> = xs.iter().zip(&rs).map(|(x, r)| x + r).collect();
        let (w, b) = (floats("w", &[2], &[0.7, 1.1]), floats("b", &[2], &[0.2, -0.4]));
        let (x, r, h) = (floats("x", &[2, 2], &xs), floats("r", &[2, 2], &rs), floats("h", &[2, 2], &sum));

        let step = Step::default();
        let both = run(AddRmsNorm { eps: 1e-6 }, step, vec![x.clone(), r.clone(), w.clone()]).unwrap();
        let one = run(RmsNorm { eps: 1e-6 }, step, vec![h.clone(), w.clone()]).unwrap();
        assert_eq!((both[0].f32s(), &both[1]), (&sum[..], &one[0]));

        let both = run(AddLayerNorm { eps: 1e-6 }, step, vec![x, r, w.clone(), b.clone()]).unwrap();
        let one = run(LayerNorm::plain(1e-6), step, vec![h, w, b]).unwrap();
        assert_eq!((both[0].f32s(), &both[1]), (&sum[..], &one[0]));
    }

    #[test]
    fn the_sum_is_rounded_before_the_norm() {
        let bf16 = |name: &str, values: &[f32]| {
            let (mut d, v) = floats(name, &[1, 2], values);
            d.dtype = DType::BF16;
            (d, v)
        };
        let ins =
            vec![bf16("x", &[1.0, 2.0]), bf16("r", &[1.0 / 256.0, 0.0]), floats("w", &[2], &[1.0, 1.0])];
        let outs = run(AddRmsNorm { eps: 0.0 }, Step::default(), ins).unwrap();
        assert_eq!(outs[0].f32s(), [1.0, 2.0]);
        assert_eq!(outs[1].f32s()[1], 2.0 * outs[1].f32s()[0]);
    }
}
