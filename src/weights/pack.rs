//! Carries out recipes on the host: into bytes on the way to a device, or row by row for the CPU. Both go from the
//! weight's elements back to the stored ones, so any piece of a weight can be made alone, on any thread.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::convert::{convert, gather, widen};
use super::{Source, fold};
use crate::core::{DType, Fold, HostWeight, Part, Recipe, Result, Shape};
use crate::{bail_input, bail_runtime, ensure_input};

/// Elements that one task packs.
const TASK: usize = 1 << 18;

/// A [`Part`] turned around: from places in the weight to stored elements.
struct Inverse {
    offset: usize,
    /// By falling stride in the weight, as few as possible.
    axes: Vec<Axis>,
}

#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    in_weight: usize,
    in_stored: usize,
}

/// Elements that follow each other in the weight, and are `Inverse::step` apart in the stored tensor.
struct Run {
    at: usize,
    from: usize,
    len: usize,
}

impl Inverse {
    /// Fails when two elements of the part may meet in the weight: no recipe that this crate writes does that.
    fn new(part: &Part, weight_len: usize) -> Result<Inverse> {
        let mut axes = Vec::with_capacity(5);
        let mut in_stored = 1;
        for (&extent, &in_weight) in part.dims.iter().zip(&part.strides).rev() {
            if extent != 1 {
                axes.push(Axis { extent, in_weight, in_stored });
            }
            in_stored *= extent;
        }
        axes.sort_by_key(|a| std::cmp::Reverse(a.in_weight));
        if axes.is_empty() {
            axes.push(Axis { extent: 1, in_weight: 1, in_stored: 1 });
        }
        let nested = axes.windows(2).all(|w| w[0].in_weight >= w[1].in_weight * w[1].extent);
        let last = part.offset
            + axes
                .iter()
                .map(|a| a.extent.max(1) - 1)
                .zip(&axes)
                .map(|(n, a)| n * a.in_weight)
                .sum::<usize>();
        if !nested || axes.iter().any(|a| a.in_weight == 0) || (!part.is_empty() && last >= weight_len) {
            bail_runtime!(
                "{}: the recipe does not fit its weight of {weight_len} elements: {part:?}",
                part.name
            );
        }
        axes.dedup_by(|inner, outer| {
            let joined = outer.in_weight == inner.in_weight * inner.extent
                && outer.in_stored == inner.in_stored * inner.extent;
            if joined {
                *outer = Axis { extent: outer.extent * inner.extent, ..*inner };
            }
            joined
        });
        Ok(Inverse { offset: part.offset, axes })
    }

    /// Distance in the stored tensor of elements that are neighbours in the weight.
    fn step(&self) -> usize {
        match self.axes[self.axes.len() - 1] {
            Axis { in_weight: 1, in_stored, .. } => in_stored,
            _ => 1,
        }
    }

    /// The part's runs within `range` of the weight's elements.
    fn for_each_run(&self, range: Range<usize>, mut f: impl FnMut(Run)) {
        let mut at = range.start.max(self.offset);
        while at < range.end {
            match self.run_at(at - self.offset, range.end - at) {
                Ok((from, len)) => {
                    f(Run { at, from, len });
                    at += len;
                }
                Err(Some(gap)) => at += gap,
                Err(None) => return,
            }
        }
    }

    /// The stored element at `place` after the offset and the length of its run, at most `limit`; else the number
    /// of elements up to where the part may go on, or `None` if it is over.
    fn run_at(&self, place: usize, limit: usize) -> Result<(usize, usize), Option<usize>> {
        let (mut rest, mut from) = (place, 0);
        let mut left = 1;
        for (k, axis) in self.axes.iter().enumerate() {
            let i = rest / axis.in_weight;
            if i >= axis.extent {
                let outer = k.checked_sub(1).map(|k| self.axes[k].in_weight);
                return Err(outer.map(|stride| stride - rest));
            }
            from += i * axis.in_stored;
            rest %= axis.in_weight;
            left = if axis.in_weight == 1 { axis.extent - i } else { 1 };
            if k + 1 == self.axes.len() && rest > 0 {
                return Err(Some(axis.in_weight - rest));
            }
        }
        Ok((from, left.min(limit)))
    }
}

