//! The CUDA backend: recorded launches, run one by one or replayed as a captured graph. In one file, because every
//! method of the trait works on the same lanes, programs and states.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::{
    Backend, ExeId, Lane, Leads, Mark, MemoryUse, PowerMeter, PowerUse, RowRuns, StateId, TOKENS_AT_ONCE,
    Ticket, Visit, Wait, check_tokens, put,
};
use crate::core::asked;
use crate::core::{DType, Desc, Error, HostData, HostSlice, HostTensor, Place, Recipe, Result, Step, Tensor};
use crate::gpu::convert::{from_device, to_device};
use crate::gpu::device::{Device, Driver};
use crate::gpu::launch::{DevicePtr, GpuIo, GpuTensor, Launch, Launcher, Scratch};
use crate::gpu::memory::{
    DeviceBuffer, Meter, PinnedBuffer, Pitched, copy_in, copy_out, copy_within, copy_within_2d, write_words,
};
use crate::gpu::modules::Modules;
use crate::gpu::power::Sampler;
use crate::gpu::staging::Uploader;
use crate::gpu::stream::{Captured, Event, Stream};
use crate::plan::Plan;
use crate::weights::Source;

/// Scratch of a lane: split-K and softmax partials of the largest shapes.
const SCRATCH_BYTES: usize = 64 << 20;
const COUNTERS: usize = 64 << 10;
/// What a model may want beside weights and states: scratch, arenas of the longest runs, modules.
const WORKING_BYTES: u64 = 2 << 30;
/// Runs whose `Step` may be on its way at once.
const STEPS: usize = 64;
const TOKENS: usize = 64;
const MARKS: usize = 256;

// Fields are dropped in order: graphs before the buffers they point into, everything before the device.
pub struct Cuda {
    exes: Vec<Option<Exe>>,
    lanes: [LaneState; 3],
    weights: HashMap<Recipe, DeviceBuffer>,
    states: Vec<Option<(Desc, DeviceBuffer)>>,
    tokens: Tokens,
    marks: Vec<Event>,
    next_mark: usize,
    meter: Meter,
    capture: bool,
    poison: bool,
    pdl: bool,
    write_step: bool,
    modules: Modules,
    device: Device,
}

struct Exe {
    lane: Lane,
    plan: Arc<Plan>,
    states: Vec<StateId>,
    program: Vec<Launch>,
    captured: Option<Captured>,
    runs: u64,
    /// The arena that the addresses in `program` belong to.
    arena: u64,
}

struct LaneState {
    arena: Option<DeviceBuffer>,
    /// Counts arenas: an exe recorded on an older one is recorded again.
    generation: u64,
    scratch: DeviceBuffer,
    counters: DeviceBuffer,
    step: DeviceBuffer,
    steps: PinnedBuffer,
    step_events: Vec<Event>,
    next_step: usize,
    input: PinnedBuffer,
    input_event: Event,
    joined: Event,
    stream: Stream,
}

/// Bytes of a place in the ring of tokens.
const TOKEN_BYTES: usize = TOKENS_AT_ONCE * 4;

/// Tokens on their way to the host: a pinned ring, and an event per place.
struct Tokens {
    ring: PinnedBuffer,
    events: Vec<Event>,
    next: u64,
}

impl LaneState {
    fn new(meter: &Meter) -> Result<LaneState> {
        let stream = Stream::new()?;
        let counters = DeviceBuffer::new(COUNTERS * 4, "counters", meter)?;
        counters.fill(0, &stream)?;
        Ok(LaneState {
            arena: None,
            generation: 0,
            scratch: DeviceBuffer::new(SCRATCH_BYTES, "scratch", meter)?,
            counters,
            step: DeviceBuffer::new(size_of::<Step>(), "the step", meter)?,
            steps: PinnedBuffer::new(STEPS * size_of::<Step>())?,
            step_events: (0..STEPS).map(|_| Event::untimed()).collect::<Result<_>>()?,
            next_step: 0,
            input: PinnedBuffer::new(1 << 20)?,
            input_event: Event::untimed()?,
            joined: Event::untimed()?,
            stream,
        })
    }

