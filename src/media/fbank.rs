//! Log-mel frames as Kaldi computes them, which is what the audio encoder was trained on: 25 ms frames every 10 ms,
//! edges snipped, DC removed, pre-emphasis 0.97, Povey window, 512-point power spectrum, 80 mel triangles from 20 Hz
//! to Nyquist, natural logarithm.

use std::borrow::Cow;
use std::f64::consts::PI;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

use super::audio::Sound;
use super::resample::resample;
use crate::core::error::{Error, Result};
use crate::ensure_input;

/// The rate that the encoder hears, in Hz.
pub const RATE_HZ: u32 = 16_000;
/// Mel bins per frame.
pub const BINS: usize = 80;
/// Frames that make the first row for the language model: two convolutions of 3 with stride 2 need that many.
pub const MIN_FRAMES: usize = 7;

const FRAME: usize = 400;
const SHIFT: usize = 160;
const FFT: usize = 512;
const LOW_HZ: f64 = 20.0;
const PRE_EMPHASIS: f32 = 0.97;
/// Kaldi works on 16-bit integers.
const SCALE: f32 = 32768.0;

/// Random noise against zero power; the reference adds 1.0, here 0.0 is the default so that results repeat.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FbankOptions {
    /// Standard deviation of the Gaussian noise, on the scale of 16-bit samples.
    pub dither: f32,
    /// The noise is a function of this number and the position.
    pub seed: u64,
}

impl FbankOptions {
    /// Fails where a value makes no sense.
    pub fn check(&self) -> Result<()> {
        ensure_input!(
            self.dither.is_finite() && self.dither >= 0.0,
            "dither {}: wanted a number from 0 up",
            self.dither
        );
        Ok(())
    }
}

/// Log-mel frames: `data` is `[frames, 80]`, one frame per 10 ms.
#[derive(Clone, Debug, PartialEq)]
pub struct Fbank {
    pub frames: usize,
    pub data: Vec<f32>,
}

/// Frames of a sound, without computing them.
///
/// Fails when it is too short for [`log_mel`].
pub fn frames_of(sound: &Sound) -> Result<usize> {
    require_length(sound)?;
    Ok(frame_count(samples_at_rate(sound)))
}

/// Samples of a sound at 16 kHz: as many as resampling makes.
fn samples_at_rate(sound: &Sound) -> usize {
    (sound.samples.len() as u128 * u128::from(RATE_HZ)).div_ceil(u128::from(sound.rate_hz)) as usize
}

/// Frames of `samples` samples at 16 kHz; a rest shorter than a frame is dropped.
pub fn frame_count(samples: usize) -> usize {
    samples.checked_sub(FRAME).map_or(0, |rest| rest / SHIFT + 1)
}

/// Rows of the language model for `frames` log-mel frames: the length of `ones(frames)[2::2][2::2][0::2]`.
pub fn rows_for_frames(frames: usize) -> usize {
    let halved = |n: usize| n.saturating_sub(1) / 2;
    halved(halved(frames)).div_ceil(2)
}

/// Brings a sound to 16 kHz and computes its frames.
///
/// Fails when the sound is shorter than [`MIN_FRAMES`] frames (85 ms): the encoder would make no row of it.
pub fn log_mel(sound: &Sound, options: FbankOptions) -> Result<Fbank> {
    fbank(&at_rate(sound)?, options)
}

/// Fails when a sound is too short for [`log_mel`].
pub fn require_length(sound: &Sound) -> Result<()> {
    let need = FRAME + (MIN_FRAMES - 1) * SHIFT;
    ensure_input!(
        samples_at_rate(sound) >= need,
        "the sound lasts {:.1} ms ({} samples at {} Hz); the model needs at least {} ms \
         ({MIN_FRAMES} frames of 25 ms, one every 10 ms)",
        sound.seconds() * 1e3,
        sound.samples.len(),
        sound.rate_hz,
        need * 1000 / RATE_HZ as usize
    );
    Ok(())
}

/// Log-mel frames of samples (full scale -1..1) at 16 kHz; fewer than 400 samples make no frame.
pub fn fbank(samples: &[f32], options: FbankOptions) -> Result<Fbank> {
    fbank_from(samples, 0, options)
}

