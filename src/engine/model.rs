//! A model on a device: its states, its prepared graphs, and the three things that can be run: tiles to rows, a
//! sound to rows, rows to the next token.

mod batch;
mod encoders;

use std::sync::Arc;

use batch::Batch;
pub use batch::MOST_SEQUENCES;

use super::cache::{Cache, CacheOptions, CacheStats, Found, Key, PrefixId};
use super::graphs::{EncoderIo, Graphs, PictureIo, PieceIo, TextIo};
use crate::core::asked;
use crate::core::{DType, Desc, HostData, HostSlice, Recipe, Result, Step, Tensor};
use crate::exec::{Backend, ExeId, Lane, StateId};
use crate::fuse::{Fusion, fuse};
use crate::graph::Graph;
use crate::media::fbank::{FbankOptions, RATE_HZ, fbank};
use crate::media::tiles::Tiles;
use crate::models::config::ModelConfig;
use crate::models::intern_vit::Tiling;
use crate::models::qwen2::{self, Head, Ids, TextKey, TextSizes, state};
use crate::models::whale::Piece;
use crate::models::{intern_vit, intern_vit::Pixels, whale};
use crate::weights::Source;

/// Ids with this bit are rows of the media state.
pub use crate::ops::embed::MEDIA_BIT;

/// Tiles that go through the vision tower at once: 13 is the most that one picture gives.
pub(super) const TILES_AT_ONCE: usize = 16;
/// Positions for which Whale's tables are made at first; they double when a longer sound comes.
const POSITIONS_AT_FIRST: usize = 1024;

/// A model whose weights are resident.
pub struct Model {
    pub cfg: ModelConfig,
    pub sizes: TextSizes,
    /// Element type of activations, states and weights.
    pub dtype: DType,
    pub(super) backend: Box<dyn Backend>,
    source: Arc<dyn Source>,
    fusion: Fusion,
    text: Graphs<TextKey, TextIo>,
    vision: Graphs<(usize, bool), EncoderIo>,
    audio: Graphs<(usize, usize), EncoderIo>,
    pieces: Graphs<(Piece, usize), PieceIo>,
    pictures: Graphs<Tiling, PictureIo>,
    /// From samples; key as `audio`.
    samples: Graphs<(usize, usize), EncoderIo>,
    /// Window, spans and weights of the filterbank; none before the first sound.
    mel_states: Vec<StateId>,
    text_states: Vec<StateId>,
    /// What the KV cache and the media state hold. Whoever writes to these states says so here first.
    pub(super) cache: Cache,
    /// `[2, G, R, D]` per layer, for the beginnings of other conversations; none before the first is kept.
    prefix_states: Vec<StateId>,
    /// Keys and values of one row of the sequence, all layers.
    row_bytes: u64,
    /// Sequences side by side; none before the first are wanted.
    batch: Option<Batch>,
    position_states: Vec<StateId>,
    positions: usize,
    /// Of [`whale::build_piece`], behind the positions; and the rows of the sound that is coming in. None before the first.
    piece_states: Vec<StateId>,
    arriving: Option<StateId>,
    /// Keep intermediate results of the encoders readable, for comparisons.
    observe: bool,
    /// Pictures go to the device as normalised f32, not as bytes: four times as much (`VIVACE_PIXELS=f32`).
    pixel_values: bool,
}

/// One of the graphs of a model.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Work {
    /// `rows` rows, the last of them row `kv_len - 1` of the sequence.
    Text {
        rows: usize,
        kv_len: usize,
        ids: Ids,
        head: Head,
    },
    /// A row of each of `sequences` sequences, row `kv_len - 1` of it.
    Batch {
        sequences: usize,
        kv_len: usize,
        head: Head,
    },
    /// Tiles as bytes, or as normalised values.
    Vision {
        tiles: usize,
        bytes: bool,
    },
    Audio {
        frames: usize,
    },
}