    fn new_arena(&mut self, bytes: usize, meter: &Meter) -> Result<()> {
        let arena = DeviceBuffer::new(bytes, "the arena", meter)?;
        // Every float starts as NaN: what is read before it is written shows.
        arena.fill(0xff, &self.stream)?;
        self.arena = Some(arena);
        Ok(())
    }

    /// Enqueues the step of the next run.
    fn send_step(&mut self, step: Step) -> Result<()> {
        let at = self.next_step % STEPS;
        self.next_step += 1;
        self.step_events[at].sync()?;
        let size = size_of::<Step>();
        let slot = &mut self.steps.bytes_mut()[at * size..][..size];
        slot.copy_from_slice(bytemuck::bytes_of(&step));
        // SAFETY: the slot is written again only after its event, recorded behind this copy.
        unsafe { copy_in(self.step.ptr, slot, &self.stream)? };
        self.step_events[at].record(&self.stream)
    }

    /// Enqueues a copy of `bytes`, which are staged in pinned memory.
    fn send(&mut self, dst: DevicePtr, len: usize, write: impl FnOnce(&mut [u8])) -> Result<()> {
        self.input_event.sync()?;
        if self.input.bytes().len() < len {
            self.input = PinnedBuffer::new(len.next_power_of_two())?;
        }
        let staged = &mut self.input.bytes_mut()[..len];
        write(staged);
        // SAFETY: callers check that `dst` has room; the buffer is written again only after the event.
        unsafe { copy_in(dst, staged, &self.stream)? };
        self.input_event.record(&self.stream)
    }
}

impl Cuda {
    /// Opens GPU `ordinal`.
    pub fn open(ordinal: usize) -> Result<Cuda> {
        if let Some(why) = crate::gpu::embedded::why_empty() {
            crate::bail_runtime!("cuda:{ordinal}: the CUDA kernels were not built: {why}");
        }
        let device = Device::open(ordinal)?;
        let sm = device.facts.sm;
        // Any file tells whether there are images for this chip.
        crate::gpu::embedded::find("norm", sm).map_err(|e| e.context(format!("cuda:{ordinal}")))?;
        if sm >= (9, 0) && device.arch() < 90 {
            let sm = 10 * sm.0 + sm.1;
            tracing::warn!(
                "cuda:{ordinal}: this binary has no kernels for exactly sm_{sm}: older ones run, slower"
            );
        }
        let meter = Meter::default();
        let modules = Modules::new(device.facts.sm);
        Ok(Cuda {
            exes: Vec::new(),
            lanes: [LaneState::new(&meter)?, LaneState::new(&meter)?, LaneState::new(&meter)?],
            weights: HashMap::new(),
            states: Vec::new(),
            tokens: Tokens {
                ring: PinnedBuffer::new(TOKENS * TOKEN_BYTES)?,
                events: (0..TOKENS).map(|_| Event::sleeping()).collect::<Result<_>>()?,
                next: 0,
            },
            marks: (0..MARKS).map(|_| Event::timed()).collect::<Result<_>>()?,
            next_mark: 0,
            meter,
            capture: true,
            poison: false,
            // Kernels for older chips do not wait themselves. The switch tells a race between overlapping kernels from every
            // other error.
            pdl: device.arch() >= 90 && std::env::var_os("VIVACE_PDL").is_none_or(|v| v != "0"),
            // How the step of a run comes to the device: by the copy engine, which waits for the run before and is waited
            // for, or by the stream itself.
            write_step: asked(
                "VIVACE_STEP",
                |way| ["copy", "write"].contains(&way).then_some(way == "write"),
                "copy or write",
            )?
            .unwrap_or(false),
            modules,
            device,
        })
    }

