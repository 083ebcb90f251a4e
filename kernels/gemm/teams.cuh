// What the kernels on TMA and wgmma share: parameters, the order of the units, the producer of the ring, the joining
// of parts of K, and the way of the sums through shared memory. `Tile` has BM, BN, BK, STAGES, CONSUMERS and the sizes
// that follow from them.
#pragma once
#include "common/export.cuh"
#include "common/hopper.cuh"
#include "common/vec.cuh"
#include "gemm/epilogue.cuh"

struct WgmmaParams {
    TensorMap x;  // {K, M}, box {64, BM}, swizzle 128 B
    TensorMap w;  // {K, N}, box {64, BN}, swizzle 128 B
    Epilogue e;
    float* partials;     // split-K: [tile][split][BM · BN]
    uint32_t* counters;  // split-K: one per tile and consumer, zero between kernels
    uint32_t m, n, k;
    uint32_t splits;  // parts of K
};
// A part [first, last) of the k steps of one tile.
struct Unit {
    uint32_t m0, n0, tile, split, first, last;
};

// Units in order: the splits of a tile, then tiles in columns of 16 tile rows, rows first, so that CTAs that run
// together share x and w in the L2.
template <class Tile>
struct Schedule {
    uint32_t rows, cols, units, steps, unit;

    __device__ __forceinline__ explicit Schedule(const WgmmaParams& p) {
        rows = (p.m + Tile::BM - 1) / Tile::BM;
        cols = (p.n + Tile::BN - 1) / Tile::BN;
        units = rows * cols * p.splits;
        steps = (p.k + Tile::BK - 1) / Tile::BK;
        unit = blockIdx.x;
    }
    __device__ __forceinline__ bool more() const { return unit < units; }
    __device__ __forceinline__ void next() { unit += gridDim.x; }
    __device__ __forceinline__ Unit get(const WgmmaParams& p) const {
        constexpr uint32_t GROUP = 16;
        const uint32_t id = unit / p.splits, split = unit % p.splits;
        const uint32_t top = id / (GROUP * cols) * GROUP, rest = id % (GROUP * cols);
        const uint32_t height = min(GROUP, rows - top);
        const uint32_t row = top + rest % height, col = rest / height;
        // Never empty while splits <= steps.
        return {row * Tile::BM, col * Tile::BN, id, split, split * steps / p.splits, (split + 1) * steps / p.splits};
    }
};

// Position in the ring: counts over the whole life of the CTA.
template <class Tile>
struct Cursor {
    uint32_t stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == Tile::STAGES) stage = 0, phase ^= 1;
    }
    __device__ __forceinline__ void skip(uint32_t count) {
        stage += count;
        phase ^= stage / Tile::STAGES & 1;
        stage %= Tile::STAGES;
    }
};

template <class Tile>
__device__ __forceinline__ void load_w(const WgmmaParams& p, uint32_t ring, uint32_t stage, uint32_t full,
                                       uint32_t step, uint32_t n0) {
    const uint32_t to = ring + stage * Tile::STAGE_BYTES + Tile::X_BYTES, barrier = full + stage * 8;
    mbarrier_expect_tx(barrier, Tile::STAGE_BYTES);
    tma_load_2d(to, p.w, barrier, step * Tile::BK, n0);
}

// One thread. The weights of the first stages are asked for before the wait for the kernels that made x.
template <class Tile>
__device__ __forceinline__ void produce(const WgmmaParams& p, uint32_t ring, uint32_t full, uint32_t empty) {
    Schedule<Tile> schedule(p);
    uint32_t early = 0;
    if (schedule.more()) {
        const Unit u = schedule.get(p);
        early = min(u.last - u.first, uint32_t(Tile::STAGES));
        for (uint32_t i = 0; i < early; i++) load_w<Tile>(p, ring, i, full, u.first + i, u.n0);
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
                mbarrier_wait(empty + at.stage * 8, at.phase ^ 1);
                load_w<Tile>(p, ring, at.stage, full, step, u.n0);
            }
            tma_load_2d(ring + at.stage * Tile::STAGE_BYTES, p.x, full + at.stage * 8, step * Tile::BK, u.m0);
        }
    }
}

// Gives a stage back to the producer. All reads of it by this warpgroup have ended.
__device__ __forceinline__ void release(uint32_t empty) {
    if (threadIdx.x % 128 == 0) mbarrier_arrive(empty);
}

