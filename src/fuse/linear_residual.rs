//! `r + s · (x Wᵀ + b)` in one epilogue: the residual, with or without a layer scale. Saves one or two round trips
//! of the branch's output.

use super::{Rewrite, Rule, Uses};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::elementwise::{Add, RowScale};
use crate::ops::linear::{Linear, LinearFused};

pub struct LinearResidual;

impl Rule for LinearResidual {
    fn name(&self) -> &'static str {
        "linear_residual"
    }

    fn about(&self) -> &'static str {
        "Linear (+ RowScale) + Add -> LinearFused"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::Add(Add) = g.nodes[at].op else { return None };
        let [residual, branch] = g.nodes[at].ins[..] else { return None };
        let mut remove = vec![at];
        let mut linear = uses.private_writer(g, branch)?;
        let mut scale = None;
        if let Op::RowScale(RowScale) = g.nodes[linear].op {
            scale = Some(g.nodes[linear].ins[1]);
            remove.push(linear);
            linear = uses.private_writer(g, g.nodes[linear].ins[0])?;
        }
        let Op::Linear(plain @ Linear { out_f32: false, .. }) = &g.nodes[linear].op else { return None };
        remove.push(linear);

        let mut ins = g.nodes[linear].ins.clone();
        ins.extend(scale);
        ins.push(residual);
        let op = LinearFused { scale: scale.is_some(), residual: true, ..LinearFused::of(plain) };
        let node = Node { op: op.into(), ins, outs: g.nodes[at].outs.clone() };
        Some(Rewrite { remove, with: vec![node] })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::LinearFused(op) = &node.op else { return None };
        let (scale, plain) = (op.scale, Linear { bias: op.bias, out_f32: false });
        if *op != (LinearFused { scale, residual: true, ..LinearFused::of(&plain) }) {
            return None;
        }
        let out = g.desc(node.outs[0]).clone();
        let args = 2 + op.bias as usize;
        let residual = *node.ins.last()?;
        let mut branch = g.fresh(&format!("{}.branch", out.name), out.dtype, out.shape);
        let mut nodes = vec![Node { op: plain.into(), ins: node.ins[..args].to_vec(), outs: vec![branch] }];
        if op.scale {
            let scaled = g.fresh(&format!("{}.scaled", out.name), out.dtype, out.shape);
            nodes.push(Node { op: RowScale.into(), ins: vec![branch, node.ins[args]], outs: vec![scaled] });
            branch = scaled;
        }
        nodes.push(Node { op: Add.into(), ins: vec![residual, branch], outs: node.outs.clone() });
        Some(nodes)
    }
}
