//! Running plans. One trait, two backends: [`cpu`] is the reference, [`cuda`] the product.

pub mod cases;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use std::sync::Arc;

use crate::core::{DType, Desc, HostData, HostTensor, Recipe, Result, Step, Tensor};
use crate::graph::Node;
use crate::plan::Plan;
use crate::weights::Source;

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

/// A token on its way to the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(pub u64);

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

/// Sees a node's index, the node, and its outputs.
pub type Visit<'a> = dyn FnMut(usize, &Node, &[HostTensor]) -> Result<()> + 'a;

/// Runs plans on one device. Only `read*`, `wait_token`, `sync` and the measuring calls wait for the device.
pub trait Backend {
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

    /// New state, zeroed.
    fn create_state(&mut self, desc: &Desc) -> Result<StateId>;

    /// Frees a state. No prepared graph may be left that uses it.
    fn release_state(&mut self, s: StateId);

    /// Writes elements from `first_element` on; ordered before later runs of the text lane.
    fn write_state(&mut self, s: StateId, first_element: usize, data: &HostData) -> Result<()>;

    fn read_state(&mut self, s: StateId) -> Result<HostData>;

    /// Fixes every address of a plan. `states[i]` backs `Place::State(i)` of its graph; its weights are loaded.
    fn prepare(&mut self, lane: Lane, plan: Plan, states: &[StateId]) -> Result<ExeId>;

    fn release(&mut self, exe: ExeId);

    /// Writes an input (its first `data.len()` elements); ordered before the next run.
    fn write(&mut self, exe: ExeId, t: Tensor, data: &HostData) -> Result<()>;

    /// Enqueues one run.
    fn run(&mut self, exe: ExeId, step: Step) -> Result<()>;

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

    /// Work enqueued on `waiter` from now on starts after what is now enqueued on `on`.
    fn join(&mut self, waiter: Lane, on: Lane) -> Result<()>;

    /// Waits for the lane and reads an input, output or state tensor of its last run.
    fn read(&mut self, exe: ExeId, t: Tensor) -> Result<HostTensor>;

    /// Enqueues the copy of the first element of u32 tensor `t` to the host.
    fn send_token(&mut self, exe: ExeId, t: Tensor) -> Result<Ticket>;

    /// Waits for a token. The device may already be at later runs.
    fn wait_token(&mut self, ticket: Ticket) -> Result<u32>;

    /// Notes the time at which a lane gets to what is now enqueued on it. Marks are few and reused in turn: read one
    /// before 64 later ones are made.
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
