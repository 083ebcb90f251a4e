//! Launchers of the norms.

use super::RmsNorm;
use crate::core::Result;
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, Kernel, Launcher};
use crate::ops::CudaOp;

#[repr(C)]
#[derive(Clone, Copy)]
struct RmsNormParams {
    x: DevicePtr,
    w: DevicePtr,
    y: DevicePtr,
    cols: u32,
    eps: f32,
}

struct RmsNormKernel;
// SAFETY: `rms_norm` in kernels/norm.cu takes one RmsNormParams by value; loading compares the sizes.
unsafe impl Kernel for RmsNormKernel {
    const FILE: &'static str = "norm";
    const SYMBOL: &'static str = "rms_norm";
    type Params = RmsNormParams;
}

impl CudaOp for RmsNorm {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, w], [y]) = io.take()?;
        crate::ensure_input!(
            x.cols() % 8 == 0 && x.cols() <= 8192,
            "{}: RmsNorm wants C % 8 == 0 and C <= 8192 on the GPU; got x {}",
            y.name(),
            x.desc.brief()
        );
        let p = RmsNormParams { x: x.ptr, w: w.ptr, y: y.ptr, cols: x.cols() as u32, eps: self.eps };
        // SAFETY: infer() fixed the extents, the planner put them in live memory, a CTA touches one row of `cols`.
        unsafe { l.launch::<RmsNormKernel>(x.desc.dtype, Geometry::grid([x.rows() as u32, 1, 1]), &p) }
    }
}
