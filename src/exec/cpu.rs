//! The reference backend: every op in f32 on the host, in the arena and at the offsets of the plan.
//!
//! With graphs in f32 it is the reference; with graphs in bf16 or f16 every edge is rounded to its type, which is
//! the yardstick for what a GPU may lose. Poisoning fills an arena with NaN before a run and a slot with NaN after
//! its last reader, so that a wrong lifetime shows as NaN and not as a plausible number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::{
    Backend, ExeId, Lane, Leads, Mark, MemoryUse, RowRuns, StateId, Ticket, Visit, Wait, check_tokens, put,
};
use crate::core::{
    DType, Desc, Error, HostData, HostSlice, HostTensor, HostWeight, Place, Recipe, Result, Step, Tensor,
};
use crate::graph::Node;
use crate::ops::CpuIo;
use crate::ops::io::{CpuIn, CpuIns, CpuOuts};
use crate::plan::Plan;
use crate::weights::{Source, host_weight};

/// Marks kept; later ones take the places of the oldest.
const MARKS: usize = 256;
/// Sent tokens that are kept.
const TOKENS: u64 = 64;
/// Bytes of one element in the arena, whatever its type.
const ELEM_BYTES: usize = 4;

pub struct Cpu {
    weights: HashMap<Recipe, Arc<dyn HostWeight>>,
    states: Vec<Option<(Desc, HostData)>>,
    exes: Vec<Option<Exe>>,
    /// One per lane; f32 values, or the bits of ids.
    arenas: [Vec<f32>; 3],
    /// How many were sent, and the last of them.
    tokens: (u64, [Vec<u32>; TOKENS as usize]),
    marks: Vec<Instant>,
    next_mark: usize,
    poison: bool,
}

struct Exe {
    lane: Lane,
    plan: Arc<Plan>,
    states: Vec<StateId>,
    weights: Vec<Arc<dyn HostWeight>>,
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

impl Cpu {
    pub fn new() -> Cpu {
        Cpu {
            weights: HashMap::new(),
            states: Vec::new(),
            exes: Vec::new(),
            arenas: Default::default(),
            tokens: (0, [const { Vec::new() }; TOKENS as usize]),
            marks: Vec::new(),
            next_mark: 0,
            poison: false,
        }
    }

    fn exe(&self, id: ExeId) -> Result<&Exe> {
        match self.exes.get(id.0) {
            Some(Some(exe)) => Ok(exe),
            _ => crate::bail_runtime!("graph {} was released", id.0),
        }
    }

    fn state(&self, id: StateId) -> Result<&(Desc, HostData)> {
        match self.states.get(id.0) {
            Some(Some(state)) => Ok(state),
            _ => crate::bail_runtime!("state {} does not exist", id.0),
        }
    }

    fn state_mut(&mut self, id: StateId) -> Result<&mut (Desc, HostData)> {
        match self.states.get_mut(id.0) {
            Some(Some(state)) => Ok(state),
            _ => crate::bail_runtime!("state {} does not exist", id.0),
        }
    }

