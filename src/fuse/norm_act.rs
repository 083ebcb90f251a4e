//! An activation, and a constant factor after it, in the layer norm before them. Saves one or two round trips.

use super::{Rewrite, Rule, Uses};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::elementwise::{Act, Scale, Unary};
use crate::ops::norm::LayerNorm;

pub struct NormAct;

impl Rule for NormAct {
    fn name(&self) -> &'static str {
        "norm_act"
    }

    fn about(&self) -> &'static str {
        "LayerNorm + Gelu | Relu (+ Scale) -> LayerNorm with activation"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let (act, by) = match g.nodes[at].op.clone() {
            Op::Unary(Unary { act }) => (act, 1.0),
            Op::Scale(Scale { by }) => (Act::None, by),
            _ => return None,
        };
        let norm = uses.private_writer(g, g.nodes[at].ins[0])?;
        let Op::LayerNorm(before) = g.nodes[norm].op.clone() else { return None };
        let op = match (before.act, act) {
            (Act::None, act) if act != Act::None && before.scale == 1.0 => LayerNorm { act, ..before },
            (done, Act::None) if done != Act::None && before.scale == 1.0 => {
                LayerNorm { scale: by, ..before }
            }
            _ => return None,
        };
        let node = Node { op: op.into(), ins: g.nodes[norm].ins.clone(), outs: g.nodes[at].outs.clone() };
        Some(Rewrite { remove: vec![norm, at], with: vec![node] })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::LayerNorm(op) = &node.op else { return None };
        if op.act == Act::None {
            return None;
        }
        let out = g.desc(node.outs[0]).clone();
        let normed = g.fresh(&format!("{}.norm", out.name), out.dtype, out.shape);
        let mut nodes =
            vec![Node { op: LayerNorm::plain(op.eps).into(), ins: node.ins.clone(), outs: vec![normed] }];
        let act = |x, y| Node { op: Unary { act: op.act }.into(), ins: vec![x], outs: vec![y] };
        if op.scale == 1.0 {
            nodes.push(act(normed, node.outs[0]));
        } else {
            let active = g.fresh(&format!("{}.act", out.name), out.dtype, out.shape);
            nodes.push(act(normed, active));
            let scale = Scale { by: op.scale };
            nodes.push(Node { op: scale.into(), ins: vec![active], outs: node.outs.clone() });
        }
        Some(nodes)
    }
}