/// The frames of [`fbank`] from frame `first` on.
pub fn fbank_from(samples: &[f32], first: usize, options: FbankOptions) -> Result<Fbank> {
    options.check()?;
    let frames = frame_count(samples.len()).saturating_sub(first);
    let mut data = vec![0.0; frames * BINS];
    let tables = Tables::get();
    data.par_chunks_mut(LANES * BINS)
        .with_min_len(2)
        .enumerate()
        .try_for_each_init(
            || Workspace::new(tables),
            |work, (block, out)| {
                let t = first + LANES * block;
                for (lane, wave) in work.waves.iter_mut().take(out.len() / BINS).enumerate() {
                    load(&samples[(t + lane) * SHIFT..][..FRAME], t + lane, options, wave);
                }
                work.frames(tables, out)
            },
        )
        .map_err(|e| Error::runtime(format!("fbank: {e}")))?;
    Ok(Fbank { frames, data })
}

/// Frames that are made side by side: sums run over them, each in the order that one frame alone has.
const LANES: usize = 8;

/// What a thread works on.
struct Workspace {
    /// `[LANES, FRAME]`
    waves: Vec<[f32; FRAME]>,
    /// Input of the FFT.
    x: Vec<f32>,
    spectrum: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
    /// `[FFT / 2, LANES]`
    power: Vec<[f32; LANES]>,
}

impl Workspace {
    fn new(tables: &Tables) -> Workspace {
        let fft = &tables.fft;
        Workspace {
            waves: vec![[0.0; FRAME]; LANES],
            x: fft.make_input_vec(),
            spectrum: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            power: vec![[0.0; LANES]; FFT / 2],
        }
    }

    /// Log-mel frames of the first waves, as many as `out` holds.
    fn frames(&mut self, tables: &Tables, out: &mut [f32]) -> Result<(), realfft::FftError> {
        let mut sums = [0.0f64; LANES];
        for i in 0..FRAME {
            for (sum, wave) in sums.iter_mut().zip(&self.waves) {
                *sum += f64::from(wave[i]);
            }
        }
        for (lane, wave) in self.waves.iter().take(out.len() / BINS).enumerate() {
            condition(wave, (sums[lane] / FRAME as f64) as f32, &tables.window, &mut self.x);
            tables.fft.process_with_scratch(&mut self.x, &mut self.spectrum, &mut self.scratch)?;
            for (power, c) in self.power.iter_mut().zip(&self.spectrum) {
                power[lane] = c.norm_sqr();
            }
        }
        for (bin, (first, weights)) in tables.mel.iter().enumerate() {
            let mut energy = [0.0f32; LANES];
            for (w, power) in weights.iter().zip(&self.power[*first..]) {
                for (energy, p) in energy.iter_mut().zip(power) {
                    *energy += w * p;
                }
            }
            for (out, energy) in out.chunks_exact_mut(BINS).zip(energy) {
                out[bin] = energy.max(f32::EPSILON).ln();
            }
        }
        Ok(())
    }
}

/// Samples of frame `t` on the scale of 16 bits, with the noise that is asked for.
fn load(samples: &[f32], t: usize, options: FbankOptions, wave: &mut [f32; FRAME]) {
    for (x, s) in wave.iter_mut().zip(samples) {
        *x = s * SCALE;
    }
    if options.dither > 0.0 {
        let mut noise = Noise::new(options.seed, t);
        wave.iter_mut().for_each(|x| *x += options.dither * noise.gaussian());
    }
}

/// One frame without its mean, with pre-emphasis (the first sample counts as its own predecessor), windowed and
/// zero-padded: the input of the FFT.
fn condition(wave: &[f32; FRAME], mean: f32, window: &[f32], x: &mut [f32]) {
    let (x, pad) = x.split_at_mut(FRAME);
    pad.fill(0.0);
    let emphasised = |sample: f32, before: f32| (sample - mean) - PRE_EMPHASIS * (before - mean);
    x[0] = emphasised(wave[0], wave[0]) * window[0];
    let pairs = wave[1..].iter().zip(wave);
    for ((x, (&sample, &before)), w) in x[1..].iter_mut().zip(pairs).zip(&window[1..]) {
        *x = emphasised(sample, before) * w;
    }
}

/// What an op needs to compute the same frames: the window, per mel bin the first bin of the spectrum and how many
/// (`[80, 2]`), and their weights (`[80, W]`, zeros at the end).
pub fn op_tables() -> (Vec<f32>, Vec<u32>, Vec<f32>) {
    let tables = Tables::get();
    let width = mel_width();
    let mut weights = Vec::with_capacity(BINS * width);
    let mut spans = Vec::with_capacity(2 * BINS);
    for (first, bin) in &tables.mel {
        spans.extend([*first as u32, bin.len() as u32]);
        weights.extend_from_slice(bin);
        weights.resize(weights.len() + width - bin.len(), 0.0);
    }
    (tables.window.clone(), spans, weights)
}

