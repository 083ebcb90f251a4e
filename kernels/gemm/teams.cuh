// What gemm/wgmma_teams.cu and gemm/wgmma_pairs.cu share: consumers in teams and their epilogue, which never waits for
// memory in its loop (the header of the former has the whole).
#pragma once
#include "gemm/units.cuh"

template <int TEAMS_, int BM_, int BN_, int STAGES_>
struct TeamTile : Alone {
    static constexpr int TEAMS = TEAMS_, BM = BM_, BN = BN_, BK = 64, STAGES = STAGES_;
    // Blocks of 64 rows that a warpgroup has of a tile, and warpgroups per team.
    static constexpr int HALVES = TEAMS == 2 ? BM / 64 : 1, MEMBERS = BM / 64 / HALVES, CONSUMERS = TEAMS * MEMBERS;
    static constexpr int THREADS = 128 * (1 + CONSUMERS);
    // Slim: two CTAs of two consumers on an SM, this kernel's or the next one's.
    static constexpr bool SLIM = CONSUMERS == 2 && BN <= 96;
    static constexpr int CTAS = CONSUMERS == 1 && BN <= 128 || SLIM ? 2 : 1;
    static constexpr int X_BYTES = BM * BK * 2, W_BYTES = BN * BK * 2, STAGE_BYTES = X_BYTES + W_BYTES;
    // What 128 threads of each role hold after they have exchanged registers; together at most what the launch gives.
    static constexpr int PRODUCER_REGISTERS = SLIM ? 24 : CONSUMERS == 3 ? 32 : 40;
    static constexpr int CONSUMER_REGISTERS = SLIM ? 104 : CONSUMERS == 3 ? 160 : CONSUMERS == 2 ? 232 : 216;
    // As in WgmmaTile. COLUMNS: bias and scale of a tile, in whole chunks.
    static constexpr int CHUNK = 32, PITCH = 40, CHUNKS = (BN + CHUNK - 1) / CHUNK, COLUMNS = CHUNKS * CHUNK;
    // As registers allow.
    static constexpr int JOIN_BATCH = divisor_up_to(SLIM ? 2 : CONSUMERS == 3 ? 4 : 8, BN / 8);
    static constexpr int STATIC_BYTES = CONSUMERS * (4 * 16 * PITCH * 4 + 2 * COLUMNS * 2) + 256;
    static_assert(BM % 64 == 0 && BN % 16 == 0 && CONSUMERS <= 3 && HALVES * BN <= 256);
    static_assert(CTAS * (STAGES * STAGE_BYTES + STATIC_BYTES + 2048) <= 228 * 1024);
};

// A team waits for its turn to multiply, and gives it to the other. Immediate ids, after those of consumer_barrier.
__device__ __forceinline__ void take_turn(uint32_t team) {
    if (team == 0)
        named_barrier<4, 256>();
    else
        named_barrier<5, 256>();
}
__device__ __forceinline__ void pass_turn(uint32_t to) {
    if (to == 0)
        named_arrive<4, 256>();
    else
        named_arrive<5, 256>();
}

// 16-bit elements at and at + 1 of a vector that may be absent or end before them, in one register.
__device__ __forceinline__ uint32_t pair_or_zero(const void* vector, uint32_t at, uint32_t len) {
    const uint16_t* v = static_cast<const uint16_t*>(vector);
    if (v == nullptr || at >= len) return 0;
    // One load, which nothing waits for before the product.
    if (len % 2 == 0) return *reinterpret_cast<const uint32_t*>(v + at);
    return v[at] | (at + 1 < len ? uint32_t(v[at + 1]) << 16 : 0);
}

// Two columns per thread of what the epilogue adds and multiplies, on their way while the product runs.
template <class T, class Tile>
struct Columns {
    uint32_t bias, scale;

