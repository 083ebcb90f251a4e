// archs: 90a
// flash_wgmma at D = 128:  out_i = Σ_j p_ij v_j,  p_i = softmax_j(scale·q_i·k_j + bias_j)   as prefill.cu, on TMA and wgmma
// q, k, v, out of T16 as AttentionParams addresses them; bias f32 [H, T]; any T and S, masks full, causal, chunk; scale > 0
//
// The frame is that of wgmma.cuh; two consumers. Each step rescales O by the maximum that it has found, while the second
// product of the step before runs. Consumers take turns: they ask one after the other, so that the softmax of one falls
// under the products of the others. m, l, O, S in registers in f32.
// 512 flops per head and (query, key) pair: the tensor cores bind (2048 clocks for 128 x 128 pairs, exp2 1024).
// Goal: 650 TFLOP/s from S = 4096.
#include "attention/wgmma.cuh"

// One step of the online softmax for row R (of the two that a thread has a part of) of an accumulator: elements
// s[4j + 2R] and s[4j + 2R + 1] become p = exp2(s·f - m·f), m (of s, not of s·f) and this lane's part of l follow.
// Returns the factor by which older sums shrink. A row that has seen -inf alone keeps m = -inf, l = 0.
template <int R, int COUNT>
__device__ __forceinline__ float softmax_row(float (&s)[COUNT], float f, float& m, float& l) {
    float high[2] = {m, -INFINITY}, sum[2] = {};
#pragma unroll
    for (int i = 2 * R; i < COUNT; i += 4)
        high[i / 4 % 2] = fmaxf(high[i / 4 % 2], fmaxf(s[i], s[i + 1]));
    const float top = quad_max(fmaxf(high[0], high[1])), at = top == -INFINITY ? 0.f : top;
    const float shrink = exp2_approx((m - at) * f), offset = at * f;
#pragma unroll
    for (int i = 2 * R; i < COUNT; i += 4) {
        s[i] = exp2_approx(fmaf(s[i], f, -offset));
        s[i + 1] = exp2_approx(fmaf(s[i + 1], f, -offset));
        sum[i / 4 % 2] += s[i] + s[i + 1];
    }
    m = top;
    l = l * shrink + (sum[0] + sum[1]);
    return shrink;
}

// The same for both rows with a bias, which may have moved all scores of a row far off: m·f is rounded, by more than the sums
// may err where it is large, and by more than there are numbers where it is huge. There m is subtracted first.
template <int COUNT>
__device__ __forceinline__ float2 softmax_far(float (&s)[COUNT], float f, float (&m)[2], float (&l)[2]) {
    constexpr float FAR = 32;  // half a unit in the last place: 2^-20
    float high[4] = {m[0], m[1], -INFINITY, -INFINITY}, sum[4] = {}, at[2], offset[2], shrink[2];
#pragma unroll
    for (int i = 0; i < COUNT; i += 2)
        high[i / 2 % 4] = fmaxf(high[i / 2 % 4], fmaxf(s[i], s[i + 1]));
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float top = quad_max(fmaxf(high[r], high[r + 2]));
        at[r] = top == -INFINITY ? 0.f : top, offset[r] = at[r] * f;
        shrink[r] = exp2_approx((m[r] - at[r]) * f);
        m[r] = top;
    }
    if (fmaxf(fabsf(offset[0]), fabsf(offset[1])) > FAR) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) s[i] -= at[i / 2 % 2];
        offset[0] = offset[1] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
        s[i] = exp2_approx(fmaf(s[i], f, -offset[i / 2 % 2]));
        s[i + 1] = exp2_approx(fmaf(s[i + 1], f, -offset[i / 2 % 2]));
        sum[i / 2 % 4] += s[i] + s[i + 1];
    }
#pragma unroll
    for (int r = 0; r < 2; r++) l[r] = l[r] * shrink[r] + (sum[r] + sum[r + 2]);
    return make_float2(shrink[0], shrink[1]);
}

