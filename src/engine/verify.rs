//! Comparing a device with reference outputs on synthetic weights: `vivace verify CONFIG.json GOLDEN.safetensors`.
//!
//! An f32 device has to match to [`MAX_REL_F32`] and pick every greedy token. A reduced-precision device may err
//! twice as much as the CPU does when it rounds every edge of the same graph to the same type; its tokens are
//! compared under teacher forcing, wherever the reference was sure.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::model::{MEDIA_BIT, Model};
use super::{Options, open_on};
use crate::core::{DType, Error, HostData, HostTensor, Result};
use crate::exec::cpu::Cpu;
use crate::models::config::{Opened, open_model_with};
use crate::models::qwen2::{Head, TextSizes, state};
use crate::weights::{Safetensors, Source, test_input};

/// Relative error ‖a-b‖/‖b‖ that an f32 device may show.
pub const MAX_REL_F32: f64 = 1e-4;
/// What a reduced-precision device may always err, however little the rounded CPU graph does.
const FLOOR_REL: f64 = 1e-5;
/// Greedy tokens have to agree where the reference's first choice leads by more than this.
const SURE_MARGIN: f32 = 0.1;

/// One case of a golden config.
#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    images: usize,
    audio_frames: usize,
    input_ids: Vec<i64>,
    new_tokens: usize,
}

impl Case {
    /// Bounds what memory is taken for.
    fn check(&self) -> Result<()> {
        const MOST: usize = 1 << 16;
        for (key, found, least) in [
            ("images", self.images, 0),
            ("audio_frames", self.audio_frames, 0),
            ("ids in input_ids", self.input_ids.len(), 1),
            ("new_tokens", self.new_tokens, 1),
        ] {
            crate::ensure_input!(
                (least..=MOST).contains(&found),
                "{key}: expected {least} to {MOST}, found {found}"
            );
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Cases {
    seed: u64,
    cases: Vec<Case>,
}

/// One compared tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// `case.key` as in the golden file.
    pub name: String,
    pub shape: Vec<usize>,
    /// ‖a-b‖/‖b‖; for tokens, the share that differs.
    pub rel: f64,
    pub max_rel: f64,
    /// Flat index of the largest difference.
    pub worst: usize,
    pub pass: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub device: String,
    pub checks: Vec<Check>,
    /// Free-running greedy tokens that agree with the reference: (agreeing, compared).
    pub free_running: (usize, usize),
}

impl Report {
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.pass)
    }
}

/// Runs every case of `config` and compares everything in `golden`. `max_rel` replaces the tolerance.
pub fn verify(config: &Path, golden: &Path, options: &Options, max_rel: Option<f64>) -> Result<Report> {
    let text = std::fs::read_to_string(config).map_err(|e| Error::io(config, e))?;
    let cases: Cases = serde_json::from_str(&text)
        .map_err(|e| Error::input(format!("{}: not a config with cases: {e}", config.display())))?;
    let at = config.display();
    crate::ensure_input!(!cases.cases.is_empty(), "{at}: expected cases to compare, found none");
    cases
        .cases
        .iter()
        .try_for_each(|case| case.check().map_err(|e| e.context(format!("{at}: {}", case.name))))?;
    let golden = Golden::open(golden, &cases.cases)?;
    let spec = format!("synthetic:{}", config.display());
    let opened = open_model_with(&spec, &options.folders)?;
    let sizes = sizes(&opened, &cases.cases)?;

    let mut model = open_on(opened.clone(), sizes, options, true, &mut |_, _| {})?;
    let exact = model.dtype == DType::F32;
    let measured = measure(&mut model, &cases, &golden)?;
    let yardstick = match (exact, max_rel) {
        (false, None) => {
            Some(measure(&mut rounded_cpu(opened, sizes, options, model.dtype)?, &cases, &golden)?)
        }
        _ => None,
    };

    let mut report = Report { device: model.backend().describe(), checks: Vec::new(), free_running: (0, 0) };
    for (i, case) in measured.iter().enumerate() {
        for (j, m) in case.tensors.iter().enumerate() {
            let allowed = match (&yardstick, max_rel) {
                (_, Some(x)) => x,
                (None, None) => MAX_REL_F32,
                (Some(y), None) => 2.0 * y[i].tensors[j].rel + FLOOR_REL,
            };
            report.checks.push(Check { max_rel: allowed, pass: m.rel <= allowed, ..m.clone() });
        }
        report.checks.push(case.tokens_check(exact));
        report.free_running.0 += case.free.iter().zip(&case.golden_tokens).filter(|(a, b)| a == b).count();
        report.free_running.1 += case.golden_tokens.len();
    }
    Ok(report)
}

