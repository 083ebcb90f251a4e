// archs: 90a
// gemm_multicast:  y = r + s · act(x wᵀ + b)      x [M, K], w [N, K], y [M, cols] of T16; K % 8 == 0 and cols % 8 == 0, any
//                  M; sums in f32, one rounding; K may be split through memory (tiles of up to 128 rows of A)
// gemm_multicast_rope:  x wᵀ + b is q | k | v by heads, q and k are turned (rope.cuh), then all go to y and the cache
// One producer and one or two consumer warpgroups around a deep ring, persistent, as in wgmma.cu, with these
// differences:
//   clusters: CTAs in a grid of CA x CB neighbouring tiles. Those beside one another have an operand in common: of the
//             copies of a stage each is made by one of them and sent to all, so that the L2 is asked for a small part of
//             what the SMs receive. Tiles may then be small, and enough of them to occupy all SMs without splitting K.
//   turned:   (name t...) rows of w are the 64-row operand, rows of x the other, of which a tile may have any multiple
//             of 8: 1025 rows are 13 tiles of 80 or 8 of 136. Else (name d...) rows of x are, and tiles are narrow in w.
//   ping-pong: (name p...) each of two consumers has all rows of every second tile, and finishes one while the other
//              multiplies, so that the tensor cores do not wait for ends. Tiles are half as large, and copies more.
//   shared K: (name ..x2, ..x4) a cluster has CK such grids, each with a part of K, and one tile a place. In the end the
//              CTAs of a place send one another their sums, each gets those of its part of the columns, and finishes it.
// Who fills slot s of the ring with an operand: the CTA s % CA, or s % CB, of those that share it. It waits until all of
// them have given the slot back; nobody gives back what nobody will fill, so no CTA is written to after its end. Every CTA
// says how much it expects as soon as the phase before has come.
// Moves 2·(M·K + N·K + M·cols) bytes at least, 2·M·N·K flops. Goal: as cuBLAS (10.5 us at 128 x 3584 x 3584, 15.7 at
// 1025 x 1024 x 4096, 113 at 13325 x 3072 x 1024).
// One file of more than 600 lines: schedule, ring, products and both ends speak of one tile and its place in the cluster.
#include "common/export.cuh"
#include "common/stmatrix.cuh"
#include "gemm/columns.cuh"
#include "gemm/rope.cuh"

template <bool TURNED_, int CONSUMERS_, int HALVES_, int B_, int STAGES_, int CA_, int CB_, int CK_ = 1,
          bool PINGPONG_ = false>
struct GridTile {
    static constexpr bool TURNED = TURNED_, PINGPONG = PINGPONG_;
    static constexpr int CONSUMERS = CONSUMERS_, HALVES = HALVES_, STAGES = STAGES_, BK = 64;
    // Rows of the operand that a warpgroup takes 64 of at a time, and of the other.
    static constexpr int SHARING = PINGPONG ? 1 : CONSUMERS;  // warpgroups that multiply a tile
    __device__ static constexpr uint32_t first_of_a(uint32_t consumer) { return PINGPONG ? 0 : consumer * 64 * HALVES; }
    static constexpr int A = 64 * SHARING * HALVES, B = B_;
    static constexpr int CA = CA_, CB = CB_, CK = CK_, CTAS = CA * CB * CK;
    static constexpr int BM = TURNED ? B : A, BN = TURNED ? A : B;
    static constexpr int CM = TURNED ? CB : CA, CN = TURNED ? CA : CB;
    static constexpr int A_BYTES = A * BK * 2, B_BYTES = B * BK * 2, STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int THREADS = 128 * (1 + CONSUMERS);
    static constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = CONSUMERS == 2 ? 232 : 216;
    // Biases and scales of a tile, room for whole vectors; of a warpgroup 64 rows of x and of w of 16 bits on their way out.
    static constexpr int COLUMNS = (BN + 31) / 32 * 32, STAGING_BYTES = 64 * 64 * 2;
    static constexpr int STATIC_BYTES = CONSUMERS * (STAGING_BYTES + 2 * COLUMNS * 2) + 3 * STAGES * 8 + 128;
    static_assert(B % 8 == 0 && HALVES * B <= 320 && CTAS <= 8 && BN <= 256);
    static_assert(!PINGPONG || (CONSUMERS == 2 && CK == 1));
    static_assert(STAGES * STAGE_BYTES + STATIC_BYTES + 1024 <= 227 * 1024);
};

// What a CTA finishes of a tile whose K it shares: B columns, of which the last CTA may have less. The sums that come from
// all CTAs lie where the ring was.
template <class Tile>
struct PartOf : Tile {
    static constexpr int B = (Tile::B + 16 * Tile::CK - 1) / (16 * Tile::CK) * 16, BN = B, COLUMNS = (BN + 31) / 32 * 32;
    static constexpr int VECTORS = Tile::HALVES * B / 8;
    static_assert(!Tile::TURNED && Tile::CK * VECTORS * Tile::CONSUMERS * 128 * 16 <= Tile::STAGES * Tile::STAGE_BYTES);
};
template <class Tile, int CK = Tile::CK>
struct Finished {
    using Part = PartOf<Tile>;
};
template <class Tile>
struct Finished<Tile, 1> {
    using Part = Tile;
};

