// archs: 90a
// gemm_multicast:  y = r + s · act(x wᵀ + b)      x [M, K], w [N, K], y [M, cols] of T16 (or f32); K % 8 == 0, any M
//                  and N; sums in f32, one rounding
// One producer and one to three consumer warpgroups around a deep ring, persistent, as in the other files on wgmma, with
// two differences:
//   clusters: CTAs in a grid of CA x CB neighbouring tiles. Those beside one another have an operand in common: of the
//             copies of a stage each is made by one of them and sent to all, so that the L2 is asked for a small part of
//             what the SMs receive. Tiles may then be small, and enough of them to occupy all SMs without splitting K.
//   turned:   (name t...) rows of w are the 64-row operand, rows of x the other, of which a tile may have any multiple
//             of 8: 1025 rows are 13 tiles of 80 or 6 of 176. Else (name d...) rows of x are, and tiles are narrow in w.
// Who fills slot s of the ring with an operand: the CTA s % CA, or s % CB, of those that share it. It waits until all of
// them have given the slot back; nobody gives back what nobody will fill, so no CTA is written to after its end. Every CTA
// says how much it expects as soon as the phase before has come.
// Moves 2·(M·K + N·K + M·cols) bytes at least, 2·M·N·K flops. Goal: as cuBLAS (10.5 us at 128 x 3584 x 3584, 15.7 at
// 1025 x 1024 x 4096, 113 at 13325 x 3072 x 1024).
#include "common/export.cuh"
#include "gemm/teams.cuh"

template <bool TURNED_, int CONSUMERS_, int HALVES_, int B_, int STAGES_, int CA_, int CB_>
struct GridTile {
    static constexpr bool TURNED = TURNED_;
    static constexpr int CONSUMERS = CONSUMERS_, HALVES = HALVES_, STAGES = STAGES_, BK = 64;
    // Rows of the operand that a warpgroup takes 64 of at a time, and of the other.
    static constexpr int A = 64 * CONSUMERS * HALVES, B = B_;
    static constexpr int CA = CA_, CB = CB_, CTAS = CA * CB;
    static constexpr int BM = TURNED ? B : A, BN = TURNED ? A : B;
    static constexpr int CM = TURNED ? CB : CA, CN = TURNED ? CA : CB;
    static constexpr int A_BYTES = A * BK * 2, B_BYTES = B * BK * 2, STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int THREADS = 128 * (1 + CONSUMERS);
    static constexpr int PRODUCER_REGISTERS = CONSUMERS == 3 ? 32 : 40;
    static constexpr int CONSUMER_REGISTERS = CONSUMERS == 3 ? 160 : CONSUMERS == 2 ? 232 : 216;
    // As in TeamTile.
    static constexpr int CHUNK = 32, PITCH = 40, CHUNKS = (BN + CHUNK - 1) / CHUNK, COLUMNS = CHUNKS * CHUNK;
    // Floats of shared memory by which the sums of a warpgroup go: of 16 rows of each warp, or twice 16 rows of x with 64
    // columns (or 32 with 32 after SwiGLU). Pitches as there: each access touches every bank once.
    static constexpr int TURNED_PITCH = 68, HALVED_PITCH = 36, STAGING = TURNED ? 2 * 32 * HALVED_PITCH : 4 * 16 * PITCH;
    static constexpr int STATIC_BYTES = CONSUMERS * (STAGING * 4 + 2 * COLUMNS * 2) + 3 * STAGES * 8;
    static_assert(B % 8 == 0 && HALVES * B <= 320 && CTAS <= 8 && BN <= 256);
    static_assert(2 * 16 * TURNED_PITCH <= 2 * 32 * HALVED_PITCH);
    static_assert(STAGES * STAGE_BYTES + STATIC_BYTES + 1024 <= 227 * 1024);
};

// This CTA's place in its cluster, and the ranks of those that it shares operands with.
template <class Tile>
struct Place {
    uint32_t a, b;

