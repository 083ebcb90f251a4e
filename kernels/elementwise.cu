// unary:  y_i = by · act(x_i)                       x, y: `count` elements of T16
// add:    y_i = a_i + b_{i mod period}              a, y: `count` elements of T16; b: `period` elements
// mul:    y_i = a_i · b_{i mod period}              period = count: two tensors; C: a row; R · C: a table of rows
// f32 inside, one rounding. period % 8 == 0 or period = count; count < 2^35. y may be a, or b when period = count.
// A CTA of 256 takes 1024 vectors of 8, four per thread, loaded before the first is stored.
// Moves 4·count (two tensors: 6·count) bytes: bandwidth-bound. Goal 85 % of the copy rate from 16 MB.
#include "common/act.cuh"
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"

constexpr int ELEM_THREADS = 256;
constexpr int ELEM_VECTORS = 4;  // per thread

struct UnaryParams {
    const void* x;
    void* y;
    uint64_t count;
    uint32_t act;
    float by;
};

struct BinaryParams {
    const void* a;
    const void* b;
    void* y;
    uint64_t count;
    uint64_t period;
};

// Vector i of this thread.
__device__ __forceinline__ uint32_t vector_at(int i) {
    return (blockIdx.x * ELEM_VECTORS + i) * ELEM_THREADS + threadIdx.x;
}

template <class T, Act ACT>
__device__ __forceinline__ void unary_act(const UnaryParams& p) {
    const auto* x = static_cast<const uint4*>(p.x);
    auto* y = static_cast<uint4*>(p.y);
    const uint32_t vectors = uint32_t(p.count / 8);
    uint4 v[ELEM_VECTORS];
#pragma unroll
    for (int i = 0; i < ELEM_VECTORS; i++)
        if (vector_at(i) < vectors) v[i] = x[vector_at(i)];
#pragma unroll
    for (int i = 0; i < ELEM_VECTORS; i++) {
        if (vector_at(i) < vectors) {
Float8 f = unpack<T>(v[i]);
#pragma unroll
            for (int j = 0; j < 8; j++) f.v[j] = p.by * activate<ACT>(f.v[j]);
            y[vector_at(i)] = pack<T>(f);
        }
    }
    const uint64_t rest = uint64_t(vectors) * 8 + threadIdx.x;  // the last count % 8 elements
    if (blockIdx.x == 0 && rest < p.count) {
        const float last = to_f32(static_cast<const T*>(p.x)[rest]);
        static_cast<T*>(p.y)[rest] = from_f32<T>(p.by * activate<ACT>(last));
    }
}

template <class T>
__device__ __forceinline__ void unary(const UnaryParams& p) {
    pdl_wait();
    pdl_trigger();
    switch (p.act) {
        case ACT_GELU: return unary_act<T, ACT_GELU>(p);
        case ACT_RELU: return unary_act<T, ACT_RELU>(p);
        case ACT_SILU: return unary_act<T, ACT_SILU>(p);
        default: return unary_act<T, ACT_NONE>(p);
    }
}

template <bool MUL>
__device__ __forceinline__ float combine(float a, float b) {
    return MUL ? a * b : a + b;
}

template <class T, bool MUL>
__device__ __forceinline__ void binary(const BinaryParams& p) {
    pdl_wait();
    pdl_trigger();
    const auto* a = static_cast<const uint4*>(p.a);
    const auto* b = static_cast<const uint4*>(p.b);
    auto* y = static_cast<uint4*>(p.y);
    const uint32_t vectors = uint32_t(p.count / 8), period = uint32_t(p.period / 8);
    const bool whole = p.period == p.count;
    uint4 va[ELEM_VECTORS], vb[ELEM_VECTORS];
#pragma unroll
    for (int i = 0; i < ELEM_VECTORS; i++) {
        const uint32_t at = vector_at(i);
        if (at < vectors) {
            va[i] = a[at];
            vb[i] = b[whole ? at : at % period];
        }
    }
#pragma unroll
    for (int i = 0; i < ELEM_VECTORS; i++) {
        if (vector_at(i) < vectors) {
Float8 f = unpack<T>(va[i]);
            const Float8 g = unpack<T>(vb[i]);
#pragma unroll
            for (int j = 0; j < 8; j++) f.v[j] = combine<MUL>(f.v[j], g.v[j]);
            y[vector_at(i)] = pack<T>(f);
        }
    }
    const uint64_t rest = uint64_t(vectors) * 8 + threadIdx.x;  // only when period = count
    if (blockIdx.x == 0 && rest < p.count) {
        const float x = to_f32(static_cast<const T*>(p.a)[rest]), z = to_f32(static_cast<const T*>(p.b)[rest]);
        static_cast<T*>(p.y)[rest] = from_f32<T>(combine<MUL>(x, z));
    }
}

EXPORT(unary_bf16, UnaryParams, ELEM_THREADS, 1, unary<__nv_bfloat16>)
EXPORT(unary_f16, UnaryParams, ELEM_THREADS, 1, unary<__half>)
EXPORT(add_bf16, BinaryParams, ELEM_THREADS, 1, binary<__nv_bfloat16, false>)
EXPORT(add_f16, BinaryParams, ELEM_THREADS, 1, binary<__half, false>)
EXPORT(mul_bf16, BinaryParams, ELEM_THREADS, 1, binary<__nv_bfloat16, true>)
EXPORT(mul_f16, BinaryParams, ELEM_THREADS, 1, binary<__half, true>)
