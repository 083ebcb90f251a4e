//! Fusion. A rule states both directions: `fuse` finds a pattern of primitives and replaces it by one op, `expand`
//! is the definition of that op. `expand(fuse(g))` is `g` again, up to the numbering of tensors.

mod add_norm;
mod assemble_tokens;
mod conv_relu;
mod embed_splice;
mod layer_norm_linear;
mod linear_act;
mod linear_arg_max;
mod linear_keys;
mod linear_residual;
mod linear_rms;
mod linear_rope;
mod linear_stats;
mod norm_act;
mod norm_linear;
mod qkv_rope;
mod rms_norm_linear;
mod swiglu;

use crate::core::{Place, Recipe, Result, Tensor};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::linear::LinearFused;

/// Nodes to take out, and what stands in the place of the last of them.
pub struct Rewrite {
    pub remove: Vec<usize>,
    pub with: Vec<Node>,
}

/// One fused op: how it is found and what it means.
pub trait Rule: Sync {
    /// The name that `--no-fuse` takes.
    fn name(&self) -> &'static str;

    /// What it saves, for `--help` and dumps.
    fn about(&self) -> &'static str;

    /// Rules whose results it takes: without them it finds nothing in the models.
    fn needs(&self) -> &'static [&'static str] {
        &[]
    }

    /// The rewrite anchored at node `at`, if the pattern is there.
    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite>;

    /// The primitives that `node` stands for, if this rule made it.
    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>>;
}

/// Every rule, in the order of application: what swallows whole patterns first, what takes the rest last.
pub const RULES: &[&dyn Rule] = &[
    &qkv_rope::QkvRope,
    &linear_rope::LinearRope,
    &linear_keys::LinearKeys,
    &swiglu::Swiglu,
    &norm_act::NormAct,
    &conv_relu::ConvRelu,
    &linear_act::LinearActRule,
    &linear_residual::LinearResidual,
    &add_norm::AddNorm,
    &layer_norm_linear::LayerNormLinear,
    &linear_stats::LinearStats,
    &rms_norm_linear::RmsNormLinear,
    &linear_rms::LinearRms,
    &norm_linear::NormLinear,
    &linear_arg_max::LinearArgMax,
    &embed_splice::EmbedSplice,
    &assemble_tokens::AssembleTokens,
];

/// Which rules are off.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Fusion {
    off: Vec<&'static str>,
}

impl Fusion {
    /// All rules on, as by default.
    pub fn on() -> Fusion {
        Fusion::default()
    }

    /// All rules off: graphs run as the models write them.
    pub fn off() -> Fusion {
        Fusion { off: RULES.iter().map(|r| r.name()).collect() }
    }

    /// All rules but those that `--no-fuse` names; `all` is every one.
    pub fn without<S: AsRef<str>>(names: &[S]) -> Result<Fusion> {
        let mut fusion = Fusion::on();
        for name in names.iter().map(|n| n.as_ref()) {
            match RULES.iter().find(|r| r.name() == name) {
                Some(rule) => fusion.off.push(rule.name()),
                None if name == "all" => return Ok(Fusion::off()),
                None => {
                    let known: Vec<&str> = RULES.iter().map(|r| r.name()).collect();
                    crate::bail_input!("--no-fuse {name}: no such rule; there are: all, {}", known.join(", "))
                }
            }
        }
        Ok(fusion)
    }

    pub fn allows(&self, name: &str) -> bool {
        !self.off.contains(&name)
    }
}

/// Applies the allowed rules in order.
pub fn fuse(mut g: Graph, fusion: &Fusion) -> Result<Graph> {
    for rule in RULES.iter().filter(|r| fusion.allows(r.name())) {
        let mut uses = Uses::of(&g);
        let mut at = 0;
        while at < g.nodes.len() {
            if let Some(rewrite) = rule.fuse(&mut g, &uses, at)
                && fits(&g, &uses, &rewrite)
            {
                at = apply(&mut g, rewrite);
                uses = Uses::of(&g);
            }
            at += 1;
        }
        g.drop_unused_weights();
        g.verify().map_err(|e| e.context(format!("after rule {}", rule.name())))?;
    }
    Ok(g)
}

/// Replaces every fused op by its primitives.
pub fn expand(mut g: Graph) -> Result<Graph> {
    loop {
        let mut nodes = Vec::with_capacity(g.nodes.len());
        let mut changed = false;
        for node in std::mem::take(&mut g.nodes) {
            match RULES.iter().find_map(|r| r.expand(&mut g, &node)) {
                Some(primitives) => {
                    changed = true;
                    nodes.extend(primitives);
                }
                None => nodes.push(node),
            }
        }
        g.nodes = nodes;
        if !changed {
            g.drop_unused_weights();
            g.verify().map_err(|e| e.context("after expansion"))?;
            return Ok(g);
        }
    }
}

