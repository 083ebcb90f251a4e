use super::*;
use crate::core::{HostData, Place, Step};
use crate::ops::io::{CpuIn, CpuIns, CpuOuts};

fn desc(dtype: DType, shape: &[usize]) -> Desc {
    Desc { name: "t".to_owned(), dtype, shape: Shape::new(shape), place: Place::Arena }
}

/// Numbers in ±1 that repeat from run to run.
fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Runs an op on f32 inputs and returns its outputs.
fn run<O: OpDef>(op: &O, step: Step, ins: &[(&[usize], &[f32])]) -> Vec<Vec<f32>> {
    let descs: Vec<Desc> = ins.iter().map(|(shape, _)| desc(DType::F32, shape)).collect();
    let refs: Vec<&Desc> = descs.iter().collect();
    let outs: Vec<Desc> = op.infer(&refs).unwrap().iter().map(|(t, s)| desc(*t, s.dims())).collect();
    let mut io = CpuIo {
        step,
        ins: CpuIns { descs: refs, data: ins.iter().map(|(_, data)| CpuIn::F32(data)).collect() },
        outs: CpuOuts {
            descs: outs.iter().collect(),
            data: outs.iter().map(|d| HostData::poison(DType::F32, d.shape.len())).collect(),
        },
    };
    op.cpu(&mut io).unwrap();
    io.outs.data.iter().map(|d| d.f32s().to_vec()).collect()
}

/// Softmax attention of one query over `keys` in f64, straight from the definition.
fn row(
    q: &[f32],
    k: &dyn Fn(usize) -> Vec<f32>,
    v: &dyn Fn(usize) -> Vec<f32>,
    s: &[(usize, f64)],
    scale: f64,
) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let scores: Vec<f64> = s.iter().map(|(j, bias)| scale * dot(q, &k(*j)) + bias).collect();
    let mut out = vec![0.0; q.len()];
    if scores.iter().all(|s| *s == f64::NEG_INFINITY) {
        return out;
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    for (score, (j, _)) in scores.iter().zip(s) {
        let p = (score - max).exp() / sum;
        out.iter_mut().zip(v(*j)).for_each(|(o, v)| *o += p * f64::from(v));
    }
    out
}

fn assert_near(got: &[f32], want: &[f64], at: &str) {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() < 2e-6, "{at}, column {i}: {g} instead of {w}");
    }
}

#[test]
fn masks_as_the_models_state_them() {
    assert_eq!(Mask::Full.keys(3, 9), 0..9);
    assert_eq!(Mask::Causal.keys(3, 9), 0..4);
    assert_eq!(Mask::Causal.keys(8, 6), 0..6);
    let chunk = |left| Mask::Chunk { size: 4, left };
    assert_eq!(chunk(2).keys(3, 30), 0..4);
    assert_eq!(chunk(2).keys(17, 30), 8..20);
    assert_eq!(chunk(0).keys(29, 30), 28..30);
    assert_eq!(chunk(-1).keys(17, 30), 0..20);
}

#[test]
fn packed_batches_groups_and_bias() {
    let (h, g, d, batch, rows) = (4, 2, 8, 3, 11);
    let t = batch * rows;
    let cols = (h + 2 * g) * d;
    let x = noise(t * cols, 1);
    let mut bias = noise(h * t, 2);
    for j in [0, 5, 12] {
        bias[2 * t + j] = f32::NEG_INFINITY;
    }
    bias[t + 2 * rows..2 * t].fill(f32::NEG_INFINITY); // head 1 sees nothing in the last sequence
    for mask in [Mask::Full, Mask::Causal, Mask::Chunk { size: 4, left: 1 }] {
        let op = Attention {
            heads: h,
            kv_heads: g,
            head_dim: d,
            scale: 0.3,
            mask,
            source: Source::Packed,
            batch: Batch::Equal(batch),
            bias: true,
        };
        let out = &run(&op, Step::default(), &[(&[t, cols], &x), (&[h, t], &bias)])[0];
        for at in 0..t {
            for head in 0..h {
                let (base, i, kv) = (at / rows * rows, at % rows, head / 2);
                let part = |j: usize, first: usize| {
                    let from = (base + j) * cols + (first + kv) * d;
                    x[from..from + d].to_vec()
                };
                let q = &x[at * cols + head * d..][..d];
                let seen: Vec<_> =
                    mask.keys(i, rows).map(|j| (j, f64::from(bias[head * t + base + j]))).collect();
                let want = row(q, &|j| part(j, h), &|j| part(j, h + g), &seen, f64::from(0.3f32));
                assert_near(
                    &out[(at * h + head) * d..][..d],
                    &want,
                    &format!("{mask:?} row {at} head {head}"),
                );
            }
        }
    }
}

