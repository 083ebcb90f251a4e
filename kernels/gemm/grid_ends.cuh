// The end of a tile of wgmma_multicast.cuh: sums in registers to rows of y. Bias, activation or scale and residual, rotation on
// the way, or the factors of rows behind a norm; rounded once; stores are whole vectors of 8 columns, by way of 8 KB of
// shared memory a warpgroup.
#pragma once
#include "common/stmatrix.cuh"
#include "gemm/columns.cuh"
#include "gemm/grid.cuh"
#include "gemm/rope.cuh"

// Where 8 columns (16 bytes) of a row of x lie in a turn of staging: 64 columns a row, or 32 after SwiGLU. The 8 rows that
// one matrix goes to, and the vectors of one row, touch every bank once.
template <bool HALVED>
__device__ __forceinline__ uint32_t staged_at(uint32_t row, uint32_t unit) {
    return HALVED ? row * 64 + ((unit ^ (row / 2 % 4)) << 4) : row * 128 + ((unit ^ row % 8) << 4);
}

// The loops at the end of a tile. An SM that has run other kernels since fetches this code anew, more slowly than it runs
// it: 7 to 14 us where copies of the body for many sums follow one another. So the loops stay loops, and choose the sums of
// a turn, or, in small tiles and in those that leave no registers for a turn, of a step. Only short ends, plain or with ReLU,
// are copied, of tiles of which a CTA has many, and of t128x80, whose kernel runs twice a layer of a picture (gemm/LADDER.md).
template <class Tile, Act ACT, class Rope>
struct Loops {
    static constexpr bool OFTEN =
        !Tile::MANY_SUMS && (Tile::B > 96 || (Tile::TURNED && Tile::HALVES == 1 && Tile::B == 80));
    static constexpr int COPIES = OFTEN && (ACT == ACT_NONE || ACT == ACT_RELU) && !Rope::ON ? 16 : 1;
    // Whether the sums of a turn are chosen at once, or of a step.
    static constexpr bool BY_TURNS = !Tile::MANY_SUMS && (COPIES > 1 || Tile::HALVES * Tile::B > 96 || Rope::ON);
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

// 16 rows of a warp and their 64 columns, as operands of mma: rows g and g + 8 in turn.
struct RowsOfWarp {
    uint32_t of[STATS_COLUMNS / 16][4];

    __device__ __forceinline__ void load(uint32_t staging) {
        const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane % 16;
#pragma unroll
        for (uint32_t k = 0; k < STATS_COLUMNS / 16; k++)
            ldmatrix_x4(of[k], staging + staged_at<false>(row, 2 * k + lane / 16));
    }
};

// Their statistics by mma: where d is half the difference from the first column, a sample of the row, so that little is lost
// where means are far from zero, sums are d · 1, and sums of squares the diagonal of d · dᵀ. d is rounded to T, which means
// 1e-5 of a variance. The rows of the turn are those of x from of_x on.
template <class T>
__device__ __forceinline__ void store_stats(RowsOfWarp& rows, const Epilogue& e, uint32_t m, uint32_t of_x, uint32_t end,
                                            uint32_t col) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, first = threadIdx.x / 32 % 4 * 16;
    const uint32_t one = pack2(make_float2(1.f, 1.f), T()), half = pack2(make_float2(.5f, .5f), T());
    float origin[2], sums[4] = {}, upper[4] = {}, lower[4] = {};
    uint32_t shift[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        origin[r] = unpack2(__shfl_sync(0xffffffffu, rows.of[0][r], 0, 4), T()).x;
        shift[r] = pack2(make_float2(-.5f * origin[r], -.5f * origin[r]), T());
    }
#pragma unroll
    for (uint32_t k = 0; k < STATS_COLUMNS / 16; k++) {
        uint32_t(&d)[4] = rows.of[k];
#pragma unroll
        for (int i = 0; i < 4; i++) d[i] = fma2(d[i], half, shift[i % 2], T());
        mma_16816<T>(sums, d[0], d[1], d[2], d[3], one, one);
        mma_16816<T>(upper, d[0], d[1], d[2], d[3], d[0], d[2]);
        mma_16816<T>(lower, d[0], d[1], d[2], d[3], d[1], d[3]);
    }
    if (t == g / 2 && col < e.cols) {  // the diagonals
        const float squares[2] = {g % 2 ? upper[1] : upper[0], g % 2 ? lower[3] : lower[2]};
        float2* to = e.stats_of_y + size_t(col / STATS_COLUMNS) * m + of_x;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint32_t row = first + g + 8 * r;
            const float s = sums[2 * r], q = fmaf(s * (-1.f / STATS_COLUMNS), s, squares[r]);
            if (of_x + row < end) to[row] = make_float2(fmaf(s, 2.f / STATS_COLUMNS, origin[r]), 4.f * fmaxf(q, 0.f));
        }
    }
}

