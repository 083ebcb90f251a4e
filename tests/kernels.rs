//! Every op's kernel against its f32 reference, on a GPU.
//!
//! A kernel may err twice as much as rounding the exact result to its type does, plus a floor: tolerance is earned,
//! not chosen. All failures are printed in one table. Without a GPU nothing is checked, and the test says so;
//! `VIVACE_REQUIRE_GPU=1` turns that into a failure, `VIVACE_CASES=TEXT` picks cases by name, `VIVACE_SHARD=2/8` every
//! eighth of these from the second on (for processes side by side: most of the time is the reference's),
//! `VIVACE_SMALL_CASES=1` leaves out the shapes of the real model (for runs under a sanitizer).
#![cfg(feature = "cuda")]

use std::sync::Arc;

use vivace::core::{DType, Desc, HostData, HostTensor, Place, Recipe, Result, Shape, Step, Tensor};
use vivace::engine::{DeviceChoice, open_backend};
use vivace::exec::cases::{Bound, CaseTypes, values, work};
use vivace::exec::cpu::Cpu;
use vivace::exec::{Backend, ExeId, Lane};
use vivace::graph::Graph;
use vivace::ops::attention::{self, Batch};
use vivace::ops::elementwise::Add;
use vivace::ops::embed::Embed;
use vivace::ops::norm::RmsNorm;
use vivace::ops::{Case, Fill, Op};
use vivace::plan::plan;
use vivace::weights::{Info, Source, SynthSource, pack};

/// The largest case that is compared: beyond, the reference would take minutes.
const MAX_FLOPS: u64 = 60_000_000_000;

fn gpu() -> Option<Box<dyn Backend>> {
    match open_backend(DeviceChoice::Cuda(0)) {
        Ok(backend) => Some(backend),
        Err(why) => {
            let required = std::env::var_os("VIVACE_REQUIRE_GPU").is_some_and(|v| v != "0");
            assert!(!required, "a GPU is required: {why}");
            println!("no GPU: nothing checked ({why})");
            None
        }
    }
}

/// Size of a unit in the last place at 1, halved: what rounding to the type may cost.
fn half_ulp(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1.0 / 512.0,
        DType::F16 => 1.0 / 4096.0,
        _ => 1.0 / 262_144.0,
    }
}

struct Errors {
    /// ‖a − b‖ / ‖b‖.
    rel: f64,
    /// Largest |a − b|, and where.
    max: f64,
    worst: usize,
}

fn errors(a: &[f32], b: &[f32]) -> Errors {
    let (mut diff, mut norm) = (0.0, 0.0);
    let mut e = Errors { rel: 0.0, max: 0.0, worst: 0 };
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        let d = if x == y { 0.0 } else { (f64::from(*x) - f64::from(*y)).abs() };
        diff += d * d;
        norm += f64::from(*y).powi(2);
        if d.is_nan() || d > e.max {
            (e.max, e.worst) = (if d.is_nan() { f64::INFINITY } else { d }, i);
        }
    }
    e.rel = if diff == 0.0 { 0.0 } else { (diff / norm.max(f64::MIN_POSITIVE)).sqrt() };
    if e.rel.is_nan() {
        e.rel = f64::INFINITY;
    }
    e
}

/// What is wrong with a kernel's output, or nothing; and the share of the budget that it used. `dtype`: what the output, or
/// what it was made of, was rounded to.
fn judge(got: &HostTensor, exact: &HostTensor, dtype: DType) -> (f64, Option<String>) {
    if let (HostData::U32(a), HostData::U32(b)) = (&got.data, &exact.data) {
        let wrong = (0..b.len()).filter(|&i| a.get(i) != Some(&b[i])).collect::<Vec<_>>();
        return match wrong.first() {
            None => (0.0, None),
            Some(&i) => (
                f64::INFINITY,
                Some(format!(
                    "{} of {} ids differ, first at {i}: {:?} != {}",
                    wrong.len(),
                    b.len(),
                    a.get(i),
                    b[i]
                )),
            ),
        };
    }
    let (a, b) = (got.data.f32s(), exact.data.f32s());
    if a.len() != b.len() {
        return (f64::INFINITY, Some(format!("{} values instead of {}", a.len(), b.len())));
    }
    let rounded: Vec<f32> = b.iter().map(|x| dtype.round(*x)).collect();
    let (e, r) = (errors(a, b), errors(&rounded, b));
    let largest = b.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
    let max_rel = 2.0 * r.rel + if dtype == DType::F32 { 1e-5 } else { 1e-6 };
    let max_abs = 2.0 * r.max + half_ulp(dtype) * largest;
    let used = (e.rel / max_rel).max(if max_abs > 0.0 { e.max / max_abs } else { 0.0 });
    let bad = e.rel > max_rel || e.max > max_abs;
    let text = format!(
        "rel {:.2e} (allowed {max_rel:.2e}), max {:.2e} (allowed {max_abs:.2e}) at {}: {} != {}",
        e.rel,
        e.max,
        e.worst,
        a.get(e.worst).copied().unwrap_or(0.0),
        b.get(e.worst).copied().unwrap_or(0.0)
    );
    (used, bad.then_some(text))
}

