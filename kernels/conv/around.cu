// What stands around the encoders' matrix products. All move each byte once; T16 = bf16 or f16; one rounding each.
//   patchify:       pixels f32 [n, 3, S, S] -> [n·P, cols], columns (c, y, x), zeros at the end; cols % 8 == 0
//                   or bytes [n, S, S, 3], of which (byte / 255 - mean) / std is taken as the host would, to the bit
//   assemble:       [cls | x] (+ pos)       x [tiles·P, C] -> [tiles·(P + 1), C]; C % 8 == 0
//   pixel_shuffle:  s · x, 2x2 patches joined, class rows dropped; x [tiles·(1 + g²), C] -> [tiles·g²/4, 4C]; C % 8 == 0
//   cmvn:           (fbank - mean) · istd   fbank f32 [T, F], mean and istd of T16 or f32
// Convolutions: conv1.cu with one input channel; with more they are matrix products, wgmma.cu or kernels/gemm.
#include "common/export.cuh"
#include "common/ptx.cuh"

constexpr int CONV_THREADS = 128;

// A launch covers its elements with CTAs of 128; threads beyond the last element leave.
__device__ __forceinline__ uint32_t thread_index() { return blockIdx.x * CONV_THREADS + threadIdx.x; }

struct PatchifyParams {
    const void* x;
    void* y;
    uint32_t size, patch, cols;
    uint32_t vectors;  // of 8 columns, in all rows
    uint32_t bytes;    // not floats
    float mean[3], std[3];
};

__device__ __forceinline__ float pixel(const PatchifyParams& p, uint32_t tile, uint32_t c, uint32_t y, uint32_t x) {
    if (!p.bytes) return static_cast<const float*>(p.x)[((size_t(tile) * 3 + c) * p.size + y) * p.size + x];
    const uint8_t byte = static_cast<const uint8_t*>(p.x)[((size_t(tile) * p.size + y) * p.size + x) * 3 + c];
    // No index into the parameters: they would be copied to local memory.
    const float mean = c == 0 ? p.mean[0] : c == 1 ? p.mean[1] : p.mean[2];
    const float std = c == 0 ? p.std[0] : c == 1 ? p.std[1] : p.std[2];
    return __fdiv_rn(__fsub_rn(__fdiv_rn(float(byte), 255.f), mean), std);
}

template <class T>
__device__ __forceinline__ void patchify(const PatchifyParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t at = thread_index();
    if (at >= p.vectors) return;
    const uint32_t per_row = p.cols / 8, row = at / per_row, grid = p.size / p.patch, area = p.patch * p.patch;
    const uint32_t tile = row / (grid * grid), i = row / grid % grid, j = row % grid;
    Vec8<T> out;
#pragma unroll
    for (uint32_t v = 0; v < 8; v++) {
        const uint32_t col = at % per_row * 8 + v, c = col / area, dy = col % area / p.patch, dx = col % p.patch;
        out.v[v] = from_f32<T>(c < 3 ? pixel(p, tile, c, i * p.patch + dy, j * p.patch + dx) : 0.f);
    }
    static_cast<Vec8<T>*>(p.y)[at] = out;
}

struct AssembleParams {
    const void* x;
    const void* cls;
    const void* pos;  // null: no table is added
    void* y;
    uint32_t patches, cols;
    uint32_t vectors;  // of y
};

template <class T>
__device__ __forceinline__ void assemble(const AssembleParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t at = thread_index();
    if (at >= p.vectors) return;
    const uint32_t per_row = p.cols / 8, row = at / per_row, v = at % per_row;
    const uint32_t tile = row / (p.patches + 1), token = row % (p.patches + 1);
    Vec8<T> out = token == 0 ? static_cast<const Vec8<T>*>(p.cls)[v]
                             : static_cast<const Vec8<T>*>(p.x)[size_t(tile * p.patches + token - 1) * per_row + v];
    if (p.pos) {
        const Vec8<T> pos = static_cast<const Vec8<T>*>(p.pos)[token * per_row + v];
#pragma unroll
        for (int j = 0; j < 8; j++) out.v[j] = from_f32<T>(to_f32(out.v[j]) + to_f32(pos.v[j]));
    }
    static_cast<Vec8<T>*>(p.y)[at] = out;
}

struct PixelShuffleParams {
    const void* x;
    void* y;
    uint32_t grid, cols;
    uint32_t vectors;  // of y
    float scale;
};

template <class T>
__device__ __forceinline__ void pixel_shuffle(const PixelShuffleParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t at = thread_index();
    if (at >= p.vectors) return;
    const uint32_t per_row = p.cols / 8, v = at % per_row, part = at / per_row % 4, token = at / per_row / 4;
    const uint32_t half = p.grid / 2, tile = token / (half * half), i = token / half % half, j = token % half;
    const uint32_t row = tile * (1 + p.grid * p.grid) + 1 + (2 * i + part / 2) * p.grid + 2 * j + part % 2;
    Vec8<T> out = static_cast<const Vec8<T>*>(p.x)[size_t(row) * per_row + v];
#pragma unroll
    for (int k = 0; k < 8; k++) out.v[k] = from_f32<T>(p.scale * to_f32(out.v[k]));
    static_cast<Vec8<T>*>(p.y)[at] = out;
}

struct CmvnParams {
    const float* x;
    const void* mean;
    const void* istd;
    void* y;
    uint32_t cols, len;
};

// S: element type of the statistics.
template <class T, class S>
__device__ __forceinline__ void cmvn(const CmvnParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t at = thread_index();
    if (at >= p.len) return;
    const float mean = to_f32(static_cast<const S*>(p.mean)[at % p.cols]);
    const float istd = to_f32(static_cast<const S*>(p.istd)[at % p.cols]);
    static_cast<T*>(p.y)[at] = from_f32<T>((p.x[at] - mean) * istd);
}

#define EXPORT_CONV(suffix, T)                                                                \
    EXPORT(patchify_##suffix, PatchifyParams, CONV_THREADS, 1, patchify<T>)                   \
    EXPORT(assemble_##suffix, AssembleParams, CONV_THREADS, 1, assemble<T>)                   \
    EXPORT(pixel_shuffle_##suffix, PixelShuffleParams, CONV_THREADS, 1, pixel_shuffle<T>)     \
    EXPORT(cmvn_stats_f32_##suffix, CmvnParams, CONV_THREADS, 1, cmvn<T, float>)              \
    EXPORT(cmvn_stats_bf16_##suffix, CmvnParams, CONV_THREADS, 1, cmvn<T, __nv_bfloat16>)     \
    EXPORT(cmvn_stats_f16_##suffix, CmvnParams, CONV_THREADS, 1, cmvn<T, __half>)

EXPORT_CONV(bf16, __nv_bfloat16)
EXPORT_CONV(f16, __half)
