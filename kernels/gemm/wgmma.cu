// archs: 90a
// gemm_wgmma:  y = act(x wᵀ + b) or r + s · (x wᵀ + b)      x [M, K], w [N, K], y [M, cols] of T16 (or f32); K % 8 == 0,
//              any M and N; sums in f32, one rounding
// gemm_windows: the same for a convolution over rows with stride 2: row m of x is rows 2m, 2m + 1, .. of a matrix [T, C],
//              C % 64 == 0, one after another, and zeros behind its last
// For what wgmma_multicast.cu does not take. CTA = one producer warpgroup + one or two
// consumer warpgroups of 64 rows around a ring of STAGES stages, persistent; K may be split (through memory, deterministic).
// Windows: one unit per CTA. The CTAs of a cluster have a part of the K of one tile each, add the sums in the order of K
// through each other's shared memory and share the epilogue.
// Epilogue: through shared memory, 32 columns at a time. Nothing in its loop waits for memory: bias and scale of the tile
// are asked for before the product and lie in shared memory after it, the residual is asked into the L2 before the
// product and into registers one round ahead; both vectors of a lane go together, activations are as exact as 16 bits
// want (common/act.cuh).
// Moves 2·(M·K + N·K + M·cols) bytes at least, 2·M·N·K flops. Goal: as cuBLAS with outputs in f32 and of odd widths.
#include "common/export.cuh"
#include "gemm/columns.cuh"

template <int BM_, int BN_, int STAGES_>
struct RingTile {
    static constexpr int BM = BM_, BN = BN_, BK = 64, STAGES = STAGES_;
    static constexpr int CONSUMERS = BM / 64, HALVES = 1, THREADS = 128 * (1 + CONSUMERS);
    static constexpr int CTAS = CONSUMERS == 1 && BN <= 128 ? 2 : 1;
    static constexpr int X_BYTES = BM * BK * 2, W_BYTES = BN * BK * 2, STAGE_BYTES = X_BYTES + W_BYTES;
    // What 128 threads of each role hold after they have exchanged registers; together at most what the launch gives.
    static constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = CONSUMERS == 2 ? 232 : 216;
    // As in wgmma.cuh. COLUMNS: bias and scale of a tile, in whole chunks.
    static constexpr int CHUNK = 32, PITCH = 40, CHUNKS = (BN + CHUNK - 1) / CHUNK, COLUMNS = CHUNKS * CHUNK;
    static constexpr int JOIN_BATCH = divisor_up_to(8, BN / 8);
    static constexpr int STATIC_BYTES = CONSUMERS * (4 * 16 * PITCH * 4 + 2 * COLUMNS * 2) + 256;
    static_assert(BM % 64 == 0 && BN % 16 == 0 && CONSUMERS <= 2 && BN <= 256);
    static_assert(CTAS * (STAGES * STAGE_BYTES + STATIC_BYTES + 2048) <= 228 * 1024);
};

