//! The shapes that test, benchmark and profile share. Names: rows `t`, weight rows `n`, depth `k`.

use super::{Angles, Linear, LinearAct, LinearArgMax, LinearFused, LinearRope, NormBefore};
use crate::ops::norm::{SQUARES_COLUMNS, STATS_COLUMNS};
use crate::ops::rope::batch_name;
use crate::ops::{Case, Fill};

/// The matrices of the models, `(name, N, K)`.
const TEXT: [(&str, usize, usize); 4] =
    [("qkv", 4608, 3584), ("o", 3584, 3584), ("gate_up", 37888, 3584), ("down", 3584, 18944)];
const VISION: [(&str, usize, usize); 4] =
    [("vit_qkv", 3072, 1024), ("vit_proj", 1024, 1024), ("vit_fc1", 4096, 1024), ("vit_fc2", 1024, 4096)];
const AUDIO: [(&str, usize, usize); 4] = [
    ("whale_qkv", 3072, 1024),
    ("whale_out", 1024, 1024),
    ("whale_w1", 4096, 1024),
    ("whale_w2", 1024, 4096),
];

/// Sums of the squares of 32 elements about as large as 1.
const SQUARES: Fill = Fill::Uniform { centre: 30.0, scale: 25.0 };

pub(super) fn linear() -> Vec<Case<Linear>> {
    let case = |name: &str, t: usize, n: usize, k: usize, bias: bool, out_f32: bool| {
        let case = Case::new(name, Linear { bias, out_f32 }).act(&[t, k]).weight(&[n, k]);
        if bias { case.weight(&[n]) } else { case }
    };
    let mut all = Vec::new();
    // Around every tile edge, with odd N; K of the tiny models, of the padded patches, and one step only.
    for (t, n, k) in [
        (1, 515, 896),
        (1, 64, 80),
        (1, 3, 8),
        (1, 37, 1800),
        (1, 133, 1792),
        (1, 1, 4864),
        (1, 60, 14336),
        (1, 45, 14344),
        (1, 1000, 3584),
        (1, 1031, 80),
        (2, 515, 896),
        (5, 515, 592),
        (8, 64, 1024),
        (9, 130, 896),
        (16, 515, 896),
        (17, 515, 896),
        (31, 64, 8),
        (63, 64, 592),
        (64, 128, 1024),
        (65, 2304, 80),
        (127, 129, 96),
        (129, 515, 592),
        (1025, 515, 80),
        (1025, 64, 896),
        (300, 384, 1024),
    ] {
        all.push(case(&format!("t{t}_n{n}_k{k}"), t, n, k, n % 2 == 0, n == 515));
    }
    // One tile and a long K: split over K. Few rows and a long K.
    for (t, n, k) in [
        (100, 72, 4864),
        (1, 40, 18944),
        (7, 24, 18944),
        (2, 37, 3592),
        (13, 80, 18944),
        (1, 37, 20488),
        (1, 3, 3584),
        // More rows of w than all CTAs take at a time.
        (3, 4400, 3584),
        (16, 4371, 3584),
    ] {
        all.push(case(&format!("t{t}_n{n}_k{k}"), t, n, k, true, false));
    }
    // More tiles than a GPU takes at once, few steps each: rings and turns go on from tile to tile.
    for (t, n, k) in [(4500, 1032, 136), (2900, 1610, 200)] {
        all.push(case(&format!("t{t}_n{n}_k{k}"), t, n, k, true, false));
    }
    // Rows that are not whole vectors of 8.
    for (t, n, k) in [(1, 40, 77), (5, 33, 27), (50, 20, 100)] {
        all.push(case(&format!("t{t}_n{n}_k{k}"), t, n, k, true, false));
    }
    // Whole numbers: to the bit, whatever the order of the sums.
    for (t, n, k) in
        [(1, 70, 512), (6, 70, 512), (16, 33, 256), (70, 150, 128), (150, 70, 64), (40, 48, 2560)]
    {
        let ints = Case::new(format!("ints_t{t}_n{n}_k{k}"), Linear { bias: true, out_f32: true })
            .act_with(&[t, k], Fill::SmallInts)
            .weight_with(&[n, k], Fill::SmallInts)
            .weight_with(&[n], Fill::SmallInts);
        all.push(ints);
    }
    let bench = |name: &str, t, n, k| case(&format!("{name}_t{t}"), t, n, k, false, false).bench();
    for t in [1, 2, 4, 8, 16, 64, 128, 256, 512, 1024, 2048, 4096] {
        all.extend(TEXT.map(|(name, n, k)| bench(name, t, n, k)));
    }
    all.extend(
        [1, 2, 4, 8, 16].map(|t| case(&format!("lm_head_t{t}"), t, 151665, 3584, false, true).bench()),
    );
    for t in [1025, 4100, 13325] {
        all.extend(VISION.map(|(name, n, k)| bench(name, t, n, k)));
    }
    // The projector, on the rows of 1, 4 and 13 tiles.
    for t in [256, 1024, 3328] {
        all.extend([bench("mm_0", t, 3584, 4096), bench("mm_2", t, 3584, 3584)]);
    }
    for t in [249, 749] {
        all.extend(AUDIO.map(|(name, n, k)| bench(name, t, n, k)));
    }
    all.push(bench("whale_sub", 249, 1024, 19456));
    all.push(bench("patch", 1024, 1024, 592));
    all
}

