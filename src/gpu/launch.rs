//! Recording launches. An op's launcher runs once, when its graph is prepared: it records kernels with their
//! geometry and parameters. A run replays the records, or a graph captured from them.

use cudarc::driver::sys;

use super::device::Device;
use super::driver::check;
use super::modules::Modules;
use super::stream::Stream;
use crate::core::{DType, Desc, Result};

/// An address in device memory. Whoever allocated it outlives every record that holds it.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further on.
    pub fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }
}

/// A kernel and the one struct it takes by value.
///
/// # Safety
/// The symbol takes exactly one `Params`, with the layout of the CUDA struct. Loading compares its size with the
/// size the kernel file exports.
pub unsafe trait Kernel {
    /// Path under `kernels/` without `.cu`: `attention/prefill`.
    const FILE: &'static str;
    /// Exported name without the dtype suffix: `rms_norm` for `rms_norm_bf16`.
    const SYMBOL: &'static str;
    type Params: Copy;
}

/// Grid, cluster and shared memory of one launch. The block size comes from the kernel file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub grid: [u32; 3],
    /// CTAs per cluster along x; 1 = none.
    pub cluster: u32,
    pub smem_bytes: u32,
    /// Percent of an SM's memory that is to be shared memory, the rest L1; else the driver's choice.
    pub carveout: Option<u32>,
}

impl Geometry {
    pub fn grid(grid: [u32; 3]) -> Geometry {
        Geometry { grid, cluster: 1, smem_bytes: 0, carveout: None }
    }

    pub fn smem(mut self, bytes: usize) -> Geometry {
        self.smem_bytes = bytes as u32;
        self
    }

    pub fn carveout(mut self, percent: u32) -> Geometry {
        self.carveout = Some(percent);
        self
    }

    pub fn cluster(mut self, ctas: u32) -> Geometry {
        self.cluster = ctas;
        self
    }
}

/// A tensor with its final address.
#[derive(Clone, Copy, Debug)]
pub struct GpuTensor<'a> {
    pub desc: &'a Desc,
    pub ptr: DevicePtr,
}

impl GpuTensor<'_> {
    pub fn name(&self) -> &str {
        &self.desc.name
    }

    pub fn rows(&self) -> usize {
        self.desc.rows()
    }

    pub fn cols(&self) -> usize {
        self.desc.cols()
    }
}

/// Inputs and outputs of one op; shapes have passed `infer`.
pub struct GpuIo<'a> {
    pub ins: Vec<GpuTensor<'a>>,
    pub outs: Vec<GpuTensor<'a>>,
}

impl<'a> GpuIo<'a> {
    /// Exactly `I` inputs and `O` outputs.
    pub fn take<const I: usize, const O: usize>(&self) -> Result<([GpuTensor<'a>; I], [GpuTensor<'a>; O])> {
        match (self.ins.clone().try_into(), self.outs.clone().try_into()) {
            (Ok(ins), Ok(outs)) => Ok((ins, outs)),
            _ => crate::bail_runtime!(
                "a launcher wants {I} inputs and {O} outputs, its node has {} and {}",
                self.ins.len(),
                self.outs.len()
            ),
        }
    }
}

/// One recorded kernel launch.
pub struct Launch {
    pub(super) function: super::modules::Function,
    pub(super) geometry: Geometry,
    /// The struct's bytes, in memory aligned for tensor maps.
    pub(super) params: Vec<ParamChunk>,
    /// Index of the node it belongs to, for profiles.
    pub node: usize,
}

/// Storage of parameter bytes, aligned as a tensor map wants it.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
pub(super) struct ParamChunk(pub(super) [u8; 128]);

/// Records the launches of one graph, and knows what a launcher may ask: the chip, the step, scratch memory.
pub struct Launcher<'a> {
    pub device: &'a Device,
    pub(crate) modules: &'a Modules,
    pub(crate) program: &'a mut Vec<Launch>,
    pub(crate) node: usize,
    pub(crate) step: DevicePtr,
    pub(crate) scratch: Scratch,
}

impl<'a> Launcher<'a> {
    /// For launches outside of a graph, without a step or scratch memory.
    pub(crate) fn alone(
        device: &'a Device,
        modules: &'a Modules,
        program: &'a mut Vec<Launch>,
    ) -> Launcher<'a> {
        Launcher { device, modules, program, node: 0, step: DevicePtr::NULL, scratch: Scratch::none() }
    }
}

