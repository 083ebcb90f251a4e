// decode:  out_i = Σ_j p_ij v_j,  p_i = softmax_{j <= pos+i}(scale·q_i·k_j)      few rows against a long cache
// q, out [T, H·D] of T16, k and v [G, S_max, D] of T16; D = 64 or 128; any group H/G; scale > 0; pos, kv_len from Step
//
// The T·H/G queries of a kv head are rows of m16 tiles: K and V are read once for 16 of them. grid = (splits, row tiles,
// G). A CTA takes an equal share of kv_len, its 4 warps every fourth block of 16 keys, each with a cp.async ring of its
// own and no barrier; they merge through shared memory. With one working split the CTA writes the result; else it
// writes m, l and O in f32, and the last CTA of a row tile (a counter, left at zero) adds the splits in their order:
// the same inputs give the same bits. Rows from valid_rows on give 0; keys from kv_len on are zeros in shared memory.
// moves 4·G·D·kv_len bytes + 8·H·D·splits: bandwidth-bound from 8192 keys, latency-bound below.
// Goal: 85 % of the read rate at 32768 keys; 5-6 us at 2048.
#include "attention/params.cuh"
#include "attention/tile.cuh"
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"

constexpr int DECODE_WARPS = 4, DECODE_THREADS = 32 * DECODE_WARPS, KEYS = 16;

// Shared memory: the rings, 16 KB·STAGES (D = 64) or 32 KB·STAGES (D = 128); the merge reuses them. 128 bytes to align.
template <class T, int D>
__device__ __forceinline__ void decode(const AttentionParams& p) {
    static_assert(D == 64 || D == 128);
    constexpr int STAGES = D == 64 ? 4 : 3, CHUNKS = D / 8, PER_LANE = D / 32, PITCH = D + 8;
    constexpr uint32_t TILE_BYTES = KEYS * D * 2, RING_BYTES = STAGES * 2 * TILE_BYTES;
    static_assert(DECODE_WARPS * RING_BYTES >= DECODE_WARPS * 16 * (PITCH + 2) * sizeof(float));
    extern __shared__ uint8_t decode_smem[];
    __shared__ bool is_last;
    const uint32_t misaligned = smem_addr(decode_smem) & 127u;
    uint8_t* const base = decode_smem + (misaligned ? 128u - misaligned : 0u);
    pdl_wait();
    pdl_trigger();

    const Extent e = extent(p);
    const int pairs = int(p.rows * p.group), p0 = int(blockIdx.y) * 16, kv = int(blockIdx.z), splits = int(gridDim.x);
    constexpr int STEP = KEYS * DECODE_WARPS;
    const int share = max(((e.keys + splits - 1) / splits + STEP - 1) / STEP * STEP, STEP);
    const int working = max((e.keys + share - 1) / share, 1), split = int(blockIdx.x);
    if (split >= working) return;
    const int end = min((split + 1) * share, e.keys);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;

    const auto* k = static_cast<const T*>(p.k) + kv * size_t(p.kv_head) + (lane % CHUNKS) * 8;
    const auto* v = static_cast<const T*>(p.v) + kv * size_t(p.kv_head) + (lane % CHUNKS) * 8;
    const uint32_t ring = smem_addr(base) + warp * RING_BYTES;
    int j_load = split * share + warp * KEYS;
    uint32_t load_at = ring;
    // Every call is one group, also the empty ones behind the end, so that a wait counts tiles.
    const auto load = [&] {
        if (j_load < end) {
#pragma unroll
            for (int i = 0; i < KEYS * CHUNKS / 32; i++) {
                const int row = i * (32 / CHUNKS) + lane / CHUNKS, j = j_load + row;
                const bool keep = j < e.keys;
                const size_t from = size_t(keep ? j : 0) * p.kv_row;
                const uint32_t to = load_at + chunk_at<D>(row, lane % CHUNKS);
                cp_async16(to, k + from, keep);
                cp_async16(to + TILE_BYTES, v + from, keep);
            }
        }
        cp_async_commit();
        j_load += STEP;
        load_at += 2 * TILE_BYTES;
        if (load_at == ring + RING_BYTES) load_at = ring;
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) load();

    // Query rows g and g + 8 of the tile, straight into A fragments.
    uint32_t q_frag[D / 16][4];
    int row_end[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int pair = p0 + g + 8 * r, row = pair / int(p.group), head = kv * int(p.group) + pair % int(p.group);
        const bool keep = pair < pairs && row < e.valid;
        row_end[r] = keep ? min(e.pos + row + 1, e.keys) : 0;
        const auto* q = static_cast<const T*>(p.q) + size_t(keep ? row : 0) * p.q_row + (keep ? head : 0) * D + 2 * t;
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++) {
            q_frag[kk][r] = keep ? *reinterpret_cast<const uint32_t*>(q + kk * 16) : 0u;
            q_frag[kk][2 + r] = keep ? *reinterpret_cast<const uint32_t*>(q + kk * 16 + 8) : 0u;
        }
    }

    const float c = p.scale * LOG2E;
    const uint32_t k_lane = lane_chunks_first<D>(lane), v_lane = TILE_BYTES + lane_rows_first<D>(lane);
    float o[D / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {};
    uint32_t at = ring;
    for (int j0 = split * share + warp * KEYS; j0 < end; j0 += STEP) {
        cp_async_wait<STAGES - 2>();
        __syncwarp();  // the tile is there for all lanes, and all have done with the one that load() overwrites
        load();
        float s[2][4] = {};
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++) {
            uint32_t b[4];
            ldmatrix(b, step_columns(at + k_lane, kk));
            mma<T>(s[0], q_frag[kk], b[0], b[1]);
            mma<T>(s[1], q_frag[kk], b[2], b[3]);
        }
        if (j0 + KEYS > e.pos + 1) {  // else every row with a token sees the whole tile
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (j0 + n * 8 + 2 * t + (i & 1) >= row_end[i >> 1]) s[n][i] = -INFINITY;
        }
        const float low = softmax_step<0>(s, c, m[0], l[0]), high = softmax_step<1>(s, c, m[1], l[1]);
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
            o[d][0] *= low, o[d][1] *= low;
            o[d][2] *= high, o[d][3] *= high;
        }
        const uint32_t a[4] = {pack2<T>(s[0][0], s[0][1]), pack2<T>(s[0][2], s[0][3]), pack2<T>(s[1][0], s[1][1]),
                               pack2<T>(s[1][2], s[1][3])};
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t b[4];
            ldmatrix_trans(b, step_columns(at + v_lane, d));
            mma<T>(o[2 * d], a, b[0], b[1]);
            mma<T>(o[2 * d + 1], a, b[2], b[3]);
        }
        at += 2 * TILE_BYTES;
        if (at == ring + RING_BYTES) at = ring;
    }

    // Merge the warps: O [warp][16][PITCH], then (m·c, l) [warp][16].
    cp_async_wait<0>();
    __syncthreads();
    auto* o_part = reinterpret_cast<float*>(base);
    auto* ml_part = reinterpret_cast<float2*>(o_part + DECODE_WARPS * 16 * PITCH);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = warp * 16 + g + 8 * r;
        const float sum = quad_sum(l[r]);
        if (t == 0) ml_part[row] = {m[r] == -INFINITY ? -INFINITY : m[r] * c, sum};
