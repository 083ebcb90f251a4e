//! Weights on their way to the device: packed by many threads into pinned buffers, each of which is copied as soon as it
//! is full; synthetic ones are made in place, and so is what is folded.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::crew::{Hand, crew};
use super::device::Device;
use super::fill::fill;
use super::fold::{Folding, fold};
use super::launch::DevicePtr;
use super::memory::{DeviceBuffer, Meter, PinnedBuffer, copy_in};
use super::modules::Modules;
use super::stream::{Event, Stream};
use crate::core::{DType, Part, Recipe, Result};
use crate::weights::{Packer, Source, SynthSpec, check_parts};

/// One pinned buffer, and what a thread packs at a time: large enough that a copy outlasts what it takes to start it. Copies
/// of 2 MB take 51 GB/s of a bus that takes 54, those of 4 MB 53.
///
/// Why threads share nothing but a queue: on a host of an H200, with 16 cores, all of them filling one buffer of 32 MB after
/// another, together, brought 20 to 29 GB/s out of the page cache. Alone, 12 threads with two buffers each copy out of it
/// at 75, and so wait for the bus. To read the file in place of copying out of its map is no faster.
const STAGE_BYTES: usize = 4 << 20;
/// Buffers of a thread: one is filled while the other is copied.
const STAGES: usize = 2;
/// More than the bus needs would only pin more memory: 96 MB with these.
const MOST_THREADS: usize = 12;
/// Weights start at multiples of it in a buffer, and are cut at multiples of it: no element is, and copies are aligned.
const ALIGN: usize = 256;

/// Where weights go.
pub struct Uploader<'a> {
    pub device: &'a Device,
    pub modules: &'a Modules,
    pub stream: &'a Stream,
    pub meter: &'a Meter,
}

/// Weights on the device, or nearly: synthetic and folded ones may still be in the making on the stream.
pub struct Uploaded {
    /// In the order of the recipes.
    pub buffers: Vec<DeviceBuffer>,
    pub threads: usize,
    /// How long a thread waited for the bus, the mean over all: most of the time where nothing else is in the way.
    pub waited: Duration,
}

/// How a weight comes about.
enum Way<'a> {
    Made(Vec<SynthSpec>),
    Packed(Packer<'a>),
    /// Of other weights, when these are there.
    Folded,
}

impl<'a> Way<'a> {
    fn of(recipe: &'a Recipe, from: &'a dyn Source) -> Result<Way<'a>> {
        // Made in the type of the recipe; where the source rounds to another one first, its own bytes are taken.
        let made = |p: &Part| match from.info(&p.name)?.dtype? {
            DType::F32 => from.synth(&p.name),
            stored if stored == recipe.dtype => from.synth(&p.name),
            _ => None,
        };
        let specs: Option<Vec<_>> = recipe.parts.iter().map(made).collect();
        Ok(match specs {
            Some(specs) => Way::Made(specs),
            None => Way::Packed(Packer::new(recipe, from)?),
        })
    }
}

/// Part of a weight that goes into a stage.
struct Span<'a> {
    packer: &'a Packer<'a>,
    /// The first element.
    first: usize,
    /// Bytes of the stage.
    at: Range<usize>,
    /// Where they go.
    to: DevicePtr,
}

/// Cuts weights that follow each other into pieces, each a stage full. Small weights share one.
#[derive(Default)]
struct Cutter<'a> {
    piece: Vec<Span<'a>>,
    filled: usize,
}

impl<'a> Cutter<'a> {
    /// Adds the weight that goes to `to`; `full` takes the pieces that are full.
    fn add(&mut self, packer: &'a Packer<'a>, to: DevicePtr, mut full: impl FnMut(Vec<Span<'a>>)) {
        let recipe = packer.recipe();
        let (len, size) = (recipe.bytes() as usize, recipe.dtype.bytes());
        let mut start = 0;
        while start < len {
            let end = len.min(start + STAGE_BYTES - self.filled);
            let at = self.filled..self.filled + end - start;
            self.filled = at.end.next_multiple_of(ALIGN);
            self.piece.push(Span { packer, first: start / size, at, to: to.offset(start) });
            start = end;
            if self.filled == STAGE_BYTES {
                full(self.rest());
            }
        }
    }

    /// What has not filled a piece.
    fn rest(&mut self) -> Vec<Span<'a>> {
        self.filled = 0;
        std::mem::take(&mut self.piece)
    }
}

/// The pinned buffers of one thread, made when they are first wanted.
struct Stages<'a> {
    stream: &'a Stream,
    all: Vec<(PinnedBuffer, Event)>,
    next: usize,
    waited: Duration,
}

