//! Pictures and sounds to rows of the media state, whole or as they come in.

use super::super::graphs::{EncoderIo, PictureIo, PieceIo};
use super::{Model, POSITIONS_AT_FIRST, TILES_AT_ONCE, create_states};
use crate::core::{DType, Desc, HostData, HostSlice, Place, Result, Shape, Step};
use crate::exec::{ExeId, Lane};
use crate::fuse::fuse;
use crate::media::bicubic::Axis;
use crate::media::fbank::{frame_count, mel_width, op_tables, rows_for_frames, samples_of};
use crate::media::image::Picture;
use crate::media::tiles::{MEAN, STD, Tiles, normalised};
use crate::models::config::ModelConfig;
use crate::models::intern_vit::{Pixels, Tiling};
use crate::models::qwen2::state;
use crate::models::whale::Piece;
use crate::models::{intern_vit, whale};

impl Model {
    /// Rows that one tile gives.
    pub fn rows_per_tile(&self) -> usize {
        self.cfg.vision.as_ref().map_or(0, intern_vit::rows_per_tile)
    }

    /// Rows that a sound of `frames` frames gives.
    pub fn rows_of_sound(&self, frames: usize) -> usize {
        rows_for_frames(frames) + self.cfg.audio.as_ref().map_or(0, |a| a.prompt_rows)
    }

    /// The prepared vision graph for `tiles` tiles, of bytes or of normalised values.
    pub(in crate::engine) fn vision_graph(
        &mut self,
        tiles: usize,
        bytes: bool,
    ) -> Result<(ExeId, EncoderIo)> {
        let Some(vision) = &self.cfg.vision else {
            crate::bail_input!("this model has no vision tower: it cannot take pictures")
        };
        let (text, dtype, observe) = (&self.cfg.text, self.dtype, self.observe);
        self.vision.get(self.backend.as_mut(), &self.fusion, &[], (tiles, bytes), || {
            let mut v = intern_vit::build(vision, text, dtype, tiles, pixels(bytes))?;
            let inner = vec![("last_hidden_state", v.last_hidden), ("features", v.features)];
            if observe {
                inner.iter().for_each(|(_, t)| v.graph.output(*t));
            }
            Ok((v.graph, EncoderIo { input: v.pixels, result: v.projected, inner }))
        })
    }

    /// The tiles of a picture as the vision graph takes them, a batch at a time: their number and the input.
    pub(in crate::engine) fn batches(&self, tiles: &Tiles) -> Result<Vec<(usize, HostData)>> {
        let batch_len = TILES_AT_ONCE * tile_len(tiles.size);
        let count = |len: usize| len / tile_len(tiles.size);
        if self.takes_bytes() {
            let word = |b: &[u8; 4]| u32::from_le_bytes(*b);
            let batch = |b: &[u8]| HostData::U32(b.as_chunks::<4>().0.iter().map(word).collect());
            return Ok(tiles.data.chunks(batch_len).map(|b| (count(b.len()), batch(b))).collect());
        }
        let values = tiles.pixel_values()?;
        let batch = |b: &[f32]| (count(b.len()), HostData::F32(b.to_vec()));
        Ok(values.chunks(batch_len).map(batch).collect())
    }

    /// Whether tiles go to the device as they are.
    pub(in crate::engine) fn takes_bytes(&self) -> bool {
        self.cfg.vision.as_ref().is_some_and(intern_vit::takes_bytes) && !self.pixel_values
    }

    /// Enqueues the tiles of a picture and puts their rows into the media state from `first_row` on.
    pub fn encode_picture(&mut self, tiles: &Tiles, first_row: usize) -> Result<()> {
        if self.takes_bytes() {
            return self.encode_bytes(&tiles.data, first_row);
        }
        self.encode_tiles(&tiles.pixel_values()?, first_row)
    }

    /// The same with the bytes of tiles, `[n, S, S, 3]`, where [`Model::takes_bytes`].
    pub(in crate::engine) fn encode_bytes(&mut self, tiles: &[u8], first_row: usize) -> Result<()> {
        let (tile_len, mut row) = (self.tile_len(), first_row);
        for batch in tiles.chunks(TILES_AT_ONCE * tile_len) {
            let tiles = batch.len() / tile_len;
            self.encode_batch(tiles, HostSlice::Bytes(batch), row)?;
            row += tiles * self.rows_per_tile();
        }
        Ok(())
    }

