// What the matrix products on wgmma share beyond gemm/wgmma.cuh: the order of their units, and the producer of the ring.
#pragma once
#include "gemm/wgmma.cuh"

// For JOIN_BATCH.
__host__ __device__ constexpr int divisor_up_to(int most, int x) {
    for (int d = most; d > 1; d--)
        if (x % d == 0) return d;
    return 1;
}

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

template <class Tile>
__device__ __forceinline__ void load_w(const WgmmaParams& p, uint32_t ring, uint32_t stage, uint32_t full,
                                       uint32_t step, uint32_t n0) {
    const uint32_t to = ring + stage * Tile::STAGE_BYTES + Tile::X_BYTES, barrier = full + stage * 8;
    mbarrier_expect_tx(barrier, Tile::STAGE_BYTES);
    tma_load_2d(to, p.w, barrier, step * Tile::BK, n0);
}

// Rows of x: those of a matrix. `load` asks for 64 columns of them, those of k step `step`.
struct DenseRows {
    const TensorMap& x;

    __device__ __forceinline__ void load(uint32_t to, uint32_t barrier, uint32_t step, uint32_t m0) const {
        tma_load_2d(to, x, barrier, step * 64, m0);
    }
};

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
            rows.load(ring + at.stage * Tile::STAGE_BYTES, full + at.stage * 8, step, u.m0);
        }
    }
}
