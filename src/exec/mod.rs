//! Running plans. One trait, two backends: [`cpu`] is the reference, [`cuda`] the product.

pub mod cases;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod rows;

use std::sync::Arc;

use crate::core::{DType, Desc, HostData, HostSlice, HostTensor, Recipe, Result, Step, Tensor};
use crate::graph::Node;
use crate::plan::Plan;
use crate::weights::Source;
pub use rows::Leads;
use rows::RowRuns;

/// A sequence of runs with an arena and, on a GPU, a stream of its own. Lanes run side by side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lane {
    Text,
    Vision,
    Audio,
}

/// A prepared graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ExeId(pub usize);

/// Memory that outlives runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StateId(pub usize);

/// Tokens that go to the host at once, at most: one of each sequence of a batch.
pub const TOKENS_AT_ONCE: usize = 16;

/// A token, or one of each sequence, on its way to the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(pub u64);

/// How a token is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// On a busy core: it comes as soon as it can.
    Busy,
    /// Asleep: no core is taken, and it comes some 20 us later. For tokens behind which the next run is enqueued.
    Asleep,
}

/// A point in time on a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark(pub usize);

/// Bytes a backend holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MemoryUse {
    pub weights: u64,
    pub states: u64,
    pub arenas: u64,
    /// The most that was held at any time, everything included.
    pub peak: u64,
}

/// What a device drew and how it was clocked over a while; `None` for what nobody tells.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct PowerUse {
    /// Mean.
    pub watts: Option<f64>,
    /// Mean clock of the SMs.
    pub sm_mhz: Option<f64>,
}

/// Measures from when it is made until it is stopped, beside what runs. Dropped, it only ends.
pub trait PowerMeter {
    fn stop(self: Box<Self>) -> PowerUse;
}

/// What a device can do at most, as a plain read of memory and a large matrix product of a library reach it.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Ceilings {
    pub bytes_per_s: f64,
    /// bf16 with f32 sums.
    pub flops_per_s: f64,
}

impl Ceilings {
    /// One NVIDIA H200: 14 GB read once with 16-byte loads, and a bf16 matrix product 8192³ on random data.
    pub const H200: Ceilings = Ceilings { bytes_per_s: 4.58e12, flops_per_s: 800e12 };
    /// One NVIDIA H100 SXM: HBM3 at the H200's share of its nominal bandwidth, the same tensor cores.
    pub const H100: Ceilings = Ceilings { bytes_per_s: 3.2e12, flops_per_s: 800e12 };

    /// By the name of the GPU, as the driver gives it; `None` for those never measured.
    pub fn of_device(name: &str) -> Option<Ceilings> {
        if name.contains("H200") {
            Some(Ceilings::H200)
        } else if name.contains("H100") {
            Some(Ceilings::H100)
        } else {
            None
        }
    }
}

/// Puts `item` where another one has gone, or else at the end, and says where that is.
fn put<T>(items: &mut Vec<Option<T>>, item: T) -> usize {
    let at = items.iter().position(Option::is_none).unwrap_or(items.len());
    match items.get_mut(at) {
        Some(gone) => *gone = Some(item),
        None => items.push(Some(item)),
    }
    at
}

/// `Err` unless `n` tokens of the tensor can be sent at once.
fn check_tokens(desc: &Desc, n: usize) -> Result<()> {
    if desc.dtype != DType::U32 || !(1..=TOKENS_AT_ONCE.min(desc.shape.len())).contains(&n) {
        crate::bail_runtime!(
            "{n} tokens of {} {} sent at once: 1 to {} expected",
            desc.name,
            desc.brief(),
            TOKENS_AT_ONCE.min(desc.shape.len())
        );
    }
    Ok(())
}

/// Sees a node's index, the node, and its outputs.
pub type Visit<'a> = dyn FnMut(usize, &Node, &[HostTensor]) -> Result<()> + 'a;

/// Runs plans on one device. `run*`, the copies and `join` enqueue and return, and a write waits at most for the one before
/// it on its lane, until that has left the host. What makes or frees memory (`load`, `create_state`, `prepare`, `reserve`,
/// `release`), `read*`, `wait_token*`, `sync` and the measuring calls wait for the device.
///
/// A backend may go to another thread and on from there.
pub trait Backend: Send {
    /// `NVIDIA H200, sm_90, 132 SMs` or `CPU, 16 threads`.
    fn describe(&self) -> String;

    /// Version of the driver, where there is one.
    fn driver(&self) -> Option<String> {
        None
    }

    /// For the roofline; `None` when nothing is known of the device.
    fn ceilings(&self) -> Option<Ceilings> {
        Ceilings::of_device(&self.describe())
    }

    /// Begins to measure power and clock; `None` where nobody tells either.
    fn meter_power(&self) -> Option<Box<dyn PowerMeter>> {
        None
    }

    /// Runs return before they are done. Callers then enqueue ahead, and pad rows so that lengths share graphs.
    fn asynchronous(&self) -> bool;

