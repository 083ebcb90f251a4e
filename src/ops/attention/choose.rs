//! Which kernel runs an attention. Pure, so it is tested without a GPU; the numbers behind the constants belong into
//! `kernels/attention/LADDER.md`.

use super::lengths::{Sequence, groups};
use super::wgmma::SMALLEST_SCALE;
use super::{Attention, Batch, Mask, Source};

/// Streaming multiprocessors of an H100 or H200. On a smaller GPU the same grids only take more waves.
const SMS: usize = 132;
/// Rows that decode takes: above, one pass over the keys per 16 (row, head) pairs costs more than it saves.
const DECODE_ROWS: usize = 8;
/// Keys of a split: 4 warps of one block of 16 each.
const SPLIT_KEYS: usize = 64;

/// The most CTAs of a cluster of `attention/decode_cluster.cu`, and its most clusters for a kv head and row tile.
const CLUSTER: usize = 8;
const MOST_CLUSTERS: usize = 8;
/// Keys up to which one cluster is enough: more cost a round trip through global memory. One and four of them take 4.6
/// and 5.1 us at 2048 keys, 10.2 and 8.5 at 8192 (with three blocks of keys in a ring).
const ONE_CLUSTER_KEYS: usize = 2048;
/// Keys from which `attention/wgmma.cu` is ahead on Hopper. On an H200 it takes 5.1 us of causal attention at S = 128 against
/// 5.0 of `prefill.cu`, 10.3 against 16.6 at 512, 18.8 against 30 at 1024; of 256 rows after 1792 26 against 38; of the 1025
/// rows of a picture 14 against 27.
const WGMMA_KEYS: usize = 384;
/// The same with a bias per key: 4.7 against 5.6 us at 249 rows, 9.2 against 17.6 at 749.
const WGMMA_KEYS_WITH_BIAS: usize = 192;
/// Keys from which half as many CTAs again as SMs, in six clusters for each of 4 kv heads, are ahead of one on each: 8.1
/// against 9.6 us at 8192 keys, 20.6 against 26.9 at 32768, where a token takes 3.90 ms for 3.95 (seven: 3.98).
const MANY_CLUSTERS_KEYS: usize = 8192;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    Naive,
    /// Query rows of a CTA: 64 or 128.
    Flash {
        rows: usize,
    },
    /// `attention/wgmma.cu` or `wgmma_d64.cu`, sm_90a.
    Wgmma,
    /// `tiles` of 16 (row, query head) pairs for each kv head, `splits` of the keys.
    Decode {
        tiles: usize,
        splits: usize,
    },
    /// `attention/decode_cluster.cu`, sm_90a: `clusters` of `ctas` instead of splits, `stages` of 16 keys in a warp's ring.
    DecodeCluster {
        tiles: usize,
        clusters: usize,
        ctas: usize,
        stages: usize,
    },
}

/// How the kernels are launched, which know one cache: as which attention, and for how many rows.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Launches {
    Once(Attention, usize),
    /// For every sequence of the cache.
    Each(Attention, usize),
    /// For groups of sequences of different lengths, each with the attention of these alone.
    Groups(Vec<(Attention, Vec<Sequence>)>),
}

impl Attention {
    /// For `rows` rows in all. One row of each of B sequences is one row with B times the heads: q is the same in memory,
    /// and so are the heads of the cache. Lengths that are all the same are an equal batch.
    pub(super) fn launches(&self, rows: usize) -> Launches {
        match (&self.batch, self.source) {
            (Batch::Equal(n), Source::Cache { .. }) if *n > 1 && rows == *n => {
                let (heads, kv_heads) = (n * self.heads, n * self.kv_heads);
                Launches::Once(Attention { heads, kv_heads, ..self.with(Batch::Equal(1)) }, 1)
            }
            (Batch::Equal(n), Source::Cache { .. }) if *n > 1 => {
                Launches::Each(self.with(Batch::Equal(1)), rows / n)
            }
            (Batch::Equal(_), _) => Launches::Once(self.clone(), rows),
            (Batch::Lengths(lengths), _) => match lengths.split_first() {
                Some((first, rest)) if rest.iter().all(|n| n == first) => {
                    Launches::Once(self.with(Batch::Equal(lengths.len())), rows)
                }
                _ => {
                    let of = |group: Vec<Sequence>| {
                        (self.with(Batch::Lengths(group.iter().map(|s| s.rows).collect())), group)
                    };
                    Launches::Groups(groups(lengths).into_iter().map(of).collect())
                }
            },
        }
    }

