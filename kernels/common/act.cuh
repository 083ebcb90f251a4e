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
// x Φ(x) and x σ(x) for results that are rounded to 16 bits: half the instructions.
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
// max(x, 0) - |x| Φ(-|x|), with a polynomial fitted to log2 Φ: off by 4e-5 of itself, or by 4e-8 where it is small. One
// exp2 and no reciprocal, for the unit that makes both has a quarter of the rate of fma.
__device__ __forceinline__ float gelu_16(float x) {
    const float a = fminf(fabsf(x), 16.f);  // Φ(-16) is 0 here, and infinity times it is not to be NaN
    float log2_tail = -3.7626426e-4f, positive;
    log2_tail = fmaf(log2_tail, a, 6.3421130e-3f);
    log2_tail = fmaf(log2_tail, a, -4.9879935e-2f);
    log2_tail = fmaf(log2_tail, a, -0.46201613f);
    log2_tail = fmaf(log2_tail, a, -1.1500993f);
    log2_tail = fmaf(log2_tail, a, -1.0000587f);
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(positive) : "f"(x));  // NaN stays NaN
    return fmaf(-a, exp2_flushed(log2_tail), positive);
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
