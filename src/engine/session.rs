//! A conversation: turns with pictures and sounds, one KV cache, answers streamed token by token.

mod answers;
mod media;
mod reply;
mod stream;

use std::time::Instant;

use super::cache::{CacheUse, Content, Found, Key, Placed};
use super::ledger::{Ledger, Stage, total_ms};
use super::model::MEDIA_BIT;
use super::{Answer, Engine, Event, GenerateOptions, Question, StopReason, Timings};
use crate::core::{HostData, Result, Step};
use crate::exec::{Lane, Mark, Ticket, Wait};
use crate::media::audio::Sound;
use crate::media::fbank::Fbank;
use crate::media::tiles::Tiles;
use crate::models::qwen2::{Head, state};
use crate::text::{Dialogue, Piece};
use media::{Encoded, Made, Medium};
use reply::Reply;

pub use stream::{LONGEST_SOUND_SECONDS, SoundStream};

/// One conversation. Turns share the KV cache; a failed turn leaves the conversation as it was.
pub struct Session<'e> {
    engine: &'e mut Engine,
    dialogue: Dialogue,
    /// Rows of the KV cache that belong to the conversation.
    pos: usize,
    /// Tokens of the last answer.
    answer: Vec<u32>,
    /// How many of them are rows of the cache; the others begin the next turn.
    fed: usize,
    turns: usize,
    /// Token ids of all rows of the conversation, for the repetition penalty.
    history: Vec<u32>,
}

/// A question as rows of the sequence, on its way through the encoders.
struct Asked<'q> {
    /// The conversation with it.
    dialogue: Dialogue,
    keys: Vec<Key>,
    media: Vec<Medium<'q>>,
    encoded: Encoded,
    found: Found,
}

/// What the model gets of a question.
pub(super) struct Inputs<'q> {
    pub pictures: Vec<Tiles<'q>>,
    pub sounds: Vec<Fbank>,
    pub ids: Vec<u32>,
}

