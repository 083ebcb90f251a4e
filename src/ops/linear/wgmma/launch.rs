//! Launches of the matrix products on TMA and wgmma.

use super::{Form, Plan};
use crate::core::Result;
use crate::gpu::launch::{DevicePtr, Geometry, GpuTensor, Kernel, Launcher};
use crate::gpu::tensor_map::{L2Promotion, Swizzle, TensorMap};
use crate::ops::linear::cuda::{Epilogue, RopeEpilogue};

/// `WgmmaParams` of kernels/gemm/wgmma.cuh.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
pub(crate) struct WgmmaParams {
    pub x: TensorMap,
    pub w: TensorMap,
    pub e: Epilogue,
    pub partials: DevicePtr,
    pub counters: DevicePtr,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub splits: u32,
    pub policy: u64,
}

struct WgmmaKernel;
// SAFETY: `gemm_wgmma_*` in kernels/gemm/wgmma.cu take one WgmmaParams by value; loading compares the sizes.
unsafe impl Kernel for WgmmaKernel {
    const FILE: &'static str = "gemm/wgmma";
    const SYMBOL: &'static str = "gemm_wgmma";
    type Params = WgmmaParams;
}

struct MulticastKernel;
// SAFETY: `gemm_multicast_*` in kernels/gemm/wgmma_multicast.cu take one WgmmaParams by value; loading compares the sizes.
unsafe impl Kernel for MulticastKernel {
    const FILE: &'static str = "gemm/wgmma_multicast";
    const SYMBOL: &'static str = "gemm_multicast";
    type Params = WgmmaParams;
}

/// `WgmmaRopeParams` of kernels/gemm/wgmma_multicast.cu.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct WgmmaRopeParams {
    g: WgmmaParams,
    r: RopeEpilogue,
}

struct MulticastRopeKernel;
// SAFETY: `gemm_multicast_rope_*` in kernels/gemm/wgmma_multicast.cu take one WgmmaRopeParams by value; loading compares
// the sizes.
unsafe impl Kernel for MulticastRopeKernel {
    const FILE: &'static str = "gemm/wgmma_multicast";
    const SYMBOL: &'static str = "gemm_multicast_rope";
    type Params = WgmmaRopeParams;
}

struct MulticastBehindNormKernel;
// SAFETY: `gemm_multicast_behind_norm_*` in kernels/gemm/wgmma_multicast_norm.cu take one WgmmaParams by value; loading
// compares the sizes.
unsafe impl Kernel for MulticastBehindNormKernel {
    const FILE: &'static str = "gemm/wgmma_multicast_norm";
    const SYMBOL: &'static str = "gemm_multicast_behind_norm";
    type Params = WgmmaParams;
}

struct MulticastStatsKernel;
// SAFETY: `gemm_multicast_stats_*` in kernels/gemm/wgmma_multicast_norm.cu take one WgmmaParams by value; loading compares
// the sizes.
unsafe impl Kernel for MulticastStatsKernel {
    const FILE: &'static str = "gemm/wgmma_multicast_norm";
    const SYMBOL: &'static str = "gemm_multicast_stats";
    type Params = WgmmaParams;
}

struct MulticastBehindRmsKernel;
// SAFETY: `gemm_multicast_behind_rms_*` in kernels/gemm/wgmma_multicast_norm.cu take one WgmmaParams by value; loading
// compares the sizes.
unsafe impl Kernel for MulticastBehindRmsKernel {
    const FILE: &'static str = "gemm/wgmma_multicast_norm";
    const SYMBOL: &'static str = "gemm_multicast_behind_rms";
    type Params = WgmmaParams;
}

struct MulticastRopeBehindRmsKernel;
// SAFETY: `gemm_multicast_rope_behind_rms_*` in kernels/gemm/wgmma_multicast_norm.cu take one WgmmaRopeParams by value;
// loading compares the sizes.
unsafe impl Kernel for MulticastRopeBehindRmsKernel {
    const FILE: &'static str = "gemm/wgmma_multicast_norm";
    const SYMBOL: &'static str = "gemm_multicast_rope_behind_rms";
    type Params = WgmmaRopeParams;
}

struct MulticastBeginsRmsKernel;
// SAFETY: `gemm_multicast_begins_rms_*` in kernels/gemm/wgmma_multicast_norm.cu take one WgmmaParams by value; loading
// compares the sizes.
unsafe impl Kernel for MulticastBeginsRmsKernel {
    const FILE: &'static str = "gemm/wgmma_multicast_norm";
    const SYMBOL: &'static str = "gemm_multicast_begins_rms";
    type Params = WgmmaParams;
}

/// `WindowParams` of kernels/gemm/wgmma.cu.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct WindowParams {
    g: WgmmaParams,
    odd: TensorMap,
    chunks: u32,
}

struct WindowsKernel;
// SAFETY: `gemm_windows_*` in kernels/gemm/wgmma.cu take one WindowParams by value; loading compares sizes.
unsafe impl Kernel for WindowsKernel {
    const FILE: &'static str = "gemm/wgmma";
    const SYMBOL: &'static str = "gemm_windows";
    type Params = WindowParams;
}

/// `[rows, k]` in boxes of `box_rows` rows and 64 columns.
fn map(t: GpuTensor<'_>, rows: usize, k: usize, box_rows: usize) -> Result<TensorMap> {
    map_rows(t, (0, 1), rows, k, box_rows)
}

