//! Rotation and cache append in the epilogue of the product that gives q, k and v, for few rows. Saves a kernel and a
//! round trip of q, k and v.

use super::{Rewrite, Rule, Uses};
use crate::core::Shape;
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::linear::{self, Linear};

const PLAIN: Linear = Linear { bias: true, out_f32: false };

pub struct LinearRope;

impl Rule for LinearRope {
    fn name(&self) -> &'static str {
        "linear_rope"
    }

    fn about(&self) -> &'static str {
        "Linear + RopeKvAppend -> LinearRope, for few rows"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["qkv_rope"]
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::RopeKvAppend(rope) = g.nodes[at].op.clone() else { return None };
        let [qkv, kv] = g.nodes[at].ins[..] else { return None };
        let product = uses.private_writer(g, qkv)?;
        if g.nodes[product].op != Op::Linear(PLAIN) {
            return None;
        }
        let mut ins = g.nodes[product].ins.clone();
        let x = g.desc(ins[0]);
        if !linear::LinearRope::takes(x.rows(), rope.sequences, x.cols(), rope.head_dim) {
            return None;
        }
        ins.push(kv);
        let op = linear::LinearRope {
            norm: None,
            heads: rope.heads,
            kv_heads: rope.kv_heads,
            head_dim: rope.head_dim,
            theta: rope.theta,
            sequences: rope.sequences,
        };
        let node = Node { op: op.into(), ins, outs: g.nodes[at].outs.clone() };
        Some(Rewrite { remove: vec![product, at], with: vec![node] })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::LinearRope(op) = &node.op else { return None };
        let [x, w, b, kv] = node.ins[..] else { return None };
        let q = g.desc(node.outs[0]).clone();
        let shape = Shape::new(&[g.desc(x).rows(), g.desc(w).rows()]);
        let qkv = g.fresh(&format!("{}.qkv", q.name), q.dtype, shape);
        Some(vec![
            Node { op: PLAIN.into(), ins: vec![x, w, b], outs: vec![qkv] },
            Node { op: op.rope().into(), ins: vec![qkv, kv], outs: node.outs.clone() },
        ])
    }
}
