// gemv:    y = act(x wᵀ + b) or r + s · (x wᵀ + b)      x [K], w [N, K], y [cols] of T16 (or f32); K % 8 == 0, sums in f32
// *_norm:  with x / sqrt(mean(x²) + eps) · gain for x, not rounded: every CTA adds up the squares beside its products,
//          sums are of w · gain · x, and the root is a factor of theirs at the end
// *_rope:  x wᵀ + b is q | k | v by heads of D, D % 16 == 0, D <= 256, each in pairs: elements 0..8, D/2..D/2 + 8, 8..16,
//          and so on. q and k are turned as by rope (rope.cu) and rounded once, q to y [H·D], k and v, if the row is
//          below step.valid_rows, to kv [2, G, S_max, D] at step.pos
// *_arg_max: beside y the index of its largest among the first `limit`, the lowest of equals: a CTA adds its largest to
//          one of ARG_SLOTS maxima, from which gemv_arg_max_end takes the answer, leaving them zero
// w is read once, 16 bytes a lane, 8 to 10 loads in flight per lane, past the L1; every other CTA asks for its first
// weights before it waits for the kernel before it. x (a few KB) comes through the L1. Sums have a fixed order.
// moves 2·N·K bytes: bandwidth-bound. Goal 92 % of the read rate (4.55 TB/s on H200) from 130 MB up.
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/rank.cuh"
#include "common/reduce.cuh"
#include "common/step.cuh"
#include "common/vec.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/gemv.cuh"

constexpr int ARG_SLOTS = 128;

struct GemvArgMaxParams {
    static constexpr bool ROPE = false, ARG_MAX = true;
    GemvParams product;
    u64* slots;  // [ARG_SLOTS], zero
    uint32_t limit;
};

struct GemvArgMaxEndParams {
    u64* slots;
    uint32_t* id;
};

__device__ __forceinline__ const GemvParams& product_of(const GemvArgMaxParams& p) { return p.product; }

// Weights pass through once: no L1 line, first to leave the L2. Asking for bursts of 256 bytes costs 5 % here (and gains 4 %
// in skinny.cu).
// Zeros unless `there`: a predicate, not a branch, so that all loads of a step are in flight together. Not `.nc`: ptxas
// takes such loads as free to move and sinks them below griddepcontrol.wait.
__device__ __forceinline__ uint4 load_weights(const uint4* p, bool there, uint64_t policy) {
    uint4 v;
    asm volatile(
        "{\n"
        ".reg .pred q;\n"
        "setp.ne.u32 q, %6, 0;\n"
        "mov.u32 %0, 0;\n"
        "mov.u32 %1, 0;\n"
        "mov.u32 %2, 0;\n"
        "mov.u32 %3, 0;\n"
        "@q ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;\n"
        "}"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(p), "l"(policy), "r"(uint32_t(there)));
    return v;
}

__device__ __forceinline__ uint4 load_weights(const uint4* p, uint64_t policy) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "l"(policy));
    return v;
}

// Volatile: all loads of a batch go out before the first is used.
__device__ __forceinline__ uint4 load_x(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack<__nv_bfloat16>(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
template <>
__device__ __forceinline__ float2 unpack<__half>(uint32_t pair) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

template <class T>
__device__ __forceinline__ float dot8(float sum, const uint4& w, const uint4& x) {
    const uint32_t ws[4] = {w.x, w.y, w.z, w.w}, xs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 a = unpack<T>(ws[i]), b = unpack<T>(xs[i]);
        sum = fmaf(a.x, b.x, sum);
        sum = fmaf(a.y, b.y, sum);
    }
    return sum;
}

// The same with x in f32.
template <class T>
__device__ __forceinline__ float dot8(float sum, const uint4& w, const Float8& x) {
    const Float8 a = unpack<T>(w);
#pragma unroll
    for (int i = 0; i < 8; i++) sum = fmaf(a.v[i], x.v[i], sum);
    return sum;
}

// gain · x, and the squares of x added up.
template <class T>
__device__ __forceinline__ Float8 gained(const uint4& x, const uint4& gain, float& squares) {
    Float8 v = unpack<T>(x);
    const Float8 g = unpack<T>(gain);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        squares = fmaf(v.v[i], v.v[i], squares);
        v.v[i] *= g.v[i];
    }
    return v;
}