// This CTA's place in its cluster, and the ranks of those that it shares operands with.
template <class Tile>
struct Place {
    uint32_t a, b, k;

    __device__ __forceinline__ Place() {
        constexpr uint32_t SHARING = Tile::CA * Tile::CB;
        const uint32_t rank = Tile::CTAS == 1 ? 0 : cluster_rank();
        k = Tile::CK == 1 ? 0 : rank / SHARING;
        a = rank % Tile::CA, b = (rank - k * SHARING) / Tile::CA;
    }
    __device__ __forceinline__ uint32_t rank(uint32_t at_a, uint32_t at_b, uint32_t at_k) const {
        return (at_k * Tile::CB + at_b) * Tile::CA + at_a;
    }
    __device__ __forceinline__ uint32_t rank(uint32_t at_a, uint32_t at_b) const { return rank(at_a, at_b, k); }
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

struct WgmmaRopeParams {
    WgmmaParams g;  // of its epilogue the bias; cols = N
    RopeEpilogue r;
};

// Units of a cluster in order: the splits of its tiles, then tiles down columns of some 2048 rows of x, so that clusters that
// run together share operands in the L2. Tiles may lie outside.
template <class Tile>
struct GridSchedule {
    uint32_t rows, cols, units, unit, steps;

    __device__ __forceinline__ explicit GridSchedule(const WgmmaParams& p) {
        rows = (p.m + Tile::BM * Tile::CM - 1) / (Tile::BM * Tile::CM);
        cols = (p.n + Tile::BN * Tile::CN - 1) / (Tile::BN * Tile::CN);
        units = rows * cols * p.splits;
        unit = blockIdx.x / Tile::CTAS;
        steps = (p.k + Tile::BK - 1) / Tile::BK;
    }
    __device__ __forceinline__ bool more() const { return unit < units; }
    __device__ __forceinline__ bool more_after_this() const { return unit + gridDim.x / Tile::CTAS < units; }
    __device__ __forceinline__ void next() { unit += gridDim.x / Tile::CTAS; }
    __device__ __forceinline__ Unit get(const WgmmaParams& p, const Place<Tile>& place) const {
        constexpr uint32_t ROWS = Tile::BM * Tile::CM, COLS = Tile::BN * Tile::CN;
        constexpr uint32_t GROUP = 2048 / ROWS > 0 ? 2048 / ROWS : 1;
        const uint32_t id = unit / p.splits;
        const uint32_t split = Tile::CK > 1 ? place.k : unit % p.splits, splits = Tile::CK > 1 ? Tile::CK : p.splits;
        const uint32_t top = id / (GROUP * cols) * GROUP, rest = id % (GROUP * cols);
        const uint32_t height = min(GROUP, rows - top);
        const uint32_t row = top + rest % height, col = rest / height;
        const uint32_t m = Tile::TURNED ? place.b : place.a, n = Tile::TURNED ? place.a : place.b;
        // Never empty while splits <= steps.
        return {row * ROWS + m * Tile::BM, col * COLS + n * Tile::BN, id * Tile::CTAS + place.rank(place.a, place.b),
                split, split * steps / splits, (split + 1) * steps / splits};
    }
    // Steps of all that this CTA has to do.
    __device__ __forceinline__ uint32_t all_steps(const WgmmaParams& p, const Place<Tile>& place) const {
        if constexpr (Tile::CK > 1) return (place.k + 1) * steps / Tile::CK - place.k * steps / Tile::CK;
        uint32_t sum = 0;
#pragma unroll 1
        for (uint32_t u = unit; u < units; u += gridDim.x / Tile::CTAS) {
            const uint32_t split = u % p.splits;
            sum += (split + 1) * steps / p.splits - split * steps / p.splits;
        }
        return sum;
    }
};

// Barriers of slot s at s · 8: `full` of what has come here; `empty_a` and `empty_b` of what all have given back that
// share with this CTA an operand that it fills. `joined`, of consumer c at c · 8: of the sums of its part that have come.
struct GridRing {
    uint32_t slots, full, empty_a, empty_b, joined;
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
        const Unit u = schedule.get(p, place);
        early = min(u.last - u.first, uint32_t(Tile::STAGES));
        for (uint32_t i = 0; i < early; i++) {
            mbarrier_expect_tx(ring.full + i * 8, Tile::STAGE_BYTES);
            fill_w(i, u.first + i, u);
        }
    }
    pdl_wait();
    pdl_trigger();
    Cursor<Tile> at;
    for (; schedule.more(); schedule.next()) {
        const Unit u = schedule.get(p, place);
        for (uint32_t step = u.first; step < u.last; step++, at.next()) {
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

// Where 8 columns (16 bytes) of a row of x lie in a turn of staging: 64 columns a row, or 32 after SwiGLU. The 8 rows that
// one matrix goes to, and the vectors of one row, touch every bank once.
template <bool HALVED>
__device__ __forceinline__ uint32_t staged_at(uint32_t row, uint32_t unit) {
    return HALVED ? row * 64 + ((unit ^ (row / 2 % 4)) << 4) : row * 128 + ((unit ^ row % 8) << 4);
}

// The loops at the end of a tile. An SM that has run other kernels since fetches this code anew, more slowly than it runs
// it: 7 to 14 us where copies of the body for many sums follow one another. So the loops stay loops, and choose the sums of
// a turn, or in small tiles of a step. Only ends without an activation are copied, of tiles of which a CTA has many, and
// of t128x80, whose kernel runs twice a layer of a picture (gemm/LADDER.md).
template <class Tile, Act ACT, class Rope>
struct Loops {
    static constexpr bool OFTEN = Tile::B > 96 || (Tile::TURNED && Tile::HALVES == 1 && Tile::B == 80);
    static constexpr int COPIES = OFTEN && (ACT == ACT_NONE || ACT == ACT_RELU) && !Rope::ON ? 16 : 1;
    // Whether the sums of a turn are chosen at once, or of a step.
    static constexpr bool BY_TURNS = COPIES > 1 || Tile::HALVES * Tile::B > 96 || Rope::ON;
};

// v = the COUNT sums of a thread from COUNT · step on, in rows of SUMS. Registers have no indices: this is a choice among
// constants, by halves of [FIRST, LAST).
template <int COUNT, int FIRST, int LAST, int HALVES, int SUMS>
__device__ __forceinline__ void pick(float (&v)[COUNT], const float (&acc)[HALVES][SUMS], int step) {
    if constexpr (LAST - FIRST > 1) {
        constexpr int MIDDLE = (FIRST + LAST) / 2;
        if (step < MIDDLE)
            pick<COUNT, FIRST, MIDDLE>(v, acc, step);
        else
            pick<COUNT, MIDDLE, LAST>(v, acc, step);
    } else {
        constexpr int STEPS = (SUMS + COUNT - 1) / COUNT, AT = FIRST % STEPS * COUNT;
#pragma unroll
        for (int i = 0; i < COUNT; i++) v[i] = AT + i < SUMS ? acc[FIRST / STEPS][min(AT + i, SUMS - 1)] : 0.f;
    }
}

// All that follows the sums of a warpgroup: 64 · HALVES rows of w, which are columns of y from n0 on, for rows of x from m0
// on. `columns` are those of the whole tile, these from `first_column` on. In turns of up to 64 rows of x: the residual
// comes into shared memory by rows, goes transposed into the registers that hold the sums, and the result the way back.
template <class T, class Tile, Act ACT>
__device__ __forceinline__ void finish_turned_as(const float (&acc)[Tile::HALVES][Tile::B / 2], const WgmmaParams& p,
                                                 uint32_t staging, const T* columns, uint32_t m0, uint32_t n0,
                                                 uint32_t first_column, uint32_t consumer) {
    constexpr bool HALVED = ACT == ACT_SWIGLU;
    // Blocks of 8 rows of x, in all and a turn; matrices of 8 x 8 that go at once, two a block or one after SwiGLU.
    constexpr int BLOCKS = Tile::B / 8, TURN = 8, TOGETHER = HALVED ? 4 : 2, TURNS = (BLOCKS + TURN - 1) / TURN;
    constexpr int COPIES = Loops<Tile, ACT, NoRope>::COPIES, ROUND = Loops<Tile, ACT, NoRope>::BY_TURNS ? TURN : TOGETHER;
    constexpr int ROUNDS = (BLOCKS + ROUND - 1) / ROUND;
    // Vectors of a row, and of a thread: rows that are ROWS_A_PASS apart.
    constexpr uint32_t UNITS = HALVED ? 4 : 8, ROWS_A_PASS = 128 / UNITS, PASSES = 8 * TURN / ROWS_A_PASS;
    const Epilogue& e = p.e;
    const uint32_t thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, g = lane / 4;
    const uint32_t unit = thread % UNITS, end = min(m0 + Tile::B, p.m);
    const bool adds = e.residual != nullptr;
    // The vectors of a turn, of which the last may reach beyond the tile.
    const auto each_vector = [&](int turn, auto&& act) {
        const uint32_t col = ((n0 + turn / TURNS * 64) >> HALVED) + unit * 8;
#pragma unroll
        for (uint32_t i = 0; i < PASSES; i++) {
            const uint32_t row = i * ROWS_A_PASS + thread / UNITS, of_x = m0 + turn % TURNS * (8 * TURN) + row;
            if (of_x < end && col < e.cols) act(i, staging + staged_at<HALVED>(row, unit), of_x, col);
        }
    };
    uint4 residual[PASSES] = {};
    const auto ask = [&](int turn) {
        if (!adds || turn == Tile::HALVES * TURNS) return;
        each_vector(turn, [&](uint32_t i, uint32_t, uint32_t row, uint32_t col) {
            residual[i] = residual_8<T>(e, row, col);
        });
    };
    ask(0);
#pragma unroll(COPIES)
    for (int turn = 0; turn < Tile::HALVES * TURNS; turn++) {
        const int half = turn / TURNS, first = turn % TURNS * TURN;
        const T* biases = columns + first_column + half * 64 + warp * 16 + g;
        const T* scales = columns + Tile::COLUMNS + ((first_column + half * 64 + warp * 16) >> HALVED) + g;
        float bias[2] = {0.f, 0.f}, scale[2] = {1.f, 1.f};
        if (e.bias != nullptr) bias[0] = to_f32(biases[0]), bias[1] = to_f32(biases[8]);
        if (e.scale != nullptr) scale[0] = to_f32(scales[0]), scale[1] = HALVED ? 1.f : to_f32(scales[8]);
        if (turn > 0) consumer_barrier<Tile::CONSUMERS>(consumer);  // the turn before has been taken
        if (adds) {
            each_vector(turn, [&](uint32_t i, uint32_t at, uint32_t, uint32_t) { store_shared(at, residual[i]); });
            consumer_barrier<Tile::CONSUMERS>(consumer);
            ask(turn + 1);
        }
        float sums[4 * ROUND];
#pragma unroll(ROUND == TURN ? 16 : 1)
        for (int i = 0; i < TURN; i += TOGETHER) {
            if (first + i >= BLOCKS) continue;
            if (i % ROUND == 0)
                pick<4 * ROUND, 0, Tile::HALVES * ROUNDS>(sums, acc, half * ROUNDS + (first + i) / ROUND);
            // Of matrix lane / 8 the row lane % 8. Blocks behind the last have a place, and nobody takes them.
            const uint32_t matrix = lane / 8, row = 8 * (i + (HALVED ? matrix : matrix / 2)) + lane % 8;
            const uint32_t at = staging + staged_at<HALVED>(row, HALVED ? warp : 2 * warp + matrix % 2);
            uint32_t r[4] = {0, 0, 0, 0}, y[4] = {0, 0, 0, 0};
            if (adds) ldmatrix_x4_trans(r, at);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int h = HALVED ? 0 : j % 2;
                const float* v = sums + 4 * (i % ROUND + (HALVED ? j : j / 2));
                float2 sum;
                if constexpr (HALVED) {
                    sum.x = silu_16(v[0] + bias[0]) * (v[2] + bias[1]);
                    sum.y = silu_16(v[1] + bias[0]) * (v[3] + bias[1]);
                } else {
                    sum = make_float2(v[2 * h] + bias[h], v[2 * h + 1] + bias[h]);
                    if constexpr (ACT == ACT_GELU) sum = make_float2(gelu_16(sum.x), gelu_16(sum.y));
                    if constexpr (ACT == ACT_RELU) sum = make_float2(relu(sum.x), relu(sum.y));
                }
                const float2 added = unpack2(r[j], T());
                y[j] = pack2(make_float2(fmaf(sum.x, scale[h], added.x), fmaf(sum.y, scale[h], added.y)), T());
            }
            stmatrix_x4_trans(at, y);
        }
        consumer_barrier<Tile::CONSUMERS>(consumer);
        each_vector(turn, [&](uint32_t, uint32_t at, uint32_t row, uint32_t col) {
            *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + size_t(row) * e.cols + col) = load_shared(at);
        });
    }
    __syncwarp();  // wgmma wants whole warps
}

// Angles of a turn of finish_direct_as: of every two blocks of 8 columns, rows g and g + 8. Those of the first turn are
// asked for before the product.
template <class Tile, class Rope>
struct TurnAngles {
    float4 cs[4][2];