// Stores PASSES rows of 64 columns, 8 of each a lane, and the statistics of the rows: those of pass i lie `apart` rows
// further on. Sums and squares are of the differences from the first column, a sample of the row, so that little is lost
// where means are far from zero; lane i of 8 gets those of pass i % 4, and four passes take 4 exchanges, not 12.
template <class T, int PASSES>
__device__ __forceinline__ void store_with_stats(const Epilogue& e, uint32_t m, uint32_t from, uint32_t from_apart,
                                                 uint32_t row, uint32_t apart, uint32_t end, uint32_t col) {
    const uint32_t lane = threadIdx.x % 8;
    float sum[4] = {}, squares[4] = {}, origin[4] = {};
    uint4 eight[PASSES];
#pragma unroll
    for (int i = 0; i < PASSES; i++) eight[i] = load_shared(from + i * from_apart);
#pragma unroll
    for (int i = 0; i < PASSES; i++)
        if (row + i * apart < end && col < e.cols)
            *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + size_t(row + i * apart) * e.cols + col) = eight[i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
        const Float8 f = unpack<T>(eight[i]);
        origin[i] = __shfl_sync(0xffffffffu, f.v[0], 0, 8);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float d = f.v[j] - origin[i];
            sum[i] += d, squares[i] = fmaf(d, d, squares[i]);
        }
    }
    // Of pairs of passes one goes to the neighbour, whose other comes back.
    const auto halve = [&](float keep, float send, int mask) { return keep + __shfl_xor_sync(0xffffffffu, send, mask); };
    const bool odd = lane & 1, upper = lane & 2;
    const auto all = [&](const float (&v)[4]) {
        const float low = halve(odd ? v[1] : v[0], odd ? v[0] : v[1], 1);
        const float high = halve(odd ? v[3] : v[2], odd ? v[2] : v[3], 1);
        const float mine = halve(upper ? high : low, upper ? low : high, 2);
        return mine + __shfl_xor_sync(0xffffffffu, mine, 4);
    };
    const float s = all(sum), q = all(squares);
    const float first = upper ? (odd ? origin[3] : origin[2]) : (odd ? origin[1] : origin[0]);
    const uint32_t of_x = row + lane * apart;
    if (lane < PASSES && of_x < end && col < e.cols)
        e.stats_of_y[size_t(col / STATS_COLUMNS) * m + of_x] =
            make_float2(fmaf(s, 1.f / STATS_COLUMNS, first), fmaxf(fmaf(s * (-1.f / STATS_COLUMNS), s, q), 0.f));
}

// Stores 8 columns of a row, the same times their gains, and the first of 4 lanes the sum of the squares of 32. Lanes that
// have nothing to store take part.
template <class T>
__device__ __forceinline__ void store_begun(const Epilogue& e, uint32_t m, uint32_t from, const T* gains, uint32_t row,
                                            uint32_t col, bool mine) {
    const uint4 y = mine ? load_shared(from) : make_uint4(0, 0, 0, 0);
    const float squares = squares_of_32<T>(y);
    if (!mine) return;
    const size_t at = size_t(row) * e.cols + col;
    *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + at) = y;
    *reinterpret_cast<uint4*>(static_cast<T*>(e.gained) + at) = gained_8<T>(y, *reinterpret_cast<const uint4*>(gains));
    if (threadIdx.x % 4 == 0) e.squares_of_y[size_t(col / SQUARES_COLUMNS) * m + row] = squares;
}

