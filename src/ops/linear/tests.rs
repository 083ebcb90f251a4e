use super::*;
use crate::core::{HostData, HostWeight, Place, Step};
use crate::ops::io::{CpuIn, CpuIns, CpuOuts};

struct Dense(Shape, Vec<f32>);

impl HostWeight for Dense {
    fn shape(&self) -> Shape {
        self.0
    }
    fn dtype(&self) -> DType {
        DType::F32
    }
    fn read_rows(&self, rows: std::ops::Range<usize>, out: &mut [f32]) {
        let cols = self.0.cols();
        out.copy_from_slice(&self.1[rows.start * cols..rows.end * cols]);
    }
}

fn desc(name: &str, shape: &[usize], dtype: DType) -> Desc {
    Desc { name: name.into(), dtype, shape: Shape::new(shape), place: Place::Arena }
}

/// Runs `op` on x, weights and a residual with counting values scaled down.
fn run(op: &impl OpDef, x: &[usize], weights: &[&[usize]], residual: Option<&[usize]>) -> Vec<f32> {
    let values = |shape: &[usize], seed: usize| -> Vec<f32> {
        (0..shape.iter().product()).map(|i: usize| ((i * 7 + seed) % 11) as f32 / 8.0 - 0.5).collect()
    };
    let dense: Vec<Dense> =
        weights.iter().enumerate().map(|(i, s)| Dense(Shape::new(s), values(s, i + 1))).collect();
    let acts: Vec<(HostData, &[usize])> = std::iter::once(x)
        .chain(residual)
        .enumerate()
        .map(|(i, s)| (HostData::F32(values(s, 5 * i)), s))
        .collect();
    let mut descs = vec![desc("x", x, DType::F32)];
    let mut data = vec![CpuIn::F32(acts[0].0.f32s())];
    for w in &dense {
        descs.push(desc("w", w.0.dims(), DType::F32));
        data.push(CpuIn::Weight(w));
    }
    if let Some((r, shape)) = acts.get(1) {
        descs.push(desc("r", shape, DType::F32));
        data.push(CpuIn::F32(r.f32s()));
    }
    let refs: Vec<&Desc> = descs.iter().collect();
    let out = op.infer(&refs).unwrap();
    let y = Desc { name: "y".into(), dtype: out[0].0, shape: out[0].1, place: Place::Arena };
    let mut io = CpuIo {
        step: Step::default(),
        ins: CpuIns { descs: refs, data },
        outs: CpuOuts { descs: vec![&y], data: vec![HostData::poison(y.dtype, y.shape.len())] },
    };
    op.cpu(&mut io).unwrap();
    io.outs.data[0].f32s().to_vec()
}

#[test]
fn linear_by_hand() {
    // x = [-.5, .375], w rows [-.375, .5] and [.]: values (i·7 + seed) mod 11 / 8 - 1/2.
    let y = run(&Linear { bias: true, out_f32: false }, &[1, 2], &[&[1, 2], &[1]], None);
    assert_eq!(y, [-0.5 * -0.375 + 0.375 * 0.5 - 0.25]);
}

#[test]
fn fused_is_its_parts_in_order() {
    let plain = Linear { bias: true, out_f32: false };
    let sums = run(&plain, &[3, 8], &[&[32, 8], &[32]], None);
    let swiglu = LinearFused { act: LinearAct::Swiglu, ..LinearFused::of(&plain) };
    let y = run(&swiglu, &[3, 8], &[&[32, 8], &[32]], None);
    assert_eq!(y.len(), 3 * 16);
    for t in 0..3 {
        for f in 0..16 {
            let at = t * 32 + (f / 8) * 16 + f % 8;
            assert_eq!(y[t * 16 + f], Act::Silu.apply(sums[at]) * sums[at + 8]);
        }
    }
    let relu = LinearFused { act: LinearAct::Relu, ..swiglu };
    let y = run(&relu, &[3, 8], &[&[32, 8], &[32]], None);
    assert!(sums.iter().any(|&sum| sum < 0.0));
    assert_eq!(y, sums.iter().map(|sum| sum.max(0.0)).collect::<Vec<_>>());
    let added = LinearFused { act: LinearAct::None, scale: true, residual: true, ..relu };
    let y = run(&added, &[3, 8], &[&[32, 8], &[32], &[32]], Some(&[3, 32]));
    let value = |i: usize, seed: usize| ((i * 7 + seed) % 11) as f32 / 8.0 - 0.5;
    for (i, y) in y.iter().enumerate() {
        assert_eq!(*y, value(i, 5) + value(i % 32, 3) * sums[i]);
    }
}

