//! Resampling by a windowed sinc, the reference's `sinc_interp_hann`: a Hann window over 6 zero crossings on each side
//! and a cut-off at 0.99 of the lower Nyquist frequency.

use std::f64::consts::PI;

use rayon::prelude::*;

const ZERO_CROSSINGS: f64 = 6.0;
const ROLLOFF: f64 = 0.99;

/// Taps that are summed side by side; rows of the table are padded to a multiple.
const LANES: usize = 8;

/// Resamples to `ceil(n · to / from)` samples. Outside of the input there is silence. Equal rates copy.
///
/// The rates must be positive; the table of weights has `to / gcd` rows of about 12 · max(1, from / to) values.
pub fn resample(input: &[f32], from_hz: u32, to_hz: u32) -> Vec<f32> {
    debug_assert!(from_hz > 0 && to_hz > 0);
    if from_hz == to_hz {
        return input.to_vec();
    }
    let d = gcd(from_hz, to_hz);
    let table = Table::new((from_hz / d) as usize, (to_hz / d) as usize);
    let len = (input.len() as u128 * table.to as u128).div_ceil(table.from as u128) as usize;
    let mut out = vec![0.0; len];
    // A group of `to` outputs advances `from` inputs; tasks get about 16 Ki outputs.
    let groups = (1usize << 14).div_ceil(table.to);
    out.par_chunks_mut(table.to * groups).enumerate().for_each(|(chunk, out)| {
        for (g, out) in out.chunks_mut(table.to).enumerate() {
            let start = (chunk * groups + g) * table.from;
            for (phase, o) in out.iter_mut().enumerate() {
                *o = table.at(input, start, phase);
            }
        }
    });
    out
}

/// [`resample`] for an input that comes in pieces: the same values, to the bit.
pub struct Resampler {
    /// None for equal rates.
    table: Option<Table>,
    /// Outputs that were made.
    done: usize,
}

impl Resampler {
    /// The rates must be positive.
    pub fn new(from_hz: u32, to_hz: u32) -> Resampler {
        let d = gcd(from_hz, to_hz);
        let table = (from_hz != to_hz).then(|| Table::new((from_hz / d) as usize, (to_hz / d) as usize));
        Resampler { table, done: 0 }
    }

