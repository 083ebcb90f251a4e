//! References of the matrix products: one blocked f32 product, then the rest row by row.

use super::{Linear, LinearArgMax, LinearFused, LinearRope, NormBefore};
use crate::core::Result;
use crate::cpu::gemm::{Rows, gemm};
use crate::ops::CpuIo;
use crate::ops::elementwise::Act;
use crate::ops::{norm, rope, sample};
use rayon::prelude::*;

pub(super) fn linear(op: &Linear, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, w) = (io.ins.f32s(0)?, io.ins.weight(1)?);
    let bias = if op.bias { Some(io.ins.vector(2)?) } else { None };
    let y = io.outs.f32s(0)?;
    gemm(Rows::dense(x, w.shape().cols()), w, y);
    if let Some(bias) = bias {
        y.par_chunks_mut(bias.len()).with_min_len(16).for_each(|y| add(y, &bias));
    }
    Ok(())
}

fn add(y: &mut [f32], b: &[f32]) {
    y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
}

pub(super) fn linear_fused(op: &LinearFused, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, w) = (io.ins.f32s(0)?, io.ins.weight(1)?);
    let [b, s, r, g, d, stats, z, squares, gain_of_y] = op.optional_inputs();
    let vector = |i: Option<usize>| i.map(|i| io.ins.vector(i)).transpose();
    let (b, s, d) = (vector(b)?, vector(s)?, vector(d)?);
    let (n, m) = (w.shape().rows(), w.shape().rows() / op.act.rows_per_col());
    let rows = io.ins.extent(0).0;
    let residual = r.map(|r| io.ins.f32s(r)).transpose()?;
    // The columns that it is added to.
    let (first, width) = (op.table_at.unwrap_or(0), r.map_or(0, |r| io.ins.extent(r).1));
    let normed = match (op.norm, g) {
        (NormBefore::Rms(eps), Some(g)) => Some(norm::rms_rows(x, &io.ins.vector(g)?, eps)),
        _ => None,
    };
    let x = z.map_or(Ok(x), |z| io.ins.f32s(z))?;
    let norms = match (op.norm, squares) {
        (NormBefore::BegunRms(eps), Some(squares)) => {
            Some(norm::rstd_of_squares(io.ins.f32s(squares)?, rows, eps))
        }
        _ => None,
    };
    let deviations = match (op.norm, stats) {
        (NormBefore::Layer(eps), Some(stats)) => Some(norm::rstd_of_rows(io.ins.f32s(stats)?, rows, eps)),
        _ => None,
    };
    let mut sums = vec![0.0; rows * n];
    gemm(Rows::dense(normed.as_deref().unwrap_or(x), w.shape().cols()), w, &mut sums);
    let y = io.outs.f32s(0)?;
    sums.par_chunks_mut(n.max(1)).zip(y.par_chunks_mut(m.max(1))).enumerate().with_min_len(16).for_each(
        |(t, (sums, y))| {
            if let Some(rstd) = &norms {
                sums.iter_mut().for_each(|y| *y *= rstd[t]);
            }
            if let (Some(rstd), Some(d)) = (&deviations, &d) {
                sums.iter_mut().zip(d).for_each(|(y, d)| *y = *y * rstd[t] + d);
            }
            if let Some(b) = &b {
                add(sums, b);
            }
            match op.act.unary() {
                Some(act) => y.iter_mut().zip(&*sums).for_each(|(y, x)| *y = act.apply(*x)),
                None => swiglu(sums, y),
            }
            if let Some(s) = &s {
                y.iter_mut().zip(s).for_each(|(y, s)| *y *= s);
            }
            if let Some(r) = residual {
                add(&mut y[first..first + width], &r[t * width..][..width]);
            }
        },
    );
    if op.stats {
        // Of y as it is stored.
        let dtype = io.outs.descs[0].dtype;
        let [y, stats] = io.outs.first_f32s()?;
        dtype.round_slice(y);
        norm::row_stats(y, m, stats);
    }
    if let Some(gain) = gain_of_y {
        let dtype = io.outs.descs[0].dtype;
        let gain = io.ins.vector(gain)?;
        let [y, z, squares] = io.outs.first_f32s()?;
        dtype.round_slice(y);
        norm::begin_rms(y, &gain, z, squares);
    }
    Ok(())
}

pub(super) fn linear_rope(op: &LinearRope, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, w, bias) = (io.ins.f32s(0)?, io.ins.weight(1)?, io.ins.vector(2)?);
    let [table, gain, z, squares] = op.optional_inputs();
    let normed = match (op.norm, gain) {
        (NormBefore::Rms(eps), Some(gain)) => Some(norm::rms_rows(x, &io.ins.vector(gain)?, eps)),
        _ => None,
    };
    let x = z.map_or(Ok(x), |z| io.ins.f32s(z))?;
    let rows = io.ins.extent(0).0;
    let mut qkv = vec![0.0; rows * bias.len()];
    gemm(Rows::dense(normed.as_deref().unwrap_or(x), w.shape().cols()), w, &mut qkv);
    if let (NormBefore::BegunRms(eps), Some(squares)) = (op.norm, squares) {
        let norms = norm::rstd_of_squares(io.ins.f32s(squares)?, rows, eps);
        qkv.chunks_mut(bias.len()).zip(norms).for_each(|(row, rstd)| row.iter_mut().for_each(|y| *y *= rstd));
    }
    qkv.chunks_mut(bias.len()).for_each(|row| add(row, &bias));
    let table = table.map(|table| io.ins.f32s(table)).transpose()?;
    rope::rotate_and_append(&op.rope(), &qkv, table, io.step, &io.ins.descs[3].name, &mut io.outs)
}

pub(super) fn linear_arg_max(op: &LinearArgMax, io: &mut CpuIo<'_>) -> Result<()> {
    linear_fused(&op.parts().0, io)?;
    let (v, mut ids) = (io.ins.extent(1).0, vec![0; io.ins.extent(0).0]);
    sample::arg_max_rows(&op.parts().1, io.outs.f32s(0)?, v, &mut ids);
    io.outs.u32s(1)?.copy_from_slice(&ids);
    Ok(())
}

/// `y = silu(gate) · up` from blocks of 8 gates and 8 ups.
fn swiglu(sums: &[f32], y: &mut [f32]) {
    for (pair, y) in sums.chunks_exact(16).zip(y.chunks_exact_mut(8)) {
        let (gate, up) = pair.split_at(8);
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = Act::Silu.apply(*gate) * up;
        }
    }
}
