//! Weights on their way to the device: packed by all threads into pinned buffers while earlier buffers are copied;
//! synthetic ones are made in place.

use std::time::{Duration, Instant};

use super::device::Device;
use super::fill::fill;
use super::memory::{DeviceBuffer, PinnedBuffer, copy_in};
use super::modules::Modules;
use super::stream::{Event, Stream};
use crate::core::{Recipe, Result};
use crate::weights::{Packer, Source, check_parts};

/// One pinned buffer; large enough that a copy outlasts what it takes to start it. Out of the page cache 16 threads bring
/// 20 to 29 GB/s, where the bus takes 55 (H200 hosts); on one with 26 to 29, 8 MB buffers 20, 64 MB 22, pages asked for
/// ahead (`MADV_POPULATE_READ`) 22.
const STAGE_BYTES: usize = 32 << 20;
/// Buffers in turn: one is filled while others are copied.
const STAGES: usize = 4;

pub struct Uploader<'a> {
    device: &'a Device,
    modules: &'a Modules,
    stream: &'a Stream,
    stages: Vec<(PinnedBuffer, Event)>,
    next: usize,
    /// How long the host had nothing to do but wait for the bus.
    waited: Duration,
}

impl<'a> Uploader<'a> {
    pub fn new(device: &'a Device, modules: &'a Modules, stream: &'a Stream) -> Uploader<'a> {
        Uploader { device, modules, stream, stages: Vec::new(), next: 0, waited: Duration::ZERO }
    }

    /// How long the host waited for the bus: nearly all of the time where nothing else is in the way.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Enqueues the weight of `recipe`. `progress` counts its bytes.
    pub fn upload(
        &mut self,
        recipe: &Recipe,
        from: &dyn Source,
        to: &DeviceBuffer,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        check_parts(recipe, from)?;
        let specs: Option<Vec<_>> = recipe.parts.iter().map(|p| from.synth(&p.name)).collect();
        if let Some(specs) = specs {
            if recipe.padded {
                to.fill(0, self.stream)?;
            }
            return fill(self.device, self.modules, self.stream, recipe, &specs, to.ptr);
        }
        let packer = Packer::new(recipe, from)?;
        let size = recipe.dtype.bytes();
        let (len, step) = (recipe.shape.len(), STAGE_BYTES / size);
        for first in (0..len).step_by(step) {
            let range = first..len.min(first + step);
            let bytes = range.len() * size;
            if self.stages.len() < STAGES {
                self.stages.push((PinnedBuffer::new(STAGE_BYTES)?, Event::untimed()?));
            }
            let (buffer, copied) = &mut self.stages[self.next % STAGES];
            self.next += 1;
            let start = Instant::now();
            copied.sync()?;
            self.waited += start.elapsed();
            let staged = &mut buffer.bytes_mut()[..bytes];
            // One thread alone copies pages far slower than the bus takes them.
            packer.fill_on_all_threads(first, staged);
            // SAFETY: the range lies in the weight's buffer; the stage is filled again only after its event.
            unsafe { copy_in(to.ptr.offset(first * size), staged, self.stream)? };
            copied.record(self.stream)?;
            progress((first * size + bytes) as u64);
        }
        Ok(())
    }
}

impl Drop for Uploader<'_> {
    fn drop(&mut self) {
        // The stages must outlive the copies out of them.
        let _ = self.stream.sync();
    }
}
