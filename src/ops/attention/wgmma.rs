//! Tiles of `attention/wgmma.cu` and `wgmma_d64.cu`: a pure choice, tested without a GPU.

use super::{Attention, Batch, Mask, Source};

/// Tiles of `attention/wgmma.cu` and `wgmma_d64.cu`, as `Flash` of their header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WgmmaTile {
    /// Part of a kernel symbol.
    pub name: &'static str,
    pub head_dim: usize,
    /// Warpgroups of 64 query rows.
    pub consumers: usize,
    /// Keys of a tile of K or V.
    pub keys: usize,
    /// Tiles in the ring.
    pub stages: usize,
    /// The bias of a key is one more step of the first product.
    pub bias: bool,
    /// CTAs of a cluster, which share the keys of a tile of rows: 1 or 2.
    pub sharing: usize,
    /// Sequences have whole tiles and one row, which stands apart as a key and as a query.
    pub apart: bool,
}

/// The smallest scale of an attention with a bias that the kernel takes: with it biases below 2^66 are divided as they
/// are (`unscaled` there).
pub(super) const SMALLEST_SCALE: f32 = 1.0 / (1u64 << 60) as f32;

/// Tiles of the ring of biases, and bytes of its other operand: ones.
const BIAS_STAGES: usize = 4;
const ONES_BYTES: usize = 64 * 32;
/// At head dim 64, 16 rows of ones that stand beside V.
const SUMS_BYTES: usize = 16 * 128;

impl WgmmaTile {
    const fn new(name: &'static str, head_dim: usize, [consumers, keys, stages]: [usize; 3]) -> WgmmaTile {
        WgmmaTile { name, head_dim, consumers, keys, stages, bias: false, sharing: 1, apart: false }
    }

    const fn with_bias(name: &'static str, head_dim: usize, sizes: [usize; 3]) -> WgmmaTile {
        WgmmaTile { bias: true, ..WgmmaTile::new(name, head_dim, sizes) }
    }

    const fn pair(name: &'static str, head_dim: usize, sizes: [usize; 3]) -> WgmmaTile {
        WgmmaTile { sharing: 2, ..WgmmaTile::with_bias(name, head_dim, sizes) }
    }

    const D64: [WgmmaTile; 2] =
        [WgmmaTile::new("_d64_c2", 64, [2, 128, 8]), WgmmaTile::new("_d64_c3", 64, [3, 80, 8])];
    const D64_APART: WgmmaTile =
        WgmmaTile { apart: true, ..WgmmaTile::new("_d64_c2_apart", 64, [2, 128, 8]) };
    const D64_BIAS: WgmmaTile = WgmmaTile::with_bias("_d64_c1_bias", 64, [1, 128, 5]);
    const D64_BIAS_PAIRS: [WgmmaTile; 2] = [
        WgmmaTile::pair("_d64_c1_bias_pair", 64, [1, 128, 4]),
        WgmmaTile::pair("_d64_c3_bias_pair", 64, [3, 80, 8]),
    ];
    const D128: WgmmaTile = WgmmaTile::new("_d128_c2", 128, [2, 128, 5]);
    const D128_BIAS: WgmmaTile = WgmmaTile::with_bias("_d128_c2_bias", 128, [2, 128, 5]);

    /// For `t` rows in all. At head dim 64 a tile of 128 rows takes two thirds of the time of one of 192, and is
    /// better where the rounds on the SMs come out so.
    pub fn choose(op: &Attention, t: usize, sm_count: usize) -> WgmmaTile {
        let time = |tile: &WgmmaTile| tile.tiles(op, t).div_ceil(sm_count) * tile.consumers;
        let better = |[small, large]: [WgmmaTile; 2]| if time(&small) < time(&large) { small } else { large };
        match (op.head_dim, op.bias) {
            (64, false) if Self::D64_APART.suits(op, t, sm_count) => Self::D64_APART,
            (64, false) => better(Self::D64),
            (64, true) => Self::with_bias_for(op, t, sm_count),
            (_, false) => Self::D128,
            (_, true) => Self::D128_BIAS,
        }
    }

