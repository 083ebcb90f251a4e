//! `vivace bench`: the times that matter to a user of the model, on one device, whole graphs at a time.
//!
//! Graphs are timed as they run in a request: captured and replayed where the device can, on random inputs, with a
//! cache that earlier prefills have filled. The weights of a real model are far larger than any cache, so every run
//! reads them from memory.

mod items;

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use items::{FULL_ITEMS, Item, MIXED_TEXT_TOKENS, SMALL_ITEMS, selected};

use super::measure::{
    Meta, REPEATS, Rates, Spread, Sustained, WARMUP, human_us, percent, rest, table, time_graph,
};
use super::model::Work;
use super::{Engine, GenerateOptions, Options, Question, Session, Stage, open_backend, overlap_ms};
use crate::core::{Cost, HostData, Result, Step};
use crate::exec::{Ceilings, MemoryUse};
use crate::media::audio::Sound;
use crate::media::image::Picture;
use crate::media::tiles::Tiles;
use crate::models::config::{AudioConfig, Hints, ModelConfig, Opened, open_model_with, synthetic};
use crate::models::qwen2::{Head, Ids};
use crate::weights::test_input;

/// VITA-1.5 with its real widths and depths.
const FULL: (&str, &str) = ("examples/vita-1.5.json", include_str!("../../examples/vita-1.5.json"));
/// A model of the same kind that a CPU runs in moments.
const SMALL: (&str, &str) = ("examples/demo.json", include_str!("../../examples/demo.json"));

/// What is told while a bench runs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Progress<'a> {
    /// Bytes of weights: done, of.
    Loading(u64, u64),
    /// Item `at` (from 0) of `of` begins.
    Running { item: &'a str, at: usize, of: usize },
}

/// One line of the report.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// `decode_512`, `decode_512_batch_8`, `prefill_2048`, `vision_13`, `audio_1000`, `first_token`, `load`.
    pub name: String,
    pub what: String,
    #[serde(flatten)]
    pub time: Spread,
    /// Of a graph, where it was asked for.
    #[serde(flatten)]
    pub sustained: Option<Sustained>,
    #[serde(flatten)]
    pub rates: Rates,
    /// Of a request: its stages, medians of the runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageRow>,
    /// Of a request: how long vision and audio ran side by side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap_us: Option<f64>,
}

/// A stage of a request.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StageRow {
    pub stage: &'static str,
    pub median_us: f64,
    /// What of it the first token waited for.
    pub critical_us: f64,
}

/// Medians of the stages of several answers, in the order in which they begin; and of the overlap of the encoders.
fn stage_rows(answers: &[Vec<Stage>]) -> (Vec<StageRow>, Option<f64>) {
    let Some(first) = answers.first() else { return (Vec::new(), None) };
    let mut names: Vec<&'static str> = Vec::new();
    for s in first {
        if !names.contains(&s.stage) {
            names.push(s.stage);
        }
    }
    let median_us = |of: &dyn Fn(&[Stage]) -> f64| {
        let us: Vec<f64> = answers.iter().map(|stages| of(stages) * 1e3).collect();
        Spread::of(&us).map_or(0.0, |s| s.median_us)
    };
    let sum = |stages: &[Stage], name, of: fn(&Stage) -> f64| -> f64 {
        stages.iter().filter(|s| s.stage == name).map(of).sum()
    };
    let row = |&stage: &&'static str| StageRow {
        stage,
        median_us: median_us(&|stages| sum(stages, stage, |s| s.ms)),
        critical_us: median_us(&|stages| sum(stages, stage, |s| s.critical_ms)),
    };
    let overlap = median_us(&|stages| overlap_ms(stages, "vision", "audio"));
    (names.iter().map(row).collect(), Some(overlap))
}

/// Bytes on the device after everything ran.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Memory {
    pub weights: u64,
    pub states: u64,
    pub arenas: u64,
    pub peak: u64,
}

impl From<MemoryUse> for Memory {
    fn from(m: MemoryUse) -> Memory {
        Memory { weights: m.weights, states: m.states, arenas: m.arenas, peak: m.peak }
    }
}