    /// Every entry point begins with this: the thread may have worked with another GPU meanwhile, or be another one.
    fn current(&self) -> Result<()> {
        self.device.make_current()
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    fn exe(&self, id: ExeId) -> Result<&Exe> {
        match self.exes.get(id.0) {
            Some(Some(exe)) => Ok(exe),
            _ => crate::bail_runtime!("graph {} was released", id.0),
        }
    }

    fn exe_mut(&mut self, id: ExeId) -> Result<&mut Exe> {
        match self.exes.get_mut(id.0) {
            Some(Some(exe)) => Ok(exe),
            _ => crate::bail_runtime!("graph {} was released", id.0),
        }
    }

    fn state(&self, id: StateId) -> Result<&(Desc, DeviceBuffer)> {
        match self.states.get(id.0) {
            Some(Some(state)) => Ok(state),
            _ => crate::bail_runtime!("state {} does not exist", id.0),
        }
    }

    fn lane(&self, lane: Lane) -> &LaneState {
        &self.lanes[lane as usize]
    }

    fn address(&self, exe: &Exe, t: Tensor) -> Result<DevicePtr> {
        match exe.plan.graph.desc(t).place {
            Place::Weight(w) => match self.weights.get(&exe.plan.graph.weights[w as usize]) {
                Some(buffer) => Ok(buffer.ptr),
                None => crate::bail_runtime!("{}: not loaded", exe.plan.graph.desc(t).name),
            },
            Place::State(s) => Ok(self.state(exe.states[s as usize])?.1.ptr),
            Place::Arena | Place::Io => match &self.lane(exe.lane).arena {
                Some(arena) if arena.bytes >= exe.plan.arena_bytes => {
                    Ok(arena.ptr.offset(exe.plan.slot(t)?.offset))
                }
                _ => crate::bail_runtime!("a lane without an arena of {} bytes", exe.plan.arena_bytes),
            },
        }
    }

    /// Records every node's launches with the addresses of now.
    fn record(&self, exe: &Exe) -> Result<Vec<Launch>> {
        let lane = self.lane(exe.lane);
        let mut program = Vec::new();
        for (at, node) in exe.plan.graph.nodes.iter().enumerate() {
            let tensors = |ts: &[Tensor]| -> Result<Vec<GpuTensor<'_>>> {
                ts.iter()
                    .map(|&t| Ok(GpuTensor { desc: exe.plan.graph.desc(t), ptr: self.address(exe, t)? }))
                    .collect()
            };
            let io = GpuIo { ins: tensors(&node.ins)?, outs: tensors(&node.outs)? };
            let mut launcher = Launcher {
                device: &self.device,
                modules: &self.modules,
                program: &mut program,
                node: at,
                step: lane.step.ptr,
                scratch: Scratch {
                    ptr: lane.scratch.ptr,
                    bytes: lane.scratch.bytes,
                    counters: lane.counters.ptr,
                    counter_len: COUNTERS,
                },
            };
            let name = &exe.plan.graph.desc(node.outs[0]).name;
            node.op.launch(&mut launcher, &io).map_err(|e| e.context(name))?;
        }
        Ok(program)
    }

    /// Sees to it that the lane of an exe has an arena of its size: one that could not grow may be gone, or smaller.
    fn require_arena(&mut self, id: ExeId) -> Result<()> {
        let exe = self.exe(id)?;
        self.grow_arena(exe.lane, exe.plan.arena_bytes)
    }

    /// Brings the exe's addresses up to date, where the arena is another since it was recorded.
    fn record_again(&mut self, id: ExeId) -> Result<()> {
        self.require_arena(id)?;
        let exe = self.exe(id)?;
        let arena = self.lane(exe.lane).generation;
        if exe.arena != arena {
            let program = self.record(exe)?;
            let exe = self.exe_mut(id)?;
            (exe.program, exe.captured, exe.arena, exe.runs) = (program, None, arena, 0);
        }
        Ok(())
    }

    /// Makes a graph of the exe's program, if there is none yet.
    fn capture_run(&mut self, id: ExeId) -> Result<()> {
        let exe = self.exe(id)?;
        if exe.captured.is_none() {
            let captured = self.lane(exe.lane).stream.capture(|| self.enqueue(exe))?;
            self.exe_mut(id)?.captured = Some(captured);
        }
        Ok(())
    }