    // The turn from row `row0` and column `n0` on, `first` of the tile.
    __device__ __forceinline__ void ask(const Rope& rope, const WgmmaParams& p, uint32_t row0, uint32_t n0, int first) {
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int h = 0; h < 2 && first + 16 * i < Tile::B; h++)
                cs[i][h] = angles_of(rope, min(row0 + lane / 4 + 8 * h, p.m - 1), n0 + 16 * i, lane % 4 * 2);
    }
};
template <class Tile>
struct TurnAngles<Tile, NoRope> {
    __device__ __forceinline__ void ask(const NoRope&, const WgmmaParams&, uint32_t, uint32_t, int) {}
};

// The same where rows of x are the operand of 64 rows: a warp has 16 of them at a time and goes its way alone, in turns of
// 64 rows of w. `columns` are those of the tile, from n0 on; it ends before n_end.
template <class T, class Tile, Act ACT, class Rope>
__device__ __forceinline__ void finish_direct_as(const float (&acc)[Tile::HALVES][Tile::B / 2], const WgmmaParams& p,
                                                 const Rope& rope, TurnAngles<Tile, Rope>& angles, uint32_t staging,
                                                 const T* columns, uint32_t row0, uint32_t n0, uint32_t n_end) {
    constexpr bool HALVED = ACT == ACT_SWIGLU;
    static_assert(!Rope::ON || (ACT == ACT_NONE && Tile::B % 16 == 0));
    // Blocks of 8 rows of w; the four matrices of 8 x 8 that go at once are of two blocks, or of two pairs of blocks.
    constexpr int BLOCKS = Tile::B / 8, TURN = 8, TOGETHER = HALVED ? 4 : 2, TURNS = (BLOCKS + TURN - 1) / TURN;
    constexpr int COPIES = Loops<Tile, ACT, Rope>::COPIES, ROUND = Loops<Tile, ACT, Rope>::BY_TURNS ? TURN : TOGETHER;
    constexpr int ROUNDS = (BLOCKS + ROUND - 1) / ROUND;
    constexpr uint32_t UNITS = HALVED ? 4 : 8, ROWS_A_PASS = 32 / UNITS, PASSES = 16 / ROWS_A_PASS;
    const Epilogue& e = p.e;
    const uint32_t lane = threadIdx.x % 32, unit = lane % UNITS, t = lane % 4;
    const uint32_t end = min(n_end >> HALVED, e.cols);
    const bool adds = e.residual != nullptr;
    const auto each_vector = [&](int turn, auto&& act) {
        const uint32_t col = ((n0 + turn % TURNS * 64) >> HALVED) + unit * 8;
#pragma unroll
        for (uint32_t i = 0; i < PASSES; i++) {
            const uint32_t row = i * ROWS_A_PASS + lane / UNITS, of_x = row0 + turn / TURNS * 64 + row;
            if (of_x < p.m && col < end) act(i, staging + staged_at<HALVED>(row, unit), of_x, col);
        }
    };
    uint4 residual[PASSES] = {};
    const auto ask = [&](int turn) {
        if (!adds || turn == Tile::HALVES * TURNS) return;
        each_vector(turn, [&](uint32_t i, uint32_t, uint32_t row, uint32_t col) {
            residual[i] = residual_8<T>(e, row, col);
        });
    };
    // Elements 8 block + 2t and the next of a vector of the tile.
    const auto two_of = [&](const T* from, int block) {
        return unpack2(*reinterpret_cast<const uint32_t*>(from + 8 * block + 2 * t), T());
    };
    ask(0);
#pragma unroll(COPIES)
    for (int turn = 0; turn < Tile::HALVES * TURNS; turn++) {
        const int half = turn / TURNS, first = turn % TURNS * TURN;
        __syncwarp();  // the turn before has been taken
        if (adds) {
            each_vector(turn, [&](uint32_t i, uint32_t at, uint32_t, uint32_t) { store_shared(at, residual[i]); });
            __syncwarp();
            ask(turn + 1);
        }
        float sums[4 * ROUND];
#pragma unroll(ROUND == TURN ? 16 : 1)
        for (int i = 0; i < TURN; i += TOGETHER) {
            if (first + i >= BLOCKS) continue;
            if (i % ROUND == 0)
                pick<4 * ROUND, 0, Tile::HALVES * ROUNDS>(sums, acc, half * ROUNDS + (first + i) / ROUND);
            // Of matrix lane / 8 the row lane % 8; matrices 0 and 1 are rows 0 .. 15 of one block, 2 and 3 of the next.
            const uint32_t row = lane / 8 % 2 * 8 + lane % 8;
            const uint32_t at = staging + staged_at<HALVED>(row, (HALVED ? i / 2 : i) + lane / 16);
            uint32_t r[4] = {0, 0, 0, 0}, y[4] = {0, 0, 0, 0};
            if constexpr (Rope::ON) {
                float2 bias[2] = {};
                if (e.bias != nullptr) bias[0] = two_of(columns, first + i), bias[1] = two_of(columns, first + i + 1);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float* v = sums + 4 * (i % ROUND) + 2 * h;
                    float2 a = make_float2(v[0] + bias[0].x, v[1] + bias[0].y);
                    float2 b = make_float2(v[4] + bias[1].x, v[5] + bias[1].y);
                    turn_pairs(a, b, angles.cs[i / 2][h]);
                    y[h] = pack2(a, T()), y[2 + h] = pack2(b, T());
                }
                stmatrix_x4(at, y);
                continue;
            }
            if (adds) ldmatrix_x4(r, at);
            // One look for each vector, not one for each sum.
            float2 bias[TOGETHER] = {}, scale[2] = {{1.f, 1.f}, {1.f, 1.f}};
            if (e.bias != nullptr) {
#pragma unroll
                for (int k = 0; k < TOGETHER; k++) bias[k] = two_of(columns, first + i + k);
            }
            if (e.scale != nullptr) {
#pragma unroll
                for (int k = 0; k < 2; k++)
                    scale[k] = two_of(columns + Tile::COLUMNS, HALVED ? (first + i) / 2 + k : first + i + k);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int block = j / 2 * (TOGETHER / 2);
                const float* v = sums + 4 * (i % ROUND + block) + 2 * (j % 2);
                float2 sum = make_float2(v[0] + bias[block].x, v[1] + bias[block].y);
                if constexpr (HALVED) {
                    const float2 up = make_float2(v[4] + bias[block + 1].x, v[5] + bias[block + 1].y);
                    sum.x = silu_16(sum.x) * up.x, sum.y = silu_16(sum.y) * up.y;
                }
                if constexpr (ACT == ACT_GELU) sum = make_float2(gelu_16(sum.x), gelu_16(sum.y));
                if constexpr (ACT == ACT_RELU) sum = make_float2(relu(sum.x), relu(sum.y));
                const float2 s = scale[j / 2], added = unpack2(r[j], T());
                y[j] = pack2(make_float2(fmaf(sum.x, s.x, added.x), fmaf(sum.y, s.y, added.y)), T());
            }
            stmatrix_x4(at, y);
        }
        __syncwarp();
        if constexpr (Rope::ON) {
            if (turn + 1 < Tile::HALVES * TURNS)
                angles.ask(rope, p, row0 + (turn + 1) / TURNS * 64, n0 + (turn + 1) % TURNS * 64,
                           (turn + 1) % TURNS * 64);
            const HeadColumns<T> to(rope, n0 + turn % TURNS * 64 + unit * 8);
            each_vector(turn, [&](uint32_t, uint32_t at, uint32_t row, uint32_t) {
                if (row < to.rows) *reinterpret_cast<uint4*>(to.at + row * to.pitch) = load_shared(at);
            });
            continue;
        }
        each_vector(turn, [&](uint32_t, uint32_t at, uint32_t row, uint32_t col) {
            *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + size_t(row) * e.cols + col) = load_shared(at);
        });
    }
    __syncwarp();  // wgmma wants whole warps
}

