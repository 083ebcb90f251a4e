//! Beginnings of other conversations: which of the kept rows they take, and which goes first.

use std::ops::Range;

use super::{Key, common};

/// Rows of a block. Beginnings that share all rows of a block share the block.
pub(super) const BLOCK_ROWS: usize = 64;

/// Names a kept beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct PrefixId(u64);

/// Consecutive rows: `rows` rows of the sequence from `row` on are the kept rows from `kept_row` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Run {
    pub row: usize,
    pub kept_row: usize,
    pub rows: usize,
}

/// Kept beginnings. Only the books: the rows themselves are states of the model.
pub(in crate::engine) struct Prefixes {
    /// Blocks that there are.
    blocks: usize,
    entries: Vec<Prefix>,
    /// Counts uses; names entries.
    clock: u64,
    evicted: u64,
}

struct Prefix {
    id: PrefixId,
    keys: Vec<Key>,
    blocks: Vec<usize>,
    used: u64,
}

/// A place for a beginning: its blocks, of which the first hold its rows already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Place {
    blocks: Vec<usize>,
    /// Rows that are there.
    shared_rows: usize,
}

impl Place {
    /// Where the rows of a beginning of `rows` rows are to be copied.
    pub fn runs(&self, rows: usize) -> Vec<Run> {
        runs(&self.blocks, self.shared_rows..rows)
    }
}

/// Where `rows` of the sequence lie, neighbouring blocks together.
fn runs(blocks: &[usize], rows: Range<usize>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut row = rows.start;
    while row < rows.end {
        let in_block = row % BLOCK_ROWS;
        let n = (BLOCK_ROWS - in_block).min(rows.end - row);
        let kept_row = blocks[row / BLOCK_ROWS] * BLOCK_ROWS + in_block;
        match runs.last_mut() {
            Some(last) if last.kept_row + last.rows == kept_row => last.rows += n,
            _ => runs.push(Run { row, kept_row, rows: n }),
        }
        row += n;
    }
    runs
}

impl Prefixes {
    /// With room for `rows` rows, in whole blocks.
    pub(super) fn new(rows: usize) -> Prefixes {
        Prefixes { blocks: rows / BLOCK_ROWS, entries: Vec::new(), clock: 0, evicted: 0 }
    }

