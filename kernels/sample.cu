// arg_max:  ids_t = index of the largest of the first `limit` logits of row t, the lowest of equals; NaN loses
//   logits [T, V] of f32 or T16, any V; grid (chunks, T), a CTA of 256 per chunk. The pair (order-preserving bits of
//   the value, inverted index) is one u64, so the maximum is the answer in whatever order it is taken. With more than
//   one chunk the last CTA of a row reduces the partials and leaves its counter zero.
// sample:   draws an id, see ops::sample::Sample, whose lines this kernel repeats: the same IEEE operations up to
//   d = max z - z, integers from there on, so equal logits give equal ids on both machines.
//   logits [T, V]; seen u32 [T, V] is counted up; params u32 [8]; token u32 [T]; grid (8, T). A cluster of 8 CTAs of
//   1024 a row (before sm_90 one CTA): every pass over the logits ends in a cluster barrier. Thresholds by
//   radix selection on q (31 bits: 11 + 10 + 10) with histograms of counts (top-k) or of 64-bit masses (top-p), in
//   shared memory, then in scratch.
// Reads V logits from memory once and from the L2 in 3 to 10 passes of about 1.5 us: latency-bound, V = 151665 in
// 10 to 20 us. arg_max: launch-bound, 4·V bytes.
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/rank.cuh"
#include "common/step.cuh"

constexpr int ARG_THREADS = 256;
constexpr int SAMPLE_THREADS = 1024;
constexpr int SAMPLE_CTAS = 8;  // at most
constexpr int BINS = 2048;      // of the first level; the other two have half as many
constexpr uint32_t DEAD = 0xffffffffu;

struct ArgMaxParams {
    const void* x;
    uint32_t* ids;
    u64* partials;       // [T, chunks]; unused when chunks = 1
    uint32_t* counters;  // [T], zero; unused when chunks = 1
    uint32_t pitch;      // V
    uint32_t limit;      // <= V
    uint32_t chunk;      // logits per CTA: chunks · chunk >= limit
};

struct SampleScratch {
    u64 histograms[2][2 * BINS];  // top-k, top-p: three levels each
    u64 best[SAMPLE_CTAS];
    u64 kept[SAMPLE_CTAS];
    u64 drawn[SAMPLE_CTAS];
};

static_assert(sizeof(SampleScratch) == (2 * 2 * BINS + 3 * SAMPLE_CTAS) * 8, "the host asks for this much");

struct SampleParams {
    const void* x;
    uint32_t* seen;
    const uint32_t* params;
    uint32_t* token;
    const Step* step;
    SampleScratch* scratch;  // [T]
    float* z;                // [T, z_pitch] of scratch
    uint32_t limit;
    uint32_t pitch;    // V
    uint32_t z_pitch;  // >= limit
};

// What tells the random numbers of a row from those of the row before it.
constexpr u64 ROW = 0xD1B54A32D192ED03ull;

// The maximum over a block, in every thread. May be called again at once.
template <int THREADS>
__device__ __forceinline__ u64 block_max(u64 x) {
    __shared__ u64 part[THREADS / 32];
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = max(x, __shfl_xor_sync(0xffffffffu, x, d));
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++) x = max(x, part[i]);
    __syncthreads();
    return x;
}

template <class T>
__device__ __forceinline__ void arg_max(const ArgMaxParams& p) {
    __shared__ bool last;
    pdl_wait();
    pdl_trigger();
    const uint32_t row = blockIdx.y;
    const T* x = static_cast<const T*>(p.x) + size_t(row) * p.pitch;
    const uint32_t begin = blockIdx.x * p.chunk, end = min(begin + p.chunk, p.limit);
    u64 best = 0;
#pragma unroll 4
    for (uint32_t i = begin + threadIdx.x; i < end; i += ARG_THREADS) best = max(best, ranked(to_f32(x[i]), i));
    best = block_max<ARG_THREADS>(best);
    if (gridDim.x > 1) {
        u64* partials = p.partials + size_t(row) * gridDim.x;
        if (threadIdx.x == 0) {
            partials[blockIdx.x] = best;
            __threadfence();
            last = atomicAdd(&p.counters[row], 1) == gridDim.x - 1;
        }
        __syncthreads();
        if (!last) return;
        __threadfence();
        best = 0;
        for (uint32_t i = threadIdx.x; i < gridDim.x; i += ARG_THREADS) best = max(best, __ldcg(&partials[i]));
        best = block_max<ARG_THREADS>(best);
        if (threadIdx.x == 0) p.counters[row] = 0;
    }
    if (threadIdx.x == 0) p.ids[row] = index_of(best);
}

// All threads of the cluster, or of the CTA where there are no clusters; what they wrote is visible after it.
__device__ __forceinline__ void group_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#else
    __syncthreads();
#endif
}

