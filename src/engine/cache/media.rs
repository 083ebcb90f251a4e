//! Pictures and sounds that were met: recognised by comparing all that the encoder's input is made of, and where their
//! rows lie in the media state.

use std::ops::Range;

use super::ranges::first_gap;
use crate::core::Result;
use crate::media::audio::Sound;
use crate::media::fbank::FbankOptions;
use crate::media::image::Picture;
use crate::media::tiles::TileOptions;

/// A number for each content; it is never used again for another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Content(pub u64);

/// All that decides the rows that an encoder gives.
#[derive(Clone, Copy)]
pub(in crate::engine) enum Source<'a> {
    Picture(&'a Picture, TileOptions),
    /// Frames, and the side of a tile.
    Video(&'a [Picture], usize),
    Sound(&'a Sound, FbankOptions),
}

/// A [`Source`] that is kept, to compare with.
enum Kept {
    Picture(Picture, TileOptions),
    Video(Vec<Picture>, usize),
    Sound(Sound, FbankOptions),
}

impl Source<'_> {
    /// Equal in every byte. Floats are compared as bits: 0 and -0 are two things.
    pub fn same(&self, other: &Source<'_>) -> bool {
        match (self, other) {
            (Source::Picture(a, with), Source::Picture(b, options)) => with == options && a == b,
            (Source::Video(a, with), Source::Video(b, size)) => with == size && a == b,
            (Source::Sound(a, with), Source::Sound(b, options)) => {
                with.seed == options.seed
                    && with.dither.to_bits() == options.dither.to_bits()
                    && a.rate_hz == b.rate_hz
                    && bits(a) == bits(b)
            }
            _ => false,
        }
    }

    fn keep(&self) -> Kept {
        match *self {
            Source::Picture(p, o) => Kept::Picture(p.clone(), o),
            Source::Video(frames, size) => Kept::Video(frames.to_vec(), size),
            Source::Sound(s, o) => Kept::Sound(s.clone(), o),
        }
    }

    fn bytes(&self) -> u64 {
        let bytes = match self {
            Source::Picture(p, _) => p.data.len(),
            Source::Video(frames, _) => frames.iter().map(|p| p.data.len()).sum(),
            Source::Sound(s, _) => size_of_val(&s.samples[..]),
        };
        bytes as u64
    }
}

impl Kept {
    fn source(&self) -> Source<'_> {
        match self {
            Kept::Picture(p, o) => Source::Picture(p, *o),
            Kept::Video(frames, size) => Source::Video(frames, *size),
            Kept::Sound(s, o) => Source::Sound(s, *o),
        }
    }
}

fn bits(sound: &Sound) -> &[u8] {
    bytemuck::cast_slice(&sound.samples)
}

struct Entry {
    content: Content,
    /// Absent until it is kept, and where it is too large for that.
    source: Option<Kept>,
    tiles: usize,
    rows: usize,
    /// First row in the media state, while it is there.
    first_row: Option<usize>,
    used: u64,
    /// Questions for which it stays, whatever the limits say.
    held: u8,
}

impl Entry {
    /// Bytes kept to compare with.
    fn bytes(&self) -> u64 {
        self.source.as_ref().map_or(0, |kept| kept.source().bytes())
    }

    fn range(&self) -> Option<Range<usize>> {
        self.first_row.map(|first| first..first + self.rows)
    }
}

/// Where the rows of a content are to lie for the next prefill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Placed {
    pub content: Content,
    pub first_row: usize,
    /// They are not there yet.
    pub wanted: bool,
}

/// Contents, bounded in number and in bytes of host memory; the least recently used go first, those of the current
/// question never.
pub(in crate::engine) struct Media {
    /// Rows of the media state.
    rows: usize,
    limit_bytes: u64,
    entries: Vec<Entry>,
    next: u64,
    /// Counts questions.
    clock: u64,
    evicted: u64,
}

/// Contents at most: looking through them takes no time worth counting.
const MOST: usize = 512;

impl Media {
    pub(super) fn new(rows: usize, limit_bytes: u64) -> Media {
        Media { rows, limit_bytes, entries: Vec::new(), next: 0, clock: 0, evicted: 0 }
    }

