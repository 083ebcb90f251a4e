//! Tensor maps: what the bulk tensor copy engine (TMA) knows of a tensor.

use cudarc::driver::sys;

use super::driver::check;
use super::launch::DevicePtr;
use crate::core::{DType, Result};

/// 128 opaque bytes, passed to a kernel inside its parameters.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap([u64; 16]);

/// How rows of 128, 64 or 32 bytes are permuted in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Swizzle {
    None,
    B32,
    B64,
    B128,
}

/// How much of a line the L2 fetches at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L2Promotion {
    None,
    B128,
    B256,
}

impl TensorMap {
    /// A tensor of `dims` elements, innermost first; `strides_bytes` for every dimension but the first; `box_dims` is
    /// what one copy moves. Elements outside read as zero.
    pub fn encode(
        dtype: DType,
        ptr: DevicePtr,
        dims: &[u64],
        strides_bytes: &[u64],
        box_dims: &[u32],
        swizzle: Swizzle,
        l2: L2Promotion,
    ) -> Result<TensorMap> {
        use sys::{
            CUtensorMapDataType as T, CUtensorMapFloatOOBfill as F, CUtensorMapInterleave as I,
            CUtensorMapL2promotion as L, CUtensorMapSwizzle as S,
        };
        let rank = dims.len();
        if rank == 0 || rank > 5 || strides_bytes.len() + 1 != rank || box_dims.len() != rank {
            crate::bail_runtime!(
                "tensor map: dims {dims:?}, strides {strides_bytes:?}, box {box_dims:?} do not fit"
            );
        }
        let dtype_raw = match dtype {
            DType::BF16 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::F32 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::U32 => T::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        };
        let swizzle_raw = match swizzle {
            Swizzle::None => S::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::B32 => S::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::B64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::B128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let l2_raw = match l2 {
            L2Promotion::None => L::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            L2Promotion::B128 => L::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            L2Promotion::B256 => L::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        };
        let element_strides = [1u32; 5];
        // SAFETY: an all-zero map is plain memory of the right size and alignment.
        let mut raw: sys::CUtensorMap = unsafe { std::mem::zeroed() };
        // SAFETY: every array has `rank` (strides: rank - 1) elements; the driver only encodes, it does not touch `ptr`.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut raw,
                dtype_raw,
                rank as u32,
                ptr.0 as *mut _,
                dims.as_ptr(),
                strides_bytes.as_ptr(),
                box_dims.as_ptr(),
                element_strides.as_ptr(),
                I::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle_raw,
                l2_raw,
                F::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(encoded.result(), || {
            format!(
                "encoding a tensor map: {dtype} at {:#x}, dims {dims:?}, strides {strides_bytes:?} bytes, box \
                 {box_dims:?}, swizzle {swizzle:?}, L2 {l2:?}",
                ptr.0
            )
        })?;
        Ok(TensorMap(raw.opaque))
    }
}
