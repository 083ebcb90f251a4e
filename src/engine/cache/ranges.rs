//! First fit in a row of rows.

use std::ops::Range;

/// The first of `len` rows from which on `n` are free; `None` where no gap is that long.
pub(super) fn first_gap(taken: impl Iterator<Item = Range<usize>>, len: usize, n: usize) -> Option<usize> {
    let mut taken: Vec<Range<usize>> = taken.collect();
    taken.sort_by_key(|r| r.start);
    let mut free = 0;
    for range in taken {
        if range.start >= free + n {
            break;
        }
        free = free.max(range.end);
    }
    (free + n <= len).then_some(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gap_that_is_long_enough() {
        let gap = |n| first_gap([6..8, 0..2, 3..5].into_iter(), 12, n);
        assert_eq!([0, 1, 2, 4, 5].map(gap), [Some(0), Some(2), Some(8), Some(8), None]);
        assert_eq!(first_gap(std::iter::empty(), 3, 3), Some(0));
        assert_eq!(first_gap(std::iter::once(0..3), 3, 1), None);
    }
}
