//! Ops on one element at a time. All compute in f32 and round once.

mod act;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::{Case, CpuIo, OpDef, mismatch};
use crate::core::{DType, Desc, Result, Shape};
pub use act::Act;

/// `y = act(x)`.
///
/// ins: x of any shape; outs: y of the same.
#[derive(Clone, PartialEq, Debug)]
pub struct Unary {
    pub act: Act,
}

/// `y = by · x`.
///
/// ins: x of any shape; outs: y of the same.
#[derive(Clone, PartialEq, Debug)]
pub struct Scale {
    pub by: f32,
}

/// `y = a + b`.
///
/// ins: a, b of one shape and type; outs: y of the same.
#[derive(Clone, PartialEq, Debug)]
pub struct Add;

/// `y = a · b`, element by element.
///
/// ins: a, b of one shape and type; outs: y of the same.
#[derive(Clone, PartialEq, Debug)]
pub struct Mul;

/// `y[t, c] = x[t, c] · s[c]`: the layer scale of a vision transformer (Touvron et al. 2021).
///
/// ins: x `[T, C]`, s `[C]`; outs: y `[T, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct RowScale;

/// `y[t, c] = x[t, c] + table[t mod R, c]`: position embeddings, the same for every tile.
///
/// ins: x `[T, C]`, table `[R, C]`; outs: y `[T, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct AddTable;

impl OpDef for Unary {
    const NAME: &'static str = "Unary";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        one_input(Self::NAME, ins)
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::map(io, |x| self.act.apply(x))
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |act: Act, t: usize, c: usize| {
            let fill = super::Fill::Uniform { centre: 0.0, scale: 6.0 };
            Case::new(format!("{}_t{t}_c{c}", act.name()), Unary { act }).act_with(&[t, c], fill)
        };
        let mut all = Vec::new();
        for act in [Act::Gelu, Act::Relu, Act::Silu] {
            all.extend([(1, 8), (17, 1025), (3, 515)].map(|(t, c)| case(act, t, c)));
        }
        all.extend([case(Act::Gelu, 1025, 4096), case(Act::Silu, 512, 18944)].map(Case::bench));
        all
    }
}

impl OpDef for Scale {
    const NAME: &'static str = "Scale";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        one_input(Self::NAME, ins)
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::map(io, |x| self.by * x)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, c: usize| Case::new(format!("t{t}_c{c}"), Scale { by: 0.3 }).act(&[t, c]);
        vec![case(1, 1), case(17, 1025), case(249, 1024).bench()]
    }
}

impl OpDef for Add {
    const NAME: &'static str = "Add";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        two_inputs(Self::NAME, ins)
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::zip(io, |a, b| a + b)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, c: usize| Case::new(format!("t{t}_c{c}"), Add).act(&[t, c]).act(&[t, c]);
        vec![case(1, 8), case(17, 1025), case(3, 515), case(1025, 1024).bench(), case(512, 3584).bench()]
    }
}

impl OpDef for Mul {
    const NAME: &'static str = "Mul";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        two_inputs(Self::NAME, ins)
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::zip(io, |a, b| a * b)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, c: usize| Case::new(format!("t{t}_c{c}"), Mul).act(&[t, c]).act(&[t, c]);
        vec![case(1, 8), case(17, 1025), case(512, 18944).bench()]
    }
}

impl OpDef for RowScale {
    const NAME: &'static str = "RowScale";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, s] if s.shape.dims() == [x.cols()] => Ok(vec![(x.dtype, x.shape)]),
            _ => Err(mismatch(Self::NAME, "x [T, C], s [C]", ins)),
        }
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::with_table(io, |x, s| x * s)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, c: usize| Case::new(format!("t{t}_c{c}"), RowScale).act(&[t, c]).weight(&[c]);
        vec![case(1, 8), case(17, 1032), case(1025, 128), case(1025, 1024).bench()]
    }
}

impl OpDef for AddTable {
    const NAME: &'static str = "AddTable";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, t] if t.shape.rank() == 2 && t.rows() > 0 && t.cols() == x.cols() => {
                Ok(vec![(x.dtype, x.shape)])
            }
            _ => Err(mismatch(Self::NAME, "x [T, C], table [R, C]", ins)),
        }
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::with_table(io, |x, p| x + p)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, r: usize, c: usize| {
            Case::new(format!("t{t}_r{r}_c{c}"), AddTable).act(&[t, c]).weight(&[r, c])
        };
        vec![case(17, 17, 128), case(51, 17, 128), case(7, 17, 8), case(4 * 1025, 1025, 1024).bench()]
    }
}

fn one_input(op: &str, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
    match ins {
        [x] if x.dtype.is_float() => Ok(vec![(x.dtype, x.shape)]),
        _ => Err(mismatch(op, "one float tensor", ins)),
    }
}

fn two_inputs(op: &str, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
    match ins {
        [a, b] if a.shape == b.shape && a.dtype == b.dtype && a.dtype.is_float() => {
            Ok(vec![(a.dtype, a.shape)])
        }
        _ => Err(mismatch(op, "two float tensors of one shape and type", ins)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Step;
    use crate::ops::testing::{desc, floats, run};

    #[test]
    fn add_table_repeats_the_table() {
        let x = floats("x", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let table = floats("table", &[2, 2], &[10.0, 20.0, 30.0, 40.0]);
        let y = run(AddTable, Step::default(), vec![x, table]).unwrap();
        assert_eq!(y[0].f32s(), [11.0, 22.0, 33.0, 44.0, 15.0, 26.0]);
    }

    #[test]
    fn row_scale_and_pairs() {
        let x = || floats("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let s = floats("s", &[2], &[10.0, 0.5]);
        assert_eq!(run(RowScale, Step::default(), vec![x(), s]).unwrap()[0].f32s(), [10.0, 1.0, 30.0, 2.0]);
        assert_eq!(run(Mul, Step::default(), vec![x(), x()]).unwrap()[0].f32s(), [1.0, 4.0, 9.0, 16.0]);
        assert_eq!(run(Add, Step::default(), vec![x(), x()]).unwrap()[0].f32s(), [2.0, 4.0, 6.0, 8.0]);
        let by = Scale { by: -2.0 };
        assert_eq!(run(by, Step::default(), vec![x()]).unwrap()[0].f32s(), [-2.0, -4.0, -6.0, -8.0]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let (a, b) = (desc("a", DType::F32, &[2, 3]), desc("b", DType::BF16, &[2, 3]));
        let message = Add.infer(&[&a, &b]).unwrap_err().to_string();
        assert_eq!(
            message,
            "Add wants two float tensors of one shape and type; got a [2, 3] f32, b [2, 3] bf16"
        );
        assert!(RowScale.infer(&[&a, &desc("s", DType::F32, &[2])]).is_err());
    }
}