fn compare(gpu: &mut dyn Backend, case: &Case<Op>, dtype: DType) -> Result<Vec<(f64, Option<String>)>> {
    let mut cpu = Cpu::new();
    let reference = Bound::new(&mut cpu, case, CaseTypes::reference(dtype), 1)?;
    let exact = reference.run(&mut cpu, case)?;
    let bound = Bound::new(gpu, case, CaseTypes::device(dtype), 1)?;
    // Eagerly, captured and replayed: the three are one path, and must agree to the bit.
    let mut runs = Vec::new();
    for n in 0..3 {
        if n > 0 && !case.op.in_place().is_empty() {
            bound.rewind(gpu, case)?;
        }
        runs.push(bound.run(gpu, case)?);
    }
    bound.release(gpu);
    // Statistics and sums of squares are those of rows that have been rounded.
    let of_rounded = matches!(&case.op, Op::LinearFused(op) if op.stats || op.begins);
    let rounded_to = |i: usize, t: &HostTensor| if of_rounded && i > 0 { dtype } else { t.desc.dtype };
    let both = runs[0].iter().zip(&exact).enumerate();
    let mut verdicts: Vec<_> = both.map(|(i, (a, b))| judge(a, b, rounded_to(i, a))).collect();
    let bits = |t: &HostTensor| t.data.f32s().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for later in &runs[1..] {
        for (i, (a, b)) in runs[0].iter().zip(later).enumerate() {
            if bits(a) != bits(b) || a.data.u32s() != b.data.u32s() {
                verdicts[i].1.get_or_insert_with(|| "a second run gives other bits".into());
            }
        }
    }
    Ok(verdicts)
}

/// `i/n` of `VIVACE_SHARD`, 1 <= i <= n; all cases without it.
fn shard() -> (usize, usize) {
    let Ok(text) = std::env::var("VIVACE_SHARD") else { return (1, 1) };
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((i, n)) if 1 <= i && i <= n => (i, n),
        _ => panic!("VIVACE_SHARD={text}: i/n with 1 <= i <= n expected, such as 2/8"),
    }
}

#[test]
fn every_kernel_matches_its_reference() {
    let Some(mut gpu) = gpu() else { return };
    let (shard, shards) = shard();
    let wanted = std::env::var("VIVACE_CASES").unwrap_or_default().to_lowercase();
    let small_only = std::env::var_os("VIVACE_SMALL_CASES").is_some();
    let small = |c: &Case<Op>| {
        let elements: usize = c.ins.iter().map(|i| i.shape.len()).sum();
        // One CTA walks a row of a whole vocabulary: minutes under a race check.
        let long_row = c.ins.iter().any(|i| i.shape.cols() > 100_000);
        if small_only { !c.bench && !long_row } else { !c.bench || elements < 1 << 24 }
    };
    let (mut failed, mut checked, mut most) = (Vec::new(), 0, (0.0, String::new()));
    for case in Op::all_cases()
        .iter()
        .filter(|c| c.name.to_lowercase().contains(&wanted) && small(c) && flops(c) < MAX_FLOPS)
        .skip(shard - 1)
        .step_by(shards)
    {
        for dtype in [DType::BF16, DType::F16] {
            if case.bench && dtype == DType::F16 {
                continue;
            }
            let name = format!("{} {dtype}", case.name);
            checked += 1;
            match compare(gpu.as_mut(), case, dtype) {
                Ok(verdicts) => {
                    for (i, (used, bad)) in verdicts.into_iter().enumerate() {
                        if used > most.0 && used.is_finite() {
                            most = (used, name.clone());
                        }
                        failed.extend(bad.map(|why| format!("{name} out {i}: {why}")));
                    }
                }
                Err(e) => {
                    failed.push(format!("{name}: {e}"));
                    // A failed launch can leave the context unusable: the rest would only repeat it.
                    if gpu.sync().is_err() {
                        failed.push("the context is gone: stopping here".into());
                        break;
                    }
                }
            }
        }
        if failed.last().is_some_and(|f| f.contains("stopping")) {
            break;
        }
    }
    println!("{checked} cases checked; most of the budget: {:.2} in {}", most.0, most.1);
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed.join("\n"));
    assert!(checked > 0, "VIVACE_CASES={wanted}, shard {shard}/{shards}: no such case");
}

