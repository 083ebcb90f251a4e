//! What cannot be used is named, with what was expected; nothing is left behind.

use std::path::Path;

use super::*;

#[test]
fn flags_out_of_range() {
    for (flags, parts) in [
        (
            &["--temperature=-1"][..],
            &["temperature: 0 (greedy), or 0.000001 to 1000000 expected, got -1"][..],
        ),
        (&["--temperature", "NaN"], &["temperature: 0 (greedy), or 0.000001 to 1000000 expected, got NaN"]),
        (
            &["--temperature", "1e-38"],
            &["temperature: 0 (greedy), or 0.000001 to 1000000 expected, got 0.0000"],
        ),
        (&["--top-p", "0"], &["top_p: above 0 and up to 1 expected, got 0"]),
        (&["--repetition-penalty", "0"], &["repetition_penalty: 0.01 to 100 expected, got 0"]),
        (&["--dither=-1"], &["--dither: 0 or more expected, got -1"]),
        (&["--top-k", "many"], &["--top-k", "many"]),
        (&["--max-new-tokens", "0"], &["--max-new-tokens", "above 0 expected"]),
        (&["--device", "tpu"], &["--device", "auto, cpu or cuda:N expected, got \"tpu\""]),
        (&["--no-fuse", "everything"], &["--no-fuse everything: no such rule; there are: all, "]),
        (&["--answers", "0", "--temperature", "1"], &["answers: 1 to 16 expected, got 0"]),
        (&["--answers", "17", "--temperature", "1"], &["answers: 1 to 16 expected, got 17"]),
        (
            &["--answers", "2"],
            &["2 answers: at temperature 0 every answer is the same; a temperature above 0"],
        ),
        (&["--answers", "2", "--profile"], &["--answers", "--profile"]),
        (&["--stop", ""], &["--stop"]),
        (&["--video-frames"], &["--image"]),
        (&["--sing"], &["--sing"]),
    ] {
        let model = tiny();
        vivace(&[&["run", "--model", &model, "--prompt", "hi"], flags].concat()).refused(2, parts);
    }
    run(&[]).refused(2, &["nothing to answer: give --prompt, --image or --audio"]);
    run(&["--prompt", ""]).refused(2, &["nothing to answer"]);
    run(&["--prompt", "hi", "--context", "99999"]).refused(2, &["--context"]);
    vivace(&["run", "--prompt", "hi"]).refused(2, &["--model"]);
    vivace(&["verify", "a.json", "b.safetensors", "--max-rel", "NaN"]).refused(2, &["--max-rel"]);
    vivace(&["bench", "--device", "cpu", "--filter", "lunch"])
        .refused(2, &["--filter lunch: nothing matches"]);
    for seconds in ["0", "-1", "61", "NaN", "soon"] {
        vivace(&["bench", "--device", "cpu", &format!("--sustain={seconds}")])
            .refused(2, &[seconds, "--sustain", "a number of seconds above 0 and up to 60 expected"]);
    }
}

#[test]
fn a_gpu_that_is_not_there() {
    let model = tiny();
    let done = vivace(&["run", "--model", &model, "--device", "cuda:99", "--prompt", "hi"]);
    assert!(matches!(done.code, 1 | 2), "{}", done.err);
    assert!(done.err.starts_with("vivace: "), "{}", done.err);
    if !cfg!(feature = "cuda") {
        done.refused(1, &["cuda:99: this binary was built without the feature `cuda`"]);
    }
}

