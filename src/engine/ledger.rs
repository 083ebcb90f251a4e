//! Where the time to the first token went: every stage on one clock, and the path that the token had to wait for.
//!
//! Stages of the host are timed where they run, stages of the device lie between marks; both count from the call. Lanes
//! run side by side, the host ahead of them and its threads beside one another, so the stages may add up to more than the
//! whole. The critical path is found
//! backwards from the token: before a stage came the one that ended last before it began. What is on it adds up to the time
//! to the first token, but for the gaps in which nothing that is timed ran.

use std::time::Instant;

use serde::Serialize;

use crate::core::Result;
use crate::exec::{Backend, Lane, Mark};

/// A stage on the way to the first token.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Stage {
    /// `cache`, `tile`, `filterbank` (on other threads), `prompt`, `sampler`, `enqueue`, `keep` and `token` on the host;
    /// `vision`, `audio` and `prefill` on the device.
    pub stage: &'static str,
    /// From the call.
    pub start_ms: f64,
    pub ms: f64,
    /// 0, or `ms`: what the token waited for, each millisecond once.
    pub critical_ms: f64,
}

impl Stage {
    fn end_ms(&self) -> f64 {
        self.start_ms + self.ms
    }
}

/// Stages as they happen.
pub(super) struct Ledger {
    start: Instant,
    /// The call on the clock of the device.
    zero: Option<Mark>,
    host: Vec<Stage>,
    device: Vec<(&'static str, Mark, Mark)>,
}

/// The two clocks agree to this.
const CLOCKS_MS: f64 = 0.03;

impl Ledger {
    /// The call is now.
    pub fn new() -> Ledger {
        Ledger { start: Instant::now(), zero: None, host: Vec::new(), device: Vec::new() }
    }

    /// Sets the clock of the device, which has nothing to do yet.
    pub fn begin(&mut self, backend: &mut dyn Backend) -> Result<()> {
        self.start = Instant::now();
        self.zero = Some(backend.mark(Lane::Text)?);
        Ok(())
    }

    /// Runs a stage of the host.
    pub fn host<T>(&mut self, stage: &'static str, work: impl FnOnce() -> T) -> T {
        let start_ms = self.now_ms();
        let done = work();
        let ms = self.now_ms() - start_ms;
        self.host.push(Stage { stage, start_ms, ms, critical_ms: 0.0 });
        done
    }

    /// Notes a stage that other threads of the host ran.
    pub fn threads(&mut self, stage: &'static str, from: Instant, to: Instant) {
        let ms = |later: Instant, at: Instant| later.saturating_duration_since(at).as_secs_f64() * 1e3;
        self.host.push(Stage { stage, start_ms: ms(from, self.start), ms: ms(to, from), critical_ms: 0.0 });
    }

    /// Notes a stage of the device.
    pub fn device(&mut self, stage: &'static str, from: Mark, to: Mark) {
        self.device.push((stage, from, to));
    }

    pub fn now_ms(&self) -> f64 {
        self.start.elapsed().as_secs_f64() * 1e3
    }

    /// All stages of a token that was there at `token_ms`, by their beginning. Waits for the device's.
    pub fn close(&self, token_ms: f64, backend: &mut dyn Backend) -> Result<Vec<Stage>> {
        let mut stages = self.host.clone();
        if let Some(zero) = self.zero {
            for &(stage, from, to) in &self.device {
                let start_ms = backend.elapsed_us(zero, from)? / 1e3;
                let ms = backend.elapsed_us(from, to)? / 1e3;
                stages.push(Stage { stage, start_ms, ms, critical_ms: 0.0 });
            }
        }
        stages.retain(|s| s.ms > 0.0 && s.start_ms < token_ms);
        let last = stages.iter().map(Stage::end_ms).fold(0.0, f64::max).min(token_ms);
        stages.push(Stage { stage: "token", start_ms: last, ms: token_ms - last, critical_ms: 0.0 });
        mark_critical(&mut stages, token_ms);
        stages.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms));
        Ok(stages)
    }
}

/// Whether a stage is the device's: on a device that does not run ahead, enqueueing is running, and the latter is said.
fn on_device(stage: &Stage) -> bool {
    matches!(stage.stage, "vision" | "audio" | "prefill")
}

/// Follows the path back from `end_ms`.
fn mark_critical(stages: &mut [Stage], end_ms: f64) {
    let mut at = end_ms;
    let mut free: Vec<usize> = (0..stages.len()).collect();
    loop {
        let before =
            free.iter().copied().filter(|&i| stages[i].end_ms() <= at + CLOCKS_MS && stages[i].start_ms < at);
        let later = |a: &usize, b: &usize| {
            let (a, b) = (&stages[*a], &stages[*b]);
            let work =
                (on_device(a), b.stage) == (true, "enqueue") || (a.stage, on_device(b)) == ("enqueue", true);
            let close = work && (a.end_ms() - b.end_ms()).abs() <= CLOCKS_MS;
            if close { on_device(a).cmp(&on_device(b)) } else { a.end_ms().total_cmp(&b.end_ms()) }
        };
        let Some(i) = before.max_by(later) else { return };
        // Not more than is left: the clocks may differ a little.
        stages[i].critical_ms = (at - stages[i].start_ms).min(stages[i].ms);
        at = stages[i].start_ms;
        free.retain(|&f| f != i);
    }
}

