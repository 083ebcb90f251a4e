//! Launchers of the attention family.

use super::choose::{Choice, Decoding, Launches, Switches, Wanted, choose};
use super::lengths::{Lengths, Sequence};
use super::wgmma::WgmmaTile;
use super::{AddKeys, Attention, Batch, KeyBias, Mask, SinTable, Source};
use crate::core::asked;
use crate::core::{DType, Result};
use crate::gpu::launch::{DevicePtr, Geometry, GpuIo, GpuTensor, Kernel, Launcher};
use crate::gpu::tensor_map::{L2Promotion, Swizzle, TensorMap};
use crate::ops::CudaOp;

/// `AttentionParams` of kernels/attention/params.cuh, which says what the fields mean.
#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionParams {
    q: DevicePtr,
    k: DevicePtr,
    v: DevicePtr,
    bias: DevicePtr,
    out: DevicePtr,
    step: DevicePtr,
    partial: DevicePtr,
    counters: DevicePtr,
    kv_head: u64,
    q_row: u32,
    kv_row: u32,
    rows: u32,
    batch: u32,
    heads: u32,
    group: u32,
    head_dim: u32,
    mask: u32,
    chunk: u32,
    left: i32,
    scale: f32,
    bias_row: u32,
}

/// `BatchParams` there.
#[repr(C)]
#[derive(Clone, Copy)]
struct BatchParams {
    a: AttentionParams,
    lengths: Lengths,
}

struct Naive;
// SAFETY: `naive` in kernels/attention/naive.cu takes one BatchParams by value; loading compares the sizes.
unsafe impl Kernel for Naive {
    const FILE: &'static str = "attention/naive";
    const SYMBOL: &'static str = "naive";
    type Params = BatchParams;
}

struct Flash;
// SAFETY: `flash_*` in kernels/attention/prefill.cu take one BatchParams by value; loading compares the sizes.
unsafe impl Kernel for Flash {
    const FILE: &'static str = "attention/prefill";
    const SYMBOL: &'static str = "flash";
    type Params = BatchParams;
}

/// `FlashParams` of kernels/attention/wgmma.cuh.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct WgmmaParams {
    q: TensorMap,
    k: TensorMap,
    v: TensorMap,
    a: AttentionParams,
    lengths: Lengths,
}

struct Wgmma;
// SAFETY: `flash_wgmma_d128_*` in kernels/attention/wgmma.cu take one WgmmaParams by value; loading compares the sizes.
unsafe impl Kernel for Wgmma {
    const FILE: &'static str = "attention/wgmma";
    const SYMBOL: &'static str = "flash_wgmma";
    type Params = WgmmaParams;
}

struct WgmmaD64;
// SAFETY: `flash_wgmma_d64_*` in kernels/attention/wgmma_d64.cu take one WgmmaParams by value; loading compares the sizes.
unsafe impl Kernel for WgmmaD64 {
    const FILE: &'static str = "attention/wgmma_d64";
    const SYMBOL: &'static str = "flash_wgmma";
    type Params = WgmmaParams;
}

struct Decode;
// SAFETY: `decode_*` in kernels/attention/decode.cu take one AttentionParams by value; loading compares the sizes.
unsafe impl Kernel for Decode {
    const FILE: &'static str = "attention/decode";
    const SYMBOL: &'static str = "decode";
    type Params = AttentionParams;
}

struct DecodeCluster;
// SAFETY: `decode_cluster_*` in attention/decode_cluster.cu take one AttentionParams by value; loading compares the sizes.
unsafe impl Kernel for DecodeCluster {
    const FILE: &'static str = "attention/decode_cluster";
    const SYMBOL: &'static str = "decode_cluster";
    type Params = AttentionParams;
}

/// Query rows of a CTA of `naive`.
const NAIVE_ROWS: usize = 4;

/// Slack for the kernels to align their shared memory in.
const ALIGN_BYTES: usize = 128;

/// Shared memory of `flash`: Q, two buffers of K and V, two of the bias.
fn flash_smem_bytes(rows: usize, head_dim: usize) -> usize {
    let keys = if rows == 128 && head_dim == 128 { 32 } else { 64 };
    ALIGN_BYTES + rows * head_dim * 2 + 4 * keys * head_dim * 2 + 2 * keys * 4
}

