// archs: 90a
// flash_wgmma at D = 64:  out_i = Σ_j p_ij v_j,  p_i = softmax_j(scale·q_i·k_j + bias_j)    as prefill.cu, on TMA and wgmma
// q, k, v, out of T16 as AttentionParams addresses them; bias f32 [H, T]; any T and S, masks full, causal, chunk; scale > 0
//
// The frame is that of wgmma.cuh; one to three consumers. Here exp2 takes as long as the products (1024 clocks for 128 x
// 128 pairs), and either slows the other, for both live off the registers' ports (LADDER.md). So nothing else is done for
// every score:
// - No maxima. Probabilities refer to m, which need not be the largest score: p = exp2(f·(s - m) - SLACK), f = scale·log2 e.
//   m moves, and O shrinks, only where a p comes to 2 or more, which is one bit of it: where a score is SLACK + 1 above m
//   (in log2). Then that step is made again out of its scores, `careful`. The first step of a work finds its maxima.
// - No sums. V has 8 more columns, of ones, so l is a column of O: the sum of the rounded p, which is what O is made of.
// A picture has 1025 rows, and the last of them would be a tile of its own: 144 of 128 rows for 132 SMs, with nine blocks of
// keys. `_apart` has 128 tiles with eight: the last key is a step of 16 more beside the first products and the last, and the
// last query is attended by three warps that have nothing else to do, each CTA's against as many keys as it has rows.
// Consumers take turns: they ask one after the other.
// 256 flops per head and (query, key) pair. Goal: vision 1.2 x cuDNN.
#include "attention/wgmma.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

// Room for the scores of a row above the first of its maxima, in log2; below, what is 2^-(126 - SLACK) of it is lost. f16
// has no exponents to spare.
template <class T>
constexpr float SLACK = IsBf16<T>::value ? 20 : 0;
// Up to here (in log2) an offset is rounded by 2^-14 at most; beyond, every step is a careful one.
constexpr float FAR = 1024;
// Bit 14 of a positive 16-bit number of either type, in both halves of a word: it is 2 or more, or not a number.
constexpr uint32_t TWO_OR_MORE = 0x40004000;

// With PAIR: thread i of both CTAs holds parts of the same two rows. It sends the row that the other CTA finishes, and adds
// what it gets to the row of its own. Leaves the sums in y and returns l. Where a CTA has seen no key m is -inf, and sums
// and l are 0.
template <class F>
__device__ __forceinline__ float trade_rows(const Shared& s, uint32_t consumer, float f, const float (&o)[F::D / 2 + 4],
                                            const float (&m)[2], float (&y)[F::D / 4]) {
    constexpr int VECTORS = F::D / 16;
    const float l[2] = {o[F::D / 2], o[F::D / 2 + 2]};
    const uint32_t thread = threadIdx.x % 128, other = blockIdx.x % 2 ^ 1;
    const uint32_t sums = s.traded + consumer * F::TRADE_BYTES + thread * 16;
    const uint32_t reference = s.traded + consumer * F::TRADE_BYTES + VECTORS * 128 * 16 + thread * 8;
    const uint32_t full = s.traded_full + consumer * 8, barrier = cluster_address(full, other);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const float* z = o + 8 * v;
        const float first[4] = {z[0], z[1], z[4], z[5]}, second[4] = {z[2], z[3], z[6], z[7]};
        float sent[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sent[i] = other ? second[i] : first[i];
            y[4 * v + i] = other ? first[i] : second[i];
        }
        cluster_store(cluster_address(sums + v * 128 * 16, other), sent[0], sent[1], sent[2], sent[3], barrier);
    }
    cluster_store(cluster_address(reference, other), other ? m[1] : m[0], other ? l[1] : l[0], barrier);
    cluster_mbarrier_wait(full, 0);
    const float mine = other ? m[0] : m[1], got = shared_float(reference), top = fmaxf(mine, got);
    const float at = top == -INFINITY ? 0.f : top;
    const float shrink = exp2_approx((mine - at) * f), grow = exp2_approx((got - at) * f);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float z[4];
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(z[0]), "=f"(z[1]), "=f"(z[2]), "=f"(z[3])
                     : "r"(sums + v * 128 * 16));
