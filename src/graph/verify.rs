//! What must hold of every graph, checked after every pass.

use super::Graph;
use crate::core::{Desc, Error, Place, Result};

impl Graph {
    /// Every tensor is written before it is read and written once, shapes agree with the ops' rules, and no version
    /// of a state is read after a later version was written.
    pub fn verify(&self) -> Result<()> {
        let fail = |m: String| Err(Error::runtime(format!("graph: {m}")));
        let mut written = vec![false; self.tensors.len()];
        let mut state_version: Vec<Option<u32>> = vec![None; self.states.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            let ins: Vec<&Desc> = node.ins.iter().map(|&t| self.desc(t)).collect();
            for (&t, desc) in node.ins.iter().zip(&ins) {
                match desc.place {
                    Place::Weight(i) if i as usize >= self.weights.len() => {
                        return fail(format!("node {at} reads {}, a weight that was dropped", desc.name));
                    }
                    Place::Arena if !written[t.0 as usize] => {
                        return fail(format!(
                            "node {at} ({}) reads {} before it is written",
                            node.op.name(),
                            desc.name
                        ));
                    }
                    Place::State(s) => {
                        let newest = state_version[s as usize];
                        if newest.is_some_and(|v| v != t.0) {
                            return fail(format!(
                                "node {at} ({}) reads an old version of state {}",
                                node.op.name(),
                                desc.name
                            ));
                        }
                    }
                    _ => {}
                }
            }
            let inferred = node.op.infer(&ins)?;
            if inferred.len() != node.outs.len() {
                return fail(format!("node {at} ({}) has {} outputs", node.op.name(), node.outs.len()));
            }
            for (&t, (dtype, shape)) in node.outs.iter().zip(inferred) {
                let desc = self.desc(t);
                if desc.dtype != dtype || desc.shape.len() != shape.len() {
                    return fail(format!("{} is {}, its op gives {shape} {dtype}", desc.name, desc.brief()));
                }
                if std::mem::replace(&mut written[t.0 as usize], true) {
                    return fail(format!("{} is written twice", desc.name));
                }
                if let Place::State(s) = desc.place {
                    state_version[s as usize] = Some(t.0);
                }
            }
        }
        Ok(())
    }
}
