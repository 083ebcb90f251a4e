//! Rotary positions (Su et al. 2021) and the KV cache.
//!
//! Half-rotation as in Qwen2: element i of a head pairs with i + D/2. The angle is `position · theta^(-2i/D)`, both
//! factors rounded to f32 as the reference implementation has them, sine and cosine in full f32.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use super::{Case, CpuIo, Fill, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};
pub(crate) use cpu::rotate_and_append;

/// Rotates every head of every row; row t has position `step.pos + t`. One rounding.
///
/// ins: x `[T, heads · D]`; outs: y of the same.
#[derive(Clone, PartialEq, Debug)]
pub struct Rope {
    pub heads: usize,
    pub head_dim: usize,
    pub theta: f32,
}

/// Copies the first `step.valid_rows` rows of k and v to the cache, from row `step.pos` on. The cache holds
/// keys, then values, each `[G, S_max, D]`.
///
/// ins: k `[T, G · D]`, v `[T, G · D]`, kv state `[2, G, S_max, D]`; outs: the same state.
#[derive(Clone, PartialEq, Debug)]
pub struct KvAppend {
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// [`Rope`] on the q and k columns of a packed `q | k | v`, then [`KvAppend`] of k and v. Rotated keys are rounded
/// once, to the type of the cache. The columns of every head come in [pairs](`unpaired`), q and the cache are as
/// everywhere else.
///
/// ins: qkv `[T, (H + 2G) · D]`, kv state `[2, G, S_max, D]`; outs: q `[T, H · D]`, the same state.
#[derive(Clone, PartialEq, Debug)]
pub struct RopeKvAppend {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub theta: f32,
}

/// Cosine and sine of every angle of a run, in turn: row t has those of position `step.pos + t`, i of 0..D/2 in columns
/// 2i and 2i + 1.
///
/// ins: none; outs: `[rows, D]` f32.
#[derive(Clone, PartialEq, Debug)]
pub struct RopeTable {
    pub rows: usize,
    pub head_dim: usize,
    pub theta: f32,
}

/// Elements of the first and of the second half of a head stand in turn in blocks of this many where q, k and v come
/// from one product: what is turned together is then in one thread, in the first and the second half of a block of the
/// tensor cores (8 columns, or 8 and 8 rows).
pub(crate) const PAIR_BLOCK: usize = 8;

/// Which element of a head of `head_dim` stands in column `at` of its pairs.
pub(crate) fn unpaired(at: usize, head_dim: usize) -> usize {
    let (block, i) = (at / PAIR_BLOCK, at % PAIR_BLOCK);
    block / 2 * PAIR_BLOCK + block % 2 * (head_dim / 2) + i
}

/// Whether heads of `head_dim` are whole blocks of pairs.
pub(crate) fn has_pairs(head_dim: usize) -> bool {
    head_dim > 0 && head_dim.is_multiple_of(2 * PAIR_BLOCK)
}

/// `theta^(-2i/D)` for i in 0..D/2: exponent, power and reciprocal each rounded to f32.
pub(crate) fn inv_freq(head_dim: usize, theta: f32) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / (f64::from(theta).powf(f64::from(exponent)) as f32)
        })
        .collect()
}

/// Whether `kv` is a cache of `kv_heads` heads of `head_dim`.
pub(crate) fn is_cache(kv: &Desc, kv_heads: usize, head_dim: usize) -> bool {
    matches!(kv.shape.dims(), [2, g, _, d] if (*g, *d) == (kv_heads, head_dim))
}

impl OpDef for Rope {
    const NAME: &'static str = "Rope";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x] if self.head_dim.is_multiple_of(2) && x.cols() == self.heads * self.head_dim => {
                Ok(vec![(x.dtype, x.shape)])
            }
            _ => {
                let wants = format!("x [T, {} heads · {}], an even head dim", self.heads, self.head_dim);
                Err(mismatch(Self::NAME, &wants, ins))
            }
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        let flops = 3 * ins[0].shape.len() as u64;
        Cost { flops, read_bytes: ins[0].bytes(), written_bytes: outs[0].bytes() }
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::rope(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, heads: usize, head_dim: usize, pos: usize| {
            let op = Rope { heads, head_dim, theta: 1e6 };
            Case::new(format!("t{t}_h{heads}_d{head_dim}_at{pos}"), op)
                .act(&[t, heads * head_dim])
                .step(pos, t, 0)
        };
        vec![
            case(1, 7, 128, 0),
            case(17, 3, 64, 29983),
            case(5, 1, 16, 1000),
            case(3, 2, 256, 77),
            case(512, 28, 128, 0).bench(),
        ]
    }
}

