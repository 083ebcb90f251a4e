//! Synthetic checkpoints on disk.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{SynthSource, SynthSpec};
use crate::core::{DType, Error, Result};
use crate::ensure_input;

/// Where public checkpoints are cut.
pub const SHARD_BYTES: u64 = 4_000_000_000;

/// Bytes that are filled while the ones before are written.
const PIECE: usize = 32 << 20;

/// Writes `files` (name, content: the config, the tokenizer) and the weights into the new or empty folder `out_dir`:
/// one `model.safetensors`, or shards of at most `shard_bytes` and an index. `progress(done, total)` is in bytes.
///
/// Everything is written beside `out_dir` first and renamed at the end: after an error there is nothing.
pub fn write_checkpoint(
    files: &[(&str, &[u8])],
    weights: &SynthSource,
    out_dir: &Path,
    shard_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    check_empty(out_dir)?;
    let part = PartDir::create(out_dir)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = part.path.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::io(&path, e))
    };
    files.iter().try_for_each(|(name, content)| write(name, content))?;

    let shards = split(weights, shard_bytes);
    let total: u64 = shards.iter().flatten().map(|t| t.bytes).sum();
    let mut done = 0;
    let mut map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        map.extend(shard.iter().map(|t| (t.name.clone(), Value::from(name.as_str()))));
        write_shard(&part.path.join(&name), weights.dtype(), shard, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })?;
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write("model.safetensors.index.json", format!("{index:#}\n").as_bytes())?;
    }
    part.become_dir(out_dir)
}

fn check_empty(dir: &Path) -> Result<()> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => ensure_input!(
            entries.next().is_none(),
            "{}: expected a new or empty folder to write a checkpoint into, found files in it",
            dir.display()
        ),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(dir, e)),
    }
    Ok(())
}

/// The folder that becomes the checkpoint; removed unless it did.
struct PartDir {
    path: PathBuf,
    kept: bool,
}

impl PartDir {
    fn create(out: &Path) -> Result<PartDir> {
        let Some(name) = out.file_name() else {
            crate::bail_input!("{}: expected the name of a folder", out.display());
        };
        let parent = match out.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        let path = parent.join(format!(".{}.part-{}", name.to_string_lossy(), std::process::id()));
        std::fs::create_dir(&path).map_err(|e| Error::io(&path, e))?;
        Ok(PartDir { path, kept: false })
    }

    fn become_dir(mut self, out: &Path) -> Result<()> {
        if out.exists() {
            std::fs::remove_dir(out).map_err(|e| Error::io(out, e))?;
        }
        std::fs::rename(&self.path, out).map_err(|e| Error::io(out, e))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for PartDir {
    fn drop(&mut self) {
        if !self.kept
            && let Err(e) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!("{}: not removed: {e}", self.path.display());
        }
    }
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    bytes: u64,
    spec: SynthSpec,
}

/// The tensors in order, cut so that no shard is above `limit`, single tensors excepted.
fn split(weights: &SynthSource, limit: u64) -> Vec<Vec<Tensor>> {
    let mut shards: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut size = 0;
    for (name, shape) in weights.tensors() {
        let bytes = (shape.iter().product::<usize>() * weights.dtype().bytes()) as u64;
        let spec = super::spec_for(weights.seed(), name, shape);
        if size > 0 && size + bytes > limit {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes;
        let tensor = Tensor { name: name.clone(), shape: shape.clone(), bytes, spec };
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

fn write_shard(path: &Path, dtype: DType, tensors: &[Tensor], written: &mut dyn FnMut(u64)) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut file = File::create_new(path).map_err(io)?;
    let header = header(dtype, tensors);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(header.as_bytes()).map_err(io)?;

    // Two buffers: one is filled on all threads while the other is written.
    let (mut next, mut full) = (Vec::new(), Vec::new());
    for t in tensors {
        let elements = PIECE / dtype.bytes();
        let total = t.bytes as usize / dtype.bytes();
        for first in (0..total).step_by(elements) {
            next.resize(elements.min(total - first) * dtype.bytes(), 0);
            let (done, ()) =
                rayon::join(|| file.write_all(&full), || t.spec.fill(dtype, first as u64, &mut next));
            done.map_err(io)?;
            written(full.len() as u64);
            std::mem::swap(&mut next, &mut full);
        }
    }
    file.write_all(&full).map_err(io)?;
    file.flush().map_err(io)?;
    written(full.len() as u64);
    Ok(())
}

/// The JSON header, padded with spaces to a multiple of eight bytes as the format asks.
fn header(dtype: DType, tensors: &[Tensor]) -> String {
    let mut map = Map::new();
    map.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut at = 0;
    for t in tensors {
        let end = at + t.bytes;
        let info = json!({
            "dtype": dtype.name().to_uppercase(),
            "shape": t.shape,
            "data_offsets": [at, end],
        });
        map.insert(t.name.clone(), info);
        at = end;
    }
    let mut header = Value::Object(map).to_string();
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    header
}
