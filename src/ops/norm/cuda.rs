//! Launchers of the norms.

use super::{AddLayerNorm, AddRmsNorm, LayerNorm, RmsBegin, RmsNorm, RowStats};
use crate::core::Result;
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, GpuTensor, Kernel, Launcher};
use crate::ops::elementwise::Act;
use crate::ops::{CudaOp, checks};

/// CTAs by their threads, each with 8 columns of a row.
const CTAS: [(&str, usize); 3] = [("_128", 128), ("_512", 512), ("_1024", 1024)];
/// Threads that a launch has at most for an SM: all that it takes, or what the registers of an addition leave room for. Where
/// others leave less (f16, layer norms of more than 1024 columns), the last CTAs begin later.
const THREADS_PER_SM: usize = 2048;
const ADDING_THREADS_PER_SM: usize = 1536;
/// Widest row.
const MAX_COLS: usize = 8 * 1024;

#[repr(C)]
#[derive(Clone, Copy)]
struct NormParams {
    x: DevicePtr,
    r: DevicePtr,
    w: DevicePtr,
    b: DevicePtr,
    h: DevicePtr,
    y: DevicePtr,
    rows: u32,
    cols: u32,
    eps: f32,
    act: u32,
    scale: f32,
}

struct RmsNormKernel;
// SAFETY: `rms_norm` in kernels/norm.cu takes one NormParams by value; loading compares the sizes.
unsafe impl Kernel for RmsNormKernel {
    const FILE: &'static str = "norm";
    const SYMBOL: &'static str = "rms_norm";
    type Params = NormParams;
}

struct LayerNormKernel;
// SAFETY: `layer_norm` in kernels/norm.cu takes one NormParams by value; loading compares the sizes.
unsafe impl Kernel for LayerNormKernel {
    const FILE: &'static str = "norm";
    const SYMBOL: &'static str = "layer_norm";
    type Params = NormParams;
}

struct LayerNormActKernel;
// SAFETY: `layer_norm_act` in kernels/norm.cu takes one NormParams by value; loading compares the sizes.
unsafe impl Kernel for LayerNormActKernel {
    const FILE: &'static str = "norm";
    const SYMBOL: &'static str = "layer_norm_act";
    type Params = NormParams;
}

struct AddRmsNormKernel;
// SAFETY: `add_rms_norm` in kernels/norm.cu takes one NormParams by value; loading compares the sizes.
unsafe impl Kernel for AddRmsNormKernel {
    const FILE: &'static str = "norm";
    const SYMBOL: &'static str = "add_rms_norm";
    type Params = NormParams;
}

struct AddLayerNormKernel;
// SAFETY: `add_layer_norm` in kernels/norm.cu takes one NormParams by value; loading compares the sizes.
unsafe impl Kernel for AddLayerNormKernel {
    const FILE: &'static str = "norm";
    const SYMBOL: &'static str = "add_layer_norm";
    type Params = NormParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RowStatsParams {
    x: DevicePtr,
    stats: DevicePtr,
    rows: u32,
    cols: u32,
}

struct RowStatsKernel;
// SAFETY: `row_stats` in kernels/norm.cu takes one RowStatsParams by value; loading compares the sizes.
unsafe impl Kernel for RowStatsKernel {
    const FILE: &'static str = "norm";
    const SYMBOL: &'static str = "row_stats";
    type Params = RowStatsParams;
}

/// Records [`RowStats`] of x.
pub(crate) fn row_stats(l: &mut Launcher<'_>, x: GpuTensor<'_>, stats: GpuTensor<'_>) -> Result<()> {
    const THREADS: usize = 256;
    let dtype = checks::same_t16("RowStats", &[x])?;
    let (rows, cols) = (x.rows() as u32, x.cols() as u32);
    let ctas = (x.desc.shape.len() / 8).div_ceil(THREADS) as u32;
    let p = RowStatsParams { x: x.ptr, stats: stats.ptr, rows, cols };
    // SAFETY: infer() made the statistics as many as x has runs of 64 columns; a thread reads its vector of a row below
    // `rows`.
    unsafe { l.launch::<RowStatsKernel>(dtype, Geometry::grid([ctas, 1, 1]), &p) }
}

impl CudaOp for RowStats {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x], [stats]) = io.take()?;
        row_stats(l, x, stats)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RmsBeginParams {
    x: DevicePtr,
    w: DevicePtr,
    y: DevicePtr,
    squares: DevicePtr,
    rows: u32,
    cols: u32,
}

struct RmsBeginKernel;
// SAFETY: `rms_begin` in kernels/norm.cu takes one RmsBeginParams by value; loading compares the sizes.
unsafe impl Kernel for RmsBeginKernel {
    const FILE: &'static str = "norm";
    const SYMBOL: &'static str = "rms_begin";
    type Params = RmsBeginParams;
}