/// W of [`op_tables`].
pub fn mel_width() -> usize {
    Tables::get().mel.iter().map(|(_, bin)| bin.len()).max().unwrap_or(0)
}

/// Samples that `frames` frames are made of.
pub fn samples_of(frames: usize) -> usize {
    FRAME + frames.saturating_sub(1) * SHIFT
}

/// Brings a sound to 16 kHz; fails when it is too short for [`log_mel`].
pub fn at_rate(sound: &Sound) -> Result<Cow<'_, [f32]>> {
    require_length(sound)?;
    Ok(match sound.rate_hz {
        RATE_HZ => Cow::Borrowed(&sound.samples[..]),
        rate => Cow::Owned(resample(&sound.samples, rate, RATE_HZ)),
    })
}

/// What does not depend on the samples.
struct Tables {
    window: Vec<f32>,
    /// Per bin: the first bin of the spectrum it takes, and the weights.
    mel: Vec<(usize, Vec<f32>)>,
    fft: Arc<dyn RealToComplex<f32>>,
}

impl Tables {
    fn get() -> &'static Tables {
        static TABLES: OnceLock<Tables> = OnceLock::new();
        TABLES.get_or_init(|| Tables {
            window: povey(),
            mel: mel_banks(),
            fft: RealFftPlanner::new().plan_fft_forward(FFT),
        })
    }
}

/// A Hann window to the power 0.85.
fn povey() -> Vec<f32> {
    let hann = |i: usize| 0.5 - 0.5 * (2.0 * PI * i as f64 / (FRAME - 1) as f64).cos();
    (0..FRAME).map(|i| hann(i).powf(0.85) as f32).collect()
}

fn mel_banks() -> Vec<(usize, Vec<f32>)> {
    let mel = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
    let (low, high) = (mel(LOW_HZ), mel(RATE_HZ as f64 / 2.0));
    let step = (high - low) / (BINS + 1) as f64;
    let weight = |bin: usize, i: usize| {
        let left = low + bin as f64 * step;
        let m = mel(i as f64 * RATE_HZ as f64 / FFT as f64);
        ((m - left) / step).min((left + 2.0 * step - m) / step)
    };
    (0..BINS)
        .map(|bin| {
            let inside: Vec<usize> = (0..FFT / 2).filter(|&i| weight(bin, i) > 0.0).collect();
            let first = inside.first().copied().unwrap_or(0);
            (first, inside.iter().map(|&i| weight(bin, i) as f32).collect())
        })
        .collect()
}

/// Gaussian noise that depends on seed and frame only, so that threads cannot change it.
struct Noise(u64);

impl Noise {
    fn new(seed: u64, frame: usize) -> Noise {
        Noise(seed ^ (frame as u64 + 1).wrapping_mul(0xD1B5_4A32_D192_ED03))
    }

