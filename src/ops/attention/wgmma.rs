//! Tiles of `attention/wgmma.cu`: a pure choice, tested without a GPU.

use super::Attention;

/// How the kernel takes the bias of a key, as `Bias` there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BiasForm {
    None,
    /// Lies beside a tile's keys, and is added to the scores.
    Added,
    /// One more step of the first product.
    Operand,
}

/// Tiles of `attention/wgmma.cu`, as `Flash` there.
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
    pub bias: BiasForm,
    /// CTAs of a cluster, which share the keys of a tile of rows: 1 or 2.
    pub sharing: usize,
}

/// What `VIVACE_ATTENTION` asks for where there is a bias: a form of it, and of the operand perhaps one tile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WantedBias {
    Added,
    Operand,
    Tile(WgmmaTile),
}

impl WantedBias {
    /// `added`, `operand`, or of the operand the tile of two consumers and 96 keys, `2x96`, or of three in two CTAs
    /// that share the keys, `3x96/2`.
    pub fn parse(text: &str) -> Option<WantedBias> {
        let tile = |tile: &&WgmmaTile| {
            let sharing = if tile.sharing == 2 { "/2" } else { "" };
            format!("{}x{}{sharing}", tile.consumers, tile.keys) == text
        };
        match text {
            "added" => Some(WantedBias::Added),
            "operand" => Some(WantedBias::Operand),
            _ => WgmmaTile::D64_OPERAND.iter().find(tile).map(|tile| WantedBias::Tile(*tile)),
        }
    }
}

/// The smallest scale of an attention with a bias that the kernel takes: with it biases below 2^66 are divided as they
/// are (`unscaled` there).
pub(super) const SMALLEST_SCALE: f32 = 1.0 / (1u64 << 60) as f32;

/// Tiles of the ring of biases, and bytes of its other operand: ones.
const BIAS_STAGES: usize = 4;
const ONES_BYTES: usize = 64 * 32;

impl WgmmaTile {
    const fn new(name: &'static str, head_dim: usize, [consumers, keys, stages]: [usize; 3]) -> WgmmaTile {
        WgmmaTile { name, head_dim, consumers, keys, stages, bias: BiasForm::None, sharing: 1 }
    }

    const fn added(name: &'static str, head_dim: usize, sizes: [usize; 3]) -> WgmmaTile {
        WgmmaTile { bias: BiasForm::Added, ..WgmmaTile::new(name, head_dim, sizes) }
    }

    const fn operand(name: &'static str, head_dim: usize, sizes: [usize; 3]) -> WgmmaTile {
        WgmmaTile { bias: BiasForm::Operand, ..WgmmaTile::new(name, head_dim, sizes) }
    }

    const fn pair(name: &'static str, head_dim: usize, sizes: [usize; 3]) -> WgmmaTile {
        WgmmaTile { sharing: 2, ..WgmmaTile::operand(name, head_dim, sizes) }
    }

    const D64: [WgmmaTile; 2] =
        [WgmmaTile::new("_d64_c2", 64, [2, 96, 8]), WgmmaTile::new("_d64_c3", 64, [3, 96, 8])];
    const D64_ADDED: [WgmmaTile; 2] = [
        WgmmaTile::added("_d64_c1_bias", 64, [1, 128, 5]),
        WgmmaTile::added("_d64_c2_bias", 64, [2, 128, 8]),
    ];
    /// Of tiles that are expected to take the same time the first is chosen.
    const D64_OPERAND: [WgmmaTile; 7] = [
        WgmmaTile::operand("_d64_c2_bias128", 64, [2, 128, 8]),
        WgmmaTile::operand("_d64_c2_bias96", 64, [2, 96, 8]),
        WgmmaTile::operand("_d64_c3_bias96", 64, [3, 96, 8]),
        WgmmaTile::operand("_d64_c1_bias128", 64, [1, 128, 5]),
        WgmmaTile::operand("_d64_c1_bias96", 64, [1, 96, 5]),
        WgmmaTile::pair("_d64_c3_bias96_pair", 64, [3, 96, 8]),
        WgmmaTile::pair("_d64_c1_bias128_pair", 64, [1, 128, 4]),
    ];
    const D128: WgmmaTile = WgmmaTile::new("_d128_c2", 128, [2, 128, 5]);
    const D128_ADDED: WgmmaTile = WgmmaTile::added("_d128_c2_bias", 128, [2, 128, 5]);
    const D128_OPERAND: WgmmaTile = WgmmaTile::operand("_d128_c2_bias128", 128, [2, 128, 5]);

