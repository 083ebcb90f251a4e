//! Weights that are a pure function of seed, tensor name and element index, the same to the bit in every program:
//! splitmix64 over an FNV-1a hash of the name. `kernels/fill.cu` computes the same on a GPU.

use std::collections::HashMap;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::convert::narrow;
use super::{Info, Source, SynthSpec};
use crate::core::{DType, Error, Result};

/// The golden ratio's 64-bit fraction, the step of splitmix64.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
const BLOCK: usize = 512;
/// Elements that one task fills.
const TASK: usize = 1 << 20;

fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3))
}

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The generator's state for a tensor.
pub fn state(seed: u64, name: &str) -> u64 {
    mix(seed ^ fnv1a64(name))
}

/// u(i) in [-1, 1), exact in f32: 24 random bits.
fn unit(state: u64, i: u64) -> f32 {
    let r = mix(state.wrapping_add(i.wrapping_add(1).wrapping_mul(STEP)));
    // 24 bits fit an i32, whose conversion to f32 vectorises; that of u64 does not.
    (r >> 40) as i32 as f32 * (1.0 / 8_388_608.0) - 1.0
}

impl SynthSpec {
    /// Element `i` in f32, before it is rounded to the checkpoint's type. Two roundings, no fused multiply-add.
    pub fn value(&self, i: u64) -> f32 {
        self.centre + self.scale * unit(self.state, i)
    }

    /// Elements `first..` in f32.
    pub fn fill_f32(&self, first: u64, out: &mut [f32]) {
        for (i, x) in out.iter_mut().enumerate() {
            *x = self.value(first + i as u64);
        }
    }

    /// Elements `first..` as stored in `dtype`, on this thread.
    fn fill_here(&self, dtype: DType, first: u64, out: &mut [u8]) {
        let mut block = [0.0; BLOCK];
        for (i, out) in out.chunks_mut(BLOCK * dtype.bytes()).enumerate() {
            let block = &mut block[..out.len() / dtype.bytes()];
            self.fill_f32(first + (i * BLOCK) as u64, block);
            narrow(dtype, block, out);
        }
    }

    /// Elements `first..` as stored in `dtype`, on all threads of the pool.
    pub fn fill(&self, dtype: DType, first: u64, out: &mut [u8]) {
        out.par_chunks_mut(TASK * dtype.bytes())
            .enumerate()
            .for_each(|(i, out)| self.fill_here(dtype, first + (i * TASK) as u64, out));
    }
}

/// Centre and scale of a tensor, by its name; the first matching rule counts.
fn distribution(name: &str, shape: &[usize]) -> (f32, f32) {
    let last = name.rsplit('.').next().unwrap_or(name);
    let fan_in: usize = shape.iter().skip(1).product();
    match last {
        _ if name.ends_with("global_cmvn.mean") => (16.0, 1.0),
        _ if name.ends_with("global_cmvn.istd") => (0.3, 0.02),
        "ls1" | "ls2" => (0.3, 0.1),
        "pos_bias_u" | "pos_bias_v" => (0.0, 0.1),
        "class_embedding" | "position_embedding" => (0.0, 1.0),
        _ if name.contains("embed_tokens") || name.contains("prompt_embeddings") => (0.0, 1.0),
        "bias" => (0.0, 0.05),
        _ if shape.len() == 1 => (1.0, 0.1),
        _ => (0.0, (3.0 / fan_in as f64).sqrt() as f32),
    }
}

/// How the synthetic tensor `name` of `shape` is made.
pub fn spec_for(seed: u64, name: &str, shape: &[usize]) -> SynthSpec {
    let (centre, scale) = distribution(name, shape);
    SynthSpec { state: state(seed, name), centre, scale }
}

/// A test input, f32 and not rounded: `CASE.pixel_values` has centre 0 and scale 1, `CASE.fbank` 16 and 4.
pub fn test_input(seed: u64, name: &str, shape: &[usize], centre: f32, scale: f32) -> Vec<f32> {
    let mut out = vec![0.0; shape.iter().product()];
    let spec = SynthSpec { state: state(seed, name), centre, scale };
    out.par_chunks_mut(TASK).enumerate().for_each(|(i, out)| spec.fill_f32((i * TASK) as u64, out));
    out
}

/// A checkpoint without a file. A tensor's bytes are made when they are first asked for, and kept.
pub struct SynthSource {
    seed: u64,
    dtype: DType,
    tensors: Vec<(String, Vec<usize>)>,
    by_name: HashMap<String, usize>,
    made: Vec<OnceLock<Vec<u8>>>,
}

impl SynthSource {
    /// All tensors are stored in `dtype`, as in the checkpoints that they stand for.
    pub fn new(seed: u64, dtype: DType, tensors: Vec<(String, Vec<usize>)>) -> SynthSource {
        let by_name = tensors.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect();
        let made = tensors.iter().map(|_| OnceLock::new()).collect();
        SynthSource { seed, dtype, tensors, by_name, made }
    }

    /// Names and shapes, in the order of the checkpoint.
    pub fn tensors(&self) -> &[(String, Vec<usize>)] {
        &self.tensors
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Not on rayon's pool: a worker that waits there may take up a second request for the same tensor, and that
    /// one would wait for the first for ever.
    fn make(&self, i: usize) -> Vec<u8> {
        let (name, shape) = &self.tensors[i];
        let spec = spec_for(self.seed, name, shape);
        let len: usize = shape.iter().product();
        let mut bytes = vec![0; len * self.dtype.bytes()];
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let share = len.div_ceil(threads).max(TASK);
        if len <= TASK {
            spec.fill_here(self.dtype, 0, &mut bytes);
        } else {
            std::thread::scope(|scope| {
                for (i, part) in bytes.chunks_mut(share * self.dtype.bytes()).enumerate() {
                    scope.spawn(move || spec.fill_here(self.dtype, (i * share) as u64, part));
                }
            });
        }
        bytes
    }
}

impl Source for SynthSource {
    fn names(&self) -> Vec<String> {
        self.tensors.iter().map(|(name, _)| name.clone()).collect()
    }

