//! `x Wᵀ + b`, and a table on the key columns, in one epilogue. Saves a round trip of the keys.

use super::{Rewrite, Rule, Uses};
use crate::core::Place;
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::attention::AddKeys;
use crate::ops::linear::{Linear, LinearFused};

pub struct LinearKeys;

impl Rule for LinearKeys {
    fn name(&self) -> &'static str {
        "linear_keys"
    }

    fn about(&self) -> &'static str {
        "Linear + AddKeys -> LinearFused"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::AddKeys(AddKeys) = g.nodes[at].op else { return None };
        let [qkv, table] = g.nodes[at].ins[..] else { return None };
        let linear = uses.private_writer(g, qkv)?;
        let Op::Linear(plain @ Linear { out_f32: false, .. }) = &g.nodes[linear].op else { return None };
        let c = g.desc(table).cols();
        // Whole vectors of a table that is the same in every run, as the op wants them.
        if !c.is_multiple_of(8) || !matches!(g.desc(table).place, Place::State(_)) {
            return None;
        }
        let op = LinearFused { residual: true, table_at: Some(c), ..LinearFused::of(plain) };
        let ins = [&g.nodes[linear].ins[..], &[table]].concat();
        let node = Node { op: op.into(), ins, outs: g.nodes[at].outs.clone() };
        Some(Rewrite { remove: vec![linear, at], with: vec![node] })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::LinearFused(op) = &node.op else { return None };
        let (table_at, plain) = (op.table_at, Linear { bias: op.bias, out_f32: false });
        if table_at.is_none() || *op != (LinearFused { residual: true, table_at, ..LinearFused::of(&plain) })
        {
            return None;
        }
        let (table, ins) = node.ins.split_last()?;
        let out = g.desc(node.outs[0]).clone();
        let qkv = g.fresh(&format!("{}.qkv", out.name), out.dtype, out.shape);
        Some(vec![
            Node { op: plain.into(), ins: ins.to_vec(), outs: vec![qkv] },
            Node { op: AddKeys.into(), ins: vec![qkv, *table], outs: node.outs.clone() },
        ])
    }
}
