//! Launchers of the matrix products, and of the convolutions that are products (`ops::conv`).

mod few_rows;

use super::choose::{Chip, Config, End, Problem, Wishes, choose};
use super::{Angles, Linear, LinearAct, LinearFused, LinearRope, NormBefore, wgmma};
use crate::core::asked;
use crate::core::{DType, Result};
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, GpuTensor, Kernel, Launcher};
use crate::ops::CudaOp;
use crate::ops::norm::{launch_rms_begin, launch_row_stats};

/// `Epilogue` of kernels/gemm/epilogue.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Epilogue {
    pub bias: DevicePtr,
    pub scale: DevicePtr,
    pub residual: DevicePtr,
    pub y: DevicePtr,
    /// Of the rows of a, behind a norm; and of y.
    pub stats: DevicePtr,
    pub stats_of_y: DevicePtr,
    /// Of the rows that a was before its gain; and of y, with y times the gain, which is `scale` then.
    pub squares: DevicePtr,
    pub squares_of_y: DevicePtr,
    pub gained: DevicePtr,
    /// Output columns.
    pub cols: u32,
    /// As the enum there: see [`act_code`].
    pub act: u32,
    pub out_f32: u32,
    /// Columns of `residual`, and the one that the first of them is added to.
    pub residual_first: u32,
    pub residual_cols: u32,
    /// Of the norm before a.
    pub eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GemmParams {
    a: DevicePtr,
    w: DevicePtr,
    e: Epilogue,
    partials: DevicePtr,
    counters: DevicePtr,
    m: u32,
    n: u32,
    k: u32,
    a_len: u32,
    a_pitch: u32,
    width: u32,
    out_width: u32,
    channels: u32,
}

/// `RopeEpilogue` of kernels/gemm/rope.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RopeEpilogue {
    table: DevicePtr,
    q: DevicePtr,
    kv: DevicePtr,
    step: DevicePtr,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    max_rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GemmRopeParams {
    g: GemmParams,
    r: RopeEpilogue,
}

struct NaiveKernel;
// SAFETY: `gemm_naive*` in kernels/gemm/naive.cu take one GemmParams by value; loading compares the sizes.
unsafe impl Kernel for NaiveKernel {
    const FILE: &'static str = "gemm/naive";
    const SYMBOL: &'static str = "gemm_naive";
    type Params = GemmParams;
}

struct MmaKernel;
// SAFETY: `gemm_mma_*` in kernels/gemm/mma.cu take one GemmParams by value; loading compares the sizes.
unsafe impl Kernel for MmaKernel {
    const FILE: &'static str = "gemm/mma";
    const SYMBOL: &'static str = "gemm_mma";
    type Params = GemmParams;
}

struct MmaRopeKernel;
// SAFETY: `gemm_mma_rope_*` in kernels/gemm/mma.cu take one GemmRopeParams by value; loading compares the sizes.
unsafe impl Kernel for MmaRopeKernel {
    const FILE: &'static str = "gemm/mma";
    const SYMBOL: &'static str = "gemm_mma_rope";
    type Params = GemmRopeParams;
}

/// How the rows of A lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RowsOf {
    /// Row m begins at element `m · pitch`; what lies beyond the tensor reads as zero.
    Matrix { pitch: usize },
    /// 3×3 windows with stride 2 of `[H, width, channels]`.
    Image { width: usize, out_width: usize, channels: usize },
}