#[test]
fn a_table_is_added_to_its_columns() {
    let plain = run(&Linear { bias: true, out_f32: false }, &[3, 8], &[&[32, 8], &[32]], None);
    let op = |at| LinearFused {
        residual: true,
        table_at: Some(at),
        ..LinearFused::of(&Linear { bias: true, out_f32: false })
    };
    let y = run(&op(16), &[3, 8], &[&[32, 8], &[32]], Some(&[5, 8]));
    for (i, y) in y.iter().enumerate() {
        let (t, col) = (i / 32, i % 32);
        let at = t * 8 + col % 8;
        let added = if (16..24).contains(&col) { ((at * 7 + 5) % 11) as f32 / 8.0 - 0.5 } else { 0.0 };
        assert_eq!(*y, plain[i] + added, "{t} {col}");
    }
    assert!(op(16).reuse().is_empty());
    let of = |at: usize, table: &[usize]| {
        let ins = [desc("x", &[3, 8], DType::BF16), desc("w", &[32, 8], DType::BF16)];
        let (b, r) = (desc("b", &[32], DType::BF16), desc("r", table, DType::BF16));
        op(at).infer(&[&ins[0], &ins[1], &b, &r])
    };
    assert!(of(24, &[3, 8]).is_ok());
    // Beyond the last column, no whole vectors, too few rows.
    for (at, table) in [(32, [3, 8]), (24, [3, 16]), (12, [3, 8]), (16, [3, 4]), (16, [2, 8])] {
        let message = of(at, &table).unwrap_err().to_string();
        assert!(message.contains(&format!("r [R >= T, W] with {at} + W <= N")), "{message}");
    }
}

#[test]
fn shapes_and_messages() {
    let (x, w, b) = (
        desc("x", &[5, 64], DType::BF16),
        desc("layers.3.w", &[40, 64], DType::BF16),
        desc("b", &[40], DType::BF16),
    );
    let plain = Linear { bias: true, out_f32: true };
    assert_eq!(plain.infer(&[&x, &w, &b]).unwrap(), [(DType::F32, Shape::new(&[5, 40]))]);
    let short = desc("layers.3.w", &[40, 60], DType::BF16);
    let message = plain.infer(&[&x, &short, &b]).unwrap_err().to_string();
    assert_eq!(
        message,
        "Linear wants x [T, K], w [N, K], b [N]; got x [5, 64] bf16, layers.3.w [40, 60] bf16, b [40] bf16"
    );
    let plain = Linear { bias: false, out_f32: false };
    let swiglu = LinearFused { act: LinearAct::Swiglu, ..LinearFused::of(&plain) };
    let message = swiglu.infer(&[&x, &w, &b]).unwrap_err().to_string();
    assert!(message.starts_with("LinearFused wants x [T, K], w [N, K] with N % 16 == 0; got x"), "{message}");
    let residual = LinearFused { residual: true, ..LinearFused::of(&plain) };
    assert_eq!(residual.reuse(), [(2, 0)]);
    let r = desc("r", &[5, 40], DType::BF16);
    assert!(residual.infer(&[&x, &w, &r]).is_ok());
    let both = LinearFused { act: LinearAct::Relu, ..residual };
    let f32_out = LinearFused { residual: false, out_f32: true, ..both.clone() };
    assert!(f32_out.infer(&[&x, &w]).is_err());
    let message = both.infer(&[&x, &w, &r]).unwrap_err().to_string();
    assert!(message.contains("no activation beside a scale, a residual or f32 y; got x"), "{message}");
}

