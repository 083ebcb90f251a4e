//! Model configurations: `config.json` of a VITA-1.5 checkpoint (flat or nested), of a plain Qwen2 checkpoint, or of
//! a synthetic model. What it leaves out comes from the encoders' own configs, or from the shapes of the tensors.

mod fields;
mod folders;
mod inspect;
mod open;
mod positions;
mod shapes;
mod tensors;

use serde_json::{Map, Value};

use crate::core::{DType, Error, Result};
use crate::{bail_input, ensure_input};
use fields::Section;
pub use folders::Folders;
pub use inspect::{Mismatch, PartReport, Report, Unexpected, inspect};
pub use open::{
    Opened, SYNTHETIC, open_model, open_model_with, open_unchecked, open_unchecked_with, read_config,
    synthetic,
};
pub use tensors::{Expected, ModelPart, expected_tensors};

/// `model_type` of the checkpoints that load.
pub const MODEL_TYPES: [&str; 2] = ["vita-Qwen2", "qwen2"];

/// Context of a model whose config names no `tokenizer_model_max_length`, if it has room for as much.
const DEFAULT_CONTEXT: usize = 8192;
/// `max_window_layers` and `rope_theta` of a config without them, as in transformers' Qwen2Config.
const QWEN2_WINDOW_LAYERS: i64 = 28;
const QWEN2_ROPE_THETA: f32 = 10000.0;
/// What sounds are turned into, frame by frame.
const MEL_BINS: usize = 80;

/// A model to build.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelConfig {
    pub text: TextConfig,
    pub vision: Option<VisionConfig>,
    pub audio: Option<AudioConfig>,
    /// `torch_dtype`; that of the stored tensors if the config names none, else bf16.
    pub dtype: DType,
    /// Longest sequence that the checkpoint is meant for, media rows included.
    pub tokenizer_model_max_length: Option<usize>,
    /// Seed of synthetic weights.
    pub seed: u64,
}

/// Qwen2. All sizes in elements.
#[derive(Clone, PartialEq, Debug)]
pub struct TextConfig {
    /// Rows of the embedding, padding included.
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    /// 64 or 128.
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    /// The embedding is the output matrix too.
    pub tie_word_embeddings: bool,
    pub max_position_embeddings: usize,
}

/// InternViT; head dim 64.
#[derive(Clone, PartialEq, Debug)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    /// Pixels of a tile's side, a multiple of twice the patch. That of the config counts, and where the stored position
    /// embedding is for another, it is interpolated.
    pub image_size: usize,
    pub patch_size: usize,
    pub layer_norm_eps: f32,
}

/// Whale and its adapter; head dim 64.
#[derive(Clone, PartialEq, Debug)]
pub struct AudioConfig {
    /// Mel bins.
    pub input_dim: usize,
    pub hidden_size: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    /// Frames of a chunk; 0 or less for full attention.
    pub chunk_size: i64,
    /// Chunks that a frame sees before its own; all of them if negative.
    pub left_chunks: i64,
    pub adapter_kernel_size: usize,
    /// Rows of `prompt_embeddings` that go before a sound; usually none.
    pub prompt_rows: usize,
}

/// Shape of a stored tensor by its name.
pub type Shapes<'a> = &'a dyn Fn(&str) -> Option<Vec<usize>>;

/// What helps where `config.json` says nothing.
#[derive(Clone, Copy)]
pub struct Hints<'a> {
    pub shapes: Shapes<'a>,
    /// Type of the stored tensors.
    pub dtype: Option<DType>,
    /// The vision tower's config and the file that it is from.
    pub vision: Option<(&'a Map<String, Value>, &'a str)>,
    /// As for vision, with the keys of `audio_config`.
    pub audio: Option<(&'a Map<String, Value>, &'a str)>,
}

impl Hints<'_> {
    pub const NONE: Hints<'static> = Hints { shapes: &|_| None, dtype: None, vision: None, audio: None };
}

impl ModelConfig {
    /// Parses a config that says everything itself, as those of synthetic models do. `place` names it in messages.
    ///
    /// [`Error::Input`] names the field, what was expected and what was found.
    pub fn from_json(json: &str, place: &str) -> Result<ModelConfig> {
        let json: Value = serde_json::from_str(json)
            .map_err(|e| Error::input(format!("{place}: not readable as JSON: {e}")))?;
        ModelConfig::from_value(&json, place, Hints::NONE)
    }

