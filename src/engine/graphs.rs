//! Prepared graphs, built on first use and kept by key.

use std::collections::HashMap;
use std::hash::Hash;

use crate::core::{Result, Tensor};
use crate::exec::{Backend, ExeId, Lane, StateId};
use crate::fuse::{Fusion, fuse};
use crate::graph::Graph;
use crate::models::intern_vit::TiledInputs;
use crate::plan::plan;

/// Prepared graphs of one lane.
pub(super) struct Graphs<K, T> {
    lane: Lane,
    ready: HashMap<K, (ExeId, T, u64)>,
    clock: u64,
}

/// How many a lane keeps; beyond it, the one unused for longest goes.
const KEEP: usize = 64;

impl<K: Hash + Eq + Copy, T: Clone> Graphs<K, T> {
    pub fn new(lane: Lane) -> Graphs<K, T> {
        Graphs { lane, ready: HashMap::new(), clock: 0 }
    }

    /// The prepared graph of `key`; `build` gives the graph and the tensors that the host touches.
    pub fn get(
        &mut self,
        backend: &mut dyn Backend,
        fusion: &Fusion,
        states: &[StateId],
        key: K,
        build: impl FnOnce() -> Result<(Graph, T)>,
    ) -> Result<(ExeId, T)> {
        self.clock += 1;
        if let Some((exe, tensors, used)) = self.ready.get_mut(&key) {
            *used = self.clock;
            return Ok((*exe, tensors.clone()));
        }
        if self.ready.len() >= KEEP
            && let Some(oldest) = self.ready.iter().min_by_key(|(_, v)| v.2).map(|(k, _)| *k)
            && let Some((exe, ..)) = self.ready.remove(&oldest)
        {
            backend.release(exe);
        }
        let (graph, tensors) = build()?;
        let plan = plan(fuse(graph, fusion)?, |d| backend.arena_elem_bytes(d))?;
        let exe = backend.prepare(self.lane, plan, states)?;
        self.ready.insert(key, (exe, tensors.clone(), self.clock));
        Ok((exe, tensors))
    }

    /// Whether the graph of `key` is prepared.
    pub fn has(&self, key: &K) -> bool {
        self.ready.contains_key(key)
    }

    /// Releases every graph: what they were built on is about to change.
    pub fn clear(&mut self, backend: &mut dyn Backend) {
        for (_, (exe, ..)) in self.ready.drain() {
            backend.release(exe);
        }
    }
}

/// Tensors of a text graph that the host touches.
#[derive(Clone, Copy)]
pub(super) struct TextIo {
    pub ids: Option<Tensor>,
    pub embeds: Tensor,
    pub hidden: Option<Tensor>,
    pub logits: Option<Tensor>,
    pub token: Option<Tensor>,
}

/// Tensors of a vision graph that begins with a picture.
#[derive(Clone)]
pub(super) struct PictureIo {
    pub inputs: TiledInputs,
    pub result: Tensor,
}

/// Tensors of the graph of a piece of a sound.
#[derive(Clone, Copy)]
pub(super) struct PieceIo {
    pub input: Tensor,
    pub result: Option<Tensor>,
}

/// Tensors of an encoder's graph: its input, its result, and what comparisons look at.
#[derive(Clone)]
pub(super) struct EncoderIo {
    pub input: Tensor,
    pub result: Tensor,
    pub inner: Vec<(&'static str, Tensor)>,
}
