//! The engine as a library: open a model, hold a conversation, get text as it comes.
//!
//! ```no_run
//! # fn main() -> vivace::core::Result<()> {
//! use vivace::engine::{Engine, GenerateOptions, Options, Question};
//!
//! let mut engine = Engine::open("path/to/VITA-1.5", &Options::default(), &mut |_, _| {})?;
//! let mut session = engine.session(None)?;
//! let question = Question::text("What is in this picture?").image("cat.jpg")?;
//! let answer = session.ask(&question, &GenerateOptions::default(), &mut |_| true)?;
//! println!("{}", answer.text);
//! # Ok(()) }
//! ```

pub mod bench;
mod cache;
pub mod diagnose;
mod graphs;
mod ledger;
pub mod measure;
pub mod model;
mod result_file;
mod sampling;
mod session;
mod synth;
pub mod verify;

use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::core::{DType, Result};
use crate::exec::Backend;
use crate::exec::cpu::Cpu;
use crate::fuse::Fusion;
use crate::media::audio::Sound;
use crate::media::fbank::require_length;
use crate::media::image::Picture;
pub use crate::models::config::Folders;
use crate::models::config::{Opened, open_model_with};
use crate::models::qwen2::TextSizes;
use crate::text::prompt::SYSTEM_ASSISTANT;
use crate::text::{State, StateMarks, Tokenizer, stop_token_ids_from_dir};
pub use cache::{CacheOptions, CacheStats, CacheUse};
pub use ledger::{Stage, overlap_ms};
pub use model::MOST_SEQUENCES as MOST_ANSWERS;
use model::{Model, ModelParts};
pub use result_file::ResultFile;
pub use sampling::Sampling;
pub use session::{LONGEST_SOUND_SECONDS, Session, SoundStream};
pub use synth::write_synthetic;

/// Rows of a prompt that go through the model at once; longer ones go in chunks, which bounds the arena.
const PREFILL_CHUNK_ROWS: usize = 4096;

/// Where a model runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum DeviceChoice {
    /// The first GPU that can run the kernels, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once(':') {
            None if s == "auto" => Ok(DeviceChoice::Auto),
            None if s == "cpu" => Ok(DeviceChoice::Cpu),
            None if s == "cuda" => Ok(DeviceChoice::Cuda(0)),
            Some(("cuda", n)) => match n.parse() {
                Ok(n) => Ok(DeviceChoice::Cuda(n)),
                Err(_) => Err(format!("cuda:N expected with a number, got {s:?}")),
            },
            _ => Err(format!("auto, cpu or cuda:N expected, got {s:?}")),
        }
    }
}

/// Chunked attention of the audio encoder: a frame (40 ms) sees its own chunk and some before it, and nothing later. A
/// sound can then be encoded while it comes in, see [`Session::sound_stream`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AudioChunk {
    /// Frames of a chunk.
    pub frames: usize,
    /// Chunks that a frame sees before its own; all of them if not given.
    pub left: Option<usize>,
}

impl std::str::FromStr for AudioChunk {
    type Err = String;

    /// `16` or `16/4`.
    fn from_str(s: &str) -> Result<Self, String> {
        let (frames, left) = match s.split_once('/') {
            Some((frames, left)) => (frames, Some(left)),
            None => (s, None),
        };
        match (frames.parse(), left.map(str::parse).transpose()) {
            (Ok(frames @ 1..=4096), Ok(left)) => Ok(AudioChunk { frames, left }),
            _ => Err(format!("FRAMES or FRAMES/LEFT expected, 1 to 4096 frames of 40 ms, got {s:?}")),
        }
    }
}

/// How a model is opened.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Options {
    pub device: DeviceChoice,
    pub fusion: Fusion,
    /// Rows of the KV cache; the model's own context if not given.
    pub context: Option<usize>,
    /// What is kept of earlier questions.
    pub cache: CacheOptions,
    /// Instead of the attention that the checkpoint states for sounds. Only what a checkpoint was trained for gives good
    /// answers.
    pub audio_chunk: Option<AudioChunk>,
    /// The encoders' folders, where the checkpoint's config names them by a path of somebody else's. A synthetic model
    /// has none.
    pub folders: Folders,
    /// Log-mel frames are computed by the device, within 1e-3 of the host's. Sounds with noise added, and sounds that come
    /// in piece by piece, stay with the host.
    pub device_filterbank: bool,
    /// Pictures are resized and cut by the device, to the same bits as by the host. Videos stay with the host.
    pub device_tiling: bool,
    /// Run graphs launch by launch instead of replaying captures.
    pub no_capture: bool,
    /// Fill arenas with NaN before every run.
    pub poison: bool,
}

