// What `wgmma.cu` (D = 128) and `wgmma_d64.cu` share: all but the loop over the keys, `consume`, which each has its own of.
//
// CTA = one producer warpgroup (one thread issues TMA) and one to three consumers of 64 query rows. A ring of tiles of
// BN keys goes around in the order K0 K1 V0 K2 V1 ..: a consumer asks for S of tile i and for P·V of tile i - 1, then
// makes P of tile i. O and S are registers in f32; p is rounded to T16.
// Persistent: CTA c takes the tiles (query rows, head, sequence) c, 2·grid - 1 - c, 2·grid + c, ..; causal tiles, and those
// of sequences of different lengths, go longest first, so that long and short ones meet. Loads of the next tile run under
// the end of the last.
// Keys from the end of the sequence on are zeros (the map ends there); in a cache they are stale rows, and of sequences
// of different lengths, which are one to the maps, rows of the next: their scores are masked, their values overwritten with
// zeros in shared memory, so what is no number in one sequence stays there. Rows from valid_rows on and rows without a
// key give 0.
// A bias is one more step of the first product: three idle warps of the producer split bias / scale into three bf16 that
// sum to it exactly, beside each other in a row of 16 columns per key, zeros else; the other operand is ones, so it does
// not matter where in its row a part lies. All 24 bits of the bias count; scale >= 2^-60. In a pair two CTAs of a cluster
// share the keys of a tile of rows, half of its blocks each; a CTA has one work.
#pragma once
#include "attention/params.cuh"
#include "attention/softmax.cuh"
#include "common/export.cuh"
#include "common/hopper.cuh"
#include "common/ptx.cuh"

struct FlashParams {
    TensorMap q;  // {64, rows, D / 64, H, batch}, box {64, 64, D / 64, 1, 1}, swizzle 128 B
    TensorMap k;  // {64, rows (cache: S_max), D / 64, G, batch}, box {64, BN, D / 64, 1, 1}
    TensorMap v;  // the same
    AttentionParams a;
    Lengths lengths;
};
__device__ __forceinline__ bool alike(const FlashParams& p) { return p.lengths.tiles == 0; }

enum class Bias { none, operand, operand_pair };

// A kernel of the family. A tile of R rows lies in shared memory as D / 64 slabs of [R][64], rows of 128 bytes. With RAGGED
// queries behind the end of a sequence are made zeros as well. With APART a sequence has whole tiles and one row, which as a
// key and as a query goes its own way. With ONE_WORK there are as many CTAs as works.
template <int D_, int CONSUMERS_, int BN_, Bias BIAS_, bool RAGGED_ = false, bool APART_ = false>
struct Flash {
    static constexpr int D = D_, SLABS = D / 64, CONSUMERS = CONSUMERS_, BM = 64 * CONSUMERS, BN = BN_;
    static constexpr bool BIAS = BIAS_ != Bias::none, PAIR = BIAS_ == Bias::operand_pair, TURNS = CONSUMERS > 1;
    static constexpr bool RAGGED = RAGGED_, APART = APART_, ONE_WORK = PAIR || APART;
    static constexpr int STAGES = D == 128 ? 5 : CONSUMERS > 1 ? 8 : PAIR ? 4 : 5;
    static constexpr int STAGE_BYTES = BN * D * 2, Q_BYTES = 64 * D * 2;
    // Behind the ring, with APART: two tiles of 16 rows, of which the last key and its value are the first.
    static constexpr int LAST_BYTES = APART ? 16 * 128 : 0;
    // Then, of D = 64, 16 rows of ones, a slab beside V.
    static constexpr int SUMS_BYTES = D == 64 ? 16 * 128 : 0;
    // Biases have a ring of their own, behind 64 rows of ones.
    static constexpr int BIAS_STAGES = 4, BIAS_BYTES = BIAS ? BN * 32 : 0, ONES_BYTES = BIAS ? 64 * 32 : 0;
    // What a consumer gets of one row: of each thread D / 4 sums, a reference, a part of l.
    static constexpr int TRADE_BYTES = PAIR ? 128 * (D / 4 + 2) * 4 : 0;
    static constexpr int THREADS = 128 * (1 + CONSUMERS);
    static constexpr int CTAS = CONSUMERS == 1 ? 2 : 1;  // per SM
    // What 128 threads of each role hold after they have exchanged registers.
    static constexpr int PRODUCER_REGISTERS = APART ? 88 : CONSUMERS == 3 ? 32 : 40;
    static constexpr int CONSUMER_REGISTERS = APART ? 208 : CONSUMERS == 3 ? 160 : CONSUMERS == 2 ? 232 : 216;
    static constexpr int SMEM_BYTES = 1024 + CONSUMERS * (Q_BYTES + TRADE_BYTES) + STAGES * STAGE_BYTES + 2 * LAST_BYTES +
                                      SUMS_BYTES + ONES_BYTES + BIAS_STAGES * BIAS_BYTES;
    static_assert(Q_BYTES % 1024 == 0 && STAGE_BYTES % 1024 == 0, "operands begin at multiples of 1024");
    static_assert(CTAS * (SMEM_BYTES + 1024) <= 228 * 1024);
    static_assert(D == 64 || CONSUMERS == 2, "registers");
    static_assert(!APART || (D == 64 && CONSUMERS == 2 && BM % BN == 0 && !BIAS && !RAGGED));
    static_assert(SUMS_BYTES <= 128 * 16 && ONES_BYTES <= 128 * 16 && LAST_BYTES <= 128 * 16, "the first warpgroup fills them");
};

