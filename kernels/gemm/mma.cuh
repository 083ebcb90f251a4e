// The tensor-core main loop of sm_80 and later:  acc = a wᵀ over a range of K for one BM x BN tile.
//
// Shared memory: STAGES of [BM rows of a | BN rows of w], a row is 64 elements = 128 bytes = 8 chunks, chunk c of row
// r sits at c ^ (r % 8): copies write and ldmatrix reads without bank conflicts. Ragged edges are zeros written by
// the copies, so the loop knows no edges.
#pragma once
#include "common/mma.cuh"
#include "gemm/params.cuh"

// A CTA tile of BM x BN, cut into warp tiles of WM x WN. The ring takes at most 96 KB: two CTAs on an SM of sm_90.
template <int BM_, int BN_, int WM_, int WN_>
struct Tile {
    static constexpr int BM = BM_, BN = BN_, BK = 64, WM = WM_, WN = WN_;
    static constexpr int WARPS_N = BN / WN, THREADS = BM / WM * WARPS_N * 32;
    static constexpr int BLOCKS_M = WM / 16, BLOCKS_N = WN / 8;
    static constexpr int ROW_BYTES = BK * 2, A_BYTES = BM * ROW_BYTES, STAGE_BYTES = (BM + BN) * ROW_BYTES;
    static constexpr int FIT = 96 * 1024 / STAGE_BYTES, STAGES = FIT < 4 ? FIT : 4;
    // Rows that all threads copy in one pass, 8 chunks each; a multiple of 8, so the swizzle of a thread is fixed.
    static constexpr int PASS = THREADS / 8, A_PASSES = BM / PASS, W_PASSES = BN / PASS;
    static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && BM % PASS == 0 && BN % PASS == 0);
    static_assert(PASS % 8 == 0 && STAGES >= 2);
};

// Accumulators of a warp tile: c[i][j] is the 16x8 block (i, j) in the layout of mma_16816.
template <class Tile>
struct Accumulators {
    float c[Tile::BLOCKS_M][Tile::BLOCKS_N][4];
};

template <class T, class Tile, class Rows>
struct Loader {
    uint32_t a_row[Tile::A_PASSES];  // offset of this thread's rows; a_len for rows beyond M
    uint32_t w_row;                  // offset of the first of this thread's rows
    uint32_t chunk;                  // this thread's chunk of every row
    uint32_t dst;                    // where its first chunk of stage 0 goes

    __device__ __forceinline__ Loader(const GemmParams& p, uint32_t smem, uint32_t m0, uint32_t n0)
        : chunk(threadIdx.x % 8) {
        const uint32_t row = threadIdx.x / 8;
        dst = smem + row * Tile::ROW_BYTES + ((chunk ^ (row % 8)) << 4);
        w_row = (n0 + row) * p.k;
#pragma unroll
        for (int i = 0; i < Tile::A_PASSES; i++) {
            const uint32_t m = m0 + row + i * Tile::PASS;
            a_row[i] = m < p.m ? Rows::row(p, m) : p.a_len;
        }
    }

    // First element of this thread's chunk.
    __device__ __forceinline__ uint32_t column(uint32_t step) const { return step * Tile::BK + chunk * 8; }

    __device__ __forceinline__ void load_a(const GemmParams& p, uint32_t stage, uint32_t step) const {
        const uint32_t k = column(step), along = Rows::along(p, k);
        const uint32_t to = dst + stage * Tile::STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < Tile::A_PASSES; i++) {
            const uint32_t at = a_row[i] + along;
            const bool there = k < p.k && at < p.a_len;
            cp_async_16(to + i * Tile::PASS * Tile::ROW_BYTES, static_cast<const T*>(p.a) + (there ? at : 0), there ? 16 : 0);
        }
    }

    __device__ __forceinline__ void load_w(const GemmParams& p, uint32_t stage, uint32_t step) const {
        const uint32_t k = column(step), w_len = p.n * p.k;
        const uint32_t to = dst + stage * Tile::STAGE_BYTES + Tile::A_BYTES;
#pragma unroll
        for (int i = 0; i < Tile::W_PASSES; i++) {
            const uint32_t at = w_row + i * Tile::PASS * p.k + k;
            const bool there = k < p.k && at < w_len;
            cp_async_16(to + i * Tile::PASS * Tile::ROW_BYTES, static_cast<const T*>(p.w) + (there ? at : 0), there ? 16 : 0);
        }
    }
};