/// What to build a [`Model`] from.
pub struct ModelParts {
    pub cfg: ModelConfig,
    pub source: Arc<dyn Source>,
    pub backend: Box<dyn Backend>,
    pub dtype: DType,
    pub sizes: TextSizes,
    pub fusion: Fusion,
    pub cache: CacheOptions,
    pub observe: bool,
}

impl Model {
    /// Loads the weights of the model, and creates its states.
    pub fn load(parts: ModelParts, progress: &mut dyn FnMut(u64, u64)) -> Result<Model> {
        let ModelParts { cfg, source, backend, dtype, sizes, fusion, cache, observe } = parts;
        let mut model = Model {
            cfg,
            sizes,
            dtype,
            backend,
            fusion,
            text: Graphs::new(Lane::Text, &source),
            vision: Graphs::new(Lane::Vision, &source),
            audio: Graphs::new(Lane::Audio, &source),
            pieces: Graphs::new(Lane::Audio, &source),
            pictures: Graphs::new(Lane::Vision, &source),
            samples: Graphs::new(Lane::Audio, &source),
            source,
            mel_states: Vec::new(),
            text_states: Vec::new(),
            cache: Cache::new(CacheOptions { enabled: false, ..cache }, 0, 0),
            prefix_states: Vec::new(),
            row_bytes: 0,
            batch: None,
            position_states: Vec::new(),
            positions: 0,
            piece_states: Vec::new(),
            arriving: None,
            observe,
            pixel_values: asked(
                "VIVACE_PIXELS",
                |way| ["bytes", "f32"].contains(&way).then_some(way == "f32"),
                "bytes or f32",
            )?
            .unwrap_or(false),
        };
        let recipes = model.recipes()?;
        let key = TextKey { rows: 1, sequences: 1, kv_bucket: 1, ids: Ids::LastToken, head: Head::None };
        let text = qwen2::build(&model.cfg.text, &model.sizes, model.dtype, key)?.graph;
        let weights: u64 = recipes.iter().map(Recipe::bytes).sum();
        let states: u64 = text.states.iter().map(Desc::bytes).sum();
        model.backend.require(weights, states)?;
        model.backend.load(&recipes, &model.source, progress)?;
        model.text_states = create_states(model.backend.as_mut(), text.states.iter().cloned())?;
        let kv_bytes: u64 = text.states[state::KV..].iter().map(Desc::bytes).sum();
        model.row_bytes = kv_bytes / sizes.max_seq as u64;
        model.cache = Cache::new(cache, sizes.media_rows, model.row_bytes);
        if model.cfg.audio.is_some() {
            model.reserve_positions(POSITIONS_AT_FIRST)?;
        }
        model.prepare_decoding()?;
        Ok(model)
    }

    /// Does what decoding steps would otherwise do between two tokens: a graph for every bucket and both heads is run
    /// once and captured, and the arena takes the longest chunk of a prompt, so that no later prompt moves it.
    fn prepare_decoding(&mut self) -> Result<()> {
        if !self.backend.asynchronous() {
            return Ok(());
        }
        let (context, ids) = (self.sizes.max_seq, Ids::Host);
        let rows = self.padded_rows(super::PREFILL_CHUNK_ROWS.min(context));
        let longest = self.fused(Work::Text { rows, kv_len: context, ids, head: Head::Greedy })?;
        let longest = crate::plan::plan(longest, |d| self.backend.arena_elem_bytes(d))?;
        self.backend.reserve(Lane::Text, longest.arena_bytes)?;
        for kv_len in buckets(context) {
            for head in [Head::Greedy, Head::Sample] {
                let (exe, _) = self.text_graph(1, kv_len, Ids::LastToken, head)?;
                let kv_bucket = self.kv_bucket(kv_len);
                self.text.pin(TextKey { rows: 1, sequences: 1, kv_bucket, ids: Ids::LastToken, head });
                // Whatever it writes to the states is written anew before anyone reads it.
                self.backend.run(exe, Step::rows(0, 1, 0))?;
                self.backend.warm(exe)?;
            }
        }
        self.backend.sync()
    }

