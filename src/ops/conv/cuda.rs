//! Launchers of the convolutions and of what stands around them.

use super::{AssembleTokens, Cmvn, Conv1d, Conv2d, Patchify, PixelShuffle, PrependClass};
use crate::core::Result;
use crate::gpu::launch::{GpuIo, Launcher};
use crate::ops::{CudaOp, OpDef};

macro_rules! missing {
    ($($op:ident),+) => {$(
        impl CudaOp for $op {
            fn launch(&self, _: &mut Launcher<'_>, _: &GpuIo<'_>) -> Result<()> {
                crate::bail_runtime!("{} has no kernel yet", Self::NAME)
            }
        }
    )+};
}
missing!(AssembleTokens, Cmvn, Conv1d, Conv2d, Patchify, PixelShuffle, PrependClass);
