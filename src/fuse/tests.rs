use std::collections::HashMap;

use super::*;
use crate::core::{DType, Desc};
use crate::models::{config::ModelConfig, intern_vit, qwen2, whale};
use crate::ops::linear::NormBefore;
use crate::ops::norm::{LayerNorm, RowStats};

/// Whether two graphs are the same up to the numbering and naming of tensors: where they differ, or nothing.
fn difference(a: &Graph, b: &Graph) -> Option<String> {
    if a.nodes.len() != b.nodes.len() {
        return Some(format!("{} nodes against {}", a.nodes.len(), b.nodes.len()));
    }
    let mut seen: HashMap<Tensor, Tensor> = HashMap::new();
    let place = |g: &Graph, d: &Desc| match d.place {
        Place::Weight(w) => format!("{:?}", g.weights[w as usize]),
        other => format!("{other:?}"),
    };
    for (i, (x, y)) in a.nodes.iter().zip(&b.nodes).enumerate() {
        if x.op != y.op {
            return Some(format!("node {i}: {:?} against {:?}", x.op, y.op));
        }
        for (s, t) in x.ins.iter().chain(&x.outs).zip(y.ins.iter().chain(&y.outs)) {
            let (d, e) = (a.desc(*s), b.desc(*t));
            if d.shape.dims() != e.shape.dims() || d.dtype != e.dtype || place(a, d) != place(b, e) {
                return Some(format!("node {i}: {} {} against {} {}", d.name, d.brief(), e.name, e.brief()));
            }
            if *seen.entry(*s).or_insert(*t) != *t {
                return Some(format!("node {i}: {} is another tensor", d.name));
            }
        }
    }
    None
}

fn graphs() -> Vec<(&'static str, Graph)> {
    let json = include_str!("../../tests/fixtures/tiny.json");
    let cfg = ModelConfig::from_json(json, "tiny.json").unwrap();
    let dtype = DType::BF16;
    let sizes = qwen2::TextSizes { max_seq: 64, media_rows: 8, token_limit: cfg.text.vocab_size };
    let key = |rows, ids, head| qwen2::TextKey { rows, sequences: 1, kv_bucket: 64, ids, head };
    let batch = |sequences, head| qwen2::TextKey { sequences, ..key(sequences, qwen2::Ids::LastToken, head) };
    let text = |key| qwen2::build(&cfg.text, &sizes, dtype, key).unwrap().graph;
    let (vision, audio) = (cfg.vision.as_ref().unwrap(), cfg.audio.as_ref().unwrap());
    vec![
        ("prefill", text(key(17, qwen2::Ids::Host, qwen2::Head::Greedy))),
        ("chunk", text(key(17, qwen2::Ids::Host, qwen2::Head::None))),
        ("decode", text(key(1, qwen2::Ids::LastToken, qwen2::Head::Sample))),
        ("batch of 8", text(batch(8, qwen2::Head::Greedy))),
        ("batch of 16", text(batch(16, qwen2::Head::Sample))),
        ("verify", text(key(9, qwen2::Ids::Host, qwen2::Head::All))),
        ("vision", intern_vit::build(vision, &cfg.text, dtype, 3, intern_vit::Pixels::Values).unwrap().graph),
        ("audio", whale::build(audio, &cfg.text, dtype, 137, 64).unwrap().graph),
        ("positions", whale::position_tables(audio, dtype, 64).unwrap()),
    ]
}

#[test]
fn expansion_is_the_inverse_of_fusion() {
    for (name, g) in graphs() {
        let fused = fuse(g.clone(), &Fusion::on()).unwrap();
        let back = expand(fused).unwrap();
        assert_eq!(difference(&g, &back), None, "{name}");
    }
}

#[test]
fn sequences_stay_in_fused_ops() {
    let fused = |name: &str| {
        let g = graphs().into_iter().find(|(n, _)| *n == name).unwrap().1;
        fuse(g, &Fusion::on()).unwrap()
    };
    let ops = |g: &Graph, name: &str| g.nodes.iter().filter(|n| n.op.name() == name).count();
    // As in a step of one sequence, but for the largest logit, which takes one row.
    let eight = fused("batch of 8");
    let layers = ops(&eight, "Attention");
    assert_eq!(
        (ops(&eight, "LinearRope"), ops(&eight, "RopeKvAppend"), ops(&eight, "ArgMax")),
        (layers, 0, 1)
    );
    let sixteen = fused("batch of 16");
    assert_eq!((ops(&sixteen, "LinearRope"), ops(&sixteen, "RopeKvAppend")), (layers, 0));
    for (g, n) in [(&eight, 8), (&sixteen, 16)] {
        for node in &g.nodes {
            let sequences = match &node.op {
                Op::LinearRope(op) => op.sequences,
                Op::RopeKvAppend(op) => op.sequences,
                Op::Attention(op) => op.batch.sequences(),
                _ => n,
            };
            assert_eq!(sequences, n, "{:?}", node.op);
            assert_eq!(g.desc(node.outs[0]).shape[0] % n, 0, "{:?}", node.op);
        }
    }
}

