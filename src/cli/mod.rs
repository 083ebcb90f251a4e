//! Subcommands. Answers and reports go to stdout; progress, timings and errors (`vivace: message`) to stderr.
//! Exit codes: 0, 1 for what failed at run time (and for tensors that fail in `verify`), 2 for usage and input.

mod args;
mod bench;
mod chat;
mod doctor;
mod inspect;
mod output;
mod run;
mod synth;
mod verify;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use vivace::core::Error;

use output::note;

/// An engine for VITA-1.5: it takes text, pictures and sounds, and answers in text.
#[derive(Parser)]
#[command(name = "vivace", version, max_term_width = 110, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more on stderr. RUST_LOG, where set, decides instead.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Chat(chat::Args),
    Synth(synth::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
}

/// Why a command stopped early.
enum Failure {
    Engine(Error),
    /// Stdout or stdin failed.
    Stream(io::Error),
}

/// What a command gives: the exit code, unless it stopped early.
type Outcome<T = ExitCode> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Engine(e)
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        Failure::Stream(e)
    }
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_tracing(cli.verbose);
    let outcome = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Synth(args) => synth::synth(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    };
    match outcome {
        Ok(code) => code,
        // Whoever read the output has enough of it: nothing went wrong.
        Err(Failure::Stream(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Stream(e)) => {
            note(format_args!("vivace: standard input or output: {e}"));
            ExitCode::from(1)
        }
        Err(Failure::Engine(e)) => {
            note(format_args!("vivace: {e}"));
            ExitCode::from(e.exit_code())
        }
    }
}

fn start_tracing(verbose: u8) {
    // The crate says nothing below info: the flag given twice is as good as once.
    let level = if verbose > 0 { "vivace=info,warn" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(false)
        .without_time()
        .log_internal_errors(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    /// clap breaks longer lines once more at the width of the terminal, which spoils what is wrapped by hand.
    #[test]
    fn texts_after_the_help_fit_a_terminal() {
        for command in Cli::command().get_subcommands() {
            let texts = [command.get_after_help(), command.get_after_long_help()];
            let text: String = texts.into_iter().flatten().map(|t| format!("{t}\n")).collect();
            for line in text.lines() {
                assert!(line.chars().count() <= 78, "{}: {line}", command.get_name());
            }
        }
    }
}