/// Shared memory of `decode`: per warp a ring of K and V tiles of 16 keys.
fn decode_smem_bytes(head_dim: usize) -> usize {
    let stages = if head_dim == 64 { 4 } else { 3 };
    ALIGN_BYTES + 4 * stages * 2 * 16 * head_dim * 2
}

/// Shared memory of `decode_cluster`: a ring for each of 4 warps, or 16 rows of their merge, and as many rows with maximum and
/// sum from the CTAs of the cluster.
fn decode_cluster_smem_bytes(head_dim: usize, stages: usize) -> usize {
    let ring = stages * 2 * 16 * head_dim * 2;
    let part = 16 * (head_dim + 8 + 2) * 4;
    ALIGN_BYTES + 4 * ring.max(part) + 16 * (head_dim + 2) * 4
}

/// For `rows` rows in all; with a cache those of sequence `sequence` among others.
fn params(
    op: &Attention,
    l: &Launcher<'_>,
    io: &GpuIo<'_>,
    (rows, sequence): (usize, usize),
) -> Result<AttentionParams> {
    let (h, g, d) = (op.heads, op.kv_heads, op.head_dim);
    let (Some(first), Some(last), [out]) = (io.ins.first(), io.ins.last(), &io.outs[..]) else {
        crate::bail_runtime!("Attention has {} inputs and {} outputs", io.ins.len(), io.outs.len());
    };
    crate::ensure_input!(
        d % 8 == 0 && d <= 256,
        "{}: Attention wants D % 8 == 0 and D <= 256 on the GPU; got {d}",
        out.name()
    );
    let bytes = first.desc.dtype.bytes();
    let first_row = sequence * rows * h * d * bytes;
    let (q, k, v, q_row, kv_row, kv_head) = match (op.source, &io.ins[..]) {
        (Source::Separate, [q, k, v, ..]) => (q.ptr, k.ptr, v.ptr, h * d, g * d, d),
        (Source::Packed, [x, ..]) => {
            let row = (h + 2 * g) * d;
            (x.ptr, x.ptr.offset(h * d * bytes), x.ptr.offset((h + g) * d * bytes), row, row, d)
        }
        (Source::Cache { .. }, [q, kv, ..]) => {
            // Keys of all sequences, then their values.
            let (all, head) = (kv.desc.shape[1], kv.desc.shape[2] * d);
            let first = sequence * g * head * bytes;
            let (k, v) = (kv.ptr.offset(first), kv.ptr.offset(all * head * bytes + first));
            (q.ptr.offset(first_row), k, v, h * d, d, head)
        }
        _ => crate::bail_runtime!("{}: {} inputs are too few", out.name(), io.ins.len()),
    };
    let (mask, chunk, left) = match op.mask {
        Mask::Full => (0, 0, 0),
        Mask::Causal => (1, 0, 0),
        // More chunks than there are keys are all chunks.
        Mask::Chunk { size, left } => (2, size.min(1 << 30), left.clamp(-1, 1 << 30)),
    };
    // Sequences of different lengths are one here, which `Lengths` divides.
    let batch = match op.batch {
        Batch::Equal(n) => n,
        Batch::Lengths(_) => 1,
    };
    Ok(AttentionParams {
        q,
        k,
        v,
        bias: if op.bias { last.ptr } else { DevicePtr::NULL },
        out: out.ptr.offset(first_row),
        step: if matches!(op.source, Source::Cache { .. }) { l.step() } else { DevicePtr::NULL },
        partial: DevicePtr::NULL,
        counters: DevicePtr::NULL,
        kv_head: kv_head as u64,
        q_row: q_row as u32,
        kv_row: kv_row as u32,
        rows: (rows / batch) as u32,
        batch: batch as u32,
        heads: h as u32,
        group: (h / g) as u32,
        head_dim: d as u32,
        mask,
        chunk: chunk as u32,
        left: left as i32,
        scale: op.scale,
        bias_row: if op.bias { last.cols() as u32 } else { 0 },
    })
}

fn switches() -> Result<Switches> {
    Ok(Switches {
        prefill: asked("VIVACE_ATTENTION", Wanted::parse, "mma or wgmma")?,
        decode: asked("VIVACE_DECODE", Decoding::parse, "split, cluster or cluster/N with N from 1 to 8")?,
    })
}

