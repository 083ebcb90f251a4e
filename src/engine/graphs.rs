//! Prepared graphs, built on first use and kept by key.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use crate::core::{Result, Tensor};
use crate::exec::{Backend, ExeId, Lane, StateId};
use crate::fuse::{Fusion, fuse};
use crate::graph::Graph;
use crate::models::intern_vit::TiledInputs;
use crate::plan::plan;
use crate::weights::Source;

/// Prepared graphs of one lane.
pub(super) struct Graphs<K, T> {
    lane: Lane,
    /// Has the weights that no graph before has asked for.
    source: Arc<dyn Source>,
    ready: HashMap<K, (ExeId, T, u64)>,
    pinned: HashSet<K>,
    clock: u64,
}

/// How many a lane keeps beside those that are pinned; beyond it, the one unused for longest goes.
const KEEP: usize = 64;

impl<K: Hash + Eq + Copy, T: Clone> Graphs<K, T> {
    pub fn new(lane: Lane, source: &Arc<dyn Source>) -> Graphs<K, T> {
        Graphs { lane, source: source.clone(), ready: HashMap::new(), pinned: HashSet::new(), clock: 0 }
    }

    /// The graph of `key` stays from now on, however long nobody uses it.
    pub fn pin(&mut self, key: K) {
        self.pinned.insert(key);
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
        let passing = || self.ready.iter().filter(|(key, _)| !self.pinned.contains(key));
        if passing().count() >= KEEP
            && let Some(oldest) = passing().min_by_key(|(_, v)| v.2).map(|(k, _)| *k)
            && let Some((exe, ..)) = self.ready.remove(&oldest)
        {
            backend.release(exe);
        }
        let (graph, tensors) = build()?;
        let plan = plan(fuse(graph, fusion)?, |d| backend.arena_elem_bytes(d))?;
        backend.load(&plan.graph.weights, &self.source, &mut |_, _| {})?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::DType;
    use crate::exec::cpu::Cpu;
    use crate::ops::elementwise::{Act, Unary};
    use crate::weights::SynthSource;

    #[test]
    fn pinned_graphs_outlive_many_others() {
        let mut cpu = Cpu::new();
        let none: Arc<dyn Source> = Arc::new(SynthSource::new(0, DType::F32, Vec::new()));
        let mut graphs: Graphs<usize, ()> = Graphs::new(Lane::Text, &none);
        let mut built = Vec::new();
        let mut get = |graphs: &mut Graphs<usize, ()>, key: usize| {
            let build = || {
                built.push(key);
                let mut g = Graph::new();
                let x = g.input("x", DType::F32, &[key + 1]);
                let y = g.push1("y", Unary { act: Act::Relu }, &[x])?;
                g.output(y);
                Ok((g, ()))
            };
            graphs.get(&mut cpu, &Fusion::on(), &[], key, build).unwrap().0
        };
        let first = get(&mut graphs, 0);
        graphs.pin(0);
        for key in 1..=KEEP + 1 {
            get(&mut graphs, key);
        }
        // The first of those that are not pinned has given way.
        assert_eq!(get(&mut graphs, 0), first);
        get(&mut graphs, 2);
        get(&mut graphs, 1);
        assert_eq!(built[..], [(0..=KEEP + 1).collect::<Vec<_>>(), vec![1]].concat());
    }
}
