// What the matrix products on wgmma share beyond gemm/wgmma.cuh: the order of their units, and the producer of the ring.
#pragma once
#include "gemm/wgmma.cuh"

// For JOIN_BATCH.
__host__ __device__ constexpr int divisor_up_to(int most, int x) {
    for (int d = most; d > 1; d--)
        if (x % d == 0) return d;
    return 1;
}

// Which operand two CTAs of a cluster have in common: the tiles of a pair lie below one another or side by side, and each
// CTA loads half of what is shared and sends it to both.
enum class Shared { NOTHING, W, X };

// What a tile says of pairs.
template <Shared SHARED_>
struct Pairs {
    static constexpr Shared SHARED = SHARED_;
    static constexpr int PAIR_ROWS = SHARED == Shared::W ? 2 : 1, PAIR_COLS = SHARED == Shared::X ? 2 : 1;
    static constexpr int PAIR = PAIR_ROWS * PAIR_COLS;
};
using Alone = Pairs<Shared::NOTHING>;

// Gives a stage back to all producers that fill it. All reads of it by this warpgroup have ended.
template <class Tile>
__device__ __forceinline__ void release_stage(uint32_t empty) {
    release(empty);
    if constexpr (Tile::PAIR == 2) {
        if (threadIdx.x % 128 == 32) mbarrier_arrive_cluster(cluster_address(empty, cluster_rank() ^ 1));
    }
}

// The barriers of the ring. `givers`: warpgroups that give a stage back.
template <class Tile>
__device__ __forceinline__ void start_ring(const WgmmaParams& p, uint32_t full, uint32_t empty, uint32_t givers) {
    if (threadIdx.x == 0) {
        prefetch_tensor_map(p.x);
        prefetch_tensor_map(p.w);
        for (int s = 0; s < Tile::STAGES; s++) {
            mbarrier_init(full + s * 8, 1);
            mbarrier_init(empty + s * 8, givers);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
}

// Units in order: the splits of a tile, then tiles in columns of 16 tile rows, rows first, so that CTAs that run
// together share x and w in the L2. A pair takes the same unit of a tile twice as large; half of that may lie outside.
template <class Tile>
struct Schedule {
    static constexpr int ROWS = Tile::BM * Tile::PAIR_ROWS, COLS = Tile::BN * Tile::PAIR_COLS;
    uint32_t rows, cols, units, steps, unit;

    __device__ __forceinline__ explicit Schedule(const WgmmaParams& p) {
        rows = (p.m + ROWS - 1) / ROWS;
        cols = (p.n + COLS - 1) / COLS;
        units = rows * cols * p.splits;
        steps = (p.k + Tile::BK - 1) / Tile::BK;
        unit = blockIdx.x / Tile::PAIR;
    }
    __device__ __forceinline__ bool more() const { return unit < units; }
    __device__ __forceinline__ void next() { unit += gridDim.x / Tile::PAIR; }
    __device__ __forceinline__ Unit get(const WgmmaParams& p) const {
        constexpr uint32_t GROUP = 16 / Tile::PAIR_ROWS;
        const uint32_t id = unit / p.splits, split = unit % p.splits;
        const uint32_t top = id / (GROUP * cols) * GROUP, rest = id % (GROUP * cols);
        const uint32_t height = min(GROUP, rows - top);
        const uint32_t row = top + rest % height, col = rest / height;
        // Never empty while splits <= steps.
        Unit u = {row * ROWS, col * COLS, id, split, split * steps / p.splits, (split + 1) * steps / p.splits};
        if constexpr (Tile::PAIR == 2) {
            const uint32_t rank = cluster_rank();
            u.m0 += (Tile::PAIR_ROWS - 1) * rank * Tile::BM;
            u.n0 += (Tile::PAIR_COLS - 1) * rank * Tile::BN;
            u.tile = 2 * id + rank;
        }
        return u;
    }
};

// This CTA's half of the rows of a box, to both CTAs of the pair: each barrier counts what arrives at its own CTA. The
// other's half may come before this one has said how much it expects; the phase waits for that too.
template <int BYTES, int ROWS>
__device__ __forceinline__ void load_half(uint32_t to, const TensorMap& map, uint32_t barrier, uint32_t k, uint32_t row) {
    const uint32_t rank = cluster_rank();
    tma_load_2d_to_cluster(to + rank * (BYTES / 2), map, barrier, k, row + rank * (ROWS / 2), 3);
}

template <class Tile>
__device__ __forceinline__ void load_w(const WgmmaParams& p, uint32_t ring, uint32_t stage, uint32_t full,
                                       uint32_t step, uint32_t n0) {
    const uint32_t to = ring + stage * Tile::STAGE_BYTES + Tile::X_BYTES, barrier = full + stage * 8;
    mbarrier_expect_tx(barrier, Tile::STAGE_BYTES);
    if constexpr (Tile::SHARED == Shared::W)
        load_half<Tile::W_BYTES, Tile::BN>(to, p.w, barrier, step * Tile::BK, n0);
    else
        tma_load_2d(to, p.w, barrier, step * Tile::BK, n0);
}

// Rows of x: those of a matrix. `load` asks for 64 columns of them, those of k step `step`.
struct DenseRows {
    const TensorMap& x;

    __device__ __forceinline__ void load(uint32_t to, uint32_t barrier, uint32_t step, uint32_t m0) const {
        tma_load_2d(to, x, barrier, step * 64, m0);
    }
};

// Asks the L2 for the weights of a step of the unit at hand, where this CTA, or pair, is the one of its column that does.
template <class Tile>
__device__ __forceinline__ void foresee_w(const WgmmaParams& p, const Unit& u, uint32_t step) {
    if (step >= u.last || u.m0 / (Tile::BM * Tile::PAIR_ROWS) % 8 != 0) return;
    uint32_t row = u.n0;
    if constexpr (Tile::SHARED == Shared::W) row += cluster_rank() * (Tile::BN / 2);
    tma_prefetch_2d(p.w, step * Tile::BK, row);
}

// One thread. The weights of the first stages are asked for before the wait for the kernels that made x.
template <class Tile, class Rows>
__device__ __forceinline__ void produce(const WgmmaParams& p, const Rows& rows, uint32_t ring, uint32_t full,
                                        uint32_t empty) {
    Schedule<Tile> schedule(p);
    uint32_t early = 0;
    if (schedule.more()) {
        const Unit u = schedule.get(p);
        early = min(u.last - u.first, uint32_t(Tile::STAGES));
        for (uint32_t i = 0; i < early; i++) load_w<Tile>(p, ring, i, full, u.first + i, u.n0);
        for (uint32_t i = 0; i < p.ahead; i++) foresee_w<Tile>(p, u, u.first + early + i);
    }
    pdl_trigger();
    pdl_wait();
    Cursor<Tile> at;
    for (; schedule.more(); schedule.next()) {
        const Unit u = schedule.get(p);
        for (uint32_t step = u.first; step < u.last; step++, at.next()) {
            if (early > 0) {
                early--;
            } else {
                mbarrier_wait(empty + at.stage * 8, at.phase ^ 1);
                load_w<Tile>(p, ring, at.stage, full, step, u.n0);
                if (p.ahead > 0) foresee_w<Tile>(p, u, step + p.ahead);
            }
            rows.load(ring + at.stage * Tile::STAGE_BYTES, full + at.stage * 8, step, u.m0);
        }
    }
}
