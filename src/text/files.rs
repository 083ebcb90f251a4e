//! The files of a tokenizer that comes without `tokenizer.json`, and the pipeline they make.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::core::error::{Error, Result};
use crate::{bail_input, ensure_input};

/// How Qwen2 cuts text into words before merging (the `pre_tokenizer` of its tokenizer.json).
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

/// `merges.txt`: one merge a line, two tokens with a space between; an optional `#version` line on top.
pub(super) fn parse_merges(text: &[u8], path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::str::from_utf8(text)
        .map_err(|e| Error::input(format!("{}: wanted UTF-8: {e}", path.display())))?;
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.is_empty() || (i == 0 && line.starts_with("#version")) {
            continue;
        }
        match line.split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => {
                merges.push((a.to_string(), b.to_string()));
            }
            _ => bail_input!(
                "{}: line {}: wanted two tokens and a space between; got {line:?}",
                path.display(),
                i + 1
            ),
        }
    }
    Ok(merges)
}

/// The `added_tokens_decoder` of a `tokenizer_config.json`, by rising id.
pub(super) fn parse_added_tokens(json: &[u8], path: &Path) -> Result<Vec<(u32, AddedToken)>> {
    let path = path.display();
    let config: Value = serde_json::from_slice(json)
        .map_err(|e| Error::input(format!("{path}: not readable as JSON: {e}")))?;
    let Some(decoder) = config.get("added_tokens_decoder").and_then(Value::as_object) else {
        bail_input!(
            "{path}: wanted added_tokens_decoder, a map of id to token (vocab.json lacks the added tokens)"
        );
    };
    let mut added = Vec::with_capacity(decoder.len());
    for (key, token) in decoder {
        let (Ok(id), Some(content)) = (key.parse::<u32>(), token.get("content").and_then(Value::as_str))
        else {
            bail_input!("{path}: added_tokens_decoder: wanted an id with a content; got {key:?}: {token}");
        };
        let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
        let token = AddedToken::from(content, flag("special"))
            .normalized(flag("normalized"))
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"));
        added.push((id, token));
    }
    added.sort_by_key(|(id, _)| *id);
    Ok(added)
}

/// `added_tokens.json`, a map of token to id, by rising id. It does not say which tokens decoding leaves out: taken as
/// such are those that are written like `<|im_end|>`.
pub(super) fn parse_added_ids(json: &[u8], path: &Path) -> Result<Vec<(u32, AddedToken)>> {
    let path = path.display();
    let ids: BTreeMap<String, u32> = serde_json::from_slice(json)
        .map_err(|e| Error::input(format!("{path}: wanted a map of token to id: {e}")))?;
    let token = |(content, id): (String, u32)| {
        let special = content.starts_with("<|") && content.ends_with("|>");
        (id, AddedToken::from(content, special).normalized(false))
    };
    let mut added: Vec<_> = ids.into_iter().map(token).collect();
    added.sort_by_key(|(id, _)| *id);
    Ok(added)
}

/// Qwen2's pipeline around a BPE: NFC, words, bytes, merges. The ids of `added` follow the vocabulary without a gap.
pub(super) fn assemble(bpe: BPE, added: &[(u32, AddedToken)], name: &str) -> Result<tokenizers::Tokenizer> {
    let words =
        Split::new(SplitPattern::Regex(QWEN2_WORDS.to_string()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| Error::runtime(format!("word pattern: {e}")))?;
    let bytes = ByteLevel::new(false, false, false);
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_normalizer(Some(tokenizers::normalizers::NFC));
    inner.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])));
    inner.with_decoder(Some(bytes));
    let tokens: Vec<_> = added.iter().map(|(_, t)| t.clone()).collect();
    inner.add_tokens(&tokens);
    for (id, token) in added {
        let got = inner.token_to_id(&token.content);
        ensure_input!(
            got == Some(*id),
            "{name}: added token {:?}: wanted id {id}, but the vocabulary before it leads to {got:?}",
            token.content
        );
    }
    Ok(inner)
}
