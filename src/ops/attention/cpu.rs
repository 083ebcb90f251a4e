//! References of the attention family in f32.

use rayon::prelude::*;

use super::{Attention, SinTable, Source};
use crate::core::Result;
use crate::ops::CpuIo;

/// Rows of heads somewhere in a tensor: row `r` of head `h` begins at `first + r·row + h·head`.
#[derive(Clone, Copy)]
struct Heads<'a> {
    data: &'a [f32],
    first: usize,
    row: usize,
    head: usize,
    dim: usize,
}

impl<'a> Heads<'a> {
    fn at(&self, row: usize, head: usize) -> &'a [f32] {
        let from = self.first + row * self.row + head * self.head;
        &self.data[from..from + self.dim]
    }
}

/// `acc += Σ_i coef[i] · row(i)`, four rows at a time so that `acc` stays in registers longer.
fn add_rows<'a>(acc: &mut [f32], coef: &[f32], row: impl Fn(usize) -> &'a [f32]) {
    let n = acc.len();
    let whole = coef.len() / 4 * 4;
    for i in (0..whole).step_by(4) {
        let rows = [&row(i)[..n], &row(i + 1)[..n], &row(i + 2)[..n], &row(i + 3)[..n]];
        add_four(acc, [coef[i], coef[i + 1], coef[i + 2], coef[i + 3]], rows);
    }
    for (i, c) in coef.iter().enumerate().skip(whole) {
        acc.iter_mut().zip(row(i)).for_each(|(x, y)| *x += c * y);
    }
}

/// `acc += Σ c[i] · rows[i]`; the rows are as long as `acc`.
fn add_four(acc: &mut [f32], c: [f32; 4], rows: [&[f32]; 4]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the two features are there.
        done = unsafe { add_four_avx2(acc, c, rows) };
    }
    for j in done..acc.len() {
        acc[j] += (c[0] * rows[0][j] + c[1] * rows[1][j]) + (c[2] * rows[2][j] + c[3] * rows[3][j]);
    }
}

/// [`add_four`] for the elements that fill vectors; returns how many. By hand, because tests are built without the
/// optimisation that would find the vectors; through `[f32; 8]`, because the pointer intrinsics carry checks there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn add_four_avx2(acc: &mut [f32], c: [f32; 4], rows: [&[f32]; 4]) -> usize {
    use std::arch::x86_64::{__m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_mul_ps, _mm256_set1_ps};
    // SAFETY (both): 8 lanes are 8 values, every bit pattern is one.
    let load = |v: [f32; 8]| unsafe { std::mem::transmute::<[f32; 8], __m256>(v) };
    let lanes = |v: __m256| unsafe { std::mem::transmute::<__m256, [f32; 8]>(v) };
    let c = c.map(|c| _mm256_set1_ps(c));
    let acc = acc.as_chunks_mut::<8>().0;
    let rows = rows.map(|r| &r.as_chunks::<8>().0[..acc.len()]);
    for j in 0..acc.len() {
        let low = _mm256_fmadd_ps(c[1], load(rows[1][j]), _mm256_mul_ps(c[0], load(rows[0][j])));
        let high = _mm256_fmadd_ps(c[3], load(rows[3][j]), _mm256_mul_ps(c[2], load(rows[2][j])));
        acc[j] = lanes(_mm256_add_ps(load(acc[j]), _mm256_add_ps(low, high)));
    }
    acc.len() * 8
}

/// One of the sequences of an attention.
#[derive(Clone, Copy)]
struct Sequence {
    /// Its first row of all T.
    row0: usize,
    /// Position of its first row.
    pos: usize,
    /// Rows that are no padding.
    valid: usize,
    keys: usize,
    /// Its first row of keys: in a cache as many rows follow each other as its heads have together.
    key0: usize,
}

fn sequences(op: &Attention, t: usize, io: &CpuIo<'_>) -> Result<Vec<Sequence>> {
    let mut end = 0;
    let lengths = op.batch.rows(t).into_iter();
    let with_rows = lengths.enumerate().map(|(n, rows)| {
        let row0 = end;
        end += rows;
        match op.source {
            Source::Cache { .. } => {
                let (kv, step) = (io.ins.descs[1], io.step);
                let (keys, s_max) = (step.kv_len as usize, kv.shape[2]);
                if keys > s_max {
                    crate::bail_runtime!("{}: {keys} rows in a cache of {s_max}", kv.name);
                }
                let valid = rows.min(step.valid_rows as usize);
                Ok(Sequence { row0, pos: step.pos as usize, valid, keys, key0: n * op.kv_heads * s_max })
            }
            _ => Ok(Sequence { row0, pos: 0, valid: rows, keys: rows, key0: row0 }),
        }
    });
    with_rows.collect()
}