    /// Prepares and captures what almost every first question runs besides, so that it does not wait for it: short prompts
    /// and one tile. What the states hold then means nothing.
    pub(super) fn warm(&mut self) -> Result<()> {
        const PROMPT_ROWS: [usize; 4] = [64, 128, 256, 512];
        let most = self.sizes.max_seq;
        if self.cfg.audio.is_some() {
            // The threads that filter sounds, and their tables.
            fbank(&vec![0.0; RATE_HZ as usize], FbankOptions::default())?;
        }
        // The first run goes launch by launch, the second one captures.
        for _ in 0..2 {
            for rows in PROMPT_ROWS.into_iter().filter(|&r| r <= most) {
                self.run_ids(&vec![0; rows], 0, 0, Head::Greedy)?;
            }
            if let Some(vision) = &self.cfg.vision {
                let size = vision.image_size;
                if self.rows_per_tile() <= self.sizes.media_rows {
                    self.encode_picture(&Tiles::blank(size), 0)?;
                }
            }
        }
        self.backend.sync()
    }

    /// The weights of all graphs but those of the longest sounds, after fusion. Few and many rows may have them in other
    /// forms; what is not among these comes when a graph wants it.
    fn recipes(&self) -> Result<Vec<Recipe>> {
        let mut all: Vec<Recipe> = Vec::new();
        let mut add = |g: Graph| -> Result<()> {
            for r in fuse(g, &self.fusion)?.weights {
                if !all.contains(&r) {
                    all.push(r);
                }
            }
            Ok(())
        };
        let key = |ids, head| TextKey { rows: 1, sequences: 1, kv_bucket: 1, ids, head };
        let cfg = &self.cfg;
        add(qwen2::build(&cfg.text, &self.sizes, self.dtype, key(Ids::Host, Head::All))?.graph)?;
        if let Some(vision) = &cfg.vision {
            for tiles in [1, TILES_AT_ONCE] {
                add(intern_vit::build(vision, &cfg.text, self.dtype, tiles, Pixels::Values)?.graph)?;
            }
        }
        if let Some(audio) = &cfg.audio {
            add(whale::build(audio, &cfg.text, self.dtype, 64, 64)?.graph)?;
            add(whale::position_tables(audio, self.dtype, 64)?)?;
            if let Some(chunk) = whale::chunk(audio) {
                let piece = Piece::new(audio, 0, chunk, true);
                add(whale::build_piece(audio, &cfg.text, self.dtype, piece, chunk, chunk)?.graph)?;
            }
            if audio.prompt_rows > 0 {
                add(whale::prompt_rows(&cfg.text, self.dtype, audio.prompt_rows)?.0)?;
            }
        }
        Ok(all)
    }

    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    pub fn backend_mut(&mut self) -> &mut dyn Backend {
        self.backend.as_mut()
    }

    /// Rows of a run that holds `rows` tokens. A device that runs ahead of the host gets few distinct lengths, so
    /// that prepared graphs are shared; the CPU gets what is there.
    pub fn padded_rows(&self, rows: usize) -> usize {
        if self.backend.asynchronous() { pad_rows(rows) } else { rows }
    }

    /// The bucket that holds `kv_len` rows, so that one captured graph serves many steps.
    fn kv_bucket(&self, kv_len: usize) -> usize {
        bucket(kv_len, self.sizes.max_seq)
    }

    /// The prepared text graph for `rows` rows ending at `kv_len`.
    pub(super) fn text_graph(
        &mut self,
        rows: usize,
        kv_len: usize,
        ids: Ids,
        head: Head,
    ) -> Result<(ExeId, TextIo)> {
        let key = TextKey { rows, sequences: 1, kv_bucket: self.kv_bucket(kv_len), ids, head };
        let (cfg, sizes, dtype) = (&self.cfg.text, &self.sizes, self.dtype);
        self.text.get(self.backend.as_mut(), &self.fusion, &self.text_states, key, || {
            let t = qwen2::build(cfg, sizes, dtype, key)?;
            let io =
                TextIo { ids: t.ids, embeds: t.embeds, hidden: t.hidden, logits: t.logits, token: t.token };
            Ok((t.graph, io))
        })
    }

