// fold_centred:  w[n, k] = w[n, k] · gain[k] - mean over j of w[n, j] · gain[j], in place
// fold_shift:    y[n] = Σ over k of w[n, k] · shift[k]
// w [N, K], gain, shift [K], y [N], all of one type, bf16, f16 or f32. Products, sums and the mean in f32, one rounding.
// A warp per row, any K: in vectors of eight where K % 8 == 0, since rows are aligned then, else element by element.
// The centred row is read twice, the second time out of the L1 or L2. The order of the sums is fixed by K alone.
// Moves 4·N·K (shift: 2·N·K) bytes of T16, once when weights are loaded: bandwidth-bound. Goal 1 TB/s.
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"

constexpr int FOLD_THREADS = 256;

struct CentredParams {
    void* w;
    const void* gain;
    uint32_t rows;
    uint32_t cols;
};
static_assert(sizeof(CentredParams) == 24, "layout of the host's struct");

struct ShiftParams {
    const void* w;
    const void* shift;
    void* y;
    uint32_t rows;
    uint32_t cols;
};
static_assert(sizeof(ShiftParams) == 32, "layout of the host's struct");

// Never contracted: both passes over a row, and the host, see the same product.
template <class T>
__device__ __forceinline__ float product(T w, T by) {
    return __fmul_rn(to_f32(w), to_f32(by));
}

// The warp's row, and the lane's first column of it.
__device__ __forceinline__ uint32_t row_of_warp() { return blockIdx.x * (FOLD_THREADS / 32) + threadIdx.x / 32; }
__device__ __forceinline__ uint32_t lane() { return threadIdx.x % 32; }

// Σ w[k] · by[k], in every lane.
template <class T>
__device__ __forceinline__ float sum_of_products(const T* w, const T* by, uint32_t cols) {
    if (cols % 8 != 0) {
        float sum = 0.f;
        for (uint32_t k = lane(); k < cols; k += 32) sum += product(w[k], by[k]);
        return warp_sum(sum);
    }
    float s[8] = {};
    for (uint32_t k = lane() * 8; k < cols; k += 32 * 8) {
        const Vec8<T> a = *reinterpret_cast<const Vec8<T>*>(w + k), b = *reinterpret_cast<const Vec8<T>*>(by + k);
#pragma unroll
        for (int j = 0; j < 8; j++) s[j] += product(a.v[j], b.v[j]);
    }
    return warp_sum(((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
}

template <class T>
__device__ __forceinline__ void fold_centred(const CentredParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t row = row_of_warp();
    if (row >= p.rows) return;
    T* w = static_cast<T*>(p.w) + size_t(row) * p.cols;
    const T* gain = static_cast<const T*>(p.gain);
    const float mean = __fdiv_rn(sum_of_products(w, gain, p.cols), float(p.cols));
    // The sum has brought the lanes together: all have read the row, and each writes what only it reads again.
    if (p.cols % 8 != 0) {
        for (uint32_t k = lane(); k < p.cols; k += 32) w[k] = from_f32<T>(product(w[k], gain[k]) - mean);
        return;
    }
    for (uint32_t k = lane() * 8; k < p.cols; k += 32 * 8) {
        Vec8<T> a = *reinterpret_cast<const Vec8<T>*>(w + k);
        const Vec8<T> b = *reinterpret_cast<const Vec8<T>*>(gain + k);
#pragma unroll
        for (int j = 0; j < 8; j++) a.v[j] = from_f32<T>(product(a.v[j], b.v[j]) - mean);
        *reinterpret_cast<Vec8<T>*>(w + k) = a;
    }
}

template <class T>
__device__ __forceinline__ void fold_shift(const ShiftParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t row = row_of_warp();
    if (row >= p.rows) return;
    const T* w = static_cast<const T*>(p.w) + size_t(row) * p.cols;
    const float sum = sum_of_products(w, static_cast<const T*>(p.shift), p.cols);
    if (lane() == 0) static_cast<T*>(p.y)[row] = from_f32<T>(sum);
}

#define EXPORT_FOLD(type, T)                                                             \
    EXPORT(fold_centred_##type, CentredParams, FOLD_THREADS, 1, fold_centred<T>) \
    EXPORT(fold_shift_##type, ShiftParams, FOLD_THREADS, 1, fold_shift<T>)

EXPORT_FOLD(bf16, __nv_bfloat16)
EXPORT_FOLD(f16, __half)
EXPORT_FOLD(f32, float)