    __device__ __forceinline__ Columns(const Epilogue& e, uint32_t n, uint32_t n0) {
        const uint32_t at = threadIdx.x % 128 * 2, halved = e.act == ACT_SWIGLU;
        const bool mine = at < Tile::BN;
        bias = pair_or_zero(mine ? e.bias : nullptr, n0 + at, n);
        scale = pair_or_zero(mine ? e.scale : nullptr, (n0 >> halved) + at, e.cols);
    }
    // `to`: COLUMNS biases, then as many scales. A barrier of the warpgroup follows.
    __device__ __forceinline__ void keep(T* to) const {
        const uint32_t at = threadIdx.x % 128 * 2;
        if (at >= Tile::COLUMNS) return;
        *reinterpret_cast<uint32_t*>(to + at) = bias;
        *reinterpret_cast<uint32_t*>(to + Tile::COLUMNS + at) = scale;
    }
};

// Asks the L2 for the residual under this warp's 16 rows of every half.
template <class T, class Tile>
__device__ __forceinline__ void ask_residual(const WgmmaParams& p, uint32_t row0, uint32_t n0) {
    const Epilogue& e = p.e;
    if (e.residual == nullptr) return;
    const uint32_t lane = threadIdx.x % 32, halved = e.act == ACT_SWIGLU;
    const uint32_t end = min((n0 + Tile::BN) >> halved, e.cols);
#pragma unroll 1
    for (uint32_t half = 0; half < Tile::HALVES; half++) {
        const uint32_t row = row0 + 64 * half + lane / 2;
        if (row >= p.m) continue;
#pragma unroll 1
        for (uint32_t col = (n0 >> halved) + lane % 2 * 64; col < end; col += 128)
            if (const T* from = residual_at<T>(e, row, col)) prefetch_l2(from);
    }
}

template <class T>
__device__ __forceinline__ Float8 columns_8(const T* from) {
    return unpack<T>(*reinterpret_cast<const uint4*>(from));
}

// Where the epilogue finds the sums of a warp's 16 rows: in its registers, 32 columns at a time through `staging`.
template <class Tile>
struct OwnSums {
    float (&acc)[Tile::HALVES][Tile::BN / 2];
    float* staging;

