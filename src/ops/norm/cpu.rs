//! References of the norms: two passes over a row in f32.

use super::RmsNorm;
use crate::core::Result;
use crate::ops::CpuIo;

pub(super) fn rms_norm(op: &RmsNorm, io: &mut CpuIo<'_>) -> Result<()> {
    let (x, w) = (io.ins.f32s(0)?, io.ins.vector(1)?);
    let y = io.outs.f32s(0)?;
    for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
        let mean_square = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        let scale = 1.0 / (mean_square + op.eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(&w) {
            *y = w * (x * scale);
        }
    }
    Ok(())
}
