// Whale's scores in the form of plain attention: scale·((q+u)·k + (q+v)·p) = scale·q·(k+p) + scale·(u·k + v·p).
//
// fold_keys:  y = x + p on the key columns;  bias[h, j] = scale·(u_h·x_j + vb_h·p_j)      sums in f32, y rounded once
//   x, y rows of row_stride T16 whose key columns begin at x, y; p [.., H·D], u, vb [H·D] of T16; bias f32 [H, T]
//   without u, vb and bias the sum alone
//   y may be x; D % 8 == 0, D <= 256. 2^k >= D/8 lanes per (row, head): a lane holds 8 elements, a butterfly the sum
//   moves 6·T·H·D bytes (in place): bandwidth-bound, launch-bound at T <= 1000. `copy`: q and v columns as well
// sin_table:  pe[t, 2i] = sin(t·f_i), pe[t, 2i+1] = cos(t·f_i), f_i = 10000^(-2i/width)      pe [rows, width] of T16
//   f_i in f64 rounded to f32, angle and functions in f32: one thread per pair; runs once per model
#include "common/export.cuh"
#include "common/ptx.cuh"

constexpr int WHALE_THREADS = 256;

struct FoldKeysParams {
    const void* x;
    const void* p;
    const void* u;  // null, as vb and bias: no bias
    const void* vb;
    void* y;
    float* bias;
    uint32_t row_stride;
    uint32_t rows;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t lanes;  // per (row, head): a power of two
    uint32_t copy;   // also the column blocks before and after the keys
    float scale;
};

template <class T>
__device__ __forceinline__ void fold_keys(const FoldKeysParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t per_cta = WHALE_THREADS / p.lanes, part = threadIdx.x % p.lanes;
    const uint32_t at = blockIdx.x * per_cta + threadIdx.x / p.lanes, row = at / p.heads, head = at % p.heads;
    const bool works = row < p.rows && part * 8 < p.head_dim;
    const uint32_t c = p.heads * p.head_dim, column = head * p.head_dim + part * 8;
    float sum = 0.f;
    if (works) {
        const size_t from = size_t(row) * p.row_stride + column;
        const Vec8<T> x = *reinterpret_cast<const Vec8<T>*>(static_cast<const T*>(p.x) + from);
        const Vec8<T> pos = *reinterpret_cast<const Vec8<T>*>(static_cast<const T*>(p.p) + size_t(row) * c + column);
        if (p.bias) {
            const Vec8<T> u = *reinterpret_cast<const Vec8<T>*>(static_cast<const T*>(p.u) + column);
            const Vec8<T> vb = *reinterpret_cast<const Vec8<T>*>(static_cast<const T*>(p.vb) + column);
#pragma unroll
            for (int i = 0; i < 8; i++)
                sum += to_f32(u.v[i]) * to_f32(x.v[i]) + to_f32(vb.v[i]) * to_f32(pos.v[i]);
        }
        Vec8<T> y;
#pragma unroll
        for (int i = 0; i < 8; i++) y.v[i] = from_f32<T>(to_f32(x.v[i]) + to_f32(pos.v[i]));
        T* to = static_cast<T*>(p.y) + from;
        *reinterpret_cast<Vec8<T>*>(to) = y;
        if (p.copy) {
            const T* same = static_cast<const T*>(p.x) + from;
            *reinterpret_cast<Vec8<T>*>(to - c) = *reinterpret_cast<const Vec8<T>*>(same - c);
            *reinterpret_cast<Vec8<T>*>(to + c) = *reinterpret_cast<const Vec8<T>*>(same + c);
        }
    }
    if (!p.bias) return;
    for (uint32_t d = p.lanes / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (works && part == 0) p.bias[size_t(head) * p.rows + row] = p.scale * sum;
}

struct SinTableParams {
    void* pe;
    uint32_t rows;
    uint32_t width;
};

template <class T>
__device__ __forceinline__ void sin_table(const SinTableParams& p) {
    pdl_wait();
    pdl_trigger();
    const size_t at = size_t(blockIdx.x) * WHALE_THREADS + threadIdx.x, pairs = p.width / 2;
    const size_t row = at / pairs, i = at % pairs;
    if (row >= p.rows) return;
    const float f = static_cast<float>(pow(10000.0, -2.0 * double(i) / double(p.width)));
    const float angle = float(row) * f;
    T* pe = static_cast<T*>(p.pe) + row * p.width + 2 * i;
    pe[0] = from_f32<T>(sinf(angle));
    pe[1] = from_f32<T>(cosf(angle));
}

EXPORT(fold_keys_bf16, FoldKeysParams, WHALE_THREADS, 1, fold_keys<__nv_bfloat16>)
EXPORT(fold_keys_f16, FoldKeysParams, WHALE_THREADS, 1, fold_keys<__half>)
EXPORT(sin_table_bf16, SinTableParams, WHALE_THREADS, 1, sin_table<__nv_bfloat16>)
EXPORT(sin_table_f16, SinTableParams, WHALE_THREADS, 1, sin_table<__half>)