    /// As [`ModelConfig::from_json`]; `hints` fill what the config leaves out.
    pub fn from_value(json: &Value, place: &str, hints: Hints<'_>) -> Result<ModelConfig> {
        let Some(top) = json.as_object() else {
            bail_input!("{place}: expected a JSON object with model_type, found something else");
        };
        let has_media = check_model_type(top, place)?;
        let nested = top.get("text_config").and_then(Value::as_object);
        let mut text = Section::new();
        if let Some(nested) = nested {
            text.add(nested, format!("{place}: text_config."));
        }
        text.add(top, format!("{place}: "));
        let dtype = match text.text("torch_dtype")?.or(text.text("dtype")?) {
            None => hints.dtype.unwrap_or(DType::BF16),
            Some((name, at)) => DType::from_torch(name).ok_or_else(|| {
                Error::input(format!("{at}: expected bfloat16, float16 or float32, found {name:?}"))
            })?,
        };
        let mut config = ModelConfig {
            text: TextConfig::parse(&text, hints.shapes, has_media)?,
            vision: None,
            audio: None,
            dtype,
            tokenizer_model_max_length: text.optional_count("tokenizer_model_max_length")?,
            seed: text.seed("seed")?,
        };
        if has_media {
            config.vision = VisionConfig::parse(top, place, hints)?;
            config.audio = AudioConfig::parse(top, place, hints)?;
        }
        Ok(config)
    }

    /// Whether the model takes neither pictures nor sounds.
    pub fn text_only(&self) -> bool {
        self.vision.is_none() && self.audio.is_none()
    }

    /// Rows of the KV cache: as many as asked for, or the checkpoint's own context.
    ///
    /// [`Error::Input`] if the model has no positions for them.
    pub fn context(&self, asked: Option<usize>) -> Result<usize> {
        let most = self.text.max_position_embeddings;
        let context = asked.unwrap_or(self.tokenizer_model_max_length.unwrap_or(DEFAULT_CONTEXT).min(most));
        ensure_input!(
            (1..=most).contains(&context),
            "context: expected 1 to {most} (max_position_embeddings), found {context}"
        );
        Ok(context)
    }
}

/// Whether the checkpoint may have encoders.
fn check_model_type(top: &Map<String, Value>, place: &str) -> Result<bool> {
    let known = MODEL_TYPES.map(|t| format!("{t:?}")).join(" or ");
    let named = |json: &Map<String, Value>| json.get("model_type").and_then(Value::as_str).map(str::to_owned);
    // Nested, the outer name is that of a plugin; the language model says what it is itself.
    let nested = top.get("text_config").and_then(Value::as_object);
    let at = if nested.is_some() { "text_config.model_type" } else { "model_type" };
    let Some(found) = nested.and_then(named).or_else(|| named(top)) else {
        bail_input!("{place}: {at}: expected {known}, found none");
    };
    ensure_input!(MODEL_TYPES.contains(&found.as_str()), "{place}: {at}: expected {known}, found {found:?}");
    Ok(nested.is_some() || found != "qwen2")
}