/// Rows of heads as a tensor of five dimensions, 64 columns, rows, the 64s of a head, heads, sequences; a box is
/// `box_rows` rows of one head. Reads behind the last row of a sequence give zeros, but sequences of different lengths are
/// one here.
struct HeadRows {
    ptr: DevicePtr,
    rows: usize,
    heads: usize,
    sequences: usize,
    /// Elements from one row, head, sequence to the next.
    strides: [usize; 3],
}

impl HeadRows {
    fn map(&self, dtype: DType, op: &Attention, box_rows: usize) -> Result<TensorMap> {
        let parts = op.head_dim / 64;
        let [row, head, sequence] = self.strides;
        let dims = [64, self.rows, parts, self.heads, self.sequences].map(|x| x as u64);
        let strides = [row, 64, head, sequence].map(|x| (x * dtype.bytes()) as u64);
        let boxes = [64, box_rows, parts, 1, 1].map(|x| x as u32);
        TensorMap::encode(dtype, self.ptr, &dims, &strides, &boxes, Swizzle::B128, L2Promotion::B128)
    }
}

fn wgmma_params(
    op: &Attention,
    io: &GpuIo<'_>,
    tile: WgmmaTile,
    a: AttentionParams,
    lengths: Lengths,
) -> Result<WgmmaParams> {
    let (rows, q_row, kv_row) = (a.rows as usize, a.q_row as usize, a.kv_row as usize);
    let sequences = a.batch as usize;
    let q =
        HeadRows { ptr: a.q, rows, heads: op.heads, sequences, strides: [q_row, op.head_dim, rows * q_row] };
    let keys = match op.source {
        Source::Cache { .. } => io.ins[1].desc.shape[2],
        _ => rows,
    };
    let kv = |ptr| HeadRows {
        ptr,
        rows: keys,
        heads: op.kv_heads,
        sequences,
        strides: [kv_row, a.kv_head as usize, rows * kv_row],
    };
    let dtype = io.outs[0].desc.dtype;
    let k = kv(a.k).map(dtype, op, tile.keys)?;
    Ok(WgmmaParams { q: q.map(dtype, op, 64)?, k, v: kv(a.v).map(dtype, op, tile.keys)?, a, lengths })
}

impl CudaOp for Attention {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let rows = io.outs[0].rows();
        if rows == 0 {
            return Ok(());
        }
        match self.launches(rows) {
            Launches::Once(op, rows) => op.launch_rows(l, io, (rows, 0), &[]),
            Launches::Each(op, rows) => {
                (0..self.batch.sequences()).try_for_each(|n| op.launch_rows(l, io, (rows, n), &[]))
            }
            Launches::Groups(groups) => {
                groups.iter().try_for_each(|(op, group)| op.launch_rows(l, io, (rows, 0), group))
            }
        }
    }
}

