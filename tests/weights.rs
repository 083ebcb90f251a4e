//! Checkpoints on disk: written and read back, cut into shards, read through recipes, inspected, completed from the
//! encoders' folders.

#[path = "weights/broken_files.rs"]
mod broken_files;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use vivace::core::{DType, Error, Recipe};
use vivace::engine::write_synthetic;
use vivace::models::config::{
    Folders, expected_tensors, inspect, open_model, open_model_with, open_unchecked,
};
use vivace::weights::{Safetensors, Source as _, SynthSource, convert, host_weight, pack, write_checkpoint};

fn fixture(name: &str) -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    PathBuf::from(root).join("tests/fixtures").join(name)
}

/// The synthetic checkpoint of `tiny`, in files of at most `shard_bytes`.
fn tiny(shard_bytes: u64) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("checkpoint");
    let (mut last, mut calls) = ((0, 0), 0);
    write_synthetic(&fixture("tiny.json"), &out, shard_bytes, &mut |done, total| {
        assert!(done >= last.0 && done <= total);
        (last, calls) = ((done, total), calls + 1);
    })
    .unwrap();
    assert!(calls > 0 && last.0 == last.1, "{last:?}");
    (dir, out)
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn synthetic_weights_are_the_same_in_memory_and_on_disk() {
    let memory = open_model(&format!("synthetic:{}", fixture("tiny.json").display())).unwrap();
    for (shard_bytes, shards) in [(u64::MAX, 1), (5_000_000, 7)] {
        let (parent, out) = tiny(shard_bytes);
        assert_eq!(files(parent.path()), ["checkpoint"]);
        let names = files(&out);
        let found = names.iter().filter(|n| n.ends_with(".safetensors")).count();
        assert_eq!(found, shards, "{names:?}");
        for name in names.iter().filter(|n| n.ends_with(".safetensors")) {
            let bytes = std::fs::metadata(out.join(name)).unwrap().len();
            assert!(shards == 1 || bytes < 5_100_000, "{name}: {bytes}");
        }

        let disk = open_model(out.to_str().unwrap()).unwrap();
        assert_eq!(disk.config, memory.config);
        assert_eq!((disk.dir, memory.dir.as_ref()), (Some(out), None));
        let expected = expected_tensors(&disk.config);
        assert_eq!(disk.source.names().len(), expected.len());
        for t in expected {
            assert_eq!(disk.source.info(&t.name).unwrap().shape, t.shape, "{}", t.name);
            assert!(
                disk.source.bytes(&t.name).unwrap() == memory.source.bytes(&t.name).unwrap(),
                "{}",
                t.name
            );
            assert!(disk.source.synth(&t.name).is_none() && memory.source.synth(&t.name).is_some());
        }
    }
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left_behind() {
    let (_parent, out) = tiny(u64::MAX);
    let before = files(&out);
    let again = write_synthetic(&fixture("tiny.json"), &out, u64::MAX, &mut |_, _| {}).unwrap_err();
    assert_eq!(
        again.to_string(),
        format!(
            "{}: expected a new or empty folder to write a checkpoint into, found files in it",
            out.display()
        )
    );
    assert_eq!(files(&out), before);

    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("bad.json"), r#"{"model_type": "vita-Qwen2", "hidden_size": 0}"#).unwrap();
    let out = dir.path().join("out");
    write_synthetic(&dir.path().join("bad.json"), &out, u64::MAX, &mut |_, _| {}).unwrap_err();
    let absent = write_synthetic(&dir.path().join("no.json"), &out, u64::MAX, &mut |_, _| {}).unwrap_err();
    assert!(matches!(absent, Error::Io { .. }) && absent.to_string().contains("no.json"), "{absent}");
    // The folder stands in a file's way.
    let blocked = dir.path().join("bad.json/out");
    write_synthetic(&fixture("tiny.json"), &blocked, u64::MAX, &mut |_, _| {}).unwrap_err();
    assert_eq!(files(dir.path()), ["bad.json"]);

    std::fs::create_dir(&out).unwrap();
    write_synthetic(&fixture("tiny.json"), &out, u64::MAX, &mut |_, _| {}).unwrap();
    assert_eq!(files(&out), ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn weights_read_through_recipes_are_the_packed_ones() {
    let (_parent, out) = tiny(5_000_000);
    let source = open_model(out.to_str().unwrap()).unwrap().source;
    let plain = |name: &str, shape: &[usize]| {
        Recipe::plain(&format!("model.layers.1.{name}.weight"), DType::BF16, shape)
    };
    let (q, k, v) = (
        plain("self_attn.q_proj", &[896, 896]),
        plain("self_attn.k_proj", &[128, 896]),
        plain("self_attn.v_proj", &[128, 896]),
    );
    let (gate, up) = (plain("mlp.gate_proj", &[1280, 896]), plain("mlp.up_proj", &[1280, 896]));
    let tower = "model.vision_tower.vision_tower.embeddings.patch_embedding.weight";
    let conv = "model.audio_encoder.adpter.conv1d2.weight";
    let recipes = [
        Recipe::stack(&[&q, &k, &v]).unwrap(),
        Recipe::interleave(&gate, &up, 8).unwrap(),
        Recipe::padded_cols(tower, DType::BF16, &[128, 3, 14, 14], 592),
        Recipe::permuted(conv, DType::F16, &[256, 128, 5], &[0, 2, 1], &[256, 640]),
    ];
    for r in recipes {
        let mut bytes = vec![0xff; r.bytes() as usize];
        pack(&r, source.as_ref(), &mut bytes).unwrap();
        let mut packed = vec![0.0; r.shape.len()];
        convert::widen(r.dtype, &bytes, &mut packed);
        let w = host_weight(&r, &source).unwrap();
        assert!(w.to_f32() == packed, "{}", r.name());
        let (cols, at) = (r.shape.cols(), r.shape.rows() / 3);
        let mut rows = vec![f32::NAN; 17 * cols];
        w.read_rows(at..at + 17, &mut rows);
        assert!(rows == packed[at * cols..(at + 17) * cols], "{}", r.name());
    }
    let wrong = host_weight(&plain("mlp.gate_proj", &[1280, 900]), &source).err().unwrap().to_string();
    let place = source.place("model.layers.1.mlp.gate_proj.weight");
    assert!(place.starts_with("model-0000") && place.ends_with("-of-00007.safetensors"), "{place}");
    assert_eq!(
        wrong,
        format!(
            "model.layers.1.mlp.gate_proj.weight: expected [1280, 900], found [1280, 896] bf16 in {place}"
        )
    );
}

/// Rewrites a checkpoint of one file without some tensors and with other bytes.
fn rewrite(out: &Path, keep: impl Fn(&str) -> bool, change: impl Fn(&str, &mut Vec<u8>)) {
    rewrite_with(out, keep, change, &[]);
}

/// As [`rewrite`], with tensors of no model behind the others.
fn rewrite_with(out: &Path, keep: impl Fn(&str) -> bool, change: impl Fn(&str, &mut Vec<u8>), more: &[&str]) {
    let path = out.join("model.safetensors");
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    {
        let old = Safetensors::open_file(&path).unwrap();
        for name in old.names().into_iter().filter(|n| keep(n)) {
            let info = old.info(&name).unwrap();
            let mut bytes = old.bytes(&name).unwrap().to_vec();
            change(&name, &mut bytes);
            let at = [data.len(), data.len() + bytes.len()];
            data.extend(bytes);
            let json =
                json!({ "dtype": info.stored_as.to_uppercase(), "shape": info.shape, "data_offsets": at });
            header.insert(name, json);
        }
    }
    for name in more {
        let at = [data.len(), data.len() + 4];
        data.extend([0; 4]);
        header.insert(name.to_string(), json!({ "dtype": "F32", "shape": [1], "data_offsets": at }));
    }
    let header = Value::from(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(path, bytes).unwrap();
}

fn change_config(out: &Path, change: impl FnOnce(&mut Value)) {
    let path = out.join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn inspection_lists_what_is_wrong() {
    let (_parent, out) = tiny(u64::MAX);
    let spec = out.to_str().unwrap();
    let opened = open_model(spec).unwrap();
    let mut report = inspect(opened.source.as_ref(), &opened.config);
    report.check_finite(opened.source.as_ref(), &opened.config, &mut |_, _| {}).unwrap();
    assert!(report.is_ok());
    let stored = std::fs::metadata(out.join("model.safetensors")).unwrap().len();
    assert!(report.bytes() == 2 * report.params() && report.bytes() < stored);
    assert!(report.to_string().contains("complete"), "{report}");
    drop(opened);

    rewrite(
        &out,
        |name| name != "model.norm.weight",
        |name, bytes| {
            if name == "model.layers.0.mlp.up_proj.weight" {
                bytes[2 * 4321..][..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
            }
        },
    );
    change_config(&out, |json| {
        json["audio_config"]["intermediate_size"] = 192.into();
        json["tie_word_embeddings"] = true.into();
    });
    let opened = open_unchecked(spec).unwrap();
    let mut report = inspect(opened.source.as_ref(), &opened.config);
    report.check_finite(opened.source.as_ref(), &opened.config, &mut |_, _| {}).unwrap();
    assert_eq!(report.missing.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["model.norm.weight"]);
    assert_eq!(report.unexpected.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["lm_head.weight"]);
    assert_eq!(report.misshapen.len(), 6); // w_1 weight and bias, w_2 weight, in two layers
    let text = report.to_string();
    for line in [
        "missing: 1\n  model.norm.weight: expected [896], found no such tensor\n",
        "enc.1.encoders.0.feed_forward.w_1.bias: expected [192], found [256] bf16 in model.safetensors\n",
        "unexpected (ignored): 1\n  lm_head.weight: [515, 896] bf16\n",
        "model.layers.0.mlp.up_proj.weight: expected finite values, found NaN at element 4321\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["missing"], json!([{ "name": "model.norm.weight", "expected": [896] }]));
    assert_eq!(json["parts"][0]["part"], "text");
    assert_eq!(json["non_finite"][0]["index"], 4321);
    let why = open_model(spec).err().unwrap().to_string();
    assert!(why.contains("w_1.weight: expected [192, 128], found [256, 128] bf16"), "{why}");
    assert!(why.ends_with("; and 4 more (vivace inspect lists them)"), "{why}");
}

#[test]
fn tensors_that_no_part_wants_are_reported() {
    let (_parent, out) = tiny(u64::MAX);
    let ignored = || {
        let opened = open_model(out.to_str().unwrap()).unwrap();
        inspect(opened.source.as_ref(), &opened.config).ignored()
    };
    let with = |more: &[&str]| rewrite_with(&out, |_| true, |_, _| {}, more);
    assert_eq!(ignored(), None);
    let known = "model.layers.0.self_attn.rotary_emb.inv_freq";
    with(&[known]);
    assert_eq!(ignored(), None);
    with(&["a"]);
    let at = format!("{}: ", out.display());
    assert_eq!(ignored().unwrap(), at.clone() + "a tensor that the model does not want is ignored: a");
    with(&["b", "c", "d"]);
    assert_eq!(
        ignored().unwrap(),
        at + "4 tensors that the model does not want are ignored: a, b, c, ..; vivace inspect lists them"
    );
}

#[test]
fn encoders_described_by_their_folders_and_shapes() {
    let (parent, out) = tiny(u64::MAX);
    let spec = out.to_str().unwrap();
    let want = open_model(spec).unwrap().config;
    rewrite(&out, |name| !name.contains("global_cmvn"), |_, _| {});
    change_config(&out, |json| {
        let json = json.as_object_mut().unwrap();
        json.remove("vision_config");
        json.remove("audio_config");
        json["vocab_size"] = 152064.into();
        json.insert("mm_vision_tower".into(), "OpenGVLab/tower".into());
        json.insert("mm_audio_encoder".into(), "/home/somebody/models/ears".into());
    });
    let why = open_model(spec).err().unwrap().to_string();
    assert!(why.contains("global_cmvn.mean: expected [80], found no such tensor"), "{why}");

    let (tower, ears) = (out.join("tower"), out.join("ears"));
    std::fs::create_dir(&tower).unwrap();
    std::fs::create_dir(&ears).unwrap();
    std::fs::write(tower.join("config.json"), r#"{"layer_norm_eps": 1e-5, "model_type": "intern_vit_6b"}"#)
        .unwrap();
    let yaml = |dynamic: bool| {
        format!(
            "input_dim: 80\nencoder_conf:\n  overview_conf:\n    encoder-input-dim: 80\n  para_conf:\n    \
             transformer:\n      transformer-attention-heads: 2\n      transformer-chunk_size: 4\n      \
             transformer-left_chunks: 16\n      transformer-dynamic-chunks: {dynamic}\n"
        )
    };
    std::fs::write(ears.join("train.yaml"), yaml(false)).unwrap();
    let (mean, var): (Vec<f64>, Vec<f64>) =
        (0..80).map(|i| (10.0 * i as f64, 10.0 * (i * i) as f64 + 2.5 * f64::from(i > 0))).unzip();
    let cmvn = json!({ "mean_stat": mean, "var_stat": var, "frame_num": 10 }).to_string();
    std::fs::write(ears.join("global_cmvn"), cmvn).unwrap();

    let opened = open_model(spec).unwrap();
    let (vision, audio) = (opened.config.vision.clone().unwrap(), opened.config.audio.clone().unwrap());
    assert_eq!((vision.layer_norm_eps, audio.chunk_size, audio.left_chunks), (1e-5, 4, 16));
    assert_eq!(opened.config.text, want.text);
    let (v, a) = (want.vision.clone().unwrap(), want.audio.clone().unwrap());
    assert_eq!((vision.hidden_size, vision.image_size), (v.hidden_size, v.image_size));
    assert_eq!((audio.hidden_size, audio.num_hidden_layers), (a.hidden_size, a.num_hidden_layers));
    let read = |what: &str| {
        let name = format!("model.audio_encoder.encoder.global_cmvn.{what}");
        host_weight(&Recipe::plain(&name, DType::F32, &[80]), &opened.source).unwrap().to_f32()
    };
    assert_eq!(read("mean")[..3], [0.0, 1.0, 2.0]);
    assert_eq!(read("istd")[..3], [1e10, 2.0, 2.0]);

    // Trained with chunks of random sizes: full attention.
    std::fs::write(ears.join("train.yaml"), yaml(true)).unwrap();
    assert_eq!(open_model(spec).unwrap().config.audio.unwrap(), a);

    // Somewhere else, by an option.
    let elsewhere = parent.path().join("elsewhere");
    std::fs::rename(&ears, &elsewhere).unwrap();
    assert!(open_model(spec).is_err());
    let folders = Folders { audio: Some(elsewhere.clone()), ..Folders::default() };
    open_model_with(spec, &folders).unwrap();

    std::fs::write(elsewhere.join("global_cmvn"), r#"{"mean_stat": [1], "var_stat": [1], "frame_num": 1}"#)
        .unwrap();
    let why = open_model_with(spec, &folders).err().unwrap().to_string();
    assert!(why.ends_with("global_cmvn: mean_stat: expected 80 numbers, found 1"), "{why}");
    std::fs::write(elsewhere.join("train.yaml"), "a: [").unwrap();
    let why = open_model_with(spec, &folders).err().unwrap().to_string();
    assert!(why.contains("train.yaml: not readable as YAML: "), "{why}");
}

const POSITIONS: &str = "model.vision_tower.vision_tower.embeddings.position_embedding";

#[test]
fn positions_are_interpolated_to_the_tiles_of_the_config() {
    let (_parent, out) = tiny(u64::MAX);
    let spec = out.to_str().unwrap();
    let read = |rows: usize| {
        let opened = open_model(spec).unwrap();
        let recipe = Recipe::plain(POSITIONS, DType::F32, &[1, rows, 128]);
        (host_weight(&recipe, &opened.source).unwrap().to_f32(), opened)
    };
    let stored = read(17).0;
    let resized = |size: usize| change_config(&out, |json| json["vision_config"]["image_size"] = size.into());

    // Half the size: in the middle between two neighbours, of which those beyond the border are the first.
    resized(28);
    let (small, opened) = read(5);
    assert_eq!(small[..128], stored[..128], "the row of the class token");
    let weights = [0.59375 - 0.09375, 0.59375, -0.09375];
    for c in 0..128 {
        let row = |y: usize| (0..3).map(|x| weights[x] * stored[(1 + 4 * y + x) * 128 + c]).sum::<f32>();
        let want: f32 = (0..3).map(|y| weights[y] * row(y)).sum();
        let found = small[128 + c];
        assert!((want - found).abs() <= want.abs() / 256.0, "{c}: {found}, not {want}");
        assert_eq!(found, DType::BF16.round(found));
    }
    assert_eq!(opened.config.vision.unwrap().image_size, 28);

    resized(84);
    let (large, opened) = read(37);
    assert_eq!(large[..128], stored[..128]);
    let mut report = inspect(opened.source.as_ref(), &opened.config);
    report.check_finite(opened.source.as_ref(), &opened.config, &mut |_, _| {}).unwrap();
    assert!(report.is_ok() && report.unexpected.is_empty(), "{report}");
    assert_eq!(opened.source.info(POSITIONS).unwrap().brief(), "[1, 37, 128] bf16");
    assert_eq!(opened.source.place(POSITIONS), "model.safetensors, interpolated");

    // Not to any size: memory stays in proportion to the files.
    resized(34 * 14);
    let why = open_model(spec).err().unwrap().to_string();
    let part = "position_embedding: expected [1, 1157, 128], found [1, 17, 128] bf16 in model.safetensors";
    assert!(why.contains(part), "{why}");
}

#[test]
fn positions_of_no_square_grid_are_of_the_wrong_shape() {
    let (_parent, out) = tiny(u64::MAX);
    let config = open_model(out.to_str().unwrap()).unwrap().config;
    let tensors = expected_tensors(&config).into_iter().map(|t| match t.name == POSITIONS {
        true => (t.name, vec![1, 18, 128]),
        false => (t.name, t.shape),
    });
    let source = SynthSource::new(0, DType::BF16, tensors.collect());
    let dir = TempDir::new().unwrap();
    for (size, wanted) in [(56, 17), (84, 37)] {
        change_config(&out, |json| json["vision_config"]["image_size"] = size.into());
        let json = std::fs::read(out.join("config.json")).unwrap();
        let odd = dir.path().join(size.to_string());
        write_checkpoint(&[("config.json", &json)], &source, &odd, u64::MAX, &mut |_, _| {}).unwrap();
        let why = open_model(odd.to_str().unwrap()).err().unwrap().to_string();
        let found = "found [1, 18, 128] bf16 in model.safetensors";
        assert!(why.ends_with(&format!("{POSITIONS}: expected [1, {wanted}, 128], {found}")), "{why}");
    }
}

#[test]
fn a_prompt_before_sounds_is_found_by_its_tensor() {
    let (_parent, out) = tiny(u64::MAX);
    change_config(&out, |json| {
        json["audio_prompt_finetune"] = true.into();
        json["audio_prompt_num"] = 5.into();
    });
    let why = open_model(out.to_str().unwrap()).err().unwrap().to_string();
    assert!(
        why.ends_with(
            "model.audio_encoder.prompt_embeddings.weight: expected [5, 896], found no such tensor"
        ),
        "{why}"
    );
    let spec = format!("synthetic:{}", out.join("config.json").display());
    let opened = open_model(&spec).unwrap();
    assert_eq!(opened.config.audio.unwrap().prompt_rows, 5);
    assert!(opened.source.info("model.audio_encoder.prompt_embeddings.weight").is_some());
}