    /// Brings the exe's addresses up to date and sends the step; the program is then ready to be enqueued.
    fn start(&mut self, id: ExeId, step: Step) -> Result<()> {
        self.current()?;
        self.record_again(id)?;
        if self.poison {
            self.poison_arena(id)?;
        }
        let lane = self.exe(id)?.lane;
        if self.write_step {
            let lane = self.lane(lane);
            // SAFETY: the buffer holds a Step, which is two words, and is aligned to 256 bytes.
            return unsafe { write_words(lane.step.ptr, bytemuck::cast(step), &lane.stream) };
        }
        self.lanes[lane as usize].send_step(step)
    }

    /// Enqueues the program: kernel by kernel at first, then as one graph.
    fn launch(&mut self, id: ExeId) -> Result<()> {
        if self.capture && self.exe(id)?.runs > 0 {
            self.capture_run(id)?;
        }
        let exe = self.exe(id)?;
        match &exe.captured {
            Some(graph) if self.capture => graph.launch(&self.lane(exe.lane).stream)?,
            _ => self.enqueue(exe)?,
        }
        self.exe_mut(id)?.runs += 1;
        Ok(())
    }

    /// NaN everywhere but in what the host has written.
    fn poison_arena(&self, id: ExeId) -> Result<()> {
        let exe = self.exe(id)?;
        let lane = self.lane(exe.lane);
        let Some(arena) = &lane.arena else { return Ok(()) };
        let g = &exe.plan.graph;
        let written: Vec<bool> = {
            let mut w = vec![false; g.tensors.len()];
            g.nodes.iter().flat_map(|n| &n.outs).for_each(|t| w[t.0 as usize] = true);
            w
        };
        for (t, slot) in exe.plan.slots.iter().enumerate() {
            if let Some(slot) = slot
                && written[t]
            {
                arena.fill_range(slot.offset, slot.bytes, 0xff, &lane.stream)?;
            }
        }
        Ok(())
    }

    /// As with `VIVACE_PDL=0`: every kernel begins when the one before it has ended.
    #[cfg(test)]
    pub(crate) fn one_after_another(mut self) -> Cuda {
        self.pdl = false;
        self
    }

    fn enqueue(&self, exe: &Exe) -> Result<()> {
        let stream = &self.lane(exe.lane).stream;
        // The first kernel follows a copy, not a kernel.
        exe.program.iter().enumerate().try_for_each(|(i, l)| l.enqueue(stream, self.pdl && i > 0))
    }

    /// Gives a lane an arena of at least `bytes`. Where there is no room for it, the one that was there comes back, so that
    /// what was prepared for it still runs.
    fn grow_arena(&mut self, lane: Lane, bytes: usize) -> Result<()> {
        let state = &mut self.lanes[lane as usize];
        let before = state.arena.as_ref().map_or(0, |a| a.bytes);
        if before >= bytes && state.arena.is_some() {
            return Ok(());
        }
        state.stream.sync()?;
        state.arena = None;
        state.generation += 1;
        let grown = state.new_arena(bytes, &self.meter);
        if grown.is_err() && before > 0 {
            // Why the larger one failed is what is told.
            let _ = state.new_arena(before, &self.meter);
        }
        grown
    }

    fn read_at(&self, lane: Lane, desc: &Desc, ptr: DevicePtr) -> Result<HostData> {
        let mut bytes = vec![0u8; desc.bytes() as usize];
        let stream = &self.lane(lane).stream;
        // SAFETY: the tensor has this many bytes; `bytes` is not touched before the sync.
        unsafe { copy_out(&mut bytes, ptr, stream)? };
        stream.sync()?;
        Ok(from_device(desc.dtype, &bytes))
    }

    fn read_tensor(&self, exe: &Exe, t: Tensor) -> Result<HostTensor> {
        let desc = exe.plan.graph.desc(t);
        let data = self.read_at(exe.lane, desc, self.address(exe, t)?)?;
        Ok(HostTensor { desc: desc.clone(), data })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What the fields free belongs to this context.
        let _ = self.current();
    }
}