impl Stages<'_> {
    /// Packs a piece into the next stage and enqueues its copies.
    fn send(&mut self, piece: &[Span]) -> Result<()> {
        if self.all.len() < STAGES {
            self.all.push((PinnedBuffer::new(STAGE_BYTES)?, Event::untimed()?));
        }
        let (stage, copied) = &mut self.all[self.next % STAGES];
        self.next += 1;
        let start = Instant::now();
        copied.sync()?;
        self.waited += start.elapsed();
        let stage = stage.bytes_mut();
        for span in piece {
            let packed = &mut stage[span.at.clone()];
            span.packer.fill(span.first, packed);
            // SAFETY: the span lies in the weight's buffer, which `upload` holds until this thread has ended. The packed
            // bytes are written again only after the event below, and freed only after `drop` has waited for the stream.
            unsafe { copy_in(span.to, packed, self.stream)? };
        }
        copied.record(self.stream)
    }
}

impl Drop for Stages<'_> {
    fn drop(&mut self) {
        // The stages must outlive the copies out of them, also after an error or a panic.
        let _ = self.stream.sync();
    }
}

/// What each thread does: packs and sends until there is no more.
fn send_all(device: &Device, stream: &Stream, pieces: &Hand<Vec<Span>>) -> Result<Duration> {
    device.make_current()?;
    let mut stages = Stages { stream, all: Vec::new(), next: 0, waited: Duration::ZERO };
    while let Some(piece) = pieces.take() {
        stages.send(&piece)?;
        pieces.report(piece.iter().map(|span| span.at.len() as u64).sum());
    }
    Ok(stages.waited)
}

