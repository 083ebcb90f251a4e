//! What every measurement shares: spread of the times, share of the device's ceilings, when and where it was made.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::core::Cost;
use crate::exec::{Backend, Ceilings};

/// Untimed runs before the timed ones.
pub const WARMUP: usize = 3;
/// Timed runs.
pub const REPEATS: usize = 20;
/// Before each of several steps on a GPU: one that has worked at its power limit has a lower clock for a while, and what a
/// step takes should not depend on the one before it.
pub const REST: Duration = Duration::from_millis(500);

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
