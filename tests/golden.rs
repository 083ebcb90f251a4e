//! The whole model against reference outputs, and against itself: fused and unfused, poisoned, in one piece and in
//! chunks.

use std::path::PathBuf;

use vivace::engine::verify::{Report, verify};
use vivace::engine::{DeviceChoice, Engine, Event, GenerateOptions, Options, Question, Sampling};
use vivace::fuse::Fusion;
use vivace::media::audio::Sound;
use vivace::media::image::Picture;

fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

fn cpu() -> Options {
    Options { device: DeviceChoice::Cpu, ..Options::default() }
}

fn check(name: &str, options: &Options) -> Report {
    let golden = fixture(&format!("{name}.safetensors"));
    let report = verify(&fixture(&format!("{name}.json")), &golden, options, None).unwrap();
    let failed: Vec<_> = report.checks.iter().filter(|c| !c.pass).collect();
    assert!(failed.is_empty(), "{name}: {failed:#?}");
    report
}

#[test]
fn tiny_matches_the_reference() {
    let report = check("tiny", &cpu());
    // Five cases: every tensor of the file and the greedy tokens of each case.
    assert_eq!(report.checks.len(), 5 * 6 + 3 * 3 + 2 * 3);
    assert_eq!(report.free_running, (80, 80));
}

#[test]
fn chunked_audio_attention_matches_the_reference() {
    check("tiny-chunked", &cpu());
}

