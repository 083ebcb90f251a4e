//! The encoders' own folders: `config.json` of the vision tower, `train.yaml` and `global_cmvn` of the audio encoder.
//!
//! Checkpoints name them by hub id or by somebody else's path, so a name is looked up inside the checkpoint folder,
//! or replaced by an option; never fetched. Pickled files are not read: all weights are in the safetensors.

use std::path::{Component, Path, PathBuf};

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

use super::ModelConfig;
use crate::core::{Error, Result};
use crate::{bail_input, ensure_input};

/// The encoders' folders, where they are not inside the checkpoint's.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Folders {
    /// With the `config.json` of the vision tower.
    pub vision: Option<PathBuf>,
    /// With the `train.yaml` and the `global_cmvn` of the audio encoder.
    pub audio: Option<PathBuf>,
}

/// How an encoder's folder is named, and what is read there.
pub(super) struct Encoder {
    label: &'static str,
    key: &'static str,
    flag: &'static str,
    files: &'static [&'static str],
}

pub(super) const VISION: Encoder = Encoder {
    label: "a vision tower",
    key: "mm_vision_tower",
    flag: "--vision-tower",
    files: &["config.json"],
};
pub(super) const AUDIO: Encoder = Encoder {
    label: "an audio encoder",
    key: "mm_audio_encoder",
    flag: "--audio-encoder",
    files: &["train.yaml", "global_cmvn"],
};

impl Folders {
    /// [`Error::Input`] where a folder is given: the synthetic `model` has none.
    pub(crate) fn refuse_for(&self, model: &str) -> Result<()> {
        for (Encoder { flag, .. }, folder) in [(&VISION, &self.vision), (&AUDIO, &self.audio)] {
            if let Some(folder) = folder {
                let folder = folder.display();
                bail_input!("{flag} {folder}: expected a checkpoint folder as the model, found {model}");
            }
        }
        Ok(())
    }

    /// [`Error::Input`] where a folder is given for an encoder that the checkpoint does not have.
    pub(super) fn check_encoders(&self, config: &ModelConfig, place: &Path) -> Result<()> {
        let (vision, audio) = (config.vision.is_some(), config.audio.is_some());
        for (encoder, folder, there) in [(&VISION, &self.vision, vision), (&AUDIO, &self.audio, audio)] {
            let Encoder { label, flag, .. } = encoder;
            if let (Some(folder), false) = (folder, there) {
                let (folder, place) = (folder.display(), place.display());
                bail_input!("{flag} {folder}: expected a checkpoint with {label}, found none in {place}");
            }
        }
        Ok(())
    }
}

/// The folder that the option gives, or that the config names.
pub(super) fn find(
    dir: &Path,
    json: &Value,
    encoder: &Encoder,
    option: Option<&Path>,
) -> Result<Option<PathBuf>> {
    let Encoder { key, flag, files, .. } = encoder;
    if let Some(folder) = option {
        let (shown, wanted) = (folder.display(), files.join(" or "));
        ensure_input!(folder.is_dir(), "{flag} {shown}: expected a folder with {wanted}, found no folder");
        // A folder that says nothing is not the one that was meant.
        let any = files.iter().any(|file| folder.join(file).is_file());
        ensure_input!(any, "{flag} {shown}: expected {wanted} in it, found none");
        return Ok(Some(folder.to_owned()));
    }
    let Some(name) = json.get(key).and_then(Value::as_str) else { return Ok(None) };
    let name = Path::new(name);
    let inside = name.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    let candidates = [inside.then(|| dir.join(name)), name.file_name().map(|base| dir.join(base))];
    Ok(candidates.into_iter().flatten().find(|path| path.is_dir() && path != dir))
}

/// What is assumed of the audio encoder where the config names its folder, and neither that nor `audio_config` says how
/// it attends: no shape tells that, and a wrong mask makes answers worse without an error.
pub(super) fn assumed_attention(json: &Value, place: &str) -> Option<String> {
    let Encoder { key, flag, .. } = AUDIO;
    let name = json.get(key)?.as_str()?;
    let stated = json.pointer("/audio_config/chunk_size").is_some_and(|size| !size.is_null());
    (!stated).then(|| {
        format!(
            "{place}: {key} names {name:?}, and no train.yaml of it was found: the audio encoder is taken to attend to all \
             frames of a sound, not in chunks; {flag} DIR says where the folder is, --audio-chunk how it attends"
        )
    })
}

/// What is assumed of the vision tower where the config names its folder, and nothing but shapes describes it.
pub(super) fn assumed_tower(json: &Value, place: &str) -> Option<String> {
    let Encoder { key, flag, .. } = VISION;
    let name = json.get(key)?.as_str()?;
    json.get("vision_config").is_none_or(Value::is_null).then(|| {
        format!(
            "{place}: {key} names {name:?}, and no config.json of it was found: the sizes of the vision tower are those of \
             its tensors; {flag} DIR says where the folder is"
        )
    })
}

