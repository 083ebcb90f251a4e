// archs: 90a
// decode_cluster:  out_i = Σ_j p_ij v_j,  p_i = softmax_{j <= pos+i}(scale·q_i·k_j)          as decode.cu, in clusters
// q, out [T, H·D] of T16, k and v [G, S_max, D] of T16; D = 64 or 128; any group H/G; scale > 0; pos, kv_len from Step
//
// The T·H/G queries of a kv head are rows of m16 tiles. grid = (CTAS·clusters, row tiles, G), clusters of 8, or of 4 or 2
// where kv heads are many, along x. A CTA takes an equal share of kv_len in blocks of 16 keys, its 4 warps every fourth
// block, each with a cp.async ring of its own. Rows of the cache before pos are older than this run: their copies start
// before the predecessor has ended.
// The warps merge through shared memory; row r then goes from all CTAs of the cluster into the shared memory of CTA
// r % CTAS, which adds the parts in order. With one working cluster it writes the result, else m, l and O in f32, and of
// the CTAs with its rank the last one (a counter, left at zero) adds the clusters in order: the same inputs give the
// same bits. Rows from valid_rows on give 0; keys from kv_len on are zeros in shared memory.
// moves 4·G·D·kv_len bytes: bandwidth-bound from 16384 keys, latency-bound below.
// Goal: 4.5 us at 512 keys, 5.5 at 2048, 85 % of the read rate at 32768.
#include "attention/params.cuh"
#include "attention/tile.cuh"
#include "common/export.cuh"
#include "common/hopper.cuh"
#include "common/ptx.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, KEYS = 16, MOST_CLUSTERS = 8;

// Weights of parts of a softmax by their (maximum · log2 e, sum); returns the common maximum and the sum.
template <int N>
__device__ __forceinline__ float2 weigh(const float2 (&part)[N], float (&weight)[N]) {
    float2 all = {-INFINITY, 0.f};
#pragma unroll
    for (int i = 0; i < N; i++) all.x = fmaxf(all.x, part[i].x);
    const float ref = all.x == -INFINITY ? 0.f : all.x;
#pragma unroll
    for (int i = 0; i < N; i++) {
        weight[i] = exp2_approx(part[i].x - ref);
        all.y += part[i].y * weight[i];
    }
    return all;
}