#[test]
fn a_prompt_longer_than_the_context_says_by_how_much() {
    let rows = run(&["--json", "--max-new-tokens", "1", "--prompt", &"x".repeat(100)]).json();
    let rows = rows["prompt_rows"].as_u64().expect("rows");
    let model = tiny();
    let with = |context: u64| {
        let context = context.to_string();
        let args =
            ["run", "--model", &model, "--device", "cpu", "--context", &context, "--max-new-tokens", "1"];
        vivace(&[&args[..], &["--prompt", &"x".repeat(100)]].concat())
    };
    assert_eq!(with(rows + 1).code, 0);
    let holds = format!("the context holds {rows}; a larger context can be asked for (--context)\n");
    with(rows).refused(2, &["too long for the context by 1 tokens", &holds]);
    with(rows - 22).refused(2, &["too long for the context by 23 tokens"]);

    // Where the model has no positions for more, no context helps.
    let dir = tempfile::tempdir().expect("a folder");
    let json = std::fs::read_to_string(fixture("tiny.json")).expect("the fixture");
    let mut json: Value = serde_json::from_str(&json).expect("JSON");
    json["max_position_embeddings"] = rows.into();
    let model = format!("synthetic:{}", write(dir.path(), "few.json", json.to_string().as_bytes()));
    vivace(&["run", "--model", &model, "--device", "cpu", "--prompt", &"x".repeat(100)])
        .refused(2, &["too long for the context by 1 tokens", &format!("the context holds {rows}\n")]);
}

#[test]
fn configs_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let tiny = std::fs::read_to_string(fixture("tiny.json")).expect("the fixture");
    for (name, text, part) in [
        ("a.json", tiny.replace("vita-Qwen2", "llama"), "model_type: expected"),
        (
            "b.json",
            tiny.replace("\"hidden_size\": 896", "\"hidden_size\": 0"),
            "hidden_size: expected a whole number",
        ),
        (
            "c.json",
            tiny.replace("\"intermediate_size\": 1280", "\"intermediate\": 1280"),
            "intermediate_size: expected",
        ),
        ("d.json", tiny.replace("bfloat16", "int4"), "expected bfloat16, float16 or float32, found \"int4\""),
        ("e.json", tiny[..200].to_owned(), "not readable as JSON"),
    ] {
        let path = write(dir.path(), name, text.as_bytes());
        let out = shown(dir.path().join("out"));
        vivace(&["run", "--model", &format!("synthetic:{path}"), "--prompt", "hi"])
            .refused(2, &[&path, part]);
        vivace(&["synth", "--config", &path, "--out", &out]).refused(2, &[&path, part]);
        vivace(&["verify", &path, &fixture("tiny.safetensors")]).refused(2, &[name]);
    }
    assert_eq!(
        names(dir.path()),
        ["a.json", "b.json", "c.json", "d.json", "e.json"],
        "nothing was left behind"
    );
    let absent = shown(dir.path().join("absent.json"));
    vivace(&["run", "--model", &format!("synthetic:{absent}"), "--prompt", "hi"]).refused(2, &[&absent]);
    vivace(&["verify", &fixture("tiny.json"), &absent]).refused(2, &[&absent, "found nothing"]);
}

#[test]
fn a_folder_with_files_is_not_written_into() {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), "mine.txt", b"keep");
    let out = shown(dir.path().to_owned());
    let config = fixture("tiny.json");
    vivace(&["synth", "--config", &config, "--out", &out]).refused(2, &[&out, "new or empty folder"]);
    assert_eq!(names(dir.path()), ["mine.txt"]);
    let below = shown(dir.path().join("mine.txt/model"));
    vivace(&["synth", "--config", &config, "--out", &below]).refused(2, &["mine.txt"]);
    assert_eq!(names(dir.path()), ["mine.txt"]);
}

