//! Launchers of the preprocessing ops.

use super::{Filterbank, ResizeToTiles, ResizeWidth};
use crate::core::{DType, Result};
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, Kernel, Launcher};
use crate::ops::CudaOp;

/// Threads per CTA of the two resizes in kernels/preprocess.cu.
const THREADS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct FilterbankParams {
    x: DevicePtr,
    window: DevicePtr,
    spans: DevicePtr,
    mel: DevicePtr,
    y: DevicePtr,
    bins: u32,
    width: u32,
}

struct FilterbankKernel;
// SAFETY: `filterbank` in kernels/preprocess.cu takes one FilterbankParams by value; loading compares the sizes.
unsafe impl Kernel for FilterbankKernel {
    const FILE: &'static str = "preprocess";
    const SYMBOL: &'static str = "filterbank";
    type Params = FilterbankParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ResizeWidthParams {
    x: DevicePtr,
    axis: DevicePtr,
    y: DevicePtr,
    width: u32,
    axis_cols: u32,
    words: u32,
    count: u32,
}

struct ResizeWidthKernel;
// SAFETY: `resize_width` in kernels/preprocess.cu takes one ResizeWidthParams by value; loading compares the sizes.
unsafe impl Kernel for ResizeWidthKernel {
    const FILE: &'static str = "preprocess";
    const SYMBOL: &'static str = "resize_width";
    type Params = ResizeWidthParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ResizeToTilesParams {
    x: DevicePtr,
    axis: DevicePtr,
    thumb: DevicePtr,
    thumb_axis: DevicePtr,
    table: DevicePtr,
    y: DevicePtr,
    size: u32,
    columns: u32,
    main_tiles: u32,
    axis_cols: u32,
    thumb_axis_cols: u32,
    count: u32,
}

struct ResizeToTilesKernel;
// SAFETY: `resize_to_tiles` in kernels/preprocess.cu takes one ResizeToTilesParams by value; loading compares the sizes.
unsafe impl Kernel for ResizeToTilesKernel {
    const FILE: &'static str = "preprocess";
    const SYMBOL: &'static str = "resize_to_tiles";
    type Params = ResizeToTilesParams;
}

/// One thread for each of `count` outputs; the kernels count in 32 bits.
fn cover(name: &str, count: usize) -> Result<Geometry> {
    crate::ensure_input!(
        count < 1 << 31,
        "{name}: fewer than 2^31 outputs expected on the GPU, found {count}"
    );
    Ok(Geometry::grid([count.div_ceil(THREADS) as u32, 1, 1]))
}

impl CudaOp for Filterbank {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, window, spans, mel], [y]) = io.take()?;
        crate::ensure_input!(
            mel.rows() <= 256,
            "{}: Filterbank wants at most 256 mel bins on the GPU; got {}",
            mel.name(),
            mel.desc.brief()
        );
        let p = FilterbankParams {
            x: x.ptr,
            window: window.ptr,
            spans: spans.ptr,
            mel: mel.ptr,
            y: y.ptr,
            bins: mel.rows() as u32,
            width: mel.cols() as u32,
        };
        // SAFETY: infer() fixed every extent, and a CTA per row of y reads the 400 samples that infer() counted; a span
        // is cut to the mel row and to the spectrum.
        unsafe { l.launch::<FilterbankKernel>(DType::F32, Geometry::grid([y.rows() as u32, 1, 1]), &p) }
    }
}

impl CudaOp for ResizeWidth {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, axis], [y]) = io.take()?;
        let count = y.desc.shape.len();
        let p = ResizeWidthParams {
            x: x.ptr,
            axis: axis.ptr,
            y: y.ptr,
            width: self.width as u32,
            axis_cols: axis.cols() as u32,
            words: y.cols() as u32,
            count: count as u32,
        };
        // SAFETY: infer() fixed pixels, axis and y; a span is cut to a row of the picture and to the columns of the axis.
        unsafe { l.launch::<ResizeWidthKernel>(DType::U32, cover(y.name(), count)?, &p) }
    }
}

impl CudaOp for ResizeToTiles {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let [y] = io.outs[..] else { crate::bail_runtime!("ResizeToTiles has one output") };
        let (x, axis, thumb, thumb_axis, table) = match io.ins[..] {
            [x, axis, table] => (x, axis, x, axis, table),
            [x, axis, thumb, thumb_axis, table] => (x, axis, thumb, thumb_axis, table),
            _ => crate::bail_runtime!("ResizeToTiles has 3 or 5 inputs"),
        };
        let count = y.desc.shape.len();
        let p = ResizeToTilesParams {
            x: x.ptr,
            axis: axis.ptr,
            thumb: thumb.ptr,
            thumb_axis: thumb_axis.ptr,
            table: table.ptr,
            y: y.ptr,
            size: self.size as u32,
            columns: self.columns as u32,
            main_tiles: (self.columns * self.rows) as u32,
            axis_cols: axis.cols() as u32,
            thumb_axis_cols: thumb_axis.cols() as u32,
            count: count as u32,
        };
        // SAFETY: infer() fixed x, axis and y, and the thumbnail's where there is one; whoever makes an axis keeps its
        // spans within the rows of x, as the CPU checks by its slices.
        unsafe { l.launch::<ResizeToTilesKernel>(DType::U32, cover(y.name(), count)?, &p) }
    }
}