impl<'e> Session<'e> {
    pub(super) fn new(engine: &'e mut Engine, system: Option<&str>) -> Result<Session<'e>> {
        let dialogue = Dialogue::new(&engine.tokenizer, system)?;
        let (answer, history) = (Vec::new(), Vec::new());
        Ok(Session { engine, dialogue, pos: 0, answer, fed: 0, turns: 0, history })
    }

    /// The engine that the conversation is with.
    pub fn engine(&self) -> &Engine {
        self.engine
    }

    /// Rows of the context that are taken.
    pub fn rows(&self) -> usize {
        self.pos
    }

    /// Asks and streams the answer: `on_event` gets the state mark as soon as the first token is known and text as
    /// it comes; it returns `false` to stop. It is called for tokens that complete text or are a mark, so an answer ends
    /// with the next of them, and not while a question is encoded and filled in.
    ///
    /// What the question begins with, its pictures and its sounds are not computed again where they are still there
    /// from an earlier question; [`Answer::cache`] says how much that was.
    pub fn ask(
        &mut self,
        question: &Question,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Answer> {
        let answer = self.answer(question, options, on_event);
        if answer.is_err() {
            // Encoders may be under way: the next question gives their rows to others. What is told is why it failed.
            let _ = self.engine.model.backend_mut().sync();
        }
        answer
    }

    /// The host works while the device does: what the encoders get is made first, and all that the encoders do not need
    /// (the prompt, the cache, what the language model is to run) while they run.
    fn answer(
        &mut self,
        question: &Question,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Answer> {
        options.check()?;
        let reply = Reply::new(options)?;
        let mut ledger = Ledger::new();
        ledger.begin(self.engine.model.backend_mut())?;
        let asked = self.find(question, &mut ledger)?;
        let head = ledger.host("sampler", || self.start_sampler(&asked.keys, options))?;
        self.restore(&asked, &mut ledger)?;
        let rest = self.rest(&asked);
        let Some((start, Some(first))) =
            self.fill(asked.found.rows(), rest, &asked.encoded, head, &mut ledger)?
        else {
            crate::bail_runtime!("an empty prompt")
        };
        ledger.device("prefill", start, self.engine.model.backend_mut().mark(Lane::Text)?);
        let cache = self.keep(&asked, &mut ledger);

        let base = self.pos + asked.keys.len();
        let mut answer = self.generate((first, base), head, reply, &ledger, on_event)?;
        let stages = ledger.close(answer.timings.first_token_ms, self.engine.model.backend_mut())?;
        answer.timings.total_ms = ledger.now_ms();
        self.conclude(asked.dialogue, &asked.keys, &answer);
        Ok(Answer { prompt_rows: asked.keys.len(), cache, ..answer }.with_stages(&stages, question))
    }

    /// A question and its answer become part of the conversation.
    fn conclude(&mut self, dialogue: Dialogue, keys: &[Key], answer: &Answer) {
        // A token is fed back for the one after it: the last has none, unless that was the one that ends a turn.
        let unfed = usize::from(answer.stop != StopReason::EndOfTurn).min(answer.tokens.len());
        self.answer.clone_from(&answer.tokens);
        self.fed = answer.tokens.len() - unfed;
        let fed = &self.answer[..self.fed];
        self.engine.model.cache.extend(fed.iter().copied().map(Key::Token));
        self.history.extend(tokens(keys).chain(fed.iter().copied()));
        self.dialogue = dialogue;
        self.pos += keys.len() + fed.len();
        self.turns += 1;
    }

    /// Turns a question into rows and looks for those that are there; the encoders of what is not begin.
    fn find<'q>(&mut self, question: &'q Question, ledger: &mut Ledger) -> Result<Asked<'q>> {
        let (mut media, mut encoded) = self.begin_encoding(question, ledger)?;
        let mut dialogue = self.dialogue.clone();
        let keys = ledger.host("prompt", || self.merge(&mut dialogue, question, &media))?;
        self.check_context(&keys)?;
        let found = ledger.host("cache", || self.engine.model.cache.find(self.pos, &keys))?;
        let rest = &keys[found.rows() - self.pos..];
        // What was known may have given its rows away, and is needed all the same.
        let wanted = |m: &Medium<'_>| !m.new && rest.iter().any(|key| key.content() == Some(m.content));
        self.encode(&mut media, wanted, &mut encoded, ledger)?;
        Ok(Asked { dialogue, keys, media, encoded, found })
    }

    /// The rows of a question that are to be computed.
    fn rest<'a>(&self, asked: &'a Asked<'_>) -> &'a [Key] {
        &asked.keys[asked.found.rows() - self.pos..]
    }

    /// Brings the rows that were found into the KV cache.
    fn restore(&mut self, asked: &Asked<'_>, ledger: &mut Ledger) -> Result<()> {
        let of = asked.found.resident - self.pos..asked.found.rows() - self.pos;
        ledger.host("cache", || self.engine.model.reuse(asked.found, &asked.keys[of]))
    }

    /// Keeps what was new of a question, and counts what was not. Copying a large picture takes time: the device computes
    /// meanwhile.
    fn keep(&mut self, asked: &Asked<'_>, ledger: &mut Ledger) -> CacheUse {
        let cache = CacheUse {
            reused_rows: asked.found.rows() - self.pos,
            prefilled_rows: self.rest(asked).len(),
            media_reused: asked.media.len() - asked.encoded.contents.len(),
            media_encoded: asked.encoded.contents.len(),
        };
        let known = &mut self.engine.model.cache;
        ledger.host("keep", || {
            asked.media.iter().filter(|m| m.new).for_each(|m| known.media.keep(m.content, &m.source));
        });
        known.count(cache);
        cache
    }

    /// A question as the model gets it without anything kept: pixels per picture, log-mel frames per sound, ids.
    /// Nothing runs.
    pub(super) fn inputs<'q>(&self, question: &'q Question) -> Result<Inputs<'q>> {
        let ledger = &mut Ledger::new();
        let mut media = Vec::new();
        for (i, source) in self.sources(question)?.into_iter().enumerate() {
            let (tiles, rows) = self.size_of(&source)?;
            let made = Some(self.make_here(source, ledger)?);
            let content = Content(i as u64);
            media.push(Medium { source, content, tiles, rows, made, coming: None, new: true });
        }
        let keys = self.merge(&mut self.dialogue.clone(), question, &media)?;
        self.check_context(&keys)?;
        let mut placed = Vec::new();
        let mut first_row = 0;
        for m in &media {
            placed.push(Placed { content: m.content, first_row, wanted: true });
            first_row += m.rows;
        }
        let mut inputs = Inputs { pictures: Vec::new(), sounds: Vec::new(), ids: ids(&keys, &placed)? };
        for made in media.into_iter().filter_map(|m| m.made) {
            match made {
                Made::Tiles(tiles) => inputs.pictures.push(tiles),
                Made::Sound(fbank) => inputs.sounds.push(fbank),
                Made::Grid(_) | Made::Samples(_) => crate::bail_runtime!("made by the device"),
            }
        }
        Ok(inputs)
    }

    /// Refuses a sound that cannot fit before any time is spent on it.
    fn check_sound(&self, sound: &Sound) -> Result<()> {
        self.check_seconds(sound.seconds())
    }

    fn check_seconds(&self, seconds: f64) -> Result<()> {
        let frames = (seconds * 100.0) as usize;
        let rows = self.engine.model.rows_of_sound(frames);
        let free = self.engine.context_rows() - self.pos;
        crate::ensure_input!(
            rows < free,
            "a sound of {seconds:.1} s takes {rows} rows of the context, {free} are free ({} too many)",
            rows - free + 1
        );
        Ok(())
    }

    /// What the question appends to the sequence, row by row.
    fn merge(&self, dialogue: &mut Dialogue, question: &Question, media: &[Medium<'_>]) -> Result<Vec<Key>> {
        let engine = &*self.engine;
        let mut keys = Vec::new();
        if self.turns > 0 {
            keys.extend(self.answer[self.fed..].iter().copied().map(Key::Token));
            keys.extend(dialogue.closing(&self.answer).into_iter().map(Key::Token));
        }
        let sounds = media.iter().filter(|m| m.is_sound());
        let asked = crate::text::Question {
            tiles: media.iter().map(|m| m.tiles).sum(),
            video: question.video,
            text: &question.text,
            sounds: sounds.clone().count(),
        };
        // Rows of all tiles in a row, which the placeholders share out evenly.
        let rows = |m: &Medium<'_>| {
            let content = m.content;
            (0..m.rows as u32).map(move |row| Key::Media { content, row })
        };
        let mut tile_rows = media.iter().filter(|m| !m.is_sound()).flat_map(rows);
        let mut sounds = sounds.map(rows);
        for piece in dialogue.ask(&engine.tokenizer, &asked)? {
            match piece {
                Piece::Tokens(tokens) => keys.extend(tokens.into_iter().map(Key::Token)),
                Piece::Image { .. } => keys.extend(tile_rows.by_ref().take(engine.model.rows_per_tile())),
                Piece::Audio { .. } => keys.extend(sounds.next().into_iter().flatten()),
            }
        }
        let vocab = engine.model.cfg.text.vocab_size;
        if let Some(id) = tokens(&keys).find(|id| *id as usize >= vocab) {
            crate::bail_input!(
                "the tokenizer gives id {id}, the model has embeddings for ids below {vocab}: tokenizer and weights are of \
                 two models"
            );
        }
        Ok(keys)
    }

    fn check_context(&self, keys: &[Key]) -> Result<()> {
        let context = self.engine.context_rows();
        let (rows, media_rows) = (keys.len(), keys.len() - tokens(keys).count());
        let needed = self.pos + rows + 1;
        let positions = self.engine.model.cfg.text.max_position_embeddings;
        let hint = if needed <= positions { "; a larger context can be asked for (--context)" } else { "" };
        crate::ensure_input!(
            needed <= context,
            "the prompt is too long for the context by {} tokens: {} so far, {rows} in this turn ({media_rows} of \
             them pictures and sounds), 1 for an answer; the context holds {context}{hint}",
            needed - context,
            self.pos
        );
        Ok(())
    }

    /// Sets the sampler up for this request and says which head its graphs have.
    fn start_sampler(&mut self, keys: &[Key], options: &GenerateOptions) -> Result<Head> {
        if options.sampling.is_greedy() {
            return Ok(Head::Greedy);
        }
        let seen = self.seen(keys);
        let model = &mut self.engine.model;
        model.write_text_state(state::SEEN, &HostData::U32(seen))?;
        model.write_text_state(state::SAMPLER, &options.sampling.words())?;
        Ok(Head::Sample)
    }

    /// How often every id occurs in the conversation and in `keys`.
    fn seen(&self, keys: &[Key]) -> Vec<u32> {
        let mut seen = vec![0u32; self.engine.model.cfg.text.vocab_size];
        for id in self.history.iter().copied().chain(tokens(keys)) {
            seen[id as usize] += 1;
        }
        seen
    }

    /// Enqueues `keys` as the rows from `pos` on, in chunks; the last one gives the first token, if `head` does. The device
    /// begins after the encoders, which need not have ended: where it begins is returned, unless there is nothing to do.
    fn fill(
        &mut self,
        mut pos: usize,
        keys: &[Key],
        encoded: &Encoded,
        head: Head,
        ledger: &mut Ledger,
    ) -> Result<Option<(Mark, Option<Ticket>)>> {
        let model = &mut self.engine.model;
        let (mut from, mut first) = (None, None);
        let mut chunks = keys.chunks(super::PREFILL_CHUNK_ROWS).peekable();
        while let Some(chunk) = chunks.next() {
            let last = chunks.peek().is_none();
            let ids = ids(chunk, &encoded.placed)?;
            let head = if last { head } else { Head::None };
            let (exe, io) = ledger.host("enqueue", || model.feed(&ids, pos, head))?;
            // Only the first chunk waits for the encoders; the others come after it.
            let on = if from.is_none() { &encoded.lanes[..] } else { &[] };
            let step = Step::rows(pos, chunk.len(), 0);
            let start = ledger.host("enqueue", || model.backend_mut().run_after(exe, step, on))?;
            from.get_or_insert(start);
            model.cache.extend(chunk.iter().copied());
            pos += chunk.len();
            if let (true, Some(token)) = (last, io.token) {
                first = Some(model.backend_mut().send_token(exe, token)?);
            }
        }
        Ok(from.map(|start| (start, first)))
    }

    /// Reads tokens as they come. Where the device runs ahead, step n + 1 is enqueued before token n is read: it
    /// needs nothing from the host, and if n was the last one its row is simply overwritten later.
    fn generate(
        &mut self,
        (first, base): (Ticket, usize),
        head: Head,
        mut reply: Reply<'_>,
        ledger: &Ledger,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Answer> {
        let context = self.engine.context_rows();
        let ahead = self.engine.model.backend().asynchronous();
        let (mut n, mut first_token_ms) = (0, 0.0);
        let mut times_ms: Vec<f64> = Vec::new();
        let mut next = Some(first);
        let mut last = Instant::now();

        while let Some(ticket) = next.take() {
            let wanted = n + 1 < reply.options.max_new_tokens && base + n < context;
            if ahead && wanted {
                next = Some(self.step(base + n, n + 1, head)?);
            }
            // The first token is what a user waits for. Behind the others the device is busy with the next step.
            let wait = if n == 0 { Wait::Busy } else { Wait::Asleep };
            let id = self.engine.model.backend_mut().wait_token(ticket, wait)?;
            let now = Instant::now();
            match n {
                0 => first_token_ms = ledger.now_ms(),
                _ => times_ms.push((now - last).as_secs_f64() * 1e3),
            }
            last = now;

            reply.take(self.engine, id, base + n >= context, on_event);
            if reply.ended {
                break;
            }
            if !ahead {
                next = Some(self.step(base + n, n + 1, head)?);
            }
            n += 1;
        }
        if let Some(ticket) = next {
            self.engine.model.backend_mut().wait_token(ticket, Wait::Asleep)?;
        }

        reply.flush(on_event);
        let mut answer = reply.answer;
        answer.timings.first_token_ms = first_token_ms;
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

impl Answer {
    /// With the stages before its first token, and their times.
    fn with_stages(self, stages: &[Stage], question: &Question) -> Answer {
        let of = |stage| total_ms(stages, stage);
        let timings = Timings {
            decode_ms: question.decode_ms,
            cache_ms: of("cache"),
            tile_ms: of("tile"),
            vision_ms: of("vision"),
            filterbank_ms: of("filterbank"),
            audio_ms: of("audio"),
            prefill_ms: of("prefill"),
            ..self.timings
        };
        Answer { timings, stages: stages.to_vec(), ..self }
    }
}

/// The tokens among rows.
fn tokens(keys: &[Key]) -> impl Iterator<Item = u32> + '_ {
    keys.iter().filter_map(|key| match *key {
        Key::Token(id) => Some(id),
        Key::Media { .. } => None,
    })
}

/// Rows as the model gets them: token ids, and rows of the media state.
fn ids(keys: &[Key], placed: &[Placed]) -> Result<Vec<u32>> {
    let id = |key: &Key| match *key {
        Key::Token(id) => Ok(id),
        Key::Media { content, row } => match placed.iter().find(|p| p.content == content) {
            Some(p) => Ok((p.first_row as u32 + row) | MEDIA_BIT),
            None => crate::bail_runtime!("a row of a picture or sound that was not encoded"),
        },
    };
    keys.iter().map(id).collect()
}

#[cfg(test)]
mod tests;