    __device__ __forceinline__ Place() {
        const uint32_t rank = Tile::CTAS == 1 ? 0 : cluster_rank();
        a = rank % Tile::CA, b = rank / Tile::CA;
    }
    __device__ __forceinline__ uint32_t rank(uint32_t at_a, uint32_t at_b) const { return at_b * Tile::CA + at_a; }
    // Those with the same tile of A lie along b, those with the same tile of B along a.
    __device__ __forceinline__ bool fills_a(uint32_t slot) const { return slot % Tile::CB == b; }
    __device__ __forceinline__ bool fills_b(uint32_t slot) const { return slot % Tile::CA == a; }
    __device__ __forceinline__ uint16_t with_a() const {
        uint32_t mask = 0;
#pragma unroll
        for (uint32_t i = 0; i < Tile::CB; i++) mask |= 1u << rank(a, i);
        return uint16_t(mask);
    }
    __device__ __forceinline__ uint16_t with_b() const { return uint16_t(((1u << Tile::CA) - 1) << rank(0, b)); }
};

// Tiles of a cluster in order: down columns of some 2048 rows of x, so that clusters that run together share operands in
// the L2. Tiles may lie outside.
template <class Tile>
struct GridSchedule {
    uint32_t rows, cols, units, unit, steps;

    __device__ __forceinline__ explicit GridSchedule(const WgmmaParams& p) {
        rows = (p.m + Tile::BM * Tile::CM - 1) / (Tile::BM * Tile::CM);
        cols = (p.n + Tile::BN * Tile::CN - 1) / (Tile::BN * Tile::CN);
        units = rows * cols;
        unit = blockIdx.x / Tile::CTAS;
        steps = (p.k + Tile::BK - 1) / Tile::BK;
    }
    __device__ __forceinline__ bool more() const { return unit < units; }
    __device__ __forceinline__ void next() { unit += gridDim.x / Tile::CTAS; }
    // Steps of all that this CTA has to do.
    __device__ __forceinline__ uint32_t all_steps() const {
        const uint32_t stride = gridDim.x / Tile::CTAS;
        return unit < units ? (units - unit + stride - 1) / stride * steps : 0;
    }
    __device__ __forceinline__ Unit get(const Place<Tile>& place) const {
        constexpr uint32_t ROWS = Tile::BM * Tile::CM, COLS = Tile::BN * Tile::CN;
        constexpr uint32_t GROUP = 2048 / ROWS > 0 ? 2048 / ROWS : 1;
        const uint32_t top = unit / (GROUP * cols) * GROUP, rest = unit % (GROUP * cols);
        const uint32_t height = min(GROUP, rows - top);
        const uint32_t row = top + rest % height, col = rest / height;
        const uint32_t m = Tile::TURNED ? place.b : place.a, n = Tile::TURNED ? place.a : place.b;
        return {row * ROWS + m * Tile::BM, col * COLS + n * Tile::BN, unit, 0, 0, steps};
    }
};

// Barriers of slot s at s · 8: `full` of what has come here; `empty_a` and `empty_b` of what all have given back that
// share with this CTA an operand that it fills.
struct GridRing {
    uint32_t slots, full, empty_a, empty_b;
};

// An operand of a step to all CTAs of `to`, where each barrier counts what arrives.
template <int CTAS>
__device__ __forceinline__ void send(uint32_t to, const TensorMap& map, uint32_t barrier, uint32_t step, uint32_t row,
                                     uint16_t ctas) {
    if constexpr (CTAS == 1)
        tma_load_2d(to, map, barrier, step * 64, row);
    else
        tma_load_2d_to_cluster(to, map, barrier, step * 64, row, ctas);
}

