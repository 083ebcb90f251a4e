//! The beginning of an RmsNorm, by the matrix product that makes its rows. Saves a read of all rows, and a kernel.

use super::{Rewrite, Rule, Uses, general, simplest};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::linear::{LinearAct, LinearFused, NormBefore};
use crate::ops::norm::RmsBegin;

pub struct LinearRms;

impl Rule for LinearRms {
    fn name(&self) -> &'static str {
        "linear_rms"
    }

    fn about(&self) -> &'static str {
        "Linear | LinearFused + RmsBegin -> LinearFused that gives both"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["rms_norm_linear", "linear_residual", "swiglu"]
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::RmsBegin(RmsBegin) = g.nodes[at].op else { return None };
        let [y, gain] = g.nodes[at].ins[..] else { return None };
        let linear = uses.writer(y)?;
        let op = general(&g.nodes[linear].op)?;
        if op.norm != NormBefore::None
            || op.stats
            || op.begins
            || op.scale
            || op.out_f32
            || op.act != LinearAct::None
        {
            return None;
        }
        let ins = [&g.nodes[linear].ins[..], &[gain]].concat();
        let outs = [&g.nodes[linear].outs[..], &g.nodes[at].outs].concat();
        let op = LinearFused { begins: true, ..op };
        Some(Rewrite { remove: vec![linear, at], with: vec![Node { op: op.into(), ins, outs }] })
    }

    fn expand(&self, _: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::LinearFused(op) = &node.op else { return None };
        let ([ins @ .., gain], [y, z, squares]) = (&node.ins[..], &node.outs[..]) else { return None };
        if !op.begins {
            return None;
        }
        let op = simplest(LinearFused { begins: false, ..op.clone() });
        Some(vec![
            Node { op, ins: ins.to_vec(), outs: vec![*y] },
            Node { op: RmsBegin.into(), ins: vec![*y, *gain], outs: vec![*z, *squares] },
        ])
    }
}
