//! Time per node.

use std::fmt;

use serde::Serialize;

use super::super::measure::{Meta, Rates, Spread, WARMUP, human_us, percent, table};
use super::super::{Engine, Question};
use super::{prepare, runs};
use crate::core::{Cost, Result};
use crate::exec::Ceilings;
use crate::graph::Graph;

/// One node of a graph.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct NodeTime {
    pub op: &'static str,
    /// Name of its first output.
    pub name: String,
    /// Element type and shape of its first output.
    pub out: String,
    pub us: f64,
    #[serde(flatten)]
    pub rates: Rates,
}

/// All nodes of one op together.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct OpTotal {
    pub op: &'static str,
    pub nodes: usize,
    pub us: f64,
    /// Of the sum over all nodes.
    pub share: f64,
    #[serde(flatten)]
    pub rates: Rates,
}

/// One graph.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct GraphProfile {
    /// `prefill, 352 rows`.
    pub name: String,
    /// Sum over the nodes, each timed by itself.
    pub nodes_us: f64,
    /// The whole graph as it runs in a request: launches overlap, so it may take less than its nodes.
    pub whole: Option<Spread>,
    /// Longest first.
    pub ops: Vec<OpTotal>,
    /// In order of execution.
    pub nodes: Vec<NodeTime>,
}

/// Where the time of a question goes.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Profile {
    #[serde(flatten)]
    pub meta: Meta,
    pub graphs: Vec<GraphProfile>,
}

/// Times every node of every graph that `question` runs, `repeats` times each.
///
/// # Errors
/// `Input` when the question does not fit the model or its context, `Runtime` when the device fails.
pub fn profile(
    engine: &mut Engine,
    system: Option<&str>,
    question: &Question,
    repeats: usize,
) -> Result<Profile> {
    let inputs = engine.session(system)?.inputs(question)?;
    let model = &mut engine.model;
    let ceilings = model.backend().ceilings();
    let mut graphs = Vec::new();
    for run in runs(model, &inputs)? {
        let exe = prepare(model, &run)?;
        let graph = model.fused(run.work)?;
        let backend = model.backend_mut();
        let whole = Spread::of(&backend.time(exe, run.step, WARMUP, repeats)?);
        let times_us = backend.profile(exe, run.step, repeats)?;
        graphs.push(of_graph(run.name, &graph, &times_us, whole, ceilings));
    }
    Ok(Profile { meta: Meta::of(model.backend()), graphs })
}

fn of_graph(
    name: String,
    graph: &Graph,
    times_us: &[f64],
    whole: Option<Spread>,
    ceilings: Option<Ceilings>,
) -> GraphProfile {
    let nodes_us: f64 = times_us.iter().sum();
    let mut nodes = Vec::new();
    let mut sums: Vec<(&'static str, usize, f64, Cost)> = Vec::new();
    for (i, (node, &us)) in graph.nodes.iter().zip(times_us).enumerate() {
        let cost = graph.node_cost(i);
        let op = node.op.name();
        let out = node.outs.first().map(|&t| graph.desc(t));
        nodes.push(NodeTime {
            op,
            name: out.map_or(String::new(), |d| d.name.clone()),
            out: out.map_or(String::new(), |d| d.brief()),
            us,
            rates: Rates::of(cost, us, ceilings),
        });
        match sums.iter_mut().find(|s| s.0 == op) {
            Some(sum) => (sum.1, sum.2, sum.3) = (sum.1 + 1, sum.2 + us, sum.3 + cost),
            None => sums.push((op, 1, us, cost)),
        }
    }
    sums.sort_by(|a, b| b.2.total_cmp(&a.2));
    let total = |(op, nodes, us, cost): (&'static str, usize, f64, Cost)| OpTotal {
        op,
        nodes,
        us,
        share: us / nodes_us.max(f64::MIN_POSITIVE),
        rates: Rates::of(cost, us, ceilings),
    };
    GraphProfile { name, nodes_us, whole, ops: sums.into_iter().map(total).collect(), nodes }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.meta.device)?;
        for graph in &self.graphs {
            writeln!(f, "\n# {}", graph.name)?;
            let rates = |us: f64, r: &Rates| {
                [
                    format!("{us:.2}"),
                    format!("{:.0}", r.gb_per_s),
                    format!("{:.2}", r.tflop_per_s),
                    percent(r.roofline_share),
                ]
            };
            let nodes: Vec<Vec<String>> = graph
                .nodes
                .iter()
                .map(|n| {
                    [n.name.clone(), n.op.to_owned(), n.out.clone()].into_iter().chain(rates(n.us, &n.rates))
                })
                .map(Iterator::collect)
                .collect();
            f.write_str(&table(&["node", "op", "out", "us", "GB/s", "TFLOP/s", "roofline"], &nodes))?;
            writeln!(f)?;
            let ops: Vec<Vec<String>> = graph
                .ops
                .iter()
                .map(|o| {
                    let head = [o.op.to_owned(), o.nodes.to_string(), percent(Some(o.share))];
                    head.into_iter().chain(rates(o.us, &o.rates)).collect()
                })
                .collect();
            f.write_str(&table(&["op", "nodes", "time", "us", "GB/s", "TFLOP/s", "roofline"], &ops))?;
            let whole = graph.whole.map_or("-".to_owned(), |s| human_us(s.median_us));
            writeln!(f, "nodes one by one {}, whole graph {whole}", human_us(graph.nodes_us))?;
        }
        Ok(())
    }
}
