//! How a weight is built from what the checkpoint stores: rows stacked, rows interleaved, axes permuted, columns
//! padded, a norm's gain or shift folded in. A recipe is data: the CPU reads through it, the loader carries it out on the
//! way to the device, the synthesiser fills through it. No second copy of a weight is ever made on its way there.

use super::{dtype::DType, shape::Shape};

/// One checkpoint tensor's share of a weight.
///
/// The stored tensor, row-major, is read as `dims`; element `[i0, .., i4]` goes to `offset + Σ i·strides` of the
/// weight, in elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Part {
    /// Checkpoint name.
    pub name: String,
    /// Shape as stored, for checking; its product equals that of `dims`.
    pub stored: Shape,
    pub dims: [usize; 5],
    pub offset: usize,
    pub strides: [usize; 5],
}

/// A weight as the graph wants it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Recipe {
    pub dtype: DType,
    pub shape: Shape,
    /// Of the weight before anything is folded, see [`Recipe::unfolded`].
    pub parts: Vec<Part>,
    /// The parts do not cover the weight: the rest is zero.
    pub padded: bool,
    /// What becomes of the weight that the parts make.
    pub fold: Option<Fold>,
}

/// What a layer norm leaves in the weight `w` `[N, K]` behind it. With gain g and shift s `[K]`, a row x of mean m and
/// standard deviation σ,
///
/// `w·(g∘(x - m)/σ + s) = (c·x)/σ + d`,
///
/// where c and d follow from w, g and s alone: the norm of x is but a factor of each row of a product. Gain and shift are
/// vectors that nothing was folded into, of the weight's type.
///
/// Products and sums are f32, of elements rounded to the weight's type; a result is rounded once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Fold {
    /// c `[N, K]`: `c[n, k] = w[n, k]·g[k] - mean over j of w[n, j]·g[j]`. Its rows have the mean 0, so that of x does
    /// not count.
    Centred { gain: Box<Recipe> },
    /// d `[N]`: `d[n] = Σ over k of w[n, k]·s[k]`.
    Shift { shift: Box<Recipe> },
}

impl Fold {
    /// The gain or the shift, `[K]`.
    pub fn vector(&self) -> &Recipe {
        match self {
            Fold::Centred { gain } => gain,
            Fold::Shift { shift } => shift,
        }
    }
}

impl Part {
    fn new(name: &str, stored: Shape, dims: &[usize], offset: usize, strides: &[usize]) -> Part {
        let (mut d, mut s) = ([1; 5], [0; 5]);
        let at = 5 - dims.len();
        d[at..].copy_from_slice(dims);
        s[at..].copy_from_slice(strides);
        Part { name: name.to_owned(), stored, dims: d, offset, strides: s }
    }

    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the longest run of stored elements that stays contiguous in the weight, and the number of runs.
    pub fn runs(&self) -> (usize, usize) {
        let (mut run, mut axis) = (1, 5);
        while axis > 0 && (self.dims[axis - 1] == 1 || self.strides[axis - 1] == run) {
            run *= self.dims[axis - 1];
            axis -= 1;
        }
        (run, self.len() / run.max(1))
    }

    /// Where stored element `i` goes.
    pub fn target(&self, i: usize) -> usize {
        let (mut rest, mut at) = (i, self.offset);
        for axis in (0..5).rev() {
            at += (rest % self.dims[axis]) * self.strides[axis];
            rest /= self.dims[axis];
        }
        at
    }
}

impl Recipe {
    /// The tensor as it is stored.
    pub fn plain(name: &str, dtype: DType, shape: &[usize]) -> Recipe {
        Recipe::viewed(name, dtype, shape, shape)
    }

    /// The stored tensor under another shape with as many elements: `[1, 1, 1024]` as `[1024]`.
    pub fn viewed(name: &str, dtype: DType, stored: &[usize], shape: &[usize]) -> Recipe {
        let part = Part::new(name, Shape::new(stored), &[Shape::new(stored).len()], 0, &[1]);
        Recipe { dtype, shape: Shape::new(shape), parts: vec![part], padded: false, fold: None }
    }

    /// The stored tensor with its axes in another order: `[2048, 1024, 5]` by `[0, 2, 1]` is `[2048, 5, 1024]`.
    /// `shape` is what the graph sees (any shape with as many elements).
    pub fn permuted(name: &str, dtype: DType, stored: &[usize], order: &[usize], shape: &[usize]) -> Recipe {
        Recipe::permuted_view(name, dtype, stored, stored, order, shape)
    }

