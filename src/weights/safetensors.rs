//! Memory-mapped safetensors: one file, or shards with an index.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde_json::Value;

use super::{Info, Source};
use crate::core::{DType, Error, Result};
use crate::{bail_input, ensure_input};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Tensors of one file or of all shards of a checkpoint.
pub struct Safetensors {
    /// The file or folder that was opened.
    path: PathBuf,
    files: Vec<Mapped>,
    tensors: Vec<Stored>,
    by_name: HashMap<String, usize>,
}

struct Mapped {
    name: String,
    map: Mmap,
}

struct Stored {
    name: String,
    info: Info,
    file: usize,
    begin: usize,
    end: usize,
}

impl Safetensors {
    /// A checkpoint folder with `model.safetensors`, or shards and `model.safetensors.index.json`.
    pub fn open_dir(dir: &Path) -> Result<Safetensors> {
        ensure_input!(dir.is_dir(), "{}: expected a checkpoint folder, found {}", dir.display(), what(dir));
        if dir.join(SINGLE).exists() {
            return Safetensors { path: dir.to_owned(), ..Safetensors::open_file(&dir.join(SINGLE))? }.done();
        }
        if dir.join(INDEX).exists() {
            return Safetensors::open_sharded(dir);
        }
        bail_input!("{}: expected {SINGLE} or {INDEX}, found {}", dir.display(), weights_in(dir));
    }

    /// One file by its path.
    pub fn open_file(path: &Path) -> Result<Safetensors> {
        let mut all =
            Safetensors { path: path.to_owned(), files: vec![], tensors: vec![], by_name: HashMap::new() };
        all.add_file(path, |_| true)?;
        all.done()
    }

    fn open_sharded(dir: &Path) -> Result<Safetensors> {
        let index = dir.join(INDEX);
        let shown = index.display();
        let text = std::fs::read(&index).map_err(|e| Error::io(&index, e))?;
        let json: Value = serde_json::from_slice(&text)
            .map_err(|e| Error::input(format!("{shown}: not readable as JSON: {e}")))?;
        let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
            bail_input!("{shown}: expected weight_map, a map of tensor to file; found none");
        };
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in map {
            let Some(file) = file.as_str() else {
                bail_input!("{shown}: {tensor}: expected a file name, found {file}");
            };
            let mut parts = Path::new(file).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            ensure_input!(plain, "{shown}: {tensor}: expected a file beside the index, found {file:?}");
            shards.entry(file).or_default().push(tensor);
        }
        ensure_input!(!shards.is_empty(), "{shown}: weight_map names no tensor");

        let mut all =
            Safetensors { path: dir.to_owned(), files: vec![], tensors: vec![], by_name: HashMap::new() };
        for (file, tensors) in shards {
            let path = dir.join(file);
            ensure_input!(
                path.exists(),
                "{}: the shard is absent; {INDEX} says that it holds {} tensors, {} among them",
                path.display(),
                tensors.len(),
                tensors[0]
            );
            all.add_file(&path, |name| map.get(name).and_then(Value::as_str) == Some(file))?;
            let found: std::collections::HashSet<&str> =
                all.tensors.iter().map(|t| t.name.as_str()).collect();
            if let Some(tensor) = tensors.iter().find(|t| !found.contains(**t)) {
                bail_input!("{tensor}: expected in {file} by {INDEX}, found no such tensor there");
            }
        }
        all.done()
    }

    fn add_file(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        ensure_input!(
            path.is_file(),
            "{}: expected a safetensors file, found {}",
            path.display(),
            what(path)
        );
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: the map is read-only and private; like every reader of mapped weights we rely on nobody cutting
        // the file while it is in use.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        check_length(path, &map)?;
        let (header, meta) = SafeTensors::read_metadata(&map).map_err(|e| explain(path, &map, e))?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let index = self.files.len();
        for tensor in meta.offset_keys() {
            let Some(t) = meta.info(&tensor).filter(|_| wanted(&tensor)) else { continue };
            let dtype = match t.dtype {
                Dtype::BF16 => Some(DType::BF16),
                Dtype::F16 => Some(DType::F16),
                Dtype::F32 => Some(DType::F32),
                _ => None,
            };
            let info = Info { dtype, stored_as: t.dtype.to_string().to_lowercase(), shape: t.shape.clone() };
            let data = 8 + header;
            let (begin, end) = (data + t.data_offsets.0, data + t.data_offsets.1);
            self.tensors.push(Stored { name: tensor, info, file: index, begin, end });
        }
        self.files.push(Mapped { name, map });
        Ok(())
    }

    fn done(mut self) -> Result<Safetensors> {
        self.by_name = self.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(self)
    }

    fn find(&self, name: &str) -> Option<&Stored> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