template <class T, class Tile, Act ACT, class Rope>
__device__ __forceinline__ void finish_grid_as(const float (&acc)[Tile::HALVES][Tile::B / 2], const WgmmaParams& p,
                                               const Rope& rope, TurnAngles<Tile, Rope>& angles, uint32_t staging,
                                               const T* columns, const Unit& u, uint32_t n_end, uint32_t consumer) {
    const uint32_t mine = Tile::first_of_a(consumer), warp = threadIdx.x / 32 % 4;
    if constexpr (Tile::TURNED)
        finish_turned_as<T, Tile, ACT>(acc, p, staging, columns, u.m0, u.n0 + mine, mine, consumer);
    else
        finish_direct_as<T, Tile, ACT>(acc, p, rope, angles, staging + warp * (16 * 128), columns,
                                       u.m0 + mine + warp * 16, u.n0, n_end);
}

template <class T, class Tile, class Rope>
__device__ __forceinline__ void finish_grid(const float (&acc)[Tile::HALVES][Tile::B / 2], const WgmmaParams& p,
                                            const Rope& rope, TurnAngles<Tile, Rope>& angles, uint32_t staging,
                                            const T* columns, const Unit& u, uint32_t n_end, uint32_t consumer) {
    if constexpr (Rope::ON) return finish_grid_as<T, Tile, ACT_NONE>(acc, p, rope, angles, staging, columns, u, n_end, consumer);
    else if (p.e.act == ACT_SWIGLU)
        finish_grid_as<T, Tile, ACT_SWIGLU>(acc, p, rope, angles, staging, columns, u, n_end, consumer);
    else if (p.e.act == ACT_GELU)
        finish_grid_as<T, Tile, ACT_GELU>(acc, p, rope, angles, staging, columns, u, n_end, consumer);
    else if (p.e.act == ACT_RELU)
        finish_grid_as<T, Tile, ACT_RELU>(acc, p, rope, angles, staging, columns, u, n_end, consumer);
    else
        finish_grid_as<T, Tile, ACT_NONE>(acc, p, rope, angles, staging, columns, u, n_end, consumer);
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

// A tile as join_splits sees it.
template <class Tile>
struct Joined {
    static constexpr int BN = Tile::B, CONSUMERS = Tile::CONSUMERS;
    static constexpr int JOIN_BATCH = divisor_up_to(8, BN / 8);
};

// `mine`: the columns of this CTA's part, of its consumer's rows, of the sums of all CTAs that share the tile's K, added in
// the order of K. What one thread holds of them the same thread of the others gets, 16 bytes at a time.
template <class Tile, class Part>
__device__ __forceinline__ void join_parts(const float (&acc)[Tile::HALVES][Tile::B / 2],
                                           float (&mine)[Tile::HALVES][Part::B / 2], const Place<Tile>& place,
                                           const GridRing& ring, uint32_t consumer) {
    constexpr uint32_t BLOCKS = Part::B / 8, PITCH = 128 * 16;
    const auto slot = [&](uint32_t part) {
        return ring.slots + (part * Tile::CONSUMERS + consumer) * (Part::VECTORS * PITCH) + threadIdx.x % 128 * 16;
    };
    // Nobody reads a ring any more, and nothing is on its way to one.
    cluster_arrive(false);
    cluster_wait();
#pragma unroll
    for (uint32_t part = 0; part < Tile::CK; part++) {
        const uint32_t to = place.rank(place.a, place.b, part), here = slot(place.k);
        const uint32_t there = cluster_address(here, to), barrier = cluster_address(ring.joined + consumer * 8, to);
#pragma unroll
        for (uint32_t i = 0; i < Part::VECTORS; i++) {
            const uint32_t half = i / BLOCKS, block = part * BLOCKS + i % BLOCKS;
            if (block >= Tile::B / 8) continue;
            const float* v = acc[half] + 4 * block;
            if (part == place.k)
                store_shared(here + i * PITCH, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                                                         __float_as_uint(v[3])));
            else
                cluster_store(there + i * PITCH, v[0], v[1], v[2], v[3], barrier);
        }
    }
    cluster_mbarrier_wait(ring.joined + consumer * 8, 0);
#pragma unroll
    for (uint32_t i = 0; i < Part::VECTORS; i++) {
        float* v = mine[i / BLOCKS] + 4 * (i % BLOCKS);
#pragma unroll
        for (uint32_t part = 0; part < Tile::CK; part++) {
            const uint4 x = load_shared(slot(part) + i * PITCH);
            const float sums[4] = {__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w)};
#pragma unroll
            for (int j = 0; j < 4; j++) v[j] = part == 0 ? sums[j] : v[j] + sums[j];
        }
    }
}

