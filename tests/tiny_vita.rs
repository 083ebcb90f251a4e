//! The trained sample, `examples/tiny/model`, end to end: held-out questions about pictures, written and spoken, answered
//! word by word; and its logits beside those of PyTorch.
//!
//! The cases were written by `tools/tiny/cases.py examples/tiny/cases --count 64 --seed 1 --small`, the logits by
//! `tools/tiny/logits.py examples/tiny/cases examples/tiny/model examples/tiny/logits.safetensors`.

use std::path::PathBuf;

use safetensors::SafeTensors;
use serde::Deserialize;
use vivace::core::Result;
use vivace::engine::{DeviceChoice, Engine, GenerateOptions, Options, Question, diagnose};
use vivace::fuse::Fusion;

#[derive(Deserialize)]
struct Case {
    name: String,
    /// One conversation.
    turns: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    images: Vec<String>,
    audio: Option<String>,
    prompt: String,
    /// What the model has to take the question for: `text`, `audio` or `noise`.
    state: String,
    answer: String,
}

impl Turn {
    fn question(&self) -> Result<Question> {
        let mut question = Question::text(&self.prompt);
        for file in &self.images {
            question.add_image(sample("cases").join(file))?;
        }
        if let Some(file) = &self.audio {
            question.add_audio(sample("cases").join(file))?;
        }
        Ok(question)
    }
}

fn sample(name: &str) -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    PathBuf::from(root).join("examples/tiny").join(name)
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(sample("cases/cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(device: DeviceChoice, fusion: Fusion) -> Engine {
    let options = Options { device, fusion, ..Options::default() };
    Engine::open(sample("model").to_str().unwrap(), &options, &mut |_, _| {}).unwrap()
}

/// Asks everything; the model has learnt enough to be wrong nowhere, in any precision.
fn every_answer_is_right(device: DeviceChoice, fusion: Fusion) {
    let cases = cases();
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let mut engine = open(device, fusion);
    let mut wrong = Vec::new();
    for case in &cases {
        let mut session = engine.session(None).unwrap();
        for turn in &case.turns {
            let question = turn.question().unwrap();
            let answer = session.ask(&question, &GenerateOptions::default(), &mut |_| true).unwrap();
            let state = serde_json::to_value(answer.state).unwrap();
            if state != turn.state || answer.text != turn.answer {
                wrong.push(format!(
                    "{}: wanted {} {:?}, got {state} {:?}",
                    case.name, turn.state, turn.answer, answer.text
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} answers are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_answer_is_right_on_the_cpu() {
    every_answer_is_right(DeviceChoice::Cpu, Fusion::on());
}

#[test]
fn every_answer_is_right_without_fusion() {
    every_answer_is_right(DeviceChoice::Cpu, Fusion::off());
}

#[cfg(feature = "cuda")]
#[test]
fn every_answer_is_right_on_a_gpu() {
    let device = DeviceChoice::Cuda(0);
    if let Err(why) = vivace::engine::open_backend(device) {
        let required = std::env::var_os("VIVACE_REQUIRE_GPU").is_some_and(|v| v != "0");
        assert!(!required, "a GPU is required: {why}");
        println!("no GPU: nothing checked ({why})");
        return;
    }
    every_answer_is_right(device, Fusion::on());
    every_answer_is_right(device, Fusion::off());
}

/// PyTorch computed in f32, as the CPU does.
#[test]
fn logits_are_those_of_pytorch() {
    const MAX_DIFFERENCE: f32 = 1e-3;
    let bytes = std::fs::read(sample("logits.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let mut engine = open(DeviceChoice::Cpu, Fusion::on());
    let mut compared = 0;
    for case in cases() {
        let Ok(rows) = reference.tensor(&format!("{} rows", case.name)) else { continue };
        let rows = rows.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize);
        let wanted = reference.tensor(&case.name).unwrap();
        let vocab = wanted.shape()[1];
        let wanted = wanted.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let wanted: Vec<f32> = wanted.collect();
        let question = case.turns[0].question().unwrap();
        let got = diagnose::logits(&mut engine, None, &question).unwrap();
        for (row, wanted) in rows.zip(wanted.chunks_exact(vocab)) {
            let got = &got[row * vocab..(row + 1) * vocab];
            let worst = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= MAX_DIFFERENCE, "{}, row {row}: logits differ by {worst}", case.name);
            compared += 1;
        }
    }
    assert_eq!(compared, reference.len() / 2 * 8);
}

#[test]
fn the_sample_is_small() {
    let bytes = |folder: &str| -> u64 {
        let files = std::fs::read_dir(sample(folder)).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    assert!(bytes("model") < 16_000_000, "{} bytes", bytes("model"));
    assert!(bytes("cases") < 1_500_000, "{} bytes", bytes("cases"));
}