#[test]
fn cache_reads_nothing_behind_kv_len_and_pads_with_zeros() {
    let (h, g, d, s_max, t) = (6, 2, 8, 40, 9);
    let (pos, valid) = (13, 7);
    let q = noise(t * h * d, 3);
    let mut kv = noise(2 * g * s_max * d, 4);
    for head in kv.chunks_exact_mut(s_max * d) {
        head[(pos + valid) * d..].fill(f32::NAN);
    }
    let op = Attention {
        heads: h,
        kv_heads: g,
        head_dim: d,
        scale: 0.35,
        mask: Mask::Causal,
        source: Source::Cache { kv_bucket: 32 },
        batch: Batch::Equal(1),
        bias: false,
    };
    let out = &run(&op, Step::rows(pos, valid, 0), &[(&[t, h * d], &q), (&[2, g, s_max, d], &kv)])[0];
    for at in 0..t {
        for head in 0..h {
            let part = |j: usize, which: usize| {
                let from = ((which * g + head / 3) * s_max + j) * d;
                kv[from..from + d].to_vec()
            };
            let seen: Vec<_> = (0..pos + at + 1).map(|j| (j, 0.0)).collect();
            let want = match at < valid {
                true => {
                    let q = &q[(at * h + head) * d..][..d];
                    row(q, &|j| part(j, 0), &|j| part(j, 1), &seen, f64::from(0.35f32))
                }
                false => vec![0.0; d],
            };
            assert_near(&out[(at * h + head) * d..][..d], &want, &format!("row {at} head {head}"));
        }
    }
}

#[test]
fn a_cache_that_is_too_short_is_an_error() {
    let op = cases::attention().into_iter().find(|c| c.name.starts_with("cache_t9_")).unwrap().op;
    let (q, kv) = (desc(DType::F32, &[9, 7 * 128]), desc(DType::F32, &[2, 1, 16, 128]));
    let (zeros, cached) = (vec![0.0; q.shape.len()], vec![0.0; kv.shape.len()]);
    let out = desc(DType::F32, q.shape.dims());
    let mut io = CpuIo {
        step: Step::rows(8, 9, 0),
        ins: CpuIns { descs: vec![&q, &kv], data: vec![CpuIn::F32(&zeros), CpuIn::F32(&cached)] },
        outs: CpuOuts { descs: vec![&out], data: vec![HostData::poison(DType::F32, out.shape.len())] },
    };
    let message = op.cpu(&mut io).unwrap_err().to_string();
    assert!(message.contains("17 rows in a cache of 16"), "{message}");
}

