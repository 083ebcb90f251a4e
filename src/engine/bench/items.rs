//! What there is to time.

use crate::core::Result;

/// Text tokens of the mixed request, the template's included.
pub(super) const MIXED_TEXT_TOKENS: usize = 128;
/// Rows that the mixed request may need on top: one tile, ten seconds of sound, and a byte tokenizer's template.
pub(super) const MIXED_CONTEXT: usize = 1024;

/// One thing to time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Item {
    Load,
    /// One token; this many rows in the cache, its own included.
    Decode(usize),
    /// A token of each of several sequences; rows of each in its cache, sequences.
    DecodeBatch(usize, usize),
    /// A prompt of this many tokens up to its first token.
    Prefill(usize),
    /// Tiles.
    Vision(usize),
    /// Log-mel frames.
    Audio(usize),
    /// 1 tile, 10 s of sound and 128 text tokens, from decoded pixels and samples to the first token on the host.
    FirstToken,
    /// The same where an earlier question had the system text and the picture, but another text and another sound.
    FirstTokenCached,
    /// The same where the sound was encoded while it came in: from its end.
    FirstTokenStreamed,
    /// [`Item::FirstToken`], each request after half a second in which nothing runs, as a single user's are: one after the
    /// other, they keep the chip at its power limit.
    FirstTokenRested,
}

pub(super) const FULL_ITEMS: &[Item] = &[
    Item::Load,
    Item::Decode(512),
    Item::DecodeBatch(512, 8),
    Item::DecodeBatch(512, 16),
    Item::Decode(4096),
    Item::Decode(16384),
    Item::Decode(32768),
    Item::Prefill(128),
    Item::Prefill(256),
    Item::Prefill(512),
    Item::Prefill(1024),
    Item::Prefill(2048),
    Item::Prefill(3584),
    Item::Vision(1),
    Item::Vision(4),
    Item::Vision(13),
    Item::Audio(300),
    Item::Audio(1000),
    Item::Audio(3000),
    Item::FirstToken,
    Item::FirstTokenCached,
    Item::FirstTokenStreamed,
    Item::FirstTokenRested,
];

pub(super) const SMALL_ITEMS: &[Item] = &[
    Item::Load,
    Item::Decode(512),
    Item::DecodeBatch(512, 8),
    Item::Prefill(128),
    Item::Vision(1),
    Item::Audio(300),
    Item::FirstToken,
    Item::FirstTokenCached,
    Item::FirstTokenStreamed,
];

impl Item {
    pub(super) fn name(self) -> String {
        match self {
            Item::Load => "load".to_owned(),
            Item::Decode(n) => format!("decode_{n}"),
            Item::DecodeBatch(n, sequences) => format!("decode_{n}_batch_{sequences}"),
            Item::Prefill(n) => format!("prefill_{n}"),
            Item::Vision(n) => format!("vision_{n}"),
            Item::Audio(n) => format!("audio_{n}"),
            Item::FirstToken => "first_token".to_owned(),
            Item::FirstTokenRested => "first_token_rested".to_owned(),
            Item::FirstTokenCached => "first_token_cached".to_owned(),
            Item::FirstTokenStreamed => "first_token_streamed".to_owned(),
        }
    }

    pub(super) fn about(self) -> String {
        match self {
            Item::Load => "open the model, weights resident".to_owned(),
            Item::Decode(n) => format!("one token, {n} rows in the cache"),
            Item::DecodeBatch(n, sequences) => {
                format!("a token of each of {sequences} sequences, {n} rows each")
            }
            Item::Prefill(n) => format!("prompt of {n} tokens"),
            Item::Vision(1) => "1 tile".to_owned(),
            Item::Vision(n) => format!("{n} tiles"),
            Item::Audio(n) => format!("{n} frames of sound"),
            Item::FirstTokenCached => "the same, system text and picture known".to_owned(),
            Item::FirstTokenStreamed => "the same, and the sound encoded while it came in".to_owned(),
            Item::FirstToken | Item::FirstTokenRested => {
                let rested = if self == Item::FirstToken { "" } else { ", each after half a second of rest" };
                format!("1 tile + 10 s of sound + {MIXED_TEXT_TOKENS} text tokens, to the token{rested}")
            }
        }
    }

    /// Rows of context that it wants of a model that has `most`: more than that where it cannot do with these.
    pub(super) fn context(self, most: usize) -> usize {
        match self {
            Item::Load | Item::Vision(_) => 64,
            Item::Decode(n) | Item::DecodeBatch(n, _) | Item::Prefill(n) => n.max(most.min(n + 16)),
            Item::Audio(n) => n / 8 + 64,
            Item::FirstToken | Item::FirstTokenRested | Item::FirstTokenCached | Item::FirstTokenStreamed => {
                MIXED_CONTEXT
            }
        }
    }
}

/// The items whose name contains one of the comma-separated parts of `filter`: `decode_512` are also its batches.
pub(super) fn selected(items: impl Iterator<Item = Item>, filter: Option<&str>) -> Result<Vec<Item>> {
    let items: Vec<Item> = items.collect();
    let Some(filter) = filter else { return Ok(items) };
    let parts: Vec<&str> = filter.split(',').map(str::trim).filter(|p| !p.is_empty()).collect();
    let names = |items: &[Item]| items.iter().map(|i| i.name()).collect::<Vec<_>>().join(", ");
    let wanted: Vec<Item> =
        items.iter().copied().filter(|i| parts.iter().any(|p| i.name().contains(p))).collect();
    crate::ensure_input!(
        !wanted.is_empty(),
        "--filter {filter}: nothing matches; there are: {}",
        names(&items)
    );
    Ok(wanted)
}
