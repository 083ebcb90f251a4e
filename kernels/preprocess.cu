// filterbank:       Kaldi's log-mel frames. samples f32, frame t is samples 160·t .. 160·t + 400; y f32 [T, F], F <= 256
//                   mean, pre-emphasis and window rounded in f32 as the host rounds them; the mean's sum, the 512-point
//                   transform and the sums over the spectrum in f64, so that what differs from the host is its rounding
//   A CTA of 256 takes one frame: radix-2 transform in shared memory, one butterfly a thread and stage. 5 MFLOP in f64 for
//   10 s of sound: launch-bound.
// resize_width:     y[row, i, c] = clip8((2^21 + sum_t k[i, t] · x[row, first_i + t, c]) >> 22), bytes; y [H, to, 3]
// resize_to_tiles:  the same down the columns, cut into tiles: y f32 [tiles, 3, S, S] = table[c, byte]; the last of several
//                   tiles is the thumbnail, from a picture of its own
//   Integers throughout: the bits are the host's. An axis row is {first, count, k_0, k_1, ..}. A thread makes one word of
//   four bytes, or one value; neighbours read neighbours. Moves the picture once; bound by the L1 at 5 to 20 taps.
#include "common/export.cuh"
#include "common/ptx.cuh"

constexpr int PRE_THREADS = 256;
constexpr int FB_FRAME = 400;
constexpr int FB_SHIFT = 160;
constexpr int FB_POINTS = 512;
constexpr int FB_STAGES = 9;
static_assert(FB_POINTS == 1 << FB_STAGES && PRE_THREADS == FB_POINTS / 2, "one butterfly a thread and stage");

struct FilterbankParams {
    const float* x;
    const float* window;
    const uint32_t* spans;  // [F, 2]: first bin, how many
    const float* mel;       // [F, width]
    float* y;
    uint32_t bins;
    uint32_t width;
};

