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
    /// `tiles` of 16 (row, query head) pairs for each kv head, `splits` of the keys.
    Decode {
        tiles: usize,
        splits: usize,
    },
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
}
