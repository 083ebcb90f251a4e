//! The binary as a user meets it: answers, JSON, exit codes, messages. On the CPU, with the tiny model.

mod bad_input;
mod chat;
mod commands;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
// From there, where commands are run.
const PICTURE: &str = "examples/media/shapes.png";
const SOUND: &str = "examples/media/chime.wav";

/// A file of the fixtures.
fn fixture(name: &str) -> String {
    format!("{ROOT}/tests/fixtures/{name}")
}

fn tiny() -> String {
    format!("synthetic:{}", fixture("tiny.json"))
}

/// What a command did.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    fn from(output: Output) -> Done {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        let done = Done {
            code: output.status.code().expect("not killed"),
            out: text(output.stdout),
            err: text(output.stderr),
        };
        assert!(!done.err.contains("panicked"), "{}", done.err);
        done
    }

    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).expect("one JSON value on stdout")
    }

    /// Every line of stdout as JSON.
    fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|l| serde_json::from_str(l).expect("a JSON value on each line")).collect()
    }

    /// Failed with `code`, nothing on stdout, one message that holds every part.
    #[track_caller]
    fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        let line = self.err.lines().find(|l| l.starts_with("vivace: ") || l.starts_with("error: "));
        assert!(line.is_some(), "no message in {:?}", self.err);
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in {:?}", self.err);
        }
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vivace"));
    command.args(args).env_remove("RUST_LOG").current_dir(ROOT);
    command
}

fn vivace(args: &[&str]) -> Done {
    Done::from(command(args).stdin(Stdio::null()).output().expect("the binary starts"))
}

fn vivace_with_stdin(args: &[&str], stdin: &[u8]) -> Done {
    let piped = Stdio::piped;
    let mut child =
        command(args).stdin(piped()).stdout(piped()).stderr(piped()).spawn().expect("the binary starts");
    child.stdin.take().expect("piped").write_all(stdin).expect("stdin is read");
    Done::from(child.wait_with_output().expect("the binary ends"))
}

/// `vivace run` with the tiny model on the CPU, 8 tokens at most.
fn run(args: &[&str]) -> Done {
    let model = tiny();
    let mut all = vec!["run", "--model", &model, "--device", "cpu", "--context", "2048"];
    if !args.contains(&"--max-new-tokens") {
        all.extend(["--max-new-tokens", "8"]);
    }
    all.extend(args);
    vivace(&all)
}

/// The tokens of `vivace run --json`.
fn tokens(args: &[&str]) -> Vec<u64> {
    let json = run(&[&["--json"], args].concat()).json();
    json["tokens"].as_array().expect("tokens").iter().map(|t| t.as_u64().expect("an id")).collect()
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, bytes).expect("written");
    shown(path)
}

fn shown(path: PathBuf) -> String {
    path.to_str().expect("UTF-8").to_owned()
}
