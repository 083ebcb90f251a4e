//! Launchers of the convolutions and of what stands around them.

use super::{
    AssembleTokens, Cmvn, Conv1d, Conv2d, Patchify, PixelShuffle, Pixels, PrependClass, conv1, wgmma,
};
use crate::core::Result;
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, GpuTensor, Kernel, Launcher};
use crate::ops::CudaOp;
use crate::ops::linear::LinearAct;
use crate::ops::linear::cuda::{Product, RowsOf, act_code};

/// Threads per CTA of every kernel in kernels/conv/around.cu.
const THREADS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy)]
struct Conv1Params {
    x: DevicePtr,
    w: DevicePtr,
    b: DevicePtr,
    y: DevicePtr,
    width: u32,
    out_width: u32,
    pixels: u32,
    channels: u32,
    relu: u32,
    slots: u32,
}

struct Conv1Kernel;
// SAFETY: `conv1_mma` in kernels/conv/conv1.cu takes one Conv1Params by value; loading compares the sizes.
unsafe impl Kernel for Conv1Kernel {
    const FILE: &'static str = "conv/conv1";
    const SYMBOL: &'static str = "conv1_mma";
    type Params = Conv1Params;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PatchifyParams {
    x: DevicePtr,
    y: DevicePtr,
    size: u32,
    patch: u32,
    cols: u32,
    vectors: u32,
    bytes: u32,
    mean: [f32; 3],
    std: [f32; 3],
}

struct PatchifyKernel;
// SAFETY: `patchify` in kernels/conv/around.cu takes one PatchifyParams by value; loading compares the sizes.
unsafe impl Kernel for PatchifyKernel {
    const FILE: &'static str = "conv/around";
    const SYMBOL: &'static str = "patchify";
    type Params = PatchifyParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AssembleParams {
    x: DevicePtr,
    cls: DevicePtr,
    pos: DevicePtr,
    y: DevicePtr,
    patches: u32,
    cols: u32,
    vectors: u32,
}

struct AssembleKernel;
// SAFETY: `assemble` in kernels/conv/around.cu takes one AssembleParams by value; loading compares the sizes.
unsafe impl Kernel for AssembleKernel {
    const FILE: &'static str = "conv/around";
    const SYMBOL: &'static str = "assemble";
    type Params = AssembleParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PixelShuffleParams {
    x: DevicePtr,
    y: DevicePtr,
    grid: u32,
    cols: u32,
    vectors: u32,
    scale: f32,
}

struct PixelShuffleKernel;
// SAFETY: `pixel_shuffle` in kernels/conv/around.cu takes one PixelShuffleParams by value; loading compares the sizes.
unsafe impl Kernel for PixelShuffleKernel {
    const FILE: &'static str = "conv/around";
    const SYMBOL: &'static str = "pixel_shuffle";
    type Params = PixelShuffleParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CmvnParams {
    x: DevicePtr,
    mean: DevicePtr,
    istd: DevicePtr,
    y: DevicePtr,
    cols: u32,
    len: u32,
}

struct CmvnKernel;
// SAFETY: `cmvn_stats_*` in kernels/conv/around.cu take one CmvnParams by value; loading compares the sizes.
unsafe impl Kernel for CmvnKernel {
    const FILE: &'static str = "conv/around";
    const SYMBOL: &'static str = "cmvn";
    type Params = CmvnParams;
}

/// One thread per element of `len`.
fn cover(len: usize) -> Geometry {
    Geometry::grid([len.div_ceil(THREADS) as u32, 1, 1])
}

/// Number of vectors of 8 in `t`, whose rows must be whole vectors.
fn vectors(op: &str, t: &GpuTensor<'_>) -> Result<u32> {
    crate::ensure_input!(
        t.cols().is_multiple_of(8),
        "{}: {op} wants a multiple of 8 columns on the GPU; got {}",
        t.name(),
        t.desc.brief()
    );
    match u32::try_from(t.desc.shape.len() / 8) {
        Ok(n) => Ok(n),
        Err(_) => {
            crate::bail_input!("{}: {op} takes less than 2^35 elements; got {}", t.name(), t.desc.brief())
        }
    }
}

/// All of `ts` have the type of `of`.
fn one_type(op: &str, of: &GpuTensor<'_>, ts: &[&GpuTensor<'_>]) -> Result<()> {
    for t in ts {
        crate::ensure_input!(
            t.desc.dtype == of.desc.dtype,
            "{op} wants operands of one type on the GPU; got {} {}, {} {}",
            of.name(),
            of.desc.brief(),
            t.name(),
            t.desc.brief()
        );
    }
    Ok(())
}

impl CudaOp for Patchify {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x], [y]) = io.take()?;
        let vectors = vectors("Patchify", &y)?;
        let (bytes, mean, std) = match self.pixels {
            Pixels::Values => (0, [0.0; 3], [1.0; 3]),
            Pixels::Bytes { mean, std } => (1, mean, std),
        };
        let p = PatchifyParams {
            x: x.ptr,
            y: y.ptr,
            size: self.pixels.side(x.desc).unwrap_or(0) as u32,
            patch: self.patch as u32,
            cols: y.cols() as u32,
            vectors,
            bytes,
            mean,
            std,
        };
        // SAFETY: infer() made y's rows those of x's patches, four bytes of them in an element where x is u32; a thread writes one vector below `vectors`.
        unsafe { l.launch::<PatchifyKernel>(y.desc.dtype, cover(vectors as usize), &p) }
    }
}

