// What the epilogues of gemm/wgmma.cu and gemm/wgmma_multicast.cuh ask for while the product runs, so that they never wait
// for memory: bias and scale of a tile's columns, and the residual. `Tile` has BM, BN, HALVES and COLUMNS, the latter BN in
// whole chunks of 32.
#pragma once
#include "gemm/wgmma.cuh"

// 16-bit elements at and at + 1 of a vector that may be absent or end before them, in one register.
__device__ __forceinline__ uint32_t pair_or_zero(const void* vector, uint32_t at, uint32_t len) {
    const uint16_t* v = static_cast<const uint16_t*>(vector);
    if (v == nullptr || at >= len) return 0;
    // One load, which nothing waits for before the product.
    if (len % 2 == 0) return *reinterpret_cast<const uint32_t*>(v + at);
    return v[at] | (at + 1 < len ? uint32_t(v[at + 1]) << 16 : 0);
}

// Two columns per thread of what the epilogue adds and multiplies, on their way while the product runs.
template <class T, class Tile>
struct Columns {
    uint32_t bias, scale;

    __device__ __forceinline__ Columns(const Epilogue& e, uint32_t n, uint32_t n0) {
        const uint32_t at = threadIdx.x % 128 * 2;
        const bool mine = at < Tile::BN;
        bias = pair_or_zero(mine ? e.bias : nullptr, n0 + at, n);
        scale = pair_or_zero(mine ? e.scale : nullptr, n0 + at, e.cols);
    }
    // `to`: COLUMNS biases, then as many scales. A barrier of the warpgroup follows.
    __device__ __forceinline__ void keep(T* to) const {
        const uint32_t at = threadIdx.x % 128 * 2;
        if (at >= Tile::COLUMNS) return;
        *reinterpret_cast<uint32_t*>(to + at) = bias;
        *reinterpret_cast<uint32_t*>(to + Tile::COLUMNS + at) = scale;
    }
};

// Asks the L2 for the residual under this warp's 16 rows of each of its `HALVES` blocks of 64.
template <class T, class Tile>
__device__ __forceinline__ void ask_residual(const WgmmaParams& p, uint32_t row0, uint32_t n0) {
    const Epilogue& e = p.e;
    if (e.residual == nullptr) return;
    const uint32_t lane = threadIdx.x % 32, end = min(n0 + Tile::BN, e.cols);
#pragma unroll 1
    for (uint32_t half = 0; half < Tile::HALVES; half++) {
        const uint32_t row = row0 + 64 * half + lane / 2;
        if (row >= p.m) continue;
#pragma unroll 1
        for (uint32_t col = n0 + lane % 2 * 64; col < end; col += 128)
            if (const T* from = residual_at<T>(e, row, col)) prefetch_l2(from);
    }
}

template <class T>
__device__ __forceinline__ Float8 columns_8(const T* from) {
    return unpack<T>(*reinterpret_cast<const uint4*>(from));
}

// 8 elements of the residual, zeros where nothing is added.
template <class T>
__device__ __forceinline__ uint4 residual_8(const Epilogue& e, uint32_t row, uint32_t col) {
    const T* from = residual_at<T>(e, row, col);
    return from != nullptr ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
}