/// The CPU with every edge rounded to `dtype`: the yardstick of reduced precision.
pub(super) fn rounded_cpu(
    opened: Opened,
    sizes: TextSizes,
    options: &Options,
    dtype: DType,
) -> Result<Model> {
    let parts = super::model::ModelParts {
        dtype,
        cfg: opened.config,
        source: opened.source,
        backend: Box::new(Cpu::new()),
        sizes,
        fusion: options.fusion.clone(),
        cache: options.cache,
        observe: true,
    };
    Model::load(parts, &mut |_, _| {})
}

/// Room for the longest case.
fn sizes(opened: &Opened, cases: &[Case]) -> Result<TextSizes> {
    let cfg = &opened.config;
    let per_tile = cfg.vision.as_ref().map_or(0, crate::models::intern_vit::rows_per_tile);
    let prompt_rows = cfg.audio.as_ref().map_or(0, |a| a.prompt_rows);
    let rows = |c: &Case| {
        let sound = match c.audio_frames {
            0 => 0,
            frames => crate::media::fbank::rows_for_frames(frames) + prompt_rows,
        };
        let media = c.images * per_tile + sound;
        (c.input_ids.len() + media + c.new_tokens, media)
    };
    let max_seq = cases.iter().map(|c| rows(c).0).max().unwrap_or(1).next_multiple_of(64);
    let media_rows = cases.iter().map(|c| rows(c).1).max().unwrap_or(1).max(1);
    Ok(TextSizes { max_seq, media_rows, token_limit: cfg.text.vocab_size })
}

/// What a device gave for one case.
struct Measured {
    name: String,
    tensors: Vec<Check>,
    golden_tokens: Vec<u32>,
    margins: Vec<f32>,
    /// Greedy choices under teacher forcing, and free-running.
    forced: Vec<u32>,
    free: Vec<u32>,
}

impl Measured {
    /// f32 has to agree everywhere when running freely; others wherever the reference was sure, when led.
    fn tokens_check(&self, exact: bool) -> Check {
        let tokens = if exact { &self.free } else { &self.forced };
        let compared = |i: &usize| exact || self.margins[*i] > SURE_MARGIN;
        let wrong: Vec<usize> =
            (0..tokens.len()).filter(compared).filter(|&i| tokens[i] != self.golden_tokens[i]).collect();
        Check {
            name: format!("{}.lm.greedy_tokens", self.name),
            shape: vec![tokens.len()],
            rel: wrong.len() as f64 / tokens.len().max(1) as f64,
            max_rel: 0.0,
            worst: wrong.first().copied().unwrap_or(0),
            pass: wrong.is_empty() && tokens.len() == self.golden_tokens.len(),
        }
    }
}

fn measure(model: &mut Model, cases: &Cases, golden: &Golden) -> Result<Vec<Measured>> {
    cases.cases.iter().map(|case| measure_case(model, cases.seed, case, golden)).collect()
}

