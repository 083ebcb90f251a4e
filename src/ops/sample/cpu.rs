//! References of the samplers. `kernels/sample.cu` finds the same thresholds by radix selection.

use super::{ArgMax, Sample, SampleParams, mass};
use crate::core::Result;
use crate::ops::CpuIo;

/// Unsigned integers in the order of the floats: -0 equals 0, NaN is below everything.
fn order(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits();
    match bits >> 31 {
        _ if x.is_nan() => 0,
        0 => bits | 1 << 31,
        _ => !bits,
    }
}

fn largest(xs: impl Iterator<Item = f32>) -> usize {
    let (mut best, mut at) = (0, 0);
    for (i, x) in xs.enumerate() {
        let key = order(x);
        if key > best {
            (best, at) = (key, i);
        }
    }
    at
}

pub(super) fn arg_max(op: &ArgMax, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, (_, cols)) = (io.ins.f32s(0)?, io.ins.extent(0));
    arg_max_rows(op, x, cols, io.outs.u32s(0)?);
    Ok(())
}

/// `op` on rows of `cols` logits.
pub(crate) fn arg_max_rows(op: &ArgMax, x: &[f32], cols: usize, ids: &mut [u32]) {
    let limit = cols.min(op.limit as usize);
    for (x, id) in x.chunks(cols).zip(ids) {
        *id = largest(x[..limit].iter().copied()) as u32;
    }
}

/// `total · fraction / 2^24`, rounded down, for totals below 2^63.
fn share(total: u64, fraction: u64) -> u64 {
    (total >> 24) * fraction + (((total & 0xff_ffff) * fraction) >> 24)
}

fn mix(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// What tells the random numbers of a row from those of the row before it, see [`Sample`].
const ROW: u64 = 0xD1B5_4A32_D192_ED03;

/// The token for the logits of row `row`, see [`Sample`].
pub(super) fn choose(logits: &[f32], seen: &[u32], params: &SampleParams, row: usize, draw: u32) -> usize {
    let penalty = if params.repetition_penalty > 0.0 { params.repetition_penalty } else { 1.0 };
    let drawn = params.temperature > 0.0;
    let scaled = logits.iter().zip(seen).map(|(&l, &seen)| {
        let l = match seen {
            0 => l,
            _ if l > 0.0 => l / penalty,
            _ => l * penalty,
        };
        if drawn { l / params.temperature } else { l }
    });
    let z: Vec<f32> = scaled.collect();
    let best = largest(z.iter().copied());
    if !drawn {
        return best;
    }

    // (id, q) of every id that can come.
    let live: Vec<(usize, u32)> = z
        .iter()
        .enumerate()
        .map(|(id, &x)| (id, z[best] - x))
        .filter(|(_, d)| *d < 28.0)
        .map(|(id, d)| (id, (d * (1u32 << 26) as f32) as u32))
        .collect();
    let mut sorted: Vec<u32> = live.iter().map(|l| l.1).collect();
    sorted.sort_unstable();

    let mut cutoff = u32::MAX;
    if params.top_k > 0 && (params.top_k as usize) < sorted.len() {
        cutoff = sorted[params.top_k as usize - 1];
    }
    let total = |cutoff: u32| live.iter().filter(|l| l.1 <= cutoff).map(|l| mass(l.1)).sum::<u64>();
    if params.top_p < 1.0 {
        let fraction = (params.top_p.max(0.0) * (1u32 << 24) as f32) as u64;
        let target = share(total(cutoff), fraction).max(1);
        let mut sum = 0;
        for &q in &sorted {
            sum += mass(q);
            if sum >= target {
                cutoff = q;
                break;
            }
        }
    }

    let golden = 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(u64::from(draw) + 1);
    let seed = params.seed.wrapping_add(ROW.wrapping_mul(row as u64));
    let u = mix(seed.wrapping_add(golden)) >> 40;
    let target = share(total(cutoff), u);
    let mut sum = 0;
    for &(id, q) in live.iter().filter(|l| l.1 <= cutoff) {
        sum += mass(q);
        if sum > target {
            return id;
        }
    }
    best // no logit is finite
}

pub(super) fn sample(op: &Sample, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, words) = (io.ins.f32s(0)?, io.ins.u32s(2)?);
    let params = SampleParams::from_words(words.first_chunk().unwrap_or(&[0; 8]));
    let cols = io.ins.extent(0).1;
    let limit = cols.min(op.limit as usize);
    let (mut tokens, draw) = (Vec::new(), io.step.draw);
    for (row, (x, seen)) in x.chunks(cols).zip(io.outs.u32s(1)?.chunks_mut(cols)).enumerate() {
        let token = choose(&x[..limit], &seen[..limit], &params, row, draw);
        seen[token] = seen[token].wrapping_add(1);
        tokens.push(token as u32);
    }
    io.outs.u32s(0)?.copy_from_slice(&tokens);
    Ok(())
}
