// gemv:    y = r + s · act(x wᵀ + b)      x [K], w [N, K], y [cols] of T16 (or f32); K % 8 == 0, sums in f32
// skinny:  the same for x [M, K], 2 <= M <= 16, on tensor cores with w as the 16-row operand
// Both read w once, 16 bytes a lane, 8 loads in flight per lane, past the L1, and ask for their first weights before
// they wait for the kernel before them. x (a few KB) comes through the L1. Sums have a fixed order.
// moves 2·N·K bytes: bandwidth-bound. Goal 85 % of the read rate (4.55 TB/s on H200) from 25 MB up, M = 8 within 1.1x
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
    uint32_t k_ways;  // gemv: warps that share a pair of rows, 1, 2, 4 or 8
};

constexpr int GEMV_THREADS = 256, GEMV_WARPS = GEMV_THREADS / 32;

// Weights pass through once: no L1 line, first to leave the L2, whole 256-byte bursts.
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
        "@q ld.global.L1::no_allocate.L2::cache_hint.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4], %5;\n"
        "}"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(p), "l"(policy), "r"(uint32_t(there)));
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

// A warp owns every k_ways-th run of 256 elements of two rows: neighbours, or gate and up of one column.
// Grid: ceil(columns behind which two rows stand / (8 / k_ways)).
template <class T>
__device__ __forceinline__ void gemv(const GemvParams& p) {
    constexpr int U = 4;  // runs in flight: 8 loads per lane
    __shared__ float part[GEMV_WARPS][2];
    const Epilogue& e = p.e;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t pair = blockIdx.x * (GEMV_WARPS / p.k_ways) + warp / p.k_ways, way = warp % p.k_ways;
    const bool gated = e.act == ACT_SWIGLU;
    const uint32_t row0 = gated ? pair / 8 * 16 + pair % 8 : 2 * pair, row1 = row0 + (gated ? 8 : 1);
    const uint32_t chunks = p.k / 8, stride = 32 * p.k_ways;
    const auto* w = static_cast<const uint4*>(p.w);
    // Rows beyond the last repeat it; nobody stores them.
    const uint4* w0 = w + size_t(min(row0, p.n - 1)) * chunks;
    const uint4* w1 = w + size_t(min(row1, p.n - 1)) * chunks;
    const uint64_t policy = streaming_policy();

    uint4 a[U], b[U];
    const auto load = [&](uint32_t at) {
#pragma unroll
        for (int u = 0; u < U; u++) {
            const uint32_t c = at + u * stride;
            a[u] = load_weights(w0 + c, c < chunks, policy);
            b[u] = load_weights(w1 + c, c < chunks, policy);
        }
    };
    uint32_t at = way * 32 + lane;
    load(at);
    const bool writes = lane == 0 && way == 0;
    const uint32_t col = gated ? pair : 2 * pair;
    float bias[2] = {}, scale[2] = {};
    if (writes) {
        bias[0] = value_or<T>(e.bias, row0, p.n, 0.f);
        bias[1] = value_or<T>(e.bias, row1, p.n, 0.f);
        scale[0] = value_or<T>(e.scale, col, e.cols, 1.f);
        scale[1] = gated ? 1.f : value_or<T>(e.scale, col + 1, e.cols, 1.f);
    }
    pdl_wait();
    pdl_trigger();

    const auto* x = static_cast<const uint4*>(p.x);
    float sum0 = 0.f, sum1 = 0.f;
    while (true) {
#pragma unroll
        for (int u = 0; u < U; u++) {
            const uint32_t c = at + u * stride;
            if (c < chunks) {
                const uint4 xs = x[c];
                sum0 = dot8<T>(sum0, a[u], xs);
                sum1 = dot8<T>(sum1, b[u], xs);
            }
        }
        at += U * stride;
        if (at - lane >= chunks) break;  // the same for all lanes
        load(at);
    }
    sum0 = warp_sum(sum0);
    sum1 = warp_sum(sum1);
    if (p.k_ways > 1) {
        if (lane == 0) {
            part[warp][0] = sum0;
            part[warp][1] = sum1;
        }
        __syncthreads();
    }
    if (!writes) return;
    for (uint32_t i = 1; i < p.k_ways; i++) {
        sum0 += part[warp + i][0];
        sum1 += part[warp + i][1];
    }
    sum0 += bias[0];
    sum1 += bias[1];
    if (gated) {
        if (col < e.cols) put<T>(e, 0, col, silu(sum0) * sum1, scale[0]);
    } else {
        put_pair<T>(e, 0, col, activate(e.act, sum0), activate(e.act, sum1), scale[0], scale[1]);
    }
}

// A CTA owns 16 rows of w; its 8 warps share K in runs of 128 elements and add up through shared memory. Lane (g, t)
// takes 16 bytes = 8 neighbours along k of rows g and g + 8 and of token g: two mma steps, with k in another order
// than the instruction's, the same for both operands.
// Grid: ceil(N / 16). NT blocks of 8 tokens.
template <class T, int NT>
__device__ __forceinline__ void skinny(const GemvParams& p) {
    constexpr int U = 4;  // blocks of 32 elements in a run: 8 loads of w in flight per lane
    constexpr int TOKENS = 8 * NT;
    __shared__ float part[GEMV_WARPS][16][TOKENS];
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
        at += GEMV_WARPS * 4 * U;
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
        for (int i = 0; i < GEMV_WARPS; i++) sum += part[i][row][token];
        return sum;
    };
    const bool gated = e.act == ACT_SWIGLU;
    const uint32_t width = gated ? 8 : 16;  // output columns of this CTA
    for (uint32_t i = threadIdx.x; i < width * TOKENS; i += GEMV_THREADS) {
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

EXPORT(gemv_bf16, GemvParams, GEMV_THREADS, 4, gemv<__nv_bfloat16>)
EXPORT(gemv_f16, GemvParams, GEMV_THREADS, 4, gemv<__half>)
EXPORT(gemv_m8_bf16, GemvParams, GEMV_THREADS, 3, skinny8<__nv_bfloat16>)
EXPORT(gemv_m8_f16, GemvParams, GEMV_THREADS, 3, skinny8<__half>)
EXPORT(gemv_m16_bf16, GemvParams, GEMV_THREADS, 2, skinny16<__nv_bfloat16>)
EXPORT(gemv_m16_f16, GemvParams, GEMV_THREADS, 2, skinny16<__half>)
