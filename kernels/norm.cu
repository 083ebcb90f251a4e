// rms_norm:        y = w · x / sqrt(mean(x²) + eps)
// layer_norm:      y = w · (x - mean) / sqrt(var + eps) + b
// layer_norm_act:  y = scale · act(layer_norm(x))
// add_*:           h = x + r, rounded once; y = norm of the rounded h
// row_stats:       of every 64 columns of a row their mean and squared deviations, for a product behind the norm
// rms_begin:       y = w · x, and of every 32 columns of a row of x the sum of their squares, for the same
// x, r, h, y [T, C] of T16; w, b [C]; statistics in f32, variance around the mean in a second pass, one rounding.
// C % 8 == 0, C <= 8192. CTAs of THREADS threads, each with one vector of 8 columns (`_128`, `_512`, `_1024`: C <= 8·THREADS),
// take rows in turns; the next row is on its way while one is done. An SM is full of threads of 32 registers: 13325 rows of
// 1024 take 15.0 us (17.7 with two thirds as many), 512 of 3584 3.2 (3.8). With four vectors a thread and a warp a row (no
// barriers, but 10 KB of code instead of 4) they took 15.4 and 3.1, but 1025 rows of 1024 3.2 for 2.6.
// h may be x and y may be x or r: a thread reads all its elements of a row before it writes the same ones.
// Moves 4·T·C (add: 8·T·C) + 2·C bytes: bandwidth-bound. Goal 85 % of the copy rate from T = 512; T = 1 is
// launch-bound, so w and b are loaded before the wait.
#include "common/act.cuh"
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "common/stats.cuh"

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

// The sum over a CTA, in every thread. `part` is no other sum's of the same row.
template <int THREADS>
__device__ __forceinline__ float row_sum(const float (&v)[8], float* part) {
    const float x = warp_sum(((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])));
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    if constexpr (THREADS == 128) return (part[0] + part[1]) + (part[2] + part[3]);
    return warp_sum(threadIdx.x % 32 < THREADS / 32 ? part[threadIdx.x % 32] : 0.f);
}

__device__ __forceinline__ float activate_any(uint32_t act, float x) {
    switch (act) {
        case ACT_GELU: return activate<ACT_GELU>(x);
        case ACT_RELU: return activate<ACT_RELU>(x);
        case ACT_SILU: return activate<ACT_SILU>(x);
        default: return x;
    }
}

template <class T, Norm NORM, bool ADD, int THREADS>
__device__ __forceinline__ void norm(const NormParams& p) {
    // Of two rows in turn, two sums each: what is read of one may be written again after the next barrier but one.
    __shared__ float parts[2][2][THREADS / 32];
    const uint32_t vectors = p.cols / 8;
    const bool there = threadIdx.x < vectors;
    const float share = __fdividef(1.f, float(p.cols));
    uint4 gain = {}, shift = {};
    if (there) {
        gain = static_cast<const uint4*>(p.w)[threadIdx.x];
        if constexpr (NORM != Norm::Rms) shift = static_cast<const uint4*>(p.b)[threadIdx.x];
    }
    // Before the wait: a norm is short, and the product behind it has its weights to ask for.
    pdl_trigger();
    pdl_wait();

    uint4 x = {}, r = {};
    const auto ask = [&](uint32_t row) {
        if (!there || row >= p.rows) return;
        const size_t at = size_t(row) * vectors + threadIdx.x;
        x = static_cast<const uint4*>(p.x)[at];
        if constexpr (ADD) r = static_cast<const uint4*>(p.r)[at];
    };
    ask(blockIdx.x);
#pragma unroll 1
    for (uint32_t row = blockIdx.x, turn = 0; row < p.rows; row += gridDim.x, turn ^= 1) {
        const size_t at = size_t(row) * vectors + threadIdx.x;
        Float8 f = unpack<T>(x);
        if constexpr (ADD) {
            const Float8 add = unpack<T>(r);
#pragma unroll
            for (int j = 0; j < 8; j++) f.v[j] += add.v[j];
            const uint4 h = pack<T>(f);
            if (there) static_cast<uint4*>(p.h)[at] = h;
            f = unpack<T>(h);
        }
        ask(row + gridDim.x);
        if constexpr (NORM != Norm::Rms) {
            const float mean = row_sum<THREADS>(f.v, parts[turn][0]) * share;
#pragma unroll
            for (int j = 0; j < 8; j++) f.v[j] = there ? f.v[j] - mean : 0.f;
        }
        float squares[8];
#pragma unroll
        for (int j = 0; j < 8; j++) squares[j] = f.v[j] * f.v[j];
        const float rstd = rsqrtf(fmaf(row_sum<THREADS>(squares, parts[turn][1]), share, p.eps));
        const Float8 w = unpack<T>(gain), b = unpack<T>(shift);
#pragma unroll
        for (int j = 0; j < 8; j++) f.v[j] = fmaf(f.v[j] * rstd, w.v[j], NORM == Norm::Rms ? 0.f : b.v[j]);
        if constexpr (NORM == Norm::LayerAct) {
#pragma unroll
            for (int j = 0; j < 8; j++) f.v[j] = p.scale * activate_any(p.act, f.v[j]);
        }
        if (there) static_cast<uint4*>(p.y)[at] = pack<T>(f);
    }
}

