// archs: 90a
// gemm_wgmma:  y = r + s · act(x wᵀ + b)      x [M, K], w [N, K], y [M, cols] of T16 (or f32); K % 8 == 0, any M and
//              N; sums in f32, one rounding
// CTA = one producer warpgroup (one thread issues TMA) + BM / 64 consumer warpgroups of 64 x BN (wgmma m64nBNk16), a
// ring of STAGES stages of [BM rows of x | BN rows of w] x 64 columns between them. Persistent: CTA c takes the
// units c, c + grid, ...; loads of the next unit run under the epilogue of the last. A unit is a tile, or a part of
// its K: then f32 partials go through scratch, and the last CTA of a tile adds them in the order of K, so results
// repeat to the bit. Clusters of 2 hold the tiles of two neighbouring row blocks; each CTA loads half of w for both.
// Epilogue in registers; four lanes exchange 8x8 blocks, so that each stores 16 bytes and a quad 64.
// Moves 2·(M·K + N·K + M·cols) bytes at least, 2·M·N·K flops. Goal: 650 TFLOP/s from M = 512; the read rate of w
// below M = 128.
#include "common/export.cuh"
#include "common/hopper.cuh"
#include "common/vec.cuh"
#include "gemm/epilogue.cuh"

struct WgmmaParams {
    TensorMap x;  // {K, M}, box {64, BM}, swizzle 128 B
    TensorMap w;  // {K, N}, box {64, BN / cluster}, swizzle 128 B
    Epilogue e;
    float* partials;     // split-K: [tile][split][BM · BN]
    uint32_t* counters;  // split-K: one per tile and consumer, zero between kernels
    uint32_t m, n, k;
    uint32_t splits;   // parts of K
    uint32_t cluster;  // CTAs per cluster: 1 or 2
    uint32_t unused;
};

// A CTA tile. Two CTAs of the 64x128 tile fit on an SM.
template <int BM_, int BN_, int STAGES_>
struct WgmmaTile {
    static constexpr int BM = BM_, BN = BN_, BK = 64, STAGES = STAGES_;
    static constexpr int CONSUMERS = BM / 64, THREADS = 128 * (1 + CONSUMERS);
    static constexpr int CTAS = BM * BN <= 64 * 128 ? 2 : 1;
    static constexpr int X_BYTES = BM * BK * 2, W_BYTES = BN * BK * 2, STAGE_BYTES = X_BYTES + W_BYTES;
    // What 128 threads of each role hold after they have exchanged registers; 0: as launched.
    static constexpr int PRODUCER_REGISTERS = THREADS * CTAS > 256 ? 40 : 0;
    static constexpr int CONSUMER_REGISTERS = CONSUMERS == 2 ? 232 : 216;
    static_assert(BM % 64 == 0 && BN % 16 == 0 && CONSUMERS <= 2);
    static_assert(CTAS * (STAGES * STAGE_BYTES + 3072) <= 228 * 1024);
};

// A part [first, last) of the k steps of one tile.
struct Unit {
    uint32_t m0, n0, tile, split, first, last;
};

// Units in order: the splits of a tile, then tiles in columns of 16 tile rows, rows first, so that CTAs that run
// together share x and w in the L2. Both CTAs of a cluster get the same unit, in neighbouring tile rows.
template <class Tile>
struct Schedule {
    uint32_t rows, cols, units, steps, rank, unit, stride;

    __device__ __forceinline__ explicit Schedule(const WgmmaParams& p) {
        rows = (p.m + Tile::BM * p.cluster - 1) / (Tile::BM * p.cluster);
        cols = (p.n + Tile::BN - 1) / Tile::BN;
        units = rows * cols * p.splits;
        steps = (p.k + Tile::BK - 1) / Tile::BK;
        rank = blockIdx.x % p.cluster;
        unit = blockIdx.x / p.cluster;
        stride = gridDim.x / p.cluster;
    }
    __device__ __forceinline__ bool more() const { return unit < units; }
    __device__ __forceinline__ void next() { unit += stride; }
    __device__ __forceinline__ Unit get(const WgmmaParams& p) const {
        const uint32_t group = 16 / p.cluster, id = unit / p.splits, split = unit % p.splits;
        const uint32_t top = id / (group * cols) * group, rest = id % (group * cols);
        const uint32_t height = min(group, rows - top);
        const uint32_t row = top + rest % height, col = rest / height;
        // Never empty while splits <= steps.
        return {(row * p.cluster + rank) * Tile::BM, col * Tile::BN, id * p.cluster + rank, split,
                split * steps / p.splits, (split + 1) * steps / p.splits};
    }
};

