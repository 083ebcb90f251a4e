//! What every measurement shares: spread of the times, lasting work and its power, share of the device's ceilings, when
//! and where it was made.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::core::{Cost, Error, Result, Step};
use crate::exec::{Backend, Ceilings, ExeId, PowerUse};

/// Untimed runs before the timed ones.
pub const WARMUP: usize = 3;
/// Timed runs.
pub const REPEATS: usize = 20;
const REST: Duration = Duration::from_millis(500);
/// Lasting work is enqueued in turns of so many runs, each of which wants an event.
const RUNS_A_TURN: usize = 2000;
/// What a run is taken to last at least, in microseconds.
const LEAST_RUN_US: f64 = 0.1;
const LONGEST_SUSTAIN_SECONDS: f64 = 60.0;

/// Half a second before each of several steps on a GPU: one that has worked at its power limit has a lower clock for a while,
/// and what a step takes should not depend on the one before it.
pub fn rest(backend: &dyn Backend) {
    if backend.asynchronous() {
        std::thread::sleep(REST);
    }
}

/// Microseconds of several runs of the same work.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    pub runs: usize,
    pub median_us: f64,
    pub p10_us: f64,
    pub p90_us: f64,
}

impl Spread {
    /// `None` without a run.
    pub fn of(times_us: &[f64]) -> Option<Spread> {
        let mut sorted = times_us.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Spread {
            runs: sorted.len(),
            median_us: percentile(&sorted, 0.5)?,
            p10_us: percentile(&sorted, 0.1)?,
            p90_us: percentile(&sorted, 0.9)?,
        })
    }

    /// The same for each of `n` equal parts of the work.
    pub fn per(self, n: usize) -> Spread {
        let n = n.max(1) as f64;
        Spread { median_us: self.median_us / n, p10_us: self.p10_us / n, p90_us: self.p90_us / n, ..self }
    }
}

/// The same work over and over. Most work has a GPU at its power limit after some tens of milliseconds, and a step then
/// takes the time of its energy, which the [`Spread`] of a few runs does not show.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Sustained {
    /// Mean of the runs.
    pub sustained_us: f64,
    /// Mean power meanwhile; absent, as what follows, where the device does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watts: Option<f64>,
    /// Of a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joules: Option<f64>,
    /// Mean clock of the SMs meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_mhz: Option<f64>,
}

impl Sustained {
    fn of(us: f64, power: PowerUse) -> Sustained {
        let PowerUse { watts, sm_mhz } = power;
        Sustained { sustained_us: us, watts, joules: watts.map(|w| w * us / 1e6), sm_mhz }
    }

    /// Replays a graph, a run of which was seen to take `run_us`, for about half of `lasting`, in which clocks settle,
    /// and then for about `lasting`, which counts.
    pub fn measure(
        backend: &mut dyn Backend,
        exe: ExeId,
        step: Step,
        lasting: Duration,
        run_us: f64,
    ) -> Result<Sustained> {
        let settled_us = replay(backend, exe, step, runs_in(lasting / 2, run_us))?;
        let meter = backend.meter_power();
        let us = replay(backend, exe, step, runs_in(lasting, settled_us))?;
        Ok(Sustained::of(us, meter.map(|m| m.stop()).unwrap_or_default()))
    }

    /// The same for each of `n` equal parts of the work.
    pub fn per(self, n: usize) -> Sustained {
        let n = n.max(1) as f64;
        Sustained { sustained_us: self.sustained_us / n, joules: self.joules.map(|j| j / n), ..self }
    }

    /// Heads of its columns in a table.
    pub const HEAD: [&str; 4] = ["sustained", "W", "mJ", "MHz"];

    /// Its columns, `-` for what is not known.
    pub fn cells(of: Option<&Sustained>, time: impl Fn(f64) -> String) -> [String; 4] {
        let cell = |x: Option<f64>, digits| x.map_or("-".to_owned(), |x| format!("{x:.digits$}"));
        [
            of.map_or("-".to_owned(), |s| time(s.sustained_us)),
            cell(of.and_then(|s| s.watts), 0),
            cell(of.and_then(|s| s.joules).map(|j| j * 1e3), 2),
            cell(of.and_then(|s| s.sm_mhz), 0),
        ]
    }
}

