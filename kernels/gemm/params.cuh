// What the GEMM kernels take, and where they find the rows of A.
#pragma once
#include "gemm/epilogue.cuh"

struct GemmParams {
    const void* a;
    const void* w;  // [N, K]
    Epilogue e;
    float* partials;     // split-K: [tile][split][BM · BN]
    uint32_t* counters;  // split-K: one per tile, zero between kernels
    uint32_t m, n, k;
    uint32_t a_len;  // elements of A; what lies beyond reads as zero
    // MatrixRows: elements from one row to the next; less than k when rows overlap (Conv1d).
    uint32_t a_pitch;
    // ImageRows: pixels per input row, pixels per output row, channels.
    uint32_t width, out_width, channels;
};

// Both policies give element (m, k) of A as a[row(m) + along(k)].
struct MatrixRows {
    static __device__ __forceinline__ uint32_t row(const GemmParams& p, uint32_t m) { return m * p.a_pitch; }
    static __device__ __forceinline__ uint32_t along(const GemmParams&, uint32_t k) { return k; }
};

// Windows of a 3x3 convolution with stride 2 over [height, width, channels]; k runs over (r, s, c). Inside one r
// the window is contiguous, so only two jumps remain, and a chunk of 8 never crosses one if channels % 8 == 0.
struct ImageRows {
    static __device__ __forceinline__ uint32_t row(const GemmParams& p, uint32_t m) {
        return (m / p.out_width * 2 * p.width + m % p.out_width * 2) * p.channels;
    }
    static __device__ __forceinline__ uint32_t along(const GemmParams& p, uint32_t k) {
        const uint32_t run = 3 * p.channels, jump = (p.width - 3) * p.channels;
        return k + (k >= run ? jump : 0) + (k >= 2 * run ? jump : 0);
    }
};
