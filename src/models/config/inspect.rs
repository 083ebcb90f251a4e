//! What a checkpoint holds, held against what its model wants.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Serialize;

use super::{Expected, ModelConfig, ModelPart, expected_tensors};
use crate::core::{Error, Result};
use crate::weights::{NonFinite, Source, first_non_finite};

/// Tensors that a message names.
const SHOWN: usize = 3;

/// A checkpoint in numbers. Serialises as the `--json` of `vivace inspect`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Folder, or what the synthetic weights follow from.
    pub source: String,
    pub parts: Vec<PartReport>,
    /// Wanted tensors that are not there: an error when the model is loaded.
    pub missing: Vec<Mismatch>,
    /// Wanted tensors of another shape, or of a type that no weight may have: an error as well.
    pub misshapen: Vec<Mismatch>,
    /// Tensors that no part wants: ignored.
    pub unexpected: Vec<Unexpected>,
    /// NaN or infinity, where it was asked for.
    pub non_finite: Vec<NonFinite>,
}

/// One part of the model, wanted tensors only.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PartReport {
    pub part: ModelPart,
    pub tensors: usize,
    pub params: u64,
    pub bytes: u64,
    /// Tensors by stored type.
    pub dtypes: BTreeMap<String, usize>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Mismatch {
    pub name: String,
    pub expected: Vec<usize>,
    /// Shape, type and file; absent with the tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Unexpected {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: String,
}

/// Compares names, shapes and types; reads no values.
pub fn inspect(source: &dyn Source, config: &ModelConfig) -> Report {
    let expected = expected_tensors(config);
    let mut report = Report {
        source: source.describe(),
        parts: Vec::new(),
        missing: Vec::new(),
        misshapen: Vec::new(),
        unexpected: Vec::new(),
        non_finite: Vec::new(),
    };
    for part in ModelPart::ALL {
        let mut totals = PartReport { part, tensors: 0, params: 0, bytes: 0, dtypes: BTreeMap::new() };
        for Expected { name, shape, .. } in expected.iter().filter(|t| t.part == part) {
            let mismatch = |found| Mismatch { name: name.clone(), expected: shape.clone(), found };
            let Some(info) = source.info(name) else {
                report.missing.push(mismatch(None));
                continue;
            };
            if info.shape != *shape || info.dtype.is_none() {
                let found = format!("{} in {}", info.brief(), source.place(name));
                report.misshapen.push(mismatch(Some(found)));
            }
            totals.tensors += 1;
            totals.params += info.len() as u64;
            totals.bytes += (info.len() * info.dtype.map_or(0, |d| d.bytes())) as u64;
            *totals.dtypes.entry(info.stored_as).or_default() += 1;
        }
        if expected.iter().any(|t| t.part == part) {
            report.parts.push(totals);
        }
    }
    let wanted: HashSet<&str> = expected.iter().map(|t| t.name.as_str()).collect();
    let unexpected = source.names().into_iter().filter(|n| !wanted.contains(n.as_str()));
    report.unexpected = unexpected
        .filter_map(|name| {
            let info = source.info(&name)?;
            Some(Unexpected { name, shape: info.shape, dtype: info.stored_as })
        })
        .collect();
    report
}

impl Report {
    pub fn params(&self) -> u64 {
        self.parts.iter().map(|p| p.params).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes).sum()
    }

    /// Whether the model loads and its values are numbers, as far as was looked.
    pub fn is_ok(&self) -> bool {
        self.missing.is_empty() && self.misshapen.is_empty() && self.non_finite.is_empty()
    }

    /// Says that tensors which no part wants are ignored, with the first few of them: weights may be for another model, or
    /// for a part that the config does not speak of. Angles of rotation that old checkpoints carry do not count, nor does a
    /// second copy of tied embeddings.
    pub fn ignored(&self) -> Option<String> {
        let names = self.unexpected.iter().map(|t| t.name.as_str());
        let known = |name: &&str| name.ends_with("rotary_emb.inv_freq") || *name == "lm_head.weight";
        let names: Vec<&str> = names.filter(|name| !known(name)).collect();
        let first = names[..names.len().min(SHOWN)].join(", ");
        let more = if names.len() > SHOWN { ", ..; vivace inspect lists them" } else { "" };
        match names.len() {
            0 => None,
            1 => Some(format!("{}: a tensor that the model does not want is ignored: {first}", self.source)),
            n => Some(format!(
                "{}: {n} tensors that the model does not want are ignored: {first}{more}",
                self.source
            )),
        }
    }

    /// [`Error::Input`] with the first few tensors that are missing, misshapen or not finite.
    pub fn check(&self) -> Result<()> {
        let wrong = self.problems();
        if wrong.is_empty() {
            return Ok(());
        }
        let mut message = format!("{}: {}", self.source, wrong[..wrong.len().min(SHOWN)].join("; "));
        if wrong.len() > SHOWN {
            message += &format!("; and {} more (vivace inspect lists them)", wrong.len() - SHOWN);
        }
        Err(Error::Input(message))
    }

    fn problems(&self) -> Vec<String> {
        let mismatches = self.misshapen.iter().chain(&self.missing).map(Mismatch::to_string);
        mismatches.chain(self.non_finite.iter().map(NonFinite::to_string)).collect()
    }

    /// Looks for NaN and infinity in every tensor that the model wants. `progress(done, total)` is in bytes.
    pub fn check_finite(
        &mut self,
        source: &dyn Source,
        config: &ModelConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let (mut done, total) = (0, self.bytes());
        for t in expected_tensors(config) {
            let Some(info) = source.info(&t.name) else { continue };
            self.non_finite.extend(first_non_finite(source, &t.name)?);
            done += (info.len() * info.dtype.map_or(0, |d| d.bytes())) as u64;
            progress(done, total);
        }
        Ok(())
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.found.as_deref().unwrap_or("no such tensor");
        write!(f, "{}: expected {:?}, found {found}", self.name, self.expected)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.source)?;
        writeln!(f, "  {:<16} {:>8} {:>16} {:>16}  stored as", "part", "tensors", "parameters", "bytes")?;
        let mut row = |label: &str, tensors: usize, params: u64, bytes: u64, dtypes: &str| {
            writeln!(f, "  {label:<16} {tensors:>8} {params:>16} {bytes:>16}  {dtypes}")
        };
        for p in &self.parts {
            let dtypes: Vec<String> = p.dtypes.iter().map(|(name, n)| format!("{name} ({n})")).collect();
            row(p.part.label(), p.tensors, p.params, p.bytes, &dtypes.join(", "))?;
        }
        let tensors = self.parts.iter().map(|p| p.tensors).sum();
        row("total", tensors, self.params(), self.bytes(), "")?;

        for (title, lines) in [
            ("missing", self.missing.iter().map(Mismatch::to_string).collect::<Vec<_>>()),
            ("misshapen", self.misshapen.iter().map(Mismatch::to_string).collect()),
            (
                "unexpected (ignored)",
                self.unexpected.iter().map(|t| format!("{}: {:?} {}", t.name, t.shape, t.dtype)).collect(),
            ),
            ("not finite", self.non_finite.iter().map(NonFinite::to_string).collect()),
        ] {
            if !lines.is_empty() {
                writeln!(f, "{title}: {}", lines.len())?;
                lines.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
            }
        }
        if self.is_ok() {
            writeln!(f, "complete: every tensor of the model is there in its shape")?;
        }
        Ok(())
    }
}