/// One product with all that follows: `y = act(a wᵀ + b)` or `y = r + s · (a wᵀ + b)`.
pub(crate) struct Product<'a> {
    pub a: GpuTensor<'a>,
    pub rows: RowsOf,
    pub m: usize,
    pub w: GpuTensor<'a>,
    pub bias: Option<GpuTensor<'a>>,
    pub act: LinearAct,
    pub scale: Option<GpuTensor<'a>>,
    pub residual: Option<GpuTensor<'a>>,
    /// As [`LinearFused::table_at`].
    pub table_at: Option<usize>,
    pub norm: Option<Norm<'a>>,
    pub behind_norm: Option<BehindNorm<'a>>,
    /// Of a norm that has been begun: a is z.
    pub behind_rms: Option<BehindRms<'a>>,
    /// As [`LinearFused::stats`].
    pub stats_of_y: Option<GpuTensor<'a>>,
    /// As [`LinearFused::begins`].
    pub begins: Option<BeginsRms<'a>>,
    /// Instead of all that follows but the bias; y is then its q.
    pub rope: Option<RopeEpilogue>,
    pub y: GpuTensor<'a>,
}

/// An RMS norm of a in front of the product.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub gain: GpuTensor<'a>,
    pub eps: f32,
}

/// A LayerNorm before the product, whose gain is in w.
#[derive(Clone, Copy)]
pub(crate) struct BehindNorm<'a> {
    /// What its shift adds.
    pub shift: GpuTensor<'a>,
    /// Of the rows of a, [`RowStats`](crate::ops::norm::RowStats).
    pub stats: GpuTensor<'a>,
    pub eps: f32,
}

/// An RMS norm before the product that has been begun.
#[derive(Clone, Copy)]
pub(crate) struct BehindRms<'a> {
    /// Of the rows that a was before its gain, [`RmsBegin`](crate::ops::norm::RmsBegin).
    pub squares: GpuTensor<'a>,
    pub eps: f32,
}

/// What the product begins of a norm of y.
#[derive(Clone, Copy)]
pub(crate) struct BeginsRms<'a> {
    pub gain: GpuTensor<'a>,
    pub z: GpuTensor<'a>,
    pub squares: GpuTensor<'a>,
}

/// `ACT_*` of kernels/common/act.cuh.
pub(crate) fn act_code(act: LinearAct) -> u32 {
    match act {
        LinearAct::None => 0,
        LinearAct::Gelu => 1,
        LinearAct::Relu => 2,
        LinearAct::Swiglu => 4,
    }
}

fn chip(l: &Launcher<'_>, shape: [usize; 3]) -> Result<Chip> {
    let takes = "mma, or a plan such as 128x256/1, t128x80_4x2/1 or d128x64_1x4x2/1; for one shape alone \
                 MxNxK=PLAN; several of them separated by commas";
    Ok(Chip {
        sm_count: l.device.sm_count(),
        arch: l.device.arch(),
        smem_per_sm: l.device.facts.smem_per_sm_bytes as usize,
        scratch_bytes: l.scratch.bytes,
        counters: l.scratch.counter_len,
        wanted: asked("VIVACE_GEMM", Wishes::parse, takes)?.and_then(|wishes| wishes.of(shape)),
    })
}

