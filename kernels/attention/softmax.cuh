// The online softmax on fragments in the layout of mma and wgmma: a row lies in four neighbouring lanes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

// Two f32 as one register of a fragment, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float lo, float hi);
template <>
__device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
template <>
__device__ __forceinline__ uint32_t pack2<__half>(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Over the 4 lanes that hold a row of a C fragment.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// One step of the online softmax for one row of a C fragment tile of N columns: elements s[n][2·R] and s[n][2·R+1].
// Turns scores into p = exp2(s·f - m·f), updates m (of s, not of s·f) and this lane's part of l, returns the factor
// by which older sums shrink. A row that has seen -inf alone keeps m = -inf, l = 0.
template <int R, int N>
__device__ __forceinline__ float softmax_step(float (&s)[N][4], float f, float& m, float& l) {
    float high = m;
#pragma unroll
    for (int n = 0; n < N; n++) high = fmaxf(high, fmaxf(s[n][2 * R], s[n][2 * R + 1]));
    high = quad_max(high);
    const float at = high == -INFINITY ? 0.f : high;
    const float shrink = exp2_approx((m - at) * f);
    const float offset = at * f;
    float sum = 0.f;
#pragma unroll
    for (int n = 0; n < N; n++) {
        s[n][2 * R] = exp2_approx(fmaf(s[n][2 * R], f, -offset));
        s[n][2 * R + 1] = exp2_approx(fmaf(s[n][2 * R + 1], f, -offset));
        sum += s[n][2 * R] + s[n][2 * R + 1];
    }
    m = high;
    l = l * shrink + sum;
    return shrink;
}