#[test]
fn checkpoints_that_cannot_be_read() {
    let nowhere = "no/such/folder";
    vivace(&["run", "--model", nowhere, "--prompt", "hi"])
        .refused(2, &["no/such/folder: expected a checkpoint folder, found nothing"]);
    vivace(&["inspect", nowhere]).refused(2, &["found nothing"]);

    let header = |json: &str, data: usize| {
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat()
    };
    let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    for (bytes, part) in [
        (vec![], "expected a header length of 8 bytes, found a file of 0 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "expected a header of 18446744073709551615 bytes"),
        (header("{}", 0)[..9].to_vec(), "expected a header of 2 bytes after the first 8, found 1"),
        (header(one, 7), "expected 8 bytes of data (up to a), found 7: truncated"),
        (header(two, 12), "b: data 4..12 overlaps that of a, which ends at 8"),
        (header("[]", 0), "expected a safetensors header"),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let path = write(dir.path(), "model.safetensors", &bytes);
        vivace(&["run", "--model", &shown(dir.path().to_owned()), "--prompt", "hi"])
            .refused(2, &[&path, part]);
    }

    let dir = tempfile::tempdir().expect("a folder");
    let folder = shown(dir.path().to_owned());
    vivace(&["inspect", &folder]).refused(2, &["expected model.safetensors or", "found no weights"]);
    let index = r#"{"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}"#;
    write(dir.path(), "model.safetensors.index.json", index.as_bytes());
    vivace(&["run", "--model", &folder, "--prompt", "hi"])
        .refused(2, &["model-00002-of-00002.safetensors: the shard is absent", "lm_head.weight"]);
}

/// One checkpoint, spoiled in one way after another.
#[test]
fn checkpoints_that_do_not_fit_their_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = shown(dir.path().join("model"));
    assert_eq!(vivace(&["synth", "--config", &fixture("tiny.json"), "--out", &folder]).code, 0);
    let weights = Path::new(&folder).join("model.safetensors");
    let good = std::fs::read(&weights).expect("weights");
    let header_len = u64::from_le_bytes(good[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&good[8..8 + header_len]).expect("a header");
    let spoil = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        let json = header.to_string();
        let bytes =
            [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &good[8 + header_len..]].concat();
        std::fs::write(&weights, bytes).expect("written");
    };
    let run = || vivace(&["run", "--model", &folder, "--device", "cpu", "--prompt", "hi"]);
    let inspect = |flags: &[&str]| vivace(&[&["inspect", &folder], flags].concat());
    let wrong = |part: &str| {
        run().refused(2, &[&folder, part]);
        let report = inspect(&[]);
        assert!(report.code == 2 && report.out.contains(part) && report.err.contains(part), "{}", report.err);
    };

    let name = "model.layers.1.mlp.up_proj.weight";
    spoil(&|h| h[name]["shape"] = serde_json::json!([896, 1280]));
    wrong(&format!("{name}: expected [1280, 896], found [896, 1280]"));
    spoil(&|h| h[name]["dtype"] = "I16".into());
    wrong(&format!("{name}: expected [1280, 896], found [1280, 896] i16"));
    spoil(&|h| {
        let tensor = h.as_object_mut().expect("tensors").shift_remove(name).expect("there");
        h["model.layers.7.mlp.up_proj.weight"] = tensor;
    });
    wrong(&format!("{name}: expected [1280, 896], found no such tensor"));
    assert!(inspect(&[]).out.contains("unexpected (ignored): 1"));
    std::fs::write(&weights, &good[..good.len() - 1]).expect("written");
    run().refused(2, &["model.safetensors", "truncated"]);

    // bf16 NaN as the third element.
    let begin = header[name]["data_offsets"][0].as_u64().expect("an offset") as usize;
    let mut nan = good.clone();
    nan[8 + header_len + begin + 4..][..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&weights, nan).expect("written");
    assert_eq!(inspect(&[]).code, 0, "values are read with --check alone");
    let checked = inspect(&["--check"]);
    let part = format!("{name}: expected finite values, found NaN at element 2");
    assert!(
        checked.code == 2 && checked.out.contains(&part) && checked.err.contains(&part),
        "{}",
        checked.err
    );

    std::fs::write(&weights, &good).expect("written");
    std::fs::remove_file(Path::new(&folder).join("tokenizer.json")).expect("there");
    run().refused(2, &[&folder, "no tokenizer found; looked for tokenizer.json"]);
    std::fs::remove_file(Path::new(&folder).join("config.json")).expect("there");
    run().refused(2, &["config.json"]);
}