impl<'a> Product<'a> {
    /// Dense rows, and nothing that follows.
    pub fn of(a: GpuTensor<'a>, w: GpuTensor<'a>, y: GpuTensor<'a>) -> Product<'a> {
        Product {
            a,
            rows: RowsOf::Matrix { pitch: w.cols() },
            m: a.rows(),
            w,
            bias: None,
            act: LinearAct::None,
            scale: None,
            residual: None,
            table_at: None,
            norm: None,
            behind_norm: None,
            behind_rms: None,
            stats_of_y: None,
            begins: None,
            rope: None,
            y,
        }
    }

    /// Kernels index A and w with 32 bits and take one 16-bit type for all operands.
    fn check(&self) -> Result<()> {
        let dtype = self.a.desc.dtype;
        crate::ensure_input!(
            matches!(dtype, DType::BF16 | DType::F16),
            "{}: a matrix product wants bf16 or f16 on the GPU; got {} {}",
            self.y.name(),
            self.a.name(),
            self.a.desc.brief()
        );
        let (gain, shift) = (self.norm.map(|n| n.gain), self.behind_norm.map(|n| n.shift));
        let gain_of_y = self.begins.map(|b| b.gain);
        let others = [Some(self.w), self.bias, self.scale, self.residual, gain, shift, gain_of_y];
        for t in others.into_iter().flatten() {
            crate::ensure_input!(
                t.desc.dtype == dtype,
                "{}: operands of a matrix product share a type on the GPU; got {} {}, {} {}",
                self.y.name(),
                self.a.name(),
                self.a.desc.brief(),
                t.name(),
                t.desc.brief()
            );
        }
        for t in [self.a, self.w] {
            // Rows beyond the last are addressed, though not read: a tile's worth.
            let last = t.desc.shape.len() + 128 * self.w.cols().max(t.cols());
            crate::ensure_input!(
                u32::try_from(last).is_ok(),
                "{}: a matrix product takes operands of less than 2^32 elements; got {} {}",
                self.y.name(),
                t.name(),
                t.desc.brief()
            );
        }
        Ok(())
    }

    fn epilogue(&self) -> Epilogue {
        let ptr = |t: Option<GpuTensor<'_>>| t.map_or(DevicePtr::NULL, |t| t.ptr);
        Epilogue {
            bias: ptr(self.bias),
            scale: ptr(self.behind_norm.map_or(self.scale, |n| Some(n.shift))),
            residual: ptr(self.residual),
            y: self.y.ptr,
            stats: ptr(self.behind_norm.map(|n| n.stats)),
            stats_of_y: DevicePtr::NULL,
            squares: ptr(self.behind_rms.map(|n| n.squares)),
            squares_of_y: DevicePtr::NULL,
            gained: DevicePtr::NULL,
            cols: (self.w.rows() / self.act.rows_per_col()) as u32,
            act: act_code(self.act),
            out_f32: u32::from(self.y.desc.dtype == DType::F32),
            residual_first: self.table_at.unwrap_or(0) as u32,
            residual_cols: self.residual.map_or(0, |r| r.cols()) as u32,
            eps: self.behind_norm.map(|n| n.eps).or(self.behind_rms.map(|n| n.eps)).unwrap_or(0.0),
        }
    }

    /// Records the kernel that [`choose`] picks.
    pub fn launch(&self, l: &mut Launcher<'_>) -> Result<()> {
        self.check()?;
        let (m, n, k) = (self.m, self.w.rows(), self.w.cols());
        let (dense, aligned) = match self.rows {
            RowsOf::Matrix { pitch } => (pitch == k, k % 8 == 0 && pitch % 8 == 0),
            RowsOf::Image { channels, .. } => (false, channels % 8 == 0),
        };
        if m == 0 || n == 0 {
            return Ok(());
        }
        let end = match self.act {
            _ if self.rope.is_some() && self.behind_rms.is_some() => End::TurnedBehindRms,
            _ if self.rope.is_some() => End::Turned,
            _ if self.behind_rms.is_some() => End::GatedBehindRms,
            _ if self.behind_norm.is_some() => End::BehindNorm,
            LinearAct::Swiglu => End::Gated,
            _ => End::Plain,
        };
        let vectors = self.y.desc.dtype != DType::F32 && (n / self.act.rows_per_col()).is_multiple_of(8);
        let config = choose(&Problem { m, n, k, dense, aligned, end, vectors }, &chip(l, [m, n, k])?);
        crate::ensure_input!(
            self.norm.is_none() || matches!(config, Config::Gemv(_)),
            "{}: a product with a norm in front wants one row of a multiple of 8 elements on the GPU; got {} {}",
            self.y.name(),
            self.a.name(),
            self.a.desc.brief()
        );
        let (mut stats_of_y, mut begins) = (self.stats_of_y, self.begins);
        match config {
            Config::Gemv(gemv) => self.launch_gemv(l, gemv),
            Config::Skinny(skinny) => self.launch_skinny(l, skinny),
            Config::Naive | Config::Mma { .. } => self.launch_tiles(l, config),
            Config::Wgmma(plan) => {
                let mut e = self.epilogue();
                let plain = end == End::Plain && self.act == LinearAct::None && vectors;
                if let Some(stats) = stats_of_y.take_if(|_| plain && plan.tile.gives_stats()) {
                    e.stats_of_y = stats.ptr;
                }
                if let Some(begun) = begins.take_if(|_| plain && plan.begins_norms()) {
                    (e.scale, e.gained, e.squares_of_y) = (begun.gain.ptr, begun.z.ptr, begun.squares.ptr);
                }
                // SAFETY: infer() fixed the extents of all operands and check() their types; choose() wants K % 8 == 0, and
                // names a tile that there is with rotation, or behind a norm, where it is asked for; the statistics are
                // of whole vectors.
                unsafe { wgmma::launch::launch(l, plan, (self.a, m), self.w, e, self.rope) }
            }
        }?;
        // Of products that do not give them a kernel of its own does.
        stats_of_y.map_or(Ok(()), |stats| launch_row_stats(l, self.y, stats))?;
        begins.map_or(Ok(()), |b| launch_rms_begin(l, [self.y, b.gain, b.z], b.squares))
    }

    /// Records the same for the windows of `a` with stride 2, on sm_90a.
    pub fn launch_windows(&self, l: &mut Launcher<'_>, plan: wgmma::Plan) -> Result<()> {
        self.check()?;
        let (t, c) = (self.a.rows(), self.a.cols());
        if t < 2 || c % 64 != 0 {
            crate::bail_runtime!("{}: windows of {t} rows of {c}: 2 and a multiple of 64", self.y.name());
        }
        // SAFETY: infer() fixed the extents of all operands, check() their types; T and C are as wanted.
        unsafe { wgmma::launch::launch_windows(l, plan, (self.a, self.m), self.w, self.epilogue()) }
    }

    fn launch_tiles(&self, l: &mut Launcher<'_>, config: Config) -> Result<()> {
        let e = self.epilogue();
        let (m, n, k) = (self.m, self.w.rows(), self.w.cols());
        let mut p = GemmParams {
            a: self.a.ptr,
            w: self.w.ptr,
            e,
            partials: DevicePtr::NULL,
            counters: DevicePtr::NULL,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            a_len: self.a.desc.shape.len() as u32,
            a_pitch: 0,
            width: 0,
            out_width: 0,
            channels: 0,
        };
        let image = match self.rows {
            RowsOf::Matrix { pitch } => {
                p.a_pitch = pitch as u32;
                ""
            }
            RowsOf::Image { width, out_width, channels } => {
                (p.width, p.out_width, p.channels) = (width as u32, out_width as u32, channels as u32);
                "_image"
            }
        };
        let dtype = self.a.desc.dtype;
        if let Config::Mma { tile, splits } = config {
            let tiles = tile.tiles(m, n);
            if splits > 1 {
                p.partials = l.scratch(tile.partial_bytes(m, n, splits))?;
                p.counters = l.counters(tiles)?;
            }
            let variant = format!("{image}_{}", tile.name);
            let geometry = Geometry::grid([tiles as u32, splits as u32, 1]).smem(tile.smem_bytes);
            if let Some(r) = self.rope {
                let p = GemmRopeParams { g: p, r };
                // SAFETY: as below; infer() fixed N = (H + 2G)·D, q and the cache, which have a's type, and the table; rows
                // of the cache at or beyond `max_rows` are not written.
                return unsafe {
                    l.launch_variant::<MmaRopeKernel>(&format!("_{}", tile.name), dtype, geometry, &p)
                };
            }
            // SAFETY: as for gemv; reads beyond M, N, K and the end of A are replaced by zeros; partials and counters
            // have the sizes that the grid needs.
            return unsafe { l.launch_variant::<MmaKernel>(&variant, dtype, geometry, &p) };
        }
        let ctas = m.div_ceil(16) * (e.cols as usize).div_ceil(16);
        let geometry = Geometry::grid([ctas as u32, 1, 1]);
        // SAFETY: every element is read behind a check of its indices.
        unsafe { l.launch_variant::<NaiveKernel>(image, dtype, geometry, &p) }
    }
}

impl CudaOp for Linear {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        LinearFused::of(self).launch(l, io)
    }
}