/// Memory of a lane that lives for one node: split-K partials, softmax partials.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    pub ptr: DevicePtr,
    pub bytes: usize,
    /// u32 counters, zero between kernels: a kernel that counts resets what it used.
    pub counters: DevicePtr,
    pub counter_len: usize,
}

impl Scratch {
    /// For launches that use none.
    pub(crate) fn none() -> Scratch {
        Scratch { ptr: DevicePtr::NULL, bytes: 0, counters: DevicePtr::NULL, counter_len: 0 }
    }
}

impl Launcher<'_> {
    /// Device address of the [`crate::core::Step`] of the run.
    pub fn step(&self) -> DevicePtr {
        self.step
    }

    /// `bytes` of scratch, valid until the next node.
    pub fn scratch(&self, bytes: usize) -> Result<DevicePtr> {
        if bytes > self.scratch.bytes {
            crate::bail_runtime!(
                "a kernel wants {bytes} bytes of scratch, a lane has {}",
                self.scratch.bytes
            );
        }
        Ok(self.scratch.ptr)
    }

    /// `len` zeroed u32 counters; the kernel leaves them zero.
    pub fn counters(&self, len: usize) -> Result<DevicePtr> {
        if len > self.scratch.counter_len {
            crate::bail_runtime!("a kernel wants {len} counters, a lane has {}", self.scratch.counter_len);
        }
        Ok(self.scratch.counters)
    }

    /// Records `K` for element type `dtype`.
    ///
    /// # Safety
    /// Every address in `p` is valid for the extents that the kernel's header states.
    pub unsafe fn launch<K: Kernel>(
        &mut self,
        dtype: DType,
        geometry: Geometry,
        p: &K::Params,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_variant::<K>("", dtype, geometry, p) }
    }

    /// Records the instance `SYMBOL` + `variant` + dtype suffix: `flash` + `_d128` + `_bf16`.
    ///
    /// # Safety
    /// As [`Launcher::launch`].
    pub unsafe fn launch_variant<K: Kernel>(
        &mut self,
        variant: &str,
        dtype: DType,
        geometry: Geometry,
        p: &K::Params,
    ) -> Result<()> {
        let symbol = format!("{}{variant}_{}", K::SYMBOL, dtype.name());
        let bytes = size_of::<K::Params>();
        let function = self.modules.function(K::FILE, &symbol, bytes, geometry.smem_bytes as usize)?;
        let mut params = vec![ParamChunk([0; 128]); bytes.div_ceil(128).max(1)];
        // SAFETY: the chunks hold at least `bytes` bytes, Params is Copy, and the two do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(p).cast::<u8>(),
                params.as_mut_ptr().cast::<u8>(),
                bytes,
            );
        }
        self.program.push(Launch { function, geometry, params, node: self.node });
        Ok(())
    }
}

impl Launch {
    /// Symbol of the kernel.
    pub fn symbol(&self) -> &'static str {
        self.function.name
    }

    /// Enqueues the launch. With `pdl` the kernel may start before its predecessor has ended, and waits itself.
    pub fn enqueue(&self, stream: &Stream, pdl: bool) -> Result<()> {
        let Geometry { grid, cluster, smem_bytes, carveout } = self.geometry;
        // SAFETY: all-zero attributes and configuration are valid; what matters is set below.
        let mut attributes: [sys::CUlaunchAttribute; 3] = unsafe { std::mem::zeroed() };
        let mut n = 0;
        if pdl {
            attributes[n].id =
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[n].value.programmaticStreamSerializationAllowed = 1;
            n += 1;
        }
        if cluster > 1 {
            attributes[n].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes[n].value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
            n += 1;
        }
        if let Some(percent) = carveout {
            attributes[n].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            attributes[n].value.sharedMemCarveout = percent;
            n += 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: self.function.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: smem_bytes,
            hStream: stream.raw(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: n as u32,
        };
        let mut args = [self.params.as_ptr() as *mut std::ffi::c_void];
        // SAFETY: the kernel takes one struct of the size that was recorded (checked at load); the recorder vouched
        // for the addresses in it.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&config, self.function.raw, args.as_mut_ptr(), std::ptr::null_mut())
        };
        check(launched.result(), || {
            format!(
                "launching {} with grid {grid:?}, {} threads, cluster {cluster}, {smem_bytes} bytes of shared memory",
                self.function.name, self.function.threads
            )
        })
    }
}