/// The same of every `step`-th row of `t` from row `first` on.
fn map_rows(
    t: GpuTensor<'_>,
    (first, step): (usize, usize),
    rows: usize,
    k: usize,
    box_rows: usize,
) -> Result<TensorMap> {
    let dims = [k as u64, rows as u64];
    let boxes = [super::WgmmaTile::BK as u32, box_rows as u32];
    let (pitch, ptr) = (2 * (k * step) as u64, t.ptr.offset(2 * first * k));
    TensorMap::encode(t.desc.dtype, ptr, &dims, &[pitch], &boxes, Swizzle::B128, L2Promotion::B256)
}

/// Records the product of the windows of x `[T, C]`, with stride 2, and w `[N, kernel·C]`, into m rows. No window
/// begins behind the last row of x.
///
/// # Safety
/// The addresses in `e` are valid for m rows of `e.cols` columns and N biases; T >= 2, C % 64 == 0.
pub unsafe fn launch_windows(
    l: &mut Launcher<'_>,
    plan: Plan,
    (x, m): (GpuTensor<'_>, usize),
    w: GpuTensor<'_>,
    e: Epilogue,
) -> Result<()> {
    let Plan { tile, splits } = plan;
    let (t, c, n, k) = (x.rows(), x.cols(), w.rows(), w.cols());
    let g = WgmmaParams {
        x: map_rows(x, (0, 2), t.div_ceil(2), c, tile.bm)?,
        w: map(w, n, k, tile.bn)?,
        e,
        partials: DevicePtr::NULL,
        counters: DevicePtr::NULL,
        m: m as u32,
        n: n as u32,
        k: k as u32,
        splits: splits as u32,
        policy: super::policy_of_weights(m),
    };
    let chunks = (c / super::WgmmaTile::BK) as u32;
    let p = WindowParams { g, odd: map_rows(x, (1, 2), t / 2, c, tile.bm)?, chunks };
    let geometry = Geometry::grid([plan.grid(m, n, l.device.sm_count()) as u32, 1, 1])
        .cluster(plan.cluster() as u32)
        .smem(tile.smem_bytes());
    // SAFETY: the caller's promise; the maps bound all reads of x and w, the kernel checks rows and columns of
    // all else.
    unsafe { l.launch_variant::<WindowsKernel>(&tile.variant(), x.desc.dtype, geometry, &p) }
}

/// Records the product of x `[m, K]` and w `[N, K]`, with `rope` turned and shared out.
///
/// # Safety
/// The addresses in `e` are valid for m rows of `e.cols` columns and N biases and, where they are not null, for the
/// statistics or squares of m rows of x and of y, of which the tile has the kernel; those in `rope` for m rows of its N = (H + 2G)·D
/// columns; K % 8 == 0.
pub unsafe fn launch(
    l: &mut Launcher<'_>,
    plan: Plan,
    (x, m): (GpuTensor<'_>, usize),
    w: GpuTensor<'_>,
    e: Epilogue,
    rope: Option<RopeEpilogue>,
) -> Result<()> {
    let Plan { tile, splits } = plan;
    let (n, k) = (w.rows(), w.cols());
    let (mut partials, mut counters) = (DevicePtr::NULL, DevicePtr::NULL);
    if plan.joins() {
        partials = l.scratch(plan.partial_bytes(m, n))?;
        counters = l.counters(plan.counters(m, n))?;
    }
    let p = WgmmaParams {
        x: map(x, m, k, tile.bm)?,
        w: map(w, n, k, tile.bn)?,
        e,
        partials,
        counters,
        m: m as u32,
        n: n as u32,
        k: k as u32,
        splits: splits as u32,
        policy: super::policy_of_weights(m),
    };
    let grid = plan.grid(m, n, l.device.sm_count());
    let geometry = Geometry::grid([grid as u32, 1, 1]).cluster(plan.cluster() as u32).smem(tile.smem_bytes());
    // SAFETY: the caller's promise; the maps bound all reads of x and w, the kernel checks rows and columns of
    // all else; partials and counters have the sizes that the plan needs.
    unsafe {
        match tile.form {
            Form::Grid(_) if let Some(r) = rope => {
                let p = WgmmaRopeParams { g: p, r };
                match e.squares {
                    DevicePtr::NULL => {
                        l.launch_variant::<MulticastRopeKernel>(&tile.variant(), x.desc.dtype, geometry, &p)
                    }
                    _ => l.launch_variant::<MulticastRopeBehindRmsKernel>(
                        &tile.variant(),
                        x.desc.dtype,
                        geometry,
                        &p,
                    ),
                }
            }
            Form::Grid(_) if e.squares != DevicePtr::NULL => {
                l.launch_variant::<MulticastBehindRmsKernel>(&tile.variant(), x.desc.dtype, geometry, &p)
            }
            Form::Grid(_) if e.squares_of_y != DevicePtr::NULL => {
                l.launch_variant::<MulticastBeginsRmsKernel>(&tile.variant(), x.desc.dtype, geometry, &p)
            }
            Form::Grid(_) if e.stats != DevicePtr::NULL => {
                l.launch_variant::<MulticastBehindNormKernel>(&tile.variant(), x.desc.dtype, geometry, &p)
            }
            Form::Grid(_) if e.stats_of_y != DevicePtr::NULL => {
                l.launch_variant::<MulticastStatsKernel>(&tile.variant(), x.desc.dtype, geometry, &p)
            }
            Form::Grid(_) => l.launch_variant::<MulticastKernel>(&tile.variant(), x.desc.dtype, geometry, &p),
            _ => l.launch_variant::<WgmmaKernel>(&tile.variant(), x.desc.dtype, geometry, &p),
        }
    }
}
