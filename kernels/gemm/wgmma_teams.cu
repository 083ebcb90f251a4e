// archs: 90a
// gemm_teams:  y = r + s · act(x wᵀ + b)      as gemm_wgmma: x [M, K], w [N, K], y [M, cols] of T16 (or f32);
//              K % 8 == 0, any M and N; sums in f32, one rounding
// gemm_windows: the same for a convolution over rows with stride 2: row m of x is rows 2m, 2m + 1, .. of a matrix
//              [T, C], C % 64 == 0, one after another, and zeros behind its last
// CTA = one producer warpgroup + two or three consumer warpgroups around a ring of STAGES stages, persistent, as in
// wgmma.cu. The consumers form teams:
//   one team:  its warpgroups share a tile, 64 rows each. Three of them make 192 rows, which fits 1025 rows of a
//              picture into one wave.
//   two teams: a warpgroup each, on tiles of their own, in turns: one finishes its tile while the other multiplies.
//              The ring carries the units in order; a turn lasts for the k steps of one unit, so a consumer only
//              waits for stages whose older phases have been waited for.
//   cluster:   one team, one unit per CTA. The CTAs of a cluster have a part of the K of one tile each, add the sums in
//              the order of K through each other's shared memory and share the epilogue.
// Epilogue: as there through shared memory, 32 columns at a time, but nothing in its loop waits for memory: bias and
// scale of the tile are asked for before the product and lie in shared memory after it, the residual is asked into
// the L2 before the product and into registers one round ahead; both vectors of a lane go together, activations are
// as exact as 16 bits want (common/act.cuh).
// Moves 2·(M·K + N·K + M·cols) bytes at least, 2·M·N·K flops. Goal: 700 TFLOP/s from M = 2048; one wave at M = 1025.
#include "common/export.cuh"
#include "gemm/teams.cuh"

// One warpgroup of a CTA that shares the K of one tile with the other CTAs of its cluster. All sums go to shared
// memory, where the ring was; then every CTA finishes its share of the columns.
template <class T, class Tile>
__device__ __forceinline__ void consume_in_cluster(const WgmmaParams& p, uint32_t ring, uint32_t full, uint32_t empty,
                                                   uint32_t consumer, float* exchange, T* columns) {
    static_assert(Tile::TEAMS == 1 && Tile::CHUNKS * Tile::BM * Tile::PITCH * 4 <= Tile::STAGES * Tile::STAGE_BYTES);
    const uint64_t x0 = wgmma_descriptor(ring + consumer * 64 * 128), w0 = wgmma_descriptor(ring + Tile::X_BYTES);
    const uint32_t warp_row = consumer * 64 + threadIdx.x / 32 % 4 * 16;
    pdl_trigger();
    pdl_wait();
    // Rows beyond M are zeros: they are multiplied like others, so that all come to the barriers.
    const Unit u = Schedule<Tile>(p).get(p);
    const uint32_t row0 = u.m0 + warp_row;
    const Columns<T, Tile> ahead(p.e, p.n, u.n0);
    ask_residual<T, Tile>(p, row0, u.n0);
    Cursor<Tile> at;
    float acc[1][Tile::BN / 2];
    multiply<T, Tile>(acc, u, at, x0, w0, full, empty);
    wgmma_wait<0>();
    wgmma_settle(acc[0]);
    ahead.keep(columns);
    // All consumers have read all stages, and the producer has asked for no more than those.
    named_barrier<6, Tile::CONSUMERS * 128>();
#pragma unroll 1
    for (uint32_t chunk = 0; chunk < Tile::CHUNKS; chunk++)
        deposit<Tile>(acc[0], exchange + (chunk * Tile::BM + warp_row) * Tile::PITCH, chunk);
    __syncwarp();
    cluster_arrive(true);
    cluster_wait();
    const ClusterSums<Tile> sums{smem_address(exchange) + warp_row * Tile::PITCH * 4, p.splits};
    const uint32_t first = u.split * Tile::CHUNKS / p.splits, last = (u.split + 1) * Tile::CHUNKS / p.splits;
    if (first < last) finish<T, Tile>(sums, p, columns, row0, u.n0, first, last);
    // No CTA leaves while another may read its memory.
    __syncwarp();
    cluster_arrive(false);
    cluster_wait();
}

// The even rows of the matrix and the odd ones are a matrix each: so tap t of window m is row m + t / 2 of one of them.
struct WindowParams {
    WgmmaParams g;  // x: {C, even rows}, box {64, BM}
    TensorMap odd;
    uint32_t chunks;  // of 64 columns in C
};

struct WindowRows {
    const WindowParams& p;

    __device__ __forceinline__ void load(uint32_t to, uint32_t barrier, uint32_t step, uint32_t m0) const {
        const uint32_t tap = step / p.chunks, chunk = step % p.chunks;
        if (tap % 2 == 0)
            tma_load_2d(to, p.g.x, barrier, chunk * 64, m0 + tap / 2);
        else
            tma_load_2d(to, p.odd, barrier, chunk * 64, m0 + tap / 2);
    }
};

