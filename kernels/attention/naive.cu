// naive:  out_i = Σ_j p_ij v_j,  p_i = softmax_j(scale·q_i·k_j + bias_j)         the readable one, and the fallback
// q, k, v, out of T16 as AttentionParams addresses them, rows aligned to 16 bytes; bias f32 [H, T]; D % 8 == 0, D <= 256
//
// One warp per (row, head), four warps per CTA; grid = (ceil(rows of the longest sequence / 4), H, sequences). 32 keys at
// a time: each lane takes the dot product with a key of its own, then the lanes share out the columns of v. Online softmax
// in f32.
// Every K and V row is read once per query from L2 or L1: no goal but to be right.
#include "attention/params.cuh"
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"

constexpr int NAIVE_WARPS = 4, NAIVE_THREADS = 32 * NAIVE_WARPS, NAIVE_MAX_D = 256;

template <class T>
__device__ __forceinline__ void naive(const BatchParams& params) {
    const AttentionParams& p = params.a;
    const Lengths& lengths = params.lengths;
    __shared__ float q_rows[NAIVE_WARPS][NAIVE_MAX_D];
    pdl_wait();
    pdl_trigger();
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, d = int(p.head_dim);
    const int i = int(blockIdx.x) * NAIVE_WARPS + warp, head = int(blockIdx.y);
    const bool alike = lengths.tiles == 0;
    const size_t row0 = alike ? size_t(blockIdx.z) * p.rows : lengths.row0[blockIdx.z];
    const int rows = int(alike ? p.rows : lengths.rows[blockIdx.z]);
    if (i >= rows) return;
    const Extent e = extent(p, rows);
    auto* out = static_cast<T*>(p.out) + ((row0 + i) * p.heads + head) * d;
    if (i >= e.valid) {
        for (int x = lane; x < d; x += 32) out[x] = from_f32<T>(0.f);
        return;
    }

    const auto* q = static_cast<const T*>(p.q) + (row0 + i) * p.q_row + head * d;
    const size_t kv0 = (p.step ? 0 : row0 * p.kv_row) + (head / p.group) * size_t(p.kv_head);
    const auto* k = static_cast<const T*>(p.k) + kv0;
    const auto* v = static_cast<const T*>(p.v) + kv0;
    const float* bias = p.bias ? p.bias + (size_t(head) * p.bias_row + row0) : nullptr;
    float* q_row = q_rows[warp];
    for (int x = lane; x < d; x += 32) q_row[x] = to_f32(q[x]) * p.scale * LOG2E;
    __syncwarp();

    float o[NAIVE_MAX_D / 32] = {}, m = -INFINITY, l = 0.f;
    const int begin = first_key(p, e.pos + i), end = end_key(p, e.pos + i, e.keys);
    for (int j0 = begin; j0 < end; j0 += 32) {
        const int j = j0 + lane;
        float s = -INFINITY;
        if (j < end) {
            s = bias ? bias[j] * LOG2E : 0.f;
            const auto* row = reinterpret_cast<const Vec8<T>*>(k + size_t(j) * p.kv_row);
            for (int x = 0; x < d / 8; x++) {
                const Vec8<T> part = row[x];
#pragma unroll
                for (int y = 0; y < 8; y++) s += q_row[x * 8 + y] * to_f32(part.v[y]);
            }
        }
        const float high = fmaxf(m, warp_max(s)), ref = high == -INFINITY ? 0.f : high;
        const float shrink = exp2f(m - ref), weight = exp2f(s - ref);
        m = high;
        l = l * shrink + warp_sum(weight);
#pragma unroll
        for (int x = 0; x < NAIVE_MAX_D / 32; x++) o[x] *= shrink;
        for (int n = 0; n < min(32, end - j0); n++) {
            const float w = __shfl_sync(0xffffffffu, weight, n);
            const T* row = v + size_t(j0 + n) * p.kv_row;
#pragma unroll
            for (int x = 0; x < NAIVE_MAX_D / 32; x++)
                if (lane + 32 * x < d) o[x] += w * to_f32(row[lane + 32 * x]);
        }
    }
    const float inv = l > 0.f ? 1.f / l : 0.f;
#pragma unroll
    for (int x = 0; x < NAIVE_MAX_D / 32; x++)
        if (lane + 32 * x < d) out[lane + 32 * x] = from_f32<T>(o[x] * inv);
}

EXPORT(naive_bf16, BatchParams, NAIVE_THREADS, 1, naive<__nv_bfloat16>)
EXPORT(naive_f16, BatchParams, NAIVE_THREADS, 1, naive<__half>)
