//! Tiles of `attention/wgmma.cu`: a pure choice, tested without a GPU.

use super::Attention;

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
    /// The bias of a tile's keys lies beside it.
    pub bias: bool,
}

impl WgmmaTile {
    const fn new(name: &'static str, head_dim: usize, [consumers, keys, stages]: [usize; 3]) -> WgmmaTile {
        WgmmaTile { name, head_dim, consumers, keys, stages, bias: false }
    }

    const fn with_bias(name: &'static str, head_dim: usize, sizes: [usize; 3]) -> WgmmaTile {
        WgmmaTile { bias: true, ..WgmmaTile::new(name, head_dim, sizes) }
    }

    const D64: [WgmmaTile; 2] =
        [WgmmaTile::new("_d64_c2", 64, [2, 96, 8]), WgmmaTile::new("_d64_c3", 64, [3, 96, 8])];
    const D64_BIAS: [WgmmaTile; 2] = [
        WgmmaTile::with_bias("_d64_c1_bias", 64, [1, 128, 5]),
        WgmmaTile::with_bias("_d64_c2_bias", 64, [2, 128, 8]),
    ];
    const D128: WgmmaTile = WgmmaTile::new("_d128_c2", 128, [2, 128, 5]);
    const D128_BIAS: WgmmaTile = WgmmaTile::with_bias("_d128_c2_bias", 128, [2, 128, 5]);

    /// For sequences of `rows` rows. At head dim 64 a tile of 128 rows takes two thirds of the time of one of 192, and
    /// is better where the rounds on the SMs come out so; one of 64 rows where all run at once.
    pub fn choose(op: &Attention, rows: usize, sm_count: usize) -> WgmmaTile {
        let time = |tile: &WgmmaTile| tile.tiles(op, rows).div_ceil(sm_count) * tile.consumers;
        let better = |[small, large]: [WgmmaTile; 2]| if time(&small) < time(&large) { small } else { large };
        match (op.head_dim, op.bias) {
            (64, true) => better(Self::D64_BIAS),
            (64, false) => better(Self::D64),
            (_, true) => Self::D128_BIAS,
            (_, false) => Self::D128,
        }
    }

    fn tiles(&self, op: &Attention, rows: usize) -> usize {
        rows.div_ceil(64 * self.consumers) * op.heads * op.batch
    }

    /// Dynamic shared memory: Q, the ring with its biases, and slack to align them to 1 KiB.
    pub fn smem_bytes(&self) -> usize {
        let bias = if self.bias { self.stages * ((self.keys + 4) * 4).next_multiple_of(128) } else { 0 };
        1024 + (self.consumers * 64 + self.stages * self.keys) * self.head_dim * 2 + bias
    }

    /// CTAs to launch: one per SM, each takes its share of the tiles.
    pub fn ctas(&self, op: &Attention, rows: usize, sm_count: usize) -> usize {
        self.tiles(op, rows).min(sm_count)
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
            let tile = WgmmaTile::choose(&op, rows, SMS);
            assert_eq!((tile.name, tile.ctas(&op, rows, SMS)), (name, ctas), "{rows}: {tile:?}");
            // Barriers, and the 1 KiB that every resident CTA costs.
            assert!(tile.smem_bytes() + 256 + 1024 <= 228 << 10, "{tile:?}");
            assert_eq!(op.bias, tile.bias);
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