// One thread. The weights of the first stages are asked for before the wait for the kernels that made x.
template <class Tile>
__device__ __forceinline__ void produce_grid(const WgmmaParams& p, const GridRing& ring) {
    constexpr bool TURNED = Tile::TURNED;
    const Place<Tile> place;
    const uint16_t with_a = place.with_a(), with_b = place.with_b();
    const auto fill_a = [&](uint32_t slot, uint32_t step, const Unit& u) {
        if (place.fills_a(slot))
            send<Tile::CB>(ring.slots + slot * Tile::STAGE_BYTES, TURNED ? p.w : p.x, ring.full + slot * 8, step,
                           TURNED ? u.n0 : u.m0, with_a);
    };
    const auto fill_b = [&](uint32_t slot, uint32_t step, const Unit& u) {
        if (place.fills_b(slot))
            send<Tile::CA>(ring.slots + slot * Tile::STAGE_BYTES + Tile::A_BYTES, TURNED ? p.x : p.w,
                           ring.full + slot * 8, step, TURNED ? u.m0 : u.n0, with_b);
    };
    const auto fill_w = [&](uint32_t slot, uint32_t step, const Unit& u) {
        if constexpr (TURNED)
            fill_a(slot, step, u);
        else
            fill_b(slot, step, u);
    };
    GridSchedule<Tile> schedule(p);
    uint32_t early = 0;
    if (schedule.more()) {
        const Unit u = schedule.get(place);
        early = min(schedule.steps, uint32_t(Tile::STAGES));
        for (uint32_t i = 0; i < early; i++) {
            mbarrier_expect_tx(ring.full + i * 8, Tile::STAGE_BYTES);
            fill_w(i, i, u);
        }
    }
    pdl_trigger();
    pdl_wait();
    Cursor<Tile> at;
    for (; schedule.more(); schedule.next()) {
        const Unit u = schedule.get(place);
        for (uint32_t step = 0; step < schedule.steps; step++, at.next()) {
            const bool w_is_there = early > 0;
            if (w_is_there) {
                early--;
            } else {
                mbarrier_wait(ring.full + at.stage * 8, at.phase ^ 1);
                mbarrier_expect_tx(ring.full + at.stage * 8, Tile::STAGE_BYTES);
            }
            if (!(TURNED && w_is_there) && place.fills_a(at.stage)) {
                mbarrier_wait(ring.empty_a + at.stage * 8, at.phase ^ 1);
                fill_a(at.stage, step, u);
            }
            if (!(!TURNED && w_is_there) && place.fills_b(at.stage)) {
                mbarrier_wait(ring.empty_b + at.stage * 8, at.phase ^ 1);
                fill_b(at.stage, step, u);
            }
        }
    }
}

// Gives slot `slot` back to those that fill it. All reads of it by this warpgroup have ended.
template <class Tile>
__device__ __forceinline__ void give_back(const Place<Tile>& place, const GridRing& ring, uint32_t slot) {
    const uint32_t thread = threadIdx.x % 128, a = ring.empty_a + slot * 8, b = ring.empty_b + slot * 8;
    if constexpr (Tile::CTAS == 1) {
        if (thread == 0) mbarrier_arrive(a);
        if (thread == 32) mbarrier_arrive(b);
    } else {
        if (thread == 0) mbarrier_arrive_cluster(cluster_address(a, place.rank(place.a, slot % Tile::CB)));
        if (thread == 32) mbarrier_arrive_cluster(cluster_address(b, place.rank(slot % Tile::CA, place.b)));
    }
}