/// Tiles of keys go past the end of a sequence, into the rows of the next: what is no number in one sequence of a batch must
/// reach no other, and change no bit there.
#[test]
fn what_is_no_number_stays_in_its_sequence() {
    let Some(mut gpu) = gpu() else { return };
    let mut checked = 0;
    for mut case in Op::all_cases() {
        let Op::Attention(op) = case.op.clone() else { continue };
        let Batch::Lengths(lengths) = &op.batch else { continue };
        if case.bench || op.source != attention::Source::Packed {
            continue;
        }
        let row_width = case.ins[0].shape.cols();
        // Every second sequence, from the second on.
        let spoilt: Vec<bool> =
            lengths.iter().enumerate().flat_map(|(n, rows)| vec![n % 2 == 1; *rows]).collect();
        let clean = run_once(gpu.as_mut(), &case);
        let HostData::F32(mut x) = values(&case, 0, &case.ins[0], DType::BF16) else {
            panic!("{}", case.name)
        };
        for (row, _) in x.chunks_exact_mut(row_width).zip(&spoilt).filter(|(_, spoilt)| **spoilt) {
            row.fill(f32::NAN);
        }
        case.ins[0].fill = Fill::Words(x.iter().map(|x| x.to_bits()).collect::<Vec<_>>().leak());
        let with_nan = run_once(gpu.as_mut(), &case);
        let width = op.heads * op.head_dim;
        for (row, (a, b)) in clean.chunks_exact(width).zip(with_nan.chunks_exact(width)).enumerate() {
            let same = a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(spoilt[row] || same, "{}: row {row} differs", case.name);
        }
        checked += 1;
    }
    println!("{checked} cases checked");
    assert!(checked > 0);
}

/// The first output of a case in bf16.
fn run_once(gpu: &mut dyn Backend, case: &Case<Op>) -> Vec<f32> {
    let bound = Bound::new(gpu, case, CaseTypes::device(DType::BF16), 1).unwrap();
    let outs = bound.run(gpu, case).unwrap();
    bound.release(gpu);
    outs[0].data.f32s().to_vec()
}

/// Work of a case, by its op's own count; what breaks its shape rule shows when it runs.
fn flops(case: &Case<Op>) -> u64 {
    work(case, DType::BF16).map_or(0, |(cost, _)| cost.flops)
}

/// A chain with a residual, so that slots are shared and a node reads two tensors.
struct Chain {
    exe: ExeId,
    x: Tensor,
    y: Tensor,
}

impl Chain {
    const SHAPE: [usize; 2] = [17, 896];

    fn prepare(gpu: &mut dyn Backend) -> Chain {
        let [rows, width] = Chain::SHAPE;
        let mut g = Graph::new();
        let x = g.input("x", DType::BF16, &[rows, width]);
        let w = g.weight(Recipe::plain("norm.weight", DType::BF16, &[width]));
        let mut h = x;
        for i in 0..8 {
            let y = g.push1(&format!("y{i}"), RmsNorm { eps: 1e-6 }, &[h, w]).unwrap();
            h = g.push1(&format!("h{i}"), Add, &[h, y]).unwrap();
        }
        g.output(h);
        let source: Arc<dyn Source> =
            Arc::new(SynthSource::new(3, DType::BF16, vec![("norm.weight".into(), vec![width])]));
        gpu.load(&g.weights, &source, &mut |_, _| {}).unwrap();
        let exe = gpu.prepare(Lane::Text, plan(g, |d| d.bytes()).unwrap(), &[]).unwrap();
        Chain { exe, x, y: h }
    }

