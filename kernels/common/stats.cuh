// The way of a LayerNorm around its kernel: the product before it says of every 64 columns of a row of its y their mean and
// the sum of their squared deviations, the product behind it, whose w has the norm's gain in it and rows without a mean,
// multiplies its sums by 1 / sqrt(var + eps).
//
// An RmsNorm wants less: the product before it gives y · gain besides y, and sums of squares of every 32 columns of a row of
// y; the product behind it multiplies its sums by 1 / sqrt(mean(y²) + eps).
#pragma once
#include "common/vec.cuh"

constexpr uint32_t STATS_COLUMNS = 64, SQUARES_COLUMNS = 32;

// Mean and squared deviations of the 64 columns that 8 neighbouring lanes have 8 of each.
template <class T>
__device__ __forceinline__ float2 stats_of_64(const uint4& columns) {
    const Float8 f = unpack<T>(columns);
    float sum = ((f.v[0] + f.v[1]) + (f.v[2] + f.v[3])) + ((f.v[4] + f.v[5]) + (f.v[6] + f.v[7]));
#pragma unroll
    for (int lane = 1; lane < 8; lane *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    const float mean = sum * (1.f / STATS_COLUMNS);
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) squares = fmaf(f.v[i] - mean, f.v[i] - mean, squares);
#pragma unroll
    for (int lane = 1; lane < 8; lane *= 2) squares += __shfl_xor_sync(0xffffffffu, squares, lane);
    return make_float2(mean, squares);
}

// 1 / sqrt(var + eps) of a row of k columns; `stats` are its first, those of its next columns lie `rows` further on.
__device__ __forceinline__ float rstd_of(const float2* stats, uint32_t rows, uint32_t k, float eps) {
    const uint32_t parts = k / STATS_COLUMNS;
    // Deviations of the means from the first of them: of means that are far from zero no digits are lost.
    const float first = __ldcg(stats).x;
    float squares = 0.f, away = 0.f, away_squared = 0.f;
#pragma unroll 16
    for (uint32_t i = 0; i < parts; i++) {
        const float2 part = __ldcg(stats + size_t(i) * rows);
        const float d = part.x - first;
        squares += part.y, away += d, away_squared = fmaf(d, d, away_squared);
    }
    const float between = away_squared - __fdividef(away * away, float(parts));
    return rsqrtf(__fdividef(fmaf(float(STATS_COLUMNS), fmaxf(between, 0.f), squares), float(k)) + eps);
}

// The sum of the squares of the 32 columns that 4 neighbouring lanes have 8 of each.
template <class T>
__device__ __forceinline__ float squares_of_32(const uint4& columns) {
    const Float8 f = unpack<T>(columns);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum = fmaf(f.v[i], f.v[i], sum);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

// 8 columns, each times its gain.
template <class T>
__device__ __forceinline__ uint4 gained_8(const uint4& columns, const uint4& gains) {
    Float8 f = unpack<T>(columns);
    const Float8 g = unpack<T>(gains);
#pragma unroll
    for (int i = 0; i < 8; i++) f.v[i] *= g.v[i];
    return pack<T>(f);
}

// 1 / sqrt(mean + eps) of a row of k columns; `squares` are its first, those of its next columns lie `rows` further on.
__device__ __forceinline__ float rms_rstd_of(const float* squares, uint32_t rows, uint32_t k, float eps) {
    const uint32_t parts = k / SQUARES_COLUMNS;
    float sum = 0.f;
#pragma unroll 8
    for (uint32_t i = 0; i < parts; i++) sum += __ldcg(squares + size_t(i) * rows);
    return rsqrtf(__fdividef(sum, float(k)) + eps);
}