fn measure_case(model: &mut Model, seed: u64, case: &Case, golden: &Golden) -> Result<Measured> {
    let mut tensors = Vec::new();
    let mut compare = |key: &str, data: &[f32], cols: usize| -> Result<()> {
        tensors.extend(golden.compare(&format!("{}.{key}", case.name), data, cols)?);
        Ok(())
    };

    if case.images > 0 {
        let size = model.cfg.vision.as_ref().map_or(0, |v| v.image_size);
        let name = format!("{}.pixel_values", case.name);
        let pixels = test_input(seed, &name, &[case.images, 3, size, size], 0.0, 1.0);
        model.encode_tiles(&pixels, 0)?;
        let (exe, io) = model.vision_graph(case.images, false)?;
        for (key, t) in io.inner.iter().chain(&[("projected", io.result)]) {
            let t = model.backend.read(exe, *t)?;
            compare(&format!("vision.{key}"), t.data.f32s(), t.desc.cols())?;
        }
    }
    let sound_row = case.images * model.rows_per_tile();
    if case.audio_frames > 0 {
        let name = format!("{}.fbank", case.name);
        let fbank = test_input(seed, &name, &[1, case.audio_frames, 80], 16.0, 4.0);
        model.encode_sound(&fbank, case.audio_frames, sound_row)?;
        let (exe, io) = model.audio_graph(case.audio_frames)?;
        for (key, t) in io.inner.iter().chain(&[("embeds", io.result)]) {
            let t = model.backend.read(exe, *t)?;
            compare(&format!("audio.{key}"), t.data.f32s(), t.desc.cols())?;
        }
    }
    model.backend.join(crate::exec::Lane::Text, crate::exec::Lane::Vision)?;
    model.backend.join(crate::exec::Lane::Text, crate::exec::Lane::Audio)?;

    // Greedy tokens led by the reference, then free-running.
    let ids = merged_ids(model, case)?;
    let (prompt, first) = prefill(model, &ids)?;
    let rows = ids.len();
    let (cols, vocab) = (prompt.embeds.desc.cols(), model.cfg.text.vocab_size);
    compare("inputs_embeds", &prompt.embeds.data.f32s()[..rows * cols], cols)?;
    compare("lm.hidden_last", row(&prompt.hidden, rows - 1), cols)?;
    let tail = rows.saturating_sub(8);
    compare("lm.logits_tail", &prompt.logits.data.f32s()[tail * vocab..rows * vocab], vocab)?;
    let name = format!("{}.lm.argmax_all", case.name);
    let sure = model.dtype == DType::F32;
    tensors.extend(golden.compare_ids(&name, &prompt.tokens.data.u32s()[..rows], sure)?);

    let name = |key: &str| format!("{}.lm.{key}", case.name);
    let golden_tokens = golden.ids(&name("greedy_tokens"))?;
    let margins = golden.floats(&name("greedy_margins"))?;
    for (key, found) in [("greedy_tokens", golden_tokens.len()), ("greedy_margins", margins.len())] {
        let expected = case.new_tokens;
        crate::ensure_input!(found == expected, "{}: expected {expected} values, found {found}", name(key));
    }
    let mut forced = vec![first];
    let mut last_logits = row(&prompt.logits, rows - 1).to_vec();
    // All of them are many: only for a file that has them.
    let all = format!("{}.lm.logits_forced", case.name);
    let mut all_logits = golden.file.info(&all).map(|_| last_logits.clone());
    for (i, &token) in golden_tokens.iter().enumerate().take(case.new_tokens.saturating_sub(1)) {
        let (token, logits) = decode(model, token, rows + i)?;
        forced.push(token);
        last_logits = logits;
        if let Some(all) = &mut all_logits {
            all.extend_from_slice(&last_logits);
        }
    }
    if let Some(logits) = all_logits {
        tensors.extend(golden.compare(&all, &logits, vocab)?);
    }
    tensors.extend(golden.compare(&format!("{}.lm.logits_final", case.name), &last_logits, vocab)?);
    let mut free = vec![first];
    while free.len() < case.new_tokens {
        let (token, _) = decode(model, free[free.len() - 1], rows + free.len() - 1)?;
        free.push(token);
    }
    Ok(Measured { name: case.name.clone(), tensors, golden_tokens, margins, forced, free })
}