fn check_fits(desc: &Desc, first: usize, data: HostSlice<'_>) -> Result<()> {
    let kinds_agree = desc.dtype.is_float() == data.is_float();
    if first + data.len() > desc.shape.len() || !kinds_agree {
        crate::bail_runtime!("{} {}: {} values at {first} do not fit", desc.name, desc.brief(), data.len());
    }
    Ok(())
}

impl Backend for Cuda {
    fn describe(&self) -> String {
        let f = &self.device.facts;
        format!("{}, sm_{}{}, {} SMs", f.name, f.sm.0, f.sm.1, f.sm_count)
    }

    fn driver(&self) -> Option<String> {
        Driver::probe().ok().map(|driver| format!("CUDA {}", driver.cuda))
    }

    fn meter_power(&self) -> Option<Box<dyn PowerMeter>> {
        match Sampler::start(&self.device) {
            Ok(sampler) => Some(Box::new(sampler)),
            Err(why) => {
                tracing::info!("neither power nor clock: {why}");
                None
            }
        }
    }

    fn asynchronous(&self) -> bool {
        true
    }

    fn arena_elem_bytes(&self, dtype: DType) -> usize {
        dtype.bytes()
    }

    fn require(&self, weight_bytes: u64, state_bytes: u64) -> Result<()> {
        self.current()?;
        let (free, total) = self.device.memory()?;
        let needed = weight_bytes + state_bytes + WORKING_BYTES;
        if needed > free {
            let gb = |b: u64| b as f64 / 1e9;
            crate::bail_runtime!(
                "cuda:{}: the model needs {:.1} GB ({:.1} weights, {:.1} cache and states, {:.1} working memory), \
                 {:.1} of {:.1} GB are free",
                self.device.facts.ordinal,
                gb(needed),
                gb(weight_bytes),
                gb(state_bytes),
                gb(WORKING_BYTES),
                gb(free),
                gb(total)
            );
        }
        Ok(())
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        self.current()?;
        Ok(Some(self.device.memory()?.0))
    }

    fn load(
        &mut self,
        recipes: &[Recipe],
        from: &Arc<dyn Source>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        self.current()?;
        let start = Instant::now();
        let mut seen = HashSet::new();
        let absent: Vec<&Recipe> =
            recipes.iter().filter(|&r| !self.weights.contains_key(r) && seen.insert(r)).collect();
        let total: u64 = recipes.iter().map(Recipe::bytes).sum();
        let bytes: u64 = absent.iter().map(|r| r.bytes()).sum();
        progress(total - bytes, total);
        if absent.is_empty() {
            return Ok(());
        }
        let stream = &self.lanes[Lane::Text as usize].stream;
        let uploader = Uploader { device: &self.device, modules: &self.modules, stream, meter: &self.meter };
        let loaded =
            uploader.upload(&absent, from.as_ref(), &mut |done| progress(total - bytes + done, total))?;
        stream.sync()?;
        self.weights.extend(absent.into_iter().cloned().zip(loaded.buffers));
        let (all, gb) = (start.elapsed().as_secs_f64(), bytes as f64 / 1e9);
        tracing::info!(
            "weights: {gb:.2} GB in {all:.3} s, {:.1} GB/s; {} threads waited {:.3} s for the bus",
            gb / all.max(1e-9),
            loaded.threads,
            loaded.waited.as_secs_f64()
        );
        Ok(())
    }

    fn create_state(&mut self, desc: &Desc) -> Result<StateId> {
        self.current()?;
        let buffer = DeviceBuffer::new(desc.bytes() as usize, &desc.name, &self.meter)?;
        let stream = &self.lane(Lane::Text).stream;
        buffer.fill(0, stream)?;
        stream.sync()?;
        Ok(StateId(put(&mut self.states, (desc.clone(), buffer))))
    }

    fn release_state(&mut self, s: StateId) {
        let _ = self.current();
        if let Some(state) = self.states.get_mut(s.0) {
            *state = None;
        }
    }