// Of two consumers with tiles of their own one multiplies while the other finishes. They take turns also because a phase of
// a barrier is told from the one before alone, not from that before it.
__device__ __forceinline__ void take_turn(uint32_t consumer) {
    if (consumer == 0)
        named_barrier<3, 256>();
    else
        named_barrier<4, 256>();
}
__device__ __forceinline__ void pass_turn(uint32_t consumer) {
    if (consumer == 0)
        named_barrier_arrive<4, 256>();
    else
        named_barrier_arrive<3, 256>();
}

// One warpgroup: its rows of A of every tile of its CTA, or of one tile in a part of K; or all of every second tile.
template <class T, class Tile, class Rope>
__device__ __forceinline__ void consume_grid(const WgmmaParams& p, const Rope& rope, const GridRing& ring,
                                             uint32_t consumer, uint32_t staging, T* columns) {
    using Part = typename Finished<Tile>::Part;
    const uint32_t first_of_a = Tile::first_of_a(consumer);
    const uint64_t a0 = wgmma_descriptor(ring.slots + first_of_a * 128);
    const uint64_t b0 = wgmma_descriptor(ring.slots + Tile::A_BYTES);
    const uint32_t warp = threadIdx.x / 32 % 4;
    const Place<Tile> place;
    pdl_wait();
    pdl_trigger();
    Cursor<Tile> at;
    GridSchedule<Tile> schedule(p);
    // Steps after which a slot is filled again.
    uint32_t refilled = schedule.all_steps(p, place);
    refilled -= min(refilled, uint32_t(Tile::STAGES));
    const auto done_with = [&](uint32_t slot) {
        if (refilled > 0) refilled--, give_back<Tile>(place, ring, slot);
    };
    // The next tile is the other consumer's.
    const auto skip_tile = [&] {
        at.skip(schedule.steps);
        refilled -= min(refilled, schedule.steps);
        schedule.next();
    };
    if (Tile::PINGPONG && consumer == 1) {
        pass_turn(consumer);
        skip_tile();
    }
    for (; schedule.more(); schedule.next()) {
        Unit u = schedule.get(p, place);
        uint32_t n_end = u.n0 + Tile::BN;
        if constexpr (Tile::CK > 1) {
            u.n0 += place.k * Part::BN;
            n_end = min(n_end, u.n0 + Part::BN);
        }
        const Columns<T, Part> ahead(p.e, p.n, u.n0);
        if constexpr (Tile::TURNED)
            ask_residual_turned<T, Tile>(p, u.m0, u.n0 + first_of_a);
        else
            ask_residual<T, Part>(p, u.m0 + first_of_a + warp * 16, u.n0);
        TurnAngles<Part, Rope> angles;
        angles.ask(rope, p, u.m0 + first_of_a + warp * 16, u.n0, 0);

        float acc[Tile::HALVES][Tile::B / 2];
        uint32_t before = 0;
        if constexpr (Tile::PINGPONG) take_turn(consumer);
        for (uint32_t step = u.first; step < u.last; step++, at.next()) {
            mbarrier_wait(ring.full + at.stage * 8, at.phase);
            const uint32_t offset = at.stage * (Tile::STAGE_BYTES >> 4);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < Tile::BK / 16; k++)
#pragma unroll
                for (int half = 0; half < Tile::HALVES; half++)
                    wgmma<T, Tile::B>(acc[half], a0 + offset + half * (64 * 128 >> 4) + 2 * k, b0 + offset + 2 * k,
                                      k > 0 || step > u.first);
            wgmma_commit();
            // The batch before is done with its slot.
            wgmma_wait<1>();
            if (step > u.first) done_with(before);
            before = at.stage;
        }
        if constexpr (Tile::PINGPONG) {
            if (schedule.more_after_this()) pass_turn(consumer);
        }
        wgmma_wait<0>();
#pragma unroll
        for (int half = 0; half < Tile::HALVES; half++) wgmma_settle(acc[half]);
        done_with(before);
        if constexpr (Tile::PINGPONG) skip_tile();
        // The warps have all read the columns of the tile before: they have multiplied since.
        ahead.keep(columns);
        if constexpr (Tile::CK > 1) {
            // A cluster has one tile.
            float mine[Tile::HALVES][Part::B / 2];
            join_parts<Tile, Part>(acc, mine, place, ring, consumer);
            consumer_barrier<Tile::CONSUMERS>(consumer);
            return finish_grid<T, Part>(mine, p, rope, angles, staging, columns, u, n_end, consumer);
        } else {
            if constexpr (Tile::HALVES == 1) {
                if (p.splits > 1 && !join_splits<Joined<Tile>>(acc[0], p, u, consumer)) continue;
            }
            consumer_barrier<Tile::CONSUMERS>(consumer);
            finish_grid<T, Tile>(acc, p, rope, angles, staging, columns, u, n_end, consumer);
        }
    }
}