/// A model that is ready to answer.
///
/// Each call leaves its GPU current on the calling thread: who uses CUDA beside it makes its own context current again.
///
/// It may go to another thread, and is used by one at a time: a server keeps it behind a mutex, or in a thread of its own
/// that gets questions over a channel. An answer blocks that thread.
///
/// ```no_run
/// # use std::sync::mpsc::{Sender, channel};
/// # use vivace::engine::{Engine, GenerateOptions, Options, Question};
/// # fn serve() -> vivace::core::Result<()> {
/// let mut engine = Engine::open("path/to/VITA-1.5", &Options::default(), &mut |_, _| {})?;
/// let (ask, questions) = channel::<(Question, Sender<String>)>();
/// std::thread::spawn(move || -> vivace::core::Result<()> {
///     for (question, tell) in questions {
///         let answer = engine.session(None)?.ask(&question, &GenerateOptions::default(), &mut |_| true)?;
///         let _ = tell.send(answer.text);
///     }
///     Ok(())
/// });
/// # Ok(()) }
/// ```
pub struct Engine {
    pub model: Model,
    tokenizer: Tokenizer,
    marks: StateMarks,
    /// System text of every conversation that brings none; otherwise the first question's kind chooses it.
    system: Option<&'static str>,
    stop_ids: Vec<u32>,
    device_filterbank: bool,
    device_tiling: bool,
}

/// What a turn asks. Pictures and sounds are in memory; [`Question::image`] and [`Question::audio`] read files.
#[derive(Clone, Default)]
pub struct Question {
    pub text: String,
    pub images: Vec<Picture>,
    /// The pictures are frames of a video: one tile each. [`choose_frames`](crate::media::video::choose_frames) says which
    /// frames the model is used to.
    pub video: bool,
    pub sounds: Vec<Sound>,
    /// Noise added before the filterbank, as upstream does with 1.0; the same for the same sound. 0 adds none.
    pub dither: f32,
    /// Time that reading the files took, for the timings.
    pub decode_ms: f64,
}

impl Question {
    pub fn text(text: impl Into<String>) -> Question {
        Question { text: text.into(), ..Question::default() }
    }

    /// Adds a picture file (PNG, JPEG or WebP, by content).
    pub fn image(mut self, path: impl AsRef<Path>) -> Result<Question> {
        self.add_image(path)?;
        Ok(self)
    }

    /// Adds a sound file (WAV, FLAC, MP3 or OGG, by content) of at least 85 ms.
    pub fn audio(mut self, path: impl AsRef<Path>) -> Result<Question> {
        self.add_audio(path)?;
        Ok(self)
    }

    /// As [`Question::image`]; a file that cannot be used leaves the question as it was.
    pub fn add_image(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let start = Instant::now();
        self.images.push(Picture::from_path(path)?);
        self.decode_ms += start.elapsed().as_secs_f64() * 1e3;
        Ok(())
    }

    /// As [`Question::audio`]; a file that cannot be used leaves the question as it was.
    pub fn add_audio(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let start = Instant::now();
        let path = path.as_ref();
        let sound = Sound::from_path(path)?;
        require_length(&sound).map_err(|e| e.context(path.display()))?;
        self.sounds.push(sound);
        self.decode_ms += start.elapsed().as_secs_f64() * 1e3;
        Ok(())
    }
}

/// How an answer is generated.
#[derive(Clone, PartialEq, Debug)]
pub struct GenerateOptions {
    /// 1 or more; the answer also ends where the context does.
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after the noise mark. Otherwise the answer ends there: none is owed.
    pub answer_noise: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 512,
            sampling: Sampling::default(),
            stop: Vec::new(),
            answer_noise: false,
        }
    }
}

impl GenerateOptions {
    /// Refuses what no answer can be generated with.
    pub fn check(&self) -> Result<()> {
        self.sampling.check()?;
        crate::ensure_input!(self.max_new_tokens > 0, "max_new_tokens: 1 or more expected, got 0");
        Ok(())
    }

    /// Whether `n` answers can be drawn side by side, see [`Session::answers`].
    pub fn check_answers(&self, n: usize) -> Result<()> {
        self.check()?;
        crate::ensure_input!(
            (1..=MOST_ANSWERS).contains(&n),
            "answers: 1 to {MOST_ANSWERS} expected, got {n}"
        );
        crate::ensure_input!(
            n == 1 || self.sampling.temperature > 0.0,
            "{n} answers: at temperature 0 every answer is the same; a temperature above 0 expected"
        );
        Ok(())
    }
}

