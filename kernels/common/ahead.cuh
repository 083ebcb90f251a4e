// Weights of the product that comes next, for CTAs that have nothing else to do: asked into the L2 while a kernel that
// occupies few SMs would leave the memory idle.
#pragma once
#include "common/ptx.cuh"

struct Ahead {
    const void* weights;  // or null
    uint32_t lines;       // of 128 bytes; 0: there are no such CTAs
    uint32_t ctas;        // that share them
};

// CTA `cta` of p.ctas: every thread its lines. Nothing is written, and nothing that another kernel wrote is read.
__device__ __forceinline__ void ask_ahead(const Ahead& p, uint32_t cta, uint32_t threads) {
    const char* from = static_cast<const char*>(p.weights);
    for (uint32_t line = cta * threads + threadIdx.x; line < p.lines; line += p.ctas * threads)
        prefetch_l2(from + size_t(line) * 128);
    pdl_wait();
    pdl_trigger();
}