/// Runs of `run_us` that fill `time`, one at least.
fn runs_in(time: Duration, run_us: f64) -> usize {
    let runs = time.as_secs_f64() * 1e6 / run_us.max(LEAST_RUN_US);
    (runs.ceil() as usize).max(1)
}

/// Mean microseconds of `runs` runs.
fn replay(backend: &mut dyn Backend, exe: ExeId, step: Step, runs: usize) -> Result<f64> {
    let (mut left, mut sum_us) = (runs, 0.0);
    while left > 0 {
        let turn = left.min(RUNS_A_TURN);
        sum_us += backend.time(exe, step, 0, turn)?.iter().sum::<f64>();
        left -= turn;
    }
    Ok(sum_us / runs.max(1) as f64)
}

/// Times a graph: a few runs, and many where they are to be `lasting`.
pub fn time_graph(
    backend: &mut dyn Backend,
    exe: ExeId,
    step: Step,
    lasting: Option<Duration>,
) -> Result<(Spread, Option<Sustained>)> {
    let times_us = backend.time(exe, step, WARMUP, REPEATS)?;
    let spread = Spread::of(&times_us).ok_or_else(|| Error::runtime("the device gave no times"))?;
    let sustained = lasting.map(|l| Sustained::measure(backend, exe, step, l, spread.median_us));
    Ok((spread, sustained.transpose()?))
}

/// The value of `--sustain`, in seconds.
pub fn sustain_time(s: &str) -> Result<Duration, String> {
    match s.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= LONGEST_SUSTAIN_SECONDS => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("a number of seconds above 0 and up to {LONGEST_SUSTAIN_SECONDS} expected")),
    }
}

/// Value at share `at` of sorted values, linear between neighbours.
pub fn percentile(sorted: &[f64], at: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = at.clamp(0.0, 1.0) * last as f64;
    let (below, rest) = (place.floor() as usize, place.fract());
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * rest)
}

/// Work per time, and how near that is to what the device can do.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Rates {
    pub flops: u64,
    pub bytes: u64,
    pub gb_per_s: f64,
    pub tflop_per_s: f64,
    /// The least time the device could take, `max(bytes / bandwidth, flops / peak)`; absent when its ceilings are
    /// not known.
    pub roofline_us: Option<f64>,
    /// `roofline_us` over the measured time.
    pub roofline_share: Option<f64>,
}

impl Rates {
    pub fn of(cost: Cost, us: f64, ceilings: Option<Ceilings>) -> Rates {
        let us = us.max(f64::MIN_POSITIVE);
        let least = ceilings.map(|c| roofline_us(cost, c));
        Rates {
            flops: cost.flops,
            bytes: cost.bytes(),
            gb_per_s: cost.bytes() as f64 / us / 1e3,
            tflop_per_s: cost.flops as f64 / us / 1e6,
            roofline_us: least,
            roofline_share: least.map(|l| l / us),
        }
    }
}

/// The least time for `cost` in microseconds.
pub fn roofline_us(cost: Cost, c: Ceilings) -> f64 {
    let bytes = cost.bytes() as f64 / c.bytes_per_s;
    let flops = cost.flops as f64 / c.flops_per_s;
    bytes.max(flops) * 1e6
}

/// ‖a − b‖ / ‖b‖ and the index of the largest difference. NaN on one side only, or where the other differs, makes it
/// infinite; where `b` is all zero, the norm of the difference counts.
pub fn relative(a: &[f32], b: &[f32]) -> (f64, usize) {
    let (mut diff, mut norm, mut worst, mut worst_by) = (0.0f64, 0.0f64, 0, 0.0f64);
    for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
        if a == b {
            norm += if b.is_finite() { f64::from(b).powi(2) } else { 0.0 };
            continue;
        }
        let d = (f64::from(a) - f64::from(b)).abs();
        let d = if d.is_nan() { f64::INFINITY } else { d };
        diff += d * d;
        norm += f64::from(b).powi(2);
        if d > worst_by {
            (worst, worst_by) = (i, d);
        }
    }
    let rel = match (diff == 0.0, norm == 0.0) {
        (true, _) => 0.0,
        (false, true) => diff.sqrt(),
        (false, false) => (diff / norm).sqrt(),
    };
    (if rel.is_nan() { f64::INFINITY } else { rel }, worst)
}

