// Tiles of 16-bit rows in shared memory and the warp instructions on them. One instruction per wrapper.
//
// A row of D elements is D/8 chunks of 16 bytes; chunk c of row r sits at chunk c ^ (r % 8) of its 128-byte part, so
// that the 8 rows of an 8x8 matrix meet 8 different groups of banks.
// Fragments of mma.m16n8k16, g = lane / 4, t = lane % 4:  A {(g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8)} in pairs
// along k;  B {(k 2t, n g), (k 2t+8, n g)};  C {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

#include "attention/softmax.cuh"
#include "common/mma.cuh"

__device__ __forceinline__ uint32_t smem_addr(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Byte offset of a chunk in a tile with rows of D elements.
template <int D>
__device__ __forceinline__ uint32_t chunk_at(int row, int chunk) {
    return uint32_t(row * (D * 2) + (((chunk & ~7) | ((chunk ^ row) & 7)) << 4));
}

// Where a lane points for ldmatrix, relative to the tile; the two below step it.
// A operand, and B operand from rows of k (V): matrices (row 0-7, chunk 0), (8-15, 0), (0-7, 1), (8-15, 1).
template <int D>
__device__ __forceinline__ uint32_t lane_rows_first(int lane) {
    return chunk_at<D>(lane & 15, lane >> 4);
}
// B operand from rows of n (K): (row 0-7, chunk 0), (0-7, 1), (8-15, 0), (8-15, 1).
template <int D>
__device__ __forceinline__ uint32_t lane_chunks_first(int lane) {
    return chunk_at<D>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
}
// The address 16 columns · i further on. The tile must be aligned to 128 bytes.
__device__ __forceinline__ uint32_t step_columns(uint32_t addr, int i) {
    return (addr ^ uint32_t((i & 3) << 5)) + uint32_t((i >> 2) * 128);
}

// 16 bytes to shared memory past L1; zeros when !keep (src is not read then, but must be an address).
__device__ __forceinline__ void cp_async16(uint32_t dst, const void* src, bool keep) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(keep ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_async4(uint32_t dst, const void* src, bool keep) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(keep ? 4 : 0)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}

// c += A·B over k = 16.
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