pub(super) fn linear_fused() -> Vec<Case<LinearFused>> {
    let case = |name: &str, t: usize, n: usize, k: usize, op: LinearFused, fill: Option<Fill>| {
        let m = n / op.act.rows_per_col();
        let weight = |case: Case<LinearFused>, shape: &[usize]| match fill {
            Some(fill) => case.weight_with(shape, fill),
            None => case.weight(shape),
        };
        let act = |case: Case<LinearFused>, shape: &[usize]| match fill {
            Some(fill) => case.act_with(shape, fill),
            None => case.act(shape),
        };
        let [bias, scale, residual] = [op.bias, op.scale, op.residual];
        let ([norm, behind_norm, begun], begins) = (op.norm.gives(), op.begins);
        let mut case = weight(act(Case::new(name, op), &[t, k]), &[n, k]);
        if bias {
            case = weight(case, &[n]);
        }
        if scale {
            case = weight(case, &[m]);
        }
        if residual {
            case = act(case, &[t, m]);
        }
        if norm {
            case = weight(case, &[k]);
        }
        if behind_norm {
            // Means far from zero; deviations about as large.
            let stats = Fill::Uniform { centre: 20.0, scale: 10.0 };
            case = case.weight(&[n]).act_f32(&[k / STATS_COLUMNS, t, 2], stats);
        }
        if begun {
            case = act(case, &[t, k]).act_f32(&[k / SQUARES_COLUMNS, t], SQUARES);
        }
        if begins {
            case = weight(case, &[m]);
        }
        case
    };
    let op = |bias, act, scale, residual| LinearFused {
        act,
        scale,
        residual,
        ..LinearFused::of(&Linear { bias, out_f32: false })
    };
    let swiglu = op(false, LinearAct::Swiglu, false, false);
    let kinds = [
        ("gelu", op(true, LinearAct::Gelu, false, false)),
        ("relu", op(true, LinearAct::Relu, false, false)),
        ("scale_residual", op(true, LinearAct::None, true, true)),
        ("residual", op(false, LinearAct::None, false, true)),
    ];
    let mut all = Vec::new();
    for (t, n, k) in [
        (1, 515, 896),
        (1, 515, 3584),
        (1, 24, 18944),
        (3, 72, 592),
        (16, 66, 896),
        (7, 4371, 3584),
        (12, 40, 4096),
        (65, 130, 80),
        (129, 515, 592),
    ] {
        for (name, op) in &kinds {
            all.push(case(&format!("{name}_t{t}_n{n}_k{k}"), t, n, k, op.clone(), None));
        }
    }
    for (t, n, k) in [
        (1, 2560, 896),
        (1, 16, 8),
        (1, 4704, 3584),
        (1, 48, 20480),
        (5, 48, 896),
        (8, 4704, 3584),
        (3, 48, 3592),
        (16, 80, 592),
        (17, 272, 80),
        (129, 1040, 896),
    ] {
        all.push(case(&format!("swiglu_t{t}_n{n}_k{k}"), t, n, k, swiglu.clone(), None));
    }
    // A table on some columns: (rows, N, K, rows of the table, its first column, its columns).
    let table = |name: &str,
                 [t, n, k]: [usize; 3],
                 [rows, at, cols]: [usize; 3],
                 fill: Option<Fill>,
                 norm: NormBefore| {
        let op = LinearFused { norm, ..op(true, LinearAct::None, false, false) };
        let mut case = case(name, t, n, k, op, fill);
        case.op = LinearFused { residual: true, table_at: Some(at), ..case.op };
        let last = case.ins.split_off(3);
        let mut case = match fill {
            Some(fill) => case.act_with(&[rows, cols], fill),
            None => case.act(&[rows, cols]),
        };
        case.ins.extend(last);
        case
    };
    for (shape, [rows, at, cols]) in [
        ([1, 96, 896], [3, 32, 32]),
        ([1, 48, 18944], [1, 8, 16]),
        ([7, 192, 80], [9, 64, 64]),
        ([16, 120, 592], [16, 0, 40]),
        ([65, 120, 80], [70, 40, 40]),
        ([129, 528, 592], [200, 176, 176]),
        ([300, 1536, 1024], [512, 512, 512]),
    ] {
        let [t, n, k] = shape;
        all.push(table(&format!("table_t{t}_n{n}_k{k}"), shape, [rows, at, cols], None, NormBefore::None));
    }
    all.push(table(
        "behind_norm_table_t70_n144_k128",
        [70, 144, 128],
        [80, 48, 48],
        None,
        NormBefore::Layer(1e-5),
    ));
    all.push(table(
        "table_ints_t70_n144_k128",
        [70, 144, 128],
        [80, 48, 48],
        Some(Fill::SmallInts),
        NormBefore::None,
    ));
    // More tiles than a GPU takes at once, and more steps than a ring has stages.
    all.push(case("scale_residual_t1850_n1416_k392", 1850, 1416, 392, kinds[2].1.clone(), None));
    all.push(case("gelu_t3000_n1544_k72", 3000, 1544, 72, kinds[0].1.clone(), None));
    all.push(case("scale_residual_t3000_n1540_k8", 3000, 1540, 8, kinds[2].1.clone(), None));
    all.push(case("swiglu_t3000_n1552_k72", 3000, 1552, 72, swiglu.clone(), None));
    for (t, n, k) in
        [(1, 48, 256), (1, 48, 3584), (1, 48, 4096), (11, 48, 256), (70, 144, 128), (33, 32, 2560)]
    {
        let biased = op(true, LinearAct::Swiglu, false, false);
        all.push(case(&format!("bias_swiglu_t{t}_n{n}_k{k}"), t, n, k, biased, None));
        let f32_out = LinearFused { out_f32: true, ..kinds[2].1.clone() };
        all.push(case(&format!("scale_residual_f32_t{t}_n{n}_k{k}"), t, n, k, f32_out, None));
        for (name, ints) in [("relu", &kinds[1].1), ("scale_residual", &kinds[2].1)] {
            let name = format!("{name}_ints_t{t}_n{n}_k{k}");
            all.push(case(&name, t, n, k, ints.clone(), Some(Fill::SmallInts)));
        }
    }
    all.push(case("gate_up_t11", 11, 37888, 3584, swiglu.clone(), None).bench());
    for t in [1, 8, 16, 128, 512, 2048] {
        all.push(case(&format!("gate_up_t{t}"), t, 37888, 3584, swiglu.clone(), None).bench());
        let down = op(false, LinearAct::None, false, true);
        all.push(case(&format!("down_t{t}"), t, 3584, 18944, down.clone(), None).bench());
        all.push(case(&format!("o_t{t}"), t, 3584, 3584, down, None).bench());
    }
    // The layers of the audio encoder.
    for t in [74, 249, 749] {
        all.push(
            table(&format!("whale_qkv_t{t}"), [t, 3072, 1024], [1024, 1024, 1024], None, NormBefore::None)
                .bench(),
        );
        let relu = op(true, LinearAct::Relu, false, false);
        all.push(case(&format!("whale_w1_t{t}"), t, 4096, 1024, relu, None).bench());
        let residual = op(true, LinearAct::None, false, true);
        all.push(case(&format!("whale_w2_t{t}"), t, 1024, 4096, residual.clone(), None).bench());
        all.push(case(&format!("whale_out_t{t}"), t, 1024, 1024, residual, None).bench());
    }
    // Beside 1025 rows: one row block of 192 less, and rows of x and w that are no power of two bytes apart.
    for (name, t, k) in [("vit_fc2_t960", 960, 4096), ("vit_fc2_k4160_t1025", 1025, 4160)] {
        all.push(case(name, t, 1024, k, op(true, LinearAct::None, true, true), None).bench());
    }
    for t in [1025, 4100, 13325] {
        let gelu = op(true, LinearAct::Gelu, false, false);
        all.push(case(&format!("vit_fc1_t{t}"), t, 4096, 1024, gelu, None).bench());
        let scaled = op(true, LinearAct::None, true, true);
        all.push(case(&format!("vit_fc2_t{t}"), t, 1024, 4096, scaled.clone(), None).bench());
        all.push(case(&format!("vit_proj_t{t}"), t, 1024, 1024, scaled, None).bench());
    }
    // Behind a LayerNorm, and in front of one: around every edge of a tile, widths that are no whole vectors.
    let behind = |op: LinearFused| LinearFused { norm: NormBefore::Layer(1e-5), ..op };
    let bias = op(true, LinearAct::None, false, false);
    for (t, n, k) in [
        (1, 72, 64),
        (9, 515, 128),
        (16, 96, 1024),
        (65, 136, 192),
        (129, 515, 896),
        (129, 1040, 640),
        (1025, 200, 896),
        (1850, 1416, 384),
        (3000, 1544, 64),
    ] {
        for (name, op) in
            [("plain", &bias), ("gelu", &kinds[0].1), ("relu", &kinds[1].1), ("residual", &kinds[3].1)]
        {
            all.push(case(&format!("behind_norm_{name}_t{t}_n{n}_k{k}"), t, n, k, behind(op.clone()), None));
        }
    }
    let with_stats = |op: LinearFused| LinearFused { stats: true, ..op };
    for (t, n, k) in [
        (1, 64, 72),
        (11, 128, 592),
        (65, 192, 136),
        (129, 576, 592),
        (1025, 128, 896),
        (1850, 1408, 392),
        (3000, 1536, 72),
    ] {
        for (name, op) in
            [("scale_residual", &kinds[2].1), ("gelu", &kinds[0].1), ("behind_norm", &behind(bias.clone()))]
        {
            if op.norm == NormBefore::None || k % STATS_COLUMNS == 0 {
                all.push(case(
                    &format!("stats_{name}_t{t}_n{n}_k{k}"),
                    t,
                    n,
                    k,
                    with_stats(op.clone()),
                    None,
                ));
            }
        }
    }
    for t in [74, 249, 749] {
        let (qkv, name) = ([t, 3072, 1024], format!("behind_norm_whale_qkv_t{t}"));
        all.push(table(&name, qkv, [1024, 1024, 1024], None, NormBefore::Layer(1e-5)).bench());
        let name = format!("behind_norm_whale_w1_t{t}");
        all.push(case(&name, t, 4096, 1024, behind(kinds[1].1.clone()), None).bench());
        let residual = with_stats(op(true, LinearAct::None, false, true));
        all.push(case(&format!("stats_whale_w2_t{t}"), t, 1024, 4096, residual.clone(), None).bench());
        all.push(case(&format!("stats_whale_out_t{t}"), t, 1024, 1024, residual, None).bench());
    }
    for t in [1025, 4100, 13325] {
        all.push(
            case(&format!("behind_norm_vit_qkv_t{t}"), t, 3072, 1024, behind(bias.clone()), None).bench(),
        );
        let fc1 = behind(kinds[0].1.clone());
        all.push(case(&format!("behind_norm_vit_fc1_t{t}"), t, 4096, 1024, fc1, None).bench());
        let scaled = with_stats(kinds[2].1.clone());
        all.push(case(&format!("stats_vit_fc2_t{t}"), t, 1024, 4096, scaled.clone(), None).bench());
        all.push(case(&format!("stats_vit_proj_t{t}"), t, 1024, 1024, scaled, None).bench());
    }
    // Behind an RmsNorm that has been begun, and with the beginning of one.
    let begun = LinearFused { norm: NormBefore::BegunRms(1e-6), ..swiglu.clone() };
    let begun_biased = LinearFused { bias: true, ..begun.clone() };
    for (t, n, k) in
        [(1, 16, 32), (17, 272, 96), (33, 48, 896), (64, 1040, 3584), (129, 592, 640), (300, 2560, 64)]
    {
        all.push(case(&format!("begun_t{t}_n{n}_k{k}"), t, n, k, begun.clone(), None));
        all.push(case(&format!("begun_bias_t{t}_n{n}_k{k}"), t, n, k, begun_biased.clone(), None));
    }
    let begins = |op: LinearFused| LinearFused { begins: true, ..op };
    for (t, n, k) in [
        (1, 32, 72),
        (9, 96, 136),
        (17, 544, 592),
        (64, 1024, 3584),
        (128, 96, 18944),
        (129, 480, 896),
        (300, 3584, 64),
    ] {
        for (name, op) in [("plain", &bias), ("residual", &kinds[3].1)] {
            all.push(case(&format!("begins_{name}_t{t}_n{n}_k{k}"), t, n, k, begins(op.clone()), None));
        }
    }
    for t in [64, 128] {
        all.push(case(&format!("begun_gate_up_t{t}"), t, 37888, 3584, begun.clone(), None).bench());
        let residual = begins(kinds[3].1.clone());
        all.push(case(&format!("begins_down_t{t}"), t, 3584, 18944, residual.clone(), None).bench());
        all.push(case(&format!("begins_o_t{t}"), t, 3584, 3584, residual, None).bench());
    }
    // A norm in front, of one row: every form of the kernel, around its batches.
    let normed = |op: LinearFused| LinearFused { norm: NormBefore::Rms(1e-6), ..op };
    for (n, k) in [(515, 8), (70, 896), (37, 1800), (1031, 3584), (45, 4096), (24, 18944), (11, 20488)] {
        let plain = op(false, LinearAct::None, false, false);
        for (name, op) in [("plain", &plain), ("gelu", &kinds[0].1), ("scale_residual", &kinds[2].1)] {
            all.push(case(&format!("normed_{name}_t1_n{n}_k{k}"), 1, n, k, normed(op.clone()), None));
        }
    }
    for (n, k) in [(48, 256), (4704, 3584), (48, 4096)] {
        all.push(case(&format!("normed_swiglu_t1_n{n}_k{k}"), 1, n, k, normed(swiglu.clone()), None));
        let biased = normed(op(true, LinearAct::Swiglu, false, false));
        all.push(case(&format!("normed_bias_swiglu_t1_n{n}_k{k}"), 1, n, k, biased, None));
    }
    all.push(case("normed_gate_up_t1", 1, 37888, 3584, normed(swiglu), None).bench());
    let logits = LinearFused { out_f32: true, ..normed(op(false, LinearAct::None, false, false)) };
    all.push(case("normed_lm_head_t1", 1, 151665, 3584, logits, None).bench());
    all
}

