//! Streams, events, and graphs captured from a stream.

use cudarc::driver::{result, sys};

use super::driver::check;
use crate::core::Result;

/// A queue of work, independent of the legacy default stream.
pub struct Stream(sys::CUstream);

// SAFETY: a stream belongs to its context, to no thread; a capture begins and ends within one call.
unsafe impl Send for Stream {}
// SAFETY: the driver orders what several threads enqueue on one stream at a time; nothing in here changes before the drop.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new() -> Result<Stream> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Stream(check(stream, || "creating a stream".into())?))
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Waits until everything enqueued is done.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: the stream lives as long as self.
        check(unsafe { result::stream::synchronize(self.0) }, || "running on the GPU".into())
    }

    /// Later work on this stream starts after `event`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        check(unsafe { result::stream::wait_event(self.0, event.0, flags) }, || "joining streams".into())
    }

    /// Records what `enqueue` puts on this stream instead of running it.
    pub fn capture(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Captured> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives and is not capturing: captures do not nest.
        check(unsafe { result::stream::begin_capture(self.0, mode) }, || "beginning a capture".into())?;
        let enqueued = enqueue();
        // SAFETY: begun above; ended also when enqueueing failed, or the stream would stay unusable.
        let graph = check(unsafe { result::stream::end_capture(self.0) }, || "ending a capture".into());
        let graph = match (enqueued, graph) {
            (Ok(()), graph) => graph?,
            (Err(e), graph) => {
                if let Ok(graph) = graph {
                    // SAFETY: nobody else holds what was captured before the failure.
                    let _ = unsafe { result::graph::destroy(graph) };
                }
                return Err(e);
            }
        };
        let mut exec = std::ptr::null_mut();
        // SAFETY: `graph` was just captured; instantiation copies what it needs.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0) };
        // SAFETY: nobody else holds the graph.
        let _ = unsafe { result::graph::destroy(graph) };
        check(made.result(), || "instantiating a captured graph".into())?;
        Ok(Captured(exec))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created in new(), destroyed once; the driver finishes enqueued work first.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// A captured sequence of launches, replayed in one call.
pub struct Captured(sys::CUgraphExec);

// SAFETY: as for a stream; it is launched by one thread at a time, for it is not Sync.
unsafe impl Send for Captured {}

impl Captured {
    /// Brings to the device what the first launch would bring.
    pub fn upload(&self, stream: &Stream) -> Result<()> {
        // SAFETY: as in launch().
        check(unsafe { result::graph::upload(self.0, stream.0) }, || "uploading a graph".into())
    }

    pub fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both live; every address that the graph holds belongs to buffers that outlive it.
        check(unsafe { result::graph::launch(self.0, stream.0) }, || "replaying a graph".into())
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: instantiated in capture(), destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// A point in a stream.
pub struct Event(sys::CUevent);

// SAFETY: as for a stream.
unsafe impl Send for Event {}

impl Event {
    /// With time stamps, for measuring.
    pub fn timed() -> Result<Event> {
        Event::create(sys::CUevent_flags::CU_EVENT_DEFAULT as u32)
    }

    /// For ordering only, which is cheaper.
    pub fn untimed() -> Result<Event> {
        Event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// For ordering, and [`Event::sync`] sleeps: it takes no core, and returns some 20 us later.
    pub fn sleeping() -> Result<Event> {
        let (untimed, blocking) =
            (sys::CUevent_flags::CU_EVENT_DISABLE_TIMING, sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC);
        Event::create(untimed as u32 | blocking as u32)
    }

    fn create(flags: u32) -> Result<Event> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the driver writes one handle.
        let made = unsafe { sys::cuEventCreate(&mut event, flags) };
        check(made.result(), || "creating an event".into())?;
        Ok(Event(event))
    }

    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both live.
        check(unsafe { result::event::record(self.0, stream.0) }, || "recording an event".into())
    }

    /// Waits until the stream has reached the event.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: the event lives.
        check(unsafe { result::event::synchronize(self.0) }, || "running on the GPU".into())
    }

    /// The same without sleeping, whatever the event: as soon as it can be, at the price of a core.
    pub fn spin(&self) -> Result<()> {
        loop {
            // SAFETY: the event lives.
            match unsafe { result::event::query(self.0) } {
                Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_READY => std::hint::spin_loop(),
                reached => return check(reached, || "running on the GPU".into()),
            }
        }
    }

    /// Microseconds from `self` to `later`; both were recorded with time stamps and reached.
    pub fn elapsed_us(&self, later: &Event) -> Result<f64> {
        // SAFETY: both live.
        let ms = check(unsafe { result::event::elapsed(self.0, later.0) }, || "reading events".into())?;
        Ok(f64::from(ms) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created in create(), destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