    /// A graph of the model as it is written, before fusion.
    pub(super) fn written(&self, work: Work) -> Result<Graph> {
        let (text, dtype) = (&self.cfg.text, self.dtype);
        match work {
            Work::Text { rows, kv_len, ids, head } => {
                let key = TextKey { rows, sequences: 1, kv_bucket: self.kv_bucket(kv_len), ids, head };
                Ok(qwen2::build(text, &self.sizes, dtype, key)?.graph)
            }
            Work::Batch { sequences, kv_len, head } => {
                let rows = self.batch_rows(kv_len);
                Ok(self.written_batch((sequences, rows), kv_len, head)?.graph)
            }
            Work::Vision { tiles, bytes } => match &self.cfg.vision {
                Some(vision) => {
                    Ok(intern_vit::build(vision, text, dtype, tiles, encoders::pixels(bytes))?.graph)
                }
                None => crate::bail_input!("this model has no vision tower: it cannot take pictures"),
            },
            Work::Audio { frames } => match &self.cfg.audio {
                Some(audio) => {
                    let cap = self.positions.max(whale::encoder_frames(frames));
                    Ok(whale::build(audio, text, dtype, frames, cap)?.graph)
                }
                None => crate::bail_input!("this model has no audio encoder: it cannot take sounds"),
            },
        }
    }

    /// The graph that runs for `work`.
    pub(super) fn fused(&self, work: Work) -> Result<Graph> {
        fuse(self.written(work)?, &self.fusion)
    }

    /// The prepared graph that runs for `work`, and its input.
    pub(super) fn prepared(&mut self, work: Work) -> Result<(ExeId, Option<Tensor>)> {
        match work {
            Work::Text { rows, kv_len, ids, head } => {
                self.cache.truncate(0);
                let (exe, io) = self.text_graph(rows, kv_len, ids, head)?;
                Ok((exe, io.ids))
            }
            Work::Batch { sequences, kv_len, head } => {
                self.open_batch(sequences, kv_len)?;
                let (exe, _) = self.batch_graph(kv_len, head)?;
                Ok((exe, None))
            }
            Work::Vision { tiles, bytes } => {
                self.vision_graph(tiles, bytes).map(|(exe, io)| (exe, Some(io.input)))
            }
            Work::Audio { frames } => self.audio_graph(frames).map(|(exe, io)| (exe, Some(io.input))),
        }
    }

    /// Enqueues `ids` (token ids, or media rows with [`MEDIA_BIT`]) as rows `pos..` of the sequence.
    pub(super) fn run_ids(
        &mut self,
        ids: &[u32],
        pos: usize,
        draw: usize,
        head: Head,
    ) -> Result<(ExeId, TextIo)> {
        let (exe, io) = self.feed(ids, pos, head)?;
        self.backend.run(exe, Step::rows(pos, ids.len(), draw))?;
        Ok((exe, io))
    }

    /// The graph that [`Model::run_ids`] runs, with `ids` on their way to it: what is left is to run it.
    pub(super) fn feed(&mut self, ids: &[u32], pos: usize, head: Head) -> Result<(ExeId, TextIo)> {
        self.cache.truncate(pos);
        let rows = self.padded_rows(ids.len());
        let (exe, io) = self.text_graph(rows, pos + ids.len(), Ids::Host, head)?;
        let mut padded = ids.to_vec();
        padded.resize(rows, 0);
        let Some(input) = io.ids else { crate::bail_runtime!("a text graph without ids") };
        self.backend.write_slice(exe, input, HostSlice::U32(&padded))?;
        Ok((exe, io))
    }