// One warpgroup: 64 rows of every work.
template <class T, class F>
__device__ __forceinline__ void consume(const FlashParams& params, const Shared& s, uint32_t consumer) {
    constexpr int BN = F::BN, D = F::D;
    const AttentionParams& p = params.a;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, g = lane / 4, t = lane % 4;
    const float f = p.scale * LOG2E;
    const uint64_t q0 = wgmma_descriptor(s.q + consumer * F::Q_BYTES), k0 = wgmma_descriptor(s.ring);
    const uint64_t v0 = wgmma_descriptor_rows_of_k(s.ring, BN * 128);
    const uint64_t ones = wgmma_descriptor_of_16(s.ones), bias0 = wgmma_descriptor_of_16(s.bias);
    const Extent extent = extent_before_wait(p);
    Cursor<F::STAGES> at;
    Cursor<F::BIAS_STAGES> bias_at;
    uint32_t q_phase = 0;
    WaitOnce wait_once;
    if (consumer == F::CONSUMERS - 1) pass_turn<F>(consumer);  // the first begins

    for (Schedule<F> schedule(params, extent); schedule.more(); schedule.next()) {
        const Work w = schedule.get(params, extent);
        const Extent& e = w.e;
        const int row0 = w.m0 + int(consumer) * 64, row = row0 + int(warp * 16 + g);  // and row + 8
        float o[D / 2] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {};
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
        if (w.blocks > 0 && row0 >= e.valid) {
            barrier_sync<128>(STEP_BARRIER + consumer);
            release(s.q_empty);
            stand_by<F>(s, at, bias_at, w.blocks, consumer);
        } else if (w.blocks > 0) {
            float x[BN / 2];               // S, then P
            uint32_t probability[BN / 4];  // P as an operand

            const auto ask_scores = [&](uint32_t stage) {
                ask_for_scores<T, F>(x, q0, k0 + stage * (F::STAGE_BYTES >> 4), ones, bias0, bias_at.stage);
            };
            const auto ask_output = [&](uint32_t stage) {
                const uint64_t v = v0 + stage * (F::STAGE_BYTES >> 4);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < BN / 16; i++)
                    wgmma_from_registers<T, D>(o, probability[4 * i], probability[4 * i + 1], probability[4 * i + 2],
                                               probability[4 * i + 3], v + i * (16 * 128 >> 4));
                wgmma_commit();
            };
            // Scores to probabilities; returns how O shrinks, for both rows.
            const auto softmax = [&](int j0) {
                mask_unseen(x, all_begin, all_end, begin, end, j0, t);
                if constexpr (F::BIAS) return softmax_far(x, f, m, l);
                const float low = softmax_row<0>(x, f, m[0], l[0]), high = softmax_row<1>(x, f, m[1], l[1]);
                return make_float2(low, high);
            };
            const auto pack = [&] {
#pragma unroll
                for (int i = 0; i < BN / 4; i++) probability[i] = pack2<T>(x[2 * i], x[2 * i + 1]);
            };

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

            await();
            await_bias();
            ask_scores(at.stage);
            wgmma_wait<0>();
            wgmma_settle(x);
            release(s.empty + at.stage * 8);
            release_bias();
            at.next();
            if (w.blocks == 1) release(s.q_empty);
            softmax(w.key0);
            pack();
            await();
#pragma unroll 1
            for (int i = 1; i < w.blocks; i++) {
                const uint32_t k_stage = at.stage;
                at.next();
                await_bias();
                take_turn<F>(consumer);
                ask_scores(k_stage);
                await();
                const uint32_t v_stage = at.stage;
                ask_output(v_stage);
                at.next();
                pass_turn<F>(consumer);
                wgmma_wait<1>();
                wgmma_settle(x);
                release(s.empty + k_stage * 8);
                release_bias();
                if (i == w.blocks - 1) release(s.q_empty);
                const float2 shrink = softmax(w.key0 + i * BN);
                // The next tile is awaited here because ptxas would move the wait below up to the one above, and the
                // softmax behind the product; but not past a branch.
                wgmma_settle(x);
                await();
                wgmma_wait<0>();
                wgmma_settle(o);
                release(s.empty + v_stage * 8);
#pragma unroll
                for (int d = 0; d < D / 8; d++) {
                    o[4 * d] *= shrink.x, o[4 * d + 1] *= shrink.x;
                    o[4 * d + 2] *= shrink.y, o[4 * d + 3] *= shrink.y;
                }
                pack();
            }
            const int key_last = w.key0 + (w.blocks - 1) * BN;
            if ((p.step != nullptr || !alike(params)) && key_last + BN > e.keys)
                clear_rows<F, BN>(s.ring + at.stage * F::STAGE_BYTES, e.keys - key_last, consumer);
            ask_output(at.stage);
            wgmma_wait<0>();
            wgmma_settle(o);
            release(s.empty + at.stage * 8);
            at.next();
        }

        // A quad holds a row.
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float y[D / 4];
#pragma unroll
            for (int n = 0; n < D / 8; n++) y[2 * n] = o[4 * n + 2 * r], y[2 * n + 1] = o[4 * n + 2 * r + 1];
            store_row<T, F>(params, w, row + 8 * r, quad_sum(l[r]), y);
        }
        __syncwarp();  // wgmma wants whole warps
    }
}

EXPORT_FLASH(d128_c2, 128, 2, 128, Bias::none)
EXPORT_FLASH(d128_c2_bias, 128, 2, 128, Bias::operand)
