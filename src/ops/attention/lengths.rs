//! Sequences of different lengths as the kernels take them: which ones a launch has, and where their tiles are.

/// Sequences of a launch: what fits into a kernel's parameters.
pub(super) const MOST_SEQUENCES: usize = 32;

/// `rows` rows from `row0` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sequence {
    pub row0: usize,
    pub rows: usize,
}

/// Sequences of these lengths, longest first; those of no rows are passed over. As many groups as launches are needed.
pub(super) fn groups(lengths: &[usize]) -> Vec<Vec<Sequence>> {
    let mut end = 0;
    let mut all: Vec<Sequence> = lengths
        .iter()
        .map(|&rows| {
            end += rows;
            Sequence { row0: end - rows, rows }
        })
        .filter(|s| s.rows > 0)
        .collect();
    all.sort_by_key(|s| std::cmp::Reverse(s.rows));
    all.chunks(MOST_SEQUENCES).map(<[Sequence]>::to_vec).collect()
}

/// `Lengths` of kernels/attention/params.cuh, which says what the fields mean.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    tiles: u32,
    row0: [u32; MOST_SEQUENCES],
    rows: [u32; MOST_SEQUENCES],
    tile0: [u32; MOST_SEQUENCES],
}

impl Lengths {
    /// Of a group, for tiles of `tile` query rows; no sequences stand for those of equal length.
    pub fn new(group: &[Sequence], tile: usize, causal: bool) -> Lengths {
        let mut lengths = Lengths {
            tiles: 0,
            row0: [0; MOST_SEQUENCES],
            rows: [0; MOST_SEQUENCES],
            tile0: [u32::MAX; MOST_SEQUENCES],
        };
        let tiles = |k: usize| group.get(k).map_or(0, |s: &Sequence| s.rows.div_ceil(tile));
        for (k, sequence) in group.iter().enumerate() {
            lengths.row0[k] = sequence.row0 as u32;
            lengths.rows[k] = sequence.rows as u32;
            lengths.tile0[k] = lengths.tiles;
            let here = if causal { (k + 1) * (tiles(k) - tiles(k + 1)) } else { tiles(k) };
            lengths.tiles += here as u32;
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ragged(n: usize) -> Vec<usize> {
        let mut x = n as u32 + 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as usize
        };
        (0..n).map(|_| [next() % 700, next() % 9, 64 * (next() % 5)][next() % 3]).collect()
    }

    #[test]
    fn groups_hold_every_row_once_longest_first() {
        assert_eq!(groups(&[]), Vec::<Vec<Sequence>>::new());
        assert_eq!(groups(&[0, 0]), Vec::<Vec<Sequence>>::new());
        let of = |row0, rows| Sequence { row0, rows };
        assert_eq!(groups(&[3, 0, 7, 7, 1]), [[of(3, 7), of(10, 7), of(0, 3), of(17, 1)]]);
        for n in [1, 31, 32, 33, 64, 100] {
            let lengths = vec![5; n];
            let sizes: Vec<usize> = groups(&lengths).iter().map(Vec::len).collect();
            assert_eq!(sizes.len(), n.div_ceil(MOST_SEQUENCES));
            assert!(sizes.iter().all(|s| *s <= MOST_SEQUENCES), "{sizes:?}");

            let lengths = ragged(n);
            let all = groups(&lengths).concat();
            assert!(all.is_sorted_by_key(|s| std::cmp::Reverse(s.rows)));
            let mut rows: Vec<usize> = all.iter().flat_map(|s| s.row0..s.row0 + s.rows).collect();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..lengths.iter().sum()), "{lengths:?}");
        }
    }

    /// `tile_of` of params.cuh: row0, rows and m0.
    fn tile_of(lengths: &Lengths, at: u32, bm: u32, causal: bool) -> [u32; 3] {
        let (mut k, mut step) = (0, MOST_SEQUENCES / 2);
        while step > 0 {
            if at >= lengths.tile0[k + step] {
                k += step;
            }
            step /= 2;
        }
        let mut tile = at - lengths.tile0[k];
        if causal {
            let (sharing, tiles) = (k as u32 + 1, lengths.rows[k].div_ceil(bm));
            k = (tile % sharing) as usize;
            tile = tiles - 1 - tile / sharing;
        }
        [lengths.row0[k], lengths.rows[k], tile * bm]
    }

    #[test]
    fn every_tile_once_and_none_before_a_longer_one() {
        let one = |n: usize| vec![n];
        let lengths = [one(1), one(64), one(65), one(1000), vec![749, 249, 125], vec![64; 32], vec![1; 32]];
        let random = [2, 5, 17, 31, 32].map(ragged);
        for lengths in lengths.into_iter().chain(random) {
            for group in groups(&lengths) {
                for (bm, causal) in [64, 128, 192].into_iter().flat_map(|bm| [(bm, false), (bm, true)]) {
                    let table = Lengths::new(&group, bm, causal);
                    let of = |s: &Sequence| {
                        (0..s.rows).step_by(bm).map(|m0| [s.row0, s.rows, m0].map(|x| x as u32)).collect()
                    };
                    let mut wanted: Vec<[u32; 3]> = group.iter().flat_map(|s| -> Vec<_> { of(s) }).collect();
                    let mut got: Vec<[u32; 3]> =
                        (0..table.tiles).map(|at| tile_of(&table, at, bm as u32, causal)).collect();
                    // What a tile's keys take: causal those up to its end, else all of the sequence.
                    let longest =
                        |[_, rows, m0]: &[u32; 3]| std::cmp::Reverse(if causal { *m0 } else { *rows });
                    assert!(got.is_sorted_by_key(longest), "{bm} {causal} {group:?}");
                    wanted.sort_unstable();
                    got.sort_unstable();
                    assert_eq!(got, wanted, "{bm} {causal}");
                }
            }
        }
    }

    #[test]
    fn no_sequences_stand_for_equal_ones() {
        let equal = Lengths::new(&[], 64, true);
        assert_eq!((equal.tiles, equal.tile0), (0, [u32::MAX; MOST_SEQUENCES]));
        assert_eq!(size_of::<Lengths>(), 4 + 12 * MOST_SEQUENCES);
    }
}