/// Milliseconds that stages of that name took, one after the other.
pub(super) fn total_ms(stages: &[Stage], name: &str) -> f64 {
    // Not sum(), which is -0 for none.
    stages.iter().filter(|s| s.stage == name).fold(0.0, |all, s| all + s.ms)
}

/// Milliseconds in which two stages of the device ran side by side.
pub fn overlap_ms(stages: &[Stage], a: &str, b: &str) -> f64 {
    let of = |name: &str| stages.iter().filter(|s| s.stage == name).collect::<Vec<_>>();
    let mut sum = 0.0;
    for x in of(a) {
        for y in of(b) {
            sum += (x.end_ms().min(y.end_ms()) - x.start_ms.max(y.start_ms)).max(0.0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(of: &[(&'static str, f64, f64)]) -> Vec<Stage> {
        of.iter()
            .map(|&(stage, start_ms, end)| Stage { stage, start_ms, ms: end - start_ms, critical_ms: 0.0 })
            .collect()
    }

    fn path(of: &[(&'static str, f64, f64)], end_ms: f64) -> (Vec<&'static str>, f64) {
        let mut stages = stages(of);
        mark_critical(&mut stages, end_ms);
        let critical = stages.iter().filter(|s| s.critical_ms > 0.0);
        (critical.clone().map(|s| s.stage).collect(), critical.map(|s| s.critical_ms).sum())
    }

    #[test]
    fn encoders_side_by_side_count_once() {
        // Vision and audio start as soon as they are enqueued, audio ends last; the host waits.
        let of = [
            ("tile", 0.0, 1.0),
            ("filterbank", 1.0, 1.5),
            ("prompt", 1.5, 1.6),
            ("enqueue", 1.6, 1.8),
            ("enqueue", 1.8, 1.9),
            ("vision", 1.6, 4.0),
            ("audio", 1.81, 5.0),
            ("prefill", 5.01, 12.0),
            ("token", 12.0, 12.1),
        ];
        let (names, sum) = path(&of, 12.1);
        assert_eq!(names, ["tile", "filterbank", "prompt", "enqueue", "audio", "prefill", "token"]);
        assert!((sum - 12.1).abs() < 0.05, "{sum}");
        assert!((overlap_ms(&stages(&of), "vision", "audio") - 2.19).abs() < 1e-9);
    }

    #[test]
    fn what_ran_in_the_shadow_of_the_encoders_is_not_on_the_path() {
        // Other threads filter the sound while the picture is sent; then the prompt is made, and what it needs enqueued.
        let of = [
            ("cache", 0.0, 0.002),
            ("filterbank", 0.002, 0.45),
            ("cache", 0.003, 0.005),
            ("tile", 0.005, 0.006),
            ("enqueue", 0.006, 0.2),
            ("vision", 0.11, 3.6),
            ("enqueue", 0.451, 0.55),
            ("audio", 0.452, 3.8),
            ("prompt", 0.551, 0.8),
            ("cache", 0.8, 0.805),
            ("enqueue", 0.81, 0.95),
            ("keep", 0.96, 1.1),
            ("prefill", 3.803, 12.0),
            ("token", 12.0, 12.02),
        ];
        let (names, sum) = path(&of, 12.02);
        assert_eq!(names, ["cache", "filterbank", "audio", "prefill", "token"]);
        assert!((sum - 12.02).abs() < 0.01, "{sum}");
        // With a sound that is ready earlier, the path goes through the picture.
        let mut early = of;
        early[1].2 = 0.15;
        early[6] = ("enqueue", 0.201, 0.3);
        early[7] = ("audio", 0.202, 3.8);
        let (names, sum) = path(&early, 12.02);
        assert_eq!(names, ["cache", "cache", "tile", "enqueue", "audio", "prefill", "token"]);
        assert!((sum - 12.02).abs() < 0.01, "{sum}");
    }

    #[test]
    fn a_host_that_is_late_is_on_the_path() {
        let of = [
            ("tile", 0.0, 1.0),
            ("enqueue", 1.0, 4.0),
            ("vision", 1.1, 2.0),
            ("cache", 4.0, 4.5),
            ("prefill", 4.52, 9.0),
            ("token", 9.0, 9.1),
        ];
        assert_eq!(path(&of, 9.1).0, ["tile", "enqueue", "cache", "prefill", "token"]);
    }

    #[test]
    fn where_enqueueing_is_running_the_work_is_named() {
        let of = [
            ("tile", 0.0, 1.0),
            ("enqueue", 1.0, 3.0),
            ("vision", 1.001, 2.999),
            ("enqueue", 3.0, 5.0),
            ("audio", 3.001, 4.999),
            ("prefill", 5.0, 9.0),
            ("token", 9.0, 9.01),
        ];
        let (names, sum) = path(&of, 9.01);
        assert_eq!(names, ["tile", "vision", "audio", "prefill", "token"]);
        assert!((sum - 9.01).abs() < 0.01, "{sum}");
    }

    #[test]
    fn gaps_are_not_made_up() {
        let (names, sum) = path(&[("tile", 0.0, 1.0), ("prefill", 3.0, 4.0)], 4.0);
        assert_eq!((names, sum), (vec!["tile", "prefill"], 2.0));
    }
}
