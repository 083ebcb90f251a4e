//! Launchers of the products for few rows: `gemm/gemv.cu` for one, `gemm/skinny.cu` for 2 to 16.

use super::super::choose::{Gemv, Skinny};
use super::{Epilogue, Norm, Product};
use crate::core::{DType, Result};
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, GpuTensor, Kernel, Launcher};
use crate::ops::CudaOp;
use crate::ops::linear::{LinearArgMax, LinearRope};
use crate::ops::rope::cuda::{PAIRS, frequencies};

#[repr(C)]
#[derive(Clone, Copy)]
struct GemvParams {
    x: DevicePtr,
    w: DevicePtr,
    gain: DevicePtr,
    e: Epilogue,
    m: u32,
    n: u32,
    k: u32,
    eps: f32,
    inv_k: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GemvRopeParams {
    product: GemvParams,
    kv: DevicePtr,
    step: DevicePtr,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    max_rows: u32,
    inv_freq: [f32; PAIRS],
    row_step: u32,
    row_heads: u32,
    all_kv_heads: u32,
}

struct GemvKernel;
// SAFETY: `gemv*` in kernels/gemm/gemv.cu take one GemvParams by value; loading compares the sizes.
unsafe impl Kernel for GemvKernel {
    const FILE: &'static str = "gemm/gemv";
    const SYMBOL: &'static str = "gemv";
    type Params = GemvParams;
}

/// Percent of an SM's memory to be shared memory: 64 KB hold every instance of `gemm/skinny.cu`. An SM that ran a kernel with
/// more keeps that unless less is asked for, and what weights pass through on their way is the rest, the L1: a step of 8
/// sequences took 4.34 ms where 114 KB on their way had to do with the 28 KB that a ring left, and 3.88 with this.
const SKINNY_CARVEOUT: u32 = 28;

#[repr(C)]
#[derive(Clone, Copy)]
struct SkinnyParams {
    product: GemvParams,
    claims: DevicePtr,
}

struct SkinnyKernel;
// SAFETY: `skinny_m*` in kernels/gemm/skinny.cu take one SkinnyParams by value; loading compares the sizes.
unsafe impl Kernel for SkinnyKernel {
    const FILE: &'static str = "gemm/skinny";
    const SYMBOL: &'static str = "skinny";
    type Params = SkinnyParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SkinnySplitParams {
    product: GemvParams,
    claims: DevicePtr,
    counters: DevicePtr,
    partials: DevicePtr,
    part_chunks: u32,
}

struct SkinnySplitKernel;
// SAFETY: `skinny_split_*` in kernels/gemm/skinny.cu take one SkinnySplitParams by value; loading compares the sizes.
unsafe impl Kernel for SkinnySplitKernel {
    const FILE: &'static str = "gemm/skinny";
    const SYMBOL: &'static str = "skinny_split";
    type Params = SkinnySplitParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SkinnyRopeParams {
    rope: GemvRopeParams,
    claims: DevicePtr,
}

struct SkinnyRopeKernel;
// SAFETY: `skinny_rope_*` in kernels/gemm/skinny.cu take one SkinnyRopeParams by value; loading compares the sizes.
unsafe impl Kernel for SkinnyRopeKernel {
    const FILE: &'static str = "gemm/skinny";
    const SYMBOL: &'static str = "skinny_rope";
    type Params = SkinnyRopeParams;
}

struct GemvRopeKernel;
// SAFETY: `gemv_rope*` in kernels/gemm/gemv.cu take one GemvRopeParams by value; loading compares the sizes.
unsafe impl Kernel for GemvRopeKernel {
    const FILE: &'static str = "gemm/gemv";
    const SYMBOL: &'static str = "gemv_rope";
    type Params = GemvRopeParams;
}

/// `ARG_SLOTS` of kernels/gemm/gemv.cu.
const ARG_SLOTS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy)]
struct GemvArgMaxParams {
    product: GemvParams,
    slots: DevicePtr,
    limit: u32,
}

struct GemvArgMaxKernel;
// SAFETY: `gemv_arg_max_*` but its end take one GemvArgMaxParams by value; loading compares the sizes.
unsafe impl Kernel for GemvArgMaxKernel {
    const FILE: &'static str = "gemm/gemv";
    const SYMBOL: &'static str = "gemv_arg_max";
    type Params = GemvArgMaxParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GemvArgMaxEndParams {
    slots: DevicePtr,
    id: DevicePtr,
}

struct GemvArgMaxEndKernel;
// SAFETY: `gemv_arg_max_end` in kernels/gemm/gemv.cu takes one GemvArgMaxEndParams by value; loading compares the sizes.
unsafe impl Kernel for GemvArgMaxEndKernel {
    const FILE: &'static str = "gemm/gemv";
    const SYMBOL: &'static str = "gemv_arg_max_end";
    type Params = GemvArgMaxEndParams;
}

impl Product<'_> {
    fn gemv_params(&self) -> GemvParams {
        let (n, k) = (self.w.rows(), self.w.cols());
        GemvParams {
            x: self.a.ptr,
            w: self.w.ptr,
            gain: self.norm.map_or(DevicePtr::NULL, |norm| norm.gain.ptr),
            e: self.epilogue(),
            m: self.m as u32,
            n: n as u32,
            k: k as u32,
            eps: self.norm.map_or(0.0, |norm| norm.eps),
            inv_k: 1.0 / k as f32,
        }
    }

    /// Part of a kernel symbol: `variant`, and whether there is a norm.
    fn gemv_variant(&self, variant: &str) -> String {
        format!("{variant}{}", if self.norm.is_some() { "_norm" } else { "" })
    }

