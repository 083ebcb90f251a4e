// gemm_multicast:  y = act(x wᵀ + b) or r + s · (x wᵀ + b)      x [M, K], w [N, K], y [M, cols] of T16; K % 8 == 0 and
//                  cols % 8 == 0, any M; sums in f32, one rounding; K may be split through memory (tiles of up to 128 rows of A)
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
//              CTAs of a place send one another their sums, each gets those of its part of the columns (turned: of the rows
//              of x), and finishes it.
// Who fills slot s of the ring with an operand: the CTA s % CA, or s % CB, of those that share it. It waits until all of
// them have given the slot back; nobody gives back what nobody will fill, so no CTA is written to after its end. Every CTA
// says how much it expects as soon as the phase before has come.
// Moves 2·(M·K + N·K + M·cols) bytes at least, 2·M·N·K flops. Goal: as cuBLAS (10.5 us at 128 x 3584 x 3584, 15.7 at
// 1025 x 1024 x 4096, 113 at 13325 x 3072 x 1024).
// Tiles, places and units are in grid.cuh, what follows the sums of a tile in grid_ends.cuh; the kernels are named in
// wgmma_multicast.cu, those beside a norm in wgmma_multicast_norm.cu.
#pragma once
#include "gemm/grid.cuh"
#include "gemm/grid_ends.cuh"

struct WgmmaRopeParams {
    WgmmaParams g;  // of its epilogue the bias; cols = N
    RopeEpilogue r;
};

// An operand of a step to all CTAs of `to`, where each barrier counts what arrives; `policy`, if it is w.
template <int CTAS, class... Policy>
__device__ __forceinline__ void send(uint32_t to, const TensorMap& map, uint32_t barrier, uint32_t step, uint32_t row,
                                     uint16_t ctas, Policy... policy) {
    if constexpr (CTAS == 1)
        tma_load_2d(to, map, barrier, step * 64, row, policy...);
    else
        tma_load_2d_to_cluster(to, map, barrier, step * 64, row, ctas, policy...);
}

// One thread. The weights of the first stages are asked for before the wait for the kernels that made x, and where the first
// tile is has been found by then, here and below: those divisions, 100 instructions that no cache has, take half a us.
template <class Tile>
__device__ __forceinline__ void produce_grid(const WgmmaParams& p, const GridRing& ring) {
    constexpr bool TURNED = Tile::TURNED;
    const Place<Tile> place;
    const uint16_t with_a = place.with_a(), with_b = place.with_b();
    const auto fill_a = [&](uint32_t slot, uint32_t step, const Unit& u) {
        if (!place.fills_a(slot)) return;
        const uint32_t to = ring.slots + slot * Tile::STAGE_BYTES, barrier = ring.full + slot * 8;
        if constexpr (TURNED)
            send<Tile::CB>(to, p.w, barrier, step, u.n0, with_a, p.policy);
        else
            send<Tile::CB>(to, p.x, barrier, step, u.m0, with_a);
    };
    const auto fill_b = [&](uint32_t slot, uint32_t step, const Unit& u) {
        if (!place.fills_b(slot)) return;
        const uint32_t to = ring.slots + slot * Tile::STAGE_BYTES + Tile::A_BYTES, barrier = ring.full + slot * 8;
        if constexpr (TURNED)
            send<Tile::CA>(to, p.x, barrier, step, u.m0, with_b);
        else
            send<Tile::CA>(to, p.w, barrier, step, u.n0, with_b, p.policy);
    };
    const auto fill_w = [&](uint32_t slot, uint32_t step, const Unit& u) {
        if constexpr (TURNED)
            fill_a(slot, step, u);
        else
            fill_b(slot, step, u);
    };
    const auto fill_x = [&](uint32_t slot, uint32_t step, const Unit& u) {
        if constexpr (TURNED)
            fill_b(slot, step, u);
        else
            fill_a(slot, step, u);
    };
    GridSchedule<Tile> schedule(p);
    Unit u = {};
    if (schedule.more()) u = schedule.get(p, place);
    // Of slots that nobody has filled: there is nothing to wait for.
    const uint32_t early = min(u.last - u.first, uint32_t(Tile::STAGES));
    for (uint32_t i = 0; i < early; i++) {
        mbarrier_expect_tx(ring.full + i * 8, Tile::STAGE_BYTES);
        fill_w(i, u.first + i, u);
    }
    pdl_wait();
    for (uint32_t i = 0; i < early; i++) fill_x(i, u.first + i, u);
    pdl_trigger();
    Cursor<Tile> at;
    at.skip(early);
    for (uint32_t step = u.first + early; schedule.more();) {
        for (; step < u.last; step++, at.next()) {
            mbarrier_wait(ring.full + at.stage * 8, at.phase ^ 1);
            mbarrier_expect_tx(ring.full + at.stage * 8, Tile::STAGE_BYTES);
            if (place.fills_a(at.stage)) {
                mbarrier_wait(ring.empty_a + at.stage * 8, at.phase ^ 1);
                fill_a(at.stage, step, u);
            }
            if (place.fills_b(at.stage)) {
                mbarrier_wait(ring.empty_b + at.stage * 8, at.phase ^ 1);
                fill_b(at.stage, step, u);
            }
        }
        schedule.next();
        if (schedule.more()) u = schedule.get(p, place), step = u.first;
    }
}

