// flash:  out_i = Σ_j p_ij v_j,  p_i = softmax_j(scale·q_i·k_j + bias_j)          (Dao 2023, FlashAttention-2)
// q, k, v, out of T16 as AttentionParams addresses them (three tensors, one packed tensor or a cache), rows aligned to
// 16 bytes; bias f32 [H, T]; D = 64 or 128, any T and S, masks full, causal, chunk; scale > 0
//
// One CTA of 4 warps per (64·MT query rows, head, sequence); a warp owns 16·MT rows. K and V come in tiles of 64 keys
// (32 where registers are short), two buffers each, by cp.async, one barrier per tile; mma.m16n8k16; m, l, O in
// registers in f32; p is rounded to T16 for P·V. Keys from the end of the sequence (or kv_len) on are zeros in shared
// memory: stale cache rows are never read. Rows from valid_rows on and rows without a key give 0.
// grid = row tiles of all sequences · H, linear; causal, and where sequences differ in length: longest first, the heads of
// a group side by side.
// 4·D flops per head and (query, key) pair behind the mask. Goal 60 % of the mma.sync peak from S = 2048.
#include "attention/params.cuh"
#include "attention/tile.cuh"
#include "common/export.cuh"
#include "common/ptx.cuh"

constexpr int FLASH_WARPS = 4, FLASH_THREADS = 32 * FLASH_WARPS;

