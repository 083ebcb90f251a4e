//! A case of an op as a graph that a backend can run: tests compare its outputs, benchmarks time it.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::{Backend, ExeId, Lane, StateId};
use crate::core::{Cost, DType, Desc, Error, HostData, HostTensor, Place, Recipe, Result, Tensor};
use crate::graph::Graph;
use crate::ops::case::{CaseInput, CaseKind};
use crate::ops::{Case, Fill, Op};
use crate::plan::plan;
use crate::weights::{Info, Source, SynthSpec, spec_for, test_input};

/// Element types that a case runs in. The reference of a run in `T` computes in f32 on inputs rounded to `T`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CaseTypes {
    /// Of every tensor in the graph.
    pub act: DType,
    /// What weights are stored in, and the type that the values of every input are rounded to.
    pub stored: DType,
}

impl CaseTypes {
    /// All of it in `dtype`.
    pub fn device(dtype: DType) -> CaseTypes {
        CaseTypes { act: dtype, stored: dtype }
    }

    /// What a run in `dtype` is compared with.
    pub fn reference(dtype: DType) -> CaseTypes {
        CaseTypes { act: DType::F32, stored: dtype }
    }
}

/// A case on a backend: `copies` nodes one after another, each with inputs, weights, states and outputs of its own,
/// all with the same values. Copies whose bytes exceed the cache make every node read from memory.
pub struct Bound {
    pub exe: ExeId,
    /// Outputs of each node, in order of execution.
    pub outs: Vec<Vec<Tensor>>,
    /// Each with the input of the case that it is.
    states: Vec<(StateId, usize)>,
    inputs: Vec<(Tensor, usize)>,
    stored: DType,
    shapes: Vec<(DType, usize)>,
}

impl Bound {
    /// Builds the graph of `case`, loads its weights, fills its states and inputs, prepares it on the text lane.
    pub fn new(backend: &mut dyn Backend, case: &Case<Op>, types: CaseTypes, copies: usize) -> Result<Bound> {
        Bound::cycled(backend, case, types, copies, 1)
    }

    /// As [`Bound::new`], with `rounds` nodes per copy: all copies in turn, then all again. Inputs are shared
    /// between rounds, outputs are not.
    pub fn cycled(
        backend: &mut dyn Backend,
        case: &Case<Op>,
        types: CaseTypes,
        copies: usize,
        rounds: usize,
    ) -> Result<Bound> {
        let mut g = Graph::new();
        let op = typed(&case.op, types.act);
        let mut source = CaseSource::default();
        let (mut inputs, mut state_inputs, mut outs) = (Vec::new(), Vec::new(), Vec::new());
        let mut ins_of = Vec::new();
        for copy in 0..copies {
            let mut ins = Vec::new();
            for (i, input) in case.ins.iter().enumerate() {
                let name = format!("in{i}.{copy}");
                let dims = input.shape.dims();
                ins.push(match input.kind {
                    CaseKind::Weight => {
                        let name = format!("{}.{copy}", input_name(case, i));
                        source.add(&name, input.dtype.resolve(types.stored), input, made(case, i, input));
                        g.weight(Recipe::plain(&name, input.dtype.resolve(types.act), dims))
                    }
                    CaseKind::State => {
                        let t = g.state(&name, input.dtype.resolve(types.act), dims);
                        state_inputs.push(i);
                        t
                    }
                    CaseKind::Activation => {
                        let t = g.input(&name, input.dtype.resolve(types.act), dims);
                        inputs.push((t, i));
                        t
                    }
                });
            }
            ins_of.push(ins);
        }
        for round in 0..rounds {
            for (copy, ins) in ins_of.iter_mut().enumerate() {
                let out = g.push(&format!("out.{copy}.{round}"), op.clone(), ins)?;
                for &(from, to) in op.in_place() {
                    if matches!(g.desc(ins[from]).place, Place::State(_)) {
                        ins[from] = out[to];
                    }
                }
                out.iter().for_each(|&t| g.output(t));
                outs.push(out);
            }
        }
        let shapes = outs
            .first()
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .map(|&t| (g.desc(t).dtype, g.desc(t).shape.len()))
            .collect();

        let source: Arc<dyn Source> = Arc::new(source);
        backend.load(&g.weights, &source, &mut |_, _| {})?;
        let mut states = Vec::new();
        for (desc, &i) in g.states.iter().zip(&state_inputs) {
            states.push((backend.create_state(desc)?, i));
        }
        let ids: Vec<StateId> = states.iter().map(|(state, _)| *state).collect();
        let plan = plan(g, |d| backend.arena_elem_bytes(d))?;
        let exe = backend.prepare(Lane::Text, plan, &ids)?;
        let bound = Bound { exe, outs, states, inputs, stored: types.stored, shapes };
        bound.rewind(backend, case)?;
        Ok(bound)
    }

