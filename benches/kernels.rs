//! Every op at the shapes of the real model, on one device: time, bandwidth, arithmetic, share of the roofline, and
//! the error against the f32 reference beside each.
//!
//!     cargo bench --bench kernels -- --filter linear/gate_up --json out.json
//!
//! A case is timed as a graph of many nodes, captured and replayed; the time shown is that of one node. The nodes take
//! turns on several copies of the tensors, which together exceed the L2 cache, so that each node reads memory; where
//! one run touches too little for that (a row of activations), the row says `warm`: in the model, too, the node
//! before leaves such inputs in the cache.
//!
//! With `--sustain 1` each graph is then replayed for longer: at the power limit a kernel takes the time of its energy.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;

use vivace::core::{Cost, DType, Error, HostData, HostTensor, Result};
use vivace::engine::measure::{
    Meta, Rates, Spread, Sustained, WARMUP, percent, relative, rest, roofline_us, sustain_time, table,
    time_graph,
};
use vivace::engine::{DeviceChoice, ResultFile, open_backend};
use vivace::exec::cases::{Bound, CaseTypes, work};
use vivace::exec::cpu::Cpu;
use vivace::exec::{Backend, Ceilings};
use vivace::ops::{Case, Op};

/// What the copies of a case touch together at least, if it can be: well over the 50 MB of an H200's L2.
const COLD_BYTES: u64 = 192 << 20;
/// From here on a run counts as cold.
const L2_BYTES: u64 = 100 << 20;
/// What a graph takes at least, as far as can be told beforehand: what a replay costs by itself is lost in it.
const GRAPH_US: f64 = 400.0;
/// A guess at the least that a kernel takes.
const KERNEL_US: f64 = 2.0;
const ROUNDS: usize = 8;
/// Room for all copies of a case.
const ROOM_BYTES: u64 = 6 << 30;
const COPIES: std::ops::RangeInclusive<u64> = 4..=256;
/// Cases with more work than this are timed without a reference, which would take minutes.
const REFERENCE_FLOPS: u64 = 20_000_000_000;
/// What the CPU is given.
const CPU_FLOPS: u64 = 2_000_000_000;
const CPU_BYTES: u64 = 256 << 20;