#[test]
fn every_case_has_shapes_that_infer_accepts() {
    let ops =
        Linear::cases().into_iter().map(Case::erase).chain(LinearFused::cases().into_iter().map(Case::erase));
    let ops = ops.chain(LinearRope::cases().into_iter().map(Case::erase));
    let ops = ops.chain(LinearArgMax::cases().into_iter().map(Case::erase));
    for case in ops {
        let descs: Vec<Desc> =
            case.ins.iter().map(|i| desc("in", i.shape.dims(), i.dtype.resolve(DType::BF16))).collect();
        let refs: Vec<&Desc> = descs.iter().collect();
        assert!(case.op.infer(&refs).is_ok(), "{}", case.name);
        assert!(
            case.bench || case.op.cost(&refs, &[&descs[0]]).flops < 2 << 30,
            "{} is slow on a CPU",
            case.name
        );
    }
}

enum In<'a> {
    Act(&'a [usize], &'a [f32]),
    Weight(&'a Dense),
    /// Written in place: the content of the output with this index.
    State(&'a [usize], &'a [f32], usize),
}

/// The float outputs of `op`, not rounded.
fn call(op: &impl OpDef, step: Step, ins: &[In<'_>]) -> Vec<Vec<f32>> {
    outputs(op, step, ins).iter().map(|d| d.f32s().to_vec()).collect()
}

fn outputs(op: &impl OpDef, step: Step, ins: &[In<'_>]) -> Vec<HostData> {
    let described = |i: &In<'_>| match i {
        In::Act(shape, _) | In::State(shape, ..) => desc("in", shape, DType::F32),
        In::Weight(w) => desc("w", w.0.dims(), DType::F32),
    };
    let descs: Vec<Desc> = ins.iter().map(described).collect();
    let refs: Vec<&Desc> = descs.iter().collect();
    let inferred = op.infer(&refs).unwrap();
    let outs: Vec<Desc> = inferred.iter().map(|(t, s)| desc("out", s.dims(), *t)).collect();
    let current = |out: usize| {
        ins.iter().find_map(|i| match i {
            In::State(_, values, o) if *o == out => Some(HostData::F32(values.to_vec())),
            _ => None,
        })
    };
    let data = outs
        .iter()
        .enumerate()
        .map(|(o, d)| current(o).unwrap_or_else(|| HostData::poison(d.dtype, d.shape.len())));
    let mut io = CpuIo {
        step,
        outs: CpuOuts { descs: outs.iter().collect(), data: data.collect() },
        ins: CpuIns {
            descs: refs,
            data: ins
                .iter()
                .map(|i| match i {
                    In::Act(_, values) => CpuIn::F32(values),
                    In::Weight(w) => CpuIn::Weight(*w),
                    In::State(..) => CpuIn::InPlace,
                })
                .collect(),
        },
    };
    op.cpu(&mut io).unwrap();
    io.outs.data
}

fn counted(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + 11 * seed) % 101) as f32 / 50.0 - 1.0).collect()
}

fn dense(shape: &[usize], seed: usize) -> Dense {
    Dense(Shape::new(shape), counted(shape.iter().product(), seed))
}

#[test]
fn a_norm_in_front_is_the_norm_and_then_the_product() {
    use crate::ops::norm::RmsNorm;
    let (t, n, k) = (3, 32, 24);
    let (x, r) = (counted(t * k, 1), counted(t * n, 2));
    let (w, b, s, gain) = (dense(&[n, k], 3), dense(&[n], 4), dense(&[n], 5), dense(&[k], 6));
    let step = Step::default();
    let y = call(&RmsNorm { eps: 1e-5 }, step, &[In::Act(&[t, k], &x), In::Weight(&gain)]).remove(0);

    let plain = Linear { bias: true, out_f32: true };
    let want = call(&plain, step, &[In::Act(&[t, k], &y), In::Weight(&w), In::Weight(&b)]);
    let op = LinearFused { norm: NormBefore::Rms(1e-5), ..LinearFused::of(&plain) };
    let ins = [In::Act(&[t, k], &x), In::Weight(&w), In::Weight(&b), In::Weight(&gain)];
    assert_eq!(call(&op, step, &ins), want);
    assert_eq!((op.alone(), LinearFused { norm: NormBefore::None, ..op }.alone()), (None, Some(plain)));

    let plain = Linear { bias: true, out_f32: false };
    let op = |norm| LinearFused { scale: true, residual: true, norm, ..LinearFused::of(&plain) };
    let (s, r) = (In::Weight(&s), In::Act(&[t, n], &r));
    let want = [In::Act(&[t, k], &y), In::Weight(&w), In::Weight(&b), s, r];
    let want_y = call(&op(NormBefore::None), step, &want);
    let [_, w, b, s, r] = want;
    let ins = [In::Act(&[t, k], &x), w, b, s, r, In::Weight(&gain)];
    assert_eq!(call(&op(NormBefore::Rms(1e-5)), step, &ins), want_y);
    assert_eq!(op(NormBefore::Rms(1e-5)).reuse(), [(4, 0)]);
}

