// rms_norm:        y = w · x / sqrt(mean(x²) + eps)
// layer_norm:      y = w · (x - mean) / sqrt(var + eps) + b
// layer_norm_act:  y = scale · act(layer_norm(x))
// add_*:           h = x + r, rounded once; y = norm of the rounded h
// x, r, h, y [T, C] of T16; w, b [C]; statistics in f32, variance around the mean in a second pass, one rounding.
// C % 8 == 0, C <= 8192. A row stays in registers (4 vectors of 8 per thread): one CTA of 256 per row, or, for
// C <= 1024, one warp per row (`_warp`, 8 rows per CTA): no barriers, and no idle threads in a narrow row.
// h may be x and y may be x or r: a thread reads all its elements before it writes the same ones.
// Moves 4·T·C (add: 8·T·C) + 2·C bytes: bandwidth-bound. Goal 85 % of the copy rate from T = 512; T = 1 is
// launch-bound, so w and b are loaded before the wait.
#include "common/act.cuh"
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

constexpr int NORM_THREADS = 256;
constexpr int NORM_VECTORS = 4;  // per thread: C <= 256 · 4 · 8, and C <= 32 · 4 · 8 for a warp

enum class Norm { Rms, Layer, LayerAct };

struct NormParams {
    const void* x;
    const void* r;  // null unless add_*
    const void* w;
    const void* b;  // null for RMS
    void* h;        // null unless add_*
    void* y;
    uint32_t rows;
    uint32_t cols;
    float eps;
    uint32_t act;
    float scale;
};

// The sum over the threads that share a row.
template <int GROUP>
__device__ __forceinline__ float row_sum(float x) {
    if constexpr (GROUP == 32) return warp_sum(x);
    return block_sum<NORM_THREADS>(x);
}

__device__ __forceinline__ float activate_any(uint32_t act, float x) {
    switch (act) {
        case ACT_GELU: return activate<ACT_GELU>(x);
        case ACT_RELU: return activate<ACT_RELU>(x);
        case ACT_SILU: return activate<ACT_SILU>(x);
        default: return x;
    }
}

// GROUP threads share a row.
template <class T, Norm NORM, bool ADD, int GROUP>
__device__ __forceinline__ void norm(const NormParams& p) {
    const uint32_t row = blockIdx.x * (NORM_THREADS / GROUP) + threadIdx.x / GROUP;
    const uint32_t lane = threadIdx.x % GROUP;
    const uint32_t vectors = p.cols / 8;
    const size_t base = size_t(row) * vectors;
    // Only whole warps leave, and only in the instance without barriers.
    const bool active = row < p.rows;

    uint4 gain[NORM_VECTORS], shift[NORM_VECTORS];
#pragma unroll
    for (int i = 0; i < NORM_VECTORS; i++) {
        const uint32_t at = lane + i * GROUP;
        if (at < vectors) {
            gain[i] = static_cast<const uint4*>(p.w)[at];
            if constexpr (NORM != Norm::Rms) shift[i] = static_cast<const uint4*>(p.b)[at];
        }
    }
    // Before the wait: a norm is short, and the product behind it has its weights to ask for.
    pdl_trigger();
    pdl_wait();
    if (!active) return;

    uint4 x[NORM_VECTORS];
    const auto* from = static_cast<const uint4*>(p.x) + base;
#pragma unroll
    for (int i = 0; i < NORM_VECTORS; i++) {
        const uint32_t at = lane + i * GROUP;
        if (at < vectors) x[i] = from[at];
    }
    if constexpr (ADD) {
        uint4 r[NORM_VECTORS];
        const auto* residual = static_cast<const uint4*>(p.r) + base;
        auto* h = static_cast<uint4*>(p.h) + base;
#pragma unroll
        for (int i = 0; i < NORM_VECTORS; i++) {
            const uint32_t at = lane + i * GROUP;
            if (at < vectors) r[i] = residual[at];
        }
#pragma unroll
        for (int i = 0; i < NORM_VECTORS; i++) {
            const uint32_t at = lane + i * GROUP;
            if (at < vectors) {
                Float8 sum = unpack<T>(x[i]);
                const Float8 add = unpack<T>(r[i]);
#pragma unroll
                for (int j = 0; j < 8; j++) sum.v[j] += add.v[j];
                h[at] = x[i] = pack<T>(sum);
            }
        }
    }

    float mean = 0.f;
    if constexpr (NORM != Norm::Rms) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < NORM_VECTORS; i++) {
            if (lane + i * GROUP < vectors) {
                const Float8 v = unpack<T>(x[i]);
#pragma unroll
                for (int j = 0; j < 8; j++) sum += v.v[j];
            }
        }
        mean = row_sum<GROUP>(sum) / p.cols;
    }
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < NORM_VECTORS; i++) {
        if (lane + i * GROUP < vectors) {
                const Float8 v = unpack<T>(x[i]);
#pragma unroll
            for (int j = 0; j < 8; j++) squares += (v.v[j] - mean) * (v.v[j] - mean);
        }
    }
    const float rstd = rsqrtf(row_sum<GROUP>(squares) / p.cols + p.eps);

    auto* y = static_cast<uint4*>(p.y) + base;
#pragma unroll
    for (int i = 0; i < NORM_VECTORS; i++) {
        const uint32_t at = lane + i * GROUP;
        if (at < vectors) {
            Float8 v = unpack<T>(x[i]);
            const Float8 w = unpack<T>(gain[i]);
#pragma unroll
            for (int j = 0; j < 8; j++) v.v[j] = (v.v[j] - mean) * rstd * w.v[j];
            if constexpr (NORM != Norm::Rms) {
                const Float8 b = unpack<T>(shift[i]);
#pragma unroll
                for (int j = 0; j < 8; j++) v.v[j] += b.v[j];
            }
            if constexpr (NORM == Norm::LayerAct) {
#pragma unroll
                for (int j = 0; j < 8; j++) v.v[j] = p.scale * activate_any(p.act, v.v[j]);
            }
            y[at] = pack<T>(v);
        }
    }
}

#define EXPORT_NORM(name, NORM, ADD)                                                                      \
    EXPORT(name##_bf16, NormParams, NORM_THREADS, 1, norm<__nv_bfloat16, NORM, ADD, NORM_THREADS>)        \
    EXPORT(name##_f16, NormParams, NORM_THREADS, 1, norm<__half, NORM, ADD, NORM_THREADS>)                \
    EXPORT(name##_warp_bf16, NormParams, NORM_THREADS, 1, norm<__nv_bfloat16, NORM, ADD, 32>)             \
    EXPORT(name##_warp_f16, NormParams, NORM_THREADS, 1, norm<__half, NORM, ADD, 32>)

EXPORT_NORM(rms_norm, Norm::Rms, false)
EXPORT_NORM(layer_norm, Norm::Layer, false)
EXPORT_NORM(layer_norm_act, Norm::LayerAct, false)
EXPORT_NORM(add_rms_norm, Norm::Rms, true)
EXPORT_NORM(add_layer_norm, Norm::Layer, true)