    /// As [`Recipe::permuted`], with the stored tensor read as `view` first: a `[1024, 19456]` matrix as
    /// `[1024, 1024, 19]`.
    pub fn permuted_view(
        name: &str,
        dtype: DType,
        stored: &[usize],
        view: &[usize],
        order: &[usize],
        shape: &[usize],
    ) -> Recipe {
        let mut strides = vec![0; view.len()];
        let mut step = 1;
        for &axis in order.iter().rev() {
            strides[axis] = step;
            step *= view[axis];
        }
        let part = Part::new(name, Shape::new(stored), view, 0, &strides);
        Recipe { dtype, shape: Shape::new(shape), parts: vec![part], padded: false, fold: None }
    }

    /// `[rows, cols]` with zero columns appended up to `padded_cols`; `stored` may have any rank.
    pub fn padded_cols(name: &str, dtype: DType, stored: &[usize], padded_cols: usize) -> Recipe {
        let stored = Shape::new(stored);
        let (rows, cols) = (stored[0], stored.len() / stored[0]);
        let part = Part::new(name, stored, &[rows, cols], 0, &[padded_cols, 1]);
        Recipe {
            dtype,
            shape: Shape::new(&[rows, padded_cols]),
            parts: vec![part],
            padded: padded_cols != cols,
            fold: None,
        }
    }

    /// The stored elements, zeros behind them: `[len]`.
    pub fn padded(name: &str, dtype: DType, stored: &[usize], len: usize) -> Recipe {
        let part = Recipe::viewed(name, dtype, stored, stored);
        let padded = part.shape.len() != len;
        Recipe { shape: Shape::new(&[len]), padded, ..part }
    }

    /// Rows of several recipes one after another: q, k and v as one matrix. `None` unless all have the same
    /// columns and dtype, and nothing was folded into any.
    pub fn stack(of: &[&Recipe]) -> Option<Recipe> {
        let first = of.first()?;
        let vector = first.shape.rank() == 1;
        let mut parts = Vec::new();
        let (mut offset, mut rows) = (0, 0);
        for r in of {
            if r.dtype != first.dtype || r.shape.rank() != first.shape.rank() || r.fold.is_some() {
                return None;
            }
            if !vector && r.shape.cols() != first.shape.cols() {
                return None;
            }
            parts.extend(r.parts.iter().map(|p| Part { offset: p.offset + offset, ..p.clone() }));
            offset += r.shape.len();
            rows += r.shape[0];
        }
        let shape = if vector { Shape::new(&[rows]) } else { Shape::new(&[rows, first.shape.cols()]) };
        let padded = of.iter().any(|r| r.padded);
        Some(Recipe { dtype: first.dtype, shape, parts, padded, fold: None })
    }

    /// Blocks of `block` rows of `a` and `b` in turn: with 8, rows 0..8 are `a`'s, 8..16 `b`'s, and so on. `None`
    /// unless both are plain matrices of one shape with `rows % block == 0`.
    pub fn interleave(a: &Recipe, b: &Recipe, block: usize) -> Option<Recipe> {
        let (rows, cols) = (a.shape.rows(), a.shape.cols());
        if a.shape != b.shape || a.dtype != b.dtype || rows % block != 0 || !a.is_plain() || !b.is_plain() {
            return None;
        }
        let part = |r: &Recipe, at: usize| {
            let p = &r.parts[0];
            Part::new(
                &p.name,
                p.stored,
                &[rows / block, block * cols],
                at * block * cols,
                &[2 * block * cols, 1],
            )
        };
        let shape = Shape::new(&[2 * rows, cols]);
        let parts = vec![part(a, 0), part(b, 1)];
        Some(Recipe { dtype: a.dtype, shape, parts, padded: false, fold: None })
    }

    /// Every head of `head_dim` rows with blocks of `block` rows of its first and its second half in turn: with 8, rows
    /// 0..8 of a head, then D/2..D/2 + 8, then 8..16, and so on. Vectors have rows of one element. `None` unless this is
    /// a plain tensor of whole heads, and these of whole blocks.
    pub fn interleave_halves(&self, head_dim: usize, block: usize) -> Option<Recipe> {
        let rows = self.shape[0];
        let cols = if self.shape.rank() == 1 { 1 } else { self.shape.cols() };
        let pair = 2 * block;
        if !self.is_plain()
            || head_dim == 0
            || !rows.is_multiple_of(head_dim)
            || !head_dim.is_multiple_of(pair)
        {
            return None;
        }
        let p = &self.parts[0];
        let part = Part::new(
            &p.name,
            p.stored,
            &[rows / head_dim, 2, head_dim / pair, block * cols],
            0,
            &[head_dim * cols, block * cols, pair * cols, 1],
        );
        Some(Recipe { parts: vec![part], ..self.clone() })
    }

