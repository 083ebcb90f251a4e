//! `vivace synth`: a synthetic checkpoint on disk.

use std::path::PathBuf;
use std::process::ExitCode;

use vivace::engine::write_synthetic;
use vivace::weights::SHARD_BYTES;

use super::Outcome;
use super::output::Progress;

/// Write a checkpoint of synthetic weights
///
/// Weights, config and a byte tokenizer, as `run --model` reads them; above 4 GB in shards with an index. The values
/// follow from the config's seed and the tensors' names alone. After an error nothing is left behind.
#[derive(clap::Args)]
pub struct Args {
    /// The model's config.json
    #[arg(long, value_name = "CONFIG.json")]
    config: PathBuf,
    /// A new or empty folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn synth(args: &Args) -> Outcome {
    let progress = Progress::bytes("writing", false);
    write_synthetic(&args.config, &args.out, SHARD_BYTES, &mut |done, total| progress.at(done, total))?;
    Ok(ExitCode::SUCCESS)
}