// BM query rows of one head of one sequence, and the tiles of keys that any of them sees. Row i of the sequence is row
// row0 + i of sequence `seq` of the maps: either of the two is 0.
struct Work {
    Extent e;
    int m0, head, seq, row0, key0, blocks;
};

// Of a sequence, before pdl_wait(); without the row that stands apart.
template <class F>
__device__ __forceinline__ Extent extent_of_tiles(const AttentionParams& p) {
    if constexpr (F::APART) return {0, int(p.rows) - 1, int(p.rows) - 1};
    return extent_before_wait(p);
}

// The works of this CTA in order. Rows that hold no token come last and see no tile.
template <class F>
struct Schedule {
    int heads, tiles, whole, valid_tiles, units, base, unit;
    bool causal;

    __device__ __forceinline__ Schedule(const FlashParams& params, const Extent& e) {
        if constexpr (F::APART) {
            unit = 0, units = 1;
            return;
        }
        const AttentionParams& p = params.a;
        heads = int(p.heads * p.batch);
        tiles = alike(params) ? (int(p.rows) + F::BM - 1) / F::BM : int(params.lengths.tiles);
        valid_tiles = (e.valid + F::BM - 1) / F::BM;
        // A last tile that leaves consumers idle is a short one.
        whole = F::CONSUMERS > 1 && tiles > 1 && uint32_t(int(p.rows) % F::BM - 1) < 64 ? tiles - 1 : tiles;
        if (!alike(params)) whole = 0;  // the order is that of `tile_of`
        units = tiles * heads;
        causal = p.mask == MASK_CAUSAL;
        base = 0, unit = int(blockIdx.x) / (F::PAIR ? 2 : 1);
    }
    __device__ __forceinline__ bool more() const { return unit < units; }
    __device__ __forceinline__ void next() {
        if constexpr (F::ONE_WORK) {
            unit = units;
        } else {
            // Rounds run forth and back.
            const int grid = int(gridDim.x), at = unit - base;
            base += grid, unit = base + grid - 1 - at;
        }
    }
    __device__ __forceinline__ Work get(const FlashParams& params, const Extent& e) const {
        const AttentionParams& p = params.a;
        if constexpr (F::APART)
            return {e, int(blockIdx.x) * F::BM, int(blockIdx.y), int(blockIdx.z), 0, 0, e.keys / F::BN};
        Work w;
        // Causal: the longest first, the heads of a group side by side, for they share keys in the L2. Else the tiles of
        // a head side by side, and the short ones last.
        const bool by_rows = causal || unit >= whole * heads;
        const int at = by_rows ? unit / heads : unit % whole, head = by_rows ? unit % heads : unit / whole;
        w.e = e;
        w.m0 = (causal && at < valid_tiles ? valid_tiles - 1 - at : at) * F::BM;
        w.head = head % int(p.heads), w.seq = head / int(p.heads), w.row0 = 0;
        if (!alike(params)) {
            const RowTile tile = tile_of(params.lengths, at, F::BM, causal);
            w.e = {0, tile.rows, tile.rows}, w.m0 = tile.m0, w.row0 = int(tile.row0);
        }
        w.key0 = w.blocks = 0;
        if (w.m0 < w.e.valid) {
            w.key0 = first_key(p, w.e.pos + w.m0) / F::BN * F::BN;
            const int end = end_key(p, w.e.pos + min(w.m0 + F::BM, w.e.valid) - 1, w.e.keys);
            w.blocks = max(end - w.key0 + F::BN - 1, 0) / F::BN;
            if constexpr (F::PAIR) {
                const int half = (w.blocks + 1) / 2;
                if (blockIdx.x % 2 == 0)
                    w.blocks = half;
                else
                    w.key0 += half * F::BN, w.blocks -= half;
            }
        }
        return w;
    }
};