pub(super) fn attention(op: &Attention, io: &mut CpuIo<'_>) -> Result<()> {
    let (h, g, d) = (op.heads, op.kv_heads, op.head_dim);
    let t = io.ins.descs[0].rows();
    let sequences = sequences(op, t, io)?;
    let heads = |data, first, row| Heads { data, first, row, head: d, dim: d };
    let (q, k, v) = match op.source {
        Source::Separate => {
            let (q, k, v) = (io.ins.f32s(0)?, io.ins.f32s(1)?, io.ins.f32s(2)?);
            (heads(q, 0, h * d), heads(k, 0, g * d), heads(v, 0, g * d))
        }
        Source::Packed => {
            let (qkv, row) = (io.ins.f32s(0)?, (h + 2 * g) * d);
            (heads(qkv, 0, row), heads(qkv, h * d, row), heads(qkv, (h + g) * d, row))
        }
        Source::Cache { .. } => {
            let (kv, s_max) = (io.ins.f32s(1)?, io.ins.descs[1].shape[2]);
            let cache = |first| Heads { data: kv, first, row: d, head: s_max * d, dim: d };
            (heads(io.ins.f32s(0)?, 0, h * d), cache(0), cache(kv.len() / 2))
        }
    };
    let bias = match op.bias {
        true => Some((io.ins.f32s(io.ins.len() - 1)?, io.ins.extent(io.ins.len() - 1).1)),
        false => None,
    };

    // Keys of each head of each sequence transposed, [D, keys]: a row of scores is a sum of D contiguous rows.
    let transposed = |at: usize| {
        let Sequence { keys: n, key0, .. } = sequences[at / g];
        let mut keys = vec![0.0; d * n];
        for j in 0..n {
            for (i, x) in k.at(key0 + j, at % g).iter().enumerate() {
                keys[i * n + j] = *x;
            }
        }
        keys
    };
    let keys: Vec<Vec<f32>> = (0..sequences.len() * g).into_par_iter().map(transposed).collect();
    let most_keys = sequences.iter().map(|s| s.keys).max().unwrap_or(0);

    const BLOCK: usize = 4;
    let out = io.outs.f32s(0)?;
    out.fill(0.0);
    out.par_chunks_mut(BLOCK * h * d).enumerate().for_each(|(block, out)| {
        let mut scores = vec![0.0; most_keys];
        for head in 0..h {
            for (r, out) in out.chunks_exact_mut(h * d).enumerate() {
                let row = block * BLOCK + r;
                // Of several that begin here the last one has rows.
                let seq = sequences.partition_point(|s| s.row0 <= row) - 1;
                let Sequence { row0, pos, valid, keys: n, key0 } = sequences[seq];
                let i = row - row0;
                if i >= valid {
                    continue;
                }
                let kv = head / (h / g);
                let seen = op.mask.keys(pos + i, n);
                let scores = &mut scores[..seen.len()];
                scores.fill(0.0);
                let keys = &keys[seq * g + kv];
                add_rows(scores, q.at(row, head), |c| &keys[c * n + seen.start..c * n + seen.end]);
                match bias {
                    Some((bias, width)) => {
                        let bias = &bias[head * width + row0 + seen.start..];
                        scores.iter_mut().zip(bias).for_each(|(s, b)| *s = *s * op.scale + b);
                    }
                    None => scores.iter_mut().for_each(|s| *s *= op.scale),
                }
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                if max == f32::NEG_INFINITY {
                    continue;
                }
                scores.iter_mut().for_each(|s| *s = (*s - max).exp());
                let sum: f32 = scores.iter().sum();
                let out = &mut out[head * d..(head + 1) * d];
                add_rows(out, scores, |j| v.at(key0 + seen.start + j, kv));
                out.iter_mut().for_each(|o| *o /= sum);
            }
        }
    });
    Ok(())
}

pub(super) fn key_bias(io: &mut CpuIo<'_>, heads: usize, head_dim: usize, scale: f32) -> Result<()> {
    let (x, p) = (io.ins.f32s(0)?, io.ins.vector(1)?);
    let (u, vb) = (io.ins.vector(2)?, io.ins.vector(3)?);
    let (t, cols) = io.ins.extent(0);
    let [y, bias] = io.outs.first_f32s()?;
    for row in 0..t {
        for head in 0..heads {
            let mut sum = 0.0;
            for c in head * head_dim..(head + 1) * head_dim {
                let at = row * cols + c;
                sum += u[c] * x[at] + vb[c] * p[at];
                y[at] = x[at] + p[at];
            }
            bias[head * t + row] = scale * sum;
        }
    }
    Ok(())
}

pub(super) fn add_keys(io: &mut CpuIo<'_>) -> Result<()> {
    let (x, p) = (io.ins.f32s(0)?, io.ins.f32s(1)?);
    let (cols, c) = (io.ins.extent(0).1, io.ins.extent(1).1);
    let y = io.outs.f32s(0)?;
    y.copy_from_slice(x);
    for (y, p) in y.chunks_exact_mut(cols).zip(p.chunks_exact(c)) {
        y[c..2 * c].iter_mut().zip(p).for_each(|(y, p)| *y += p);
    }
    Ok(())
}

pub(super) fn sin_table(op: &SinTable, io: &mut CpuIo<'_>) -> Result<()> {
    let pe = io.outs.f32s(0)?;
    let frequency = |i: usize| (10000f64.powf(-((2 * i) as f64) / op.width as f64)) as f32;
    let frequencies: Vec<f32> = (0..op.width / 2).map(frequency).collect();
    for (t, row) in pe.chunks_exact_mut(op.width).enumerate() {
        for (pair, f) in row.chunks_exact_mut(2).zip(&frequencies) {
            let angle = t as f32 * f;
            (pair[0], pair[1]) = (angle.sin(), angle.cos());
        }
    }
    Ok(())
}