#[test]
fn folders_of_encoders_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let empty = shown(dir.path().to_owned());
    let model = shown(dir.path().join("model"));
    assert_eq!(vivace(&["synth", "--config", &fixture("tiny.json"), "--out", &model]).code, 0);
    let file = shown(dir.path().join("model/config.json"));
    let nowhere = "no/such/folder";
    for (flag, wanted) in
        [("--vision-tower", "config.json"), ("--audio-encoder", "train.yaml or global_cmvn")]
    {
        let commands = [
            &["run", "--device", "cpu", "--prompt", "hi", "--model"][..],
            &["chat", "--device", "cpu", "--model"],
            &["bench", "--device", "cpu", "--model"],
            &["inspect"],
        ];
        for command in commands {
            let with = |model: &str, folder: &str| vivace(&[command, &[model, flag, folder]].concat());
            for folder in [nowhere, &file] {
                let part = format!("{flag} {folder}: expected a folder with {wanted}, found no folder");
                with(&model, folder).refused(2, &[&part]);
            }
            with(&model, &empty)
                .refused(2, &[&format!("{flag} {empty}: expected {wanted} in it, found none")]);
            let (tiny, part) = (tiny(), "expected a checkpoint folder as the model, found synthetic:");
            with(&tiny, &empty).refused(2, &[&format!("{flag} {empty}: {part}"), &tiny]);
        }
        vivace(&["bench", "--device", "cpu", flag, &empty])
            .refused(2, &[flag, "expected a checkpoint folder as the model, found synthetic:"]);
    }

    let text = std::fs::read_to_string(&file).expect("config").replace("vita-Qwen2", "qwen2");
    std::fs::write(&file, text).expect("written");
    for (flag, encoder) in [("--vision-tower", "a vision tower"), ("--audio-encoder", "an audio encoder")] {
        write(dir.path(), "config.json", b"{}");
        write(dir.path(), "train.yaml", b"input_dim: 80\n");
        let part = format!("{flag} {empty}: expected a checkpoint with {encoder}, found none in {file}");
        vivace(&["inspect", &model, flag, &empty]).refused(2, &[&part]);
    }
}

#[test]
fn pictures_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let png = std::fs::read(format!("{ROOT}/examples/media/shapes.png")).expect("the example");
    let mut huge = png.clone();
    huge[16..20].copy_from_slice(&30000u32.to_be_bytes());
    huge[20..24].copy_from_slice(&30000u32.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&huge[12..29]);
    huge[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    for (name, bytes, part) in [
        ("empty.png", &[][..], "the image file is empty (0 bytes)"),
        ("cut.png", &png[..png.len() / 2], "corrupt PNG"),
        ("text.png", b"not a picture at all", "not an image in a known format; give a PNG, JPEG or WebP"),
        ("huge.png", &huge, "the image is 30000x30000 = 900.0 megapixels, the limit is 100 megapixels"),
        ("moving.gif", b"GIF89a\x01\0\x01\0\0\0\0;", "images are not supported; give a PNG, JPEG or WebP"),
    ] {
        let path = write(dir.path(), name, bytes);
        run(&["--image", &path]).refused(2, &[&path, part]);
    }
    run(&["--image", "no/such.png"]).refused(2, &["no/such.png: "]);
    let dot = shown(dir.path().join("dot.png"));
    image::RgbImage::new(1, 1).save(&dot).expect("written");
    let done = run(&["--image", &dot, "--max-new-tokens", "1"]);
    assert_eq!(done.code, 0, "one pixel is a picture: {}", done.err);
}

/// A WAV of silence.
fn wav(channels: u16, bits: u16, rate: u32, frames: u32) -> Vec<u8> {
    let block = channels * bits / 8;
    let bytes = frames * u32::from(block);
    let mut w = Vec::new();
    w.extend(b"RIFF");
    w.extend((36 + bytes).to_le_bytes());
    w.extend(b"WAVEfmt ");
    w.extend(16u32.to_le_bytes());
    w.extend(1u16.to_le_bytes());
    w.extend(channels.to_le_bytes());
    w.extend(rate.to_le_bytes());
    w.extend((rate * u32::from(block)).to_le_bytes());
    w.extend(block.to_le_bytes());
    w.extend(bits.to_le_bytes());
    w.extend(b"data");
    w.extend(bytes.to_le_bytes());
    w.resize(w.len() + bytes as usize, if bits == 8 { 0x80 } else { 0 });
    w
}