    /// Whether the weight is one stored tensor, element by element.
    fn is_plain(&self) -> bool {
        self.parts.len() == 1
            && self.parts[0].runs() == (self.shape.len(), 1)
            && !self.padded
            && self.fold.is_none()
    }

    /// This weight `[N, K]` with a norm's gain `[K]` folded in, see [`Fold::Centred`]: `[N, K]`. `None` unless both are
    /// unfolded floats of these shapes and one dtype.
    pub fn centred(&self, gain: &Recipe) -> Option<Recipe> {
        let fold = Fold::Centred { gain: Box::new(gain.clone()) };
        self.folds_with(gain).then(|| Recipe { fold: Some(fold), ..self.clone() })
    }

    /// What a norm's shift `[K]` adds to products with this weight `[N, K]`, see [`Fold::Shift`]: `[N]`. `None` unless
    /// both are unfolded floats of these shapes and one dtype.
    pub fn shifted_by(&self, shift: &Recipe) -> Option<Recipe> {
        let fold = Fold::Shift { shift: Box::new(shift.clone()) };
        self.folds_with(shift).then(|| Recipe {
            shape: Shape::new(&[self.shape[0]]),
            fold: Some(fold),
            ..self.clone()
        })
    }

    fn folds_with(&self, vector: &Recipe) -> bool {
        self.shape.rank() == 2
            && vector.shape.dims() == [self.shape[1]]
            && vector.dtype == self.dtype
            && self.dtype.is_float()
            && self.fold.is_none()
            && vector.fold.is_none()
    }

    /// The weight before anything was folded into it: `[N, K]`, also where this is `[N]`.
    pub fn unfolded(&self) -> Recipe {
        let shape = match &self.fold {
            Some(Fold::Shift { shift }) => Shape::new(&[self.shape.len(), shift.shape.len()]),
            Some(Fold::Centred { .. }) | None => self.shape,
        };
        Recipe { shape, fold: None, ..self.clone() }
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.shape.len() as u64 * self.dtype.bytes() as u64
    }

