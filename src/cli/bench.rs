//! `vivace bench`: the times that matter, on one device.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use vivace::engine::bench::{self, Progress as At};
use vivace::engine::measure::sustain_time;
use vivace::engine::{AudioChunk, Options, ResultFile};

use super::Outcome;
use super::args::{DeviceArgs, FolderArgs, PreprocessingArgs, positive};
use super::output::{Progress, note, print, print_json};

const JSON_HELP: &str = "\
--json prints (or writes) one object: what was measured on (date, device,
driver, commit, version, ceilings {bytes_per_s, flops_per_s} or null), model,
dtype, context, memory_bytes {weights, states, arenas, peak}, and rows [{name,
what, runs, median_us, p10_us, p90_us, flops, bytes, gb_per_s, tflop_per_s,
roofline_us, roofline_share}]: roofline_us is what the device's ceilings
allow, roofline_share how near the median comes. The rows of whole requests
have stages [{stage, median_us, critical_us}], what of each the first token
waited for, and overlap_us, for how long vision and audio ran side by side.
With --sustain it has sustain_seconds, and the rows of single graphs have
sustained_us, the mean of a run, and where the GPU tells them watts and
sm_mhz, means over the runs, and joules of a run.";

/// Measure decoding, prefill, the encoders, the first token and loading
///
/// Without --model the full-size synthetic VITA-1.5 on a GPU, and a small model with fewer items on a CPU.
#[derive(clap::Args)]
#[command(after_long_help = JSON_HELP)]
pub struct Args {
    /// Checkpoint folder, or synthetic:CONFIG.json
    #[arg(short, long, value_name = "DIR")]
    model: Option<String>,
    #[command(flatten)]
    folders: FolderArgs,
    /// Only items whose name contains one of these, as in decode,vision_1; decode_512 also names its batches,
    /// decode_512_batch_8 and _16, whose times beside it say what a step of several sequences costs
    #[arg(long, value_name = "NAMES")]
    filter: Option<String>,
    /// Rows of the KV cache [default: what the items need]
    #[arg(long, value_name = "ROWS", value_parser = positive)]
    context: Option<usize>,
    /// Let the audio encoder hear in chunks of this many frames of 40 ms, each seeing LEFT chunks before it (all without
    /// /LEFT); first_token_streamed wants chunks
    #[arg(long, value_name = "FRAMES[/LEFT]")]
    audio_chunk: Option<AudioChunk>,
    /// Then replay each item that is one graph (decode, prefill, vision, audio) for half of SECONDS, so that clocks
    /// settle at the power limit, and for SECONDS (up to 60) that count: mean time, power, energy of a run, SM clock.
    /// On a CPU, and where the driver's NVML does not tell, the time alone
    #[arg(long, value_name = "SECONDS", value_parser = sustain_time)]
    sustain: Option<Duration>,
    #[command(flatten)]
    preprocessing: PreprocessingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object instead, or write it to a file beside the table (--help describes it)
    #[arg(long, value_name = "FILE", num_args = 0..=1, help_heading = "Output")]
    json: Option<Option<PathBuf>>,
}

pub fn bench(args: &Args) -> Outcome {
    let quiet = matches!(args.json, Some(None));
    let file = args.json.as_ref().and_then(Option::as_deref).map(ResultFile::create).transpose()?;
    let loading = Progress::bytes("loading", quiet);
    let (folders, audio_chunk) = (args.folders.folders(), args.audio_chunk);
    let options = Options { audio_chunk, folders, ..args.device.options(args.context)? };
    let options = args.preprocessing.with(options);
    let (model, filter) = (args.model.as_deref(), args.filter.as_deref());
    let report = bench::run(&options, model, filter, args.sustain, &mut |at| match at {
        At::Loading(done, total) => loading.at(done, total),
        At::Running { item, at, of } => {
            loading.end();
            if !quiet {
                note(format_args!("{} of {of}: {item}", at + 1));
            }
        }
    })?;
    if quiet {
        print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&report.to_string())?;
    if let Some(file) = file {
        file.write(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}