    /// How an arena stores one element.
    fn arena_elem_bytes(&self, dtype: DType) -> usize;

    /// `Err` if weights and states of these sizes, and some room to work, do not fit: how much is needed and free.
    fn require(&self, weight_bytes: u64, state_bytes: u64) -> Result<()>;

    /// Makes weights resident. Those that are already there are skipped. `progress(done, total)` in bytes.
    fn load(
        &mut self,
        recipes: &[Recipe],
        from: &Arc<dyn Source>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()>;

    /// Bytes that new states and graphs can take; `None` where nobody knows.
    fn free_bytes(&self) -> Result<Option<u64>>;

    /// New state, zeroed.
    fn create_state(&mut self, desc: &Desc) -> Result<StateId>;

    /// Frees a state. No prepared graph may be left that uses it.
    fn release_state(&mut self, s: StateId);

    /// Writes elements from `first_element` on; ordered before later runs of the text lane.
    fn write_state(&mut self, s: StateId, first_element: usize, data: &HostData) -> Result<()>;

    fn read_state(&mut self, s: StateId) -> Result<HostData>;

    /// Fixes every address of a plan. `states[i]` backs `Place::State(i)` of its graph; its weights are loaded.
    fn prepare(&mut self, lane: Lane, plan: Plan, states: &[StateId]) -> Result<ExeId>;

    /// Does ahead what the second run of `exe` would do, after its first: from now on a run allocates and instantiates
    /// nothing.
    fn warm(&mut self, exe: ExeId) -> Result<()>;

    /// Makes room for runs on `lane` whose plans want up to `arena_bytes`, so that preparing one changes no address.
    fn reserve(&mut self, lane: Lane, arena_bytes: usize) -> Result<()>;

    /// Forgets a prepared graph, after its runs.
    fn release(&mut self, exe: ExeId);

    /// Writes an input (its first `data.len()` elements); ordered before the next run. `data` may go when this returns.
    fn write_slice(&mut self, exe: ExeId, t: Tensor, data: HostSlice<'_>) -> Result<()>;

    /// The same.
    fn write(&mut self, exe: ExeId, t: Tensor, data: &HostData) -> Result<()> {
        self.write_slice(exe, t, data.as_slice())
    }

    /// Enqueues one run.
    fn run(&mut self, exe: ExeId, step: Step) -> Result<()>;

    /// Enqueues one run that starts after what is now enqueued on the lanes `on`; what it needs of the host is on its way
    /// before. The mark is where it starts.
    fn run_after(&mut self, exe: ExeId, step: Step, on: &[Lane]) -> Result<Mark>;

    /// Enqueues a copy of the first `rows` rows of output `t` (all, if it has fewer) into a state from `first_row`
    /// on, after the exe's last run.
    fn copy_to_state(
        &mut self,
        exe: ExeId,
        t: Tensor,
        s: StateId,
        first_row: usize,
        rows: usize,
    ) -> Result<()>;

    /// Enqueues on the text lane a copy of `rows` rows of one state to another: both `[.., R, C]` of the same type, the
    /// leading extents and C agree; under every leading index, rows from `src_row` on go to rows from `dst_row` on.
    fn copy_state_rows(
        &mut self,
        src: StateId,
        src_row: usize,
        dst: StateId,
        dst_row: usize,
        rows: usize,
    ) -> Result<()> {
        self.copy_state_leads((src, src_row), (dst, dst_row), rows, Leads::All)
    }

    /// The same between states `[.., N, R, C]` under some of the last leading indices; those before them agree. A state is
    /// given with its first row.
    fn copy_state_leads(
        &mut self,
        src: (StateId, usize),
        dst: (StateId, usize),
        rows: usize,
        leads: Leads,
    ) -> Result<()>;

    /// Work enqueued on `waiter` from now on starts after what is now enqueued on `on`.
    fn join(&mut self, waiter: Lane, on: Lane) -> Result<()>;

    /// Waits for the lane and reads an input, output or state tensor of its last run.
    fn read(&mut self, exe: ExeId, t: Tensor) -> Result<HostTensor>;

    /// Enqueues the copy of the first `n` elements of u32 tensor `t` to the host, at most [`TOKENS_AT_ONCE`].
    fn send_tokens(&mut self, exe: ExeId, t: Tensor, n: usize) -> Result<Ticket>;

    /// Waits for the first `ids.len()` of the tokens that were sent. The device may already be at later runs.
    fn wait_tokens(&mut self, ticket: Ticket, wait: Wait, ids: &mut [u32]) -> Result<()>;

    /// One token: the first element of `t`.
    fn send_token(&mut self, exe: ExeId, t: Tensor) -> Result<Ticket> {
        self.send_tokens(exe, t, 1)
    }

    fn wait_token(&mut self, ticket: Ticket, wait: Wait) -> Result<u32> {
        let mut id = [0];
        self.wait_tokens(ticket, wait, &mut id)?;
        Ok(id[0])
    }

    /// Notes the time at which a lane gets to what is now enqueued on it. Marks are few and reused in turn: read one
    /// before 256 later ones are made.
    fn mark(&mut self, lane: Lane) -> Result<Mark>;

    /// Microseconds from one mark to another, which is waited for.
    fn elapsed_us(&mut self, from: Mark, to: Mark) -> Result<f64>;

    /// Runs node by node; `visit` sees every node's outputs.
    fn trace(&mut self, exe: ExeId, step: Step, visit: &mut Visit<'_>) -> Result<()>;

    /// Microseconds of every node, the median of `repeats`.
    fn profile(&mut self, exe: ExeId, step: Step, repeats: usize) -> Result<Vec<f64>>;

    /// Microseconds of whole runs, one enqueued behind the other, after `warmup` untimed ones.
    fn time(&mut self, exe: ExeId, step: Step, warmup: usize, repeats: usize) -> Result<Vec<f64>>;

    /// Whether runs are captured and replayed where the device can.
    fn set_capture(&mut self, on: bool);

    /// Whether arenas are filled with NaN before every run.
    fn set_poison(&mut self, on: bool);

    fn sync(&mut self) -> Result<()>;

    fn memory(&self) -> MemoryUse;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_several_sequences_come_at_once() {
        use crate::ops::embed::Embed;
        let mut g = crate::graph::Graph::new();
        let ids = g.input("ids", DType::U32, &[TOKENS_AT_ONCE + 1]);
        let table = g.input("table", DType::F32, &[3, 1]);
        let y = g.push1("y", Embed, &[ids, table]).unwrap();
        g.output(y);
        let mut cpu = cpu::Cpu::new();
        let plan = crate::plan::plan(g, |d| cpu.arena_elem_bytes(d)).unwrap();
        let exe = cpu.prepare(Lane::Text, plan, &[]).unwrap();
        let mut sent = |first: u32, n: usize| {
            let values: Vec<u32> = (first..).take(TOKENS_AT_ONCE + 1).collect();
            cpu.write_slice(exe, ids, HostSlice::U32(&values)).unwrap();
            cpu.send_tokens(exe, ids, n)
        };
        let (a, b) = (sent(5, 3).unwrap(), sent(40, TOKENS_AT_ONCE).unwrap());
        let message = sent(0, TOKENS_AT_ONCE + 1).unwrap_err().to_string();
        assert_eq!(message, "17 tokens of ids [17] u32 sent at once: 1 to 16 expected");
        // In any order, and not more than were sent.
        let mut got = [0; TOKENS_AT_ONCE];
        cpu.wait_tokens(b, Wait::Asleep, &mut got).unwrap();
        assert_eq!(got.to_vec(), (40..56).collect::<Vec<_>>());
        cpu.wait_tokens(a, Wait::Busy, &mut got[..3]).unwrap();
        assert_eq!(got[..4], [5, 6, 7, 43]);
        assert_eq!(cpu.wait_token(a, Wait::Busy).unwrap(), 5);
        assert!(cpu.wait_tokens(a, Wait::Busy, &mut got[..4]).is_err());
    }

    #[test]
    fn inputs_are_what_was_written() {
        use crate::ops::elementwise::{Act, Unary};
        use crate::ops::preprocess::ResizeWidth;
        let mut g = crate::graph::Graph::new();
        let (words, x) = (g.input("words", DType::U32, &[3]), g.input("x", DType::BF16, &[3]));
        let axis = g.input("axis", DType::U32, &[4, 5]);
        let resized = g.push1("resized", ResizeWidth { width: 4, height: 1 }, &[words, axis]).unwrap();
        let y = g.push1("y", Unary { act: Act::Relu }, &[x]).unwrap();
        [resized, y].into_iter().for_each(|t| g.output(t));
        let mut cpu = cpu::Cpu::new();
        let plan = crate::plan::plan(g, |d| cpu.arena_elem_bytes(d)).unwrap();
        let exe = cpu.prepare(Lane::Text, plan, &[]).unwrap();
        let mut written = |t, data: HostSlice<'_>| {
            cpu.write_slice(exe, t, data)?;
            Ok(cpu.read(exe, t)?.data)
        };
        assert_eq!(written(words, HostSlice::U32(&[7, 8, 9])).unwrap(), HostData::U32(vec![7, 8, 9]));
        // Bytes make words, the last one filled up; words behind them stay.
        let bytes = written(words, HostSlice::Bytes(&[1, 2, 0, 0x80, 5])).unwrap();
        assert_eq!(bytes, HostData::U32(vec![0x8000_0201, 5, 9]));
        // Rounded as the tensor is.
        let rounded = written(x, HostSlice::F32(&[1.0, 1.001, -3.0])).unwrap();
        assert_eq!(rounded, HostData::F32(vec![1.0, 1.0, -3.0]));
        let message = |e: Result<HostData>| e.unwrap_err().to_string();
        assert!(message(written(x, HostSlice::F32(&[0.0; 4]))).contains("4 values at 0 do not fit"));
    }
}