// Position in a ring: counts over the whole life of the CTA.
template <int STAGES>
struct Cursor {
    uint32_t stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

// Addresses in shared memory. `full` and `empty`: a barrier per stage, `bias_full` and `bias_empty` of the operand's
// ring; `q_full`, `q_empty`: one each; `traded_full` one per consumer.
struct Shared {
    uint32_t q, ring, last, sums, ones, bias, traded, full, empty, q_full, q_empty, bias_full, bias_empty, traded_full;
};

// One thread.
template <class F>
__device__ __forceinline__ void produce(const FlashParams& p, const Shared& s) {
    const Extent e = extent_of_tiles<F>(p.a);
    Schedule<F> schedule(p, e);
    Cursor<F::STAGES> at;
    uint32_t q_phase = 0;
    bool first = true;
    for (; schedule.more(); schedule.next()) {
        const Work w = schedule.get(p, e);
        if (w.blocks == 0) continue;
        const int group = w.head / int(p.a.group);
        const auto load = [&](const TensorMap& map, int block) {
            const uint32_t barrier = s.full + at.stage * 8;
            const int row = w.row0 + w.key0 + block * F::BN;
            mbarrier_wait(s.empty + at.stage * 8, at.phase ^ 1);
            mbarrier_expect_tx(barrier, F::STAGE_BYTES);
            tma_load_5d(s.ring + at.stage * F::STAGE_BYTES, map, barrier, 0, row, 0, group, w.seq);
            at.next();
        };
        const auto load_q = [&] {
            mbarrier_wait(s.q_empty, q_phase ^ 1);
            q_phase ^= 1;
            mbarrier_expect_tx(s.q_full, F::CONSUMERS * F::Q_BYTES + (F::APART ? 2 * F::D * 2 : 0));
            if constexpr (F::APART) {
                const size_t at = group * p.a.kv_head + (size_t(w.seq) * p.a.rows + w.e.keys) * p.a.kv_row;
                bulk_load(s.last, static_cast<const char*>(p.a.k) + at * 2, F::D * 2, s.q_full);
                bulk_load(s.last + F::LAST_BYTES, static_cast<const char*>(p.a.v) + at * 2, F::D * 2, s.q_full);
            }
#pragma unroll
            for (int c = 0; c < F::CONSUMERS; c++)
                tma_load_5d(s.q + c * F::Q_BYTES, p.q, s.q_full, 0, w.row0 + w.m0 + 64 * c, 0, w.head, w.seq);
        };
        // Behind the divisions that say where the first work lies, here and below: half a us, for no cache has their code.
        if (first) pdl_wait(), pdl_trigger();
        // The first rows come early; those of the next works have to wait for the consumers, but keys need not.
        load(p.k, 0);
        if (first) load_q();
#pragma unroll 1
        for (int i = 1; i <= w.blocks; i++) {
            if (i < w.blocks) load(p.k, i);
            load(p.v, i - 1);
            if (i == 1 && !first) load_q();
        }
        first = false;
    }
}

// A bias as a score that is still to be scaled. Beyond 2^126 it grows by half of the bias alone, so that what is finite
// stays so, and the order: the largest bias takes all there, whatever the product adds.
__device__ __forceinline__ float unscaled(float bias, float scale) {
    const float limit = 0x1p126f * scale, size = fabsf(bias);
    return size <= limit ? bias / scale : copysignf(fmaf(size, 0.5f, 0x1p126f - 0.5f * limit), bias);
}

// The row of a key: x as a sum of three bf16, each 8 of its 24 bits; an infinite one is the first alone, for inf - inf
// is no number.
__device__ __forceinline__ void store_parts(uint32_t row, float x) {
    const __nv_bfloat16 high = __float2bfloat16_rn(x);
    const float rest = isinf(x) ? 0.f : x - __bfloat162float(high);
    const __nv_bfloat16 middle = __float2bfloat16_rn(rest);
    const uint32_t first = pack2<__nv_bfloat16>(x, rest);
    const uint32_t second = pack2<__nv_bfloat16>(rest - __bfloat162float(middle), 0.f);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %3};" ::"r"(row), "r"(first), "r"(second), "r"(0) : "memory");
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(row + 16), "r"(0) : "memory");
}

