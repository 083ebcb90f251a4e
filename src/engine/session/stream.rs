//! A sound that is encoded while it comes in.

use super::super::cache::{Content, Source};
use super::Session;
use crate::core::Result;
use crate::media::audio::{Sound, check_rate};
use crate::media::fbank::{BINS, FbankOptions, RATE_HZ, fbank_from, frame_count, require_length};
use crate::media::resample::Resampler;
use crate::models::whale::encoder_frames;

/// What a [`SoundStream`] takes at most where it is encoded while it comes in; others end where the context does.
pub const LONGEST_SOUND_SECONDS: usize = 60;
/// Log-mel frames of that.
const MOST_FRAMES: usize = 100 * LONGEST_SOUND_SECONDS;

/// A sound on its way, from [`Session::sound_stream`]. To drop it is to forget the sound: the conversation is as it was.
pub struct SoundStream<'s, 'e> {
    session: &'s mut Session<'e>,
    options: FbankOptions,
    sound: Sound,
    resampler: Resampler,
    /// At 16 kHz, as far as decided.
    samples: Vec<f32>,
    /// Log-mel frames `[.., 80]`, all of them: little, and what is encoded whole needs them.
    frames: Vec<f32>,
    /// Frames of the encoder that it has got.
    encoded: usize,
    ended: bool,
}

impl<'e> Session<'e> {
    /// Begins a sound of `rate_hz` samples a second that is filtered and, where the audio encoder has chunked attention,
    /// encoded while it comes in: at its end only the last chunk is left to do. Other encoders see the whole sound at
    /// once, at its end.
    ///
    /// `dither` as in [`super::Question::dither`]. The answer is the same as to the whole sound.
    ///
    /// ```no_run
    /// # use vivace::engine::{GenerateOptions, Question, Session};
    /// # fn listen(mut session: Session<'_>, microphone: Vec<Vec<f32>>) -> vivace::core::Result<()> {
    /// let mut stream = session.sound_stream(16_000, 0.0)?;
    /// for samples in microphone {
    ///     stream.push(&samples)?;
    /// }
    /// let sound = stream.finish()?;
    /// let question = Question { sounds: vec![sound], ..Question::default() };
    /// session.ask(&question, &GenerateOptions::default(), &mut |_| true)?;
    /// # Ok(()) }
    /// ```
    pub fn sound_stream(&mut self, rate_hz: u32, dither: f32) -> Result<SoundStream<'_, 'e>> {
        check_rate(rate_hz)?;
        let options = FbankOptions { dither, ..FbankOptions::default() };
        options.check()?;
        if self.engine.model.cfg.audio.is_none() {
            crate::bail_input!("this model has no audio encoder: it cannot take sounds");
        }
        if self.engine.model.audio_chunk().is_some() {
            self.engine.model.begin_sound(MOST_FRAMES)?;
        }
        Ok(SoundStream {
            session: self,
            options,
            sound: Sound { rate_hz, samples: Vec::new() },
            resampler: Resampler::new(rate_hz, RATE_HZ),
            samples: Vec::new(),
            frames: Vec::new(),
            encoded: 0,
            ended: false,
        })
    }
}

