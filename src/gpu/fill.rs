//! Synthetic weights made on the device, to the same bits as on the host.

use super::device::Device;
use super::launch::{DevicePtr, Geometry, Kernel, Launch, Launcher};
use super::modules::Modules;
use super::stream::Stream;
use crate::core::{Recipe, Result};
use crate::weights::SynthSpec;

/// Layout shared with kernels/fill.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct FillParams {
    dst: DevicePtr,
    state: u64,
    centre: f32,
    scale: f32,
    count: u64,
    dims: [u32; 5],
    strides: [u64; 5],
    offset: u64,
}

struct FillKernel;
// SAFETY: `fill` in kernels/fill.cu takes one FillParams by value; loading compares the sizes.
unsafe impl Kernel for FillKernel {
    const FILE: &'static str = "fill";
    const SYMBOL: &'static str = "fill";
    type Params = FillParams;
}

/// Enqueues the making of a weight at `dst`; `specs[i]` belongs to part i of the recipe.
pub fn fill(
    device: &Device,
    modules: &Modules,
    stream: &Stream,
    recipe: &Recipe,
    specs: &[SynthSpec],
    dst: DevicePtr,
) -> Result<()> {
    let mut program: Vec<Launch> = Vec::new();
    let mut launcher = Launcher::alone(device, modules, &mut program);
    // Enough CTAs to fill the chip several times; the kernel strides over the rest.
    let ctas = (device.sm_count() * 8) as u32;
    for (part, spec) in recipe.parts.iter().zip(specs) {
        let p = FillParams {
            dst,
            state: spec.state,
            centre: spec.centre,
            scale: spec.scale,
            count: part.len() as u64,
            dims: part.dims.map(|d| d as u32),
            strides: part.strides.map(|s| s as u64),
            offset: part.offset as u64,
        };
        // SAFETY: `dst` holds the whole weight; a recipe's parts lie inside it.
        unsafe { launcher.launch::<FillKernel>(recipe.dtype, Geometry::grid([ctas, 1, 1]), &p)? };
    }
    program.iter().try_for_each(|l| l.enqueue(stream, false))
}
