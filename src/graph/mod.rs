//! A model as a list of nodes in execution order. A pass takes a graph and returns a new one.

mod dump;
mod verify;

use crate::core::{DType, Error};
use crate::core::{Desc, Place, Recipe, Result, Shape, Tensor};
use crate::ops::Op;

/// One op with the tensors it reads and writes.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    pub op: Op,
    pub ins: Vec<Tensor>,
    pub outs: Vec<Tensor>,
}

/// Nodes in execution order and the facts of every tensor.
///
/// Shapes are numbers: a model builds one graph per sequence length bucket, and every dump and error shows real
/// sizes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub tensors: Vec<Desc>,
    pub weights: Vec<Recipe>,
    /// Memory that outlives a run; `Place::State(i)` is any version of `states[i]`.
    pub states: Vec<Desc>,
}

impl Graph {
    pub fn new() -> Graph {
        Graph::default()
    }

    pub fn desc(&self, t: Tensor) -> &Desc {
        &self.tensors[t.0 as usize]
    }

    fn add(&mut self, desc: Desc) -> Tensor {
        self.tensors.push(desc);
        Tensor(self.tensors.len() as u32 - 1)
    }

    /// A new tensor for a pass to write to.
    pub(crate) fn fresh(&mut self, name: &str, dtype: DType, shape: Shape) -> Tensor {
        self.add(Desc { name: name.to_owned(), dtype, shape, place: Place::Arena })
    }

    /// A tensor that the host writes before a run.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Tensor {
        self.add(Desc { name: name.to_owned(), dtype, shape: Shape::new(shape), place: Place::Io })
    }

    /// A weight. The same recipe twice is the same tensor.
    pub fn weight(&mut self, recipe: Recipe) -> Tensor {
        if let Some(i) = self.weights.iter().position(|w| *w == recipe) {
            let place = Place::Weight(i as u32);
            if let Some(t) = self.tensors.iter().position(|d| d.place == place) {
                return Tensor(t as u32);
            }
        }
        let place = Place::Weight(self.weights.len() as u32);
        let desc = Desc { name: recipe.name(), dtype: recipe.dtype, shape: recipe.shape, place };
        self.weights.push(recipe);
        self.add(desc)
    }

    /// The content of a state as the run finds it.
    pub fn state(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Tensor {
        let place = Place::State(self.states.len() as u32);
        let desc = Desc { name: name.to_owned(), dtype, shape: Shape::new(shape), place };
        self.states.push(desc.clone());
        self.add(desc)
    }

    /// Appends a node. Outputs get their shapes from the op and their names from `name`; an output that continues a
    /// state in place stays on that state's memory.
    pub fn push(&mut self, name: &str, op: impl Into<Op>, ins: &[Tensor]) -> Result<Vec<Tensor>> {
        let op = op.into();
        let inferred = {
            let descs: Vec<&Desc> = ins.iter().map(|&t| self.desc(t)).collect();
            op.infer(&descs).map_err(|e| e.context(name))?
        };
        let mut outs = Vec::with_capacity(inferred.len());
        for (i, (dtype, shape)) in inferred.into_iter().enumerate() {
            let place = match op.in_place().iter().find(|(_, out)| *out == i) {
                Some(&(from, _)) => self.desc(ins[from]).place,
                None => Place::Arena,
            };
            let name = if i == 0 { name.to_owned() } else { format!("{name}.{i}") };
            outs.push(self.add(Desc { name, dtype, shape, place }));
        }
        self.nodes.push(Node { op, ins: ins.to_vec(), outs: outs.clone() });
        Ok(outs)
    }

    /// As [`Graph::push`] for an op with one output.
    pub fn push1(&mut self, name: &str, op: impl Into<Op>, ins: &[Tensor]) -> Result<Tensor> {
        let outs = self.push(name, op, ins)?;
        match outs[..] {
            [out] => Ok(out),
            _ => Err(Error::runtime(format!("{name}: one output expected, the op has {}", outs.len()))),
        }
    }

    /// The host reads `t` after a run: its slot is kept to itself.
    pub fn output(&mut self, t: Tensor) {
        let desc = &mut self.tensors[t.0 as usize];
        if desc.place == Place::Arena {
            desc.place = Place::Io;
        }
    }

    /// `t` is written straight into the whole of state `s`.
    pub fn store(&mut self, t: Tensor, s: Tensor) -> Result<()> {
        let (from, to) = (self.desc(t).clone(), self.desc(s).clone());
        if !matches!(to.place, Place::State(_))
            || from.shape.len() != to.shape.len()
            || from.dtype != to.dtype
        {
            return Err(Error::runtime(format!(
                "{} {} cannot be stored in {} {}",
                from.name,
                from.brief(),
                to.name,
                to.brief()
            )));
        }
        self.tensors[t.0 as usize].place = to.place;
        Ok(())
    }

    /// Nodes that read `t`.
    pub fn readers(&self, t: Tensor) -> impl Iterator<Item = usize> + '_ {
        self.nodes.iter().enumerate().filter(move |(_, n)| n.ins.contains(&t)).map(|(i, _)| i)
    }

    /// The node that writes `t`, if a node does.
    pub fn writer(&self, t: Tensor) -> Option<usize> {
        self.nodes.iter().position(|n| n.outs.contains(&t))
    }

    /// The only reader of an arena tensor: the edge may vanish. `None` for what the host or a state can see.
    pub fn sole_reader(&self, t: Tensor) -> Option<usize> {
        if self.desc(t).place != Place::Arena {
            return None;
        }
        let mut readers = self.readers(t);
        let first = readers.next()?;
        let twice = self.nodes[first].ins.iter().filter(|&&i| i == t).count() > 1;
        if readers.next().is_some() || twice { None } else { Some(first) }
    }

    /// Finds a tensor by its exact name; the last one of that name.
    pub fn find(&self, name: &str) -> Option<Tensor> {
        self.tensors.iter().rposition(|d| d.name == name).map(|i| Tensor(i as u32))
    }

    /// The recipe behind a weight tensor.
    pub fn recipe(&self, t: Tensor) -> Option<&Recipe> {
        match self.desc(t).place {
            Place::Weight(i) => self.weights.get(i as usize),
            _ => None,
        }
    }

    /// Drops weights that no node reads any more and renumbers the rest.
    pub fn drop_unused_weights(&mut self) {
        let mut used = vec![false; self.weights.len()];
        for node in &self.nodes {
            for &t in &node.ins {
                if let Place::Weight(i) = self.desc(t).place {
                    used[i as usize] = true;
                }
            }
        }
        let mut renumbered = vec![u32::MAX; used.len()];
        let kept = (0..used.len()).filter(|&i| used[i]);
        kept.zip(0..).for_each(|(i, n)| renumbered[i] = n);
        let mut keep = used.iter();
        self.weights.retain(|_| *keep.next().unwrap_or(&false));
        for desc in &mut self.tensors {
            if let Place::Weight(i) = desc.place {
                // A tensor whose weight went in an earlier pass has a number beyond all.
                desc.place = Place::Weight(renumbered.get(i as usize).copied().unwrap_or(u32::MAX));
            }
        }
    }
}