#pragma unroll
        for (int d = 0; d < D / 8; d++)
            *reinterpret_cast<float2*>(o_part + row * PITCH + d * 8 + 2 * t) = {o[d][2 * r], o[d][2 * r + 1]};
    }
    __syncthreads();

    const auto write = [&](int pair, const float* x, float l_all) {
        const int row = pair / int(p.group), head = kv * int(p.group) + pair % int(p.group);
        const float inv = row < e.valid && l_all > 0.f ? 1.f / l_all : 0.f;
        auto* to = static_cast<T*>(p.out) + (size_t(row) * p.heads + head) * D + lane * PER_LANE;
#pragma unroll
        for (int i = 0; i < PER_LANE; i += 2)
            *reinterpret_cast<uint32_t*>(to + i) = pack2<T>(x[i] * inv, x[i + 1] * inv);
    };
    const int tile = kv * int(gridDim.y) + int(blockIdx.y), tiles = int(gridDim.z * gridDim.y);
    float* const o_split = p.partial + (size_t(tile) * splits) * 16 * D;
    auto* const ml_split = reinterpret_cast<float2*>(p.partial + size_t(tiles) * splits * 16 * D) + tile * splits * 16;
    for (int r = warp; r < min(16, pairs - p0); r += DECODE_WARPS) {
        float high = -INFINITY;
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) high = fmaxf(high, ml_part[w * 16 + r].x);
        const float ref = high == -INFINITY ? 0.f : high;
        float x[PER_LANE] = {}, l_all = 0.f;
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            const float2 ml = ml_part[w * 16 + r];
            const float weight = exp2_approx(ml.x - ref);
            l_all += ml.y * weight;
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) x[i] += o_part[(w * 16 + r) * PITCH + lane * PER_LANE + i] * weight;
        }
        if (working == 1) {
            write(p0 + r, x, l_all);
        } else {
            float* to = o_split + (split * 16 + r) * D + lane * PER_LANE;
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) to[i] = x[i];
            if (lane == 0) ml_split[split * 16 + r] = {high, l_all};
        }
    }
    if (working == 1) return;

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(p.counters + tile, 1u) == uint32_t(working - 1);
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    if (threadIdx.x == 0) p.counters[tile] = 0;
    for (int r = warp; r < min(16, pairs - p0); r += DECODE_WARPS) {
        float high = -INFINITY;
        for (int s = lane; s < working; s += 32) high = fmaxf(high, __ldcg(ml_split + s * 16 + r).x);
        high = warp_max(high);
        const float ref = high == -INFINITY ? 0.f : high;
        float x[PER_LANE] = {}, l_all = 0.f;
        for (int s0 = 0; s0 < working; s0 += 32) {
            float weight = 0.f;
            if (s0 + lane < working) {
                const float2 ml = __ldcg(ml_split + (s0 + lane) * 16 + r);
                weight = exp2_approx(ml.x - ref);
                l_all += ml.y * weight;
            }
            const int n = min(32, working - s0);
#pragma unroll 8
            for (int s = 0; s < n; s++) {
                const float* from = o_split + ((s0 + s) * 16 + r) * D + lane * PER_LANE;
                const float w = __shfl_sync(0xffffffffu, weight, s);
                if constexpr (PER_LANE == 4) {
                    const float4 part = __ldcg(reinterpret_cast<const float4*>(from));
                    x[0] += part.x * w, x[1] += part.y * w, x[2] += part.z * w, x[3] += part.w * w;
                } else {
                    const float2 part = __ldcg(reinterpret_cast<const float2*>(from));
                    x[0] += part.x * w, x[1] += part.y * w;
                }
            }
        }
        write(p0 + r, x, warp_sum(l_all));
    }
}

#define EXPORT_DECODE(d)                                                                      \
    EXPORT(decode_d##d##_bf16, AttentionParams, DECODE_THREADS, 2, decode<__nv_bfloat16, d>)  \
    EXPORT(decode_d##d##_f16, AttentionParams, DECODE_THREADS, 2, decode<__half, d>)

EXPORT_DECODE(64)
EXPORT_DECODE(128)