#[test]
fn what_compares_nothing_does_not_pass() {
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("tiny.json")).unwrap()).unwrap();
    let bytes = std::fs::read(fixture("tiny.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (json, file) = (dir.path().join("case.json"), dir.path().join("case.safetensors"));
    // The written case alone, changed; and of the golden file what `keep` says.
    let message = |change: &dyn Fn(&mut serde_json::Value), keep: &dyn Fn(&str) -> bool| {
        let mut config = config.clone();
        let cases = config["cases"].as_array_mut().unwrap();
        cases.truncate(1);
        change(&mut config["cases"]);
        std::fs::write(&json, config.to_string()).unwrap();
        let kept = golden.tensors().into_iter().filter(|(name, _)| keep(name));
        safetensors::serialize_to_file(kept, None, &file).unwrap();
        let report = verify(&json, &file, &cpu(), None);
        report.map_or_else(|e| e.to_string(), |r| format!("{} checks", r.checks.len()))
    };
    let of_text = |name: &str| name.starts_with("text.");
    assert_eq!(message(&|_| {}, &of_text), "6 checks");
    type Change<'a> = &'a dyn Fn(&mut serde_json::Value);
    let changes: [(Change<'_>, &str); 5] = [
        (&|cases| *cases = serde_json::json!([]), "expected cases to compare, found none"),
        (
            &|cases| cases[0]["input_ids"] = serde_json::json!([]),
            "text: ids in input_ids: expected 1 to 65536, found 0",
        ),
        (
            &|cases| cases[0]["images"] = 1_000_000_000.into(),
            "text: images: expected 0 to 65536, found 1000000000",
        ),
        (&|cases| cases[0]["new_tokens"] = 0.into(), "text: new_tokens: expected 1 to 65536, found 0"),
        (&|cases| cases[0]["new_tokens"] = 17.into(), "text.lm.greedy_tokens: expected 17 values, found 16"),
    ];
    for (change, says) in changes {
        let found = message(change, &of_text);
        assert!(found.ends_with(says), "{found}");
    }
    let found = message(&|_| {}, &|name| of_text(name) || name == "image.lm.logits_final");
    assert!(found.ends_with("image.lm.logits_final: no case of the config gives such a tensor"), "{found}");
    let found = message(&|cases| cases[0]["name"] = "image".into(), &|name| name == "image.vision.projected");
    assert!(found.ends_with("image.vision.projected: no case of the config gives such a tensor"), "{found}");
    let found = message(&|_| {}, &|name| of_text(name) && name.contains("greedy"));
    assert!(found.ends_with("case text: expected tensors to compare, found none"), "{found}");
}

/// A file may hold the logits of every forced step: the first are those of the prompt's last row.
#[test]
fn logits_of_every_forced_step_are_compared_where_the_file_has_them() {
    const VOCAB: usize = 515;
    let bytes = std::fs::read(fixture("tiny.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| golden.tensor(name).unwrap().data().to_vec();
    let steps = golden.tensor("text.lm.greedy_tokens").unwrap().shape()[0];
    let (tail, last) = (data("text.lm.logits_tail"), data("text.lm.logits_final"));
    let mut forced = tail[tail.len() - 4 * VOCAB..].to_vec();
    forced.resize(4 * VOCAB * (steps - 1), 0);
    forced.extend(last);
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![steps, VOCAB], &forced);
    let mut tensors = golden.tensors();
    tensors.push(("text.lm.logits_forced".to_owned(), view.unwrap()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("forced.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).unwrap();

    let report = verify(&fixture("tiny.json"), &path, &cpu(), None).unwrap();
    let failed: Vec<_> = report.checks.iter().filter(|c| !c.pass).collect();
    // Nothing but the rows between the first and the last, which were left zero.
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!(
        (failed[0].name.as_str(), &failed[0].shape[..]),
        ("text.lm.logits_forced", &[steps, VOCAB][..])
    );
    assert!((VOCAB..(steps - 1) * VOCAB).contains(&failed[0].worst), "{}", failed[0].worst);
}

#[test]
fn unfused_graphs_match_the_reference_too() {
    check("tiny", &Options { fusion: Fusion::off(), ..cpu() });
}

#[test]
fn poisoned_slots_change_nothing() {
    check("tiny", &Options { poison: true, ..cpu() });
    check("tiny", &Options { poison: true, fusion: Fusion::off(), ..cpu() });
}

fn engine(options: &Options) -> Engine {
    let spec = format!("synthetic:{}", fixture("tiny.json").display());
    Engine::open(&spec, options, &mut |_, _| {}).unwrap()
}

fn picture() -> Picture {
    let data = (0..80 * 60 * 3).map(|i| (i * 7 % 251) as u8).collect();
    Picture::new(80, 60, data).unwrap()
}

fn sound() -> Sound {
    let samples = (0..16000).map(|i| (i as f32 * 0.05).sin() * 0.3).collect();
    Sound::new(16000, samples).unwrap()
}

fn mixed() -> Question {
    Question { images: vec![picture()], sounds: vec![sound()], ..Question::text("What is this?") }
}

#[test]
fn a_mixed_question_streams_what_it_returns() {
    let mut engine = engine(&cpu());
    let options = GenerateOptions { max_new_tokens: 24, ..GenerateOptions::default() };
    let mut streamed = String::new();
    let answer = engine
        .session(None)
        .unwrap()
        .ask(&mixed(), &options, &mut |event| {
            if let Event::Text(text) = event {
                streamed.push_str(text);
            }
            true
        })
        .unwrap();
    assert_eq!(streamed, answer.text);
    assert_eq!(answer.tokens.len(), 24);
    // 80x60 at 56 px: a 4x3 grid and a thumbnail, 4 rows each; one second of sound: 12 rows.
    assert!(answer.prompt_rows > 13 * 4 + 12, "{}", answer.prompt_rows);
    assert!(
        answer.timings.vision_ms > 0.0 && answer.timings.audio_ms > 0.0 && answer.timings.prefill_ms > 0.0
    );
}

#[test]
fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
    let mut engine = engine(&cpu());
    let mut ask = |seed| {
        let sampling = Sampling { temperature: 1.5, top_k: 50, top_p: 0.95, repetition_penalty: 1.1, seed };
        let options = GenerateOptions { max_new_tokens: 16, sampling, ..GenerateOptions::default() };
        engine.session(None).unwrap().ask(&mixed(), &options, &mut |_| true).unwrap().tokens
    };
    let first = ask(1);
    assert_eq!(first, ask(1));
    assert_ne!(first, ask(2));
}

#[test]
fn a_second_turn_continues_on_the_cache() {
    let mut engine = engine(&cpu());
    let options = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    let mut session = engine.session(Some("Be brief.")).unwrap();
    let first = session.ask(&Question::text("One"), &options, &mut |_| true).unwrap();
    let rows = session.rows();
    assert_eq!(rows, first.prompt_rows + 7, "the last token of an answer is fed back with the next question");
    let second = session.ask(&Question::text("Two"), &options, &mut |_| true).unwrap();
    assert!(session.rows() > rows + second.prompt_rows);
    // A question that fails leaves the conversation as it was.
    let before = session.rows();
    let long = "x".repeat(40_000);
    let message = session.ask(&Question::text(long), &options, &mut |_| true).unwrap_err().to_string();
    assert!(message.starts_with("the prompt is too long for the context by "), "{message}");
    assert_eq!(session.rows(), before);
    session.ask(&Question::text("Three"), &options, &mut |_| true).unwrap();
}

#[test]
fn stop_texts_end_an_answer_and_are_not_part_of_it() {
    let mut engine = engine(&cpu());
    let options = GenerateOptions { max_new_tokens: 32, ..GenerateOptions::default() };
    let whole = engine.session(None).unwrap().ask(&mixed(), &options, &mut |_| true).unwrap();
    let stop: String = whole.text.chars().skip(3).take(2).collect();
    let cut = whole.text.find(&stop).unwrap();
    let options = GenerateOptions { stop: vec![stop], ..options };
    let stopped = engine.session(None).unwrap().ask(&mixed(), &options, &mut |_| true).unwrap();
    assert_eq!(stopped.text, whole.text[..cut]);
    assert!(stopped.tokens.len() < whole.tokens.len());
}

#[test]
fn a_cancelled_answer_stops_at_once() {
    let mut engine = engine(&cpu());
    let options = GenerateOptions { max_new_tokens: 32, ..GenerateOptions::default() };
    let answer = engine.session(None).unwrap().ask(&mixed(), &options, &mut |_| false).unwrap();
    assert_eq!(answer.stop, vivace::engine::StopReason::Cancelled);
    assert!(answer.tokens.len() < 8);
}
