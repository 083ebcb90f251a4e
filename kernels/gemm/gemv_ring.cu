// archs: 90a
// gemv_ring:  y = r + s · act(x wᵀ + b)      x [K], w [N, K], y [cols] of T16 (or f32); sums in f32, one rounding
//             any N; K % 8 == 0, K <= 14336 (`_v7`) or 20480 (`_v5x2`); what lies beyond is for gemv.cu
// One CTA per SM with an even share of the columns: neighbours, 27 or 28 rows of w where gemv.cu deals out waves of
// CTAs. Its 8 warps stand in groups of `ways`; a group takes every (8 / ways)th row, a warp of it the same chunk of K
// in each, so that its part of x stays in registers. Every warp has a ring of its own in shared memory: one lane asks
// for whole chunks (cp.async.bulk, 2 to 4 KB), the warp waits, takes 16 bytes per lane and asks for the next chunk in
// the same place. No barrier between warps before the end, where the sums of the ways are added in their order: two
// runs give the same bits.
//
// A kernel costs its bytes and the time in which the memory has nothing to do: from its last byte over its sums, its
// end and the start of the next kernel to that one's first byte, some 2.5 us. The ring holds as much (82 to 100 KB per
// SM), so that time is filled if the next kernel fills its ring just then. Hence
//  - the ring is filled before the wait for the kernel before, and the L2 is asked for `ahead` chunks per warp beyond
//    it: all of a small matrix, since what comes before it (attention, a norm) may leave the memory idle for longer;
//  - pdl_trigger() does not stand behind pdl_wait(), but where `lead` chunks per warp are still unasked for: sooner,
//    and the next ring would be filled at the cost of this kernel's own loads, and be idle when those end.
// It cannot hang: the trigger is a permit to schedule, a CTA that leaves gives it, too, and CTAs of the next kernel
// take only room that is free after all of this one are resident. It stays behind the wait, so that never more than
// one kernel with a ring waits. Two need room on one SM: at most 112 KB of shared memory and 128 registers each.
//
// moves 2·N·K bytes: bandwidth-bound. Goal: 95 % of the read rate (4.58 TB/s on H200) at 25 MB, within a chain.
#include "common/export.cuh"
#include "common/hopper.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "gemm/epilogue.cuh"

struct GemvRingParams {
    const void* x;
    const void* w;
    Epilogue e;
    uint32_t n, k;
    uint32_t way_bits;  // log2 of the warps that share a row
    uint32_t chunk;     // vectors of 8 elements; the last of a row may be shorter, but not empty
    uint32_t ahead;     // chunks per warp beyond the ring that the L2 is asked for
    uint32_t lead;
};

constexpr uint32_t RING_WARPS = 8, RING_THREADS = 32 * RING_WARPS;

// V: vectors per lane of a chunk. PARTS: chunks of a row that a warp takes one after the other.
template <int V_, int STAGES_, int PARTS_>
struct RingShape {
    static constexpr uint32_t V = V_, STAGES = STAGES_, PARTS = PARTS_;
    static constexpr uint32_t STAGE_VECTORS = 32 * V, RING_VECTORS = RING_WARPS * STAGES * STAGE_VECTORS;
    static_assert(PARTS == 1 || PARTS == 2);
};

// What the epilogue needs beside the sums of a column.
struct ColumnConstants {
    float bias[2];
    float scale;
};

