//! q, k and v from one matrix, whose rows stand in the order in which a kernel turns them; rotation and cache append in one
//! kernel. Saves two reads of x and three round trips of q, k and v.

use super::{Rewrite, Rule, Uses, unstacked};
use crate::core::{Recipe, Shape, Tensor};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::linear::Linear;
use crate::ops::rope::{KvAppend, PAIR_BLOCK, Rope, RopeKvAppend};

pub struct QkvRope;

impl Rule for QkvRope {
    fn name(&self) -> &'static str {
        "qkv_rope"
    }

    fn about(&self) -> &'static str {
        "Linear q, k, v + Rope q, k + KvAppend -> Linear + RopeKvAppend"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::KvAppend(append) = g.nodes[at].op.clone() else { return None };
        let [k_rotated, v, kv] = g.nodes[at].ins[..] else { return None };
        let kv_next = g.nodes[at].outs[0];

        let k_rope = uses.private_writer(g, k_rotated)?;
        let Op::Rope(rope) = g.nodes[k_rope].op.clone() else { return None };
        let k_linear = uses.private_writer(g, g.nodes[k_rope].ins[0])?;
        let v_linear = uses.private_writer(g, v)?;
        let x = g.nodes[k_linear].ins[0];
        let (q_linear, q_rope) = uses.readers(x).iter().find_map(|&n| {
            let reader = uses.private_reader(g, *g.nodes[n].outs.first()?)?;
            (n != k_linear && matches!(g.nodes[reader].op, Op::Rope(_))).then_some((n, reader))
        })?;
        let Op::Rope(q) = g.nodes[q_rope].op.clone() else { return None };
        let linears = [q_linear, k_linear, v_linear];
        let plain = Linear { bias: true, out_f32: false };
        if linears.iter().any(|&n| g.nodes[n].op != Op::Linear(plain.clone()) || g.nodes[n].ins[0] != x) {
            return None;
        }
        let sequences = append.sequences;
        if (q.head_dim, q.theta, q.sequences) != (rope.head_dim, rope.theta, rope.sequences)
            || q.sequences != sequences
        {
            return None;
        }

        let w = paired(g, &linears.map(|n| g.nodes[n].ins[1]), q.head_dim)?;
        let b = paired(g, &linears.map(|n| g.nodes[n].ins[2]), q.head_dim)?;
        let (rows, dtype) = (g.desc(x).rows(), g.desc(x).dtype);
        let name = g.desc(g.nodes[q_linear].outs[0]).name.replace("q_proj", "qkv_proj");
        let cols = (q.heads + 2 * append.kv_heads) * q.head_dim;
        let qkv = g.fresh(&name, dtype, Shape::new(&[rows, cols]));
        let Rope { heads, head_dim, theta, .. } = q;
        let fused = RopeKvAppend { heads, kv_heads: append.kv_heads, head_dim, theta, sequences };
        let with = vec![
            Node { op: plain.into(), ins: vec![x, w, b], outs: vec![qkv] },
            Node { op: fused.into(), ins: vec![qkv, kv], outs: vec![g.nodes[q_rope].outs[0], kv_next] },
        ];
        Some(Rewrite { remove: vec![q_linear, k_linear, v_linear, q_rope, k_rope, at], with })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        match &node.op {
            Op::RopeKvAppend(op) => {
                // The matrix before it is expanded below, into these three parts.
                let (rows, dtype) = (g.desc(node.ins[0]).rows(), g.desc(node.ins[0]).dtype);
                let parts =
                    thirds(g, node.ins[0], [op.heads, op.kv_heads, op.kv_heads].map(|h| h * op.head_dim));
                let (head_dim, sequences) = (op.head_dim, op.sequences);
                let rope = |heads| Rope { heads, head_dim, theta: op.theta, sequences };
                let k = g.fresh("k_rope", dtype, Shape::new(&[rows, op.kv_heads * op.head_dim]));
                let append = KvAppend { kv_heads: op.kv_heads, head_dim, sequences };
                Some(vec![
                    Node { op: rope(op.heads).into(), ins: vec![parts[0]], outs: vec![node.outs[0]] },
                    Node { op: rope(op.kv_heads).into(), ins: vec![parts[1]], outs: vec![k] },
                    Node { op: append.into(), ins: vec![k, parts[2], node.ins[1]], outs: vec![node.outs[1]] },
                ])
            }
            Op::Linear(op) => split_linear(g, node, op),
            _ => None,
        }
    }
}

/// The weights of several layers stacked by rows, every head in pairs; `None` unless heads have them.
fn paired(g: &mut Graph, of: &[Tensor], head_dim: usize) -> Option<Tensor> {
    let in_pairs = |&t: &Tensor| g.recipe(t)?.interleave_halves(head_dim, PAIR_BLOCK);
    let recipes: Vec<Recipe> = of.iter().map(in_pairs).collect::<Option<_>>()?;
    let recipe = Recipe::stack(&recipes.iter().collect::<Vec<_>>())?;
    Some(g.weight(recipe))
}

/// The three tensors that a stacked `qkv` stands for, named so that both expansions find the same ones.
pub(super) fn thirds(g: &mut Graph, qkv: Tensor, cols: [usize; 3]) -> [Tensor; 3] {
    let (name, dtype, rows) = (g.desc(qkv).name.clone(), g.desc(qkv).dtype, g.desc(qkv).rows());
    std::array::from_fn(|i| {
        let name = format!("{name}.{}", ["q", "k", "v"][i]);
        g.find(&name).unwrap_or_else(|| g.fresh(&name, dtype, Shape::new(&[rows, cols[i]])))
    })
}

/// A Linear over a stacked weight as one Linear per stored matrix.
fn split_linear(g: &mut Graph, node: &Node, op: &Linear) -> Option<Vec<Node>> {
    if !op.bias || g.recipe(node.ins[1])?.parts.len() != 3 {
        return None;
    }
    let weights = unstacked(g, node.ins[1])?;
    let biases = unstacked(g, node.ins[2])?;
    let cols = [0, 1, 2].map(|i| g.desc(weights[i]).shape[0]);
    let outs = thirds(g, node.outs[0], cols);
    let part = |i: usize| Node {
        op: op.clone().into(),
        ins: vec![node.ins[0], weights[i], biases[i]],
        outs: vec![outs[i]],
    };
    Some((0..3).map(part).collect())
}