    /// What it makes of the same rows, written anew.
    fn run(&self, gpu: &mut dyn Backend) -> HostData {
        let [rows, width] = Chain::SHAPE;
        let values = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
        gpu.write(self.exe, self.x, &HostData::F32(values)).unwrap();
        gpu.run(self.exe, Step::rows(0, rows, 0)).unwrap();
        gpu.read(self.exe, self.y).unwrap().data
    }
}

fn assert_same(outs: &[HostData]) {
    assert!(outs[0].f32s().iter().all(|v| v.is_finite()));
    assert!(outs.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn eager_captured_and_replayed_runs_agree_to_the_bit() {
    let Some(mut gpu) = gpu() else { return };
    let chain = Chain::prepare(gpu.as_mut());
    let mut outs = Vec::new();
    for capture in [true, true, true, false] {
        gpu.set_capture(capture);
        gpu.set_poison(true);
        outs.push(chain.run(gpu.as_mut()));
    }
    assert_same(&outs);
}

#[test]
fn a_backend_goes_on_in_another_thread() {
    let Some(mut gpu) = gpu() else { return };
    let chain = Chain::prepare(gpu.as_mut());
    // Eagerly, captured and replayed, each in a thread that has never met the device.
    let run = |mut gpu: Box<dyn Backend>| {
        let out = chain.run(gpu.as_mut());
        (gpu, out)
    };
    let mut outs = Vec::new();
    for _ in 0..3 {
        let (back, out) = std::thread::scope(|threads| threads.spawn(|| run(gpu)).join().unwrap());
        (gpu, outs) = (back, [outs, vec![out]].concat());
    }
    assert_same(&outs);
}

/// A thread may have backends on several GPUs, and use them in turn.
#[test]
fn backends_on_two_gpus_do_not_disturb_each_other() {
    let Some(first) = gpu() else { return };
    let second = match open_backend(DeviceChoice::Cuda(1)) {
        Ok(second) => second,
        Err(why) => return println!("no second GPU: nothing checked ({why})"),
    };
    let mut gpus = [first, second];
    let desc = Desc { name: "s".into(), dtype: DType::F32, shape: Shape::new(&[3]), place: Place::Arena };
    let chains = gpus.each_mut().map(|gpu| Chain::prepare(gpu.as_mut()));
    let mut outs = Vec::new();
    for round in 0..3 {
        for (gpu, chain) in gpus.iter_mut().zip(&chains) {
            let state = gpu.create_state(&desc).unwrap();
            gpu.write_state(state, 0, &HostData::F32(vec![round as f32; 3])).unwrap();
            outs.push(chain.run(gpu.as_mut()));
            assert_eq!(gpu.read_state(state).unwrap(), HostData::F32(vec![round as f32; 3]));
            gpu.release_state(state);
        }
    }
    assert_same(&outs);
}

#[test]
fn an_arena_that_cannot_grow_leaves_what_was_prepared() {
    let Some(mut gpu) = gpu() else { return };
    let chain = Chain::prepare(gpu.as_mut());
    let mut outs = Vec::new();
    for _ in 0..3 {
        // Once eagerly, once captured; each time at another address.
        for _ in 0..2 {
            outs.push(chain.run(gpu.as_mut()));
        }
        let message = gpu.reserve(Lane::Text, 1 << 46).unwrap_err().to_string();
        assert!(message.starts_with("out of device memory: the arena needs 70368.74 GB"), "{message}");
    }
    assert_same(&outs);
}

/// Copies rows between two states as the model does to keep rows of its KV cache and to take them back.
fn copy_rows(b: &mut dyn Backend, rows: usize, kept_rows: usize, dim: usize) -> [HostData; 2] {
    let mut state = |name: &str, rows: usize| {
        let shape = Shape::new(&[2, 4, rows, dim]);
        let desc = Desc { name: name.into(), dtype: DType::BF16, shape, place: Place::Arena };
        b.create_state(&desc).unwrap()
    };
    let (kv, kept) = (state("kv", rows), state("kept", kept_rows));
    let values: Vec<f32> = (0..2 * 4 * rows * dim).map(|i| (i % 251) as f32).collect();
    b.write_state(kv, 0, &HostData::F32(values)).unwrap();
    b.copy_state_rows(kv, rows - kept_rows, kept, 0, kept_rows).unwrap();
    b.copy_state_rows(kv, 0, kept, 1, 3).unwrap();
    b.copy_state_rows(kept, 2, kv, 3, kept_rows - 2).unwrap();
    assert!(b.copy_state_rows(kv, rows - 1, kept, 0, 2).is_err());
    assert!(b.copy_state_rows(kv, 0, kv, 3, 2).is_err(), "within one state");
    [kv, kept].map(|s| b.read_state(s).unwrap())
}

#[test]
fn rows_of_states_are_copied_as_on_the_cpu() {
    let Some(mut gpu) = gpu() else { return };
    for (rows, kept_rows, dim) in [(2048, 192, 128), (515, 64, 64), (7, 5, 16)] {
        let copied = copy_rows(gpu.as_mut(), rows, kept_rows, dim);
        assert!(copied == copy_rows(&mut Cpu::new(), rows, kept_rows, dim), "{rows} rows of {dim}");
    }
}

/// A source that hides how its values are made, so that they go through the staging buffers.
struct Stored(SynthSource);

impl Source for Stored {
    fn names(&self) -> Vec<String> {
        self.0.names()
    }
    fn info(&self, name: &str) -> Option<Info> {
        self.0.info(name)
    }
    fn bytes(&self, name: &str) -> Result<&[u8]> {
        self.0.bytes(name)
    }
    fn place(&self, name: &str) -> String {
        self.0.place(name)
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
}

#[test]
fn weights_made_or_uploaded_have_the_bits_of_the_host() {
    let Some(mut gpu) = gpu() else { return };
    for dtype in [DType::BF16, DType::F16] {
        for way in ["made", "stored"] {
            let name = |n: &str| format!("{way}.{n}.weight");
            let tensors: Vec<(String, Vec<usize>)> = vec![
                (name("gate"), vec![48, 72]),
                (name("up"), vec![48, 72]),
                (name("conv"), vec![6, 8, 3, 3]),
                (name("patch"), vec![7, 3, 14, 14]),
                (name("large"), vec![2000, 20_000]),
            ];
            let synth = SynthSource::new(9, dtype, tensors.clone());
            let source: Arc<dyn Source> = match way {
                "made" => Arc::new(synth),
                _ => Arc::new(Stored(synth)),
            };
            let plain = |i: usize| Recipe::plain(&tensors[i].0, dtype, &tensors[i].1);
            let recipes = [
                plain(0),
                Recipe::interleave(&plain(0), &plain(1), 8).unwrap(),
                Recipe::stack(&[&plain(0), &plain(1)]).unwrap(),
                Recipe::permuted(&tensors[2].0, dtype, &tensors[2].1, &[0, 2, 3, 1], &[6, 72]),
                Recipe::padded_cols(&tensors[3].0, dtype, &tensors[3].1, 592),
                plain(4),
            ];
            for recipe in &recipes {
                let mut bytes = vec![0u8; recipe.bytes() as usize];
                pack(recipe, source.as_ref(), &mut bytes).unwrap();
                let want = vivace::gpu::convert::from_device(dtype, &bytes);
                let got = read_weight(gpu.as_mut(), recipe, &source).unwrap();
                assert!(got == want, "{} {dtype} differs", recipe.name());
            }
        }
    }
}

/// A weight's rows, looked up one by one as embeddings are: an exact copy.
fn read_weight(gpu: &mut dyn Backend, recipe: &Recipe, from: &Arc<dyn Source>) -> Result<HostData> {
    gpu.load(std::slice::from_ref(recipe), from, &mut |_, _| {})?;
    let mut g = Graph::new();
    let table = g.weight(recipe.clone());
    let rows = recipe.shape[0];
    let ids = g.input("ids", DType::U32, &[rows]);
    let copy = g.push1("copy", Embed, &[ids, table])?;
    g.output(copy);
    let exe = gpu.prepare(Lane::Text, plan(g, |d| d.bytes())?, &[])?;
    gpu.write(exe, ids, &HostData::U32((0..rows as u32).collect()))?;
    gpu.run(exe, Step::rows(0, rows, 0))?;
    let data = gpu.read(exe, copy)?.data;
    gpu.release(exe);
    Ok(data)
}
