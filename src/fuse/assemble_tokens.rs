//! Class token and position embeddings in one pass over the patches. Saves a round trip of the patches.

use super::{Rewrite, Rule, Uses};
use crate::core::Shape;
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::conv::{self, PrependClass};
use crate::ops::elementwise::AddTable;

pub struct AssembleTokens;

impl Rule for AssembleTokens {
    fn name(&self) -> &'static str {
        "assemble_tokens"
    }

    fn about(&self) -> &'static str {
        "PrependClass + AddTable -> AssembleTokens"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::AddTable(AddTable) = g.nodes[at].op else { return None };
        let [x, positions] = g.nodes[at].ins[..] else { return None };
        let prepend = uses.private_writer(g, x)?;
        let Op::PrependClass(PrependClass { tiles }) = g.nodes[prepend].op else { return None };
        let ins = [&g.nodes[prepend].ins[..], &[positions]].concat();
        let op = conv::AssembleTokens { tiles };
        let node = Node { op: op.into(), ins, outs: g.nodes[at].outs.clone() };
        Some(Rewrite { remove: vec![prepend, at], with: vec![node] })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::AssembleTokens(op) = &node.op else { return None };
        let [x, class, positions] = node.ins[..] else { return None };
        let out = g.desc(node.outs[0]).clone();
        let y = g.fresh(&format!("{}.with_class", out.name), out.dtype, Shape::new(out.shape.dims()));
        Some(vec![
            Node { op: PrependClass { tiles: op.tiles }.into(), ins: vec![x, class], outs: vec![y] },
            Node { op: AddTable.into(), ins: vec![y, positions], outs: node.outs.clone() },
        ])
    }
}