    fn write_state(&mut self, s: StateId, first_element: usize, data: &HostData) -> Result<()> {
        self.current()?;
        let (desc, buffer) = self.state(s)?;
        let data = data.as_slice();
        check_fits(desc, first_element, data)?;
        let dtype = desc.dtype;
        let dst = buffer.ptr.offset(first_element * dtype.bytes());
        let len = data.len() * dtype.bytes();
        self.lanes[Lane::Text as usize].send(dst, len, |bytes| to_device(dtype, data, bytes))
    }

    fn read_state(&mut self, s: StateId) -> Result<HostData> {
        self.current()?;
        let (desc, buffer) = self.state(s)?;
        self.read_at(Lane::Text, desc, buffer.ptr)
    }

    fn prepare(&mut self, lane: Lane, plan: Plan, states: &[StateId]) -> Result<ExeId> {
        self.current()?;
        if states.len() < plan.graph.states.len() {
            crate::bail_runtime!("{} states for a graph with {}", states.len(), plan.graph.states.len());
        }
        self.grow_arena(lane, plan.arena_bytes)?;
        let mut exe = Exe {
            lane,
            plan: Arc::new(plan),
            states: states.to_vec(),
            program: Vec::new(),
            captured: None,
            runs: 0,
            arena: self.lane(lane).generation,
        };
        exe.program = self.record(&exe)?;
        Ok(ExeId(put(&mut self.exes, exe)))
    }

    fn warm(&mut self, id: ExeId) -> Result<()> {
        self.current()?;
        self.record_again(id)?;
        if self.capture {
            self.capture_run(id)?;
            let exe = self.exe(id)?;
            if let Some(captured) = &exe.captured {
                captured.upload(&self.lane(exe.lane).stream)?;
            }
        }
        Ok(())
    }

    fn reserve(&mut self, lane: Lane, arena_bytes: usize) -> Result<()> {
        self.current()?;
        self.grow_arena(lane, arena_bytes)
    }

    fn release(&mut self, exe: ExeId) {
        if let Some(slot) = self.exes.get_mut(exe.0)
            && let Some(exe) = slot.take()
        {
            // A captured graph must not go while it runs.
            let _ = self.device.make_current().and_then(|()| self.lanes[exe.lane as usize].stream.sync());
        }
    }

    fn write_slice(&mut self, exe: ExeId, t: Tensor, data: HostSlice<'_>) -> Result<()> {
        self.current()?;
        self.require_arena(exe)?;
        let exe = self.exe(exe)?;
        let desc = exe.plan.graph.desc(t);
        check_fits(desc, 0, data)?;
        let (dtype, lane, dst) = (desc.dtype, exe.lane, self.address(exe, t)?);
        self.lanes[lane as usize].send(dst, data.len() * dtype.bytes(), |bytes| to_device(dtype, data, bytes))
    }

    fn run(&mut self, id: ExeId, step: Step) -> Result<()> {
        self.start(id, step)?;
        self.launch(id)
    }

    fn run_after(&mut self, id: ExeId, step: Step, on: &[Lane]) -> Result<Mark> {
        self.start(id, step)?;
        let lane = self.exe(id)?.lane;
        for &other in on {
            self.join(lane, other)?;
        }
        let start = self.mark(lane)?;
        self.launch(id)?;
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
        self.current()?;
        let exe = self.exe(exe)?;
        let from = exe.plan.graph.desc(t);
        let (to, buffer) = self.state(s)?;
        let rows = rows.min(from.rows());
        if from.dtype != to.dtype || from.cols() != to.cols() || first_row + rows > to.rows() {
            crate::bail_runtime!(
                "{rows} rows of {} {} do not fit {} {} from row {first_row}",
                from.name,
                from.brief(),
                to.name,
                to.brief()
            );
        }
        let row_bytes = from.cols() * from.dtype.bytes();
        let dst = buffer.ptr.offset(first_row * row_bytes);
        let src = self.address(exe, t)?;
        // SAFETY: both ranges were checked above; an arena and a state never overlap.
        unsafe { copy_within(dst, src, rows * row_bytes, &self.lane(exe.lane).stream) }
    }