// The vectors of 8 columns that a thread stores in each turn. Turned, a warpgroup has turns of 64 rows of x, then those of its
// next 64 rows of w; else a warp has turns of 64 rows of w, then those of its next rows of x. Rows from row0 to `end_row`, rows
// of w from n0 to n_end, columns to `end_col`, which after SwiGLU are half as many.
template <class Tile, bool HALVED>
struct Vectors {
    static constexpr uint32_t THREADS = Tile::TURNED ? 128 : 32, UNITS = HALVED ? 4 : 8, ROWS_A_PASS = THREADS / UNITS;
    static constexpr uint32_t PASSES = (Tile::TURNED ? 64 : 16) / ROWS_A_PASS;
    static constexpr int TURNS = (Tile::B + 63) / 64;
    const WgmmaParams& p;
    uint32_t row0, n0, n_end;

    __device__ __forceinline__ uint32_t end_row() const { return Tile::TURNED ? min(row0 + Tile::B, p.m) : p.m; }
    __device__ __forceinline__ uint32_t end_col() const {
        return Tile::TURNED ? p.e.cols : min(n_end >> HALVED, p.e.cols);
    }
    // act(which of the thread's, its place in staging, row of x, column of y)
    template <class F>
    __device__ __forceinline__ void each(int turn, F&& act) const {
        const uint32_t thread = threadIdx.x % THREADS, unit = thread % UNITS;
        const uint32_t along = turn % TURNS * 64, across = turn / TURNS * 64;
        const uint32_t col = ((n0 + (Tile::TURNED ? across : along)) >> HALVED) + unit * 8;
#pragma unroll
        for (uint32_t i = 0; i < PASSES; i++) {
            const uint32_t row = i * ROWS_A_PASS + thread / UNITS, of_x = row0 + (Tile::TURNED ? along : across) + row;
            if (of_x < end_row() && col < end_col()) act(i, staged_at<HALVED>(row, unit), of_x, col);
        }
    }
};

// The residual as a thread has it, of a turn, or of two where turns are copied and registers so have numbers: it takes longer
// to come than a turn. The first are asked for before the product where registers are there for them.
template <class Tile>
struct Residual {
    static constexpr int AHEAD = Loops<Tile, ACT_NONE, NoRope>::COPIES > 1 ? 2 : 1;
    static constexpr int EARLY = Tile::RESIDUAL_EARLY < AHEAD ? Tile::RESIDUAL_EARLY : AHEAD;
    uint4 turns[AHEAD][4];

    __device__ __forceinline__ uint4 (&of(int turn))[4] { return turns[turn % AHEAD]; }
    template <class T, bool HALVED>
    __device__ __forceinline__ void ask(const Epilogue& e, const Vectors<Tile, HALVED>& vectors, int turn) {
        static_assert(Vectors<Tile, HALVED>::PASSES <= 4);
        if (e.residual == nullptr || turn >= Tile::HALVES * Vectors<Tile, HALVED>::TURNS) return;
        uint4(&to)[4] = of(turn);
        vectors.each(turn, [&](uint32_t i, uint32_t, uint32_t row, uint32_t col) { to[i] = residual_8<T>(e, row, col); });
    }
    // Those of the turns from `first` to before `last`.
    template <class T, bool HALVED>
    __device__ __forceinline__ void ask(const Epilogue& e, const Vectors<Tile, HALVED>& vectors, int first, int last) {
#pragma unroll
        for (int turn = first; turn < last; turn++) ask<T>(e, vectors, turn);
    }
    __device__ __forceinline__ void store(uint32_t staging, const Vectors<Tile, false>& vectors, int turn) {
        const uint4(&from)[4] = of(turn);
        vectors.each(turn, [&](uint32_t i, uint32_t at, uint32_t, uint32_t) { store_shared(staging + at, from[i]); });
    }
};

