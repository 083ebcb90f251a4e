//! Launchers of the elementwise ops.

use super::{Act, Add, AddTable, Mul, RowScale, Scale, Unary};
use crate::core::Result;
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, GpuTensor, Kernel, Launcher};
use crate::ops::{CudaOp, checks};

/// Elements of one CTA: 256 threads, 4 vectors of 8 each.
const CTA_ELEMENTS: usize = 256 * 4 * 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct UnaryParams {
    x: DevicePtr,
    y: DevicePtr,
    count: u64,
    act: u32,
    by: f32,
}

struct UnaryKernel;
// SAFETY: `unary` in kernels/elementwise.cu takes one UnaryParams by value; loading compares the sizes.
unsafe impl Kernel for UnaryKernel {
    const FILE: &'static str = "elementwise";
    const SYMBOL: &'static str = "unary";
    type Params = UnaryParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct BinaryParams {
    a: DevicePtr,
    b: DevicePtr,
    y: DevicePtr,
    count: u64,
    period: u64,
}

struct AddKernel;
// SAFETY: `add` in kernels/elementwise.cu takes one BinaryParams by value; loading compares the sizes.
unsafe impl Kernel for AddKernel {
    const FILE: &'static str = "elementwise";
    const SYMBOL: &'static str = "add";
    type Params = BinaryParams;
}

struct MulKernel;
// SAFETY: `mul` in kernels/elementwise.cu takes one BinaryParams by value; loading compares the sizes.
unsafe impl Kernel for MulKernel {
    const FILE: &'static str = "elementwise";
    const SYMBOL: &'static str = "mul";
    type Params = BinaryParams;
}

fn grid(op: &str, x: &GpuTensor<'_>) -> Result<Geometry> {
    let count = x.desc.shape.len();
    // The kernels count vectors in 32 bits, with room for the last CTA's surplus.
    crate::ensure_input!(
        count < 1 << 34,
        "{}: {op} wants fewer than 2^34 elements; got {}",
        x.name(),
        x.desc.brief()
    );
    Ok(Geometry::grid([count.div_ceil(CTA_ELEMENTS).max(1) as u32, 1, 1]))
}

fn unary(l: &mut Launcher<'_>, op: &str, act: Act, by: f32, io: &GpuIo<'_>) -> Result<()> {
    let ([x], [y]) = io.take()?;
    let dtype = checks::same_t16(op, &[x, y])?;
    let p = UnaryParams { x: x.ptr, y: y.ptr, count: x.desc.shape.len() as u64, act: act as u32, by };
    // SAFETY: infer() made y as large as x; a thread touches its own elements below `count`.
    unsafe { l.launch::<UnaryKernel>(dtype, grid(op, &x)?, &p) }
}

/// `b` repeats every `b.len()` elements of `a`.
fn binary<K>(l: &mut Launcher<'_>, op: &str, io: &GpuIo<'_>) -> Result<()>
where
    K: Kernel<Params = BinaryParams>,
{
    let ([a, b], [y]) = io.take()?;
    let dtype = checks::same_t16(op, &[a, b, y])?;
    let (count, period) = (a.desc.shape.len() as u64, b.desc.shape.len() as u64);
    if period != count {
        checks::whole_vectors(op, &a, usize::MAX)?;
    }
    let p = BinaryParams { a: a.ptr, b: b.ptr, y: y.ptr, count, period };
    // SAFETY: infer() made y as large as a and b whole rows of it, whole_vectors() makes the period whole vectors; a
    // thread touches its own elements below `count`.
    unsafe { l.launch::<K>(dtype, grid(op, &a)?, &p) }
}

impl CudaOp for Unary {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        unary(l, "Unary", self.act, 1.0, io)
    }
}

impl CudaOp for Scale {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        unary(l, "Scale", Act::None, self.by, io)
    }
}

impl CudaOp for Add {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        binary::<AddKernel>(l, "Add", io)
    }
}

impl CudaOp for Mul {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        binary::<MulKernel>(l, "Mul", io)
    }
}

impl CudaOp for RowScale {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        binary::<MulKernel>(l, "RowScale", io)
    }
}

impl CudaOp for AddTable {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        binary::<AddKernel>(l, "AddTable", io)
    }
}
