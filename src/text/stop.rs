//! When an answer ends: stop tokens from the checkpoint, stop strings from the caller.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use super::tokenizer::Tokenizer;
use super::{END_OF_TEXT, IM_END};
use crate::core::error::{Error, Result};
use crate::{bail_input, ensure_input};

/// Ids that end an answer, each once: `eos_token_id` (a number or a list) of generation_config.json, else of config.json
/// (top level or `text_config`), and the tokenizer's `<|im_end|>` and `<|endoftext|>`. These end an answer whatever the
/// files name: some name one of both, and behind the other the model would go on with a turn that nobody asked for.
///
/// # Errors
/// [`Error::Input`] if an `eos_token_id` is neither an id nor a list of ids.
pub fn stop_token_ids(
    generation: Option<&Value>,
    config: Option<&Value>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let sources = [
        ("generation_config.json", generation),
        ("config.json", config),
        ("config.json: text_config", config.and_then(|c| c.get("text_config"))),
    ];
    let mut stops = Vec::new();
    for (name, source) in sources {
        stops = match source.and_then(|json| json.get("eos_token_id")) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => {
                ids.iter().map(|id| token_id(id, name)).collect::<Result<Vec<u32>>>()?
            }
            Some(id) => vec![token_id(id, name)?],
        };
        if !stops.is_empty() {
            break;
        }
    }
    stops.extend([IM_END, END_OF_TEXT].into_iter().filter_map(|name| tokenizer.special(name)));
    let mut seen = HashSet::new();
    stops.retain(|&id| seen.insert(id));
    Ok(stops)
}

/// [`stop_token_ids`] with the files of a checkpoint folder, either of which may be absent.
///
/// # Errors
/// As above, and if a file is there and is not JSON.
pub fn stop_token_ids_from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let json = |name: &str| -> Result<Option<Value>> {
        let path = dir.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::input(format!("{}: not readable as JSON: {e}", path.display())))?;
        Ok(Some(value))
    };
    stop_token_ids(json("generation_config.json")?.as_ref(), json("config.json")?.as_ref(), tokenizer)
}

fn token_id(id: &Value, name: &str) -> Result<u32> {
    match id.as_u64().map(u32::try_from) {
        Some(Ok(id)) => Ok(id),
        _ => bail_input!("{name}: eos_token_id: wanted a token id or a list of them; got {id}"),
    }
}

/// Watches streamed text for stop strings. Text that may still become one is held back; a stop string itself and
/// all after it are never handed out. The result does not depend on how the text was cut into chunks: the stop
/// string that ends first wins, the longest of those that end together.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    hit: Option<usize>,
}

impl StopStrings {
    /// # Errors
    /// [`Error::Input`] if a stop string is empty (it would stop before the first token).
    pub fn new(stops: Vec<String>) -> Result<Self> {
        ensure_input!(stops.iter().all(|s| !s.is_empty()), "stop string: wanted some text, got an empty one");
        Ok(StopStrings { stops, held: String::new(), hit: None })
    }

    /// Takes the next text and returns what may be shown by now. After a hit it returns nothing.
    pub fn push(&mut self, text: &str) -> String {
        if self.hit.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        let found = self.stops.iter().enumerate();
        let found = found.filter_map(|(i, stop)| self.held.find(stop).map(|at| (at + stop.len(), at, i)));
        if let Some((_, at, i)) = found.min() {
            self.hit = Some(i);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, tail)
    }

    /// The stop string that was hit.
    pub fn hit(&self) -> Option<&str> {
        self.hit.map(|i| self.stops[i].as_str())
    }