// Rows j0 · 8 .. of x (16, or 32 with SwiGLU) of this warp's 16 rows of w, to staging[row of x][column].
template <class T, class Tile, bool HALVED, int C = 0>
__device__ __forceinline__ void deposit_turned(const float (&acc)[Tile::B / 2], float* staging, const T* columns,
                                               bool biased, uint32_t chunk) {
    constexpr int BLOCKS = HALVED ? 4 : 2, PITCH = HALVED ? Tile::HALVED_PITCH : Tile::TURNED_PITCH;
    if (chunk == C) {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, g = lane / 4, t = lane % 4;
        float* to = staging + 2 * t * PITCH + warp * (HALVED ? 8 : 16) + g;
        float gate_bias = 0.f, up_bias = 0.f;
        if (HALVED && biased) {
            gate_bias = to_f32(columns[warp * 16 + g]);
            up_bias = to_f32(columns[warp * 16 + 8 + g]);
        }
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            constexpr int FIRST = C * BLOCKS;
            if (FIRST + i >= Tile::B / 8) continue;
            const float* v = acc + 4 * (FIRST + i);
            float* row = to + 8 * i * PITCH;
            if constexpr (HALVED) {
                row[0] = silu_16(v[0] + gate_bias) * (v[2] + up_bias);
                row[PITCH] = silu_16(v[1] + gate_bias) * (v[3] + up_bias);
            } else {
                row[0] = v[0], row[8] = v[2];
                row[PITCH] = v[1], row[PITCH + 8] = v[3];
            }
        }
    } else if constexpr ((C + 1) * BLOCKS < Tile::B / 8) {
        deposit_turned<T, Tile, HALVED, C + 1>(acc, staging, columns, biased, chunk);
    }
}

// All that follows the sums of a warpgroup: 64 · HALVES rows of w, the columns of y from n0 on, for Tile::B rows of x from
// m0 on. `columns` are those of the whole tile, these from `first_column` on. Staging takes turns; between two turns of one
// half all threads meet.
template <class T, class Tile, Act ACT>
__device__ __forceinline__ void finish_turned_as(const float (&acc)[Tile::HALVES][Tile::B / 2], const WgmmaParams& p,
                                                 float* staging, const T* columns, uint32_t m0, uint32_t n0,
                                                 uint32_t first_column, uint32_t consumer) {
    constexpr bool HALVED = ACT == ACT_SWIGLU;
    constexpr uint32_t ROWS = HALVED ? 32 : 16, PER_ROW = 128 / ROWS, PITCH = HALVED ? Tile::HALVED_PITCH : Tile::TURNED_PITCH;
    constexpr uint32_t CHUNKS = (Tile::B + ROWS - 1) / ROWS, TURN = Tile::STAGING / 2;
    const Epilogue& e = p.e;
    const uint32_t thread = threadIdx.x % 128, along = thread % PER_ROW * 8, row_in_chunk = thread / PER_ROW;
    const bool whole = HALVED || e.cols % 8 == 0, upper_first = !HALVED && along >= 32;
    const uint32_t last_row = min(m0 + Tile::B, p.m);
    const auto residual_of = [&](uint32_t round) {
        uint4 r = make_uint4(0, 0, 0, 0);
        const uint32_t row = m0 + round % CHUNKS * ROWS + row_in_chunk;
        const uint32_t col = ((n0 + round / CHUNKS * 64) >> HALVED) + along;
        if (round < Tile::HALVES * CHUNKS && whole && row < last_row && col < e.cols)
            if (const T* from = residual_at<T>(e, row, col)) r = *reinterpret_cast<const uint4*>(from);
        return r;
    };
    uint4 residual = residual_of(0);
#pragma unroll 1
    for (uint32_t round = 0; round < Tile::HALVES * CHUNKS; round++) {
        const uint32_t half = round / CHUNKS, chunk = round % CHUNKS;
        float* turn = staging + round % 2 * TURN;
        const T* of_half = columns + first_column + half * 64;
        if (Tile::HALVES == 1 || half == 0)
            deposit_turned<T, Tile, HALVED>(acc[0], turn, of_half, e.bias != nullptr, chunk);
        else
            deposit_turned<T, Tile, HALVED>(acc[Tile::HALVES - 1], turn, of_half, e.bias != nullptr, chunk);
        const uint4 next = residual_of(round + 1);
        consumer_barrier<Tile::CONSUMERS>(consumer);

        const uint32_t row = m0 + chunk * ROWS + row_in_chunk, col = ((n0 + half * 64) >> HALVED) + along;
        Float8 v = take_8(turn + row_in_chunk * PITCH + along, upper_first);
        if constexpr (!HALVED) {
            if (e.bias != nullptr) add(v, columns_8(of_half + along));
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if constexpr (ACT == ACT_GELU) v.v[j] = gelu_16(v.v[j]);
                if constexpr (ACT == ACT_RELU) v.v[j] = relu(v.v[j]);
            }
        }
        const T* scales = columns + Tile::COLUMNS + ((first_column + half * 64) >> HALVED) + along;
        if (!whole) {
            // Rows of y are not whole vectors: one element at a time. Beyond e.cols the scales are zeros.
            const Float8 s = columns_8(scales);
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (row < last_row && col + j < e.cols)
                    put<T>(e, row, col + j, v.v[j], e.scale != nullptr ? s.v[j] : 1.f);
            continue;
        }
        if (e.scale != nullptr) {
            const Float8 s = columns_8(scales);
#pragma unroll
            for (int j = 0; j < 8; j++) v.v[j] *= s.v[j];
        }
        if (e.residual != nullptr) add(v, unpack<T>(residual));
        if (row < last_row && col < e.cols) {
            const size_t to = size_t(row) * e.cols + col;
            if (e.out_f32) {
                float4* y = reinterpret_cast<float4*>(static_cast<float*>(e.y) + to);
                y[0] = make_float4(v.v[0], v.v[1], v.v[2], v.v[3]);
                y[1] = make_float4(v.v[4], v.v[5], v.v[6], v.v[7]);
            } else {
                *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + to) = pack<T>(v);
            }
        }
        residual = next;
    }
    __syncwarp();  // wgmma wants whole warps
}