// Position in the ring: counts over the whole life of the CTA.
template <class Tile>
struct Cursor {
    uint32_t stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == Tile::STAGES) stage = 0, phase ^= 1;
    }
};

template <class Tile>
__device__ __forceinline__ void load_w(const WgmmaParams& p, uint32_t ring, uint32_t stage, uint32_t full,
                                       uint32_t step, uint32_t n0, uint32_t rank) {
    const uint32_t to = ring + stage * Tile::STAGE_BYTES + Tile::X_BYTES, barrier = full + stage * 8;
    mbarrier_expect_tx(barrier, Tile::STAGE_BYTES);
    if (p.cluster == 1)
        tma_load_2d(to, p.w, barrier, step * Tile::BK, n0);
    else
        tma_load_2d_multicast(to + rank * (Tile::W_BYTES / 2), p.w, barrier, step * Tile::BK,
                              n0 + rank * (Tile::BN / 2), 3);
}

// One thread. The weights of the first stages are asked for before the wait for the kernels that made x.
template <class Tile>
__device__ __forceinline__ void produce(const WgmmaParams& p, uint32_t ring, uint32_t full, uint32_t empty) {
    Schedule<Tile> schedule(p);
    uint32_t early = 0;
    if (schedule.more()) {
        const Unit u = schedule.get(p);
        early = min(u.last - u.first, uint32_t(Tile::STAGES));
        for (uint32_t i = 0; i < early; i++)
            load_w<Tile>(p, ring, i, full, u.first + i, u.n0, schedule.rank);
    }
    pdl_wait();
    pdl_trigger();
    Cursor<Tile> at;
    for (; schedule.more(); schedule.next()) {
        const Unit u = schedule.get(p);
        for (uint32_t step = u.first; step < u.last; step++, at.next()) {
            if (early > 0) {
                early--;
            } else {
                mbarrier_wait_cluster(empty + at.stage * 8, at.phase ^ 1);
                load_w<Tile>(p, ring, at.stage, full, step, u.n0, schedule.rank);
            }
            tma_load_2d(ring + at.stage * Tile::STAGE_BYTES, p.x, full + at.stage * 8, step * Tile::BK, u.m0);
        }
    }
    // The other CTA still arrives here: stay until it has.
    if (p.cluster > 1)
        for (int i = 0; i < Tile::STAGES; i++, at.next()) mbarrier_wait_cluster(empty + at.stage * 8, at.phase ^ 1);
}

// Gives a stage back to the producers that write into it. All reads of it by this warpgroup have ended.
__device__ __forceinline__ void release(uint32_t empty, uint32_t cluster) {
    const uint32_t thread = threadIdx.x % 128;
    if (cluster == 1) {
        if (thread == 0) mbarrier_arrive(empty);
    } else if (thread < cluster) {
        mbarrier_arrive_at(empty, thread);
    }
}

// A barrier of one consumer's threads. The ids are immediates: a computed one would reserve all sixteen.
__device__ __forceinline__ void consumer_barrier(uint32_t consumer) {
    if (consumer == 0)
        named_barrier<1, 128>();
    else
        named_barrier<2, 128>();
}

__host__ __device__ constexpr int divisor_up_to_8(int x) {
    for (int d = 8; d > 1; d--)
        if (x % d == 0) return d;
    return 1;
}