    __device__ __forceinline__ void turn_to(uint32_t round, uint32_t chunk) {
        // All have taken what was there before; then all have written.
        __syncwarp();
        if (Tile::HALVES == 1 || round < Tile::CHUNKS)
            deposit<Tile>(acc[0], staging, chunk);
        else
            deposit<Tile>(acc[Tile::HALVES - 1], staging, chunk);
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

    __device__ __forceinline__ void turn_to(uint32_t, uint32_t chunk) {
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

// All that follows the sums, in chunks [first, last) of 32 columns. One warp has rows row0 + 64 half + [0, 16) of
// columns n0 .. n0 + BN; `columns` is the warpgroup's.
template <class T, class Tile, Act ACT, class Sums>
__device__ __forceinline__ void finish_as(Sums& sums, const WgmmaParams& p, const T* columns, uint32_t row0, uint32_t n0,
                                          uint32_t first, uint32_t last) {
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
    ask(first_row, first_col + first * CHUNK_COLS, residual);
    uint32_t row = first_row, chunk = first;
#pragma unroll 1
    for (uint32_t round = first; round < (Tile::HALVES - 1) * Tile::CHUNKS + last; round++) {
        sums.turn_to(round, chunk);
        const uint32_t this_row = row, at = chunk * CHUNK_COLS + along, col = (n0 >> HALVED) + at;
        if (++chunk == last) chunk = 0, row = Tile::HALVES == 2 && round < Tile::CHUNKS ? row + 64 : p.m;
        uint4 next[VECTORS] = {};
        ask(row, first_col + chunk * CHUNK_COLS, next);

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
                    if (this_row + 8 * i < p.m && col + j < end)
                        put<T>(e, this_row + 8 * i, col + j, v[i].v[j], e.scale != nullptr ? s.v[j] : 1.f);
            continue;
        }
        if (e.scale != nullptr) {
            const Float8 s = columns_8(columns + Tile::COLUMNS + at);
#pragma unroll
            for (int i = 0; i < VECTORS; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) v[i].v[j] *= s.v[j];
        }
        if (e.residual != nullptr) {
#pragma unroll
            for (int i = 0; i < VECTORS; i++) add(v[i], unpack<T>(residual[i]));
        }
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            if (this_row + 8 * i >= p.m || col >= end) continue;
            const size_t to = size_t(this_row + 8 * i) * e.cols + col;
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
__device__ __forceinline__ uint32_t multiply(float (&acc)[Tile::HALVES][Tile::BN / 2], const Unit& u, Cursor<Tile>& at,
                                             uint64_t x0, uint64_t w0, uint32_t full, uint32_t empty) {
    uint32_t before = 0;
    for (uint32_t step = u.first; step < u.last; step++, at.next()) {
        mbarrier_wait(full + at.stage * 8, at.phase);
        const uint32_t offset = at.stage * (Tile::STAGE_BYTES >> 4);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < Tile::BK / 16; k++)
#pragma unroll
            for (int half = 0; half < Tile::HALVES; half++)
                wgmma<T, Tile::BN>(acc[half], x0 + offset + half * (64 * 128 >> 4) + 2 * k, w0 + offset + 2 * k,
                                   k > 0 || step > u.first);
        wgmma_commit();
        // The batch before is done with its stage.
        wgmma_wait<1>();
        if (step > u.first) release_stage<Tile>(empty + before * 8);
        before = at.stage;
    }
    return before;
}

// One warpgroup: its rows of every tile of its team.
template <class T, class Tile>
__device__ __forceinline__ void consume(const WgmmaParams& p, uint32_t ring, uint32_t full, uint32_t empty,
                                        uint32_t consumer, float* staging, T* columns) {
    const uint32_t team = consumer / Tile::MEMBERS, member = consumer % Tile::MEMBERS;
    const uint64_t x0 = wgmma_descriptor(ring + member * 64 * 128), w0 = wgmma_descriptor(ring + Tile::X_BYTES);
    const uint32_t warp = threadIdx.x / 32 % 4;
    float* my_staging = staging + warp * 16 * Tile::PITCH;
    pdl_trigger();
    pdl_wait();
    Cursor<Tile> at;
    Schedule<Tile> schedule(p);
    // Two teams: all units have as many steps, since K is not split.
    const auto next = [&] {
        schedule.next();
        if constexpr (Tile::TEAMS == 2) at.skip(schedule.steps);
    };
    if (Tile::TEAMS == 2 && team == 1) {
        pass_turn(0);  // the first begins
        next();
    }
    while (schedule.more()) {
        const Unit u = schedule.get(p);
        if (Tile::MEMBERS > 1 && u.m0 + member * 64 >= p.m) {
            // Rows beyond the last: only keep the ring turning, the four warps together as wgmma keeps them elsewhere.
            for (uint32_t step = u.first; step < u.last; step++, at.next()) {
                mbarrier_wait(full + at.stage * 8, at.phase);
                consumer_barrier<Tile::CONSUMERS>(consumer);
                release_stage<Tile>(empty + at.stage * 8);
            }
            schedule.next();
            continue;
        }
        const uint32_t row0 = u.m0 + member * 64 + warp * 16;
        const Columns<T, Tile> ahead(p.e, p.n, u.n0);
        ask_residual<T, Tile>(p, row0, u.n0);

        float acc[Tile::HALVES][Tile::BN / 2];
        if constexpr (Tile::TEAMS == 2) take_turn(team);
        const uint32_t before = multiply<T, Tile>(acc, u, at, x0, w0, full, empty);
        schedule.next();
        if constexpr (Tile::TEAMS == 2) {
            if (schedule.more()) pass_turn(team ^ 1);
        }
        wgmma_wait<0>();
#pragma unroll
        for (int half = 0; half < Tile::HALVES; half++) wgmma_settle(acc[half]);
        release_stage<Tile>(empty + before * 8);
        if constexpr (Tile::TEAMS == 2) next();
        // The warps have all read the columns of the tile before: they have multiplied since.
        ahead.keep(columns);
        if constexpr (Tile::TEAMS == 1) {
            if (p.splits > 1 && !join_splits<Tile>(acc[0], p, u, consumer)) continue;
        }
        consumer_barrier<Tile::CONSUMERS>(consumer);
        finish<T, Tile>(OwnSums<Tile>{acc, my_staging}, p, columns, row0, u.n0);
    }
}
