//! ReLU in the epilogue of a convolution. Saves a round trip of the largest activation of the audio encoder.

use super::{Rewrite, Rule, Uses};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::conv::Conv2d;
use crate::ops::elementwise::{Act, Unary};

pub struct ConvRelu;

impl Rule for ConvRelu {
    fn name(&self) -> &'static str {
        "conv_relu"
    }

    fn about(&self) -> &'static str {
        "Conv2d + Relu -> Conv2d with ReLU"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::Unary(Unary { act: Act::Relu }) = g.nodes[at].op else { return None };
        let conv = uses.private_writer(g, g.nodes[at].ins[0])?;
        let Op::Conv2d(op) = g.nodes[conv].op.clone() else { return None };
        if op.relu {
            return None;
        }
        let op = Conv2d { relu: true, ..op };
        let node = Node { op: op.into(), ins: g.nodes[conv].ins.clone(), outs: g.nodes[at].outs.clone() };
        Some(Rewrite { remove: vec![conv, at], with: vec![node] })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::Conv2d(op) = &node.op else { return None };
        if !op.relu {
            return None;
        }
        let out = g.desc(node.outs[0]).clone();
        let y = g.fresh(&format!("{}.conv", out.name), out.dtype, out.shape);
        let conv = Conv2d { relu: false, ..op.clone() };
        Some(vec![
            Node { op: conv.into(), ins: node.ins.clone(), outs: vec![y] },
            Node { op: Unary { act: Act::Relu }.into(), ins: vec![y], outs: node.outs.clone() },
        ])
    }
}