impl Uploader<'_> {
    /// Takes memory for the weights of `recipes` and fills it. `progress` gets the bytes done so far, of these alone: what
    /// else is brought to be folded in does not count, and is gone at the end.
    pub fn upload(
        &self,
        recipes: &[&Recipe],
        from: &dyn Source,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Uploaded> {
        recipes.iter().try_for_each(|r| check_parts(r, from))?;
        let folding = Folding::of(recipes);
        let total = recipes.iter().map(|r| r.bytes()).sum();
        // What is kept, and what goes when it has been folded in.
        let sizes: Vec<usize> = folding.brought.iter().map(|r| r.bytes() as usize).collect();
        let (kept, folded_in) = sizes.split_at(recipes.len());
        let mut buffers = DeviceBuffer::several(kept, "weights", self.meter)?;
        buffers.extend(DeviceBuffer::several(folded_in, "what is folded into weights", self.meter)?);
        let brought = self.bring(&folding, from, &buffers, &mut |done: u64| progress(done.min(total)));
        let folded = brought.and_then(|brought| {
            fold(self.device, self.modules, self.stream, &folding, &buffers)?;
            Ok(brought)
        });
        // Nothing is freed while the stream uses it.
        let ended = match &folded {
            Ok(_) if folded_in.is_empty() => Ok(()),
            _ => self.stream.sync(),
        };
        let (threads, waited) = folded?;
        ended?;
        buffers.truncate(recipes.len());
        if !folding.steps.is_empty() {
            progress(total);
        }
        Ok(Uploaded { buffers, threads, waited })
    }

    /// Fills the buffer of every weight, but where weights are folded of others. Returns the number of threads, and how long
    /// they waited for the bus.
    fn bring(
        &self,
        folding: &Folding,
        from: &dyn Source,
        buffers: &[DeviceBuffer],
        progress: &mut dyn FnMut(u64),
    ) -> Result<(usize, Duration)> {
        let recipes = &folding.brought;
        let way = |(place, recipe)| match folding.makes(place) {
            true => Ok(Way::Folded),
            false => Way::of(recipe, from),
        };
        let ways: Vec<Way> = recipes.iter().enumerate().map(way).collect::<Result<_>>()?;
        let weights = || recipes.iter().zip(&ways).zip(buffers);
        let is_packed = |way: &Way| matches!(way, Way::Packed(_));
        let packed: u64 = weights().filter(|((_, w), _)| is_packed(w)).map(|((r, _), _)| r.bytes()).sum();
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS);
        let threads = threads.min(packed.div_ceil(STAGE_BYTES as u64) as usize);

        let (device, stream) = (self.device, self.stream);
        let waited = crew(
            threads,
            |pieces| send_all(device, stream, pieces),
            |feed| {
                let mut cutter = Cutter::default();
                for ((recipe, way), to) in weights() {
                    match way {
                        Way::Packed(packer) => cutter.add(packer, to.ptr, |piece| feed.give(piece)),
                        Way::Made(specs) => {
                            self.make(recipe, specs, to)?;
                            feed.add(recipe.bytes());
                        }
                        Way::Folded => {}
                    }
                }
                if !cutter.piece.is_empty() {
                    feed.give(cutter.rest());
                }
                Ok(())
            },
            progress,
        )?;
        Ok((threads, waited.iter().sum::<Duration>() / threads.max(1) as u32))
    }

    /// Enqueues the making of a synthetic weight.
    fn make(&self, recipe: &Recipe, specs: &[SynthSpec], to: &DeviceBuffer) -> Result<()> {
        if recipe.padded {
            to.fill(0, self.stream)?;
        }
        fill(self.device, self.modules, self.stream, recipe, specs, to.ptr)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::core::DType;
    use crate::weights::{SynthSource, pack};

    /// Larger than a stage, small, of one element; other types and orders.
    fn weights() -> (SynthSource, Vec<Recipe>) {
        let mut tensors = vec![
            ("large".to_owned(), vec![1501, 1999]),
            ("gate".into(), vec![16, 24]),
            ("up".into(), vec![16, 24]),
        ];
        tensors.extend((0..40).map(|i| (format!("bias.{i}"), vec![1 + 97 * i])));
        let plain = |dtype, i: usize| Recipe::plain(&tensors[i].0, dtype, &tensors[i].1);
        let mut recipes = vec![Recipe::interleave(&plain(DType::F16, 1), &plain(DType::F16, 2), 8).unwrap()];
        recipes.extend((3..20).map(|i| plain(DType::BF16, i)));
        recipes.extend([plain(DType::BF16, 0), plain(DType::F32, 0)]);
        recipes.push(Recipe::padded_cols("gate", DType::BF16, &[16, 24], 32));
        recipes.extend((20..43).map(|i| plain(DType::F32, i)));
        (SynthSource::new(5, DType::BF16, tensors), recipes)
    }

    /// Weights in one block of "device memory", with gaps between them, and what is to stand there.
    fn places(recipes: &[Recipe], from: &SynthSource) -> (Vec<usize>, Vec<u8>) {
        let (mut starts, mut memory) = (Vec::new(), Vec::new());
        for recipe in recipes {
            memory.resize(memory.len().next_multiple_of(ALIGN) + ALIGN, 0xee);
            starts.push(memory.len());
            memory.resize(memory.len() + recipe.bytes() as usize, 0);
            pack(recipe, from, &mut memory[starts[starts.len() - 1]..]).unwrap();
        }
        (starts, memory)
    }

    #[test]
    fn pieces_hold_every_byte_of_every_weight_once_in_order() {
        let (source, recipes) = weights();
        let (starts, memory) = places(&recipes, &source);
        let packers: Vec<_> = recipes.iter().map(|r| Packer::new(r, &source).unwrap()).collect();
        let (mut cutter, mut pieces) = (Cutter::default(), Vec::new());
        for (packer, start) in packers.iter().zip(&starts) {
            cutter.add(packer, DevicePtr(*start as u64), |piece| pieces.push(piece));
        }
        pieces.push(cutter.rest());

        let mut expected = recipes.iter().zip(&starts).map(|(r, start)| *start..*start + r.bytes() as usize);
        let (mut now, mut free) = (0..0, 0);
        for span in pieces.iter().flatten() {
            if now.is_empty() {
                now = expected.next().unwrap();
            }
            assert_eq!(span.to.0 as usize, now.start);
            now.start += span.at.len();
            assert!(now.start <= now.end && !span.at.is_empty());
            assert!(span.at.start.is_multiple_of(ALIGN) && span.at.end <= STAGE_BYTES);
            assert!(span.at.start == 0 || span.at.start >= free, "spans of a stage overlap");
            free = span.at.end;
        }
        assert!(now.is_empty() && expected.next().is_none());
        let total = memory.len();
        assert!(pieces.len() == total.div_ceil(STAGE_BYTES), "{} pieces of {total} bytes", pieces.len());
        assert!(pieces[0].len() > 15, "small weights share a piece");
    }

    #[test]
    fn threads_bring_every_weight_where_it_belongs() {
        let (source, recipes) = weights();
        let (starts, expected) = places(&recipes, &source);
        let packers: Vec<_> = recipes.iter().map(|r| Packer::new(r, &source).unwrap()).collect();
        let memory = Mutex::new(vec![0xee; expected.len()]);
        let mut done = 0;
        crew(
            3,
            |pieces| {
                let mut stage = vec![0xff; STAGE_BYTES];
                while let Some(piece) = pieces.take() {
                    for Span { packer, first, at, to } in piece {
                        let packed = &mut stage[at];
                        packer.fill(first, packed);
                        memory.lock().unwrap()[to.0 as usize..][..packed.len()].copy_from_slice(packed);
                        pieces.report(packed.len() as u64);
                    }
                }
                Ok(())
            },
            |feed| {
                let mut cutter = Cutter::default();
                for (packer, start) in packers.iter().zip(&starts) {
                    cutter.add(packer, DevicePtr(*start as u64), |piece| feed.give(piece));
                }
                feed.give(cutter.rest());
                Ok(())
            },
            &mut |bytes| done = bytes,
        )
        .unwrap();
        assert_eq!(done, recipes.iter().map(Recipe::bytes).sum::<u64>());
        assert!(memory.into_inner().unwrap() == expected);
    }
}