/// Times every op at the shapes of the model.
#[derive(Parser)]
struct Flags {
    /// auto, cpu or cuda:N; the CPU times its references of the small cases.
    #[arg(long, default_value = "cuda:0")]
    device: DeviceChoice,
    /// Only cases whose name contains one of these, separated by commas, in any case.
    #[arg(long)]
    filter: Option<String>,
    /// Element type of activations and weights.
    #[arg(long, default_value = "bf16", value_parser = ["bf16", "f16"])]
    dtype: String,
    /// Writes the results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Without the error against the reference, which takes most of the time.
    #[arg(long)]
    no_error: bool,
    /// Then replays each case's graph for half of SECONDS, so that clocks settle at the power limit, and for SECONDS
    /// (up to 60) that count: mean time, power, energy of a node, SM clock. On a CPU, and where the driver's NVML does
    /// not tell, the time alone.
    #[arg(long, value_name = "SECONDS", value_parser = sustain_time)]
    sustain: Option<Duration>,
    /// Only prints the names.
    #[arg(long)]
    list: bool,
    /// As `cargo bench` passes it; no effect.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    meta: Meta,
    dtype: &'static str,
    warmup: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    sustain_seconds: Option<f64>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// `linear/gate_up_t512`.
    name: String,
    /// Sets of tensors, and how often a graph goes through them.
    copies: usize,
    rounds: usize,
    /// Whether each run reads memory and not the cache.
    cold: bool,
    #[serde(flatten)]
    time: Spread,
    /// Of one node, as the times are.
    #[serde(flatten)]
    sustained: Option<Sustained>,
    #[serde(flatten)]
    rates: Rates,
    /// ‖a − b‖ / ‖b‖ over the float outputs against the f32 reference; for ids the share that differs.
    error: Option<f64>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match run(&flags) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("kernels: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(flags: &Flags) -> Result<ExitCode> {
    let wanted = |name: &str| match &flags.filter {
        None => true,
        Some(parts) => {
            let name = name.to_lowercase();
            parts.to_lowercase().split(',').any(|p| name.contains(p.trim()))
        }
    };
    let cases: Vec<Case<Op>> = Op::all_cases().into_iter().filter(|c| c.bench && wanted(&c.name)).collect();
    if cases.is_empty() {
        return Err(Error::input(format!(
            "--filter {}: no case of the benchmark has that in its name; --list shows all",
            flags.filter.as_deref().unwrap_or("")
        )));
    }
    if flags.list {
        cases.iter().for_each(|c| println!("{}", c.name));
        return Ok(ExitCode::SUCCESS);
    }
    let file = flags.json.as_deref().map(ResultFile::create).transpose()?;
    let mut backend = match open_backend(flags.device) {
        Ok(backend) => backend,
        Err(why) => {
            println!("kernels: nothing to time: {why}");
            let required = std::env::var_os("VIVACE_REQUIRE_GPU").is_some_and(|v| v != "0");
            return Ok(if required { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
    };
    let dtype = if flags.dtype == "f16" { DType::F16 } else { DType::BF16 };

    let meta = Meta::of(backend.as_ref());
    eprintln!("{}, {dtype}, {} cases", meta.device, cases.len());
    let sustain_seconds = flags.sustain.map(|time| time.as_secs_f64());
    let mut report = Report { meta, dtype: dtype.name(), warmup: WARMUP, sustain_seconds, rows: Vec::new() };
    let mut failed = Vec::new();
    for case in &cases {
        match bench(backend.as_mut(), case, dtype, flags) {
            Ok(Some(row)) => {
                eprintln!("{:60} {:10.2} us", row.name, row.time.median_us);
                report.rows.push(row);
            }
            Ok(None) => {}
            Err(e) => failed.push(format!("{}: {e}", case.name)),
        }
    }
    show(&report.rows);
    if let Some(file) = file {
        file.write(&report)?;
    }
    failed.iter().for_each(|f| eprintln!("failed: {f}"));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Times one case; `None` for those too large for the CPU.
fn bench(backend: &mut dyn Backend, case: &Case<Op>, dtype: DType, flags: &Flags) -> Result<Option<Row>> {
    let (cost, held_bytes) = work(case, dtype)?;
    let on_gpu = backend.asynchronous();
    if !on_gpu && (cost.flops > CPU_FLOPS || held_bytes > CPU_BYTES) {
        return Ok(None);
    }
    let (copies, rounds) = if on_gpu { copies(cost, held_bytes) } else { (1, 1) };
    // The CPU reference computes in f32.
    let types = if on_gpu { CaseTypes::device(dtype) } else { CaseTypes::reference(dtype) };

    let error = match on_gpu && !flags.no_error && cost.flops < REFERENCE_FLOPS {
        true => Some(error(
            &once(backend, case, types)?,
            &once(&mut Cpu::new(), case, CaseTypes::reference(dtype))?,
        )),
        false => None,
    };
    let bound = Bound::cycled(backend, case, types, copies, rounds)?;
    if flags.sustain.is_some() {
        // The case before has left the device at its power limit.
        rest(backend);
    }
    let timed = time_graph(backend, bound.exe, case.step, flags.sustain);
    bound.release(backend);
    let (time, sustained) = timed?;
    let time = time.per(copies * rounds);
    Ok(Some(Row {
        name: case.name.clone(),
        copies,
        rounds,
        cold: on_gpu && cost.bytes() * copies as u64 >= L2_BYTES,
        rates: Rates::of(cost, time.median_us, backend.ceilings()),
        time,
        sustained: sustained.map(|s| s.per(copies * rounds)),
        error,
    }))
}

/// Sets of tensors, and how often a graph goes through them.
fn copies(cost: Cost, held_bytes: u64) -> (usize, usize) {
    let cold = COLD_BYTES.div_ceil(cost.bytes().max(1)).clamp(*COPIES.start(), *COPIES.end());
    let copies = cold.min(ROOM_BYTES / held_bytes.max(1)).max(1);
    let node_us = roofline_us(cost, Ceilings::H200).max(KERNEL_US);
    let rounds = (GRAPH_US / (copies as f64 * node_us)).ceil().clamp(1.0, ROUNDS as f64);
    (copies as usize, rounds as usize)
}

/// The outputs of one run, on poisoned memory.
fn once(backend: &mut dyn Backend, case: &Case<Op>, types: CaseTypes) -> Result<Vec<HostTensor>> {
    let bound = Bound::new(backend, case, types, 1)?;
    let outs = bound.run(backend, case);
    bound.release(backend);
    outs
}

fn error(outs: &[HostTensor], expected: &[HostTensor]) -> f64 {
    let worst = outs.iter().zip(expected).map(|(a, b)| match (&a.data, &b.data) {
        (HostData::F32(a), HostData::F32(b)) if a.len() == b.len() => relative(a, b).0,
        (HostData::U32(a), HostData::U32(b)) if a.len() == b.len() => {
            a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / b.len().max(1) as f64
        }
        _ => f64::INFINITY,
    });
    worst.fold(0.0, f64::max)
}

fn show(rows: &[Row]) {
    let sustained = rows.iter().any(|r| r.sustained.is_some());
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let mut cells = vec![
                r.name.clone(),
                format!("{:.2}", r.time.median_us),
                format!("{:.2}", r.time.p10_us),
                format!("{:.2}", r.time.p90_us),
                format!("{:.0}", r.rates.gb_per_s),
                format!("{:.2}", r.rates.tflop_per_s),
                percent(r.rates.roofline_share),
                if r.cold { "cold".to_owned() } else { "warm".to_owned() },
                r.error.map_or("-".to_owned(), |e| format!("{e:.1e}")),
            ];
            if sustained {
                cells.extend(Sustained::cells(r.sustained.as_ref(), |us| format!("{us:.2}")));
            }
            cells
        })
        .collect();
    let mut head = vec!["case", "us", "p10", "p90", "GB/s", "TFLOP/s", "roofline", "L2", "error"];
    if sustained {
        head.extend(Sustained::HEAD);
    }
    print!("{}", table(&head, &cells));
}
