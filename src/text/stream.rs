//! Token ids to text as they come: what is handed out is always complete UTF-8.

use super::tokenizer::Tokenizer;

/// Incremental decoder. A character may be spread over several tokens; its first bytes wait here for the rest.
/// All that [`push`](Self::push) and [`flush`](Self::flush) return, joined, equals [`Tokenizer::decode`] of all ids.
#[derive(Debug, Default, Clone)]
pub struct Utf8Stream {
    /// The beginning of one character that is not complete yet: at most 3 bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    pub fn new() -> Self {
        Self::default()
    }

    /// The text that `id` completes; may be empty. Special tokens add nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push_bytes(&tokenizer.token_bytes(id))
    }

    /// The same for bytes. Bytes that can never become UTF-8 turn into U+FFFD at once.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        loop {
            let (valid, bad) = match std::str::from_utf8(rest) {
                Ok(valid) => (valid, Some(0)),
                // The prefix up to `valid_up_to` is UTF-8 by the contract of the error: the default is never taken.
                Err(e) => (std::str::from_utf8(&rest[..e.valid_up_to()]).unwrap_or_default(), e.error_len()),
            };
            text.push_str(valid);
            rest = &rest[valid.len()..];
            match bad {
                Some(0) | None => break,
                Some(length) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// Ends the stream: U+FFFD if a character stayed incomplete, else nothing.
    pub fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes `bytes` in chunks of `chunk`, then flushes.
    fn in_chunks(bytes: &[u8], chunk: usize) -> String {
        let mut stream = Utf8Stream::new();
        let mut text: String = bytes.chunks(chunk).map(|c| stream.push_bytes(c)).collect();
        text.push_str(&stream.flush());
        text
    }

    #[test]
    fn holds_back_what_is_not_complete() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push_bytes(b"a\xf0"), "a");
        assert_eq!(stream.push_bytes(b"\x9f\x99"), "");
        assert_eq!(stream.push_bytes(b"\x82b"), "🙂b");
        assert_eq!(stream.flush(), "");
    }

    #[test]
    fn truncated_rest_is_replaced_once() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push_bytes(b"\xe2\x98"), "");
        assert_eq!(stream.flush(), "\u{fffd}");
        assert_eq!(stream.flush(), "");
    }

    #[test]
    fn chunks_never_change_the_text() {
        let samples: [&[u8]; 6] = [
            "naïve — 👩‍💻 世界".as_bytes(),
            b"\xff\xfe ok \xc3",
            b"\xf0\x9f\x99x\xf0\x9f\x99\x82",
            b"\xe2\x28\xa1 \xed\xa0\x80",
            b"\x80\x80\xf4\x90\x80\x80",
            b"",
        ];
        for bytes in samples {
            for chunk in 1..=bytes.len().max(1) {
                assert_eq!(in_chunks(bytes, chunk), String::from_utf8_lossy(bytes), "{bytes:?} by {chunk}");
            }
        }
    }

    #[test]
    fn specials_add_nothing_and_bytes_join() {
        let tokenizer = Tokenizer::byte_fallback(515).unwrap();
        let mut stream = Utf8Stream::new();
        let pushed: Vec<String> =
            [0xc3, 258, 0xa9, 400].into_iter().map(|id| stream.push(&tokenizer, id)).collect();
        assert_eq!(pushed, ["", "", "é", "·"]);
    }
}
