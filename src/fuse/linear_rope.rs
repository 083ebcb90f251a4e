//! Rotation and cache append in the epilogue of the product that gives q, k and v. Saves a kernel and a round trip of q, k
//! and v. Few rows compute their angles, many take them from a table that all layers share.

use super::{Rewrite, Rule, Uses};
use crate::core::{DType, Shape};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::linear::{self, Angles, Linear};
use crate::ops::rope::RopeTable;

const PLAIN: Linear = Linear { bias: true, out_f32: false };

pub struct LinearRope;

impl Rule for LinearRope {
    fn name(&self) -> &'static str {
        "linear_rope"
    }

    fn about(&self) -> &'static str {
        "Linear + RopeKvAppend -> LinearRope"
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
        let (rows, k) = (g.desc(ins[0]).rows(), g.desc(ins[0]).cols());
        let angles = linear::LinearRope::angles(rows, rope.sequences, k, rope.head_dim)?;
        ins.push(kv);
        let mut with = Vec::new();
        if angles == Angles::Table {
            let table = RopeTable { rows, head_dim: rope.head_dim, theta: rope.theta };
            let made = g.nodes[..at].iter().find(|n| n.op == Op::RopeTable(table.clone()));
            ins.push(made.map(|n| n.outs[0]).unwrap_or_else(|| {
                let out = g.fresh("rope_table", DType::F32, Shape::new(&[rows, rope.head_dim]));
                with.push(Node { op: table.into(), ins: vec![], outs: vec![out] });
                out
            }));
        }
        let op = linear::LinearRope {
            norm: linear::NormBefore::None,
            table: angles == Angles::Table,
            heads: rope.heads,
            kv_heads: rope.kv_heads,
            head_dim: rope.head_dim,
            theta: rope.theta,
            sequences: rope.sequences,
        };
        with.push(Node { op: op.into(), ins, outs: g.nodes[at].outs.clone() });
        Some(Rewrite { remove: vec![product, at], with })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let op = match &node.op {
            Op::LinearRope(op) => op,
            // What it was made for does without.
            Op::RopeTable(_) => return Some(Vec::new()),
            _ => return None,
        };
        let [x, w, b, kv] = node.ins[..4] else { return None };
        if op.norm != linear::NormBefore::None {
            return None;
        }
        let q = g.desc(node.outs[0]).clone();
        let shape = Shape::new(&[g.desc(x).rows(), g.desc(w).rows()]);
        let qkv = g.fresh(&format!("{}.qkv", q.name), q.dtype, shape);
        Some(vec![
            Node { op: PLAIN.into(), ins: vec![x, w, b], outs: vec![qkv] },
            Node { op: op.rope().into(), ins: vec![qkv, kv], outs: node.outs.clone() },
        ])
    }
}
