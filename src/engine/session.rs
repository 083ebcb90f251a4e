//! A conversation: turns with pictures and sounds, one KV cache, answers streamed token by token.

use std::time::Instant;

use super::model::MEDIA_BIT;
use super::{Answer, Engine, Event, GenerateOptions, Question, StopReason, Timings};
use crate::core::{HostData, Result};
use crate::exec::{Lane, Mark, Ticket};
use crate::media::audio::Sound;
use crate::media::fbank::{Fbank, FbankOptions, log_mel};
use crate::media::tiles::{TileOptions, Tiles, tile};
use crate::media::video;
use crate::models::qwen2::{Head, state};
use crate::text::{Dialogue, Piece, State, StopStrings, Utf8Stream};

/// One conversation. Turns share the KV cache; a failed turn leaves the conversation as it was.
pub struct Session<'e> {
    engine: &'e mut Engine,
    dialogue: Dialogue,
    /// Rows of the KV cache that belong to the conversation.
    pos: usize,
    /// Answer tokens in the cache since the last question.
    answer: Vec<u32>,
    turns: usize,
    /// Token ids of the whole conversation, for the repetition penalty.
    history: Vec<u32>,
}

/// What the model gets of a question.
pub(super) struct Inputs {
    /// f32 `[tiles, 3, S, S]` per picture.
    pub pixels: Vec<Vec<f32>>,
    pub sounds: Vec<Fbank>,
    pub ids: Vec<u32>,
}

/// A question after preprocessing, ready for the encoders.
struct Prepared {
    tiles: Vec<Tiles>,
    sounds: Vec<Fbank>,
    timings: Timings,
}

