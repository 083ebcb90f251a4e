//! Gains and shifts of norms folded into weights on the device, where the weights already are.

use std::collections::HashMap;

use super::device::Device;
use super::launch::{DevicePtr, Geometry, Kernel, Launch, Launcher};
use super::memory::{DeviceBuffer, copy_within};
use super::modules::Modules;
use super::stream::Stream;
use crate::core::{Fold, Recipe, Result};

/// Rows that a CTA folds, a warp each.
const ROWS: usize = 8;

/// Layout shared with kernels/fold.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct CentredParams {
    w: DevicePtr,
    gain: DevicePtr,
    rows: u32,
    cols: u32,
}

struct CentredKernel;
// SAFETY: `fold_centred` in kernels/fold.cu takes one CentredParams by value; loading compares the sizes.
unsafe impl Kernel for CentredKernel {
    const FILE: &'static str = "fold";
    const SYMBOL: &'static str = "fold_centred";
    type Params = CentredParams;
}

/// Layout shared with kernels/fold.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct ShiftParams {
    w: DevicePtr,
    shift: DevicePtr,
    y: DevicePtr,
    rows: u32,
    cols: u32,
}

struct ShiftKernel;
// SAFETY: `fold_shift` in kernels/fold.cu takes one ShiftParams by value; loading compares the sizes.
unsafe impl Kernel for ShiftKernel {
    const FILE: &'static str = "fold";
    const SYMBOL: &'static str = "fold_shift";
    type Params = ShiftParams;
}

/// What is brought to the device for some weights, and what is then folded there. Weights go by their place.
#[derive(PartialEq, Eq, Debug)]
pub struct Folding {
    /// What each place gets at first: those of the weights themselves, a centred one as it is before; then those of what is
    /// folded in and is none of them. What is still folded here is not brought, but computed, and of what stands here twice
    /// the second is copied.
    pub brought: Vec<Recipe>,
    /// In this order: matrices are centred when they have been copied, and the shifts computed of them.
    pub steps: Vec<FoldStep>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FoldStep {
    /// A matrix that is wanted as it is and centred, or centred for two norms, crosses the bus once.
    Copy { from: usize, to: usize },
    /// `y = w·shift`.
    Shift { w: usize, shift: usize, y: usize },
    /// `w` is centred in place.
    Centred { w: usize, gain: usize },
}

impl Folding {
    pub fn of(recipes: &[&Recipe]) -> Folding {
        let before = |r: &Recipe| match r.fold {
            Some(Fold::Centred { .. }) => r.unfolded(),
            _ => r.clone(),
        };
        let mut brought: Vec<Recipe> = recipes.iter().map(|r| before(r)).collect();
        let mut place = |wanted: &Recipe| {
            brought.iter().position(|r| r == wanted).unwrap_or_else(|| {
                brought.push(wanted.clone());
                brought.len() - 1
            })
        };
        let (mut steps, mut centred) = (Vec::new(), Vec::new());
        for (at, recipe) in recipes.iter().enumerate() {
            match &recipe.fold {
                Some(Fold::Shift { shift }) => {
                    steps.push(FoldStep::Shift { w: place(&recipe.unfolded()), shift: place(shift), y: at });
                }
                Some(Fold::Centred { gain }) => centred.push(FoldStep::Centred { w: at, gain: place(gain) }),
                None => {}
            }
        }
        steps.append(&mut centred);
        let mut first = HashMap::new();
        let copies = brought.iter().enumerate().filter_map(|(to, recipe)| {
            let from = *first.entry(recipe).or_insert(to);
            (from < to).then_some(FoldStep::Copy { from, to })
        });
        let steps = copies.chain(steps).collect();
        Folding { brought, steps }
    }