    /// Fills states and inputs again as `case` has them: an op that works in place has changed them.
    pub fn rewind(&self, backend: &mut dyn Backend, case: &Case<Op>) -> Result<()> {
        for (i, input) in case.ins.iter().enumerate().filter(|(_, input)| input.kind != CaseKind::Weight) {
            let values = values(case, i, input, self.stored);
            for (state, _) in self.states.iter().filter(|(_, of)| *of == i) {
                backend.write_state(*state, 0, &values)?;
            }
            for (t, _) in self.inputs.iter().filter(|(_, of)| *of == i) {
                backend.write(self.exe, *t, &values)?;
            }
        }
        Ok(())
    }

    /// Overwrites the outputs of the first copy with values that no kernel gives; states keep what they hold.
    pub fn poison(&self, backend: &mut dyn Backend, op: &Op) -> Result<()> {
        let Some(outs) = self.outs.first() else { return Ok(()) };
        for (i, (&t, &(dtype, len))) in outs.iter().zip(&self.shapes).enumerate() {
            if !op.in_place().iter().any(|&(_, out)| out == i) {
                backend.write(self.exe, t, &HostData::poison(dtype, len))?;
            }
        }
        Ok(())
    }

    /// Runs once and reads the outputs of the first copy.
    pub fn run(&self, backend: &mut dyn Backend, case: &Case<Op>) -> Result<Vec<HostTensor>> {
        self.poison(backend, &case.op)?;
        backend.run(self.exe, case.step)?;
        let outs = self.outs.first().map_or(&[][..], Vec::as_slice);
        outs.iter().map(|&t| backend.read(self.exe, t)).collect()
    }

    /// Frees graph and states; weights stay with the backend.
    pub fn release(self, backend: &mut dyn Backend) {
        backend.release(self.exe);
        self.states.into_iter().for_each(|(s, _)| backend.release_state(s));
    }
}

/// The op with activations in `act`, where it has a type of its own.
pub fn typed(op: &Op, act: DType) -> Op {
    let mut op = op.clone();
    match &mut op {
        Op::Patchify(p) => p.dtype = act,
        Op::Cmvn(c) => c.dtype = act,
        Op::SinTable(s) => s.dtype = act,
        _ => {}
    }
    op
}