// Inclusive sums over the threads of a block; `total` over all of them.
__device__ __forceinline__ u64 block_scan(u64 x, u64* total) {
    __shared__ u64 part[SAMPLE_THREADS / 32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        const u64 left = __shfl_up_sync(0xffffffffu, x, d);
        if (lane >= d) x += left;
    }
    if (lane == 31) part[warp] = x;
    __syncthreads();
    u64 before = 0, sum = 0;
#pragma unroll
    for (int i = 0; i < SAMPLE_THREADS / 32; i++) {
        if (i < warp) before += part[i];
        sum += part[i];
    }
    __syncthreads();
    *total = sum;
    return before + x;
}

// 2^40 e^(-q / 2^26), in integers.
__device__ __forceinline__ u64 mass(uint32_t q) {
    const u64 t = u64(q) * 6196328019ull;  // d · log2(e) · 2^58
    const uint32_t f = uint32_t(t >> 26);
    uint32_t sum = 48570;
    sum = 639548 - __umulhi(sum, f);
    sum = 5712116 - __umulhi(sum, f);
    sum = 41304524 - __umulhi(sum, f);
    sum = 238387503 - __umulhi(sum, f);
    sum = 1031764940 - __umulhi(sum, f);
    sum = 2977044471u - __umulhi(sum, f);
    return (((1ull << 32) - __umulhi(sum, f)) << 8) >> (t >> 58);
}

__device__ __forceinline__ uint32_t distance(float top, float z) {
    const float d = __fsub_rn(top, z);
    return d < 28.f ? __float2uint_rz(__fmul_rn(d, 67108864.f)) : DEAD;  // NaN is dead
}

// total · fraction / 2^24, rounded down, for totals below 2^63.
__device__ __forceinline__ u64 share(u64 total, u64 fraction) {
    return (total >> 24) * fraction + (((total & 0xffffff) * fraction) >> 24);
}

__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// The part of the logits that one CTA looks at.
struct Part {
    const float* z;
    uint32_t begin;
    uint32_t end;
    float top;
};

// The smallest q at which the running weight (1 each, or masses) of the ids with q <= cutoff reaches `target`;
// `cutoff` if it never does. `histogram` is zero at the start.
template <bool MASS>
__device__ __forceinline__ uint32_t select(const Part& part, u64* histogram, u64 target, uint32_t cutoff) {
    __shared__ uint32_t low[BINS], high[BINS];  // 64-bit sums in two halves: there is no native 64-bit add here
    __shared__ u64 found_before;
    __shared__ uint32_t found_bin;
    uint32_t prefix = 0;
#pragma unroll 1
    for (int level = 0; level < 3; level++) {
        const uint32_t shift = 20 - 10 * level, bins = level == 0 ? BINS : BINS / 2;
        for (uint32_t i = threadIdx.x; i < bins; i += SAMPLE_THREADS) low[i] = high[i] = 0;
        if (threadIdx.x == 0) found_bin = DEAD;
        __syncthreads();
        for (uint32_t i = part.begin + threadIdx.x; i < part.end; i += SAMPLE_THREADS) {
            const uint32_t q = distance(part.top, part.z[i]);
            if (q > cutoff || (level > 0 && q >> (shift + 10) != prefix)) continue;
            const u64 weight = MASS ? mass(q) : 1;
            const uint32_t bin = (q >> shift) & (bins - 1), add = uint32_t(weight);
            if (weight == 0) continue;
            const uint32_t carry = atomicAdd(&low[bin], add) > ~add;
            const uint32_t rest = uint32_t(weight >> 32) + carry;
            if (rest > 0) atomicAdd(&high[bin], rest);
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < bins; i += SAMPLE_THREADS) {
            const u64 sum = u64(high[i]) << 32 | low[i];
            if (sum > 0) atomicAdd(&histogram[i], sum);
        }
        group_sync();

        // Two neighbouring bins per thread; those past the level's end are empty.
        const uint32_t bin = 2 * threadIdx.x;
        const u64 first = bin < bins ? __ldcg(&histogram[bin]) : 0, second = bin < bins ? __ldcg(&histogram[bin + 1]) : 0;
        u64 total;
        const u64 before = block_scan(first + second, &total) - first - second;
        if (before < target && target <= before + first + second) {
            const bool in_second = target > before + first;
            found_bin = bin + in_second;
            found_before = in_second ? before + first : before;
        }
        __syncthreads();
        if (found_bin == DEAD) return cutoff;  // at the first level only
        prefix = level == 0 ? found_bin : prefix << 10 | found_bin;
        target -= found_before;
        histogram += bins;
        __syncthreads();
    }
    return prefix;
}