fn norm_in_front<'a>(norm: NormBefore, gain: Option<GpuTensor<'a>>) -> Option<Norm<'a>> {
    let NormBefore::Rms(eps) = norm else { return None };
    gain.map(|gain| Norm { gain, eps })
}

fn behind_rms<'a>(norm: NormBefore, squares: Option<GpuTensor<'a>>) -> Option<BehindRms<'a>> {
    let NormBefore::BegunRms(eps) = norm else { return None };
    squares.map(|squares| BehindRms { squares, eps })
}

impl CudaOp for LinearFused {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let [bias, scale, residual, gain, shift, stats, z, squares, gain_of_y] =
            self.optional_inputs().map(|i| i.map(|i| io.ins[i]));
        let norm = norm_in_front(self.norm, gain);
        let behind_rms = behind_rms(self.norm, squares);
        let behind_norm = match (self.norm, shift, stats) {
            (NormBefore::Layer(eps), Some(shift), Some(stats)) => Some(BehindNorm { shift, stats, eps }),
            _ => None,
        };
        let begins = match (gain_of_y, &io.outs[..]) {
            (Some(gain), &[_, z, squares]) => Some(BeginsRms { gain, z, squares }),
            _ => None,
        };
        Product {
            bias,
            act: self.act,
            scale,
            residual,
            table_at: self.table_at,
            norm,
            behind_norm,
            behind_rms,
            stats_of_y: io.outs.get(1).copied().filter(|_| self.stats),
            begins,
            ..Product::of(z.unwrap_or(io.ins[0]), io.ins[1], io.outs[0])
        }
        .launch(l)
    }
}