    /// Runs node `at` and returns its outputs as they now stand.
    fn run_node(&mut self, id: ExeId, at: usize, step: Step, keep: bool) -> Result<Vec<HostTensor>> {
        let (plan, states, lane) = {
            let exe = self.exe(id)?;
            (exe.plan.clone(), exe.states.clone(), exe.lane)
        };
        let node = &plan.graph.nodes[at];
        let in_place = |out: usize| node.op.in_place().iter().any(|(_, o)| *o == out);

        let mut outs = Vec::with_capacity(node.outs.len());
        for (i, &t) in node.outs.iter().enumerate() {
            let desc = plan.graph.desc(t);
            outs.push(match desc.place {
                Place::State(s) if in_place(i) => {
                    let data = &mut self.state_mut(states[s as usize])?.1;
                    std::mem::replace(data, HostData::U32(Vec::new()))
                }
                _ => HostData::poison(desc.dtype, desc.shape.len()),
            });
        }

        let result = {
            let exe = self.exe(id)?;
            let ins = self.inputs(exe, &plan, node)?;
            let descs = |ts: &[Tensor]| ts.iter().map(|&t| plan.graph.desc(t)).collect::<Vec<_>>();
            let mut io = CpuIo {
                step,
                ins: CpuIns { descs: descs(&node.ins), data: ins },
                outs: CpuOuts { descs: descs(&node.outs), data: outs },
            };
            let result = node.op.cpu(&mut io);
            outs = io.outs.data;
            result
        };

        let mut kept = Vec::new();
        for (i, (&t, mut data)) in node.outs.iter().zip(outs).enumerate() {
            let desc = plan.graph.desc(t);
            if let HostData::F32(values) = &mut data
                && !in_place(i)
            {
                desc.dtype.round_slice(values);
            }
            if keep {
                kept.push(HostTensor { desc: desc.clone(), data: data.clone() });
            }
            match desc.place {
                Place::State(s) => self.state_mut(states[s as usize])?.1 = data,
                _ => {
                    let slot = plan.slot(t)?;
                    write_slot(&mut self.arenas[lane as usize], slot.offset, &data);
                }
            }
        }
        result.map_err(|e| e.context(&plan.graph.desc(node.outs[0]).name))?;
        if self.poison {
            self.poison_dead(&plan, lane, at);
        }
        Ok(kept)
    }

    fn inputs<'a>(&'a self, exe: &'a Exe, plan: &Plan, node: &Node) -> Result<Vec<CpuIn<'a>>> {
        let arena = &self.arenas[exe.lane as usize];
        let mut ins = Vec::with_capacity(node.ins.len());
        for (i, &t) in node.ins.iter().enumerate() {
            let desc = plan.graph.desc(t);
            ins.push(match desc.place {
                Place::Weight(w) => CpuIn::Weight(exe.weights[w as usize].as_ref()),
                Place::State(_) if node.op.in_place().iter().any(|(from, _)| *from == i) => CpuIn::InPlace,
                Place::State(s) => match &self.state(exe.states[s as usize])?.1 {
                    HostData::F32(v) => CpuIn::F32(v),
                    HostData::U32(v) => CpuIn::U32(v),
                },
                Place::Arena | Place::Io => {
                    let at = plan.slot(t)?.offset / ELEM_BYTES;
                    let values = &arena[at..at + desc.shape.len()];
                    match desc.dtype {
                        DType::U32 => CpuIn::U32(bytemuck::cast_slice(values)),
                        _ => CpuIn::F32(values),
                    }
                }
            });
        }
        Ok(ins)
    }

    /// Fills the slots whose last reader was node `at`, unless another tensor has moved in.
    fn poison_dead(&mut self, plan: &Plan, lane: Lane, at: usize) {
        let written: Vec<usize> = plan.graph.nodes[at]
            .outs
            .iter()
            .filter_map(|&t| plan.slots[t.0 as usize])
            .map(|s| s.offset)
            .collect();
        for slot in plan.slots.iter().flatten() {
            if slot.last == at as u32 && slot.last + 1 < plan.graph.nodes.len() as u32 {
                let from = slot.offset / ELEM_BYTES;
                if !written.contains(&slot.offset) {
                    self.arenas[lane as usize][from..from + slot.bytes / ELEM_BYTES].fill(f32::NAN);
                }
            }
        }
    }