    fn info(&self, name: &str) -> Option<Info> {
        let (_, shape) = &self.tensors[*self.by_name.get(name)?];
        Some(Info::new(self.dtype, shape))
    }

    fn bytes(&self, name: &str) -> Result<&[u8]> {
        let &i = self
            .by_name
            .get(name)
            .ok_or_else(|| Error::input(format!("{name}: no such tensor in {}", self.describe())))?;
        Ok(self.made[i].get_or_init(|| self.make(i)))
    }

    fn synth(&self, name: &str) -> Option<SynthSpec> {
        let (name, shape) = &self.tensors[*self.by_name.get(name)?];
        Some(spec_for(self.seed, name, shape))
    }

    fn place(&self, _: &str) -> String {
        self.describe()
    }

    fn describe(&self) -> String {
        format!("the synthetic weights (seed {}, {})", self.seed, self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_values_of_seed_0() {
        let state = state(0, "lm_head.weight");
        let u: Vec<f32> = (0..8).map(|i| unit(state, i)).collect();
        let want = [
            -0.13936007,
            -0.7551758,
            -0.67088795,
            -0.91092753,
            0.93404496,
            0.1254332,
            0.49439204,
            -0.9706547,
        ];
        assert_eq!(u, want);
    }

    #[test]
    fn every_row_of_the_table() {
        let audio = "model.audio_encoder.encoder";
        let layer = format!("{audio}.enc.1.encoders.3");
        let rows: &[(&str, &[usize], f32, f32)] = &[
            (&format!("{audio}.global_cmvn.mean"), &[80], 16.0, 1.0),
            (&format!("{audio}.global_cmvn.istd"), &[80], 0.3, 0.02),
            ("model.vision_tower.vision_tower.encoder.layers.0.ls1", &[1024], 0.3, 0.1),
            ("model.vision_tower.vision_tower.encoder.layers.0.ls2", &[1024], 0.3, 0.1),
            (&format!("{layer}.self_attn.pos_bias_u"), &[16, 64], 0.0, 0.1),
            (&format!("{layer}.self_attn.pos_bias_v"), &[16, 64], 0.0, 0.1),
            ("model.vision_tower.vision_tower.embeddings.class_embedding", &[1, 1, 1024], 0.0, 1.0),
            ("model.vision_tower.vision_tower.embeddings.position_embedding", &[1, 1025, 1024], 0.0, 1.0),
            ("model.embed_tokens.weight", &[515, 896], 0.0, 1.0),
            ("model.audio_encoder.prompt_embeddings.weight", &[5, 3584], 0.0, 1.0),
            ("model.layers.0.self_attn.q_proj.bias", &[3584], 0.0, 0.05),
            ("model.vision_tower.vision_tower.embeddings.patch_embedding.bias", &[1024], 0.0, 0.05),
            ("model.norm.weight", &[3584], 1.0, 0.1),
            (&format!("{layer}.norm1.weight"), &[1024], 1.0, 0.1),
            ("lm_head.weight", &[515, 768], 0.0, 0.0625),
            ("model.audio_encoder.adpter.conv1d2.weight", &[2048, 1024, 3], 0.0, 0.03125),
            ("model.vision_tower.vision_tower.embeddings.patch_embedding.weight", &[8, 3, 4, 4], 0.0, 0.25),
        ];
        for (name, shape, centre, scale) in rows {
            let spec = spec_for(7, name, shape);
            assert_eq!((spec.centre, spec.scale), (*centre, *scale), "{name}");
            assert_eq!(spec.state, state(7, name));
        }
    }

    #[test]
    fn bulk_filling_is_the_scalar_function() {
        let spec = spec_for(3, "model.layers.0.mlp.up_proj.weight", &[1025, 17]);
        let n = TASK + 1025;
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let mut bytes = vec![0; n * dtype.bytes()];
            spec.fill(dtype, 5, &mut bytes);
            let mut values = vec![0.0; n];
            super::super::convert::widen(dtype, &bytes, &mut values);
            for i in [0, 1, 17, 511, 512, TASK - 1, TASK, n - 1] {
                assert_eq!(values[i], dtype.round(spec.value(5 + i as u64)), "{dtype} {i}");
            }
        }
    }

    #[test]
    fn a_source_makes_its_tensors_once() {
        let s = SynthSource::new(
            1,
            DType::F16,
            vec![("a.weight".into(), vec![2, 3]), ("b.bias".into(), vec![3])],
        );
        let first = s.bytes("a.weight").unwrap();
        assert_eq!(first.len(), 12);
        assert_eq!(first.as_ptr(), s.bytes("a.weight").unwrap().as_ptr());
        let big = SynthSource::new(1, DType::BF16, vec![("w".into(), vec![3, TASK])]);
        let mut want = vec![0; 6 * TASK];
        big.synth("w").unwrap().fill(DType::BF16, 0, &mut want);
        assert!(big.bytes("w").unwrap() == want);
        let message = s.bytes("c").unwrap_err().to_string();
        assert_eq!(message, "c: no such tensor in the synthetic weights (seed 1, f16)");
    }
}
