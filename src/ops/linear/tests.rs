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
    let swiglu = LinearFused {
        bias: true,
        act: LinearAct::Swiglu,
        scale: false,
        residual: false,
        norm: None,
        out_f32: false,
    };
    let y = run(&swiglu, &[3, 8], &[&[32, 8], &[32]], None);
    assert_eq!(y.len(), 3 * 16);
    for t in 0..3 {
        for f in 0..16 {
            let at = t * 32 + (f / 8) * 16 + f % 8;
            assert_eq!(y[t * 16 + f], Act::Silu.apply(sums[at]) * sums[at + 8]);
        }
    }
    let all = LinearFused { act: LinearAct::Relu, scale: true, residual: true, ..swiglu };
    let y = run(&all, &[3, 8], &[&[32, 8], &[32], &[32]], Some(&[3, 32]));
    let value = |i: usize, seed: usize| ((i * 7 + seed) % 11) as f32 / 8.0 - 0.5;
    for (i, y) in y.iter().enumerate() {
        assert_eq!(*y, value(i, 5) + value(i % 32, 3) * sums[i].max(0.0));
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
    let swiglu = LinearFused {
        bias: false,
        act: LinearAct::Swiglu,
        scale: false,
        residual: true,
        norm: None,
        out_f32: false,
    };
    let message = swiglu.infer(&[&x, &w, &b]).unwrap_err().to_string();
    assert!(
        message.starts_with("LinearFused wants x [T, K], w [N, K], r [T, N/2] with N % 16 == 0; got x"),
        "{message}"
    );
    assert_eq!(swiglu.reuse(), [(2, 0)]);
}

#[test]
fn every_case_has_shapes_that_infer_accepts() {
    let ops =
        Linear::cases().into_iter().map(Case::erase).chain(LinearFused::cases().into_iter().map(Case::erase));
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