/// Records [`RmsBegin`] of x.
pub(crate) fn rms_begin(
    l: &mut Launcher<'_>,
    [x, w, z]: [GpuTensor<'_>; 3],
    squares: GpuTensor<'_>,
) -> Result<()> {
    const THREADS: usize = 256;
    let dtype = checks::same_t16("RmsBegin", &[x, w, z])?;
    let (rows, cols) = (x.rows() as u32, x.cols() as u32);
    let ctas = (x.desc.shape.len() / 8).div_ceil(THREADS) as u32;
    let p = RmsBeginParams { x: x.ptr, w: w.ptr, y: z.ptr, squares: squares.ptr, rows, cols };
    // SAFETY: infer() made z as large as x, w as wide, and a sum for every 32 columns; a thread reads and writes its vector
    // of a row below `rows`.
    unsafe { l.launch::<RmsBeginKernel>(dtype, Geometry::grid([ctas, 1, 1]), &p) }
}

impl CudaOp for RmsBegin {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, w], [z, squares]) = io.take()?;
        rms_begin(l, [x, w, z], squares)
    }
}

/// Kernel variant and CTAs: the fewest threads that have all columns; a CTA for each row, or its share of the rows.
fn choose(rows: usize, cols: usize, adds: bool, sm_count: usize) -> (&'static str, [u32; 3]) {
    let wide_enough = |&&(_, threads): &&(&str, usize)| cols <= 8 * threads;
    let (variant, threads) = *CTAS.iter().find(wide_enough).unwrap_or(&CTAS[2]);
    let per_sm = if adds { ADDING_THREADS_PER_SM } else { THREADS_PER_SM } / threads;
    (variant, [rows.min(per_sm * sm_count) as u32, 1, 1])
}

/// `tensors` are all inputs and outputs of the op, x first.
fn launch<K: Kernel<Params = NormParams>>(
    l: &mut Launcher<'_>,
    op: &str,
    tensors: &[GpuTensor<'_>],
    p: NormParams,
) -> Result<()> {
    let x = &tensors[0];
    let dtype = checks::same_t16(op, tensors)?;
    checks::whole_vectors(op, x, MAX_COLS)?;
    let p = NormParams { rows: x.rows() as u32, cols: x.cols() as u32, ..p };
    let adds = p.r != DevicePtr::NULL;
    let (variant, grid) = choose(x.rows(), x.cols(), adds, l.device.sm_count());
    // SAFETY: infer() fixed the extents and the checks above types and width, the planner put the tensors in live
    // memory, a CTA touches rows of `cols` below `rows`.
    unsafe { l.launch_variant::<K>(variant, dtype, Geometry::grid(grid), &p) }
}

impl Default for NormParams {
    fn default() -> Self {
        let null = DevicePtr::NULL;
        NormParams {
            x: null,
            r: null,
            w: null,
            b: null,
            h: null,
            y: null,
            rows: 0,
            cols: 0,
            eps: 0.0,
            act: Act::None as u32,
            scale: 1.0,
        }
    }
}

impl CudaOp for RmsNorm {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, w], [y]) = io.take()?;
        let p = NormParams { x: x.ptr, w: w.ptr, y: y.ptr, eps: self.eps, ..Default::default() };
        launch::<RmsNormKernel>(l, "RmsNorm", &[x, w, y], p)
    }
}

impl CudaOp for LayerNorm {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, w, b], [y]) = io.take()?;
        let p = NormParams {
            x: x.ptr,
            w: w.ptr,
            b: b.ptr,
            y: y.ptr,
            eps: self.eps,
            act: self.act as u32,
            scale: self.scale,
            ..Default::default()
        };
        match *self == LayerNorm::plain(self.eps) {
            true => launch::<LayerNormKernel>(l, "LayerNorm", &[x, w, b, y], p),
            false => launch::<LayerNormActKernel>(l, "LayerNorm", &[x, w, b, y], p),
        }
    }
}

impl CudaOp for AddRmsNorm {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, r, w], [h, y]) = io.take()?;
        let p = NormParams {
            x: x.ptr,
            r: r.ptr,
            w: w.ptr,
            h: h.ptr,
            y: y.ptr,
            eps: self.eps,
            ..Default::default()
        };
        launch::<AddRmsNormKernel>(l, "AddRmsNorm", &[x, r, w, h, y], p)
    }
}

impl CudaOp for AddLayerNorm {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, r, w, b], [h, y]) = io.take()?;
        let p = NormParams {
            x: x.ptr,
            r: r.ptr,
            w: w.ptr,
            b: b.ptr,
            h: h.ptr,
            y: y.ptr,
            eps: self.eps,
            ..Default::default()
        };
        launch::<AddLayerNormKernel>(l, "AddLayerNorm", &[x, r, w, b, h, y], p)
    }
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn ctas_are_as_wide_as_rows_and_take_them_in_turns() {
        assert_eq!(choose(17, 1024, false, 132), ("_128", [17, 1, 1]));
        assert_eq!(choose(13325, 1024, false, 132), ("_128", [16 * 132, 1, 1]));
        assert_eq!(choose(13325, 1024, true, 132), ("_128", [12 * 132, 1, 1]));
        assert_eq!(choose(1, 1032, false, 132), ("_512", [1, 1, 1]));
        assert_eq!(choose(512, 3584, false, 132), ("_512", [512, 1, 1]));
        assert_eq!(choose(512, 3584, true, 132), ("_512", [396, 1, 1]));
        assert_eq!(choose(512, 8192, false, 132), ("_1024", [264, 1, 1]));
    }
}
