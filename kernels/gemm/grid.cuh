// A tile of wgmma_multicast.cuh, its place in a cluster, and the units of a launch in order. A is the operand that warpgroups
// take 64 rows of at a time, B the other; the letters and numbers of a kernel's name are those of its tile.
#pragma once
#include "common/hopper.cuh"
#include "gemm/wgmma.cuh"

template <bool TURNED_, int CONSUMERS_, int HALVES_, int B_, int STAGES_, int CA_, int CB_, int CK_ = 1,
          bool PINGPONG_ = false>
struct GridTile {
    static constexpr bool TURNED = TURNED_, PINGPONG = PINGPONG_;
    static constexpr bool BEHIND_NORM = false, BEHIND_RMS = false, BEGINS = false;
    static constexpr bool STATS = false, STATS_BY_MMA = false;
    static constexpr int CONSUMERS = CONSUMERS_, HALVES = HALVES_, STAGES = STAGES_, BK = 64;
    static constexpr int SHARING = PINGPONG ? 1 : CONSUMERS;  // warpgroups that multiply a tile
    // Rows of the operand that a warpgroup takes 64 of at a time, and of the other; where those of a consumer begin.
    static constexpr int A = 64 * SHARING * HALVES, B = B_;
    __device__ static constexpr uint32_t first_of_a(uint32_t consumer) { return PINGPONG ? 0 : consumer * 64 * HALVES; }
    static constexpr int CA = CA_, CB = CB_, CK = CK_, CTAS = CA * CB * CK;
    static constexpr int BM = TURNED ? B : A, BN = TURNED ? A : B;
    static constexpr int CM = TURNED ? CB : CA, CN = TURNED ? CA : CB;
    // Turns of a residual for which a thread has registers while it multiplies.
    static constexpr int RESIDUAL_EARLY = HALVES * B <= 128 ? 2 : HALVES * B <= 304 ? 1 : 0;
    static constexpr int A_BYTES = A * BK * 2, B_BYTES = B * BK * 2, STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int THREADS = 128 * (1 + CONSUMERS);
    // Sums of a thread beside which little else has room: the producer gives all it can, and ends go by small steps.
    static constexpr bool MANY_SUMS = HALVES * B > 320;
    static constexpr int PRODUCER_REGISTERS = MANY_SUMS ? 24 : 40;
    static constexpr int CONSUMER_REGISTERS = MANY_SUMS ? 240 : CONSUMERS == 2 ? 232 : 216;
    // Biases and scales of a tile, room for whole vectors; of a warpgroup 64 rows of x and of w of 16 bits on their way out.
    static constexpr int COLUMNS = (BN + 31) / 32 * 32, STAGING_BYTES = 64 * 64 * 2;
    static constexpr int STATIC_BYTES = CONSUMERS * (STAGING_BYTES + 2 * COLUMNS * 2) + 3 * STAGES * 8 + 32;
    static_assert(B % 8 == 0 && HALVES * B <= 384 && CTAS <= 8 && BN <= 256);
    static_assert(!PINGPONG || (CONSUMERS == 2 && CK == 1));
    static_assert(STAGES * STAGE_BYTES + STATIC_BYTES + 1024 <= 227 * 1024);
};

// The same tile behind a norm, LayerNorm or RmsNorm, and of a y whose statistics are wanted, or whose RmsNorm begins.
template <class Tile>
struct BehindNorm : Tile {
    static constexpr bool BEHIND_NORM = true;
    // Statistics of 16 times 64 columns on their way at once.
    static constexpr int PRODUCER_REGISTERS = 56, CONSUMER_REGISTERS = Tile::CONSUMERS == 2 ? 224 : 216;
    static constexpr int FACTOR_BYTES = 2 * (Tile::BM * 4 + 16);
    static_assert(Tile::STAGES * Tile::STAGE_BYTES + Tile::STATIC_BYTES + FACTOR_BYTES + 1024 <= 227 * 1024);
};
template <class Tile>
struct BehindRms : BehindNorm<Tile> {
    static constexpr bool BEHIND_RMS = true;
    static_assert(!Tile::TURNED && Tile::CM == 1);
};
template <class Tile>
struct WithStats : Tile {
    static constexpr bool STATS = true;
    // Where one warpgroup finishes 64 rows: `out` of 249 rows takes 5.35 us, and 5.87 by sums. Where two do, or there are fewer
    // rows, sums are faster: w_2 9.65 for 9.95, a picture's proj 7.95 for 8.5.
    static constexpr bool STATS_BY_MMA = Tile::CONSUMERS == 1 && Tile::B == 64;
    static_assert(Tile::TURNED);
};
template <class Tile>
struct BeginsRms : Tile {
    static constexpr bool BEGINS = true;
    static_assert(!Tile::TURNED && Tile::BN / Tile::CK % 32 == 0);
};