// Any grid of whole clusters. Dynamic shared memory: STAGES · STAGE_BYTES + 1024.
template <class T, class Tile, class Rope>
__device__ __forceinline__ void multiply(const WgmmaParams& p, const Rope& rope) {
    extern __shared__ uint4 dynamic[];
    __shared__ alignas(8) uint64_t full_[Tile::STAGES], empty_a_[Tile::STAGES], empty_b_[Tile::STAGES];
    __shared__ alignas(8) uint64_t joined_[Tile::CK > 1 ? Tile::CONSUMERS : 1];
    __shared__ alignas(128) uint4 staging[Tile::CONSUMERS][Tile::STAGING_BYTES / 16];
    __shared__ alignas(16) T columns[Tile::CONSUMERS][2 * Tile::COLUMNS];
    // The same places in all CTAs, which run the same kernel.
    const GridRing ring = {(smem_address(dynamic) + 1023) & ~1023u, smem_address(full_), smem_address(empty_a_),
                           smem_address(empty_b_), smem_address(joined_)};
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(p.x);
        prefetch_tensor_map(p.w);
        for (int s = 0; s < Tile::STAGES; s++) {
            mbarrier_init(ring.full + s * 8, 1);
            mbarrier_init(ring.empty_a + s * 8, Tile::SHARING * Tile::CB);
            mbarrier_init(ring.empty_b + s * 8, Tile::SHARING * Tile::CA);
        }
        if constexpr (Tile::CK > 1) {
            // What comes for a consumer's rows from the others that share K.
            constexpr int PART = PartOf<Tile>::B;
            const int first = cluster_rank() / (Tile::CA * Tile::CB) * PART, width = min(max(Tile::B - first, 0), PART);
            for (int c = 0; c < Tile::CONSUMERS; c++) {
                mbarrier_init(ring.joined + c * 8, 1);
                mbarrier_expect_tx(ring.joined + c * 8, (Tile::CK - 1) * width * (64 * Tile::HALVES * 4));
            }
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
    consume_grid<T, Tile>(p, rope, ring, consumer, smem_address(staging[consumer]), columns[consumer]);
}

template <class T, class Tile>
__device__ __forceinline__ void gemm_multicast(const WgmmaParams& p) {
    multiply<T, Tile>(p, NoRope());
}

template <class T, class Tile>
__device__ __forceinline__ void gemm_multicast_rope(const WgmmaRopeParams& p) {
    multiply<T, Tile>(p.g, p.r);
}

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

EXPORT_SHARED(gemm_multicast_rope, WgmmaRopeParams, 64, 80, 10, 1, 4, 2, 1, 1)
EXPORT_SHARED(gemm_multicast_rope, WgmmaRopeParams, 128, 80, 8, 1, 4, 2, 2, 1)

EXPORT_PINGPONG(pt, true, 128, 136, 6, 2, 1)
EXPORT_PINGPONG(pt, true, 128, 152, 5, 2, 1)
EXPORT_PINGPONG(pd, false, 128, 128, 6, 2, 1)
EXPORT_PINGPONG(pd, false, 128, 144, 6, 2, 1)