/// `config.json` of the vision tower, if there is one, and its path.
pub(super) fn vision(folder: &Path) -> Result<Option<(Map<String, Value>, String)>> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    match super::open::read_json(&path)? {
        Value::Object(map) => Ok(Some((map, path.display().to_string()))),
        _ => bail_input!("{}: expected a JSON object, found something else", path.display()),
    }
}

/// `train.yaml` of the audio encoder in the keys of `audio_config`, if there is one, and its path.
pub(super) fn audio(folder: &Path) -> Result<Option<(Map<String, Value>, String)>> {
    let path = folder.join("train.yaml");
    if !path.is_file() {
        return Ok(None);
    }
    let shown = path.display();
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let docs = Yaml::load_from_str(&text)
        .map_err(|e| Error::input(format!("{shown}: not readable as YAML: {e}")))?;
    let mut leaves = Vec::new();
    for doc in &docs {
        collect(doc, "", &mut leaves);
    }
    Ok(Some((audio_fields(&leaves), shown.to_string())))
}

/// Dotted paths of all scalars.
fn collect<'a>(node: &'a Yaml<'_>, path: &str, out: &mut Vec<(String, &'a Scalar<'a>)>) {
    match node {
        Yaml::Value(scalar) => out.push((path.to_owned(), scalar)),
        Yaml::Mapping(map) => {
            for (key, value) in map {
                let Some(key) = key.as_str() else { continue };
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                collect(value, &path, out);
            }
        }
        _ => {}
    }
}

fn audio_fields(leaves: &[(String, &Scalar<'_>)]) -> Map<String, Value> {
    const TRANSFORMER: &str = "encoder_conf.para_conf.transformer.transformer";
    let find = |path: &str| leaves.iter().find(|(p, _)| p == path).map(|(_, scalar)| *scalar);
    let mut fields = Map::new();
    for (field, path) in [
        ("input_dim", "input_dim".to_owned()),
        ("hidden_size", format!("{TRANSFORMER}-attention-dim")),
        ("num_attention_heads", format!("{TRANSFORMER}-attention-heads")),
        ("intermediate_size", format!("{TRANSFORMER}-linear-units")),
        ("num_hidden_layers", format!("{TRANSFORMER}-num-blocks")),
        ("chunk_size", format!("{TRANSFORMER}-chunk_size")),
        ("left_chunks", format!("{TRANSFORMER}-left_chunks")),
    ] {
        let value = match find(&path) {
            Some(Scalar::Integer(x)) => Value::from(*x),
            Some(Scalar::FloatingPoint(x)) => Value::from(x.into_inner()),
            Some(Scalar::String(x)) => Value::from(x.as_ref()),
            Some(Scalar::Boolean(x)) => Value::from(*x),
            Some(Scalar::Null) | None => continue,
        };
        fields.insert(field.to_owned(), value);
    }
    // Trained with chunks of random sizes, up to all frames: then the size in the file is not in force, and the
    // encoder sees all frames at once.
    if matches!(find(&format!("{TRANSFORMER}-dynamic-chunks")), Some(Scalar::Boolean(true))) {
        fields.remove("chunk_size");
        fields.remove("left_chunks");
    }
    fields
}

/// Mean and inverse standard deviation of the filterbank from the sums in `global_cmvn`, if there is one.
pub(super) fn global_cmvn(folder: &Path, bins: usize) -> Result<Option<(PathBuf, [Vec<f32>; 2])>> {
    let path = folder.join("global_cmvn");
    if !path.is_file() {
        return Ok(None);
    }
    let json = super::open::read_json(&path)?;
    let sums = |key: &str| -> Result<Vec<f64>> {
        let found = json.get(key).and_then(Value::as_array);
        let values: Vec<f64> = found.into_iter().flatten().filter_map(Value::as_f64).collect();
        ensure_input!(
            values.len() == bins && found.is_some_and(|f| f.len() == bins),
            "{}: {key}: expected {bins} numbers, found {}",
            path.display(),
            values.len()
        );
        Ok(values)
    };
    let (mean, var) = (sums("mean_stat")?, sums("var_stat")?);
    let n = json.get("frame_num").and_then(Value::as_f64).unwrap_or(0.0);
    let counted = n > 0.0;
    ensure_input!(counted, "{}: frame_num: expected a number above 0, found {n}", path.display());
    let mean: Vec<f64> = mean.iter().map(|x| x / n).collect();
    let istd = var.iter().zip(&mean).map(|(x, m)| (1.0 / (x / n - m * m).max(1e-20).sqrt()) as f32).collect();
    Ok(Some((path, [mean.iter().map(|&x| x as f32).collect(), istd])))
}
