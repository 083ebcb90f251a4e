//! References of the norms: two passes over a row in f32, sums in f64.

use rayon::prelude::*;

use super::{AddLayerNorm, AddRmsNorm, LayerNorm, RmsNorm, SQUARES_COLUMNS, STATS_COLUMNS};
use crate::core::Result;
use crate::ops::CpuIo;

/// The mean of `terms` in f64: one after another in f32 they would lose five digits of 20000 elements.
fn mean(terms: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = terms.len() as f64;
    (terms.map(f64::from).sum::<f64>() / count) as f32
}

fn rms_row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let scale = 1.0 / (mean(x.iter().map(|v| v * v)) + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = w * (x * scale);
    }
}

fn layer_row(op: &LayerNorm, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
    let middle = mean(x.iter().copied());
    let var = mean(x.iter().map(|v| (v - middle) * (v - middle)));
    let scale = 1.0 / (var + op.eps).sqrt();
    for (i, y) in y.iter_mut().enumerate() {
        *y = op.scale * op.act.apply((x[i] - middle) * scale * w[i] + b[i]);
    }
}

/// Every row of `x` normalised.
pub(crate) fn rms_rows(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let c = w.len();
    y.par_chunks_mut(c).zip(x.par_chunks(c)).for_each(|(y, x)| rms_row(x, w, eps, y));
    y
}

/// [`RowStats`](super::RowStats) of rows of `c` columns.
pub(crate) fn row_stats(x: &[f32], c: usize, stats: &mut [f32]) {
    let rows = x.len() / c.max(1);
    stats.par_chunks_mut(2 * rows.max(1)).enumerate().for_each(|(part, stats)| {
        for (stats, row) in stats.chunks_exact_mut(2).zip(x.chunks_exact(c)) {
            let part = &row[part * STATS_COLUMNS..][..STATS_COLUMNS];
            let middle = mean(part.iter().copied());
            stats[0] = middle;
            stats[1] = mean(part.iter().map(|v| (v - middle) * (v - middle))) * STATS_COLUMNS as f32;
        }
    });
}

/// `1 / sqrt(var + eps)` of every row.
pub(crate) fn rstd_of_rows(stats: &[f32], rows: usize, eps: f32) -> Vec<f32> {
    let parts = || stats.chunks_exact(2 * rows.max(1));
    let count = parts().len().max(1) as f64;
    let rstd = |row: usize| {
        let means = || parts().map(move |p| f64::from(p[2 * row]));
        let middle = means().sum::<f64>() / count;
        let between = means().map(|m| (m - middle) * (m - middle)).sum::<f64>() / count;
        let within = parts().map(|p| f64::from(p[2 * row + 1])).sum::<f64>() / (count * STATS_COLUMNS as f64);
        (1.0 / (between + within + f64::from(eps)).sqrt()) as f32
    };
    (0..rows).map(rstd).collect()
}

/// [`RmsBegin`](super::RmsBegin) of rows as wide as `w`.
pub(crate) fn begin_rms(x: &[f32], w: &[f32], z: &mut [f32], squares: &mut [f32]) {
    let c = w.len();
    let rows = x.len() / c.max(1);
    z.par_chunks_mut(c).zip(x.par_chunks(c)).for_each(|(z, x)| {
        for (z, (x, w)) in z.iter_mut().zip(x.iter().zip(w)) {
            *z = x * w;
        }
    });
    squares.par_chunks_mut(rows.max(1)).enumerate().for_each(|(part, squares)| {
        for (sum, row) in squares.iter_mut().zip(x.chunks_exact(c)) {
            let part = &row[part * SQUARES_COLUMNS..][..SQUARES_COLUMNS];
            *sum = mean(part.iter().map(|v| v * v)) * SQUARES_COLUMNS as f32;
        }
    });
}

/// `1 / sqrt(mean + eps)` of every row, of the sums of [`begin_rms`].
pub(crate) fn rstd_of_squares(squares: &[f32], rows: usize, eps: f32) -> Vec<f32> {
    let parts = || squares.chunks_exact(rows.max(1));
    let columns = (parts().len().max(1) * SQUARES_COLUMNS) as f64;
    let rstd = |row: usize| {
        let sum: f64 = parts().map(|p| f64::from(p[row])).sum();
        (1.0 / (sum / columns + f64::from(eps)).sqrt()) as f32
    };
    (0..rows).map(rstd).collect()
}

pub(super) fn rms_norm(op: &RmsNorm, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, w) = (io.ins.f32s(0)?, io.ins.vector(1)?);
    let c = w.len();
    let y = io.outs.f32s(0)?;
    y.par_chunks_mut(c).zip(x.par_chunks(c)).for_each(|(y, x)| rms_row(x, &w, op.eps, y));
    Ok(())
}

pub(super) fn layer_norm(op: &LayerNorm, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, w, b) = (io.ins.f32s(0)?, io.ins.vector(1)?, io.ins.vector(2)?);
    let c = w.len();
    let y = io.outs.f32s(0)?;
    y.par_chunks_mut(c).zip(x.par_chunks(c)).for_each(|(y, x)| layer_row(op, x, &w, &b, y));
    Ok(())
}

/// `h = x + r`, rounded to its type, and `norm(h, y)` row by row.
fn add_then(io: &mut CpuIo<'_>, norm: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<()> {
    let (x, r) = (io.ins.f32s(0)?, io.ins.f32s(1)?);
    let (_, c) = io.ins.extent(0);
    let dtype = io.outs.descs[0].dtype;
    let [h, y] = io.outs.first_f32s()?;
    let ins = x.par_chunks(c).zip(r.par_chunks(c));
    h.par_chunks_mut(c).zip(y.par_chunks_mut(c)).zip(ins).for_each(|((h, y), (x, r))| {
        for (h, (x, r)) in h.iter_mut().zip(x.iter().zip(r)) {
            *h = dtype.round(x + r);
        }
        norm(h, y);
    });
    Ok(())
}

pub(super) fn add_rms_norm(op: &AddRmsNorm, io: &mut CpuIo<'_>) -> Result<()> {
    let w = io.ins.vector(2)?;
    add_then(io, |h, y| rms_row(h, &w, op.eps, y))
}

pub(super) fn add_layer_norm(op: &AddLayerNorm, io: &mut CpuIo<'_>) -> Result<()> {
    let (w, b) = (io.ins.vector(2)?, io.ins.vector(3)?);
    let norm = LayerNorm::plain(op.eps);
    add_then(io, |h, y| layer_row(&norm, h, &w, &b, y))
}
