//! Which kernel runs an attention. Pure, so it is tested without a GPU; the numbers behind the constants belong into
//! `kernels/attention/LADDER.md`.

use super::{Attention, Mask, Source};

/// Streaming multiprocessors of an H100 or H200. On a smaller GPU the same grids only take more waves.
const SMS: usize = 132;
/// Rows that decode takes: above, one pass over the keys per 16 (row, head) pairs costs more than it saves.
const DECODE_ROWS: usize = 8;
/// Keys of a split: 4 warps of one block of 16 each.
const SPLIT_KEYS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    Naive,
    /// Query rows of a CTA: 64 or 128.
    Flash {
        rows: usize,
    },
    /// `attention/wgmma.cu`, sm_90a. `turns`: its warpgroups ask for products one after the other.
    Wgmma {
        turns: bool,
    },
    /// `tiles` of 16 (row, query head) pairs for each kv head, `splits` of the keys.
    Decode {
        tiles: usize,
        splits: usize,
    },
}

/// What `VIVACE_ATTENTION` asks for, to test and to compare: `mma`, `wgmma`, or `wgmma-free`, which has no turns. It
/// holds for the attentions that have a choice between the two kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    Mma,
    Wgmma { turns: bool },
}

impl Wanted {
    pub fn parse(text: &str) -> Option<Wanted> {
        match text {
            "mma" => Some(Wanted::Mma),
            "wgmma" => Some(Wanted::Wgmma { turns: true }),
            "wgmma-free" => Some(Wanted::Wgmma { turns: false }),
            _ => None,
        }
    }
}

/// [`choose`] on a chip of compute capability `arch` (90 for Hopper), where a kernel may be asked for.
pub(super) fn choose_wanted(op: &Attention, t: usize, arch: u32, wanted: Option<Wanted>) -> Choice {
    match (choose(op, t), wanted) {
        // An image for 90a runs on 9.0 and on nothing newer.
        (Choice::Flash { .. }, Some(Wanted::Wgmma { turns })) if arch == 90 => Choice::Wgmma { turns },
        (choice, _) => choice,
    }
}

/// The kernel for `t` rows in all.
pub(super) fn choose(op: &Attention, t: usize) -> Choice {
    // The tile kernels keep maxima of unscaled scores: right for a positive scale alone.
    if !matches!(op.head_dim, 64 | 128) || op.scale.is_nan() || op.scale <= 0.0 {
        return Choice::Naive;
    }
    match op.source {
        Source::Cache { kv_bucket } if t <= DECODE_ROWS => {
            let tiles = (t * op.heads / op.kv_heads).div_ceil(16);
            let splits = (SMS / (tiles * op.kv_heads)).clamp(1, kv_bucket.div_ceil(SPLIT_KEYS).max(1));
            Choice::Decode { tiles, splits }
        }
        _ => {
            let rows = t / op.batch;
            let (small, large) = (flash_time(op, rows, 64), flash_time(op, rows, 128));
            Choice::Flash { rows: if small < large { 64 } else { 128 } }
        }
    }
}

/// Time of the flash kernel with tiles of `tile` rows, in (row, key) pairs of one SM. Tiles of 64 rows load every K
/// and V fragment for half as many products: 5/4 of the time per pair (an estimate).
fn flash_time(op: &Attention, rows: usize, tile: usize) -> usize {
    let heads = op.heads * op.batch;
    let work = |first: usize| tile * op.mask.keys((first + tile).min(rows).max(1) - 1, rows).len();
    let tiles = || (0..rows).step_by(tile).map(work);
    let longest = tiles().max().unwrap_or(0);
    let time = match op.mask {
        // Long tiles first: the short ones fill the gaps.
        Mask::Causal => longest.max(heads * tiles().sum::<usize>() / SMS),
        _ => longest * (heads * rows.div_ceil(tile)).div_ceil(SMS),
    };
    if tile == 64 { time * 5 / 4 } else { time }
}

/// Tiles of `attention/wgmma.cu`, as `Flash` there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WgmmaTile {
    pub head_dim: usize,
    /// Warpgroups of 64 query rows.
    pub consumers: usize,
    /// Keys of a tile of K or V.
    pub keys: usize,
    /// Tiles in the ring.
    pub stages: usize,
}

impl WgmmaTile {
    /// For sequences of `rows` rows. At head dim 64 a tile of 128 rows takes two thirds of the time of one of 192, and
    /// is better where the rounds on the SMs come out so.
    pub fn choose(op: &Attention, rows: usize, sm_count: usize) -> WgmmaTile {
        let small = WgmmaTile { head_dim: 64, consumers: 2, keys: 96, stages: 8 };
        let large = WgmmaTile { consumers: 3, ..small };
        let time = |tile: WgmmaTile| tile.tiles(op, rows).div_ceil(sm_count) * tile.consumers;
        match op.head_dim {
            64 if time(small) < time(large) => small,
            64 => large,
            _ => WgmmaTile { head_dim: 128, consumers: 2, keys: 128, stages: 5 },
        }
    }

    /// Part of a kernel symbol.
    pub fn variant(&self) -> String {
        format!("_d{}_c{}", self.head_dim, self.consumers)
    }