impl OpDef for KvAppend {
    const NAME: &'static str = "KvAppend";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [k, v, kv]
                if k.shape == v.shape
                    && k.dtype == v.dtype
                    && k.dtype == kv.dtype
                    && k.cols() == self.kv_heads * self.head_dim
                    && is_cache(kv, self.kv_heads, self.head_dim) =>
            {
                Ok(vec![(kv.dtype, kv.shape)])
            }
            _ => {
                let (g, d) = (self.kv_heads, self.head_dim);
                let wants = format!("k, v [T, {g} · {d}], a cache [2, {g}, S_max, {d}], all of one type");
                Err(mismatch(Self::NAME, &wants, ins))
            }
        }
    }

    fn cost(&self, ins: &[&Desc], _: &[&Desc]) -> Cost {
        let bytes = ins[0].bytes() + ins[1].bytes();
        Cost { flops: 0, read_bytes: bytes, written_bytes: bytes }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(2, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::kv_append(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, valid: usize, (g, s, d): (usize, usize, usize), pos: usize| {
            Case::new(format!("t{t}_v{valid}_g{g}_s{s}_d{d}_at{pos}"), KvAppend { kv_heads: g, head_dim: d })
                .act(&[t, g * d])
                .act(&[t, g * d])
                .state(&[2, g, s, d], Fill::Uniform { centre: 0.0, scale: 1.0 })
                .step(pos, valid, 0)
        };
        vec![
            case(1, 1, (2, 7, 64), 6),
            case(17, 11, (1, 40, 128), 5),
            case(4, 0, (1, 8, 16), 0),
            case(512, 512, (4, 4096, 128), 0).bench(),
        ]
    }
}

impl OpDef for RopeKvAppend {
    const NAME: &'static str = "RopeKvAppend";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let (h, g, d) = (self.heads, self.kv_heads, self.head_dim);
        match ins {
            [qkv, kv]
                if has_pairs(d)
                    && qkv.cols() == (h + 2 * g) * d
                    && qkv.dtype == kv.dtype
                    && is_cache(kv, g, d) =>
            {
                Ok(vec![(qkv.dtype, qkv.shape.with_cols(h * d)), (kv.dtype, kv.shape)])
            }
            _ => {
                let wants = format!(
                    "qkv [T, ({h} + 2·{g}) · {d}] with {d} % 16 == 0, a cache [2, {g}, S_max, {d}] of the same type"
                );
                Err(mismatch(Self::NAME, &wants, ins))
            }
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        let kv = (2 * self.kv_heads * self.head_dim * ins[0].rows() * ins[0].dtype.bytes()) as u64;
        let rotated = (self.heads + self.kv_heads) * self.head_dim * ins[0].rows();
        Cost { flops: 3 * rotated as u64, read_bytes: ins[0].bytes(), written_bytes: outs[0].bytes() + kv }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 1)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::rope_kv_append(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, valid: usize, (h, g, d): (usize, usize, usize), s: usize, pos: usize| {
            let op = RopeKvAppend { heads: h, kv_heads: g, head_dim: d, theta: 1e6 };
            Case::new(format!("t{t}_v{valid}_h{h}_g{g}_d{d}_s{s}_at{pos}"), op)
                .act(&[t, (h + 2 * g) * d])
                .state(&[2, g, s, d], Fill::Uniform { centre: 0.0, scale: 1.0 })
                .step(pos, valid, 0)
        };
        vec![
            case(1, 1, (7, 1, 128), 33, 32),
            case(17, 11, (7, 1, 128), 64, 9),
            case(3, 3, (4, 2, 64), 30001, 29998),
            case(2, 0, (2, 2, 16), 8, 3),
            case(1, 1, (28, 4, 128), 4096, 511).bench(),
            case(512, 512, (28, 4, 128), 4096, 0).bench(),
            case(2048, 2048, (28, 4, 128), 4096, 0).bench(),
        ]
    }
}

impl OpDef for RopeTable {
    const NAME: &'static str = "RopeTable";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [] if self.head_dim.is_multiple_of(2) => {
                Ok(vec![(DType::F32, Shape::new(&[self.rows, self.head_dim]))])
            }
            _ => Err(mismatch(Self::NAME, "no inputs, an even head dim", ins)),
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::rope_table(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |rows: usize, head_dim: usize, pos: usize| {
            let op = RopeTable { rows, head_dim, theta: 1e6 };
            Case::new(format!("t{rows}_d{head_dim}_at{pos}"), op).step(pos, rows, 0)
        };
        vec![
            case(1, 16, 0),
            case(17, 128, 29983),
            case(3, 256, 77),
            case(128, 128, 0).bench(),
            case(2048, 128, 0).bench(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Step;
    use crate::ops::testing::{floats, run};

    #[test]
    fn rotation_turns_pairs_by_the_angle() {
        let op = Rope { heads: 1, head_dim: 4, theta: 10000.0 };
        let x = floats("x", &[1, 4], &[1.0, 0.0, 0.0, 1.0]);
        let y = run(op, Step::rows(3, 1, 0), vec![x]).unwrap();
        let (a, b) = (3.0f32, 3.0f32 * 0.01);
        let want = [a.cos(), -b.sin(), a.sin(), b.cos()];
        for (got, want) in y[0].f32s().iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} != {want}");
        }
    }

    #[test]
    fn only_valid_rows_reach_the_cache() {
        let op = KvAppend { kv_heads: 2, head_dim: 1 };
        let k = floats("k", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let v = floats("v", &[3, 2], &[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]);
        let kv = || floats("kv", &[2, 2, 4, 1], &[9.0; 16]);
        let out = run(op.clone(), Step::rows(1, 2, 0), vec![k.clone(), v.clone(), kv()]).unwrap();
        let want = [9., 1., 3., 9., 9., 2., 4., 9., 9., -1., -3., 9., 9., -2., -4., 9.];
        assert_eq!(out[0].f32s(), want);

        let message = run(op, Step::rows(3, 2, 0), vec![k, v, kv()]).unwrap_err().to_string();
        assert_eq!(message, "kv: rows 3..5 do not fit in a cache of 4 rows");
    }

    #[test]
    fn packed_agrees_with_its_parts() {
        let (h, g, d, t, s) = (3, 1, 32, 4, 9);
        let columns = (h + 2 * g) * d;
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 25.0;
        let packed: Vec<f32> = (0..t * columns).map(value).collect();
        let part = |from: usize, n: usize| {
            packed
                .chunks(columns)
                .flat_map(|row| row[from * d..(from + n) * d].to_vec())
                .collect::<Vec<f32>>()
        };
        let step = Step::rows(5, 3, 0);
        let rope = |heads| Rope { heads, head_dim: d, theta: 1e6 };
        let kv = floats("kv", &[2, g, s, d], &vec![0.5; 2 * g * s * d]);

        let q = run(rope(h), step, vec![floats("q", &[t, h * d], &part(0, h))]).unwrap();
        let k = run(rope(g), step, vec![floats("k", &[t, g * d], &part(h, g))]).unwrap();
        let (k, v) = (floats("k", &[t, g * d], k[0].f32s()), floats("v", &[t, g * d], &part(h + g, g)));
        let append = KvAppend { kv_heads: g, head_dim: d };
        let cache = run(append, step, vec![k, v, kv.clone()]).unwrap();

        let op = RopeKvAppend { heads: h, kv_heads: g, head_dim: d, theta: 1e6 };
        let paired: Vec<f32> = packed
            .chunks(d)
            .flat_map(|head| (0..d).map(|at| head[unpaired(at, d)]).collect::<Vec<_>>())
            .collect();
        let fused = run(op, step, vec![floats("qkv", &[t, columns], &paired), kv]).unwrap();
        assert_eq!((&fused[0], &fused[1]), (&q[0], &cache[0]));
    }

    #[test]
    fn pairs_are_blocks_of_both_halves_in_turn() {
        let order: Vec<usize> = (0..32).map(|at| unpaired(at, 32)).collect();
        let blocks = [0, 16, 8, 24].map(|first| (first..first + 8).collect::<Vec<_>>());
        assert_eq!(order, blocks.concat());
        assert!(has_pairs(16) && has_pairs(80) && !has_pairs(8) && !has_pairs(24) && !has_pairs(0));
    }

    #[test]
    fn a_table_turns_as_rotation_does() {
        let (t, d) = (3, 16);
        let step = Step::rows(1000, t, 0);
        let x: Vec<f32> = (0..t * d).map(|i| (i * 29 % 31) as f32 - 15.0).collect();
        let table = run(RopeTable { rows: t, head_dim: d, theta: 1e4 }, step, vec![]).unwrap();
        let turned = run(Rope { heads: 1, head_dim: d, theta: 1e4 }, step, vec![floats("x", &[t, d], &x)]);
        let turned = turned.unwrap();
        for row in 0..t {
            for i in 0..d / 2 {
                let at = row * d;
                let (cos, sin) = (table[0].f32s()[at + 2 * i], table[0].f32s()[at + 2 * i + 1]);
                let (a, b) = (x[at + i], x[at + i + d / 2]);
                assert_eq!(turned[0].f32s()[at + i], a * cos - b * sin);
                assert_eq!(turned[0].f32s()[at + i + d / 2], b * cos + a * sin);
            }
        }
    }

    #[test]
    fn frequencies_are_rounded_like_the_reference() {
        let f = inv_freq(128, 1e6);
        assert_eq!((f.len(), f[0]), (64, 1.0));
        assert_eq!(f[32], 1.0 / 1000.0);
        assert!((f[63] / 1.240_937_8e-6 - 1.0).abs() < 1e-6, "{}", f[63]);
    }
}
