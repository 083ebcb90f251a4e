// archs: 90a
// conv_wgmma:  y[p, q, n] = act(Σ x[2p + r, 2q + s, c] w[n, r, s, c] + b[n])      r, s < 3; x [H, W, C], w [N, 9·C],
//              y [P, Q, N] of T16; P = (H - 3) / 2 + 1, Q likewise; C % 8 == 0, N % 8 == 0, Q <= BM; sums in f32, one
//              rounding; act is none or ReLU
// A matrix product of M = P·Q rows without a copy of the windows. Rows of a tile: whole output frames, BM / Q of them
// (10 of 19 in 192 rows), so a tap (r, s) of a tile is one box of the image seen as {C, column parity, column / 2,
// row / 2}, with one map for even rows and one for odd rows. Each map ends with its last row, so a frame beyond the
// last reads as zero and nothing outside x is touched. Rows of the tile that no box fills stay as they are: they
// spoil their own sums alone, which are not written.
// A k step is 64 channels of one tap; taps turn fastest, so that the pixels that taps share are still in the L2.
// The machinery is that of gemm/wgmma.cu: producer, ring, consumers of 64 x BN, splits of K, persistent CTAs.
// Moves 2·(H·W·C + 9·C·N + P·Q·N) bytes at least, 18·P·Q·C·N flops. Goal: 700 TFLOP/s (89.3 GFLOP at 1000 frames:
// 128 us).
#include "common/export.cuh"
#include "gemm/wgmma.cuh"

struct ConvParams {
    // x: even rows, {C, 2, ceil(W / 2), ceil(H / 2)}, box {64, 1, Q, frames}. w: {C, 9, N}, box {64, 1, BN}. Both with
    // swizzle 128 B. m = P·Q, n = N, k = 9·C.
    WgmmaParams g;
    TensorMap odd_rows;  // as x, H / 2 of them
    uint32_t out_height, out_width;
    uint32_t frames;  // of a tile
    uint32_t chunks;  // of 64 channels
};

// What a warp finishes at a time of BN columns. Half of what gemm/wgmma.cu takes: 208 columns are 13 chunks, and the
// ring keeps the memory.
template <int BN_>
struct Columns {
    static constexpr int BN = BN_, CHUNK = 16, PITCH = 24;
};

// Two consumers have 64 rows each. The third 64 of a tile of 192 rows they share, each half of the columns: a third
// consumer would leave too few registers for 208 columns.
template <int BM_, int BN_, int STAGES_>
struct ConvTile : Columns<BN_> {
    static constexpr int BM = BM_, BK = 64, STAGES = STAGES_, CONSUMERS = 2, THREADS = 128 * (1 + CONSUMERS);
    static constexpr bool SHARED = BM == 192;
    static constexpr int HALF = BN_ / 2;  // columns of the shared rows
    static constexpr int X_BYTES = BM * BK * 2, W_BYTES = BN_ * BK * 2, STAGE_BYTES = X_BYTES + W_BYTES;
    static constexpr int JOIN_BATCH = BN_ == 208 ? 13 : 8;
    static_assert(BM == 128 || (SHARED && HALF % 8 == 0));
    static_assert(STAGES * STAGE_BYTES + 4 * CONSUMERS * 16 * Columns<BN_>::PITCH * 4 + 2304 <= 228 * 1024);
};

struct ConvUnit : Unit {
    uint32_t frame;  // first one of the tile; its row is m0
};

// Units in order: the splits of a tile, then tiles along N, which share the image, then along the frames.
template <class Tile>
struct Schedule {
    uint32_t cols, units, steps, unit;

    __device__ __forceinline__ explicit Schedule(const ConvParams& p) {
        cols = (p.g.n + Tile::BN - 1) / Tile::BN;
        units = (p.out_height + p.frames - 1) / p.frames * cols * p.g.splits;
        steps = 9 * p.chunks;
        unit = blockIdx.x;
    }
    __device__ __forceinline__ bool more() const { return unit < units; }
    __device__ __forceinline__ void next() { unit += gridDim.x; }
    __device__ __forceinline__ ConvUnit get(const ConvParams& p) const {
        const uint32_t splits = p.g.splits, id = unit / splits, split = unit % splits, frame = id / cols * p.frames;
        // Never empty while splits <= steps.
        return {{frame * p.out_width, id % cols * Tile::BN, id, split, split * steps / splits,
                 (split + 1) * steps / splits},
                frame};
    }
};