    fn tiles(&self, op: &Attention, rows: usize) -> usize {
        rows.div_ceil(64 * self.consumers) * op.heads * op.batch
    }

    /// Dynamic shared memory: Q, the ring, and slack to align them to 1 KiB.
    pub fn smem_bytes(&self) -> usize {
        1024 + (self.consumers * 64 + self.stages * self.keys) * self.head_dim * 2
    }

    /// CTAs to launch: one per SM, each takes its share of the tiles.
    pub fn ctas(&self, op: &Attention, rows: usize, sm_count: usize) -> usize {
        self.tiles(op, rows).min(sm_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(heads: usize, kv_heads: usize, head_dim: usize, kv_bucket: usize) -> Attention {
        Attention {
            heads,
            kv_heads,
            head_dim,
            scale: 0.1,
            mask: Mask::Causal,
            source: Source::Cache { kv_bucket },
            batch: 1,
            bias: false,
        }
    }

    #[test]
    fn decode_fills_the_gpu_and_no_more() {
        let splits = |bucket| choose(&cache(28, 4, 128, bucket), 1);
        assert_eq!(splits(512), Choice::Decode { tiles: 1, splits: 8 });
        assert_eq!(splits(2048), Choice::Decode { tiles: 1, splits: 32 });
        assert_eq!(splits(32768), Choice::Decode { tiles: 1, splits: 33 });
        assert_eq!(splits(1), Choice::Decode { tiles: 1, splits: 1 });
        assert_eq!(choose(&cache(28, 4, 128, 8192), 8), Choice::Decode { tiles: 4, splits: 8 });
        assert_eq!(choose(&cache(256, 256, 64, 8192), 1), Choice::Decode { tiles: 1, splits: 1 });
    }

    #[test]
    fn other_head_dims_and_scales_run_the_plain_kernel() {
        assert_eq!(choose(&cache(2, 1, 80, 512), 1), Choice::Naive);
        assert_eq!(choose(&Attention { scale: -1.0, ..cache(2, 1, 64, 512) }, 300), Choice::Naive);
        assert_eq!(choose(&Attention { scale: f32::NAN, ..cache(2, 1, 64, 512) }, 300), Choice::Naive);
    }

    #[test]
    fn small_tiles_where_large_ones_leave_sms_idle() {
        let prefill = |s| choose(&cache(28, 4, 128, s), s);
        assert_eq!(prefill(9), Choice::Flash { rows: 64 });
        assert_eq!(prefill(512), Choice::Flash { rows: 64 });
        assert_eq!(prefill(4096), Choice::Flash { rows: 128 });
        let vit =
            |batch| Attention { mask: Mask::Full, source: Source::Packed, batch, ..cache(16, 16, 64, 0) };
        assert_eq!(choose(&vit(1), 1025), Choice::Flash { rows: 64 });
        assert_eq!(choose(&vit(13), 13 * 1025), Choice::Flash { rows: 128 });
    }

    #[test]
    fn wgmma_where_it_is_wanted_and_flash_would_run() {
        let op = cache(28, 4, 128, 2048);
        let wanted = Wanted::parse("wgmma");
        assert_eq!(choose_wanted(&op, 2048, 90, wanted), Choice::Wgmma { turns: true });
        let free = Wanted::parse("wgmma-free");
        assert_eq!(choose_wanted(&op, 2048, 90, free), Choice::Wgmma { turns: false });
        for (arch, wanted) in [(80, wanted), (100, wanted), (90, None), (90, Wanted::parse("mma"))] {
            assert_eq!(choose_wanted(&op, 2048, arch, wanted), choose(&op, 2048));
        }
        // One row, and a head dim that it does not know.
        assert_eq!(choose_wanted(&op, 1, 90, wanted), choose(&op, 1));
        assert_eq!(choose_wanted(&cache(2, 1, 80, 512), 300, 90, wanted), Choice::Naive);
        for bad in ["", "WGMMA", "wgmma/1"] {
            assert_eq!(Wanted::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn wgmma_tiles_fit_on_an_sm_and_fill_the_gpu() {
        let vit =
            |batch| Attention { mask: Mask::Full, source: Source::Packed, batch, ..cache(16, 16, 64, 0) };
        for (op, rows, consumers, ctas) in [
            (vit(1), 249, 2, 32),
            (vit(1), 749, 2, 96),
            (vit(1), 1025, 3, 96),
            (vit(4), 1025, 3, SMS),
            (vit(13), 1025, 3, SMS),
            (cache(28, 4, 128, 512), 512, 2, 112),
            (cache(28, 4, 128, 4096), 4096, 2, SMS),
        ] {
            let tile = WgmmaTile::choose(&op, rows, SMS);
            assert_eq!((tile.consumers, tile.ctas(&op, rows, SMS)), (consumers, ctas), "{rows}: {tile:?}");
            // What kernels/attention/wgmma.cu exports.
            assert!(["_d64_c2", "_d64_c3", "_d128_c2"].contains(&tile.variant().as_str()), "{tile:?}");
            // Barriers, and the 1 KiB that every resident CTA costs.
            assert!(tile.smem_bytes() + 256 + 1024 <= 228 << 10, "{tile:?}");
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
