// archs: 90a
// gemm_wgmma:  y = r + s · act(x wᵀ + b)      x [M, K], w [N, K], y [M, cols] of T16 (or f32); K % 8 == 0, any M and
//              N; sums in f32, one rounding
// CTA = one producer warpgroup (one thread issues TMA) + BM / 64 consumer warpgroups of 64 x BN (wgmma m64nBNk16), a
// ring of STAGES stages of [BM rows of x | BN rows of w] x 64 columns between them. Persistent: CTA c takes the
// units c, c + grid, ...; loads of the next unit run under the epilogue of the last. A unit is a tile, or a part of
// its K: then f32 partials go through scratch, and the last CTA of a tile adds them in the order of K, so results
// repeat to the bit.
// Epilogue: 32 columns at a time through shared memory, so that a lane finishes 8 neighbours of a row and its code
// exists once (unrolled over the registers it was 320 KB, and fetching it cost as much as the product).
// Moves 2·(M·K + N·K + M·cols) bytes at least, 2·M·N·K flops. Goal: 650 TFLOP/s from M = 512; the read rate of w
// below M = 128.
#include "common/export.cuh"
#include "gemm/units.cuh"

// A CTA tile. Two CTAs of the 64x128 tile fit on an SM.
template <int BM_, int BN_, int STAGES_>
struct WgmmaTile : Alone {
    static constexpr int BM = BM_, BN = BN_, BK = 64, STAGES = STAGES_;
    static constexpr int CONSUMERS = BM / 64, THREADS = 128 * (1 + CONSUMERS);
    static constexpr int CTAS = BM * BN <= 64 * 128 ? 2 : 1;
    static constexpr int X_BYTES = BM * BK * 2, W_BYTES = BN * BK * 2, STAGE_BYTES = X_BYTES + W_BYTES;
    // What 128 threads of each role hold after they have exchanged registers; 0: as launched.
    static constexpr int PRODUCER_REGISTERS = THREADS * CTAS > 256 ? 40 : 0;
    static constexpr int CONSUMER_REGISTERS = CONSUMERS == 2 ? 232 : 216;
    static constexpr int CHUNK = 32, PITCH = 40, STAGING_BYTES = 4 * CONSUMERS * 16 * PITCH * 4;
    static constexpr int JOIN_BATCH = divisor_up_to(8, BN / 8);
    static_assert(BM % 64 == 0 && BN % 16 == 0 && CONSUMERS <= 2);
    static_assert(CTAS * (STAGES * STAGE_BYTES + STAGING_BYTES + 2304) <= 228 * 1024);
};

// The 8 sums of a lane that make the outputs at `col`: a row of `staging`, and after SwiGLU two blocks of it.
template <class T, class Tile>
__device__ __forceinline__ Float8 activated(const WgmmaParams& p, const float* staging, uint32_t i, uint32_t col) {
    const Epilogue& e = p.e;
    const uint32_t lane = threadIdx.x % 32;
    const bool whole = p.n % 8 == 0;  // else a bias may end within the vector
    const auto biased = [&](Float8 v, uint32_t n) {
        if (e.bias == nullptr) return v;
        if (whole) {
            add(v, vector_at<T>(e.bias, n));
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++) v.v[j] += value_or<T>(e.bias, n + j, p.n, 0.f);
        }
        return v;
    };
    if (e.act == ACT_SWIGLU) {
        const float* from = staging + lane / 2 * Tile::PITCH + lane % 2 * 16;
        Float8 gate = biased(take_8(from, false), 2 * col);
        const Float8 up = biased(take_8(from + 8, false), 2 * col + 8);
#pragma unroll
        for (int j = 0; j < 8; j++) gate.v[j] = silu(gate.v[j]) * up.v[j];
        return gate;
    }
    const uint32_t row = lane / 4 + 8 * i;
    Float8 v = biased(take_8(staging + row * Tile::PITCH + lane % 4 * 8, row % 2), col);
    if (e.act == ACT_GELU) {
#pragma unroll
        for (int j = 0; j < 8; j++) v.v[j] = gelu(v.v[j]);
    } else if (e.act == ACT_RELU) {
#pragma unroll
        for (int j = 0; j < 8; j++) v.v[j] = relu(v.v[j]);
    }
    return v;
}

// All that follows the sums. One warp has rows row0 .. row0 + 16 of columns n0 .. n0 + BN; `staging` is its own.
template <class T, class Tile>
__device__ __forceinline__ void finish(float (&acc)[Tile::BN / 2], const WgmmaParams& p, float* staging,
                                       uint32_t row0, uint32_t n0) {
    constexpr int CHUNKS = (Tile::BN + Tile::CHUNK - 1) / Tile::CHUNK;
    const Epilogue& e = p.e;
    // A lane makes two vectors of 8 outputs of every chunk, or one after SwiGLU, which halves the columns.
    const uint32_t lane = threadIdx.x % 32, halved = e.act == ACT_SWIGLU, per_row = halved ? 2 : 4;
    const uint32_t row = row0 + lane / per_row, col0 = (n0 >> halved) + lane % per_row * 8;
    // The last chunk may reach beyond the tile.
    const uint32_t end = min((n0 + Tile::BN) >> halved, e.cols), pitch = 8 * per_row;
    const bool vectors = e.cols % 8 == 0;
    const auto inside = [&](int i, uint32_t col) { return (i == 0 || !halved) && row + 8 * i < p.m && col < end; };
    const auto ask = [&](uint32_t col, uint4 (&r)[2]) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (const T* from = residual_at<T>(e, row + 8 * i, col); from != nullptr && vectors && inside(i, col))
                r[i] = *reinterpret_cast<const uint4*>(from);
    };

    uint4 residual[2] = {};
    ask(col0, residual);
