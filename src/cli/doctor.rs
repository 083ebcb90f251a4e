//! `vivace doctor`: what this binary and this machine can do together.

use std::process::ExitCode;

use serde::Serialize;

use super::Outcome;
use super::output::{gib, print, print_json};

const JSON_HELP: &str = "\
--json prints one object:
  version        of this binary
  features       that it was built with
  kernels        {built_for: [architecture], missing: why there are none, or
                 null}; null without the feature cuda
  driver         the newest CUDA that the driver supports, as \"13.0\"; null
                 where there is none
  driver_missing why there is no driver, or null
  gpus           [{ordinal, name, sm, total_bytes, free_bytes, kernels}]:
                 kernels is \"ok\" or why they do not run
  cpu            {threads, total_bytes, available_bytes}: memory is null where
                 the system does not say
  auto           {device, why}: what --device auto takes, and why not a GPU";

/// Say what this binary and this machine can do together
#[derive(clap::Args)]
#[command(after_long_help = JSON_HELP)]
pub struct Args {
    /// Print one JSON object instead (--help describes it)
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    features: Vec<&'static str>,
    kernels: Option<Kernels>,
    driver: Option<String>,
    driver_missing: Option<String>,
    gpus: Vec<Gpu>,
    cpu: Cpu,
    auto: Auto,
}

#[derive(Serialize)]
struct Kernels {
    built_for: Vec<String>,
    missing: Option<&'static str>,
}

#[derive(Serialize)]
struct Gpu {
    ordinal: usize,
    name: String,
    sm: String,
    total_bytes: u64,
    free_bytes: Option<u64>,
    kernels: String,
}

#[derive(Serialize)]
struct Cpu {
    threads: usize,
    total_bytes: Option<u64>,
    available_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Auto {
    device: String,
    why: String,
}

pub fn doctor(args: &Args) -> Outcome {
    let report = look();
    if args.json {
        print_json(&report)?;
    } else {
        print(&report.to_text())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn look() -> Report {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        features: Vec::new(),
        kernels: None,
        driver: None,
        driver_missing: None,
        gpus: Vec::new(),
        cpu: cpu(),
        auto: Auto {
            device: "cpu".to_owned(),
            why: "this binary was built without the feature `cuda`".to_owned(),
        },
    };
    #[cfg(feature = "cuda")]
    let report = look_at_gpus(report);
    report
}

#[cfg(feature = "cuda")]
fn look_at_gpus(mut report: Report) -> Report {
    use vivace::gpu::device::{Device, Driver};
    use vivace::gpu::embedded;

    report.features.push("cuda");
    let missing = embedded::why_empty();
    report.kernels = Some(Kernels { built_for: embedded::built_for(), missing });
    match Driver::probe() {
        Err(e) => report.driver_missing = Some(e.to_string()),
        Ok(driver) => {
            report.driver = Some(driver.cuda);
            for facts in driver.devices {
                let opened = Device::open(facts.ordinal);
                let kernels = match (&opened, missing) {
                    (Err(e), _) => e.to_string(),
                    (_, Some(why)) => format!("the CUDA kernels were not built: {why}"),
                    (Ok(_), None) => runnable(facts.sm),
                };
                report.gpus.push(Gpu {
                    ordinal: facts.ordinal,
                    name: facts.name,
                    sm: format!("{}.{}", facts.sm.0, facts.sm.1),
                    total_bytes: facts.total_bytes,
                    free_bytes: opened.and_then(|d| d.memory()).ok().map(|(free, _)| free),
                    kernels,
                });
            }
        }
    }
    if let Some(gpu) = report.gpus.iter().find(|gpu| gpu.kernels == OK) {
        let why = format!("{} runs the kernels", gpu.name);
        report.auto = Auto { device: format!("cuda:{}", gpu.ordinal), why };
        return report;
    }
    report.auto.why = match (missing, &report.driver_missing, report.gpus.first()) {
        (Some(why), _, _) => format!("the CUDA kernels were not built: {why}"),
        (_, Some(why), _) => why.clone(),
        (_, _, None) => "the driver shows no GPU".to_owned(),
        (_, _, Some(gpu)) => gpu.kernels.clone(),
    };
    report
}

#[cfg(feature = "cuda")]
const OK: &str = "ok";

/// Whether the kernels run on this compute capability: those of `norm.cu` are built for every architecture.
#[cfg(feature = "cuda")]
fn runnable(sm: (u32, u32)) -> String {
    match vivace::gpu::embedded::find("norm", sm) {
        Ok(_) => OK.to_owned(),
        Err(e) => e.to_string(),
    }
}

fn cpu() -> Cpu {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    };
    Cpu {
        threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
        total_bytes: field("MemTotal"),
        available_bytes: field("MemAvailable"),
    }
}

impl Report {
    fn to_text(&self) -> String {
        let mut text = format!("vivace     {}\n", self.version);
        match &self.kernels {
            None => text += "kernels    none: built without the feature `cuda`\n",
            Some(Kernels { missing: Some(why), .. }) => text += &format!("kernels    not built: {why}\n"),
            Some(k) => text += &format!("kernels    built for {}\n", k.built_for.join(", ")),
        }
        if let Some(cuda) = &self.driver {
            text += &format!("driver     CUDA {cuda}\n");
        }
        if let Some(why) = &self.driver_missing {
            text += &format!("driver     {why}\n");
        }
        for g in &self.gpus {
            let memory = match g.free_bytes {
                Some(free) => format!("{} of {} free", gib(free), gib(g.total_bytes)),
                None => gib(g.total_bytes),
            };
            let head = format!("cuda:{}", g.ordinal);
            text += &format!(
                "{head:<10} {}, compute capability {}, {memory}; kernels: {}\n",
                g.name, g.sm, g.kernels
            );
        }
        let memory = match (self.cpu.available_bytes, self.cpu.total_bytes) {
            (Some(free), Some(total)) => format!(", {} of {} available", gib(free), gib(total)),
            _ => String::new(),
        };
        text += &format!("cpu        {} threads{memory}\n", self.cpu.threads);
        text += &format!("auto       {}: {}\n", self.auto.device, self.auto.why);
        text
    }
}