// One stage: acc += a[BM, 64] · w[BN, 64]ᵀ for this warp's tile.
template <class T, class Tile>
__device__ __forceinline__ void multiply_stage(Accumulators<Tile>& acc, uint32_t stage, uint32_t warp_m,
                                               uint32_t warp_n) {
    const uint32_t lane = threadIdx.x % 32, swizzle = lane % 8;
    // a: lanes 0..15 address rows 0..15 of the left chunk, lanes 16..31 of the right one.
    const uint32_t a_at = stage + (warp_m + lane % 16) * Tile::ROW_BYTES;
    const uint32_t a_chunk = ((lane / 16) ^ swizzle) << 4;
    // w: matrices 0 and 1 are the left and right chunk of rows 0..7, matrices 2 and 3 of rows 8..15.
    const uint32_t w_at = stage + Tile::A_BYTES + (warp_n + lane / 16 * 8 + lane % 8) * Tile::ROW_BYTES;
    const uint32_t w_chunk = ((lane / 8 % 2) ^ swizzle) << 4;
#pragma unroll
    for (int step = 0; step < Tile::BK / 16; step++) {
        uint32_t a[Tile::BLOCKS_M][4], w[Tile::BLOCKS_N / 2][4];
#pragma unroll
        for (int i = 0; i < Tile::BLOCKS_M; i++)
            ldmatrix_x4(a[i], a_at + i * 16 * Tile::ROW_BYTES + (a_chunk ^ (step << 5)));
#pragma unroll
        for (int j = 0; j < Tile::BLOCKS_N / 2; j++)
            ldmatrix_x4(w[j], w_at + j * 16 * Tile::ROW_BYTES + (w_chunk ^ (step << 5)));
#pragma unroll
        for (int i = 0; i < Tile::BLOCKS_M; i++)
#pragma unroll
            for (int j = 0; j < Tile::BLOCKS_N; j++)
                mma_16816<T>(acc.c[i][j], a[i][0], a[i][1], a[i][2], a[i][3], w[j / 2][j % 2 * 2],
                             w[j / 2][j % 2 * 2 + 1]);
    }
}

// Sums over k steps [first, last) of 64. Calls pdl_wait and pdl_trigger; weights are asked for before the wait.
template <class T, class Tile, class Rows>
__device__ __forceinline__ void multiply_tile(Accumulators<Tile>& acc, const GemmParams& p, uint32_t smem,
                                              uint32_t m0, uint32_t n0, uint32_t first, uint32_t last) {
    const Loader<T, Tile, Rows> loader(p, smem, m0, n0);
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t warp_m = warp / Tile::WARPS_N * Tile::WM, warp_n = warp % Tile::WARPS_N * Tile::WN;
#pragma unroll
    for (int i = 0; i < Tile::BLOCKS_M; i++)
#pragma unroll
        for (int j = 0; j < Tile::BLOCKS_N; j++)
#pragma unroll
            for (int r = 0; r < 4; r++) acc.c[i][j][r] = 0.f;

#pragma unroll
    for (int s = 0; s < Tile::STAGES - 1; s++)
        if (first + s < last) loader.load_w(p, s, first + s);
    pdl_wait();
    pdl_trigger();
#pragma unroll
    for (int s = 0; s < Tile::STAGES - 1; s++) {
        if (first + s < last) loader.load_a(p, s, first + s);
        cp_async_commit();
    }
    uint32_t stage = 0;
    for (uint32_t step = first; step < last; step++) {
        // One group per step, empty ones included: all but the newest STAGES - 2 are done, so this stage is full. The
        // barrier publishes it, and says that all warps have left the stage that is refilled next.
        cp_async_wait<Tile::STAGES - 2>();
        __syncthreads();
        if (step + Tile::STAGES - 1 < last) {
            const uint32_t refill = stage == 0 ? Tile::STAGES - 1 : stage - 1;
            loader.load_a(p, refill, step + Tile::STAGES - 1);
            loader.load_w(p, refill, step + Tile::STAGES - 1);
        }
        cp_async_commit();
        multiply_stage<T, Tile>(acc, smem + stage * Tile::STAGE_BYTES, warp_m, warp_n);
        stage = stage + 1 == Tile::STAGES ? 0 : stage + 1;
    }
}