/// What happens while an answer is generated.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Event<'a> {
    /// What the model took the query for.
    State(State),
    /// More text, whole UTF-8 characters.
    Text(&'a str),
}

/// Why an answer ended.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A stop token.
    #[default]
    EndOfTurn,
    StopString(String),
    MaxNewTokens,
    /// The context is full.
    Context,
    /// The model took the query for noise.
    Noise,
    /// The caller said so.
    Cancelled,
}

/// Milliseconds per stage; 0 where a stage did not run. Encoders run side by side, so stages may add up to more
/// than the total.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct Timings {
    /// Reading and decoding files.
    pub decode_ms: f64,
    /// Comparing pictures, sounds and the prompt with what is kept of earlier ones.
    pub cache_ms: f64,
    pub tile_ms: f64,
    pub vision_ms: f64,
    pub filterbank_ms: f64,
    pub audio_ms: f64,
    pub prefill_ms: f64,
    /// From the call, pictures and sounds decoded, to the first token on the host.
    pub first_token_ms: f64,
    /// Median of the tokens after the first.
    pub per_token_ms: Option<f64>,
    pub total_ms: f64,
}

/// A finished answer.
#[derive(Clone, PartialEq, Default, Debug, Serialize)]
pub struct Answer {
    pub text: String,
    /// What the model took the query for, if it said so.
    pub state: Option<State>,
    /// Ids as generated, the mark included, the stop token not.
    pub tokens: Vec<u32>,
    pub stop: StopReason,
    /// Rows of the question: tokens, tiles and sounds.
    pub prompt_rows: usize,
    /// What of them was there already.
    pub cache: CacheUse,
    pub timings: Timings,
    /// What the first token waited for, by beginning.
    pub stages: Vec<Stage>,
}