/// Whale's scores as the paper writes them are those of plain attention: over keys k + p with a bias of the keys, and
/// with queries q + u and a bias of the positions alone.
#[test]
fn folding_keys_keeps_the_scores() {
    let (h, d, t, cap) = (3, 8, 10, 14);
    let c = h * d;
    let (qkv, p) = (noise(t * 3 * c, 5), noise(cap * c, 6));
    let (u, vb) = (noise(c, 7), noise(c, 8));
    let less_u: Vec<f32> = u.iter().map(|u| -u).collect();
    let scale = 0.4;
    let op = KeyBias { heads: h, head_dim: d, scale };
    let k: Vec<f32> = qkv.chunks_exact(3 * c).flat_map(|r| r[c..2 * c].to_vec()).collect();
    let ins: [(&[usize], &[f32]); 4] = [(&[t, c], &k), (&[cap, c], &p), (&[c], &u), (&[c], &vb)];
    let folded = run(&op, Step::default(), &ins);
    let ins: [(&[usize], &[f32]); 4] = [(&[cap, c], &p), (&[cap, c], &p), (&[c], &less_u), (&[c], &vb)];
    let of_positions = &run(&op, Step::default(), &ins)[1];
    let ins: [(&[usize], &[f32]); 2] = [(&[t, 3 * c], &qkv), (&[cap, c], &p)];
    let packed = &run(&AddKeys, Step::default(), &ins)[0];

    for i in 0..t {
        for j in 0..t {
            assert_eq!(packed[j * 3 * c + c..j * 3 * c + 2 * c], folded[0][j * c..(j + 1) * c]);
            assert_eq!(packed[j * 3 * c..j * 3 * c + c], qkv[j * 3 * c..j * 3 * c + c]);
            assert_eq!(packed[j * 3 * c + 2 * c..(j + 1) * 3 * c], qkv[j * 3 * c + 2 * c..(j + 1) * 3 * c]);
            for head in 0..h {
                let at = |x: usize| head * d + x;
                let paper: f32 = (0..d)
                    .map(|x| {
                        let (q, k) = (qkv[i * 3 * c + at(x)], qkv[j * 3 * c + c + at(x)]);
                        scale * ((q + u[at(x)]) * k + (q + vb[at(x)]) * p[j * c + at(x)])
                    })
                    .sum();
                let q = &qkv[i * 3 * c + at(0)..][..d];
                let keys = &folded[0][j * c + at(0)..][..d];
                let dot = |add: &[f32]| -> f32 {
                    let terms = q.iter().zip(add).zip(keys).map(|((q, add), k)| (q + add) * k);
                    scale * terms.sum::<f32>()
                };
                let of_keys = dot(&[0.0; 8]) + folded[1][head * t + j];
                assert!((of_keys - paper).abs() < 1e-5, "{i} {j} {head}: {of_keys} {paper}");
                let of_positions = dot(&u[at(0)..][..d]) + of_positions[head * cap + j];
                assert!((of_positions - paper).abs() < 1e-5, "{i} {j} {head}: {of_positions} {paper}");
            }
        }
    }
}

#[test]
fn sin_table_by_hand() {
    let pe = &run(&SinTable { rows: 3, width: 4, dtype: DType::F32 }, Step::default(), &[])[0];
    let f = 0.01f32; // 10000^(-2/4)
    let want = [0.0, 1.0, 0.0, 1.0, 1f32.sin(), 1f32.cos(), f.sin(), f.cos()];
    assert_eq!(pe[..8], want);
    assert_eq!(pe[8..], [2f32.sin(), 2f32.cos(), (2.0 * f).sin(), (2.0 * f).cos()]);
}

#[test]
fn cost_counts_behind_the_mask() {
    let all = cases::attention();
    let cost = |prefix: &str| {
        let case = all.iter().find(|c| c.name.starts_with(prefix)).unwrap();
        let ins: Vec<Desc> =
            case.ins.iter().map(|i| desc(i.dtype.resolve(DType::BF16), i.shape.dims())).collect();
        let ins: Vec<&Desc> = ins.iter().collect();
        let outs: Vec<Desc> = case.op.infer(&ins).unwrap().iter().map(|(t, s)| desc(*t, s.dims())).collect();
        case.op.cost(&ins, &outs.iter().collect::<Vec<_>>())
    };
    let prefill = cost("cache_t512_pos0");
    assert_eq!(prefill.flops, 4 * 28 * 128 * (512 * 513 / 2));
    assert_eq!(prefill.read_bytes, 512 * 28 * 128 * 2 + 2 * 4 * 512 * 128 * 2);
    assert_eq!(cost("cache_t1_pos8191").flops, 4 * 28 * 128 * 8192);
    assert_eq!(cost("packed_b13_t1025").flops, 4 * 16 * 64 * 13 * 1025 * 1025);
}

#[test]
fn infer_names_what_it_wants() {
    let op = cases::attention().into_iter().find(|c| c.name.starts_with("packed_b3")).unwrap().op;
    let message = op.infer(&[&desc(DType::BF16, &[196, 384])]).unwrap_err().to_string();
    assert!(
        message.contains("Attention wants qkv [T, 384]; T % 3 = 0, and 2 query heads on 2 kv heads"),
        "{message}"
    );
    assert!(message.contains("[196, 384] bf16"), "{message}");
}