// Adds the partial sums of all splits of this warpgroup's 64 rows, ((p0 + p1) + p2) + ..; true where the total is.
template <class Tile>
__device__ __forceinline__ bool join_splits(float (&acc)[Tile::BN / 2], const WgmmaParams& p, const Unit& u,
                                            uint32_t consumer) {
    constexpr int VECTORS = Tile::BN / 8, BATCH = divisor_up_to_8(VECTORS);  // loads on their way together
    __shared__ uint32_t arrived_[Tile::CONSUMERS];
    uint32_t& arrived = arrived_[consumer];
    const uint32_t thread = threadIdx.x % 128, index = u.tile * Tile::CONSUMERS + consumer;
    uint32_t* counter = p.counters + index;
    // [split][vector][thread]: neighbours in a warp are neighbours in memory.
    float4* partials = reinterpret_cast<float4*>(p.partials) + size_t(index) * p.splits * VECTORS * 128 + thread;

    // Who comes last keeps its sums in registers. Only the last can find the counter at splits - 1.
    // The first barrier: everybody has read `arrived` of the unit before.
    consumer_barrier(consumer);
    if (thread == 0) arrived = atomicAdd(counter, 0);
    consumer_barrier(consumer);
    if (arrived != p.splits - 1) {
        float4* mine = partials + size_t(u.split) * VECTORS * 128;
#pragma unroll
        for (int i = 0; i < VECTORS; i++)
            __stcg(mine + i * 128, make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]));
        __threadfence();
        consumer_barrier(consumer);
        if (thread == 0) arrived = atomicAdd(counter, 1);
        consumer_barrier(consumer);
        if (arrived != p.splits - 1) return false;
    }
    __threadfence();
    if (thread == 0) *counter = 0;
#pragma unroll
    for (int i = 0; i < VECTORS; i += BATCH) {
        float before[4 * BATCH] = {};
        for (uint32_t s = 0; s < u.split; s++) {
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                const float4 part = __ldcg(partials + (s * VECTORS + i + j) * 128);
                before[4 * j] += part.x, before[4 * j + 1] += part.y;
                before[4 * j + 2] += part.z, before[4 * j + 3] += part.w;
            }
        }
#pragma unroll
        for (int j = 0; j < 4 * BATCH; j++) acc[4 * i + j] += before[j];
        for (uint32_t s = u.split + 1; s < p.splits; s++) {
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                const float4 part = __ldcg(partials + (s * VECTORS + i + j) * 128);
                acc[4 * (i + j)] += part.x, acc[4 * (i + j) + 1] += part.y;
                acc[4 * (i + j) + 2] += part.z, acc[4 * (i + j) + 3] += part.w;
            }
        }
    }
    return true;
}

// Elements `at` and `at` + 1 (even) of a vector of `len`; `otherwise` beyond its end.
template <class T>
__device__ __forceinline__ float2 pair_or(const void* vector, uint32_t at, uint32_t len, float otherwise) {
    if (at + 1 < len) return unpack2(static_cast<const uint32_t*>(vector)[at / 2], T());
    return make_float2(value_or<T>(vector, at, len, otherwise), otherwise);
}

// Lane t of a quad gives word i to lane i, which gets it as word t. Its own inverse.
__device__ __forceinline__ void transpose_quad(uint32_t (&v)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? v[i] : v[i + 1], 1);
        (odd ? v[i] : v[i + 1]) = got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + 2], 2);
        (upper ? v[i] : v[i + 2]) = got;
    }
}

