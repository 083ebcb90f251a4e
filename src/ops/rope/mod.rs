//! Rotary positions (Su et al. 2021) and the KV cache.
//!
//! Half-rotation as in Qwen2: element i of a head pairs with i + D/2. The angle is `position · theta^(-2i/D)`, both
//! factors rounded to f32 as the reference implementation has them, sine and cosine in full f32.
//!
//! The T rows of an op are those of `sequences` sequences, T / `sequences` of each, one sequence after the other. All are
//! equally long, so one [`Step`](crate::core::Step) does: row t is row `t % (T / sequences)` of its sequence's run, and
//! `valid_rows` of each hold tokens. In a cache of B sequences the heads of sequence b are `b·G..(b + 1)·G`.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use super::{Case, CpuIo, Fill, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};
pub(crate) use cpu::rotate_and_append;

/// Rotates every head of every row; row t of a sequence has position `step.pos + t`. One rounding.
///
/// ins: x `[T, heads · D]`; outs: y of the same.
#[derive(Clone, PartialEq, Debug)]
pub struct Rope {
    pub heads: usize,
    pub head_dim: usize,
    pub theta: f32,
    pub sequences: usize,
}

/// Copies the first `step.valid_rows` rows of k and v of every sequence to its part of the cache, from row `step.pos` on.
/// The cache holds keys, then values, each `[B·G, S_max, D]`.
///
/// ins: k `[T, G · D]`, v `[T, G · D]`, kv state `[2, B·G, S_max, D]`; outs: the same state.
#[derive(Clone, PartialEq, Debug)]
pub struct KvAppend {
    pub kv_heads: usize,
    pub head_dim: usize,
    pub sequences: usize,
}

