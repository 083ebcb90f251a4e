//! Launchers of the row choosers.

use super::{Embed, EmbedSplice, LastRows, Recent, RowsAt, Splice};
use crate::core::Result;
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, GpuTensor, Kernel, Launcher};
use crate::ops::{CudaOp, checks};

const THREADS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct EmbedParams {
    ids: DevicePtr,
    table: DevicePtr,
    media: DevicePtr,
    y: DevicePtr,
    table_rows: u32,
    media_rows: u32,
    vectors: u32,
}

struct EmbedKernel;
// SAFETY: `embed` in kernels/embed.cu takes one EmbedParams by value; loading compares the sizes.
unsafe impl Kernel for EmbedKernel {
    const FILE: &'static str = "embed";
    const SYMBOL: &'static str = "embed";
    type Params = EmbedParams;
}

struct SpliceKernel;
// SAFETY: `splice` in kernels/embed.cu takes one EmbedParams by value; loading compares the sizes.
unsafe impl Kernel for SpliceKernel {
    const FILE: &'static str = "embed";
    const SYMBOL: &'static str = "splice";
    type Params = EmbedParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LastRowsParams {
    x: DevicePtr,
    y: DevicePtr,
    step: DevicePtr,
    rows: u32,
    vectors: u32,
}

struct LastRowsKernel;
// SAFETY: `last_rows` in kernels/embed.cu takes one LastRowsParams by value; loading compares the sizes.
unsafe impl Kernel for LastRowsKernel {
    const FILE: &'static str = "embed";
    const SYMBOL: &'static str = "last_rows";
    type Params = LastRowsParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RecentParams {
    x: DevicePtr,
    table: DevicePtr,
    y: DevicePtr,
    step: DevicePtr,
    rows: u32,
    table_rows: u32,
    vectors: u32,
}

struct RowsAtKernel;
// SAFETY: `rows_at` in kernels/embed.cu takes one RecentParams by value; loading compares the sizes.
unsafe impl Kernel for RowsAtKernel {
    const FILE: &'static str = "embed";
    const SYMBOL: &'static str = "rows_at";
    type Params = RecentParams;
}

struct RecentKernel;
// SAFETY: `recent` in kernels/embed.cu takes one RecentParams by value; loading compares the sizes.
unsafe impl Kernel for RecentKernel {
    const FILE: &'static str = "embed";
    const SYMBOL: &'static str = "recent";
    type Params = RecentParams;
}

/// One thread per vector of `y`.
fn grid(y: &GpuTensor<'_>) -> Geometry {
    Geometry::grid([y.rows() as u32, (y.cols() / 8).div_ceil(THREADS) as u32, 1])
}

/// `table` is read at row `id`, or for [`Splice`] at row t.
fn choose<K: Kernel<Params = EmbedParams>>(
    l: &mut Launcher<'_>,
    op: &str,
    ids: GpuTensor<'_>,
    table: GpuTensor<'_>,
    media: Option<GpuTensor<'_>>,
    y: GpuTensor<'_>,
) -> Result<()> {
    let dtype = checks::same_t16(op, &[y, table, media.unwrap_or(table)])?;
    checks::whole_vectors(op, &y, usize::MAX)?;
    let p = EmbedParams {
        ids: ids.ptr,
        table: table.ptr,
        media: media.map_or(DevicePtr::NULL, |m| m.ptr),
        y: y.ptr,
        table_rows: table.rows() as u32,
        media_rows: media.map_or(0, |m| m.rows()) as u32,
        vectors: (y.cols() / 8) as u32,
    };
    // SAFETY: infer() made one row of y per id and gave table, media and y one width; a row beyond `table_rows` or
    // `media_rows` is not read.
    unsafe { l.launch::<K>(dtype, grid(&y), &p) }
}

impl CudaOp for Embed {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([ids, table], [y]) = io.take()?;
        choose::<EmbedKernel>(l, "Embed", ids, table, None, y)
    }
}

impl CudaOp for Splice {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, ids, media], [y]) = io.take()?;
        choose::<SpliceKernel>(l, "Splice", ids, x, Some(media), y)
    }
}

impl CudaOp for EmbedSplice {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([ids, table, media], [y]) = io.take()?;
        choose::<EmbedKernel>(l, "EmbedSplice", ids, table, Some(media), y)
    }
}

impl CudaOp for LastRows {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x], [y]) = io.take()?;
        let dtype = checks::same_t16("LastRows", &[x, y])?;
        checks::whole_vectors("LastRows", &x, usize::MAX)?;
        let p = LastRowsParams {
            x: x.ptr,
            y: y.ptr,
            step: l.step(),
            rows: x.rows() as u32,
            vectors: (x.cols() / 8) as u32,
        };
        // SAFETY: infer() gave x and y one width; a row beyond `rows` is not read.
        unsafe { l.launch::<LastRowsKernel>(dtype, grid(&y), &p) }
    }
}

impl CudaOp for RowsAt {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([table], [y]) = io.take()?;
        let dtype = checks::same_t16("RowsAt", &[table, y])?;
        checks::whole_vectors("RowsAt", &table, usize::MAX)?;
        let p = RecentParams {
            x: DevicePtr::NULL,
            table: table.ptr,
            y: y.ptr,
            step: l.step(),
            rows: self.back as u32,
            table_rows: table.rows() as u32,
            vectors: (y.cols() / 8) as u32,
        };
        // SAFETY: infer() gave table and y one width; a row beyond `table_rows` is not read.
        unsafe { l.launch::<RowsAtKernel>(dtype, grid(&y), &p) }
    }
}

impl CudaOp for Recent {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, ring], [y, _]) = io.take()?;
        let dtype = checks::same_t16("Recent", &[x, ring, y])?;
        checks::whole_vectors("Recent", &x, usize::MAX)?;
        let p = RecentParams {
            x: x.ptr,
            table: ring.ptr,
            y: y.ptr,
            step: l.step(),
            rows: self.rows as u32,
            table_rows: ring.rows() as u32,
            vectors: (y.cols() / 8) as u32,
        };
        // SAFETY: infer() gave x, ring and y one width, y the rows of both, and the ring at least as many: the rows that
        // are read and those that are written are different ones, each below `table_rows`.
        unsafe { l.launch::<RecentKernel>(dtype, grid(&y), &p) }
    }
}