template <class T, class Tile>
__device__ __forceinline__ void finish_turned(const float (&acc)[Tile::HALVES][Tile::B / 2], const WgmmaParams& p,
                                              float* staging, const T* columns, uint32_t m0, uint32_t n0,
                                              uint32_t first_column, uint32_t consumer) {
    if (p.e.act == ACT_SWIGLU)
        finish_turned_as<T, Tile, ACT_SWIGLU>(acc, p, staging, columns, m0, n0, first_column, consumer);
    else if (p.e.act == ACT_GELU)
        finish_turned_as<T, Tile, ACT_GELU>(acc, p, staging, columns, m0, n0, first_column, consumer);
    else if (p.e.act == ACT_RELU)
        finish_turned_as<T, Tile, ACT_RELU>(acc, p, staging, columns, m0, n0, first_column, consumer);
    else
        finish_turned_as<T, Tile, ACT_NONE>(acc, p, staging, columns, m0, n0, first_column, consumer);
}

// Asks the L2 for the residual under this warpgroup's part of the tile, a line a thread.
template <class T, class Tile>
__device__ __forceinline__ void ask_residual_turned(const WgmmaParams& p, uint32_t m0, uint32_t n0) {
    const Epilogue& e = p.e;
    if (e.residual == nullptr) return;
    const uint32_t halved = e.act == ACT_SWIGLU, last_row = min(m0 + Tile::B, p.m);
#pragma unroll 1
    for (uint32_t row = m0 + threadIdx.x % 128; row < last_row; row += 128)
#pragma unroll 1
        for (uint32_t col = n0 >> halved; col < min((n0 + 64 * Tile::HALVES) >> halved, e.cols); col += 64)
            if (const T* from = residual_at<T>(e, row, col)) prefetch_l2(from);
}