/// The values of input `i`, rounded to the type that they are stored in.
pub fn values(case: &Case<Op>, i: usize, input: &CaseInput, stored: DType) -> HostData {
    let dims = input.shape.dims();
    let len = input.shape.len();
    let name = input_name(case, i);
    let dtype = input.dtype.resolve(stored);
    if dtype == DType::U32 {
        return HostData::U32(match input.fill {
            Fill::Ids { limit } => test_input(SEED, &name, dims, 0.5, 0.5)
                .into_iter()
                .map(|u| ((f64::from(u) * f64::from(limit)) as u32).min(limit.saturating_sub(1)))
                .collect(),
            Fill::Bits(bits) => vec![bits; len],
            Fill::Words(words) => words.to_vec(),
            Fill::Uniform { .. } | Fill::SmallInts | Fill::Zero => vec![0; len],
        });
    }
    let mut values = match input.fill {
        Fill::Uniform { centre, scale } => test_input(SEED, &name, dims, centre, scale),
        Fill::SmallInts => {
            test_input(SEED, &name, dims, 0.0, 2.5).into_iter().map(|u| u.round().clamp(-2.0, 2.0)).collect()
        }
        Fill::Bits(bits) => vec![f32::from_bits(bits); len],
        Fill::Words(words) => words.iter().map(|&w| f32::from_bits(w)).collect(),
        Fill::Ids { .. } | Fill::Zero => vec![0.0; len],
    };
    dtype.round_slice(&mut values);
    HostData::F32(values)
}

const SEED: u64 = 5;

/// What the values of input `i` follow from. Cases share weights of one shape: a backend keeps weights by name.
fn input_name(case: &Case<Op>, i: usize) -> String {
    match &case.ins[i] {
        w if w.kind == CaseKind::Weight => format!("weight{i} {} {:?}", w.shape, w.fill),
        _ => format!("{}.in{i}", case.name),
    }
}

/// How input `i` is made: by the generator behind [`values`] where that is all there is to it.
fn made(case: &Case<Op>, i: usize, input: &CaseInput) -> Made {
    match input.fill {
        Fill::Uniform { centre, scale } => {
            let state = spec_for(SEED, &input_name(case, i), input.shape.dims()).state;
            Made::Synth(SynthSpec { state, centre, scale })
        }
        _ => Made::Values(values(case, i, input, DType::F32)),
    }
}

enum Made {
    Synth(SynthSpec),
    Values(HostData),
}

/// The weights of a case.
#[derive(Default)]
struct CaseSource {
    tensors: HashMap<String, CaseTensor>,
}

struct CaseTensor {
    info: Info,
    made: Made,
    bytes: OnceLock<Vec<u8>>,
}

impl CaseSource {
    fn add(&mut self, name: &str, dtype: DType, input: &CaseInput, made: Made) {
        let info = Info::new(dtype, input.shape.dims());
        self.tensors.insert(name.to_owned(), CaseTensor { info, made, bytes: OnceLock::new() });
    }
}

impl CaseTensor {
    fn bytes(&self) -> Vec<u8> {
        let dtype = self.info.dtype.unwrap_or(DType::F32);
        let mut out = vec![0; self.info.len() * dtype.bytes()];
        match &self.made {
            Made::Synth(spec) => spec.fill(dtype, 0, &mut out),
            Made::Values(values) => {
                for (value, out) in values.f32s().iter().zip(out.chunks_exact_mut(dtype.bytes())) {
                    match dtype {
                        DType::BF16 => out.copy_from_slice(&half::bf16::from_f32(*value).to_le_bytes()),
                        DType::F16 => out.copy_from_slice(&half::f16::from_f32(*value).to_le_bytes()),
                        DType::F32 | DType::U32 => out.copy_from_slice(&value.to_le_bytes()),
                    }
                }
            }
        }
        out
    }
}

impl Source for CaseSource {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<Info> {
        Some(self.tensors.get(name)?.info.clone())
    }

    fn bytes(&self, name: &str) -> Result<&[u8]> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::input(format!("{name}: no such weight in {}", self.describe())))?;
        Ok(tensor.bytes.get_or_init(|| tensor.bytes()))
    }

    fn synth(&self, name: &str) -> Option<SynthSpec> {
        match &self.tensors.get(name)?.made {
            Made::Synth(spec) => Some(*spec),
            Made::Values(_) => None,
        }
    }

    fn place(&self, _: &str) -> String {
        self.describe()
    }

    fn describe(&self) -> String {
        "the case".to_owned()
    }
}

