//! From which node to which a tensor has to keep its bytes.

use crate::core::{DType, Place};
use crate::graph::Graph;

/// `(first, last)` node per tensor; `None` for weights, states and tensors that nobody touches. What the host
/// writes or reads lives through the whole run.
pub(super) fn lives(g: &Graph) -> Vec<Option<(u32, u32)>> {
    let mut lives: Vec<Option<(u32, u32)>> = vec![None; g.tensors.len()];
    let end = g.nodes.len().saturating_sub(1) as u32;
    for (at, node) in g.nodes.iter().enumerate() {
        for &t in node.ins.iter().chain(&node.outs) {
            let live = match g.desc(t).place {
                Place::Weight(_) | Place::State(_) => continue,
                Place::Io => (0, end),
                Place::Arena => (lives[t.0 as usize].map_or(at as u32, |l| l.0), at as u32),
            };
            lives[t.0 as usize] = Some(live);
        }
    }
    lives
}

/// Groups of tensors that share one slot: an output joins the input whose last reader is the node that writes the
/// output, where the op allows it and both have the same size.
pub(super) fn merge_reuse(
    g: &Graph,
    lives: &[Option<(u32, u32)>],
    elem_bytes: &impl Fn(DType) -> usize,
) -> Vec<Vec<usize>> {
    let bytes = |t: usize| g.tensors[t].shape.len() * elem_bytes(g.tensors[t].dtype);
    let mut group_of: Vec<usize> = (0..g.tensors.len()).collect();
    for (at, node) in g.nodes.iter().enumerate() {
        for &(i, o) in node.op.reuse() {
            let (Some(&from), Some(&to)) = (node.ins.get(i), node.outs.get(o)) else { continue };
            let (from, to) = (from.0 as usize, to.0 as usize);
            let arena = |t: usize| g.tensors[t].place == Place::Arena;
            let once = node.ins.iter().filter(|t| t.0 as usize == from).count() == 1;
            let dies = lives[from].is_some_and(|l| l.1 == at as u32);
            if arena(from) && arena(to) && once && dies && bytes(from) == bytes(to) && group_of[to] == to {
                group_of[to] = group_of[from];
            }
        }
    }
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); g.tensors.len()];
    for (t, live) in lives.iter().enumerate() {
        if live.is_some() {
            groups[group_of[t]].push(t);
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}
