//! The next token: the most likely one, or a drawn one.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::{Case, CpuIo, Fill, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};
pub(crate) use cpu::arg_max_rows;

/// Index of the largest logit of every row among the first `limit`; the lowest index where several are largest. NaN
/// loses to everything.
///
/// ins: logits `[T, V]`; outs: ids u32 `[T]`.
#[derive(Clone, PartialEq, Debug)]
pub struct ArgMax {
    pub limit: u32,
}

/// Draws a token of every row among the first `limit` by [`SampleParams`].
///
/// In the order of transformers: repetition penalty on ids that `seen` counts, temperature (0: the largest logit
/// wins and nothing is drawn), top-k, top-p, and a draw by inverse cumulative distribution in the order of ids.
///
/// The numbers are integers from the softmax on, so the result does not depend on the order of a sum and both
/// backends agree to the bit. With `z` the scaled logits, `d = max z - z` in f32, an id has
/// `q = floor(d · 2^26)` and the mass `2^40 e^(-q / 2^26)` (`mass`); ids with d >= 28 have none and never come.
/// Top-k keeps the ids whose q is at most that of the k-th smallest; top-p then keeps those whose q is at most the
/// smallest one that collects `top_p` of the mass. Ids that tie with the last one kept stay. The draw takes
/// the first id at which the running mass exceeds `u` of the total, `u` the 24 upper bits of
/// `mix(seed + row · 0xD1B54A32D192ED03 + (step.draw + 1) · 0x9E3779B97F4A7C15)`, the generator of the synthetic weights:
/// every row has random numbers of its own.
///
/// ins: logits `[T, V]`, seen state u32 `[T, V]` (or `[V]` of one row), params state u32 `[8]`; outs: tokens u32 `[T]`,
/// the state seen with the tokens counted, each in its row.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    pub limit: u32,
}

/// What the state `params` of [`Sample`] holds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SampleParams {
    /// 0: greedy.
    pub temperature: f32,
    /// 1 and above: off.
    pub top_p: f32,
    /// 1: off. Anything not above 0 counts as 1.
    pub repetition_penalty: f32,
    /// 0: off.
    pub top_k: u32,
    pub seed: u64,
}

impl Default for SampleParams {
    fn default() -> Self {
        SampleParams { temperature: 0.0, top_p: 1.0, repetition_penalty: 1.0, top_k: 0, seed: 0 }
    }
}

impl SampleParams {
    /// `[temperature, top_p, repetition_penalty, top_k, seed low, seed high, 0, 0]`, floats as their bits.
    pub fn to_words(self) -> [u32; 8] {
        let bits = [self.temperature, self.top_p, self.repetition_penalty].map(f32::to_bits);
        [bits[0], bits[1], bits[2], self.top_k, self.seed as u32, (self.seed >> 32) as u32, 0, 0]
    }

    /// The first six words, see [`SampleParams::to_words`].
    pub fn from_words(w: &[u32; 8]) -> SampleParams {
        SampleParams {
            temperature: f32::from_bits(w[0]),
            top_p: f32::from_bits(w[1]),
            repetition_penalty: f32::from_bits(w[2]),
            top_k: w[3],
            seed: u64::from(w[4]) | u64::from(w[5]) << 32,
        }
    }
}

/// `2^40 e^(-q / 2^26)` for q < 28 · 2^26, in integers: relative error 2e-8 down to a mass of 2^25, 0 from
/// q = 27.7 · 2^26 on. `kernels/sample.cu` has the same lines.
pub(crate) fn mass(q: u32) -> u64 {
    const LOG2_E: u64 = 6_196_328_019; // · 2^32
    // (1 - 2^-f) / f by Chebyshev interpolation on [0, 1], 64 nodes, cut after degree 6; · 2^32, signs alternate.
    const C: [u64; 7] = [2_977_044_471, 1_031_764_940, 238_387_503, 41_304_524, 5_712_116, 639_548, 48_570];
    let t = u64::from(q) * LOG2_E; // d · log2(e) · 2^58
    let (n, f) = (t >> 58, t >> 26 & 0xffff_ffff);
    let sum = C.iter().rev().skip(1).fold(C[6], |sum, c| c - ((sum * f) >> 32));
    (((1 << 32) - ((sum * f) >> 32)) << 8) >> n
}

