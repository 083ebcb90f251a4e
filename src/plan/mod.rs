//! Where every tensor of a graph lives: one arena per lane, slots shared by liveness.

mod liveness;

use crate::core::{DType, Place, Result};
use crate::graph::Graph;

/// A place in the arena. Live from node `first` (which writes it) to node `last` (which reads it last).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    pub offset: usize,
    pub bytes: usize,
    pub first: u32,
    pub last: u32,
}

/// All that a captured graph bakes in, and nothing that changes per step.
#[derive(Clone, Debug)]
pub struct Plan {
    pub graph: Graph,
    /// By tensor index; `None` for weights, states and tensors that no node touches.
    pub slots: Vec<Option<Slot>>,
    pub arena_bytes: usize,
}

/// Slot alignment: what a TMA store wants of its global address, and a full cache sector line.
pub const ALIGN_BYTES: usize = 256;

/// Gives every arena and host tensor a slot. `elem_bytes` says how the backend stores an element.
///
/// Tensors are placed by size, largest first, each at the lowest offset that is free during its life. An output may
/// take over the slot of an input that dies at the same node when its op allows it.
pub fn plan(graph: Graph, elem_bytes: impl Fn(DType) -> usize) -> Result<Plan> {
    graph.verify()?;
    let lives = liveness::lives(&graph);
    let merged = liveness::merge_reuse(&graph, &lives, &elem_bytes);

    let bytes_of = |t: usize| {
        let d = &graph.tensors[t];
        (d.shape.len() * elem_bytes(d.dtype)).next_multiple_of(ALIGN_BYTES)
    };
    // One block per group of tensors that share a slot.
    let mut blocks: Vec<(usize, u32, u32, Vec<usize>)> = Vec::new();
    for group in merged {
        let bytes = group.iter().map(|&t| bytes_of(t)).max().unwrap_or(0);
        let first = group.iter().filter_map(|&t| lives[t]).map(|l| l.0).min().unwrap_or(0);
        let last = group.iter().filter_map(|&t| lives[t]).map(|l| l.1).max().unwrap_or(0);
        blocks.push((bytes, first, last, group));
    }
    blocks.sort_by_key(|(bytes, first, ..)| (std::cmp::Reverse(*bytes), *first));

    let mut placed: Vec<Slot> = Vec::new();
    let mut slots = vec![None; graph.tensors.len()];
    for (bytes, first, last, group) in blocks {
        let mut busy: Vec<(usize, usize)> = placed
            .iter()
            .filter(|s| s.first <= last && first <= s.last)
            .map(|s| (s.offset, s.offset + s.bytes))
            .collect();
        busy.sort_unstable();
        let mut offset = 0;
        for (from, to) in busy {
            if offset + bytes <= from {
                break;
            }
            offset = offset.max(to);
        }
        placed.push(Slot { offset, bytes, first, last });
        for t in group {
            if let Some((first, last)) = lives[t] {
                slots[t] = Some(Slot { offset, bytes: bytes_of(t), first, last });
            }
        }
    }
    let arena_bytes = placed.iter().map(|s| s.offset + s.bytes).max().unwrap_or(0);
    Ok(Plan { graph, slots, arena_bytes })
}

impl Plan {
    /// The slot of `t`, or why it has none.
    pub fn slot(&self, t: crate::core::Tensor) -> Result<Slot> {
        match self.slots[t.0 as usize] {
            Some(slot) => Ok(slot),
            None => crate::bail_runtime!("{} has no place in the arena", self.graph.desc(t).name),
        }
    }

    /// Whether the slot of `t` belongs to the arena of the lane.
    pub fn in_arena(&self, t: crate::core::Tensor) -> bool {
        matches!(self.graph.desc(t).place, Place::Arena | Place::Io)
    }
}

#[cfg(test)]
mod tests;