// Few stages: what is shared memory is no L1, whose lines the weights pass through that the products beside this kernel
// have in flight (three stages at D = 128, 106 KB of an SM, cost a token 1.5 % more than two).
// Dynamic shared memory: the rings, 16 KB·STAGES (D = 64) or 32 KB·STAGES (D = 128), which the merge of the warps
// reuses, and which is larger than one stage; then the parts of the cluster, O [ROWS][CTAS][D] and (m, l)
// [ROWS][CTAS]. 128 bytes to align.
template <class T, int D, int STAGES, int CTAS>
__device__ __forceinline__ void decode_cluster(const AttentionParams& p) {
    static_assert(D == 64 || D == 128);
    constexpr int ROWS = 16 / CTAS, CHUNKS = D / 8, PER_LANE = D / 32, PITCH = D + 8, STEP = KEYS * WARPS;
    constexpr uint32_t TILE_BYTES = KEYS * D * 2, RING_BYTES = STAGES * 2 * TILE_BYTES;
    constexpr uint32_t PART_BYTES = 16 * (PITCH + 2) * sizeof(float);
    constexpr uint32_t WARP_BYTES = RING_BYTES > PART_BYTES ? RING_BYTES : PART_BYTES;
    static_assert(WARP_BYTES % 128 == 0);
    extern __shared__ uint8_t decode_smem[];
    __shared__ alignas(8) uint64_t arrived;
    __shared__ bool is_last;
    const uint32_t misaligned = smem_addr(decode_smem) & 127u;
    uint8_t* const base = decode_smem + (misaligned ? 128u - misaligned : 0u);
    const auto* const o_got = reinterpret_cast<const float*>(base + WARPS * WARP_BYTES);
    const auto* const ml_got = reinterpret_cast<const float2*>(o_got + ROWS * CTAS * D);

    const Extent e = extent_before_wait(p);
    const int pairs = int(p.rows * p.group), p0 = int(blockIdx.y) * 16, kv = int(blockIdx.z), splits = int(gridDim.x);
    const int share = max(((e.keys + splits - 1) / splits + KEYS - 1) / KEYS * KEYS, KEYS);
    const int working = max((e.keys + share * CTAS - 1) / (share * CTAS), 1);
    const int split = int(blockIdx.x), cluster = split / CTAS, rank = split % CTAS;
    if (cluster >= working) {  // and all of it
        pdl_wait();
        pdl_trigger();
        return;
    }
    const int rows_here = min(16, pairs - p0), mine = (rows_here - rank + CTAS - 1) / CTAS;  // rows rank, rank + CTAS, ..
    if (threadIdx.x == 0) {
        mbarrier_init(smem_addr(&arrived), 1);
        fence_mbarrier_init();
        if (mine > 0) mbarrier_expect_tx(smem_addr(&arrived), uint32_t(mine) * CTAS * (D + 2) * sizeof(float));
    }
    __syncwarp();
    cluster_arrive();

    const int begin = split * share, end = min(begin + share, e.keys);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    const auto* k = static_cast<const T*>(p.k) + kv * size_t(p.kv_head) + (lane % CHUNKS) * 8;
    const auto* v = static_cast<const T*>(p.v) + kv * size_t(p.kv_head) + (lane % CHUNKS) * 8;
    const uint32_t ring = smem_addr(base) + warp * WARP_BYTES;
    int j_load = begin + warp * KEYS;
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
    int loaded = 0;
#pragma unroll 1
    for (; loaded < STAGES && j_load + KEYS <= e.pos; loaded++) load();
    // Query rows g and g + 8 of the tile: where they lie before the wait, then straight into A fragments.
    const T* q[2];
    int row_end[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int pair = p0 + g + 8 * r, row = pair / int(p.group), head = kv * int(p.group) + pair % int(p.group);
        const bool keep = pair < pairs && row < e.valid;
        row_end[r] = keep ? min(e.pos + row + 1, e.keys) : 0;
        q[r] = keep ? static_cast<const T*>(p.q) + size_t(row) * p.q_row + head * D + 2 * t : nullptr;
    }
    pdl_wait();
    pdl_trigger();
#pragma unroll 1
    for (; loaded < STAGES; loaded++) load();
    uint32_t q_frag[D / 16][4];
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++) {
            q_frag[kk][r] = q[r] != nullptr ? *reinterpret_cast<const uint32_t*>(q[r] + kk * 16) : 0u;
            q_frag[kk][2 + r] = q[r] != nullptr ? *reinterpret_cast<const uint32_t*>(q[r] + kk * 16 + 8) : 0u;
        }

    const float c = p.scale * LOG2E;
    const uint32_t k_lane = lane_chunks_first<D>(lane), v_lane = TILE_BYTES + lane_rows_first<D>(lane);
    float o[D / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {};
    uint32_t at = ring;
#pragma unroll 1
    for (int j0 = begin + warp * KEYS; j0 < end; j0 += STEP) {
        cp_async_wait<STAGES - 1>();
        __syncwarp();  // the tile is there for all lanes
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
        __syncwarp();  // all lanes have read the tile that is overwritten
        load();
        at += 2 * TILE_BYTES;
        if (at == ring + RING_BYTES) at = ring;
    }

    // Merge the warps: O [warp][16][PITCH], then (m·c, l) [warp][16].
    cp_async_wait<0>();
    __syncthreads();
    auto* o_part = reinterpret_cast<float*>(base);
    auto* ml_part = reinterpret_cast<float2*>(o_part + WARPS * 16 * PITCH);
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
    cluster_wait();  // the barriers of the others are ready
    for (int r = warp; r < rows_here; r += WARPS) {
        float2 part[WARPS];
        float weight[WARPS], x[PER_LANE] = {};
#pragma unroll
        for (int w = 0; w < WARPS; w++) part[w] = ml_part[w * 16 + r];
        const float2 ml = weigh(part, weight);
#pragma unroll
        for (int w = 0; w < WARPS; w++)
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) x[i] += o_part[(w * 16 + r) * PITCH + lane * PER_LANE + i] * weight[w];
        const uint32_t to = uint32_t(r % CTAS), slot = uint32_t(r / CTAS * CTAS + rank);
        const uint32_t barrier = cluster_address(smem_addr(&arrived), to);
        const uint32_t o_at = cluster_address(smem_addr(o_got) + (slot * D + lane * PER_LANE) * sizeof(float), to);
        if constexpr (PER_LANE == 4) {
            cluster_store(o_at, x[0], x[1], x[2], x[3], barrier);
        } else {
            cluster_store(o_at, x[0], x[1], barrier);
        }
        if (lane == 0) cluster_store(cluster_address(smem_addr(ml_got) + slot * sizeof(float2), to), ml.x, ml.y, barrier);
    }
    if (mine <= 0) return;

    const auto write = [&](int r, int d, float x, float l_all) {
        const int pair = p0 + r, row = pair / int(p.group), head = kv * int(p.group) + pair % int(p.group);
        const float inv = row < e.valid && l_all > 0.f ? 1.f / l_all : 0.f;
        static_cast<T*>(p.out)[(size_t(row) * p.heads + head) * D + d] = from_f32<T>(x * inv);
    };
    // Parts of the clusters: O [G][row tiles][clusters][16][D], then (m, l) [..][16].
    const int tile = kv * int(gridDim.y) + int(blockIdx.y), tiles = int(gridDim.z * gridDim.y), clusters = splits / CTAS;
    float* const o_all = p.partial + size_t(tile) * clusters * 16 * D;
    auto* const ml_all = reinterpret_cast<float2*>(p.partial + size_t(tiles) * clusters * 16 * D) + tile * clusters * 16;
    cluster_mbarrier_wait(smem_addr(&arrived), 0);
    for (int i = int(threadIdx.x); i < mine * D; i += THREADS) {
        const int slot = i / D, d = i % D, r = rank + slot * CTAS;
        float2 part[CTAS];
        float weight[CTAS], x = 0.f;
#pragma unroll
        for (int s = 0; s < CTAS; s++) part[s] = ml_got[slot * CTAS + s];
        const float2 ml = weigh(part, weight);
#pragma unroll
        for (int s = 0; s < CTAS; s++) x += o_got[(slot * CTAS + s) * D + d] * weight[s];
        if (working == 1) {
            write(r, d, x, ml.y);
        } else {
            o_all[(cluster * 16 + r) * D + d] = x;
            if (d == 0) ml_all[cluster * 16 + r] = ml;
        }
    }
    if (working == 1) return;

    __threadfence();
    __syncthreads();
    uint32_t* const counter = p.counters + tile * CTAS + rank;
    if (threadIdx.x == 0) is_last = atomicAdd(counter, 1u) == uint32_t(working - 1);
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    if (threadIdx.x == 0) *counter = 0;
    for (int i = int(threadIdx.x); i < mine * D; i += THREADS) {
        const int d = i % D, r = rank + i / D * CTAS;
        float2 part[MOST_CLUSTERS];
        float weight[MOST_CLUSTERS], o_of[MOST_CLUSTERS], x = 0.f;
#pragma unroll
        for (int s = 0; s < MOST_CLUSTERS; s++) {
            part[s] = s < working ? __ldcg(ml_all + s * 16 + r) : make_float2(-INFINITY, 0.f);
            o_of[s] = s < working ? __ldcg(o_all + (s * 16 + r) * D + d) : 0.f;
        }
        const float2 ml = weigh(part, weight);
#pragma unroll
        for (int s = 0; s < MOST_CLUSTERS; s++) x += o_of[s] * weight[s];
        write(r, d, x, ml.y);
    }
}

#define EXPORT_CLUSTER_OF(T, name, D, STAGES, CTAS)                                                          \
    EXPORT(decode_cluster_d##D##_s##STAGES##_c##CTAS##_##name, AttentionParams, THREADS, 2,                  \
           decode_cluster<T, D, STAGES, CTAS>)
#define EXPORT_CLUSTER(D, STAGES, CTAS)                    \
    EXPORT_CLUSTER_OF(__nv_bfloat16, bf16, D, STAGES, CTAS) \
    EXPORT_CLUSTER_OF(__half, f16, D, STAGES, CTAS)

EXPORT_CLUSTER(64, 1, 8)
EXPORT_CLUSTER(64, 4, 8)
EXPORT_CLUSTER(64, 4, 4)
EXPORT_CLUSTER(64, 4, 2)
EXPORT_CLUSTER(128, 1, 8)
EXPORT_CLUSTER(128, 2, 8)
EXPORT_CLUSTER(128, 2, 4)
EXPORT_CLUSTER(128, 2, 2)
