// archs: 90a
// flash_wgmma:  out_i = Σ_j p_ij v_j,  p_i = softmax_j(scale·q_i·k_j + bias_j)     as prefill.cu, on TMA and wgmma
// q, k, v, out of T16 as AttentionParams addresses them; bias f32 [H, T]; D = 64 or 128, any T and S, masks full,
// causal, chunk; scale > 0
//
// CTA = one producer warpgroup (one thread issues TMA) and one to three consumers of 64 query rows. A ring of tiles of
// BN keys goes around in the order K0 K1 V0 K2 V1 ..: a consumer asks for S of tile i and for P·V of tile i - 1, then
// makes P of tile i while the second product runs. Consumers take turns: they ask one after the other, so that the
// softmax of one falls under the products of the others. m, l, O, S in registers in f32; p is rounded to T16.
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
// share the keys of a tile of rows, half of its blocks each. A CTA has one work; in the end thread i of both holds parts
// of the same two rows, and they trade: each finishes one.
// 4·D flops per head and (query, key) pair. At D 128 the tensor cores bind (2048 clocks for 128 x 128 pairs), at D 64
// exp2 does (1024, as many as the products). Goal: 650 TFLOP/s from S = 4096; vision 1.2 x cuDNN.
// One file of more than 600 lines: the instances differ in a few lines each of the same loop.
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

// A kernel of the family. A tile of R rows lies in shared memory as D / 64 slabs of [R][64], rows of 128 bytes.
template <int D_, int CONSUMERS_, int BN_, Bias BIAS_>
struct Flash {
    static constexpr int D = D_, SLABS = D / 64, CONSUMERS = CONSUMERS_, BM = 64 * CONSUMERS, BN = BN_;
    static constexpr bool BIAS = BIAS_ != Bias::none, PAIR = BIAS_ == Bias::operand_pair;
    static constexpr int STAGES = D == 128 || CONSUMERS == 1 ? (PAIR ? 4 : 5) : 8;
    static constexpr int STAGE_BYTES = BN * D * 2, Q_BYTES = 64 * D * 2;
    // Biases have a ring of their own, behind 64 rows of ones.
    static constexpr int BIAS_STAGES = 4, BIAS_BYTES = BIAS ? BN * 32 : 0, ONES_BYTES = BIAS ? 64 * 32 : 0;
    // What a consumer gets of one row: of each thread D / 4 sums, a maximum, a part of l.
    static constexpr int TRADE_BYTES = PAIR ? 128 * (D / 4 + 2) * 4 : 0;
    static constexpr int THREADS = 128 * (1 + CONSUMERS);
    static constexpr int CTAS = CONSUMERS == 1 ? 2 : 1;  // per SM
    // What 128 threads of each role hold after they have exchanged registers.
    static constexpr int PRODUCER_REGISTERS = CONSUMERS == 3 ? 32 : 40;
    static constexpr int CONSUMER_REGISTERS = CONSUMERS == 3 ? 160 : CONSUMERS == 2 ? 232 : 216;
    static constexpr int SMEM_BYTES =
        1024 + CONSUMERS * (Q_BYTES + TRADE_BYTES) + STAGES * STAGE_BYTES + ONES_BYTES + BIAS_STAGES * BIAS_BYTES;
    static_assert(Q_BYTES % 1024 == 0 && STAGE_BYTES % 1024 == 0, "operands begin at multiples of 1024");
    static_assert(CTAS * (SMEM_BYTES + 1024) <= 228 * 1024);
    static_assert(D == 64 || CONSUMERS == 2, "registers");
};

// BM query rows of one head of one sequence, and the tiles of keys that any of them sees. Row i of the sequence is row
// row0 + i of sequence `seq` of the maps: either of the two is 0.
struct Work {
    Extent e;
    int m0, head, seq, row0, key0, blocks;
};

// The works of this CTA in order. Rows that hold no token come last and see no tile.
template <class F>
struct Schedule {
    int heads, tiles, whole, valid_tiles, units, base, unit;
    bool causal;

