// The largest of many floats and where it is, as one unsigned integer: its maximum is the answer in whatever order it is
// taken.
#pragma once
#include <cstdint>

typedef unsigned long long u64;

// Unsigned integers in the order of the floats: -0 equals 0, NaN is below everything.
__device__ __forceinline__ uint32_t order(float x) {
    const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.f));
    if (x != x) return 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A larger value wins, then a lower index.
__device__ __forceinline__ u64 ranked(float x, uint32_t index) { return u64(order(x)) << 32 | uint32_t(~index); }
__device__ __forceinline__ uint32_t index_of(u64 best) { return ~uint32_t(best); }