    /// Values of a tile.
    fn tile_len(&self) -> usize {
        tile_len(self.cfg.vision.as_ref().map_or(0, |v| v.image_size)).max(1)
    }

    /// The same with normalised values, f32 `[n, 3, S, S]`.
    pub fn encode_tiles(&mut self, pixels: &[f32], first_row: usize) -> Result<()> {
        let (tile_len, mut row) = (self.tile_len(), first_row);
        for batch in pixels.chunks(TILES_AT_ONCE * tile_len) {
            let tiles = batch.len() / tile_len;
            self.encode_batch(tiles, HostSlice::F32(batch), row)?;
            row += tiles * self.rows_per_tile();
        }
        Ok(())
    }

    /// Enqueues a batch of tiles, bytes or values.
    pub(in crate::engine) fn encode_batch(
        &mut self,
        tiles: usize,
        pixels: HostSlice<'_>,
        first_row: usize,
    ) -> Result<()> {
        let (exe, io) = self.vision_graph(tiles, !pixels.is_float())?;
        self.cache.media.overwritten(first_row..first_row + tiles * self.rows_per_tile());
        self.backend.write_slice(exe, io.input, pixels)?;
        self.backend.run(exe, Step::rows(0, tiles, 0))?;
        self.backend.copy_to_state(exe, io.result, self.text_states[state::MEDIA], first_row, usize::MAX)
    }

    /// Enqueues a picture whose tiles the device makes, and puts their rows into the media state from `first_row` on.
    pub(in crate::engine) fn encode_tiling(
        &mut self,
        picture: &Picture,
        tiling: Tiling,
        first_row: usize,
    ) -> Result<()> {
        let (cfg, dtype) = (&self.cfg, self.dtype);
        let Some(vision) = &cfg.vision else {
            crate::bail_input!("this model has no vision tower: it cannot take pictures")
        };
        let (rows, size) = (tiling.tiles() * intern_vit::rows_per_tile(vision), vision.image_size);
        self.cache.media.overwritten(first_row..first_row + rows);
        let (exe, io) = self.pictures.get(self.backend.as_mut(), &self.fusion, &[], tiling, || {
            let (v, inputs) = intern_vit::build_tiled(vision, &cfg.text, dtype, tiling, Axis::taps)?;
            Ok((v.graph, PictureIo { inputs, result: v.projected }))
        })?;
        for ((columns, rows), [across, down]) in tiling.grids().into_iter().zip(io.inputs.axes) {
            for (t, from, to) in [(across, tiling.width, columns * size), (down, tiling.height, rows * size)]
            {
                self.backend.write_slice(exe, t, HostSlice::U32(&Axis::whole(from, to).words().0))?;
            }
        }
        self.backend.write_slice(exe, io.inputs.table, HostSlice::F32(normalised().as_flattened()))?;
        // The largest comes last: what is written next waits until it has left the host.
        self.backend.write_slice(exe, io.inputs.picture, HostSlice::Bytes(&picture.data))?;
        self.backend.run(exe, Step::rows(0, tiling.tiles(), 0))?;
        self.backend.copy_to_state(exe, io.result, self.text_states[state::MEDIA], first_row, usize::MAX)
    }

