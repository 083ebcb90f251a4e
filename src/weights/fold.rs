//! Weights with a norm's gain or shift folded in, carried out on the host: the reference of kernels/fold.cu.

use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

use super::{Source, host_weight};
use crate::bail_runtime;
use crate::core::{DType, Fold, HostWeight, Recipe, Result, Shape};

/// Rows that one task adds up.
const TASK_ROWS: usize = 64;

/// The gain or shift that is folded into `recipe`, if it has an element for each column of the unfolded weight, as
/// every one that [`Recipe::centred`] and [`Recipe::shifted_by`] give has.
pub(super) fn vector_of<'a>(recipe: &Recipe, fold: &'a Fold) -> Result<&'a Recipe> {
    let (matrix, vector) = (recipe.unfolded(), fold.vector());
    let fits = matrix.shape.rank() == 2 && vector.shape.dims() == [matrix.shape[1]];
    if !fits || vector.dtype != recipe.dtype || vector.fold.is_some() {
        bail_runtime!(
            "{}: a vector {} {} cannot be folded into a weight {} {}",
            recipe.name(),
            vector.shape,
            vector.dtype,
            matrix.shape,
            recipe.dtype
        );
    }
    Ok(vector)
}

/// `row = row ∘ by`; returns the sum. It is f64: one after another in f32, its terms would lose digits.
fn times(row: &mut [f32], by: &[f32]) -> f64 {
    row.iter_mut().zip(by).for_each(|(w, by)| *w *= by);
    row.iter().copied().map(f64::from).sum()
}

/// `row = row ∘ gain`, less its mean.
fn centre(row: &mut [f32], gain: &[f32]) {
    let mean = (times(row, gain) / row.len().max(1) as f64) as f32;
    row.iter_mut().for_each(|w| *w -= mean);
}

/// A centred weight as the CPU reads it: row by row, so that the stored one stays the only copy.
pub(super) struct CentredWeight {
    matrix: Arc<dyn HostWeight>,
    gain: Vec<f32>,
}

impl CentredWeight {
    pub(super) fn new(recipe: &Recipe, fold: &Fold, source: &Arc<dyn Source>) -> Result<CentredWeight> {
        let (matrix, gain) = bound(recipe, fold, source)?;
        Ok(CentredWeight { matrix, gain })
    }
}

impl HostWeight for CentredWeight {
    fn shape(&self) -> Shape {
        self.matrix.shape()
    }

    fn dtype(&self) -> DType {
        self.matrix.dtype()
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.matrix.read_rows(rows, out);
        out.chunks_mut(self.gain.len().max(1)).for_each(|row| centre(row, &self.gain));
        self.dtype().round_slice(out);
    }
}

/// The values of a shift behind a weight, on all threads.
pub(super) fn shifted(recipe: &Recipe, fold: &Fold, source: &Arc<dyn Source>) -> Result<Vec<f32>> {
    let (matrix, shift) = bound(recipe, fold, source)?;
    let mut values = vec![0.0; recipe.shape.len()];
    values.par_chunks_mut(TASK_ROWS).enumerate().for_each(|(task, out)| {
        let mut row = vec![0.0; shift.len()];
        for (i, out) in (task * TASK_ROWS..).zip(out) {
            matrix.read_rows(i..i + 1, &mut row);
            *out = times(&mut row, &shift) as f32;
        }
    });
    recipe.dtype.round_slice(&mut values);
    Ok(values)
}

/// The weight as it is before, and what is folded in.
fn bound(recipe: &Recipe, fold: &Fold, source: &Arc<dyn Source>) -> Result<(Arc<dyn HostWeight>, Vec<f32>)> {
    let vector = host_weight(vector_of(recipe, fold)?, source)?.to_f32();
    Ok((host_weight(&recipe.unfolded(), source)?, vector))
}

#[cfg(test)]
mod tests {
    use super::super::{Packer, SynthSource, check_parts, pack};
    use super::*;

    fn source() -> Arc<dyn Source> {
        let t = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
        let tensors = vec![
            t("q.weight", &[150, 24]),
            t("k.weight", &[3, 24]),
            t("conv.weight", &[6, 4, 3, 2]),
            t("patch.weight", &[5, 3, 7]),
            t("norm.weight", &[24]),
            t("norm.bias", &[24]),
        ];
        Arc::new(SynthSource::new(9, DType::BF16, tensors))
    }

    fn plain(dtype: DType, name: &str, shape: &[usize]) -> Recipe {
        Recipe::plain(name, dtype, shape)
    }