    fn with(&self, batch: Batch) -> Attention {
        Attention { batch, ..self.clone() }
    }

    /// Tiles of `tile` query rows, of all heads and sequences, for `t` rows in all.
    pub(super) fn tiles(&self, t: usize, tile: usize) -> usize {
        self.heads * self.batch.rows(t).iter().map(|rows| rows.div_ceil(tile)).sum::<usize>()
    }
}

/// What is asked for, to test and to compare.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Switches {
    pub prefill: Option<Wanted>,
    pub decode: Option<Decoding>,
}

/// What `VIVACE_DECODE` asks for: `split`, or on Hopper `cluster`, or `cluster/N` with this many clusters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decoding {
    Split,
    Clusters(Option<usize>),
}

impl Decoding {
    pub fn parse(text: &str) -> Option<Decoding> {
        match text {
            "split" => Some(Decoding::Split),
            "cluster" => Some(Decoding::Clusters(None)),
            _ => {
                let count = text.strip_prefix("cluster/")?.parse().ok()?;
                (1..=MOST_CLUSTERS).contains(&count).then_some(Decoding::Clusters(Some(count)))
            }
        }
    }

    /// For `tiles` of rows; `None` where there would be too many clusters.
    fn choose(self, op: &Attention, tiles: usize, kv_bucket: usize, arch: u32) -> Option<Choice> {
        let ctas = cluster_ctas(tiles * op.kv_heads);
        let most_ctas = if kv_bucket >= MANY_CLUSTERS_KEYS { SMS * 3 / 2 } else { SMS };
        let room = most_ctas / (CLUSTER * tiles * op.kv_heads);
        let clusters = match self {
            Decoding::Split => return None,
            // An image for 90a runs on 9.0 and on nothing newer.
            Decoding::Clusters(_) if arch != 90 => return None,
            Decoding::Clusters(Some(count)) => count,
            Decoding::Clusters(None) if ctas * tiles * op.kv_heads > SMS => return None,
            Decoding::Clusters(None) if kv_bucket <= ONE_CLUSTER_KEYS => 1,
            Decoding::Clusters(None) => room.clamp(1, MOST_CLUSTERS),
        };
        let stages = match ctas {
            CLUSTER => cluster_stages(op.head_dim, kv_bucket.div_ceil(clusters * CLUSTER)),
            _ => cluster_stages(op.head_dim, usize::MAX),
        };
        Some(Choice::DecodeCluster { tiles, clusters, ctas, stages })
    }
}

/// CTAs of a cluster where there are `heads` kv heads and row tiles: no more than find an SM each. Two on an SM have more to
/// merge: with 64 heads at 512 keys a step of 16 sequences takes 4.54 ms with clusters of 4, 4.40 with clusters of 2.
fn cluster_ctas(heads: usize) -> usize {
    [CLUSTER, 4].into_iter().find(|ctas| ctas * heads <= SMS).unwrap_or(2)
}

/// Blocks of 16 keys in the ring of a warp, for `share` keys of a CTA: one where each of its 4 warps has one, else 64 KB of
/// them. With three at D = 128 a token takes 1.5 % longer, though the attention by itself is faster with them (4.5 against
/// 5.0 us at 2048 keys, 8.5 against 9.6 at 8192).
fn cluster_stages(head_dim: usize, share: usize) -> usize {
    if share <= 64 { 1 } else { 256 / head_dim }
}

/// What `VIVACE_ATTENTION` asks for, to test and to compare: `mma` or `wgmma`. It holds for the attentions that have a
/// choice between the two kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    Mma,
    Wgmma,
}

impl Wanted {
    pub fn parse(text: &str) -> Option<Wanted> {
        match text {
            "mma" => Some(Wanted::Mma),
            "wgmma" => Some(Wanted::Wgmma),
            _ => None,
        }
    }
}