    fn copy_state_leads(
        &mut self,
        (src, src_row): (StateId, usize),
        (dst, dst_row): (StateId, usize),
        rows: usize,
        leads: Leads,
    ) -> Result<()> {
        self.current()?;
        let ((from, src_buffer), (to, dst_buffer)) = (self.state(src)?, self.state(dst)?);
        let at = RowRuns::new((from, src_row), (to, dst_row), rows, leads)?;
        if src == dst {
            crate::bail_runtime!("a copy of rows from state {0} to state {0}: two expected", src.0);
        }
        let size = from.dtype.bytes();
        if at.len * at.runs == 0 {
            return Ok(());
        }
        let stream = &self.lane(Lane::Text).stream;
        (0..at.blocks).try_for_each(|block| {
            let place = |ptr: DevicePtr, first: usize, pitch: usize| Pitched {
                ptr: ptr.offset(first * size),
                pitch: pitch * size,
            };
            let src = place(src_buffer.ptr, at.src + block * at.src_block, at.src_pitch);
            let dst = place(dst_buffer.ptr, at.dst + block * at.dst_block, at.dst_pitch);
            // SAFETY: all ranges were checked against their states, which are two.
            unsafe { copy_within_2d(dst, src, at.len * size, at.runs, stream) }
        })
    }

    fn join(&mut self, waiter: Lane, on: Lane) -> Result<()> {
        self.current()?;
        let from = self.lane(on);
        from.joined.record(&from.stream)?;
        self.lane(waiter).stream.wait(&from.joined)
    }

    fn read(&mut self, exe: ExeId, t: Tensor) -> Result<HostTensor> {
        self.current()?;
        self.read_tensor(self.exe(exe)?, t)
    }

    fn send_tokens(&mut self, exe: ExeId, t: Tensor, n: usize) -> Result<Ticket> {
        self.current()?;
        let exe = self.exe(exe)?;
        check_tokens(exe.plan.graph.desc(t), n)?;
        let (src, lane) = (self.address(exe, t)?, exe.lane);
        let ticket = self.tokens.next;
        let at = (ticket % TOKENS as u64) as usize;
        self.tokens.next += 1;
        let stream = &self.lanes[lane as usize].stream;
        let slot = &mut self.tokens.ring.bytes_mut()[at * TOKEN_BYTES..][..n * 4];
        // SAFETY: the tensor has n elements; the slot is read only after its event, and comes round again after 63 others.
        unsafe { copy_out(slot, src, stream)? };
        self.tokens.events[at].record(stream)?;
        Ok(Ticket(ticket))
    }

    fn wait_tokens(&mut self, ticket: Ticket, wait: Wait, ids: &mut [u32]) -> Result<()> {
        self.current()?;
        if ticket.0 + (TOKENS as u64) <= self.tokens.next {
            crate::bail_runtime!("token {} was overwritten by later ones", ticket.0);
        }
        let at = (ticket.0 % TOKENS as u64) as usize;
        match wait {
            Wait::Busy => self.tokens.events[at].spin()?,
            Wait::Asleep => self.tokens.events[at].sync()?,
        }
        let sent = self.tokens.ring.bytes()[at * TOKEN_BYTES..][..TOKEN_BYTES].as_chunks().0;
        if ids.len() > sent.len() {
            crate::bail_runtime!("{} tokens waited for, at most {} are sent at once", ids.len(), sent.len());
        }
        ids.iter_mut().zip(sent).for_each(|(id, bytes)| *id = u32::from_le_bytes(*bytes));
        Ok(())
    }

    fn mark(&mut self, lane: Lane) -> Result<Mark> {
        self.current()?;
        let at = self.next_mark % MARKS;
        self.next_mark += 1;
        self.marks[at].record(&self.lane(lane).stream)?;
        Ok(Mark(at))
    }

    fn elapsed_us(&mut self, from: Mark, to: Mark) -> Result<f64> {
        self.current()?;
        let at = |m: Mark| self.marks.get(m.0).ok_or_else(|| Error::runtime("a mark was never made"));
        let (from, to) = (at(from)?, at(to)?);
        from.sync()?;
        to.sync()?;
        from.elapsed_us(to)
    }

