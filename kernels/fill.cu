// fill:  the synthetic weights in place. For every stored element i < count of a tensor
//          r = mix(state + (i + 1) · golden);  u = f32(r >> 40) / 2^23 - 1;  value = f32(centre + f32(scale · u))
//        rounded to the element type, at dst[offset + Σ index · stride], where the indices are those of i in `dims`
//        (row-major) and offset and strides count elements. Never a fused multiply-add: bits equal the host's.
// Eight neighbours go out in one store when the recipe keeps them together: dims[4] % 8 == 0, strides[4] == 1, all
// other strides of axes longer than 1 and the offset multiples of 8. Otherwise one element per thread and turn.
// About 30 integer operations per element. Goal 1 TB/s of bf16; written bytes are the only traffic.
#include "common/export.cuh"
#include "common/ptx.cuh"

constexpr int FILL_THREADS = 256;
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;

struct FillParams {
    void* dst;
    uint64_t state;
    float centre;
    float scale;
    uint64_t count;
    uint32_t dims[5];
    uint64_t strides[5];
    uint64_t offset;
};
static_assert(sizeof(FillParams) == 104, "layout of the host's struct");

__device__ __forceinline__ uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// `at` = state + (i + 1) · golden.
__device__ __forceinline__ float value(uint64_t at, float centre, float scale) {
    const float u = __fadd_rn(__fmul_rn(float(uint32_t(mix(at) >> 40)), 1.f / 8388608.f), -1.f);
    return __fadd_rn(centre, __fmul_rn(scale, u));
}

// Where stored element i goes. Axes of length 1, which most recipes have, cost a comparison.
__device__ __forceinline__ uint64_t target(const FillParams& p, uint64_t i) {
    uint64_t at = p.offset;
#pragma unroll
    for (int axis = 4; axis > 0; axis--) {
        if (p.dims[axis] > 1) {
            const uint64_t rest = i / p.dims[axis];
            at += (i - rest * p.dims[axis]) * p.strides[axis];
            i = rest;
        }
    }
    return at + i * p.strides[0];
}

__device__ __forceinline__ bool vectors_stay_together(const FillParams& p) {
    bool together = p.dims[4] % 8 == 0 && p.strides[4] == 1 && p.offset % 8 == 0;
#pragma unroll
    for (int axis = 0; axis < 4; axis++) together &= p.dims[axis] == 1 || p.strides[axis] % 8 == 0;
    return together;
}

template <class T>
__device__ __forceinline__ void fill(const FillParams& p) {
    pdl_wait();
    pdl_trigger();
    T* dst = static_cast<T*>(p.dst);
    const uint64_t first = uint64_t(blockIdx.x) * FILL_THREADS + threadIdx.x;
    const uint64_t stride = uint64_t(gridDim.x) * FILL_THREADS;
    if (vectors_stay_together(p)) {
        const bool plain = p.dims[4] == p.count;
        for (uint64_t v = first; v < p.count / 8; v += stride) {
            uint64_t at = p.state + (v * 8 + 1) * GOLDEN;
            Vec8<T> out;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                out.v[j] = from_f32<T>(value(at, p.centre, p.scale));
                at += GOLDEN;
            }
            const uint64_t to = plain ? p.offset + v * 8 : target(p, v * 8);
            *reinterpret_cast<Vec8<T>*>(dst + to) = out;
        }
        return;
    }
    for (uint64_t i = first; i < p.count; i += stride)
        dst[target(p, i)] = from_f32<T>(value(p.state + (i + 1) * GOLDEN, p.centre, p.scale));
}

EXPORT(fill_bf16, FillParams, FILL_THREADS, 1, fill<__nv_bfloat16>)
EXPORT(fill_f16, FillParams, FILL_THREADS, 1, fill<__half>)
EXPORT(fill_f32, FillParams, FILL_THREADS, 1, fill<float>)
