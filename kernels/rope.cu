// rope:  per head, pairs (i, i + D/2) turned by (step.pos + t) · inv_freq[i]:
//        y_i = x_i cos - x_{i+D/2} sin,  y_{i+D/2} = x_{i+D/2} cos + x_i sin
//   x [T, (H + 2G) · D] of T16: H query heads, G key heads, G value heads; y [T, H · D]; kv [2, B·G, S_max, D]
//   The T rows are those of B sequences, one after the other, t counts within one; its heads in the cache lie together.
//   Query heads are turned into y, key heads turned into kv[0], value heads copied to kv[1], at rows step.pos + t of
//   the cache for t < step.valid_rows. With G = 0 it is plain rotation. y may be x when G = 0. With G > 0 the columns of
//   every head of x stand in pairs: elements 0..8, D/2..D/2 + 8, 8..16, and so on.
// rope_table:  cosine and sine of all angles of a run, table [T, D/2, 2] of f32, for products that turn their sums
// kv_append:  k, v [T, G · D] copied to those rows of kv
// grid (T / B, CTAs of a row, B)
// D % 16 == 0, D <= 256. Angles in f32: the host rounds inv_freq as the reference does, sincosf is accurate to 2 ulp
// at any position (no fast-math).
// A CTA of 256 takes one row, or a part of it when there are few rows; sines once per CTA, in shared memory.
// Moves 4·T·(H + 2G)·D bytes: bandwidth-bound at T >= 512, launch-bound at T = 1.
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/step.cuh"
#include "common/vec.cuh"

constexpr int ROPE_THREADS = 256;
constexpr int ROPE_PAIRS = 128;  // D <= 256

struct RopeParams {
    const void* x;
    void* y;
    void* kv;  // null when G = 0
    const Step* step;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t max_rows;  // S_max
    float inv_freq[ROPE_PAIRS];
};

struct RopeTableParams {
    float2* table;
    const Step* step;
    uint32_t pairs;
    uint32_t unused;
    float inv_freq[ROPE_PAIRS];
};

struct KvAppendParams {
    const void* k;
    const void* v;
    void* kv;
    const Step* step;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t max_rows;
};

// First vector of row `at` of head `head` of this CTA's sequence in keys (part 0) or values (part 1).
__device__ __forceinline__ uint4* cache_row(void* kv, uint32_t part, uint32_t head, uint32_t at, uint32_t kv_heads,
                                            uint32_t max_rows, uint32_t head_dim) {
    const size_t row = (size_t(part * gridDim.z + blockIdx.z) * kv_heads + head) * max_rows + at;
    return static_cast<uint4*>(kv) + row * (head_dim / 8);
}

template <class T>
__device__ __forceinline__ void rope(const RopeParams& p) {
    __shared__ float2 turn[ROPE_PAIRS];  // cosine, sine
    const uint32_t pairs = p.head_dim / 2;
    const float freq = threadIdx.x < pairs ? p.inv_freq[threadIdx.x] : 0.f;
    pdl_wait();
    pdl_trigger();

    const uint32_t t = blockIdx.x;
    const uint32_t position = p.step->pos + t;
    if (threadIdx.x < pairs) {
        float2 cs;
        sincosf(float(position) * freq, &cs.y, &cs.x);
        turn[threadIdx.x] = cs;
    }
    __syncthreads();

    const bool cached = t < p.step->valid_rows && position < p.max_rows;
    const uint32_t half = p.head_dim / 16;  // vectors in half a head
    const uint32_t heads = p.heads + 2 * p.kv_heads;
    const bool paired = p.kv_heads > 0;
    const size_t row = size_t(blockIdx.z) * gridDim.x + t;
    const auto* x = static_cast<const uint4*>(p.x) + row * heads * half * 2;
    auto* y = static_cast<uint4*>(p.y) + row * p.heads * half * 2;
    for (uint32_t i = blockIdx.y * ROPE_THREADS + threadIdx.x; i < heads * half; i += gridDim.y * ROPE_THREADS) {
        const uint32_t head = i / half, at = i % half;
        const uint4* from = x + head * half * 2 + (paired ? 2 * at : at);
        uint4 a = from[0], b = from[paired ? 1 : half];
        if (head < p.heads + p.kv_heads) {
            Float8 lo = unpack<T>(a), hi = unpack<T>(b);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float2 cs = turn[at * 8 + j];
                const float was = lo.v[j];
                lo.v[j] = was * cs.x - hi.v[j] * cs.y;
                hi.v[j] = hi.v[j] * cs.x + was * cs.y;
            }
            a = pack<T>(lo);
            b = pack<T>(hi);
        }
        uint4* to = y + head * half * 2;
        if (head >= p.heads) {
            if (!cached) continue;
            const uint32_t part = (head - p.heads) / p.kv_heads, g = (head - p.heads) % p.kv_heads;
            to = cache_row(p.kv, part, g, position, p.kv_heads, p.max_rows, p.head_dim);
        }
        to[at] = a;
        to[half + at] = b;
    }
}

// A CTA a row.
__device__ __forceinline__ void rope_table(const RopeTableParams& p) {
    const uint32_t i = threadIdx.x;
    // The step of a run is older than its first kernel.
    const uint32_t position = __ldcg(&p.step->pos) + blockIdx.x;
    float2 cs = {1.f, 0.f};
    if (i < p.pairs) sincosf(float(position) * p.inv_freq[i], &cs.y, &cs.x);
    pdl_wait();
    pdl_trigger();
    if (i < p.pairs) p.table[size_t(blockIdx.x) * p.pairs + i] = cs;
}

__device__ __forceinline__ void kv_append(const KvAppendParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t t = blockIdx.x;
    const uint32_t position = p.step->pos + t;
    if (t >= p.step->valid_rows || position >= p.max_rows) return;
    const uint32_t vectors = p.head_dim / 8;
    const size_t row = (size_t(blockIdx.z) * gridDim.x + t) * p.kv_heads * vectors;
    for (uint32_t i = threadIdx.x; i < p.kv_heads * vectors; i += ROPE_THREADS) {
        const uint32_t head = i / vectors, at = i % vectors;
        const uint4 k = static_cast<const uint4*>(p.k)[row + i], v = static_cast<const uint4*>(p.v)[row + i];
        cache_row(p.kv, 0, head, position, p.kv_heads, p.max_rows, p.head_dim)[at] = k;
        cache_row(p.kv, 1, head, position, p.kv_heads, p.max_rows, p.head_dim)[at] = v;
    }
}

EXPORT(rope_bf16, RopeParams, ROPE_THREADS, 1, rope<__nv_bfloat16>)
EXPORT(rope_f16, RopeParams, ROPE_THREADS, 1, rope<__half>)
EXPORT(rope_table_f32, RopeTableParams, ROPE_PAIRS, 1, rope_table)
EXPORT(kv_append_bf16, KvAppendParams, ROPE_THREADS, 1, kv_append)
EXPORT(kv_append_f16, KvAppendParams, ROPE_THREADS, 1, kv_append)
