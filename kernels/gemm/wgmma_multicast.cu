// archs: 90a
// gemm_multicast, gemm_multicast_rope:  matrix products as wgmma_multicast.cuh says; this file names the tiles.
// The letters and numbers of a kernel's name are those of its tile.
#include "common/export.cuh"
#include "gemm/wgmma_multicast.cuh"

#define EXPORT_GRID_OF(kernel, Params, T, suffix, name, ...)                                     \
    EXPORT(kernel##_##name##_##suffix, Params, (GridTile<__VA_ARGS__>::THREADS), 1, \
           kernel<T, GridTile<__VA_ARGS__>>)
// Rows of A and of B, stages, CA and CB, consumers and the blocks of 64 rows that each has.
#define EXPORT_GRID(kernel, Params, letter, turned, rows_a, rows_b, stages, ca, cb, consumers, halves)              \
    static_assert(rows_a == 64 * consumers * halves);                                                              \
    EXPORT_GRID_OF(kernel, Params, __nv_bfloat16, bf16, letter##rows_a##x##rows_b##x##stages##_##ca##x##cb, turned, \
                   consumers, halves, rows_b, stages, ca, cb)                                                      \
    EXPORT_GRID_OF(kernel, Params, __half, f16, letter##rows_a##x##rows_b##x##stages##_##ca##x##cb, turned, consumers, \
                   halves, rows_b, stages, ca, cb)
#define EXPORT_TURNED(...) EXPORT_GRID(gemm_multicast, WgmmaParams, t, true, __VA_ARGS__)
#define EXPORT_DIRECT(...) EXPORT_GRID(gemm_multicast, WgmmaParams, d, false, __VA_ARGS__)
#define EXPORT_SHARED(kernel, Params, rows_a, rows_b, stages, ca, cb, ck, consumers, halves)                             \
    static_assert(rows_a == 64 * consumers * halves);                                                              \
    EXPORT_GRID_OF(kernel, Params, __nv_bfloat16, bf16, d##rows_a##x##rows_b##x##stages##_##ca##x##cb##x##ck, false,  \
                   consumers, halves, rows_b, stages, ca, cb, ck)                                                  \
    EXPORT_GRID_OF(kernel, Params, __half, f16, d##rows_a##x##rows_b##x##stages##_##ca##x##cb##x##ck, false, consumers, \
                   halves, rows_b, stages, ca, cb, ck)
#define EXPORT_SHARED_TURNED(rows_a, rows_b, stages, ca, cb, ck, consumers, halves)                                    \
    static_assert(rows_a == 64 * consumers * halves);                                                              \
    EXPORT_GRID_OF(gemm_multicast, WgmmaParams, __nv_bfloat16, bf16, t##rows_a##x##rows_b##x##stages##_##ca##x##cb##x##ck, \
                   true, consumers, halves, rows_b, stages, ca, cb, ck)                                            \
    EXPORT_GRID_OF(gemm_multicast, WgmmaParams, __half, f16, t##rows_a##x##rows_b##x##stages##_##ca##x##cb##x##ck,  \
                   true, consumers, halves, rows_b, stages, ca, cb, ck)
#define EXPORT_PINGPONG(letter, turned, rows_a, rows_b, stages, ca, cb)                                            \
    static_assert(rows_a == 128);                                                                                  \
    EXPORT_GRID_OF(gemm_multicast, WgmmaParams, __nv_bfloat16, bf16,                                               \
                   letter##rows_a##x##rows_b##x##stages##_##ca##x##cb, turned, 2, 2, rows_b, stages, ca, cb, 1, true) \
    EXPORT_GRID_OF(gemm_multicast, WgmmaParams, __half, f16, letter##rows_a##x##rows_b##x##stages##_##ca##x##cb,   \
                   turned, 2, 2, rows_b, stages, ca, cb, 1, true)
#define EXPORT_ROPE(...) EXPORT_GRID(gemm_multicast_rope, WgmmaRopeParams, d, false, __VA_ARGS__)

EXPORT_TURNED(64, 16, 21, 4, 1, 1, 1)
EXPORT_TURNED(64, 64, 13, 4, 2, 1, 1)
EXPORT_TURNED(64, 96, 10, 2, 1, 1, 1)
EXPORT_TURNED(128, 64, 8, 2, 4, 2, 1)
EXPORT_TURNED(128, 80, 8, 4, 2, 2, 1)
EXPORT_TURNED(128, 128, 6, 2, 1, 2, 1)
EXPORT_TURNED(256, 96, 4, 2, 1, 2, 2)
EXPORT_TURNED(256, 128, 4, 2, 1, 2, 2)
EXPORT_TURNED(256, 136, 4, 2, 1, 2, 2)
EXPORT_TURNED(256, 152, 4, 1, 2, 2, 2)
EXPORT_DIRECT(64, 96, 10, 2, 1, 1, 1)
EXPORT_DIRECT(64, 96, 10, 2, 4, 1, 1)
EXPORT_DIRECT(64, 144, 8, 2, 1, 1, 1)
EXPORT_DIRECT(64, 144, 8, 1, 2, 1, 1)
EXPORT_DIRECT(128, 80, 8, 2, 4, 2, 1)
EXPORT_DIRECT(128, 112, 6, 1, 2, 2, 1)
EXPORT_DIRECT(128, 128, 6, 2, 1, 2, 1)
EXPORT_DIRECT(128, 144, 6, 2, 1, 2, 1)
EXPORT_DIRECT(128, 144, 6, 1, 2, 2, 1)
EXPORT_DIRECT(128, 192, 5, 2, 1, 2, 1)
EXPORT_DIRECT(128, 224, 4, 2, 1, 2, 1)
EXPORT_DIRECT(128, 256, 4, 2, 1, 2, 1)

EXPORT_ROPE(64, 96, 10, 2, 4, 1, 1)
EXPORT_ROPE(128, 80, 8, 2, 4, 2, 1)
EXPORT_ROPE(128, 144, 6, 2, 1, 2, 1)
EXPORT_ROPE(128, 192, 5, 2, 1, 2, 1)

EXPORT_SHARED(gemm_multicast, WgmmaParams, 64, 64, 12, 1, 4, 2, 1, 1)
EXPORT_SHARED(gemm_multicast, WgmmaParams, 64, 80, 10, 1, 4, 2, 1, 1)
EXPORT_SHARED(gemm_multicast, WgmmaParams, 128, 64, 8, 1, 4, 2, 2, 1)
EXPORT_SHARED(gemm_multicast, WgmmaParams, 128, 80, 8, 1, 4, 2, 2, 1)
EXPORT_SHARED(gemm_multicast, WgmmaParams, 128, 120, 6, 2, 1, 2, 2, 1)
EXPORT_SHARED(gemm_multicast, WgmmaParams, 128, 72, 8, 2, 1, 4, 2, 1)

EXPORT_SHARED_TURNED(128, 96, 7, 2, 1, 4, 2, 1)
EXPORT_SHARED_TURNED(128, 112, 6, 2, 1, 2, 2, 1)

EXPORT_SHARED(gemm_multicast_rope, WgmmaRopeParams, 64, 80, 10, 1, 4, 2, 1, 1)
EXPORT_SHARED(gemm_multicast_rope, WgmmaRopeParams, 128, 80, 8, 1, 4, 2, 2, 1)

EXPORT_PINGPONG(pt, true, 128, 136, 6, 2, 1)
EXPORT_PINGPONG(pt, true, 128, 152, 5, 2, 1)
EXPORT_PINGPONG(pd, false, 128, 144, 6, 2, 1)
EXPORT_PINGPONG(pd, false, 128, 192, 5, 2, 1)