    /// The splitmix64 generator, to (0, 1].
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Box-Muller; the second value of a pair is not kept.
    fn gaussian(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        (radius * (2.0 * PI * self.uniform()).cos()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_rows_are_counted() {
        let frames = [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (56_640, 352), (72_682, 452)];
        for (samples, want) in frames {
            assert_eq!(frame_count(samples), want, "{samples} samples");
        }
        assert_eq!((rows_for_frames(352), rows_for_frames(452)), (44, 56));
        for t in 0..2_000usize {
            // The slices, literally.
            let slice = |v: Vec<u8>, from: usize| v.into_iter().skip(from).step_by(2).collect::<Vec<u8>>();
            let want = slice(slice(slice(vec![1; t], 2), 2), 0).len();
            assert_eq!(rows_for_frames(t), want, "{t} frames");
        }
        assert_eq!((rows_for_frames(MIN_FRAMES - 1), rows_for_frames(MIN_FRAMES)), (0, 1));
    }

    #[test]
    fn silence_is_the_floor_and_dither_lifts_it_the_same_way_each_time() {
        let silence = vec![0.0; 16_000];
        let floor = fbank(&silence, FbankOptions::default()).unwrap();
        assert_eq!(floor.frames, 98);
        assert!(floor.data.iter().all(|&v| v == f32::EPSILON.ln()));
        let options = FbankOptions { dither: 1.0, seed: 7 };
        let noisy = fbank(&silence, options).unwrap();
        // White noise of variance 1 under a window of energy about 150: far above the floor, below ln(1e5).
        assert!(noisy.data.iter().all(|&v| v > -8.0 && v < 11.5));
        assert_eq!(noisy, fbank(&silence, options).unwrap());
        assert_ne!(noisy, fbank(&silence, FbankOptions { seed: 8, ..options }).unwrap());
        let e = fbank(&silence, FbankOptions { dither: f32::NAN, seed: 0 }).unwrap_err();
        assert_eq!(e.to_string(), "dither NaN: wanted a number from 0 up");
    }

    /// Frame by frame and step by step, as the definition goes.
    fn frame_alone(samples: &[f32], t: usize, options: FbankOptions) -> Vec<f32> {
        let tables = Tables::get();
        let mut x: Vec<f32> = samples[t * SHIFT..][..FRAME].iter().map(|s| s * SCALE).collect();
        if options.dither > 0.0 {
            let mut noise = Noise::new(options.seed, t);
            x.iter_mut().for_each(|x| *x += options.dither * noise.gaussian());
        }
        let mean = (x.iter().map(|&v| v as f64).sum::<f64>() / FRAME as f64) as f32;
        x.iter_mut().for_each(|x| *x -= mean);
        for i in (1..FRAME).rev() {
            x[i] -= PRE_EMPHASIS * x[i - 1];
        }
        x[0] -= PRE_EMPHASIS * x[0];
        x.iter_mut().zip(&tables.window).for_each(|(x, w)| *x *= w);
        x.resize(FFT, 0.0);
        let mut spectrum = tables.fft.make_output_vec();
        tables.fft.process(&mut x, &mut spectrum).unwrap();
        let power: Vec<f32> = spectrum.iter().map(|c| c.norm_sqr()).collect();
        let energy = |(first, weights): &(usize, Vec<f32>)| {
            weights.iter().zip(&power[*first..]).map(|(w, p)| w * p).sum::<f32>()
        };
        tables.mel.iter().map(|bin| energy(bin).max(f32::EPSILON).ln()).collect()
    }

    #[test]
    fn frames_side_by_side_have_the_bits_of_each_alone() {
        let mut noise = Noise::new(5, 0);
        // Loud and quiet stretches, an offset, silence, and a last block of every size.
        let samples: Vec<f32> = (0..12_000)
            .map(|i| match i / 1500 {
                3 => 0.0,
                5 => 0.25,
                n => noise.gaussian() * 10f32.powi(-n) + 0.01 * n as f32,
            })
            .collect();
        for options in [FbankOptions::default(), FbankOptions { dither: 1.0, seed: 9 }] {
            for frames in (1..=2 * LANES + 1).chain([frame_count(samples.len())]) {
                let got = fbank(&samples[..samples_of(frames)], options).unwrap();
                assert_eq!(got.frames, frames);
                for (t, got) in got.data.chunks_exact(BINS).enumerate() {
                    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
                    assert_eq!(bits(got), bits(&frame_alone(&samples, t, options)), "frame {t} of {frames}");
                }
            }
        }
    }

    #[test]
    fn later_frames_are_those_of_the_whole() {
        let samples: Vec<f32> = (0..4_000).map(|i| (i as f32 * 0.1).sin() * 0.3).collect();
        let options = FbankOptions { dither: 1.0, seed: 3 };
        let whole = fbank(&samples, options).unwrap();
        for first in [0, 1, 5, whole.frames, whole.frames + 3] {
            let rest = fbank_from(&samples, first, options).unwrap();
            assert_eq!(rest.frames, whole.frames.saturating_sub(first));
            assert_eq!(rest.data, whole.data[(whole.frames - rest.frames) * BINS..]);
        }
    }

    #[test]
    fn noise_is_gaussian() {
        let mut noise = Noise::new(1, 0);
        let n = 100_000;
        let (sum, squares) = (0..n).fold((0.0f64, 0.0f64), |(s, q), _| {
            let v = noise.gaussian() as f64;
            (s + v, q + v * v)
        });
        assert!((sum / n as f64).abs() < 0.015, "{sum}");
        assert!((squares / n as f64 - 1.0).abs() < 0.02, "{squares}");
    }

    #[test]
    fn a_constant_is_silence() {
        let dc = fbank(&vec![0.25; 2_000], FbankOptions::default()).unwrap();
        assert!(dc.data.iter().all(|&v| v == f32::EPSILON.ln()));
    }
}