impl Source for Safetensors {
    fn names(&self) -> Vec<String> {
        self.tensors.iter().map(|t| t.name.clone()).collect()
    }

    fn info(&self, name: &str) -> Option<Info> {
        self.find(name).map(|t| t.info.clone())
    }

    fn bytes(&self, name: &str) -> Result<&[u8]> {
        match self.find(name) {
            Some(t) => Ok(&self.files[t.file].map[t.begin..t.end]),
            None => bail_input!("{name}: no such tensor in {}", self.describe()),
        }
    }

    fn place(&self, name: &str) -> String {
        self.find(name).map_or_else(|| self.describe(), |t| self.files[t.file].name.clone())
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// What stands where a file or folder was expected.
fn what(path: &Path) -> &'static str {
    match path {
        p if p.is_dir() => "a folder",
        p if p.exists() => "a file",
        _ => "nothing",
    }
}

/// What a folder holds instead of `model.safetensors`.
fn weights_in(dir: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map(|all| all.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.retain(|n| [".safetensors", ".bin", ".pt", ".pth", ".gguf"].iter().any(|end| n.ends_with(end)));
    names.sort();
    match names.as_slice() {
        [] => "no weights".to_owned(),
        [one] => format!("only {one}"),
        [one, .., last] => format!("only {one} to {last} ({} files of weights, no index)", names.len()),
    }
}

/// The file is at least as long as its first eight bytes say.
fn check_length(path: &Path, map: &[u8]) -> Result<()> {
    let shown = path.display();
    let Some((length, rest)) = map.split_first_chunk::<8>() else {
        bail_input!("{shown}: expected a header length of 8 bytes, found a file of {} bytes", map.len());
    };
    let length = u64::from_le_bytes(*length);
    ensure_input!(
        length <= rest.len() as u64,
        "{shown}: expected a header of {length} bytes after the first 8, found {}: truncated, or no safetensors file",
        rest.len()
    );
    Ok(())
}

/// What is wrong with a header, with the tensor and the numbers.
fn explain(path: &Path, map: &[u8], error: SafeTensorError) -> Error {
    use SafeTensorError::*;
    let shown = path.display();
    let detail = match &error {
        InvalidOffset(_) | TensorInvalidInfo | MetadataIncompleteBuffer => detail(map),
        _ => None,
    };
    Error::input(match detail {
        Some(detail) => format!("{shown}: {detail}"),
        None => format!("{shown}: expected a safetensors header, found: {error}"),
    })
}

/// Walks through the tensors by offset up to the first that cannot be.
fn detail(map: &[u8]) -> Option<String> {
    let (length, rest) = map.split_first_chunk::<8>()?;
    let (header, data) = rest.split_at_checked(u64::from_le_bytes(*length) as usize)?;
    let header: Value = serde_json::from_slice(header).ok()?;
    let mut tensors = Vec::new();
    for (name, info) in header.as_object()?.iter().filter(|(name, _)| *name != "__metadata__") {
        let at = |i: usize| info.get("data_offsets")?.get(i)?.as_u64();
        let dtype: Dtype = serde_json::from_value(info.get("dtype")?.clone()).ok()?;
        let shape: Vec<u64> = serde_json::from_value(info.get("shape")?.clone()).ok()?;
        let bits = shape.iter().try_fold(dtype.bitsize() as u64, |n, d| n.checked_mul(*d))?;
        tensors.push((
            at(0)?,
            at(1)?,
            bits / 8,
            name,
            format!("{shape:?} {}", dtype.to_string().to_lowercase()),
        ));
    }
    tensors.sort();
    let mut last: Option<(u64, &str)> = None;
    for (begin, end, bytes, name, brief) in &tensors {
        let (free, before) = last.unwrap_or((0, "the header"));
        if begin < &free {
            return Some(format!(
                "{name}: data {begin}..{end} overlaps that of {before}, which ends at {free}"
            ));
        }
        if begin > &free {
            return Some(format!(
                "{name}: data {begin}..{end} leaves a gap after {before}, which ends at {free}"
            ));
        }
        if end.checked_sub(*begin) != Some(*bytes) {
            return Some(format!("{name}: expected {bytes} bytes for {brief}, found data {begin}..{end}"));
        }
        last = Some((*end, name));
    }
    let (end, name) = last?;
    let found = data.len() as u64;
    (end != found).then(|| {
        let how = if end > found { "truncated" } else { "too long" };
        format!("expected {end} bytes of data (up to {name}), found {found}: {how}")
    })
}
