//! References of the elementwise ops.

use rayon::prelude::*;

use crate::core::Result;
use crate::ops::CpuIo;

/// Elements per task: large enough that handing it out costs nothing.
const CHUNK: usize = 1 << 14;

pub(super) fn map(io: &mut CpuIo<'_>, f: impl Fn(f32) -> f32 + Sync) -> Result<()> {
    let x = io.ins.values(0)?;
    let y = io.outs.f32s(0)?;
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x));
    });
    Ok(())
}

pub(super) fn zip(io: &mut CpuIo<'_>, f: impl Fn(f32, f32) -> f32 + Sync) -> Result<()> {
    let (a, b) = (io.ins.values(0)?, io.ins.values(1)?);
    let y = io.outs.f32s(0)?;
    let ins = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    y.par_chunks_mut(CHUNK).zip(ins).for_each(|(y, (a, b))| {
        y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = f(*a, *b));
    });
    Ok(())
}

/// Every row of x with row `t mod R` of a table; a vector is a table of one row.
pub(super) fn with_table(io: &mut CpuIo<'_>, f: impl Fn(f32, f32) -> f32 + Sync) -> Result<()> {
    let (x, table) = (io.ins.f32s(0)?, io.ins.vector(1)?);
    let (_, cols) = io.ins.extent(0);
    let rows = table.len() / cols;
    let y = io.outs.f32s(0)?;
    y.par_chunks_mut(cols).zip(x.par_chunks(cols)).enumerate().for_each(|(t, (y, x))| {
        let table = &table[(t % rows) * cols..][..cols];
        y.iter_mut().zip(x.iter().zip(table)).for_each(|(y, (x, p))| *y = f(*x, *p));
    });
    Ok(())
}
