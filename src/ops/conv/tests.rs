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
        let (cols, rows) = if self.0.rank() == 1 { (self.0.len(), 0..1) } else { (self.0.cols(), rows) };
        out.copy_from_slice(&self.1[rows.start * cols..rows.end * cols]);
    }
}

fn desc(name: &str, shape: &[usize], dtype: DType) -> Desc {
    Desc { name: name.into(), dtype, shape: Shape::new(shape), place: Place::Arena }
}

fn value(i: usize, seed: usize) -> f32 {
    ((i * 7 + seed) % 11) as f32 - 5.0
}

/// Runs `op` on x and weights of small whole numbers: `value(i, 0)` for x, `value(i, j)` for the j-th weight.
fn run(op: &impl OpDef, x: &[usize], weights: &[&[usize]]) -> Vec<f32> {
    let values = |shape: &[usize], seed: usize| {
        (0..shape.iter().product()).map(|i| value(i, seed)).collect::<Vec<_>>()
    };
    let dense: Vec<Dense> =
        weights.iter().enumerate().map(|(i, s)| Dense(Shape::new(s), values(s, i + 1))).collect();
    let host = HostData::F32(values(x, 0));
    let mut descs = vec![desc("x", x, DType::F32)];
    descs.extend(dense.iter().map(|w| desc("w", w.0.dims(), DType::F32)));
    let data = std::iter::once(CpuIn::F32(host.f32s()))
        .chain(dense.iter().map(|w| CpuIn::Weight(w)))
        .collect::<Vec<_>>();
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
fn patches_are_rows_in_weight_order() {
    let op = Patchify { pixels: Pixels::Values, patch: 2, padded_cols: 16, dtype: DType::F32 };
    let y = run(&op, &[2, 3, 4, 4], &[]);
    assert_eq!(y.len(), 2 * 4 * 16);
    // Tile 1, patch (1, 0), channel 2, pixel (0, 1).
    assert_eq!(y[(4 + 2) * 16 + 2 * 4 + 1], value(((3 + 2) * 4 + 2) * 4 + 1, 0));
    assert_eq!(y[(4 + 2) * 16 + 12..][..4], [0.0; 4]);
}

/// Bytes become what the host makes of them, to the bit.
#[test]
fn patches_of_bytes_are_those_of_their_values() {
    let (mean, std) = ([0.485f32, 0.456, 0.406], [0.229f32, 0.224, 0.225]);
    let (n, s) = (2, 16);
    let bytes: Vec<u8> = (0..n * s * s * 3).map(|i| (i * 37 % 256) as u8).collect();
    let words =
        HostData::U32(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
    let mut values = vec![0.0; bytes.len()];
    for (i, byte) in bytes.iter().enumerate() {
        let (tile, at, c) = (i / (3 * s * s), i / 3 % (s * s), i % 3);
        values[(tile * 3 + c) * s * s + at] = (f32::from(*byte) / 255.0 - mean[c]) / std[c];
    }
    let values = HostData::F32(values);
    let patches = |pixels: Pixels, x: Desc, data: CpuIn<'_>| {
        let op = Patchify { pixels, patch: 4, padded_cols: 56, dtype: DType::F32 };
        let (dtype, shape) = op.infer(&[&x]).unwrap()[0];
        let y = desc("y", shape.dims(), dtype);
        let mut io = CpuIo {
            step: Step::default(),
            ins: CpuIns { descs: vec![&x], data: vec![data] },
            outs: CpuOuts { descs: vec![&y], data: vec![HostData::poison(dtype, shape.len())] },
        };
        op.cpu(&mut io).unwrap();
        io.outs.data[0].f32s().to_vec()
    };
    let from_bytes = patches(
        Pixels::Bytes { mean, std },
        desc("x", &[n, s, 3 * s / 4], DType::U32),
        CpuIn::U32(words.u32s()),
    );
    let from_values =
        patches(Pixels::Values, desc("x", &[n, 3, s, s], DType::F32), CpuIn::F32(values.f32s()));
    assert_eq!(from_bytes, from_values);

    let op = Patchify { pixels: Pixels::Bytes { mean, std }, patch: 3, padded_cols: 32, dtype: DType::F32 };
    let message = op.infer(&[&desc("x", &[1, 15, 11], DType::U32)]).unwrap_err().to_string();
    assert!(message.contains("pixels u32 [n, S, 3·S / 4] with S % 3 == 0"), "{message}");
}

#[test]
fn class_tokens_and_positions() {
    let y = run(&PrependClass { tiles: 2 }, &[6, 4], &[&[4]]);
    assert_eq!(y[16..20], [value(0, 1), value(1, 1), value(2, 1), value(3, 1)]);
    assert_eq!(y[20], value(12, 0));
    let z = run(&AssembleTokens { tiles: 2 }, &[6, 4], &[&[4], &[4, 4]]);
    for (i, z) in z.iter().enumerate() {
        assert_eq!(*z, y[i] + value(i % 16, 2));
    }
}

#[test]
fn shuffle_joins_two_by_two() {
    let y = run(&PixelShuffle { tiles: 2, grid: 4, scale: 0.5 }, &[34, 3], &[]);
    // Tile 1, token (1, 0): patches (2,0), (2,1), (3,0), (3,1).
    let row = &y[(4 + 2) * 12..][..12];
    for (part, patch) in [8, 9, 12, 13].into_iter().enumerate() {
        assert_eq!(row[part * 3 + 2], 0.5 * value((17 + 1 + patch) * 3 + 2, 0));
    }
}

#[test]
fn convolutions_by_definition() {
    let (h, w, c, n) = (7, 6, 3, 5);
    let y = run(&Conv2d { channels: c, relu: true }, &[h, w * c], &[&[n, 9 * c], &[n]]);
    assert_eq!(y.len(), 3 * 2 * n);
    for (at, y) in y.iter().enumerate() {
        let (i, j, o) = (at / n / 2, at / n % 2, at % n);
        let mut sum = value(o, 2);
        for tap in 0..9 * c {
            let (r, s, ch) = (tap / c / 3, tap / c % 3, tap % c);
            sum += value(((2 * i + r) * w + 2 * j + s) * c + ch, 0) * value(o * 9 * c + tap, 1);
        }
        assert_eq!(*y, sum.max(0.0));
    }
    for t in [1, 2, 6, 7] {
        let y = run(&Conv1d { kernel: 5, stride: 2, pad_right: 4 }, &[t, c], &[&[n, 5 * c], &[n]]);
        assert_eq!(y.len(), ((t - 1) / 2 + 1) * n);
        for (at, y) in y.iter().enumerate() {
            let (i, o) = (at / n, at % n);
            let taps = (0..5 * c).filter(|tap| 2 * i + tap / c < t);
            let sum: f32 = taps.map(|tap| value(2 * i * c + tap, 0) * value(o * 5 * c + tap, 1)).sum();
            assert_eq!(*y, sum + value(o, 2));
        }
    }
}

#[test]
fn cmvn_centres_first() {
    let y = run(&Cmvn { dtype: DType::F32 }, &[2, 3], &[&[3], &[3]]);
    assert_eq!(y[4], (value(4, 0) - value(1, 1)) * value(1, 2));
}

#[test]
fn shapes_and_messages() {
    let (x, w, b) =
        (desc("x", &[2, 80], DType::BF16), desc("w", &[16, 9], DType::BF16), desc("b", &[16], DType::BF16));
    let conv = Conv2d { channels: 1, relu: false };
    assert_eq!(
        conv.infer(&[&x, &w, &b]).unwrap_err().to_string(),
        "Conv2d wants x [H, W·1] with H, W >= 3, w [N, 9], b [N]; got x [2, 80] bf16, w [16, 9] bf16, b [16] bf16"
    );
    let x = desc("x", &[1000, 80], DType::BF16);
    assert_eq!(conv.infer(&[&x, &w, &b]).unwrap(), [(DType::BF16, Shape::new(&[499, 39 * 16]))]);
    let odd = PixelShuffle { tiles: 1, grid: 3, scale: 1.0 };
    assert!(odd.infer(&[&desc("x", &[10, 8], DType::BF16)]).is_err());
}
