// How a kernel is exported: an extern "C" entry that takes one Params by value, and beside it a device symbol that
// tells the host the size of Params and the block size. The loader compares the first with its own struct and
// launches with the second, so Rust and CUDA cannot disagree quietly.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

struct KernelInfo {
    uint32_t params_bytes;
    uint32_t threads;
};

// EXPORT(rms_norm_bf16, RmsNormParams, 256, 1, rms_norm<__nv_bfloat16>)
// `body` is a __device__ function template taking `const Params&`; `ctas` is the minimum of CTAs per SM.
#define EXPORT(symbol, Params, threads_, ctas, ...)                                                      \
    extern "C" __global__ void __launch_bounds__(threads_, ctas) symbol(const __grid_constant__ Params p) { \
        __VA_ARGS__(p);                                                                                  \
    }                                                                                                    \
    extern "C" __device__ KernelInfo symbol##_info = {sizeof(Params), threads_};