    /// Appends what `input`, all of it so far, decides; if it `ends` here, all the rest.
    pub fn advance(&mut self, input: &[f32], ends: bool, out: &mut Vec<f32>) {
        let Some(table) = &self.table else {
            out.extend_from_slice(&input[self.done..]);
            self.done = input.len();
            return;
        };
        let len = (input.len() as u128 * table.to as u128).div_ceil(table.from as u128) as usize;
        while self.done < len {
            let (start, phase) = (self.done / table.to * table.from, self.done % table.to);
            if !ends && start + phase * table.from / table.to + table.taps > input.len() + table.width {
                break;
            }
            out.push(table.at(input, start, phase));
            self.done += 1;
        }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Weights for output `q · to + phase`, which lies at input `q · from + phase · from / to`.
struct Table {
    from: usize,
    to: usize,
    /// Inputs on each side that a weight can reach.
    width: usize,
    taps: usize,
    /// `[to, taps]`; row `phase` begins at input `phase · from / to - width` of its group.
    weights: Vec<f32>,
}

impl Table {
    fn new(from: usize, to: usize) -> Table {
        // Frequencies in units of the common divisor, times in input samples / from.
        let cutoff = from.min(to) as f64 * ROLLOFF;
        let width = (ZERO_CROSSINGS * from as f64 / cutoff).ceil() as usize;
        let taps = (2 * width + 2).next_multiple_of(LANES);
        let mut weights = vec![0.0; to * taps];
        weights.par_chunks_mut(taps).enumerate().for_each(|(phase, row)| {
            let first = (phase * from / to) as f64 - width as f64;
            for (i, w) in row.iter_mut().enumerate() {
                let t = ((first + i as f64) / from as f64 - phase as f64 / to as f64) * cutoff;
                if t.abs() < ZERO_CROSSINGS {
                    let window = (t * PI / ZERO_CROSSINGS / 2.0).cos().powi(2);
                    let sinc = if t == 0.0 { 1.0 } else { (PI * t).sin() / (PI * t) };
                    *w = (sinc * window * cutoff / from as f64) as f32;
                }
            }
        });
        Table { from, to, width, taps, weights }
    }

    fn at(&self, input: &[f32], start: usize, phase: usize) -> f32 {
        let row = &self.weights[phase * self.taps..][..self.taps];
        // May lie before the input by up to `width`.
        let (center, width) = (start + phase * self.from / self.to, self.width);
        if center >= width && center - width + self.taps <= input.len() {
            return dot(row, &input[center - width..][..self.taps]);
        }
        let skip = width.saturating_sub(center);
        let input = input.get(center.saturating_sub(width)..).unwrap_or(&[]);
        row[skip..].iter().zip(input).map(|(w, x)| w * x).sum()
    }
}

/// Lane-wise sums: the compiler may not reorder a plain float sum into vectors.
fn dot(w: &[f32], x: &[f32]) -> f32 {
    let mut sum = [0.0f32; LANES];
    for (w, x) in w.as_chunks::<LANES>().0.iter().zip(x.as_chunks::<LANES>().0) {
        for ((s, w), x) in sum.iter_mut().zip(w).zip(x) {
            *s += w * x;
        }
    }
    sum.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sine(hz: f64, rate: u32, len: usize) -> Vec<f32> {
        (0..len).map(|i| (2.0 * PI * hz * i as f64 / rate as f64).sin() as f32).collect()
    }

    #[test]
    fn a_tone_stays_itself_at_any_rate() {
        for rate in [1_000, 8_000, 11_025, 22_050, 44_100, 48_000, 44_101, 192_000] {
            let seconds = 0.25;
            let out = resample(&sine(200.0, rate, (rate as f64 * seconds) as usize), rate, 16_000);
            assert!(
                (out.len() as f64 - 16_000.0 * seconds).abs() <= 16.0,
                "{rate} Hz: {} samples",
                out.len()
            );
            let want = sine(200.0, 16_000, out.len());
            // The edges ring, because there is silence outside.
            let inner = 400..3_600;
            let worst = inner.map(|i| (out[i] - want[i]).abs()).fold(0.0, f32::max);
            assert!(worst < 3e-3, "{rate} Hz: off by {worst}");
        }
    }

    #[test]
    fn what_lies_above_nyquist_is_removed() {
        let out = resample(&sine(15_000.0, 48_000, 48_000), 48_000, 16_000);
        let worst = out[200..15_800].iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(worst < 1e-3, "{worst}");
    }

    #[test]
    fn lengths_round_up_and_short_inputs_work() {
        assert_eq!(resample(&[0.5; 3], 16_000, 16_000), [0.5; 3]);
        assert_eq!(resample(&[], 8_000, 16_000).len(), 0);
        assert_eq!(resample(&[1.0], 48_000, 16_000).len(), 1);
        assert_eq!(resample(&[1.0; 4], 48_000, 16_000).len(), 2);
        assert_eq!(resample(&[1.0; 441], 44_100, 16_000).len(), 160);
        assert_eq!(resample(&[1.0; 442], 44_100, 16_000).len(), 161);
    }

    #[test]
    fn pieces_give_the_bits_of_the_whole() {
        for rate in [16_000, 8_000, 44_100, 48_000, 11_025] {
            let x = sine(333.0, rate, 5_003);
            for piece in [1, 7, 160, 5_003] {
                let (mut resampler, mut out) = (Resampler::new(rate, 16_000), Vec::new());
                for end in (piece..x.len()).step_by(piece) {
                    resampler.advance(&x[..end], false, &mut out);
                }
                assert!(piece > 160 || out.len() * rate as usize > 4_500 * 16_000, "{rate} Hz: goes ahead");
                resampler.advance(&x, true, &mut out);
                assert!(out == resample(&x, rate, 16_000), "{rate} Hz in pieces of {piece}");
            }
        }
    }

    #[test]
    fn chunks_of_work_leave_no_seam() {
        let x = sine(333.0, 24_000, 100_001);
        let whole = resample(&x, 24_000, 16_000);
        let from = 30_000;
        let part = resample(&x[from..], 24_000, 16_000);
        let worst = (50..part.len()).map(|i| (part[i] - whole[from * 2 / 3 + i]).abs()).fold(0.0, f32::max);
        assert_eq!(worst, 0.0);
    }
}