    fn trace(&mut self, id: ExeId, step: Step, visit: &mut Visit<'_>) -> Result<()> {
        self.current()?;
        self.start(id, step)?;
        let exe = self.exe(id)?;
        for (at, node) in exe.plan.graph.nodes.iter().enumerate() {
            for launch in exe.program.iter().filter(|l| l.node == at) {
                launch.enqueue(&self.lane(exe.lane).stream, false)?;
            }
            let outs: Vec<HostTensor> =
                node.outs.iter().map(|&t| self.read_tensor(exe, t)).collect::<Result<_>>()?;
            visit(at, node, &outs)?;
        }
        Ok(())
    }

    fn profile(&mut self, id: ExeId, step: Step, repeats: usize) -> Result<Vec<f64>> {
        self.current()?;
        let nodes = self.exe(id)?.plan.graph.nodes.len();
        let events: Vec<Event> = (0..=nodes).map(|_| Event::timed()).collect::<Result<_>>()?;
        let mut times_us = vec![Vec::with_capacity(repeats); nodes];
        for _ in 0..repeats.max(1) {
            self.start(id, step)?;
            let exe = self.exe(id)?;
            let stream = &self.lane(exe.lane).stream;
            for (at, event) in events[..nodes].iter().enumerate() {
                event.record(stream)?;
                for launch in exe.program.iter().filter(|l| l.node == at) {
                    launch.enqueue(stream, false)?;
                }
            }
            events[nodes].record(stream)?;
            stream.sync()?;
            for (at, times) in times_us.iter_mut().enumerate() {
                times.push(events[at].elapsed_us(&events[at + 1])?);
            }
        }
        Ok(times_us.into_iter().map(median).collect())
    }

    fn time(&mut self, id: ExeId, step: Step, warmup: usize, repeats: usize) -> Result<Vec<f64>> {
        self.current()?;
        let lane = self.exe(id)?.lane;
        let events: Vec<Event> = (0..=repeats).map(|_| Event::timed()).collect::<Result<_>>()?;
        // The first run goes launch by launch, the second one captures. No wait in between: the device is busy when
        // a run is enqueued, as it is when tokens are decoded ahead, so that no time of the host is counted.
        for _ in 0..warmup.max(3) {
            self.run(id, step)?;
        }
        events[0].record(&self.lane(lane).stream)?;
        for event in &events[1..] {
            self.run(id, step)?;
            event.record(&self.lane(lane).stream)?;
        }
        self.lane(lane).stream.sync()?;
        events.windows(2).map(|pair| pair[0].elapsed_us(&pair[1])).collect()
    }

    fn set_capture(&mut self, on: bool) {
        self.capture = on;
    }

    fn set_poison(&mut self, on: bool) {
        self.poison = on;
    }

    fn sync(&mut self) -> Result<()> {
        self.current()?;
        self.lanes.iter().try_for_each(|l| l.stream.sync())
    }

    fn memory(&self) -> MemoryUse {
        let sum = |it: &mut dyn Iterator<Item = usize>| it.map(|b| b as u64).sum::<u64>();
        MemoryUse {
            weights: sum(&mut self.weights.values().map(|b| b.bytes)),
            states: sum(&mut self.states.iter().flatten().map(|(_, b)| b.bytes)),
            arenas: sum(&mut self.lanes.iter().filter_map(|l| l.arena.as_ref()).map(|b| b.bytes)),
            peak: self.meter.peak_bytes(),
        }
    }
}

impl PowerMeter for Sampler {
    fn stop(self: Box<Self>) -> PowerUse {
        let samples = Sampler::stop(*self);
        PowerUse { watts: samples.watts(), sm_mhz: samples.sm_mhz() }
    }
}

fn median(mut xs: Vec<f64>) -> f64 {
    xs.sort_by(f64::total_cmp);
    xs.get(xs.len() / 2).copied().unwrap_or(0.0)
}