impl Attention {
    /// Records the kernel for the `t` rows of `sequence`, and of those after it if there is a batch without a cache; of
    /// sequences of different lengths for the rows of `group` among `t` in all.
    fn launch_rows(
        &self,
        l: &mut Launcher<'_>,
        io: &GpuIo<'_>,
        (t, sequence): (usize, usize),
        group: &[Sequence],
    ) -> Result<()> {
        let mut p = params(self, l, io, (t, sequence))?;
        let (d, dtype) = (self.head_dim, io.outs[0].desc.dtype);
        let lengths = |tile| Lengths::new(group, tile, self.mask == Mask::Causal);
        let switches = switches()?;
        let choice = choose(self, t, l.device.arch(), switches);
        match choice {
            Choice::Naive => {
                let rows = self.batch.rows(t);
                let most = rows.iter().copied().max().unwrap_or(0);
                let grid = [most.div_ceil(NAIVE_ROWS), self.heads, rows.len()].map(|n| n as u32);
                let p = BatchParams { a: p, lengths: lengths(NAIVE_ROWS) };
                // SAFETY: infer() fixed the extents of q, k, v, bias and out, the planner put them in live memory; a
                // cache has the heads of all sequences, of which launches() names this one, and its keys end at kv_len,
                // which the engine keeps within S_max; sequences of different lengths are parts of the T rows, as infer()
                // saw to, and a CTA reads and writes rows of its own alone.
                unsafe { l.launch::<Naive>(dtype, Geometry::grid(grid), &p) }
            }
            Choice::Flash { rows } => {
                let ctas = self.tiles(t, rows);
                let geometry = Geometry::grid([ctas as u32, 1, 1]).smem(flash_smem_bytes(rows, d));
                let p = BatchParams { a: p, lengths: lengths(rows) };
                // SAFETY: as for the plain kernel; every CTA has a tile of the table that lengths() made for this size, and
                // choose() names instances that exist.
                unsafe { l.launch_variant::<Flash>(&format!("_d{d}_m{rows}"), dtype, geometry, &p) }
            }
            Choice::Wgmma => {
                let sms = l.device.sm_count();
                let tile = WgmmaTile::choose(self, t, sms);
                let ctas = tile.ctas(self, t, sms);
                let mut grid = [ctas as u32, 1, 1];
                if tile.apart {
                    let queries = tile.queries_apart(self);
                    grid = [(ctas / queries) as u32, p.heads, p.batch];
                    (p.partial, p.counters) = (l.scratch(tile.parts_bytes(self, t))?, l.counters(queries)?);
                }
                let geometry = Geometry::grid(grid).smem(tile.smem_bytes()).cluster(tile.sharing as u32);
                let p = wgmma_params(self, io, tile, p, lengths(tile.rows()))?;
                // SAFETY: as for the plain kernel; the maps bound all reads of q, k and v, where those behind the end of a
                // sequence may see rows of another, which it does not use; a bias is read below the rows of its sequence,
                // rows beyond are not written, choose() names instances that exist, and ctas() gives those that share keys
                // a cluster for every tile, and those with a row apart a CTA; for these scratch has room for all parts, and
                // there is a counter for every query.
                let variant = tile.variant(self);
                match d {
                    64 => unsafe { l.launch_variant::<WgmmaD64>(&variant, dtype, geometry, &p) },
                    _ => unsafe { l.launch_variant::<Wgmma>(&variant, dtype, geometry, &p) },
                }
            }
            Choice::Decode { tiles, splits } => {
                let parts = self.kv_heads * tiles * splits;
                p.partial = l.scratch(parts * 16 * (d + 2) * 4)?;
                p.counters = l.counters(self.kv_heads * tiles)?;
                let grid = [splits as u32, tiles as u32, self.kv_heads as u32];
                let geometry = Geometry::grid(grid).smem(decode_smem_bytes(d));
                // SAFETY: as for the plain kernel; scratch holds 16 rows of D + 2 floats for every CTA of the grid, and
                // there is one counter per (kv head, row tile).
                unsafe { l.launch_variant::<Decode>(&format!("_d{d}"), dtype, geometry, &p) }
            }
            Choice::DecodeCluster { tiles, clusters, ctas, stages } => {
                p.partial = l.scratch(self.kv_heads * tiles * clusters * 16 * (d + 2) * 4)?;
                p.counters = l.counters(self.kv_heads * tiles * ctas)?;
                let grid = [(ctas * clusters) as u32, tiles as u32, self.kv_heads as u32];
                let smem_bytes = decode_cluster_smem_bytes(d, stages);
                let geometry = Geometry::grid(grid).cluster(ctas as u32).smem(smem_bytes);
                let variant = format!("_d{d}_s{stages}_c{ctas}");
                // SAFETY: as for the plain kernel; scratch holds 16 rows of D + 2 floats for every cluster of the grid,
                // and there is one counter per kv head, row tile and CTA of a cluster. What it reads before its
                // predecessor has ended, step and rows before step.pos, was written before this run.
                unsafe { l.launch_variant::<DecodeCluster>(&variant, dtype, geometry, &p) }
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FoldKeysParams {
    x: DevicePtr,
    p: DevicePtr,
    u: DevicePtr,
    vb: DevicePtr,
    y: DevicePtr,
    bias: DevicePtr,
    row_stride: u32,
    rows: u32,
    heads: u32,
    head_dim: u32,
    lanes: u32,
    copy: u32,
    scale: f32,
}

struct FoldKeysKernel;
// SAFETY: `fold_keys` in kernels/attention/whale.cu takes one FoldKeysParams by value; loading compares the sizes.
unsafe impl Kernel for FoldKeysKernel {
    const FILE: &'static str = "attention/whale";
    const SYMBOL: &'static str = "fold_keys";
    type Params = FoldKeysParams;
}

/// Threads of the kernels in whale.cu.
const WHALE_THREADS: u32 = 256;

impl CudaOp for KeyBias {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, p, u, vb], [y, bias]) = io.take()?;
        let (dtype, head_dim) = (x.desc.dtype, self.head_dim);
        crate::ensure_input!(
            head_dim % 8 == 0 && head_dim <= 256 && u.desc.dtype == dtype,
            "{}: wants D % 8 == 0, D <= 256 and u, vb of k's type on the GPU; got D {head_dim}, u {}",
            y.name(),
            u.desc.brief()
        );
        let params = FoldKeysParams {
            x: x.ptr,
            p: p.ptr,
            u: u.ptr,
            vb: vb.ptr,
            y: y.ptr,
            bias: bias.ptr,
            row_stride: x.cols() as u32,
            rows: x.rows() as u32,
            heads: self.heads as u32,
            head_dim: head_dim as u32,
            lanes: (head_dim / 8).next_power_of_two() as u32,
            copy: 0,
            scale: self.scale,
        };
        fold_keys(l, dtype, &params)
    }
}

impl CudaOp for AddKeys {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([x, p], [y]) = io.take()?;
        let (dtype, c) = (x.desc.dtype, p.cols());
        crate::ensure_input!(c % 8 == 0, "{}: wants C % 8 == 0 on the GPU; got {c}", y.name());
        let keys = |x: GpuTensor<'_>| x.ptr.offset(c * dtype.bytes());
        let params = FoldKeysParams {
            x: keys(x),
            p: p.ptr,
            u: DevicePtr::NULL,
            vb: DevicePtr::NULL,
            y: keys(y),
            bias: DevicePtr::NULL,
            row_stride: x.cols() as u32,
            rows: x.rows() as u32,
            heads: (c / 8) as u32,
            head_dim: 8,
            lanes: 1,
            copy: u32::from(x.ptr != y.ptr),
            scale: 0.0,
        };
        fold_keys(l, dtype, &params)
    }
}