template <class T>
__device__ __forceinline__ void sample(const SampleParams& all) {
    SampleParams p = all;  // of this row
    p.x = static_cast<const T*>(all.x) + size_t(blockIdx.y) * all.pitch;
    p.seen += size_t(blockIdx.y) * all.pitch, p.z += size_t(blockIdx.y) * all.z_pitch;
    p.token += blockIdx.y, p.scratch += blockIdx.y;
    pdl_wait();
    pdl_trigger();
    // Without clusters there is no barrier between CTAs: the first does all the work.
    const uint32_t rank = blockIdx.x, ctas = __CUDA_ARCH__ >= 900 ? gridDim.x : 1, tid = threadIdx.x;
    if (rank >= ctas) return;
    SampleScratch& s = *p.scratch;
    const float temperature = __uint_as_float(p.params[0]), top_p = __uint_as_float(p.params[1]);
    const uint32_t top_k = p.params[3];
    const bool draws = temperature > 0.f;
    float penalty = __uint_as_float(p.params[2]);
    if (!(penalty > 0.f)) penalty = 1.f;

    const uint32_t per_cta = (p.limit + ctas - 1) / ctas;
    Part part;
    part.z = p.z;
    part.begin = min(rank * per_cta, p.limit);
    part.end = min(part.begin + per_cta, p.limit);

    u64* zero = &s.histograms[0][0];
    for (uint32_t i = rank * SAMPLE_THREADS + tid; i < 4 * BINS; i += ctas * SAMPLE_THREADS) zero[i] = 0;

    u64 best = 0;
    for (uint32_t i = part.begin + tid; i < part.end; i += SAMPLE_THREADS) {
        float z = to_f32(static_cast<const T*>(p.x)[i]);
        if (p.seen[i] > 0) z = z > 0.f ? __fdiv_rn(z, penalty) : __fmul_rn(z, penalty);
        if (draws) z = __fdiv_rn(z, temperature);
        p.z[i] = z;
        best = max(best, ranked(z, i));
    }
    best = block_max<SAMPLE_THREADS>(best);
    if (tid == 0) s.best[rank] = best;
    group_sync();
    for (uint32_t i = 0; i < ctas; i++) best = max(best, __ldcg(&s.best[i]));
    const uint32_t top = index_of(best);
    if (!draws) {
        if (rank == 0 && tid == 0) {
            *p.token = top;
            p.seen[top]++;
        }
        return;
    }
    part.top = __ldcg(&p.z[top]);

    uint32_t cutoff = DEAD - 1;
    if (top_k > 0) cutoff = select<false>(part, s.histograms[0], top_k, cutoff);
    if (top_p < 1.f) {
        u64 kept = 0;
        for (uint32_t i = part.begin + tid; i < part.end; i += SAMPLE_THREADS) {
            const uint32_t q = distance(part.top, p.z[i]);
            if (q <= cutoff) kept += mass(q);
        }
        block_scan(kept, &kept);
        if (tid == 0) s.kept[rank] = kept;
        group_sync();
        kept = 0;
        for (uint32_t i = 0; i < ctas; i++) kept += __ldcg(&s.kept[i]);
        const u64 target = share(kept, u64(__float2uint_rz(__fmul_rn(fmaxf(top_p, 0.f), 16777216.f))));
        cutoff = select<true>(part, s.histograms[1], max(target, u64(1)), cutoff);
    }

    // Each thread takes neighbours, so that running sums over threads are running sums over ids.
    const uint32_t per_thread = (part.end - part.begin + SAMPLE_THREADS - 1) / SAMPLE_THREADS;
    const uint32_t begin = min(part.begin + tid * per_thread, part.end), end = min(begin + per_thread, part.end);
    u64 sum = 0, total;
    for (uint32_t i = begin; i < end; i++) {
        const uint32_t q = distance(part.top, p.z[i]);
        if (q <= cutoff) sum += mass(q);
    }
    u64 running = block_scan(sum, &total) - sum;
    if (tid == 0) s.drawn[rank] = total;
    group_sync();
    total = 0;
    for (uint32_t i = 0; i < ctas; i++) {
        const u64 of_cta = __ldcg(&s.drawn[i]);
        if (i < rank) running += of_cta;
        total += of_cta;
    }
    if (total == 0) {  // no logit is finite
        if (rank == 0 && tid == 0) {
            *p.token = top;
            p.seen[top]++;
        }
        return;
    }
    const u64 seed = (u64(p.params[5]) << 32 | p.params[4]) + blockIdx.y * ROW;
    const u64 target = share(total, mix(seed + (u64(p.step->draw) + 1) * 0x9E3779B97F4A7C15ull) >> 40);
    if (target < running || target >= running + sum) return;
    for (uint32_t i = begin; i < end; i++) {
        const uint32_t q = distance(part.top, p.z[i]);
        if (q <= cutoff) running += mass(q);
        if (running > target) {
            *p.token = i;
            p.seen[i]++;
            return;
        }
    }
}

EXPORT(arg_max_f32, ArgMaxParams, ARG_THREADS, 1, arg_max<float>)
EXPORT(arg_max_bf16, ArgMaxParams, ARG_THREADS, 1, arg_max<__nv_bfloat16>)
EXPORT(arg_max_f16, ArgMaxParams, ARG_THREADS, 1, arg_max<__half>)
EXPORT(sample_f32, SampleParams, SAMPLE_THREADS, 1, sample<float>)
EXPORT(sample_bf16, SampleParams, SAMPLE_THREADS, 1, sample<__nv_bfloat16>)
EXPORT(sample_f16, SampleParams, SAMPLE_THREADS, 1, sample<__half>)