impl CudaOp for LinearRope {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let [a, w, bias, kv] = io.ins[..4] else {
            crate::bail_runtime!("LinearRope wants 4 inputs, its node has {}", io.ins.len())
        };
        let (m, k, y) = (a.rows(), w.cols(), io.outs[0]);
        let angles = LinearRope::angles(m, self.sequences, k, self.head_dim);
        crate::ensure_input!(
            angles == Some(if self.table { Angles::Table } else { Angles::Computed })
                && (m == 1 || !matches!(self.norm, NormBefore::Rms(_))),
            "{}: LinearRope wants one row, or up to 8 of one sequence or 16, one of each, of at most 3584 elements, or 17 or \
             more of one and a table, of a multiple of 8 elements (with a norm that has not been begun one row), and a head \
             dim that is a multiple of 16 and at most 256 on the GPU; got {} {} of {} sequences, head dim {}",
            y.name(),
            a.name(),
            a.desc.brief(),
            self.sequences,
            self.head_dim
        );
        let [table, gain, z, squares] =
            self.optional_inputs().map(|i| i.and_then(|i| io.ins.get(i)).copied());
        let max_rows = kv.desc.shape[2] as u32;
        let rope = table.map(|table| RopeEpilogue {
            table: table.ptr,
            q: y.ptr,
            kv: kv.ptr,
            step: l.step(),
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            max_rows,
        });
        let norm = norm_in_front(self.norm, gain);
        let behind_rms = behind_rms(self.norm, squares);
        let a = z.unwrap_or(a);
        let product = Product { bias: Some(bias), norm, behind_rms, rope, ..Product::of(a, w, y) };
        if rope.is_some() {
            return product.launch(l);
        }
        product.check()?;
        product.launch_few_rope(l, self, kv)
    }
}
