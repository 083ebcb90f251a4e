//! `y = x wᵀ` in f32 for weights that are read row by row.
//!
//! Threads take panels of weight rows: a panel is widened once and meets every row of x while it sits in the cache.
//! Both operands are contiguous along K, so the micro-kernel is a block of dot products with the vector lanes along
//! K: nothing is packed. Sums run over 8 lanes and blocks of `K_BLOCK`, so the error at K = 18944 stays near that
//! of a pairwise sum.

use rayon::prelude::*;

use crate::core::HostWeight;

/// Rows of x: row `i` is `data[i * pitch..][..k]`. Rows may overlap (`pitch < k`), as those of a convolution do.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub pitch: usize,
}

impl<'a> Rows<'a> {
    /// `data` as rows of `cols` values.
    pub fn dense(data: &'a [f32], cols: usize) -> Rows<'a> {
        Rows { data, rows: data.len() / cols.max(1), pitch: cols }
    }
}

/// Elements of K that one pass of the micro-kernel takes: 7 rows of 4 KiB sit in the L1.
const K_BLOCK: usize = 1024;
/// Rows of x and of w in one block of dot products: 12 accumulators of 8 lanes, 7 loads for 12 FMAs.
const MR: usize = 4;
const NR: usize = 3;
/// Rows of w per block where x has fewer than [`MR`] rows left.
const NR_THIN: usize = 6;

/// `y[t, n] = Σ_k x[t, k] w[n, k]`: x has rows of at least K values, w is `[N, K]`, y is `[T, N]`.
pub fn gemm(x: Rows<'_>, w: &dyn HostWeight, y: &mut [f32]) {
    let (n, k) = (w.shape().rows(), w.shape().cols());
    debug_assert_eq!(y.len(), x.rows * n);
    if y.is_empty() {
        return;
    }
    let panel = panel_rows(x.rows, n, k, rayon::current_num_threads());
    let isa = Isa::detect();
    let panels: Vec<Vec<f32>> = (0..n.div_ceil(panel))
        .into_par_iter()
        .map_init(Vec::new, |wide: &mut Vec<f32>, i| {
            let rows = i * panel..((i + 1) * panel).min(n);
            wide.resize(rows.len() * k, 0.0);
            w.read_rows(rows.clone(), wide);
            let mut part = vec![0.0; x.rows * rows.len()];
            multiply_panel(isa, x, wide, k, &mut part);
            part
        })
        .collect();
    // Every panel is a range of columns of y.
    y.par_chunks_mut(n).enumerate().with_min_len(16).for_each(|(t, y)| {
        for (y, part) in y.chunks_mut(panel).zip(&panels) {
            y.copy_from_slice(&part[t * y.len()..][..y.len()]);
        }
    });
}

/// Weight rows per panel: wide enough that x is not streamed more often than needed, small enough for the L2, and
/// enough panels for all threads.
fn panel_rows(t: usize, n: usize, k: usize, threads: usize) -> usize {
    let (elements, most) = if t < 16 { (64 << 10, 48) } else { (384 << 10, 96) };
    let fits = (elements / k.max(1)).clamp(NR_THIN, most);
    fits.min(n.div_ceil(3 * threads.max(1))).next_multiple_of(NR_THIN)
}

/// `y[t, j] = Σ_k x[t, k] w[j, k]` for one widened panel `w [.., k]`.
fn multiply_panel(isa: Isa, x: Rows<'_>, w: &[f32], k: usize, y: &mut [f32]) {
    let n = w.len() / k.max(1);
    for k0 in (0..k).step_by(K_BLOCK) {
        let depth = K_BLOCK.min(k - k0);
        let mut t = 0;
        while t < x.rows {
            let rows = if x.rows - t >= MR { MR } else { 1 };
            let wide = if rows == MR { NR } else { NR_THIN };
            let mut j = 0;
            while j < n {
                let cols = if n - j >= wide { wide } else { 1 };
                let block = Block {
                    x: &x.data[t * x.pitch + k0..],
                    x_pitch: x.pitch,
                    w: &w[j * k + k0..],
                    w_pitch: k,
                    depth,
                };
                let y = &mut y[t * n + j..];
                match (rows, cols) {
                    (MR, NR) => block.run::<MR, NR>(isa, y, n),
                    (MR, _) => block.run::<MR, 1>(isa, y, n),
                    (_, NR_THIN) => block.run::<1, NR_THIN>(isa, y, n),
                    _ => block.run::<1, 1>(isa, y, n),
                }
                j += cols;
            }
            t += rows;
        }
    }
}

/// What the micro-kernel may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
        Isa::Portable
    }
}

/// A block of dot products: row `i` of x with row `j` of w over `depth` elements.
#[derive(Clone, Copy)]
struct Block<'a> {
    x: &'a [f32],
    x_pitch: usize,
    w: &'a [f32],
    w_pitch: usize,
    depth: usize,
}

