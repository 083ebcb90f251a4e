// Eight elements of a 16-bit type in one 16-byte register group. Kept packed between uses: as single elements the
// compiler gives each its own 32-bit register.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

__device__ __forceinline__ float2 unpack2(uint32_t w, __nv_bfloat16) {
    return make_float2(__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack2(uint32_t w, __half) {
    return __half22float2(*reinterpret_cast<const __half2*>(&w));
}
__device__ __forceinline__ uint32_t pack2(float2 v, __nv_bfloat16) {
    const __nv_bfloat162 w = __floats2bfloat162_rn(v.x, v.y);
    return *reinterpret_cast<const uint32_t*>(&w);
}
__device__ __forceinline__ uint32_t pack2(float2 v, __half) {
    const __half2 w = __floats2half2_rn(v.x, v.y);
    return *reinterpret_cast<const uint32_t*>(&w);
}

// a · b + c of both halves.
__device__ __forceinline__ uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, __nv_bfloat16) {
    using Two = __nv_bfloat162;
    const Two r = __hfma2(*reinterpret_cast<Two*>(&a), *reinterpret_cast<Two*>(&b), *reinterpret_cast<Two*>(&c));
    return *reinterpret_cast<const uint32_t*>(&r);
}
__device__ __forceinline__ uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, __half) {
    const __half2 r = __hfma2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b), *reinterpret_cast<__half2*>(&c));
    return *reinterpret_cast<const uint32_t*>(&r);
}

struct Float8 {
    float v[8];
};

template <class T>
__device__ __forceinline__ Float8 unpack(uint4 w) {
    const float2 a = unpack2(w.x, T()), b = unpack2(w.y, T()), c = unpack2(w.z, T()), d = unpack2(w.w, T());
    return {a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y};
}

// Each element rounded to nearest even.
template <class T>
__device__ __forceinline__ uint4 pack(const Float8& f) {
    return make_uint4(pack2(make_float2(f.v[0], f.v[1]), T()), pack2(make_float2(f.v[2], f.v[3]), T()),
                      pack2(make_float2(f.v[4], f.v[5]), T()), pack2(make_float2(f.v[6], f.v[7]), T()));
}