impl Engine {
    /// Opens `spec`: a checkpoint folder, or `synthetic:CONFIG.json`. `progress(done, total)` counts bytes of weights.
    pub fn open(spec: &str, options: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Engine> {
        Engine::from_opened(open_model_with(spec, &options.folders)?, options, progress)
    }

    /// As [`Engine::open`] for a model that was found already, with its folders.
    pub fn from_opened(
        mut opened: Opened,
        options: &Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Engine> {
        if let Some(chunk) = options.audio_chunk {
            let Some(audio) = &mut opened.config.audio else {
                crate::bail_input!("chunks of sound are asked for, but this model has no audio encoder")
            };
            audio.chunk_size = chunk.frames as i64;
            audio.left_chunks = chunk.left.map_or(-1, |left| left.min(1 << 20) as i64);
        }
        if let (Some(assumed), None) = (&opened.assumed, options.audio_chunk) {
            tracing::warn!("{assumed}");
        }
        let vocab = opened.config.text.vocab_size;
        let tokenizer = match &opened.dir {
            Some(dir) => Tokenizer::from_dir(dir)?,
            None => Tokenizer::byte_fallback(vocab)?,
        };
        let stop_ids = match &opened.dir {
            Some(dir) => stop_token_ids_from_dir(dir, &tokenizer)?,
            None => crate::text::stop_token_ids(None, None, &tokenizer)?,
        };
        let context = opened.config.context(options.context)?;
        let token_limit = vocab.min(tokenizer.vocab_len());
        // Marks and the texts of Vita are for models that were tuned with them: elsewhere a mark is text.
        let (marks, system) = match opened.config.text_only() {
            true => (StateMarks::default(), Some(SYSTEM_ASSISTANT)),
            false => (StateMarks::new(&tokenizer), None),
        };
        let sizes = TextSizes { max_seq: context, media_rows: context, token_limit };
        let mut model = open_on(opened, sizes, options, false, progress)?;
        // Where nothing is captured there is nothing to get ready.
        if model.backend().asynchronous() && !options.no_capture {
            model.warm()?;
        }
        Ok(Engine {
            tokenizer,
            marks,
            system,
            stop_ids,
            model,
            device_filterbank: options.device_filterbank,
            device_tiling: options.device_tiling,
        })
    }

    /// Starts a conversation. `system` replaces the default system text: one of those in [`crate::text::prompt`], by what
    /// the first question holds, or [`SYSTEM_ASSISTANT`] where the model takes text alone.
    pub fn session(&mut self, system: Option<&str>) -> Result<Session<'_>> {
        let system = system.or(self.system);
        Session::new(self, system)
    }

    /// What is kept of earlier questions, and what it was good for since the model was opened.
    pub fn cache_stats(&self) -> CacheStats {
        self.model.cache_stats()
    }

    /// Forgets all earlier questions: the next one is computed whole.
    pub fn clear_cache(&mut self) {
        self.model.cache.clear();
    }

    /// Gives back the device memory that [`Session::answers`] has taken.
    pub fn free_answers(&mut self) -> Result<()> {
        self.model.close_batch()
    }

    /// Rows that the context holds.
    pub fn context_rows(&self) -> usize {
        self.model.sizes.max_seq
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

/// Chooses the device, checks that it has room, loads.
pub(crate) fn open_on(
    opened: Opened,
    sizes: TextSizes,
    options: &Options,
    observe: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Model> {
    let mut backend = open_backend(options.device)?;
    backend.set_capture(!options.no_capture);
    backend.set_poison(options.poison);
    // Stored weights are widened on the CPU as they are read; a GPU computes in 16 bits.
    let dtype = match (backend.asynchronous(), opened.config.dtype) {
        (false, _) => DType::F32,
        (true, DType::F32) => DType::BF16,
        (true, half) => half,
    };
    let parts = ModelParts {
        cfg: opened.config,
        source: opened.source,
        backend,
        dtype,
        sizes,
        fusion: options.fusion.clone(),
        cache: options.cache,
        observe,
    };
    Model::load(parts, progress)
}

/// The device of that name, ready to run graphs.
pub fn open_backend(choice: DeviceChoice) -> Result<Box<dyn Backend>> {
    match choice {
        DeviceChoice::Cpu => Ok(Box::new(Cpu::new())),
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(ordinal) => Ok(Box::new(crate::exec::cuda::Cuda::open(ordinal)?)),
        #[cfg(feature = "cuda")]
        DeviceChoice::Auto => Ok(first_gpu().unwrap_or_else(|| Box::new(Cpu::new()))),
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Cuda(n) => {
            crate::bail_runtime!("cuda:{n}: this binary was built without the feature `cuda`")
        }
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Auto => Ok(Box::new(Cpu::new())),
    }
}

/// The first GPU that can run the kernels. Where there are GPUs and none can, that is worth a warning.
#[cfg(feature = "cuda")]
fn first_gpu() -> Option<Box<dyn Backend>> {
    use crate::exec::cuda::Cuda;
    use crate::gpu::device::Driver;
    let devices = match Driver::probe() {
        Ok(driver) if driver.devices.is_empty() => return None,
        Ok(driver) => driver.devices,
        Err(why) => {
            tracing::info!("{why}: running on the CPU");
            return None;
        }
    };
    if let Some(why) = crate::gpu::embedded::why_empty() {
        tracing::warn!("running on the CPU: the CUDA kernels were not built: {why}");
        return None;
    }
    for facts in &devices {
        match Cuda::open(facts.ordinal) {
            Ok(cuda) => return Some(Box::new(cuda)),
            Err(why) => tracing::warn!("{why}"),
        }
    }
    tracing::warn!("running on the CPU: none of {} GPUs runs the kernels", devices.len());
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::config::{Hints, ModelConfig, synthetic};
    use crate::text::prompt::SYSTEM_TEXT;

    /// `tiny`, with or without its encoders.
    fn open(model_type: &str) -> Engine {
        let tiny = include_str!("../../tests/fixtures/tiny.json");
        let mut json: serde_json::Value = serde_json::from_str(tiny).unwrap();
        json["model_type"] = model_type.into();
        let config = ModelConfig::from_value(&json, "tiny.json", Hints::NONE).unwrap();
        let source = std::sync::Arc::new(synthetic(&config));
        let options = Options { device: DeviceChoice::Cpu, context: Some(512), ..Options::default() };
        Engine::from_opened(Opened { config, source, dir: None, assumed: None }, &options, &mut |_, _| {})
            .unwrap()
    }

    /// What is reused of a first question tells whether it began like the one before.
    #[test]
    fn models_without_encoders_are_assistants_and_give_no_marks() {
        let options = GenerateOptions { max_new_tokens: 1, answer_noise: true, ..GenerateOptions::default() };
        for (model_type, system, marks) in
            [("qwen2", SYSTEM_ASSISTANT, [None; 3]), ("vita-Qwen2", SYSTEM_TEXT, State::ALL.map(Some))]
        {
            let mut engine = open(model_type);
            assert_eq!([259, 260, 261].map(|id| engine.marks.state(id)), marks, "{model_type}");
            let mut ask = |system| {
                let mut session = engine.session(system).unwrap();
                session.ask(&Question::text("hi"), &options, &mut |_| true).unwrap()
            };
            let rows = ask(None).prompt_rows;
            let same = ask(Some(system));
            assert_eq!((same.prompt_rows, same.cache.reused_rows), (rows, rows - 1), "{model_type}");
            assert_ne!(ask(Some("Be brief.")).prompt_rows, rows);
        }
    }
}