#pragma unroll
        for (int i = 0; i < 4; i++) y[4 * v + i] = y[4 * v + i] * shrink + z[i] * grow;
    }
    return (other ? l[0] : l[1]) * shrink + shared_float(reference + 4) * grow;
}

// Rows of a sequence, 64 columns of one head.
template <class T>
struct RowsOfHead {
    const T* first;
    uint32_t pitch;

    __device__ __forceinline__ const T* row(int at) const { return first + size_t(at) * pitch; }
};
template <class T>
__device__ __forceinline__ RowsOfHead<T> queries_of(const AttentionParams& p, const Work& w) {
    return {static_cast<const T*>(p.q) + size_t(w.seq) * p.rows * p.q_row + w.head * 64, p.q_row};
}
template <class T>
__device__ __forceinline__ RowsOfHead<T> keys_of(const AttentionParams& p, const void* k_or_v, const Work& w) {
    const size_t head = w.head / int(p.group) * p.kv_head;
    return {static_cast<const T*>(k_or_v) + size_t(w.seq) * p.rows * p.kv_row + head, p.kv_row};
}
__device__ __forceinline__ uint4 load_8(const void* from) { return __ldcg(static_cast<const uint4*>(from)); }

// m, l and O of one query over a part of its keys: lanes 8 apart have the same 8 columns of O. f = scale · log2 e.
struct PartOfRow {
    float m, l, o[8];

    // Refers to `top` from now on, which is m or more.
    __device__ __forceinline__ void refer(float top, float f) {
        const float shrink = exp2_approx((m - (top == -INFINITY ? 0.f : top)) * f);
        m = top, l *= shrink;
#pragma unroll
        for (int i = 0; i < 8; i++) o[i] *= shrink;
    }
    // The four parts of a warp become one.
    __device__ __forceinline__ void join(float f) {
        refer(warp_max(m), f);
#pragma unroll
        for (int other = 8; other < 32; other *= 2) {
            l += __shfl_xor_sync(0xffffffffu, l, other);
#pragma unroll
            for (int i = 0; i < 8; i++) o[i] += __shfl_xor_sync(0xffffffffu, o[i], other);
        }
    }
};

// Eight lanes take a key together, twelve such groups as many keys as a tile has rows, in batches. The warps of all CTAs of a head
// leave their parts in memory, and the last to come adds them up in their order.
template <class T, class F>
__device__ __forceinline__ void attend_last_row(const FlashParams& params) {
    constexpr int GROUPS = 12, BATCH = 4, PARTS = 12;
    const AttentionParams& p = params.a;
    const Extent extent = extent_of_tiles<F>(p);
    const Work w = Schedule<F>(params, extent).get(params, extent);
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32) - 1, columns = lane % 8 * 8, last = int(p.rows) - 1;
    const int end = w.m0 + F::BM == last ? last + 1 : w.m0 + F::BM;
    const int parts = int(gridDim.x) * 3, mine = int(blockIdx.x) * 3 + warp, head = w.seq * int(gridDim.y) + w.head;
    float* const sums = p.partial + size_t(head) * parts * 64;
    float2* const weights = reinterpret_cast<float2*>(p.partial + size_t(gridDim.y * gridDim.z) * parts * 64) + head * parts;
    const RowsOfHead<T> keys = keys_of<T>(p, p.k, w), values = keys_of<T>(p, p.v, w);
    const float f = p.scale * LOG2E;
    pdl_wait();
    pdl_trigger();

    const uint4 query = load_8(queries_of<T>(p, w).row(last) + columns);
    PartOfRow part = {-INFINITY, 0.f, {}};