// Before pdl_wait(): the step of a run is older than its first kernel, and is read past the L1.
template <class T>
__device__ __forceinline__ void find(Turn<T>& turn, const GemvRopeParams& p, uint32_t head, uint32_t i) {
    const uint32_t pos = __ldcg(&p.step->pos);
    turn.template place<true>(p, head, 0, pos, __ldcg(&p.step->valid_rows));
    if (turn.turned) sincosf(float(pos) * p.inv_freq[i], &turn.sine, &turn.cosine);
}

// R sums over the warp (R a power of two): lane l gets sum l / (32 / R).
template <int R>
__device__ __forceinline__ float warp_sums(float (&s)[R]) {
    const uint32_t lane = threadIdx.x % 32;
    int d = 16;
#pragma unroll
    for (int half = R / 2; half > 0; half /= 2, d /= 2) {
        const bool upper = lane & d;
#pragma unroll
        for (int i = 0; i < half; i++) {
            const float give = upper ? s[i] : s[i + half], keep = upper ? s[i + half] : s[i];
            s[i] = keep + __shfl_xor_sync(0xffffffffu, give, d);
        }
    }
    float v = s[0];
#pragma unroll
    for (; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

// How K compares with the 256 · U · WAYS elements of a batch. In one batch all weights of a warp are asked for before
// the wait; EXACT needs no predicates and has registers left to ask for all of x (and its gain) at once.
enum Fit { EXACT, ONE_BATCH, ANY };

// GROUPS groups of WAYS warps; a group owns R rows, a warp every WAYS-th run of 256 elements of them, U runs a batch.
template <int GROUPS_, int WAYS_, int R_, int U_, Fit FIT_>
struct Form {
    static constexpr int GROUPS = GROUPS_, WAYS = WAYS_, R = R_, U = U_;
    static constexpr int ROWS = GROUPS * R, THREADS = 32 * GROUPS * WAYS;
    static constexpr Fit FIT = FIT_;
    static_assert(ROWS % 2 == 0 && ROWS <= 16 && 32 % R == 0);
};

// A CTA's rows are neighbours; or gates and then ups of neighbouring columns; or the first and then the second elements of
// neighbouring pairs.
// Grid: ceil(N / ROWS); with rope (D / ROWS, H + 2·G).
template <class T, class F, bool NORM, class Params>
__device__ __forceinline__ void gemv(const Params& params) {
    constexpr bool ROPE = Params::ROPE;
    constexpr int R = F::R, U = F::U, WAYS = F::WAYS;
    constexpr Fit FIT = F::FIT;
    constexpr uint32_t ROWS = F::ROWS;
    // The angle before the wait, where there is one and registers are left for it.
#if __CUDA_ARCH__ >= 900
    constexpr bool EARLY = FIT == EXACT;
#else
    constexpr bool EARLY = false;
#endif
    __shared__ float part[WAYS][ROWS + NORM];  // sums, then the squares
    const GemvParams& p = product_of(params);
    const Epilogue& e = p.e;
    const uint32_t tid = threadIdx.x, lane = tid % 32, group = tid / 32 / WAYS, way = tid / 32 % WAYS;
    const bool gated = !ROPE && e.act == ACT_SWIGLU, paired = ROPE || gated;
    const uint32_t width = paired ? ROWS / 2 : ROWS;  // columns, or pairs, of this CTA
    constexpr uint32_t TO_SECOND = 8;                 // from the first row of a pair to the second
    uint32_t head_row = 0;                            // first row of the head
    if constexpr (ROPE) head_row = blockIdx.y * params.head_dim;
    const uint32_t chunks = p.k / 8;
    const uint4* w[R];
#pragma unroll
    for (uint32_t r = 0; r < R; r++) {
        const uint32_t i = group * R + r, col = blockIdx.x * width + i % width;
        const uint32_t row = head_row + (paired ? col / 8 * 16 + col % 8 : col) + i / width * TO_SECOND;
        // Rows beyond the last repeat it; nobody stores them.
        w[r] = static_cast<const uint4*>(p.w) + size_t(min(row, p.n - 1)) * chunks;
    }
    const uint64_t policy = streaming_policy();
    uint4 a[U][R];
    const auto load = [&](uint32_t at) {
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int r = 0; r < R; r++) {
                const uint32_t c = at + u * (32 * WAYS);
                a[u][r] = FIT == EXACT ? load_weights(w[r] + c, policy) : load_weights(w[r] + c, c < chunks, policy);
            }
    };
    uint32_t at = way * 32 + lane;
    // Every other CTA asks behind the wait. If all stood ready they would go on at once and stay in step, and the memory
    // would have bursts and pauses.
    if ((blockIdx.x + blockIdx.y) % 2 == 0) pdl_wait();
    load(at);
    const auto* gain = static_cast<const uint4*>(p.gain);
    uint4 gains[U];
    if constexpr (NORM && FIT == EXACT) {
#pragma unroll
        for (int u = 0; u < U; u++) gains[u] = load_x(gain + at + u * (32 * WAYS));
    }

    const uint32_t col = blockIdx.x * width + tid, row = head_row + (paired ? col / 8 * 16 + col % 8 : col);
    const bool writes = tid < width && (ROPE || col < e.cols);
    float bias = 0.f, second_bias = 0.f, scale = 1.f;
    T residual = from_f32<T>(0.f);  // not a float yet: nobody waits for it before the end
    if (writes) {
        bias = value_or<T>(e.bias, row, p.n, 0.f);
        if (paired) second_bias = value_or<T>(e.bias, row + TO_SECOND, p.n, 0.f);
        if (!ROPE) scale = value_or<T>(e.scale, col, e.cols, 1.f);
    }
    Turn<T> turn;
    if constexpr (ROPE && EARLY) {
        if (writes) find(turn, params, blockIdx.y, col);
    }
    pdl_wait();
    pdl_trigger();
    if constexpr (!ROPE) {
        if (const T* r = residual_at<T>(e, 0, col); writes && r != nullptr) residual = *r;
    }

    const auto* x = static_cast<const uint4*>(p.x);
    float sums[R] = {}, squares = 0.f;
    while (true) {
        uint4 xs[U];
        if (FIT == EXACT) {
#pragma unroll
            for (int u = 0; u < U; u++) xs[u] = load_x(x + at + u * (32 * WAYS));
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
            const uint32_t c = at + u * (32 * WAYS);
            if (FIT != EXACT) {
                if (c >= chunks) break;
                xs[u] = x[c];
                if (NORM) gains[u] = gain[c];
            }
            if constexpr (NORM) {
                const Float8 v = gained<T>(xs[u], gains[u], squares);
#pragma unroll
                for (int r = 0; r < R; r++) sums[r] = dot8<T>(sums[r], a[u][r], v);
            } else {
#pragma unroll
                for (int r = 0; r < R; r++) sums[r] = dot8<T>(sums[r], a[u][r], xs[u]);
            }
        }
        at += U * 32 * WAYS;
        if (FIT != ANY || at - lane >= chunks) break;  // the same for all lanes
        load(at);
    }
    const float sum = warp_sums<R>(sums);
    if (lane % (32 / R) == 0) part[way][group * R + lane / (32 / R)] = sum;
    if constexpr (NORM) {
        squares = warp_sum(squares);
        if (group == 0 && lane == 0) part[way][ROWS] = squares;  // every group has the same
    }
    __syncthreads();
    u64 best = 0;
    if (Params::ARG_MAX ? tid >= 32 : !writes) return;
    const auto total = [&](uint32_t i) {
        float s = part[0][i];
#pragma unroll
        for (int j = 1; j < WAYS; j++) s += part[j][i];
        return s;
    };
    if (writes) {
        float s = total(tid), second = paired ? total(tid + width) : 0.f;
        if constexpr (NORM) {
            const float root = rsqrtf(total(ROWS) * p.inv_k + p.eps);
            s *= root, second *= root;
        }
        s += bias, second += second_bias;
        if constexpr (ROPE) {
            if (!EARLY) find(turn, params, blockIdx.y, col);
            turn.put(params, col, s, second);
        } else {
            const float v = (gated ? silu(s) * second : activate(e.act, s)) * scale + to_f32(residual);
            if (e.out_f32)
                static_cast<float*>(e.y)[col] = v;
            else
                static_cast<T*>(e.y)[col] = from_f32<T>(v);
            if constexpr (Params::ARG_MAX) {
                if (col < params.limit) best = ranked(v, col);
            }
        }
    }
    if constexpr (Params::ARG_MAX) {
#pragma unroll
        for (int d = 8; d > 0; d >>= 1) best = max(best, __shfl_xor_sync(0xffffffffu, best, d));  // of 16 rows at most
        if (tid == 0) atomicMax(params.slots + blockIdx.x % ARG_SLOTS, best);
    }
}

__device__ __forceinline__ void arg_max_end(const GemvArgMaxEndParams& p) {
    __shared__ u64 part[ARG_SLOTS / 32];
    pdl_wait();
    pdl_trigger();
    u64 best = __ldcg(&p.slots[threadIdx.x]);
    p.slots[threadIdx.x] = 0;
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) best = max(best, __shfl_xor_sync(0xffffffffu, best, d));
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int i = 1; i < ARG_SLOTS / 32; i++) best = max(best, part[i]);
    *p.id = index_of(best);
}

