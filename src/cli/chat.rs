//! `vivace chat`: a conversation on a terminal or through a pipe.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use serde_json::{Value, json};
use vivace::core::Result;
use vivace::engine::{Answer, GenerateOptions, Question, Session, StopReason};

use super::Outcome;
use super::args::{GenerateArgs, ModelArgs};
use super::output::{note, print, summary};
use super::run::{Stream, answer_json};

const COMMANDS: &str = "\
Every line is a question; these are commands:
  /image PATH    attach a picture to the next question
  /audio PATH    attach a sound to the next question (an empty line then asks without text)
  /system TEXT   start a new conversation with this system text; what is attached stays
  /reset         start a new conversation; what is attached goes
  /timings       how long the last answer took, stage by stage
  /help          this list
  /quit          end; so does Ctrl-D
A question that starts with a slash is written with two.";

/// Talk with the model
///
/// One conversation of many turns: earlier questions and answers stay in the context. A turn that fails is
/// reported, and the conversation goes on as if it had not been asked.
#[derive(clap::Args)]
#[command(after_help = COMMANDS)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Replaces the system text
    #[arg(long, value_name = "TEXT", help_heading = "Generation")]
    system: Option<String>,
    #[command(flatten)]
    generate: GenerateArgs,
    /// Print one line of JSON per question instead, for programs at the other end of a pipe
    ///
    /// An answer has the fields of `run --json` but for model, device, memory and load_ms; a question or a command
    /// that failed is {"error": "message"}.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub fn chat(args: &Args) -> Outcome {
    let options = args.generate.options()?;
    let (mut engine, _) = args.model.open(args.json)?;
    let mut chat = Chat {
        next: Question::default(),
        dither: args.generate.dither,
        options,
        last: None,
        json: args.json,
        prompt: !args.json && io::stdin().is_terminal(),
    };
    if chat.prompt {
        let (device, rows) = (engine.model.backend().describe(), engine.context_rows());
        note(format_args!("{device}, context of {rows} rows; /help lists the commands"));
    }
    let mut system = args.system.clone();
    loop {
        let mut session = engine.session(system.as_deref())?;
        match chat.converse(&mut session)? {
            End::Quit => return Ok(ExitCode::SUCCESS),
            End::Reset => {}
            End::System(text) => system = Some(text),
        }
    }
}

/// How a conversation ends.
enum End {
    Quit,
    Reset,
    System(String),
}

/// One line, understood.
enum Line<'a> {
    Command(&'a str, &'a str),
    Ask(&'a str),
}

struct Chat {
    /// Pictures and sounds for the next question.
    next: Question,
    dither: f32,
    options: GenerateOptions,
    last: Option<Answer>,
    json: bool,
    /// Whether somebody types.
    prompt: bool,
}

impl Chat {
    fn converse(&mut self, session: &mut Session<'_>) -> Outcome<End> {
        loop {
            let Some(line) = self.read_line()? else { return Ok(End::Quit) };
            let Ok(line) = std::str::from_utf8(&line) else {
                self.failed("the line is not UTF-8; it was not asked")?;
                continue;
            };
            let done = match parse(line.trim_end_matches(['\r', '\n'])) {
                Line::Ask("") if self.next.images.is_empty() && self.next.sounds.is_empty() => Ok(()),
                Line::Ask(text) => {
                    self.ask(session, text)?;
                    Ok(())
                }
                Line::Command("quit" | "exit", _) => return Ok(End::Quit),
                Line::Command("reset", _) => {
                    self.next = Question::default();
                    return Ok(End::Reset);
                }
                Line::Command("system", text) if !text.is_empty() => {
                    return Ok(End::System(text.to_owned()));
                }
                Line::Command(name, rest) => self.command(name, rest),
            };
            if let Err(e) = done {
                self.failed(e)?;
            }
        }
    }

    fn failed(&self, why: impl Display) -> Outcome<()> {
        if self.json {
            return print_line(&json!({ "error": why.to_string() }));
        }
        note(format_args!("vivace: {why}"));
        Ok(())
    }

    /// The next line, with its end; `None` when there are no more.
    fn read_line(&self) -> io::Result<Option<Vec<u8>>> {
        if self.prompt {
            let mut err = io::stderr();
            let _ = write!(err, "> ").and_then(|()| err.flush());
        }
        let mut line = Vec::new();
        let read = io::stdin().lock().read_until(b'\n', &mut line)?;
        if read == 0 && self.prompt {
            note(format_args!(""));
        }
        Ok((read > 0).then_some(line))
    }

    fn command(&mut self, name: &str, rest: &str) -> Result<()> {
        match (name, rest) {
            ("image" | "audio" | "system", "") => {
                vivace::bail_input!(
                    "/{name}: something after it expected, found nothing; /help lists the commands"
                )
            }
            ("image", path) => self.next.add_image(path)?,
            ("audio", path) => self.next.add_audio(path)?,
            ("timings", _) => match &self.last {
                Some(answer) => note(format_args!("{}", summary(answer, None))),
                None => vivace::bail_input!("/timings: nothing was answered yet"),
            },
            ("help", _) => note(format_args!("{COMMANDS}")),
            _ => vivace::bail_input!(
                "/{name}: no such command; /help lists them, // asks what starts with a slash"
            ),
        }
        Ok(())
    }

    /// Asks, prints the answer as it comes. What the engine refuses is reported; only a broken stdout ends the chat.
    fn ask(&mut self, session: &mut Session<'_>, text: &str) -> Outcome<()> {
        let mut question = std::mem::take(&mut self.next);
        question.text = text.to_owned();
        question.dither = self.dither;
        let mut stream = Stream::default();
        let json = self.json;
        match session.ask(&question, &self.options, &mut |event| json || stream.show(event)) {
            Ok(answer) if json => {
                print_line(&answer_json(&answer, None).into())?;
                self.last = Some(answer);
            }
            Ok(answer) => {
                stream.end(&answer)?;
                if answer.stop == StopReason::Noise {
                    note(format_args!("(taken for noise: no answer)"));
                }
                self.last = Some(answer);
            }
            Err(e) => {
                self.failed(e)?;
                let dropped = question.images.len() + question.sounds.len();
                if dropped > 0 {
                    note(format_args!(
                        "(attach again what the next question needs: {dropped} files were let go)"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// One line of JSON on stdout, at once.
fn print_line(value: &Value) -> Outcome<()> {
    Ok(print(&format!("{value}\n"))?)
}

fn parse(line: &str) -> Line<'_> {
    match line.strip_prefix('/') {
        Some(rest) if rest.starts_with('/') => Line::Ask(rest),
        Some(rest) => {
            let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            Line::Command(name, rest.trim())
        }
        None => Line::Ask(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Option<(&str, &str)> {
        match parse(line) {
            Line::Command(name, rest) => Some((name, rest)),
            Line::Ask(_) => None,
        }
    }

    #[test]
    fn lines_are_commands_or_questions() {
        assert_eq!(command("/image  my cat.png "), Some(("image", "my cat.png")));
        assert_eq!(command("/quit"), Some(("quit", "")));
        assert_eq!(command("/"), Some(("", "")));
        assert!(matches!(parse("//etc/hosts is what?"), Line::Ask("/etc/hosts is what?")));
        assert!(matches!(parse(" /image x"), Line::Ask(" /image x")));
        assert!(matches!(parse(""), Line::Ask("")));
    }
}
