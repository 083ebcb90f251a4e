//! Files that a download or a converter broke: each gets a message with file, tensor and numbers.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use vivace::core::{DType, Recipe};
use vivace::weights::{Safetensors, Source, host_weight};

/// A safetensors file of `tensors` (name, type, shape, begin, end) over `data` bytes of zeros.
fn file(path: &Path, tensors: &[(&str, &str, &[usize], usize, usize)], data: usize) {
    let mut header = serde_json::Map::new();
    for (name, dtype, shape, begin, end) in tensors {
        header
            .insert((*name).into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }));
    }
    let header = Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    std::fs::write(path, bytes).unwrap();
}

/// The message of a checkpoint that does not open, without the folder's name.
fn message(dir: &TempDir) -> String {
    let error = Safetensors::open_dir(dir.path()).err().expect("an error");
    assert_eq!(error.exit_code(), 2);
    error
        .to_string()
        .replace(&format!("{}/", dir.path().display()), "")
        .replace(&dir.path().display().to_string(), "DIR")
}

fn single(tensors: &[(&str, &str, &[usize], usize, usize)], data: usize) -> TempDir {
    let dir = TempDir::new().unwrap();
    file(&dir.path().join("model.safetensors"), tensors, data);
    dir
}

#[test]
fn files_that_are_cut_or_inconsistent() {
    let a: &[(&str, &str, &[usize], usize, usize)] = &[("a", "BF16", &[2, 3], 0, 12)];
    assert!(Safetensors::open_dir(single(a, 12).path()).is_ok());
    assert_eq!(
        message(&single(a, 11)),
        "model.safetensors: expected 12 bytes of data (up to a), found 11: truncated"
    );
    assert_eq!(
        message(&single(a, 13)),
        "model.safetensors: expected 12 bytes of data (up to a), found 13: too long"
    );
    assert_eq!(
        message(&single(&[("a", "BF16", &[2, 4], 0, 12)], 12)),
        "model.safetensors: a: expected 16 bytes for [2, 4] bf16, found data 0..12"
    );
    assert_eq!(
        message(&single(&[("a", "F32", &[3], 0, 12), ("b", "F16", &[4], 8, 16)], 16)),
        "model.safetensors: b: data 8..16 overlaps that of a, which ends at 12"
    );
    assert_eq!(
        message(&single(&[("a", "F32", &[3], 0, 12), ("b", "F16", &[4], 14, 22)], 22)),
        "model.safetensors: b: data 14..22 leaves a gap after a, which ends at 12"
    );
    let unknown = message(&single(&[("a", "Q4_K", &[3], 0, 12)], 12));
    assert!(unknown.starts_with("model.safetensors: expected a safetensors header, found: "), "{unknown}");
    assert!(unknown.contains("Q4_K"), "{unknown}");

    let dir = TempDir::new().unwrap();
    let write = |bytes: &[u8]| std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    write(b"");
    assert_eq!(
        message(&dir),
        "model.safetensors: expected a header length of 8 bytes, found a file of 0 bytes"
    );
    write(&[1, 2, 3]);
    assert!(message(&dir).ends_with("found a file of 3 bytes"));
    write(&[0xff; 40]);
    assert_eq!(
        message(&dir),
        "model.safetensors: expected a header of 18446744073709551615 bytes after the first 8, found 32: \
         truncated, or no safetensors file"
    );
    write(&[&9u64.to_le_bytes()[..], b"{\"a\": 1}x"].concat());
    assert!(message(&dir).starts_with("model.safetensors: expected a safetensors header, found: "));
}

#[test]
fn folders_without_weights() {
    let dir = TempDir::new().unwrap();
    assert_eq!(
        message(&dir),
        "DIR: expected model.safetensors or model.safetensors.index.json, found no weights"
    );
    std::fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(message(&dir).ends_with("found only pytorch_model.bin"));
    for n in 1..=3 {
        std::fs::write(dir.path().join(format!("model-0000{n}-of-00003.safetensors")), b"x").unwrap();
    }
    assert!(message(&dir).ends_with(
        "only model-00001-of-00003.safetensors to pytorch_model.bin (4 files of weights, no index)"
    ));
    let nowhere = Safetensors::open_dir(&dir.path().join("no")).err().unwrap().to_string();
    assert!(nowhere.ends_with("no: expected a checkpoint folder, found nothing"), "{nowhere}");
}

#[test]
fn indices_that_do_not_fit_their_shards() {
    let dir = TempDir::new().unwrap();
    let shard = |n: usize| dir.path().join(format!("model-0000{n}-of-00002.safetensors"));
    let index = |map: Value| {
        let json = json!({ "weight_map": map }).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), json).unwrap();
    };
    file(&shard(1), &[("a", "F32", &[3], 0, 12), ("spare", "F32", &[1], 12, 16)], 16);
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    index(json!({ "a": one, "b": two, "c": two }));
    assert_eq!(
        message(&dir),
        "model-00002-of-00002.safetensors: the shard is absent; model.safetensors.index.json says that it holds \
         2 tensors, b among them"
    );
    file(&shard(2), &[("b", "F32", &[3], 0, 12)], 12);
    assert_eq!(
        message(&dir),
        "c: expected in model-00002-of-00002.safetensors by model.safetensors.index.json, found no such tensor there"
    );
    index(json!({ "a": one, "b": two }));
    let all = Safetensors::open_dir(dir.path()).unwrap();
    assert_eq!(all.names(), ["a", "b"]);
    assert_eq!((all.place("b").as_str(), all.bytes("b").unwrap().len()), (two, 12));

    index(json!({ "a": "../elsewhere.safetensors" }));
    assert_eq!(
        message(&dir),
        "model.safetensors.index.json: a: expected a file beside the index, found \"../elsewhere.safetensors\""
    );
    index(json!({ "a": 1 }));
    assert_eq!(message(&dir), "model.safetensors.index.json: a: expected a file name, found 1");
    index(json!({}));
    assert_eq!(message(&dir), "model.safetensors.index.json: weight_map names no tensor");
    index(Value::Null);
    assert_eq!(
        message(&dir),
        "model.safetensors.index.json: expected weight_map, a map of tensor to file; found none"
    );
}

#[test]
fn a_tensor_of_another_type_is_only_an_error_when_it_is_wanted() {
    let dir = single(&[("ids", "I64", &[2], 0, 16), ("w", "F16", &[2], 16, 20)], 20);
    let source: Arc<dyn Source> = Arc::new(Safetensors::open_dir(dir.path()).unwrap());
    assert_eq!(source.info("ids").unwrap().brief(), "[2] i64");
    assert!(host_weight(&Recipe::plain("w", DType::F32, &[2]), &source).is_ok());
    let why = host_weight(&Recipe::plain("ids", DType::F32, &[2]), &source).err().unwrap();
    assert_eq!(why.to_string(), "ids: expected bf16, f16 or f32, found i64 in model.safetensors");
}
