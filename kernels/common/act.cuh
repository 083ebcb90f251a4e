// Activations of one value in f32; numbers as ops::elementwise::Act has them.
#pragma once
#include <cstdint>

enum Act : uint32_t { ACT_NONE = 0, ACT_GELU = 1, ACT_RELU = 2, ACT_SILU = 3 };

template <Act ACT>
__device__ __forceinline__ float activate(float x) {
    if constexpr (ACT == ACT_GELU) return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
    if constexpr (ACT == ACT_RELU) return x <= 0.f ? 0.f : x;  // NaN stays NaN
    if constexpr (ACT == ACT_SILU) return x / (1.f + __expf(-x));
    return x;
}
