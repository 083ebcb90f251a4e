// What the products of one row (gemv.cu) and of few (skinny.cu) share: their parameters, and where q, k and v go.
#pragma once
#include "common/ptx.cuh"
#include "common/step.cuh"
#include "gemm/epilogue.cuh"

constexpr int ROPE_PAIRS = 128;  // D <= 256

struct GemvParams {
    static constexpr bool ROPE = false, ARG_MAX = false;
    const void* x;
    const void* w;
    const void* gain;  // [K] of T16, or null: no norm in front
    Epilogue e;
    uint32_t m, n, k;
    float eps;
    float inv_k;  // 1 / K
};

struct GemvRopeParams {
    static constexpr bool ROPE = true, ARG_MAX = false;
    GemvParams product;  // of its epilogue bias and y = q
    void* kv;
    const Step* step;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t max_rows;  // S_max
    float inv_freq[ROPE_PAIRS];
    // Of more than one row, which are those of one sequence or one of each: how position and heads of the cache go on
    // from row to row, and the heads of keys, or values, of all sequences.
    uint32_t row_step;   // 1 or 0
    uint32_t row_heads;  // 0 or G
    uint32_t all_kv_heads;
};

__device__ __forceinline__ const GemvParams& product_of(const GemvParams& p) { return p; }
__device__ __forceinline__ const GemvParams& product_of(const GemvRopeParams& p) { return p.product; }

// Elements i and i + D/2 of a head of q | k | v: where they go and by which angle they are turned.
template <class T>
struct Turn {
    T* to = nullptr;  // the head's place in q or in the cache; null: nowhere
    float cosine = 1.f, sine = 0.f;
    bool turned = false;

    // `pos` and `valid_rows` are those of the step; ONE: of one row.
    template <bool ONE>
    __device__ __forceinline__ void place(const GemvRopeParams& p, uint32_t head, uint32_t row, uint32_t pos,
                                          uint32_t valid_rows) {
        const uint32_t in_sequence = ONE ? row : row * p.row_step, position = pos + in_sequence;
        const uint32_t part = (head - p.heads) / p.kv_heads;
        if (head < p.heads) {
            to = static_cast<T*>(p.product.e.y) + (size_t(row) * p.heads + head) * p.head_dim;
        } else if (in_sequence < valid_rows && position < p.max_rows) {
            // Keys of all heads, then values: [2, G, S_max, D], or [2, B·G, S_max, D] with the heads of a sequence together.
            uint32_t at = head - p.heads;
            if (!ONE) at += part * (p.all_kv_heads - p.kv_heads) + row * p.row_heads;
            to = static_cast<T*>(p.kv) + (size_t(at) * p.max_rows + position) * p.head_dim;
        }
        turned = head < p.heads || part == 0;
    }

    __device__ __forceinline__ void put(const GemvRopeParams& p, uint32_t i, float a, float b) const {
        if (to == nullptr) return;
        to[i] = from_f32<T>(turned ? a * cosine - b * sine : a);
        to[i + p.head_dim / 2] = from_f32<T>(turned ? b * cosine + a * sine : b);
    }
};