// Shared memory: Q [BM][D], then per buffer K [BN][D] and V [BN][D], then bias [2][BN] f32; 128 bytes of slack to align.
template <class T, int D, int MT>
__device__ __forceinline__ void flash(const BatchParams& params) {
    const AttentionParams& p = params.a;
    static_assert(D == 64 || D == 128);
    constexpr int BM = 16 * MT * FLASH_WARPS, CHUNKS = D / 8, ROW_STEP = FLASH_THREADS / CHUNKS;
    constexpr int BN = D * MT == 256 ? 32 : 64;  // 64 keys would spill there
    constexpr uint32_t TILE_BYTES = BN * D * 2;
    constexpr bool Q_STAYS = D * MT <= 128;  // in registers: 32 of them; else it is read again for every tile
    extern __shared__ uint8_t flash_smem[];
    const uint32_t sq = (smem_addr(flash_smem) + 127u) & ~127u;
    const uint32_t skv = sq + BM * D * 2, sbias = skv + 4 * TILE_BYTES;

    const int tiles = (int(p.rows) + BM - 1) / BM, heads = int(p.heads * p.batch), at = int(blockIdx.x);
    const bool causal = p.mask == MASK_CAUSAL, alike = params.lengths.tiles == 0;
    const int head_seq = causal || !alike ? at % heads : at / tiles;
    const int head = head_seq % int(p.heads), seq = head_seq / int(p.heads);
    RowTile tile = {seq * p.rows, int(p.rows), (causal ? tiles - 1 - at / heads : at % tiles) * BM};
    if (!alike) tile = tile_of(params.lengths, at / heads, BM, causal);
    const int m0 = tile.m0;
    const size_t row0 = tile.row0;
    const Extent e = p.step ? extent_before_wait(p) : Extent{0, tile.rows, tile.rows};
    const auto* q = static_cast<const T*>(p.q) + (row0 + m0) * p.q_row + head * D;
    const auto out = [&](int r, int chunk) {
        return static_cast<T*>(p.out) + ((row0 + m0 + r) * p.heads + head) * D + chunk * 8;
    };
    const int tid = int(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int rows_here = min(tile.rows - m0, BM);
    const int load_row = tid / CHUNKS, load_chunk = tid % CHUNKS;
    const int last = min(m0 + BM, e.valid) - 1;
    const int j_first = first_key(p, e.pos + m0) / BN * BN, j_end = end_key(p, e.pos + last, e.keys);
    __shared__ int valid_rows;  // a register less in the loop
    if (tid == 0) valid_rows = p.step ? e.valid - m0 : rows_here;
    // Behind what does not need them: reading the step, and divisions, whose code no cache has. 0.7 us of 128 rows.
    pdl_wait();
    pdl_trigger();

    if (m0 >= e.valid) {
        const Vec8<T> zero = {};
        for (int r = load_row; r < rows_here; r += ROW_STEP)
            *reinterpret_cast<Vec8<T>*>(out(r, load_chunk)) = zero;
        return;
    }

    const size_t kv0 = (p.step ? 0 : row0 * p.kv_row) + (head / p.group) * size_t(p.kv_head) + load_chunk * 8;
    const uint32_t bias0 = head * p.bias_row + uint32_t(row0);
    const auto load_kv = [&](int j0, int buffer) {
        const uint32_t sk = skv + buffer * 2 * TILE_BYTES + chunk_at<D>(load_row, load_chunk);
#pragma unroll
        for (int i = 0; i < BN / ROW_STEP; i++) {
            const int j = j0 + load_row + i * ROW_STEP;
            const bool keep = j < e.keys;
            const size_t from = kv0 + uint32_t(keep ? j : 0) * p.kv_row;
            static_assert(ROW_STEP % 8 == 0, "the swizzle must not change from row to row of a thread");
            cp_async16(sk + i * ROW_STEP * D * 2, static_cast<const T*>(p.k) + from, keep);
            cp_async16(sk + TILE_BYTES + i * ROW_STEP * D * 2, static_cast<const T*>(p.v) + from, keep);
        }
        if (p.bias && tid < BN) {
            const bool keep = j0 + tid < e.keys;
            cp_async4(sbias + (buffer * BN + tid) * 4, p.bias + bias0 + (keep ? j0 + tid : 0), keep);
        }
        cp_async_commit();
    };

#pragma unroll
    for (int i = 0; i < BM / ROW_STEP; i++) {
        const int r = load_row + i * ROW_STEP;
        const bool keep = m0 + r < e.valid;
        cp_async16(sq + chunk_at<D>(r, load_chunk), q + size_t(keep ? r : 0) * p.q_row + load_chunk * 8, keep);
    }
    load_kv(j_first, 0);

    // This warp's rows are the positions i0..=i1. A tile concerns it if its first key is before the last row's end and
    // its last key behind the first row's begin; it needs the mask unless it is whole for the first and the last row.
    const int w0 = warp * 16 * MT, i0 = e.pos + m0 + w0, i1 = e.pos + min(m0 + w0 + 16 * MT, e.valid) - 1;
    const bool works = m0 + w0 < e.valid;
    const int any_end = works ? end_key(p, i1, e.keys) : 0, all_end = end_key(p, i0, e.keys);
    const float c = p.scale * LOG2E, f = p.bias ? 1.f : c;
    const uint32_t q_lane = sq + w0 * D * 2 + lane_rows_first<D>(lane);
    const uint32_t k_lane = skv + lane_chunks_first<D>(lane), v_lane = skv + TILE_BYTES + lane_rows_first<D>(lane);

    float o[MT][D / 8][4] = {}, m[MT][2], l[MT][2] = {};
#pragma unroll
    for (int i = 0; i < MT; i++) m[i][0] = m[i][1] = -INFINITY;
    cp_async_wait<0>();
    __syncthreads();
    uint32_t q_frag[MT][Q_STAYS ? D / 16 : 1][4];
    if constexpr (Q_STAYS) {
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int kk = 0; kk < D / 16; kk++) ldmatrix(q_frag[i][kk], step_columns(q_lane, kk) + i * 16 * D * 2);
    }

    int buffer = 0;
    for (int j0 = j_first; j0 < j_end; j0 += BN, buffer ^= 1) {
        if (j0 + BN < j_end) load_kv(j0 + BN, buffer ^ 1);
        if (j0 < any_end && j0 + BN > first_key(p, i0)) {
            const uint32_t offset = buffer * 2 * TILE_BYTES;
            float s[MT][BN / 8][4] = {};
#pragma unroll
            for (int kk = 0; kk < D / 16; kk++) {
                if constexpr (!Q_STAYS) {
#pragma unroll
                    for (int i = 0; i < MT; i++) ldmatrix(q_frag[i][0], step_columns(q_lane, kk) + i * 16 * D * 2);
                }
#pragma unroll
                for (int n = 0; n < BN / 16; n++) {
                    uint32_t b[4];
                    ldmatrix(b, step_columns(k_lane + offset, kk) + n * 16 * D * 2);
#pragma unroll
                    for (int i = 0; i < MT; i++) {
                        mma<T>(s[i][2 * n], q_frag[i][Q_STAYS ? kk : 0], b[0], b[1]);
                        mma<T>(s[i][2 * n + 1], q_frag[i][Q_STAYS ? kk : 0], b[2], b[3]);
                    }
                }
            }
            if (p.bias) {
#pragma unroll
                for (int n = 0; n < BN / 8; n++) {
                    float b0, b1;
                    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                                 : "=f"(b0), "=f"(b1)
                                 : "r"(sbias + (buffer * BN + n * 8 + 2 * t) * 4)
                                 : "memory");
                    b0 *= LOG2E, b1 *= LOG2E;
#pragma unroll
                    for (int i = 0; i < MT; i++) {
                        s[i][n][0] = fmaf(s[i][n][0], c, b0), s[i][n][1] = fmaf(s[i][n][1], c, b1);
                        s[i][n][2] = fmaf(s[i][n][2], c, b0), s[i][n][3] = fmaf(s[i][n][3], c, b1);
                    }
                }
            }
            if (j0 + BN > all_end || j0 < first_key(p, i1)) {
#pragma unroll
                for (int i = 0; i < MT; i++)
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const int row = i0 + i * 16 + 8 * r + g;
                        const int begin = first_key(p, row) - j0 - 2 * t, end = end_key(p, row, e.keys) - j0 - 2 * t;
#pragma unroll
                        for (int n = 0; n < BN / 8; n++) {
                            if (n * 8 < begin || n * 8 >= end) s[i][n][2 * r] = -INFINITY;
                            if (n * 8 + 1 < begin || n * 8 + 1 >= end) s[i][n][2 * r + 1] = -INFINITY;
                        }
                    }
            }
#pragma unroll
            for (int i = 0; i < MT; i++) {
                const float low = softmax_step<0>(s[i], f, m[i][0], l[i][0]);
                const float high = softmax_step<1>(s[i], f, m[i][1], l[i][1]);
#pragma unroll
                for (int d = 0; d < D / 8; d++) {
                    o[i][d][0] *= low, o[i][d][1] *= low;
                    o[i][d][2] *= high, o[i][d][3] *= high;
                }
            }
#pragma unroll
            for (int kk = 0; kk < BN / 16; kk++) {
                uint32_t a[MT][4];
#pragma unroll
                for (int i = 0; i < MT; i++) {
                    a[i][0] = pack2<T>(s[i][2 * kk][0], s[i][2 * kk][1]);
                    a[i][1] = pack2<T>(s[i][2 * kk][2], s[i][2 * kk][3]);
                    a[i][2] = pack2<T>(s[i][2 * kk + 1][0], s[i][2 * kk + 1][1]);
                    a[i][3] = pack2<T>(s[i][2 * kk + 1][2], s[i][2 * kk + 1][3]);
                }
#pragma unroll
                for (int d = 0; d < D / 16; d++) {
                    uint32_t b[4];
                    ldmatrix_trans(b, step_columns(v_lane + offset, d) + kk * 16 * D * 2);
#pragma unroll
                    for (int i = 0; i < MT; i++) {
                        mma<T>(o[i][2 * d], a[i], b[0], b[1]);
                        mma<T>(o[i][2 * d + 1], a[i], b[2], b[3]);
                    }
                }
            }
        }
        cp_async_wait<0>();
        __syncthreads();
    }

    const int valid = valid_rows;
    // Through this warp's own rows of Q, so that a row leaves in 16-byte stores.
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = w0 + i * 16 + 8 * r + g;
            const float sum = quad_sum(l[i][r]);
            const float inv = sum > 0.f && row < valid ? 1.f / sum : 0.f;
