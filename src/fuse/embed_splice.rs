//! Token embeddings and media rows gathered in one pass. Saves a round trip of the merged sequence.

use super::{Rewrite, Rule, Uses};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::embed::{self, Embed, Splice};

pub struct EmbedSplice;

impl Rule for EmbedSplice {
    fn name(&self) -> &'static str {
        "embed_splice"
    }

    fn about(&self) -> &'static str {
        "Embed + Splice -> EmbedSplice"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::Splice(Splice) = g.nodes[at].op else { return None };
        let [x, ids, media] = g.nodes[at].ins[..] else { return None };
        let gather = uses.private_writer(g, x)?;
        let Op::Embed(Embed) = g.nodes[gather].op else { return None };
        let [same_ids, table] = g.nodes[gather].ins[..] else { return None };
        if same_ids != ids {
            return None;
        }
        let node = Node {
            op: embed::EmbedSplice.into(),
            ins: vec![ids, table, media],
            outs: g.nodes[at].outs.clone(),
        };
        Some(Rewrite { remove: vec![gather, at], with: vec![node] })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::EmbedSplice(_) = node.op else { return None };
        let [ids, table, media] = node.ins[..] else { return None };
        let out = g.desc(node.outs[0]).clone();
        let x = g.fresh(&format!("{}.text", out.name), out.dtype, out.shape);
        Some(vec![
            Node { op: Embed.into(), ins: vec![ids, table], outs: vec![x] },
            Node { op: Splice.into(), ins: vec![x, ids, media], outs: node.outs.clone() },
        ])
    }
}