/// The kernel for `t` rows in all on a chip of compute capability `arch` (90 for Hopper).
pub(super) fn choose(op: &Attention, t: usize, arch: u32, wanted: Switches) -> Choice {
    let choice = portable(op, t);
    match (choice, op.source) {
        // An image for 90a runs on 9.0 and on nothing newer.
        (Choice::Flash { .. }, _) if arch == 90 => match wanted.prefill.unwrap_or(on_hopper(op, t)) {
            Wanted::Wgmma if !op.bias || op.scale >= SMALLEST_SCALE => Choice::Wgmma,
            _ => choice,
        },
        (Choice::Decode { tiles, .. }, Source::Cache { kv_bucket }) => {
            let decode = wanted.decode.unwrap_or(Decoding::Clusters(None));
            decode.choose(op, tiles, kv_bucket, arch).unwrap_or(choice)
        }
        _ => choice,
    }
}

/// The faster of the two tile kernels, as far as measured.
fn on_hopper(op: &Attention, t: usize) -> Wanted {
    let keys = match op.source {
        Source::Cache { kv_bucket } => kv_bucket,
        // Most of the work is the longest sequence's.
        _ => op.batch.rows(t).into_iter().max().unwrap_or(0),
    };
    let chunks = matches!(op.mask, Mask::Chunk { .. });
    let enough = if op.bias { WGMMA_KEYS_WITH_BIAS } else { WGMMA_KEYS };
    match keys >= enough && !chunks {
        true => Wanted::Wgmma,
        false => Wanted::Mma,
    }
}

/// The kernel for `t` rows in all where any chip can run it.
fn portable(op: &Attention, t: usize) -> Choice {
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
            let (small, large) = (flash_time(op, t, 64), flash_time(op, t, 128));
            Choice::Flash { rows: if small < large { 64 } else { 128 } }
        }
    }
}