/// Work of one run of a case in `dtype`, and the bytes of all its tensors.
pub fn work(case: &Case<Op>, dtype: DType) -> Result<(Cost, u64)> {
    let desc = |name: &str, dtype, shape, place| Desc { name: name.to_owned(), dtype, shape, place };
    let ins: Vec<Desc> = case
        .ins
        .iter()
        .map(|i| {
            let place = match i.kind {
                CaseKind::Activation => Place::Io,
                CaseKind::Weight => Place::Weight(0),
                CaseKind::State => Place::State(0),
            };
            desc("in", i.dtype.resolve(dtype), i.shape, place)
        })
        .collect();
    let ins: Vec<&Desc> = ins.iter().collect();
    let op = typed(&case.op, dtype);
    let outs: Vec<Desc> =
        op.infer(&ins)?.into_iter().map(|(dtype, shape)| desc("out", dtype, shape, Place::Io)).collect();
    let outs: Vec<&Desc> = outs.iter().collect();
    let held = ins.iter().chain(&outs).map(|d| d.bytes()).sum();
    Ok((op.cost(&ins, &outs), held))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::cpu::Cpu;

    #[test]
    fn every_small_case_runs_on_the_cpu_in_f32_and_rounded() {
        for case in Op::all_cases().into_iter().filter(|c| !c.bench) {
            for types in [CaseTypes::reference(DType::BF16), CaseTypes::device(DType::BF16)] {
                let mut cpu = Cpu::new();
                let bound = Bound::new(&mut cpu, &case, types, 1).unwrap();
                let outs = bound.run(&mut cpu, &case).unwrap();
                for out in &outs {
                    assert!(out.data.f32s().iter().all(|v| !v.is_nan()), "{} {}", case.name, out.desc.name);
                }
                bound.release(&mut cpu);
            }
        }
    }

    #[test]
    fn copies_hold_the_same_values() {
        let cases = Op::all_cases();
        let case = cases.iter().find(|c| c.name.starts_with("linear/ints_t6") || c.name.contains("ints_t6"));
        let case = case.unwrap();
        let mut cpu = Cpu::new();
        let bound = Bound::new(&mut cpu, case, CaseTypes::reference(DType::BF16), 3).unwrap();
        bound.run(&mut cpu, case).unwrap();
        let all: Vec<HostTensor> = bound.outs.iter().map(|o| cpu.read(bound.exe, o[0]).unwrap()).collect();
        assert!(all[0].data.f32s().iter().any(|v| *v != 0.0));
        assert!(all[0].data.f32s().iter().all(|v| v.fract() == 0.0));
        assert_eq!(all[0].data, all[2].data);
    }

    #[test]
    fn rounds_go_on_with_the_state_that_the_last_one_left() {
        let cases = Op::all_cases();
        let case = cases.iter().find(|c| matches!(c.op, Op::Sample(_)) && !c.bench).unwrap();
        let mut cpu = Cpu::new();
        let count = |cpu: &mut Cpu, rounds: usize| {
            let bound = Bound::cycled(cpu, case, CaseTypes::reference(DType::BF16), 1, rounds).unwrap();
            bound.run(cpu, case).unwrap();
            let HostData::U32(seen) = cpu.read(bound.exe, bound.outs[0][1]).unwrap().data else { panic!() };
            seen.iter().map(|n| u64::from(*n)).sum::<u64>()
        };
        let once = count(&mut cpu, 1);
        assert_eq!(count(&mut cpu, 3), once + 2);
    }

    #[test]
    fn ids_stay_below_their_limit() {
        let cases = Op::all_cases();
        let case = cases.iter().find(|c| matches!(c.op, Op::Embed(_)) && !c.bench).unwrap();
        let Fill::Ids { limit } = case.ins[0].fill else { panic!("an embedding reads ids") };
        let HostData::U32(ids) = values(case, 0, &case.ins[0], DType::BF16) else { panic!("ids are u32") };
        assert!(ids.iter().all(|id| *id < limit));
    }
}
