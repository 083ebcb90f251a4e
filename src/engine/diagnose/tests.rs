use super::diff::{DiffReport, Recorded};
use super::*;
use crate::core::{DType, Desc, Place, Shape};
use crate::engine::{DeviceChoice, GenerateOptions, Options};
use crate::media::audio::Sound;

fn demo() -> String {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    format!("synthetic:{}", std::path::Path::new(&root).join("tests/fixtures/tiny.json").display())
}

fn options() -> Options {
    Options { device: DeviceChoice::Cpu, context: Some(512), ..Options::default() }
}

fn question() -> Question {
    let wave = (0..16_000).map(|i| (i as f32 * 0.05).sin()).collect();
    Question { sounds: vec![Sound::new(16_000, wave).unwrap()], ..Question::text("hi") }
}

#[test]
fn a_dump_shows_every_graph_twice_with_its_arena() {
    let mut engine = Engine::open(&demo(), &options(), &mut |_, _| {}).unwrap();
    let text = dump(&mut engine, None, &question()).unwrap();
    for part in ["# audio, 98 frames: as written", "# decode at", "nodes fused to", "arena ", "LinearFused"] {
        assert!(text.contains(part), "{part} missing in\n{text}");
    }
    assert!(!text.contains("vision"), "no picture was asked about");
}

#[test]
fn a_profile_adds_up() {
    let mut engine = Engine::open(&demo(), &options(), &mut |_, _| {}).unwrap();
    let profile = profile(&mut engine, None, &question(), 2).unwrap();
    assert_eq!(profile.graphs.len(), 3);
    for graph in &profile.graphs {
        let nodes: f64 = graph.nodes.iter().map(|n| n.us).sum();
        let ops: f64 = graph.ops.iter().map(|o| o.us).sum();
        assert!((nodes - graph.nodes_us).abs() < 1e-6 * nodes && (ops - nodes).abs() < 1e-6 * nodes);
        assert_eq!(graph.ops.iter().map(|o| o.nodes).sum::<usize>(), graph.nodes.len());
        assert!((graph.ops.iter().map(|o| o.share).sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(graph.ops.windows(2).all(|w| w[0].us >= w[1].us));
    }
    assert!(profile.to_string().contains("whole graph"));
}

#[test]
fn logits_of_a_prompt_foretell_the_answer() {
    let mut engine = Engine::open(&demo(), &options(), &mut |_, _| {}).unwrap();
    let one = GenerateOptions { max_new_tokens: 1, answer_noise: true, ..GenerateOptions::default() };
    let answer = engine.session(None).unwrap().ask(&question(), &one, &mut |_| true).unwrap();
    let logits = logits(&mut engine, None, &question()).unwrap();
    let last = logits.chunks(logits.len() / answer.prompt_rows).next_back().unwrap();
    let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
    assert_eq!(answer.tokens, [best as u32]);
    // What it wrote over is not taken for what was there.
    let again = engine.session(None).unwrap().ask(&question(), &one, &mut |_| true).unwrap();
    assert_eq!(again.tokens, answer.tokens);
}

#[test]
fn the_cpu_agrees_with_itself() {
    let report = diff(&demo(), &options(), None, &question()).unwrap();
    assert!(report.passed() && report.tensors > 50, "{report}");
    assert_eq!(report.most_used, 0.0);
}

fn recorded(name: &str, values: &[f32]) -> Recorded {
    let shape = Shape::new(&[1, values.len()]);
    let desc = Desc { name: name.to_owned(), dtype: DType::BF16, shape, place: Place::Arena };
    Recorded { graph: "prefill".to_owned(), node: 3, op: "Add", desc, values: values.to_vec() }
}

fn compare(device: &[f32], exact: &[f32], rounded: &[f32]) -> DiffReport {
    let mut report = DiffReport {
        device: "a device".to_owned(),
        tensors: 0,
        first: None,
        outside: 0,
        most_used: 0.0,
        most_used_by: String::new(),
    };
    let one = |v: &[f32]| [recorded("x", v)];
    report.compare(&one(device), &one(exact), Some(&one(rounded))).unwrap();
    report
}

#[test]
fn a_tensor_may_err_twice_what_rounding_costs() {
    let inside = compare(&[100.0, 1.5], &[100.0, 0.0], &[100.0, 1.0]);
    assert!(inside.passed());
    assert!((inside.most_used - 0.75).abs() < 1e-3, "{}", inside.most_used);
    let outside = compare(&[100.0, 2.5], &[100.0, 0.0], &[100.0, 1.0]);
    let first = outside.first.clone().unwrap();
    assert_eq!((first.worst, first.found, first.expected, outside.outside), (1, 2.5, 0.0, 1));
    let shown = outside.to_string();
    assert!(shown.contains("x [1, 2] bf16 (node 3 of prefill, Add)"), "{shown}");
    assert!(!compare(&[f32::NAN, 0.0], &[100.0, 0.0], &[100.0, 1.0]).passed());
}