/// Time of the flash kernel with tiles of `tile` rows for `t` in all, in (row, key) pairs of one SM. Tiles of 64 rows load
/// every K and V fragment for half as many products: 5/4 of the time per pair (an estimate).
fn flash_time(op: &Attention, t: usize, tile: usize) -> usize {
    let of_sequence = |rows: usize| {
        let work = move |first: usize| tile * op.mask.keys((first + tile).min(rows) - 1, rows).len();
        (0..rows).step_by(tile).map(work)
    };
    let tiles: Vec<usize> = op.batch.rows(t).into_iter().flat_map(of_sequence).collect();
    let longest = tiles.iter().copied().max().unwrap_or(0);
    let alike = matches!(op.batch, Batch::Equal(_)) && op.mask != Mask::Causal;
    let time = match alike {
        true => longest * (op.heads * tiles.len()).div_ceil(SMS),
        // Long tiles first: the short ones fill the gaps. The longest ends alone on its SM, at 3/5 of the rate of two:
        // at S = 1024 tiles of 128 rows took 56 us on an H200, this share of the time predicts 53, and 36 for 64 rows.
        false => (longest * 5 / 3).max(op.heads * tiles.iter().sum::<usize>() / SMS),
    };
    if tile == 64 { time * 5 / 4 } else { time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::OpDef;

    fn cache(heads: usize, kv_heads: usize, head_dim: usize, kv_bucket: usize) -> Attention {
        Attention {
            heads,
            kv_heads,
            head_dim,
            scale: 0.1,
            mask: Mask::Causal,
            source: Source::Cache { kv_bucket },
            batch: Batch::Equal(1),
            bias: false,
        }
    }

    fn vit(batch: usize) -> Attention {
        let batch = Batch::Equal(batch);
        Attention { mask: Mask::Full, source: Source::Packed, batch, ..cache(16, 16, 64, 0) }
    }

    fn asked(prefill: &str) -> Switches {
        Switches { prefill: Wanted::parse(prefill), decode: None }
    }

    #[test]
    fn other_decodes_where_they_are_wanted() {
        let decode = |op: &Attention, t, text| {
            choose(op, t, 90, Switches { prefill: None, decode: Decoding::parse(text) })
        };
        let lm = |bucket| cache(28, 4, 128, bucket);
        for (bucket, clusters, stages) in
            [(256, 1, 1), (512, 1, 1), (2048, 1, 2), (4096, 4, 2), (8192, 6, 2), (32768, 6, 2)]
        {
            assert_eq!(
                decode(&lm(bucket), 1, "cluster"),
                Choice::DecodeCluster { tiles: 1, clusters, ctas: 8, stages }
            );
            let default = choose(&lm(bucket), 1, 90, Switches::default());
            assert_eq!(default, Choice::DecodeCluster { tiles: 1, clusters, ctas: 8, stages });
            assert_eq!(decode(&lm(bucket), 1, "split"), portable(&lm(bucket), 1));
            assert_eq!(choose(&lm(bucket), 1, 80, Switches::default()), portable(&lm(bucket), 1));
        }
        assert_eq!(
            decode(&lm(256), 1, "cluster/3"),
            Choice::DecodeCluster { tiles: 1, clusters: 3, ctas: 8, stages: 1 }
        );
        assert_eq!(
            decode(&lm(8192), 8, "cluster"),
            Choice::DecodeCluster { tiles: 4, clusters: 1, ctas: 8, stages: 2 }
        );
        assert_eq!(
            decode(&cache(7, 1, 128, 8192), 1, "cluster"),
            Choice::DecodeCluster { tiles: 1, clusters: 8, ctas: 8, stages: 2 }
        );
        // More heads than clusters are good for; another chip; a prefill.
        assert_eq!(decode(&cache(96, 96, 64, 512), 1, "cluster"), portable(&cache(96, 96, 64, 512), 1));
        let wanted = Switches { prefill: None, decode: Decoding::parse("cluster") };
        assert_eq!(choose(&lm(512), 1, 80, wanted), portable(&lm(512), 1));
        assert_eq!(decode(&lm(256), 64, "cluster"), portable(&lm(256), 64));
        for bad in ["", "clusters", "cluster/", "cluster/0", "cluster/9", "once"] {
            assert_eq!(Decoding::parse(bad), None, "{bad}");
        }
    }

    /// Steps of several sequences: 4 kv heads each.
    #[test]
    fn a_row_of_each_sequence_is_a_row_with_all_heads() {
        let of = |sequences: usize, bucket| {
            let op = cache(28, 4, 128, bucket).with(Batch::Equal(sequences));
            let Launches::Once(all, 1) = op.launches(sequences) else {
                panic!("{:?}", op.launches(sequences))
            };
            assert_eq!(
                (all.heads, all.kv_heads, &all.batch),
                (28 * sequences, 4 * sequences, &Batch::Equal(1))
            );
            choose(&all, 1, 90, Switches::default())
        };
        let of_ctas = |ctas, clusters, stages| Choice::DecodeCluster { tiles: 1, clusters, ctas, stages };
        let cluster = |clusters, stages| of_ctas(8, clusters, stages);
        assert_eq!([1, 2, 4].map(|b| of(b, 512)), [cluster(1, 1); 3]);
        // Smaller ones where kv heads are many.
        assert_eq!([5, 8, 16].map(|b| of(b, 512)), [of_ctas(4, 1, 2), of_ctas(4, 1, 2), of_ctas(2, 1, 2)]);
        // Several clusters for a head where SMs would be idle.
        assert_eq!([1, 2, 3].map(|b| of(b, 4096)), [4, 2, 1].map(|n| cluster(n, 2)));
        assert_eq!([1, 2, 3, 4].map(|b| of(b, 8192)), [6, 3, 2, 1].map(|n| cluster(n, 2)));
        assert_eq!([8, 16].map(|b| of(b, 8192)), [4, 2].map(|ctas| of_ctas(ctas, 1, 2)));
        assert_eq!(of(2, 32768), cluster(3, 2));
        assert_eq!(of(8, 32768), of_ctas(4, 1, 2));
        let many = cache(28, 4, 128, 512).with(Batch::Equal(17));
        let Launches::Once(many, rows) = many.launches(17) else { panic!() };
        assert_eq!(choose(&many, rows, 90, Switches::default()), Choice::Decode { tiles: 1, splits: 1 });
        // Anything else with a cache goes sequence by sequence; without one nothing changes.
        let op = cache(28, 4, 128, 512).with(Batch::Equal(3));
        assert_eq!(op.launches(60), Launches::Each(cache(28, 4, 128, 512), 20));
        assert_eq!(vit(4).launches(4), Launches::Once(vit(4), 4));
        assert_eq!(cache(2, 1, 64, 512).launches(5), Launches::Once(cache(2, 1, 64, 512), 5));
    }

    #[test]
    fn lengths_go_in_groups_unless_they_are_alike() {
        let of = |lengths: &[usize]| vit(1).with(Batch::Lengths(lengths.to_vec()));
        assert_eq!(of(&[9; 5]).launches(45), Launches::Once(vit(5), 45));
        assert_eq!(of(&[45]).launches(45), Launches::Once(vit(1), 45));
        let Launches::Groups(groups) = of(&[3, 0, 8, 4]).launches(15) else { panic!() };
        let sequence = |row0, rows| Sequence { row0, rows };
        let sorted = vec![sequence(3, 8), sequence(11, 4), sequence(0, 3)];
        assert_eq!(groups, [(of(&[8, 4, 3]), sorted)]);
        let many: Vec<usize> = (1..=70).collect();
        let Launches::Groups(groups) = of(&many).launches(70 * 71 / 2) else { panic!() };
        assert_eq!(groups.iter().map(|(op, _)| op.batch.sequences()).collect::<Vec<_>>(), [32, 32, 6]);
        assert!(groups.iter().all(|(op, group)| op.batch.rows(0).iter().eq(group.iter().map(|s| &s.rows))));
    }

    #[test]
    fn the_longest_sequence_decides() {
        let of = |lengths: &[usize]| vit(1).with(Batch::Lengths(lengths.to_vec()));
        let chosen = |op: &Attention, arch| choose(op, 0, arch, Switches::default());
        assert_eq!(chosen(&of(&[300, 20, 300]), 90), Choice::Flash { rows: 64 });
        assert_eq!(chosen(&of(&[20, 400, 20]), 90), Choice::Wgmma);
        let audio = |lengths| Attention { bias: true, ..of(lengths) };
        assert_eq!(chosen(&audio(&[125, 249]), 90), Choice::Wgmma);
        assert_eq!(chosen(&audio(&[125, 190]), 90), Choice::Flash { rows: 64 });
        // Tiles of 64 rows where the longest sequence would be left alone with larger ones.
        assert_eq!(chosen(&of(&[1000, 100, 10]), 80), Choice::Flash { rows: 64 });
        assert_eq!(chosen(&of(&[1000, 2000, 4096]), 80), Choice::Flash { rows: 128 });
        assert_eq!(chosen(&Attention { head_dim: 40, ..of(&[10, 20]) }, 90), Choice::Naive);
        // Tiles of all heads, whose last ones are short.
        assert_eq!(of(&[1, 64, 65, 0]).tiles(130, 64), 16 * 4);
        assert_eq!(vit(3).tiles(3 * 65, 64), 16 * 6);
    }

    #[test]
    fn cases_of_lengths_reach_every_tile_anywhere() {
        let cases = Attention::cases();
        for head_dim in [64, 128] {
            for rows in [64, 128] {
                for bias in [false, true] {
                    let reach = |case: &crate::ops::Case<Attention>| {
                        let (op, t) = (&case.op, case.ins[0].shape[0]);
                        let lengths = !case.bench && matches!(op.launches(t), Launches::Groups(_));
                        let same = op.head_dim == head_dim && op.bias == bias;
                        lengths && same && portable(op, t) == Choice::Flash { rows }
                    };
                    assert!(cases.iter().any(reach), "no case: D {head_dim}, {rows} rows, bias {bias}");
                }
            }
        }
    }

    /// Shares of the keys in attention/decode_cluster.cu.
    #[test]
    fn clusters_share_all_keys_and_the_first_ones_work() {
        for clusters in 1..=MOST_CLUSTERS {
            for (keys, ctas) in
                (0..3000usize).chain([8191, 8192, 32768]).flat_map(|n| [8, 4, 2].map(|c| (n, c)))
            {
                let splits = clusters * ctas;
                let share = keys.div_ceil(splits).next_multiple_of(16).max(16);
                let working = keys.div_ceil(share * ctas).max(1);
                assert!(
                    working <= clusters && working * ctas * share >= keys,
                    "{keys} in {clusters} of {ctas}"
                );
            }
        }
    }

    #[test]
    fn decode_fills_the_gpu_and_no_more() {
        let splits = |bucket| portable(&cache(28, 4, 128, bucket), 1);
        assert_eq!(splits(512), Choice::Decode { tiles: 1, splits: 8 });
        assert_eq!(splits(2048), Choice::Decode { tiles: 1, splits: 32 });
        assert_eq!(splits(32768), Choice::Decode { tiles: 1, splits: 33 });
        assert_eq!(splits(1), Choice::Decode { tiles: 1, splits: 1 });
        assert_eq!(portable(&cache(28, 4, 128, 8192), 8), Choice::Decode { tiles: 4, splits: 8 });
        assert_eq!(portable(&cache(256, 256, 64, 8192), 1), Choice::Decode { tiles: 1, splits: 1 });
    }

    #[test]
    fn other_head_dims_and_scales_run_the_plain_kernel() {
        for arch in [80, 90] {
            for wanted in [Switches::default(), asked("wgmma")] {
                let choose = |op: Attention, t| choose(&op, t, arch, wanted);
                assert_eq!(choose(cache(2, 1, 80, 512), 1), Choice::Naive);
                assert_eq!(choose(cache(2, 1, 80, 512), 300), Choice::Naive);
                assert_eq!(choose(Attention { scale: -1.0, ..cache(2, 1, 64, 512) }, 300), Choice::Naive);
                assert_eq!(choose(Attention { scale: f32::NAN, ..cache(2, 1, 64, 512) }, 300), Choice::Naive);
            }
        }
    }

    #[test]
    fn small_tiles_where_large_ones_leave_sms_idle() {
        let prefill = |s| portable(&cache(28, 4, 128, s), s);
        for s in [9, 512, 1024] {
            assert_eq!(prefill(s), Choice::Flash { rows: 64 }, "{s}");
        }
        for s in [2048, 4096] {
            assert_eq!(prefill(s), Choice::Flash { rows: 128 }, "{s}");
        }
        assert_eq!(portable(&vit(1), 1025), Choice::Flash { rows: 64 });
        assert_eq!(portable(&vit(13), 13 * 1025), Choice::Flash { rows: 128 });
    }

    #[test]
    fn wgmma_where_it_was_measured_ahead() {
        let lm = |rows, bucket| (cache(28, 4, 128, bucket), rows);
        let audio = |rows| (Attention { bias: true, ..vit(1) }, rows);
        let chunks = |rows| (Attention { mask: Mask::Chunk { size: 16, left: -1 }, ..vit(1) }, rows);
        for ((op, t), ahead) in [
            (lm(128, 256), false),
            (lm(512, 512), true),
            (lm(1024, 1024), true),
            (lm(4096, 4096), true),
            (lm(256, 2048), true),
            (lm(9, 2048), true),
            ((vit(1), 1025), true),
            ((vit(4), 4 * 1025), true),
            ((vit(13), 13 * 1025), true),
            // 300 rows each: the keys of one sequence count.
            ((vit(4), 4 * 300), false),
            (audio(74), false),
            (audio(249), true),
            (audio(749), true),
            (chunks(749), false),
        ] {
            let wgmma = choose(&op, t, 90, Switches::default()) == Choice::Wgmma;
            assert_eq!(wgmma, ahead, "{t} rows of {op:?}");
            // Elsewhere, and where something else is asked for.
            assert_eq!(choose(&op, t, 90, asked("wgmma")), Choice::Wgmma);
            for (arch, wanted) in [(80, ""), (80, "wgmma"), (100, "wgmma"), (90, "mma")] {
                assert_eq!(choose(&op, t, arch, asked(wanted)), portable(&op, t));
            }
        }
        // One row is a decode step.
        let one_row = choose(&cache(28, 4, 128, 2048), 1, 90, Switches::default());
        assert!(matches!(one_row, Choice::DecodeCluster { .. }), "{one_row:?}");
        let long = |t, arch| choose(&cache(28, 4, 128, 32768), t, arch, Switches::default());
        assert_eq!(long(1, 90), Choice::DecodeCluster { tiles: 1, clusters: 6, ctas: 8, stages: 2 });
        assert!(matches!(long(4, 90), Choice::DecodeCluster { .. } | Choice::Decode { .. }));
        assert!(matches!(long(1, 80), Choice::Decode { .. }));
        let tiny = Attention { bias: true, scale: SMALLEST_SCALE / 2.0, ..vit(1) };
        assert!(matches!(choose(&tiny, 749, 90, asked("wgmma")), Choice::Flash { .. }));
        for bad in ["", "WGMMA", "wgmma/1", "wgmma-free"] {
            assert_eq!(Wanted::parse(bad), None, "{bad}");
        }
    }
}
