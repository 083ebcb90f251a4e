// What the attention kernels share: their parameters, the extent of a run, the mask.
#pragma once
#include <cstdint>

#include "common/step.cuh"

constexpr uint32_t MASK_FULL = 0, MASK_CAUSAL = 1, MASK_CHUNK = 2;
constexpr float LOG2E = 1.4426950408889634f;

// Element (row r of sequence b, head h, column d) of q is q[(b·rows + r)·q_row + h·D + d]; of k and v
// k[(b·rows + j)·kv_row + g·kv_head + d]; of out [T, H·D]; bias of (head h, sequence b, key j) bias[h·bias_row + b·rows + j].
struct AttentionParams {
    const void* q;
    const void* k;
    const void* v;
    const float* bias;  // or null
    void* out;
    const Step* step;      // null: keys are the rows of the sequence; else k and v are a cache
    float* partial;        // decode: [G, row tiles, splits, 16, D] O, then [.., 16, 2] m and l
    uint32_t* counters;    // decode: one per kv head and row tile, zero before and after
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

struct Extent {
    int pos;    // position of row 0
    int keys;   // keys of a sequence; what lies behind must not be read
    int valid;  // rows that are no padding
};

__device__ __forceinline__ Extent extent(const AttentionParams& p) {
    const int rows = int(p.rows);
    if (!p.step) return {0, rows, rows};
    return {int(p.step->pos), int(p.step->kv_len), min(rows, int(p.step->valid_rows))};
}

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