// r + s · v for BLOCKS blocks of 8 columns from col0, in the registers of wgmma; rows row0 and row0 + 8. Pitches are
// multiples of 16 bytes. `v` is longer than needed after SwiGLU.
template <class T, int BLOCKS, int COUNT>
__device__ __forceinline__ void store_vectors(float (&v)[COUNT], const WgmmaParams& p, uint32_t row0,
                                              uint32_t col0) {
    const Epilogue& e = p.e;
    constexpr int BATCH = 2;  // groups of four blocks whose residuals are on their way together
    const uint32_t t = threadIdx.x % 4;
#pragma unroll
    for (int from = 0; from < BLOCKS; from += 4 * BATCH) {
        uint32_t residual[BATCH][2][4];
        if (e.residual != nullptr) {
#pragma unroll
            for (int q = 0; q < 2 * BATCH; q++) {
                const int block = from + q / 2 * 4;
                const uint32_t row = row0 + q % 2 * 8, col = col0 + (block + t) * 8;
                uint4 r = make_uint4(0, 0, 0, 0);
                if (block + t < BLOCKS && row < p.m && col < e.cols)
                    r = *reinterpret_cast<const uint4*>(static_cast<const T*>(e.residual) + size_t(row) * e.cols + col);
                uint32_t(&words)[4] = residual[q / 2][q % 2];
                words[0] = r.x, words[1] = r.y, words[2] = r.z, words[3] = r.w;
            }
        }
#pragma unroll
        for (int q = 0; q < 2 * BATCH; q++) {
            const int block = from + q / 2 * 4;
            if (block >= BLOCKS) continue;
            if (e.residual != nullptr) transpose_quad(residual[q / 2][q % 2]);
            uint32_t words[4] = {};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (block + j >= BLOCKS) continue;
                const int at = 4 * (block + j) + 2 * (q % 2);
                float2 y = make_float2(v[at], v[at + 1]);
                if (e.scale != nullptr) {
                    const float2 s = pair_or<T>(e.scale, col0 + (block + j) * 8 + 2 * t, e.cols, 0.f);
                    y.x *= s.x, y.y *= s.y;
                }
                if (e.residual != nullptr) {
                    const float2 r = unpack2(residual[q / 2][q % 2][j], T());
                    y.x += r.x, y.y += r.y;
                }
                words[j] = pack2(y, T());
            }
            transpose_quad(words);
            const uint32_t row = row0 + q % 2 * 8, col = col0 + (block + t) * 8;
            if (block + t < BLOCKS && row < p.m && col < e.cols)
                *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + size_t(row) * e.cols + col) =
                    make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

// The same for any pitch and for f32.
template <class T, int BLOCKS, int COUNT>
__device__ __forceinline__ void store_pairs(float (&v)[COUNT], const WgmmaParams& p, uint32_t row0, uint32_t col0) {
    const Epilogue& e = p.e;
#pragma unroll
    for (int j = 0; j < BLOCKS; j++) {
        const uint32_t col = col0 + j * 8 + threadIdx.x % 4 * 2;
        float2 s = make_float2(1.f, 1.f);
        if (e.scale != nullptr) s = pair_or<T>(e.scale, col, e.cols, 1.f);
        if (row0 < p.m) put_pair<T>(e, row0, col, v[4 * j], v[4 * j + 1], s.x, s.y);
        if (row0 + 8 < p.m) put_pair<T>(e, row0 + 8, col, v[4 * j + 2], v[4 * j + 3], s.x, s.y);
    }
}

template <class T, int BLOCKS, int COUNT>
__device__ __forceinline__ void store(float (&v)[COUNT], const WgmmaParams& p, uint32_t row0, uint32_t col0) {
    if (p.e.cols % 8 == 0 && !p.e.out_f32)
        store_vectors<T, BLOCKS>(v, p, row0, col0);
    else
        store_pairs<T, BLOCKS>(v, p, row0, col0);
}

// Bias, activation, then scale, residual and store. row0 is this thread's first row.
template <class T, class Tile>
__device__ __forceinline__ void finish(float (&acc)[Tile::BN / 2], const WgmmaParams& p, uint32_t row0,
                                       uint32_t n0) {
    const Epilogue& e = p.e;
    if (e.bias != nullptr) {
#pragma unroll
        for (int j = 0; j < Tile::BN / 8; j++) {
            const float2 b = pair_or<T>(e.bias, n0 + j * 8 + threadIdx.x % 4 * 2, p.n, 0.f);
            acc[4 * j] += b.x, acc[4 * j + 1] += b.y;
            acc[4 * j + 2] += b.x, acc[4 * j + 3] += b.y;
        }
    }
    if (e.act == ACT_SWIGLU) {
        // Blocks 2j hold gates, blocks 2j + 1 the ups of the same columns.
#pragma unroll
        for (int j = 0; j < Tile::BN / 16; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[4 * j + i] = silu(acc[8 * j + i]) * acc[8 * j + 4 + i];
        store<T, Tile::BN / 16>(acc, p, row0, n0 / 2);
        return;
    }
    if (e.act == ACT_GELU) {
#pragma unroll
        for (int i = 0; i < Tile::BN / 2; i++) acc[i] = gelu(acc[i]);
    } else if (e.act == ACT_RELU) {
#pragma unroll
        for (int i = 0; i < Tile::BN / 2; i++) acc[i] = acc[i] < 0.f ? 0.f : acc[i];
    }
    store<T, Tile::BN / 8>(acc, p, row0, n0);
}

// One warpgroup: 64 rows of every tile.
template <class T, class Tile>
__device__ __forceinline__ void consume(const WgmmaParams& p, uint32_t ring, uint32_t full, uint32_t empty,
                                        uint32_t consumer) {
    const uint64_t x0 = wgmma_descriptor(ring + consumer * 64 * 128), w0 = wgmma_descriptor(ring + Tile::X_BYTES);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    pdl_wait();
    pdl_trigger();
    Cursor<Tile> at;
    for (Schedule<Tile> schedule(p); schedule.more(); schedule.next()) {
        const Unit u = schedule.get(p);
        if (u.m0 + consumer * 64 >= p.m) {
            // Rows beyond the last: only keep the ring turning.
            for (uint32_t step = u.first; step < u.last; step++, at.next()) {
                mbarrier_wait(full + at.stage * 8, at.phase);
                release(empty + at.stage * 8, p.cluster);
            }
            continue;
        }
        float acc[Tile::BN / 2];
        uint32_t before = 0;
        for (uint32_t step = u.first; step < u.last; step++, at.next()) {
            mbarrier_wait(full + at.stage * 8, at.phase);
            const uint32_t offset = at.stage * (Tile::STAGE_BYTES >> 4);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < Tile::BK / 16; k++)
                wgmma<T, Tile::BN>(acc, x0 + offset + 2 * k, w0 + offset + 2 * k, k > 0 || step > u.first);
            wgmma_commit();
            // One batch stays in flight; the one before it is done with its stage.
            wgmma_wait<1>();
            if (step > u.first) release(empty + before * 8, p.cluster);
            before = at.stage;
        }
        wgmma_wait<0>();
        wgmma_settle(acc);
        release(empty + before * 8, p.cluster);
        if (p.splits > 1 && !join_splits<Tile>(acc, p, u, consumer)) continue;
        finish<T, Tile>(acc, p, u.m0 + consumer * 64 + warp * 16 + lane / 4, u.n0);
    }
}

// Grid: cluster times any number of clusters. Dynamic shared memory: STAGES · STAGE_BYTES + 1024.
template <class T, class Tile>
__device__ __forceinline__ void gemm_wgmma(const WgmmaParams& p) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full_[Tile::STAGES], empty_[Tile::STAGES];
    const uint32_t ring = (smem_address(dynamic) + 1023) & ~1023u;
    const uint32_t full = smem_address(full_), empty = smem_address(empty_);
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(p.x);
        prefetch_tensor_map(p.w);
        for (int s = 0; s < Tile::STAGES; s++) {
            mbarrier_init(full + s * 8, 1);
            mbarrier_init(empty + s * 8, Tile::CONSUMERS * p.cluster);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (p.cluster > 1) cluster_sync();

    if (warpgroup == 0) {
        if constexpr (Tile::PRODUCER_REGISTERS > 0) give_registers<Tile::PRODUCER_REGISTERS>();
        if (threadIdx.x < 32 && elect_one()) produce<Tile>(p, ring, full, empty);
        return;
    }
    if constexpr (Tile::PRODUCER_REGISTERS > 0) take_registers<Tile::CONSUMER_REGISTERS>();
    consume<T, Tile>(p, ring, full, empty, warpgroup - 1);
}

#define EXPORT_WGMMA(bm, bn, stages)                                                                        \
    EXPORT(gemm_wgmma_##bm##x##bn##x##stages##_bf16, WgmmaParams, (WgmmaTile<bm, bn, stages>::THREADS),     \
           (WgmmaTile<bm, bn, stages>::CTAS), gemm_wgmma<__nv_bfloat16, WgmmaTile<bm, bn, stages>>)         \
    EXPORT(gemm_wgmma_##bm##x##bn##x##stages##_f16, WgmmaParams, (WgmmaTile<bm, bn, stages>::THREADS),      \
           (WgmmaTile<bm, bn, stages>::CTAS), gemm_wgmma<__half, WgmmaTile<bm, bn, stages>>)

EXPORT_WGMMA(128, 256, 4)
EXPORT_WGMMA(128, 224, 5)
EXPORT_WGMMA(128, 192, 5)
EXPORT_WGMMA(128, 144, 6)
EXPORT_WGMMA(128, 128, 6)
EXPORT_WGMMA(64, 256, 5)
EXPORT_WGMMA(64, 128, 4)
