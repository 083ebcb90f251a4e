// What follows a matrix product on its f32 sums:  y = act(sum + b) or r + s · (sum + b), rounded once. Every GEMM ends here.
// With an activation there is neither r nor s. Behind a LayerNorm y = act(v) or r + v, v = sum / sqrt(var + eps) + b + s, var
// that of x's row; behind an RmsNorm sum / sqrt(mean + eps) stands for the sum, and the next one may be begun (stats.cuh).
#pragma once
#include "common/act.cuh"
#include "common/ptx.cuh"
#include "common/stats.cuh"

struct Epilogue {
    const void* bias;      // [N] of T16, or null
    const void* scale;     // [cols] of T16, or null; behind a LayerNorm what its shift adds; with `gained` the gain
    const void* residual;  // of T16, or null: [M, residual_cols], added from column residual_first on. Of all columns
                           // it may be y itself: a thread reads what it then writes
    void* y;               // [M, cols] of T16, or of f32 if out_f32
    const float2* stats;   // of x, if a LayerNorm is before the product: [K / 64, M], else null
    float2* stats_of_y;    // [cols / 64, M], in kernels that have them
    const float* squares;  // of x, if its RmsNorm has been begun: [K / 32, M], else null
    float* squares_of_y;   // [cols / 32, M], with `gained` in kernels that begin the norm of y
    void* gained;          // [M, cols]: y times the gain
    uint32_t cols;         // N, or N / 2 after SwiGLU; the row pitch of y
    uint32_t act;
    uint32_t out_f32;
    // cols and 0, or multiples of 8, as cols then is.
    uint32_t residual_first, residual_cols;
    float eps;
};

// Where the residual of (row, col) is, and of what follows it: to the end of its columns in ordinary rows, 8 at least in
// those that are whole vectors. Null where nothing is added.
template <class T>
__device__ __forceinline__ const T* residual_at(const Epilogue& e, uint32_t row, uint32_t col) {
    const uint32_t at = col - e.residual_first;
    const bool some = e.residual != nullptr && at < e.residual_cols;
    return some ? static_cast<const T*>(e.residual) + size_t(row) * e.residual_cols + at : nullptr;
}

template <class T>
struct alignas(2 * sizeof(T)) Pair {
    T v[2];
};

// Element `at` of a vector that may be absent or end before `at`.
template <class T>
__device__ __forceinline__ float value_or(const void* vector, uint32_t at, uint32_t len, float otherwise) {
    return vector != nullptr && at < len ? to_f32(static_cast<const T*>(vector)[at]) : otherwise;
}

// Writes r + s · v at (row, col).
template <class T>
__device__ __forceinline__ void put(const Epilogue& e, uint32_t row, uint32_t col, float v, float s) {
    const size_t at = size_t(row) * e.cols + col;
    v *= s;
    if (const T* r = residual_at<T>(e, row, col)) v += to_f32(*r);
    if (e.out_f32)
        static_cast<float*>(e.y)[at] = v;
    else
        static_cast<T*>(e.y)[at] = from_f32<T>(v);
}

// Writes two neighbours, `col` even. Columns beyond the last are dropped.
template <class T>
__device__ __forceinline__ void put_pair(const Epilogue& e, uint32_t row, uint32_t col, float v0, float v1,
                                         float s0, float s1) {
    if (e.cols % 2 != 0) {
        // The pitch is odd: pairs are not aligned.
        if (col < e.cols) put<T>(e, row, col, v0, s0);
        if (col + 1 < e.cols) put<T>(e, row, col + 1, v1, s1);
        return;
    }
    if (col >= e.cols) return;
    const size_t at = (size_t(row) * e.cols + col) / 2;
    v0 *= s0;
    v1 *= s1;
    if (const T* from = residual_at<T>(e, row, col)) {
        const Pair<T> r = *reinterpret_cast<const Pair<T>*>(from);
        v0 += to_f32(r.v[0]);
        v1 += to_f32(r.v[1]);
    }
    if (e.out_f32)
        static_cast<Pair<float>*>(e.y)[at] = {{v0, v1}};
    else
        static_cast<Pair<T>*>(e.y)[at] = {{from_f32<T>(v0), from_f32<T>(v1)}};
}
