//! Device buffers and pinned host buffers, freed when dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{result, sys};
#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{MmapMut, MmapOptions};

use super::driver::check;
use super::launch::DevicePtr;
use super::stream::Stream;
use crate::core::Result;

/// Bytes taken now and at most, shared by all buffers of a backend.
#[derive(Clone, Default)]
pub struct Meter(Arc<[AtomicU64; 2]>);

impl Meter {
    fn add(&self, bytes: u64) {
        let [now, peak] = &*self.0;
        peak.fetch_max(now.fetch_add(bytes, Ordering::Relaxed) + bytes, Ordering::Relaxed);
    }

    fn sub(&self, bytes: u64) {
        self.0[0].fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn peak_bytes(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }
}

/// What the driver gave at once, for one buffer or several.
struct Block {
    ptr: DevicePtr,
    bytes: usize,
    meter: Meter,
}

impl Block {
    fn new(bytes: usize, what: &str, meter: &Meter) -> Result<Block> {
        // SAFETY: the block owns what it gets; nobody reads it before it is written.
        let ptr = match unsafe { result::malloc_sync(bytes) } {
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = result::mem_get_info().unwrap_or((0, 0));
                let gb = |bytes: usize| bytes as f64 / 1e9;
                crate::bail_runtime!(
                    "out of device memory: {what} needs {:.2} GB, {:.2} of {:.2} GB are free",
                    gb(bytes),
                    gb(free),
                    gb(total)
                )
            }
            // Also what a kernel before this has failed with.
            other => check(other, || format!("taking {bytes} bytes for {what}"))?,
        };
        meter.add(bytes as u64);
        Ok(Block { ptr: DevicePtr(ptr), bytes, meter: meter.clone() })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in new(), freed once. cuMemFree waits for work that uses it.
        let _ = unsafe { result::free_sync(self.ptr.0) };
        self.meter.sub(self.bytes as u64);
    }
}

/// Memory of the device.
pub struct DeviceBuffer {
    pub ptr: DevicePtr,
    pub bytes: usize,
    /// Freed with the last of its buffers.
    _block: Arc<Block>,
}

/// Where buffers of one block begin: large ones as the driver lays them, each in pages of its own.
const SMALL_ALIGN: usize = 256;
const PAGE_BYTES: usize = 2 << 20;

/// Where buffers of these sizes begin in a block, and its size: the large ones first, for one behind a small one would leave
/// out the rest of a page.
fn lay_out(sizes: &[usize]) -> (Vec<usize>, usize) {
    let mut starts = vec![0; sizes.len()];
    let mut end = 0usize;
    for (align, large) in [(PAGE_BYTES, true), (SMALL_ALIGN, false)] {
        for (start, &bytes) in
            starts.iter_mut().zip(sizes).filter(|(_, bytes)| (**bytes >= PAGE_BYTES) == large)
        {
            *start = end.next_multiple_of(align);
            end = *start + bytes.max(SMALL_ALIGN);
        }
    }
    (starts, end)
}

impl DeviceBuffer {
    /// `bytes` of uninitialised memory, for `what`.
    pub fn new(bytes: usize, what: &str, meter: &Meter) -> Result<DeviceBuffer> {
        let bytes = bytes.max(SMALL_ALIGN);
        let block = Block::new(bytes, what, meter)?;
        Ok(DeviceBuffer { ptr: block.ptr, bytes, _block: Arc::new(block) })
    }

    /// Buffers of these sizes, in one piece. One by one those of all weights of VITA-1.5 take 80 ms, while the driver lets
    /// nobody else in.
    pub fn several(sizes: &[usize], what: &str, meter: &Meter) -> Result<Vec<DeviceBuffer>> {
        if sizes.is_empty() {
            return Ok(Vec::new());
        }
        let (starts, bytes) = lay_out(sizes);
        let block = Arc::new(Block::new(bytes, what, meter)?);
        let buffer = |(start, &bytes): (usize, &usize)| DeviceBuffer {
            ptr: block.ptr.offset(start),
            bytes: bytes.max(SMALL_ALIGN),
            _block: block.clone(),
        };
        Ok(starts.into_iter().zip(sizes).map(buffer).collect())
    }

    /// Fills the whole buffer with one byte; 0xff makes every float NaN.
    pub fn fill(&self, byte: u8, stream: &Stream) -> Result<()> {
        self.fill_range(0, self.bytes, byte, stream)
    }