    /// Rows that there are.
    pub fn capacity(&self) -> usize {
        self.blocks * BLOCK_ROWS
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Rows taken, those that several share once.
    pub fn rows(&self) -> usize {
        (self.blocks - self.free(&[]).len()) * BLOCK_ROWS
    }

    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Forgets everything, and keeps nothing from now on.
    pub fn close(&mut self) {
        self.entries.clear();
        self.blocks = 0;
    }

    /// Blocks that no entry has, without those in `but`.
    fn free(&self, but: &[usize]) -> Vec<usize> {
        let mut taken = vec![false; self.blocks];
        self.entries.iter().flat_map(|e| &e.blocks).chain(but).for_each(|&b| taken[b] = true);
        (0..self.blocks).filter(|&b| !taken[b]).collect()
    }

    /// The entry in which `matching` finds most rows, and how many.
    pub(super) fn best(&self, matching: impl Fn(&[Key]) -> usize) -> Option<(usize, PrefixId)> {
        self.entries.iter().map(|e| (matching(&e.keys), e.id)).max_by_key(|(n, _)| *n)
    }

    /// Where `rows` of an entry are kept. It now counts as used.
    pub fn take(&mut self, id: PrefixId, rows: Range<usize>) -> Vec<Run> {
        self.clock += 1;
        match self.entries.iter_mut().find(|e| e.id == id) {
            Some(e) => {
                e.used = self.clock;
                runs(&e.blocks, rows)
            }
            None => Vec::new(),
        }
    }

    /// Whether an entry begins with `keys`; it then counts as used.
    pub fn holds(&mut self, keys: &[Key]) -> bool {
        let id = self.entries.iter().find(|e| e.keys.starts_with(keys)).map(|e| e.id);
        id.inspect(|&id| drop(self.take(id, 0..0))).is_some()
    }

    /// Room for `keys`: what `keys` begins with goes, then what was not used for longest, never `spared`. `None` where
    /// there is no such room; nothing has gone then.
    pub fn make_room(&mut self, keys: &[Key], spared: Option<PrefixId>) -> Option<Place> {
        let wanted = keys.len().div_ceil(BLOCK_ROWS);
        let mut blocks = match self.entries.iter().max_by_key(|e| common(&e.keys, keys)) {
            Some(e) => e.blocks[..common(&e.keys, keys) / BLOCK_ROWS].to_vec(),
            None => Vec::new(),
        };
        let shared_rows = blocks.len() * BLOCK_ROWS;
        let is_spared = |e: &Prefix| Some(e.id) == spared;
        let held = self.entries.iter().filter(|e| is_spared(e)).flat_map(|e| &e.blocks);
        if wanted + held.filter(|b| !blocks.contains(b)).count() > self.blocks {
            return None;
        }
        self.entries.retain(|e| is_spared(e) || !keys.starts_with(&e.keys));
        let missing = wanted - blocks.len();
        let mut free = self.free(&blocks);
        while free.len() < missing {
            let candidates = self.entries.iter().enumerate().filter(|(_, e)| !is_spared(e));
            let (oldest, _) = candidates.min_by_key(|(_, e)| e.used)?;
            self.entries.remove(oldest);
            self.evicted += 1;
            free = self.free(&blocks);
        }
        blocks.extend(&free[..missing]);
        Some(Place { blocks, shared_rows })
    }

    /// The rows of `keys` are now at `place`, which [`Prefixes::make_room`] gave last.
    pub fn insert(&mut self, keys: Vec<Key>, place: Place) -> PrefixId {
        self.clock += 1;
        let id = PrefixId(self.clock);
        self.entries.push(Prefix { id, keys, blocks: place.blocks, used: self.clock });
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` rows that all conversations begin with, and then rows of one.
    fn keys(shared: usize, seed: u32, n: usize) -> Vec<Key> {
        let token = |i: usize| Key::Token(if i < shared { 0 } else { seed } * 10_000 + i as u32);
        (0..n).map(token).collect()
    }

    /// Keeps `keys`; returns how many rows had to be copied.
    fn keep(p: &mut Prefixes, keys: &[Key]) -> Option<usize> {
        let place = p.make_room(keys, None)?;
        let copied = place.runs(keys.len()).iter().map(|r| r.rows).sum();
        p.insert(keys.to_vec(), place);
        Some(copied)
    }

    fn found(p: &Prefixes, want: &[Key]) -> usize {
        p.best(|keys| common(keys, want)).map_or(0, |(n, _)| n)
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_bound_holds() {
        let mut p = Prefixes::new(6 * BLOCK_ROWS + 63);
        assert_eq!(p.capacity(), 384);
        let [a, b, c, d] = [1, 2, 3, 4].map(|seed| keys(2, seed, 100));
        for k in [&a, &b, &c] {
            assert_eq!(keep(&mut p, k), Some(100));
        }
        assert_eq!((p.rows(), p.len()), (384, 3));
        assert!(p.holds(&a[..70]), "a beginning of a kept one is kept");
        assert!(!p.holds(&d));
        assert_eq!(keep(&mut p, &d), Some(100));
        assert_eq!([&a, &b, &c, &d].map(|k| found(&p, k)), [100, 2, 100, 100], "b was not used for longest");
        assert_eq!((p.rows(), p.evicted()), (384, 1));
        // What is larger than everything takes nothing away.
        assert_eq!(keep(&mut p, &keys(2, 5, 385)), None);
        assert_eq!((p.len(), p.evicted()), (3, 1));
        // Blocks need no neighbours: c and a make room on both sides of d, which stays.
        let long = keys(2, 6, 200);
        assert_eq!(keep(&mut p, &long), Some(200));
        assert_eq!([&a, &c, &d, &long].map(|k| found(&p, k)), [2, 2, 100, 200]);
        assert_eq!((p.rows(), p.evicted()), (384, 3));
    }

    #[test]
    fn beginnings_share_their_first_blocks() {
        let mut p = Prefixes::new(8 * BLOCK_ROWS);
        // Five conversations of 200 rows with 150 in common: 2 blocks for all, 2 for each.
        assert_eq!(keep(&mut p, &keys(150, 1, 200)), Some(200));
        for seed in 2..=3 {
            assert_eq!(keep(&mut p, &keys(150, seed, 200)), Some(200 - 128));
        }
        assert_eq!((p.rows(), p.evicted()), (8 * BLOCK_ROWS, 0));
        for seed in 4..=5 {
            assert_eq!(keep(&mut p, &keys(150, seed, 200)), Some(200 - 128));
        }
        assert_eq!((p.rows(), p.len(), p.evicted()), (8 * BLOCK_ROWS, 3, 2));
        assert_eq!([1, 2, 3, 4, 5].map(|s| found(&p, &keys(150, s, 200))), [150, 150, 200, 200, 200]);
        // Nobody's block is written to while somebody has it.
        let place = p.make_room(&keys(0, 6, 64), None).unwrap();
        assert!(p.entries.iter().all(|e| !e.blocks.contains(&place.blocks[0])));
    }

    #[test]
    fn a_longer_beginning_takes_the_place_of_its_own_beginning() {
        let mut p = Prefixes::new(4 * BLOCK_ROWS);
        let long = keys(0, 1, 250);
        keep(&mut p, &long[..100]).unwrap();
        assert_eq!(keep(&mut p, &long), Some(250 - 64));
        assert_eq!((p.len(), p.rows(), p.evicted()), (1, 256, 0));
    }

    #[test]
    fn what_is_about_to_be_copied_back_stays() {
        let mut p = Prefixes::new(4 * BLOCK_ROWS);
        let (a, b) = (keys(2, 1, 100), keys(2, 2, 100));
        keep(&mut p, &a).unwrap();
        keep(&mut p, &b).unwrap();
        let (_, id) = p.best(|keys| common(keys, &a)).unwrap();
        assert_eq!(p.make_room(&keys(2, 3, 129), Some(id)), None);
        assert_eq!(p.len(), 2, "nothing went in vain");
        assert!(p.make_room(&keys(2, 3, 128), Some(id)).is_some());
        assert_eq!((found(&p, &a), found(&p, &b)), (100, 2));
    }

    #[test]
    fn neighbouring_blocks_are_copied_together() {
        let run = |row, kept_row, rows| Run { row, kept_row, rows };
        assert_eq!(runs(&[0, 1, 2], 0..150), [run(0, 0, 150)]);
        assert_eq!(runs(&[4, 5, 1], 10..150), [run(10, 266, 118), run(128, 64, 22)]);
        assert_eq!(runs(&[3, 2], 64..65), [run(64, 128, 1)]);
        assert_eq!(runs(&[3, 2], 64..64), []);
        let place = Place { blocks: vec![7, 0, 1], shared_rows: 64 };
        assert_eq!(place.runs(140), [run(64, 0, 76)]);
    }
}