#[test]
fn a_norm_begun_by_one_product_and_ended_by_the_next_is_the_norm_between_them() {
    use crate::ops::norm::RmsNorm;
    let (t, c, n, k) = (3, 64, 32, 24);
    let (x, r) = (counted(t * k, 1), counted(t * c, 2));
    let (w, gates, gain) = (dense(&[c, k], 3), dense(&[n, c], 4), dense(&[c], 5));
    let step = Step::default();
    let before = LinearFused { residual: true, ..LinearFused::of(&Linear { bias: false, out_f32: false }) };
    let behind =
        LinearFused { act: LinearAct::Swiglu, ..LinearFused::of(&Linear { bias: false, out_f32: false }) };
    let first = [In::Act(&[t, k], &x), In::Weight(&w), In::Act(&[t, c], &r), In::Weight(&gain)];
    let y = call(&before, step, &first[..3]).remove(0);
    let normed = call(&RmsNorm { eps: 1e-5 }, step, &[In::Act(&[t, c], &y), In::Weight(&gain)]).remove(0);
    let want = call(&behind, step, &[In::Act(&[t, c], &normed), In::Weight(&gates)]).remove(0);

    let begun = call(&LinearFused { begins: true, ..before }, step, &first);
    assert_eq!(begun[0], y);
    let squares: f32 = (0..2).map(|part| begun[2][part * t + 1]).sum();
    let of_row: f32 = y[c..2 * c].iter().map(|v| v * v).sum();
    assert!((squares - of_row).abs() < 1e-4 * of_row, "{squares} for {of_row}");
    let op = LinearFused { norm: NormBefore::BegunRms(1e-5), ..behind };
    let (z, squares) = (In::Act(&[t, c], &begun[1]), In::Act(&[c / 32, t], &begun[2]));
    let ins = [In::Act(&[t, c], &y), In::Weight(&gates), In::Weight(&gain), z, squares];
    for (got, want) in call(&op, step, &ins)[0].iter().zip(&want) {
        assert!((got - want).abs() <= 1e-4 * want.abs().max(1.0), "{got} for {want}");
    }
}