// The barriers of the ring. Every consumer gives a stage back.
template <class Tile>
__device__ __forceinline__ void start_ring(const WgmmaParams& p, uint32_t full, uint32_t empty) {
    if (threadIdx.x == 0) {
        prefetch_tensor_map(p.x);
        prefetch_tensor_map(p.w);
        for (int s = 0; s < Tile::STAGES; s++) {
            mbarrier_init(full + s * 8, 1);
            mbarrier_init(empty + s * 8, Tile::CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
}

// Units in order: the splits of a tile, then tiles in columns of 16 tile rows, rows first, so that CTAs that run
// together share x and w in the L2.
template <class Tile>
struct Schedule {
    uint32_t rows, cols, units, steps, unit;

    __device__ __forceinline__ explicit Schedule(const WgmmaParams& p) {
        rows = (p.m + Tile::BM - 1) / Tile::BM;
        cols = (p.n + Tile::BN - 1) / Tile::BN;
        units = rows * cols * p.splits;
        steps = (p.k + Tile::BK - 1) / Tile::BK;
        unit = blockIdx.x;
    }
    __device__ __forceinline__ bool more() const { return unit < units; }
    __device__ __forceinline__ void next() { unit += gridDim.x; }
    __device__ __forceinline__ Unit get(const WgmmaParams& p) const {
        constexpr uint32_t GROUP = 16;
        const uint32_t id = unit / p.splits, split = unit % p.splits;
        const uint32_t top = id / (GROUP * cols) * GROUP, rest = id % (GROUP * cols);
        const uint32_t height = min(GROUP, rows - top);
        const uint32_t row = top + rest % height, col = rest / height;
        // Never empty while splits <= steps.
        return {row * Tile::BM, col * Tile::BN, id, split, split * steps / p.splits, (split + 1) * steps / p.splits};
    }
};

template <class Tile>
__device__ __forceinline__ void load_w(const WgmmaParams& p, uint32_t ring, uint32_t stage, uint32_t full,
                                       uint32_t step, uint32_t n0) {
    const uint32_t to = ring + stage * Tile::STAGE_BYTES + Tile::X_BYTES, barrier = full + stage * 8;
    mbarrier_expect_tx(barrier, Tile::STAGE_BYTES);
    tma_load_2d(to, p.w, barrier, step * Tile::BK, n0);
}

// Rows of x: those of a matrix. `load` asks for 64 columns of them, those of k step `step`.
struct DenseRows {
    const TensorMap& x;

    __device__ __forceinline__ void load(uint32_t to, uint32_t barrier, uint32_t step, uint32_t m0) const {
        tma_load_2d(to, x, barrier, step * 64, m0);
    }
};

// One thread. The weights of the first stages are asked for before the wait for the kernels that made x.
template <class Tile, class Rows>
__device__ __forceinline__ void produce(const WgmmaParams& p, const Rows& rows, uint32_t ring, uint32_t full,
                                        uint32_t empty) {
    Schedule<Tile> schedule(p);
    Unit u = {};
    if (schedule.more()) u = schedule.get(p);
    uint32_t early = min(u.last - u.first, uint32_t(Tile::STAGES));
    for (uint32_t i = 0; i < early; i++) load_w<Tile>(p, ring, i, full, u.first + i, u.n0);
    pdl_wait();
    pdl_trigger();
    Cursor<Tile> at;
    while (schedule.more()) {
        for (uint32_t step = u.first; step < u.last; step++, at.next()) {
            if (early > 0) {
                early--;
            } else {
                mbarrier_wait(empty + at.stage * 8, at.phase ^ 1);
                load_w<Tile>(p, ring, at.stage, full, step, u.n0);
            }
            rows.load(ring + at.stage * Tile::STAGE_BYTES, full + at.stage * 8, step, u.m0);
        }
        schedule.next();
        if (schedule.more()) u = schedule.get(p);
    }
}

// Where the epilogue finds the sums of a warp's 16 rows: in its registers, 32 columns at a time through `staging`.
template <class Tile>
struct OwnSums {
    float (&acc)[Tile::BN / 2];
    float* staging;

    __device__ __forceinline__ void turn_to(uint32_t chunk) {
        // All have taken what was there before; then all have written.
        __syncwarp();
        deposit<Tile>(acc, staging, chunk);
        __syncwarp();
    }
    __device__ __forceinline__ Float8 take(uint32_t row, uint32_t col, bool upper_first) const {
        return take_8(staging + row * Tile::PITCH + col, upper_first);
    }
};

// Or in the shared memory of the CTAs of a cluster, which have summed a part of K each: added in the order of K.
template <class Tile>
struct ClusterSums {
    uint32_t rows;  // address of the warp's first row in chunk 0
    uint32_t splits;
    uint32_t from = 0;

    __device__ __forceinline__ void turn_to(uint32_t chunk) {
        from = rows + chunk * (Tile::BM * Tile::PITCH * 4);
    }
    __device__ __forceinline__ Float8 take(uint32_t row, uint32_t col, bool upper_first) const {
        const uint32_t at = from + (row * Tile::PITCH + col) * 4, first = upper_first ? 16 : 0;
        const float4 zero = make_float4(0.f, 0.f, 0.f, 0.f);
        float4 a = zero, b = zero;
        // A read of another CTA's memory takes as long as one of the L2: four on their way together.
        constexpr uint32_t TOGETHER = 4;
#pragma unroll 1
        for (uint32_t rank = 0; rank < splits; rank += TOGETHER) {
            float4 c[TOGETHER], d[TOGETHER];
#pragma unroll
            for (uint32_t i = 0; i < TOGETHER; i++) {
                c[i] = d[i] = zero;
                if (rank + i >= splits) continue;
                const uint32_t there = cluster_address(at, rank + i);
                c[i] = load_cluster(there + first), d[i] = load_cluster(there + (16 - first));
            }
#pragma unroll
            for (uint32_t i = 0; i < TOGETHER; i++) {
                a.x += c[i].x, a.y += c[i].y, a.z += c[i].z, a.w += c[i].w;
                b.x += d[i].x, b.y += d[i].y, b.z += d[i].z, b.w += d[i].w;
            }
        }
        const float4 lo = upper_first ? b : a, hi = upper_first ? a : b;
        return {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
    }
};

// All that follows the sums, in chunks [first, last) of 32 columns. One warp has rows row0 + [0, 16) of columns
// n0 .. n0 + BN; `columns` is the warpgroup's.
template <class T, class Tile, Act ACT, class Sums>
__device__ __forceinline__ void finish_as(Sums& sums, const WgmmaParams& p, const T* columns, uint32_t row0, uint32_t n0,
                                          uint32_t first, uint32_t last) {
    constexpr bool ADDS = ACT == ACT_NONE;
    // A lane makes two vectors of 8 outputs of every chunk, in rows 8 apart, or one after SwiGLU, which halves columns.
    constexpr uint32_t HALVED = ACT == ACT_SWIGLU, PER_ROW = HALVED ? 2 : 4, VECTORS = HALVED ? 1 : 2;
    constexpr uint32_t CHUNK_COLS = Tile::CHUNK >> HALVED;
    const Epilogue& e = p.e;
    const uint32_t lane = threadIdx.x % 32, along = lane % PER_ROW * 8;
    const uint32_t first_row = row0 + lane / PER_ROW, first_col = (n0 >> HALVED) + along;
    const uint32_t end = min((n0 + Tile::BN) >> HALVED, e.cols);  // the last chunk may reach beyond the tile
    const bool whole = HALVED || e.cols % 8 == 0;
    const auto ask = [&](uint32_t row, uint32_t col, uint4(&r)[VECTORS]) {
#pragma unroll
        for (int i = 0; i < VECTORS; i++)
            if (const T* from = residual_at<T>(e, row + 8 * i, col);
                from != nullptr && whole && row + 8 * i < p.m && col < end)
                r[i] = *reinterpret_cast<const uint4*>(from);
    };

    uint4 residual[VECTORS] = {};
    if constexpr (ADDS) ask(first_row, first_col + first * CHUNK_COLS, residual);
#pragma unroll 1
    for (uint32_t chunk = first; chunk < last; chunk++) {
        sums.turn_to(chunk);
        const uint32_t at = chunk * CHUNK_COLS + along, col = (n0 >> HALVED) + at;
        uint4 next[VECTORS] = {};
        if (ADDS && chunk + 1 < last) ask(first_row, first_col + (chunk + 1) * CHUNK_COLS, next);

        Float8 v[VECTORS];
        if constexpr (HALVED) {
            v[0] = sums.take(lane / 2, lane % 2 * 16, lane % 2);
            Float8 up = sums.take(lane / 2, lane % 2 * 16 + 8, lane % 2);
            if (e.bias != nullptr) {
                add(v[0], columns_8(columns + 2 * at));
                add(up, columns_8(columns + 2 * at + 8));
            }
#pragma unroll
            for (int j = 0; j < 8; j++) v[0].v[j] = silu_16(v[0].v[j]) * up.v[j];
        } else {
#pragma unroll
            for (int i = 0; i < VECTORS; i++) v[i] = sums.take(lane / 4 + 8 * i, along, lane / 4 % 2);
            if (e.bias != nullptr) {
                const Float8 b = columns_8(columns + at);
#pragma unroll
                for (int i = 0; i < VECTORS; i++) add(v[i], b);
            }
#pragma unroll
            for (int i = 0; i < VECTORS; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    if constexpr (ACT == ACT_GELU) v[i].v[j] = gelu_16(v[i].v[j]);
                    if constexpr (ACT == ACT_RELU) v[i].v[j] = relu(v[i].v[j]);
                }
        }
        if (!whole) {
            // Rows are not whole vectors: one element at a time. Beyond e.cols the scales are zeros.
            const Float8 s = columns_8(columns + Tile::COLUMNS + at);
#pragma unroll
            for (int i = 0; i < VECTORS; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    if (first_row + 8 * i < p.m && col + j < end)
                        put<T>(e, first_row + 8 * i, col + j, v[i].v[j], e.scale != nullptr ? s.v[j] : 1.f);
            continue;
        }
        if (ADDS && e.scale != nullptr) {
            const Float8 s = columns_8(columns + Tile::COLUMNS + at);
#pragma unroll
            for (int i = 0; i < VECTORS; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) v[i].v[j] *= s.v[j];
        }
        if (ADDS && e.residual != nullptr) {
#pragma unroll
            for (int i = 0; i < VECTORS; i++) add(v[i], unpack<T>(residual[i]));
        }
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            if (first_row + 8 * i >= p.m || col >= end) continue;
            const size_t to = size_t(first_row + 8 * i) * e.cols + col;
            if (e.out_f32) {
                float4* y = reinterpret_cast<float4*>(static_cast<float*>(e.y) + to);
                y[0] = make_float4(v[i].v[0], v[i].v[1], v[i].v[2], v[i].v[3]);
                y[1] = make_float4(v[i].v[4], v[i].v[5], v[i].v[6], v[i].v[7]);
            } else {
                *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + to) = pack<T>(v[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < VECTORS; i++) residual[i] = next[i];
    }
    __syncwarp();  // wgmma wants whole warps
}

template <class T, class Tile, class Sums>
__device__ __forceinline__ void finish(Sums sums, const WgmmaParams& p, const T* columns, uint32_t row0, uint32_t n0,
                                       uint32_t first = 0, uint32_t last = Tile::CHUNKS) {
    if (p.e.act == ACT_SWIGLU)
        finish_as<T, Tile, ACT_SWIGLU>(sums, p, columns, row0, n0, first, last);
    else if (p.e.act == ACT_GELU)
        finish_as<T, Tile, ACT_GELU>(sums, p, columns, row0, n0, first, last);
    else if (p.e.act == ACT_RELU)
        finish_as<T, Tile, ACT_RELU>(sums, p, columns, row0, n0, first, last);
    else
        finish_as<T, Tile, ACT_NONE>(sums, p, columns, row0, n0, first, last);
}

// The k steps of a unit. One batch of products is still on its way; its stage is returned.
template <class T, class Tile>
__device__ __forceinline__ uint32_t multiply(float (&acc)[Tile::BN / 2], const Unit& u, Cursor<Tile>& at, uint64_t x0,
                                             uint64_t w0, uint32_t full, uint32_t empty) {
    uint32_t before = 0;
    for (uint32_t step = u.first; step < u.last; step++, at.next()) {
        mbarrier_wait(full + at.stage * 8, at.phase);
        const uint32_t offset = at.stage * (Tile::STAGE_BYTES >> 4);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < Tile::BK / 16; k++)
            wgmma<T, Tile::BN>(acc, x0 + offset + 2 * k, w0 + offset + 2 * k, k > 0 || step > u.first);
        wgmma_commit();
        // The batch before is done with its stage.
        wgmma_wait<1>();
        if (step > u.first) release(empty + before * 8);
        before = at.stage;
    }
    return before;
}

// One warpgroup: its rows of every tile.
template <class T, class Tile>
__device__ __forceinline__ void consume(const WgmmaParams& p, uint32_t ring, uint32_t full, uint32_t empty,
                                        uint32_t consumer, float* staging, T* columns) {
    const uint64_t x0 = wgmma_descriptor(ring + consumer * 64 * 128), w0 = wgmma_descriptor(ring + Tile::X_BYTES);
    const uint32_t warp = threadIdx.x / 32 % 4;
    float* my_staging = staging + warp * 16 * Tile::PITCH;
    pdl_wait();
    pdl_trigger();
    Cursor<Tile> at;
    for (Schedule<Tile> schedule(p); schedule.more(); schedule.next()) {
        const Unit u = schedule.get(p);
        if (Tile::CONSUMERS > 1 && u.m0 + consumer * 64 >= p.m) {
            // Rows beyond the last: only keep the ring turning, the four warps together as wgmma keeps them elsewhere.
            for (uint32_t step = u.first; step < u.last; step++, at.next()) {
                mbarrier_wait(full + at.stage * 8, at.phase);
                consumer_barrier<Tile::CONSUMERS>(consumer);
                release(empty + at.stage * 8);
            }
            continue;
        }
        const uint32_t row0 = u.m0 + consumer * 64 + warp * 16;
        const Columns<T, Tile> ahead(p.e, p.n, u.n0);
        ask_residual<T, Tile>(p, row0, u.n0);

        float acc[Tile::BN / 2];
        const uint32_t before = multiply<T, Tile>(acc, u, at, x0, w0, full, empty);
        wgmma_wait<0>();
        wgmma_settle(acc);
        release(empty + before * 8);
        // The warps have all read the columns of the tile before: they have multiplied since.
        ahead.keep(columns);
        if (p.splits > 1 && !join_splits<Tile>(acc, p, u, consumer)) continue;
        consumer_barrier<Tile::CONSUMERS>(consumer);
        finish<T, Tile>(OwnSums<Tile>{acc, my_staging}, p, columns, row0, u.n0);
    }
}

// One warpgroup of a CTA that shares the K of one tile with the other CTAs of its cluster. All sums go to shared
// memory, where the ring was; then every CTA finishes its share of the columns.
template <class T, class Tile>
__device__ __forceinline__ void consume_in_cluster(const WgmmaParams& p, uint32_t ring, uint32_t full, uint32_t empty,
                                                   uint32_t consumer, float* exchange, T* columns) {
    static_assert(Tile::CHUNKS * Tile::BM * Tile::PITCH * 4 <= Tile::STAGES * Tile::STAGE_BYTES);
    const uint64_t x0 = wgmma_descriptor(ring + consumer * 64 * 128), w0 = wgmma_descriptor(ring + Tile::X_BYTES);
    const uint32_t warp_row = consumer * 64 + threadIdx.x / 32 % 4 * 16;
    pdl_wait();
    pdl_trigger();
    // Rows beyond M are zeros: they are multiplied like others, so that all come to the barriers.
    const Unit u = Schedule<Tile>(p).get(p);
    const uint32_t row0 = u.m0 + warp_row;
    const Columns<T, Tile> ahead(p.e, p.n, u.n0);
    ask_residual<T, Tile>(p, row0, u.n0);
    Cursor<Tile> at;
    float acc[Tile::BN / 2];
    multiply<T, Tile>(acc, u, at, x0, w0, full, empty);
    wgmma_wait<0>();
    wgmma_settle(acc);
    ahead.keep(columns);
    // All consumers have read all stages, and the producer has asked for no more than those.
    named_barrier<6, Tile::CONSUMERS * 128>();
#pragma unroll 1
    for (uint32_t chunk = 0; chunk < Tile::CHUNKS; chunk++)
        deposit<Tile>(acc, exchange + (chunk * Tile::BM + warp_row) * Tile::PITCH, chunk);
    __syncwarp();
    cluster_arrive(true);
    cluster_wait();
    const ClusterSums<Tile> sums{smem_address(exchange) + warp_row * Tile::PITCH * 4, p.splits};
    const uint32_t first = u.split * Tile::CHUNKS / p.splits, last = (u.split + 1) * Tile::CHUNKS / p.splits;
    if (first < last) finish<T, Tile>(sums, p, columns, row0, u.n0, first, last);
    // No CTA leaves while another may read its memory.
    __syncwarp();
    cluster_arrive(false);
    cluster_wait();
}

// The even rows of the matrix and the odd ones are a matrix each: so tap t of window m is row m + t / 2 of one of them.
struct WindowParams {
    WgmmaParams g;  // x: {C, even rows}, box {64, BM}
    TensorMap odd;
    uint32_t chunks;  // of 64 columns in C
};

struct WindowRows {
    const WindowParams& p;

    __device__ __forceinline__ void load(uint32_t to, uint32_t barrier, uint32_t step, uint32_t m0) const {
        const uint32_t tap = step / p.chunks, chunk = step % p.chunks;
        if (tap % 2 == 0)
            tma_load_2d(to, p.g.x, barrier, chunk * 64, m0 + tap / 2);
        else
            tma_load_2d(to, p.odd, barrier, chunk * 64, m0 + tap / 2);
    }
};

// Any grid; CLUSTER: one CTA per unit, clusters of p.splits. Dynamic shared memory: STAGES · STAGE_BYTES + 1024.
template <class T, class Tile, bool CLUSTER, class Rows>
__device__ __forceinline__ void gemm_rows(const WgmmaParams& p, const Rows& rows) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full_[Tile::STAGES], empty_[Tile::STAGES];
    __shared__ alignas(16) float staging[CLUSTER ? 1 : Tile::CONSUMERS][64 * Tile::PITCH];
    __shared__ alignas(16) T columns[Tile::CONSUMERS][2 * Tile::COLUMNS];
    const uint32_t ring = (smem_address(dynamic) + 1023) & ~1023u;
    const uint32_t full = smem_address(full_), empty = smem_address(empty_);
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    start_ring<Tile>(p, full, empty);

    if (warpgroup == 0) {
        give_registers<Tile::PRODUCER_REGISTERS>();
        if (threadIdx.x < 32 && elect_one()) produce<Tile>(p, rows, ring, full, empty);
        return;
    }
    take_registers<Tile::CONSUMER_REGISTERS>();
    const uint32_t consumer = warpgroup - 1;
    if constexpr (CLUSTER) {
        float* exchange = reinterpret_cast<float*>(reinterpret_cast<char*>(dynamic) + (ring - smem_address(dynamic)));
        consume_in_cluster<T, Tile>(p, ring, full, empty, consumer, exchange, columns[consumer]);
    } else {
        consume<T, Tile>(p, ring, full, empty, consumer, staging[consumer], columns[consumer]);
    }
}

template <class T, class Tile>
__device__ __forceinline__ void gemm_wgmma(const WgmmaParams& p) {
    gemm_rows<T, Tile, false>(p, DenseRows{p.x});
}
template <class T, class Tile>
__device__ __forceinline__ void gemm_windows(const WindowParams& p) {
    gemm_rows<T, Tile, true>(p.g, WindowRows{p});
}

#define EXPORT_RING(name, Params, kernel, bm, bn, stages)                                      \
    EXPORT(name##_##bm##x##bn##x##stages##_bf16, Params, (RingTile<bm, bn, stages>::THREADS),  \
           (RingTile<bm, bn, stages>::CTAS), kernel<__nv_bfloat16, RingTile<bm, bn, stages>>)  \
    EXPORT(name##_##bm##x##bn##x##stages##_f16, Params, (RingTile<bm, bn, stages>::THREADS),   \
           (RingTile<bm, bn, stages>::CTAS), kernel<__half, RingTile<bm, bn, stages>>)
#define EXPORT_PLAIN(bm, bn, stages) EXPORT_RING(gemm_wgmma, WgmmaParams, gemm_wgmma, bm, bn, stages)
#define EXPORT_WINDOWS(bm, bn, stages) EXPORT_RING(gemm_windows, WindowParams, gemm_windows, bm, bn, stages)

EXPORT_PLAIN(128, 256, 4)
EXPORT_PLAIN(128, 144, 6)
EXPORT_PLAIN(128, 128, 6)
EXPORT_PLAIN(64, 128, 4)
EXPORT_PLAIN(64, 96, 5)
EXPORT_WINDOWS(128, 128, 6)
EXPORT_WINDOWS(64, 128, 4)
