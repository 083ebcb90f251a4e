// embed:      y_t = ids_t has MEDIA_BIT ? media[ids_t without it] : table[ids_t]; zeros beyond either
// splice:     the same with x_t in the place of table[ids_t]; y may be x
// last_rows:  y_i = x[step.valid_rows - n + i]; zeros before the first row
// rows_at:    y_i = table[step.pos - rows + i]; zeros outside the table
// recent:     y = [rows of the ring before step.pos | x], and x goes to the ring: position i lies in row i mod R.
//             y [rows + T, C], R >= rows + T: no row is both read and written; zeros before position 0
// ids u32 [T], table [V, C], media [R, C], x, y [T, C] of T16; C % 8 == 0. Rows are copied, never computed on.
// Grid (rows of y, C/8 by 256): one vector per thread. Moves 4·T·C bytes, launch-bound at the sizes of a prompt.
#include "common/export.cuh"
#include "common/ptx.cuh"
#include "common/step.cuh"

constexpr int EMBED_THREADS = 256;
constexpr uint32_t MEDIA_BIT = 1u << 31;

struct EmbedParams {
    const uint32_t* ids;
    const void* table;  // [table_rows, C]; for splice x, read at row t
    const void* media;  // [media_rows, C]
    void* y;
    uint32_t table_rows;
    uint32_t media_rows;
    uint32_t vectors;  // C / 8
};

struct LastRowsParams {
    const void* x;
    void* y;
    const Step* step;
    uint32_t rows;  // T
    uint32_t vectors;
};

struct RecentParams {
    const void* x;  // null for rows_at
    void* table;    // [table_rows, C]: a table, or the ring
    void* y;
    const Step* step;
    uint32_t rows;  // rows of y before step.pos
    uint32_t table_rows;
    uint32_t vectors;
};

// Vector `at` of row `row` of a matrix of `rows` rows, zeros beyond.
__device__ __forceinline__ uint4 row_vector(const void* from, uint32_t row, uint32_t rows, uint32_t vectors, uint32_t at) {
    if (row >= rows) return make_uint4(0, 0, 0, 0);
    return static_cast<const uint4*>(from)[size_t(row) * vectors + at];
}

template <bool SPLICE>
__device__ __forceinline__ void embed(const EmbedParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t t = blockIdx.x, at = blockIdx.y * EMBED_THREADS + threadIdx.x;
    if (at >= p.vectors) return;
    const uint32_t id = p.ids[t];
    uint4 v;
    if (id & MEDIA_BIT) {
        v = row_vector(p.media, id & ~MEDIA_BIT, p.media_rows, p.vectors, at);
    } else {
        v = row_vector(p.table, SPLICE ? t : id, p.table_rows, p.vectors, at);
    }
    static_cast<uint4*>(p.y)[size_t(t) * p.vectors + at] = v;
}

__device__ __forceinline__ void last_rows(const LastRowsParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t i = blockIdx.x, at = blockIdx.y * EMBED_THREADS + threadIdx.x;
    if (at >= p.vectors) return;
    // Before the first row this wraps to a huge number, which is beyond the matrix.
    const uint32_t row = p.step->valid_rows + i - gridDim.x;
    static_cast<uint4*>(p.y)[size_t(i) * p.vectors + at] = row_vector(p.x, row, p.rows, p.vectors, at);
}

__device__ __forceinline__ void rows_at(const RecentParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t i = blockIdx.x, at = blockIdx.y * EMBED_THREADS + threadIdx.x;
    if (at >= p.vectors) return;
    // Before the first row this wraps to a huge number, which is beyond the table.
    const uint32_t row = p.step->pos + i - p.rows;
    static_cast<uint4*>(p.y)[size_t(i) * p.vectors + at] = row_vector(p.table, row, p.table_rows, p.vectors, at);
}

__device__ __forceinline__ void recent(const RecentParams& p) {
    pdl_wait();
    pdl_trigger();
    const uint32_t i = blockIdx.x, at = blockIdx.y * EMBED_THREADS + threadIdx.x;
    if (at >= p.vectors) return;
    const uint32_t end = p.step->pos + i;  // position of this row, `rows` later
    uint4* kept = static_cast<uint4*>(p.table) + size_t((end - p.rows) % p.table_rows) * p.vectors + at;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (i >= p.rows) {
        v = static_cast<const uint4*>(p.x)[size_t(i - p.rows) * p.vectors + at];
        *kept = v;
    } else if (end >= p.rows) {
        v = *kept;
    }
    static_cast<uint4*>(p.y)[size_t(i) * p.vectors + at] = v;
}

EXPORT(embed_bf16, EmbedParams, EMBED_THREADS, 1, embed<false>)
EXPORT(embed_f16, EmbedParams, EMBED_THREADS, 1, embed<false>)
EXPORT(splice_bf16, EmbedParams, EMBED_THREADS, 1, embed<true>)
EXPORT(splice_f16, EmbedParams, EMBED_THREADS, 1, embed<true>)
EXPORT(last_rows_bf16, LastRowsParams, EMBED_THREADS, 1, last_rows)
EXPORT(last_rows_f16, LastRowsParams, EMBED_THREADS, 1, last_rows)
EXPORT(rows_at_bf16, RecentParams, EMBED_THREADS, 1, rows_at)
EXPORT(rows_at_f16, RecentParams, EMBED_THREADS, 1, rows_at)
EXPORT(recent_bf16, RecentParams, EMBED_THREADS, 1, recent)
EXPORT(recent_f16, RecentParams, EMBED_THREADS, 1, recent)