    __device__ __forceinline__ Schedule(const FlashParams& params, const Extent& e) {
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
        if constexpr (F::PAIR) {
            unit = units;  // there is one
        } else {
            // Rounds run forth and back.
            const int grid = int(gridDim.x), at = unit - base;
            base += grid, unit = base + grid - 1 - at;
        }
    }
    __device__ __forceinline__ Work get(const FlashParams& params, const Extent& e) const {
        const AttentionParams& p = params.a;
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
    uint32_t q, ring, ones, bias, traded, full, empty, q_full, q_empty, bias_full, bias_empty, traded_full;
};

// One thread.
template <class F>
__device__ __forceinline__ void produce(const FlashParams& p, const Shared& s) {
    const Extent e = extent_before_wait(p.a);
    Schedule<F> schedule(p, e);
    pdl_wait();
    pdl_trigger();
    Cursor<F::STAGES> at;
    uint32_t q_phase = 0;
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
        load(p.k, 0);
        mbarrier_wait(s.q_empty, q_phase ^ 1);
        q_phase ^= 1;
        mbarrier_expect_tx(s.q_full, F::CONSUMERS * F::Q_BYTES);
#pragma unroll
        for (int c = 0; c < F::CONSUMERS; c++)
            tma_load_5d(s.q + c * F::Q_BYTES, p.q, s.q_full, 0, w.row0 + w.m0 + 64 * c, 0, w.head, w.seq);
#pragma unroll 1
        for (int i = 1; i <= w.blocks; i++) {
            if (i < w.blocks) load(p.k, i);
            load(p.v, i - 1);
        }
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

// Three warps: the operand of every tile of keys, in the order in which `attend` asks for them.
template <class F>
__device__ __forceinline__ void produce_bias(const FlashParams& params, const Shared& s) {
    constexpr int THREADS = 96, ROUNDS = (F::BN + THREADS - 1) / THREADS;
    const AttentionParams& p = params.a;
    const Extent e = extent_before_wait(p);
    Schedule<F> schedule(params, e);
    pdl_wait();
    pdl_trigger();
    const int thread = int(threadIdx.x) - 32;
    Cursor<F::BIAS_STAGES> at;
    for (; schedule.more(); schedule.next()) {
        const Work w = schedule.get(params, e);
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

// Ids of the barriers of one warpgroup, and of its turn: it waits there until the one before has asked.
constexpr uint32_t STEP_BARRIER = 1, TURN_BARRIER = 4;

template <class F>
__device__ __forceinline__ void take_turn(uint32_t consumer) {
    if constexpr (F::CONSUMERS > 1) barrier_sync<256>(TURN_BARRIER + consumer);
}
template <class F>
__device__ __forceinline__ void pass_turn(uint32_t consumer) {
    if constexpr (F::CONSUMERS > 1)
        barrier_arrive<256>(TURN_BARRIER + (consumer + 1 == F::CONSUMERS ? 0 : consumer + 1));
}

// All reads of this warpgroup behind the barrier have ended.
__device__ __forceinline__ void release(uint32_t empty) {
    if (threadIdx.x % 128 == 0) mbarrier_arrive(empty);
}

// Keeps ring and turns going for a consumer without rows, in the steps of `attend`. The barrier keeps the four warps
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

// One step of the online softmax for row R (of the two that a thread has a part of) of an accumulator: elements
// s[4j + 2R] and s[4j + 2R + 1] become p = exp2(s·f - m·f), m (of s, not of s·f) and this lane's part of l follow.
// Returns the factor by which older sums shrink. A row that has seen -inf alone keeps m = -inf, l = 0.
template <int R, int COUNT>
__device__ __forceinline__ float softmax_row(float (&s)[COUNT], float f, float& m, float& l) {
    float high[2] = {m, -INFINITY}, sum[2] = {};
#pragma unroll
    for (int i = 2 * R; i < COUNT; i += 4)
        high[i / 4 % 2] = fmaxf(high[i / 4 % 2], fmaxf(s[i], s[i + 1]));
    const float top = quad_max(fmaxf(high[0], high[1])), at = top == -INFINITY ? 0.f : top;
    const float shrink = exp2_approx((m - at) * f), offset = at * f;
#pragma unroll
    for (int i = 2 * R; i < COUNT; i += 4) {
        s[i] = exp2_approx(fmaf(s[i], f, -offset));
        s[i + 1] = exp2_approx(fmaf(s[i + 1], f, -offset));
        sum[i / 4 % 2] += s[i] + s[i + 1];
    }
    m = top;
    l = l * shrink + (sum[0] + sum[1]);
    return shrink;
}

// The same for both rows with a bias, which may have moved all scores of a row far off: m·f is rounded, by more than the sums
// may err where it is large, and by more than there are numbers where it is huge. There m is subtracted first.
template <int COUNT>
__device__ __forceinline__ float2 softmax_far(float (&s)[COUNT], float f, float (&m)[2], float (&l)[2]) {
    constexpr float FAR = 32;  // half a unit in the last place: 2^-20
    float high[4] = {m[0], m[1], -INFINITY, -INFINITY}, sum[4] = {}, at[2], offset[2], shrink[2];
#pragma unroll
    for (int i = 0; i < COUNT; i += 2)
        high[i / 2 % 4] = fmaxf(high[i / 2 % 4], fmaxf(s[i], s[i + 1]));
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float top = quad_max(fmaxf(high[r], high[r + 2]));
        at[r] = top == -INFINITY ? 0.f : top, offset[r] = at[r] * f;
        shrink[r] = exp2_approx((m[r] - at[r]) * f);
        m[r] = top;
    }
    if (fmaxf(fabsf(offset[0]), fabsf(offset[1])) > FAR) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) s[i] -= at[i / 2 % 2];
        offset[0] = offset[1] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
        s[i] = exp2_approx(fmaf(s[i], f, -offset[i / 2 % 2]));
        s[i + 1] = exp2_approx(fmaf(s[i + 1], f, -offset[i / 2 % 2]));
        sum[i / 2 % 4] += s[i] + s[i + 1];
    }
#pragma unroll
    for (int r = 0; r < 2; r++) l[r] = l[r] * shrink[r] + (sum[r] + sum[r + 2]);
    return make_float2(shrink[0], shrink[1]);
}

// With PAIR: sends the row that the other CTA finishes, and adds its part of the other row to this CTA's. Leaves the
// sums in y and returns l. Where a CTA has seen no key m is -inf, and sums and l are 0.
template <class F>
__device__ __forceinline__ float trade_rows(const Shared& s, uint32_t consumer, float f, const float (&o)[F::D / 2],
                                            const float (&m)[2], const float (&l)[2], float (&y)[F::D / 4]) {
    constexpr int VECTORS = F::D / 16;
    const uint32_t thread = threadIdx.x % 128, other = blockIdx.x % 2 ^ 1;
    const uint32_t sums = s.traded + consumer * F::TRADE_BYTES + thread * 16;
    const uint32_t maximum = s.traded + consumer * F::TRADE_BYTES + VECTORS * 128 * 16 + thread * 8;
    const uint32_t full = s.traded_full + consumer * 8, barrier = cluster_address(full, other);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const float* z = o + 8 * v;
        const float first[4] = {z[0], z[1], z[4], z[5]}, second[4] = {z[2], z[3], z[6], z[7]};
        float sent[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sent[i] = other ? second[i] : first[i];
            y[4 * v + i] = other ? first[i] : second[i];
        }
        cluster_store(cluster_address(sums + v * 128 * 16, other), sent[0], sent[1], sent[2], sent[3], barrier);
    }
    cluster_store(cluster_address(maximum, other), other ? m[1] : m[0], other ? l[1] : l[0], barrier);
    cluster_mbarrier_wait(full, 0);
    const float mine = other ? m[0] : m[1], got = shared_float(maximum), top = fmaxf(mine, got);
    const float at = top == -INFINITY ? 0.f : top;
    const float shrink = exp2_approx((mine - at) * f), grow = exp2_approx((got - at) * f);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float z[4];
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(z[0]), "=f"(z[1]), "=f"(z[2]), "=f"(z[3])
                     : "r"(sums + v * 128 * 16));