// Three warps: the operand of every tile of keys, in the order in which `consume` asks for them.
template <class F>
__device__ __forceinline__ void produce_bias(const FlashParams& params, const Shared& s) {
    constexpr int THREADS = 96, ROUNDS = (F::BN + THREADS - 1) / THREADS;
    const AttentionParams& p = params.a;
    const Extent e = extent_before_wait(p);
    Schedule<F> schedule(params, e);
    const int thread = int(threadIdx.x) - 32;
    Cursor<F::BIAS_STAGES> at;
    WaitOnce wait_once;
    for (; schedule.more(); schedule.next()) {
        const Work w = schedule.get(params, e);
        wait_once();
        const float* bias = p.bias + (w.head * int(p.bias_row) + w.seq * int(p.rows) + w.row0 + w.key0);
#pragma unroll 1
        for (int j0 = w.key0; j0 < w.key0 + w.blocks * F::BN; j0 += F::BN, bias += F::BN) {
            // Behind the last key of the sequence follows another's, or nothing: zeros, which are masked.
            float x[ROUNDS];
#pragma unroll
            for (int r = 0; r < ROUNDS; r++) {
                const int key = thread + r * THREADS;
                x[r] = key < F::BN && j0 + key < w.e.keys ? __ldcg(bias + key) : 0.f;
            }
            const uint32_t tile = s.bias + at.stage * F::BIAS_BYTES;
            mbarrier_wait(s.bias_empty + at.stage * 8, at.phase ^ 1);
#pragma unroll
            for (int r = 0; r < ROUNDS; r++) {
                const int key = thread + r * THREADS;
                if (key < F::BN) store_parts(tile + key * 32, unscaled(x[r], p.scale));
            }
            fence_async_proxy();
            __syncwarp();
            if (threadIdx.x % 32 == 0) mbarrier_arrive(s.bias_full + at.stage * 8);
            at.next();
        }
    }
}

// An operand of rows of 16 columns, 32 bytes, one after the other. (With the 32-byte swizzle: the halves of some rows
// trade places, which does not matter here.)
__device__ __forceinline__ uint64_t wgmma_descriptor_of_16(uint32_t address) {
    constexpr uint64_t GROUP_OF_8_ROWS = 256 >> 4, SWIZZLE_32B = 3;
    return uint64_t(address >> 4) | uint64_t(1) << 16 | GROUP_OF_8_ROWS << 32 | SWIZZLE_32B << 62;
}

// Asks for the scores x of 64 queries and a tile of keys.
template <class T, class F>
__device__ __forceinline__ void ask_for_scores(float (&x)[F::BN / 2], uint64_t q, uint64_t k, uint64_t ones, uint64_t bias,
                                               uint32_t bias_stage) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < F::D / 16; i++)
        wgmma<T, F::BN>(x, q + i / 4 * (64 * 128 >> 4) + i % 4 * 2, k + i / 4 * (F::BN * 128 >> 4) + i % 4 * 2, i > 0);
    // Last, so that the sum is rounded to the size of the bias once.
    if constexpr (F::BIAS)
        wgmma<__nv_bfloat16, F::BN>(x, ones, bias + bias_stage * (F::BIAS_BYTES >> 4), 1);
    wgmma_commit();
}

// Scores of the keys from j0 on become -inf where one of a thread's two rows does not see them, which see the keys from `begin`
// to before `end`; all rows of the warpgroup see those from all_begin to before all_end. t: lane % 4.
template <int COUNT>
__device__ __forceinline__ void mask_unseen(float (&x)[COUNT], int all_begin, int all_end, const int (&begin)[2],
                                            const int (&end)[2], int j0, uint32_t t) {
    constexpr int BN = 2 * COUNT;
    if (all_begin <= j0 && j0 + BN <= all_end) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int first = begin[r] - j0 - int(2 * t), last = end[r] - j0 - int(2 * t);
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (n * 8 + h < first || n * 8 + h >= last) x[4 * n + 2 * r + h] = -INFINITY;
    }
}

// Ids of the barriers of one warpgroup, and of its turn: it waits there until the one before has asked.
constexpr uint32_t STEP_BARRIER = 1, TURN_BARRIER = 4;