    /// Whether a place gets its weight here, and not from the source.
    pub fn makes(&self, place: usize) -> bool {
        let copied = |s: &FoldStep| matches!(s, FoldStep::Copy { to, .. } if *to == place);
        self.brought[place].fold.is_some() || self.steps.iter().any(copied)
    }
}

/// Enqueues the folding. `buffers[i]` is that of place i: what is brought there comes before on the stream.
pub fn fold(
    device: &Device,
    modules: &Modules,
    stream: &Stream,
    folding: &Folding,
    buffers: &[DeviceBuffer],
) -> Result<()> {
    let mut program: Vec<Launch> = Vec::new();
    let mut launcher = Launcher::alone(device, modules, &mut program);
    // The matrix at a place, and CTAs for its rows.
    let matrix = |w: usize| {
        let (shape, dtype) = (&folding.brought[w].shape, folding.brought[w].dtype);
        let geometry = Geometry::grid([shape.rows().div_ceil(ROWS).max(1) as u32, 1, 1]);
        (buffers[w].ptr, dtype, geometry, shape.rows() as u32, shape.cols() as u32)
    };
    for step in &folding.steps {
        match *step {
            FoldStep::Copy { from, to } => {
                let (to, from, bytes) =
                    (&buffers[to], &buffers[from], folding.brought[from].bytes() as usize);
                // SAFETY: both are weights of the same recipe, in buffers of their own.
                unsafe { copy_within(to.ptr, from.ptr, bytes, stream)? };
            }
            FoldStep::Shift { w, shift, y } => {
                let (w, dtype, geometry, rows, cols) = matrix(w);
                let p = ShiftParams { w, shift: buffers[shift].ptr, y: buffers[y].ptr, rows, cols };
                // SAFETY: every buffer holds the whole weight of its place; `check_parts` has seen that the shift has an
                // element for each column, and a folded weight has one for each row.
                unsafe { launcher.launch::<ShiftKernel>(dtype, geometry, &p)? };
            }
            FoldStep::Centred { w, gain } => {
                let (w, dtype, geometry, rows, cols) = matrix(w);
                let p = CentredParams { w, gain: buffers[gain].ptr, rows, cols };
                // SAFETY: as above, for the gain.
                unsafe { launcher.launch::<CentredKernel>(dtype, geometry, &p)? };
            }
        }
    }
    program.iter().try_for_each(|l| l.enqueue(stream, false))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::DType;
    use crate::gpu::convert::from_device;
    use crate::gpu::embedded::why_empty;
    use crate::gpu::memory::{Meter, copy_out};
    use crate::gpu::staging::Uploader;
    use crate::weights::{Info, Source, SynthSource, host_weight};

    fn plain(name: &str, dtype: DType, shape: &[usize]) -> Recipe {
        Recipe::plain(name, dtype, shape)
    }

    #[test]
    fn what_is_folded_in_is_brought_once_and_only_where_it_is_not_there() {
        let plain = |name: &str, shape: &[usize]| plain(name, DType::BF16, shape);
        let (v, w, b) = (plain("v", &[2, 3]), plain("w", &[4, 3]), plain("b", &[4]));
        let (gain, shift) = (plain("gain", &[3]), plain("shift", &[3]));
        let (c, d) = (w.centred(&gain).unwrap(), w.shifted_by(&shift).unwrap());
        let folding = |recipes: &[&Recipe]| Folding::of(recipes);

        assert_eq!(folding(&[&b, &w]), Folding { brought: vec![b.clone(), w.clone()], steps: vec![] });

        // Together: the shift is computed of what is centred behind it.
        let both = folding(&[&c, &b, &d]);
        assert_eq!(both.brought, [w.clone(), b.clone(), d.clone(), gain.clone(), shift.clone()]);
        let (of_d, of_c) = (FoldStep::Shift { w: 0, shift: 4, y: 2 }, FoldStep::Centred { w: 0, gain: 3 });
        assert_eq!(both.steps, [of_d, of_c]);

        // A shift alone brings its matrix, two of them bring it once.
        let other = w.shifted_by(&gain).unwrap();
        let alone = folding(&[&d, &other, &b]);
        assert_eq!(alone.brought, [&d, &other, &b, &w, &shift, &gain].map(Recipe::clone));
        let steps = [FoldStep::Shift { w: 3, shift: 4, y: 0 }, FoldStep::Shift { w: 3, shift: 5, y: 1 }];
        assert_eq!(alone.steps, steps);

        // What is there anyway serves, wherever it stands.
        let there = folding(&[&d, &shift, &w]);
        assert_eq!(there.brought, [&d, &shift, &w].map(Recipe::clone));
        assert_eq!(there.steps, [FoldStep::Shift { w: 2, shift: 1, y: 0 }]);

        // Two matrices behind one norm share its gain; one matrix behind two norms is centred in two places.
        let shared = folding(&[&v.centred(&gain).unwrap(), &c, &w.centred(&shift).unwrap()]);
        assert_eq!(shared.brought, [&v, &w, &w, &gain, &shift].map(Recipe::clone));
        let centred = |w, gain| FoldStep::Centred { w, gain };
        let copied = FoldStep::Copy { from: 1, to: 2 };
        assert_eq!(shared.steps, [copied, centred(0, 3), centred(1, 3), centred(2, 4)]);
        assert_eq!([0, 1, 2, 3].map(|place| shared.makes(place)), [false, false, true, false]);

        // Centred and as it is.
        let twice = folding(&[&c, &w, &d]);
        assert_eq!(twice.brought, [&w, &w, &d, &gain, &shift].map(Recipe::clone));
        let of_d = FoldStep::Shift { w: 0, shift: 4, y: 2 };
        assert_eq!(twice.steps, [FoldStep::Copy { from: 0, to: 1 }, of_d, centred(0, 3)]);
    }

    /// A source that hides how its values are made, so that they are packed.
    struct Stored(SynthSource);

    impl Source for Stored {
        fn names(&self) -> Vec<String> {
            self.0.names()
        }
        fn info(&self, name: &str) -> Option<Info> {
            self.0.info(name)
        }
        fn bytes(&self, name: &str) -> Result<&[u8]> {
            self.0.bytes(name)
        }
        fn place(&self, name: &str) -> String {
            self.0.place(name)
        }
        fn describe(&self) -> String {
            self.0.describe()
        }
    }

    fn gpu() -> Option<Device> {
        let why = match (why_empty(), Device::open(0)) {
            (None, Ok(device)) => return Some(device),
            (Some(why), _) => why.to_owned(),
            (None, Err(why)) => why.to_string(),
        };
        let required = std::env::var_os("VIVACE_REQUIRE_GPU").is_some_and(|v| v != "0");
        assert!(!required, "a GPU is required: {why}");
        println!("no GPU: nothing checked ({why})");
        None
    }

    /// Two values of `dtype` are the same but for one rounding step, and for what the order of a sum costs beside the
    /// largest value.
    fn near(dtype: DType, a: &[f32], b: &[f32]) -> bool {
        let step = match dtype {
            DType::BF16 => 1.0 / 128.0,
            DType::F16 => 1.0 / 1024.0,
            _ => 1.0 / 262_144.0,
        };
        let largest = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let allowed = |x: f32, y: f32| step * x.abs().max(y.abs()) + largest / 262_144.0;
        a.len() == b.len() && largest > 0.0 && a.iter().zip(b).all(|(x, y)| (x - y).abs() <= allowed(*x, *y))
    }

    #[test]
    fn weights_folded_on_the_device_are_those_of_the_host() {
        let Some(device) = gpu() else { return };
        let (modules, stream) = (Modules::new(device.facts.sm), Stream::new().unwrap());
        // Vectors and single elements, rows shorter than a warp and longer than a turn, more rows than a CTA's.
        for (rows, cols) in [(48, 72), (300, 1024), (13, 77), (1, 1), (9, 8), (700, 3001)] {
            for (dtype, made) in
                [DType::BF16, DType::F16, DType::F32].map(|d| [(d, true), (d, false)]).as_flattened()
            {
                let dtype = *dtype;
                let shapes =
                    [("w", vec![rows, cols]), ("norm.weight", vec![cols]), ("norm.bias", vec![cols])];
                let synth = SynthSource::new(9, dtype, shapes.map(|(n, s)| (n.to_owned(), s)).to_vec());
                let source: Arc<dyn Source> = if *made { Arc::new(synth) } else { Arc::new(Stored(synth)) };
                let [gain, shift] = ["norm.weight", "norm.bias"].map(|n| plain(n, dtype, &[cols]));
                let w = plain("w", dtype, &[rows, cols]);
                let (c, d) = (w.centred(&gain).unwrap(), w.shifted_by(&shift).unwrap());
                for recipes in [vec![&d], vec![&c], vec![&d, &c], vec![&c, &gain, &w, &shift, &d]] {
                    let meter = Meter::default();
                    let uploader =
                        Uploader { device: &device, modules: &modules, stream: &stream, meter: &meter };
                    let (mut done, total) = (0, recipes.iter().map(|r| r.bytes()).sum::<u64>());
                    let count = &mut |now| {
                        assert!(done <= now && now <= total, "{now} bytes of {total} after {done}");
                        done = now;
                    };
                    let loaded = uploader.upload(&recipes, source.as_ref(), count).unwrap();
                    assert_eq!((done, loaded.buffers.len()), (total, recipes.len()));
                    for (recipe, buffer) in recipes.iter().zip(&loaded.buffers) {
                        let mut bytes = vec![0; recipe.bytes() as usize];
                        // SAFETY: the buffer holds the weight; the bytes are read after the stream has ended.
                        unsafe { copy_out(&mut bytes, buffer.ptr, &stream).unwrap() };
                        stream.sync().unwrap();
                        let (got, want) = (from_device(dtype, &bytes), host_weight(recipe, &source).unwrap());
                        let what = format!("{} {dtype} {rows} x {cols}, made: {made}", recipe.name());
                        match recipe.fold {
                            Some(_) if cols > 1 => assert!(near(dtype, got.f32s(), &want.to_f32()), "{what}"),
                            _ => assert!(got.f32s() == want.to_f32(), "{what}"),
                        }
                    }
                }
            }
        }
    }
}