#[test]
fn a_product_with_rotation_is_the_product_and_then_the_rotation() {
    use crate::ops::norm::RmsNorm;
    use crate::ops::rope::RopeTable;
    let (t, k, h, g, d, s) = (3, 40, 3, 2, 16, 9);
    let n = (h + 2 * g) * d;
    let op = |norm| LinearRope {
        norm,
        table: false,
        heads: h,
        kv_heads: g,
        head_dim: d,
        theta: 1e6,
        sequences: 1,
    };
    let (x, kv) = (counted(t * k, 1), counted(2 * g * s * d, 2));
    let (w, b, gain) = (dense(&[n, k], 3), dense(&[n], 4), dense(&[k], 5));
    let step = Step::rows(5, 2, 0);
    let (kv_shape, x_shape) = ([2, g, s, d], [t, k]);
    let plain = Linear { bias: true, out_f32: false };
    let want = |x: &[f32]| {
        let qkv = call(&plain, step, &[In::Act(&x_shape, x), In::Weight(&w), In::Weight(&b)]).remove(0);
        call(&op(NormBefore::None).rope(), step, &[In::Act(&[t, n], &qkv), In::State(&kv_shape, &kv, 1)])
    };
    let (weight, bias) = (|| In::Weight(&w), || In::Weight(&b));
    let ins = [In::Act(&x_shape, &x), weight(), bias(), In::State(&kv_shape, &kv, 1)];
    assert_eq!(call(&op(NormBefore::None), step, &ins), want(&x));

    let y = call(&RmsNorm { eps: 1e-6 }, step, &[In::Act(&x_shape, &x), In::Weight(&gain)]).remove(0);
    let ins = [In::Act(&x_shape, &x), weight(), bias(), In::State(&kv_shape, &kv, 1), In::Weight(&gain)];
    assert_eq!(call(&op(NormBefore::Rms(1e-6)), step, &ins), want(&y));

    // With the angles that it would compute, from a table.
    let table = call(&RopeTable { rows: t, head_dim: d, theta: 1e6 }, step, &[]).remove(0);
    let (by_table, table_shape) = (LinearRope { table: true, ..op(NormBefore::None) }, [t, d]);
    let of_table = |row: &[f32]| {
        let (kv, table) = (In::State(&kv_shape, &kv, 1), In::Act(&table_shape, row));
        call(&by_table, step, &[In::Act(&x_shape, &x), weight(), bias(), kv, table])
    };
    assert_eq!(of_table(&table), want(&x));
    // And with others: nothing is turned by zero angles.
    let still: Vec<f32> = (0..t * d).map(|i| if i % 2 == 0 { 1.0 } else { 0.0 }).collect();
    assert_ne!(of_table(&still), want(&x));
    // A row of each of three sequences: the rotation of one row, three times.
    let batch = |norm| LinearRope { sequences: t, ..op(norm) };
    let kv = counted(2 * t * g * s * d, 2);
    let (step, kv_shape) = (Step::rows(5, 1, 0), [2, t * g, s, d]);
    let qkv = call(&plain, step, &[In::Act(&x_shape, &x), weight(), bias()]).remove(0);
    let want =
        call(&batch(NormBefore::None).rope(), step, &[In::Act(&[t, n], &qkv), In::State(&kv_shape, &kv, 1)]);
    let got = call(
        &batch(NormBefore::None),
        step,
        &[In::Act(&x_shape, &x), weight(), bias(), In::State(&kv_shape, &kv, 1)],
    );
    assert_eq!(got, want);
    assert_ne!(
        got[0][h * d..2 * h * d],
        call(
            &op(NormBefore::None).rope(),
            step,
            &[In::Act(&[t, n], &qkv), In::State(&[2, g, s, d], &kv[..2 * g * s * d], 1)]
        )[0][h * d..2 * h * d]
    );
}

#[test]
fn rows_decide_norm_and_rotation() {
    assert!(norms_in_front(1, 3584) && !norms_in_front(2, 3584) && !norms_in_front(1, 77));
    let begins = |rows, cols| begins_norms(rows, cols, DType::BF16);
    assert!(begins(17, 3584) && begins(128, 896) && !begins_norms(64, 3584, DType::F16));
    assert!(!begins(16, 3584) && !begins(129, 3584) && !begins(64, 3600));
    for (rows, sequences, k, d, takes) in [
        (1, 1, 3584, 128, Some(Angles::Computed)),
        (8, 1, 8, 16, Some(Angles::Computed)),
        (9, 1, 3584, 128, None),
        (16, 1, 3584, 128, None),
        (17, 1, 3584, 128, Some(Angles::Table)),
        (4096, 1, 8, 256, Some(Angles::Table)),
        (0, 1, 3584, 128, None),
        (1, 1, 3580, 128, None),
        (64, 1, 3584, 24, None),
        (1, 1, 3584, 272, None),
        // A row of each sequence, not two of them.
        (8, 8, 3584, 128, Some(Angles::Computed)),
        (8, 4, 3584, 128, None),
        (16, 16, 3584, 128, Some(Angles::Computed)),
        (8, 1, 3592, 128, None),
        (32, 2, 3584, 128, None),
    ] {
        assert_eq!(LinearRope::angles(rows, sequences, k, d), takes, "{rows} of {sequences}, {k} {d}");
    }
}