template <class F>
__device__ __forceinline__ void take_turn(uint32_t consumer) {
    if constexpr (F::TURNS) barrier_sync<256>(TURN_BARRIER + consumer);
}
template <class F>
__device__ __forceinline__ void pass_turn(uint32_t consumer) {
    if constexpr (F::TURNS)
        barrier_arrive<256>(TURN_BARRIER + (consumer + 1 == F::CONSUMERS ? 0 : consumer + 1));
}

// All reads of this warpgroup behind the barrier have ended.
__device__ __forceinline__ void release(uint32_t empty) {
    if (threadIdx.x % 128 == 0) mbarrier_arrive(empty);
}

// Keeps ring and turns going for a consumer without rows, in the steps of `consume`. The barrier keeps the four warps
// together, as wgmma does elsewhere: a warp that fell a whole round behind would wait for a phase that is past.
template <class F>
__device__ __forceinline__ void stand_by(const Shared& s, Cursor<F::STAGES>& at, Cursor<F::BIAS_STAGES>& bias_at,
                                         int blocks, uint32_t consumer) {
    const auto skip = [&](uint32_t full, uint32_t empty, uint32_t phase) {
        mbarrier_wait(full, phase);
        barrier_sync<128>(STEP_BARRIER + consumer);
        release(empty);
    };
#pragma unroll 1
    for (int i = 0; i <= blocks; i++) {
        if (i < blocks) {
            skip(s.full + at.stage * 8, s.empty + at.stage * 8, at.phase);
            at.next();
            if constexpr (F::BIAS) {
                skip(s.bias_full + bias_at.stage * 8, s.bias_empty + bias_at.stage * 8, bias_at.phase);
                bias_at.next();
            }
        }
        if (i > 0) {
            if (i < blocks) {
                take_turn<F>(consumer);
                pass_turn<F>(consumer);
            }
            skip(s.full + at.stage * 8, s.empty + at.stage * 8, at.phase);
            at.next();
        }
    }
}

__device__ __forceinline__ float shared_float(uint32_t address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address));
    return x;
}

// Lane t of four holds w[0..4], its words of four vectors; then it holds vector t, the words of lanes 0..4.
__device__ __forceinline__ uint4 gather_vector(uint32_t (&w)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
        w[i] = odd ? got : w[i], w[i + 1] = odd ? w[i + 1] : got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? w[i] : w[i + 2], 2);
        w[i] = upper ? got : w[i], w[i + 2] = upper ? w[i + 2] : got;
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
}

// Overwrites rows [first, ROWS) of a tile of ROWS rows with zeros: the four warps of one consumer. Others may do so, or read
// what they have zeroed themselves, at the same time.
template <class F, int ROWS>
__device__ __forceinline__ void clear_rows(uint32_t tile, int first, uint32_t consumer) {
#pragma unroll 1
    for (int slab = 0; slab < F::SLABS; slab++)
#pragma unroll 1
        for (int at = first * 128 + int(threadIdx.x % 128) * 16; at < ROWS * 128; at += 128 * 16)
            asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + slab * ROWS * 128 + at), "r"(0)
                         : "memory");
    fence_async_proxy();
    barrier_sync<128>(STEP_BARRIER + consumer);
}

// Rows of the result. `row` of the sequence and its sums y, of which a quad holds 32 columns as words and a lane stores 8;
// l is the sum of the row's probabilities, the same in all four. Whole warps.
template <class T, class F>
__device__ __forceinline__ void store_row(const FlashParams& params, const Work& w, int row, float l,
                                          const float (&y)[F::D / 4]) {
    const AttentionParams& p = params.a;
    const int rows = alike(params) ? int(p.rows) : w.e.valid;
    const float inv = 1.f / l;
    const bool some = l > 0.f && row < w.e.valid;  // else a padding row of q may have made NaN of it
    T* out = static_cast<T*>(p.out) + ((size_t(w.seq) * p.rows + w.row0 + row) * p.heads + w.head) * F::D +
             threadIdx.x % 4 * 8;
#pragma unroll
    for (int d = 0; d < F::D / 32; d++) {
        uint32_t words[4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float* pair = y + 2 * (4 * d + n);
            words[n] = some ? pack2<T>(pair[0] * inv, pair[1] * inv) : 0;
        }
        const uint4 vector = gather_vector(words);
        if (row < rows) *reinterpret_cast<uint4*>(out + d * 32) = vector;
    }
}

// All threads: `bytes` of shared memory, 16 for each of the first of them.
__device__ __forceinline__ void fill_words(uint32_t address, int bytes, uint32_t word) {
    if (int(threadIdx.x) < bytes / 16)
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(address + threadIdx.x * 16), "r"(word) : "memory");
}