// Any grid; CLUSTER: one CTA per unit, clusters of p.splits. Dynamic shared memory: STAGES · STAGE_BYTES + 1024.
template <class T, class Tile, bool CLUSTER, class Rows>
__device__ __forceinline__ void gemm_rows(const WgmmaParams& p, const Rows& rows) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full_[Tile::STAGES], empty_[Tile::STAGES];
    __shared__ alignas(16) float staging[CLUSTER ? 1 : Tile::CONSUMERS][64 * Tile::PITCH];
    __shared__ alignas(16) T columns[Tile::CONSUMERS][2 * Tile::COLUMNS];
    const uint32_t ring = (smem_address(dynamic) + 1023) & ~1023u;
    const uint32_t full = smem_address(full_), empty = smem_address(empty_);
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    start_ring<Tile>(p, full, empty, Tile::MEMBERS);

    if (warpgroup == 0) {
        give_registers<Tile::PRODUCER_REGISTERS>();
        if (threadIdx.x < 32 && elect_one()) produce<Tile>(p, rows, ring, full, empty);
        return;
    }
    take_registers<Tile::CONSUMER_REGISTERS>();
    const uint32_t consumer = warpgroup - 1;
    if constexpr (CLUSTER) {
        float* exchange = reinterpret_cast<float*>(reinterpret_cast<char*>(dynamic) + (ring - smem_address(dynamic)));
        consume_in_cluster<T, Tile>(p, ring, full, empty, consumer, exchange, columns[consumer]);
    } else {
        consume<T, Tile>(p, ring, full, empty, consumer, staging[consumer], columns[consumer]);
    }
}

template <class T, class Tile, bool CLUSTER>
__device__ __forceinline__ void gemm_teams(const WgmmaParams& p) {
    gemm_rows<T, Tile, CLUSTER>(p, DenseRows{p.x});
}
template <class T, class Tile>
__device__ __forceinline__ void gemm_windows(const WindowParams& p) {
    gemm_rows<T, Tile, true>(p.g, WindowRows{p});
}

#define EXPORT_TEAMS_AS(name, cluster, teams, bm, bn, stages)                                                \
    EXPORT(name##_bf16, WgmmaParams, (TeamTile<teams, bm, bn, stages>::THREADS),                             \
           (TeamTile<teams, bm, bn, stages>::CTAS),                                                          \
           gemm_teams<__nv_bfloat16, TeamTile<teams, bm, bn, stages>, cluster>)                              \
    EXPORT(name##_f16, WgmmaParams, (TeamTile<teams, bm, bn, stages>::THREADS),                              \
           (TeamTile<teams, bm, bn, stages>::CTAS), gemm_teams<__half, TeamTile<teams, bm, bn, stages>, cluster>)
#define EXPORT_TEAMS(teams, bm, bn, stages) \
    EXPORT_TEAMS_AS(gemm_teams_##teams##x##bm##x##bn##x##stages, false, teams, bm, bn, stages)
#define EXPORT_CLUSTER(bm, bn, stages) \
    EXPORT_TEAMS_AS(gemm_teams_cluster_##bm##x##bn##x##stages, true, 1, bm, bn, stages)
#define EXPORT_WINDOWS(bm, bn, stages)                                                                       \
    EXPORT(gemm_windows_##bm##x##bn##x##stages##_bf16, WindowParams, (TeamTile<1, bm, bn, stages>::THREADS), \
           (TeamTile<1, bm, bn, stages>::CTAS), gemm_windows<__nv_bfloat16, TeamTile<1, bm, bn, stages>>)    \
    EXPORT(gemm_windows_##bm##x##bn##x##stages##_f16, WindowParams, (TeamTile<1, bm, bn, stages>::THREADS),  \
           (TeamTile<1, bm, bn, stages>::CTAS), gemm_windows<__half, TeamTile<1, bm, bn, stages>>)

EXPORT_TEAMS(1, 192, 192, 4)
EXPORT_TEAMS(1, 192, 144, 4)
EXPORT_TEAMS(1, 192, 128, 4)
EXPORT_TEAMS(1, 192, 96, 5)
EXPORT_TEAMS(1, 128, 256, 4)
EXPORT_TEAMS(1, 128, 224, 4)
EXPORT_TEAMS(1, 128, 208, 4)
EXPORT_TEAMS(1, 128, 192, 5)
EXPORT_TEAMS(1, 128, 144, 6)
EXPORT_TEAMS(1, 128, 128, 6)
EXPORT_TEAMS(1, 128, 96, 3)
EXPORT_TEAMS(1, 64, 128, 4)
EXPORT_TEAMS(1, 64, 96, 5)
EXPORT_TEAMS(2, 128, 128, 6)
EXPORT_TEAMS(2, 64, 256, 5)
EXPORT_CLUSTER(192, 128, 4)
EXPORT_CLUSTER(192, 96, 5)
EXPORT_CLUSTER(128, 256, 4)
EXPORT_CLUSTER(128, 144, 6)
EXPORT_CLUSTER(128, 128, 6)
EXPORT_CLUSTER(128, 96, 3)
EXPORT_CLUSTER(64, 128, 4)
EXPORT_WINDOWS(128, 128, 6)
EXPORT_WINDOWS(64, 128, 4)
