//! Host values in a tensor's own element type, and back.

use half::{bf16, f16};

use crate::core::{DType, HostData, HostSlice};

/// Writes `data` as `dtype`, little-endian; `out` holds exactly that much.
pub fn to_device(dtype: DType, data: HostSlice<'_>, out: &mut [u8]) {
    match (data, dtype) {
        (HostSlice::U32(v), _) => out.copy_from_slice(bytemuck::cast_slice(v)),
        (HostSlice::Bytes(v), _) => {
            let (bytes, rest) = out.split_at_mut(v.len());
            bytes.copy_from_slice(v);
            rest.fill(0);
        }
        (HostSlice::F32(v), DType::BF16) => {
            out.chunks_exact_mut(2)
                .zip(v)
                .for_each(|(o, x)| o.copy_from_slice(&bf16::from_f32(*x).to_le_bytes()));
        }
        (HostSlice::F32(v), DType::F16) => {
            out.chunks_exact_mut(2)
                .zip(v)
                .for_each(|(o, x)| o.copy_from_slice(&f16::from_f32(*x).to_le_bytes()));
        }
        (HostSlice::F32(v), _) => out.copy_from_slice(bytemuck::cast_slice(v)),
    }
}

/// Widens bytes of `dtype`.
pub fn from_device(dtype: DType, bytes: &[u8]) -> HostData {
    let word = |c: &[u8]| [c[0], c[1], c[2], c[3]];
    match dtype {
        DType::U32 => HostData::U32(bytes.chunks_exact(4).map(|c| u32::from_le_bytes(word(c))).collect()),
        DType::F32 => HostData::F32(bytes.chunks_exact(4).map(|c| f32::from_le_bytes(word(c))).collect()),
        DType::BF16 => {
            HostData::F32(bytes.chunks_exact(2).map(|c| bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect())
        }
        DType::F16 => {
            HostData::F32(bytes.chunks_exact(2).map(|c| f16::from_le_bytes([c[0], c[1]]).to_f32()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_round_trip() {
        let data = HostData::F32(vec![0.0, -1.5, 256.0]);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let mut bytes = vec![0; 3 * dtype.bytes()];
            to_device(dtype, data.as_slice(), &mut bytes);
            assert_eq!(from_device(dtype, &bytes), data, "{dtype}");
        }
        let ids = HostData::U32(vec![1, 0x8000_0001]);
        let mut bytes = vec![0; 8];
        to_device(DType::U32, ids.as_slice(), &mut bytes);
        assert_eq!(from_device(DType::U32, &bytes), ids);
        // Bytes of words; what is there of the last one is overwritten.
        to_device(DType::U32, HostSlice::Bytes(&[1, 0, 0, 0, 2]), &mut bytes);
        assert_eq!(from_device(DType::U32, &bytes), HostData::U32(vec![1, 2]));
    }
}