// Tap 3r + s of 64 channels.
template <class Tile>
__device__ __forceinline__ void load_w(const ConvParams& p, uint32_t ring, uint32_t stage, uint32_t full,
                                       uint32_t step, uint32_t n0) {
    const uint32_t to = ring + stage * Tile::STAGE_BYTES + Tile::X_BYTES, barrier = full + stage * 8;
    mbarrier_expect_tx(barrier, p.frames * p.out_width * (Tile::BK * 2) + Tile::W_BYTES);
    tma_load_3d(to, p.g.w, barrier, step / 9 * Tile::BK, step % 9, n0);
}

// The pixels (2 frame + r, s), (2 frame + r, 2 + s), .. that the outputs of the tile see through this tap.
template <class Tile>
__device__ __forceinline__ void load_x(const ConvParams& p, uint32_t ring, uint32_t stage, uint32_t full,
                                       uint32_t step, uint32_t frame) {
    const uint32_t to = ring + stage * Tile::STAGE_BYTES, barrier = full + stage * 8;
    const uint32_t c = step / 9 * Tile::BK, r = step % 9 / 3, s = step % 3;
    if (r == 1)
        tma_load_4d(to, p.odd_rows, barrier, c, s % 2, s / 2, frame);
    else
        tma_load_4d(to, p.g.x, barrier, c, s % 2, s / 2, frame + r / 2);
}

// One thread. The weights of the first stages are asked for before the wait for the kernel that made x.
template <class Tile>
__device__ __forceinline__ void produce(const ConvParams& p, uint32_t ring, uint32_t full, uint32_t empty) {
    Schedule<Tile> schedule(p);
    ConvUnit u = {};
    if (schedule.more()) u = schedule.get(p);
    uint32_t early = min(u.last - u.first, uint32_t(Tile::STAGES));
    for (uint32_t i = 0; i < early; i++) load_w<Tile>(p, ring, i, full, u.first + i, u.n0);
    pdl_wait();
    pdl_trigger();
    Cursor<Tile> at;
    while (schedule.more()) {
        for (uint32_t step = u.first; step < u.last; step++, at.next()) {
            if (early > 0) {
                early--;
            } else {
                mbarrier_wait(empty + at.stage * 8, at.phase ^ 1);
                load_w<Tile>(p, ring, at.stage, full, step, u.n0);
            }
            load_x<Tile>(p, ring, at.stage, full, step, u.frame);
        }
        schedule.next();
        if (schedule.more()) u = schedule.get(p);
    }
}

// Bias and activation. One warp has rows row0 .. row0 + 16, of which those before `end` are written, of columns
// n0 .. n0 + BN; `staging` is its own. A lane finishes half a row of 16 columns at a time.
template <class T, int BN>
__device__ __forceinline__ void finish(const float (&acc)[BN / 2], const Epilogue& e, float* staging, uint32_t row0,
                                       uint32_t end, uint32_t n0) {
    using C = Columns<BN>;
    const uint32_t lane = threadIdx.x % 32, row = row0 + lane / 2, end_col = min(n0 + BN, e.cols);
    const float* from = staging + lane / 2 * C::PITCH + lane % 2 * 8;
    const float least = e.act == ACT_RELU ? 0.f : -INFINITY;
#pragma unroll 1
    for (int c = 0; c < (BN + C::CHUNK - 1) / C::CHUNK; c++) {
        // All have taken what was there before; then all have written.
        __syncwarp();
        deposit<C>(acc, staging, c);
        __syncwarp();
        const uint32_t col = n0 + c * C::CHUNK + lane % 2 * 8;
        if (row >= end || col >= end_col) continue;
        Float8 v = take_8(from, lane / 2 % 2);
        add(v, vector_at<T>(e.bias, col));
#pragma unroll
        for (int j = 0; j < 8; j++) v.v[j] = v.v[j] <= least ? least : v.v[j];  // NaN stays NaN
        *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + size_t(row) * e.cols + col) = pack<T>(v);
    }
    __syncwarp();  // wgmma wants whole warps
}

