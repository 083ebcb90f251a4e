// What the attention kernels share: their parameters, the extent of a run, the mask.
#pragma once
#include <cstdint>

#include "common/step.cuh"

constexpr uint32_t MASK_FULL = 0, MASK_CAUSAL = 1, MASK_CHUNK = 2;
constexpr float LOG2E = 1.4426950408889634f;

// Element (row r of sequence b, head h, column d) of q is q[(b·rows + r)·q_row + h·D + d]; of k and v
// k[(b·rows + j)·kv_row + g·kv_head + d]; of out [T, H·D]; bias of (head h, sequence b, key j) bias[h·bias_row + b·rows + j].
// Where sequences differ in length, their first row stands for b·rows (`Lengths`).
struct AttentionParams {
    const void* q;
    const void* k;
    const void* v;
    const float* bias;  // or null
    void* out;
    const Step* step;      // null: keys are the rows of the sequence; else k and v are a cache
    // decode: [G, row tiles, splits, 16, D] O, then [.., 16, 2] m and l; with a row apart: [batch, H, parts, D] O, then
    // [.., 2] m and l
    float* partial;
    uint32_t* counters;    // decode: one per kv head and row tile, with a row apart per query; zero before and after
    uint64_t kv_head;      // elements from one kv head to the next
    uint32_t q_row;        // elements from one row to the next
    uint32_t kv_row;
    uint32_t rows;         // of one sequence
    uint32_t batch;
    uint32_t heads;
    uint32_t group;        // query heads per kv head
    uint32_t head_dim;
    uint32_t mask;
    uint32_t chunk;
    int32_t left;
    float scale;
    uint32_t bias_row;     // elements from one head to the next
};

// Sequences of different lengths, those of one launch, longest first and none without rows. With them `batch` is 1, `rows`
// all rows, and there is no cache.
constexpr int MOST_SEQUENCES = 32;  // a power of two
struct Lengths {
    uint32_t tiles;                  // of query rows, of all sequences together; 0: sequences of `rows` rows each
    uint32_t row0[MOST_SEQUENCES];   // the first row of a sequence
    uint32_t rows[MOST_SEQUENCES];
    uint32_t tile0[MOST_SEQUENCES];  // for `tile_of`; 2^32 - 1 behind the last sequence
};

// Parameters of the kernels that take either.
struct BatchParams {
    AttentionParams a;
    Lengths lengths;
};

// Query rows from m0 on of a sequence of `rows` rows, of which the first is row0 among all.
struct RowTile {
    uint32_t row0;
    int rows, m0;
};

// Tile `at` of `bm` query rows, longest first: by sequences, whose tiles begin at tile0; causal by m0, largest first, where
// from tile0[k] on come the tiles that the k + 1 longest sequences have and no other.
__device__ __forceinline__ RowTile tile_of(const Lengths& lengths, int at, int bm, bool causal) {
    int k = 0;
#pragma unroll
    for (int step = MOST_SEQUENCES / 2; step > 0; step /= 2)
        if (uint32_t(at) >= lengths.tile0[k + step]) k += step;
    int tile = at - int(lengths.tile0[k]);
    if (causal) {
        const int sharing = k + 1, tiles = (int(lengths.rows[k]) + bm - 1) / bm;
        k = tile % sharing;
        tile = tiles - 1 - tile / sharing;
    }
    return {lengths.row0[k], int(lengths.rows[k]), tile * bm};
}

struct Extent {
    int pos;    // position of row 0
    int keys;   // keys of a sequence; what lies behind must not be read
    int valid;  // rows that are no padding
};

// Of a sequence of `rows` rows.
__device__ __forceinline__ Extent extent(const AttentionParams& p, int rows) {
    if (!p.step) return {0, rows, rows};
    return {int(p.step->pos), int(p.step->kv_len), min(rows, int(p.step->valid_rows))};
}
__device__ __forceinline__ Extent extent(const AttentionParams& p) { return extent(p, int(p.rows)); }

// The same before pdl_wait(): the step of a run is there before its first kernel, and this reads it past the L1. Rows
// of the cache before `pos` are as old.
__device__ __forceinline__ Extent extent_before_wait(const AttentionParams& p) {
    const int rows = int(p.rows);
    if (!p.step) return {0, rows, rows};
    return {int(__ldcg(&p.step->pos)), int(__ldcg(&p.step->kv_len)), min(rows, int(__ldcg(&p.step->valid_rows)))};
}

// The query at position i sees keys first_key(i) <= j < end_key(i); both grow with i.
__device__ __forceinline__ int first_key(const AttentionParams& p, int i) {
    if (p.mask != MASK_CHUNK || p.left < 0) return 0;
    const int size = int(p.chunk);
    return max(i / size - p.left, 0) * size;
}

__device__ __forceinline__ int end_key(const AttentionParams& p, int i, int keys) {
    if (p.mask == MASK_CAUSAL) return min(i + 1, keys);
    if (p.mask == MASK_CHUNK) return min((i / int(p.chunk) + 1) * int(p.chunk), keys);
    return keys;
}
