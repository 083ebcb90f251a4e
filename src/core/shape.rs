//! Concrete shapes: at most five extents, row-major.

/// Extents, outermost first. A tensor of rank 2 is `[rows, cols]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; Shape::MAX_RANK],
    rank: u8,
}

impl Shape {
    pub const MAX_RANK: usize = 5;

    /// Panics when `dims` has more than [`Shape::MAX_RANK`] extents: shapes are written by models, not by users
    /// (readers of files check the rank first).
    pub fn new(dims: &[usize]) -> Shape {
        assert!(
            dims.len() <= Shape::MAX_RANK,
            "a shape has at most {} extents, got {dims:?}",
            Shape::MAX_RANK
        );
        let mut all = [1; Shape::MAX_RANK];
        all[..dims.len()].copy_from_slice(dims);
        Shape { dims: all, rank: dims.len() as u8 }
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last extent; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// The product of all extents but the last.
    pub fn rows(&self) -> usize {
        self.dims().split_last().map_or(1, |(_, rest)| rest.iter().product())
    }

    /// The same shape with another last extent.
    pub fn with_cols(&self, cols: usize) -> Shape {
        let mut s = *self;
        match s.rank {
            0 => return Shape::new(&[cols]),
            r => s.dims[r as usize - 1] = cols,
        }
        s
    }
}

impl std::ops::Index<usize> for Shape {
    type Output = usize;
    fn index(&self, i: usize) -> &usize {
        &self.dims()[i]
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}
