//! What launchers ask of tensors beyond the shape rule.

use crate::core::{DType, Result};
use crate::gpu::launch::GpuTensor;

/// The one 16-bit type of all `tensors`; otherwise an error that names the first.
pub(crate) fn same_t16(op: &str, tensors: &[GpuTensor<'_>]) -> Result<DType> {
    let dtype = tensors[0].desc.dtype;
    let t16 = matches!(dtype, DType::BF16 | DType::F16);
    if !t16 || tensors.iter().any(|t| t.desc.dtype != dtype) {
        let got: Vec<String> = tensors.iter().map(|t| format!("{} {}", t.name(), t.desc.brief())).collect();
        crate::bail_input!(
            "{}: {op} wants bf16 or f16 on the GPU, one type throughout; got {}",
            tensors[0].name(),
            got.join(", ")
        );
    }
    Ok(dtype)
}

/// Rows of `t` consist of whole 16-byte vectors, at most `max_cols` elements of them.
pub(crate) fn whole_vectors(op: &str, t: &GpuTensor<'_>, max_cols: usize) -> Result<()> {
    crate::ensure_input!(
        t.cols().is_multiple_of(8) && t.cols() <= max_cols,
        "{}: {op} wants C % 8 == 0 and C <= {max_cols} on the GPU; got {}",
        t.name(),
        t.desc.brief()
    );
    Ok(())
}
