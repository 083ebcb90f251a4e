// skinny:        y = act(x wᵀ + b) or r + s · (x wᵀ + b)      x [M, K], w [N, K], y [M, cols] of T16 (or f32);
//                2 <= M <= 16, K % 8 == 0
// skinny_rope:   x wᵀ + b is q | k | v by heads in pairs, turned and put as in gemv.cu; rows are those of one sequence, row m
//                at step.pos + m, or every row is another sequence's, at step.pos, and kv is [2, M·G, S_max, D]
// A CTA keeps its x in registers, up to 3584 elements of K, and multiplies a unit of 16 rows of w after another, whichever
// is next. Its warps share K; tensor cores with w as the operand of 16 rows. Lane (g, t) takes 16 bytes = 8 neighbours along k of
// rows g and g + 8 of w and of rows g (and g + 8) of x: two mma steps, with k in another order than the instruction's, the
// same for both operands. A register of weights is asked for again as soon as it is used, so that memory is never waited
// for; the first weights are asked for before the kernel before this one has ended. Sums of the warps go through shared
// memory, two buffers in turns, and some warps, others each time, finish them while all go on.
// A longer K is shared by gridDim.y CTAs, whose sums go through `partials`; the last of them (a counter, left at zero) adds
// them in the order of K. Sums have a fixed order.
// moves 2·N·K bytes: bandwidth-bound. Goal: M = 8 within 1.1x of M = 1.
#include "common/export.cuh"
#include "common/mma.cuh"
#include "common/ptx.cuh"
#include "common/step.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/gemv.cuh"

// Of `claims` there are two for each part of K: units that are taken, and CTAs that have no more. Zero before and after.
struct SkinnyParams {
    static constexpr bool ROPE = false, SPLIT = false;
    GemvParams product;
    uint32_t* claims;
};

struct SkinnySplitParams {
    static constexpr bool ROPE = false, SPLIT = true;
    GemvParams product;
    uint32_t* claims;
    uint32_t* counters;    // [units], zero
    float* partials;       // [units, parts, SUMS]
    uint32_t part_chunks;  // of 8 elements
};

struct SkinnyRopeParams {
    static constexpr bool ROPE = true, SPLIT = false;
    GemvRopeParams rope;
    uint32_t* claims;
};

__device__ __forceinline__ const GemvParams& product_of(const SkinnyParams& p) { return p.product; }
__device__ __forceinline__ const GemvParams& product_of(const SkinnySplitParams& p) { return p.product; }
__device__ __forceinline__ const GemvParams& product_of(const SkinnyRopeParams& p) { return p.rope.product; }

constexpr int UNIT = 16;  // rows of w

// Asks for 16 bytes if at < left; else v stays as it is. Weights pass through once: no L1 line, first to leave the L2.
// Not `.nc`: ptxas takes such loads as free to move and sinks them below griddepcontrol.wait.
__device__ __forceinline__ void ask(uint4& v, const uint4* p, int at, int left, uint64_t policy) {
    asm volatile(
        "{\n"
        ".reg .pred q;\n"
        "setp.lt.s32 q, %6, %7;\n"
        "@q ld.global.L1::no_allocate.L2::cache_hint.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4], %5;\n"
        "}"
        : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
        : "l"(p), "l"(policy), "r"(at), "r"(left));
}

// The same of x, by the L1.
__device__ __forceinline__ void ask_x(uint4& v, const uint4* p, int at, int left) {
    asm volatile(
        "{\n"
        ".reg .pred q;\n"
        "setp.lt.s32 q, %5, %6;\n"
        "@q ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        "}"
        : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
        : "l"(p), "r"(at), "r"(left)
        : "memory");
}

// A barrier of those who finish a unit.
template <int THREADS>
__device__ __forceinline__ void finishers_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}

// NT blocks of 8 rows of x; WARPS warps with BLOCKS runs of 32 elements of K each, DEPTH of them on their way.
template <int NT_, int WARPS_, int BLOCKS_, int DEPTH_>
struct Form {
    static constexpr int NT = NT_, WARPS = WARPS_, BLOCKS = BLOCKS_, DEPTH = DEPTH_;
    static constexpr int TOKENS = 8 * NT, THREADS = 32 * WARPS;
    static constexpr int SUMS = UNIT * TOKENS;  // and as many threads to finish them
    // Rows whose angles a CTA has: of 16 rows, which are one of each sequence, all have the same.
    static constexpr int ANGLE_ROWS = NT == 1 ? 8 : 1;
    static_assert(32 * WARPS * BLOCKS == 3584);  // as the host has it
    static_assert(DEPTH <= BLOCKS && SUMS <= THREADS);
};

