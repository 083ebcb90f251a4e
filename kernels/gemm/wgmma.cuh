// What the kernels of gemm/ on wgmma and conv/wgmma.cu share: consumers that multiply out of a ring of TMA stages, the joining of
// splits, and the way of the sums through shared memory. `Tile` is a struct of constants:
//   BM, BN, BK = 64, STAGES, CONSUMERS (warpgroups of 64 rows), STAGE_BYTES
//   CHUNK, PITCH   columns that a warp finishes together, and the pitch of its 16 rows in shared memory, in floats:
//                  both the fragments that go in and the vectors that come out touch every bank once
//   JOIN_BATCH     loads of four partial sums on their way together, a divisor of BN / 8
#pragma once
#include "common/hopper.cuh"
#include "common/vec.cuh"
#include "gemm/epilogue.cuh"

// Of x, for JOIN_BATCH.
__host__ __device__ constexpr int divisor_up_to(int most, int x) {
    for (int d = most; d > 1; d--)
        if (x % d == 0) return d;
    return 1;
}

struct WgmmaParams {
    TensorMap x;  // {K, M}, box {64, BM}, swizzle 128 B
    TensorMap w;  // {K, N}, box {64, BN}, the same
    Epilogue e;
    float* partials;     // split-K: [tile][split][BM · BN]
    uint32_t* counters;  // split-K: one per tile and consumer, zero between kernels
    uint32_t m, n, k;
    uint32_t splits;  // parts of K
    uint64_t policy;  // what becomes of w in the L2, in wgmma_multicast.cuh
};

// A part [first, last) of the k steps of one tile.
struct Unit {
    uint32_t m0, n0, tile, split, first, last;
};

// Position in the ring: counts over the whole life of the CTA.
template <class Tile>
struct Cursor {
    uint32_t stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == Tile::STAGES) stage = 0, phase ^= 1;
    }
    // Over steps that are another's.
    __device__ __forceinline__ void skip(uint32_t steps) {
        const uint32_t to = stage + steps;
        stage = to % Tile::STAGES, phase ^= to / Tile::STAGES & 1;
    }
};

// Gives a stage back to the producer. All reads of it by this warpgroup have ended.
__device__ __forceinline__ void release(uint32_t empty) {
    if (threadIdx.x % 128 == 0) mbarrier_arrive(empty);
}

// A barrier of one consumer's threads. The ids are immediates: a computed one would reserve all sixteen.
template <int CONSUMERS>
__device__ __forceinline__ void consumer_barrier(uint32_t consumer) {
    if (consumer == 0)
        named_barrier<1, 128>();
    else
        named_barrier<2, 128>();
}

// Adds the partial sums of all splits of this warpgroup's 64 rows, ((p0 + p1) + p2) + ..; true where the total is.
template <class Tile>
__device__ __forceinline__ bool join_splits(float (&acc)[Tile::BN / 2], const WgmmaParams& p, const Unit& u,
                                            uint32_t consumer) {
    constexpr int VECTORS = Tile::BN / 8, BATCH = Tile::JOIN_BATCH;
    static_assert(VECTORS % BATCH == 0);
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

// Writes the accumulators of columns CHUNK · c + [0, CHUNK) as rows of `staging`. Registers have no indices, so this is a
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

// Elements at .. at + 8 of a vector of T16.
template <class T>
__device__ __forceinline__ Float8 vector_at(const void* vector, size_t at) {
    return unpack<T>(__ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(vector) + at)));
}
