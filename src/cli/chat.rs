//! `vivace chat`: a conversation on a terminal or through a pipe.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use serde_json::{Map, Value};
use vivace::core::Result;
use vivace::engine::{Answer, GenerateOptions, Question, Session, StopReason};

use super::Outcome;
use super::args::{GenerateArgs, ModelArgs};
use super::output::{note, print, summary};
use super::run::{Stream, answer_json, timings_json};

const COMMANDS: &str = "\
Every line is a question; these are commands:
  /image PATH    attach a picture to the next question
  /audio PATH    attach a sound to the next question (an empty line then asks
                 without text)
  /ask STRING    ask what a JSON string holds, as in /ask \"one\\ntwo\": a
                 question of several lines
  /system TEXT   start a new conversation with this system text; what is
                 attached stays
  /reset         start a new conversation; what is attached goes
  /timings       how long the last answer took, stage by stage
  /help          this list
  /quit          end; so does Ctrl-D
A question that starts with a slash is written with two. Ctrl-C ends the
program, also in the middle of an answer.";

const JSON_HELP: &str = "\
With --json one line of JSON is printed for every line that is read, in order:
  questions      the answer: the fields of `run --json` but for model, device,
                 memory and load_ms
  commands       {\"ok\": \"image\"}, the name of what was done; /timings adds
                 timings, as answers have them, and /help text
  failures       {\"error\": \"message\"}, of a command (/ask too) with
                 \"command\": \"image\", its name; an empty line with nothing
                 attached is one
The conversation goes on after a failure. A question is asked without what
could not be attached: the line of that failure comes before the answer. What
was attached to a question that failed is let go.";

/// How the engine begins to say that a question does not fit.
const TOO_LONG: &str = "the prompt is too long for the context";
const NEW: &str = "; /reset begins anew";

/// Talk with the model
///
/// One conversation of many turns: earlier questions and answers stay in the context. A turn that fails is
/// reported, and the conversation goes on as if it had not been asked.
#[derive(clap::Args)]
#[command(after_help = COMMANDS, after_long_help = format!("{COMMANDS}\n\n{JSON_HELP}"))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The system text, such as the one that a checkpoint was tuned with [default: one of the project's own, by what the
    /// question holds; "You are a helpful assistant." for models without encoders]
    #[arg(long, value_name = "TEXT", help_heading = "Generation")]
    system: Option<String>,
    #[command(flatten)]
    generate: GenerateArgs,
    /// Print one line of JSON for every line that is read, for programs at the other end of a pipe (--help describes
    /// them)
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
    let mut begun_by = None;
    loop {
        let mut session = engine.session(system.as_deref())?;
        if let Some(command) = begun_by {
            chat.done(command, Map::new())?;
        }
        begun_by = match chat.converse(&mut session)? {
            End::Quit => return Ok(ExitCode::SUCCESS),
            End::Reset => Some("reset"),
            End::System(text) => {
                system = Some(text);
                Some("system")
            }
        };
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
                self.failed(None, "the line is not UTF-8; it was not asked")?;
                continue;
            };
            match parse(line.trim_end_matches(['\r', '\n'])) {
                // Nobody who presses Enter wants to hear that nothing was asked.
                Line::Ask("") if !self.json && !self.attached() => {}
                Line::Ask(text) => self.ask(session, None, text)?,
                Line::Command(name @ ("quit" | "exit"), _) => {
                    self.done(name, Map::new())?;
                    return Ok(End::Quit);
                }
                Line::Command("reset", _) => {
                    self.next = Question::default();
                    return Ok(End::Reset);
                }
                Line::Command("system", text) if !text.is_empty() => {
                    return Ok(End::System(text.to_owned()));
                }
                Line::Command("ask", string) => match serde_json::from_str::<String>(string) {
                    Ok(text) => self.ask(session, Some("ask"), &text)?,
                    Err(e) => {
                        let why = format!(
                            r#"/ask: a JSON string expected, as in "one\ntwo", found {string:?}: {e}"#
                        );
                        self.failed(Some("ask"), why)?;
                    }
                },
                Line::Command(name, rest) => match self.command(name, rest) {
                    Ok(more) => self.done(name, more)?,
                    Err(e) => self.failed(Some(name), e)?,
                },
            }
        }
    }

    /// A command did what it should; `more` is what a program gets of it.
    fn done(&self, command: &str, more: Map<String, Value>) -> Outcome<()> {
        if !self.json {
            return Ok(());
        }
        let mut line = Map::new();
        line.insert("ok".into(), command.into());
        line.extend(more);
        print_line(&line.into())
    }

    /// `command` is its name where it was one that failed.
    fn failed(&self, command: Option<&str>, why: impl Display) -> Outcome<()> {
        if !self.json {
            note(format_args!("vivace: {why}"));
            return Ok(());
        }
        let mut line = Map::new();
        line.insert("error".into(), why.to_string().into());
        if let Some(command) = command {
            line.insert("command".into(), command.into());
        }
        print_line(&line.into())
    }

    /// Whether the next question has a picture or a sound.
    fn attached(&self) -> bool {
        !self.next.images.is_empty() || !self.next.sounds.is_empty()
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

    /// What a program gets beside the name of the command; people read it on stderr.
    fn command(&mut self, name: &str, rest: &str) -> Result<Map<String, Value>> {
        let mut more = Map::new();
        match (name, rest) {
            ("image" | "audio" | "system", "") => {
                vivace::bail_input!(
                    "/{name}: something after it expected, found nothing; /help lists the commands"
                )
            }
            ("image", path) => self.next.add_image(path)?,
            ("audio", path) => self.next.add_audio(path)?,
            ("timings", _) => match &self.last {
                Some(answer) if self.json => {
                    more.insert("timings".into(), timings_json(&answer.timings, None).into());
                }
                Some(answer) => note(format_args!("{}", summary(answer, None))),
                None => vivace::bail_input!("/timings: nothing was answered yet"),
            },
            ("help", _) if self.json => {
                more.insert("text".into(), COMMANDS.into());
            }
            ("help", _) => note(format_args!("{COMMANDS}")),
            _ => vivace::bail_input!(
                "/{name}: no such command; /help lists them, // asks what starts with a slash"
            ),
        }
        Ok(more)
    }

    /// Asks, prints the answer as it comes. What the engine refuses is reported; only a broken stdout ends the chat.
    fn ask(&mut self, session: &mut Session<'_>, command: Option<&str>, text: &str) -> Outcome<()> {
        if text.is_empty() && !self.attached() {
            return self.failed(command, "nothing to answer: a question, a picture or a sound expected");
        }
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
                if let Some(why) = self.cut(&answer.stop) {
                    note(format_args!("({why})"));
                }
                self.last = Some(answer);
            }
            Err(e) => {
                // Nothing that was said before is in the way of a first question.
                let full = session.rows() > 0 && e.to_string().starts_with(TOO_LONG);
                let help = if full { NEW } else { "" };
                self.failed(command, format_args!("{e}{help}"))?;
                let dropped = question.images.len() + question.sounds.len();
                if dropped > 0 && !json {
                    note(format_args!(
                        "(attach again what the next question needs: {dropped} files were let go)"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Why there is no more of an answer, where that does not go without saying.
    fn cut(&self, stop: &StopReason) -> Option<String> {
        match stop {
            StopReason::Noise => Some("taken for noise: no answer".to_owned()),
            StopReason::MaxNewTokens => {
                Some(format!("cut off by --max-new-tokens {}", self.options.max_new_tokens))
            }
            StopReason::Context => Some(format!("cut off: the context is full{NEW}")),
            StopReason::EndOfTurn | StopReason::StopString(_) | StopReason::Cancelled => None,
        }
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
