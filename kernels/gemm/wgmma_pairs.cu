// archs: 90a
// gemm_pairs:  y = r + s · act(x wᵀ + b)      as gemm_teams: x [M, K], w [N, K], y [M, cols] of T16 (or f32);
//              K % 8 == 0, any M and N; sums in f32, one rounding
// Teams as in wgmma_teams.cu, in clusters of two CTAs on neighbouring tiles: below one another they have w in common (name
// w...), side by side x (name x...). Each loads half of what is shared and sends it to both, so the L2 is asked for
// (BM + BN / 2) · 128 or (BM / 2 + BN) · 128 bytes a step instead of (BM + BN) · 128.
// A stage is free when the consumers of both CTAs have given it back, because each producer writes into both rings; it
// is full when its own bytes have come, whoever sent them. Both CTAs have the same number of steps; a tile that lies
// outside is multiplied as zeros, or only keeps the ring turning.
// Moves 2·(M·K + N·K + M·cols) bytes at least, 2·M·N·K flops. Goal: 760 TFLOP/s from M = 2048, 14 us at 1025 x 1024 x 4096.
#include "common/export.cuh"
#include "gemm/teams.cuh"

template <Shared SHARED_, int TEAMS_, int BM_, int BN_, int STAGES_>
struct PairTile : TeamTile<TEAMS_, BM_, BN_, STAGES_> {
    using Pair = Pairs<SHARED_>;
    static constexpr Shared SHARED = SHARED_;
    static constexpr int PAIR = Pair::PAIR, PAIR_ROWS = Pair::PAIR_ROWS, PAIR_COLS = Pair::PAIR_COLS;
    // Halves of boxes are whole groups of 8 rows, as the swizzle wants.
    static_assert((SHARED == Shared::W ? BN_ : BM_) % 16 == 0);
};

template <class Tile>
struct PairedRows {
    const TensorMap& x;

    __device__ __forceinline__ void load(uint32_t to, uint32_t barrier, uint32_t step, uint32_t m0) const {
        if constexpr (Tile::SHARED == Shared::X)
            load_half<Tile::X_BYTES, Tile::BM>(to, x, barrier, step * 64, m0);
        else
            tma_load_2d(to, x, barrier, step * 64, m0);
    }
};

// Any even grid in clusters of two. Dynamic shared memory: STAGES · STAGE_BYTES + 1024.
template <class T, class Tile>
__device__ __forceinline__ void gemm_pairs(const WgmmaParams& p) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full_[Tile::STAGES], empty_[Tile::STAGES];
    __shared__ alignas(16) float staging[Tile::CONSUMERS][64 * Tile::PITCH];
    __shared__ alignas(16) T columns[Tile::CONSUMERS][2 * Tile::COLUMNS];
    // The same place in both CTAs, which run the same kernel.
    const uint32_t ring = (smem_address(dynamic) + 1023) & ~1023u;
    const uint32_t full = smem_address(full_), empty = smem_address(empty_);
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    start_ring<Tile>(p, full, empty, 2 * Tile::MEMBERS);
    // Nothing is sent to a CTA before its barriers are there.
    cluster_arrive(false);
    cluster_wait();

    if (warpgroup == 0) {
        give_registers<Tile::PRODUCER_REGISTERS>();
        if (threadIdx.x < 32 && elect_one()) produce<Tile>(p, PairedRows<Tile>{p.x}, ring, full, empty);
        return;
    }
    take_registers<Tile::CONSUMER_REGISTERS>();
    const uint32_t consumer = warpgroup - 1;
    consume<T, Tile>(p, ring, full, empty, consumer, staging[consumer], columns[consumer]);
    // No CTA leaves while the other may still arrive at its barriers.
    __syncwarp();
    cluster_arrive(false);
    cluster_wait();
}

#define EXPORT_PAIRS(letter, shared, teams, bm, bn, stages)                                                             \
    EXPORT(gemm_pairs_##letter##teams##x##bm##x##bn##x##stages##_bf16, WgmmaParams,                                     \
           (PairTile<shared, teams, bm, bn, stages>::THREADS), 1,                                                       \
           gemm_pairs<__nv_bfloat16, PairTile<shared, teams, bm, bn, stages>>)                                          \
    EXPORT(gemm_pairs_##letter##teams##x##bm##x##bn##x##stages##_f16, WgmmaParams,                                      \
           (PairTile<shared, teams, bm, bn, stages>::THREADS), 1, gemm_pairs<__half, PairTile<shared, teams, bm, bn, stages>>)

EXPORT_PAIRS(w, Shared::W, 1, 128, 256, 4)
EXPORT_PAIRS(w, Shared::W, 1, 128, 192, 5)
EXPORT_PAIRS(w, Shared::W, 1, 128, 128, 6)
EXPORT_PAIRS(w, Shared::W, 2, 128, 128, 6)
EXPORT_PAIRS(w, Shared::W, 1, 192, 192, 4)
EXPORT_PAIRS(w, Shared::W, 1, 192, 96, 5)
EXPORT_PAIRS(x, Shared::X, 1, 128, 256, 4)
EXPORT_PAIRS(x, Shared::X, 1, 128, 128, 6)
EXPORT_PAIRS(x, Shared::X, 2, 128, 128, 6)
EXPORT_PAIRS(x, Shared::X, 1, 192, 96, 5)