// All that follows the sums of a warpgroup: 64 · HALVES rows of w, which are columns of y from n0 on, for rows of x from m0
// on. `columns` are those of the whole tile, these from `first_column` on. In turns of up to 64 rows of x: the residual
// comes into shared memory by rows, goes transposed into the registers that hold the sums, and the result the way back.
template <class T, class Tile, Act ACT>
__device__ __forceinline__ void finish_turned_as(const float (&acc)[Tile::HALVES][Tile::B / 2], const WgmmaParams& p,
                                                 const Residual<Tile>& asked, uint32_t staging, const T* columns,
                                                 const float* factors, uint32_t m0, uint32_t n0, uint32_t first_column,
                                                 uint32_t consumer) {
    constexpr bool HALVED = ACT == ACT_SWIGLU, ADDS = ACT == ACT_NONE;
    using Own = Vectors<Tile, HALVED>;
    // Blocks of 8 rows of x, in all and a turn; matrices of 8 x 8 that go at once, two a block or one after SwiGLU.
    constexpr int BLOCKS = Tile::B / 8, TURN = 8, TOGETHER = HALVED ? 4 : 2, TURNS = Own::TURNS;
    constexpr int COPIES = Loops<Tile, ACT, NoRope>::COPIES, ROUND = Loops<Tile, ACT, NoRope>::BY_TURNS ? TURN : TOGETHER;
    constexpr int ROUNDS = (BLOCKS + ROUND - 1) / ROUND;
    const Epilogue& e = p.e;
    const uint32_t thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, g = lane / 4;
    const Own vectors = {p, m0, n0, 0};
    const bool adds = ADDS && e.residual != nullptr;
    Residual<Tile> residual = asked;
    if constexpr (ADDS) residual.template ask<T>(e, vectors, residual.EARLY, residual.AHEAD);
#pragma unroll(COPIES)
    for (int turn = 0; turn < Tile::HALVES * TURNS; turn++) {
        const int half = turn / TURNS, first = turn % TURNS * TURN;
        const T* biases = columns + first_column + half * 64 + warp * 16 + g;
        const T* scales = biases + Tile::COLUMNS;
        float bias[2] = {0.f, 0.f}, scale[2] = {1.f, 1.f};
        if (e.bias != nullptr) bias[0] = to_f32(biases[0]), bias[1] = to_f32(biases[8]);
        if constexpr (Tile::BEHIND_NORM)
            bias[0] += to_f32(scales[0]), bias[1] += to_f32(scales[8]);
        else if (ADDS && e.scale != nullptr)
            scale[0] = to_f32(scales[0]), scale[1] = to_f32(scales[8]);
        if (turn > 0) consumer_barrier<Tile::CONSUMERS>(consumer);  // the turn before has been taken
        if constexpr (ADDS) {
            if (adds) {
                residual.store(staging, vectors, turn);
                consumer_barrier<Tile::CONSUMERS>(consumer);
                residual.template ask<T>(e, vectors, turn + residual.AHEAD);
            }
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
                    if constexpr (Tile::BEHIND_NORM) {
                        const uint32_t of_x = 8 * (first + i + j / 2) + lane % 4 * 2;
                        const float2 rstd = *reinterpret_cast<const float2*>(factors + of_x);
                        sum = make_float2(fmaf(v[2 * h], rstd.x, bias[h]), fmaf(v[2 * h + 1], rstd.y, bias[h]));
                    }
                    if constexpr (ACT == ACT_GELU) sum = make_float2(gelu_16(sum.x), gelu_16(sum.y));
                    if constexpr (ACT == ACT_RELU) sum = make_float2(relu(sum.x), relu(sum.y));
                }
                if constexpr (ADDS) {
                    const float2 added = unpack2(r[j], T());
                    sum = make_float2(fmaf(sum.x, scale[h], added.x), fmaf(sum.y, scale[h], added.y));
                }
                y[j] = pack2(sum, T());
            }
            stmatrix_x4_trans(at, y);
        }
        consumer_barrier<Tile::CONSUMERS>(consumer);
        if constexpr (Tile::STATS && !Tile::STATS_BY_MMA) {
            // The last turn has fewer rows.
            constexpr int LAST = (8 * (BLOCKS - (TURNS - 1) * TURN) + Own::ROWS_A_PASS - 1) / Own::ROWS_A_PASS;
            const uint32_t unit = thread % Own::UNITS, row = thread / Own::UNITS, at = staging + staged_at<HALVED>(row, unit);
            const uint32_t of_x = m0 + 8 * first + row, col = n0 + half * 64 + unit * 8;
            if (first + TURN <= BLOCKS)
                store_with_stats<T, Own::PASSES>(e, p.m, at, Own::ROWS_A_PASS * 128, of_x, Own::ROWS_A_PASS, vectors.end_row(),
                                                 col);
            else
                store_with_stats<T, LAST>(e, p.m, at, Own::ROWS_A_PASS * 128, of_x, Own::ROWS_A_PASS, vectors.end_row(), col);
        } else {
            RowsOfWarp rows;
            if constexpr (Tile::STATS_BY_MMA) rows.load(staging);
            vectors.each(turn, [&](uint32_t, uint32_t at, uint32_t row, uint32_t col) {
                *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + size_t(row) * e.cols + col) = load_shared(staging + at);
            });
            if constexpr (Tile::STATS_BY_MMA)
                store_stats<T>(rows, e, p.m, m0 + 8 * first, vectors.end_row(), n0 + half * 64);
        }
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
                                                 const Rope& rope, TurnAngles<Tile, Rope>& angles,
                                                 const Residual<Tile>& asked, uint32_t staging, const T* columns,
                                                 const float* factors, uint32_t row0, uint32_t n0, uint32_t n_end) {
    constexpr bool HALVED = ACT == ACT_SWIGLU, ADDS = ACT == ACT_NONE && !Rope::ON;
    using Own = Vectors<Tile, HALVED>;
    static_assert(!Rope::ON || (ACT == ACT_NONE && Tile::B % 16 == 0));
    // Blocks of 8 rows of w; the four matrices of 8 x 8 that go at once are of two blocks, or of two pairs of blocks.
    constexpr int BLOCKS = Tile::B / 8, TURN = 8, TOGETHER = HALVED ? 4 : 2, TURNS = Own::TURNS;
    constexpr int COPIES = Loops<Tile, ACT, Rope>::COPIES, ROUND = Loops<Tile, ACT, Rope>::BY_TURNS ? TURN : TOGETHER;
    constexpr int ROUNDS = (BLOCKS + ROUND - 1) / ROUND;
    const Epilogue& e = p.e;
    const uint32_t lane = threadIdx.x % 32, t = lane % 4;
    const Own vectors = {p, row0, n0, n_end};
    const bool adds = ADDS && e.residual != nullptr;
    // Elements 8 block + 2t and the next of a vector of the tile.
    const auto two_of = [&](const T* from, int block) {
        return unpack2(*reinterpret_cast<const uint32_t*>(from + 8 * block + 2 * t), T());
    };
    Residual<Tile> residual = asked;
    if constexpr (ADDS) residual.template ask<T>(e, vectors, residual.EARLY, residual.AHEAD);
#pragma unroll(COPIES)
    for (int turn = 0; turn < Tile::HALVES * TURNS; turn++) {
        const int half = turn / TURNS, first = turn % TURNS * TURN;
        __syncwarp();  // the turn before has been taken
        if constexpr (ADDS) {
            if (adds) {
                residual.store(staging, vectors, turn);
                __syncwarp();
                residual.template ask<T>(e, vectors, turn + residual.AHEAD);
            }
        }
        float rstd[2] = {1.f, 1.f};
        if constexpr (Tile::BEHIND_NORM) {
            rstd[0] = factors[half * 64 + lane / 4], rstd[1] = factors[half * 64 + lane / 4 + 8];
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
                    float2 a = make_float2(fmaf(v[0], rstd[h], bias[0].x), fmaf(v[1], rstd[h], bias[0].y));
                    float2 b = make_float2(fmaf(v[4], rstd[h], bias[1].x), fmaf(v[5], rstd[h], bias[1].y));
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
            if constexpr (Tile::BEHIND_NORM && !Tile::BEHIND_RMS) {
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const float2 shift = two_of(columns + Tile::COLUMNS, first + i + k);
                    bias[k].x += shift.x, bias[k].y += shift.y;
                }
            } else if (ADDS && !Tile::BEGINS && e.scale != nullptr) {
#pragma unroll
                for (int k = 0; k < 2; k++) scale[k] = two_of(columns + Tile::COLUMNS, first + i + k);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int block = j / 2 * (TOGETHER / 2);
                const float* v = sums + 4 * (i % ROUND + block) + 2 * (j % 2);
                // Two sums of block b; without a norm the factor is 1.
                const auto biased = [&](int b) {
                    const float* from = v + 4 * (b - block);
                    return make_float2(fmaf(from[0], rstd[j % 2], bias[b].x), fmaf(from[1], rstd[j % 2], bias[b].y));
                };
                float2 sum = biased(block);
                if constexpr (HALVED) {
                    const float2 up = biased(block + 1);
                    sum.x = silu_16(sum.x) * up.x, sum.y = silu_16(sum.y) * up.y;
                }
                if constexpr (ACT == ACT_GELU) sum = make_float2(gelu_16(sum.x), gelu_16(sum.y));
                if constexpr (ACT == ACT_RELU) sum = make_float2(relu(sum.x), relu(sum.y));
                if constexpr (ADDS) {
                    const float2 s = scale[j / 2], added = unpack2(r[j], T());
                    sum = make_float2(fmaf(sum.x, s.x, added.x), fmaf(sum.y, s.y, added.y));
                }
                y[j] = pack2(sum, T());
            }
            stmatrix_x4(at, y);
        }
        __syncwarp();
        if constexpr (Rope::ON) {
            if (turn + 1 < Tile::HALVES * TURNS)
                angles.ask(rope, p, row0 + (turn + 1) / TURNS * 64, n0 + (turn + 1) % TURNS * 64,
                           (turn + 1) % TURNS * 64);
            const HeadColumns<T> to(rope, n0 + turn % TURNS * 64 + lane % Own::UNITS * 8);
            vectors.each(turn, [&](uint32_t, uint32_t at, uint32_t row, uint32_t) {
                if (row < to.rows) *reinterpret_cast<uint4*>(to.at + row * to.pitch) = load_shared(staging + at);
            });
            continue;
        }
        if constexpr (Tile::BEGINS) {
            const uint32_t unit = lane % Own::UNITS, of_tile = turn % TURNS * 64 + unit * 8;
#pragma unroll
            for (uint32_t i = 0; i < Own::PASSES; i++) {
                const uint32_t row = i * Own::ROWS_A_PASS + lane / Own::UNITS, of_x = row0 + turn / TURNS * 64 + row;
                store_begun<T>(e, p.m, staging + staged_at<HALVED>(row, unit), columns + Tile::COLUMNS + of_tile, of_x,
                               n0 + of_tile, of_x < p.m && n0 + of_tile < vectors.end_col());
            }
            continue;
        }
        vectors.each(turn, [&](uint32_t, uint32_t at, uint32_t row, uint32_t col) {
            *reinterpret_cast<uint4*>(static_cast<T*>(e.y) + size_t(row) * e.cols + col) = load_shared(staging + at);
        });
    }
    __syncwarp();  // wgmma wants whole warps
}