#pragma unroll
        for (int i = 0; i < 4; i++) y[4 * v + i] = y[4 * v + i] * shrink + z[i] * grow;
    }
    return (other ? l[0] : l[1]) * shrink + shared_float(maximum + 4) * grow;
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

// Overwrites rows [first, BN) of a tile with zeros: the four warps of one consumer. Others may do so, or read what
// they have zeroed themselves, at the same time.
template <class F>
__device__ __forceinline__ void clear_rows(uint32_t tile, int first, uint32_t consumer) {
#pragma unroll 1
    for (int slab = 0; slab < F::SLABS; slab++)
#pragma unroll 1
        for (int at = first * 128 + int(threadIdx.x % 128) * 16; at < F::BN * 128; at += 128 * 16)
            asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + slab * F::BN * 128 + at), "r"(0)
                         : "memory");
    fence_async_proxy();
    barrier_sync<128>(STEP_BARRIER + consumer);
}

// One warpgroup: 64 rows of every work.
template <class T, class F>
__device__ __forceinline__ void consume(const FlashParams& params, const Shared& s, uint32_t consumer) {
    constexpr int BN = F::BN, D = F::D;
    const AttentionParams& p = params.a;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, g = lane / 4, t = lane % 4;
    const float f = p.scale * LOG2E;
    const uint64_t q0 = wgmma_descriptor(s.q + consumer * F::Q_BYTES), k0 = wgmma_descriptor(s.ring);
    const uint64_t v0 = wgmma_descriptor_rows_of_k(s.ring, BN * 128);
    const uint64_t ones = wgmma_descriptor_of_16(s.ones), bias0 = wgmma_descriptor_of_16(s.bias);
    const Extent extent = extent_before_wait(p);
    pdl_wait();
    pdl_trigger();
    Cursor<F::STAGES> at;
    Cursor<F::BIAS_STAGES> bias_at;
    uint32_t q_phase = 0;
    if (consumer == F::CONSUMERS - 1) pass_turn<F>(consumer);  // the first begins

    for (Schedule<F> schedule(params, extent); schedule.more(); schedule.next()) {
        const Work w = schedule.get(params, extent);
        const Extent& e = w.e;
        const int row0 = w.m0 + int(consumer) * 64, row = row0 + int(warp * 16 + g);  // and row + 8
        float o[D / 2] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {};
        if (w.blocks > 0) {
            mbarrier_wait(s.q_full, q_phase);
            q_phase ^= 1;
        }
        if (w.blocks > 0 && row0 >= e.valid) {
            barrier_sync<128>(STEP_BARRIER + consumer);
            release(s.q_empty);
            stand_by<F>(s, at, bias_at, w.blocks, consumer);
        } else if (w.blocks > 0) {
            // Keys that all 64 rows see, and those that these two see.
            const int i0 = e.pos + row0, i1 = e.pos + min(row0 + 64, e.valid) - 1;
            const int all_begin = first_key(p, i1), all_end = end_key(p, i0, e.keys);
            const int begin[2] = {first_key(p, e.pos + row), first_key(p, e.pos + row + 8)};
            const int end[2] = {end_key(p, e.pos + row, e.keys), end_key(p, e.pos + row + 8, e.keys)};
            float x[BN / 2];               // S, then P
            uint32_t probability[BN / 4];  // P as an operand

            const auto ask_scores = [&](uint32_t stage) {
                const uint64_t k = k0 + stage * (F::STAGE_BYTES >> 4);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < D / 16; i++)
                    wgmma<T, BN>(x, q0 + i / 4 * (64 * 128 >> 4) + i % 4 * 2,
                                 k + i / 4 * (BN * 128 >> 4) + i % 4 * 2, i > 0);
                // Last, so that the sum is rounded to the size of the bias once.
                if constexpr (F::BIAS)
                    wgmma<__nv_bfloat16, BN>(x, ones, bias0 + bias_at.stage * (F::BIAS_BYTES >> 4), 1);
                wgmma_commit();
            };
            const auto ask_output = [&](uint32_t stage) {
                const uint64_t v = v0 + stage * (F::STAGE_BYTES >> 4);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < BN / 16; i++)
                    wgmma_from_registers<T, D>(o, probability[4 * i], probability[4 * i + 1], probability[4 * i + 2],
                                               probability[4 * i + 3], v + i * (16 * 128 >> 4));
                wgmma_commit();
            };
            // Scores to probabilities; returns how O shrinks, for both rows.
            const auto softmax = [&](int j0) {
                if (j0 + BN > all_end || j0 < all_begin) {
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
                if constexpr (F::BIAS) return softmax_far(x, f, m, l);
                const float low = softmax_row<0>(x, f, m[0], l[0]), high = softmax_row<1>(x, f, m[1], l[1]);
                return make_float2(low, high);
            };
            const auto pack = [&] {
#pragma unroll
                for (int i = 0; i < BN / 4; i++) probability[i] = pack2<T>(x[2 * i], x[2 * i + 1]);
            };

            const auto await = [&] { mbarrier_wait(s.full + at.stage * 8, at.phase); };
            const auto await_bias = [&] {
                if constexpr (F::BIAS) mbarrier_wait(s.bias_full + bias_at.stage * 8, bias_at.phase);
            };
            const auto release_bias = [&] {
                if constexpr (F::BIAS) {
                    release(s.bias_empty + bias_at.stage * 8);
                    bias_at.next();
                }
            };

            await();
            await_bias();
            ask_scores(at.stage);
            wgmma_wait<0>();
            wgmma_settle(x);
            release(s.empty + at.stage * 8);
            release_bias();
            at.next();
            if (w.blocks == 1) release(s.q_empty);
            softmax(w.key0);
            pack();
            await();
#pragma unroll 1
            for (int i = 1; i < w.blocks; i++) {
                const uint32_t k_stage = at.stage;
                at.next();
                await_bias();
                take_turn<F>(consumer);
                ask_scores(k_stage);
                await();
                const uint32_t v_stage = at.stage;
                ask_output(v_stage);
                at.next();
                pass_turn<F>(consumer);
                wgmma_wait<1>();
                wgmma_settle(x);
                release(s.empty + k_stage * 8);
                release_bias();
                if (i == w.blocks - 1) release(s.q_empty);
                const float2 shrink = softmax(w.key0 + i * BN);
                // The next tile is awaited here because ptxas would move the wait below up to the one above, and the
                // softmax behind the product; but not past a branch.
                wgmma_settle(x);
                await();
                wgmma_wait<0>();
                wgmma_settle(o);
                release(s.empty + v_stage * 8);
#pragma unroll
                for (int d = 0; d < D / 8; d++) {
                    o[4 * d] *= shrink.x, o[4 * d + 1] *= shrink.x;
                    o[4 * d + 2] *= shrink.y, o[4 * d + 3] *= shrink.y;
                }
                pack();
            }
            const int key_last = w.key0 + (w.blocks - 1) * BN;
            if ((p.step != nullptr || !alike(params)) && key_last + BN > e.keys)
                clear_rows<F>(s.ring + at.stage * F::STAGE_BYTES, e.keys - key_last, consumer);
            ask_output(at.stage);
            wgmma_wait<0>();
            wgmma_settle(o);
            release(s.empty + at.stage * 8);
            at.next();
        }

        float traded[F::PAIR ? D / 4 : 1] = {};
        if constexpr (F::PAIR) {
            __syncwarp();
            cluster_wait();  // the barriers of the other are ready
            if (row0 < e.valid) l[0] = trade_rows<F>(s, consumer, f, o, m, l, traded);
        }

        const int rows = alike(params) ? int(p.rows) : e.valid;
        // A quad holds 32 columns of a row as words; a lane stores 8 of them.
#pragma unroll
        for (int r = 0; r < (F::PAIR ? 1 : 2); r++) {
            const int i = row + 8 * (F::PAIR ? int(blockIdx.x % 2) : r);
            const float sum = quad_sum(l[r]), inv = 1.f / sum;
            const bool some = sum > 0.f && i < e.valid;  // else a padding row of q may have made NaN of it
            T* out =
                static_cast<T*>(p.out) + ((size_t(w.seq) * p.rows + w.row0 + i) * p.heads + w.head) * D + t * 8;
#pragma unroll
            for (int d = 0; d < D / 32; d++) {
                uint32_t words[4];
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const float* y = F::PAIR ? traded + 2 * (4 * d + n) : o + 4 * (4 * d + n) + 2 * r;
                    words[n] = some ? pack2<T>(y[0] * inv, y[1] * inv) : 0;
                }
                const uint4 vector = gather_vector(words);
                if (i < rows) *reinterpret_cast<uint4*>(out + d * 32) = vector;
            }
        }
        __syncwarp();  // wgmma wants whole warps
    }
}