    fn start(&mut self, id: ExeId) -> Result<usize> {
        let exe = self.exe(id)?;
        let (lane, plan) = (exe.lane, exe.plan.clone());
        if self.poison {
            let keep: Vec<_> = (0..plan.graph.tensors.len())
                .filter(|&t| plan.graph.tensors[t].place == Place::Io)
                .filter_map(|t| plan.slots[t])
                .map(|s| s.offset / ELEM_BYTES..(s.offset + s.bytes) / ELEM_BYTES)
                .collect();
            let arena = &mut self.arenas[lane as usize];
            for (i, value) in arena.iter_mut().enumerate() {
                if !keep.iter().any(|k| k.contains(&i)) {
                    *value = f32::NAN;
                }
            }
        }
        Ok(plan.graph.nodes.len())
    }
}

fn write_slot(arena: &mut [f32], offset_bytes: usize, data: &HostData) {
    let at = offset_bytes / ELEM_BYTES;
    match data {
        HostData::F32(v) => arena[at..at + v.len()].copy_from_slice(v),
        HostData::U32(v) => {
            bytemuck::cast_slice_mut::<f32, u32>(&mut arena[at..at + v.len()]).copy_from_slice(v);
        }
    }
}

fn check_len(desc: &Desc, first: usize, values: usize, len: usize) -> Result<()> {
    if first + values > len {
        crate::bail_runtime!("{} {}: {values} values at {first} do not fit", desc.name, desc.brief());
    }
    Ok(())
}

fn copy_into(desc: &Desc, first: usize, from: &HostData, to: &mut HostData) -> Result<()> {
    check_len(desc, first, from.len(), to.len())?;
    match (from, to) {
        (HostData::F32(from), HostData::F32(to)) => {
            let to = &mut to[first..first + from.len()];
            to.copy_from_slice(from);
            desc.dtype.round_slice(to);
        }
        (HostData::U32(from), HostData::U32(to)) => to[first..first + from.len()].copy_from_slice(from),
        _ => crate::bail_runtime!("{} is {}: written with another kind of value", desc.name, desc.brief()),
    }
    Ok(())
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        format!("CPU, {} threads", rayon::current_num_threads())
    }

    fn asynchronous(&self) -> bool {
        false
    }

    fn arena_elem_bytes(&self, _: DType) -> usize {
        ELEM_BYTES
    }

