//! Power and clock of a GPU while it works, as NVML tells them.
//!
//! Power is the difference of the energy counter, which the driver renews only some 10 times a second: it counts from
//! one change to a later one, so what lies before the first and behind the last does not blur it.

use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::error::NvmlError;

use super::device::Device;
use crate::core::{Error, Result};

/// Between two samples. A change of the counter is noticed later by so much at most.
const EVERY: Duration = Duration::from_millis(5);

/// Samples a GPU on a thread of its own until it is stopped or dropped.
pub struct Sampler {
    /// The thread ends when this is gone.
    until: Sender<()>,
    thread: JoinHandle<Samples>,
}

impl Sampler {
    /// `Err` says why NVML tells nothing of this GPU.
    pub fn start(device: &Device) -> Result<Sampler> {
        let gpu = find(device)?;
        let (until, stopped) = channel();
        let sample = move || {
            let mut samples = Samples::default();
            loop {
                // What it does not tell this time is left out.
                if let Ok(mj) = gpu.total_energy_consumption() {
                    samples.energy(Instant::now(), mj);
                }
                if let Ok(mhz) = gpu.clock_info(Clock::SM) {
                    samples.clock(mhz);
                }
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return samples;
                }
            }
        };
        let thread = std::thread::Builder::new().name("power".to_owned()).spawn(sample);
        let thread =
            thread.map_err(|e| Error::runtime(format!("starting a thread that samples power: {e}")))?;
        Ok(Sampler { until, thread })
    }

    pub fn stop(self) -> Samples {
        drop(self.until);
        self.thread.join().unwrap_or_default()
    }
}

/// The GPU as NVML knows it: by its UUID, since the two count GPUs differently.
fn find(device: &Device) -> Result<nvml_wrapper::Device<'static>> {
    // Loading looks up every function of the library: once is enough.
    static NVML: OnceLock<std::result::Result<Nvml, NvmlError>> = OnceLock::new();
    let says = |e: &NvmlError| Error::runtime(format!("NVML says: {e}"));
    let nvml = NVML.get_or_init(Nvml::init).as_ref().map_err(says)?;
    let uuid = device.uuid()?;
    nvml.device_by_uuid(uuid.as_str()).map_err(|e| says(&e).context(uuid))
}

/// What was seen of a GPU over a while.
#[derive(Default)]
pub struct Samples {
    /// The counter as it was read last, in millijoules.
    counter_mj: Option<u64>,
    /// When it was seen to change, and to what.
    changes: Vec<(Instant, u64)>,
    mhz_sum: f64,
    mhz_count: usize,
}

impl Samples {
    fn energy(&mut self, at: Instant, mj: u64) {
        // The first value may be of any time before.
        if self.counter_mj.replace(mj).is_some_and(|before| before != mj) {
            self.changes.push((at, mj));
        }
    }

    fn clock(&mut self, mhz: u32) {
        self.mhz_sum += f64::from(mhz);
        self.mhz_count += 1;
    }

    /// Mean power between the first and the last change of the counter; `None` unless it changed twice.
    pub fn watts(&self) -> Option<f64> {
        let [(from, before_mj), .., (to, after_mj)] = self.changes[..] else { return None };
        let joules = after_mj.checked_sub(before_mj)? as f64 / 1e3;
        Some(joules / to.duration_since(from).as_secs_f64()).filter(|w| w.is_finite())
    }

    /// Mean clock of the SMs.
    pub fn sm_mhz(&self) -> Option<f64> {
        (self.mhz_count > 0).then(|| self.mhz_sum / self.mhz_count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings of the counter: milliseconds, millijoules.
    fn sampled(readings: &[(u64, u64)]) -> Samples {
        let (mut samples, start) = (Samples::default(), Instant::now());
        for &(ms, mj) in readings {
            samples.energy(start + Duration::from_millis(ms), mj);
        }
        samples
    }

    #[test]
    fn power_is_that_between_the_first_and_the_last_change() {
        // 60 J in 100 ms, then 80 J. What came before the change at 20 ms and what comes after 220 count nowhere.
        let samples = sampled(&[
            (0, 5_000),
            (20, 9_000),
            (25, 9_000),
            (120, 69_000),
            (170, 69_000),
            (220, 149_000),
            (300, 149_000),
        ]);
        assert_eq!(samples.changes.len(), 3);
        assert!((samples.watts().unwrap() - 700.0).abs() < 1e-9);
        // A counter that began anew.
        assert_eq!(sampled(&[(0, 9_000), (100, 9_900), (200, 300)]).watts(), None);
    }

    #[test]
    fn fewer_than_two_changes_are_no_power() {
        for readings in [&[][..], &[(0, 7)], &[(0, 7), (5, 7), (10, 7)], &[(0, 7), (5, 900), (10, 900)]] {
            assert_eq!(sampled(readings).watts(), None, "{readings:?}");
        }
        // Both at once, as far as the clock of the host can tell.
        assert_eq!(sampled(&[(0, 7), (5, 900), (5, 1800)]).watts(), None);
    }

    #[test]
    fn the_clock_is_the_mean_of_its_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.sm_mhz(), None);
        [1980, 1500, 1590].into_iter().for_each(|mhz| samples.clock(mhz));
        assert_eq!(samples.sm_mhz(), Some(1690.0));
    }

    #[test]
    fn a_gpu_is_found_by_its_uuid() {
        let sampler = match Device::open(0).and_then(|device| Sampler::start(&device)) {
            Ok(sampler) => sampler,
            Err(why) => return println!("no GPU that NVML knows: nothing checked ({why})"),
        };
        std::thread::sleep(Duration::from_millis(500));
        let samples = sampler.stop();
        println!("{:?} W, {:?} MHz", samples.watts(), samples.sm_mhz());
        assert!(samples.watts().is_none_or(|w| (1.0..10_000.0).contains(&w)));
        assert!(samples.sm_mhz().is_none_or(|mhz| (1.0..10_000.0).contains(&mhz)));
    }
}