// One warpgroup: 64 rows of every work. Each file has its own.
template <class T, class F>
__device__ __forceinline__ void consume(const FlashParams& params, const Shared& s, uint32_t consumer);
// With APART three warps: the last row of the sequence as a query.
template <class T, class F>
__device__ __forceinline__ void attend_last_row(const FlashParams& params);

// Any grid; with PAIR clusters of two for all tiles of rows, with APART a grid of tiles, heads and sequences. Dynamic shared
// memory: SMEM_BYTES.
template <class T, class F>
__device__ __forceinline__ void flash_wgmma(const FlashParams& p) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full[F::STAGES], empty[F::STAGES], q_full, q_empty;
    __shared__ alignas(8) uint64_t bias_full[F::BIAS_STAGES], bias_empty[F::BIAS_STAGES], traded_full[F::CONSUMERS];
    Shared s;
    s.q = (smem_address(dynamic) + 1023) & ~1023u;
    s.ring = s.q + F::CONSUMERS * F::Q_BYTES;
    s.last = s.ring + F::STAGES * F::STAGE_BYTES;
    s.sums = s.last + 2 * F::LAST_BYTES;
    s.ones = s.sums + F::SUMS_BYTES;
    s.bias = s.ones + F::ONES_BYTES;
    s.traded = s.bias + F::BIAS_STAGES * F::BIAS_BYTES;
    s.full = smem_address(full), s.empty = smem_address(empty);
    s.bias_full = smem_address(bias_full), s.bias_empty = smem_address(bias_empty);
    s.traded_full = smem_address(traded_full);
    s.q_full = smem_address(&q_full), s.q_empty = smem_address(&q_empty);
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(p.q);
        prefetch_tensor_map(p.k);
        prefetch_tensor_map(p.v);
        for (int i = 0; i < F::STAGES; i++) {
            mbarrier_init(s.full + i * 8, 1);
            mbarrier_init(s.empty + i * 8, F::CONSUMERS);
        }
        for (int i = 0; F::BIAS && i < F::BIAS_STAGES; i++) {
            mbarrier_init(s.bias_full + i * 8, 3);
            mbarrier_init(s.bias_empty + i * 8, F::CONSUMERS);
        }
        for (int i = 0; F::PAIR && i < F::CONSUMERS; i++) mbarrier_init(s.traded_full + i * 8, 1);
        mbarrier_init(s.q_full, 1);
        mbarrier_init(s.q_empty, F::CONSUMERS);
        fence_mbarrier_init();
        for (int i = 0; F::PAIR && i < F::CONSUMERS; i++) mbarrier_expect_tx(s.traded_full + i * 8, F::TRADE_BYTES);
    }
    const uint32_t one = pack2<T>(1.f, 1.f), bias_one = pack2<__nv_bfloat16>(1.f, 1.f);
    fill_words(s.sums, F::SUMS_BYTES, one);
    fill_words(s.ones, F::ONES_BYTES, bias_one);
    if constexpr (F::APART) fill_words(s.last + F::LAST_BYTES, F::LAST_BYTES, 0);
    if (F::SUMS_BYTES + F::ONES_BYTES > 0 && warpgroup == 0) fence_async_proxy();
    __syncthreads();
    if constexpr (F::PAIR) cluster_arrive();

    if (warpgroup == 0) {
        give_registers<F::PRODUCER_REGISTERS>();
        if (threadIdx.x >= 32) {
            if constexpr (F::BIAS) produce_bias<F>(p, s);
            if constexpr (F::APART) attend_last_row<T, F>(p);
        } else if (elect_one()) {
            produce<F>(p, s);
        }
        if constexpr (F::PAIR) {
            __syncwarp();
            cluster_wait();
        }
        return;
    }
    take_registers<F::CONSUMER_REGISTERS>();
    consume<T, F>(p, s, warpgroup - 1);
}

#define EXPORT_FLASH(name, ...)                                                                             \
    EXPORT(flash_wgmma_##name##_bf16, FlashParams, (Flash<__VA_ARGS__>::THREADS), (Flash<__VA_ARGS__>::CTAS), \
           flash_wgmma<__nv_bfloat16, Flash<__VA_ARGS__>>)                                                  \
    EXPORT(flash_wgmma_##name##_f16, FlashParams, (Flash<__VA_ARGS__>::THREADS), (Flash<__VA_ARGS__>::CTAS), \
           flash_wgmma<__half, Flash<__VA_ARGS__>>)