    fn require(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn load(
        &mut self,
        recipes: &[Recipe],
        from: &Arc<dyn Source>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let total: u64 = recipes.iter().map(Recipe::bytes).sum();
        let mut done = 0;
        for recipe in recipes {
            if !self.weights.contains_key(recipe) {
                self.weights.insert(recipe.clone(), host_weight(recipe, from)?);
            }
            done += recipe.bytes();
            progress(done, total);
        }
        Ok(())
    }

    fn create_state(&mut self, desc: &Desc) -> Result<StateId> {
        let state = (desc.clone(), HostData::zeros(desc.dtype, desc.shape.len()));
        Ok(StateId(put(&mut self.states, state)))
    }

    fn release_state(&mut self, s: StateId) {
        if let Some(state) = self.states.get_mut(s.0) {
            *state = None;
        }
    }

    fn write_state(&mut self, s: StateId, first_element: usize, data: &HostData) -> Result<()> {
        let (desc, to) = self.state_mut(s)?;
        copy_into(desc, first_element, data, to)
    }

    fn read_state(&mut self, s: StateId) -> Result<HostData> {
        Ok(self.state(s)?.1.clone())
    }

    fn prepare(&mut self, lane: Lane, plan: Plan, states: &[StateId]) -> Result<ExeId> {
        let mut weights = Vec::with_capacity(plan.graph.weights.len());
        for recipe in &plan.graph.weights {
            match self.weights.get(recipe) {
                Some(w) => weights.push(w.clone()),
                None => crate::bail_runtime!("{}: not loaded", recipe.name()),
            }
        }
        if states.len() < plan.graph.states.len() {
            crate::bail_runtime!("{} states for a graph with {}", states.len(), plan.graph.states.len());
        }
        let len = plan.arena_bytes.div_ceil(ELEM_BYTES);
        let arena = &mut self.arenas[lane as usize];
        if arena.len() < len {
            arena.resize(len, f32::NAN);
        }
        let exe = Exe { lane, plan: Arc::new(plan), states: states.to_vec(), weights };
        Ok(ExeId(put(&mut self.exes, exe)))
    }

    fn warm(&mut self, _: ExeId) -> Result<()> {
        Ok(())
    }

    fn reserve(&mut self, _: Lane, _: usize) -> Result<()> {
        Ok(())
    }

    fn release(&mut self, exe: ExeId) {
        if let Some(slot) = self.exes.get_mut(exe.0) {
            *slot = None;
        }
    }

    fn write_slice(&mut self, exe: ExeId, t: Tensor, data: HostSlice<'_>) -> Result<()> {
        let exe = self.exe(exe)?;
        let (plan, lane) = (exe.plan.clone(), exe.lane);
        let desc = plan.graph.desc(t);
        check_len(desc, 0, data.len(), desc.shape.len())?;
        let at = plan.slot(t)?.offset / ELEM_BYTES;
        let slot = &mut self.arenas[lane as usize][at..at + data.len()];
        match data {
            HostSlice::F32(v) => {
                slot.copy_from_slice(v);
                desc.dtype.round_slice(slot);
            }
            HostSlice::U32(v) => bytemuck::cast_slice_mut::<f32, u32>(slot).copy_from_slice(v),
            HostSlice::Bytes(v) => {
                let (bytes, rest) = bytemuck::cast_slice_mut::<f32, u8>(slot).split_at_mut(v.len());
                bytes.copy_from_slice(v);
                rest.fill(0);
            }
        }
        Ok(())
    }

    fn run(&mut self, exe: ExeId, step: Step) -> Result<()> {
        for at in 0..self.start(exe)? {
            self.run_node(exe, at, step, false)?;
        }
        Ok(())
    }

    fn run_after(&mut self, exe: ExeId, step: Step, _on: &[Lane]) -> Result<Mark> {
        let start = self.mark(self.exe(exe)?.lane)?;
        self.run(exe, step)?;
        Ok(start)
    }

    fn copy_to_state(
        &mut self,
        exe: ExeId,
        t: Tensor,
        s: StateId,
        first_row: usize,
        rows: usize,
    ) -> Result<()> {
        let mut tensor = self.read(exe, t)?;
        if let HostData::F32(values) = &mut tensor.data {
            values.truncate(rows.saturating_mul(tensor.desc.cols()));
        }
        let (desc, to) = self.state_mut(s)?;
        copy_into(desc, first_row * desc.cols(), &tensor.data, to)
    }

    fn copy_state_leads(
        &mut self,
        (src, src_row): (StateId, usize),
        (dst, dst_row): (StateId, usize),
        rows: usize,
        leads: Leads,
    ) -> Result<()> {
        let states = self.states.get_disjoint_mut([src.0, dst.0]);
        let Ok([Some((from, data)), Some((to, out))]) = states else {
            crate::bail_runtime!("a copy of rows from state {} to state {}: two expected", src.0, dst.0)
        };
        let at = RowRuns::new((from, src_row), (to, dst_row), rows, leads)?;
        for (block, run) in (0..at.blocks).flat_map(|block| (0..at.runs).map(move |run| (block, run))) {
            let src = at.src + block * at.src_block + run * at.src_pitch;
            let dst = at.dst + block * at.dst_block + run * at.dst_pitch;
            let (src, dst) = (src..src + at.len, dst..dst + at.len);
            match (&*data, &mut *out) {
                (HostData::F32(x), HostData::F32(y)) => y[dst].copy_from_slice(&x[src]),
                (HostData::U32(x), HostData::U32(y)) => y[dst].copy_from_slice(&x[src]),
                _ => crate::bail_runtime!("{} and {} hold different kinds of values", from.name, to.name),
            }
        }
        Ok(())
    }

    fn join(&mut self, _waiter: Lane, _on: Lane) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, exe: ExeId, t: Tensor) -> Result<HostTensor> {
        let exe = self.exe(exe)?;
        let desc = exe.plan.graph.desc(t);
        let data = match desc.place {
            Place::State(s) => self.state(exe.states[s as usize])?.1.clone(),
            _ => {
                let at = exe.plan.slot(t)?.offset / ELEM_BYTES;
                let values = &self.arenas[exe.lane as usize][at..at + desc.shape.len()];
                match desc.dtype {
                    DType::U32 => HostData::U32(bytemuck::cast_slice(values).to_vec()),
                    _ => HostData::F32(values.to_vec()),
                }
            }
        };
        Ok(HostTensor { desc: desc.clone(), data })
    }