/// Class token and patches, with or without a position table.
fn assemble(
    l: &mut Launcher<'_>,
    tiles: usize,
    [x, cls]: [GpuTensor<'_>; 2],
    pos: Option<GpuTensor<'_>>,
    y: GpuTensor<'_>,
) -> Result<()> {
    one_type("AssembleTokens", &x, &[&cls, pos.as_ref().unwrap_or(&cls)])?;
    let vectors = vectors("AssembleTokens", &y)?;
    let p = AssembleParams {
        x: x.ptr,
        cls: cls.ptr,
        pos: pos.map_or(DevicePtr::NULL, |p| p.ptr),
        y: y.ptr,
        patches: (x.rows() / tiles) as u32,
        cols: y.cols() as u32,
        vectors,
    };
    // SAFETY: infer() fixed the extents; a thread writes one vector below `vectors`.
    unsafe { l.launch::<AssembleKernel>(y.desc.dtype, cover(vectors as usize), &p) }
}

impl CudaOp for PrependClass {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let (ins, [y]) = io.take::<2, 1>()?;
        assemble(l, self.tiles, ins, None, y)
    }
}

impl CudaOp for AssembleTokens {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, cls, pos], [y]) = io.take()?;
        assemble(l, self.tiles, [x, cls], Some(pos), y)
    }
}

impl CudaOp for PixelShuffle {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x], [y]) = io.take()?;
        vectors("PixelShuffle", &x)?;
        let vectors = vectors("PixelShuffle", &y)?;
        let p = PixelShuffleParams {
            x: x.ptr,
            y: y.ptr,
            grid: self.grid as u32,
            cols: x.cols() as u32,
            vectors,
            scale: self.scale,
        };
        // SAFETY: infer() fixed the extents; a thread writes one vector below `vectors`.
        unsafe { l.launch::<PixelShuffleKernel>(y.desc.dtype, cover(vectors as usize), &p) }
    }
}

impl CudaOp for Cmvn {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, mean, istd], [y]) = io.take()?;
        let len = x.desc.shape.len();
        let p = CmvnParams {
            x: x.ptr,
            mean: mean.ptr,
            istd: istd.ptr,
            y: y.ptr,
            cols: x.cols() as u32,
            len: len as u32,
        };
        let variant = format!("_stats_{}", mean.desc.dtype);
        // SAFETY: infer() fixed the extents and gave mean and istd one type, which the variant names.
        unsafe { l.launch_variant::<CmvnKernel>(&variant, y.desc.dtype, cover(len), &p) }
    }
}

impl CudaOp for Conv2d {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, w, b], [y]) = io.take()?;
        let Some(e) = self.extents(x.desc) else {
            crate::bail_runtime!("{}: Conv2d without an output", y.name())
        };
        let (pixels, channels) = (e.out_height * e.out_width, w.rows());
        if self.channels == 1 && channels % 8 == 0 {
            one_type("Conv2d", &x, &[&w, &b])?;
            let plan = conv1::plan(pixels, channels, l.device.sm_count());
            let p = Conv1Params {
                x: x.ptr,
                w: w.ptr,
                b: b.ptr,
                y: y.ptr,
                width: e.width as u32,
                out_width: e.out_width as u32,
                pixels: pixels as u32,
                channels: channels as u32,
                relu: u32::from(self.relu),
                slots: plan.slots as u32,
            };
            let geometry = Geometry::grid([plan.ctas as u32, 1, 1]);
            // SAFETY: infer() fixed the extents; every window lies inside x; channels % 8 == 0 aligns w and y.
            return unsafe { l.launch::<Conv1Kernel>(y.desc.dtype, geometry, &p) };
        }
        let act = if self.relu { LinearAct::Relu } else { LinearAct::None };
        let p = wgmma::Problem {
            out_height: e.out_height,
            out_width: e.out_width,
            channels: self.channels,
            n: channels,
        };
        if let Some(plan) = wgmma::choose(&p, &wgmma::launch::chip(l)?) {
            one_type("Conv2d", &x, &[&w, &b])?;
            // SAFETY: infer() fixed the extents; kernels exist for 16-bit types alone.
            return unsafe { wgmma::launch::launch(l, plan, (&p, &e), [x, w, b, y], act_code(act)) };
        }
        let rows = RowsOf::Image { width: e.width, out_width: e.out_width, channels: self.channels };
        Product { rows, m: pixels, bias: Some(b), act, ..Product::of(x, w, y) }.launch(l)
    }
}

impl CudaOp for Conv1d {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([a, w, b], [y]) = io.take()?;
        let rows = RowsOf::Matrix { pitch: self.stride * a.cols() };
        let product = Product { rows, m: y.rows(), bias: Some(b), ..Product::of(a, w, y) };
        let chip = wgmma::launch::chip(l)?;
        match wgmma::windows(&chip, self.stride, [a.rows(), a.cols()], [y.rows(), w.rows(), w.cols()]) {
            Some(plan) => product.launch_windows(l, plan),
            None => product.launch(l),
        }
    }
}
