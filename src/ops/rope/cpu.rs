//! References of rotation and cache.

use super::{KvAppend, Rope, RopeKvAppend, RopeTable, inv_freq, unpaired};
use crate::core::{DType, Result, Step};
use crate::ops::CpuIo;
use crate::ops::io::CpuOuts;

/// Cosine and sine of every pair at `position`.
fn angles(inv_freq: &[f32], position: u32) -> Vec<(f32, f32)> {
    inv_freq
        .iter()
        .map(|f| {
            let angle = position as f32 * f;
            (angle.cos(), angle.sin())
        })
        .collect()
}

fn rotate(x: &[f32], angles: &[(f32, f32)], y: &mut [f32]) {
    let half = angles.len();
    for (i, (cos, sin)) in angles.iter().enumerate() {
        let (a, b) = (x[i], x[i + half]);
        y[i] = a * cos - b * sin;
        y[i + half] = b * cos + a * sin;
    }
}

pub(super) fn rope(op: &Rope, io: &mut CpuIo<'_>) -> Result<()> {
    let freq = inv_freq(op.head_dim, op.theta);
    let (x, (_, cols)) = (io.ins.f32s(0)?, io.ins.extent(0));
    let pos = io.step.pos;
    let rows = x.len() / cols.max(1) / op.sequences;
    let y = io.outs.f32s(0)?;
    for (t, (x, y)) in x.chunks(cols).zip(y.chunks_mut(cols)).enumerate() {
        let angles = angles(&freq, pos + (t % rows) as u32);
        for (x, y) in x.chunks(op.head_dim).zip(y.chunks_mut(op.head_dim)) {
            rotate(x, &angles, y);
        }
    }
    Ok(())
}

/// The cache of one layer while rows are appended.
struct Cache<'a> {
    data: &'a mut [f32],
    dtype: DType,
    /// Of all sequences.
    kv_heads: usize,
    rows: usize,
    head_dim: usize,
}

impl<'a> Cache<'a> {
    /// Output `out` as a cache with room for the rows of this step.
    fn of(io: &'a mut CpuOuts<'_>, out: usize, name: &str, step: Step) -> Result<Cache<'a>> {
        let desc = io.descs[out];
        let (kv_heads, rows, head_dim) = (desc.shape[1], desc.shape[2], desc.shape[3]);
        let end = step.pos as usize + step.valid_rows as usize;
        if end > rows {
            crate::bail_runtime!("{name}: rows {}..{end} do not fit in a cache of {rows} rows", step.pos);
        }
        Ok(Cache { data: io.f32s(out)?, dtype: desc.dtype, kv_heads, rows, head_dim })
    }

    /// Writes one head's row of keys (`part` 0) or values (1).
    fn put(&mut self, part: usize, head: usize, row: usize, values: &[f32]) {
        let at = ((part * self.kv_heads + head) * self.rows + row) * self.head_dim;
        let to = &mut self.data[at..at + self.head_dim];
        to.copy_from_slice(values);
        self.dtype.round_slice(to);
    }
}

pub(super) fn kv_append(op: &KvAppend, io: &mut CpuIo<'_>) -> Result<()> {
    let (k, v) = (io.ins.f32s(0)?, io.ins.f32s(1)?);
    let (d, cols) = (op.head_dim, op.kv_heads * op.head_dim);
    let step = io.step;
    let rows = k.len() / cols.max(1) / op.sequences;
    let mut cache = Cache::of(&mut io.outs, 0, &io.ins.descs[2].name, step)?;
    for sequence in 0..op.sequences {
        for t in 0..rows.min(step.valid_rows as usize) {
            let row = step.pos as usize + t;
            for g in 0..op.kv_heads {
                let (at, head) = ((sequence * rows + t) * cols + g * d, sequence * op.kv_heads + g);
                cache.put(0, head, row, &k[at..at + d]);
                cache.put(1, head, row, &v[at..at + d]);
            }
        }
    }
    Ok(())
}

pub(super) fn rope_kv_append(op: &RopeKvAppend, io: &mut CpuIo<'_>) -> Result<()> {
    rotate_and_append(op, io.ins.f32s(0)?, None, io.step, &io.ins.descs[1].name, &mut io.outs)
}

pub(super) fn rope_table(op: &RopeTable, io: &mut CpuIo<'_>) -> Result<()> {
    let freq = inv_freq(op.head_dim, op.theta);
    let pos = io.step.pos;
    for (t, row) in io.outs.f32s(0)?.chunks_mut(op.head_dim).enumerate() {
        for (to, (cos, sin)) in row.chunks_mut(2).zip(angles(&freq, pos + t as u32)) {
            to.copy_from_slice(&[cos, sin]);
        }
    }
    Ok(())
}

/// `op` on a packed `qkv` in pairs, by the angles of a [`RopeTable`] if there is one; outputs 0 and 1 are q and the
/// cache, which came as `kv`.
pub(crate) fn rotate_and_append(
    op: &RopeKvAppend,
    qkv: &[f32],
    table: Option<&[f32]>,
    step: Step,
    kv: &str,
    outs: &mut CpuOuts<'_>,
) -> Result<()> {
    let freq = inv_freq(op.head_dim, op.theta);
    let (h, g, d) = (op.heads, op.kv_heads, op.head_dim);
    let angles_of = |t: usize| match table {
        Some(table) => table[t * d..][..d].chunks(2).map(|cs| (cs[0], cs[1])).collect(),
        None => angles(&freq, step.pos + t as u32),
    };
    let cols = (h + 2 * g) * d;
    let rows = qkv.len() / cols.max(1) / op.sequences;
    let mut one = vec![0.0; d];
    // A head's elements in their own order.
    let mut head_of = |row: &[f32], head: usize| {
        row[head * d..][..d].iter().enumerate().for_each(|(at, x)| one[unpaired(at, d)] = *x);
        one.clone()
    };

    let q = outs.f32s(0)?;
    for (t, (x, q)) in qkv.chunks(cols).zip(q.chunks_mut(h * d)).enumerate() {
        let angles = angles_of(t % rows);
        for (head, q) in q.chunks_mut(d).enumerate() {
            rotate(&head_of(x, head), &angles, q);
        }
    }

    let mut cache = Cache::of(outs, 1, kv, step)?;
    let mut k = vec![0.0; d];
    let valid = |t: &usize| t % rows < step.valid_rows as usize;
    for (t, x) in qkv.chunks(cols).enumerate().filter(|(t, _)| valid(t)) {
        let (row, first) = (step.pos as usize + t % rows, t / rows * g);
        let angles = angles_of(t % rows);
        for head in 0..g {
            rotate(&head_of(x, h + head), &angles, &mut k);
            cache.put(0, first + head, row, &k);
            cache.put(1, first + head, row, &head_of(x, h + g + head));
        }
    }
    Ok(())
}