// One warpgroup: its rows of A of every tile of its CTA.
template <class T, class Tile>
__device__ __forceinline__ void consume_grid(const WgmmaParams& p, const GridRing& ring, uint32_t consumer, float* staging,
                                             T* columns) {
    constexpr uint32_t MINE = 64 * Tile::HALVES;
    const uint64_t a0 = wgmma_descriptor(ring.slots + consumer * MINE * 128);
    const uint64_t b0 = wgmma_descriptor(ring.slots + Tile::A_BYTES);
    const uint32_t warp = threadIdx.x / 32 % 4;
    const Place<Tile> place;
    pdl_trigger();
    pdl_wait();
    Cursor<Tile> at;
    GridSchedule<Tile> schedule(p);
    // Steps after which a slot is filled again.
    uint32_t refilled = schedule.all_steps();
    refilled -= min(refilled, uint32_t(Tile::STAGES));
    const auto done_with = [&](uint32_t slot) {
        if (refilled > 0) refilled--, give_back<Tile>(place, ring, slot);
    };
    for (; schedule.more(); schedule.next()) {
        const Unit u = schedule.get(place);
        const uint32_t row0 = u.m0 + consumer * MINE + warp * 16, col0 = u.n0 + consumer * MINE;
        const Columns<T, Tile> ahead(p.e, p.n, u.n0);
        if constexpr (Tile::TURNED)
            ask_residual_turned<T, Tile>(p, u.m0, col0);
        else
            ask_residual<T, Tile>(p, row0, u.n0);

        float acc[Tile::HALVES][Tile::B / 2];
        uint32_t before = 0;
        for (uint32_t step = 0; step < schedule.steps; step++, at.next()) {
            mbarrier_wait(ring.full + at.stage * 8, at.phase);
            const uint32_t offset = at.stage * (Tile::STAGE_BYTES >> 4);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < Tile::BK / 16; k++)
#pragma unroll
                for (int half = 0; half < Tile::HALVES; half++)
                    wgmma<T, Tile::B>(acc[half], a0 + offset + half * (64 * 128 >> 4) + 2 * k, b0 + offset + 2 * k,
                                      k > 0 || step > 0);
            wgmma_commit();
            // The batch before is done with its slot.
            wgmma_wait<1>();
            if (step > 0) done_with(before);
            before = at.stage;
        }
        wgmma_wait<0>();
#pragma unroll
        for (int half = 0; half < Tile::HALVES; half++) wgmma_settle(acc[half]);
        done_with(before);
        // The warps have all read the columns of the tile before: they have multiplied since.
        ahead.keep(columns);
        consumer_barrier<Tile::CONSUMERS>(consumer);
        if constexpr (Tile::TURNED)
            finish_turned<T, Tile>(acc, p, staging, columns, u.m0, col0, consumer * MINE, consumer);
        else
            finish<T, Tile>(OwnSums<Tile>{acc, staging + warp * 16 * Tile::PITCH}, p, columns, row0, u.n0);
    }
}

// Any grid of whole clusters. Dynamic shared memory: STAGES · STAGE_BYTES + 1024.
template <class T, class Tile>
__device__ __forceinline__ void gemm_multicast(const WgmmaParams& p) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full_[Tile::STAGES], empty_a_[Tile::STAGES], empty_b_[Tile::STAGES];
    __shared__ alignas(16) float staging[Tile::CONSUMERS][Tile::STAGING];
    __shared__ alignas(16) T columns[Tile::CONSUMERS][2 * Tile::COLUMNS];
    // The same places in all CTAs, which run the same kernel.
    const GridRing ring = {(smem_address(dynamic) + 1023) & ~1023u, smem_address(full_), smem_address(empty_a_),
                           smem_address(empty_b_)};
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(p.x);
        prefetch_tensor_map(p.w);
        for (int s = 0; s < Tile::STAGES; s++) {
            mbarrier_init(ring.full + s * 8, 1);
            mbarrier_init(ring.empty_a + s * 8, Tile::CONSUMERS * Tile::CB);
            mbarrier_init(ring.empty_b + s * 8, Tile::CONSUMERS * Tile::CA);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if constexpr (Tile::CTAS > 1) {
        // Nothing is sent to a CTA before its barriers are there.
        cluster_arrive(false);
        cluster_wait();
    }

    if (warpgroup == 0) {
        give_registers<Tile::PRODUCER_REGISTERS>();
        if (threadIdx.x < 32 && elect_one()) produce_grid<Tile>(p, ring);
        return;
    }
    take_registers<Tile::CONSUMER_REGISTERS>();
    const uint32_t consumer = warpgroup - 1;
    consume_grid<T, Tile>(p, ring, consumer, staging[consumer], columns[consumer]);
}

