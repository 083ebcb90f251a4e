//! Whale's q, k and v from one matrix; positions folded into the keys in place. Saves two reads of x and a copy of k.

use super::qkv_rope::thirds;
use super::{Rewrite, Rule, Uses, stacked};
use crate::core::Shape;
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::attention::{Attention, FoldKeys, KeyBias, Source};
use crate::ops::linear::Linear;

pub struct WhaleQkv;

impl Rule for WhaleQkv {
    fn name(&self) -> &'static str {
        "whale_qkv"
    }

    fn about(&self) -> &'static str {
        "Linear q, k, v + KeyBias + Attention -> Linear + FoldKeys + packed Attention"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::KeyBias(keys) = g.nodes[at].op.clone() else { return None };
        let [k, p, u, v_bias] = g.nodes[at].ins[..] else { return None };
        let attn = uses.private_reader(g, g.nodes[at].outs[0])?;
        let Op::Attention(attention) = g.nodes[attn].op.clone() else { return None };
        let [q, kp, v, bias] = g.nodes[attn].ins[..] else { return None };
        if attention.source != Source::Separate || [kp, bias] != g.nodes[at].outs[..] {
            return None;
        }
        let linears = [uses.private_writer(g, q)?, uses.private_writer(g, k)?, uses.private_writer(g, v)?];
        let x = g.nodes[linears[0]].ins[0];
        let plain = Linear { bias: true, out_f32: false };
        if linears.iter().any(|&n| g.nodes[n].op != Op::Linear(plain.clone()) || g.nodes[n].ins[0] != x) {
            return None;
        }

        let w = stacked(g, &linears.map(|n| g.nodes[n].ins[1]))?;
        let b = stacked(g, &linears.map(|n| g.nodes[n].ins[2]))?;
        let (rows, dtype, c) = (g.desc(x).rows(), g.desc(x).dtype, g.desc(q).cols());
        let name = g.desc(q).name.replace("linear_q", "linear_qkv");
        let qkv = g.fresh(&name, dtype, Shape::new(&[rows, 3 * c]));
        let folded = g.fresh(&format!("{name}.folded"), dtype, Shape::new(&[rows, 3 * c]));
        let fold = FoldKeys { heads: keys.heads, head_dim: keys.head_dim, scale: keys.scale };
        let packed = Attention { source: Source::Packed, ..attention };
        let with = vec![
            Node { op: plain.into(), ins: vec![x, w, b], outs: vec![qkv] },
            Node { op: fold.into(), ins: vec![qkv, p, u, v_bias], outs: vec![folded, bias] },
            Node { op: packed.into(), ins: vec![folded, bias], outs: g.nodes[attn].outs.clone() },
        ];
        let mut remove = linears.to_vec();
        remove.extend([at, attn]);
        Some(Rewrite { remove, with })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        match &node.op {
            Op::FoldKeys(op) => {
                let c = op.heads * op.head_dim;
                let [q, k, v] = thirds(g, node.ins[0], [c; 3]);
                let _ = (q, v);
                let (rows, dtype) = (g.desc(k).rows(), g.desc(k).dtype);
                let name = format!("{}.folded", g.desc(node.ins[0]).name);
                let kp = g
                    .find(&format!("{name}.k"))
                    .unwrap_or_else(|| g.fresh(&format!("{name}.k"), dtype, Shape::new(&[rows, c])));
                let keys = KeyBias { heads: op.heads, head_dim: op.head_dim, scale: op.scale };
                let ins = [&[k], &node.ins[1..]].concat();
                Some(vec![Node { op: keys.into(), ins, outs: vec![kp, node.outs[1]] }])
            }
            Op::Attention(op) if op.source == Source::Packed && op.bias => {
                let folded = g.desc(node.ins[0]).name.clone();
                let qkv = g.find(folded.strip_suffix(".folded")?)?;
                let c = op.heads * op.head_dim;
                let [q, _, v] = thirds(g, qkv, [c; 3]);
                let kp = g.find(&format!("{folded}.k"))?;
                let separate = Attention { source: Source::Separate, ..op.clone() };
                Some(vec![Node {
                    op: separate.into(),
                    ins: vec![q, kp, v, node.ins[1]],
                    outs: node.outs.clone(),
                }])
            }
            _ => None,
        }
    }
}