/// When, where and from which source a measurement was made.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Meta {
    /// UTC, RFC 3339.
    pub date: String,
    pub device: String,
    pub driver: Option<String>,
    /// Commit of the source, if the build was told (`VIVACE_COMMIT`), else `VIVACE_COMMIT` of the run.
    pub commit: Option<String>,
    pub version: &'static str,
    pub ceilings: Option<Ceilings>,
}

impl Meta {
    pub fn of(backend: &dyn Backend) -> Meta {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let commit = option_env!("VIVACE_COMMIT").map(str::to_owned);
        Meta {
            date: rfc3339(seconds),
            device: backend.describe(),
            driver: backend.driver(),
            commit: commit.or_else(|| std::env::var("VIVACE_COMMIT").ok()),
            version: env!("CARGO_PKG_VERSION"),
            ceilings: backend.ceilings(),
        }
    }
}

/// Seconds since 1970 as `2025-03-01T12:00:00Z` (civil-from-days, Howard Hinnant).
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86400) as i64, seconds % 86400);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

/// Rows of text in columns: the first left-aligned, the others right-aligned.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let line = |cells: &[&str]| {
        let cells: Vec<String> = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, w))| if i == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    let mut out = line(head);
    for row in rows {
        out += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    out
}

/// `12.3 us`, `4.56 ms` or `1.23 s`.
pub fn human_us(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.2} us"),
        us if us < 1e6 => format!("{:.3} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// `92%`, or `-` for what is not known.
pub fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |s| format!("{:.0}%", s * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate() {
        let times: Vec<f64> = (0..11).rev().map(f64::from).collect();
        let s = Spread::of(&times).unwrap();
        assert_eq!((s.runs, s.p10_us, s.median_us, s.p90_us), (11, 1.0, 5.0, 9.0));
        let s = Spread::of(&[4.0, 1.0]).unwrap();
        assert_eq!((s.median_us, s.per(2).median_us), (2.5, 1.25));
        assert!((s.p10_us - 1.3).abs() < 1e-12);
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[7.0]).unwrap().p90_us, 7.0);
    }

    #[test]
    fn runs_fill_the_time_that_is_asked_for() {
        let second = Duration::from_secs(1);
        assert_eq!([3370.0, 0.5, 2e6].map(|us| runs_in(second, us)), [297, 2_000_000, 1]);
        // No time is too short, no median too odd.
        assert_eq!(runs_in(Duration::ZERO, 5.0), 1);
        assert_eq!([0.0, -1.0, f64::NAN].map(|us| runs_in(second, us)), [10_000_000; 3]);
        assert_eq!(runs_in(second, f64::INFINITY), 1);
    }

    #[test]
    fn lasting_work_is_measured_in_turns() {
        use crate::core::DType;
        use crate::exec::{Lane, cpu::Cpu};
        use crate::ops::elementwise::{Act, Unary};
        let mut g = crate::graph::Graph::new();
        let x = g.input("x", DType::F32, &[3]);
        let y = g.push1("y", Unary { act: Act::Relu }, &[x]).unwrap();
        g.output(y);
        let mut cpu = Cpu::new();
        let plan = crate::plan::plan(g, |d| cpu.arena_elem_bytes(d)).unwrap();
        let exe = cpu.prepare(Lane::Text, plan, &[]).unwrap();
        let step = Step::rows(0, 3, 0);
        assert!(replay(&mut cpu, exe, step, 2 * RUNS_A_TURN + 1).unwrap() > 0.0);
        let (spread, short) = time_graph(&mut cpu, exe, step, None).unwrap();
        assert_eq!((spread.runs, short), (REPEATS, None));
        let (_, long) = time_graph(&mut cpu, exe, step, Some(Duration::from_micros(50))).unwrap();
        let long = long.unwrap();
        assert!(long.sustained_us > 0.0);
        // A CPU has no meter.
        assert_eq!((long.watts, long.joules, long.sm_mhz), (None, None, None));
    }

    #[test]
    fn lasting_work_has_energy_where_power_is_known() {
        #[derive(Serialize)]
        struct Row {
            name: &'static str,
            #[serde(flatten)]
            sustained: Option<Sustained>,
        }
        let json = |sustained| serde_json::to_string(&Row { name: "a", sustained }).unwrap();
        let cells = |s: Option<Sustained>| Sustained::cells(s.as_ref(), |us| format!("{us:.1}"));
        assert_eq!(json(None), r#"{"name":"a"}"#);
        assert_eq!(cells(None), ["-"; 4]);

        let unmetered = Sustained::of(40.0, PowerUse::default());
        assert_eq!(json(Some(unmetered)), r#"{"name":"a","sustained_us":40.0}"#);
        assert_eq!(cells(Some(unmetered)), ["40.0", "-", "-", "-"]);

        let power = PowerUse { watts: Some(500.0), sm_mhz: Some(1600.0) };
        let node = Sustained::of(4000.0, power).per(8);
        let wanted = r#"{"name":"a","sustained_us":500.0,"watts":500.0,"joules":0.25,"sm_mhz":1600.0}"#;
        assert_eq!(json(Some(node)), wanted);
        assert_eq!(cells(Some(node)), ["500.0", "500", "250.00", "1600"]);
    }

    #[test]
    fn seconds_of_lasting_work() {
        assert_eq!(sustain_time("1"), Ok(Duration::from_secs(1)));
        assert_eq!(sustain_time("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(sustain_time("60"), Ok(Duration::from_secs(60)));
        for s in ["0", "-1", "60.5", "NaN", "inf", "soon", ""] {
            assert_eq!(
                sustain_time(s).unwrap_err(),
                "a number of seconds above 0 and up to 60 expected",
                "{s}"
            );
        }
    }

    #[test]
    fn the_roofline_is_the_slower_of_the_two() {
        let c = Ceilings { bytes_per_s: 4e12, flops_per_s: 8e14 };
        let memory = Cost { flops: 14, read_bytes: 3_000_000_000, written_bytes: 1_000_000_000 };
        assert_eq!(roofline_us(memory, c), 1000.0);
        let math = Cost { flops: 8_000_000_000_000, read_bytes: 4, written_bytes: 0 };
        assert_eq!(roofline_us(math, c), 10_000.0);
        let r = Rates::of(memory, 2000.0, Some(c));
        assert_eq!((r.gb_per_s, r.roofline_share), (2000.0, Some(0.5)));
        assert_eq!(Rates::of(math, 1.0, None).roofline_share, None);
    }

    #[test]
    fn relative_errors_of_odd_values() {
        assert_eq!(relative(&[3.0, 4.5], &[3.0, 4.0]), (0.1, 1));
        assert_eq!(relative(&[0.0, 0.5], &[0.0, 0.0]), (0.5, 1));
        assert_eq!(relative(&[f32::NEG_INFINITY, 3.0], &[f32::NEG_INFINITY, 3.0]), (0.0, 0));
        assert_eq!(relative(&[f32::NAN, 3.0], &[2.0, 3.0]).0, f64::INFINITY);
        assert_eq!(relative(&[2.0, 3.0], &[f32::NAN, 3.0]).0, f64::INFINITY);
    }

    #[test]
    fn dates_are_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_740_830_400), "2025-03-01T12:00:00Z");
    }

    #[test]
    fn tables_align() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["bcd".into(), "100".into()]];
        assert_eq!(table(&["x", "us"], &rows), "x     us\na      1\nbcd  100\n");
        assert_eq!(human_us(3350.0), "3.350 ms");
    }
}