    /// Whether every sequence has whole tiles and one row, and there is an SM for each tile: a CTA has one, and attends the row
    /// that stands apart against as many keys.
    fn suits(&self, op: &Attention, t: usize, sm_count: usize) -> bool {
        let equal = matches!(op.batch, Batch::Equal(_)) && !matches!(op.source, Source::Cache { .. });
        let one_more = |rows: usize| rows > self.rows() && rows % self.rows() == 1;
        let rows = op.batch.rows(t);
        equal && op.mask == Mask::Full && rows.into_iter().all(one_more) && self.tiles(op, t) <= sm_count
    }

    /// Two CTAs share the keys of 64 rows, or of 192, where all of them run at once; between the two there is a CTA for 64
    /// rows. Of 16 heads on an H200, 249 rows take 4.7 us with the first and 749 rows 9.2 with the second (5.3 and 11.1 before
    /// maxima and sums went, where a CTA for 64 rows took 6.0 and 12.2).
    fn with_bias_for(op: &Attention, t: usize, sm_count: usize) -> WgmmaTile {
        let [short, long] = Self::D64_BIAS_PAIRS;
        let at_once = |tile: WgmmaTile| tile.tiles(op, t) * tile.sharing <= sm_count;
        [short, Self::D64_BIAS, long].into_iter().find(|tile| at_once(*tile)).unwrap_or(Self::D64_BIAS)
    }

    /// Part of the symbol for `op`. Rows behind the end of a sequence are padding in a cache, and another's among sequences of
    /// different lengths: for these head dim 64 has instances of its own.
    pub fn variant(&self, op: &Attention) -> String {
        let ragged = matches!(op.source, Source::Cache { .. }) || matches!(op.batch, Batch::Lengths(_));
        format!("{}{}", self.name, if ragged && self.head_dim == 64 { "_ragged" } else { "" })
    }

    /// Query rows.
    pub fn rows(&self) -> usize {
        64 * self.consumers
    }

    /// Those of all heads and sequences.
    fn tiles(&self, op: &Attention, t: usize) -> usize {
        op.tiles(t, self.rows()) - self.queries_apart(op)
    }

    /// Queries that stand apart, one of each head and sequence.
    pub fn queries_apart(&self, op: &Attention) -> usize {
        if self.apart { op.heads * op.batch.sequences() } else { 0 }
    }

    /// Bytes of scratch for them: of every CTA three parts of D sums, a reference and a part of l.
    pub fn parts_bytes(&self, op: &Attention, t: usize) -> usize {
        if self.apart { 3 * self.tiles(op, t) * (self.head_dim + 2) * 4 } else { 0 }
    }

    /// CTAs on an SM at once.
    fn ctas_per_sm(&self) -> usize {
        if self.consumers == 1 { 2 } else { 1 }
    }

    /// Dynamic shared memory: Q, the ring, the key that stands apart and its value, ones, biases, and slack to align them to
    /// 1 KiB.
    pub fn smem_bytes(&self) -> usize {
        let bias = if self.bias { ONES_BYTES + BIAS_STAGES * self.keys * 32 } else { 0 };
        let sums = if self.head_dim == 64 { SUMS_BYTES } else { 0 };
        // What 128 threads get of a row of each: D / 4 sums, a reference, a part of l.
        let traded = (self.sharing - 1) * self.consumers * 128 * (self.head_dim / 4 + 2) * 4;
        let last = if self.apart { 2 * 16 * 128 } else { 0 };
        let tiles = (self.consumers * 64 + self.stages * self.keys) * self.head_dim * 2;
        1024 + tiles + last + sums + bias + traded
    }