/// In the last layer too, where a chunk of a prompt has no use for q, and a prompt for one row alone of what follows.
#[test]
fn every_layer_of_a_prompt_has_one_product_for_q_k_and_v() {
    let fused = |name: &str| {
        let g = graphs().into_iter().find(|(n, _)| *n == name).unwrap().1;
        fuse(g, &Fusion::on()).unwrap()
    };
    let rows_of = |g: &Graph, op: &str| -> Vec<usize> {
        let of_op = g.nodes.iter().filter(|n| n.op.name() == op);
        of_op.map(|n| g.desc(n.outs[0]).rows()).collect()
    };
    let (chunk, prompt) = (fused("chunk"), fused("prefill"));
    let layers = rows_of(&prompt, "Attention").len();
    assert_eq!(rows_of(&prompt, "LinearRope"), vec![17; layers]);
    assert_eq!(rows_of(&chunk, "LinearRope"), vec![17; layers]);
    assert_eq!(rows_of(&chunk, "Attention"), vec![17; layers - 1]);
}

#[test]
fn each_rule_alone_is_undone_by_expansion() {
    for rule in RULES {
        let off = |kept: &dyn Fn(&str) -> bool| {
            let off: Vec<&str> = RULES.iter().map(|r| r.name()).filter(|n| !kept(n)).collect();
            Fusion::without(&off).unwrap()
        };
        let needed = off(&|n| rule.needs().contains(&n));
        let only = off(&|n| n == rule.name() || rule.needs().contains(&n));
        let mut found = false;
        for (name, g) in graphs() {
            let fused = fuse(g.clone(), &only).unwrap();
            found |= fused.nodes != fuse(g.clone(), &needed).unwrap().nodes;
            assert_eq!(difference(&g, &expand(fused).unwrap()), None, "{} in {name}", rule.name());
        }
        assert!(found, "rule {} finds nothing in any model", rule.name());
    }
}

#[test]
fn fusing_keeps_the_flops_of_matrix_products_and_moves_fewer_bytes() {
    for (name, g) in graphs().into_iter().filter(|(n, _)| *n != "positions") {
        let fused = fuse(g.clone(), &Fusion::on()).unwrap();
        assert!(fused.nodes.len() < g.nodes.len(), "{name}");
        assert!(fused.cost().bytes() < g.cost().bytes(), "{name}");
        let gemm = |g: &Graph| -> u64 {
            let linear = |n: &usize| {
                matches!(
                    g.nodes[*n].op.name(),
                    "Linear" | "LinearFused" | "LinearRope" | "LinearArgMax" | "Conv2d" | "Conv1d"
                )
            };
            (0..g.nodes.len()).filter(linear).map(|n| gemm_flops(g, n)).sum()
        };
        assert_eq!(gemm(&fused), gemm(&g), "{name}");
    }
}

/// 2·M·N·K of a matrix product, from its weight and its rows.
fn gemm_flops(g: &Graph, n: usize) -> u64 {
    let node = &g.nodes[n];
    2 * (g.desc(node.outs[0]).rows() * g.desc(node.ins[1]).shape.len()) as u64
}

#[test]
fn unknown_rules_are_named() {
    let message = Fusion::without(&["swigloo"]).unwrap_err().to_string();
    assert!(message.starts_with("--no-fuse swigloo: no such rule; there are: all, qkv_rope, "), "{message}");
    assert!(!Fusion::without(&["swiglu", "all"]).unwrap().allows("qkv_rope"));
    let some = Fusion::without(&["swiglu"]).unwrap();
    assert!(some.allows("qkv_rope") && !some.allows("swiglu"));
    assert_eq!(Fusion::without(&[""; 0]).unwrap(), Fusion::on());
}

/// Of a short prompt only the first norm is a kernel, of rows that no product made: those between products are begun by the
/// one and ended by the other, and of the last row alone the last product has its norm in front.
#[test]
fn norms_of_a_short_prompt_are_shared_by_the_products_around_them() {
    for name in ["prefill", "chunk"] {
        let g = graphs().into_iter().find(|(n, _)| *n == name).unwrap().1;
        let fused = fuse(g, &Fusion::on()).unwrap();
        let count = |of: &dyn Fn(&Op) -> bool| fused.nodes.iter().filter(|n| of(&n.op)).count();
        let begun = |norm| matches!(norm, NormBefore::BegunRms(_));
        let begins = count(&|op| matches!(op, Op::LinearFused(op) if op.begins));
        let gates = count(&|op| matches!(op, Op::LinearFused(op) if begun(op.norm)));
        let turned = count(&|op| matches!(op, Op::LinearRope(op) if begun(op.norm)));
        // Two layers.
        assert_eq!((begins, gates, turned), (2, 1, 1), "{name}");
        let norms = |op: &Op| matches!(op, Op::RmsNorm(_) | Op::RmsBegin(_));
        assert_eq!(count(&norms), 1, "{name}");
    }
}

/// Of a layer of an encoder neither norm is left: the product before each gives the statistics, those of the first norm come
/// from rows that no product made. Behind the last layer of the audio encoder no product follows its norm.
#[test]
fn norms_between_products_are_no_passes_of_their_own() {
    for (name, norms) in [("vision", 0), ("audio", 1)] {
        let g = graphs().into_iter().find(|(n, _)| *n == name).unwrap().1;
        let fused = fuse(g, &Fusion::on()).unwrap();
        let count = |of: &dyn Fn(&Op) -> bool| fused.nodes.iter().filter(|n| of(&n.op)).count();
        let behind =
            count(&|op| matches!(op, Op::LinearFused(op) if matches!(op.norm, NormBefore::Layer(_))));
        let before = count(&|op| matches!(op, Op::LinearFused(op) if op.stats));
        // Two layers.
        assert_eq!((behind, before, count(&|op| *op == RowStats.into())), (4, 3, 1), "{name}");
        let plain = |op: &Op| matches!(op, Op::LayerNorm(op) if *op == LayerNorm::plain(op.eps));
        assert_eq!(count(&plain), norms, "{name}");
    }
}