#[test]
fn cases_infer_and_have_names_of_their_own() {
    let mut names = std::collections::HashSet::new();
    for case in cases::attention() {
        let ins: Vec<Desc> =
            case.ins.iter().map(|i| desc(i.dtype.resolve(DType::F16), i.shape.dims())).collect();
        case.op.infer(&ins.iter().collect::<Vec<_>>()).unwrap();
        assert!(names.insert(case.name.clone()), "{} twice", case.name);
        if let Source::Cache { kv_bucket } = case.op.source {
            assert!(case.step.kv_len as usize <= kv_bucket.min(case.ins[1].shape[2]), "{}", case.name);
        }
    }
}

/// Rows of several sequences with a cache each, and every sequence by itself; one row of each also as one row with the
/// heads of all, as the GPU launches it.
#[test]
fn a_batch_with_a_cache_is_its_sequences_one_by_one() {
    let (b, h, g, d, s) = (5, 4, 2, 8, 13);
    let kv = noise(2 * b * g * s * d, 4);
    let op = |batch| Attention {
        heads: h,
        kv_heads: g,
        head_dim: d,
        scale: 0.4,
        mask: Mask::Causal,
        source: Source::Cache { kv_bucket: s },
        batch: Batch::Equal(batch),
        bias: false,
    };
    for (rows, pos, valid) in [(1, 0, 1), (1, 12, 1), (1, 6, 0), (3, 7, 3), (6, 4, 5)] {
        let q = noise(b * rows * h * d, 5);
        let step = Step::rows(pos, valid, 0);
        let all = &run(&op(b), step, &[(&[b * rows, h * d], &q), (&[2, b * g, s, d], &kv)])[0];
        for n in 0..b {
            let len = g * s * d;
            let of_n = [&kv[n * len..][..len], &kv[(b + n) * len..][..len]].concat();
            let q = &q[n * rows * h * d..][..rows * h * d];
            let one = &run(&op(1), step, &[(&[rows, h * d], q), (&[2, g, s, d], &of_n)])[0];
            assert_eq!(&all[n * rows * h * d..][..rows * h * d], one, "sequence {n}, {rows} rows at {pos}");
        }
        if rows == 1 {
            let heads = Attention { heads: b * h, kv_heads: b * g, ..op(1) };
            let one = &run(&heads, step, &[(&[1, b * h * d], &q), (&[2, b * g, s, d], &kv)])[0];
            assert_eq!(all, one);
        }
    }
    let wrong = [desc(DType::F32, &[5, h * d]), desc(DType::F32, &[2, g, s, d])];
    let message = op(b).infer(&[&wrong[0], &wrong[1]]).unwrap_err().to_string();
    assert!(message.contains("kv [2, 10, S_max, 8] of q's type"), "{message}");
    let (q, kv) = (desc(DType::F32, &[b, h * d]), desc(DType::F32, &[2, b * g, s, d]));
    let cost = op(b).cost(&[&q, &kv], &[&q]);
    assert_eq!(cost.read_bytes, (b * h * d + 2 * b * g * s * d) as u64 * 4);
}

