//! Flags that several commands share.

use std::path::PathBuf;
use std::time::Instant;

use clap::builder::NonEmptyStringValueParser;
use vivace::core::Result;
use vivace::engine::{
    AudioChunk, CacheOptions, DeviceChoice, Engine, Folders, GenerateOptions, Options, Sampling,
};
use vivace::fuse::Fusion;

use super::output::Progress;

/// How graphs run.
#[derive(clap::Args)]
#[command(next_help_heading = "Execution")]
pub struct DeviceArgs {
    /// Where to run: auto (the first GPU that can, else the CPU), cpu, cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Fusion rules to leave out, by name, separated by commas; `all` for every one
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub no_fuse: Vec<String>,
    /// Launch kernels one by one instead of replaying captured CUDA graphs
    #[arg(long)]
    pub no_capture: bool,
    /// Fill memory with NaN before every run: finds reads of what was never written
    #[arg(long)]
    pub poison: bool,
}

impl DeviceArgs {
    pub fn options(&self, context: Option<usize>) -> Result<Options> {
        Ok(Options {
            device: self.device,
            fusion: Fusion::without(&self.no_fuse)?,
            context,
            cache: CacheOptions::default(),
            audio_chunk: None,
            folders: Folders::default(),
            device_filterbank: false,
            device_tiling: false,
            no_capture: self.no_capture,
            poison: self.poison,
        })
    }
}

/// The model and where it runs.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// Checkpoint folder, or synthetic:CONFIG.json for weights made in memory
    #[arg(short, long, value_name = "DIR")]
    pub model: String,
    #[command(flatten)]
    pub folders: FolderArgs,
    /// Rows of the KV cache: tokens, pictures (256 rows a tile) and sounds of a whole conversation
    /// [default: the checkpoint's tokenizer_model_max_length, else 8192, and at most its max_position_embeddings]
    #[arg(long, value_name = "ROWS", value_parser = positive, help_heading = "Execution")]
    pub context: Option<usize>,
    /// MiB of device memory for the beginnings of earlier conversations, and as many of host memory for pictures and
    /// sounds to recognise
    #[arg(long, value_name = "MIB", default_value_t = CacheOptions::default().bytes >> 20, help_heading = "Execution")]
    pub cache_mib: u64,
    /// Compute every question whole: reuse nothing of earlier ones
    #[arg(long, conflicts_with = "cache_mib", help_heading = "Execution")]
    pub no_prefix_cache: bool,
    /// Let the audio encoder hear in chunks of this many frames of 40 ms, each seeing LEFT chunks before it (all without
    /// /LEFT), instead of as the checkpoint states
    #[arg(long, value_name = "FRAMES[/LEFT]", help_heading = "Execution")]
    pub audio_chunk: Option<AudioChunk>,
    #[command(flatten)]
    pub preprocessing: PreprocessingArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Where the encoders' own files are.
#[derive(clap::Args)]
pub struct FolderArgs {
    /// Folder with the config.json of the vision tower, where the checkpoint's config names one that is not inside the
    /// checkpoint folder
    #[arg(long, value_name = "DIR")]
    pub vision_tower: Option<PathBuf>,
    /// Folder with the train.yaml and global_cmvn of the audio encoder, likewise
    #[arg(long, value_name = "DIR")]
    pub audio_encoder: Option<PathBuf>,
}

impl FolderArgs {
    pub fn folders(&self) -> Folders {
        Folders { vision: self.vision_tower.clone(), audio: self.audio_encoder.clone() }
    }
}

/// Where decoded pictures and sounds are prepared.
#[derive(clap::Args)]
#[command(next_help_heading = "Execution")]
pub struct PreprocessingArgs {
    /// Compute the log-mel frames of sounds on the device
    #[arg(long)]
    pub device_filterbank: bool,
    /// Resize and cut pictures on the device
    #[arg(long)]
    pub device_tiling: bool,
}

impl PreprocessingArgs {
    pub fn with(&self, options: Options) -> Options {
        let PreprocessingArgs { device_filterbank, device_tiling } = *self;
        Options { device_filterbank, device_tiling, ..options }
    }
}

impl ModelArgs {
    pub fn options(&self) -> Result<Options> {
        let cache =
            CacheOptions { enabled: !self.no_prefix_cache, bytes: self.cache_mib.saturating_mul(1 << 20) };
        let (folders, audio_chunk) = (self.folders.folders(), self.audio_chunk);
        let options = self.device.options(self.context)?;
        Ok(self.preprocessing.with(Options { cache, audio_chunk, folders, ..options }))
    }

    /// Opens the model, with a progress bar unless `quiet`. Returns milliseconds too.
    pub fn open(&self, quiet: bool) -> Result<(Engine, f64)> {
        let start = Instant::now();
        let options = self.options()?;
        let progress = Progress::bytes("loading", quiet);
        let engine = Engine::open(&self.model, &options, &mut |done, total| progress.at(done, total))?;
        Ok((engine, start.elapsed().as_secs_f64() * 1e3))
    }
}

/// How answers are generated.
#[derive(clap::Args)]
#[command(next_help_heading = "Generation")]
pub struct GenerateArgs {
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value = "512", value_parser = positive)]
    pub max_new_tokens: usize,
    /// 0 always takes the most likely token; above (from 0.000001 on), the higher the more varied. Of a checkpoint's
    /// generation_config.json only the stop tokens are read: how to sample is what these flags say
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Sample among the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: u32,
    /// Sample among the most likely tokens that make up this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Above 1 (up to 100), tokens that have occurred become less likely; below (from 0.01 on), more
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// The same seed gives the same tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// End the answer before this text (may be given several times)
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// Noise added before the filterbank (the same every time), as training did with 1.0; 0 adds none
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub dither: f32,
    /// Answer also where the model hears only noise, or speech that is not addressed to it
    #[arg(long)]
    pub answer_noise: bool,
}

impl GenerateArgs {
    /// Checked before anything is loaded.
    pub fn options(&self) -> Result<GenerateOptions> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        sampling.check()?;
        vivace::ensure_input!(
            self.dither.is_finite() && self.dither >= 0.0,
            "--dither: 0 or more expected, got {}",
            self.dither
        );
        Ok(GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            sampling,
            stop: self.stop.clone(),
            answer_noise: self.answer_noise,
        })
    }
}

/// A count of at least 1.
pub fn positive(s: &str) -> Result<usize, String> {
    match s.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("a whole number above 0 expected".to_owned()),
    }
}