// A barrier of one consumer's threads. The ids are immediates: a computed one would reserve all sixteen.
template <int CONSUMERS>
__device__ __forceinline__ void consumer_barrier(uint32_t consumer) {
    if constexpr (CONSUMERS == 3) {
        if (consumer == 2) return named_barrier<3, 128>();
    }
    if (consumer == 0)
        named_barrier<1, 128>();
    else
        named_barrier<2, 128>();
}

__host__ __device__ constexpr int divisor_up_to(int most, int x) {
    for (int d = most; d > 1; d--)
        if (x % d == 0) return d;
    return 1;
}

// Adds the partial sums of all splits of this warpgroup's 64 rows, ((p0 + p1) + p2) + ..; true where the total is.
template <class Tile>
__device__ __forceinline__ bool join_splits(float (&acc)[Tile::BN / 2], const WgmmaParams& p, const Unit& u,
                                            uint32_t consumer) {
    // Loads on their way together, as registers allow.
    constexpr int VECTORS = Tile::BN / 8, BATCH = divisor_up_to(Tile::CONSUMERS == 3 ? 4 : 8, VECTORS);
    __shared__ uint32_t arrived_[Tile::CONSUMERS];
    uint32_t& arrived = arrived_[consumer];
    const uint32_t thread = threadIdx.x % 128, index = u.tile * Tile::CONSUMERS + consumer;
    uint32_t* counter = p.counters + index;
    // [split][vector][thread]: neighbours in a warp are neighbours in memory.
    float4* partials = reinterpret_cast<float4*>(p.partials) + size_t(index) * p.splits * VECTORS * 128 + thread;

    // Who comes last keeps its sums in registers. Only the last can find the counter at splits - 1.
    // The first barrier: everybody has read `arrived` of the unit before.
    consumer_barrier<Tile::CONSUMERS>(consumer);
    if (thread == 0) arrived = atomicAdd(counter, 0);
    consumer_barrier<Tile::CONSUMERS>(consumer);
    if (arrived != p.splits - 1) {
        float4* mine = partials + size_t(u.split) * VECTORS * 128;
#pragma unroll
        for (int i = 0; i < VECTORS; i++)
            __stcg(mine + i * 128, make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]));
        __threadfence();
        consumer_barrier<Tile::CONSUMERS>(consumer);
        if (thread == 0) arrived = atomicAdd(counter, 1);
        consumer_barrier<Tile::CONSUMERS>(consumer);
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

// Writes the accumulators of columns 32 c + [0, 32) as rows of `staging`. Registers have no indices, so this is a
// choice among constants; a loop over them would be turned back into an index, and the sums would go to memory.
template <class Tile, int C = 0>
__device__ __forceinline__ void deposit(const float (&acc)[Tile::BN / 2], float* staging, int c) {
    if (c == C) {
        const uint32_t lane = threadIdx.x % 32;
        float* to = staging + lane / 4 * Tile::PITCH + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < Tile::CHUNK / 8; j++) {
            constexpr int FIRST = C * Tile::CHUNK / 2;
            if (FIRST + 4 * j >= Tile::BN / 2) continue;
            const float* v = acc + FIRST + 4 * j;
            *reinterpret_cast<float2*>(to + 8 * j) = make_float2(v[0], v[1]);
            *reinterpret_cast<float2*>(to + 8 * j + 8 * Tile::PITCH) = make_float2(v[2], v[3]);
        }
    } else if constexpr ((C + 1) * Tile::CHUNK < Tile::BN) {
        deposit<Tile, C + 1>(acc, staging, c);
    }
}

// 8 floats of shared memory. Lanes of odd rows begin with the upper half, which keeps the banks apart.
__device__ __forceinline__ Float8 take_8(const float* from, bool upper_first) {
    const float4 a = *reinterpret_cast<const float4*>(from + (upper_first ? 4 : 0));
    const float4 b = *reinterpret_cast<const float4*>(from + (upper_first ? 0 : 4));
    const float4 lo = upper_first ? b : a, hi = upper_first ? a : b;
    return {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
}

__device__ __forceinline__ void add(Float8& to, const Float8& x) {
#pragma unroll
    for (int i = 0; i < 8; i++) to.v[i] += x.v[i];
}