// Three warps: the factors of the rows of every tile, up to two tiles ahead of their end, where nobody waits for them.
template <class Tile>
__device__ __forceinline__ void produce_factors(const WgmmaParams& p, const FactorRing<Tile>& factors) {
    const Place<Tile> place;
    WaitOnce wait_once;
    uint32_t tile = 0;
    for (GridSchedule<Tile> schedule(p); schedule.more(); schedule.next(), tile++) {
        const uint32_t m0 = schedule.get(p, place).m0;
        wait_once();
        mbarrier_wait(factors.empty + tile % 2 * 8, tile / 2 % 2 ^ 1);
#pragma unroll 1
        for (uint32_t row = threadIdx.x - 32; row < Tile::BM; row += 96)
            factors.rows[tile % 2][row] =
                m0 + row < p.m ? rstd_of(p.e.stats + m0 + row, p.m, p.k, p.e.eps) : 0.f;
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(factors.full + tile % 2 * 8);
    }
}

// The same behind an RmsNorm, by two warps. The CTAs of a cluster have the same rows of x: each adds up the squares of its
// share of them and sends the factors to all. (Where each adds up all, 57 KB for 128 rows of 3584, qkv takes 5 us more.)
template <class Tile>
__device__ __forceinline__ void produce_rms_factors(const WgmmaParams& p, const FactorRing<Tile>& factors) {
    constexpr uint32_t THREADS = 64, ROWS = Tile::BM / Tile::CTAS, LANES = THREADS / ROWS;
    static_assert(ROWS * LANES == THREADS && LANES <= 32);
    const Place<Tile> place;
    const uint32_t thread = threadIdx.x - 32, lane = thread % LANES, parts = p.k / SQUARES_COLUMNS;
    if (thread >= THREADS) return;
    const uint32_t row = cluster_rank() * ROWS + thread / LANES;
    WaitOnce wait_once;
    uint32_t tile = 0;
    for (GridSchedule<Tile> schedule(p); schedule.more(); schedule.next(), tile++) {
        const uint32_t turn = tile % 2, of_x = schedule.get(p, place).m0 + row;
        wait_once();
        mbarrier_wait(factors.empty + turn * 8, tile / 2 % 2 ^ 1);
        if (thread == 0) mbarrier_expect_tx(factors.full + turn * 8, Tile::BM * 4);
        float sum = 0.f;
        if (of_x < p.m) {
            const float* squares = p.e.squares + of_x;
#pragma unroll 28
            for (uint32_t i = lane; i < parts; i += LANES) sum += __ldcg(squares + size_t(i) * p.m);
        }
        __syncwarp();
#pragma unroll
        for (uint32_t other = 1; other < LANES; other *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
        const float factor = rsqrtf(__fdividef(sum, float(p.k)) + p.e.eps);
        const uint32_t to = smem_address(&factors.rows[turn][row]);
#pragma unroll
        for (uint32_t cta = lane; cta < Tile::CTAS; cta += LANES)
            cluster_store(cluster_address(to, cta), factor, cluster_address(factors.full + turn * 8, cta));
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

// A tile as join_splits sees it.
template <class Tile>
struct Joined {
    static constexpr int BN = Tile::B, CONSUMERS = Tile::CONSUMERS;
    static constexpr int JOIN_BATCH = divisor_up_to(8, BN / 8);
};

// `mine`: the columns (turned: rows of x) of this CTA's part, of its consumer's rows, of the sums of all CTAs that share the
// tile's K, added in the order of K. What one thread holds of them the same thread of the others gets, 16 bytes at a time.
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
                                             const FactorRing<Tile>& factors, uint32_t consumer, uint32_t staging,
                                             T* columns) {
    using Part = typename Finished<Tile>::Part;
    const uint32_t first_of_a = Tile::first_of_a(consumer);
    const uint64_t a0 = wgmma_descriptor(ring.slots + first_of_a * 128);
    const uint64_t b0 = wgmma_descriptor(ring.slots + Tile::A_BYTES);
    const uint32_t warp = threadIdx.x / 32 % 4;
    const Place<Tile> place;
    Cursor<Tile> at;
    GridSchedule<Tile> schedule(p);
    // Steps after which a slot is filled again.
    uint32_t refilled = schedule.all_steps(p, place);
    refilled -= min(refilled, uint32_t(Tile::STAGES));
    const auto done_with = [&](uint32_t slot) {
        if (refilled > 0) refilled--, give_back<Tile>(place, ring, slot);
    };
    // The next tile is the other consumer's.
    uint32_t tile = 0;
    WaitOnce wait_once;
    const auto skip_tile = [&] {
        tile++;
        at.skip(schedule.steps);
        refilled -= min(refilled, schedule.steps);
        schedule.next();
    };
    if (Tile::PINGPONG && consumer == 1) {
        pass_turn(consumer);
        skip_tile();
    }
    for (; schedule.more(); schedule.next(), tile++) {
        const uint32_t of_tile = tile;
        Unit u = schedule.get(p, place);
        uint32_t n_end = u.n0 + Tile::BN;
        if constexpr (Tile::CK > 1 && Tile::TURNED) {
            u.m0 += place.k * Part::B;
        } else if constexpr (Tile::CK > 1) {
            u.n0 += place.k * Part::BN;
            n_end = min(n_end, u.n0 + Part::BN);
        }
        const Columns<T, Part> ahead(p.e, p.n, u.n0);
        wait_once();
        const uint32_t row0 = Tile::TURNED ? u.m0 : u.m0 + first_of_a + warp * 16;
        const uint32_t n0 = Tile::TURNED ? u.n0 + first_of_a : u.n0;
        const Residual<Part> asked = ask_early<T, Part, Rope>(p, row0, n0, n_end);
        TurnAngles<Part, Rope> angles;
        angles.ask(rope, p, row0, n0, 0);

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
            if (schedule.more_after(1)) pass_turn(consumer);
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
            if constexpr (Tile::BEHIND_RMS) cluster_mbarrier_wait(factors.full, 0);
            consumer_barrier<Tile::CONSUMERS>(consumer);
            return finish_grid<T, Part>(mine, p, rope, angles, asked, staging, columns, factors.rows[0], u, n_end, consumer);
        } else {
            if constexpr (Tile::HALVES == 1 && !Tile::BEHIND_NORM) {
                if (p.splits > 1 && !join_splits<Joined<Tile>>(acc[0], p, u, consumer)) continue;
            }
            const uint32_t turn = of_tile % 2;
            if constexpr (Tile::BEHIND_RMS)
                cluster_mbarrier_wait(factors.full + turn * 8, of_tile / 2 % 2);
            else if constexpr (Tile::BEHIND_NORM)
                mbarrier_wait(factors.full + turn * 8, of_tile / 2 % 2);
            consumer_barrier<Tile::CONSUMERS>(consumer);
            finish_grid<T, Tile>(acc, p, rope, angles, asked, staging, columns, factors.rows[turn], u, n_end, consumer);
            if constexpr (Tile::BEHIND_RMS) {
                // Nobody gives back what nobody will fill: the other CTA may have ended.
                const uint32_t lane = threadIdx.x % 32;
                if (lane < Tile::CTAS && schedule.more_after(2))
                    mbarrier_arrive_cluster(cluster_address(factors.empty + turn * 8, lane));
            } else if constexpr (Tile::BEHIND_NORM) {
                if (threadIdx.x % 32 == 0) mbarrier_arrive(factors.empty + turn * 8);
            }
        }
    }
}

// Any grid of whole clusters. Dynamic shared memory: STAGES · STAGE_BYTES + 1024.
template <class T, class Tile, class Rope>
__device__ __forceinline__ void multiply(const WgmmaParams& p, const Rope& rope) {
    extern __shared__ uint4 dynamic[];
    // In one piece, so that nothing is lost between arrays: some rings do not leave a byte.
    __shared__ struct alignas(128) {
        uint4 staging[Tile::CONSUMERS][Tile::STAGING_BYTES / 16];
        T columns[Tile::CONSUMERS][2 * Tile::COLUMNS];
        uint64_t full[Tile::STAGES], empty_a[Tile::STAGES], empty_b[Tile::STAGES];
        uint64_t joined[Tile::CONSUMERS], factors_full[2], factors_empty[2];
        float factors[2][Tile::BEHIND_NORM ? Tile::BM : 1];
    } own;
    // The same places in all CTAs, which run the same kernel.
    const GridRing ring = {(smem_address(dynamic) + 1023) & ~1023u, smem_address(own.full), smem_address(own.empty_a),
                           smem_address(own.empty_b), smem_address(own.joined)};
    const FactorRing<Tile> factors = {own.factors, smem_address(own.factors_full), smem_address(own.factors_empty)};
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        prefetch_tensor_map(p.x);
        prefetch_tensor_map(p.w);
        for (int s = 0; s < Tile::STAGES; s++) {
            mbarrier_init(ring.full + s * 8, 1);
            mbarrier_init(ring.empty_a + s * 8, Tile::SHARING * Tile::CB);
            mbarrier_init(ring.empty_b + s * 8, Tile::SHARING * Tile::CA);
        }
        for (int t = 0; Tile::BEHIND_NORM && t < 2; t++) {
            mbarrier_init(factors.full + t * 8, Tile::BEHIND_RMS ? 1 : 3);
            mbarrier_init(factors.empty + t * 8, 4 * Tile::SHARING * (Tile::BEHIND_RMS ? Tile::CTAS : 1));
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
        if (threadIdx.x >= 32) {
            if constexpr (Tile::BEHIND_RMS)
                produce_rms_factors<Tile>(p, factors);
            else if constexpr (Tile::BEHIND_NORM)
                produce_factors<Tile>(p, factors);
        } else if (elect_one()) {
            produce_grid<Tile>(p, ring);
        }
        return;
    }
    take_registers<Tile::CONSUMER_REGISTERS>();
    const uint32_t consumer = warpgroup - 1;
    consume_grid<T, Tile>(p, rope, ring, factors, consumer, smem_address(own.staging[consumer]), own.columns[consumer]);
}

template <class T, class Tile>
__device__ __forceinline__ void gemm_multicast(const WgmmaParams& p) {
    multiply<T, Tile>(p, NoRope());
}

template <class T, class Tile>
__device__ __forceinline__ void gemm_multicast_rope(const WgmmaRopeParams& p) {
    multiply<T, Tile>(p.g, p.r);
}
