// Rotation on the sums of the product that gives q | k | v by heads of D, and where these go. The columns of every head come
// in pairs: elements 0..8, D/2..D/2 + 8, 8..16, and so on, so that what is turned together is in one thread.
#pragma once
#include "common/step.cuh"
#include "common/vec.cuh"

struct RopeEpilogue {
    const float4* table;  // [M, D/4]: cosine and sine of two angles each
    void* q;              // [M, H·D] of T16
    void* kv;             // [2, G, S_max, D] of T16
    const Step* step;
    uint32_t heads, kv_heads, head_dim;
    uint32_t max_rows;  // S_max

    static constexpr bool ON = true;
};

// In its place where nothing is turned.
struct NoRope {
    static constexpr bool ON = false;
};

// Cosine and sine of the angles of pairs i and i + 1 of row `row`, where `col` is a multiple of 16, the first column of the
// pairs 8 · (col % D / 16) .. + 8, and i is `at` of these, an even number. Values and what lies behind the last column
// are not turned.
__device__ __forceinline__ float4 angles_of(const RopeEpilogue& p, uint32_t row, uint32_t col, uint32_t at) {
    if (col / p.head_dim >= p.heads + p.kv_heads) return make_float4(1.f, 0.f, 1.f, 0.f);
    // Not by __ldg: another kernel of the run has written the table.
    return __ldcg(p.table + size_t(row) * (p.head_dim / 4) + (col % p.head_dim / 2 + at) / 2);
}

// `first` and `second` hold elements i, i + 1 and i + D/2, i + D/2 + 1.
__device__ __forceinline__ void turn_pairs(float2& first, float2& second, const float4& cs) {
    const float2 was = first;
    first.x = was.x * cs.x - second.x * cs.y, second.x = second.x * cs.x + was.x * cs.y;
    first.y = was.y * cs.z - second.y * cs.w, second.y = second.y * cs.z + was.y * cs.w;
}

// Where the 8 columns from `col` on go, a multiple of 8: those of row m to at + m · pitch, for rows below `rows`.
template <class T>
struct HeadColumns {
    T* at;
    size_t pitch;
    uint32_t rows;

    __device__ __forceinline__ HeadColumns(const RopeEpilogue& p, uint32_t col) {
        const uint32_t head = col / p.head_dim, block = col % p.head_dim / 8;
        const uint32_t i = block / 2 * 8 + block % 2 * (p.head_dim / 2);
        if (head < p.heads) {
            at = static_cast<T*>(p.q) + head * p.head_dim + i;
            pitch = p.heads * p.head_dim;
            rows = 0xffffffffu;
        } else {
            // Keys, then values.
            const uint32_t pos = p.step->pos;
            at = static_cast<T*>(p.kv) + (size_t(head - p.heads) * p.max_rows + pos) * p.head_dim + i;
            pitch = p.head_dim;
            rows = min(p.step->valid_rows, p.max_rows - min(pos, p.max_rows));
        }
    }
};