impl OpDef for ArgMax {
    const NAME: &'static str = "ArgMax";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x] if x.dtype.is_float() && x.cols() > 0 && self.limit > 0 => {
                Ok(vec![(DType::U32, Shape::new(&[x.rows()]))])
            }
            _ => Err(mismatch(Self::NAME, "logits [T, V] and a limit above 0", ins)),
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::arg_max(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let fill = Fill::Uniform { centre: 0.0, scale: 8.0 };
        let f32s = |t: usize, v: usize, limit: u32| {
            Case::new(format!("t{t}_v{v}_below{limit}"), ArgMax { limit }).act_f32(&[t, v], fill)
        };
        // Five values over thousands of ids: the lowest index decides.
        let ties = Case::new("ties_t3_v4099", ArgMax { limit: 4099 }).act_with(&[3, 4099], Fill::SmallInts);
        vec![
            f32s(1, 515, 515),
            f32s(17, 515, 500),
            f32s(3, 1, 1),
            f32s(200, 1025, 1024),
            ties,
            f32s(3, 151665, 151643),
            f32s(1, 151665, 151665).bench(),
        ]
    }
}

impl OpDef for Sample {
    const NAME: &'static str = "Sample";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, seen, params]
                if x.dtype.is_float()
                    && x.cols() > 0
                    && self.limit > 0
                    && (seen.dtype, seen.rows(), seen.cols()) == (DType::U32, x.rows(), x.cols())
                    && (params.dtype, params.shape.dims()) == (DType::U32, &[8]) =>
            {
                Ok(vec![(DType::U32, Shape::new(&[x.rows()])), (DType::U32, seen.shape)])
            }
            _ => Err(mismatch(
                Self::NAME,
                "logits [T, V], seen u32 [T, V], params u32 [8] and a limit above 0",
                ins,
            )),
        }
    }

    fn cost(&self, ins: &[&Desc], _: &[&Desc]) -> Cost {
        let n = ins[0].shape.len() as u64;
        let written_bytes = 8 * ins[0].rows() as u64;
        Cost { flops: 20 * n, read_bytes: ins[0].bytes() + ins[1].bytes(), written_bytes }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 1)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::sample(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        const ONE: u32 = 0x3f80_0000;
        const GREEDY: &[u32] = &[0, ONE, ONE, 0, 1, 2, 0, 0];
        const PLAIN: &[u32] = &[ONE, ONE, ONE, 0, 1, 2, 0, 0];
        // temperature 0.75, top_p 0.9, penalty 1.25, top_k 50
        const ALL: &[u32] = &[0x3f40_0000, 0x3f66_6666, 0x3fa0_0000, 50, 7, 0, 0, 0];
        const TOP_K: &[u32] = &[0x4000_0000, ONE, ONE, 3, 5, 0, 0, 0];
        const TOP_P: &[u32] = &[ONE, 0x3f00_0000, ONE, 0, 9, 9, 0, 0];
        let case = |name: &str, v: usize, params: &'static [u32], draw: usize| {
            Case::new(format!("{name}_v{v}_draw{draw}"), Sample { limit: v as u32 - 2 })
                .act_f32(&[1, v], Fill::Uniform { centre: 0.0, scale: 12.0 })
                .state_u32(&[v], Fill::Ids { limit: 2 })
                .state_u32(&[8], Fill::Words(params))
                .step(0, 1, draw)
        };
        let mut all = Vec::new();
        for (name, params) in
            [("greedy", GREEDY), ("plain", PLAIN), ("all", ALL), ("top_k", TOP_K), ("top_p", TOP_P)]
        {
            all.extend([(3, 0), (515, 1), (32768, 2), (151665, 3)].map(|(v, d)| case(name, v, params, d)));
        }
        let ties = Case::new("ties_v4099", Sample { limit: 4099 })
            .act_with(&[1, 4099], Fill::SmallInts)
            .state_u32(&[4099], Fill::Zero)
            .state_u32(&[8], Fill::Words(TOP_K))
            .step(0, 1, 4);
        all.push(ties);
        let rows = |name: &str, t: usize, v: usize, params: &'static [u32], draw: usize| {
            let one = case(name, v, params, draw);
            Case::new(format!("t{t}_{}", one.name), one.op)
                .act_f32(&[t, v], Fill::Uniform { centre: 0.0, scale: 12.0 })
                .state_u32(&[t, v], Fill::Ids { limit: 2 })
                .state_u32(&[8], Fill::Words(params))
                .step(0, 1, draw)
        };
        all.extend([
            rows("greedy", 2, 515, GREEDY, 1),
            rows("plain", 5, 3, PLAIN, 2),
            rows("all", 8, 32768, ALL, 3),
            rows("top_k", 3, 4099, TOP_K, 4),
            rows("top_p", 16, 151665, TOP_P, 5),
        ]);
        all.push(case("all", 151665, ALL, 9).bench());
        all.push(rows("all", 8, 151665, ALL, 9).bench());
        all
    }
}

#[cfg(test)]
mod tests;