#pragma unroll 1
    for (int first = w.m0; first < end; first += GROUPS * BATCH) {
        const int j0 = first + warp * 4 + lane / 8;
        uint4 k[BATCH], v[BATCH];
        float s[BATCH], top = part.m;
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int j = min(j0 + i * GROUPS, last);
            k[i] = load_8(keys.row(j) + columns), v[i] = load_8(values.row(j) + columns);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const Float8 q = unpack<T>(query), key = unpack<T>(k[i]);
            s[i] = 0.f;
#pragma unroll
            for (int c = 0; c < 8; c++) s[i] = fmaf(q.v[c], key.v[c], s[i]);
#pragma unroll
            for (int other = 1; other < 8; other *= 2) s[i] += __shfl_xor_sync(0xffffffffu, s[i], other);
            if (j0 + i * GROUPS >= end) s[i] = -INFINITY;
            top = fmaxf(top, s[i]);
        }
        part.refer(top, f);
        const float zero = top == -INFINITY ? 0.f : top;
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const Float8 value = unpack<T>(v[i]);
            const float probability = exp2_approx((s[i] - zero) * f);
            part.l += probability;
#pragma unroll
            for (int c = 0; c < 8; c++) part.o[c] = fmaf(probability, value.v[c], part.o[c]);
        }
    }
    part.join(f);

    if (lane < 8) {
#pragma unroll
        for (int i = 0; i < 8; i += 4)
            *reinterpret_cast<float4*>(sums + mine * 64 + columns + i) =
                make_float4(part.o[i], part.o[i + 1], part.o[i + 2], part.o[i + 3]);
        if (lane == 0) weights[mine] = make_float2(part.m, part.l);
    }
    __threadfence();
    __syncwarp();
    uint32_t before = 0;
    if (lane == 0) before = atomicAdd(p.counters + head, 1u);
    if (__shfl_sync(0xffffffffu, before, 0) + 1 < uint32_t(parts)) return;
    __threadfence();
    if (lane == 0) p.counters[head] = 0;

    // A lane has two columns of O, and of so many parts at a time the weight of one.
    float m = -INFINITY, l = 0.f;
    float2 o = {};
    for (int i = lane; i < parts; i += 32) m = fmaxf(m, __ldcg(weights + i).x);
    m = warp_max(m);
    const float zero = m == -INFINITY ? 0.f : m;
#pragma unroll 1
    for (int i0 = 0; i0 < parts; i0 += PARTS) {
        float2 weight = make_float2(-INFINITY, 0.f), sum[PARTS];
        if (lane < PARTS && i0 + lane < parts) weight = __ldcg(weights + i0 + lane);
#pragma unroll
        for (int i = 0; i < PARTS; i++)
            sum[i] = __ldcg(reinterpret_cast<const float2*>(sums + min(i0 + i, parts - 1) * 64) + lane);
        const float shrink = exp2_approx((weight.x - zero) * f);
        l = fmaf(weight.y, shrink, l);
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const float of_part = __shfl_sync(0xffffffffu, shrink, i);
            o.x = fmaf(sum[i].x, of_part, o.x), o.y = fmaf(sum[i].y, of_part, o.y);
        }
    }
    l = warp_sum(l);
    const float inv = l > 0.f ? 1.f / l : 0.f;
    T* out = static_cast<T*>(p.out) + ((size_t(w.seq) * p.rows + last) * p.heads + w.head) * 64 + 2 * lane;
    *reinterpret_cast<uint32_t*>(out) = pack2<T>(o.x * inv, o.y * inv);
}