#pragma unroll 1
    for (int c = 0; c < CHUNKS; c++) {
        // All have taken what was there before; then all have written.
        __syncwarp();
        deposit<Tile>(acc, staging, c);
        __syncwarp();
        const uint32_t col = col0 + c * pitch;
        uint4 next[2] = {};
        ask(col + pitch, next);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (!inside(i, col)) continue;
            Float8 v = activated<T, Tile>(p, staging, i, col);
            const size_t at = size_t(row + 8 * i) * e.cols + col;
            if (!vectors) {
#pragma unroll
                for (int j = 0; j < 8; j++)
                    if (col + j < e.cols)
                        put<T>(e, row + 8 * i, col + j, v.v[j], value_or<T>(e.scale, col + j, e.cols, 1.f));
                continue;
            }
            if (e.scale != nullptr) {
                const Float8 s = vector_at<T>(e.scale, col);
#pragma unroll
                for (int j = 0; j < 8; j++) v.v[j] *= s.v[j];
            }
            if (e.residual != nullptr) add(v, unpack<T>(residual[i]));
            if (e.out_f32) {
                float4* y = reinterpret_cast<float4*>(static_cast<float*>(e.y) + at);
                y[0] = make_float4(v.v[0], v.v[1], v.v[2], v.v[3]);
                y[1] = make_float4(v.v[4], v.v[5], v.v[6], v.v[7]);
            } else {
                *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + at) = pack<T>(v);
            }
        }
        residual[0] = next[0], residual[1] = next[1];
    }
    __syncwarp();  // wgmma wants whole warps
}

// One warpgroup: 64 rows of every tile.
template <class T, class Tile>
__device__ __forceinline__ void consume(const WgmmaParams& p, uint32_t ring, uint32_t full, uint32_t empty,
                                        uint32_t consumer, float* staging) {
    const uint64_t x0 = wgmma_descriptor(ring + consumer * 64 * 128), w0 = wgmma_descriptor(ring + Tile::X_BYTES);
    const uint32_t warp = threadIdx.x / 32 % 4;
    pdl_trigger();
    pdl_wait();
    Cursor<Tile> at;
    for (Schedule<Tile> schedule(p); schedule.more(); schedule.next()) {
        const Unit u = schedule.get(p);
        if (u.m0 + consumer * 64 >= p.m) {
            // Rows beyond the last: only keep the ring turning. The barrier keeps the four warps together, as wgmma
            // does elsewhere: a warp that fell a whole round behind would wait for a phase that is past.
            for (uint32_t step = u.first; step < u.last; step++, at.next()) {
                mbarrier_wait(full + at.stage * 8, at.phase);
                consumer_barrier<Tile::CONSUMERS>(consumer);
                release(empty + at.stage * 8);
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
            if (step > u.first) release(empty + before * 8);
            before = at.stage;
        }
        wgmma_wait<0>();
        wgmma_settle(acc);
        release(empty + before * 8);
        if (p.splits > 1 && !join_splits<Tile>(acc, p, u, consumer)) continue;
        finish<T, Tile>(acc, p, staging + warp * 16 * Tile::PITCH, u.m0 + consumer * 64 + warp * 16, u.n0);
    }
}

// Any grid. Dynamic shared memory: STAGES · STAGE_BYTES + 1024.
template <class T, class Tile>
__device__ __forceinline__ void gemm_wgmma(const WgmmaParams& p) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full_[Tile::STAGES], empty_[Tile::STAGES];
    __shared__ alignas(16) float staging[Tile::CONSUMERS][64 * Tile::PITCH];
    const uint32_t ring = (smem_address(dynamic) + 1023) & ~1023u;
    const uint32_t full = smem_address(full_), empty = smem_address(empty_);
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    start_ring<Tile>(p, full, empty, Tile::CONSUMERS);

    if (warpgroup == 0) {
        if constexpr (Tile::PRODUCER_REGISTERS > 0) give_registers<Tile::PRODUCER_REGISTERS>();
        if (threadIdx.x < 32 && elect_one()) produce<Tile>(p, DenseRows{p.x}, ring, full, empty);
        return;
    }
    if constexpr (Tile::PRODUCER_REGISTERS > 0) take_registers<Tile::CONSUMER_REGISTERS>();
    consume<T, Tile>(p, ring, full, empty, warpgroup - 1, staging[warpgroup - 1]);
}

#define EXPORT_WGMMA(bm, bn, stages)                                                                        \
    EXPORT(gemm_wgmma_##bm##x##bn##x##stages##_bf16, WgmmaParams, (WgmmaTile<bm, bn, stages>::THREADS),     \
           (WgmmaTile<bm, bn, stages>::CTAS), gemm_wgmma<__nv_bfloat16, WgmmaTile<bm, bn, stages>>)         \
    EXPORT(gemm_wgmma_##bm##x##bn##x##stages##_f16, WgmmaParams, (WgmmaTile<bm, bn, stages>::THREADS),      \
           (WgmmaTile<bm, bn, stages>::CTAS), gemm_wgmma<__half, WgmmaTile<bm, bn, stages>>)

EXPORT_WGMMA(128, 256, 4)
EXPORT_WGMMA(128, 224, 4)
EXPORT_WGMMA(128, 192, 5)
EXPORT_WGMMA(128, 144, 6)
EXPORT_WGMMA(128, 128, 6)
EXPORT_WGMMA(64, 256, 5)
EXPORT_WGMMA(64, 128, 4)
