//! A LayerNorm in front of a matrix product, without a pass over its rows. The gain goes into the product's weight, whose
//! rows then lose their mean, so that a mean of x no longer shows; the shift makes a vector beside the bias; what is left,
//! the deviation of a row, divides its sums. Saves a kernel that reads and writes all rows, where it lies between two
//! products: the one before it gives the statistics of its rows (`linear_stats`).

use super::{Rewrite, Rule, Uses, general, simplest};
use crate::core::{DType, Tensor};
use crate::graph::{Graph, Node};
use crate::ops::Op;
use crate::ops::linear::{LinearAct, LinearFused, NormBefore, gains_behind_norm};
use crate::ops::norm::{LayerNorm, RowStats, row_stats_shape};

pub struct LayerNormLinear;

impl Rule for LayerNormLinear {
    fn name(&self) -> &'static str {
        "layer_norm_linear"
    }

    fn about(&self) -> &'static str {
        "LayerNorm + Linear | LinearFused -> RowStats + the product with the norm's gain in its weight"
    }

    fn fuse(&self, g: &mut Graph, uses: &Uses, at: usize) -> Option<Rewrite> {
        let op = general(&g.nodes[at].op)?;
        if op.norm != NormBefore::None || op.scale || op.act == LinearAct::Swiglu {
            return None;
        }
        let [y, w, ref rest @ ..] = g.nodes[at].ins[..] else { return None };
        let rest = rest.to_vec();
        let norm = uses.private_writer(g, y)?;
        let Op::LayerNorm(LayerNorm { eps, .. }) = g.nodes[norm].op else { return None };
        let [x, gain, shift] = g.nodes[norm].ins[..] else { return None };
        if g.nodes[norm].op != LayerNorm::plain(eps).into() || !gains_behind_norm(g.desc(x).rows()) {
            return None;
        }
        let stats_shape = row_stats_shape(g.desc(x))?;
        let centred = g.recipe(w)?.centred(g.recipe(gain)?)?;
        let shifted = g.recipe(w)?.shifted_by(g.recipe(shift)?)?;
        let (w, d) = (g.weight(centred), g.weight(shifted));
        let outs = g.nodes[at].outs.clone();
        let name = format!("{}.stats", g.desc(outs[0]).name);
        let stats = g.fresh(&name, DType::F32, stats_shape);
        let ins = [&[x, w], &rest[..], &[d, stats]].concat();
        let op = LinearFused { norm: NormBefore::Layer(eps), ..op };
        let with = vec![
            Node { op: RowStats.into(), ins: vec![x], outs: vec![stats] },
            Node { op: op.into(), ins, outs },
        ];
        Some(Rewrite { remove: vec![norm, at], with })
    }

    fn expand(&self, g: &mut Graph, node: &Node) -> Option<Vec<Node>> {
        let op = match &node.op {
            // Its reader says all without it.
            Op::RowStats(RowStats) => return Some(Vec::new()),
            Op::LinearFused(op) => op.clone(),
            _ => return None,
        };
        let NormBefore::Layer(eps) = op.norm else { return None };
        let [x, w, rest @ .., d, _] = &node.ins[..] else { return None };
        let [gain, shift] = [*w, *d].map(|t| folded_in(g, t));
        let (gain, shift, plain) = (gain?, shift?, g.recipe(*w)?.unfolded());
        let w = g.weight(plain);
        let (name, desc) = (g.desc(node.outs[0]).name.clone(), g.desc(*x).clone());
        let y = g.fresh(&format!("{name}.normed"), desc.dtype, desc.shape);
        let op = simplest(LinearFused { norm: NormBefore::None, ..op });
        Some(vec![
            Node { op: LayerNorm::plain(eps).into(), ins: vec![*x, gain, shift], outs: vec![y] },
            Node { op, ins: [&[y, w], rest].concat(), outs: node.outs.clone() },
        ])
    }
}

/// The vector that is in the weight `t`.
fn folded_in(g: &mut Graph, t: Tensor) -> Option<Tensor> {
    let vector = g.recipe(t)?.fold.as_ref()?.vector().clone();
    Some(g.weight(vector))
}