// The sums of a and of b over the warp: in lanes 0 to 15 that of a, in the others that of b.
__device__ __forceinline__ float warp_sum_of_two(float a, float b) {
    const bool upper = threadIdx.x % 32 >= 16;
    float sum = (upper ? b : a) + __shfl_xor_sync(0xffffffffu, upper ? a : b, 16);
#pragma unroll
    for (int d = 8; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    return sum;
}

template <class T, int V>
__device__ __forceinline__ float dot(const uint4 (&w)[V], const uint4 (&x)[V]) {
    float even = 0.f, odd = 0.f;
#pragma unroll
    for (int v = 0; v < V; v++) {
        const uint32_t ws[4] = {w[v].x, w[v].y, w[v].z, w[v].w}, xs[4] = {x[v].x, x[v].y, x[v].z, x[v].w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 a = unpack2(ws[i], T()), b = unpack2(xs[i], T());
            even = fmaf(a.x, b.x, even);
            odd = fmaf(a.y, b.y, odd);
        }
    }
    return even + odd;
}

// Grid: at most one CTA per column. Dynamic shared memory: the rings, then a float per way and row of the CTA.
template <class T, class Shape>
__device__ __forceinline__ void gemv_ring(const GemvRingParams& p) {
    constexpr uint32_t V = Shape::V, STAGES = Shape::STAGES, PARTS = Shape::PARTS;
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full_[RING_WARPS][STAGES];
    const Epilogue& e = p.e;
    const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    const uint32_t ways = 1u << p.way_bits, way = warp & (ways - 1);
    const uint32_t group = warp >> p.way_bits, groups = RING_WARPS >> p.way_bits;

    // Columns col0 .. col0 + cols of this CTA, and the rows of w behind them, counted from 0: after SwiGLU two each.
    const uint32_t share = e.cols / gridDim.x, rest = e.cols % gridDim.x;
    const uint32_t col0 = blockIdx.x * share + min(blockIdx.x, rest), cols = share + (blockIdx.x < rest);
    const bool gated = e.act == ACT_SWIGLU;
    const uint32_t rows = cols << uint32_t(gated);
    const uint32_t pieces = rows > group ? (rows - group + groups - 1) / groups * PARTS : 0;  // chunks of this warp
    const auto row_of = [&](uint32_t i) {
        if (!gated) return col0 + i;
        const uint32_t col = col0 + i / 2;
        return col / 8 * 16 + col % 8 + i % 2 * 8;
    };

    // The chunks of a row that this warp takes: where they begin and end, in vectors.
    const uint32_t vectors = p.k / 8;
    const uint32_t first[2] = {way * PARTS * p.chunk, (way * PARTS + 1) * p.chunk};
    const uint32_t len[2] = {min(p.chunk, vectors - first[0]), PARTS == 2 ? min(p.chunk, vectors - first[1]) : 0};
    const uint64_t policy = streaming_policy();
    uint4* const ring = dynamic + warp * STAGES * Shape::STAGE_VECTORS;
    const uint32_t ring_at = smem_address(ring), full = smem_address(full_[warp]);
    const auto source = [&](uint32_t i) {
        const uint32_t row = row_of(group + i / PARTS * groups);
        return static_cast<const uint4*>(p.w) + (size_t(row) * vectors + (i % PARTS == 0 ? first[0] : first[1]));
    };
    const auto bytes_of = [&](uint32_t i) { return 16 * (i % PARTS == 0 ? len[0] : len[1]); };
    const auto ask = [&](uint32_t i, uint32_t stage) {
        const uint32_t to = ring_at + stage * (Shape::STAGE_VECTORS * 16), barrier = full + stage * 8;
        mbarrier_expect_tx(barrier, bytes_of(i));
        bulk_load(to, source(i), bytes_of(i), barrier, policy);
    };

    // What chunks leave of their place is read all the same, and meets x = 0: it must not be NaN.
    if (len[PARTS - 1] < Shape::STAGE_VECTORS) {
#pragma unroll 1
        for (uint32_t s = 0; s < STAGES; s++)
#pragma unroll 1
            for (uint32_t at = len[PARTS - 1] + lane; at < Shape::STAGE_VECTORS; at += 32)
                ring[s * Shape::STAGE_VECTORS + at] = make_uint4(0, 0, 0, 0);
        fence_async_proxy();
    }
    __syncwarp();
    if (elect_one()) {
        for (uint32_t s = 0; s < STAGES; s++) mbarrier_init(full + s * 8, 1);
        fence_mbarrier_init();
#pragma unroll 1
        for (uint32_t i = 0; i < min(STAGES, pieces); i++) ask(i, i);
#pragma unroll 1
        for (uint32_t i = STAGES; i < min(STAGES + p.ahead, pieces); i++) bulk_prefetch(source(i), bytes_of(i));
    }
    __syncwarp();

    const auto constants_of = [&](uint32_t c) {
        const uint32_t row = row_of(c << uint32_t(gated));
        ColumnConstants it;
        it.bias[0] = value_or<T>(e.bias, row, p.n, 0.f);
        it.bias[1] = gated ? value_or<T>(e.bias, row + 8, p.n, 0.f) : 0.f;
        it.scale = value_or<T>(e.scale, col0 + c, e.cols, 1.f);
        return it;
    };
    ColumnConstants constants = {};
    if (threadIdx.x < cols) constants = constants_of(threadIdx.x);
    // At the last ask of this warp but `lead`; where that lies before the first: at once.
    const int trigger_at = int(pieces) - 1 - int(STAGES) - int(p.lead);
    pdl_wait();
    if (trigger_at < 0) pdl_trigger();

    uint4 x[PARTS][V];
#pragma unroll
    for (uint32_t h = 0; h < PARTS; h++)
#pragma unroll
        for (uint32_t v = 0; v < V; v++) {
            const uint32_t at = lane + 32 * v;
            x[h][v] = at < len[h] ? static_cast<const uint4*>(p.x)[first[h] + at] : make_uint4(0, 0, 0, 0);
        }
    // May be y itself: this thread reads the columns that it writes.
    const auto residual_of = [&](uint32_t c) { return value_or<T>(e.residual, col0 + c, e.cols, 0.f); };
    float residual = threadIdx.x < cols ? residual_of(threadIdx.x) : 0.f;

    float* const sums = reinterpret_cast<float*>(dynamic + Shape::RING_VECTORS);  // [way][row]
    float* const mine = sums + way * rows + group;
    uint32_t stage = 0, parity = 0;
    const auto take = [&](uint32_t i, const uint4 (&xs)[V]) {
        mbarrier_wait(full + stage * 8, parity);
        uint4 w[V];
#pragma unroll
        for (uint32_t v = 0; v < V; v++) w[v] = ring[stage * Shape::STAGE_VECTORS + lane + 32 * v];
        const float sum = dot<T, V>(w, xs);
        __syncwarp();  // all lanes have what was there
        if (i + STAGES < pieces && elect_one()) {
            ask(i + STAGES, stage);
            const uint32_t next = i + STAGES + p.ahead;
            if (p.ahead > 0 && next < pieces) bulk_prefetch(source(next), bytes_of(next));
        }
        if (int(i) == trigger_at) pdl_trigger();
        if (++stage == STAGES) stage = 0, parity ^= 1;
        return sum;
    };
#pragma unroll 1
    for (uint32_t i = 0; i < pieces; i += 2) {
        const float a = take(i, x[0]);
        if constexpr (PARTS == 2) {
            const float sum = warp_sum(a + take(i + 1, x[1]));
            if (lane == 0) mine[i / 2 * groups] = sum;
        } else {
            const bool two = i + 1 < pieces;
            const float sum = warp_sum_of_two(a, two ? take(i + 1, x[0]) : 0.f);
            if (lane % 16 == 0 && (lane == 0 || two)) mine[(i + lane / 16) * groups] = sum;
        }
    }
    __syncthreads();

    const auto total = [&](uint32_t i, float bias) {
        float sum = sums[i];
#pragma unroll 1
        for (uint32_t j = 1; j < ways; j++) sum += sums[j * rows + i];
        return sum + bias;
    };
#pragma unroll 1
    for (uint32_t c = threadIdx.x; c < cols; c += RING_THREADS) {
        if (c != threadIdx.x) {
            constants = constants_of(c);
            residual = residual_of(c);
        }
        float v;
        if (gated)
            v = silu(total(2 * c, constants.bias[0])) * total(2 * c + 1, constants.bias[1]);
        else
            v = activate(e.act, total(c, constants.bias[0]));
        v = v * constants.scale + residual;
        if (e.out_f32)
            static_cast<float*>(e.y)[col0 + c] = v;
        else
            static_cast<T*>(e.y)[col0 + c] = from_f32<T>(v);
    }
}

using RingV7 = RingShape<7, 3, 1>;
using RingV5x2 = RingShape<5, 5, 2>;
EXPORT(gemv_ring_v7_bf16, GemvRingParams, RING_THREADS, 2, gemv_ring<__nv_bfloat16, RingV7>)
EXPORT(gemv_ring_v7_f16, GemvRingParams, RING_THREADS, 2, gemv_ring<__half, RingV7>)
EXPORT(gemv_ring_v5x2_bf16, GemvRingParams, RING_THREADS, 2, gemv_ring<__nv_bfloat16, RingV5x2>)
EXPORT(gemv_ring_v5x2_f16, GemvRingParams, RING_THREADS, 2, gemv_ring<__half, RingV5x2>)