    /// CTAs to launch: as many as run at once, each takes its share of the tiles; of those that share keys all.
    pub fn ctas(&self, op: &Attention, t: usize, sm_count: usize) -> usize {
        let tiles = self.tiles(op, t);
        if self.sharing > 1 { tiles * self.sharing } else { tiles.min(sm_count * self.ctas_per_sm()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::Mask;
    use crate::ops::attention::choose::Launches;
    use crate::ops::{Case, OpDef};

    const SMS: usize = 132;

    fn attention(heads: usize, kv_heads: usize, head_dim: usize, batch: usize, bias: bool) -> Attention {
        let (mask, source, batch) = (Mask::Full, Source::Packed, Batch::Equal(batch));
        Attention { heads, kv_heads, head_dim, scale: 0.1, mask, source, batch, bias }
    }

    fn lengths(heads: usize, head_dim: usize, lengths: &[usize], bias: bool) -> Attention {
        let batch = Batch::Lengths(lengths.to_vec());
        Attention { batch, ..attention(heads, heads, head_dim, 1, bias) }
    }

    #[test]
    fn wgmma_tiles_fit_on_an_sm_and_fill_the_gpu() {
        let vit = |batch| attention(16, 16, 64, batch, false);
        let audio = || attention(16, 16, 64, 1, true);
        let lm = || attention(28, 4, 128, 1, false);
        for (op, rows, name, ctas) in [
            (vit(1), 249, "_d64_c2", 32),
            (vit(1), 749, "_d64_c2", 96),
            (vit(1), 1024, "_d64_c2", 128),
            (vit(1), 1025, "_d64_c2_apart", 128),
            (vit(1), 1026, "_d64_c3", 96),
            (vit(1), 1153, "_d64_c3", 112),
            (vit(4), 257, "_d64_c2_apart", 128),
            (vit(1), 129, "_d64_c2_apart", 16),
            (vit(1), 1, "_d64_c2", 16),
            (vit(4), 1025, "_d64_c3", SMS),
            (vit(13), 1025, "_d64_c3", SMS),
            (audio(), 249, "_d64_c1_bias_pair", 128),
            (audio(), 264, "_d64_c1_bias", 80),
            (audio(), 512, "_d64_c1_bias", 128),
            (audio(), 528, "_d64_c3_bias_pair", 96),
            (audio(), 749, "_d64_c3_bias_pair", 128),
            (audio(), 1500, "_d64_c1_bias", 2 * SMS),
            (attention(4, 4, 64, 33, true), 250, "_d64_c1_bias", 2 * SMS),
            (attention(2, 2, 128, 1, true), 70, "_d128_c2_bias", 2),
            (lm(), 512, "_d128_c2", 112),
            (lm(), 4096, "_d128_c2", SMS),
            // 12, 4 and 2 tiles of 64 rows, or 4, 2 and 1 of 192; 4 and 2, or 2 and 1; 8, 16 and 32 of 128.
            (lengths(16, 64, &[749, 249, 125], true), 1123, "_d64_c1_bias", 2 * SMS),
            (lengths(16, 64, &[249, 125], true), 374, "_d64_c1_bias", 96),
            (lengths(16, 64, &[300, 249], true), 549, "_d64_c3_bias_pair", 128),
            (lengths(4, 64, &[249, 0, 125], true), 374, "_d64_c1_bias_pair", 48),
            (lengths(28, 128, &[1000, 2000, 4096], false), 7096, "_d128_c2", SMS),
        ] {
            let t = if let Batch::Equal(n) = op.batch { n * rows } else { rows };
            let tile = WgmmaTile::choose(&op, t, SMS);
            assert_eq!((tile.name, tile.ctas(&op, t, SMS)), (name, ctas), "{rows}: {tile:?}");
            assert_eq!(op.bias, tile.bias);
        }
        let all = WgmmaTile::D64.iter().chain(&WgmmaTile::D64_BIAS_PAIRS);
        for tile in
            all.chain([&WgmmaTile::D64_APART, &WgmmaTile::D64_BIAS, &WgmmaTile::D128, &WgmmaTile::D128_BIAS])
        {
            // Barriers, and the 1 KiB that every resident CTA costs.
            let bytes = (tile.smem_bytes() + 256 + 1024) * tile.ctas_per_sm();
            assert!(bytes <= 228 << 10, "{tile:?}");
        }
    }

    #[test]
    fn rows_apart_have_room_for_their_parts() {
        let op = attention(16, 16, 64, 2, false);
        let of = |rows: usize| {
            let tile = WgmmaTile::choose(&op, 2 * rows, SMS);
            (tile.queries_apart(&op), tile.parts_bytes(&op, 2 * rows))
        };
        // 32 queries, each with three parts of 66 numbers from each of 4 tiles.
        assert_eq!(of(513), (32, 32 * 4 * 3 * 66 * 4));
        assert_eq!(of(514), (0, 0));
    }

    #[test]
    fn rows_behind_an_end_have_instances_of_their_own() {
        let variant = |op: &Attention| WgmmaTile::choose(op, 749, SMS).variant(op);
        assert_eq!(variant(&attention(16, 16, 64, 1, false)), "_d64_c2");
        assert_eq!(variant(&lengths(16, 64, &[500, 249], false)), "_d64_c2_ragged");
        assert_eq!(variant(&lengths(4, 64, &[500, 249], true)), "_d64_c1_bias_pair_ragged");
        let cache = |head_dim| {
            let source = Source::Cache { kv_bucket: 1024 };
            Attention { mask: Mask::Causal, source, ..attention(16, 4, head_dim, 1, false) }
        };
        assert_eq!((variant(&cache(64)), variant(&cache(128))), ("_d64_c2_ragged".into(), "_d128_c2".into()));
    }

    /// Names by which the launcher asks for kernels, in the images of a crate that has any for Hopper.
    #[cfg(feature = "cuda")]
    #[test]
    fn every_tile_has_its_kernels() {
        let files = ["attention/wgmma", "attention/wgmma_d64"];
        let images = crate::gpu::embedded::images().iter();
        let images: Vec<_> = images.filter(|i| i.arch == "90a" && files.contains(&i.file)).collect();
        let whole = attention(4, 4, 64, 1, false);
        let parted = lengths(4, 64, &[2, 1], false);
        let ragged = WgmmaTile::D64.iter().chain(&WgmmaTile::D64_BIAS_PAIRS);
        let ragged = ragged.chain([&WgmmaTile::D64_BIAS, &WgmmaTile::D128, &WgmmaTile::D128_BIAS]);
        let variants = ragged.flat_map(|tile| [tile.variant(&whole), tile.variant(&parted)]);
        for variant in variants.chain([WgmmaTile::D64_APART.variant(&whole)]) {
            for dtype in ["bf16", "f16"] {
                let section = format!("\0.text.flash_wgmma{variant}_{dtype}\0");
                let has = |bytes: &[u8]| bytes.windows(section.len()).any(|w| w == section.as_bytes());
                assert!(images.is_empty() || images.iter().any(|image| has(image.bytes)), "{section:?}");
            }
        }
    }

    #[test]
    fn ragged_cases_reach_every_tile_with_a_bias() {
        let cases = Attention::cases();
        let [short, long] = WgmmaTile::D64_BIAS_PAIRS;
        for tile in [short, WgmmaTile::D64_BIAS, long] {
            for chunks in [false, true] {
                let reach = |case: &Case<Attention>| {
                    let op = &case.op;
                    let masked = matches!(op.mask, Mask::Chunk { .. });
                    let fits = !case.bench && op.bias && op.head_dim == 64 && masked == chunks;
                    fits && WgmmaTile::choose(op, case.ins[0].shape[0], SMS) == tile
                };
                let count = cases.iter().filter(|case| reach(case)).count();
                assert!(count > 0, "no case, chunks {chunks}: {tile:?}");
            }
        }
    }

    /// With every mask, and where a CTA takes one tile or several.
    #[test]
    fn cases_of_lengths_reach_every_tile() {
        let cases = Attention::cases();
        let [c2, c3] = WgmmaTile::D64;
        let [short, long] = WgmmaTile::D64_BIAS_PAIRS;
        let without = [c2, c3, WgmmaTile::D128].map(|tile| (tile, Mask::Causal));
        let with = [short, WgmmaTile::D64_BIAS, long, WgmmaTile::D128_BIAS].map(|tile| (tile, Mask::Full));
        for (tile, mask) in without.into_iter().chain(with) {
            let reach = |case: &&Case<Attention>| {
                let op = &case.op;
                let lengths = matches!(op.launches(case.ins[0].shape[0]), Launches::Groups(_));
                let runs = !case.bench && lengths && matches!(op.head_dim, 64 | 128);
                runs && WgmmaTile::choose(op, case.ins[0].shape[0], SMS) == tile
            };
            let reached: Vec<&Case<Attention>> = cases.iter().filter(reach).collect();
            for is_there in [
                reached.iter().any(|c| c.op.mask == Mask::Full),
                reached.iter().any(|c| c.op.mask == mask),
                reached.iter().any(|c| matches!(c.op.mask, Mask::Chunk { .. })),
            ] {
                assert!(is_there, "{tile:?}: {:?}", reached.iter().map(|c| &c.name).collect::<Vec<_>>());
            }
        }
        for tile in [c3, WgmmaTile::D64_BIAS, WgmmaTile::D128] {
            let several = |case: &Case<Attention>| {
                let (op, t) = (&case.op, case.ins[0].shape[0]);
                let lengths =
                    !case.bench && matches!(op.batch, Batch::Lengths(_)) && op.head_dim == tile.head_dim;
                lengths && WgmmaTile::choose(op, t, SMS) == tile && tile.ctas(op, t, SMS) < tile.tiles(op, t)
            };
            assert!(cases.iter().any(several), "no CTA with several tiles: {tile:?}");
        }
    }

    /// `unscaled` of attention/wgmma.cuh.
    fn unscaled(bias: f32, scale: f32) -> f32 {
        let (top, size) = (2f32.powi(126), bias.abs());
        let limit = top * scale;
        if size <= limit { bias / scale } else { size.mul_add(0.5, top - 0.5 * limit).copysign(bias) }
    }

    /// The three parts of `store_parts` there.
    fn parts(x: f32) -> [f32; 3] {
        let round = |x: f32| crate::core::DType::BF16.round(x);
        let rest = if x.is_infinite() { 0.0 } else { x - round(x) };
        [round(x), round(rest), round(rest - round(rest))]
    }

    #[test]
    fn a_bias_is_the_sum_of_its_parts() {
        let mut bits = 1u32;
        let mut checked = 0;
        for _ in 0..200_000 {
            bits ^= bits << 13;
            bits ^= bits >> 17;
            bits ^= bits << 5;
            let bias = f32::from_bits(bits);
            let x = unscaled(bias, 0.125);
            // Parts of what is smaller than 2^-100 end below the numbers of the type.
            if bias.is_nan() || x.abs() < 2f32.powi(-100) {
                continue;
            }
            let [a, b, c] = parts(x);
            // Rounded nowhere, in whatever order it is summed.
            assert_eq!((f64::from(a) + f64::from(b)) + f64::from(c), f64::from(x), "{bias:e}");
            assert!(a.is_finite() && [a, b, c].iter().all(|p| !p.is_nan()), "{bias:e}: {a} {b} {c}");
            checked += 1;
        }
        assert!(checked > 100_000);
        for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(parts(unscaled(infinite, 0.125)), [infinite, 0.0, 0.0]);
        }
        assert_eq!(parts(unscaled(0.0, 0.125)), [0.0; 3]);
    }

    #[test]
    fn huge_biases_keep_their_order() {
        for scale in [SMALLEST_SCALE, 1e-3, 0.088, 0.125, 1.0, 7.0] {
            let mut last = f32::NEG_INFINITY;
            for step in 0..=40_000 {
                // From the smallest to the largest number, by their exponents.
                let exponent = step as f32 / 40_000.0 * 2.0 - 1.0;
                let bias =
                    (exponent.abs() * 254.0 - 126.0).exp2().copysign(exponent).clamp(f32::MIN, f32::MAX);
                let x = unscaled(bias, scale);
                assert!(x.is_finite() && x >= last, "{bias:e} of scale {scale}: {x:e} after {last:e}");
                last = x;
            }
        }
    }

    /// The order of `Schedule` in attention/wgmma.cuh: rounds over the tiles, longest first, forth and back.
    fn busiest(lengths: &[usize], ctas: usize) -> usize {
        let mut load = vec![0; ctas];
        for (i, length) in lengths.iter().enumerate() {
            let (round, at) = (i / ctas, i % ctas);
            load[if round % 2 == 0 { at } else { ctas - 1 - at }] += length;
        }
        load.into_iter().max().unwrap_or(0)
    }

    #[test]
    fn rounds_forth_and_back_balance_causal_tiles() {
        for (s, percent) in [(1024, 105), (2048, 108), (4096, 103), (8192, 101), (16384, 101)] {
            let lengths: Vec<usize> = (1..=s / 128).rev().flat_map(|n| [n; 28]).collect();
            let mean = lengths.iter().sum::<usize>() as f64 / SMS as f64;
            let most = busiest(&lengths, SMS) as f64;
            assert!(most <= mean.max(s as f64 / 128.0) * f64::from(percent) / 100.0, "{s}: {most} of {mean}");
        }
    }
}