/// What `vivace bench` prints and `--json` writes.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub meta: Meta,
    pub model: String,
    pub dtype: &'static str,
    /// Rows of the KV cache that the model was opened with.
    pub context: usize,
    pub memory_bytes: Memory,
    /// For how long each graph was replayed on top, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sustain_seconds: Option<f64>,
    pub rows: Vec<Row>,
}

/// Times every item whose name contains one of the comma-separated parts of `filter` (all without one) on
/// `model_spec`: by default the full-size synthetic VITA-1.5, and on a CPU a small model with fewer items. Items
/// that are one graph are then also replayed for as long as `sustain` says.
///
/// # Errors
/// `Input` when nothing matches `filter` or the model cannot be opened, `Runtime` when the device fails.
pub fn run(
    options: &Options,
    model_spec: Option<&str>,
    filter: Option<&str>,
    sustain: Option<Duration>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report> {
    let on_gpu = open_backend(options.device)?.asynchronous();
    let (model, opened, all) = match model_spec {
        Some(spec) => {
            let opened = open_model_with(spec, &options.folders)?;
            (spec.to_owned(), opened, if on_gpu { FULL_ITEMS } else { SMALL_ITEMS })
        }
        None => {
            let ((path, json), items) = if on_gpu { (FULL, FULL_ITEMS) } else { (SMALL, SMALL_ITEMS) };
            let model = format!("synthetic:{path}");
            options.folders.refuse_for(&model)?;
            (model, built_in(path, json)?, items)
        }
    };
    let most = opened.config.text.max_position_embeddings;
    let has = |i: &Item| match i {
        _ if i.context(most) > most => false,
        Item::Vision(_) => opened.config.vision.is_some(),
        Item::Audio(_) => opened.config.audio.is_some(),
        Item::FirstToken | Item::FirstTokenRested | Item::FirstTokenCached => {
            opened.config.vision.is_some() && opened.config.audio.is_some()
        }
        Item::FirstTokenStreamed => {
            let chunked = |a: &AudioConfig| a.chunk_size > 0 || options.audio_chunk.is_some();
            opened.config.vision.is_some() && opened.config.audio.as_ref().is_some_and(chunked)
        }
        _ => true,
    };
    let items = selected(all.iter().copied().filter(has), filter)?;

    let needed = items.iter().map(|i| i.context(most)).max().unwrap_or(64);
    let options = Options { context: options.context.or(Some(needed)), ..options.clone() };
    let start = Instant::now();
    let mut engine =
        Engine::from_opened(opened, &options, &mut |done, of| progress(Progress::Loading(done, of)))?;
    engine.model.backend_mut().sync()?;
    let load_us = start.elapsed().as_secs_f64() * 1e6;

    let ceilings = engine.model.backend().ceilings();
    let mut bench = Bench { engine, ceilings, filled: 0, load_us, sustain };
    let mut rows = Vec::new();
    for (at, &item) in items.iter().enumerate() {
        progress(Progress::Running { item: &item.name(), at, of: items.len() });
        rows.push(bench.row(item).map_err(|e| e.context(item.name()))?);
    }
    let backend = bench.engine.model.backend();
    Ok(Report {
        meta: Meta::of(backend),
        model,
        dtype: bench.engine.model.dtype.name(),
        context: bench.engine.context_rows(),
        memory_bytes: backend.memory().into(),
        sustain_seconds: sustain.map(|time| time.as_secs_f64()),
        rows,
    })
}

fn built_in(path: &str, json: &str) -> Result<Opened> {
    let json = serde_json::from_str(json)
        .map_err(|e| crate::core::Error::runtime(format!("{path}, built in: not readable as JSON: {e}")))?;
    let config = ModelConfig::from_value(&json, path, Hints::NONE)?;
    let source = std::sync::Arc::new(synthetic(&config));
    Ok(Opened { config, source, dir: None, assumed: None })
}

struct Bench {
    engine: Engine,
    ceilings: Option<Ceilings>,
    /// Rows of the KV cache that hold values of a prefill.
    filled: usize,
    load_us: f64,
    sustain: Option<Duration>,
}

impl Bench {
    fn row(&mut self, item: Item) -> Result<Row> {
        let mut answers = Vec::new();
        let (time, sustained, cost) = match item {
            Item::Load => {
                let bytes = self.engine.model.backend().memory().weights;
                let cost = Cost { flops: 0, read_bytes: 0, written_bytes: bytes };
                (Spread::of(&[self.load_us]), None, cost)
            }
            Item::Decode(kv_len) => {
                self.fill(kv_len)?;
                let work = Work::Text { rows: 1, kv_len, ids: Ids::LastToken, head: Head::Greedy };
                self.graph(work, Step::rows(kv_len - 1, 1, 0), None)?
            }
            Item::DecodeBatch(kv_len, sequences) => {
                self.fill(kv_len)?;
                let model = &mut self.engine.model;
                model.open_batch(sequences, kv_len)?;
                model.branch(kv_len - 1)?;
                let tokens = self.ids(kv_len, sequences);
                let model = &mut self.engine.model;
                model.set_batch_tokens(tokens)?;
                let work = Work::Batch { sequences, kv_len, head: Head::Greedy };
                let timed = self.graph(work, Step::rows(kv_len - 1, 1, 0), None);
                // Others find the memory that they would find by themselves.
                self.engine.free_answers()?;
                timed?
            }
            Item::Prefill(rows) => {
                self.fits(rows)?;
                let padded = self.engine.model.padded_rows(rows);
                let mut ids = self.ids(0, rows);
                ids.resize(padded, 0);
                let work = Work::Text { rows: padded, kv_len: rows, ids: Ids::Host, head: Head::Greedy };
                self.graph(work, Step::rows(0, rows, 0), Some(HostData::U32(ids)))?
            }
            Item::Vision(tiles) => {
                let size = self.engine.model.cfg.vision.as_ref().map_or(0, |v| v.image_size);
                let noise = test_input(SEED, "bench.pixels", &[tiles, size, size, 3], 127.5, 127.5);
                let data: Vec<u8> = noise.into_iter().map(|x| x as u8).collect();
                let picture = Tiles { size, count: tiles, grid: (1, tiles), data: data.into() };
                let Some((tiles, pixels)) = self.engine.model.batches(&picture)?.pop() else {
                    crate::bail_runtime!("a picture without tiles")
                };
                let work = Work::Vision { tiles, bytes: matches!(pixels, HostData::U32(_)) };
                self.graph(work, Step::rows(0, tiles, 0), Some(pixels))?
            }
            Item::Audio(frames) => {
                let fbank = test_input(SEED, "bench.fbank", &[frames, 80], 16.0, 4.0);
                self.graph(Work::Audio { frames }, Step::rows(0, frames, 0), Some(HostData::F32(fbank)))?
            }
            Item::FirstToken | Item::FirstTokenRested | Item::FirstTokenCached | Item::FirstTokenStreamed => {
                let (time, cost) = self.first_token(item, &mut answers)?;
                (time, None, cost)
            }
        };
        let Some(time) = time else { crate::bail_runtime!("the device gave no times") };
        let ceilings = if item == Item::Load { None } else { self.ceilings };
        let rates = Rates::of(cost, time.median_us, ceilings);
        let (stages, overlap_us) = stage_rows(&answers);
        Ok(Row { name: item.name(), what: item.about(), time, sustained, rates, stages, overlap_us })
    }

    /// Times one graph as the device replays it.
    fn graph(
        &mut self,
        work: Work,
        step: Step,
        input: Option<HostData>,
    ) -> Result<(Option<Spread>, Option<Sustained>, Cost)> {
        let model = &mut self.engine.model;
        let cost = model.fused(work)?.cost();
        let (exe, tensor) = model.prepared(work)?;
        if let (Some(tensor), Some(data)) = (tensor, &input) {
            model.backend_mut().write(exe, tensor, data)?;
        }
        rest(model.backend());
        let (time, sustained) = time_graph(model.backend_mut(), exe, step, self.sustain)?;
        Ok((Some(time), sustained, cost))
    }

    /// Fills the cache up to `rows` with the keys and values of random ids.
    fn fill(&mut self, rows: usize) -> Result<()> {
        self.fits(rows)?;
        while self.filled < rows {
            let n = (rows - self.filled).min(super::PREFILL_CHUNK_ROWS);
            let ids = self.ids(self.filled, n);
            self.engine.model.run_ids(&ids, self.filled, 0, Head::Greedy)?;
            self.filled += n;
        }
        self.engine.model.backend_mut().sync()
    }

    fn fits(&self, rows: usize) -> Result<()> {
        let context = self.engine.context_rows();
        crate::ensure_input!(rows <= context, "--context {context}: {rows} rows expected or more");
        Ok(())
    }

    /// Random ids for rows `first..first + n`.
    fn ids(&self, first: usize, n: usize) -> Vec<u32> {
        let vocab = self.engine.model.sizes.token_limit as f64;
        let noise = test_input(SEED, &format!("bench.ids.{first}"), &[n], 0.5, 0.5);
        noise.into_iter().map(|u| (f64::from(u) * vocab).clamp(0.0, vocab - 1.0) as u32).collect()
    }

    /// The mixed request through a session, as a user asks it. Bytes and flops are those of its graphs.
    ///
    /// Nothing is known of earlier requests, or, if `cached`, what comes before the question's text: every request then
    /// has another text and another sound.
    fn first_token(&mut self, item: Item, answers: &mut Vec<Vec<Stage>>) -> Result<(Option<Spread>, Cost)> {
        let size = self.engine.model.cfg.vision.as_ref().map_or(0, |v| v.image_size);
        let noise = test_input(SEED, "bench.picture", &[size, size, 3], 127.5, 127.5);
        let picture = Picture::new(size, size, noise.into_iter().map(|v| v as u8).collect())?;
        let sound = Sound::new(16_000, test_input(SEED, "bench.sound", &[160_000], 0.0, 0.3))?;
        let text = " ".to_owned();
        let mut question =
            Question { text, images: vec![picture], sounds: vec![sound], ..Question::default() };
        let (rows, frames) = self.pad_question(&mut question)?;

        let once = GenerateOptions { max_new_tokens: 1, answer_noise: true, ..GenerateOptions::default() };
        let (streamed, rested) = (item == Item::FirstTokenStreamed, item == Item::FirstTokenRested);
        let cached = streamed || item == Item::FirstTokenCached;
        let mut times_us = Vec::new();
        let mut computed = rows;
        rest(self.engine.model.backend());
        for i in 0..WARMUP + REPEATS {
            match cached {
                // One character of the text at its beginning, one sample of the sound.
                true => {
                    let mark = char::from(b'a' + (i % 26) as u8).to_string();
                    question.text.replace_range(..1, &mark);
                    question.sounds[0].samples[i] += 0.1;
                }
                false => self.engine.clear_cache(),
            }
            if rested {
                rest(self.engine.model.backend());
            }
            let mut session = self.engine.session(Some(SYSTEM))?;
            let end_us = if streamed { stream_sound(&mut session, &question)? } else { 0.0 };
            let answer = session.ask(&question, &once, &mut |_| true)?;
            if i >= WARMUP {
                times_us.push(end_us + answer.timings.first_token_ms * 1e3);
                computed = answer.cache.prefilled_rows;
                answers.push(answer.stages);
                // The sound is new unless it was streamed, the picture is where nothing is known.
                if answer.cache.media_encoded != if streamed { 0 } else { 1 } + usize::from(!cached) {
                    crate::bail_runtime!("another part of the request was known than is to be measured");
                }
            }
        }
        self.filled = 0;
        let model = &self.engine.model;
        let padded = model.padded_rows(computed);
        let text = Work::Text { rows: padded, kv_len: rows, ids: Ids::Host, head: Head::Greedy };
        let mut cost = model.fused(text)?.cost();
        if !streamed {
            cost = cost + model.fused(Work::Audio { frames })?.cost();
        }
        if !cached {
            cost = cost + model.fused(Work::Vision { tiles: 1, bytes: true })?.cost();
        }
        Ok((Spread::of(&times_us), cost))
    }

    /// Lengthens the text until the request has [`MIXED_TEXT_TOKENS`] text tokens. Returns all rows and the frames.
    fn pad_question(&mut self, question: &mut Question) -> Result<(usize, usize)> {
        const WORDS: [&str; 8] = [" what", " do", " you", " see", " and", " hear", " in", " this"];
        let session = self.engine.session(Some(SYSTEM))?;
        let text_tokens = |q: &Question| -> Result<(usize, usize, usize)> {
            let inputs = session.inputs(q)?;
            let text = inputs.ids.iter().filter(|id| *id & super::model::MEDIA_BIT == 0).count();
            Ok((text, inputs.ids.len(), inputs.sounds.first().map_or(0, |s| s.frames)))
        };
        let mut next = 0;
        loop {
            let (text, rows, frames) = text_tokens(question)?;
            if text >= MIXED_TEXT_TOKENS {
                return Ok((rows, frames));
            }
            // Words while there is room for the longest of them, then single characters.
            let word = WORDS[next % WORDS.len()];
            question.text.push_str(if MIXED_TEXT_TOKENS - text > word.len() { word } else { "?" });
            if next > 16 * MIXED_TEXT_TOKENS {
                crate::bail_runtime!(
                    "the tokenizer merges every text to fewer than {MIXED_TEXT_TOKENS} tokens"
                );
            }
            next += 1;
        }
    }
}

/// Has the question's sound come in, as from a microphone that is read every 20 ms; returns microseconds of its end.
fn stream_sound(session: &mut Session<'_>, question: &Question) -> Result<f64> {
    let sound = &question.sounds[0];
    let mut stream = session.sound_stream(sound.rate_hz, question.dither)?;
    for samples in sound.samples.chunks(sound.rate_hz as usize / 50) {
        stream.push(samples)?;
    }
    stream.sync()?;
    let start = Instant::now();
    stream.finish()?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

const SEED: u64 = 11;
const SYSTEM: &str = "Answer.";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.meta;
        writeln!(f, "{}, {}, {}, context {}", m.device, self.model, self.dtype, self.context)?;
        writeln!(f, "{}{}", m.date, m.commit.as_ref().map_or(String::new(), |c| format!(", commit {c}")))?;
        let sustained = self.rows.iter().any(|r| r.sustained.is_some());
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|r| {
                let mut cells = vec![
                    r.name.clone(),
                    human_us(r.time.median_us),
                    human_us(r.time.p10_us),
                    human_us(r.time.p90_us),
                    format!("{:.0}", r.rates.gb_per_s),
                    format!("{:.2}", r.rates.tflop_per_s),
                    r.rates.roofline_us.map_or("-".to_owned(), human_us),
                    percent(r.rates.roofline_share),
                ];
                if sustained {
                    cells.extend(Sustained::cells(r.sustained.as_ref(), human_us));
                }
                cells
            })
            .collect();
        let mut head = vec!["", "median", "p10", "p90", "GB/s", "TFLOP/s", "roofline", "share"];
        if sustained {
            head.extend(Sustained::HEAD);
        }
        f.write_str(&table(&head, &rows))?;
        for row in self.rows.iter().filter(|r| !r.stages.is_empty()) {
            let overlap = row.overlap_us.map_or("-".to_owned(), human_us);
            writeln!(f, "{}: its stages; vision and audio side by side for {overlap}", row.name)?;
            let cells =
                |s: &StageRow| vec![s.stage.to_owned(), human_us(s.median_us), human_us(s.critical_us)];
            let rows: Vec<_> = row.stages.iter().map(cells).collect();
            f.write_str(&table(&["", "median", "waited for"], &rows))?;
        }
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let m = &self.memory_bytes;
        writeln!(
            f,
            "memory: weights {:.2} GB, states {:.2} GB, arenas {:.2} GB, peak {:.2} GB",
            gb(m.weights),
            gb(m.states),
            gb(m.arenas),
            gb(m.peak)
        )
    }
}

#[cfg(test)]
mod tests;
