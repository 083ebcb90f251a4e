//! `vivace verify`: a device against reference outputs.

use std::path::PathBuf;
use std::process::ExitCode;

use vivace::engine::verify::{Report, verify as compare};

use super::Outcome;
use super::args::DeviceArgs;
use super::output::{note, print, print_json};

const JSON_HELP: &str = "\
--json prints one object:
  device         the device, in words
  checks         [{name, shape, rel, max_rel, worst, pass}]: rel is |a-b|/|b|
                 (null if not a number), max_rel what is allowed, worst the
                 flat index of the largest difference
  free_running   [agreeing, compared]: greedy tokens without the reference's
                 lead";

/// Compare a device with reference outputs
///
/// Builds the synthetic weights of CONFIG.json in memory, runs its cases and compares every tensor of the golden
/// file. Exits with 1 when a tensor differs by more than is allowed: 1e-4 in f32; else twice what rounding to the
/// same type costs on the CPU.
#[derive(clap::Args)]
#[command(after_long_help = JSON_HELP)]
pub struct Args {
    /// A model config with `cases`
    #[arg(value_name = "CONFIG.json")]
    config: PathBuf,
    /// The reference outputs of these cases
    #[arg(value_name = "GOLDEN.safetensors")]
    golden: PathBuf,
    /// Allow this relative error for every tensor instead
    #[arg(long, value_name = "X")]
    max_rel: Option<f64>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object instead (--help describes it)
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub fn verify(args: &Args) -> Outcome {
    if let Some(x) = args.max_rel {
        check_max_rel(x)?;
    }
    let report = compare(&args.config, &args.golden, &args.device.options(None)?, args.max_rel)?;
    if args.json {
        print_json(&report)?;
    } else {
        print(&table(&report))?;
    }
    let failed = report.checks.iter().filter(|c| !c.pass).count();
    if failed > 0 {
        note(format_args!(
            "vivace: {failed} of {} tensors differ by more than is allowed",
            report.checks.len()
        ));
        return Ok(ExitCode::from(1));
    }
    Ok(ExitCode::SUCCESS)
}

fn check_max_rel(x: f64) -> vivace::core::Result<()> {
    vivace::ensure_input!(x >= 0.0, "--max-rel: 0 or more expected, got {x}");
    Ok(())
}

fn table(report: &Report) -> String {
    let width = report.checks.iter().map(|c| c.name.len()).max().unwrap_or(0).max(6);
    let mut text = format!("{}\n", report.device);
    text += &format!(
        "{:<width$}  {:<20} {:>10} {:>10} {:>10}  verdict\n",
        "tensor", "shape", "error", "allowed", "worst at"
    );
    for c in &report.checks {
        text += &format!(
            "{:<width$}  {:<20} {:>10.2e} {:>10.2e} {:>10}  {}\n",
            c.name,
            format!("{:?}", c.shape),
            c.rel,
            c.max_rel,
            c.worst,
            if c.pass { "ok" } else { "FAIL" }
        );
    }
    let (agree, all) = report.free_running;
    text += &format!("free-running greedy tokens: {agree} of {all} agree\n");
    text
}