    /// Matrices of 24 columns: plain, stacked, permuted, padded.
    fn matrices(dtype: DType) -> [Recipe; 4] {
        let (q, k) = (plain(dtype, "q.weight", &[150, 24]), plain(dtype, "k.weight", &[3, 24]));
        [
            q.clone(),
            Recipe::stack(&[&q, &k]).unwrap(),
            Recipe::permuted("conv.weight", dtype, &[6, 4, 3, 2], &[0, 2, 3, 1], &[6, 24]),
            Recipe::padded_cols("patch.weight", dtype, &[5, 3, 7], 24),
        ]
    }

    #[test]
    fn folded_weights_follow_their_definition() {
        let s = source();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let [gain, shift] = ["norm.weight", "norm.bias"].map(|n| plain(dtype, n, &[24]));
            let [g, b] = [&gain, &shift].map(|v| host_weight(v, &s).unwrap().to_f32());
            for w in matrices(dtype) {
                let values = host_weight(&w, &s).unwrap().to_f32();
                let rows = || values.chunks(24);
                let dot =
                    |row: &[f32], v: &[f32]| row.iter().zip(v).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                let c: Vec<f32> = rows()
                    .flat_map(|row| {
                        let mean = (dot(row, &g) / 24.0) as f32;
                        row.iter().zip(&g).map(move |(w, g)| dtype.round(w * g - mean)).collect::<Vec<_>>()
                    })
                    .collect();
                let d: Vec<f32> = rows().map(|row| dtype.round(dot(row, &b) as f32)).collect();
                for (r, want) in [(w.centred(&gain).unwrap(), c), (w.shifted_by(&shift).unwrap(), d)] {
                    let folded = host_weight(&r, &s).unwrap();
                    assert_eq!((folded.shape(), folded.dtype()), (r.shape, dtype));
                    assert_eq!(folded.to_f32(), want, "{} {dtype}", r.name());
                    let last = r.shape.rows() - 1;
                    let mut row = vec![f32::NAN; r.shape.cols()];
                    folded.read_rows(last..last + 1, &mut row);
                    assert_eq!(row, want[last * row.len()..], "{} {dtype}", r.name());
                }
            }
        }
    }

    #[test]
    fn a_product_with_a_folded_weight_is_that_behind_the_norm() {
        let s = source();
        let dtype = DType::F32;
        let w = plain(dtype, "q.weight", &[150, 24]);
        let [gain, shift] = ["norm.weight", "norm.bias"].map(|n| plain(dtype, n, &[24]));
        let recipes = [&w, &gain, &shift, &w.centred(&gain).unwrap(), &w.shifted_by(&shift).unwrap()];
        let [w, g, b, c, d] = recipes.map(|r| host_weight(r, &s).unwrap().to_f32());
        let x: Vec<f32> = (0..24).map(|i| 3.0 + ((i * 7) % 11) as f32 / 5.0).collect();
        let mean = x.iter().sum::<f32>() / 24.0;
        let rstd = 1.0 / (x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 24.0).sqrt();
        let y: Vec<f32> = (0..24).map(|k| g[k] * (x[k] - mean) * rstd + b[k]).collect();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        for (n, ((w, c), d)) in w.chunks(24).zip(c.chunks(24)).zip(&d).enumerate() {
            let (want, got) = (dot(w, &y), dot(c, &x) * rstd + d);
            assert!((want - got).abs() < 2e-5, "{n}: {want} {got}");
        }
    }

    #[test]
    fn what_is_folded_in_is_checked_and_named() {
        let s = source();
        let w = plain(DType::BF16, "q.weight", &[150, 24]);
        let absent = w.centred(&plain(DType::BF16, "ln.weight", &[24])).unwrap();
        let text = "ln.weight: expected [24], found no such tensor in the synthetic weights (seed 9, bf16)";
        assert_eq!(check_parts(&absent, s.as_ref()).unwrap_err().to_string(), text);
        assert_eq!(host_weight(&absent, &s).err().unwrap().to_string(), text);

        let good = w.shifted_by(&plain(DType::BF16, "norm.bias", &[24])).unwrap();
        check_parts(&good, s.as_ref()).unwrap();
        let error = Packer::new(&good, s.as_ref()).err().unwrap();
        assert_eq!(
            (error.exit_code(), error.to_string().as_str()),
            (1, "q.weight · norm.bias: expected a weight to pack, found one to fold")
        );

        let mut short = w.centred(&plain(DType::BF16, "norm.weight", &[24])).unwrap();
        short.shape = Shape::new(&[24, 150]);
        assert_eq!(
            check_parts(&short, s.as_ref()).unwrap_err().to_string(),
            "centred(q.weight ∘ norm.weight): a vector [24] bf16 cannot be folded into a weight [24, 150] bf16"
        );
        assert!(pack(&short, s.as_ref(), &mut [0; 7200]).is_err() && host_weight(&short, &s).is_err());
    }
}
