// gemm_mma:  y = act(a wᵀ + b) or r + s · (a wᵀ + b)      a [M, K] (matrix, overlapping rows, or windows of an image),
//            w [N, K], y [M, cols] of T16 (or f32); K % 8 == 0, sums in f32, one rounding
// gemm_mma_rope:  a wᵀ + b is q | k | v by heads, q and k are turned (rope.cuh), then all go to y and the cache
// Tiles BM x BN x 64 of 128x128, 128x64, 64x128, 64x64, mma.sync m16n8k16, ring of 3 to 4 cp.async stages (main loop
// in mma.cuh). Few tiles: K is split over gridDim.y CTAs, f32 partials go through scratch and the last CTA of a tile
// adds them in the order of K, so results repeat to the bit.
// moves 2·(M·K + N·K + M·cols) bytes at least, 2·M·N·K flops. Goal: 90 % of what mma.sync gives (about 600 TFLOP/s on
// H100) from M = 512; the read rate of w below M = 128
#include "common/export.cuh"
#include "gemm/mma.cuh"
#include "gemm/rope.cuh"

struct GemmRopeParams {
    GemmParams g;  // of its epilogue the bias; cols = N
    RopeEpilogue r;
};

// Tiles in columns of 16 tile rows, rows first: CTAs that run together share a and w in the L2.
__device__ __forceinline__ uint2 tile_of(uint32_t id, uint32_t tiles_m, uint32_t tiles_n) {
    constexpr uint32_t GROUP = 16;
    const uint32_t first = id / (GROUP * tiles_n) * GROUP, rest = id % (GROUP * tiles_n);
    const uint32_t rows = min(GROUP, tiles_m - first);
    return {first + rest % rows, rest / rows};
}

// Adds the partial sums of all splits of this tile; true in the CTA that holds the total.
template <class Tile>
__device__ __forceinline__ bool join_splits(Accumulators<Tile>& acc, const GemmParams& p, uint32_t tile) {
    constexpr int VECTORS = Tile::BLOCKS_M * Tile::BLOCKS_N;
    __shared__ uint32_t arrived;
    const uint32_t splits = gridDim.y;
    // [split][vector][thread]: neighbours in a warp are neighbours in memory.
    float4* partials = reinterpret_cast<float4*>(p.partials) + size_t(tile) * splits * VECTORS * Tile::THREADS;
    float4* mine = partials + blockIdx.y * VECTORS * Tile::THREADS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const float* c = acc.c[i / Tile::BLOCKS_N][i % Tile::BLOCKS_N];
        __stcg(mine + i * Tile::THREADS, make_float4(c[0], c[1], c[2], c[3]));
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(p.counters + tile, 1);
    __syncthreads();
    if (arrived != splits - 1) return false;
    __threadfence();
    if (threadIdx.x == 0) p.counters[tile] = 0;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float4 sum = __ldcg(partials + i * Tile::THREADS + threadIdx.x);
        for (uint32_t s = 1; s < splits; s++) {
            const float4 next = __ldcg(partials + (s * VECTORS + i) * Tile::THREADS + threadIdx.x);
            sum.x += next.x, sum.y += next.y, sum.z += next.z, sum.w += next.w;
        }
        float* c = acc.c[i / Tile::BLOCKS_N][i % Tile::BLOCKS_N];
        c[0] = sum.x, c[1] = sum.y, c[2] = sum.z, c[3] = sum.w;
    }
    return true;
}

// Behind an RmsNorm: the factors of the rows of x.
template <class Tile>
__device__ __forceinline__ void scale_rows(Accumulators<Tile>& acc, const GemmParams& p, uint32_t row0) {
    if (p.e.squares == nullptr) return;
#pragma unroll
    for (int i = 0; i < 2 * Tile::BLOCKS_M; i++) {
        const uint32_t row = row0 + i * 8;
        const float rstd = row < p.m ? rms_rstd_of(p.e.squares + row, p.m, p.k, p.e.eps) : 0.f;
#pragma unroll
        for (int j = 0; j < Tile::BLOCKS_N; j++) acc.c[i / 2][j][i % 2 * 2] *= rstd, acc.c[i / 2][j][i % 2 * 2 + 1] *= rstd;
    }
}