#pragma unroll
            for (int d = 0; d < D / 8; d++) {
                const uint32_t pair = pack2<T>(o[i][d][2 * r] * inv, o[i][d][2 * r + 1] * inv);
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(sq + chunk_at<D>(row, d) + 4 * t), "r"(pair) : "memory");
            }
        }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * MT * CHUNKS / 32; i++) {
        const int row = w0 + (i * 32 + lane) / CHUNKS, chunk = (i * 32 + lane) % CHUNKS;
        uint4 x;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                     : "r"(sq + chunk_at<D>(row, chunk))
                     : "memory");
        if (row < rows_here) *reinterpret_cast<uint4*>(out(row, chunk)) = x;
    }
}

// The number of CTAs is what shared memory allows on 9.0 (227 KB); the 128-row tiles need all 255 registers.
EXPORT(flash_d64_m64_bf16, BatchParams, FLASH_THREADS, 3, flash<__nv_bfloat16, 64, 1>)
EXPORT(flash_d64_m64_f16, BatchParams, FLASH_THREADS, 3, flash<__half, 64, 1>)
EXPORT(flash_d64_m128_bf16, BatchParams, FLASH_THREADS, 2, flash<__nv_bfloat16, 64, 2>)
EXPORT(flash_d64_m128_f16, BatchParams, FLASH_THREADS, 2, flash<__half, 64, 2>)
EXPORT(flash_d128_m64_bf16, BatchParams, FLASH_THREADS, 2, flash<__nv_bfloat16, 128, 1>)
EXPORT(flash_d128_m64_f16, BatchParams, FLASH_THREADS, 2, flash<__half, 128, 1>)
EXPORT(flash_d128_m128_bf16, BatchParams, FLASH_THREADS, 2, flash<__nv_bfloat16, 128, 2>)
EXPORT(flash_d128_m128_f16, BatchParams, FLASH_THREADS, 2, flash<__half, 128, 2>)
