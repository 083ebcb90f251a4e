//! A residual addition and the norm after it in one pass. Saves a read of the sum. Takes what `linear_residual`
//! leaves: additions whose branch is not a matrix product.

use super::{Rewrite, Rule, Uses};
use crate::core::Place;
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::elementwise::{Act, Add};
use crate::ops::norm::{AddLayerNorm, AddRmsNorm, LayerNorm, RmsNorm};

pub struct AddNorm;

impl Rule for AddNorm {
    fn name(&self) -> &'static str {
        "add_norm"
    }

    fn about(&self) -> &'static str {
        "Add + RmsNorm | LayerNorm -> AddRmsNorm | AddLayerNorm"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let op: Op = match g.nodes[at].op.clone() {
            Op::RmsNorm(RmsNorm { eps }) => AddRmsNorm { eps }.into(),
            Op::LayerNorm(LayerNorm { eps, act: Act::None, scale: 1.0 }) => AddLayerNorm { eps }.into(),
            _ => return None,
        };
        let sum = g.nodes[at].ins[0];
        let add = uses.writer(sum)?;
        if g.nodes[add].op != Op::Add(Add) || g.desc(sum).place != Place::Arena {
            return None;
        }
        let ins = [&g.nodes[add].ins, &g.nodes[at].ins[1..]].concat();
        let node = Node { op, ins, outs: vec![sum, g.nodes[at].outs[0]] };
        Some(Rewrite { remove: vec![add, at], with: vec![node] })
    }

    fn expand(&self, _: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let norm: Op = match &node.op {
            Op::AddRmsNorm(op) => RmsNorm { eps: op.eps }.into(),
            Op::AddLayerNorm(op) => LayerNorm::plain(op.eps).into(),
            _ => return None,
        };
        let (sum, y) = (node.outs[0], node.outs[1]);
        let ins = [&[sum], &node.ins[2..]].concat();
        Some(vec![
            Node { op: Add.into(), ins: node.ins[..2].to_vec(), outs: vec![sum] },
            Node { op: norm, ins, outs: vec![y] },
        ])
    }
}
