use super::*;

fn tiny() -> Value {
    serde_json::from_str(include_str!("../../../tests/fixtures/tiny.json")).unwrap()
}

fn parse(json: &Value) -> Result<ModelConfig> {
    ModelConfig::from_json(&json.to_string(), "config.json")
}

fn message(change: impl FnOnce(&mut Value)) -> String {
    let mut json = tiny();
    change(&mut json);
    parse(&json).unwrap_err().to_string()
}

#[test]
fn the_tiny_config() {
    let c = parse(&tiny()).unwrap();
    let t = &c.text;
    assert_eq!((t.vocab_size, t.hidden_size, t.head_dim, t.num_key_value_heads), (515, 896, 128, 1));
    assert_eq!((t.rms_norm_eps, t.rope_theta, t.tie_word_embeddings), (1e-6, 1e6, false));
    assert_eq!((c.dtype, c.seed, c.tokenizer_model_max_length), (DType::BF16, 0, None));
    let v = c.vision.as_ref().unwrap();
    assert_eq!((v.hidden_size, v.image_size, v.patch_size, v.num_hidden_layers), (128, 56, 14, 2));
    let a = c.audio.as_ref().unwrap();
    assert_eq!((a.input_dim, a.chunk_size, a.left_chunks, a.adapter_kernel_size), (80, -1, -1, 5));
    assert_eq!(a.prompt_rows, 0);
    assert_eq!((c.context(None).unwrap(), c.context(Some(17)).unwrap()), (8192, 17));
    assert_eq!(
        c.context(Some(40000)).unwrap_err().to_string(),
        "context: expected 1 to 32768 (max_position_embeddings), found 40000"
    );

    let chunked = include_str!("../../../tests/fixtures/tiny-chunked.json");
    let a = ModelConfig::from_json(chunked, "tiny-chunked.json").unwrap().audio.unwrap();
    assert_eq!((a.chunk_size, a.left_chunks), (4, 2));
}

/// The whole VITA-1.5 has the sizes that its authors give.
#[test]
fn parameters_of_the_public_model() {
    let mut json = tiny();
    let set = |json: &mut Value, fields: Value| {
        json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    };
    set(
        &mut json,
        serde_json::json!({
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "mm_hidden_size": 4096,
            "tokenizer_model_max_length": 6200
        }),
    );
    let encoder = serde_json::json!({
        "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 24
    });
    set(&mut json["vision_config"], encoder.clone());
    set(&mut json["audio_config"], encoder);
    json["vision_config"]["image_size"] = 448.into();
    let c = parse(&json).unwrap();
    assert_eq!(c.context(None).unwrap(), 6200);
    let all = expected_tensors(&c);
    let params = |part| -> usize {
        all.iter().filter(|t| t.part == part).map(|t| t.shape.iter().product::<usize>()).sum()
    };
    assert_eq!(params(ModelPart::Text), 7_615_616_512); // Qwen2.5-7B
    let millions = |parts: &[ModelPart]| {
        let all: usize = parts.iter().map(|&p| params(p)).sum();
        (all as f64 / 1e6).round() as usize
    };
    assert_eq!(millions(&[ModelPart::Vision]), 304);
    assert_eq!(millions(&[ModelPart::Projector]), 28);
    assert_eq!(millions(&[ModelPart::AudioEncoder]), 358);
    assert_eq!(millions(&[ModelPart::AudioEncoder, ModelPart::AudioAdapter]), 376);
}

#[test]
fn nested_and_plain_layouts() {
    let flat = tiny();
    let mut nested = serde_json::json!({ "model_type": "qwen2_multimodal", "dtype": "bfloat16" });
    let mut text = flat.as_object().unwrap().clone();
    text.insert("model_type".into(), "qwen2".into());
    for key in ["vision_config", "audio_config"] {
        nested[key] = text.remove(key).unwrap();
        nested[key]["model_type"] = "of its own".into();
    }
    nested["text_config"] = text.into();
    assert_eq!(parse(&nested).unwrap(), parse(&flat).unwrap());

    let mut plain = flat.clone();
    plain["model_type"] = "qwen2".into();
    plain["torch_dtype"] = "float16".into();
    plain["rope_scaling"] = Value::Null;
    let c = parse(&plain).unwrap();
    assert!(c.text_only() && !parse(&flat).unwrap().text_only());
    assert_eq!((c.vision, c.audio, c.dtype), (None, None, DType::F16));
}

