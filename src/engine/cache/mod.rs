//! What is kept of earlier questions, keyed by content, so that what comes again is not computed again.
//!
//! Three things, each with its books here and its rows in states of the model:
//!
//! - The KV cache itself: a new conversation goes on from the longest beginning that it shares with the last one. A row
//!   is known by its token, or by the picture or sound it is a row of; keys and values of a row depend on these and
//!   on the rows before it, on nothing else.
//! - Beginnings of other conversations ([`Prefixes`]): rows that are about to be overwritten are copied to states of
//!   their own, and copied back when a question begins like them.
//! - Pictures and sounds ([`Media`]): their rows stay in the media state, for another place in another conversation.
//!
//! A picture or sound is recognised by comparing all of its bytes and options with a copy, not by a hash: there is no
//! wrong hit. Every way of writing to the states tells the books first (see [`super::model`]).

mod media;
mod prefixes;
mod ranges;

use serde::Serialize;

pub(super) use media::{Content, Media, Placed, Source};
pub(super) use prefixes::{PrefixId, Prefixes};

use crate::core::Result;

/// How much is kept of earlier questions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheOptions {
    /// Without it every question is computed whole. Answers then repeat to the bit, whatever was asked before; with
    /// it they do where the device takes the same kernels for a whole prompt and for its rest (the CPU does), and
    /// else agree as a prompt in one piece and in chunks do.
    pub enabled: bool,
    /// Device memory for the beginnings of other conversations, taken when the first is kept; and as much host memory
    /// for pictures and sounds to compare with. What was not used for longest goes first.
    pub bytes: u64,
}

impl Default for CacheOptions {
    fn default() -> Self {
        CacheOptions { enabled: true, bytes: 512 << 20 }
    }
}

/// What one question did not have to compute.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct CacheUse {
    /// Rows of the question that were in the KV cache, or were copied back to it.
    pub reused_rows: usize,
    /// Rows that went through the model; with `reused_rows` all rows of the question.
    pub prefilled_rows: usize,
    /// Pictures (a video is one) and sounds whose rows were there.
    pub media_reused: usize,
    /// Those that went through their encoder.
    pub media_encoded: usize,
}

/// What is kept, and what it was good for since the model was opened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct CacheStats {
    pub reused_rows: u64,
    pub prefilled_rows: u64,
    pub media_reused: u64,
    pub media_encoded: u64,
    /// Rows of the KV cache that a next conversation could begin with.
    pub kv_rows: usize,
    /// Kept beginnings of other conversations, the rows they take, and the device memory that was taken for such rows.
    pub prefixes: usize,
    pub prefix_rows: usize,
    pub prefix_bytes: u64,
    /// Pictures and sounds that would be recognised, and the host memory that this takes.
    pub media: usize,
    pub media_bytes: u64,
    /// Beginnings, pictures and sounds that made room for others.
    pub evicted: u64,
}

/// What a row of the sequence is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    Token(u32),
    Media { content: Content, row: u32 },
}

impl Key {
    /// The picture or sound that it is a row of.
    pub fn content(self) -> Option<Content> {
        match self {
            Key::Token(_) => None,
            Key::Media { content, .. } => Some(content),
        }
    }
}

/// A beginning of the sequence that need not be computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    /// Rows that the KV cache holds.
    pub resident: usize,
    /// Rows after those that are to be copied back, and from which kept beginning.
    pub restored: usize,
    pub kept: Option<PrefixId>,
}

impl Found {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.resident + self.restored
    }
}

/// Fewer rows are computed anew rather than copied: next to nothing beside the weights that a prefill reads anyway.
pub(super) const COPY_ROWS: usize = 16;

/// The books.
pub(super) struct Cache {
    enabled: bool,
    /// What the first rows of the KV cache are.
    kv: Vec<Key>,
    pub media: Media,
    pub prefixes: Prefixes,
    used: CacheStats,
}

impl Cache {
    /// For `media_rows` rows of the media state and `row_bytes` of keys and values in a row of the sequence.
    pub fn new(options: CacheOptions, media_rows: usize, row_bytes: u64) -> Cache {
        let bytes = if options.enabled { options.bytes } else { 0 };
        Cache {
            enabled: options.enabled,
            kv: Vec::new(),
            media: Media::new(media_rows, bytes),
            prefixes: Prefixes::new((bytes / row_bytes.max(1)) as usize),
            used: CacheStats::default(),
        }
    }

    pub fn clear(&mut self) {
        self.kv.clear();
        self.media.clear();
        self.prefixes.clear();
    }

    /// Whether anything is found and kept.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// What the KV cache holds.
    pub fn kv(&self) -> &[Key] {
        &self.kv
    }

    /// Rows from `pos` on are about to be written.
    pub fn truncate(&mut self, pos: usize) {
        self.kv.truncate(pos);
    }

    /// These rows now follow.
    pub fn extend(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.kv.extend(keys);
    }

    /// What is there of a conversation of `pos` rows, which the KV cache holds, and the question `new` after them.
    /// The last row is always computed: the answer begins with its logits.
    pub fn find(&self, pos: usize, new: &[Key]) -> Result<Found> {
        let Some(before) = self.kv.get(..pos) else {
            crate::bail_runtime!("the KV cache holds {} of {pos} rows of the conversation", self.kv.len())
        };
        let mut found = Found { resident: pos, restored: 0, kept: None };
        if !self.enabled {
            return Ok(found);
        }
        let most = pos + new.len().saturating_sub(1);
        found.resident = (pos + common(&self.kv[pos..], new)).min(most);
        let matching = |keys: &[Key]| match common(keys, before) {
            n if n < pos => n,
            _ => (pos + common(&keys[pos..], new)).min(most),
        };
        if let Some((rows, id)) = self.prefixes.best(matching)
            && rows >= found.resident + COPY_ROWS
        {
            (found.restored, found.kept) = (rows - found.resident, Some(id));
        }
        Ok(found)
    }

    /// How many rows of the KV cache are to be kept before those from `from` on are overwritten: none where few would
    /// be lost, where they are kept already, or where there is no room for them.
    pub fn rows_to_keep(&mut self, from: usize) -> usize {
        let rows = self.kv.len();
        let worth = self.enabled && rows >= from + COPY_ROWS && rows <= self.prefixes.capacity();
        if worth && !self.prefixes.holds(&self.kv) { rows } else { 0 }
    }

    /// Counts an answered question.
    pub fn count(&mut self, answer: CacheUse) {
        let sums = &mut self.used;
        sums.reused_rows += answer.reused_rows as u64;
        sums.prefilled_rows += answer.prefilled_rows as u64;
        sums.media_reused += answer.media_reused as u64;
        sums.media_encoded += answer.media_encoded as u64;
    }

    /// `prefix_bytes`: what the states of the kept rows take.
    pub fn stats(&self, prefix_bytes: u64) -> CacheStats {
        CacheStats {
            kv_rows: self.kv.len(),
            prefixes: self.prefixes.len(),
            prefix_rows: self.prefixes.rows(),
            prefix_bytes,
            media: self.media.len(),
            media_bytes: self.media.bytes(),
            evicted: self.prefixes.evicted() + self.media.evicted(),
            ..self.used
        }
    }
}

/// Length of the common beginning.
fn common(a: &[Key], b: &[Key]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