/// Checks one part against what is stored and returns its type.
fn check_part(part: &Part, source: &dyn Source) -> Result<DType> {
    let Some(info) = source.info(&part.name) else {
        bail_input!("{}: expected {}, found no such tensor in {}", part.name, part.stored, source.describe());
    };
    let place = source.place(&part.name);
    ensure_input!(
        info.shape == part.stored.dims(),
        "{}: expected {}, found {} in {place}",
        part.name,
        part.stored,
        info.brief()
    );
    info.float(&part.name, &place)
}

/// Checks that `source` stores everything that `recipe` takes, also what is folded in, in the shapes that it expects.
pub fn check_parts(recipe: &Recipe, source: &dyn Source) -> Result<()> {
    recipe.parts.iter().try_for_each(|part| check_part(part, source).map(|_| ()))?;
    match &recipe.fold {
        Some(fold) => check_parts(fold::vector_of(recipe, fold)?, source),
        None => Ok(()),
    }
}

/// An unfolded recipe bound to a source, ready to make any piece of its weight.
pub struct Packer<'a> {
    recipe: &'a Recipe,
    parts: Vec<(Inverse, DType, &'a [u8])>,
}

impl<'a> Packer<'a> {
    /// Synthetic tensors are made here. [`Error::Runtime`] for a folded recipe: no piece of its weight follows from the
    /// same piece of the tensors.
    ///
    /// [`Error::Runtime`]: crate::core::Error::Runtime
    pub fn new(recipe: &'a Recipe, source: &'a dyn Source) -> Result<Packer<'a>> {
        if recipe.fold.is_some() {
            bail_runtime!("{}: expected a weight to pack, found one to fold", recipe.name());
        }
        let len = recipe.shape.len();
        let parts = recipe
            .parts
            .iter()
            .map(|p| Ok((Inverse::new(p, len)?, check_part(p, source)?, source.bytes(&p.name)?)))
            .collect::<Result<_>>()?;
        Ok(Packer { recipe, parts })
    }

    pub fn recipe(&self) -> &Recipe {
        self.recipe
    }

    /// Makes the weight's elements `first..` as `recipe.dtype`, as many as fit `out`, on this thread.
    pub fn fill(&self, first: usize, out: &mut [u8]) {
        let to = self.recipe.dtype;
        let size = to.bytes();
        if self.recipe.padded {
            out.fill(0);
        }
        for (part, from, bytes) in &self.parts {
            part.for_each_run(first..first + out.len() / size, |run| {
                let out = &mut out[(run.at - first) * size..][..run.len * size];
                convert(*from, &bytes[run.from * from.bytes()..], part.step(), to, out);
            });
        }
    }

    /// As [`Packer::fill`], on all threads.
    fn fill_on_all_threads(&self, first: usize, out: &mut [u8]) {
        out.par_chunks_mut(TASK * self.recipe.dtype.bytes())
            .enumerate()
            .for_each(|(i, out)| self.fill(first + i * TASK, out));
    }

    /// As [`Packer::fill`], rounded to `recipe.dtype` and widened again.
    fn fill_f32(&self, first: usize, out: &mut [f32]) {
        if self.recipe.padded {
            out.fill(0.0);
        }
        for (part, from, bytes) in &self.parts {
            part.for_each_run(first..first + out.len(), |run| {
                let out = &mut out[run.at - first..][..run.len];
                gather(*from, &bytes[run.from * from.bytes()..], part.step(), out);
            });
        }
        self.recipe.dtype.round_slice(out);
    }
}

