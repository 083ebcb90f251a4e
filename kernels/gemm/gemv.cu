// gemv:    y = r + s · act(x wᵀ + b)      x [K], w [N, K], y [cols] of T16 (or f32); K % 8 == 0, sums in f32
// skinny:  the same for x [M, K], 2 <= M <= 16, on tensor cores with w as the 16-row operand
// Both read w once, 16 bytes a lane, 8 to 10 loads in flight per lane, past the L1, and ask for their first weights
// before they wait for the kernel before them. x (a few KB) comes through the L1. Sums have a fixed order.
// moves 2·N·K bytes: bandwidth-bound. Goal 92 % of the read rate (4.55 TB/s on H200) from 130 MB up, M = 8 within 1.1x
// of M = 1
#include "common/export.cuh"
#include "common/mma.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "gemm/epilogue.cuh"

struct GemvParams {
    const void* x;
    const void* w;
    Epilogue e;
    uint32_t m, n, k;
};

constexpr int SKINNY_THREADS = 256, SKINNY_WARPS = SKINNY_THREADS / 32;

// Weights pass through once: no L1 line, first to leave the L2. Asking for bursts of 256 bytes costs 5 %.
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
// the wait; EXACT needs no predicates and has registers left to ask for all of x at once.
enum Fit { EXACT, ONE_BATCH, ANY };

// GROUPS groups of WAYS warps; a group owns R rows, a warp every WAYS-th run of 256 elements of them, U runs a batch.
// A CTA's rows are neighbours, or gates and then ups of neighbouring columns.
// Grid: ceil(N / (GROUPS · R)).
template <class T, int GROUPS, int WAYS, int R, int U, Fit FIT>
__device__ __forceinline__ void gemv(const GemvParams& p) {
    constexpr uint32_t ROWS = GROUPS * R;
    static_assert(ROWS % 2 == 0 && ROWS <= 16 && 32 % R == 0);
    __shared__ float part[WAYS][ROWS];
    const Epilogue& e = p.e;
    const uint32_t tid = threadIdx.x, lane = tid % 32, group = tid / 32 / WAYS, way = tid / 32 % WAYS;
    const bool gated = e.act == ACT_SWIGLU;
    const uint32_t width = gated ? ROWS / 2 : ROWS;  // columns of this CTA
    const uint32_t chunks = p.k / 8;
    const uint4* w[R];
#pragma unroll
    for (uint32_t r = 0; r < R; r++) {
        const uint32_t i = group * R + r, col = blockIdx.x * width + i % width;
        const uint32_t row = gated ? col / 8 * 16 + col % 8 + i / width * 8 : col;
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
    load(at);

    const uint32_t col = blockIdx.x * width + tid, row = gated ? col / 8 * 16 + col % 8 : col;
    const bool writes = tid < width && col < e.cols;
    float bias = 0.f, bias_up = 0.f, scale = 1.f;
    T residual = from_f32<T>(0.f);  // not a float yet: nobody waits for it before the end
    if (writes) {
        bias = value_or<T>(e.bias, row, p.n, 0.f);
        if (gated) bias_up = value_or<T>(e.bias, row + 8, p.n, 0.f);
        scale = value_or<T>(e.scale, col, e.cols, 1.f);
    }
    pdl_wait();
    pdl_trigger();
    if (const T* r = residual_at<T>(e, 0, col); writes && r != nullptr) residual = *r;

    const auto* x = static_cast<const uint4*>(p.x);
    float sums[R] = {};
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
            }
#pragma unroll
            for (int r = 0; r < R; r++) sums[r] = dot8<T>(sums[r], a[u][r], xs[u]);
        }
        at += U * 32 * WAYS;
        if (FIT != ANY || at - lane >= chunks) break;  // the same for all lanes
        load(at);
    }
    const float sum = warp_sums<R>(sums);
    if (lane % (32 / R) == 0) part[way][group * R + lane / (32 / R)] = sum;
    __syncthreads();
    if (!writes) return;
    const auto total = [&](uint32_t i) {
        float s = part[0][i];
#pragma unroll
        for (int j = 1; j < WAYS; j++) s += part[j][i];
        return s;
    };
    const float s = total(tid) + bias;
    const float v = (gated ? silu(s) * (total(tid + width) + bias_up) : activate(e.act, s)) * scale + to_f32(residual);
    if (e.out_f32)
        static_cast<float*>(e.y)[col] = v;
    else
        static_cast<T*>(e.y)[col] = from_f32<T>(v);
}

