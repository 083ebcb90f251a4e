//! The statistics of rows, for a norm, from the matrix product that makes them. Saves a read of all rows, and a kernel.

use super::{Rewrite, Rule, Uses, general, simplest};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::linear::LinearFused;
use crate::ops::norm::RowStats;

pub struct LinearStats;

impl Rule for LinearStats {
    fn name(&self) -> &'static str {
        "linear_stats"
    }

    fn about(&self) -> &'static str {
        "Linear | LinearFused + RowStats -> LinearFused that gives both"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["layer_norm_linear", "linear_residual"]
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let Op::RowStats(RowStats) = g.nodes[at].op else { return None };
        let y = g.nodes[at].ins[0];
        let linear = uses.writer(y)?;
        let op = general(&g.nodes[linear].op)?;
        if op.stats || op.out_f32 {
            return None;
        }
        let outs = [&g.nodes[linear].outs[..], &g.nodes[at].outs].concat();
        let op = LinearFused { stats: true, ..op };
        let node = Node { op: op.into(), ins: g.nodes[linear].ins.clone(), outs };
        Some(Rewrite { remove: vec![linear, at], with: vec![node] })
    }

    fn expand(&self, _: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let Op::LinearFused(op) = &node.op else { return None };
        let [y, stats] = node.outs[..] else { return None };
        let op = simplest(LinearFused { stats: false, ..op.clone() });
        Some(vec![
            Node { op, ins: node.ins.clone(), outs: vec![y] },
            Node { op: RowStats.into(), ins: vec![y], outs: vec![stats] },
        ])
    }
}
