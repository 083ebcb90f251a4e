use super::cpu::choose;
use super::*;
use crate::core::Step;
use crate::ops::testing::{floats, ids, run};

fn params(change: impl Fn(&mut SampleParams)) -> SampleParams {
    let mut p = SampleParams { temperature: 1.0, ..Default::default() };
    change(&mut p);
    p
}

/// How often each of the ids comes in `n` draws.
fn counts(logits: &[f32], seen: &[u32], p: &SampleParams, n: u32) -> Vec<u32> {
    let mut counts = vec![0; logits.len()];
    (0..n).for_each(|draw| counts[choose(logits, seen, p, 0, draw)] += 1);
    counts
}

#[test]
fn masses_follow_the_exponential() {
    assert_eq!(mass(0), 1 << 40);
    assert_eq!(mass((28 << 26) - 1), 0);
    for i in 0..10_000u32 {
        let q = i * 67_108; // d in steps of 0.001
        let want = (-f64::from(q) / (1u32 << 26) as f64).exp() * (1u64 << 40) as f64;
        assert!((mass(q) as f64 / want - 1.0).abs() < 3e-8, "mass({q}) = {}, want {want}", mass(q));
    }
}

#[test]
fn the_largest_wins_and_ties_go_to_the_lowest() {
    let nan = f32::NAN;
    let x = floats("logits", &[4, 3], &[1., 3., 3., -0., 0., -1., nan, -5., nan, nan, nan, nan]);
    let limited = floats("logits", &[1, 3], &[1., 3., 5.]);
    let step = Step::default();
    assert_eq!(run(ArgMax { limit: 3 }, step, vec![x]).unwrap()[0].u32s(), [1, 0, 1, 0]);
    assert_eq!(run(ArgMax { limit: 2 }, step, vec![limited]).unwrap()[0].u32s(), [1]);
}

#[test]
fn greedy_heeds_the_penalty_and_counts_the_token() {
    let p = SampleParams { repetition_penalty: 2.0, ..Default::default() };
    let ins = vec![
        floats("logits", &[1, 3], &[1.0, 1.5, -4.0]),
        ids("seen", &[3], &[0, 1, 0]),
        ids("params", &[8], &p.to_words()),
    ];
    let outs = run(Sample { limit: 3 }, Step::rows(0, 1, 5), ins).unwrap();
    assert_eq!((outs[0].u32s(), outs[1].u32s()), (&[0][..], &[1, 1, 0][..]));
    // A negative logit is multiplied: -1 becomes -2.
    assert_eq!(choose(&[-1.0, -1.5], &[1, 0], &p, 0, 0), 1);
}

#[test]
fn every_row_draws_by_itself() {
    let (rows, v) = (5, 600);
    let logits: Vec<f32> = (0..rows * v).map(|i| (i * 37 % 101) as f32 / 25.0).collect();
    let seen: Vec<u32> = (0..rows * v).map(|i| (i % 3 == 0) as u32).collect();
    let p = SampleParams { repetition_penalty: 1.25, top_p: 0.9, ..params(|p| p.seed = 7) };
    let draw = |logits: &[f32], seen: &[u32], n: u32| {
        let rows = seen.len() / v;
        let ins = vec![
            floats("logits", &[rows, v], logits),
            ids("seen", &[rows, v], seen),
            ids("params", &[8], &p.to_words()),
        ];
        let outs = run(Sample { limit: v as u32 - 1 }, Step::rows(0, 1, n as usize), ins).unwrap();
        (outs[0].u32s().to_vec(), outs[1].u32s().to_vec())
    };
    for n in 0..20 {
        let (tokens, counted) = draw(&logits, &seen, n);
        assert_eq!(tokens.len(), rows);
        for (row, &token) in tokens.iter().enumerate() {
            let of = row * v..(row + 1) * v;
            assert_eq!(
                token as usize,
                choose(&logits[of.clone()][..v - 1], &seen[of.clone()][..v - 1], &p, row, n)
            );
            let mut want = seen[of.clone()].to_vec();
            want[token as usize] += 1;
            assert_eq!(counted[of], want, "row {row}");
        }
        // The first row draws what it draws alone.
        assert_eq!(tokens[0], draw(&logits[..v], &seen[..v], n).0[0]);
    }
    // Equal logits: rows agree about as often as two draws of 600 tokens do, not always, and no row lags behind another.
    let flat = vec![0.0; rows * v];
    let streams: Vec<Vec<u32>> = (0..40).map(|n| draw(&flat, &vec![0; rows * v], n).0).collect();
    for (a, b) in [(0, 1), (0, 4), (2, 3)] {
        for lag in 0..4 {
            let same = (0..36).filter(|&n| streams[n + lag][a] == streams[n][b]).count();
            assert!(same <= 4, "rows {a} and {b}, {lag} draws apart: {same} of 36");
        }
    }
}