impl TextConfig {
    fn parse(s: &Section<'_>, shapes: Shapes<'_>, has_media: bool) -> Result<TextConfig> {
        s.only("hidden_act", "silu")?;
        s.check_rope()?;
        let hidden_size = s.count("hidden_size")?;
        let num_attention_heads = s.count("num_attention_heads")?;
        let num_key_value_heads = s.optional_count("num_key_value_heads")?.unwrap_or(num_attention_heads);
        let head_dim = match s.optional_count("head_dim")? {
            Some(d) => d,
            None => {
                s.require(hidden_size % num_attention_heads == 0, "num_attention_heads", || {
                    format!("expected a divisor of hidden_size {hidden_size}, found {num_attention_heads}")
                })?;
                hidden_size / num_attention_heads
            }
        };
        s.require(num_attention_heads % num_key_value_heads == 0, "num_key_value_heads", || {
            format!(
                "expected a divisor of num_attention_heads {num_attention_heads}, found {num_key_value_heads}"
            )
        })?;
        s.require(matches!(head_dim, 64 | 128), "head_dim", || {
            format!("expected 64 or 128, found {head_dim} (hidden_size {hidden_size}, {num_attention_heads} heads)")
        })?;
        let num_hidden_layers = s.few("num_hidden_layers")?;
        // Some checkpoints ask for windows and say by the other two fields that no layer has one.
        if s.flag("use_sliding_window")?
            && !s.is_null("sliding_window")
            && s.whole("max_window_layers", QWEN2_WINDOW_LAYERS)? < num_hidden_layers as i64
        {
            s.off("use_sliding_window")?;
        }
        // Demos trim the padded vocabulary: the matrix itself says how long it is.
        let stored = shapes("model.embed_tokens.weight").filter(|s| s.len() == 2).map(|s| s[0]);
        Ok(TextConfig {
            vocab_size: stored.filter(|&v| v > 0).map_or_else(|| s.count("vocab_size"), Ok)?,
            hidden_size,
            intermediate_size: s.count("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: s.positive("rms_norm_eps", Some(1e-6))?,
            // Plain checkpoints leave out what Qwen2Config assumes; one of VITA names its base.
            rope_theta: s.rope_theta((!has_media).then_some(QWEN2_ROPE_THETA))?,
            tie_word_embeddings: s.flag("tie_word_embeddings")?,
            max_position_embeddings: s.optional_count("max_position_embeddings")?.unwrap_or(32768),
        })
    }
}

impl VisionConfig {
    /// `None` when neither the config nor the tensors speak of a vision tower.
    fn parse(top: &Map<String, Value>, place: &str, hints: Hints<'_>) -> Result<Option<VisionConfig>> {
        let inferred = shapes::vision(hints.shapes);
        let Some(s) =
            Section::encoder(top, place, ["vision_config", "mm_vision_tower"], hints.vision, &inferred)
        else {
            return Ok(None);
        };
        s.only("norm_type", "layer_norm")?;
        s.only("hidden_act", "gelu")?;
        s.off("qk_normalization")?;
        let hidden_size = s.count("hidden_size")?;
        let patch_size = s.few("patch_size")?;
        let config = VisionConfig {
            hidden_size,
            num_attention_heads: s.heads_of_64(hidden_size)?,
            intermediate_size: s.count("intermediate_size")?,
            num_hidden_layers: s.few("num_hidden_layers")?,
            image_size: s.pixels("image_size")?,
            patch_size,
            layer_norm_eps: s.positive("layer_norm_eps", Some(1e-6))?,
        };
        let size = config.image_size;
        s.require(size.is_multiple_of(2 * patch_size), "image_size", || {
            format!("expected a multiple of twice patch_size {patch_size}, found {size}")
        })?;

        let mut top_level = Section::new();
        top_level.add(top, format!("{place}: "));
        top_level.only("mm_projector_type", "mlp2x_gelu")?;
        if let Some(found) = top_level.optional_count("mm_hidden_size")? {
            top_level.require(found == 4 * hidden_size, "mm_hidden_size", || {
                format!("expected {}, four patches of {hidden_size}; found {found}", 4 * hidden_size)
            })?;
        }
        Ok(Some(config))
    }
}

impl AudioConfig {
    /// `None` when neither the config nor the tensors speak of an audio encoder.
    fn parse(top: &Map<String, Value>, place: &str, hints: Hints<'_>) -> Result<Option<AudioConfig>> {
        let inferred = shapes::audio(hints.shapes);
        let Some(s) =
            Section::encoder(top, place, ["audio_config", "mm_audio_encoder"], hints.audio, &inferred)
        else {
            return Ok(None);
        };
        s.only("hidden_act", "relu")?;
        let hidden_size = s.count("hidden_size")?;
        let config = AudioConfig {
            input_dim: s.few("input_dim")?,
            hidden_size,
            num_attention_heads: s.heads_of_64(hidden_size)?,
            intermediate_size: s.count("intermediate_size")?,
            num_hidden_layers: s.few("num_hidden_layers")?,
            chunk_size: s.whole("chunk_size", -1)?,
            left_chunks: s.whole("left_chunks", -1)?,
            adapter_kernel_size: s.optional_few("adapter_kernel_size")?.unwrap_or(5),
            prompt_rows: prompt_rows(top, place, hints.shapes)?,
        };
        s.require(config.input_dim == MEL_BINS, "input_dim", || {
            format!("expected {MEL_BINS}, the mel bins of the filterbank; found {}", config.input_dim)
        })?;
        Ok(Some(config))
    }
}

/// The stored `prompt_embeddings`, or what the config announces.
fn prompt_rows(top: &Map<String, Value>, place: &str, shapes: Shapes<'_>) -> Result<usize> {
    if let Some(&[rows, _]) = shapes("model.audio_encoder.prompt_embeddings.weight").as_deref() {
        return Ok(rows);
    }
    let mut s = Section::new();
    s.add(top, format!("{place}: "));
    match s.flag("audio_prompt_finetune")? {
        true => s.count("audio_prompt_num"),
        false => Ok(0),
    }
}

#[cfg(test)]
mod tests;
