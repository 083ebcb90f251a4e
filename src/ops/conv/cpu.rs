//! References: copies as the definitions say, convolutions as products with gathered rows.

use super::{Conv1d, Conv2d, Patchify, PixelShuffle, Pixels};
use crate::core::Result;
use crate::cpu::gemm::{Rows, gemm};
use crate::ops::CpuIo;
use crate::ops::elementwise::Act;
use rayon::prelude::*;

pub(super) fn patchify(op: &Patchify, io: &mut CpuIo<'_>) -> Result<()> {
    let (p, cols) = (op.patch, op.padded_cols);
    let s = op.pixels.side(io.ins.descs[0]).unwrap_or(0);
    let g = s / p;
    let from_bytes;
    let x = match op.pixels {
        Pixels::Values => io.ins.f32s(0)?,
        Pixels::Bytes { mean, std } => {
            let words = io.ins.u32s(0)?;
            let byte = |i: usize| words[i / 4].to_le_bytes()[i % 4];
            let plane = s * s;
            from_bytes = (0..words.len() * 4)
                .map(|i| {
                    let (tile, c, at) = (i / (3 * plane), i / plane % 3, i % plane);
                    (f32::from(byte((tile * plane + at) * 3 + c)) / 255.0 - mean[c]) / std[c]
                })
                .collect::<Vec<f32>>();
            &from_bytes
        }
    };
    let y = io.outs.f32s(0)?;
    for (row, y) in y.chunks_exact_mut(cols).enumerate() {
        let (tile, i, j) = (row / (g * g), row / g % g, row % g);
        for (at, y) in y.iter_mut().enumerate() {
            let (c, dy, dx) = (at / (p * p), at / p % p, at % p);
            *y = if c < 3 { x[((tile * 3 + c) * s + i * p + dy) * s + j * p + dx] } else { 0.0 };
        }
    }
    Ok(())
}

/// Class token and patches of every tile, plus the position table if there is one.
pub(super) fn assemble(tiles: usize, pos: Option<&[f32]>, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, cls) = (io.ins.f32s(0)?, io.ins.vector(1)?);
    let (rows, c) = io.ins.extent(0);
    let patches = rows / tiles;
    let y = io.outs.f32s(0)?;
    for (row, y) in y.chunks_exact_mut(c).enumerate() {
        let (tile, token) = (row / (patches + 1), row % (patches + 1));
        y.copy_from_slice(match token {
            0 => &cls,
            _ => &x[(tile * patches + token - 1) * c..][..c],
        });
        if let Some(pos) = pos {
            y.iter_mut().zip(&pos[token * c..]).for_each(|(y, p)| *y += p);
        }
    }
    Ok(())
}

pub(super) fn pixel_shuffle(op: &PixelShuffle, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, c, g) = (io.ins.f32s(0)?, io.ins.extent(0).1, op.grid);
    let y = io.outs.f32s(0)?;
    for (at, y) in y.chunks_exact_mut(c).enumerate() {
        let (token, part) = (at / 4, at % 4);
        let (tile, i, j) = (token / (g * g / 4), token / (g / 2) % (g / 2), token % (g / 2));
        let patch = (2 * i + part / 2) * g + 2 * j + part % 2;
        let x = &x[(tile * (1 + g * g) + 1 + patch) * c..][..c];
        y.iter_mut().zip(x).for_each(|(y, x)| *y = op.scale * x);
    }
    Ok(())
}

pub(super) fn cmvn(io: &mut CpuIo<'_>) -> Result<()> {
    let (x, mean, istd) = (io.ins.f32s(0)?, io.ins.vector(1)?, io.ins.vector(2)?);
    let y = io.outs.f32s(0)?;
    for (x, y) in x.chunks_exact(mean.len()).zip(y.chunks_exact_mut(mean.len())) {
        for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
            *y = (x - mean[i]) * istd[i];
        }
    }
    Ok(())
}

pub(super) fn conv2d(op: &Conv2d, io: &mut CpuIo<'_>) -> Result<()> {
    // Pixels whose windows are gathered at a time: 64 MB of f32 at 1024 channels.
    const CHUNK: usize = 2048;
    let (x, w, b) = (io.ins.f32s(0)?, io.ins.weight(1)?, io.ins.vector(2)?);
    let Some(e) = op.extents(io.ins.descs[0]) else {
        crate::bail_runtime!("{}: Conv2d without an output", io.outs.descs[0].name)
    };
    let (run, k) = (3 * op.channels, 9 * op.channels);
    let act = if op.relu { Act::Relu } else { Act::None };
    let y = io.outs.f32s(0)?;
    let mut windows = Vec::new();
    for (chunk, y) in y.chunks_mut(CHUNK * b.len()).enumerate() {
        let rows = y.len() / b.len();
        windows.resize(rows * k, 0.0);
        windows.par_chunks_mut(k).enumerate().for_each(|(row, window)| {
            let pixel = chunk * CHUNK + row;
            let (i, j) = (pixel / e.out_width, pixel % e.out_width);
            for (r, taps) in window.chunks_exact_mut(run).enumerate() {
                taps.copy_from_slice(&x[((2 * i + r) * e.width + 2 * j) * op.channels..][..run]);
            }
        });
        gemm(Rows::dense(&windows, k), w, y);
        y.par_chunks_mut(b.len()).with_min_len(16).for_each(|y| {
            y.iter_mut().zip(&b).for_each(|(y, b)| *y = act.apply(*y + b));
        });
    }
    Ok(())
}

pub(super) fn conv1d(op: &Conv1d, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, w, b) = (io.ins.f32s(0)?, io.ins.weight(1)?, io.ins.vector(2)?);
    let c = io.ins.extent(0).1;
    let mut padded = x.to_vec();
    padded.resize(x.len() + op.pad_right * c, 0.0);
    let y = io.outs.f32s(0)?;
    let rows = Rows { data: &padded, rows: y.len() / b.len(), pitch: op.stride * c };
    gemm(rows, w, y);
    for y in y.chunks_exact_mut(b.len()) {
        y.iter_mut().zip(&b).for_each(|(y, b)| *y += b);
    }
    Ok(())
}