__device__ __forceinline__ void filterbank(const FilterbankParams& p) {
    __shared__ double2 z[FB_POINTS];
    __shared__ double2 turn[FB_POINTS / 2];  // exp(-2πi k / 512)
    __shared__ float raw[FB_FRAME];
    __shared__ double part[PRE_THREADS / 32];
    const uint32_t t = threadIdx.x;
    double2 w;
    sincospi(-double(t) / (FB_POINTS / 2), &w.y, &w.x);
    turn[t] = w;
    pdl_wait();
    pdl_trigger();

    const float* x = p.x + size_t(blockIdx.x) * FB_SHIFT;
    double sum = 0;
    for (uint32_t i = t; i < FB_FRAME; i += PRE_THREADS) {
        raw[i] = x[i] * 32768.f;
        sum += raw[i];
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (t % 32 == 0) part[t / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int i = 0; i < PRE_THREADS / 32; i++) sum += part[i];
    const float mean = float(sum / FB_FRAME);

    for (uint32_t i = t; i < FB_POINTS; i += PRE_THREADS) {
        float v = 0.f;
        if (i < FB_FRAME) {
            // The first sample counts as its own predecessor.
            const float now = __fsub_rn(raw[i], mean), before = __fsub_rn(raw[i ? i - 1 : 0], mean);
            v = __fmul_rn(__fsub_rn(now, __fmul_rn(0.97f, before)), p.window[i]);
        }
        z[__brev(i) >> (32 - FB_STAGES)] = make_double2(v, 0.0);
    }
    __syncthreads();
#pragma unroll 1
    for (int stage = 1; stage <= FB_STAGES; stage++) {
        const uint32_t half = 1u << (stage - 1), j = t & (half - 1);
        const uint32_t a = (t >> (stage - 1) << stage) + j, b = a + half;
        const double2 c = turn[j << (FB_STAGES - stage)], u = z[a], v = z[b];
        const double2 r = make_double2(v.x * c.x - v.y * c.y, v.x * c.y + v.y * c.x);
        z[a] = make_double2(u.x + r.x, u.y + r.y);
        z[b] = make_double2(u.x - r.x, u.y - r.y);
        __syncthreads();
    }
    if (t >= p.bins) return;
    const uint32_t first = p.spans[2 * t], count = min(p.spans[2 * t + 1], p.width);
    double energy = 0;
    for (uint32_t i = 0; i < count && first + i < FB_POINTS / 2; i++) {
        const double2 s = z[first + i];
        energy += p.mel[t * p.width + i] * (s.x * s.x + s.y * s.y);
    }
    p.y[size_t(blockIdx.x) * p.bins + t] = float(log(fmax(energy, double(1.1920928955078125e-7))));
}

// Rounded and clamped to a byte. The sum wraps as the host's does.
__device__ __forceinline__ uint32_t clip8(uint32_t sum) {
    return uint32_t(min(max(int32_t(sum) >> 22, 0), 255));
}

struct ResizeWidthParams {
    const uint8_t* x;      // [H, width, 3]
    const uint32_t* axis;  // [to, axis_cols]
    uint32_t* y;           // [H, words]
    uint32_t width;
    uint32_t axis_cols;
    uint32_t words;
    uint32_t count;  // words of y
};

__device__ __forceinline__ void resize_width(const ResizeWidthParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t at = blockIdx.x * PRE_THREADS + threadIdx.x;
    if (at >= p.count) return;
    const uint8_t* row = p.x + size_t(at / p.words) * p.width * 3;
    uint32_t word = 0;
#pragma unroll
    for (uint32_t b = 0; b < 4; b++) {
        const uint32_t byte = at % p.words * 4 + b;
        const uint32_t* axis = p.axis + size_t(byte / 3) * p.axis_cols;
        const uint32_t first = min(axis[0], p.width), count = min(min(axis[1], p.axis_cols - 2), p.width - first);
        const uint8_t* x = row + first * 3 + byte % 3;
        uint32_t sum = 1u << 21;
        for (uint32_t i = 0; i < count; i++) sum += uint32_t(x[i * 3]) * axis[2 + i];
        word |= clip8(sum) << (8 * b);
    }
    p.y[at] = word;
}

struct ResizeToTilesParams {
    const uint8_t* x;  // [H, columns · size, 3]
    const uint32_t* axis;
    const uint8_t* thumb;  // [H, size, 3]
    const uint32_t* thumb_axis;
    const float* table;  // [3, 256]
    float* y;
    uint32_t size;
    uint32_t columns;
    uint32_t main_tiles;
    uint32_t axis_cols;
    uint32_t thumb_axis_cols;
    uint32_t count;  // values of y
};

__device__ __forceinline__ void resize_to_tiles(const ResizeToTilesParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t i = blockIdx.x * PRE_THREADS + threadIdx.x;
    if (i >= p.count) return;
    const uint32_t s = p.size, tile = i / (3 * s * s), c = i / (s * s) % 3, line = i / s % s, at = i % s;
    const bool thumbnail = tile == p.main_tiles;
    const uint32_t columns = thumbnail ? 1 : p.columns, cols = thumbnail ? p.thumb_axis_cols : p.axis_cols;
    const uint32_t column = thumbnail ? 0 : tile % columns, row = thumbnail ? 0 : tile / columns;
    const uint32_t* axis = (thumbnail ? p.thumb_axis : p.axis) + size_t(row * s + line) * cols;
    const size_t pitch = size_t(columns) * s * 3;
    const uint8_t* x = (thumbnail ? p.thumb : p.x) + axis[0] * pitch + (column * s + at) * 3 + c;
    const uint32_t count = min(axis[1], cols - 2);
    uint32_t sum = 1u << 21;
    for (uint32_t r = 0; r < count; r++) sum += uint32_t(x[r * pitch]) * axis[2 + r];
    p.y[i] = p.table[c * 256 + clip8(sum)];
}

EXPORT(filterbank_f32, FilterbankParams, PRE_THREADS, 1, filterbank)
EXPORT(resize_width_u32, ResizeWidthParams, PRE_THREADS, 1, resize_width)
EXPORT(resize_to_tiles_u32, ResizeToTilesParams, PRE_THREADS, 1, resize_to_tiles)
