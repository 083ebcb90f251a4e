//! A graph as text: one line per node with real shapes.

use std::fmt;

use super::Graph;
use crate::core::{Cost, Desc, Place};

impl Graph {
    /// Work and bytes of the whole graph.
    pub fn cost(&self) -> Cost {
        (0..self.nodes.len()).fold(Cost::default(), |sum, i| sum + self.node_cost(i))
    }

    pub fn node_cost(&self, node: usize) -> Cost {
        let n = &self.nodes[node];
        let ins: Vec<&Desc> = n.ins.iter().map(|&t| self.desc(t)).collect();
        let outs: Vec<&Desc> = n.outs.iter().map(|&t| self.desc(t)).collect();
        n.op.cost(&ins, &outs)
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |d: &Desc| match d.place {
            Place::Arena => "",
            Place::Weight(_) => "w:",
            Place::State(_) => "state:",
            Place::Io => "io:",
        };
        for (i, node) in self.nodes.iter().enumerate() {
            let outs: Vec<String> = node
                .outs
                .iter()
                .map(|&t| self.desc(t))
                .map(|d| format!("{}{} {}", mark(d), d.name, d.brief()))
                .collect();
            let ins: Vec<String> =
                node.ins.iter().map(|&t| self.desc(t)).map(|d| format!("{}{}", mark(d), d.name)).collect();
            writeln!(f, "{i:4}  {} = {:?}({})", outs.join(", "), node.op, ins.join(", "))?;
        }
        let cost = self.cost();
        writeln!(
            f,
            "      {} nodes, {} weights, {} states, {:.3} GFLOP, {:.3} GB",
            self.nodes.len(),
            self.weights.len(),
            self.states.len(),
            cost.flops as f64 / 1e9,
            cost.bytes() as f64 / 1e9
        )
    }
}
