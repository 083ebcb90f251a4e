//! The command line: flags and printing, everything else is the library.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
