//! Opens what `--model` names: a checkpoint folder, or the config of a synthetic model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::{Hints, ModelConfig, expected_tensors, inspect};
use crate::core::{Error, Result};
use crate::weights::{Info, Safetensors, Source, SynthSource, write_checkpoint};

/// A model that can be loaded.
#[derive(Clone)]
pub struct Opened {
    pub config: ModelConfig,
    pub source: Arc<dyn Source>,
    /// The checkpoint folder; `None` for synthetic weights.
    pub dir: Option<PathBuf>,
}

/// What `--model` has before the config of a synthetic model.
pub const SYNTHETIC: &str = "synthetic:";

/// Opens `DIR` or `synthetic:CONFIG.json`, and checks that every tensor of the model is there in its shape.
pub fn open_model(spec: &str) -> Result<Opened> {
    let opened = open_unchecked(spec)?;
    inspect(opened.source.as_ref(), &opened.config).check()?;
    Ok(opened)
}

/// As [`open_model`], without looking at the tensors that the model wants: for [`inspect`].
pub fn open_unchecked(spec: &str) -> Result<Opened> {
    match spec.strip_prefix(SYNTHETIC) {
        Some(path) => {
            let (_, config) = read_config(Path::new(path))?;
            let source = Arc::new(synthetic(&config));
            Ok(Opened { config, source, dir: None })
        }
        None => open_dir(Path::new(spec)),
    }
}

fn open_dir(dir: &Path) -> Result<Opened> {
    let source: Arc<dyn Source> = Arc::new(Safetensors::open_dir(dir)?);
    let path = dir.join("config.json");
    let json = parse(&path, &read(&path)?)?;
    let shapes = |name: &str| source.info(name).map(|i: Info| i.shape);
    let dtype = source.info("model.embed_tokens.weight").and_then(|i| i.dtype);
    let hints = Hints { shapes: &shapes, dtype, vision: None, audio: None };
    let config = ModelConfig::from_value(&json, &path.display().to_string(), hints)?;
    Ok(Opened { config, source, dir: Some(dir.to_owned()) })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::input(format!("{}: not readable as JSON: {e}", path.display())))
}

/// The bytes of a config and what they say.
fn read_config(path: &Path) -> Result<(Vec<u8>, ModelConfig)> {
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

/// `vivace synth`: writes the synthetic checkpoint of the config at `config` into the new or empty folder `out_dir`,
/// in files of at most `shard_bytes`. See [`write_checkpoint`].
pub fn write_synthetic(
    config: &Path,
    out_dir: &Path,
    shard_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let (bytes, parsed) = read_config(config)?;
    write_checkpoint(&bytes, &synthetic(&parsed), out_dir, shard_bytes, progress)
}