#[test]
fn messages_name_the_gain_and_the_cache() {
    let (x, w, b) =
        (desc("x", &[1, 64], DType::BF16), desc("w", &[64, 64], DType::BF16), desc("b", &[64], DType::BF16));
    let kv = desc("kv.3", &[2, 1, 9, 16], DType::BF16);
    let op = LinearRope {
        norm: NormBefore::Rms(1e-6),
        table: false,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        theta: 1e4,
        sequences: 1,
    };
    let message = op.infer(&[&x, &w, &b, &kv]).unwrap_err().to_string();
    assert_eq!(
        message,
        "LinearRope wants x [T, K], w [N, K], b [N] with N = (2 + 2·1) · 16 and 16 % 16 == 0, a cache [2, 1, S_max, 16] of x's \
         type, g [K]; got x [1, 64] bf16, w [64, 64] bf16, b [64] bf16, kv.3 [2, 1, 9, 16] bf16"
    );
    let plain = LinearRope { norm: NormBefore::None, ..op };
    let by_table = LinearRope { table: true, ..plain.clone() };
    let (good, bad) = (desc("t", &[1, 16], DType::F32), desc("t", &[2, 16], DType::F32));
    assert!(by_table.infer(&[&x, &w, &b, &kv, &good]).is_ok());
    let message = by_table.infer(&[&x, &w, &b, &kv, &bad]).unwrap_err().to_string();
    assert!(message.contains("of x's type, a table [T, 16] f32; got"), "{message}");
    let outs = plain.infer(&[&x, &w, &b, &kv]).unwrap();
    assert_eq!(outs, [(DType::BF16, Shape::new(&[1, 32])), (DType::BF16, kv.shape)]);
    for (norm, wants) in [
        (NormBefore::Layer(1e-6), "and no LayerNorm; got"),
        (NormBefore::BegunRms(1e-6), "g [K], z as x, f32 squares [K/32, T] and a table; got"),
    ] {
        let (gain, squares) = (desc("g", &[64], DType::BF16), desc("s", &[2, 1], DType::F32));
        let rest: &[&Desc] = if norm == NormBefore::Layer(1e-6) { &[] } else { &[&gain, &x, &squares] };
        let ins = [&[&x, &w, &b, &kv], rest].concat();
        let message = LinearRope { norm, ..plain.clone() }.infer(&ins).unwrap_err().to_string();
        assert!(message.contains(wants), "{message}");
    }
    let normed = LinearFused {
        norm: NormBefore::Rms(1e-6),
        ..LinearFused::of(&Linear { bias: false, out_f32: true })
    };
    let message = normed.infer(&[&x, &w]).unwrap_err().to_string();
    assert_eq!(message, "LinearFused wants x [T, K], w [N, K], g [K]; got x [1, 64] bf16, w [64, 64] bf16");
}

#[test]
fn the_largest_logit_beside_the_logits() {
    use crate::ops::norm::RmsNorm;
    use crate::ops::sample::ArgMax;
    use crate::ops::testing::{floats, run as run_op};
    let (t, v, k, limit) = (3, 37, 24, 30);
    let x = counted(t * k, 1);
    let (w, gain) = (dense(&[v, k], 3), dense(&[k], 4));
    let step = Step::default();
    let y = call(&RmsNorm { eps: 1e-6 }, step, &[In::Act(&[t, k], &x), In::Weight(&gain)]).remove(0);
    let plain = Linear { bias: false, out_f32: true };
    for (norm, x) in [(None, &y), (Some(1e-6), &x)] {
        let want = call(&plain, step, &[In::Act(&[t, k], &y), In::Weight(&w)]).remove(0);
        let ids = run_op(ArgMax { limit }, step, vec![floats("logits", &[t, v], &want)]).unwrap();
        let op = LinearArgMax { norm, limit };
        let shape = [t, k];
        let mut ins = vec![In::Act(&shape, x), In::Weight(&w)];
        ins.extend(norm.map(|_| In::Weight(&gain)));
        let got = outputs(&op, step, &ins);
        assert_eq!((got[0].f32s(), &got[1]), (&want[..], &ids[0]));
        assert!(got[1].u32s().iter().all(|&id| id < limit));
    }
}
