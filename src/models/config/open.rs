//! Opens what `--model` names: a checkpoint folder, or the config of a synthetic model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::folders::{self, Folders};
use super::positions::with_positions;
use super::{Hints, ModelConfig, expected_tensors, inspect};
use crate::core::{DType, Error, Result};
use crate::weights::{Overlay, Safetensors, Source, SynthSource};

/// A model that can be loaded.
#[derive(Clone)]
pub struct Opened {
    pub config: ModelConfig,
    pub source: Arc<dyn Source>,
    /// The checkpoint folder; `None` for synthetic weights.
    pub dir: Option<PathBuf>,
    /// How the audio encoder is taken to attend, where nothing says it: to be told unless chunks are asked for.
    pub assumed: Option<String>,
}

/// What `--model` has before the config of a synthetic model.
pub const SYNTHETIC: &str = "synthetic:";

/// Opens `DIR` or `synthetic:CONFIG.json`, and checks that every tensor of the model is there in its shape. Of others it
/// warns.
pub fn open_model(spec: &str) -> Result<Opened> {
    open_model_with(spec, &Folders::default())
}

/// As [`open_model`], with the encoders' folders given.
pub fn open_model_with(spec: &str, folders: &Folders) -> Result<Opened> {
    let opened = open_unchecked_with(spec, folders)?;
    let report = inspect(opened.source.as_ref(), &opened.config);
    report.check()?;
    if let Some(ignored) = report.ignored() {
        tracing::warn!("{ignored}");
    }
    Ok(opened)
}

/// As [`open_model`], without looking at the tensors that the model wants: for [`inspect`].
pub fn open_unchecked(spec: &str) -> Result<Opened> {
    open_unchecked_with(spec, &Folders::default())
}

/// As [`open_unchecked`], with the encoders' folders given.
pub fn open_unchecked_with(spec: &str, folders: &Folders) -> Result<Opened> {
    match spec.strip_prefix(SYNTHETIC) {
        Some(path) => {
            folders.refuse_for(spec)?;
            let (_, config) = read_config(Path::new(path))?;
            let source = Arc::new(synthetic(&config));
            Ok(Opened { config, source, dir: None, assumed: None })
        }
        None => open_dir(Path::new(spec), folders),
    }
}

fn open_dir(dir: &Path, folders: &Folders) -> Result<Opened> {
    let stored = Arc::new(Safetensors::open_dir(dir)?);
    let path = dir.join("config.json");
    let json = read_json(&path)?;
    let shapes = |name: &str| stored.info(name).map(|i| i.shape);
    let dtype = stored.info("model.embed_tokens.weight").and_then(|i| i.dtype);

    let vision_dir = folders::find(dir, &json, &folders::VISION, folders.vision.as_deref())?;
    let audio_dir = folders::find(dir, &json, &folders::AUDIO, folders.audio.as_deref())?;
    let vision = vision_dir.as_deref().map(folders::vision).transpose()?.flatten();
    let audio = audio_dir.as_deref().map(folders::audio).transpose()?.flatten();
    let hints = Hints {
        shapes: &shapes,
        dtype,
        vision: vision.as_ref().map(|(json, file)| (json, file.as_str())),
        audio: audio.as_ref().map(|(json, file)| (json, file.as_str())),
    };
    let config = ModelConfig::from_value(&json, &path.display().to_string(), hints)?;
    folders.check_encoders(&config, &path)?;
    let assumed = assumptions(&json, &path, &config, folders, [vision.is_some(), audio.is_some()]);
    let source = with_cmvn(stored, &config, audio_dir.as_deref())?;
    let source = with_positions(source, config.vision.as_ref())?;
    Ok(Opened { config, source, dir: Some(dir.to_owned()), assumed })
}

/// What is taken for granted about encoders whose folders were neither given nor `found`: of the tower it is told, of the
/// attention of the audio encoder it is returned.
fn assumptions(
    json: &Value,
    path: &Path,
    config: &ModelConfig,
    folders: &Folders,
    found: [bool; 2],
) -> Option<String> {
    let place = path.display().to_string();
    let known = [found[0] || folders.vision.is_some(), found[1] || folders.audio.is_some()];
    if config.vision.is_some()
        && !known[0]
        && let Some(note) = folders::assumed_tower(json, &place)
    {
        tracing::info!("{note}");
    }
    let open = config.audio.is_some() && !known[1];
    open.then(|| folders::assumed_attention(json, &place)).flatten()
}

/// Adds the normalisation of the filterbank from the audio folder when the checkpoint lacks it.
fn with_cmvn(
    stored: Arc<dyn Source>,
    config: &ModelConfig,
    audio_dir: Option<&Path>,
) -> Result<Arc<dyn Source>> {
    const NAMES: [&str; 2] =
        ["model.audio_encoder.encoder.global_cmvn.mean", "model.audio_encoder.encoder.global_cmvn.istd"];
    let (Some(audio), Some(dir)) = (&config.audio, audio_dir) else { return Ok(stored) };
    let lacks = |name: &str| stored.info(name).is_none();
    if !NAMES.into_iter().any(lacks) {
        return Ok(stored);
    }
    let Some((path, values)) = folders::global_cmvn(dir, audio.input_dim)? else { return Ok(stored) };
    let mut all = Overlay::new(stored.clone());
    for (name, values) in NAMES.into_iter().zip(&values).filter(|(name, _)| lacks(name)) {
        all.add(name, DType::F32, &[audio.input_dim], values, &path.display().to_string());
    }
    Ok(Arc::new(all))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::input(format!("{}: not readable as JSON: {e}", path.display())))
}

pub(super) fn read_json(path: &Path) -> Result<Value> {
    parse(path, &read(path)?)
}

/// The bytes of a config and what they say.
pub fn read_config(path: &Path) -> Result<(Vec<u8>, ModelConfig)> {
    let bytes = read(path)?;
    let json = parse(path, &bytes)?;
    let config = ModelConfig::from_value(&json, &path.display().to_string(), Hints::NONE)?;
    Ok((bytes, config))
}

/// The synthetic weights of a model.
pub fn synthetic(config: &ModelConfig) -> SynthSource {
    let tensors = expected_tensors(config).into_iter().map(|t| (t.name, t.shape)).collect();
    SynthSource::new(config.seed, config.dtype, tensors)
}