// A CTA owns 16 rows of w; its 8 warps share K in runs of 128 elements and add up through shared memory. Lane (g, t)
// takes 16 bytes = 8 neighbours along k of rows g and g + 8 and of token g: two mma steps, with k in another order
// than the instruction's, the same for both operands.
// Grid: ceil(N / 16). NT blocks of 8 tokens.
template <class T, int NT>
__device__ __forceinline__ void skinny(const GemvParams& p) {
    constexpr int U = 4;  // blocks of 32 elements in a run: 8 loads of w in flight per lane
    constexpr int TOKENS = 8 * NT;
    __shared__ float part[SKINNY_WARPS][16][TOKENS];
    const Epilogue& e = p.e;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t n0 = blockIdx.x * 16, chunks = p.k / 8;
    const auto* w = static_cast<const uint4*>(p.w);
    const uint4* w0 = w + size_t(min(n0 + g, p.n - 1)) * chunks;
    const uint4* w1 = w + size_t(min(n0 + g + 8, p.n - 1)) * chunks;
    const uint64_t policy = streaming_policy();

    uint4 a[U], b[U];
    const auto load = [&](uint32_t at) {
#pragma unroll
        for (int u = 0; u < U; u++) {
            const uint32_t c = at + 4 * u;
            a[u] = load_weights(w0 + c, c < chunks, policy);
            b[u] = load_weights(w1 + c, c < chunks, policy);
        }
    };
    uint32_t at = warp * 4 * U + t;
    load(at);
    pdl_wait();
    pdl_trigger();

    const auto* x = static_cast<const uint4*>(p.x);
    float acc[NT][4] = {};
    while (true) {
#pragma unroll
        for (int u = 0; u < U; u++) {
            const uint32_t c = at + 4 * u;
#pragma unroll
            for (int j = 0; j < NT; j++) {
                uint4 xs = make_uint4(0, 0, 0, 0);
                if (c < chunks && 8 * j + g < p.m) xs = x[size_t(8 * j + g) * chunks + c];
                mma_16816<T>(acc[j], a[u].x, b[u].x, a[u].y, b[u].y, xs.x, xs.y);
                mma_16816<T>(acc[j], a[u].z, b[u].z, a[u].w, b[u].w, xs.z, xs.w);
            }
        }
        at += SKINNY_WARPS * 4 * U;
        if (at - t >= chunks) break;  // the same for all lanes
        load(at);
    }
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) part[warp][g + i / 2 * 8][8 * j + 2 * t + i % 2] = acc[j][i];
    __syncthreads();

    const auto total = [&](uint32_t row, uint32_t token) {
        float sum = value_or<T>(e.bias, n0 + row, p.n, 0.f);
#pragma unroll
        for (int i = 0; i < SKINNY_WARPS; i++) sum += part[i][row][token];
        return sum;
    };
    const bool gated = e.act == ACT_SWIGLU;
    const uint32_t width = gated ? 8 : 16;  // output columns of this CTA
    for (uint32_t i = threadIdx.x; i < width * TOKENS; i += SKINNY_THREADS) {
        const uint32_t row = i % width, token = i / width, col = blockIdx.x * width + row;
        if (token >= p.m || col >= e.cols) continue;
        const float sum = total(row, token);
        const float v = gated ? silu(sum) * total(row + 8, token) : activate(e.act, sum);
        put<T>(e, token, col, v, value_or<T>(e.scale, col, e.cols, 1.f));
    }
}

template <class T>
__device__ __forceinline__ void skinny8(const GemvParams& p) { skinny<T, 1>(p); }
template <class T>
__device__ __forceinline__ void skinny16(const GemvParams& p) { skinny<T, 2>(p); }

template <class T>
__device__ __forceinline__ void gemv_2(const GemvParams& p) { gemv<T, 4, 2, 2, 4, ANY>(p); }
template <class T>
__device__ __forceinline__ void gemv_7(const GemvParams& p) { gemv<T, 1, 7, 4, 2, EXACT>(p); }
template <class T>
__device__ __forceinline__ void gemv_16(const GemvParams& p) { gemv<T, 1, 16, 2, 5, ONE_BATCH>(p); }

EXPORT(gemv_2_bf16, GemvParams, 256, 4, gemv_2<__nv_bfloat16>)
EXPORT(gemv_2_f16, GemvParams, 256, 4, gemv_2<__half>)
EXPORT(gemv_7_bf16, GemvParams, 224, 4, gemv_7<__nv_bfloat16>)
EXPORT(gemv_7_f16, GemvParams, 224, 4, gemv_7<__half>)
EXPORT(gemv_16_bf16, GemvParams, 512, 2, gemv_16<__nv_bfloat16>)
EXPORT(gemv_16_f16, GemvParams, 512, 2, gemv_16<__half>)
EXPORT(gemv_m8_bf16, GemvParams, SKINNY_THREADS, 3, skinny8<__nv_bfloat16>)
EXPORT(gemv_m8_f16, GemvParams, SKINNY_THREADS, 3, skinny8<__half>)
EXPORT(gemv_m16_bf16, GemvParams, SKINNY_THREADS, 2, skinny16<__nv_bfloat16>)
EXPORT(gemv_m16_f16, GemvParams, SKINNY_THREADS, 2, skinny16<__half>)
