use super::super::{AudioChunk, DeviceChoice};
use super::items::{FULL_ITEMS, MIXED_CONTEXT};
use super::*;
use crate::core::DType;

#[test]
fn filters_pick_by_part_of_the_name() {
    let all = || FULL_ITEMS.iter().copied();
    assert_eq!(selected(all(), None).unwrap().len(), 23);
    let some = selected(all(), Some("decode_4, vision_13")).unwrap();
    assert_eq!(some, [Item::Decode(4096), Item::Vision(13)]);
    // A step and its batches are measured together, for the ratio of their times; each has a name of its own.
    let steps = selected(all(), Some("decode_512")).unwrap();
    assert_eq!(steps, [Item::Decode(512), Item::DecodeBatch(512, 8), Item::DecodeBatch(512, 16)]);
    assert_eq!(selected(all(), Some("_batch_16")).unwrap(), [Item::DecodeBatch(512, 16)]);
    assert_eq!(
        [32_784, 32_768, 32_767].map(|most| Item::Decode(32_768).context(most)),
        [32_784, 32_768, 32_768]
    );
    let names: std::collections::HashSet<String> = all().map(Item::name).collect();
    assert_eq!(names.len(), all().count());
    let message = selected(all(), Some("speed")).unwrap_err().to_string();
    assert!(
        message.starts_with("--filter speed: nothing matches; there are: load, decode_512,"),
        "{message}"
    );
}

#[test]
fn the_built_in_models_have_all_parts() {
    let full = built_in(FULL.0, FULL.1).unwrap().config;
    assert_eq!((full.text.num_hidden_layers, full.text.vocab_size, full.dtype), (28, 152_064, DType::BF16));
    assert_eq!(full.vision.unwrap().num_hidden_layers, 24);
    assert_eq!(full.audio.unwrap().num_hidden_layers, 24);
    assert!(built_in(SMALL.0, SMALL.1).unwrap().config.audio.is_some());
}

#[test]
fn a_report_has_times_work_and_a_stable_json() {
    let options = Options { device: DeviceChoice::Cpu, ..Options::default() };
    let mut seen = Vec::new();
    let report = run(&options, None, Some("load,audio"), None, &mut |p| {
        if let Progress::Running { item, at, of } = p {
            seen.push(format!("{item} {at}/{of}"));
        }
    })
    .unwrap();
    assert_eq!(seen, ["load 0/2", "audio_300 1/2"]);
    let json = serde_json::to_value(&report).unwrap();
    let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(&json),
        [
            "date",
            "device",
            "driver",
            "commit",
            "version",
            "ceilings",
            "model",
            "dtype",
            "context",
            "memory_bytes",
            "rows"
        ]
    );
    assert_eq!(
        keys(&json["rows"][1]),
        [
            "name",
            "what",
            "runs",
            "median_us",
            "p10_us",
            "p90_us",
            "flops",
            "bytes",
            "gb_per_s",
            "tflop_per_s",
            "roofline_us",
            "roofline_share"
        ]
    );
    assert_eq!(json["rows"][1]["runs"], REPEATS);
    assert!(json["rows"][1]["flops"].as_u64().unwrap() > 1_000_000);
    let shown = report.to_string();
    assert!(shown.contains("audio_300") && shown.contains("peak"), "{shown}");
    assert!(!shown.contains("sustained") && json.get("sustain_seconds").is_none(), "{shown}");
}

#[test]
fn lasting_work_has_fields_and_columns_of_its_own_where_it_is_one_graph() {
    let options = Options { device: DeviceChoice::Cpu, ..Options::default() };
    let lasting = Some(Duration::from_millis(20));
    let report = run(&options, None, Some("load,audio"), lasting, &mut |_| {}).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["sustain_seconds"], 0.02);
    assert!(json["rows"][0].get("sustained_us").is_none(), "nothing to replay");
    assert!(json["rows"][1]["sustained_us"].as_f64().unwrap() > 0.0);
    // A CPU has no meter.
    assert!(["watts", "joules", "sm_mhz"].iter().all(|key| json["rows"][1].get(key).is_none()));
    let shown = report.to_string();
    let head = shown.lines().find(|line| line.contains("sustained")).unwrap();
    assert!(head.split_whitespace().eq(
        ["median", "p10", "p90", "GB/s", "TFLOP/s", "roofline", "share"].into_iter().chain(Sustained::HEAD)
    ));
}

#[test]
fn the_mixed_request_has_128_text_tokens() {
    let opened = built_in(SMALL.0, SMALL.1).unwrap();
    let options = Options { device: DeviceChoice::Cpu, context: Some(MIXED_CONTEXT), ..Options::default() };
    let engine = Engine::from_opened(opened, &options, &mut |_, _| {}).unwrap();
    let mut bench = Bench { engine, ceilings: None, filled: 0, load_us: 0.0, sustain: None };
    let mut question =
        Question { sounds: vec![Sound::new(16_000, vec![0.1; 160_000]).unwrap()], ..Question::default() };
    let (rows, frames) = bench.pad_question(&mut question).unwrap();
    assert_eq!(frames, 998);
    assert_eq!(rows, MIXED_TEXT_TOKENS + 124);
}

#[test]
fn a_step_of_a_batch_counts_the_weights_once_and_every_cache() {
    let options = Options { device: DeviceChoice::Cpu, ..Options::default() };
    let report = run(&options, None, Some("decode_512"), None, &mut |_| {}).unwrap();
    let names: Vec<&str> = report.rows.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["decode_512", "decode_512_batch_8"]);
    assert_eq!(report.context, 528);
    let config = built_in(SMALL.0, SMALL.1).unwrap().config.text;
    let row_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4;
    let [one, eight] = [&report.rows[0].rates, &report.rows[1].rates];
    // Flops of the products and of attention are eight times those of one; bytes grow by the caches and the rows.
    let flops = eight.flops as f64 / one.flops as f64;
    assert!((7.9..8.1).contains(&flops), "{flops}");
    let caches = 7 * 512 * row_bytes as u64;
    assert!(eight.bytes > one.bytes + caches && eight.bytes < one.bytes + 2 * caches, "{one:?} {eight:?}");
    // What the batch took is given back.
    let kv_bytes = 528 * row_bytes as u64;
    assert!((kv_bytes..8 * kv_bytes).contains(&report.memory_bytes.states), "{:?}", report.memory_bytes);
}

#[test]
fn a_request_is_reported_stage_by_stage() {
    let options = Options { device: DeviceChoice::Cpu, ..Options::default() };
    let report = run(&options, None, Some("first_token_cached"), None, &mut |_| {}).unwrap();
    let row = &report.rows[0];
    let stage = |name: &str| row.stages.iter().find(|s| s.stage == name);
    for name in ["filterbank", "audio", "prefill", "token"] {
        assert!(stage(name).is_some_and(|s| s.critical_us > 0.0 && s.median_us >= s.critical_us), "{name}");
    }
    assert!(stage("vision").is_none(), "the picture is known");
    assert_eq!(row.overlap_us, Some(0.0));
    let json = serde_json::to_value(row).unwrap();
    assert!(json["stages"][0]["median_us"].is_number() && json["overlap_us"].is_number());
    assert!(report.to_string().contains("waited for"));

    let audio_chunk = Some(AudioChunk { frames: 4, left: Some(4) });
    let report = run(&Options { audio_chunk, ..options }, None, Some("streamed"), None, &mut |_| {}).unwrap();
    assert!(report.rows[0].stages.iter().all(|s| s.stage != "audio" && s.stage != "filterbank"));
}