// What a CTA finishes of a tile whose K it shares: B rows of the operand that consumers share, of which the last CTA may have
// less. The sums that come from all CTAs lie where the ring was.
template <class Tile>
struct PartOf : Tile {
    static constexpr int B = Tile::TURNED ? Tile::B / Tile::CK : (Tile::B + 16 * Tile::CK - 1) / (16 * Tile::CK) * 16;
    static constexpr int BN = Tile::TURNED ? Tile::BN : B;
    static constexpr int COLUMNS = (BN + 31) / 32 * 32;
    static constexpr int VECTORS = Tile::HALVES * B / 8;
    static_assert(!Tile::TURNED || Tile::B % (8 * Tile::CK) == 0);
    static_assert(Tile::CK * VECTORS * Tile::CONSUMERS * 128 * 16 <= Tile::STAGES * Tile::STAGE_BYTES);
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
    // Whether this CTA has a unit that many further on.
    __device__ __forceinline__ bool more_after(uint32_t some) const { return unit + some * (gridDim.x / Tile::CTAS) < units; }
    __device__ __forceinline__ void next() { unit += gridDim.x / Tile::CTAS; }
    __device__ __forceinline__ Unit get(const WgmmaParams& p, const Place<Tile>& place) const {
        constexpr uint32_t ROWS = Tile::BM * Tile::CM, COLS = Tile::BN * Tile::CN;
        constexpr uint32_t GROUP = 2048 / ROWS > 0 ? 2048 / ROWS : 1;
        // Each division is 25 instructions, and most are not needed.
        uint32_t id = unit, split = 0, splits = 1;
        if constexpr (Tile::CK > 1)
            split = place.k, splits = Tile::CK;
        else if (p.splits > 1)
            id = unit / p.splits, split = unit % p.splits, splits = p.splits;
        uint32_t top = 0, rest = id;
        if (rows > GROUP) top = id / (GROUP * cols) * GROUP, rest = id % (GROUP * cols);
        const uint32_t height = min(GROUP, rows - top);
        const uint32_t row = top + rest % height, col = rest / height;
        const uint32_t m = Tile::TURNED ? place.b : place.a, n = Tile::TURNED ? place.a : place.b;
        // Never empty while splits <= steps.
        Unit u = {row * ROWS + m * Tile::BM, col * COLS + n * Tile::BN, id * Tile::CTAS + place.rank(place.a, place.b), split, 0,
                  steps};
        if (Tile::CK > 1 || p.splits > 1) u.first = split * steps / splits, u.last = (split + 1) * steps / splits;
        return u;
    }
    // Steps of all that this CTA has to do.
    __device__ __forceinline__ uint32_t all_steps(const WgmmaParams& p, const Place<Tile>& place) const {
        if constexpr (Tile::CK > 1) return (place.k + 1) * steps / Tile::CK - place.k * steps / Tile::CK;
        const uint32_t apart = gridDim.x / Tile::CTAS;
        if (p.splits == 1) return unit < units ? ((units - 1 - unit) / apart + 1) * steps : 0;
        uint32_t sum = 0;
#pragma unroll 1
        for (uint32_t u = unit; u < units; u += apart) {
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

// Behind a norm: the factors of the rows of two tiles in turn, and barriers of tile t at t · 8: `full` when all are there,
// `empty` when every warp that finishes the tile has read them; behind an RmsNorm, those of all CTAs of the cluster.
template <class Tile>
struct FactorRing {
    float (&rows)[2][Tile::BEHIND_NORM ? Tile::BM : 1];
    uint32_t full, empty;
};