    pub fn len(&self) -> usize {
        self.entries.iter().filter(|e| e.source.is_some()).count()
    }

    /// Bytes kept to compare with.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(Entry::bytes).sum()
    }

    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// A question begins: what it finds and what it brings stays until the next one.
    pub fn begin(&mut self) {
        self.clock += 1;
        let limit = self.limit_bytes;
        for e in self.entries.iter_mut().filter(|e| e.held > 0) {
            e.held -= 1;
            if e.held == 0 && e.bytes() > limit {
                e.source = None;
            }
        }
        self.entries.retain(|e| e.source.is_some());
        self.trim();
    }

    /// Lets the least recently used go until what nothing holds keeps to the limits.
    fn trim(&mut self) {
        loop {
            let loose = self.entries.iter().enumerate().filter(|(_, e)| e.held == 0 && e.source.is_some());
            let bytes: u64 = loose.clone().map(|(_, e)| e.bytes()).sum();
            let over = loose.clone().count() > MOST || bytes > self.limit_bytes;
            match loose.min_by_key(|(_, e)| e.used) {
                Some((oldest, _)) if over => self.entries.remove(oldest),
                _ => return,
            };
            self.evicted += 1;
        }
    }

    /// The content that is equal to `source`, with its tiles and rows.
    pub fn find(&mut self, source: &Source<'_>) -> Option<(Content, usize, usize)> {
        let clock = self.clock;
        let same = |e: &&mut Entry| e.source.as_ref().is_some_and(|kept| kept.source().same(source));
        let entry = self.entries.iter_mut().find(same)?;
        entry.used = clock;
        Some((entry.content, entry.tiles, entry.rows))
    }

    /// A new content of `tiles` tiles (none for a sound) and `rows` rows, for the current question.
    pub fn insert(&mut self, tiles: usize, rows: usize) -> Content {
        let content = Content(self.next);
        self.next += 1;
        let used = self.clock;
        self.entries.push(Entry { content, source: None, tiles, rows, first_row: None, used, held: 0 });
        content
    }

    /// Keeps what `content` is made of for the next question, even where nothing is kept otherwise, and as long as its rows
    /// are there: without them it need not be found.
    pub fn hold(&mut self, content: Content, source: &Source<'_>) {
        for e in self.entries.iter_mut() {
            if e.content == content {
                // The question that begins next is the last one that has to find it.
                (e.source, e.held) = (Some(source.keep()), 2);
            } else if e.first_row.is_none() {
                e.held = 0;
            }
        }
        self.trim();
    }

    /// Nothing came of `content`.
    pub fn forget(&mut self, content: Content) {
        self.entries.retain(|e| e.content != content);
    }

    /// Keeps a copy of what `content` is made of, so that later questions find it: if need be in place of others, and
    /// not at all where it does not fit beside those of the current question.
    pub fn keep(&mut self, content: Content, source: &Source<'_>) {
        let bytes = source.bytes();
        if bytes > self.limit_bytes {
            return;
        }
        while self.len() >= MOST || self.bytes() + bytes > self.limit_bytes {
            let old = self.entries.iter().enumerate().filter(|(_, e)| e.used < self.clock && e.held == 0);
            let Some((oldest, _)) = old.min_by_key(|(_, e)| e.used) else { return };
            self.entries.remove(oldest);
            self.evicted += 1;
        }
        if let Some(e) = self.entries.iter_mut().find(|e| e.content == content) {
            e.source = Some(source.keep());
        }
    }

    /// Finds room for the rows of every content in `needed` (each named once), without moving those that are there.
    /// Rows of other contents give way, the least recently used first. What is `wanted` counts as there after
    /// [`Media::settle`].
    pub fn place(&mut self, needed: &[Content]) -> Result<Vec<Placed>> {
        loop {
            match self.fit(needed) {
                Ok(placed) => return Ok(placed),
                Err(()) if self.give_way(needed) => {}
                Err(()) => break,
            }
        }
        // The gaps between those that are there are too small: all anew.
        self.entries.iter_mut().for_each(|e| e.first_row = None);
        match self.fit(needed) {
            Ok(placed) => Ok(placed),
            Err(()) => crate::bail_runtime!("pictures and sounds do not fit the {} media rows", self.rows),
        }
    }

    fn fit(&self, needed: &[Content]) -> Result<Vec<Placed>, ()> {
        let mut taken: Vec<Range<usize>> = self.entries.iter().filter_map(Entry::range).collect();
        let mut placed = Vec::with_capacity(needed.len());
        for &content in needed {
            let entry = self.entries.iter().find(|e| e.content == content).ok_or(())?;
            let (first_row, wanted) = match entry.first_row {
                Some(first) => (first, false),
                None => {
                    let first = first_gap(taken.iter().cloned(), self.rows, entry.rows).ok_or(())?;
                    taken.push(first..first + entry.rows);
                    (first, true)
                }
            };
            placed.push(Placed { content, first_row, wanted });
        }
        Ok(placed)
    }

    /// Lets the rows of the least recently used content go that nobody needs now.
    fn give_way(&mut self, needed: &[Content]) -> bool {
        let there = self.entries.iter_mut().filter(|e| e.first_row.is_some() && !needed.contains(&e.content));
        match there.min_by_key(|e| e.used) {
            Some(entry) => {
                entry.first_row = None;
                true
            }
            None => false,
        }
    }

    /// The rows of all of `placed` are there, in the order of the text lane.
    pub fn settle(&mut self, placed: &[Placed]) {
        for p in placed {
            if let Some(e) = self.entries.iter_mut().find(|e| e.content == p.content) {
                e.first_row = Some(p.first_row);
            }
        }
    }

    /// Something else is written to these rows.
    pub fn overwritten(&mut self, rows: Range<usize>) {
        for e in &mut self.entries {
            if e.range().is_some_and(|r| r.start < rows.end && rows.start < r.end) {
                e.first_row = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 56;

    fn picture(seed: u8) -> Picture {
        let data = (0..8 * 4 * 3).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)).collect();
        Picture::new(8, 4, data).unwrap()
    }

    fn tiling(max_tiles: usize) -> TileOptions {
        TileOptions { size: SIZE, max_tiles, ..TileOptions::default() }
    }

    fn insert(m: &mut Media, source: &Source<'_>, tiles: usize, rows: usize) -> Content {
        let content = m.insert(tiles, rows);
        m.keep(content, source);
        content
    }

    fn media(limit_bytes: u64) -> Media {
        let mut m = Media::new(32, limit_bytes);
        m.begin();
        m
    }

    #[test]
    fn a_picture_is_found_by_all_of_its_pixels_and_options() {
        let mut m = media(1 << 20);
        let a = picture(0);
        let id = insert(&mut m, &Source::Picture(&a, tiling(12)), 1, 4);
        assert_eq!(m.find(&Source::Picture(&a.clone(), tiling(12))), Some((id, 1, 4)));
        // Every single byte counts, the last one too.
        for at in 0..a.data.len() {
            let mut b = a.clone();
            b.data[at] ^= 1;
            assert_eq!(m.find(&Source::Picture(&b, tiling(12))), None, "byte {at}");
        }
        // The same bytes in another shape, with another limit, another tile size, as a frame.
        let turned = Picture::new(4, 8, a.data.clone()).unwrap();
        assert_eq!(m.find(&Source::Picture(&turned, tiling(12))), None);
        assert_eq!(m.find(&Source::Picture(&a, tiling(6))), None);
        assert_eq!(m.find(&Source::Picture(&a, TileOptions { size: 448, ..tiling(12) })), None);
        assert_eq!(m.find(&Source::Video(std::slice::from_ref(&a), SIZE)), None);
    }

    #[test]
    fn a_sound_is_found_by_all_of_its_samples_and_options() {
        let mut m = media(1 << 20);
        let sound = Sound::new(16_000, (0..2000).map(|i| (i as f32).sin()).collect()).unwrap();
        let plain = FbankOptions::default();
        let id = insert(&mut m, &Source::Sound(&sound, plain), 0, 1);
        assert_eq!(m.find(&Source::Sound(&sound.clone(), plain)), Some((id, 0, 1)));
        let other = |change: &dyn Fn(&mut Sound)| {
            let mut s = sound.clone();
            change(&mut s);
            s
        };
        let rate = other(&|s| s.rate_hz = 8000);
        let shorter = other(&|s| s.samples.truncate(1999));
        let last = other(&|s| s.samples[1999] += 1e-7);
        let sign = other(&|s| s.samples[0] = -s.samples[0]);
        for s in [rate, shorter, last, sign] {
            assert_eq!(m.find(&Source::Sound(&s, plain)), None);
        }
        assert_eq!(m.find(&Source::Sound(&sound, FbankOptions { dither: 1.0, ..plain })), None);
        assert_eq!(m.find(&Source::Sound(&sound, FbankOptions { seed: 1, ..plain })), None);
    }

    #[test]
    fn videos_are_found_by_every_frame_in_order() {
        let mut m = media(1 << 20);
        let frames = [picture(0), picture(1)];
        let id = insert(&mut m, &Source::Video(&frames, SIZE), 2, 8);
        assert_eq!(m.find(&Source::Video(&frames, SIZE)).map(|f| f.0), Some(id));
        let swapped = [picture(1), picture(0)];
        assert_eq!(m.find(&Source::Video(&swapped, SIZE)), None);
        assert_eq!(m.find(&Source::Video(&frames[..1], SIZE)), None);
    }

    #[test]
    fn bytes_are_bounded_and_the_least_recently_used_goes_first() {
        let one = picture(0).data.len() as u64;
        let mut m = media(3 * one);
        let pictures: Vec<Picture> = (0..5).map(picture).collect();
        let source = |i: usize| Source::Picture(&pictures[i], tiling(12));
        for i in 0..3 {
            m.begin();
            insert(&mut m, &source(i), 1, 4);
        }
        m.begin();
        assert!(m.find(&source(0)).is_some());
        let third = insert(&mut m, &source(3), 1, 4);
        assert_eq!((m.bytes(), m.len(), m.evicted()), (3 * one, 3, 1));
        assert_eq!([0, 1, 2, 3].map(|i| m.find(&source(i)).is_some()), [true, false, true, true]);
        // All three belong to the current question now: a fourth is not kept, but can be used.
        let fourth = insert(&mut m, &source(4), 1, 4);
        assert_ne!(third, fourth);
        assert!(m.find(&source(4)).is_none() && m.bytes() == 3 * one);
        assert_eq!(m.place(&[fourth]).unwrap()[0].first_row, 0);
        m.begin();
        assert!(m.place(&[fourth]).is_err(), "it was of that question only");
        // What is larger than all room takes nobody's place.
        let large = Picture::new(64, 8, vec![0; 64 * 8 * 3]).unwrap();
        insert(&mut m, &Source::Picture(&large, tiling(12)), 1, 4);
        assert_eq!((m.len(), m.evicted()), (3, 1));
        // Nothing is kept with a limit of 0.
        let mut off = media(0);
        insert(&mut off, &source(0), 1, 4);
        assert!(off.find(&source(0)).is_none() && off.len() == 0);
    }

    #[test]
    fn what_is_held_stays_for_the_next_question_whatever_the_limit() {
        for limit in [0, 1 << 20] {
            let mut m = media(limit);
            let a = picture(0);
            let id = m.insert(1, 4);
            m.hold(id, &Source::Picture(&a, tiling(12)));
            m.begin();
            assert_eq!(m.find(&Source::Picture(&a, tiling(12))), Some((id, 1, 4)));
            m.begin();
            assert_eq!(m.find(&Source::Picture(&a, tiling(12))).is_some(), limit > 0, "limit {limit}");
        }
    }

    #[test]
    fn what_was_held_keeps_to_the_limits_afterwards() {
        let one = picture(0).data.len() as u64;
        let mut m = media(3 * one);
        let hold = |m: &mut Media, seed: u8| {
            let (content, picture) = (m.insert(1, 4), picture(seed));
            let placed = m.place(&[content]).unwrap();
            m.settle(&placed);
            m.hold(content, &Source::Picture(&picture, tiling(12)));
        };
        let known = |m: &mut Media, seed: u8| m.find(&Source::Picture(&picture(seed), tiling(12))).is_some();
        // Turns of one each: the question finds what is held, and what is over the limit goes.
        for seed in 0..20 {
            hold(&mut m, seed);
            m.begin();
            assert!(known(&mut m, seed));
            assert!(m.bytes() <= 4 * one && m.len() <= 4, "{} of {}", m.bytes(), m.len());
        }
        m.begin();
        assert_eq!((m.bytes(), m.evicted()), (3 * one, 17));
        assert_eq!([16, 17, 19].map(|seed| known(&mut m, seed)), [false, true, true]);
        // Without a question in between: 32 rows are 8 of them, and the first ones have lost theirs.
        for seed in 100..120 {
            hold(&mut m, seed);
        }
        assert!(m.bytes() <= (8 + 3) * one, "{}", m.bytes());
        m.begin();
        assert!((112..120).all(|seed| known(&mut m, seed)));
        assert!(!known(&mut m, 100));
        // A limit of 0 keeps what is held, and nothing else.
        let mut off = media(0);
        for seed in 0..3 {
            hold(&mut off, seed);
            off.begin();
            assert!(known(&mut off, seed) && off.len() == 1);
        }
    }

    #[test]
    fn numbers_are_never_used_again() {
        let mut m = media(1 << 20);
        let a = insert(&mut m, &Source::Picture(&picture(0), tiling(12)), 1, 4);
        m.clear();
        let b = insert(&mut m, &Source::Picture(&picture(0), tiling(12)), 1, 4);
        assert_ne!(a, b);
    }

    #[test]
    fn rows_stay_while_there_is_room_and_give_way_by_age() {
        let mut m = media(1 << 20);
        let add = |m: &mut Media, seed: u8, rows: usize| {
            m.begin();
            insert(m, &Source::Picture(&picture(seed), tiling(12)), 1, rows)
        };
        let settle = |m: &mut Media, needed: &[Content]| {
            let placed = m.place(needed).unwrap();
            m.settle(&placed);
            placed.iter().map(|p| (p.first_row, p.wanted)).collect::<Vec<_>>()
        };
        let a = add(&mut m, 0, 12);
        assert_eq!(settle(&mut m, &[a]), [(0, true)]);
        let b = add(&mut m, 1, 12);
        assert_eq!(settle(&mut m, &[b, a]), [(12, true), (0, false)]);
        m.begin();
        m.find(&Source::Picture(&picture(0), tiling(12)));
        let c = add(&mut m, 2, 10);
        assert_eq!(settle(&mut m, &[a, c]), [(0, false), (12, true)], "b was older than a");
        assert_eq!(settle(&mut m, &[b]), [(22, true)].map(|_| (0, true)), "then a, then c");
        // 8 rows at 12..20 stay: neither gap holds 16. All anew.
        let mut m = media(1 << 20);
        let d = add(&mut m, 3, 8);
        let e = add(&mut m, 4, 16);
        m.settle(&[Placed { content: d, first_row: 12, wanted: true }]);
        assert_eq!(settle(&mut m, &[e, d]), [(0, true), (16, true)]);
        assert!(m.place(&[e, d, Content(9)]).is_err());
    }

    #[test]
    fn overwritten_rows_are_no_longer_there() {
        let mut m = media(1 << 20);
        let a = insert(&mut m, &Source::Picture(&picture(0), tiling(12)), 1, 4);
        let b = insert(&mut m, &Source::Picture(&picture(1), tiling(12)), 1, 4);
        let placed = m.place(&[a, b]).unwrap();
        m.settle(&placed);
        m.overwritten(8..20);
        assert!(m.place(&[a, b]).unwrap().iter().all(|p| !p.wanted));
        m.overwritten(3..4);
        assert_eq!(m.place(&[a, b]).unwrap().iter().map(|p| p.wanted).collect::<Vec<_>>(), [true, false]);
    }
}