// One warpgroup. Where all of its rows lie beyond the last frame it multiplies zeros.
template <class T, class Tile>
__device__ __forceinline__ void consume(const ConvParams& p, uint32_t ring, uint32_t full, uint32_t empty,
                                        uint32_t consumer, float* staging) {
    constexpr uint32_t BLOCK_BYTES = 64 * Tile::BK * 2;  // 64 rows
    const uint64_t x0 = wgmma_descriptor(ring + consumer * BLOCK_BYTES), w0 = wgmma_descriptor(ring + Tile::X_BYTES);
    const uint64_t shared_x0 = wgmma_descriptor(ring + 2 * BLOCK_BYTES);
    const uint64_t half_w0 = wgmma_descriptor(ring + Tile::X_BYTES + consumer * Tile::HALF * Tile::BK * 2);
    const uint32_t warp = threadIdx.x / 32 % 4;
    pdl_wait();
    pdl_trigger();
    Cursor<Tile> at;
    for (Schedule<Tile> schedule(p); schedule.more(); schedule.next()) {
        const ConvUnit u = schedule.get(p);
        float acc[Tile::BN / 2], shared[Tile::HALF / 2];
        uint32_t before = 0;
        for (uint32_t step = u.first; step < u.last; step++, at.next()) {
            mbarrier_wait(full + at.stage * 8, at.phase);
            const uint32_t offset = at.stage * (Tile::STAGE_BYTES >> 4);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < Tile::BK / 16; k++) {
                const uint32_t to = offset + 2 * k, keep = k > 0 || step > u.first;
                wgmma<T, Tile::BN>(acc, x0 + to, w0 + to, keep);
                if constexpr (Tile::SHARED) wgmma<T, Tile::HALF>(shared, shared_x0 + to, half_w0 + to, keep);
            }
            wgmma_commit();
            // One batch stays in flight; the one before it is done with its stage.
            wgmma_wait<1>();
            if (step > u.first) release(empty + before * 8);
            before = at.stage;
        }
        wgmma_wait<0>();
        wgmma_settle(acc);
        if constexpr (Tile::SHARED) wgmma_settle(shared);
        release(empty + before * 8);
        // choose() splits no tile with shared rows.
        if constexpr (!Tile::SHARED)
            if (p.g.splits > 1 && !join_splits<Tile>(acc, p.g, u, consumer)) continue;
        const uint32_t row0 = u.m0 + warp * 16, end = min(u.m0 + p.frames * p.out_width, p.g.m);
        finish<T, Tile::BN>(acc, p.g.e, staging, row0 + consumer * 64, end, u.n0);
        if constexpr (Tile::SHARED)
            finish<T, Tile::HALF>(shared, p.g.e, staging, row0 + 128, end, u.n0 + consumer * Tile::HALF);
    }
}

// Any grid. Dynamic shared memory: STAGES · STAGE_BYTES + 1024.
template <class T, class Tile>
__device__ __forceinline__ void conv_wgmma(const ConvParams& p) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full_[Tile::STAGES], empty_[Tile::STAGES];
    __shared__ alignas(16) float staging[4 * Tile::CONSUMERS][16 * Tile::PITCH];
    const uint32_t ring = (smem_address(dynamic) + 1023) & ~1023u;
    const uint32_t full = smem_address(full_), empty = smem_address(empty_);
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(p.g.x);
        prefetch_tensor_map(p.odd_rows);
        prefetch_tensor_map(p.g.w);
        for (int s = 0; s < Tile::STAGES; s++) {
            mbarrier_init(full + s * 8, 1);
            mbarrier_init(empty + s * 8, Tile::CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    if (warpgroup == 0) {
        give_registers<40>();
        if (threadIdx.x < 32 && elect_one()) produce<Tile>(p, ring, full, empty);
        return;
    }
    take_registers<232>();
    consume<T, Tile>(p, ring, full, empty, warpgroup - 1, staging[threadIdx.x / 32 - 4]);
}

#define EXPORT_CONV(bm, bn, stages)                                                                      \
    EXPORT(conv_wgmma_##bm##x##bn##x##stages##_bf16, ConvParams, (ConvTile<bm, bn, stages>::THREADS), 1, \
           conv_wgmma<__nv_bfloat16, ConvTile<bm, bn, stages>>)                                          \
    EXPORT(conv_wgmma_##bm##x##bn##x##stages##_f16, ConvParams, (ConvTile<bm, bn, stages>::THREADS), 1,  \
           conv_wgmma<__half, ConvTile<bm, bn, stages>>)

EXPORT_CONV(192, 208, 4)
EXPORT_CONV(128, 208, 5)
EXPORT_CONV(128, 128, 6)
