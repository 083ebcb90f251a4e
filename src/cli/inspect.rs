//! `vivace inspect`: what a checkpoint holds, held against what its model wants.

use std::process::ExitCode;

use vivace::models::config;

use super::Outcome;
use super::args::FolderArgs;
use super::output::{Progress, print, print_json};

const JSON_HELP: &str = "\
--json prints one object:
  source         the folder, or what the synthetic weights follow from
  parts          [{part, tensors, params, bytes, dtypes: {type: tensors}}]
  missing        [{name, expected}]: wanted and not there
  misshapen      [{name, expected, found}]: of another shape, or of no type
                 for weights
  unexpected     [{name, shape, dtype}]: there and not wanted; ignored
  non_finite     [{name, index, value}]: the first NaN or infinity of a
                 tensor, with --check";

/// List what a checkpoint holds, and what is wrong with it
///
/// Exits with 2 when a tensor is missing or misshapen, or, with --check, not finite.
#[derive(clap::Args)]
#[command(after_long_help = JSON_HELP)]
pub struct Args {
    /// Checkpoint folder, or synthetic:CONFIG.json
    #[arg(value_name = "DIR")]
    model: String,
    #[command(flatten)]
    folders: FolderArgs,
    /// Read every value, and report NaN and infinity
    #[arg(long)]
    check: bool,
    /// Print one JSON object instead (--help describes it)
    #[arg(long)]
    json: bool,
}

pub fn inspect(args: &Args) -> Outcome {
    let opened = config::open_unchecked_with(&args.model, &args.folders.folders())?;
    if let Some(assumed) = &opened.assumed {
        tracing::warn!("{assumed}");
    }
    let source = opened.source.as_ref();
    let mut report = config::inspect(source, &opened.config);
    if args.check {
        let progress = Progress::bytes("checking", args.json);
        report.check_finite(source, &opened.config, &mut |done, total| progress.at(done, total))?;
    }
    if args.json {
        print_json(&report)?;
    } else {
        print(&report.to_string())?;
    }
    report.check()?;
    Ok(ExitCode::SUCCESS)
}