    pub(super) fn launch_gemv(&self, l: &mut Launcher<'_>, gemv: Gemv) -> Result<()> {
        let geometry = Geometry::grid([self.w.rows().div_ceil(gemv.rows) as u32, 1, 1]);
        let (variant, p) = (self.gemv_variant(gemv.variant), self.gemv_params());
        // SAFETY: infer() fixed the extents of all operands and check() their types; K % 8 == 0 makes every row
        // 16-byte aligned; rows and columns beyond M and N are neither read nor written.
        unsafe { l.launch_variant::<GemvKernel>(&variant, self.a.desc.dtype, geometry, &p) }
    }

    pub(super) fn launch_skinny(&self, l: &mut Launcher<'_>, skinny: Skinny) -> Result<()> {
        let Skinny { variant, ctas, parts, part_chunks } = skinny;
        let (dtype, n, product) = (self.a.desc.dtype, self.w.rows(), self.gemv_params());
        let geometry = Geometry::grid([ctas as u32, parts as u32, 1]).carveout(SKINNY_CARVEOUT);
        let claims = l.counters(skinny.counters(n))?;
        if parts == 1 {
            let p = SkinnyParams { product, claims };
            // SAFETY: as for gemv; the claims are zeroed words.
            return unsafe { l.launch_variant::<SkinnyKernel>(variant, dtype, geometry, &p) };
        }
        let p = SkinnySplitParams {
            product,
            claims,
            counters: claims.offset(skinny.claims() * size_of::<u32>()),
            partials: l.scratch(skinny.partial_bytes(n))?,
            part_chunks: part_chunks as u32,
        };
        // SAFETY: as for gemv; the parts of K cover it, scratch holds the sums of every part, and behind the claims there is
        // a zeroed counter for every 16 rows of w.
        unsafe { l.launch_variant::<SkinnySplitKernel>(variant, dtype, geometry, &p) }
    }

    /// The product of `op`, down to the cache `kv`, of so few rows that every CTA computes its angles.
    pub(super) fn launch_few_rope(
        &self,
        l: &mut Launcher<'_>,
        op: &LinearRope,
        kv: GpuTensor<'_>,
    ) -> Result<()> {
        let (m, k, max_rows) = (self.m, self.w.cols(), kv.desc.shape[2] as u32);
        let p = GemvRopeParams {
            product: self.gemv_params(),
            kv: kv.ptr,
            step: l.step(),
            heads: op.heads as u32,
            kv_heads: op.kv_heads as u32,
            head_dim: op.head_dim as u32,
            max_rows,
            inv_freq: frequencies(op.head_dim, op.theta),
            row_step: u32::from(op.sequences == 1),
            row_heads: if op.sequences == 1 { 0 } else { op.kv_heads as u32 },
            all_kv_heads: (op.sequences * op.kv_heads) as u32,
        };
        // SAFETY, of both: as for gemv; infer() fixed N = (H + 2G)·D and the cache of all sequences, which has x's type;
        // angles() made both halves of a head whole blocks of the CTAs, the head no wider than inv_freq, K one part where
        // there are several rows, and all rows those of one sequence or every row another's; rows of the cache at or beyond
        // `max_rows` are not written.
        if m == 1 {
            let gemv = Gemv::choose(k);
            let heads = op.heads + 2 * op.kv_heads;
            let geometry = Geometry::grid([(op.head_dim / gemv.rows) as u32, heads as u32, 1]);
            let variant = self.gemv_variant(gemv.variant);
            // SAFETY: above.
            return unsafe { l.launch_variant::<GemvRopeKernel>(&variant, self.a.desc.dtype, geometry, &p) };
        }
        let skinny = Skinny::choose([m, self.w.rows(), k], l.device.sm_count());
        let geometry = Geometry::grid([skinny.ctas as u32, 1, 1]).carveout(SKINNY_CARVEOUT);
        let p = SkinnyRopeParams { rope: p, claims: l.counters(skinny.claims())? };
        // SAFETY: above; the claims are zeroed words.
        unsafe { l.launch_variant::<SkinnyRopeKernel>(skinny.variant, self.a.desc.dtype, geometry, &p) }
    }
}

impl CudaOp for LinearArgMax {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([a, w], [y, id]) = match io.ins[..] {
            [a, w, ..] => ([a, w], [io.outs[0], io.outs[1]]),
            _ => crate::bail_runtime!("LinearArgMax wants 2 inputs, its node has {}", io.ins.len()),
        };
        let (m, k) = (a.rows(), w.cols());
        crate::ensure_input!(
            LinearArgMax::takes(m, k),
            "{}: LinearArgMax wants one row of a multiple of 8 elements on the GPU; got {} {}",
            y.name(),
            a.name(),
            a.desc.brief()
        );
        let norm = self.norm.zip(io.ins.get(2)).map(|(eps, &gain)| Norm { gain, eps });
        let product = Product { norm, ..Product::of(a, w, y) };
        product.check()?;
        let gemv = Gemv::choose(k);
        let slots = l.counters(2 * ARG_SLOTS)?;
        let p = GemvArgMaxParams { product: product.gemv_params(), slots, limit: self.limit };
        let geometry = Geometry::grid([w.rows().div_ceil(gemv.rows) as u32, 1, 1]);
        let variant = product.gemv_variant(gemv.variant);
        // SAFETY: as for gemv; the slots are ARG_SLOTS zeroed words of 64 bits, at the beginning of the counters.
        unsafe { l.launch_variant::<GemvArgMaxKernel>(&variant, a.desc.dtype, geometry, &p)? };
        let p = GemvArgMaxEndParams { slots, id: id.ptr };
        // SAFETY: the kernel before this one used the same slots; infer() made one id per row, which is one.
        unsafe { l.launch::<GemvArgMaxEndKernel>(DType::U32, Geometry::grid([1, 1, 1]), &p) }
    }
}
