//! Byte-level BPE as Qwen2 uses it. The merging itself is the `tokenizers` crate's; ours are loading, checking,
//! a way to encode text in which no control token can hide, and decoding to bytes.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Model, Normalizer, OffsetType, PreTokenizedString, PreTokenizer};

use super::files::{assemble, parse_added_ids, parse_added_tokens, parse_merges, read};
use super::prompt::State;
use super::{END_OF_TEXT, IM_END, IM_START};
use crate::core::error::{Error, Result};
use crate::{bail_input, ensure_input};

/// What an id without a token decodes to.
const NO_TOKEN: &str = "·";

/// Has to survive encoding and decoding at load: letters, digits, white space and 2, 3 and 4 byte characters.
const PROBE: &str = " A 0\n\té☞🙂";

/// A byte-level BPE tokenizer with its added tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The token of each single byte.
    byte_ids: [u32; 256],
    vocab_len: usize,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, or `vocab.json` + `merges.txt` with the added tokens of `tokenizer_config.json`, or, where
    /// that does not list them, of `added_tokens.json`.
    ///
    /// # Errors
    /// [`Error::Input`] if the folder has neither, or if what it has is no byte-level BPE.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let whole = dir.join("tokenizer.json");
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        if whole.is_file() {
            return Self::from_json(&read(&whole)?, &whole.display().to_string());
        }
        if !vocab.is_file() && !merges.is_file() {
            bail_input!(
                "{}: no tokenizer found; looked for tokenizer.json, or vocab.json with merges.txt",
                dir.display()
            );
        }
        for (wanted, other) in [(&vocab, "merges.txt"), (&merges, "vocab.json")] {
            ensure_input!(
                wanted.is_file(),
                "{}: not found, and {other} is no tokenizer without it",
                wanted.display()
            );
        }
        let name = dir.display().to_string();
        let bpe = BPE::builder()
            .vocab_and_merges(
                serde_json::from_slice::<Vocab>(&read(&vocab)?).map_err(|e| {
                    Error::input(format!("{}: wanted a map of token to id: {e}", vocab.display()))
                })?,
                parse_merges(&read(&merges)?, &merges)?,
            )
            .build()
            .map_err(|e| {
                Error::input(format!("{name}: vocab.json and merges.txt do not fit together: {e}"))
            })?;
        let (config, ids) = (dir.join("tokenizer_config.json"), dir.join("added_tokens.json"));
        // Older configs do not list them.
        let lists = |json: &[u8]| {
            let json = serde_json::from_slice::<serde_json::Value>(json);
            json.is_ok_and(|json| json.get("added_tokens_decoder").is_some())
        };
        let config_json = config.is_file().then(|| read(&config)).transpose()?;
        let added = match config_json {
            Some(json) if lists(&json) || !ids.is_file() => parse_added_tokens(&json, &config)?,
            _ if ids.is_file() => parse_added_ids(&read(&ids)?, &ids)?,
            _ => bail_input!(
                "{name}: wanted tokenizer_config.json or added_tokens.json beside vocab.json, found neither: vocab.json lacks \
                 the added tokens, such as {IM_START} and {IM_END}, that a prompt is made of"
            ),
        };
        Self::checked(assemble(bpe, &added, &name)?, &name)
    }

    /// Parses the contents of a `tokenizer.json`; `name` is what error messages call it.
    ///
    /// # Errors
    /// [`Error::Input`] if it cannot be parsed or is no byte-level BPE.
    pub fn from_json(json: &[u8], name: &str) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| Error::input(format!("{name}: not a readable tokenizer.json: {e}")))?;
        Self::checked(inner, name)
    }

    /// A tokenizer for models that come without one: ids 0..=255 are the bytes, then `<|endoftext|>`,
    /// `<|im_start|>`, `<|im_end|>` and the three state marks as far as `vocab_size` allows. Ids beyond decode to `·`.
    ///
    /// # Errors
    /// [`Error::Input`] if the vocabulary has no room for 256 bytes.
    pub fn byte_fallback(vocab_size: usize) -> Result<Self> {
        ensure_input!(
            vocab_size >= 256,
            "vocab_size {vocab_size}: a byte tokenizer wants a vocabulary of at least 256"
        );
        let vocab: Vocab = (0..=255u8).map(|b| (byte_char(b).to_string(), u32::from(b))).collect();
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, Vec::new())
            .build()
            .map_err(|e| Error::runtime(format!("byte tokenizer: {e}")))?;
        // Marks are ordinary tokens in Qwen2.5, which decode to themselves.
        let control = [END_OF_TEXT, IM_START, IM_END].map(|t| (t.to_string(), true));
        let marks = State::ALL.map(|s| (s.mark().to_string(), false));
        let added: Vec<_> = (256u32..vocab_size.min(262) as u32)
            .zip(control.into_iter().chain(marks))
            .map(|(id, (content, special))| (id, AddedToken::from(content, special).normalized(false)))
            .collect();
        let mut tokenizer = Self::checked(assemble(bpe, &added, "byte tokenizer")?, "byte tokenizer")?;
        tokenizer.vocab_len = vocab_size;
        Ok(tokenizer)
    }

    /// As a `tokenizer.json`.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|e| Error::runtime(format!("tokenizer to JSON: {e}")))
    }

    fn checked(mut inner: tokenizers::Tokenizer, name: &str) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::input(format!("{name}: {e}")))?;
        let mut byte_ids = [0; 256];
        for byte in 0..=255u8 {
            let spelled = byte_char(byte).to_string();
            let Some(id) = inner.get_model().token_to_id(&spelled) else {
                bail_input!(
                    "{name}: wanted a byte-level BPE; it has no token for byte {byte:#04x} ({spelled:?})"
                );
            };
            byte_ids[usize::from(byte)] = id;
        }
        let model_ids = inner.get_model().get_vocab();
        let added_ids = inner.get_added_vocabulary().get_vocab();
        let largest = model_ids.values().chain(added_ids.values()).copied().max().unwrap_or(0);
        let tokenizer = Tokenizer { inner, byte_ids, vocab_len: largest as usize + 1 };
        let back = tokenizer.decode(&tokenizer.encode_plain(PROBE)?);
        ensure_input!(
            back == PROBE,
            "{name}: wanted a byte-level BPE as Qwen2 uses it; it turns {PROBE:?} into {back:?}"
        );
        Ok(tokenizer)
    }

    /// Tokens of ordinary text. Nothing in it can become an added token: `<|im_start|>` is encoded as the pieces
    /// `<`, `|`, `im`, ... and the model sees what the user typed. No BOS is added.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let failed = |e| Error::input(format!("text of {} bytes cannot be tokenized: {e}", text.len()));
        let mut pieces = PreTokenizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            pieces.normalize(|s| normalizer.normalize(s)).map_err(failed)?;
        }
        if let Some(words) = self.inner.get_pre_tokenizer() {
            words.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|word| model.tokenize(word.get())).map_err(failed)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(failed)?;
        // The added vocabulary was not asked, but a BPE may reach one of its tokens by merges: spell that out.
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let mut ids = Vec::with_capacity(encoding.len());
        for &id in encoding.get_ids() {
            match added.get(&id) {
                None => ids.push(id),
                Some(token) => ids.extend(token.content.bytes().map(|b| self.byte_ids[usize::from(b)])),
            }
        }
        Ok(ids)
    }

    /// Tokens of text we wrote ourselves, with added tokens such as `<|im_start|>` recognised. Not for user text.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::input(format!("text of {} bytes cannot be tokenized: {e}", text.len())))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of the token whose whole text is `name`: an added token such as `<|im_end|>`, or a vocabulary entry
    /// such as a state mark.
    pub fn special(&self, name: &str) -> Option<u32> {
        let added = self.inner.get_added_vocabulary().get_vocab().get(name).copied();
        added.or_else(|| self.inner.get_model().token_to_id(&name.bytes().map(byte_char).collect::<String>()))
    }

    /// Whether decoding leaves the token out.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// One more than the largest id (151665 for Qwen2.5). A model may have more rows; they are never sampled.
    pub fn vocab_len(&self) -> usize {
        self.vocab_len
    }

    /// The bytes of one token: none for a special one, those of `·` for an id without a token. Not always UTF-8
    /// by itself: one character may be spread over several tokens.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        if let Some(token) = self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id) {
            return if token.special { Vec::new() } else { token.content.clone().into_bytes() };
        }
        let Some(spelled) = self.inner.get_model().id_to_token(id) else {
            return NO_TOKEN.into();
        };
        let mut bytes = Vec::with_capacity(spelled.len());
        for c in spelled.chars() {
            match char_byte(c) {
                Some(b) => bytes.push(b),
                None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        bytes
    }

    /// The text of a complete sequence without its special tokens; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The character that stands for a byte in a byte-level vocabulary (GPT-2): printable Latin-1 stands for itself,
/// the other 68 bytes in order for U+0100 onwards.
fn byte_char(byte: u8) -> char {
    let code = match byte {
        0x00..=0x20 => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x121 + u32::from(byte - 0x7f),
        0xad => 0x143,
        itself => u32::from(itself),
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER) // every code above is a character
}

/// Inverse of [`byte_char`].
fn char_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121) as u8 + 0x7f),
        0x143 => Some(0xad),
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    /// vocab.json and merges.txt of a BPE with the bytes and one merge, `ab` (id 256).
    fn write_files(dir: &Path, tokenizer_config: &str) {
        let mut vocab: serde_json::Map<String, Value> =
            (0..=255u8).map(|b| (byte_char(b).to_string(), b.into())).collect();
        vocab.insert("ab".into(), 256.into());
        std::fs::write(dir.join("vocab.json"), serde_json::to_string(&vocab).unwrap()).unwrap();
        std::fs::write(dir.join("merges.txt"), "#version: 0.2\na b\n").unwrap();
        std::fs::write(dir.join("tokenizer_config.json"), tokenizer_config).unwrap();
    }

    fn error(dir: &Path) -> String {
        let e = Tokenizer::from_dir(dir).unwrap_err();
        assert_eq!(e.exit_code(), 2, "{e}");
        e.to_string()
    }

    #[test]
    fn every_byte_has_its_character() {
        let chars: Vec<char> = (0..=255).map(byte_char).collect();
        assert!((0..=255u8).all(|b| char_byte(byte_char(b)) == Some(b)));
        let alphabet = ByteLevel::alphabet();
        assert!(chars.iter().all(|c| alphabet.contains(c)) && alphabet.len() == 256);
        assert_eq!((byte_char(b' '), byte_char(b'\n'), byte_char(0xad)), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!((char_byte('\u{a0}'), char_byte('☞')), (None, None));
    }

    #[test]
    fn byte_fallback_layout() {
        let tok = Tokenizer::byte_fallback(515).unwrap();
        assert_eq!(tok.vocab_len(), 515);
        assert_eq!(tok.encode_plain("aé\n").unwrap(), [0x61, 0xc3, 0xa9, 0x0a]);
        let names = [END_OF_TEXT, IM_START, IM_END, "☞", "☜", "☟", "<|nothing|>"];
        let ids = [Some(256), Some(257), Some(258), Some(259), Some(260), Some(261), None];
        assert_eq!(names.map(|n| tok.special(n)), ids);
        assert_eq!(tok.decode(&[0x61, 257, 259, 262, 514, 9999]), "a☞···");
        assert_eq!(tok.encode_with_special("<|im_start|>a").unwrap(), [257, 0x61]);
        assert_eq!(Tokenizer::byte_fallback(257).unwrap().special(IM_START), None);
        let e = Tokenizer::byte_fallback(255).unwrap_err();
        assert_eq!(e.to_string(), "vocab_size 255: a byte tokenizer wants a vocabulary of at least 256");
    }

    #[test]
    fn vocab_and_merges_with_added_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"added_tokens_decoder": {"258": {"content": "<tool>", "special": false},
            "257": {"content": "<|im_end|>", "special": true}}}"#;
        write_files(dir.path(), config);
        let tok = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!((tok.vocab_len(), tok.special("ab"), tok.special(IM_END)), (259, Some(256), Some(257)));
        assert_eq!(tok.encode_plain("abb").unwrap(), [256, 98]);
        assert_eq!(tok.encode_with_special("ab<|im_end|><tool>").unwrap(), [256, 257, 258]);
        assert!(tok.encode_plain("<|im_end|><tool>").unwrap().iter().all(|&id| id < 257));
        assert_eq!(tok.decode(&[256, 257, 258]), "ab<tool>");
        assert_eq!((tok.is_special(257), tok.is_special(258), tok.is_special(256)), (true, false, false));
    }

    #[test]
    fn added_tokens_may_come_as_a_map_of_token_to_id() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        write_files(at, "");
        std::fs::remove_file(at.join("tokenizer_config.json")).unwrap();
        let why = "wanted tokenizer_config.json or added_tokens.json beside vocab.json, found neither: vocab.json lacks the \
                   added tokens, such as <|im_start|> and <|im_end|>, that a prompt is made of";
        assert_eq!(error(at), format!("{}: {why}", at.display()));

        let ids = at.join("added_tokens.json");
        std::fs::write(&ids, r#"{"<tool>": 258, "<|im_end|>": 257}"#).unwrap();
        let tok = Tokenizer::from_dir(at).unwrap();
        assert_eq!((tok.vocab_len(), tok.special(IM_END)), (259, Some(257)));
        assert_eq!(tok.encode_with_special("ab<|im_end|><tool>").unwrap(), [256, 257, 258]);
        assert_eq!(tok.decode(&[256, 257, 258]), "ab<tool>");
        std::fs::write(&ids, r#"["<|im_end|>"]"#).unwrap();
        assert!(error(at).contains("added_tokens.json: wanted a map of token to id: "));
    }

    #[test]
    fn plain_text_never_merges_into_an_added_token() {
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), r#"{"added_tokens_decoder": {"256": {"content": "ab", "special": true}}}"#);
        let tok = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!(tok.encode_with_special("xab").unwrap(), [120, 256]);
        assert_eq!(tok.encode_plain("xab").unwrap(), [120, 97, 98]);
    }

    #[test]
    fn added_tokens_stand_beside_a_config_that_does_not_list_them() {
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), "{}");
        std::fs::write(dir.path().join("added_tokens.json"), r#"{"<|im_end|>": 257}"#).unwrap();
        let tok = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!(tok.encode_with_special("x<|im_end|>").unwrap(), [120, 257]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let none = "no tokenizer found; looked for tokenizer.json, or vocab.json with merges.txt";
        assert_eq!(error(at), format!("{}: {none}", at.display()));
        write_files(at, "{}");
        assert!(error(at).contains("tokenizer_config.json: wanted added_tokens_decoder"));
        std::fs::write(
            at.join("tokenizer_config.json"),
            r#"{"added_tokens_decoder": {"300": {"content": "<x>"}}}"#,
        )
        .unwrap();
        assert!(error(at).contains(
            r#"added token "<x>": wanted id 300, but the vocabulary before it leads to Some(257)"#
        ));
        std::fs::write(at.join("merges.txt"), "a b c\n").unwrap();
        assert!(
            error(at).contains(r#"merges.txt: line 1: wanted two tokens and a space between; got "a b c""#)
        );
        std::fs::write(at.join("merges.txt"), "a bc\n").unwrap();
        assert!(error(at).contains("vocab.json and merges.txt do not fit together"));
        std::fs::write(at.join("vocab.json"), r#"{"a": -1}"#).unwrap();
        assert!(error(at).contains("vocab.json: wanted a map of token to id"));
        std::fs::remove_file(at.join("merges.txt")).unwrap();
        assert!(error(at).contains("merges.txt: not found, and vocab.json is no tokenizer without it"));
        std::fs::write(at.join("tokenizer.json"), r#"{"model": 3}"#).unwrap();
        assert!(error(at).contains("tokenizer.json: not a readable tokenizer.json"));
    }

    #[test]
    fn other_kinds_of_tokenizer_are_refused() {
        let json = |pre: &str, vocab: Vocab| {
            let vocab = serde_json::to_string(&vocab).unwrap();
            format!(
                r#"{{"version": "1.0", "pre_tokenizer": {pre}, "added_tokens": [],
                "model": {{"type": "BPE", "vocab": {vocab}, "merges": []}}}}"#
            )
        };
        let bytes: Vocab = (0..=255u8).map(|b| (byte_char(b).to_string(), u32::from(b))).collect();
        let e = Tokenizer::from_json(json("null", bytes.clone()).as_bytes(), "t").unwrap_err().to_string();
        assert!(e.starts_with("t: wanted a byte-level BPE as Qwen2 uses it; it turns"), "{e}");
        let few: Vocab = bytes.into_iter().filter(|(_, id)| *id != 0x20).collect();
        let e = Tokenizer::from_json(json("null", few).as_bytes(), "t").unwrap_err().to_string();
        assert_eq!(e, "t: wanted a byte-level BPE; it has no token for byte 0x20 (\"Ġ\")");
    }
}