// Grid: (CTAs, parts of K).
template <class T, class F, class Params>
__device__ __forceinline__ void skinny(const Params& params) {
    constexpr bool ROPE = Params::ROPE, SPLIT = Params::SPLIT;
    constexpr int NT = F::NT, WARPS = F::WARPS, BLOCKS = F::BLOCKS, DEPTH = F::DEPTH, TOKENS = F::TOKENS;
    constexpr int THREADS = F::THREADS, SUMS = F::SUMS;
    __shared__ float sums[2][WARPS][NT][UNIT][8];
    __shared__ float2 angles[ROPE ? F::ANGLE_ROWS * ROPE_PAIRS : 1];
    __shared__ uint2 step;  // its pos and valid_rows
    __shared__ uint32_t claimed[2];
    __shared__ bool is_last;
    const GemvParams& p = product_of(params);
    const Epilogue& e = p.e;
    const uint32_t tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const uint32_t chunks = p.k / 8, units = (p.n + UNIT - 1) / UNIT;
    uint32_t begin = 0, end = chunks;
    if constexpr (SPLIT) {
        begin = blockIdx.y * params.part_chunks;
        end = min(begin + params.part_chunks, chunks);
    }
    // As many runs for each warp as are needed, neighbours along k.
    const uint32_t span = (end - begin + 4 * WARPS - 1) / (4 * WARPS) * 4, first = begin + warp * span + t;
    int left = min(int(span), int(end - begin - warp * span)) - int(t);

    const auto* const w = static_cast<const uint4*>(p.w);
    // Rows beyond the last repeat it; nobody stores them.
    const auto row_at = [&](uint32_t unit, uint32_t r) { return w + size_t(min(unit * UNIT + r, p.n - 1)) * chunks + first; };
    const uint64_t policy = streaming_policy();
    uint4 a[DEPTH] = {}, b[DEPTH] = {};
    const uint4 *w_low = row_at(blockIdx.x, g), *w_high = row_at(blockIdx.x, g + 8);
#pragma unroll
    for (int u = 0; u < DEPTH; u++) {
        ask(a[u], w_low + 4 * u, 4 * u, left, policy);
        ask(b[u], w_high + 4 * u, 4 * u, left, policy);
    }
    if constexpr (ROPE) {
        // The step of a run is older than its first kernel; it is read past the L1.
        const GemvRopeParams& r = params.rope;
        const uint32_t pos = __ldcg(&r.step->pos);
        if (tid == 0) step = {pos, __ldcg(&r.step->valid_rows)};
        const uint32_t pairs = r.head_dim / 2, rows = r.row_step == 0 ? 1 : min(p.m, uint32_t(F::ANGLE_ROWS));
        for (uint32_t i = tid; i < rows * pairs; i += THREADS) {
            float2 cs;
            sincosf(float(pos + i / pairs) * r.inv_freq[i % pairs], &cs.y, &cs.x);
            angles[i] = cs;
        }
    }
    pdl_wait();
    pdl_trigger();
    // The first units are given, those after them taken: a CTA that begins late, or whose SM is slow, does fewer.
    uint32_t* const claims = params.claims + 2 * blockIdx.y;
    const auto claim = [&] { return gridDim.x + atomicAdd(claims, 1u); };
    uint32_t taken = 0;
    if (tid == 0) taken = claim();

    // Rows beyond the last repeat it too: their sums are another column's.
    uint4 x[BLOCKS][NT] = {};
#pragma unroll
    for (int j = 0; j < NT; j++) {
        const auto* const from = static_cast<const uint4*>(p.x) + size_t(min(8 * j + g, p.m - 1)) * chunks + first;
#pragma unroll
        for (int u = 0; u < BLOCKS; u++) ask_x(x[u][j], from + 4 * u, 4 * u, left);
    }
    const bool gated = !ROPE && e.act == ACT_SWIGLU, paired = ROPE || gated;
    const uint32_t width = paired ? UNIT / 2 : UNIT;  // columns, or pairs, of a unit
    uint32_t turn_of = 0, buffer = 0;                 // the first thread of those that finish this unit
    if (tid == 0) claimed[1] = taken;
    __syncthreads();
    for (uint32_t unit = blockIdx.x, next; unit < units; unit = next) {
        next = claimed[buffer ^ 1];
        if (tid == 0) taken = claim();
        float acc[NT][4] = {};
#pragma unroll
        for (int u = 0; u < BLOCKS; u++) {
            uint4 &low = a[u % DEPTH], &high = b[u % DEPTH];
#pragma unroll
            for (int j = 0; j < NT; j++) {
                mma_16816<T>(acc[j], low.x, high.x, low.y, high.y, x[u][j].x, x[u][j].y);
                mma_16816<T>(acc[j], low.z, high.z, low.w, high.w, x[u][j].z, x[u][j].w);
            }
            if (u + DEPTH == BLOCKS) {  // from here on weights of the next unit are asked for
                w_low = row_at(next, g), w_high = row_at(next, g + 8);
                if (next >= units) left = 0;
            }
            const int ahead = u + DEPTH < BLOCKS ? u + DEPTH : u % DEPTH;
            ask(low, w_low + 4 * ahead, 4 * ahead, left, policy);
            ask(high, w_high + 4 * ahead, 4 * ahead, left, policy);
        }
#pragma unroll
        for (int j = 0; j < NT; j++) {
            *reinterpret_cast<float2*>(&sums[buffer][warp][j][g][2 * t]) = make_float2(acc[j][0], acc[j][1]);
            *reinterpret_cast<float2*>(&sums[buffer][warp][j][g + 8][2 * t]) = make_float2(acc[j][2], acc[j][3]);
        }
        if (tid == 0) claimed[buffer] = taken;
        // One barrier: who finished the unit before the last, which used this buffer, has been at the one between.
        __syncthreads();
        const uint32_t at = tid >= turn_of ? tid - turn_of : tid + THREADS - turn_of;
        if (at < SUMS) {
            const uint32_t token = at / width, i = at % width, row = unit * UNIT + i, col = unit * width + i;
            bool finishes = token < min(p.m, uint32_t(TOKENS)) && (ROPE || col < e.cols);
            const auto sum_of = [&](uint32_t r, uint32_t m) {
                float s = 0.f;
#pragma unroll
                for (int k = 0; k < WARPS; k++) s += sums[buffer][k][m / 8][r][m % 8];
                return s;
            };
            float s = 0.f, second = 0.f;
            if constexpr (SPLIT) {
                const uint32_t parts = gridDim.y;
                float* const all = params.partials + size_t(unit) * parts * SUMS;
                __stcg(all + blockIdx.y * SUMS + at, sum_of(at % UNIT, at / UNIT));
                __threadfence();
                finishers_sync<SUMS>();
                if (at == 0) {
                    is_last = atomicAdd(params.counters + unit, 1u) == parts - 1;
                    if (is_last) params.counters[unit] = 0;
                }
                finishers_sync<SUMS>();
                finishes = finishes && is_last;
                if (finishes) {
                    __threadfence();
                    const float* from = all + token * UNIT + i;
                    for (uint32_t k = 0; k < parts; k++, from += SUMS) {
                        s += __ldcg(from);
                        if (paired) second += __ldcg(from + 8);
                    }
                }
            } else if (finishes) {
                s = sum_of(i, token);
                if (paired) second = sum_of(i + 8, token);
            }
            if (finishes) {
                s += value_or<T>(e.bias, row, p.n, 0.f);
                if (paired) second += value_or<T>(e.bias, row + 8, p.n, 0.f);
                if constexpr (ROPE) {
                    const GemvRopeParams& r = params.rope;
                    const uint32_t head = unit * UNIT / r.head_dim, pair = unit * UNIT % r.head_dim / 2 + i;
                    Turn<T> turn;
                    turn.template place<false>(r, head, token, step.x, step.y);
                    const float2 cs = angles[(r.row_step == 0 ? 0 : token) * (r.head_dim / 2) + pair];
                    turn.cosine = cs.x, turn.sine = cs.y;
                    turn.put(r, pair, s, second);
                } else {
                    const float v = gated ? silu(s) * second : activate(e.act, s);
                    put<T>(e, token, col, v, value_or<T>(e.scale, col, e.cols, 1.f));
                }
            }
        }
        buffer ^= 1;
        turn_of = (turn_of + SUMS) % THREADS;
    }
    if (tid == 0 && atomicAdd(claims + 1, 1u) == gridDim.x - 1) claims[0] = claims[1] = 0;
}

using EightRows = Form<1, 16, 7, 7>;
#if __CUDA_ARCH__ >= 900
using SixteenRows = Form<2, 16, 7, 4>;
#else  // ptxas finds no room for more
using SixteenRows = Form<2, 16, 7, 2>;
#endif

#define EXPORT_SKINNY(symbol, Params, Form)                                              \
    EXPORT(symbol##_bf16, Params, Form::THREADS, 1, skinny<__nv_bfloat16, Form>)         \
    EXPORT(symbol##_f16, Params, Form::THREADS, 1, skinny<__half, Form>)

EXPORT_SKINNY(skinny_m8, SkinnyParams, EightRows)
EXPORT_SKINNY(skinny_m16, SkinnyParams, SixteenRows)
EXPORT_SKINNY(skinny_split_m8, SkinnySplitParams, EightRows)
EXPORT_SKINNY(skinny_split_m16, SkinnySplitParams, SixteenRows)
EXPORT_SKINNY(skinny_rope_m8, SkinnyRopeParams, EightRows)
EXPORT_SKINNY(skinny_rope_m16, SkinnyRopeParams, SixteenRows)