struct Prompt {
    embeds: HostTensor,
    hidden: HostTensor,
    logits: HostTensor,
    tokens: HostTensor,
}

fn prefill(model: &mut Model, ids: &[u32]) -> Result<(Prompt, u32)> {
    let (exe, io) = model.run_ids(ids, 0, 0, Head::All)?;
    let (Some(hidden), Some(logits), Some(token)) = (io.hidden, io.logits, io.token) else {
        crate::bail_runtime!("a graph without logits");
    };
    let prompt = Prompt {
        embeds: model.backend.read(exe, io.embeds)?,
        hidden: model.backend.read(exe, hidden)?,
        logits: model.backend.read(exe, logits)?,
        tokens: model.backend.read(exe, token)?,
    };
    let first = prompt.tokens.data.u32s()[ids.len() - 1];
    Ok((prompt, first))
}

/// One step on `token` at `pos`: the next token and its logits.
fn decode(model: &mut Model, token: u32, pos: usize) -> Result<(u32, Vec<f32>)> {
    model.write_text_state(state::TOKEN, &HostData::U32(vec![token]))?;
    let (exe, io) = model.run_token(pos, 0, Head::Greedy)?;
    let (Some(logits), Some(next)) = (io.logits, io.token) else {
        crate::bail_runtime!("a decoding step without logits");
    };
    let logits = model.backend.read(exe, logits)?;
    let next = model.backend.read(exe, next)?;
    Ok((next.data.u32s()[0], logits.data.f32s().to_vec()))
}

fn row(t: &HostTensor, row: usize) -> &[f32] {
    let cols = t.desc.cols();
    &t.data.f32s()[row * cols..(row + 1) * cols]
}

/// `-200` stands for a tile, `-500` for the sound.
fn merged_ids(model: &Model, case: &Case) -> Result<Vec<u32>> {
    let mut media = 0u32;
    let mut ids = Vec::new();
    for &id in &case.input_ids {
        let rows = match id {
            -200 => model.rows_per_tile(),
            -500 => model.rows_of_sound(case.audio_frames),
            id => {
                let id = u32::try_from(id)
                    .map_err(|_| Error::input(format!("{}: input id {id} is no token", case.name)))?;
                ids.push(id);
                continue;
            }
        } as u32;
        ids.extend((media..media + rows).map(|r| r | MEDIA_BIT));
        media += rows;
    }
    Ok(ids)
}

/// What is compared of a case.
const TENSORS: [&str; 11] = [
    "vision.last_hidden_state",
    "vision.features",
    "vision.projected",
    "audio.subsampled",
    "audio.encoder",
    "audio.embeds",
    "inputs_embeds",
    "lm.hidden_last",
    "lm.logits_tail",
    "lm.logits_forced",
    "lm.logits_final",
];
/// Its tokens, and how sure the reference was of them.
const IDS: [&str; 3] = ["lm.argmax_all", "lm.greedy_tokens", "lm.greedy_margins"];

/// The reference outputs.
struct Golden {
    file: Safetensors,
}

impl Golden {
    /// Refuses a file with tensors that nothing is compared with, and one that has none but tokens of a case.
    fn open(path: &Path, cases: &[Case]) -> Result<Golden> {
        let (file, at) = (Safetensors::open_file(path)?, path.display());
        let mut compared = vec![false; cases.len()];
        for name in file.names() {
            let found = cases.iter().enumerate().find_map(|(i, case)| {
                let key = name.strip_prefix(&case.name)?.strip_prefix('.')?;
                if let Some(whole) = key.strip_suffix(".rows") {
                    // Which of its rows the file has.
                    let there =
                        TENSORS.contains(&whole) && file.info(&format!("{}.{whole}", case.name)).is_some();
                    return there.then_some((i, false));
                }
                let given = match key.split('.').next() {
                    Some("vision") => case.images > 0,
                    Some("audio") => case.audio_frames > 0,
                    _ => true,
                };
                let is_tensor = TENSORS.contains(&key) && given;
                (is_tensor || IDS.contains(&key)).then_some((i, is_tensor))
            });
            let Some((i, is_tensor)) = found else {
                crate::bail_input!("{at}: {name}: no case of the config gives such a tensor")
            };
            compared[i] |= is_tensor;
        }
        if let Some((case, _)) = cases.iter().zip(&compared).find(|(_, compared)| !**compared) {
            crate::bail_input!("{at}: case {}: expected tensors to compare, found none", case.name);
        }
        Ok(Golden { file })
    }