// Bias, activation, scale and residual on the accumulators, straight to global memory: a quad writes 8 neighbours.
template <class T, class Tile>
__device__ __forceinline__ void finish(Accumulators<Tile>& acc, const GemmParams& p, uint32_t m0, uint32_t n0) {
    const Epilogue& e = p.e;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t row0 = m0 + warp / Tile::WARPS_N * Tile::WM + lane / 4;
    const uint32_t n_warp = n0 + warp % Tile::WARPS_N * Tile::WN;
    scale_rows(acc, p, row0);
    if (e.stats != nullptr) {
#pragma unroll
        for (int i = 0; i < 2 * Tile::BLOCKS_M; i++) {
            const uint32_t row = row0 + i * 8;
            if (row >= p.m) continue;
            const float rstd = rstd_of(e.stats + row, p.m, p.k, e.eps);
#pragma unroll
            for (int j = 0; j < Tile::BLOCKS_N; j++) {
                const uint32_t col = n_warp + j * 8 + lane % 4 * 2;
                float v[2];
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const float b = value_or<T>(e.bias, col + k, e.cols, 0.f) + value_or<T>(e.scale, col + k, e.cols, 0.f);
                    v[k] = activate(e.act, fmaf(acc.c[i / 2][j][i % 2 * 2 + k], rstd, b));
                }
                put_pair<T>(e, row, col, v[0], v[1], 1.f, 1.f);
            }
        }
        return;
    }
    if (e.act == ACT_SWIGLU) {
        // Blocks 2j hold gates, blocks 2j + 1 the ups of the same columns: both are in this thread.
#pragma unroll
        for (int j = 0; j < Tile::BLOCKS_N; j += 2) {
            const uint32_t n = n_warp + j * 8 + lane % 4 * 2, col = (n_warp + j * 8) / 2 + lane % 4 * 2;
            float b[2], u[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                b[i] = value_or<T>(e.bias, n + i, p.n, 0.f);
                u[i] = value_or<T>(e.bias, n + 8 + i, p.n, 0.f);
            }
#pragma unroll
            for (int i = 0; i < 2 * Tile::BLOCKS_M; i++) {
                const uint32_t row = row0 + i * 8;
                const float* gate = acc.c[i / 2][j] + i % 2 * 2;
                const float* up = acc.c[i / 2][j + 1] + i % 2 * 2;
                if (row < p.m)
                    put_pair<T>(e, row, col, silu(gate[0] + b[0]) * (up[0] + u[0]),
                                silu(gate[1] + b[1]) * (up[1] + u[1]), 1.f, 1.f);
            }
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < Tile::BLOCKS_N; j++) {
        const uint32_t col = n_warp + j * 8 + lane % 4 * 2;
        float b[2], s[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            b[i] = value_or<T>(e.bias, col + i, e.cols, 0.f);
            s[i] = value_or<T>(e.scale, col + i, e.cols, 1.f);
        }
#pragma unroll
        for (int i = 0; i < 2 * Tile::BLOCKS_M; i++) {
            const uint32_t row = row0 + i * 8;
            const float* c = acc.c[i / 2][j] + i % 2 * 2;
            if (row < p.m)
                put_pair<T>(e, row, col, activate(e.act, c[0] + b[0]), activate(e.act, c[1] + b[1]), s[0], s[1]);
        }
    }
}

// Bias and rotation on the accumulators: blocks 2j and 2j + 1 hold both elements of 8 pairs.
template <class T, class Tile>
__device__ __forceinline__ void finish(Accumulators<Tile>& acc, const GemmParams& p, const RopeEpilogue& rope,
                                       uint32_t m0, uint32_t n0) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, at = lane % 4 * 2;
    const uint32_t row0 = m0 + warp / Tile::WARPS_N * Tile::WM + lane / 4;
    const uint32_t n_warp = n0 + warp % Tile::WARPS_N * Tile::WN;
    scale_rows(acc, p, row0);
