// One instruction per wrapper. Nothing here knows of tensors.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

// Programmatic dependent launch. Every kernel of the engine calls pdl_wait() in every CTA before it touches
// anything another kernel wrote, and pdl_trigger() right after; both are no-ops without the launch attribute.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void pdl_trigger() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Both, in a loop over tiles: before the first, behind what needs nothing of another kernel.
struct WaitOnce {
    bool waited = false;

    __device__ __forceinline__ void operator()() {
        if (!waited) pdl_wait(), pdl_trigger(), waited = true;
    }
};

// Asks for the 128 bytes around `address` to be in the L2.
__device__ __forceinline__ void prefetch_l2(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// The policy of what passes through once: first to leave the L2.
__device__ __forceinline__ uint64_t streaming_policy() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// 16 bytes = 8 elements of a 16-bit type.
template <class T>
struct alignas(16) Vec8 {
    T v[8];
};

template <class T>
__device__ __forceinline__ float to_f32(T x);
template <>
__device__ __forceinline__ float to_f32(__nv_bfloat16 x) { return __bfloat162float(x); }
template <>
__device__ __forceinline__ float to_f32(__half x) { return __half2float(x); }
template <>
__device__ __forceinline__ float to_f32(float x) { return x; }

template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ __nv_bfloat16 from_f32(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ __forceinline__ __half from_f32(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ float from_f32(float x) { return x; }