#[test]
fn windows_that_slide_nowhere_are_none() {
    let with = |sliding_window: Option<Value>, max_window_layers: Option<i64>| {
        let mut json = tiny();
        json["num_hidden_layers"] = 2.into();
        json["use_sliding_window"] = true.into();
        for (key, value) in
            [("sliding_window", sliding_window), ("max_window_layers", max_window_layers.map(Value::from))]
        {
            json.as_object_mut().unwrap().remove(key);
            if let Some(value) = value {
                json[key] = value;
            }
        }
        parse(&json).map(|c| c.text.num_hidden_layers).map_err(|e| e.to_string())
    };
    let refused =
        "config.json: use_sliding_window: expected false, found true, which is not supported".to_owned();
    let some = || Some(Value::from(4096));
    for (window, layers) in [(some(), 0), (some(), 1), (None, 1)] {
        assert_eq!(with(window, Some(layers)).unwrap_err(), refused, "from layer {layers} on");
    }
    for (window, layers) in [(Some(Value::Null), Some(0)), (some(), Some(2)), (some(), None)] {
        assert_eq!(with(window, layers), Ok(2));
    }
}

#[test]
fn plain_checkpoints_may_leave_out_the_base_of_rotations() {
    let mut json = tiny();
    json.as_object_mut().unwrap().remove("rope_theta");
    assert_eq!(
        parse(&json).unwrap_err().to_string(),
        "config.json: rope_theta: expected a number above 0, found none"
    );
    json["model_type"] = "qwen2".into();
    assert_eq!(parse(&json).unwrap().text.rope_theta, 10000.0);
    json["rope_parameters"] = serde_json::json!({ "rope_type": "default", "rope_theta": 5e5 });
    assert_eq!(parse(&json).unwrap().text.rope_theta, 5e5);
}