/// Carries out an unfolded `recipe` on all threads: `out` gets the weight's bytes in `recipe.dtype`.
pub fn pack(recipe: &Recipe, source: &dyn Source, out: &mut [u8]) -> Result<()> {
    if out.len() as u64 != recipe.bytes() {
        bail_runtime!("{}: expected room for {} bytes, found {}", recipe.name(), recipe.bytes(), out.len());
    }
    Packer::new(recipe, source)?.fill_on_all_threads(0, out);
    Ok(())
}

/// A weight that the CPU reads through its recipe. Vectors with a shift in them, and weights whose neighbours are stored
/// apart (permuted ones, all small), are carried out once instead.
pub fn host_weight(recipe: &Recipe, source: &Arc<dyn Source>) -> Result<Arc<dyn HostWeight>> {
    let (dtype, shape) = (recipe.dtype, recipe.shape);
    match &recipe.fold {
        Some(fold @ Fold::Centred { .. }) => {
            return Ok(Arc::new(fold::CentredWeight::new(recipe, fold, source)?));
        }
        Some(fold @ Fold::Shift { .. }) => {
            let values = fold::shifted(recipe, fold, source)?;
            return Ok(Arc::new(DenseWeight { dtype, shape, values }));
        }
        None => {}
    }
    let packer = Packer::new(recipe, source.as_ref())?;
    if packer.parts.iter().any(|(part, ..)| part.step() != 1) {
        let mut values = vec![0.0; recipe.shape.len()];
        values.par_chunks_mut(TASK).enumerate().for_each(|(i, out)| packer.fill_f32(i * TASK, out));
        return Ok(Arc::new(DenseWeight { dtype, shape, values }));
    }
    let parts = packer.parts.into_iter().zip(&recipe.parts);
    let parts = parts.map(|((inverse, dtype, _), p)| (inverse, dtype, p.name.clone())).collect();
    Ok(Arc::new(MappedWeight { dtype, shape, padded: recipe.padded, source: source.clone(), parts }))
}

struct MappedWeight {
    dtype: DType,
    shape: Shape,
    padded: bool,
    source: Arc<dyn Source>,
    parts: Vec<(Inverse, DType, String)>,
}

impl HostWeight for MappedWeight {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.shape.cols();
        let range = rows.start * cols..rows.end * cols;
        if self.padded {
            out.fill(0.0);
        }
        for (part, dtype, name) in &self.parts {
            let Ok(bytes) = self.source.bytes(name) else {
                // It was there when the weight was made; values that nobody can take for real ones say it is gone.
                return out.fill(f32::NAN);
            };
            part.for_each_run(range.clone(), |run| {
                let out = &mut out[run.at - range.start..][..run.len];
                widen(*dtype, &bytes[run.from * dtype.bytes()..], out);
                if self.dtype != *dtype {
                    self.dtype.round_slice(out);
                }
            });
        }
    }
}

struct DenseWeight {
    dtype: DType,
    shape: Shape,
    values: Vec<f32>,
}