template <class T, class Tile, Act ACT, class Rope>
__device__ __forceinline__ void finish_grid_as(const float (&acc)[Tile::HALVES][Tile::B / 2], const WgmmaParams& p,
                                               const Rope& rope, TurnAngles<Tile, Rope>& angles, const Residual<Tile>& asked,
                                               uint32_t staging, const T* columns, const float* factors, const Unit& u,
                                               uint32_t n_end, uint32_t consumer) {
    const uint32_t mine = Tile::first_of_a(consumer), warp = threadIdx.x / 32 % 4;
    if constexpr (Tile::TURNED)
        finish_turned_as<T, Tile, ACT>(acc, p, asked, staging, columns, factors, u.m0, u.n0 + mine, mine, consumer);
    else
        finish_direct_as<T, Tile, ACT>(acc, p, rope, angles, asked, staging + warp * (16 * 128), columns,
                                       factors + mine + warp * 16, u.m0 + mine + warp * 16, u.n0, n_end);
}

template <class T, class Tile, class Rope>
__device__ __forceinline__ void finish_grid(const float (&acc)[Tile::HALVES][Tile::B / 2], const WgmmaParams& p,
                                            const Rope& rope, TurnAngles<Tile, Rope>& angles, const Residual<Tile>& asked,
                                            uint32_t staging, const T* columns, const float* factors, const Unit& u,
                                            uint32_t n_end, uint32_t consumer) {
    if constexpr (Tile::BEHIND_RMS && !Rope::ON) {
        finish_grid_as<T, Tile, ACT_SWIGLU>(acc, p, rope, angles, asked, staging, columns, factors, u, n_end, consumer);
    } else if constexpr (Rope::ON || Tile::STATS || Tile::BEGINS) {
        finish_grid_as<T, Tile, ACT_NONE>(acc, p, rope, angles, asked, staging, columns, factors, u, n_end, consumer);
    } else {
        if constexpr (!Tile::BEHIND_NORM) {
            if (p.e.act == ACT_SWIGLU)
                return finish_grid_as<T, Tile, ACT_SWIGLU>(acc, p, rope, angles, asked, staging, columns, factors, u, n_end, consumer);
        }
        if (p.e.act == ACT_GELU)
            finish_grid_as<T, Tile, ACT_GELU>(acc, p, rope, angles, asked, staging, columns, factors, u, n_end, consumer);
        else if (p.e.act == ACT_RELU)
            finish_grid_as<T, Tile, ACT_RELU>(acc, p, rope, angles, asked, staging, columns, factors, u, n_end, consumer);
        else
            finish_grid_as<T, Tile, ACT_NONE>(acc, p, rope, angles, asked, staging, columns, factors, u, n_end, consumer);
    }
}

