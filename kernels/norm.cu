// rms_norm:  y = w · x / sqrt(mean(x²) + eps)            x, y [T, C] of T16; w [C]; statistics in f32, one rounding
// one CTA of 256 per row, C % 8 == 0, C <= 8192: a row stays in registers (4 vectors of 8 per thread)
// moves 4·T·C + 2·C bytes: bandwidth-bound. Goal 85 % of the copy rate from T = 512; T = 1 is launch-bound
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"

constexpr int NORM_THREADS = 256;
constexpr int NORM_VECTORS = 4;  // per thread: C <= 256 · 4 · 8

struct RmsNormParams {
    const void* x;
    const void* w;
    void* y;
    uint32_t cols;
    float eps;
};

template <class T>
__device__ __forceinline__ void rms_norm(const RmsNormParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t vectors = p.cols / 8;
    const auto* x = static_cast<const Vec8<T>*>(p.x) + size_t(blockIdx.x) * vectors;
    const auto* w = static_cast<const Vec8<T>*>(p.w);
    auto* y = static_cast<Vec8<T>*>(p.y) + size_t(blockIdx.x) * vectors;

    Vec8<T> row[NORM_VECTORS];
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < NORM_VECTORS; i++) {
        const uint32_t at = threadIdx.x + i * NORM_THREADS;
        if (at < vectors) {
            row[i] = x[at];
#pragma unroll
            for (int j = 0; j < 8; j++) squares += to_f32(row[i].v[j]) * to_f32(row[i].v[j]);
        }
    }
    const float scale = rsqrtf(block_sum<NORM_THREADS>(squares) / p.cols + p.eps);
#pragma unroll
    for (int i = 0; i < NORM_VECTORS; i++) {
        const uint32_t at = threadIdx.x + i * NORM_THREADS;
        if (at < vectors) {
            const Vec8<T> gain = w[at];
#pragma unroll
            for (int j = 0; j < 8; j++)
                row[i].v[j] = from_f32<T>(to_f32(gain.v[j]) * (to_f32(row[i].v[j]) * scale));
            y[at] = row[i];
        }
    }
}

EXPORT(rms_norm_bf16, RmsNormParams, NORM_THREADS, 1, rms_norm<__nv_bfloat16>)
EXPORT(rms_norm_f16, RmsNormParams, NORM_THREADS, 1, rms_norm<__half>)