// Any grid; with PAIR clusters of two for all tiles of rows. Dynamic shared memory: SMEM_BYTES.
template <class T, class F>
__device__ __forceinline__ void flash_wgmma(const FlashParams& p) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full[F::STAGES], empty[F::STAGES], q_full, q_empty;
    __shared__ alignas(8) uint64_t bias_full[F::BIAS_STAGES], bias_empty[F::BIAS_STAGES], traded_full[F::CONSUMERS];
    Shared s;
    s.q = (smem_address(dynamic) + 1023) & ~1023u;
    s.ring = s.q + F::CONSUMERS * F::Q_BYTES;
    s.ones = s.ring + F::STAGES * F::STAGE_BYTES;
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
    if (F::BIAS && threadIdx.x < F::ONES_BYTES / 16) {
        constexpr uint32_t TWO_ONES = 0x3f803f80;
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(s.ones + threadIdx.x * 16), "r"(TWO_ONES)
                     : "memory");
        fence_async_proxy();
    }
    __syncthreads();
    if constexpr (F::PAIR) cluster_arrive();

    if (warpgroup == 0) {
        give_registers<F::PRODUCER_REGISTERS>();
        if (threadIdx.x >= 32) {
            if constexpr (F::BIAS) produce_bias<F>(p, s);
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

// 1025 keys are 11 tiles of 96; of 128 they would be 9, 12 % more than there are.
EXPORT_FLASH(d64_c2, 64, 2, 96, Bias::none)
EXPORT_FLASH(d64_c3, 64, 3, 96, Bias::none)
EXPORT_FLASH(d128_c2, 128, 2, 128, Bias::none)
EXPORT_FLASH(d64_c1_bias, 64, 1, 128, Bias::operand)
EXPORT_FLASH(d128_c2_bias, 128, 2, 128, Bias::operand)
EXPORT_FLASH(d64_c1_bias_pair, 64, 1, 128, Bias::operand_pair)
EXPORT_FLASH(d64_c3_bias_pair, 64, 3, 96, Bias::operand_pair)