    /// Enqueues a sound whose log-mel frames the device makes, at 16 kHz, and puts its rows into the media state.
    pub(in crate::engine) fn encode_samples(&mut self, samples: &[f32], first_row: usize) -> Result<()> {
        let frames = frame_count(samples.len());
        self.reserve_positions(whale::encoder_frames(frames))?;
        if self.mel_states.is_empty() {
            self.create_mel_states()?;
        }
        let (cfg, dtype, cap) = (&self.cfg, self.dtype, self.positions);
        let states = [&self.position_states[..], &self.mel_states].concat();
        let key = (frames, cap);
        let (exe, io) = self.samples.get(self.backend.as_mut(), &self.fusion, &states, key, || {
            let Some(audio) = &cfg.audio else { crate::bail_runtime!("no audio encoder") };
            let a = whale::build_from_samples(audio, &cfg.text, dtype, frames, cap, mel_width())?;
            Ok((a.graph, EncoderIo { input: a.fbank, result: a.embeds, inner: Vec::new() }))
        })?;
        self.cache.media.overwritten(first_row..first_row + self.rows_of_sound(frames));
        self.put_prompt_rows(first_row)?;
        let prompt = self.cfg.audio.as_ref().map_or(0, |a| a.prompt_rows);
        let media = self.text_states[state::MEDIA];
        self.backend.write_slice(exe, io.input, HostSlice::F32(&samples[..samples_of(frames)]))?;
        self.backend.run(exe, Step::rows(0, frames, 0))?;
        self.backend.copy_to_state(exe, io.result, media, first_row + prompt, rows_for_frames(frames))
    }

    /// Writes the filterbank's tables.
    fn create_mel_states(&mut self) -> Result<()> {
        let (window, spans, mel) = op_tables();
        let bins = audio_bins(&self.cfg);
        if spans.len() != 2 * bins {
            crate::bail_input!(
                "the device's filterbank makes {} mel bins, the audio encoder takes {bins}",
                spans.len() / 2
            );
        }
        let desc = |name: &str, dtype, shape: &[usize]| Desc {
            name: name.into(),
            dtype,
            shape: Shape::new(shape),
            place: Place::Arena,
        };
        let descs = [
            desc("audio.window", DType::F32, &[window.len()]),
            desc("audio.mel.spans", DType::U32, &[bins, 2]),
            desc("audio.mel", DType::F32, &[bins, mel_width()]),
        ];
        let made = create_states(self.backend.as_mut(), descs)?;
        let tables = [HostData::F32(window), HostData::U32(spans), HostData::F32(mel)];
        let written =
            made.iter().zip(&tables).try_for_each(|(&s, data)| self.backend.write_state(s, 0, data));
        // States are written on the text lane; the audio lane reads them.
        match written.and_then(|()| self.backend.sync()) {
            Ok(()) => self.mel_states = made,
            Err(e) => {
                made.into_iter().for_each(|s| self.backend.release_state(s));
                return Err(e);
            }
        }
        Ok(())
    }

    /// The prepared audio graph for `frames` frames.
    pub(in crate::engine) fn audio_graph(&mut self, frames: usize) -> Result<(ExeId, EncoderIo)> {
        if self.cfg.audio.is_none() {
            crate::bail_input!("this model has no audio encoder: it cannot take sounds");
        }
        self.reserve_positions(whale::encoder_frames(frames))?;
        let (cfg, dtype, observe, cap) = (&self.cfg, self.dtype, self.observe, self.positions);
        let key = (frames, cap);
        self.audio.get(self.backend.as_mut(), &self.fusion, &self.position_states, key, || {
            let Some(audio) = &cfg.audio else { crate::bail_runtime!("no audio encoder") };
            let mut a = whale::build(audio, &cfg.text, dtype, frames, cap)?;
            let inner = vec![("subsampled", a.subsampled), ("encoder", a.encoded)];
            if observe {
                inner.iter().for_each(|(_, t)| a.graph.output(*t));
            }
            Ok((a.graph, EncoderIo { input: a.fbank, result: a.embeds, inner }))
        })
    }

    /// Enqueues a sound, log-mel frames `[frames, 80]`, and puts its rows into the media state from `first_row` on.
    pub fn encode_sound(&mut self, fbank: &[f32], frames: usize, first_row: usize) -> Result<()> {
        let prompt = self.cfg.audio.as_ref().map_or(0, |a| a.prompt_rows);
        let media = self.text_states[state::MEDIA];
        self.cache.media.overwritten(first_row..first_row + self.rows_of_sound(frames));
        self.put_prompt_rows(first_row)?;
        let (exe, io) = self.audio_graph(frames)?;
        self.backend.write_slice(exe, io.input, HostSlice::F32(fbank))?;
        self.backend.run(exe, Step::rows(0, frames, 0))?;
        self.backend.copy_to_state(exe, io.result, media, first_row + prompt, rows_for_frames(frames))
    }