/// [`Rope`] on the q and k columns of a packed `q | k | v`, then [`KvAppend`] of k and v. Rotated keys are rounded
/// once, to the type of the cache. The columns of every head come in pairs, blocks of 8 of both halves in turn; q and the
/// cache are as everywhere else.
///
/// ins: qkv `[T, (H + 2G) · D]`, kv state `[2, B·G, S_max, D]`; outs: q `[T, H · D]`, the same state.
#[derive(Clone, PartialEq, Debug)]
pub struct RopeKvAppend {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub theta: f32,
    pub sequences: usize,
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

/// What an op of several sequences wants besides, for messages.
pub(crate) fn shares(sequences: usize) -> String {
    if sequences == 1 { String::new() } else { format!(", T % {sequences} sequences = 0") }
}

/// Whether `rows` rows are those of `sequences` sequences, equally many of each.
pub(crate) fn shared_out(rows: usize, sequences: usize) -> bool {
    sequences > 0 && rows.is_multiple_of(sequences)
}

impl OpDef for Rope {
    const NAME: &'static str = "Rope";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x] if self.head_dim.is_multiple_of(2)
                && x.cols() == self.heads * self.head_dim
                && shared_out(x.rows(), self.sequences) =>
            {
                Ok(vec![(x.dtype, x.shape)])
            }
            _ => {
                let (heads, d, more) = (self.heads, self.head_dim, shares(self.sequences));
                let wants = format!("x [T, {heads} heads · {d}], an even head dim{more}");
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
            let op = Rope { heads, head_dim, theta: 1e6, sequences: 1 };
            Case::new(format!("t{t}_h{heads}_d{head_dim}_at{pos}"), op)
                .act(&[t, heads * head_dim])
                .step(pos, t, 0)
        };
        let batch = |sequences: usize, t: usize, heads: usize, head_dim: usize, pos: usize| {
            let one = case(sequences * t, heads, head_dim, pos);
            let op = Rope { sequences, ..one.op };
            Case { name: format!("b{sequences}_{}", one.name), op, ..one }.step(pos, t, 0)
        };
        vec![
            case(1, 7, 128, 0),
            case(17, 3, 64, 29983),
            case(5, 1, 16, 1000),
            case(3, 2, 256, 77),
            batch(2, 1, 7, 128, 29983),
            batch(5, 3, 2, 64, 1000),
            batch(16, 1, 28, 128, 511),
            batch(3, 40, 3, 16, 7),
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
                    && shared_out(k.rows(), self.sequences)
                    && is_cache(kv, self.sequences * self.kv_heads, self.head_dim) =>
            {
                Ok(vec![(kv.dtype, kv.shape)])
            }
            _ => {
                let (g, d, all) = (self.kv_heads, self.head_dim, self.sequences * self.kv_heads);
                let more = shares(self.sequences);
                let wants =
                    format!("k, v [T, {g} · {d}], a cache [2, {all}, S_max, {d}], all of one type{more}");
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
            append_case(1, (t, valid), (g, s, d), pos)
        };
        vec![
            append_case(2, (1, 1), (1, 5, 16), 4),
            append_case(5, (3, 2), (2, 9, 64), 6),
            append_case(8, (1, 0), (2, 9, 64), 6),
            append_case(16, (1, 1), (4, 512, 128), 511),
            case(1, 1, (2, 7, 64), 6),
            case(17, 11, (1, 40, 128), 5),
            case(4, 0, (1, 8, 16), 0),
            case(512, 512, (4, 4096, 128), 0).bench(),
        ]
    }
}

/// `t` rows of each of `sequences` sequences, of which `valid` hold tokens.
fn append_case(
    sequences: usize,
    (t, valid): (usize, usize),
    (g, s, d): (usize, usize, usize),
    pos: usize,
) -> Case<KvAppend> {
    let op = KvAppend { kv_heads: g, head_dim: d, sequences };
    let name = format!("{}t{t}_v{valid}_g{g}_s{s}_d{d}_at{pos}", batch_name(sequences));
    Case::new(name, op)
        .act(&[sequences * t, g * d])
        .act(&[sequences * t, g * d])
        .state(&[2, sequences * g, s, d], Fill::Uniform { centre: 0.0, scale: 1.0 })
        .step(pos, valid, 0)
}

/// What the name of a case of several sequences begins with.
pub(crate) fn batch_name(sequences: usize) -> String {
    if sequences > 1 { format!("b{sequences}_") } else { String::new() }
}

impl OpDef for RopeKvAppend {
    const NAME: &'static str = "RopeKvAppend";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let (h, g, d, b) = (self.heads, self.kv_heads, self.head_dim, self.sequences);
        match ins {
            [qkv, kv]
                if has_pairs(d)
                    && qkv.cols() == (h + 2 * g) * d
                    && qkv.dtype == kv.dtype
                    && shared_out(qkv.rows(), b)
                    && is_cache(kv, b * g, d) =>
            {
                Ok(vec![(qkv.dtype, qkv.shape.with_cols(h * d)), (kv.dtype, kv.shape)])
            }
            _ => {
                let wants = format!(
                    "qkv [T, ({h} + 2·{g}) · {d}] with {d} % 16 == 0, a cache [2, {}, S_max, {d}] of the same type{}",
                    b * g,
                    shares(b)
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
        let batch =
            |b: usize, (t, valid): (usize, usize), (h, g, d): (usize, usize, usize), s: usize, pos| {
                let op = RopeKvAppend { heads: h, kv_heads: g, head_dim: d, theta: 1e6, sequences: b };
                Case::new(format!("{}t{t}_v{valid}_h{h}_g{g}_d{d}_s{s}_at{pos}", batch_name(b)), op)
                    .act(&[b * t, (h + 2 * g) * d])
                    .state(&[2, b * g, s, d], Fill::Uniform { centre: 0.0, scale: 1.0 })
                    .step(pos, valid, 0)
            };
        let case = |t, valid, heads, s, pos| batch(1, (t, valid), heads, s, pos);
        vec![
            batch(2, (1, 1), (7, 1, 128), 33, 32),
            batch(3, (2, 1), (2, 2, 16), 8, 3),
            batch(5, (1, 0), (4, 2, 64), 40, 9),
            batch(8, (1, 1), (28, 4, 128), 512, 511),
            batch(4, (20, 17), (7, 1, 128), 64, 9),
            batch(16, (1, 1), (28, 4, 128), 512, 500).bench(),
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
        let op = Rope { heads: 1, head_dim: 4, theta: 10000.0, sequences: 1 };
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
        let op = KvAppend { kv_heads: 2, head_dim: 1, sequences: 1 };
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
        let rope = |heads| Rope { heads, head_dim: d, theta: 1e6, sequences: 1 };
        let kv = floats("kv", &[2, g, s, d], &vec![0.5; 2 * g * s * d]);

        let q = run(rope(h), step, vec![floats("q", &[t, h * d], &part(0, h))]).unwrap();
        let k = run(rope(g), step, vec![floats("k", &[t, g * d], &part(h, g))]).unwrap();
        let (k, v) = (floats("k", &[t, g * d], k[0].f32s()), floats("v", &[t, g * d], &part(h + g, g)));
        let append = KvAppend { kv_heads: g, head_dim: d, sequences: 1 };
        let cache = run(append, step, vec![k, v, kv.clone()]).unwrap();

        let op = RopeKvAppend { heads: h, kv_heads: g, head_dim: d, theta: 1e6, sequences: 1 };
        let paired: Vec<f32> = packed
            .chunks(d)
            .flat_map(|head| (0..d).map(|at| head[unpaired(at, d)]).collect::<Vec<_>>())
            .collect();
        let fused = run(op, step, vec![floats("qkv", &[t, columns], &paired), kv]).unwrap();
        assert_eq!((&fused[0], &fused[1]), (&q[0], &cache[0]));
    }

    /// Three sequences with two rows each, of which one or both hold tokens, and each sequence by itself.
    #[test]
    fn a_batch_is_its_sequences_one_by_one() {
        let (b, t, h, g, d, s) = (3, 2, 3, 2, 16, 9);
        let columns = (h + 2 * g) * d;
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 25.0;
        let packed: Vec<f32> = (0..b * t * columns).map(value).collect();
        let held: Vec<f32> = (0..2 * b * g * s * d).map(|i| 100.0 + i as f32).collect();
        let op = |sequences| RopeKvAppend { heads: h, kv_heads: g, head_dim: d, theta: 1e6, sequences };
        for valid in [1, 2] {
            let step = Step::rows(5, valid, 0);
            let kv = floats("kv", &[2, b * g, s, d], &held);
            let all = run(op(b), step, vec![floats("qkv", &[b * t, columns], &packed), kv]).unwrap();
            let (q, cache) = (all[0].f32s(), all[1].f32s());
            for n in 0..b {
                // Keys, then values: in each, the heads of one sequence lie together.
                let of_n = |all: &[f32]| -> Vec<f32> {
                    let len = g * s * d;
                    [&all[n * len..][..len], &all[(b + n) * len..][..len]].concat()
                };
                let rows = &packed[n * t * columns..][..t * columns];
                let kv = floats("kv", &[2, g, s, d], &of_n(&held));
                let one = run(op(1), step, vec![floats("qkv", &[t, columns], rows), kv]).unwrap();
                assert_eq!(q[n * t * h * d..][..t * h * d], *one[0].f32s(), "q of sequence {n}");
                assert_eq!(of_n(cache), one[1].f32s(), "cache of sequence {n}");
            }
            // Rows 5 and, where it holds a token, 6 of every head were written, no other.
            let written = cache.iter().zip(&held).filter(|(x, y)| x != y).count();
            assert_eq!(written, 2 * b * g * valid * d);
        }
        let (qkv, kv) = (floats("qkv", &[6, columns], &packed), floats("kv", &[2, 8, s, d], &[0.0; 2304]));
        let message = op(4).infer(&[&qkv.0, &kv.0]).unwrap_err().to_string();
        assert!(
            message.contains("a cache [2, 8, S_max, 16] of the same type, T % 4 sequences = 0"),
            "{message}"
        );
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
        let turned = run(
            Rope { heads: 1, head_dim: d, theta: 1e4, sequences: 1 },
            step,
            vec![floats("x", &[t, d], &x)],
        );
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