    fn words(&self, name: &str, stored_as: &str) -> Result<Vec<[u8; 4]>> {
        let info = self.file.need(name)?;
        crate::ensure_input!(
            info.stored_as == stored_as,
            "{name}: expected {stored_as}, found {}",
            info.stored_as
        );
        let word = |c: &[u8]| [c[0], c[1], c[2], c[3]];
        Ok(self.file.bytes(name)?.chunks_exact(4).map(word).collect())
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.words(name, "f32")?.into_iter().map(f32::from_le_bytes).collect())
    }

    fn ids(&self, name: &str) -> Result<Vec<u32>> {
        Ok(self.words(name, "i32")?.into_iter().map(u32::from_le_bytes).collect())
    }

    /// Compares `data`, `[.., rows, cols]`, with the tensor `name`, which may hold a subset of the rows of every
    /// leading index. `None` when the file has no such tensor.
    fn compare(&self, name: &str, data: &[f32], cols: usize) -> Result<Option<Check>> {
        let Some(info) = self.file.info(name) else { return Ok(None) };
        let golden = self.floats(name)?;
        let subset = format!("{name}.rows");
        let picked = match self.file.info(&subset) {
            None => data.to_vec(),
            Some(_) => {
                let rows = self.ids(&subset)?;
                let groups = info.shape.iter().rev().skip(2).product::<usize>();
                let per_group = data.len() / groups;
                let pick = |g: usize, r: u32| {
                    let at = g * per_group + r as usize * cols;
                    data.get(at..at + cols).unwrap_or(&[])
                };
                (0..groups).flat_map(|g| rows.iter().flat_map(move |&r| pick(g, r))).copied().collect()
            }
        };
        crate::ensure_input!(
            picked.len() == golden.len(),
            "{name}: expected {:?} ({} values), the model gives {} values",
            info.shape,
            golden.len(),
            picked.len()
        );
        let (mut diff, mut norm, mut worst, mut worst_by) = (0.0f64, 0.0f64, 0, -1.0f64);
        for (i, (a, b)) in picked.iter().zip(&golden).enumerate() {
            let d = (f64::from(*a) - f64::from(*b)).abs();
            diff += d * d;
            norm += f64::from(*b).powi(2);
            let by = if d.is_nan() { f64::INFINITY } else { d };
            if by > worst_by {
                (worst, worst_by) = (i, by);
            }
        }
        // NaN anywhere makes the error infinite: it never passes.
        let rel = (diff / norm).sqrt();
        let rel = if rel.is_nan() { f64::INFINITY } else { rel };
        Ok(Some(Check { name: name.to_owned(), shape: info.shape, rel, max_rel: 0.0, worst, pass: false }))
    }

    /// Compares ids; `exact` devices have to agree everywhere, for others the share that differs is information.
    fn compare_ids(&self, name: &str, ids: &[u32], exact: bool) -> Result<Option<Check>> {
        let Some(info) = self.file.info(name) else { return Ok(None) };
        let golden = self.ids(name)?;
        let wrong: Vec<usize> = (0..golden.len()).filter(|&i| ids.get(i) != Some(&golden[i])).collect();
        if !exact {
            return Ok(None);
        }
        Ok(Some(Check {
            name: name.to_owned(),
            shape: info.shape,
            rel: wrong.len() as f64 / golden.len().max(1) as f64,
            max_rel: 0.0,
            worst: wrong.first().copied().unwrap_or(0),
            pass: false,
        }))
    }
}
