// Sums and maxima over a warp and over a block.
#pragma once
#include <cstdint>

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

// The sum over a block of THREADS, in every thread. May be called again at once: it ends with a barrier.
template <int THREADS>
__device__ __forceinline__ float block_sum(float x) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024);
    __shared__ float part[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) total += part[i];
    __syncthreads();
    return total;
}