    /// For sequences of `rows` rows. At head dim 64 a tile of 128 rows takes two thirds of the time of one of 192, and
    /// is better where the rounds on the SMs come out so; one of 64 rows where all run at once.
    pub fn choose(op: &Attention, rows: usize, sm_count: usize, wanted: Option<WantedBias>) -> WgmmaTile {
        let time = |tile: &WgmmaTile| tile.tiles(op, rows).div_ceil(sm_count) * tile.consumers;
        let better = |[small, large]: [WgmmaTile; 2]| if time(&small) < time(&large) { small } else { large };
        match (op.head_dim, op.bias, wanted) {
            (64, false, _) => better(Self::D64),
            (_, false, _) => Self::D128,
            (64, true, None | Some(WantedBias::Added)) => better(Self::D64_ADDED),
            (64, true, Some(WantedBias::Tile(tile))) => tile,
            (64, true, Some(WantedBias::Operand)) => {
                let mut best = Self::D64_OPERAND[0];
                for tile in Self::D64_OPERAND {
                    if tile.clocks(op, rows, sm_count) < best.clocks(op, rows, sm_count) {
                        best = tile;
                    }
                }
                best
            }
            (_, true, None | Some(WantedBias::Added)) => Self::D128_ADDED,
            (_, true, _) => Self::D128_OPERAND,
        }
    }

    fn tiles(&self, op: &Attention, rows: usize) -> usize {
        rows.div_ceil(64 * self.consumers) * op.heads * op.batch
    }

    /// CTAs on an SM at once. One consumer that adds a bias has never been tried in pairs.
    fn ctas_per_sm(&self) -> usize {
        if self.consumers == 1 && self.bias == BiasForm::Operand { 2 } else { 1 }
    }

    /// What the busiest SM is expected to take, without the mask. A step of a consumer is a chain: about 350 clocks of
    /// latencies and 8 a key. Two consumers on an SM get in each other's way (12 a key), three more so (18; of vision's
    /// tiles of 96 keys 2100 clocks a step are measured).
    fn clocks(&self, op: &Attention, rows: usize, sm_count: usize) -> usize {
        // First product and epilogue; to meet the other CTA and to trade rows with it.
        const TILE: usize = 1500;
        const TRADE: usize = 1400;
        let (tiles, places) = (self.tiles(op, rows), (sm_count / self.sharing).max(1));
        let side_by_side = tiles.div_ceil(places).clamp(1, self.ctas_per_sm());
        let rounds = tiles.div_ceil(places * side_by_side);
        let per_key = match side_by_side * self.consumers {
            1 => 8,
            2 => 12,
            _ => 18,
        };
        let steps = rows.div_ceil(self.keys).div_ceil(self.sharing);
        rounds * (TILE + TRADE * (self.sharing - 1) + steps * (350 + per_key * self.keys))
    }

    /// Dynamic shared memory: Q, the ring, biases, and slack to align them to 1 KiB.
    pub fn smem_bytes(&self) -> usize {
        let bias = match self.bias {
            BiasForm::None => 0,
            BiasForm::Added => self.stages * ((self.keys + 4) * 4).next_multiple_of(128),
            BiasForm::Operand => ONES_BYTES + BIAS_STAGES * self.keys * 32,
        };
        // What 128 threads get of a row of each: D / 4 sums, a maximum, a part of l.
        let traded = (self.sharing - 1) * self.consumers * 128 * (self.head_dim / 4 + 2) * 4;
        1024 + (self.consumers * 64 + self.stages * self.keys) * self.head_dim * 2 + bias + traded
    }