impl SoundStream<'_, '_> {
    /// Takes the next samples (full scale -1..1), however many, and enqueues what they complete. Samples that are refused
    /// change nothing: the sound so far can still be finished.
    ///
    /// # Errors
    /// `Input` for samples that are not finite, beyond [`LONGEST_SOUND_SECONDS`], or more than the context has room for.
    pub fn push(&mut self, samples: &[f32]) -> Result<()> {
        crate::ensure_input!(!self.ended, "the sound has ended: begin another one");
        let before = self.sound.samples.len();
        if let Some(i) = samples.iter().position(|s| !s.is_finite()) {
            crate::bail_input!(
                "sample {} of the sound is {}: samples must be finite",
                before + i,
                samples[i]
            );
        }
        let all = before + samples.len();
        let most = LONGEST_SOUND_SECONDS * self.sound.rate_hz as usize;
        let chunk = self.session.engine.model.audio_chunk();
        crate::ensure_input!(
            all <= most || chunk.is_none(),
            "a sound that comes in may last {LONGEST_SOUND_SECONDS} s ({most} samples at {} Hz): {} samples too many",
            self.sound.rate_hz,
            all - most
        );
        self.session.check_seconds(all as f64 / f64::from(self.sound.rate_hz))?;
        self.sound.samples.extend_from_slice(samples);
        self.resampler.advance(&self.sound.samples, false, &mut self.samples);
        self.filter()?;
        if let Some(chunk) = chunk {
            // A frame more than the chunk: the last piece is then never empty.
            while encoder_frames(self.frames.len() / BINS) > self.encoded + chunk {
                self.encode(chunk, false)?;
            }
            let left = encoder_frames(self.frames.len() / BINS).saturating_sub(self.encoded);
            self.session.engine.model.expect_end(self.encoded, left, MOST_FRAMES)?;
        }
        Ok(())
    }

    /// Waits until all that was enqueued is done.
    pub fn sync(&mut self) -> Result<()> {
        self.session.engine.model.backend_mut().sync()
    }

    /// Seconds so far.
    pub fn seconds(&self) -> f64 {
        self.sound.seconds()
    }

    /// Ends the sound: what is left of it is enqueued. The next question that has exactly this sound finds it encoded.
    ///
    /// # Errors
    /// `Input` when the sound is too short for the encoder: more of it can still be pushed.
    pub fn finish(&mut self) -> Result<Sound> {
        crate::ensure_input!(!self.ended, "the sound has ended: begin another one");
        require_length(&self.sound)?;
        self.ended = true;
        self.resampler.advance(&self.sound.samples, true, &mut self.samples);
        self.filter()?;
        let frames = self.frames.len() / BINS;
        let rows = self.session.engine.model.rows_of_sound(frames);
        let content = self.session.engine.model.cache.media.insert(0, rows);
        if let Err(e) = self.put(content, frames) {
            self.session.engine.model.cache.media.forget(content);
            return Err(e);
        }
        let sound = std::mem::replace(&mut self.sound, Sound { rate_hz: RATE_HZ, samples: Vec::new() });
        self.session.engine.model.cache.media.hold(content, &Source::Sound(&sound, self.options));
        Ok(sound)
    }

    /// Encodes the rest, and puts the rows where the next question looks for them.
    fn put(&mut self, content: Content, frames: usize) -> Result<()> {
        let chunk = self.session.engine.model.audio_chunk();
        if let Some(chunk) = chunk {
            while encoder_frames(frames) > self.encoded + chunk {
                self.encode(chunk, false)?;
            }
            self.encode(encoder_frames(frames) - self.encoded, true)?;
        }
        let model = &mut self.session.engine.model;
        let placed = model.cache.media.place(&[content])?;
        for p in &placed {
            match chunk {
                Some(_) => model.place_sound(frames, p.first_row)?,
                None => {
                    model.encode_sound(&self.frames, frames, p.first_row)?;
                    model.backend_mut().join(crate::exec::Lane::Text, crate::exec::Lane::Audio)?;
                }
            }
        }
        model.cache.media.settle(&placed);
        Ok(())
    }

    /// Filters the samples that are there.
    fn filter(&mut self) -> Result<()> {
        let done = self.frames.len() / BINS;
        if frame_count(self.samples.len()) > done {
            self.frames.extend(fbank_from(&self.samples, done, self.options)?.data);
        }
        Ok(())
    }

    /// Enqueues the next `rows` frames of the encoder.
    fn encode(&mut self, rows: usize, last: bool) -> Result<()> {
        let (first, end) = (4 * self.encoded * BINS, (4 * (self.encoded + rows) + 3) * BINS);
        let fbank = &self.frames[first..end];
        self.session.engine.model.encode_piece(fbank, self.encoded, rows, last, MOST_FRAMES)?;
        self.encoded += rows;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