/// One launch of the kernel that both share.
fn fold_keys(l: &mut Launcher<'_>, dtype: DType, p: &FoldKeysParams) -> Result<()> {
    let ctas = (p.rows * p.heads).div_ceil(WHALE_THREADS / p.lanes);
    if ctas == 0 {
        return Ok(());
    }
    // SAFETY: infer() fixed the extents, the planner put them in live memory; a group of lanes touches the columns of
    // one head in one row below `rows`, and p has at least as many rows; u, vb and bias are all there or all null.
    unsafe { l.launch::<FoldKeysKernel>(dtype, Geometry::grid([ctas, 1, 1]), p) }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SinTableParams {
    pe: DevicePtr,
    rows: u32,
    width: u32,
}

struct SinTableKernel;
// SAFETY: `sin_table` in kernels/attention/whale.cu takes one SinTableParams by value; loading compares the sizes.
unsafe impl Kernel for SinTableKernel {
    const FILE: &'static str = "attention/whale";
    const SYMBOL: &'static str = "sin_table";
    type Params = SinTableParams;
}

impl CudaOp for SinTable {
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
        let ([], [pe]) = io.take()?;
        crate::ensure_input!(
            pe.desc.dtype != DType::F32,
            "{}: SinTable is bf16 or f16 on the GPU; got {}",
            pe.name(),
            pe.desc.brief()
        );
        let ctas = (self.rows * self.width / 2).div_ceil(WHALE_THREADS as usize);
        if ctas == 0 {
            return Ok(());
        }
        let p = SinTableParams { pe: pe.ptr, rows: self.rows as u32, width: self.width as u32 };
        // SAFETY: infer() fixed the extent of pe, the planner put it in live memory, a thread writes one pair in a row
        // below `rows`.
        unsafe { l.launch::<SinTableKernel>(pe.desc.dtype, Geometry::grid([ctas as u32, 1, 1]), &p) }
    }
}
