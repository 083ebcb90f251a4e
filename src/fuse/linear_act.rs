//! GELU or ReLU in the epilogue of the matrix product before it. Saves a round trip of the hidden activations.

use super::{Rewrite, Rule, Uses};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::elementwise::{Act, Unary};
use crate::ops::linear::{Linear, LinearAct, LinearFused};

pub struct LinearActRule;

impl Rule for LinearActRule {
    fn name(&self) -> &'static str {
        "linear_act"
    }

    fn about(&self) -> &'static str {
        "Linear + Gelu | Relu -> LinearFused"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let act = match g.nodes[at].op {
            Op::Unary(Unary { act: Act::Gelu }) => LinearAct::Gelu,
            Op::Unary(Unary { act: Act::Relu }) => LinearAct::Relu,
            _ => return None,
        };
        let linear = uses.private_writer(g, g.nodes[at].ins[0])?;
        let Op::Linear(plain @ Linear { out_f32: false, .. }) = &g.nodes[linear].op else { return None };
        let op = LinearFused { act, ..LinearFused::of(plain) };
        let node = Node { op: op.into(), ins: g.nodes[linear].ins.clone(), outs: g.nodes[at].outs.clone() };
        Some(Rewrite { remove: vec![linear, at], with: vec![node] })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::LinearFused(op) = &node.op else { return None };
        let act = match op.act {
            LinearAct::Gelu => Act::Gelu,
            LinearAct::Relu => Act::Relu,
            _ => return None,
        };
        if *op != (LinearFused { act: op.act, ..LinearFused::of(&Linear { bias: op.bias, out_f32: false }) })
        {
            return None;
        }
        let out = g.desc(node.outs[0]).clone();
        let y = g.fresh(&format!("{}.linear", out.name), out.dtype, out.shape);
        let linear = Linear { bias: op.bias, out_f32: false };
        Some(vec![
            Node { op: linear.into(), ins: node.ins.clone(), outs: vec![y] },
            Node { op: Unary { act }.into(), ins: vec![y], outs: node.outs.clone() },
        ])
    }
}