impl Block<'_> {
    /// Adds `M x N` dot products to `y`, rows `y_pitch` apart.
    fn run<const M: usize, const N: usize>(self, isa: Isa, y: &mut [f32], y_pitch: usize) {
        let x: [&[f32]; M] = std::array::from_fn(|i| &self.x[i * self.x_pitch..][..self.depth]);
        let w: [&[f32]; N] = std::array::from_fn(|j| &self.w[j * self.w_pitch..][..self.depth]);
        let body = self.depth / 8 * 8;
        let mut sums = match isa {
            // SAFETY: detect() found AVX2 and FMA.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { dots_avx2(&x, &w, body) },
            Isa::Portable => dots(&x, &w, body),
        };
        for (i, row) in sums.iter_mut().enumerate() {
            for (j, sum) in row.iter_mut().enumerate() {
                for (a, b) in x[i][body..].iter().zip(&w[j][body..]) {
                    *sum += a * b;
                }
                y[i * y_pitch + j] += *sum;
            }
        }
    }
}

/// Adds 8 lanes pairwise.
fn lane_sum(v: [f32; 8]) -> f32 {
    ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]))
}

fn dots<const M: usize, const N: usize>(x: &[&[f32]; M], w: &[&[f32]; N], depth: usize) -> [[f32; N]; M] {
    let mut acc = [[[0.0f32; 8]; N]; M];
    for k in (0..depth).step_by(8) {
        for i in 0..M {
            for j in 0..N {
                let (a, b) = (&x[i][k..k + 8], &w[j][k..k + 8]);
                for (lane, acc) in acc[i][j].iter_mut().enumerate() {
                    *acc += a[lane] * b[lane];
                }
            }
        }
    }
    acc.map(|row| row.map(lane_sum))
}

/// [`dots`] with the lanes in vector registers. Loads go through `[f32; 8]`: the pointer intrinsics carry checks in
/// builds with debug assertions, and tests run this at real sizes.
///
/// # Safety
/// The CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_avx2<const M: usize, const N: usize>(
    x: &[&[f32]; M],
    w: &[&[f32]; N],
    depth: usize,
) -> [[f32; N]; M] {
    use std::arch::x86_64::{__m256, _mm256_fmadd_ps, _mm256_setzero_ps};
    // SAFETY (both): 8 lanes are 8 values, every bit pattern is one.
    let load = |v: [f32; 8]| unsafe { std::mem::transmute::<[f32; 8], __m256>(v) };
    let lanes = |v: __m256| unsafe { std::mem::transmute::<__m256, [f32; 8]>(v) };
    let xs: [&[[f32; 8]]; M] = x.map(|x| &x.as_chunks().0[..depth / 8]);
    let ws: [&[[f32; 8]]; N] = w.map(|w| &w.as_chunks().0[..depth / 8]);
    let mut acc = [[_mm256_setzero_ps(); N]; M];
    for k in 0..depth / 8 {
        let mut b = [_mm256_setzero_ps(); N];
        for j in 0..N {
            b[j] = load(ws[j][k]);
        }
        for i in 0..M {
            let a = load(xs[i][k]);
            for j in 0..N {
                acc[i][j] = _mm256_fmadd_ps(a, b[j], acc[i][j]);
            }
        }
    }
    let mut sums = [[0.0; N]; M];
    for i in 0..M {
        for j in 0..N {
            sums[i][j] = lane_sum(lanes(acc[i][j]));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{DType, Shape};

    /// A weight that already is f32.
    struct Dense(Shape, Vec<f32>);

    impl HostWeight for Dense {
        fn shape(&self) -> Shape {
            self.0
        }
        fn dtype(&self) -> DType {
            DType::F32
        }
        fn read_rows(&self, rows: std::ops::Range<usize>, out: &mut [f32]) {
            let cols = self.0.cols();
            out.copy_from_slice(&self.1[rows.start * cols..rows.end * cols]);
        }
    }

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut s = seed;
        let mut next = || {
            s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// Largest error against f64, relative to |x| |w|.
    fn error(t: usize, n: usize, k: usize, pitch: usize) -> f64 {
        let (x, w) = (noise((t - 1) * pitch + k, 1), noise(n * k, 2));
        let mut y = vec![f32::NAN; t * n];
        gemm(Rows { data: &x, rows: t, pitch }, &Dense(Shape::new(&[n, k]), w.clone()), &mut y);
        let mut worst = 0f64;
        for i in 0..t {
            for j in 0..n {
                let (a, b) = (&x[i * pitch..][..k], &w[j * k..][..k]);
                let exact: f64 = a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum();
                let norm = |v: &[f32]| v.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt();
                worst = worst.max((exact - y[i * n + j] as f64).abs() / (norm(a) * norm(b)));
            }
        }
        worst
    }

    #[test]
    fn ragged_sizes_match_f64() {
        for (t, n, k) in [(1, 1, 1), (1, 515, 896), (3, 7, 9), (4, 3, 8), (5, 64, 80), (17, 100, 1031)] {
            let e = error(t, n, k, k);
            assert!(e < 1e-6, "t{t} n{n} k{k}: {e}");
        }
    }

    #[test]
    fn long_sums_and_overlapping_rows() {
        assert!(error(2, 5, 18944, 18944) < 1e-6);
        assert!(error(9, 5, 40, 16) < 1e-6);
    }

    #[test]
    fn portable_and_avx2_agree() {
        let (x, w) = (noise(4 * 50, 3), noise(3 * 50, 4));
        let block = Block { x: &x, x_pitch: 50, w: &w, w_pitch: 50, depth: 50 };
        let (mut a, mut b) = (vec![0.0; 12], vec![0.0; 12]);
        block.run::<4, 3>(Isa::detect(), &mut a, 3);
        block.run::<4, 3>(Isa::Portable, &mut b, 3);
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}