    /// Puts the rows that go before a sound, if there are any, into the media state.
    fn put_prompt_rows(&mut self, first_row: usize) -> Result<()> {
        let prompt = self.cfg.audio.as_ref().map_or(0, |a| a.prompt_rows);
        if prompt == 0 {
            return Ok(());
        }
        let media = self.text_states[state::MEDIA];
        let (g, ids, rows) = whale::prompt_rows(&self.cfg.text, self.dtype, prompt)?;
        let p = crate::plan::plan(g, |d| self.backend.arena_elem_bytes(d))?;
        let exe = self.backend.prepare(Lane::Audio, p, &[])?;
        self.backend.write(exe, ids, &HostData::U32((0..prompt as u32).collect()))?;
        self.backend.run(exe, Step::rows(0, prompt, 0))?;
        self.backend.copy_to_state(exe, rows, media, first_row, prompt)?;
        // Waits for this lane alone: pictures may be under way on theirs.
        self.backend.release(exe);
        Ok(())
    }

    /// Frames of a chunk, where sounds can be encoded as they come in.
    pub(in crate::engine) fn audio_chunk(&self) -> Option<usize> {
        self.cfg.audio.as_ref().and_then(whale::chunk)
    }

    /// A sound of at most `frames` log-mel frames begins to come in; an earlier one that did not end is forgotten.
    pub(in crate::engine) fn begin_sound(&mut self, frames: usize) -> Result<()> {
        if self.cfg.audio.is_none() {
            crate::bail_input!("this model has no audio encoder: it cannot take sounds");
        }
        let most = whale::encoder_frames(frames);
        if self.arriving.is_none() {
            self.reserve_positions(1)?;
            let Some(audio) = &self.cfg.audio else { crate::bail_runtime!("no audio encoder") };
            let piece = Piece::new(audio, 0, 1, true);
            let g = whale::build_piece(audio, &self.cfg.text, self.dtype, piece, 1, most)?.graph;
            let rows = Desc {
                name: "audio.arriving".into(),
                dtype: self.dtype,
                shape: Shape::new(&[rows_for_frames(frames).max(1), self.cfg.text.hidden_size]),
                place: Place::Arena,
            };
            let own = g.states.into_iter().skip(self.position_states.len()).chain([rows]);
            let mut made = create_states(self.backend.as_mut(), own)?;
            self.arriving = made.pop();
            self.piece_states = made;
        }
        // The rows of an earlier sound may still be on their way from here.
        self.backend.join(Lane::Audio, Lane::Text)
    }

    /// Enqueues the `rows` encoder frames from `first` on of the sound that is coming in, which begins a chunk; `fbank` are
    /// their log-mel frames. `most` as at its beginning.
    pub(in crate::engine) fn encode_piece(
        &mut self,
        fbank: &[f32],
        first: usize,
        rows: usize,
        last: bool,
        most_frames: usize,
    ) -> Result<()> {
        let Some(audio) = &self.cfg.audio else {
            crate::bail_runtime!("a piece of a sound without an encoder")
        };
        let (row, piece) = (whale::adapted(audio, first), Piece::new(audio, first, rows, last));
        let (exe, io) = self.piece_graph(piece, first + rows, most_frames)?;
        self.backend.write_slice(exe, io.input, HostSlice::F32(fbank))?;
        self.backend.run(exe, Step::rows(first, piece.seen + rows, 0))?;
        match (io.result, self.arriving) {
            (Some(result), Some(arriving)) => {
                self.backend.copy_to_state(exe, result, arriving, row, usize::MAX)
            }
            _ => Ok(()),
        }
    }