/// Rows of sequences of different lengths, and every sequence by itself: the same to the bit, a bias too.
#[test]
fn sequences_of_different_lengths_are_these_one_by_one() {
    let (h, g, d) = (4, 2, 8);
    let cols = (h + 2 * g) * d;
    let lengths = [7, 1, 0, 12, 7, 5, 0];
    let t = lengths.iter().sum();
    let (x, bias) = (noise(t * cols, 9), noise(h * t, 10));
    for mask in
        [Mask::Full, Mask::Causal, Mask::Chunk { size: 3, left: 1 }, Mask::Chunk { size: 2, left: -1 }]
    {
        for with_bias in [false, true] {
            let op = |batch, source| {
                let (heads, kv_heads, head_dim, scale) = (h, g, d, 0.3);
                Attention { heads, kv_heads, head_dim, scale, mask, source, batch, bias: with_bias }
            };
            let batch = || Batch::Lengths(lengths.to_vec());
            let qkv = |from: usize, rows: usize, first: usize, heads: usize| -> Vec<f32> {
                let rows = x[from * cols..][..rows * cols].chunks_exact(cols);
                rows.flat_map(|row| row[first * d..][..heads * d].to_vec()).collect()
            };
            let (packed_shape, bias_shape, wide, narrow) = ([t, cols], [h, t], [t, h * d], [t, g * d]);
            let mut ins: Vec<(&[usize], &[f32])> = vec![(&packed_shape, &x)];
            let (q, k, v) = (qkv(0, t, 0, h), qkv(0, t, h, g), qkv(0, t, h + g, g));
            let mut parts: Vec<(&[usize], &[f32])> = vec![(&wide, &q), (&narrow, &k), (&narrow, &v)];
            if with_bias {
                ins.push((&bias_shape, &bias));
                parts.push((&bias_shape, &bias));
            }
            let all = &run(&op(batch(), Source::Packed), Step::default(), &ins)[0];
            assert_eq!(all, &run(&op(batch(), Source::Separate), Step::default(), &parts)[0]);

            let mut first = 0;
            for rows in lengths {
                let shape = [rows, cols];
                let of_one: Vec<f32> =
                    bias.chunks_exact(t).flat_map(|b| b[first..first + rows].to_vec()).collect();
                let of_one_shape = [h, rows];
                let mut ins: Vec<(&[usize], &[f32])> = vec![(&shape, &x[first * cols..][..rows * cols])];
                if with_bias {
                    ins.push((&of_one_shape, &of_one));
                }
                if rows > 0 {
                    let one = &run(&op(Batch::Equal(1), Source::Packed), Step::default(), &ins)[0];
                    assert_eq!(
                        &all[first * h * d..][..rows * h * d],
                        one,
                        "{mask:?}: {rows} rows from {first}"
                    );
                }
                first += rows;
            }
        }
    }
    // Where all are alike, an equal batch.
    let op = |batch| {
        let (mask, source) = (Mask::Causal, Source::Packed);
        Attention { heads: h, kv_heads: g, head_dim: d, scale: 0.3, mask, source, batch, bias: false }
    };
    let of = |batch| run(&op(batch), Step::default(), &[(&[t, cols], &x)]).remove(0);
    assert_eq!(of(Batch::Equal(4)), of(Batch::Lengths(vec![t / 4; 4])));
}

#[test]
fn lengths_are_those_of_all_rows_and_of_no_cache() {
    let op = |source, lengths: &[usize]| Attention {
        heads: 2,
        kv_heads: 2,
        head_dim: 64,
        scale: 0.1,
        mask: Mask::Causal,
        source,
        batch: Batch::Lengths(lengths.to_vec()),
        bias: false,
    };
    let packed = desc(DType::BF16, &[196, 384]);
    for lengths in [&[196][..], &[100, 0, 96], &[1; 196]] {
        op(Source::Packed, lengths).infer(&[&packed]).unwrap();
    }
    for (lengths, wants) in [
        (&[][..], "T = 0, the rows of 0 sequences, and"),
        (&[100, 95], "T = 195, the rows of 2 sequences, and"),
        (&[100, 96, 1], "T = 197, the rows of 3 sequences, and"),
    ] {
        let message = op(Source::Packed, lengths).infer(&[&packed]).unwrap_err().to_string();
        assert!(message.contains(wants) && message.contains("got t [196, 384] bf16"), "{message}");
    }
    let (q, kv) = (desc(DType::BF16, &[4, 128]), desc(DType::BF16, &[2, 4, 30, 64]));
    let message = op(Source::Cache { kv_bucket: 30 }, &[2, 2]).infer(&[&q, &kv]).unwrap_err().to_string();
    assert!(message.contains("sequences of equal length (one step holds for all)"), "{message}");
    let three = op(Source::Packed, &[4, 1, 2]);
    let (qkv, out) = (desc(DType::BF16, &[7, 384]), desc(DType::BF16, &[7, 128]));
    assert_eq!(three.cost(&[&qkv], &[&out]).flops, 4 * 2 * 64 * (10 + 1 + 3));
}