struct RowStatsParams {
    const void* x;  // [rows, cols], cols % 64 == 0
    float2* stats;  // [cols / 64, rows]
    uint32_t rows;
    uint32_t cols;
};

// A thread a vector: 8 lanes have 64 columns.
template <class T>
__device__ __forceinline__ void row_stats(const RowStatsParams& p) {
    const uint32_t vectors = p.cols / 8;
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint32_t row = uint32_t(at / vectors), vector = uint32_t(at % vectors);
    pdl_trigger();
    pdl_wait();
    const uint4 x = row < p.rows ? static_cast<const uint4*>(p.x)[at] : make_uint4(0, 0, 0, 0);
    const float2 stats = stats_of_64<T>(x);
    if (row < p.rows && vector % 8 == 0) p.stats[size_t(vector / 8) * p.rows + row] = stats;
}

EXPORT(row_stats_bf16, RowStatsParams, 256, 1, row_stats<__nv_bfloat16>)
EXPORT(row_stats_f16, RowStatsParams, 256, 1, row_stats<__half>)

struct RmsBeginParams {
    const void* x;   // [rows, cols], cols % 32 == 0
    const void* w;   // [cols]
    void* y;         // [rows, cols]
    float* squares;  // [cols / 32, rows]
    uint32_t rows;
    uint32_t cols;
};

// A thread a vector: 4 lanes have 32 columns.
template <class T>
__device__ __forceinline__ void rms_begin(const RmsBeginParams& p) {
    const uint32_t vectors = p.cols / 8;
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint32_t row = uint32_t(at / vectors), vector = uint32_t(at % vectors);
    pdl_trigger();
    pdl_wait();
    const uint4 x = row < p.rows ? static_cast<const uint4*>(p.x)[at] : make_uint4(0, 0, 0, 0);
    const float squares = squares_of_32<T>(x);
    if (row >= p.rows) return;
    static_cast<uint4*>(p.y)[at] = gained_8<T>(x, static_cast<const uint4*>(p.w)[vector]);
    if (vector % 4 == 0) p.squares[size_t(vector / 4) * p.rows + row] = squares;
}

EXPORT(rms_begin_bf16, RmsBeginParams, 256, 1, rms_begin<__nv_bfloat16>)
EXPORT(rms_begin_f16, RmsBeginParams, 256, 1, rms_begin<__half>)

// An SM full of threads where 32 registers are enough for one, as for bf16: what is on its way is what bounds many rows.
template <Norm NORM, bool ADD, int THREADS>
constexpr int CTAS_PER_SM = (!ADD && (NORM == Norm::Rms || THREADS == 128) ? 2048 : THREADS == 1024 ? 1024 : 1536) / THREADS;

#define EXPORT_NORM_OF(name, NORM, ADD, THREADS)                                            \
    EXPORT(name##_##THREADS##_bf16, NormParams, THREADS, (CTAS_PER_SM<NORM, ADD, THREADS>), \
           norm<__nv_bfloat16, NORM, ADD, THREADS>)                                         \
    EXPORT(name##_##THREADS##_f16, NormParams, THREADS, 1, norm<__half, NORM, ADD, THREADS>)
#define EXPORT_NORM(name, NORM, ADD)       \
    EXPORT_NORM_OF(name, NORM, ADD, 128)   \
    EXPORT_NORM_OF(name, NORM, ADD, 512)   \
    EXPORT_NORM_OF(name, NORM, ADD, 1024)

EXPORT_NORM(rms_norm, Norm::Rms, false)
EXPORT_NORM(layer_norm, Norm::Layer, false)
EXPORT_NORM(layer_norm_act, Norm::LayerAct, false)
EXPORT_NORM(add_rms_norm, Norm::Rms, true)
EXPORT_NORM(add_layer_norm, Norm::Layer, true)
