//! `silu(x Wgᵀ) · (x Wuᵀ)` in the epilogue of one matrix product over interleaved rows. Saves a read of x and the
//! round trips of gate and up.

use super::{Rewrite, Rule, Uses, unstacked};
use crate::core::{Recipe, Shape};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::elementwise::{Act, Mul, Unary};
use crate::ops::linear::{Linear, LinearAct, LinearFused};

/// Rows of gate and up alternate in blocks of this many: the width of one tensor-core column block, so that a
/// thread holds gate and up of the same column.
const BLOCK_ROWS: usize = 8;

const PLAIN: Linear = Linear { bias: false, out_f32: false };

pub struct Swiglu;

impl Rule for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn about(&self) -> &'static str {
        "Linear gate, up + Silu + Mul -> LinearFused"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        if g.nodes[at].op != Op::Mul(Mul) {
            return None;
        }
        let silu = uses.private_writer(g, g.nodes[at].ins[0])?;
        if g.nodes[silu].op != Op::Unary(Unary { act: Act::Silu }) {
            return None;
        }
        let gate = uses.private_writer(g, g.nodes[silu].ins[0])?;
        let up = uses.private_writer(g, g.nodes[at].ins[1])?;
        let x = g.nodes[gate].ins[0];
        let plain = |n: usize| g.nodes[n].op == Op::Linear(PLAIN) && g.nodes[n].ins[0] == x;
        if !plain(gate) || !plain(up) {
            return None;
        }
        let recipe =
            Recipe::interleave(g.recipe(g.nodes[gate].ins[1])?, g.recipe(g.nodes[up].ins[1])?, BLOCK_ROWS)?;
        let w = g.weight(recipe);
        let op = LinearFused { act: LinearAct::Swiglu, ..LinearFused::of(&PLAIN) };
        let node = Node { op: op.into(), ins: vec![x, w], outs: g.nodes[at].outs.clone() };
        Some(Rewrite { remove: vec![gate, up, silu, at], with: vec![node] })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::LinearFused(op) = &node.op else { return None };
        if *op != (LinearFused { act: LinearAct::Swiglu, ..LinearFused::of(&PLAIN) }) {
            return None;
        }
        let weights = unstacked(g, node.ins[1])?;
        let out = g.desc(node.outs[0]).clone();
        let [gate, up, silu] = ["gate", "up", "silu"]
            .map(|n| g.fresh(&format!("{}.{n}", out.name), out.dtype, Shape::new(out.shape.dims())));
        let linear = |w, out| Node { op: PLAIN.into(), ins: vec![node.ins[0], w], outs: vec![out] };
        Some(vec![
            linear(weights[0], gate),
            linear(weights[1], up),
            Node { op: Unary { act: Act::Silu }.into(), ins: vec![gate], outs: vec![silu] },
            Node { op: Mul.into(), ins: vec![silu, up], outs: node.outs.clone() },
        ])
    }
}
