//! Fields of JSON objects, with messages that name file and field.

use serde_json::{Map, Value};

use crate::core::Result;
use crate::{bail_input, ensure_input};

/// No extent of a real model is larger.
const MOST: u64 = 1 << 24;
/// Layers, strides and sizes of kernels at most: with these and [`MOST`] no tensor of a model comes near 2^63 bytes, and the
/// list of its tensors stays short.
const MOST_FEW: u64 = 1024;
/// The same for the side of a picture.
const MOST_PIXELS: u64 = 1 << 14;

/// Objects in order of precedence: the first that has a field (and not `null`) gives it.
pub(super) struct Section<'a> {
    layers: Vec<(&'a Map<String, Value>, String)>,
}

impl<'a> Section<'a> {
    pub fn new() -> Section<'a> {
        Section { layers: Vec::new() }
    }

    /// `prefix` comes before the field's name in messages.
    pub fn add(&mut self, json: &'a Map<String, Value>, prefix: String) {
        self.layers.push((json, prefix));
    }

    /// The fields of an encoder: from the object `own`, its folder's config, the shapes of its tensors. `None` when
    /// nothing tells of one: no `own`, no tensors, and `named` (its folder) not set either.
    pub fn encoder(
        top: &'a Map<String, Value>,
        place: &str,
        [own, named]: [&str; 2],
        folder: Option<(&'a Map<String, Value>, &str)>,
        inferred: &'a Map<String, Value>,
    ) -> Option<Section<'a>> {
        let section = top.get(own).and_then(Value::as_object);
        if section.is_none() && inferred.is_empty() && top.get(named).is_none_or(Value::is_null) {
            return None;
        }
        let mut s = Section::new();
        if let Some(section) = section {
            s.add(section, format!("{place}: {own}."));
        }
        if let Some((json, file)) = folder {
            s.add(json, format!("{file}: "));
        }
        s.add(inferred, format!("{place}: {own} (or tensor shapes): "));
        Some(s)
    }

    /// A field and its full name.
    fn find(&self, key: &str) -> Option<(&'a Value, String)> {
        let (json, prefix) =
            self.layers.iter().find(|(json, _)| json.get(key).is_some_and(|v| !v.is_null()))?;
        Some((json.get(key)?, format!("{prefix}{key}")))
    }

    /// Whether a field is there as `null`, which is not the same as absent where that means a default.
    pub fn is_null(&self, key: &str) -> bool {
        self.find(key).is_none() && self.layers.iter().any(|(json, _)| json.contains_key(key))
    }

    /// The full name of a field, whether it is there or not.
    fn at(&self, key: &str) -> String {
        let first = self.layers.first().map_or("", |(_, prefix)| prefix.as_str());
        self.find(key).map_or_else(|| format!("{first}{key}"), |(_, at)| at)
    }

    /// A relation between fields: `message` says what was expected and found.
    pub fn require(&self, holds: bool, key: &str, message: impl FnOnce() -> String) -> Result<()> {
        ensure_input!(holds, "{}: {}", self.at(key), message());
        Ok(())
    }

    fn up_to(&self, most: u64, key: &str) -> Result<Option<usize>> {
        let Some((value, at)) = self.find(key) else { return Ok(None) };
        match value.as_u64() {
            Some(x) if (1..=most).contains(&x) => Ok(Some(x as usize)),
            _ => bail_input!("{at}: expected a whole number from 1 to {most}, found {value}"),
        }
    }

    fn required(&self, count: Option<usize>, key: &str) -> Result<usize> {
        match count {
            Some(n) => Ok(n),
            None => bail_input!("{}: expected a whole number above 0, found none", self.at(key)),
        }
    }

    pub fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        self.up_to(MOST, key)
    }

    pub fn count(&self, key: &str) -> Result<usize> {
        self.required(self.optional_count(key)?, key)
    }

    /// A number of layers, the side of a patch, bins: never many.
    pub fn few(&self, key: &str) -> Result<usize> {
        self.required(self.optional_few(key)?, key)
    }

    pub fn optional_few(&self, key: &str) -> Result<Option<usize>> {
        self.up_to(MOST_FEW, key)
    }

    pub fn pixels(&self, key: &str) -> Result<usize> {
        self.required(self.up_to(MOST_PIXELS, key)?, key)
    }

    pub fn whole(&self, key: &str, default: i64) -> Result<i64> {
        let Some((value, at)) = self.find(key) else { return Ok(default) };
        match value.as_i64() {
            Some(x) if x.unsigned_abs() <= MOST => Ok(x),
            _ => bail_input!("{at}: expected a whole number, found {value}"),
        }
    }

    pub fn seed(&self, key: &str) -> Result<u64> {
        let Some((value, at)) = self.find(key) else { return Ok(0) };
        match value.as_u64() {
            Some(x) => Ok(x),
            None => bail_input!("{at}: expected a whole number from 0 on, found {value}"),
        }
    }

    pub fn positive(&self, key: &str, default: Option<f32>) -> Result<f32> {
        match (self.find(key), default) {
            (Some((value, at)), _) => positive(value, &at),
            (None, Some(x)) => Ok(x),
            (None, None) => bail_input!("{}: expected a number above 0, found none", self.at(key)),
        }
    }

    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.find(key) {
            None => Ok(false),
            Some((Value::Bool(b), _)) => Ok(*b),
            Some((value, at)) => bail_input!("{at}: expected true or false, found {value}"),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<(&'a str, String)>> {
        match self.find(key) {
            None => Ok(None),
            Some((Value::String(s), at)) => Ok(Some((s, at))),
            Some((value, at)) => bail_input!("{at}: expected a string, found {value}"),
        }
    }

    /// A feature with one value that we have; absent is fine.
    pub fn only(&self, key: &str, supported: &str) -> Result<()> {
        match self.text(key)? {
            Some((found, at)) if found != supported => {
                bail_input!("{at}: expected {supported:?}, found {found:?}, which is not supported")
            }
            _ => Ok(()),
        }
    }

    /// A feature that we do not have.
    pub fn off(&self, key: &str) -> Result<()> {
        let on = self.flag(key)?;
        self.require(!on, key, || "expected false, found true, which is not supported".to_owned())
    }

    /// `num_attention_heads` of an encoder: head dim 64.
    pub fn heads_of_64(&self, hidden: usize) -> Result<usize> {
        let heads = self.optional_count("num_attention_heads")?.unwrap_or(hidden / 64);
        self.require(heads > 0 && heads * 64 == hidden, "num_attention_heads", || {
            format!("expected heads of 64 that make up hidden_size {hidden}, found {heads}")
        })?;
        Ok(heads)
    }

    fn rope(&self) -> Option<(&'a Map<String, Value>, String)> {
        ["rope_parameters", "rope_scaling"].iter().find_map(|key| {
            let (value, at) = self.find(key)?;
            Some((value.as_object()?, at))
        })
    }

    /// Only plain rotary embeddings are there.
    pub fn check_rope(&self) -> Result<()> {
        let Some((rope, at)) = self.rope() else { return Ok(()) };
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str);
        ensure_input!(
            matches!(kind, None | Some("default")),
            "{at}.rope_type: expected \"default\", found {:?}, which is not supported",
            kind.unwrap_or_default()
        );
        Ok(())
    }

    /// `rope_theta`, where old and new configs have it.
    pub fn rope_theta(&self, default: Option<f32>) -> Result<f32> {
        if self.find("rope_theta").is_none()
            && let Some((rope, at)) = self.rope()
            && let Some(value) = rope.get("rope_theta")
        {
            return positive(value, &format!("{at}.rope_theta"));
        }
        self.positive("rope_theta", default)
    }
}

fn positive(value: &Value, at: &str) -> Result<f32> {
    match value.as_f64().map(|x| x as f32) {
        Some(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => bail_input!("{at}: expected a number above 0, found {value}"),
    }
}