    /// Checkpoint names, joined for messages and dumps: `q + k`, `centred((q + k) ∘ gain)`, `(q + k) · shift`.
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.parts.iter().map(|p| p.name.as_str()).collect();
        let joined = names.join(" + ");
        let Some(fold) = &self.fold else { return joined };
        let matrix = if names.len() > 1 { format!("({joined})") } else { joined };
        match fold {
            Fold::Centred { gain } => format!("centred({matrix} ∘ {})", gain.name()),
            Fold::Shift { shift } => format!("{matrix} · {}", shift.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries a recipe out on counting numbers: part k holds 1000·k + i.
    fn carry_out(r: &Recipe) -> Vec<usize> {
        let mut out = vec![usize::MAX; r.shape.len()];
        for (k, p) in r.parts.iter().enumerate() {
            (0..p.len()).for_each(|i| out[p.target(i)] = 1000 * k + i);
        }
        out
    }

    #[test]
    fn stacked_rows_follow_each_other() {
        let (q, k) = (Recipe::plain("q", DType::BF16, &[2, 3]), Recipe::plain("k", DType::BF16, &[1, 3]));
        let r = Recipe::stack(&[&q, &k]).unwrap();
        assert_eq!(r.shape, Shape::new(&[3, 3]));
        assert_eq!(carry_out(&r), [0, 1, 2, 3, 4, 5, 1000, 1001, 1002]);
        assert_eq!(r.parts[0].runs(), (6, 1));
        assert!(Recipe::stack(&[&q, &Recipe::plain("k", DType::BF16, &[1, 4])]).is_none());
    }

    #[test]
    fn zeros_stand_behind_a_padded_vector() {
        let r = Recipe::padded("u", DType::BF16, &[2, 3], 8);
        assert_eq!((r.shape, r.padded), (Shape::new(&[8]), true));
        assert_eq!(carry_out(&r), [0, 1, 2, 3, 4, 5, usize::MAX, usize::MAX]);
        assert!(!Recipe::padded("u", DType::BF16, &[2, 3], 6).padded);
    }

    #[test]
    fn interleaved_blocks_alternate() {
        let (g, u) = (Recipe::plain("g", DType::F16, &[4, 2]), Recipe::plain("u", DType::F16, &[4, 2]));
        let r = Recipe::interleave(&g, &u, 2).unwrap();
        assert_eq!(carry_out(&r), [0, 1, 2, 3, 1000, 1001, 1002, 1003, 4, 5, 6, 7, 1004, 1005, 1006, 1007]);
        assert_eq!(r.parts[0].runs(), (4, 2));
        assert!(Recipe::interleave(&g, &u, 3).is_none());
    }

    #[test]
    fn halves_of_heads_alternate() {
        // Two heads of 8 rows of 1 and of 2.
        let b = Recipe::plain("b", DType::BF16, &[16]).interleave_halves(8, 2).unwrap();
        assert_eq!(carry_out(&b), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
        let w = Recipe::plain("w", DType::BF16, &[8, 2]).interleave_halves(8, 2).unwrap();
        assert_eq!(carry_out(&w), [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]);
        assert_eq!((w.shape, w.parts[0].runs()), (Shape::new(&[8, 2]), (4, 4)));
        let stacked = Recipe::stack(&[&b, &b]).unwrap();
        assert_eq!(carry_out(&stacked)[16..20], [1000, 1001, 1004, 1005]);
        let plain = Recipe::plain("b", DType::BF16, &[12]);
        assert!(plain.interleave_halves(8, 2).is_none() && plain.interleave_halves(6, 2).is_none());
        assert!(w.interleave_halves(8, 2).is_none() && plain.interleave_halves(0, 2).is_none());
    }

    #[test]
    fn permuted_and_padded() {
        let r = Recipe::permuted("w", DType::F32, &[1, 2, 3], &[0, 2, 1], &[1, 6]);
        assert_eq!(carry_out(&r), [0, 3, 1, 4, 2, 5]);
        let r = Recipe::padded_cols("w", DType::F32, &[2, 3], 4);
        assert_eq!(carry_out(&r), [0, 1, 2, usize::MAX, 3, 4, 5, usize::MAX]);
        assert!(r.padded);
    }

    #[test]
    fn what_is_folded_can_be_unfolded_and_nothing_else() {
        let plain = |name: &str, shape: &[usize]| Recipe::plain(name, DType::BF16, shape);
        let (q, k) = (plain("q", &[2, 3]), plain("k", &[1, 3]));
        let qk = Recipe::stack(&[&q, &k]).unwrap();
        let (gain, shift) = (plain("gain", &[3]), plain("shift", &[3]));
        let (c, d) = (qk.centred(&gain).unwrap(), qk.shifted_by(&shift).unwrap());
        assert_eq!((c.shape, c.bytes()), (qk.shape, qk.bytes()));
        assert_eq!((d.shape, d.bytes()), (Shape::new(&[3]), 6));
        assert!(c.parts == qk.parts && d.parts == qk.parts);
        assert_eq!((c.unfolded(), d.unfolded(), qk.unfolded()), (qk.clone(), qk.clone(), qk.clone()));
        assert_ne!(c, qk);
        assert_ne!(c, qk.centred(&shift).unwrap());
        assert_eq!((c.name(), d.name()), ("centred((q + k) ∘ gain)".into(), "(q + k) · shift".into()));
        assert_eq!(q.shifted_by(&shift).unwrap().name(), "q · shift");
        assert_eq!((c.fold.unwrap().vector(), d.fold.unwrap().vector()), (&gain, &shift));
    }

    #[test]
    fn folds_that_do_not_fit_are_refused() {
        let plain = |name: &str, shape: &[usize]| Recipe::plain(name, DType::BF16, shape);
        let (w, b, gain) = (plain("w", &[4, 3]), plain("b", &[4]), plain("gain", &[3]));
        let refused = |w: &Recipe, v: &Recipe| w.centred(v).is_none() && w.shifted_by(v).is_none();
        assert!(refused(&w, &b) && refused(&b, &gain) && refused(&w, &plain("gain", &[1, 3])));
        assert!(
            refused(&plain("w", &[2, 2, 3]), &gain)
                && refused(&Recipe::plain("w", DType::F16, &[4, 3]), &gain)
        );
        let u32s = |shape: &[usize]| Recipe::plain("ids", DType::U32, shape);
        assert!(refused(&u32s(&[4, 3]), &u32s(&[3])));

        let c = w.centred(&gain).unwrap();
        let d = plain("w", &[3, 3]).shifted_by(&gain).unwrap();
        assert!(refused(&c, &gain) && refused(&w, &d));
        assert!(Recipe::stack(&[&c, &c]).is_none() && Recipe::stack(&[&gain, &d]).is_none());
        assert!(Recipe::interleave(&c, &c, 2).is_none() && Recipe::interleave(&w, &c, 2).is_none());
        assert!(w.interleave_halves(4, 1).is_some() && c.interleave_halves(4, 1).is_none());
        let d = w.shifted_by(&gain).unwrap();
        assert!(b.interleave_halves(4, 1).is_some() && d.interleave_halves(4, 1).is_none());
    }
}