#define EXPORT_GRID_OF(T, suffix, name, ...)                                                                \
    EXPORT(gemm_multicast_##name##_##suffix, WgmmaParams, (GridTile<__VA_ARGS__>::THREADS), 1,              \
           gemm_multicast<T, GridTile<__VA_ARGS__>>)
// Rows of A and of B, stages, CA and CB, consumers and the blocks of 64 rows that each has.
#define EXPORT_GRID(letter, turned, rows_a, rows_b, stages, ca, cb, consumers, halves)                               \
    static_assert(rows_a == 64 * consumers * halves);                                                               \
    EXPORT_GRID_OF(__nv_bfloat16, bf16, letter##rows_a##x##rows_b##x##stages##_##ca##x##cb, turned, consumers, halves, \
                   rows_b, stages, ca, cb)                                                                          \
    EXPORT_GRID_OF(__half, f16, letter##rows_a##x##rows_b##x##stages##_##ca##x##cb, turned, consumers, halves, rows_b, \
                   stages, ca, cb)
#define EXPORT_TURNED(...) EXPORT_GRID(t, true, __VA_ARGS__)
#define EXPORT_DIRECT(...) EXPORT_GRID(d, false, __VA_ARGS__)

EXPORT_TURNED(64, 8, 24, 4, 1, 1, 1)
EXPORT_TURNED(64, 16, 21, 4, 1, 1, 1)
EXPORT_TURNED(64, 32, 18, 4, 1, 1, 1)
EXPORT_TURNED(64, 64, 13, 4, 2, 1, 1)
EXPORT_TURNED(64, 96, 10, 2, 1, 1, 1)
EXPORT_TURNED(128, 64, 8, 2, 4, 2, 1)
EXPORT_TURNED(128, 80, 7, 4, 2, 2, 1)
EXPORT_TURNED(128, 88, 7, 2, 4, 2, 1)
EXPORT_TURNED(128, 128, 6, 2, 1, 2, 1)
EXPORT_TURNED(192, 176, 4, 1, 2, 3, 1)
EXPORT_TURNED(256, 96, 4, 2, 1, 2, 2)
EXPORT_TURNED(256, 128, 4, 2, 1, 2, 2)
EXPORT_TURNED(256, 128, 4, 1, 2, 2, 2)
EXPORT_TURNED(256, 136, 4, 2, 1, 2, 2)
EXPORT_TURNED(256, 152, 4, 1, 2, 2, 2)
EXPORT_DIRECT(64, 32, 17, 2, 1, 1, 1)
EXPORT_DIRECT(64, 48, 15, 2, 4, 1, 1)
EXPORT_DIRECT(64, 56, 14, 2, 1, 1, 1)
EXPORT_DIRECT(64, 64, 13, 2, 1, 1, 1)
EXPORT_DIRECT(64, 72, 12, 2, 1, 1, 1)
EXPORT_DIRECT(64, 96, 10, 2, 1, 1, 1)
EXPORT_DIRECT(64, 96, 10, 2, 4, 1, 1)
EXPORT_DIRECT(64, 112, 9, 2, 1, 1, 1)
EXPORT_DIRECT(64, 144, 8, 2, 1, 1, 1)
EXPORT_DIRECT(128, 80, 7, 2, 4, 2, 1)
EXPORT_DIRECT(128, 112, 6, 1, 2, 2, 1)
EXPORT_DIRECT(128, 144, 6, 2, 1, 2, 1)
EXPORT_DIRECT(192, 128, 4, 1, 2, 3, 1)