    /// Enqueues one decoding step at `pos` on the token that the last run stored.
    pub(super) fn run_token(&mut self, pos: usize, draw: usize, head: Head) -> Result<(ExeId, TextIo)> {
        self.cache.truncate(pos);
        let (exe, io) = self.text_graph(1, pos + 1, Ids::LastToken, head)?;
        self.backend.run(exe, Step::rows(pos, 1, draw))?;
        Ok((exe, io))
    }

    /// Brings the rows that were found into the KV cache; `restored` are those that it does not hold. What these and the
    /// rows after them will overwrite is kept first, if it is worth it.
    pub(super) fn reuse(&mut self, found: Found, restored: &[Key]) -> Result<()> {
        let lost = self.cache.rows_to_keep(found.resident);
        if lost > 0 {
            self.keep(lost, found.kept)?;
        }
        self.cache.truncate(found.resident);
        if let Some(id) = found.kept {
            for run in self.cache.prefixes.take(id, found.resident..found.rows()) {
                for (layer, &kept) in self.prefix_states.iter().enumerate() {
                    let kv = self.text_states[state::KV + layer];
                    self.backend.copy_state_rows(kept, run.kept_row, kv, run.row, run.rows)?;
                }
            }
            self.cache.extend(restored.iter().copied());
        }
        Ok(())
    }

    /// Copies the first `rows` rows of the KV cache to where beginnings are kept, but for those that are there; `spared`
    /// stays.
    fn keep(&mut self, rows: usize, spared: Option<PrefixId>) -> Result<()> {
        if self.prefix_states.is_empty()
            && let Err(why) = self.create_prefix_states()
        {
            tracing::warn!("no earlier conversation is kept: {why}");
            self.cache.prefixes.close();
            return Ok(());
        }
        let keys = self.cache.kv()[..rows].to_vec();
        let Some(place) = self.cache.prefixes.make_room(&keys, spared) else { return Ok(()) };
        for run in place.runs(rows) {
            for (layer, &kept) in self.prefix_states.iter().enumerate() {
                let kv = self.text_states[state::KV + layer];
                self.backend.copy_state_rows(kv, run.row, kept, run.kept_row, run.rows)?;
            }
        }
        self.cache.prefixes.insert(keys, place);
        Ok(())
    }

    fn create_prefix_states(&mut self) -> Result<()> {
        let sizes = TextSizes { max_seq: self.cache.prefixes.capacity(), ..self.sizes };
        let key = TextKey { rows: 1, sequences: 1, kv_bucket: 1, ids: Ids::LastToken, head: Head::None };
        let states = qwen2::build(&self.cfg.text, &sizes, self.dtype, key)?.graph.states;
        let kept = |desc: &Desc| Desc { name: format!("kept.{}", desc.name), ..desc.clone() };
        self.prefix_states = create_states(self.backend.as_mut(), states[state::KV..].iter().map(kept))?;
        Ok(())
    }

    /// What is kept of earlier questions, and what it was good for.
    pub fn cache_stats(&self) -> CacheStats {
        let rows = if self.prefix_states.is_empty() { 0 } else { self.cache.prefixes.capacity() as u64 };
        self.cache.stats(rows * self.row_bytes)
    }

    /// Writes a text state, see [`qwen2::state`].
    pub(super) fn write_text_state(&mut self, index: usize, data: &HostData) -> Result<()> {
        self.backend.write_state(self.text_states[index], 0, data)
    }

    /// The content of a text state.
    #[cfg(test)]
    pub(super) fn read_text_state(&mut self, index: usize) -> Result<HostData> {
        self.backend.read_state(self.text_states[index])
    }
}

/// All of them, or none.
fn create_states(backend: &mut dyn Backend, descs: impl IntoIterator<Item = Desc>) -> Result<Vec<StateId>> {
    let mut made = Vec::new();
    for desc in descs {
        match backend.create_state(&desc) {
            Ok(s) => made.push(s),
            Err(e) => {
                made.into_iter().for_each(|s| backend.release_state(s));
                return Err(e);
            }
        }
    }
    Ok(made)
}

