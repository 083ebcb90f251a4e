//! Launchers of rotation and cache.

use super::{KvAppend, Rope, RopeKvAppend, RopeTable, inv_freq};
use crate::core::{DType, Result};
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, GpuTensor, Kernel, Launcher};
use crate::ops::{CudaOp, checks};

const THREADS: usize = 256;
/// Pairs of the widest head.
pub(crate) const PAIRS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy)]
struct RopeParams {
    x: DevicePtr,
    y: DevicePtr,
    kv: DevicePtr,
    step: DevicePtr,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    max_rows: u32,
    inv_freq: [f32; PAIRS],
}

struct RopeKernel;
// SAFETY: `rope` in kernels/rope.cu takes one RopeParams by value; loading compares the sizes.
unsafe impl Kernel for RopeKernel {
    const FILE: &'static str = "rope";
    const SYMBOL: &'static str = "rope";
    type Params = RopeParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RopeTableParams {
    table: DevicePtr,
    step: DevicePtr,
    pairs: u32,
    unused: u32,
    inv_freq: [f32; PAIRS],
}

struct RopeTableKernel;
// SAFETY: `rope_table` in kernels/rope.cu takes one RopeTableParams by value; loading compares the sizes.
unsafe impl Kernel for RopeTableKernel {
    const FILE: &'static str = "rope";
    const SYMBOL: &'static str = "rope_table";
    type Params = RopeTableParams;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct KvAppendParams {
    k: DevicePtr,
    v: DevicePtr,
    kv: DevicePtr,
    step: DevicePtr,
    kv_heads: u32,
    head_dim: u32,
    max_rows: u32,
}

struct KvAppendKernel;
// SAFETY: `kv_append` in kernels/rope.cu takes one KvAppendParams by value; loading compares the sizes.
unsafe impl Kernel for KvAppendKernel {
    const FILE: &'static str = "rope";
    const SYMBOL: &'static str = "kv_append";
    type Params = KvAppendParams;
}

/// CTAs per row. With many rows one CTA per row computes its sines once; with few, a row is spread so that every
/// thread has one pair of vectors.
fn parts(rows: usize, heads: usize, head_dim: usize) -> u32 {
    match rows >= 64 {
        true => 1,
        false => (heads * head_dim / 16).div_ceil(THREADS) as u32,
    }
}

/// Rows of a sequence, CTAs of a row, sequences.
fn grid(rows: usize, heads: usize, head_dim: usize, sequences: usize) -> [u32; 3] {
    [(rows / sequences) as u32, parts(rows, heads, head_dim), sequences as u32]
}

fn check_head(op: &str, x: &GpuTensor<'_>, head_dim: usize) -> Result<()> {
    crate::ensure_input!(
        head_dim.is_multiple_of(16) && head_dim <= 2 * PAIRS,
        "{}: {op} wants a head dim that is a multiple of 16 and at most {} on the GPU; got {head_dim}",
        x.name(),
        2 * PAIRS
    );
    Ok(())
}

/// [`inv_freq`] as kernels take it.
pub(crate) fn frequencies(head_dim: usize, theta: f32) -> [f32; PAIRS] {
    let mut all = [0.0; PAIRS];
    let freq = inv_freq(head_dim, theta);
    all[..freq.len()].copy_from_slice(&freq);
    all
}

impl CudaOp for Rope {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x], [y]) = io.take()?;
        let dtype = checks::same_t16("Rope", &[x, y])?;
        check_head("Rope", &x, self.head_dim)?;
        let p = RopeParams {
            x: x.ptr,
            y: y.ptr,
            kv: DevicePtr::NULL,
            step: l.step(),
            heads: self.heads as u32,
            kv_heads: 0,
            head_dim: self.head_dim as u32,
            max_rows: 0,
            inv_freq: frequencies(self.head_dim, self.theta),
        };
        let grid = grid(x.rows(), self.heads, self.head_dim, self.sequences);
        // SAFETY: infer() fixed [T, heads · head_dim], check_head() the head; without kv heads kv is not touched.
        unsafe { l.launch::<RopeKernel>(dtype, Geometry::grid(grid), &p) }
    }
}

impl CudaOp for RopeKvAppend {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([qkv, kv], [q, _]) = io.take()?;
        let dtype = checks::same_t16("RopeKvAppend", &[qkv, kv, q])?;
        check_head("RopeKvAppend", &qkv, self.head_dim)?;
        let p = RopeParams {
            x: qkv.ptr,
            y: q.ptr,
            kv: kv.ptr,
            step: l.step(),
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            max_rows: kv.desc.shape[2] as u32,
            inv_freq: frequencies(self.head_dim, self.theta),
        };
        let heads = self.heads + 2 * self.kv_heads;
        let grid = grid(qkv.rows(), heads, self.head_dim, self.sequences);
        // SAFETY: infer() fixed the packed columns, the cache of all sequences and that they share out the rows,
        // check_head() the head; rows of the cache at or beyond `max_rows` are not written.
        unsafe { l.launch::<RopeKernel>(dtype, Geometry::grid(grid), &p) }
    }
}

impl CudaOp for RopeTable {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([], [table]) = io.take()?;
        check_head("RopeTable", &table, self.head_dim)?;
        if self.rows == 0 {
            return Ok(());
        }
        let p = RopeTableParams {
            table: table.ptr,
            step: l.step(),
            pairs: (self.head_dim / 2) as u32,
            unused: 0,
            inv_freq: frequencies(self.head_dim, self.theta),
        };
        // SAFETY: infer() fixed [rows, head_dim] of f32, check_head() the head; a CTA writes one row.
        unsafe { l.launch::<RopeTableKernel>(DType::F32, Geometry::grid([self.rows as u32, 1, 1]), &p) }
    }
}

impl CudaOp for KvAppend {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([k, v, kv], [_]) = io.take()?;
        let dtype = checks::same_t16("KvAppend", &[k, v, kv])?;
        check_head("KvAppend", &k, self.head_dim)?;
        let p = KvAppendParams {
            k: k.ptr,
            v: v.ptr,
            kv: kv.ptr,
            step: l.step(),
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            max_rows: kv.desc.shape[2] as u32,
        };
        let grid = [(k.rows() / self.sequences) as u32, 1, self.sequences as u32];
        // SAFETY: infer() fixed k, v, the cache of all sequences and that they share out the rows; rows of the cache at
        // or beyond `max_rows` are not written.
        unsafe { l.launch::<KvAppendKernel>(dtype, Geometry::grid(grid), &p) }
    }
}

#[cfg(test)]
mod tests {
    use super::{grid, parts};

    #[test]
    fn few_rows_are_spread() {
        assert_eq!(parts(1, 36, 128), 2);
        assert_eq!(parts(63, 1, 16), 1);
        assert_eq!(parts(64, 36, 128), 1);
        assert_eq!(grid(16, 36, 128, 16), [1, 2, 16]);
        assert_eq!(grid(80, 36, 128, 4), [20, 1, 4]);
        assert_eq!(grid(512, 36, 128, 1), [512, 1, 1]);
    }
}