    /// Fills `bytes` bytes from `offset` on.
    pub fn fill_range(&self, offset: usize, bytes: usize, byte: u8, stream: &Stream) -> Result<()> {
        if offset + bytes > self.bytes {
            crate::bail_runtime!("{bytes} bytes at {offset} of a buffer of {}", self.bytes);
        }
        // SAFETY: the range lies in this buffer.
        let done = unsafe { result::memset_d8_async(self.ptr.offset(offset).0, byte, bytes, stream.raw()) };
        check(done, || "filling device memory".into())
    }
}

/// Page-locked host memory: the copy engines read and write it while threads go on.
pub struct PinnedBuffer {
    ptr: *mut u8,
    len: usize,
    /// What the driver did not allocate, but pinned.
    map: Option<MmapMut>,
}

// SAFETY: plain memory with one owner; the raw pointer is what keeps it from being Send by itself.
unsafe impl Send for PinnedBuffer {}

impl PinnedBuffer {
    pub fn new(bytes: usize) -> Result<PinnedBuffer> {
        if bytes >= PAGE_BYTES {
            return PinnedBuffer::of_large_pages(bytes);
        }
        let bytes = bytes.max(64);
        // SAFETY: the buffer owns what it gets.
        let ptr = check(unsafe { result::malloc_host(bytes, 0) }, || {
            format!("pinning {bytes} bytes of host memory")
        })?;
        let ptr = ptr.cast::<u8>();
        // SAFETY: `bytes` were just allocated; zeroing makes them initialised for slices.
        unsafe { std::ptr::write_bytes(ptr, 0, bytes) };
        Ok(PinnedBuffer { ptr, len: bytes, map: None })
    }

    /// In pages of 2 MB, where the system has them: 48 MB are pinned in 2 ms, by the driver's own allocation in 17 to 28, and
    /// most of the rest of its work, zeros in every page, is done by the thread that asks.
    fn of_large_pages(bytes: usize) -> Result<PinnedBuffer> {
        let failed = |e| crate::core::Error::runtime(format!("{bytes} bytes of host memory: {e}"));
        let mut map = MmapOptions::new().len(bytes + PAGE_BYTES).map_anon().map_err(failed)?;
        let start = map.as_ptr().align_offset(PAGE_BYTES);
        // Small pages do as well, and take longer.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(Advice::HugePage, start, bytes);
        map[start..start + bytes].fill(0);
        let ptr = map[start..].as_mut_ptr();
        // SAFETY: the range lies in the map, which the buffer owns and drop() unpins before it goes.
        let pinned = unsafe { sys::cuMemHostRegister_v2(ptr.cast(), bytes, 0) };
        check(pinned.result(), || format!("pinning {bytes} bytes of host memory"))?;
        Ok(PinnedBuffer { ptr, len: bytes, map: Some(map) })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and initialised in new(), owned by self.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated or pinned in new(), freed or unpinned once.
        let _ = match self.map {
            Some(_) => unsafe { sys::cuMemHostUnregister(self.ptr.cast()) }.result(),
            None => unsafe { result::free_host(self.ptr.cast()) },
        };
    }
}

/// Enqueues `dst[..src.len()] = src`.
///
/// # Safety
/// `dst` has room; `src` stays as it is until the copy is done (pageable memory is staged before the call returns).
pub unsafe fn copy_in(dst: DevicePtr, src: &[u8], stream: &Stream) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { result::memcpy_htod_async(dst.0, src, stream.raw()) }, || {
        format!("copying {} bytes in", src.len())
    })
}

/// Enqueues `dst[..2] = words`, done by what feeds the stream to the device: no copy engine takes part, and nothing of
/// the host's is read later.
///
/// # Safety
/// `dst` has room for two words and is aligned to one.
pub unsafe fn write_words(dst: DevicePtr, words: [u64; 2], stream: &Stream) -> Result<()> {
    let mut at = dst;
    let mut ops = words.map(|word| {
        // SAFETY: all-zero operations are valid; what matters is set below.
        let mut op: sys::CUstreamBatchMemOpParams = unsafe { std::mem::zeroed() };
        op.writeValue.operation = sys::CUstreamBatchMemOpType::CU_STREAM_MEM_OP_WRITE_VALUE_64;
        op.writeValue.address = at.0;
        op.writeValue.__bindgen_anon_1.value64 = word;
        at = at.offset(size_of::<u64>());
        op
    });
    // SAFETY: the caller's promise for the addresses; the operations are copied by the call.
    let wrote = unsafe { sys::cuStreamBatchMemOp_v2(stream.raw(), 2, ops.as_mut_ptr(), 0) };
    check(wrote.result(), || "writing two words".into())
}

