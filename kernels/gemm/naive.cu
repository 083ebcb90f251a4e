// gemm_naive:  y = act(a wᵀ + b) or r + s · (a wᵀ + b)     a [M, K], w [N, K], y [M, cols] of T16 (y of f32 if asked);
//              sums in f32
// one CTA per 16 x 16 outputs, one thread per output, tiles of 16 of K in shared memory, element by element: the
// definition of the family, right for every M, N, K. It serves only shapes without 16-byte rows (K % 8 != 0).
// reads (M·K·cols + N·K·M) / 16 elements. No speed goal
#include "common/export.cuh"
#include "gemm/params.cuh"

constexpr int NAIVE_TILE = 16;

template <class T, class Rows>
__device__ __forceinline__ void gemm_naive(const GemmParams& p) {
    pdl_wait();
    pdl_trigger();
    __shared__ float a_tile[NAIVE_TILE][NAIVE_TILE + 1];
    __shared__ float w_tile[2][NAIVE_TILE][NAIVE_TILE + 1];
    const auto* a = static_cast<const T*>(p.a);
    const auto* w = static_cast<const T*>(p.w);
    const bool gated = p.e.act == ACT_SWIGLU;
    const uint32_t tx = threadIdx.x % NAIVE_TILE, ty = threadIdx.x / NAIVE_TILE;
    const uint32_t tiles_n = (p.e.cols + NAIVE_TILE - 1) / NAIVE_TILE;
    const uint32_t row = blockIdx.x / tiles_n * NAIVE_TILE + ty;
    const uint32_t col = blockIdx.x % tiles_n * NAIVE_TILE + tx;
    // The weight row behind a column; SwiGLU: the gate's, the up row is 8 further on.
    const auto weight_row = [&](uint32_t c) { return gated ? c / 8 * 16 + c % 8 : c; };
    const uint32_t loaded = weight_row(col - tx + ty);

    float sum = 0.f, up = 0.f;
    for (uint32_t k0 = 0; k0 < p.k; k0 += NAIVE_TILE) {
        const uint32_t k = k0 + tx;
        const uint32_t at = row < p.m && k < p.k ? Rows::row(p, row) + Rows::along(p, k) : p.a_len;
        a_tile[ty][tx] = at < p.a_len ? to_f32(a[at]) : 0.f;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t n = loaded + 8 * i;
            const bool there = n < p.n && k < p.k && (i == 0 || gated);
            w_tile[i][ty][tx] = there ? to_f32(w[size_t(n) * p.k + k]) : 0.f;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < NAIVE_TILE; i++) {
            sum += a_tile[ty][i] * w_tile[0][tx][i];
            up += a_tile[ty][i] * w_tile[1][tx][i];
        }
        __syncthreads();
    }
    if (row >= p.m || col >= p.e.cols) return;
    const uint32_t n = weight_row(col);
    float s = value_or<T>(p.e.scale, col, p.e.cols, 1.f);
    if (p.e.stats != nullptr) {
        sum = fmaf(sum, rstd_of(p.e.stats + row, p.m, p.k, p.e.eps), s);
        s = 1.f;
    }
    if (p.e.squares != nullptr) {
        const float rstd = rms_rstd_of(p.e.squares + row, p.m, p.k, p.e.eps);
        sum *= rstd, up *= rstd;
    }
    float v = sum + value_or<T>(p.e.bias, n, p.n, 0.f);
    v = gated ? silu(v) * (up + value_or<T>(p.e.bias, n + 8, p.n, 0.f)) : activate(p.e.act, v);
    put<T>(p.e, row, col, v, s);
}

EXPORT(gemm_naive_bf16, GemmParams, 256, 1, gemm_naive<__nv_bfloat16, MatrixRows>)
EXPORT(gemm_naive_f16, GemmParams, 256, 1, gemm_naive<__half, MatrixRows>)
EXPORT(gemm_naive_image_bf16, GemmParams, 256, 1, gemm_naive<__nv_bfloat16, ImageRows>)
EXPORT(gemm_naive_image_f16, GemmParams, 256, 1, gemm_naive<__half, ImageRows>)
