//! Launchers of the samplers.

use super::{ArgMax, Sample};
use crate::core::Result;
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, Kernel, Launcher};
use crate::ops::CudaOp;

/// Logits below which another CTA for a row costs more than it saves: 8 per thread.
const ARG_CHUNK: usize = 2048;
/// CTAs of the sampler: the largest cluster that is portable. Chips without clusters have one CTA do all.
const SAMPLE_CTAS: u32 = 8;
/// `sizeof(SampleScratch)` of kernels/sample.cu: two times three levels of histograms, three u64 per CTA.
const SAMPLE_SCRATCH_BYTES: usize = (2 * 4096 + 3 * SAMPLE_CTAS as usize) * 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct ArgMaxParams {
    x: DevicePtr,
    ids: DevicePtr,
    partials: DevicePtr,
    counters: DevicePtr,
    pitch: u32,
    limit: u32,
    chunk: u32,
}

struct ArgMaxKernel;
// SAFETY: `arg_max` in kernels/sample.cu takes one ArgMaxParams by value; loading compares the sizes.
unsafe impl Kernel for ArgMaxKernel {
    const FILE: &'static str = "sample";
    const SYMBOL: &'static str = "arg_max";
    type Params = ArgMaxParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SampleKernelParams {
    x: DevicePtr,
    seen: DevicePtr,
    params: DevicePtr,
    token: DevicePtr,
    step: DevicePtr,
    scratch: DevicePtr,
    z: DevicePtr,
    limit: u32,
    pitch: u32,
    z_pitch: u32,
}

struct SampleKernel;
// SAFETY: `sample` in kernels/sample.cu takes one SampleKernelParams by value; loading compares the sizes.
unsafe impl Kernel for SampleKernel {
    const FILE: &'static str = "sample";
    const SYMBOL: &'static str = "sample";
    type Params = SampleKernelParams;
}

/// CTAs on an SM: its 2048 threads.
const ARG_CTAS: usize = 8;

/// Chunks per row and logits per chunk: few rows are spread over the chip.
fn chunks(rows: usize, limit: usize, sm_count: usize) -> (usize, usize) {
    let n = (ARG_CTAS * sm_count / rows.max(1)).clamp(1, limit.div_ceil(ARG_CHUNK).max(1));
    (n, limit.div_ceil(n))
}

impl CudaOp for ArgMax {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x], [ids]) = io.take()?;
        let limit = x.cols().min(self.limit as usize);
        let (n, chunk) = chunks(x.rows(), limit, l.device.sm_count());
        crate::ensure_input!(
            x.rows() <= 65535,
            "{}: ArgMax wants at most 65535 rows on the GPU; got {}",
            x.name(),
            x.desc.brief()
        );
        let (partials, counters) = match n {
            1 => (DevicePtr::NULL, DevicePtr::NULL),
            _ => (l.scratch(x.rows() * n * 8)?, l.counters(x.rows())?),
        };
        let p = ArgMaxParams {
            x: x.ptr,
            ids: ids.ptr,
            partials,
            counters,
            pitch: x.cols() as u32,
            limit: limit as u32,
            chunk: chunk as u32,
        };
        let geometry = Geometry::grid([n as u32, x.rows() as u32, 1]);
        // SAFETY: infer() made one id per row, limit <= V, scratch and counters were asked for by their size.
        unsafe { l.launch::<ArgMaxKernel>(x.desc.dtype, geometry, &p) }
    }
}

impl CudaOp for Sample {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, seen, params], [token, _]) = io.take()?;
        let limit = x.cols().min(self.limit as usize);
        let rows = x.rows();
        // Logits of a row as they are drawn from, at a multiple of 16 bytes.
        let z_bytes = (limit * 4).next_multiple_of(16);
        let scratch = l.scratch(rows * (SAMPLE_SCRATCH_BYTES + z_bytes))?;
        let p = SampleKernelParams {
            x: x.ptr,
            seen: seen.ptr,
            params: params.ptr,
            token: token.ptr,
            step: l.step(),
            scratch,
            z: scratch.offset(rows * SAMPLE_SCRATCH_BYTES),
            limit: limit as u32,
            pitch: x.cols() as u32,
            z_pitch: (z_bytes / 4) as u32,
        };
        crate::ensure_input!(
            (1..=65535).contains(&rows),
            "{}: Sample wants 1 to 65535 rows on the GPU; got {}",
            x.name(),
            x.desc.brief()
        );
        let ctas = if l.device.arch() >= 90 { SAMPLE_CTAS } else { 1 };
        let geometry = Geometry::grid([ctas, rows as u32, 1]).cluster(ctas);
        // SAFETY: infer() fixed seen [T, V], params [8] and token [T], limit <= V, scratch was asked for by its size.
        unsafe { l.launch::<SampleKernel>(x.desc.dtype, geometry, &p) }
    }
}

#[cfg(test)]
mod tests {
    use super::chunks;

    #[test]
    fn chunks_cover_the_row() {
        assert_eq!(chunks(1, 151665, 132), (75, 2023));
        assert_eq!(chunks(1, 515, 132), (1, 515));
        assert_eq!(chunks(3, 151665, 132), (75, 2023));
        assert_eq!(chunks(16, 151665, 132), (66, 2298));
        assert_eq!(chunks(200, 151665, 132), (5, 30333));
        for (rows, limit) in [(1, 1), (17, 2049), (5, 151643)] {
            let (n, chunk) = chunks(rows, limit, 132);
            assert!(n * chunk >= limit && n * rows <= (8 * 132).max(rows), "{rows} {limit}: {n} of {chunk}");
        }
    }
}
