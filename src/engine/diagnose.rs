//! Looking into a model: its graphs as text, where their time goes, where a device leaves the reference, and the
//! logits of a prompt.

mod diff;
mod profile;

use std::fmt::Write;

pub use diff::{DiffReport, Leaves, diff};
pub use profile::{GraphProfile, NodeTime, OpTotal, Profile, profile};

use super::model::{Model, Work};
use super::session::Inputs;
use super::{Engine, Question};
use crate::core::{HostData, Result, Step};
use crate::exec::ExeId;
use crate::models::qwen2::{Head, Ids};
use crate::plan::plan;

/// One run of a question: a graph, its step, what its input is.
struct Run {
    name: String,
    work: Work,
    step: Step,
    input: Option<HostData>,
    /// Rows of the first axis that mean something: rows beyond are padding.
    valid_rows: usize,
    /// First row in the media state, for an encoder.
    media_row: usize,
}

impl Run {
    /// The same with a prompt of `rows` rows, padding included: devices pad differently.
    fn with_rows(mut self, padded: usize) -> Run {
        if let (Work::Text { rows, ids: Ids::Host, .. }, Some(HostData::U32(ids))) =
            (&mut self.work, &mut self.input)
        {
            *rows = padded;
            ids.resize(padded, 0);
        }
        self
    }
}

/// The runs that a question takes: every batch of tiles, every sound, the prompt, and one decoding step.
///
/// The prompt is one run, however long: dumps and comparisons want it whole.
fn runs(model: &Model, inputs: &Inputs<'_>) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut media_row = 0;
    for picture in &inputs.pictures {
        for (tiles, pixels) in model.batches(picture)? {
            runs.push(Run {
                name: format!("vision, {tiles} tiles"),
                work: Work::Vision { tiles, bytes: matches!(pixels, HostData::U32(_)) },
                step: Step::rows(0, tiles, 0),
                input: Some(pixels),
                valid_rows: usize::MAX,
                media_row,
            });
            media_row += tiles * model.rows_per_tile();
        }
    }
    for sound in &inputs.sounds {
        let frames = sound.frames;
        runs.push(Run {
            name: format!("audio, {frames} frames"),
            work: Work::Audio { frames },
            step: Step::rows(0, frames, 0),
            input: Some(HostData::F32(sound.data.clone())),
            valid_rows: usize::MAX,
            media_row,
        });
        media_row += model.rows_of_sound(frames);
    }
    let valid = inputs.ids.len();
    let rows = model.padded_rows(valid);
    let mut ids = inputs.ids.clone();
    ids.resize(rows, 0);
    runs.push(Run {
        name: format!("prefill, {valid} rows"),
        work: Work::Text { rows, kv_len: valid, ids: Ids::Host, head: Head::Greedy },
        step: Step::rows(0, valid, 0),
        input: Some(HostData::U32(ids)),
        valid_rows: valid,
        media_row: 0,
    });
    runs.push(Run {
        name: format!("decode at {valid}"),
        work: Work::Text { rows: 1, kv_len: valid + 1, ids: Ids::LastToken, head: Head::Greedy },
        step: Step::rows(valid, 1, 1),
        input: None,
        valid_rows: usize::MAX,
        media_row: 0,
    });
    Ok(runs)
}

/// Prepares a run, and puts its rows into the media state if it is an encoder's.
fn prepare(model: &mut Model, run: &Run) -> Result<ExeId> {
    match (run.work, &run.input) {
        (Work::Vision { tiles, .. }, Some(pixels)) => {
            model.encode_batch(tiles, pixels.as_slice(), run.media_row)?
        }
        (Work::Audio { frames }, Some(HostData::F32(fbank))) => {
            model.encode_sound(fbank, frames, run.media_row)?;
        }
        _ => {}
    }
    model.backend_mut().sync()?;
    let (exe, tensor) = model.prepared(run.work)?;
    if let (Some(tensor), Some(data)) = (tensor, &run.input) {
        model.backend_mut().write(exe, tensor, data)?;
    }
    Ok(exe)
}

/// Every graph that `question` runs after `system`, as the model writes it and as it runs, with the arena each needs.
///
/// # Errors
/// `Input` when the question does not fit the model or its context.
pub fn dump(engine: &mut Engine, system: Option<&str>, question: &Question) -> Result<String> {
    let inputs = engine.session(system)?.inputs(question)?;
    let model = &engine.model;
    let mut out = String::new();
    for run in runs(model, &inputs)? {
        let written = model.written(run.work)?;
        let fused = model.fused(run.work)?;
        let (before, after) = (written.nodes.len(), fused.nodes.len());
        let shown = format!(
            "# {}: as written\n{written}\n# {}: as it runs, {before} nodes fused to {after}\n{fused}",
            run.name, run.name
        );
        let plan = plan(fused, |d| model.backend().arena_elem_bytes(d))?;
        let slots = plan.slots.iter().flatten();
        let alone: usize = slots.clone().map(|s| s.bytes).sum();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{shown}      arena {:.2} MB for {} tensors of {:.2} MB\n",
            plan.arena_bytes as f64 / 1e6,
            slots.count(),
            alone as f64 / 1e6
        );
    }
    Ok(out)
}

/// Logits of every row of the prompt that `question` makes after `system`: f32 `[rows, vocab]`, one row after another.
///
/// # Errors
/// `Input` when the question does not fit the model or its context, `Runtime` when the device fails.
pub fn logits(engine: &mut Engine, system: Option<&str>, question: &Question) -> Result<Vec<f32>> {
    let inputs = engine.session(system)?.inputs(question)?;
    let model = &mut engine.model;
    for run in runs(model, &inputs)?.iter().filter(|run| !matches!(run.work, Work::Text { .. })) {
        prepare(model, run)?;
    }
    let (exe, io) = model.run_ids(&inputs.ids, 0, 0, Head::All)?;
    let Some(logits) = io.logits else { crate::bail_runtime!("a graph without logits") };
    let logits = model.backend_mut().read(exe, logits)?;
    // Rows beyond are padding.
    Ok(logits.data.f32s()[..inputs.ids.len() * logits.desc.cols()].to_vec())
}

#[cfg(test)]
mod tests;
