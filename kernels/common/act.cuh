// Activations of one value in f32; numbers as ops::elementwise::Act and ops::linear::LinearAct have them.
#pragma once
#include <cstdint>

// SwiGLU takes two values: what comes to `activate` is final.
enum Act : uint32_t { ACT_NONE = 0, ACT_GELU = 1, ACT_RELU = 2, ACT_SILU = 3, ACT_SWIGLU = 4 };

// x Φ(x) with the erf of Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most: a third of the instructions of erff.
__device__ __forceinline__ float gelu(float x) {
    const float z = fabsf(x) * 0.70710678f, t = __fdividef(1.f, fmaf(0.3275911f, z, 1.f));
    const float poly =
        t * fmaf(t, fmaf(t, fmaf(t, fmaf(t, 1.061405429f, -1.453152027f), 1.421413741f), -0.284496736f), 0.254829592f);
    const float erf = copysignf(1.f - poly * __expf(-z * z), x);
    return 0.5f * x * (1.f + erf);
}
// x Φ(x) and x σ(x) for results that are rounded to 16 bits: half the instructions. Φ is 1 / (1 + 2^-(x P(x²))) with
// P of degree 4 fitted to its log-odds up to |x| = 5: off by 1.3e-5 at most up to |x| = 5, and by 4e-5 of itself where
// x > 0. Over bf16 and f16 results of normal x the error is that of rounding (1.000 and 1.001 times).
__device__ __forceinline__ float exp2_flushed(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_flushed(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float gelu_16(float x) {
    const float z = fminf(x * x, 25.f);
    const float odds = fmaf(
        fmaf(fmaf(fmaf(-2.33219307e-6f, z, 6.60316483e-5f), z, 5.32623981e-4f), z, -0.105696608f), z, -2.30170892f);
    return x * reciprocal_flushed(1.f + exp2_flushed(x * odds));
}
__device__ __forceinline__ float silu_16(float x) {
    return x * reciprocal_flushed(1.f + exp2_flushed(-1.44269504f * x));
}
__device__ __forceinline__ float relu(float x) { return x <= 0.f ? 0.f : x; }  // NaN stays NaN
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.f + __expf(-x)); }

template <Act ACT>
__device__ __forceinline__ float activate(float x) {
    if constexpr (ACT == ACT_GELU) return gelu(x);
    if constexpr (ACT == ACT_RELU) return relu(x);
    if constexpr (ACT == ACT_SILU) return silu(x);
    return x;
}
__device__ __forceinline__ float activate(uint32_t act, float x) {
    if (act == ACT_GELU) return gelu(x);
    if (act == ACT_RELU) return relu(x);
    return x;
}