    /// Has the graph ready that would be left to run if the sound ended `rows` frames after frame `first`, so that its end
    /// waits for no preparation. What the runs here write is written again by the piece itself.
    ///
    /// On the host there is nothing to prepare; and pieces that differ each time are left to their turn.
    pub(in crate::engine) fn expect_end(
        &mut self,
        first: usize,
        rows: usize,
        most_frames: usize,
    ) -> Result<()> {
        const MOST_ROWS: usize = 16;
        let Some(audio) = &self.cfg.audio else { return Ok(()) };
        let piece = Piece::new(audio, first, rows, true);
        let steady = audio.left_chunks >= 0 && piece.seen as i64 == audio.left_chunks * audio.chunk_size;
        let known = self.pieces.has(&(piece, self.positions));
        if !self.backend.asynchronous() || known || !steady || !(1..=MOST_ROWS).contains(&rows) {
            return Ok(());
        }
        let (exe, io) = self.piece_graph(piece, first + rows, most_frames)?;
        let silence = vec![0.0; piece.frames() * audio_bins(&self.cfg)];
        self.backend.write(exe, io.input, &HostData::F32(silence))?;
        // The second run captures.
        for _ in 0..2 {
            self.backend.run(exe, Step::rows(first, piece.seen + rows, 0))?;
        }
        Ok(())
    }

    /// The prepared graph of a piece that ends at encoder frame `end`.
    fn piece_graph(&mut self, piece: Piece, end: usize, most_frames: usize) -> Result<(ExeId, PieceIo)> {
        self.reserve_positions(end)?;
        if self.arriving.is_none() {
            crate::bail_runtime!("a piece of a sound that has not begun");
        }
        let (cfg, dtype, cap) = (&self.cfg, self.dtype, self.positions);
        let states = [&self.position_states[..], &self.piece_states].concat();
        self.pieces.get(self.backend.as_mut(), &self.fusion, &states, (piece, cap), || {
            let Some(audio) = &cfg.audio else { crate::bail_runtime!("no audio encoder") };
            let most = whale::encoder_frames(most_frames);
            let p = whale::build_piece(audio, &cfg.text, dtype, piece, cap, most)?;
            Ok((p.graph, PieceIo { input: p.fbank, result: p.embeds }))
        })
    }

    /// Puts the rows of the sound of `frames` log-mel frames that has come in whole into the media state, on the text lane.
    pub(in crate::engine) fn place_sound(&mut self, frames: usize, first_row: usize) -> Result<()> {
        let Some(arriving) = self.arriving else { crate::bail_runtime!("no sound has come in") };
        let media = self.text_states[state::MEDIA];
        self.cache.media.overwritten(first_row..first_row + self.rows_of_sound(frames));
        self.put_prompt_rows(first_row)?;
        self.backend.join(Lane::Text, Lane::Audio)?;
        let prompt = self.cfg.audio.as_ref().map_or(0, |a| a.prompt_rows);
        self.backend.copy_state_rows(arriving, 0, media, first_row + prompt, rows_for_frames(frames))
    }

    /// Makes Whale's position tables long enough for `positions`.
    pub(super) fn reserve_positions(&mut self, positions: usize) -> Result<()> {
        let Some(audio) = &self.cfg.audio else { return Ok(()) };
        if positions <= self.positions {
            return Ok(());
        }
        let cap = positions.next_power_of_two().max(POSITIONS_AT_FIRST);
        self.backend.sync()?;
        self.audio.clear(self.backend.as_mut());
        self.pieces.clear(self.backend.as_mut());
        self.samples.clear(self.backend.as_mut());
        self.position_states.drain(..).for_each(|s| self.backend.release_state(s));
        // None, until the new ones are there.
        self.positions = 0;
        let g = fuse(whale::position_tables(audio, self.dtype, cap)?, &self.fusion)?;
        self.position_states = create_states(self.backend.as_mut(), g.states.iter().cloned())?;
        let p = crate::plan::plan(g, |d| self.backend.arena_elem_bytes(d))?;
        let exe = self.backend.prepare(Lane::Audio, p, &self.position_states)?;
        self.backend.run(exe, Step::rows(0, cap, 0))?;
        self.backend.sync()?;
        self.backend.release(exe);
        self.positions = cap;
        Ok(())
    }
}

/// How tiles come into the vision graph.
pub(super) fn pixels(bytes: bool) -> Pixels {
    match bytes {
        true => Pixels::Bytes { mean: MEAN, std: STD },
        false => Pixels::Values,
    }
}

/// Values of a tile of side `size`.
fn tile_len(size: usize) -> usize {
    3 * size * size
}

fn audio_bins(cfg: &ModelConfig) -> usize {
    cfg.audio.as_ref().map_or(0, |a| a.input_dim)
}