#[test]
fn sounds_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, bytes, parts) in [
        ("nothing.wav", vec![], &["nothing.wav", "the sound file is empty (0 bytes)"][..]),
        ("none.wav", wav(1, 16, 16000, 0), &["none.wav", "the sound has no samples"]),
        ("text.wav", b"not a sound at all".to_vec(), &["text.wav", "WAV, FLAC, MP3 or OGG Vorbis"]),
        ("short.wav", wav(1, 16, 16000, 48), &["short.wav", "3.0 ms", "the model needs at least 85 ms"]),
        ("long.wav", wav(1, 8, 1000, 1000 * 3600 + 1), &["long.wav", "up to 3600 s expected", "shorter"]),
        ("hour.wav", wav(1, 8, 8000, 8000 * 3600), &["a sound of 3600.0 s takes", "too many)"]),
    ] {
        let path = write(dir.path(), name, &bytes);
        run(&["--audio", &path]).refused(2, parts);
    }
    run(&["--audio", "no/such.wav"]).refused(2, &["no/such.wav: "]);
    for (name, bytes) in [("stereo.wav", wav(2, 16, 44100, 8820)), ("coarse.wav", wav(1, 8, 8000, 1600))] {
        let path = write(dir.path(), name, &bytes);
        let done = run(&["--audio", &path, "--max-new-tokens", "1"]);
        assert_eq!(done.code, 0, "{name}: {}", done.err);
    }
}

#[test]
fn what_the_model_has_no_encoder_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let json = std::fs::read_to_string(fixture("tiny.json")).expect("the fixture");
    let mut json: Value = serde_json::from_str(&json).expect("JSON");
    json["model_type"] = "qwen2".into();
    let model = format!("synthetic:{}", write(dir.path(), "text.json", json.to_string().as_bytes()));
    let run = |args: &[&str]| vivace(&[&["run", "--model", &model, "--device", "cpu"], args].concat());
    run(&["--image", "examples/media/shapes.png"]).refused(2, &["no vision tower: it cannot take pictures"]);
    run(&["--audio", "examples/media/chime.wav"]).refused(2, &["no audio encoder: it cannot take sounds"]);
    assert_eq!(run(&["--prompt", "hi", "--max-new-tokens", "1"]).code, 0);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

#[test]
fn a_sound_on_standard_input_that_cannot_be_used() {
    let model = tiny();
    let mut args = vec!["run", "--model", &model, "--device", "cpu", "--audio", "-"];
    let refused =
        |args: &[&str], stdin: &[u8], parts: &[&str]| vivace_with_stdin(args, stdin).refused(2, parts);
    refused(&args, b"", &["standard input: the sound file is empty"]);
    refused(&args, b"RIFF0000WAVEfmt ", &["standard input: the WAV ends in its header"]);
    let mut silent = std::fs::read(Path::new(ROOT).join("examples/media/chime.wav")).expect("a sound");
    let at = silent.windows(4).position(|w| w == b"data").expect("samples");
    silent.truncate(at + 8);
    refused(&args, &silent, &["standard input: the sound lasts 0.0 ms", "at least 85 ms"]);
    args[6] = "/dev/stdin";
    refused(&args, b"no sound", &["/dev/stdin: not a sound in a known format"]);
    refused(&args, b"", &["/dev/stdin: the sound file is empty"]);
    args[6] = "-";
    args.extend(["--prompt", "-"]);
    refused(&args, b"", &["--prompt - and --audio -", "standard input"]);
    refused(&["run", "--model", &model, "--audio", "-", "-"], b"", &["--audio -", "once, not 2 times"]);
    let text = ["run", "--model", &model, "--device", "cpu", "--prompt", "x", "--audio-chunk", "0"];
    refused(&text, b"", &["--audio-chunk", "1 to 4096 frames"]);
}
