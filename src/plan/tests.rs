use super::*;
use crate::core::Recipe;
use crate::ops::norm::RmsNorm;

fn chain(n: usize) -> Graph {
    let mut g = Graph::new();
    let w = g.weight(Recipe::plain("w", DType::F32, &[64]));
    let mut x = g.input("x", DType::F32, &[4, 64]);
    for i in 0..n {
        x = g.push1(&format!("n{i}"), RmsNorm { eps: 1e-6 }, &[x, w]).unwrap();
    }
    g.output(x);
    g
}

#[test]
fn slots_live_at_once_never_overlap() {
    let p = plan(chain(5), |d| d.bytes()).unwrap();
    let slots: Vec<Slot> = p.slots.iter().flatten().copied().collect();
    for (i, a) in slots.iter().enumerate() {
        for b in &slots[i + 1..] {
            let together = a.first.max(b.first) < a.last.min(b.last);
            let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
            assert!(!together || apart, "{a:?} {b:?}");
        }
    }
    // Input, output, and one slot for everything between: each norm may write over its input.
    assert_eq!(p.arena_bytes, 3 * 1024);
}

#[test]
fn what_the_host_touches_keeps_its_slot() {
    let p = plan(chain(3), |d| d.bytes()).unwrap();
    let io: Vec<Slot> = (0..p.graph.tensors.len())
        .filter(|&t| p.graph.tensors[t].place == Place::Io)
        .filter_map(|t| p.slots[t])
        .collect();
    assert_eq!(io.len(), 2);
    assert!(io.iter().all(|s| s.first == 0 && s.last == 2));
    assert_ne!(io[0].offset, io[1].offset);
}

#[test]
fn a_graph_that_reads_what_was_never_written_is_refused() {
    let mut g = chain(2);
    g.nodes.remove(0);
    let message = plan(g, |d| d.bytes()).unwrap_err().to_string();
    assert_eq!(message, "graph: node 0 (RmsNorm) reads n0 before it is written");
}
