//! References of the row choosers.

use super::{LastRows, MEDIA_BIT, Recent, RowsAt};
use crate::core::Result;
use crate::ops::CpuIo;
use crate::ops::io::{CpuIn, CpuIns};

/// Row `id` of table `i`, or zeros.
fn table_row(ins: &CpuIns<'_>, i: usize, id: u32, y: &mut [f32]) -> Result<()> {
    let (rows, cols) = ins.extent(i);
    let id = id as usize;
    match &ins.data[i] {
        _ if id >= rows => y.fill(0.0),
        CpuIn::Weight(w) => w.read_rows(id..id + 1, y),
        _ => y.copy_from_slice(&ins.f32s(i)?[id * cols..][..cols]),
    }
    Ok(())
}

pub(super) fn embed(io: &mut CpuIo<'_>) -> Result<()> {
    let (ids, (_, cols)) = (io.ins.u32s(0)?, io.ins.extent(1));
    for (&id, y) in ids.iter().zip(io.outs.f32s(0)?.chunks_mut(cols)) {
        table_row(&io.ins, 1, if id & MEDIA_BIT == 0 { id } else { u32::MAX }, y)?;
    }
    Ok(())
}

pub(super) fn splice(io: &mut CpuIo<'_>) -> Result<()> {
    let (x, ids, (_, cols)) = (io.ins.f32s(0)?, io.ins.u32s(1)?, io.ins.extent(0));
    for ((&id, x), y) in ids.iter().zip(x.chunks(cols)).zip(io.outs.f32s(0)?.chunks_mut(cols)) {
        match id & MEDIA_BIT {
            0 => y.copy_from_slice(x),
            _ => table_row(&io.ins, 2, id & !MEDIA_BIT, y)?,
        }
    }
    Ok(())
}

pub(super) fn embed_splice(io: &mut CpuIo<'_>) -> Result<()> {
    let (ids, (_, cols)) = (io.ins.u32s(0)?, io.ins.extent(1));
    for (&id, y) in ids.iter().zip(io.outs.f32s(0)?.chunks_mut(cols)) {
        let table = if id & MEDIA_BIT == 0 { 1 } else { 2 };
        table_row(&io.ins, table, id & !MEDIA_BIT, y)?;
    }
    Ok(())
}

pub(super) fn last_rows(op: &LastRows, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, (_, cols)) = (io.ins.f32s(0)?, io.ins.extent(0));
    let valid = io.step.valid_rows as usize;
    for (i, y) in io.outs.f32s(0)?.chunks_mut(cols).enumerate() {
        match (valid + i).checked_sub(op.n) {
            Some(row) => y.copy_from_slice(&x[row * cols..][..cols]),
            None => y.fill(0.0),
        }
    }
    Ok(())
}

pub(super) fn rows_at(op: &RowsAt, io: &mut CpuIo<'_>) -> Result<()> {
    let (table, (rows, cols)) = (io.ins.f32s(0)?, io.ins.extent(0));
    let pos = io.step.pos as usize;
    for (i, y) in io.outs.f32s(0)?.chunks_mut(cols).enumerate() {
        match (pos + i).checked_sub(op.back).filter(|&row| row < rows) {
            Some(row) => y.copy_from_slice(&table[row * cols..][..cols]),
            None => y.fill(0.0),
        }
    }
    Ok(())
}

pub(super) fn recent(op: &Recent, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, (_, cols)) = (io.ins.f32s(0)?, io.ins.extent(0));
    let (pos, ring_rows) = (io.step.pos as usize, io.outs.descs[1].rows());
    let [y, ring] = io.outs.first_f32s()?;
    let (before, now) = y.split_at_mut(op.rows * cols);
    for (i, y) in before.chunks_mut(cols).enumerate() {
        match (pos + i).checked_sub(op.rows) {
            Some(at) => y.copy_from_slice(&ring[at % ring_rows * cols..][..cols]),
            None => y.fill(0.0),
        }
    }
    now.copy_from_slice(x);
    for (i, x) in x.chunks(cols).enumerate() {
        ring[(pos + i) % ring_rows * cols..][..cols].copy_from_slice(x);
    }
    Ok(())
}