using Two = Form<4, 2, 2, 4, ANY>;
using Seven = Form<1, 7, 4, 2, EXACT>;
using Sixteen = Form<1, 16, 2, 5, ONE_BATCH>;

// Registers are bounded as if a CTA had whole rounds of 4 warps: if the four parts of an SM take its warps in turns,
// three of them have 2 of 7. 72 registers leave a part room for 7 warps, 64 for the 8 of four CTAs.
#define EXPORT_FORM(symbol, Params, form, ctas, ...)                                                               \
    extern "C" __global__ void __launch_bounds__((form::THREADS + 127) / 128 * 128, ctas)                          \
        symbol(const __grid_constant__ Params p) {                                                                 \
        gemv<__VA_ARGS__>(p);                                                                                      \
    }                                                                                                              \
    extern "C" __device__ KernelInfo symbol##_info = {sizeof(Params), form::THREADS};

#define EXPORT_GEMV(symbol, Params, form, ctas)                                    \
    EXPORT_FORM(symbol##_bf16, Params, form, ctas, __nv_bfloat16, form, false)     \
    EXPORT_FORM(symbol##_f16, Params, form, ctas, __half, form, false)             \
    EXPORT_FORM(symbol##_norm_bf16, Params, form, ctas, __nv_bfloat16, form, true) \
    EXPORT_FORM(symbol##_norm_f16, Params, form, ctas, __half, form, true)
#define EXPORT_GEMVS(name, form, ctas)                             \
    EXPORT_GEMV(gemv_##name, GemvParams, form, ctas)               \
    EXPORT_GEMV(gemv_rope_##name, GemvRopeParams, form, ctas)      \
    EXPORT_GEMV(gemv_arg_max_##name, GemvArgMaxParams, form, ctas)

EXPORT_GEMVS(2, Two, 4)
EXPORT_GEMVS(7, Seven, 4)
EXPORT_GEMVS(16, Sixteen, 2)
EXPORT(gemv_arg_max_end_u32, GemvArgMaxEndParams, ARG_SLOTS, 1, arg_max_end)