impl HostWeight for DenseWeight {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.shape.cols();
        out.copy_from_slice(&self.values[rows.start * cols..rows.end * cols]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::SynthSource;
    use super::*;

    fn source() -> Arc<dyn Source> {
        let t = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
        let tensors = vec![
            t("q.weight", &[17, 24]),
            t("k.weight", &[3, 24]),
            t("up.weight", &[16, 24]),
            t("gate.weight", &[16, 24]),
            t("q.bias", &[17]),
            t("k.bias", &[3]),
            t("conv.weight", &[6, 4, 3, 3]),
            t("patch.weight", &[5, 3, 2, 2]),
        ];
        Arc::new(SynthSource::new(9, DType::BF16, tensors))
    }

    /// Element by element, by the definition.
    fn slowly(r: &Recipe, s: &dyn Source) -> Vec<f32> {
        let mut out = vec![0.0; r.shape.len()];
        for p in &r.parts {
            let mut stored = vec![0.0; p.len()];
            widen(DType::BF16, s.bytes(&p.name).unwrap(), &mut stored);
            (0..p.len()).for_each(|i| out[p.target(i)] = r.dtype.round(stored[i]));
        }
        out
    }

    #[test]
    fn every_kind_of_recipe_is_carried_out() {
        let s = source();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let plain = |name: &str, shape: &[usize]| Recipe::plain(name, dtype, shape);
            let (q, k) = (plain("q.weight", &[17, 24]), plain("k.weight", &[3, 24]));
            let (gate, up) = (plain("gate.weight", &[16, 24]), plain("up.weight", &[16, 24]));
            let padded = Recipe::padded_cols("patch.weight", dtype, &[5, 3, 2, 2], 16);
            let recipes = [
                q.clone(),
                Recipe::viewed("q.weight", dtype, &[17, 24], &[17 * 24]),
                Recipe::stack(&[&q, &k, &q]).unwrap(),
                Recipe::stack(&[&plain("q.bias", &[17]), &plain("k.bias", &[3])]).unwrap(),
                Recipe::interleave(&gate, &up, 8).unwrap(),
                Recipe::interleave(&gate, &up, 1).unwrap(),
                gate.interleave_halves(8, 2).unwrap(),
                Recipe::stack(&[&up.interleave_halves(16, 8).unwrap(), &k]).unwrap(),
                Recipe::permuted("conv.weight", dtype, &[6, 4, 3, 3], &[0, 2, 3, 1], &[6, 36]),
                Recipe::permuted_view("q.weight", dtype, &[17, 24], &[17, 4, 6], &[0, 2, 1], &[17, 24]),
                padded.clone(),
                Recipe::stack(&[&padded, &padded]).unwrap(),
            ];
            for r in &recipes {
                let want = slowly(r, s.as_ref());
                let mut bytes = vec![0xff; r.bytes() as usize];
                pack(r, s.as_ref(), &mut bytes).unwrap();
                let mut packed = vec![0.0; want.len()];
                widen(dtype, &bytes, &mut packed);
                assert_eq!(packed, want, "{}", r.name());

                let w = host_weight(r, &s).unwrap();
                assert_eq!((w.shape(), w.dtype()), (r.shape, dtype));
                assert_eq!(w.to_f32(), want, "{}", r.name());
                let (rows, cols) = (r.shape.rows(), r.shape.cols());
                for first in 0..rows {
                    let n = (rows - first).min(3);
                    let mut out = vec![f32::NAN; n * cols];
                    w.read_rows(first..first + n, &mut out);
                    assert_eq!(out, want[first * cols..(first + n) * cols], "{} row {first}", r.name());
                }

                let packer = Packer::new(r, s.as_ref()).unwrap();
                let size = dtype.bytes();
                for (first, n) in [(0, 1), (1, 7), (23, 13), (want.len() - 1, 1)] {
                    let n = n.min(want.len() - first.min(want.len() - 1));
                    let first = first.min(want.len() - n);
                    let mut piece = vec![0xff; n * size];
                    packer.fill(first, &mut piece);
                    assert_eq!(piece, bytes[first * size..(first + n) * size], "{} at {first}", r.name());
                }
            }
        }
    }

    #[test]
    fn a_tensor_of_another_shape_is_named() {
        let s = source();
        let message = |r: Recipe| host_weight(&r, &s).err().unwrap().to_string();
        assert_eq!(
            message(Recipe::plain("q.weight", DType::BF16, &[17, 20])),
            "q.weight: expected [17, 20], found [17, 24] bf16 in the synthetic weights (seed 9, bf16)"
        );
        assert_eq!(
            message(Recipe::plain("v.weight", DType::BF16, &[17, 20])),
            "v.weight: expected [17, 20], found no such tensor in the synthetic weights (seed 9, bf16)"
        );
    }
}
