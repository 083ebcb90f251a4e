//! The largest logit found where the logits are made, for one row. Saves a read of the logits and the start of a kernel
//! over them.

use super::{Rewrite, Rule, Uses, general, simplest};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::linear::{self, NormBefore};
use crate::ops::sample::ArgMax;

pub struct LinearArgMax;

impl Rule for LinearArgMax {
    fn name(&self) -> &'static str {
        "linear_arg_max"
    }

    fn about(&self) -> &'static str {
        "Linear | LinearFused with a norm + ArgMax -> LinearArgMax, for one row"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::ArgMax(ArgMax { limit }) = g.nodes[at].op else { return None };
        let logits = g.nodes[at].ins[0];
        let product = uses.writer(logits)?;
        let fused = general(&g.nodes[product].op)?;
        let norm = match fused.norm {
            NormBefore::Rms(eps) => Some(eps),
            _ => None,
        };
        let op = linear::LinearArgMax { norm, limit };
        let x = g.desc(g.nodes[product].ins[0]);
        if fused != op.parts().0 || !linear::LinearArgMax::takes(x.rows(), x.cols()) {
            return None;
        }
        let outs = vec![logits, g.nodes[at].outs[0]];
        let node = Node { op: op.into(), ins: g.nodes[product].ins.clone(), outs };
        Some(Rewrite { remove: vec![product, at], with: vec![node] })
    }

    fn expand(&self, _: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::LinearArgMax(op) = &node.op else { return None };
        let [logits, ids] = node.outs[..] else { return None };
        let (product, arg_max) = op.parts();
        Some(vec![
            Node { op: simplest(product), ins: node.ins.clone(), outs: vec![logits] },
            Node { op: arg_max.into(), ins: vec![logits], outs: vec![ids] },
        ])
    }
}
