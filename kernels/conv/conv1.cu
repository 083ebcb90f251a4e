// conv1_mma:  y = act(Σ x[2i + r, 2j + s] w[n, 3r + s] + b[n])      x [H, W], w [N, 9], y [H2, W2·N] of T16;
//             N % 8 == 0, sums in f32, one rounding; act is none or ReLU
// The 9 taps, and the bias as a tenth whose pixel is 1, are the k of one mma.sync m16n8k16 (the rest are zeros, and
// tensor cores have time): 16 pixels by 8 channels in one instruction, where a lane per output needs 36. A warp
// keeps the weights of 128 channels in registers and walks over groups of 16 pixels; the pixels of the next group are
// on their way meanwhile. Channels are dealt to the columns of four mma such that a lane ends up with 8 neighbours:
// column 2t + c of mma j is channel 8t + 2j + c of 32.
// Moves 2·(H·W + 10·N + H2·W2·N) bytes; 40 MB written at 1000 frames, the write rate is the goal (10 us).
#include "common/export.cuh"
#include "common/mma.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"

struct Conv1Params {
    const void* x;
    const void* w;
    const void* b;
    void* y;
    uint32_t width, out_width, pixels, channels;
    uint32_t relu;
    uint32_t slots;  // warps per 128 channels; each takes every slots-th 16 pixels
};

constexpr int CONV1_THREADS = 128;
constexpr uint32_t SLAB = 128, BLOCKS = SLAB / 32;  // channels of a warp, in blocks of four mma

template <class T>
__device__ __forceinline__ uint32_t bits(T x) {
    return *reinterpret_cast<const uint16_t*>(&x);
}
template <class T>
__device__ __forceinline__ uint32_t pair(T lower, T upper) {
    return bits(lower) | bits(upper) << 16;
}

// The larger of both halves; NaN stays NaN.
__device__ __forceinline__ uint32_t max2(uint32_t a, uint32_t b, __nv_bfloat16) {
    const auto m = __hmax2_nan(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
    return *reinterpret_cast<const uint32_t*>(&m);
}
__device__ __forceinline__ uint32_t max2(uint32_t a, uint32_t b, __half) {
    const auto m = __hmax2_nan(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
    return *reinterpret_cast<const uint32_t*>(&m);
}

// Rows g and g + 8 of the 16 pixels of a group, as mma wants them.
struct Pixels {
    uint32_t a[4];
};

// Grid: slots · ceil(N / 128) warps, 4 to a CTA.
template <class T>
__device__ __forceinline__ void conv1_mma(const Conv1Params& p) {
    const uint32_t slabs = (p.channels + SLAB - 1) / SLAB, warp = blockIdx.x * (CONV1_THREADS / 32) + threadIdx.x / 32;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, n0 = warp % slabs * SLAB;
    const auto* x = static_cast<const T*>(p.x);
    auto* y = static_cast<T*>(p.y);

    // k: taps 2t and 2t + 1 in the lower half; tap 8, the bias and zeros in the upper half. Channels beyond the last
    // are the last once more, and not written.
    uint32_t w[BLOCKS][4][2];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t n = min(n0 + 32 * i + g / 2 * 8 + 2 * j + g % 2, p.channels - 1);
            const T* taps = static_cast<const T*>(p.w) + n * 9;
            w[i][j][0] = pair(taps[2 * t], taps[2 * t + 1]);
            const uint32_t upper = pair(taps[8], static_cast<const T*>(p.b)[n]);
            w[i][j][1] = t == 0 ? upper : 0;
        }
    pdl_wait();
    pdl_trigger();

    const uint32_t tap0 = 2 * t / 3 * p.width + 2 * t % 3, tap1 = (2 * t + 1) / 3 * p.width + (2 * t + 1) % 3;
    // Pixels beyond the last are the last once more, and not written.
    const auto load = [&](uint32_t group) {
        Pixels v;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const uint32_t pixel = min(group * 16 + g + 8 * h, p.pixels - 1);
            const T* at = x + (pixel / p.out_width * p.width + pixel % p.out_width) * 2;
            v.a[h] = pair(at[tap0], at[tap1]);
            const uint32_t upper = pair(at[2 * p.width + 2], from_f32<T>(1.f));
            v.a[h + 2] = t == 0 ? upper : 0;
        }
        return v;
    };

    const uint32_t least = pair(from_f32<T>(p.relu ? 0.f : -INFINITY), from_f32<T>(p.relu ? 0.f : -INFINITY));
    const uint32_t groups = (p.pixels + 15) / 16;
    uint32_t group = warp / slabs;
    if (group >= min(p.slots, groups)) return;
    for (Pixels v = load(group); group < groups; group += p.slots) {
        const Pixels next = load(min(group + p.slots, groups - 1));
        const uint32_t row = group * 16 + g;
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            float c[4][4] = {};
#pragma unroll
            for (int j = 0; j < 4; j++)
                mma_16816<T>(c[j], v.a[0], v.a[1], v.a[2], v.a[3], w[i][j][0], w[i][j][1]);
            const uint32_t n = n0 + 32 * i + 8 * t;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t out[4];
#pragma unroll
                for (int j = 0; j < 4; j++)
                    out[j] = max2(pack2(make_float2(c[j][2 * h], c[j][2 * h + 1]), T()), least, T());
                if (row + 8 * h < p.pixels && n < p.channels)
                    *reinterpret_cast<uint4*>(y + size_t(row + 8 * h) * p.channels + n) =
                        make_uint4(out[0], out[1], out[2], out[3]);
            }
        }
        v = next;
    }
}

#define EXPORT_CONV1(suffix, T) EXPORT(conv1_mma_##suffix, Conv1Params, CONV1_THREADS, 4, conv1_mma<T>)

EXPORT_CONV1(bf16, __nv_bfloat16)
EXPORT_CONV1(f16, __half)