pub(super) fn linear_rope() -> Vec<Case<LinearRope>> {
    let shape = |b: usize,
                 norm: NormBefore,
                 (t, valid): (usize, usize),
                 (h, g, d): (usize, usize, usize),
                 k: usize,
                 s: usize,
                 pos| {
        let n = (h + 2 * g) * d;
        let table = LinearRope::angles(t * b, b, k, d) == Some(Angles::Table);
        let op = LinearRope { norm, table, heads: h, kv_heads: g, head_dim: d, theta: 1e6, sequences: b };
        let front = match norm {
            NormBefore::None => "",
            NormBefore::BegunRms(_) => "begun_",
            _ => "normed_",
        };
        let name = format!("{}{front}", batch_name(b));
        let [norm, _, begun] = norm.gives();
        let case = Case::new(format!("{name}t{t}_v{valid}_h{h}_g{g}_d{d}_k{k}_at{pos}"), op)
            .act(&[b * t, k])
            .weight(&[n, k])
            .weight(&[n])
            .state(&[2, b * g, s, d], Fill::Uniform { centre: 0.0, scale: 1.0 })
            .step(pos, valid, 0);
        // Any numbers turn as cosines and sines do.
        let case =
            if table { case.act_f32(&[t, d], Fill::Uniform { centre: 0.0, scale: 1.0 }) } else { case };
        let case = if norm { case.weight(&[k]) } else { case };
        if begun { case.act(&[t, k]).act_f32(&[k / SQUARES_COLUMNS, t], SQUARES) } else { case }
    };
    let batch = |b, norm: bool, rows, heads, k, s, pos| {
        let norm = if norm { NormBefore::Rms(1e-6) } else { NormBefore::None };
        shape(b, norm, rows, heads, k, s, pos)
    };
    let begun = |rows, heads, k, s, pos| shape(1, NormBefore::BegunRms(1e-6), rows, heads, k, s, pos);
    let case = |norm, rows, heads, k, s, pos| batch(1, norm, rows, heads, k, s, pos);
    let mut all = Vec::new();
    // Every form of the kernel for one row, the ends of the cache, a row that is padding.
    for norm in [false, true] {
        all.extend([
            case(norm, (1, 1), (7, 1, 128), 896, 33, 32),
            case(norm, (1, 1), (2, 1, 16), 8, 8, 0),
            case(norm, (1, 0), (1, 2, 48), 80, 8, 3),
            case(norm, (1, 1), (3, 2, 64), 3584, 30001, 30000),
            case(norm, (1, 1), (1, 1, 256), 3584, 5, 4),
            case(norm, (1, 1), (2, 1, 64), 4096, 7, 5),
            case(norm, (1, 1), (1, 1, 80), 20488, 7, 0),
            case(norm, (1, 1), (28, 4, 128), 3584, 4096, 511).bench(),
        ]);
    }
    all.extend([
        case(false, (2, 2), (2, 1, 16), 8, 8, 1),
        case(false, (5, 3), (3, 2, 48), 592, 40, 7),
        case(false, (8, 8), (7, 1, 128), 896, 33, 25),
        case(false, (7, 7), (1, 2, 64), 3584, 30001, 29992),
        case(false, (6, 5), (2, 2, 256), 1024, 64, 9),
        case(false, (8, 8), (28, 4, 128), 3584, 4096, 500).bench(),
        // Many rows: tiles that end inside a head, rows and heads that end inside a tile, padding, the end of the cache.
        case(false, (17, 17), (2, 1, 16), 8, 40, 1),
        case(false, (33, 20), (3, 2, 48), 592, 60, 40),
        case(false, (65, 65), (7, 1, 128), 896, 128, 63),
        case(false, (130, 129), (5, 1, 80), 264, 300, 171),
        case(false, (128, 0), (1, 2, 256), 64, 130, 2),
        case(false, (200, 200), (28, 4, 128), 264, 256, 56),
        case(false, (128, 128), (28, 4, 128), 3584, 4096, 500).bench(),
        case(false, (256, 256), (28, 4, 128), 3584, 4096, 0).bench(),
        case(false, (512, 512), (28, 4, 128), 3584, 4096, 0).bench(),
        case(false, (1024, 1024), (28, 4, 128), 3584, 4096, 0).bench(),
        case(false, (2048, 2048), (28, 4, 128), 3584, 4096, 0).bench(),
        // Behind an RmsNorm that has been begun.
        begun((17, 17), (2, 1, 16), 32, 40, 1),
        begun((33, 20), (3, 2, 48), 608, 60, 40),
        begun((65, 65), (7, 1, 128), 896, 128, 63),
        begun((130, 129), (5, 1, 80), 288, 300, 171),
        begun((64, 64), (28, 4, 128), 3584, 4096, 500).bench(),
        begun((128, 128), (28, 4, 128), 3584, 4096, 500).bench(),
        // A row of each of several sequences: at the end of their caches, none that holds a token.
        batch(2, false, (1, 1), (2, 1, 16), 8, 8, 7),
        batch(5, false, (1, 1), (3, 2, 48), 592, 40, 7),
        batch(7, false, (1, 0), (1, 2, 64), 3584, 50, 9),
        batch(8, false, (1, 1), (7, 1, 128), 896, 33, 32),
        batch(9, false, (1, 1), (3, 2, 48), 592, 40, 7),
        batch(16, false, (1, 1), (1, 2, 256), 896, 33, 32),
        batch(16, false, (1, 0), (2, 1, 64), 3584, 33, 20),
        batch(8, false, (1, 1), (28, 4, 128), 3584, 512, 500).bench(),
        batch(16, false, (1, 1), (28, 4, 128), 3584, 512, 500).bench(),
    ]);
    all
}