/// Who writes and who reads each tensor, by node index. Made again after every rewrite, so in three allocations.
pub struct Uses {
    writer: Vec<Option<usize>>,
    /// Readers of tensor t are `readers[ends[t - 1]..ends[t]]`.
    readers: Vec<usize>,
    ends: Vec<usize>,
}

impl Uses {
    pub fn of(g: &Graph) -> Uses {
        let mut writer = vec![None; g.tensors.len()];
        let mut ends = vec![0; g.tensors.len()];
        for (at, node) in g.nodes.iter().enumerate() {
            node.ins.iter().for_each(|t| ends[t.0 as usize] += 1);
            node.outs.iter().for_each(|t| writer[t.0 as usize] = Some(at));
        }
        // From counts to where each tensor's readers begin; filling moves the beginnings to the ends.
        let mut begin = 0;
        for end in &mut ends {
            begin += std::mem::replace(end, begin);
        }
        let mut readers = vec![0; begin];
        for (at, node) in g.nodes.iter().enumerate() {
            for t in &node.ins {
                let next = &mut ends[t.0 as usize];
                readers[*next] = at;
                *next += 1;
            }
        }
        Uses { writer, readers, ends }
    }

    pub fn readers(&self, t: Tensor) -> &[usize] {
        let t = t.0 as usize;
        let begin = t.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        // A tensor made since has none.
        self.ends.get(t).map_or(&[], |&end| &self.readers[begin..end])
    }

    pub fn writer(&self, t: Tensor) -> Option<usize> {
        self.writer.get(t.0 as usize).copied().flatten()
    }

    /// The node that writes `t`, if `t` may vanish: an arena tensor with one reader.
    pub fn private_writer(&self, g: &Graph, t: Tensor) -> Option<usize> {
        (g.desc(t).place == Place::Arena && self.readers(t).len() == 1).then(|| self.writer(t))?
    }

    /// The only reader of `t`, if `t` may vanish.
    pub fn private_reader(&self, g: &Graph, t: Tensor) -> Option<usize> {
        match (g.desc(t).place, self.readers(t)) {
            (Place::Arena, [reader]) => Some(*reader),
            _ => None,
        }
    }
}

/// Whether nothing reads, before the place of the rewrite, what the rewrite writes.
fn fits(g: &Graph, uses: &Uses, rewrite: &Rewrite) -> bool {
    let Some(&last) = rewrite.remove.iter().max() else { return false };
    let outs = rewrite.remove.iter().flat_map(|&n| &g.nodes[n].outs);
    outs.flat_map(|&t| uses.readers(t)).all(|r| *r > last || rewrite.remove.contains(r))
}

/// Carries a rewrite out; returns the index of the last node put in.
fn apply(g: &mut Graph, rewrite: Rewrite) -> usize {
    let last = rewrite.remove.iter().copied().max().unwrap_or(0);
    let mut nodes = Vec::with_capacity(g.nodes.len());
    let mut end = 0;
    for (at, node) in std::mem::take(&mut g.nodes).into_iter().enumerate() {
        if at == last {
            nodes.extend(rewrite.with.iter().cloned());
            end = nodes.len().saturating_sub(1);
        }
        if !rewrite.remove.contains(&at) {
            nodes.push(node);
        }
    }
    g.nodes = nodes;
    end
}

/// A matrix product in its general form.
fn general(op: &Op) -> Option<LinearFused> {
    match op {
        Op::Linear(op) => Some(LinearFused::of(op)),
        Op::LinearFused(op) => Some(op.clone()),
        _ => None,
    }
}

/// The way back: a product that nothing but its bias follows is the primitive.
fn simplest(op: LinearFused) -> Op {
    op.alone().map_or_else(|| op.into(), Op::from)
}

/// The stored tensors that a stacked or interleaved weight was made of, each as it is stored.
fn unstacked(g: &mut Graph, t: Tensor) -> Option<Vec<Tensor>> {
    let recipe = g.recipe(t).filter(|r| r.fold.is_none())?.clone();
    let plain = |p: &crate::core::Part| Recipe::plain(&p.name, recipe.dtype, p.stored.dims());
    Some(recipe.parts.iter().map(|p| g.weight(plain(p))).collect())
}

#[cfg(test)]
mod tests;
