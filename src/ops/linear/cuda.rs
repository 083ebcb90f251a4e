//! Launchers of the matrix products.

use super::{Linear, LinearFused};
use crate::core::Result;
use crate::gpu::launch::{GpuIo, Launcher};
use crate::ops::CudaOp;

impl CudaOp for Linear {
    fn launch(&self, _: &mut Launcher<'_>, _: &GpuIo<'_>) -> Result<()> {
        crate::bail_runtime!("Linear has no kernel yet")
    }
}

impl CudaOp for LinearFused {
    fn launch(&self, _: &mut Launcher<'_>, _: &GpuIo<'_>) -> Result<()> {
        crate::bail_runtime!("LinearFused has no kernel yet")
    }
}