#pragma unroll
    for (int j = 0; j < Tile::BLOCKS_N; j += 2) {
        const uint32_t col = n_warp + j * 8;
        if (col >= p.n) continue;
        const HeadColumns<T> to[2] = {{rope, col}, {rope, col + 8}};
        float b[4];
#pragma unroll
        for (int i = 0; i < 4; i++) b[i] = value_or<T>(p.e.bias, col + i / 2 * 8 + at + i % 2, p.n, 0.f);
#pragma unroll
        for (int i = 0; i < 2 * Tile::BLOCKS_M; i++) {
            const uint32_t row = row0 + i * 8;
            if (row >= p.m) continue;
            const float* v = acc.c[i / 2][j] + i % 2 * 2;
            const float* w = acc.c[i / 2][j + 1] + i % 2 * 2;
            float2 first = make_float2(v[0] + b[0], v[1] + b[1]), second = make_float2(w[0] + b[2], w[1] + b[3]);
            turn_pairs(first, second, angles_of(rope, row, col, at));
            const float2 both[2] = {first, second};
#pragma unroll
            for (int k = 0; k < 2; k++)
                if (row < to[k].rows)
                    *reinterpret_cast<Pair<T>*>(to[k].at + row * to[k].pitch + at) = {
                        {from_f32<T>(both[k].x), from_f32<T>(both[k].y)}};
        }
    }
}

// Grid: (tiles, splits). Dynamic shared memory: STAGES · STAGE_BYTES.
template <class T, class Tile, class Rows, class Rope>
__device__ __forceinline__ void multiply(const GemmParams& p, const Rope& rope) {
    extern __shared__ uint4 ring[];
    const uint32_t tiles_m = (p.m + Tile::BM - 1) / Tile::BM, tiles_n = (p.n + Tile::BN - 1) / Tile::BN;
    const uint2 tile = tile_of(blockIdx.x, tiles_m, tiles_n);
    // Split i takes steps [i·steps / splits, (i + 1)·steps / splits): never empty while splits <= steps.
    const uint32_t steps = (p.k + Tile::BK - 1) / Tile::BK;
    const uint32_t first = blockIdx.y * steps / gridDim.y, last = (blockIdx.y + 1) * steps / gridDim.y;

    Accumulators<Tile> acc;
    multiply_tile<T, Tile, Rows>(acc, p, smem_address(ring), tile.x * Tile::BM, tile.y * Tile::BN, first, last);
    if (gridDim.y > 1 && !join_splits(acc, p, blockIdx.x)) return;
    if constexpr (Rope::ON)
        finish<T>(acc, p, rope, tile.x * Tile::BM, tile.y * Tile::BN);
    else
        finish<T>(acc, p, tile.x * Tile::BM, tile.y * Tile::BN);
}

template <class T, class Tile, class Rows>
__device__ __forceinline__ void gemm_mma(const GemmParams& p) {
    multiply<T, Tile, Rows>(p, NoRope());
}

template <class T, class Tile>
__device__ __forceinline__ void gemm_mma_rope(const GemmRopeParams& p) {
    multiply<T, Tile, MatrixRows>(p.g, p.r);
}

using T128x128 = Tile<128, 128, 64, 64>;  // 3 stages, 96 KB
using T128x64 = Tile<128, 64, 64, 32>;    // 4 stages, 96 KB
using T64x128 = Tile<64, 128, 32, 64>;    // 4 stages, 96 KB
using T64x64 = Tile<64, 64, 32, 32>;      // 4 stages, 64 KB

#define EXPORT_MMA(name, ctas)                                                                                  \
    EXPORT(gemm_mma_##name##_bf16, GemmParams, T##name::THREADS, ctas, gemm_mma<__nv_bfloat16, T##name, MatrixRows>) \
    EXPORT(gemm_mma_##name##_f16, GemmParams, T##name::THREADS, ctas, gemm_mma<__half, T##name, MatrixRows>)     \
    EXPORT(gemm_mma_image_##name##_bf16, GemmParams, T##name::THREADS, ctas,                                    \
           gemm_mma<__nv_bfloat16, T##name, ImageRows>)                                                         \
    EXPORT(gemm_mma_image_##name##_f16, GemmParams, T##name::THREADS, ctas, gemm_mma<__half, T##name, ImageRows>) \
    EXPORT(gemm_mma_rope_##name##_bf16, GemmRopeParams, T##name::THREADS, ctas, gemm_mma_rope<__nv_bfloat16, T##name>) \
    EXPORT(gemm_mma_rope_##name##_f16, GemmRopeParams, T##name::THREADS, ctas, gemm_mma_rope<__half, T##name>)

EXPORT_MMA(128x128, 2)
EXPORT_MMA(128x64, 2)
EXPORT_MMA(64x128, 2)
EXPORT_MMA(64x64, 3)