/// Enqueues `dst = src[..dst.len()]`.
///
/// # Safety
/// `src` is valid for `dst.len()` bytes; nobody touches `dst` until the copy is done.
pub unsafe fn copy_out(dst: &mut [u8], src: DevicePtr, stream: &Stream) -> Result<()> {
    let n = dst.len();
    // SAFETY: the caller's promise.
    check(unsafe { result::memcpy_dtoh_async(dst, src.0, stream.raw()) }, || format!("copying {n} bytes out"))
}

/// Enqueues a copy within the device.
///
/// # Safety
/// Both ranges are valid and do not overlap.
pub unsafe fn copy_within(dst: DevicePtr, src: DevicePtr, bytes: usize, stream: &Stream) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { result::memcpy_dtod_async(dst.0, src.0, bytes, stream.raw()) }, || {
        format!("copying {bytes} bytes within the device")
    })
}

/// Enqueues a copy of `rows` runs of `width` bytes, packed on the host, `pitch` bytes apart on the device.
///
/// # Safety
/// As [`copy_in`], for the strided range.
pub unsafe fn copy_in_2d(
    dst: DevicePtr,
    pitch: usize,
    src: &[u8],
    width: usize,
    rows: usize,
    stream: &Stream,
) -> Result<()> {
    debug_assert!(src.len() >= width * rows && pitch >= width);
    let copy = sys::CUDA_MEMCPY2D {
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: src.as_ptr().cast(),
        srcPitch: width,
        ..within(DevicePtr::NULL, 0, dst, pitch, width, rows)
    };
    // SAFETY: the caller's promise.
    let done = unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream.raw()) };
    check(done.result(), || format!("copying {rows} rows of {width} bytes in"))
}

/// A copy between strided ranges of the device.
fn within(
    src: DevicePtr,
    src_pitch: usize,
    dst: DevicePtr,
    dst_pitch: usize,
    width: usize,
    rows: usize,
) -> sys::CUDA_MEMCPY2D {
    sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: src.0,
        srcArray: std::ptr::null_mut(),
        srcPitch: src_pitch,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: dst.0,
        dstArray: std::ptr::null_mut(),
        dstPitch: dst_pitch,
        WidthInBytes: width,
        Height: rows,
    }
}

/// Runs of bytes on the device, `pitch` bytes apart.
#[derive(Clone, Copy)]
pub struct Pitched {
    pub ptr: DevicePtr,
    pub pitch: usize,
}

/// Enqueues a copy of `rows` runs of `width` bytes within the device.
///
/// # Safety
/// Both strided ranges are valid and do not overlap.
pub unsafe fn copy_within_2d(
    dst: Pitched,
    src: Pitched,
    width: usize,
    rows: usize,
    stream: &Stream,
) -> Result<()> {
    debug_assert!(dst.pitch >= width && src.pitch >= width);
    let copy = within(src.ptr, src.pitch, dst.ptr, dst.pitch, width, rows);
    // SAFETY: the caller's promise.
    let done = unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream.raw()) };
    check(done.result(), || format!("copying {rows} runs of {width} bytes within the device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_a_block_are_aligned_and_apart() {
        let sizes = [100, PAGE_BYTES + 1, 0, 300, 5 * PAGE_BYTES, 1];
        let (starts, end) = lay_out(&sizes);
        let small = 7 * PAGE_BYTES;
        assert_eq!(starts, [small, 0, small + 256, small + 512, 2 * PAGE_BYTES, small + 1024]);
        assert_eq!(end, small + 1024 + SMALL_ALIGN);
        for (i, (start, bytes)) in starts.iter().zip(sizes).enumerate() {
            let align = if bytes < PAGE_BYTES { SMALL_ALIGN } else { PAGE_BYTES };
            assert!(start.is_multiple_of(align), "{i}: {start}");
            let next = starts.iter().copied().filter(|other| other > start).min().unwrap_or(end);
            assert!(start + bytes.max(1) <= next, "{i}: {starts:?}, {end}");
        }
        assert_eq!(lay_out(&[]), (Vec::new(), 0));
    }
}
