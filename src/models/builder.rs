//! What the three models share when they write their graphs: weights by checkpoint name, linear layers, residuals.

use crate::core::{DType, Recipe, Result, Tensor};
use crate::graph::Graph;
use crate::ops::Op;
use crate::ops::elementwise::Add;
use crate::ops::linear::Linear;
use crate::ops::norm::{LayerNorm, RmsNorm};

/// A graph under construction.
pub(super) struct Builder {
    pub g: Graph,
    /// Of activations, states and weights: bf16 or f16 on a GPU, f32 on the CPU.
    pub dtype: DType,
}

impl Builder {
    pub fn new(dtype: DType) -> Builder {
        Builder { g: Graph::new(), dtype }
    }

    /// The stored tensor `name`, as it is.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Tensor {
        self.g.weight(Recipe::plain(name, self.dtype, shape))
    }

    pub fn push1(&mut self, name: &str, op: impl Into<Op>, ins: &[Tensor]) -> Result<Tensor> {
        self.g.push1(name, op, ins)
    }

    /// `x Wᵀ (+ b)` with the weights `{name}.weight` `[n, K]` and, if asked for, `{name}.bias` `[n]`.
    pub fn linear(&mut self, name: &str, x: Tensor, n: usize, bias: bool) -> Result<Tensor> {
        let k = self.g.desc(x).cols();
        let w = self.weight(&format!("{name}.weight"), &[n, k]);
        self.linear_with(name, x, w, n, bias)
    }

    /// As [`Builder::linear`] with a weight that is not stored as the graph wants it.
    pub fn linear_with(&mut self, name: &str, x: Tensor, w: Tensor, n: usize, bias: bool) -> Result<Tensor> {
        let mut ins = vec![x, w];
        if bias {
            ins.push(self.weight(&format!("{name}.bias"), &[n]));
        }
        self.push1(name, Linear { bias, out_f32: false }, &ins)
    }

    pub fn layer_norm(&mut self, name: &str, x: Tensor, eps: f32) -> Result<Tensor> {
        let c = self.g.desc(x).cols();
        let w = self.weight(&format!("{name}.weight"), &[c]);
        let b = self.weight(&format!("{name}.bias"), &[c]);
        self.push1(name, LayerNorm::plain(eps), &[x, w, b])
    }

    pub fn rms_norm(&mut self, name: &str, x: Tensor, eps: f32) -> Result<Tensor> {
        let c = self.g.desc(x).cols();
        let w = self.weight(&format!("{name}.weight"), &[c]);
        self.push1(name, RmsNorm { eps }, &[x, w])
    }

    pub fn add(&mut self, name: &str, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.push1(name, Add, &[a, b])
    }
}