// Asks the L2 for the residual under this warpgroup's part of the tile, a line a thread.
template <class T, class Tile>
__device__ __forceinline__ void ask_residual_turned(const WgmmaParams& p, uint32_t m0, uint32_t n0) {
    const Epilogue& e = p.e;
    if (e.residual == nullptr) return;
    const uint32_t last_row = min(m0 + Tile::B, p.m);
#pragma unroll 1
    for (uint32_t row = m0 + threadIdx.x % 128; row < last_row; row += 128)
#pragma unroll 1
        for (uint32_t col = n0; col < min(n0 + 64 * Tile::HALVES, e.cols); col += 64)
            if (const T* from = residual_at<T>(e, row, col)) prefetch_l2(from);
}

// What is asked of the residual before the product: its first turns into registers, what else there is into the L2. What is
// turned has none.
template <class T, class Tile, class Rope>
__device__ __forceinline__ Residual<Tile> ask_early(const WgmmaParams& p, uint32_t row0, uint32_t n0, uint32_t n_end) {
    using Own = Vectors<Tile, false>;
    constexpr int EARLY = Residual<Tile>::EARLY;
    Residual<Tile> first = {};
    if constexpr (Rope::ON) return first;
    first.template ask<T>(p.e, Own{p, row0, n0, n_end}, 0, EARLY);
    if constexpr (EARLY >= Tile::HALVES * Own::TURNS) return first;
    if constexpr (Tile::TURNED)
        ask_residual_turned<T, Tile>(p, row0, n0);
    else
        ask_residual<T, Tile>(p, row0, n0);
    return first;
}