#[test]
fn shapes_fill_what_the_config_leaves_out() {
    let mut json = tiny();
    let want = parse(&json).unwrap();
    let stored = expected_tensors(&want);
    for key in ["vision_config", "audio_config", "vocab_size"] {
        json.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(
        parse(&json).unwrap_err().to_string(),
        "config.json: vocab_size: expected a whole number above 0, found none"
    );
    let shapes = |name: &str| stored.iter().find(|t| t.name == name).map(|t| t.shape.clone());
    let c = ModelConfig::from_value(&json, "config.json", Hints { shapes: &shapes, ..Hints::NONE }).unwrap();
    assert_eq!(c, want);

    // Without the statistics of the filterbank, which a file beside the checkpoint may hold.
    let fewer = |name: &str| shapes(name).filter(|_| !name.contains("global_cmvn"));
    let c = ModelConfig::from_value(&json, "config.json", Hints { shapes: &fewer, ..Hints::NONE }).unwrap();
    assert_eq!(c, want);

    // The matrix is longer or shorter than the config says.
    json["vocab_size"] = 600.into();
    let c = ModelConfig::from_value(&json, "config.json", Hints { shapes: &shapes, ..Hints::NONE }).unwrap();
    assert_eq!(c.text.vocab_size, 515);
}

#[test]
fn an_encoder_that_nothing_describes_is_an_error() {
    let mut json = tiny();
    json.as_object_mut().unwrap().remove("vision_config");
    assert_eq!(parse(&json).unwrap().vision, None);
    json["mm_vision_tower"] = "OpenGVLab/InternViT-300M-448px".into();
    assert_eq!(
        parse(&json).unwrap_err().to_string(),
        "config.json: vision_config (or tensor shapes): hidden_size: expected a whole number above 0, found none"
    );
}

/// Shapes do not tell how the audio encoder attends, so that is said; what they tell of the vision tower is a remark.
#[test]
fn what_is_assumed_of_encoders_whose_folders_are_not_there() {
    let mut json = tiny();
    let assumed = |json: &Value| {
        let place = "config.json";
        (folders::assumed_tower(json, place), folders::assumed_attention(json, place))
    };
    assert_eq!(assumed(&json), (None, None), "no folder is named");
    json["mm_vision_tower"] = "OpenGVLab/tower".into();
    json["mm_audio_encoder"] = "/home/somebody/ears".into();
    assert_eq!(assumed(&json), (None, None), "the config says it all");

    json["audio_config"]["chunk_size"] = Value::Null;
    let (_, attention) = assumed(&json);
    assert_eq!(
        attention.unwrap(),
        "config.json: mm_audio_encoder names \"/home/somebody/ears\", and no train.yaml of it was found: the audio encoder is \
         taken to attend to all frames of a sound, not in chunks; --audio-encoder DIR says where the folder is, \
         --audio-chunk how it attends"
    );
    json.as_object_mut().unwrap().retain(|key, _| !key.ends_with("_config"));
    let (tower, attention) = assumed(&json);
    assert!(attention.is_some());
    assert_eq!(
        tower.unwrap(),
        "config.json: mm_vision_tower names \"OpenGVLab/tower\", and no config.json of it was found: the sizes of the vision \
         tower are those of its tensors; --vision-tower DIR says where the folder is"
    );
}

#[test]
fn senseless_fields_are_named() {
    let cases: [(&str, Value, &str); 11] = [
        (
            "model_type",
            "llama".into(),
            "config.json: model_type: expected \"vita-Qwen2\" or \"qwen2\", found \"llama\"",
        ),
        (
            "num_attention_heads",
            0.into(),
            "config.json: num_attention_heads: expected a whole number from 1 to 16777216, found 0",
        ),
        (
            "num_attention_heads",
            5.into(),
            "config.json: num_attention_heads: expected a divisor of hidden_size 896, found 5",
        ),
        (
            "num_key_value_heads",
            2.into(),
            "config.json: num_key_value_heads: expected a divisor of num_attention_heads 7, found 2",
        ),
        (
            "num_attention_heads",
            28.into(),
            "config.json: head_dim: expected 64 or 128, found 32 (hidden_size 896, 28 heads)",
        ),
        (
            "intermediate_size",
            (-3).into(),
            "config.json: intermediate_size: expected a whole number from 1 to 16777216, found -3",
        ),
        ("rope_theta", "big".into(), "config.json: rope_theta: expected a number above 0, found \"big\""),
        ("dtype", "int8".into(), "config.json: dtype: expected bfloat16, float16 or float32, found \"int8\""),
        (
            "rope_scaling",
            serde_json::json!({ "type": "yarn", "factor": 4.0 }),
            "config.json: rope_scaling.rope_type: expected \"default\", found \"yarn\", which is not supported",
        ),
        (
            "mm_hidden_size",
            4096.into(),
            "config.json: mm_hidden_size: expected 512, four patches of 128; found 4096",
        ),
        ("rms_norm_eps", 0.into(), "config.json: rms_norm_eps: expected a number above 0, found 0"),
    ];
    for (key, value, want) in cases {
        assert_eq!(message(|json| json[key] = value), want);
    }
    let missing = message(|json| drop(json.as_object_mut().unwrap().remove("hidden_size")));
    assert_eq!(missing, "config.json: hidden_size: expected a whole number above 0, found none");
    assert_eq!(
        message(|json| json["vision_config"]["num_attention_heads"] = 3.into()),
        "config.json: vision_config.num_attention_heads: expected heads of 64 that make up hidden_size 128, found 3"
    );
    assert_eq!(
        message(|json| json["vision_config"]["image_size"] = 42.into()),
        "config.json: vision_config.image_size: expected a multiple of twice patch_size 14, found 42"
    );
    assert!(parse(&Value::Null).unwrap_err().to_string().contains("expected a JSON object"));
    let broken = ModelConfig::from_json("{", "config.json").unwrap_err();
    assert!(broken.to_string().starts_with("config.json: not readable as JSON: "));
    assert_eq!(broken.exit_code(), 2);
}
