// archs: 90a
// gemm_multicast_behind_norm:  y = act(v) or r + v, v = x wᵀ / sqrt(var + eps) + b + d, var that of the rows of x; w has the
//                              gain of the LayerNorm in it and rows without a mean, d is what its shift adds (common/stats.cuh)
// gemm_multicast_stats:        y = r + s · (x wᵀ + b), and the statistics of its rows for such a product
// gemm_multicast_behind_rms:   y = silu(gate) · up of x wᵀ / sqrt(mean + eps) + b, mean that of the squares of the row that
//                              x was before its gain
// gemm_multicast_rope_behind_rms:  gemm_multicast_rope of the same sums
// gemm_multicast_begins_rms:   y = r + x wᵀ + b, y times the gain of its norm, and squares of y for such a product
// The products around the norms of the encoders and of short prompts, with the tiles that these choose; all else as in
// wgmma_multicast.cuh. A norm between two of them costs no pass: 8 bytes of statistics for 128 of y, or 4 for 64 and y twice,
// read while the first stages are on their way, and in the end an fma for an addition. In place of 4 bytes for each of y,
// and of a kernel to wait for.
#include "common/export.cuh"
#include "gemm/wgmma_multicast.cuh"

// The form of a tile: BehindNorm, WithStats, BehindRms or BeginsRms.
#define EXPORT_AS(form, Form, tile, ...)                                                \
    EXPORT(gemm_multicast_##form##_##tile##_bf16, WgmmaParams, (GridTile<__VA_ARGS__>::THREADS), 1, \
           gemm_multicast<__nv_bfloat16, Form<GridTile<__VA_ARGS__>>>)                  \
    EXPORT(gemm_multicast_##form##_##tile##_f16, WgmmaParams, (GridTile<__VA_ARGS__>::THREADS), 1, \
           gemm_multicast<__half, Form<GridTile<__VA_ARGS__>>>)
#define EXPORT_TURNED_AS(form, Form, rows_a, rows_b, stages, ca, cb, consumers, halves)                 \
    EXPORT_AS(form, Form, t##rows_a##x##rows_b##x##stages##_##ca##x##cb, true, consumers, halves, rows_b, stages, ca, cb)
#define EXPORT_SHARED_TURNED_AS(form, Form, rows_a, rows_b, stages, ca, cb, ck, consumers, halves)         \
    EXPORT_AS(form, Form, t##rows_a##x##rows_b##x##stages##_##ca##x##cb##x##ck, true, consumers, halves, rows_b, stages, ca, \
              cb, ck)
#define EXPORT_DIRECT_AS(form, Form, rows_a, rows_b, stages, ca, cb, consumers, halves)                 \
    EXPORT_AS(form, Form, d##rows_a##x##rows_b##x##stages##_##ca##x##cb, false, consumers, halves, rows_b, stages, ca, cb)
#define EXPORT_SHARED_AS(form, Form, rows_a, rows_b, stages, ca, cb, ck, consumers, halves)                \
    EXPORT_AS(form, Form, d##rows_a##x##rows_b##x##stages##_##ca##x##cb##x##ck, false, consumers, halves, rows_b, stages, ca, \
              cb, ck)
#define EXPORT_ROPE_BEHIND_RMS(T, suffix, rows_a, rows_b, stages, ca, cb, ck, consumers, halves)           \
    EXPORT(gemm_multicast_rope_behind_rms_d##rows_a##x##rows_b##x##stages##_##ca##x##cb##x##ck##_##suffix, WgmmaRopeParams, \
           (GridTile<false, consumers, halves, rows_b, stages, ca, cb, ck>::THREADS), 1,                   \
           gemm_multicast_rope<T, BehindRms<GridTile<false, consumers, halves, rows_b, stages, ca, cb, ck>>>)
#define EXPORT_PINGPONG_AS(form, Form, rows_b, stages, ca, cb) \
    EXPORT_AS(form, Form, pt128x##rows_b##x##stages##_##ca##x##cb, true, 2, 2, rows_b, stages, ca, cb, 1, true)

EXPORT_TURNED_AS(behind_norm, BehindNorm, 64, 64, 13, 4, 2, 1, 1)
EXPORT_TURNED_AS(behind_norm, BehindNorm, 64, 96, 10, 2, 1, 1, 1)
EXPORT_TURNED_AS(behind_norm, BehindNorm, 128, 64, 8, 2, 4, 2, 1)
EXPORT_TURNED_AS(behind_norm, BehindNorm, 256, 96, 4, 2, 1, 2, 2)
EXPORT_TURNED_AS(behind_norm, BehindNorm, 256, 128, 4, 2, 1, 2, 2)
EXPORT_DIRECT_AS(behind_norm, BehindNorm, 128, 80, 8, 2, 4, 2, 1)
EXPORT_DIRECT_AS(behind_norm, BehindNorm, 128, 144, 6, 2, 1, 2, 1)
EXPORT_PINGPONG_AS(behind_norm, BehindNorm, 136, 6, 2, 1)

EXPORT_TURNED_AS(stats, WithStats, 64, 16, 21, 4, 1, 1, 1)
EXPORT_TURNED_AS(stats, WithStats, 64, 64, 13, 4, 2, 1, 1)
EXPORT_TURNED_AS(stats, WithStats, 64, 96, 10, 2, 1, 1, 1)
EXPORT_TURNED_AS(stats, WithStats, 128, 64, 8, 2, 4, 2, 1)
EXPORT_TURNED_AS(stats, WithStats, 128, 80, 8, 4, 2, 2, 1)
EXPORT_TURNED_AS(stats, WithStats, 256, 128, 4, 2, 1, 2, 2)
EXPORT_TURNED_AS(stats, WithStats, 256, 136, 4, 2, 1, 2, 2)
EXPORT_SHARED_TURNED_AS(stats, WithStats, 128, 96, 7, 2, 1, 4, 2, 1)
EXPORT_SHARED_TURNED_AS(stats, WithStats, 128, 112, 6, 2, 1, 2, 2, 1)
EXPORT_PINGPONG_AS(stats, WithStats, 136, 6, 2, 1)

EXPORT_DIRECT_AS(behind_rms, BehindRms, 64, 144, 8, 1, 2, 1, 1)
EXPORT_DIRECT_AS(behind_rms, BehindRms, 128, 144, 6, 1, 2, 2, 1)

EXPORT_ROPE_BEHIND_RMS(__nv_bfloat16, bf16, 64, 80, 10, 1, 4, 2, 1, 1)
EXPORT_ROPE_BEHIND_RMS(__half, f16, 64, 80, 10, 1, 4, 2, 1, 1)
EXPORT_ROPE_BEHIND_RMS(__nv_bfloat16, bf16, 128, 80, 8, 1, 4, 2, 2, 1)
EXPORT_ROPE_BEHIND_RMS(__half, f16, 128, 80, 8, 1, 4, 2, 2, 1)

EXPORT_SHARED_AS(begins_rms, BeginsRms, 64, 64, 12, 1, 4, 2, 1, 1)
EXPORT_SHARED_AS(begins_rms, BeginsRms, 128, 64, 8, 1, 4, 2, 2, 1)