/// The bucket of a context that holds `kv_len` rows: a power of two from 256 up.
fn bucket(kv_len: usize, context: usize) -> usize {
    kv_len.next_power_of_two().max(256).min(context)
}

/// Every bucket of a context.
fn buckets(context: usize) -> Vec<usize> {
    let mut all = vec![bucket(1, context)];
    while let Some(&last) = all.last()
        && last < context
    {
        all.push(bucket(last + 1, context));
    }
    all
}

/// Row counts that share graphs: all up to 16 (matrix-vector kernels), then multiples of 16, 64 and 128 as the
/// waste shrinks.
fn pad_rows(rows: usize) -> usize {
    match rows {
        0..=16 => rows,
        17..=128 => rows.next_multiple_of(16),
        129..=1024 => rows.next_multiple_of(64),
        _ => rows.next_multiple_of(128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside the weights, at the longest context: the states, and the largest arena of every lane.
    #[test]
    fn a_prompt_of_30000_tokens_takes_at_most_8_gb_beside_the_weights() {
        let json = include_str!("../../examples/vita-1.5.json");
        let cfg = ModelConfig::from_json(json, "vita-1.5.json").unwrap();
        let (most, dtype) = (cfg.text.max_position_embeddings, DType::BF16);
        assert_eq!(most, 32_768);
        let sizes = TextSizes { max_seq: most, media_rows: most, token_limit: cfg.text.vocab_size };
        let (mut states, mut text_arena) = (0, 0);
        for head in [Head::None, Head::Greedy, Head::Sample] {
            let rows = super::super::PREFILL_CHUNK_ROWS;
            let key = TextKey { rows, sequences: 1, kv_bucket: most, ids: Ids::Host, head };
            let built = qwen2::build(&cfg.text, &sizes, dtype, key).unwrap();
            // Logits are those of the last row: all rows would take 2.5 GB a chunk.
            assert!(built.logits.is_none_or(|l| built.graph.desc(l).rows() == 1));
            let plan = crate::plan::plan(fuse(built.graph, &Fusion::on()).unwrap(), |d| d.bytes()).unwrap();
            states = plan.graph.states.iter().map(Desc::bytes).sum::<u64>();
            text_arena = text_arena.max(plan.arena_bytes as u64);
        }
        let vision =
            intern_vit::build(cfg.vision.as_ref().unwrap(), &cfg.text, dtype, TILES_AT_ONCE, Pixels::Values)
                .unwrap();
        let audio = whale::build(cfg.audio.as_ref().unwrap(), &cfg.text, dtype, 6000, 2048).unwrap();
        let tables: u64 = audio.graph.states.iter().map(Desc::bytes).sum();
        let arenas: u64 = [vision.graph, audio.graph]
            .map(|g| {
                crate::plan::plan(fuse(g, &Fusion::on()).unwrap(), |d| d.bytes()).unwrap().arena_bytes as u64
            })
            .iter()
            .sum();
        let kept = CacheOptions::default().bytes;
        let all = states + tables + text_arena + arenas + kept;
        assert!(all < 8_000_000_000, "{all}");
    }

    #[test]
    fn buckets_cover_a_context() {
        assert_eq!(buckets(16400), [256, 512, 1024, 2048, 4096, 8192, 16384, 16400]);
        assert_eq!(buckets(512), [256, 512]);
        assert_eq!(buckets(100), [100]);
        for context in [1, 255, 256, 257, 5000] {
            assert!((1..=context).all(|n| buckets(context).contains(&bucket(n, context))), "{context}");
        }
    }

    #[test]
    fn padding_wastes_little_and_shares_graphs() {
        assert_eq!([1, 16, 17, 128, 129, 1000, 1025].map(pad_rows), [1, 16, 32, 128, 192, 1024, 1152]);
        assert!((17..5000).all(|r| pad_rows(r) >= r && pad_rows(r) - r < 128));
    }
}
