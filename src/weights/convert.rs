//! bf16, f16 and f32 as little-endian bytes, to and from f32. The loops are branch-free so that they vectorise:
//! they feed the CPU's matrix products.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::core::DType;

/// Elements that go through a buffer on the stack at a time.
const BLOCK: usize = 512;

/// The f32 of a bf16.
fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Rounded to nearest even; NaN stays NaN.
fn narrow_bf16(x: f32) -> u16 {
    let b = x.to_bits();
    let rounded = b.wrapping_add(0x7fff + ((b >> 16) & 1)) >> 16;
    let quiet = (b >> 16) | 0x40;
    (if b & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// Widens `out.len()` elements of `bytes`. `dtype` is a float type (u32 is refused where files are read).
pub fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::BF16 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = widen_bf16(u16::from_le_bytes(*b));
            }
        }
        DType::F16 => {
            let mut block = [f16::ZERO; BLOCK];
            for (out, bytes) in out.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
                let block = &mut block[..out.len()];
                for (x, b) in block.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = f16::from_le_bytes(*b);
                }
                block.convert_to_f32_slice(out);
            }
        }
        DType::F32 | DType::U32 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
    }
}

/// Rounds `values` to nearest even in `dtype` and stores them.
pub fn narrow(dtype: DType, values: &[f32], bytes: &mut [u8]) {
    match dtype {
        DType::BF16 => {
            for (b, x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *b = narrow_bf16(*x).to_le_bytes();
            }
        }
        DType::F16 => {
            let mut block = [f16::ZERO; BLOCK];
            for (values, bytes) in values.chunks(BLOCK).zip(bytes.chunks_mut(2 * BLOCK)) {
                let block = &mut block[..values.len()];
                block.convert_from_f32_slice(values);
                for (b, x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(block.iter()) {
                    *b = x.to_le_bytes();
                }
            }
        }
        DType::F32 | DType::U32 => {
            for (b, x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *b = x.to_le_bytes();
            }
        }
    }
}

/// Takes `out.len() / to.bytes()` elements from `bytes`, `step` apart, and stores them as `to`.
pub fn convert(from: DType, bytes: &[u8], step: usize, to: DType, out: &mut [u8]) {
    if step == 1 && from == to {
        out.copy_from_slice(&bytes[..out.len()]);
        return;
    }
    let mut block = [0.0; BLOCK];
    for (i, out) in out.chunks_mut(BLOCK * to.bytes()).enumerate() {
        let block = &mut block[..out.len() / to.bytes()];
        gather(from, &bytes[i * BLOCK * step * from.bytes()..], step, block);
        narrow(to, block, out);
    }
}

/// Widens `out.len()` elements of `bytes`, `step` apart.
pub fn gather(dtype: DType, bytes: &[u8], step: usize, out: &mut [f32]) {
    if step == 1 {
        return widen(dtype, bytes, out);
    }
    let size = dtype.bytes();
    for (i, x) in out.iter_mut().enumerate() {
        let at = i * step * size;
        widen(dtype, &bytes[at..at + size], std::slice::from_mut(x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_agrees_with_half() {
        let mut values: Vec<f32> =
            (0..70_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9))).collect();
        values.extend([0.0, -0.0, 1.0 + 1.0 / 256.0, f32::MAX, f32::INFINITY, f32::NAN, 65520.0, 1e-40]);
        let n = values.len();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let mut bytes = vec![0; n * dtype.bytes()];
            narrow(dtype, &values, &mut bytes);
            let mut back = vec![0.0; n];
            widen(dtype, &bytes, &mut back);
            for (x, y) in values.iter().zip(&back) {
                let want = dtype.round(*x);
                assert!(want == *y || (want.is_nan() && y.is_nan()), "{dtype} {x}: {want} {y}");
            }
        }
    }

    #[test]
    fn conversions_step_over_elements() {
        let values: Vec<f32> = (0..3000).map(|i| i as f32).collect();
        let mut stored = vec![0; 12_000];
        narrow(DType::F32, &values, &mut stored);
        let mut out = vec![0; 2 * 1000];
        convert(DType::F32, &stored[4..], 3, DType::F16, &mut out);
        let mut back = vec![0.0; 1000];
        widen(DType::F16, &out, &mut back);
        let want: Vec<f32> = (0..1000).map(|i| DType::F16.round((3 * i + 1) as f32)).collect();
        assert_eq!(back, want);
    }
}