    /// Ends the stream: hands out what was held back for a stop string that did not come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that `stop` begins with, shorter than `stop` itself.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).rev().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stops(stops: &[&str]) -> StopStrings {
        StopStrings::new(stops.iter().map(|s| s.to_string()).collect()).unwrap()
    }

    #[test]
    fn holds_back_and_releases() {
        let mut s = stops(&["END", "世界"]);
        assert_eq!(s.push("the E"), "the ");
        assert_eq!(s.push("N"), "");
        assert_eq!(s.push("ENx 世"), "ENENx ");
        assert_eq!(s.push("x"), "世x");
        assert_eq!(s.push("世"), "");
        assert_eq!(s.push("界 more"), "");
        assert_eq!((s.push("later"), s.finish(), s.hit()), (String::new(), String::new(), Some("世界")));
    }

    #[test]
    fn unfinished_stop_string_is_text() {
        let mut s = stops(&["\n\nUser:"]);
        assert_eq!(s.push("bye\n\nUser"), "bye");
        assert_eq!((s.finish().as_str(), s.hit()), ("\n\nUser", None));
    }

    #[test]
    fn chunks_never_change_the_result() {
        let text = "abcabdaab世c";
        for set in
            [&["bcd", "c"][..], &["abd", "bd"], &["aab世"], &["zz"], &["世c", "世"], &["ab", "abc"], &[]]
        {
            let run = |first: usize, second: usize| {
                let chars: Vec<char> = text.chars().collect();
                let mut s = stops(set);
                let mut out = String::new();
                for part in [&chars[..first], &chars[first..second], &chars[second..]] {
                    for chunk in part.chunks(if first == second { 1 } else { part.len().max(1) }) {
                        out.push_str(&s.push(&chunk.iter().collect::<String>()));
                    }
                }
                out.push_str(&s.finish());
                (out, s.hit().map(str::to_string))
            };
            let whole = run(0, text.chars().count());
            for first in 0..=text.chars().count() {
                for second in first..=text.chars().count() {
                    assert_eq!(run(first, second), whole, "{set:?} cut at {first} and {second}");
                }
            }
        }
        let mut s = stops(&["abd", "bd"]);
        assert_eq!((s.push("abcabd").as_str(), s.hit()), ("abc", Some("abd")));
    }

    #[test]
    fn empty_stop_string_is_refused() {
        let e = StopStrings::new(vec!["a".into(), String::new()]).unwrap_err();
        assert_eq!(
            (e.to_string().as_str(), e.exit_code()),
            ("stop string: wanted some text, got an empty one", 2)
        );
    }

    #[test]
    fn stop_tokens_come_from_the_first_file_that_names_them_and_the_tokenizer() {
        let tok = Tokenizer::byte_fallback(515).unwrap();
        let ids = |g: Option<Value>, c: Option<Value>| stop_token_ids(g.as_ref(), c.as_ref(), &tok).unwrap();
        assert_eq!(
            ids(Some(json!({"eos_token_id": [3, 4]})), Some(json!({"eos_token_id": 5}))),
            [3, 4, 258, 256]
        );
        assert_eq!(ids(Some(json!({"eos_token_id": null})), Some(json!({"eos_token_id": 5}))), [5, 258, 256]);
        assert_eq!(ids(None, Some(json!({"text_config": {"eos_token_id": 6}}))), [6, 258, 256]);
        assert_eq!(ids(Some(json!({"eos_token_id": []})), Some(json!({}))), [258, 256]);
        assert_eq!(ids(Some(json!({"eos_token_id": [256, 7, 7]})), None), [256, 7, 258]);
        let no_im_end = Tokenizer::byte_fallback(258).unwrap();
        assert_eq!(stop_token_ids(Some(&json!({"eos_token_id": 7})), None, &no_im_end).unwrap(), [7, 256]);
        let e = stop_token_ids(Some(&json!({"eos_token_id": [1, -2]})), None, &tok).unwrap_err();
        assert_eq!(
            e.to_string(),
            "generation_config.json: eos_token_id: wanted a token id or a list of them; got -2"
        );
    }

    #[test]
    fn stop_tokens_of_a_folder() {
        let tok = Tokenizer::byte_fallback(515).unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stop_token_ids_from_dir(dir.path(), &tok).unwrap(), [258, 256]);
        std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 9}"#).unwrap();
        assert_eq!(stop_token_ids_from_dir(dir.path(), &tok).unwrap(), [9, 258, 256]);
        std::fs::write(dir.path().join("generation_config.json"), "{").unwrap();
        let e = stop_token_ids_from_dir(dir.path(), &tok).unwrap_err();
        assert!(e.to_string().contains("generation_config.json: not readable as JSON"), "{e}");
    }
}