#[test]
fn draws_follow_the_softmax() {
    let logits: Vec<f32> = [0.1f32, 0.2, 0.3, 0.4].iter().map(|p| p.ln() + 3.0).collect();
    let got = counts(&logits, &[0; 4], &params(|p| p.seed = 42), 20_000);
    for (got, want) in got.iter().zip([2000.0, 4000.0, 6000.0, 8000.0]) {
        assert!((f64::from(*got) - want).abs() < 5.0 * f64::sqrt(want), "{got} draws, want {want}");
    }
    let again = counts(&logits, &[0; 4], &params(|p| p.seed = 42), 20_000);
    let other = counts(&logits, &[0; 4], &params(|p| p.seed = 43), 20_000);
    assert_eq!(got, again);
    assert_ne!(got, other);
    // At half the temperature the odds are squared: 1 : 4 : 9 : 16.
    let cold = counts(&logits, &[0; 4], &params(|p| p.temperature = 0.5), 30_000);
    assert!((f64::from(cold[3]) - 16_000.0).abs() < 600.0, "{cold:?}");
}

#[test]
fn top_k_and_top_p_keep_ties() {
    let only = |logits: &[f32], p: &SampleParams| {
        let got = counts(logits, &vec![0; logits.len()], p, 2000);
        (0..got.len()).filter(|&i| got[i] > 0).collect::<Vec<_>>()
    };
    let logits = [0.0, 2.0, 1.0, 1.0, -1.0];
    assert_eq!(only(&logits, &params(|p| p.top_k = 1)), [1]);
    assert_eq!(only(&logits, &params(|p| p.top_k = 2)), [1, 2, 3]);
    assert_eq!(only(&logits, &params(|p| p.top_k = 5)), [0, 1, 2, 3, 4]);
    // softmax: 0.069, 0.508, 0.187, 0.187, 0.025
    assert_eq!(only(&logits, &params(|p| p.top_p = 0.0)), [1]);
    assert_eq!(only(&logits, &params(|p| p.top_p = 0.5)), [1]);
    assert_eq!(only(&logits, &params(|p| p.top_p = 0.6)), [1, 2, 3]);
    assert_eq!(only(&logits, &params(|p| p.top_p = 0.95)), [0, 1, 2, 3]);
    // After top-k 1 the mass is that of one id, and any share of it keeps it.
    assert_eq!(only(&logits, &params(|p| (p.top_k, p.top_p) = (1, 0.99))), [1]);
}

#[test]
fn useless_logits_still_give_an_id() {
    let p = params(|_| {});
    assert_eq!(choose(&[f32::NAN, f32::NAN], &[0, 0], &p, 0, 0), 0);
    assert_eq!(choose(&[f32::NEG_INFINITY, f32::NEG_INFINITY], &[0, 0], &p, 0, 0), 0);
    assert_eq!(choose(&[1.0, f32::INFINITY], &[0, 0], &p, 0, 0), 1);
    assert_eq!(choose(&[f32::NAN, f32::NEG_INFINITY, 3.0], &[0, 0, 0], &p, 0, 0), 2);
}

#[test]
fn params_survive_their_words() {
    let p = SampleParams {
        temperature: 0.7,
        top_p: 0.9,
        repetition_penalty: 1.1,
        top_k: 40,
        seed: 0x0123_4567_89ab_cdef,
    };
    assert_eq!(SampleParams::from_words(&p.to_words()), p);
}