// One warpgroup: 64 rows of every work.
template <class T, class F>
__device__ __forceinline__ void consume(const FlashParams& params, const Shared& s, uint32_t consumer) {
    constexpr int BN = F::BN, D = F::D;
    const AttentionParams& p = params.a;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, g = lane / 4, t = lane % 4;
    const float f = p.scale * LOG2E;
    const uint64_t q0 = wgmma_descriptor(s.q + consumer * F::Q_BYTES), k0 = wgmma_descriptor(s.ring);
    const uint64_t ones = wgmma_descriptor_of_16(s.ones), bias0 = wgmma_descriptor_of_16(s.bias);
    const Extent extent = extent_of_tiles<F>(p);
    Cursor<F::STAGES> at;
    Cursor<F::BIAS_STAGES> bias_at;
    uint32_t q_phase = 0;
    WaitOnce wait_once;
    if (consumer == F::CONSUMERS - 1) pass_turn<F>(consumer);  // the first begins

    for (Schedule<F> schedule(params, extent); schedule.more(); schedule.next()) {
        const Work w = schedule.get(params, extent);
        const Extent& e = w.e;
        const int row0 = w.m0 + int(consumer) * 64, row = row0 + int(warp * 16 + g);  // and row + 8
        float o[D / 2 + 4] = {}, m[2] = {-INFINITY, -INFINITY};
        // Keys that all 64 rows see, and those that these two see.
        const int i0 = e.pos + row0, i1 = e.pos + min(row0 + 64, e.valid) - 1;
        const int all_begin = first_key(p, i1), all_end = end_key(p, i0, e.keys);
        const int begin[2] = {first_key(p, e.pos + row), first_key(p, e.pos + row + 8)};
        const int end[2] = {end_key(p, e.pos + row, e.keys), end_key(p, e.pos + row + 8, e.keys)};
        wait_once();
        if (w.blocks > 0) {
            mbarrier_wait(s.q_full, q_phase);
            q_phase ^= 1;
        }
        if (!F::APART && w.blocks > 0 && row0 >= e.valid) {
            barrier_sync<128>(STEP_BARRIER + consumer);
            release(s.q_empty);
            stand_by<F>(s, at, bias_at, w.blocks, consumer);
        } else if (w.blocks > 0) {
            if (F::RAGGED && row0 + 64 > e.valid)
                clear_rows<F, 64>(s.q + consumer * F::Q_BYTES, e.valid - row0, consumer);
            float offset[2];  // f·m + SLACK
            bool far;

            const auto await = [&] { mbarrier_wait(s.full + at.stage * 8, at.phase); };
            const auto await_bias = [&] {
                if constexpr (F::BIAS) mbarrier_wait(s.bias_full + bias_at.stage * 8, bias_at.phase);
            };
            const auto release_bias = [&] {
                if constexpr (F::BIAS) {
                    release(s.bias_empty + bias_at.stage * 8);
                    bias_at.next();
                }
            };
            float x[BN / 2];
            // P of one tile is made while that of the last is an operand.
            uint32_t probability[2][BN / 4];

            const auto ask_scores = [&](uint32_t stage) {
                ask_for_scores<T, F>(x, q0, k0 + stage * (F::STAGE_BYTES >> 4), ones, bias0, bias_at.stage);
            };
            const auto ask_output = [&](const uint32_t (&a)[BN / 4]) {
                const uint32_t v = s.ring + at.stage * F::STAGE_BYTES;
                const uint64_t v0 = wgmma_descriptor_rows_of_k(v, s.sums - v);
                constexpr uint64_t NEXT = 128 - (uint64_t(128) << 16);  // 16 rows further the slab of ones is the same
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < BN / 16; i++)
                    wgmma_from_registers<T, D + 8>(o, a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3], v0 + i * NEXT);
                wgmma_commit();
            };
            const auto mask = [&](int j0) {
                if constexpr (!F::APART) mask_unseen(x, all_begin, all_end, begin, end, j0, t);
            };
            // P by the references as they are; what comes to 2 or more shows in the bits that it returns.
            const auto quick = [&](uint32_t (&next)[BN / 4]) {
                uint32_t bits = 0;
#pragma unroll
                for (int i = 0; i < BN / 4; i++) {
                    const float c = offset[i % 2];
                    next[i] = pack2<T>(exp2_approx(fmaf(x[2 * i], f, -c)), exp2_approx(fmaf(x[2 * i + 1], f, -c)));
                    bits |= next[i];
                }
                return bits;
            };
            // References become the maxima of this tile and all before. Returns how O shrinks, for both rows.
            const auto refer = [&] {
                float shrink[2];
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float high = m[r];
#pragma unroll
                    for (int n = 2 * r; n < BN / 2; n += 4) high = fmaxf(high, fmaxf(x[n], x[n + 1]));
                    const float top = quad_max(high);
                    shrink[r] = exp2_approx((m[r] - (top == -INFINITY ? 0.f : top)) * f);
                    m[r] = top, offset[r] = top * f + SLACK<T>;  // of a row that has seen -inf alone: too large again
                }
                far = fmaxf(fabsf(offset[0]), fabsf(offset[1])) > FAR;
                return make_float2(shrink[0], shrink[1]);
            };
            // P with m subtracted first: f·m may be rounded by more than there are numbers.
            const auto exact = [&](uint32_t (&next)[BN / 4]) {
                const float zero[2] = {m[0] == -INFINITY ? 0.f : m[0], m[1] == -INFINITY ? 0.f : m[1]};
#pragma unroll
                for (int i = 0; i < BN / 4; i++)
                    next[i] = pack2<T>(exp2_approx(fmaf(x[2 * i] - zero[i % 2], f, -SLACK<T>)),
                                       exp2_approx(fmaf(x[2 * i + 1] - zero[i % 2], f, -SLACK<T>)));
            };
            // P by the maxima so far; no product may be under way.
            const auto careful = [&](uint32_t (&next)[BN / 4]) {
                const float2 shrink = refer();
#pragma unroll
                for (int n = 0; n < D / 2 + 4; n++) o[n] *= n / 2 % 2 ? shrink.y : shrink.x;
                exact(next);
            };
            // S of tile i and P·V of the one before, out of `last`; then P, into `next`.
            const auto step = [&](int i, const uint32_t (&last)[BN / 4], uint32_t (&next)[BN / 4]) {
                const uint32_t k_stage = at.stage;
                at.next();
                await_bias();
                take_turn<F>(consumer);
                ask_scores(k_stage);
                await();
                const uint32_t v_stage = at.stage;
                ask_output(last);
                at.next();
                pass_turn<F>(consumer);
                wgmma_wait<1>();
                wgmma_settle(x);
                release(s.empty + k_stage * 8);
                release_bias();
                if (i == w.blocks - 1) release(s.q_empty);
                mask(w.key0 + i * BN);
                const uint32_t bits = quick(next);
                // The next tile is awaited here because ptxas would move the wait below up to the one above, and the
                // exponentials behind the product; but not past a branch.
                await();
                wgmma_wait<0>();
                wgmma_settle(o);
                release(s.empty + v_stage * 8);
                if (__any_sync(0xffffffffu, far || (bits & TWO_OR_MORE) != 0)) careful(next);
            };

            await();
            await_bias();
            ask_scores(at.stage);
            // Of the last key, which is among the first maxima; in the first lane of a quad.
            float last_score[2] = {-INFINITY, -INFINITY};
            if constexpr (F::APART) {
                float scores[8];
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < D / 16; i++) wgmma<T, 16>(scores, q0 + 2 * i, wgmma_descriptor(s.last) + 2 * i, i > 0);
                wgmma_commit();
                wgmma_wait<0>();
                wgmma_settle(scores);
                if (t == 0) m[0] = last_score[0] = scores[0], m[1] = last_score[1] = scores[2];
            }
            wgmma_wait<0>();
            wgmma_settle(x);
            release(s.empty + at.stage * 8);
            release_bias();
            at.next();
            if (w.blocks == 1) release(s.q_empty);
            mask(w.key0);
            refer();
            if (__any_sync(0xffffffffu, far))
                exact(probability[0]);
            else
                quick(probability[0]);
            await();
            const int key_last = w.key0 + (w.blocks - 1) * BN;
            const auto finish = [&](const uint32_t (&p_of_tile)[BN / 4]) {
                if (!F::APART && (p.step != nullptr || !alike(params)) && key_last + BN > e.keys)
                    clear_rows<F, BN>(s.ring + at.stage * F::STAGE_BYTES, e.keys - key_last, consumer);
                ask_output(p_of_tile);
                if constexpr (F::APART) {
                    uint32_t a[2];
#pragma unroll
                    for (int r = 0; r < 2; r++)
                        a[r] = pack2<T>(exp2_approx(fmaf(last_score[r] - (m[r] == -INFINITY ? 0.f : m[r]), f, -SLACK<T>)), 0.f);
                    const uint32_t v = s.last + F::LAST_BYTES;
                    wgmma_fence();
                    wgmma_from_registers<T, D + 8>(o, a[0], a[1], 0, 0, wgmma_descriptor_rows_of_k(v, s.sums - v));
                    wgmma_commit();
                }
            };
            if constexpr (F::BIAS || F::APART) {
                // One copy of a step is less code to fetch, and what moves P is 32 instructions of 400: 1000 frames of sound
                // 985 -> 971 us, a picture 1637 -> 1630. A move alone ptxas would drop, and put the products into a queue of
                // one (C7513).
                const uint32_t zero = __float_as_uint(p.scale) >> 31;
#pragma unroll 1
                for (int i = 1; i < w.blocks; i++) {
                    step(i, probability[0], probability[1]);
#pragma unroll
                    for (int j = 0; j < BN / 4; j++) probability[0][j] = probability[1][j] ^ zero;
                }
                finish(probability[0]);
            } else {
                // Two copies: 13 pictures are 0.5 % faster.
#pragma unroll 1
                for (int i = 1;; i += 2) {
                    if (i >= w.blocks) {
                        finish(probability[0]);
                        break;
                    }
                    step(i, probability[0], probability[1]);
                    if (i + 1 >= w.blocks) {
                        finish(probability[1]);
                        break;
                    }
                    step(i + 1, probability[1], probability[0]);
                }
            }
            wgmma_wait<0>();
            wgmma_settle(o);
            release(s.empty + at.stage * 8);
            at.next();
        }

        if constexpr (F::PAIR) {
            float y[D / 4] = {}, l = 0;
            __syncwarp();
            cluster_wait();  // the barriers of the other are ready
            if (row0 < e.valid) l = trade_rows<F>(s, consumer, f, o, m, y);
            store_row<T, F>(params, w, row + 8 * int(blockIdx.x % 2), l, y);
        } else {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float y[D / 4];
#pragma unroll
                for (int n = 0; n < D / 8; n++) y[2 * n] = o[4 * n + 2 * r], y[2 * n + 1] = o[4 * n + 2 * r + 1];
                store_row<T, F>(params, w, row + 8 * r, o[D / 2 + 2 * r], y);
            }
        }
        __syncwarp();  // wgmma wants whole warps
    }
}

// Of a cache, and of sequences of different lengths, rows behind the end are padding or another sequence's, and must not decide
// which steps the rows of their warp make again: that would show in the last bits.
#define EXPORT_BOTH(name, ...)             \
    EXPORT_FLASH(name, __VA_ARGS__, false) \
    EXPORT_FLASH(name##_ragged, __VA_ARGS__, true)

EXPORT_BOTH(d64_c2, 64, 2, 128, Bias::none)
EXPORT_FLASH(d64_c2_apart, 64, 2, 128, Bias::none, false, true)
EXPORT_BOTH(d64_c3, 64, 3, 80, Bias::none)
EXPORT_BOTH(d64_c1_bias, 64, 1, 128, Bias::operand)
EXPORT_BOTH(d64_c1_bias_pair, 64, 1, 128, Bias::operand_pair)
EXPORT_BOTH(d64_c3_bias_pair, 64, 3, 80, Bias::operand_pair)