pub(super) fn linear_arg_max() -> Vec<Case<LinearArgMax>> {
    // Whole numbers: sums are exact and many are equal, so the lowest index decides, in whatever order they are taken.
    let ints = |v: usize, k: usize, limit: u32| {
        Case::new(format!("ints_v{v}_k{k}_below{limit}"), LinearArgMax { norm: None, limit })
            .act_with(&[1, k], Fill::SmallInts)
            .weight_with(&[v, k], Fill::SmallInts)
    };
    // Two largest logits are far enough apart, at these seeds, for any order of sums.
    let normed = |v: usize, k: usize, limit: u32| {
        Case::new(format!("normed_v{v}_k{k}_below{limit}"), LinearArgMax { norm: Some(1e-6), limit })
            .act(&[1, k])
            .weight(&[v, k])
            .weight(&[k])
    };
    let mut all = vec![
        ints(515, 8, 515),
        ints(4099, 64, 4000),
        ints(3, 80, 1),
        ints(70, 4096, 70),
        ints(1031, 3584, 1000),
    ];
    all.extend([
        normed(515, 896, 515),
        normed(1031, 3584, 1000),
        normed(45, 4096, 45),
        normed(37, 20488, 36),
    ]);
    all.push(normed(151665, 3584, 151665).bench());
    all
}