    fn send_tokens(&mut self, exe: ExeId, t: Tensor, n: usize) -> Result<Ticket> {
        let tokens = self.read(exe, t)?;
        check_tokens(&tokens.desc, n)?;
        let ticket = self.tokens.0;
        self.tokens.0 += 1;
        self.tokens.1[(ticket % TOKENS) as usize] = tokens.data.u32s()[..n].to_vec();
        Ok(Ticket(ticket))
    }

    fn wait_tokens(&mut self, ticket: Ticket, _: Wait, ids: &mut [u32]) -> Result<()> {
        if ticket.0 + TOKENS < self.tokens.0 {
            crate::bail_runtime!("token {} was overwritten by later ones", ticket.0);
        }
        match self.tokens.1[(ticket.0 % TOKENS) as usize].get(..ids.len()) {
            Some(sent) => ids.copy_from_slice(sent),
            None => crate::bail_runtime!("{} tokens waited for, fewer were sent", ids.len()),
        }
        Ok(())
    }

    fn mark(&mut self, _: Lane) -> Result<Mark> {
        let at = self.next_mark % MARKS;
        self.next_mark += 1;
        match self.marks.get_mut(at) {
            Some(mark) => *mark = Instant::now(),
            None => self.marks.push(Instant::now()),
        }
        Ok(Mark(at))
    }

    fn elapsed_us(&mut self, from: Mark, to: Mark) -> Result<f64> {
        let at =
            |m: Mark| self.marks.get(m.0).copied().ok_or_else(|| Error::runtime("a mark was never made"));
        Ok(at(to)?.saturating_duration_since(at(from)?).as_secs_f64() * 1e6)
    }

    fn trace(&mut self, exe: ExeId, step: Step, visit: &mut Visit<'_>) -> Result<()> {
        for at in 0..self.start(exe)? {
            let outs = self.run_node(exe, at, step, true)?;
            let plan = self.exe(exe)?.plan.clone();
            visit(at, &plan.graph.nodes[at], &outs)?;
        }
        Ok(())
    }

    fn profile(&mut self, exe: ExeId, step: Step, repeats: usize) -> Result<Vec<f64>> {
        let nodes = self.start(exe)?;
        let mut best_us = vec![f64::INFINITY; nodes];
        for _ in 0..repeats.max(1) {
            for (at, best) in best_us.iter_mut().enumerate() {
                let start = Instant::now();
                self.run_node(exe, at, step, false)?;
                *best = best.min(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        Ok(best_us)
    }

    fn time(&mut self, exe: ExeId, step: Step, warmup: usize, repeats: usize) -> Result<Vec<f64>> {
        let mut times_us = Vec::with_capacity(repeats);
        for i in 0..warmup + repeats {
            let start = Instant::now();
            self.run(exe, step)?;
            if i >= warmup {
                times_us.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        Ok(times_us)
    }

    fn set_capture(&mut self, _: bool) {}

    fn set_poison(&mut self, on: bool) {
        self.poison = on;
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        let arenas: usize = self.arenas.iter().map(|a| a.len() * ELEM_BYTES).sum();
        let states: usize = self.states.iter().flatten().map(|(_, d)| d.len() * ELEM_BYTES).sum();
        let weights: u64 = self.weights.keys().map(Recipe::bytes).sum();
        MemoryUse {
            weights,
            states: states as u64,
            arenas: arenas as u64,
            peak: weights + (arenas + states) as u64,
        }
    }
}