    /// CTAs to launch: as many as run at once, each takes its share of the tiles; of those that share keys all.
    pub fn ctas(&self, op: &Attention, rows: usize, sm_count: usize) -> usize {
        let tiles = self.tiles(op, rows);
        if self.sharing > 1 { tiles * self.sharing } else { tiles.min(sm_count * self.ctas_per_sm()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::{Mask, Source};

    const SMS: usize = 132;

    fn attention(heads: usize, kv_heads: usize, head_dim: usize, batch: usize, bias: bool) -> Attention {
        let (mask, source) = (Mask::Full, Source::Packed);
        Attention { heads, kv_heads, head_dim, scale: 0.1, mask, source, batch, bias }
    }

    #[test]
    fn wgmma_tiles_fit_on_an_sm_and_fill_the_gpu() {
        let vit = |batch| attention(16, 16, 64, batch, false);
        let audio = || attention(16, 16, 64, 1, true);
        let lm = || attention(28, 4, 128, 1, false);
        for (op, rows, name, ctas) in [
            (vit(1), 249, "_d64_c2", 32),
            (vit(1), 749, "_d64_c2", 96),
            (vit(1), 1025, "_d64_c3", 96),
            (vit(4), 1025, "_d64_c3", SMS),
            (vit(13), 1025, "_d64_c3", SMS),
            (audio(), 249, "_d64_c1_bias", 64),
            (audio(), 749, "_d64_c2_bias", 96),
            (attention(2, 2, 128, 1, true), 70, "_d128_c2_bias", 2),
            (lm(), 512, "_d128_c2", 112),
            (lm(), 4096, "_d128_c2", SMS),
        ] {
            for wanted in [None, Some(WantedBias::Added)] {
                let tile = WgmmaTile::choose(&op, rows, SMS, wanted);
                assert_eq!((tile.name, tile.ctas(&op, rows, SMS)), (name, ctas), "{rows}: {tile:?}");
                assert_eq!(op.bias, tile.bias != BiasForm::None);
            }
        }
        for (op, rows, name, ctas) in [
            (audio(), 74, "_d64_c1_bias96", 32),
            (audio(), 249, "_d64_c1_bias128", 64),
            (audio(), 749, "_d64_c3_bias96_pair", 128),
            (attention(4, 4, 64, 33, true), 250, "_d64_c2_bias128", SMS),
            (attention(2, 2, 128, 1, true), 70, "_d128_c2_bias128", 2),
        ] {
            let tile = WgmmaTile::choose(&op, rows, SMS, Some(WantedBias::Operand));
            assert_eq!((tile.name, tile.ctas(&op, rows, SMS)), (name, ctas), "{rows}: {tile:?}");
        }
        let one_row = WgmmaTile::operand("_d64_c1_bias96", 64, [1, 96, 5]);
        assert_eq!(one_row.ctas(&audio(), 749, SMS), 192);
        assert_eq!(one_row.ctas(&audio(), 1500, SMS), 2 * SMS);
        let all = WgmmaTile::D64.iter().chain(&WgmmaTile::D64_ADDED).chain(&WgmmaTile::D64_OPERAND);
        for tile in all.chain([&WgmmaTile::D128, &WgmmaTile::D128_ADDED, &WgmmaTile::D128_OPERAND]) {
            // Barriers, and the 1 KiB that every resident CTA costs.
            let bytes = (tile.smem_bytes() + 256 + 1024) * tile.ctas_per_sm();
            assert!(bytes <= 228 << 10, "{tile:?}");
        }
    }

    #[test]
    fn a_bias_as_an_operand_is_asked_for_by_name() {
        assert_eq!(WantedBias::parse("added"), Some(WantedBias::Added));
        assert_eq!(WantedBias::parse("operand"), Some(WantedBias::Operand));
        for (text, name) in [
            ("1x96", "_d64_c1_bias96"),
            ("2x128", "_d64_c2_bias128"),
            ("3x96", "_d64_c3_bias96"),
            ("3x96/2", "_d64_c3_bias96_pair"),
        ] {
            let wanted = WantedBias::parse(text);
            assert_eq!(
                WgmmaTile::choose(&attention(16, 16, 64, 1, true), 749, SMS, wanted).name,
                name,
                "{text}"
            );
            // Other head dims have one tile; without a bias nothing changes.
            let d128 = WgmmaTile::choose(&attention(2, 2, 128, 1, true), 749, SMS, wanted);
            assert_eq!(d128, WgmmaTile::D128_OPERAND);
            let none = attention(16, 16, 64, 1, false);
            assert_eq!(WgmmaTile::choose(&none, 749, SMS, wanted), WgmmaTile::choose(&none, 749, SMS, None));
        }
        for bad in ["", "4x96", "2x64", "x96", "2x96x1", "02x96", "2x96/2", "3x96/1", "3x96/"] {
            assert_eq!(WantedBias::parse(bad), None, "{bad}");
        }
    }

    /// `unscaled` of attention/wgmma.cu.
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

    /// The order of `Schedule` in attention/wgmma.cu: rounds over the tiles, longest first, forth and back.
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