impl<'e> Session<'e> {
    pub(super) fn new(engine: &'e mut Engine, system: Option<&str>) -> Result<Session<'e>> {
        let dialogue = Dialogue::new(&engine.tokenizer, system)?;
        Ok(Session { engine, dialogue, pos: 0, answer: Vec::new(), turns: 0, history: Vec::new() })
    }

    /// Rows of the context that are taken.
    pub fn rows(&self) -> usize {
        self.pos
    }

    /// Asks and streams the answer: `on_event` gets the state mark as soon as the first token is known and text as
    /// it comes; it returns `false` to stop.
    pub fn ask(
        &mut self,
        question: &Question,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Answer> {
        options.sampling.check()?;
        let start = Instant::now();
        let mut prepared = self.prepare(question)?;

        let mut dialogue = self.dialogue.clone();
        let (ids, media_rows) = self.merge(&mut dialogue, question, &prepared)?;
        self.check_context(ids.len(), media_rows)?;

        let vision = self.encode_tiles(&prepared)?;
        let audio = self.encode_sounds(&prepared)?;
        let backend = self.engine.model.backend_mut();
        if !prepared.tiles.is_empty() {
            backend.join(Lane::Text, Lane::Vision)?;
        }
        if !prepared.sounds.is_empty() {
            backend.join(Lane::Text, Lane::Audio)?;
        }

        let head = self.start_sampler(&ids, options)?;
        let prefill_start = self.engine.model.backend_mut().mark(Lane::Text)?;
        let first = self.prefill(&ids, head)?;
        let prefill_end = self.engine.model.backend_mut().mark(Lane::Text)?;

        // From here on the question is in the cache.
        self.dialogue = dialogue;
        self.pos += ids.len();
        self.answer.clear();
        self.turns += 1;
        self.history.extend(ids.iter().filter(|id| *id & MEDIA_BIT == 0));

        let answer = self.generate(first, head, options, start, on_event)?;
        let t = &mut prepared.timings;
        let backend = self.engine.model.backend_mut();
        if !prepared.tiles.is_empty() {
            t.vision_ms = backend.elapsed_us(vision.0, vision.1)? / 1e3;
        }
        if !prepared.sounds.is_empty() {
            t.audio_ms = backend.elapsed_us(audio.0, audio.1)? / 1e3;
        }
        t.prefill_ms = backend.elapsed_us(prefill_start, prefill_end)? / 1e3;
        t.first_token_ms = answer.timings.first_token_ms;
        t.per_token_ms = answer.timings.per_token_ms;
        t.total_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(Answer { timings: *t, prompt_rows: ids.len(), ..answer })
    }

    /// A question as the model gets it: pixels per picture, log-mel frames per sound, ids. Nothing runs.
    pub(super) fn inputs(&self, question: &Question) -> Result<Inputs> {
        let prepared = self.prepare(question)?;
        let (ids, media_rows) = self.merge(&mut self.dialogue.clone(), question, &prepared)?;
        self.check_context(ids.len(), media_rows)?;
        let pixels = prepared.tiles.iter().map(Tiles::pixel_values).collect::<Result<_>>()?;
        Ok(Inputs { pixels, sounds: prepared.sounds, ids })
    }

    /// Decodes nothing (pictures and sounds are in memory), but tiles and filters.
    fn prepare(&self, question: &Question) -> Result<Prepared> {
        let model = &self.engine.model;
        let mut timings = Timings { decode_ms: question.decode_ms, ..Timings::default() };
        let mut tiles = Vec::new();
        let start = Instant::now();
        if !question.images.is_empty() {
            let Some(vision) = &model.cfg.vision else {
                crate::bail_input!("this model has no vision tower: it cannot take pictures")
            };
            let size = vision.image_size;
            if question.video {
                tiles.push(video::frame_tiles(&question.images, size)?);
            } else {
                for picture in &question.images {
                    tiles.push(tile(picture, TileOptions { size, ..TileOptions::default() })?);
                }
            }
            timings.tile_ms = start.elapsed().as_secs_f64() * 1e3;
        }
        if !question.sounds.is_empty() && model.cfg.audio.is_none() {
            crate::bail_input!("this model has no audio encoder: it cannot take sounds");
        }
        let start = Instant::now();
        let mut sounds = Vec::new();
        for sound in &question.sounds {
            self.check_sound(sound)?;
            sounds.push(log_mel(sound, FbankOptions { dither: question.dither, ..FbankOptions::default() })?);
        }
        if !sounds.is_empty() {
            timings.filterbank_ms = start.elapsed().as_secs_f64() * 1e3;
        }
        Ok(Prepared { tiles, sounds, timings })
    }

    /// Refuses a sound that cannot fit before any time is spent on it.
    fn check_sound(&self, sound: &Sound) -> Result<()> {
        let frames = (sound.seconds() * 100.0) as usize;
        let rows = self.engine.model.rows_of_sound(frames);
        let free = self.engine.context_rows() - self.pos;
        crate::ensure_input!(
            rows < free,
            "a sound of {:.1} s takes {rows} rows of the context, {free} are free ({} too many)",
            sound.seconds(),
            rows - free + 1
        );
        Ok(())
    }

    /// The ids of the question, placeholders replaced by rows of the media state, and how many of those there are.
    fn merge(&self, dialogue: &mut Dialogue, question: &Question, p: &Prepared) -> Result<(Vec<u32>, usize)> {
        let engine = &*self.engine;
        let mut ids = Vec::new();
        if self.turns > 0 {
            ids = dialogue.closing(&engine.tokenizer, &self.answer)?;
        }
        let tiles = p.tiles.iter().map(|t| t.count).sum();
        let asked = crate::text::Question {
            tiles,
            video: question.video,
            text: &question.text,
            sounds: p.sounds.len(),
        };
        let per_tile = engine.model.rows_per_tile();
        let mut media_row = 0u32;
        let mut sounds = p.sounds.iter();
        for piece in dialogue.ask(&engine.tokenizer, &asked)? {
            let rows = match piece {
                Piece::Tokens(tokens) => {
                    ids.extend(tokens);
                    continue;
                }
                Piece::Image { .. } => per_tile,
                Piece::Audio { .. } => sounds.next().map_or(0, |f| engine.model.rows_of_sound(f.frames)),
            } as u32;
            ids.extend((media_row..media_row + rows).map(|r| r | MEDIA_BIT));
            media_row += rows;
        }
        Ok((ids, media_row as usize))
    }

    fn check_context(&self, rows: usize, media_rows: usize) -> Result<()> {
        let context = self.engine.context_rows();
        let needed = self.pos + rows + 1;
        crate::ensure_input!(
            needed <= context,
            "the prompt is too long for the context by {} tokens: {} so far, {rows} in this turn ({media_rows} of \
             them pictures and sounds), 1 for an answer; the context holds {context}",
            needed - context,
            self.pos
        );
        Ok(())
    }

    /// Enqueues the vision tower; gives the marks before and after. Tiles come first in the media state, as the prompt
    /// has them.
    fn encode_tiles(&mut self, p: &Prepared) -> Result<(Mark, Mark)> {
        let model = &mut self.engine.model;
        let start = model.backend_mut().mark(Lane::Vision)?;
        let mut row = 0;
        for tiles in &p.tiles {
            model.encode_tiles(&tiles.pixel_values()?, row)?;
            row += tiles.count * model.rows_per_tile();
        }
        Ok((start, model.backend_mut().mark(Lane::Vision)?))
    }

    /// Enqueues the audio encoder beside the vision tower; sounds follow the tiles in the media state.
    fn encode_sounds(&mut self, p: &Prepared) -> Result<(Mark, Mark)> {
        let model = &mut self.engine.model;
        let start = model.backend_mut().mark(Lane::Audio)?;
        let mut row = p.tiles.iter().map(|t| t.count * model.rows_per_tile()).sum();
        for sound in &p.sounds {
            model.encode_sound(&sound.data, sound.frames, row)?;
            row += model.rows_of_sound(sound.frames);
        }
        Ok((start, model.backend_mut().mark(Lane::Audio)?))
    }

    /// Sets the sampler up for this request and says which head its graphs have.
    fn start_sampler(&mut self, ids: &[u32], options: &GenerateOptions) -> Result<Head> {
        if options.sampling.is_greedy() {
            return Ok(Head::Greedy);
        }
        let model = &mut self.engine.model;
        let mut seen = vec![0u32; model.cfg.text.vocab_size];
        for id in self.history.iter().chain(ids).filter(|id| *id & MEDIA_BIT == 0) {
            seen[*id as usize] += 1;
        }
        model.write_text_state(state::SEEN, &HostData::U32(seen))?;
        model.write_text_state(state::SAMPLER, &options.sampling.words())?;
        Ok(Head::Sample)
    }

    /// Enqueues the question in chunks; the last one gives the first token.
    fn prefill(&mut self, ids: &[u32], head: Head) -> Result<Ticket> {
        let model = &mut self.engine.model;
        let mut pos = self.pos;
        let mut chunks = ids.chunks(super::PREFILL_CHUNK_ROWS).peekable();
        while let Some(chunk) = chunks.next() {
            let last = chunks.peek().is_none();
            let (exe, io) = model.run_ids(chunk, pos, 0, if last { head } else { Head::None })?;
            pos += chunk.len();
            if let (true, Some(token)) = (last, io.token) {
                return model.backend_mut().send_token(exe, token);
            }
        }
        crate::bail_runtime!("an empty prompt")
    }

    /// Reads tokens as they come. Where the device runs ahead, step n + 1 is enqueued before token n is read: it
    /// needs nothing from the host, and if n was the last one its row is simply overwritten later.
    fn generate(
        &mut self,
        first: Ticket,
        head: Head,
        options: &GenerateOptions,
        start: Instant,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Answer> {
        let context = self.engine.context_rows();
        let ahead = self.engine.model.backend().asynchronous();
        let mut stops = StopStrings::new(options.stop.clone())?;
        let mut stream = Utf8Stream::new();
        let mut answer = Answer::default();
        let mut times_ms: Vec<f64> = Vec::new();
        let mut next = Some(first);
        let mut last = Instant::now();
        let base = self.pos;

        while let Some(ticket) = next.take() {
            let n = answer.tokens.len();
            let wanted = n + 1 < options.max_new_tokens && base + n < context;
            if ahead && wanted {
                next = Some(self.step(base + n, n + 1, head)?);
            }
            let id = self.engine.model.backend_mut().wait_token(ticket)?;
            let now = Instant::now();
            match n {
                0 => answer.timings.first_token_ms = (now - start).as_secs_f64() * 1e3,
                _ => times_ms.push((now - last).as_secs_f64() * 1e3),
            }
            last = now;

            if self.engine.stop_ids.contains(&id) {
                answer.stop = StopReason::EndOfTurn;
                break;
            }
            answer.tokens.push(id);
            let mark = if n == 0 { self.engine.marks.state(id) } else { None };
            let mut go_on = true;
            if let Some(mark) = mark {
                answer.state = Some(mark);
                go_on = on_event(Event::State(mark));
                if mark == State::Noise && !options.answer_noise {
                    answer.stop = StopReason::Noise;
                    break;
                }
            } else {
                let text = stops.push(&stream.push(&self.engine.tokenizer, id));
                if !text.is_empty() {
                    answer.text.push_str(&text);
                    go_on = on_event(Event::Text(&text));
                }
                if let Some(hit) = stops.hit() {
                    answer.stop = StopReason::StopString(hit.to_owned());
                    break;
                }
            }
            if !go_on {
                answer.stop = StopReason::Cancelled;
                break;
            }
            if n + 1 == options.max_new_tokens {
                answer.stop = StopReason::MaxNewTokens;
                break;
            }
            if base + n >= context {
                answer.stop = StopReason::Context;
                break;
            }
            if !ahead {
                next = Some(self.step(base + n, n + 1, head)?);
            }
        }
        if let Some(ticket) = next {
            self.engine.model.backend_mut().wait_token(ticket)?;
        }

        let mut rest = stops.push(&stream.flush());
        rest.push_str(&stops.finish());
        if !rest.is_empty() {
            answer.text.push_str(&rest);
            on_event(Event::Text(&rest));
        }
        // The last token was never fed back: its row is not in the cache.
        let in_cache = answer.tokens.len().saturating_sub(usize::from(answer.stop != StopReason::EndOfTurn));
        self.pos = base + in_cache;
        self.answer = answer.tokens[..in_cache].to_vec();
        self.history.extend(&answer.tokens);
        times_ms.sort_by(f64::total_cmp);
        answer.timings.per_token_ms = times_ms.get(times_ms.len() / 2).copied();
        Ok(answer)
    }

    fn step(&mut self, pos: usize, draw: usize, head: Head) -> Result<Ticket> {
        let model = &mut self.engine.model;
        let (exe, io) = model.run_token(pos, draw, head)?;
        match io.token {
            Some(token) => model.backend_mut().send_token(exe, token),
            None => crate::bail_runtime!("a decoding step without a token"),
        }
    }
}
