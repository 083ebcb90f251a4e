//! References of the preprocessing ops.

use realfft::RealFftPlanner;

use super::{FFT, FRAME, PRE_EMPHASIS, ResizeToTiles, ResizeWidth, SCALE, SHIFT};
use crate::core::{Error, Result};
use crate::ops::CpuIo;

/// Fractional bits of a coefficient.
const BITS: u32 = 22;

pub(super) fn filterbank(io: &mut CpuIo<'_>) -> Result<()> {
    let (x, window, spans, mel) = (io.ins.f32s(0)?, io.ins.f32s(1)?, io.ins.u32s(2)?, io.ins.f32s(3)?);
    let (bins, width) = io.ins.extent(3);
    let fft = RealFftPlanner::<f64>::new().plan_fft_forward(FFT);
    let (mut wave, mut spectrum) = (fft.make_input_vec(), fft.make_output_vec());
    for (t, y) in io.outs.f32s(0)?.chunks_exact_mut(bins).enumerate() {
        let mut frame: Vec<f32> = x[t * SHIFT..][..FRAME].iter().map(|s| s * SCALE).collect();
        let mean = (frame.iter().map(|&v| f64::from(v)).sum::<f64>() / FRAME as f64) as f32;
        frame.iter_mut().for_each(|v| *v -= mean);
        for i in (1..FRAME).rev() {
            frame[i] -= PRE_EMPHASIS * frame[i - 1];
        }
        frame[0] -= PRE_EMPHASIS * frame[0];
        wave.fill(0.0);
        for ((wave, v), w) in wave.iter_mut().zip(&frame).zip(window) {
            *wave = f64::from(v * w);
        }
        fft.process(&mut wave, &mut spectrum).map_err(|e| Error::runtime(format!("filterbank: {e}")))?;
        for (bin, y) in y.iter_mut().enumerate() {
            let (first, count) = (spans[2 * bin] as usize, (spans[2 * bin + 1] as usize).min(width));
            let weights = &mel[bin * width..][..count];
            let power = spectrum.iter().take(FFT / 2).skip(first).map(|c| c.norm_sqr());
            let energy: f64 = weights.iter().zip(power).map(|(w, p)| f64::from(*w) * p).sum();
            *y = energy.max(f64::from(f32::EPSILON)).ln() as f32;
        }
    }
    Ok(())
}

/// Output of an axis at `i` over inputs that `at` reads, in 8 bits.
fn weigh(axis: &[u32], at: impl Fn(usize) -> u8) -> u8 {
    let (first, count) = (axis[0] as usize, axis[1] as usize);
    let half = 1i32 << (BITS - 1);
    let sum = (0..count)
        .fold(half, |sum, t| sum.wrapping_add(i32::from(at(first + t)).wrapping_mul(axis[2 + t] as i32)));
    (sum >> BITS).clamp(0, 255) as u8
}

pub(super) fn resize_width(op: &ResizeWidth, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, axis) = (bytemuck::cast_slice::<u32, u8>(io.ins.u32s(0)?), io.ins.u32s(1)?);
    let (to, width) = io.ins.extent(1);
    let y = bytemuck::cast_slice_mut::<u32, u8>(io.outs.u32s(0)?);
    for (row, y) in y.chunks_exact_mut(3 * to).enumerate() {
        for (i, y) in y.iter_mut().enumerate() {
            let (pixel, channel) = (i / 3, i % 3);
            let at = |p: usize| x[(row * op.width + p) * 3 + channel];
            *y = weigh(&axis[pixel * width..][..width], at);
        }
    }
    Ok(())
}

pub(super) fn resize_to_tiles(op: &ResizeToTiles, io: &mut CpuIo<'_>) -> Result<()> {
    let (s, main) = (op.size, op.columns * op.rows);
    let table = io.ins.f32s(io.ins.len() - 1)?;
    for tile in 0..op.tiles() {
        let thumbnail = tile == main;
        let (from, columns) = if thumbnail { (2, 1) } else { (0, op.columns) };
        let x = bytemuck::cast_slice::<u32, u8>(io.ins.u32s(from)?);
        let (axis, (_, width)) = (io.ins.u32s(from + 1)?, io.ins.extent(from + 1));
        let (column, row) = if thumbnail { (0, 0) } else { (tile % columns, tile / columns) };
        let y = &mut io.outs.f32s(0)?[tile * 3 * s * s..][..3 * s * s];
        for (i, y) in y.iter_mut().enumerate() {
            let (channel, line, at) = (i / (s * s), i / s % s, i % s);
            let byte = (column * s + at) * 3 + channel;
            let axis = &axis[(row * s + line) * width..][..width];
            *y = table[channel * 256 + usize::from(weigh(axis, |r| x[r * columns * s * 3 + byte]))];
        }
    }
    Ok(())
}
