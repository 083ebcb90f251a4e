//! Cases: an op with concrete shapes and inputs, shared by tests, benchmarks and profiles.

use super::{Op, OpDef};
use crate::core::{DType, Shape, Step};

/// How the values of an input are drawn (the generator is that of the synthetic weights).
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fill {
    /// Uniform in `centre ± scale`.
    Uniform {
        centre: f32,
        scale: f32,
    },
    /// Whole numbers in -2..=2: exact in 16 bits, so a product of up to a few hundred terms is exact as well.
    SmallInts,
    /// Ids below `limit`.
    Ids {
        limit: u32,
    },
    /// Every element the same raw value.
    Bits(u32),
    /// These raw values, for a u32 input of as many elements.
    Words(&'static [u32]),
    Zero,
}

/// The element type of an input or output of a case.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum CaseType {
    /// The activation type the case is run in (bf16, f16, or f32 on the CPU).
    T,
    F32,
    U32,
}

impl CaseType {
    pub fn resolve(self, t: DType) -> DType {
        match self {
            CaseType::T => t,
            CaseType::F32 => DType::F32,
            CaseType::U32 => DType::U32,
        }
    }
}

/// What an input is to the graph.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum CaseKind {
    Activation,
    Weight,
    State,
}

#[derive(Clone, PartialEq, Debug)]
pub struct CaseInput {
    pub kind: CaseKind,
    pub dtype: CaseType,
    pub shape: Shape,
    pub fill: Fill,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Case<O> {
    /// Short and unique within the op: `t17_c3584`.
    pub name: String,
    pub op: O,
    pub ins: Vec<CaseInput>,
    pub step: Step,
    /// One of the shapes of the real model: benchmarked, not only tested.
    pub bench: bool,
}

impl<O> Case<O> {
    pub fn new(name: impl Into<String>, op: O) -> Case<O> {
        Case { name: name.into(), op, ins: Vec::new(), step: Step::default(), bench: false }
    }

    fn input(mut self, kind: CaseKind, dtype: CaseType, shape: &[usize], fill: Fill) -> Self {
        self.ins.push(CaseInput { kind, dtype, shape: Shape::new(shape), fill });
        self
    }

    /// An activation in the case's own type, uniform in ±1.
    pub fn act(self, shape: &[usize]) -> Self {
        self.act_with(shape, Fill::Uniform { centre: 0.0, scale: 1.0 })
    }

    pub fn act_with(self, shape: &[usize], fill: Fill) -> Self {
        self.input(CaseKind::Activation, CaseType::T, shape, fill)
    }

    /// An activation that is f32 in every run (fbank, pixels, per-key biases, logits).
    pub fn act_f32(self, shape: &[usize], fill: Fill) -> Self {
        self.input(CaseKind::Activation, CaseType::F32, shape, fill)
    }

    pub fn ids(self, shape: &[usize], limit: u32) -> Self {
        self.act_u32(shape, Fill::Ids { limit })
    }

    pub fn act_u32(self, shape: &[usize], fill: Fill) -> Self {
        self.input(CaseKind::Activation, CaseType::U32, shape, fill)
    }

    /// A matrix or vector, uniform around 0 with the scale of the synthetic weights.
    pub fn weight(self, shape: &[usize]) -> Self {
        let fan_in = Shape::new(shape).len() / shape[0];
        let scale = if shape.len() == 1 { 0.1 } else { (3.0 / fan_in as f32).sqrt() };
        self.weight_with(shape, Fill::Uniform { centre: 0.0, scale })
    }

    pub fn weight_with(self, shape: &[usize], fill: Fill) -> Self {
        self.input(CaseKind::Weight, CaseType::T, shape, fill)
    }

    /// A state in the case's own type (KV cache, media rows).
    pub fn state(self, shape: &[usize], fill: Fill) -> Self {
        self.input(CaseKind::State, CaseType::T, shape, fill)
    }

    pub fn state_u32(self, shape: &[usize], fill: Fill) -> Self {
        self.input(CaseKind::State, CaseType::U32, shape, fill)
    }

    pub fn step(mut self, pos: usize, valid_rows: usize, draw: usize) -> Self {
        self.step = Step::rows(pos, valid_rows, draw);
        self
    }

    pub fn bench(mut self) -> Self {
        self.bench = true;
        self
    }
}

impl<O: OpDef + Into<Op>> Case<O> {
    pub fn erase(self) -> Case<Op> {
        let name = format!("{}/{}", O::NAME, self.name);
        Case { name, op: self.op.into(), ins: self.ins, step: self.step, bench: self.bench }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::core::{Desc, Place};

    #[test]
    fn every_case_passes_its_shape_rule() {
        let mut names = HashSet::new();
        for case in Op::all_cases() {
            assert!(names.insert(case.name.clone()), "{}: twice", case.name);
            for t in [DType::F32, DType::BF16] {
                let descs: Vec<Desc> = case
                    .ins
                    .iter()
                    .enumerate()
                    .map(|(i, input)| Desc {
                        name: format!("in{i}"),
                        dtype: input.dtype.resolve(t),
                        shape: input.shape,
                        place: Place::Arena,
                    })
                    .collect();
                let outs = case.op.infer(&descs.iter().collect::<Vec<_>>());
                let outs = outs.unwrap_or_else(|e| panic!("{}: {e}", case.name));
                assert!(!outs.is_empty(), "{}: no outputs", case.name);
                for input in &case.ins {
                    if let Fill::Words(words) = input.fill {
                        assert_eq!(words.len(), input.shape.len(), "{}", case.name);
                    }
                }
            }
        }
    }
}
