//! `vivace run`: one question, one answer.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Map, Value, json};
use vivace::core::{Error, Result};
use vivace::engine::diagnose;
use vivace::engine::measure::REPEATS;
use vivace::engine::{Answer, Engine, Event, GenerateOptions, Question, Session, Timings};
use vivace::media::audio::Sound;
use vivace::media::fbank::require_length;
use vivace::media::pipe::read_piped;
use vivace::media::video::choose_frames;
use vivace::media::wav::{WavStream, is_wav};

use super::args::{GenerateArgs, ModelArgs};
use super::output::{note, print, print_json, stop_json, summaries, summary};
use super::{Failure, Outcome};

const JSON_HELP: &str = "\
--json prints one object:
  model          what --model named
  device         the device, in words
  state          \"audio\" (a spoken question), \"text\" (a written one), \"noise\",
                 or null: the model did not say
  text           the answer
  tokens         ids as generated: with the state mark, without the stop token
  stop           \"end_of_turn\", \"stop_string\", \"max_new_tokens\", \"context\" or
                 \"noise\"
  stop_string    the --stop text that ended the answer, or null
  prompt_rows    rows of the question in the context: tokens, pictures, sounds
  cache          what was there already: reused_rows of prompt_rows,
                 prefilled_rows the others; media_reused and media_encoded of
                 the pictures and sounds
  timings        milliseconds, 0 where a stage did not run: load_ms, decode_ms
                 (files), cache_ms (comparing with what is kept), tile_ms,
                 vision_ms, filterbank_ms, audio_ms, prefill_ms,
                 first_token_ms (from the decoded question to the token),
                 per_token_ms (median; null for a single token), total_ms
                 (without load and decode)
  stages         what the first token waited for: {stage, start_ms, ms,
                 critical_ms}, by beginning. Encoders run side by side and the
                 host ahead of the device, so all ms add up to more than
                 first_token_ms; the critical_ms add up to it. tile,
                 filterbank, cache, prompt (tokens), sampler, enqueue, keep
                 and token (its way to the host) are the host's, vision, audio
                 and prefill the device's
  memory         bytes on the device: weights_bytes, states_bytes,
                 arenas_bytes, peak_bytes

With --answers it prints an array of as many such objects. What they tell of
times before the first token is the same for all; total_ms ends with the last
token of each.

With --profile the object says what was measured on (date, device, driver,
commit, version, ceilings {bytes_per_s, flops_per_s} or null) and has graphs
[{name, nodes_us (their sum), whole (the graph as it runs: runs, median_us,
p10_us, p90_us; or null), ops, nodes}], with
  ops            [{op, nodes, us, share, RATES}], all nodes of one op
                 together, longest first
  nodes          [{op, name, out, us, RATES}], in order of execution
  RATES          flops, bytes, gb_per_s, tflop_per_s, roofline_us (what the
                 ceilings allow, or null), roofline_share

With --diff it is {device, tensors (how many were compared), first, outside
(how many leave their tolerance), most_used (the largest part of its tolerance
that a tensor inside uses), most_used_by (empty where that is 0)}; first is
null or the first that leaves it, {graph, node, op, tensor, shape, rel,
rounded_rel (what rounding alone does), worst (flat index of the largest
difference), found, expected}.";

/// Answer one question
///
/// The answer is printed as it comes; the timings of all stages follow on stderr.
#[derive(clap::Args)]
#[command(after_long_help = JSON_HELP)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The question; `-` reads it from stdin. May be left out beside a picture or a sound
    #[arg(short, long, value_name = "TEXT", help_heading = "Question")]
    prompt: Option<String>,
    /// Pictures: PNG, JPEG or WebP
    #[arg(short, long, value_name = "PATH", num_args = 1.., help_heading = "Question")]
    image: Vec<PathBuf>,
    /// Sounds: WAV, FLAC, MP3 or OGG Vorbis; `-` hears standard input to its end, a WAV while it comes in (where the audio
    /// encoder hears in chunks at most 60 s of it)
    #[arg(short, long, value_name = "PATH", num_args = 1.., help_heading = "Question")]
    audio: Vec<PathBuf>,
    /// The pictures are frames of one video, one of each second, in order: of more than 16 so many are taken, evenly, of
    /// fewer than 4 some again
    #[arg(long, requires = "image", help_heading = "Question")]
    video_frames: bool,
    /// The system text, such as the one that a checkpoint was tuned with [default: one of the project's own, by what the
    /// question holds; "You are a helpful assistant." for models without encoders]
    #[arg(long, value_name = "TEXT", help_heading = "Question")]
    system: Option<String>,
    #[command(flatten)]
    generate: GenerateArgs,
    /// Draw N answers side by side (1 to 16), which takes little longer than one, and print each under a heading when all
    /// have ended; wants a --temperature above 0
    #[arg(long, value_name = "N", conflicts_with_all = ["dump_graph", "profile", "diff"], help_heading = "Generation")]
    answers: Option<usize>,
    #[command(flatten)]
    instead: Instead,
    /// Print one JSON object instead (--help describes it)
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// What to do with the question instead of answering it.
#[derive(clap::Args)]
#[command(next_help_heading = "Instead of an answer")]
#[group(multiple = false)]
struct Instead {
    /// Print the graphs that the question runs: as written, fused, and where their memory lies
    #[arg(long, conflicts_with = "json")]
    dump_graph: bool,
    /// Time every op: microseconds, bytes, flops, share of the device's ceilings
    #[arg(long)]
    profile: bool,
    /// Compare every tensor with the CPU, report the first that leaves its tolerance, and exit with 1 if one does
    #[arg(long, value_name = "DEVICE", value_parser = ["cpu"])]
    diff: Option<String>,
}

pub fn run(args: &Args) -> Outcome {
    let options = args.generate.options()?;
    if let Some(n) = args.answers {
        options.check_answers(n)?;
    }
    let mut question = args.question()?;
    // Whatever does not answer wants the question whole.
    let heard = args.heard().filter(|_| !args.instead.any());
    if let (Some(at), None) = (args.heard(), heard) {
        question.sounds.insert(at, read_sound()?);
    }
    let system = args.system.as_deref();
    if args.instead.diff.is_some() {
        let report = diagnose::diff(&args.model.model, &args.model.options()?, system, &question)?;
        show(args.json, &report)?;
        return Ok(ExitCode::from(u8::from(!report.passed())));
    }
    let (mut engine, load_ms) = args.model.open(args.json)?;
    if args.instead.dump_graph {
        print(&diagnose::dump(&mut engine, system, &question)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.instead.profile {
        show(args.json, &diagnose::profile(&mut engine, system, &question, REPEATS)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(n) = args.answers {
        let answers = answers(args, &mut engine, question, heard, (&options, n))?;
        if args.json {
            let all = answers.iter().map(|a| to_json(&args.model.model, &engine, a, load_ms));
            print_json(&all.collect::<Vec<_>>())?;
        } else {
            note(format_args!("{}", summaries(&answers, load_ms)));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let answer = answer(args, &mut engine, question, heard, &options)?;
    if args.json {
        print_json(&to_json(&args.model.model, &engine, &answer, load_ms))?;
    } else {
        note(format_args!("{}", summary(&answer, Some(load_ms))));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(json: bool, report: &(impl Serialize + std::fmt::Display)) -> Outcome<()> {
    if json { print_json(report) } else { Ok(print(&report.to_string())?) }
}

/// Several answers, printed one after the other.
fn answers(
    args: &Args,
    engine: &mut Engine,
    mut question: Question,
    heard: Option<usize>,
    (options, n): (&GenerateOptions, usize),
) -> Outcome<Vec<Answer>> {
    let mut session = engine.session(args.system.as_deref())?;
    if let Some(at) = heard {
        question.sounds.insert(at, hear(&mut session, question.dither)?);
    }
    let answers = session.answers(&question, options, n, &mut |_, _| true)?;
    if !args.json {
        for (i, answer) in answers.iter().enumerate() {
            let gap = if i > 0 { "\n" } else { "" };
            print(&format!("{gap}answer {} of {n}:\n{}\n", i + 1, answer.text.trim_end_matches('\n')))?;
        }
    }
    Ok(answers)
}

fn answer(
    args: &Args,
    engine: &mut Engine,
    mut question: Question,
    heard: Option<usize>,
    options: &GenerateOptions,
) -> Outcome<Answer> {
    let mut session = engine.session(args.system.as_deref())?;
    if let Some(at) = heard {
        question.sounds.insert(at, hear(&mut session, question.dither)?);
    }
    let question = &question;
    if args.json {
        return Ok(session.ask(question, options, &mut |_| true)?);
    }
    let mut stream = Stream::default();
    let answer = session.ask(question, options, &mut |event| stream.show(event))?;
    stream.end(&answer)?;
    Ok(answer)
}

/// A sound on standard input.
enum Heard<R> {
    /// On its way.
    Wav(WavStream<R>),
    Whole(Sound),
}

const STDIN: &str = "standard input";

fn open_stdin() -> Result<Heard<impl Read>> {
    let mut input = io::stdin().lock();
    let mut head = Vec::new();
    let failed = |e: io::Error| Error::input(format!("--audio -: reading standard input: {e}"));
    (&mut input).take(12).read_to_end(&mut head).map_err(failed)?;
    if is_wav(&head) {
        return Ok(Heard::Wav(WavStream::open(io::Cursor::new(head).chain(input), STDIN)?));
    }
    let bytes = read_piped(io::Cursor::new(head).chain(input), STDIN)?;
    let sound = Sound::from_bytes(&bytes, STDIN)?;
    require_length(&sound).map_err(|e| e.context(STDIN))?;
    Ok(Heard::Whole(sound))
}

/// The whole sound on standard input.
fn read_sound() -> Result<Sound> {
    match open_stdin()? {
        Heard::Wav(wav) => wav.read_all(),
        Heard::Whole(sound) => Ok(sound),
    }
}

/// The sound on standard input: a WAV is encoded while it comes in.
fn hear(session: &mut Session<'_>, dither: f32) -> Result<Sound> {
    let mut wav = match open_stdin()? {
        Heard::Wav(wav) => wav,
        Heard::Whole(sound) => return Ok(sound),
    };
    let mut stream = session.sound_stream(wav.rate_hz(), dither)?;
    let mut samples = Vec::new();
    while wav.read(&mut samples)? {
        stream.push(&samples).map_err(|e| e.context(STDIN))?;
        samples.clear();
    }
    stream.finish().map_err(|e| e.context(STDIN))
}

/// Prints an answer as it comes; remembers why that stopped working.
#[derive(Default)]
pub struct Stream {
    failed: Option<io::Error>,
}

impl Stream {
    /// Whether to go on.
    pub fn show(&mut self, event: Event<'_>) -> bool {
        if let Event::Text(text) = event
            && self.failed.is_none()
        {
            self.failed = print(text).err();
        }
        self.failed.is_none()
    }

    /// Ends the last line.
    pub fn end(self, answer: &Answer) -> Outcome<()> {
        match self.failed {
            Some(e) => Err(Failure::Stream(e)),
            None if answer.text.ends_with('\n') => Ok(()),
            None => Ok(print("\n")?),
        }
    }
}

impl Args {
    /// Reads everything that the question names: what cannot be used is known before the model is loaded.
    fn question(&self) -> Result<Question> {
        let text = match self.prompt.as_deref() {
            None => String::new(),
            Some("-") => {
                vivace::ensure_input!(
                    self.heard().is_none(),
                    "--prompt - and --audio -: standard input is one of both"
                );
                read_text()?
            }
            Some(text) => text.to_owned(),
        };
        vivace::ensure_input!(
            !text.is_empty() || !self.image.is_empty() || !self.audio.is_empty(),
            "nothing to answer: give --prompt, --image or --audio"
        );
        let mut question = Question::text(text);
        question.video = self.video_frames;
        question.dither = self.generate.dither;
        let taken = match self.video_frames {
            true => choose_frames(self.image.len(), 1.0)?,
            false => (0..self.image.len()).collect(),
        };
        for at in taken {
            question = question.image(&self.image[at])?;
        }
        for path in self.audio.iter().filter(|p| p.as_os_str() != "-") {
            question = question.audio(path)?;
        }
        let heard = self.audio.len() - question.sounds.len();
        vivace::ensure_input!(heard <= 1, "--audio -: standard input can be heard once, not {heard} times");
        Ok(question)
    }

    /// Which of the sounds is standard input.
    fn heard(&self) -> Option<usize> {
        self.audio.iter().position(|p| p.as_os_str() == "-")
    }
}

impl Instead {
    fn any(&self) -> bool {
        self.dump_graph || self.profile || self.diff.is_some()
    }
}

/// All of stdin without the line break at its end.
fn read_text() -> Result<String> {
    let mut text = String::new();
    io::stdin()
        .read_to_string(&mut text)
        .map_err(|e| Error::input(format!("--prompt -: reading standard input: {e}")))?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(text)
}

/// How long an answer took, as `run --json` and `chat --json` say it.
pub fn timings_json(t: &Timings, load_ms: Option<f64>) -> Map<String, Value> {
    let mut timings = Map::new();
    if let Some(load_ms) = load_ms {
        timings.insert("load_ms".into(), load_ms.into());
    }
    for (name, ms) in [
        ("decode_ms", Some(t.decode_ms)),
        ("cache_ms", Some(t.cache_ms)),
        ("tile_ms", Some(t.tile_ms)),
        ("vision_ms", Some(t.vision_ms)),
        ("filterbank_ms", Some(t.filterbank_ms)),
        ("audio_ms", Some(t.audio_ms)),
        ("prefill_ms", Some(t.prefill_ms)),
        ("first_token_ms", Some(t.first_token_ms)),
        ("per_token_ms", t.per_token_ms),
        ("total_ms", Some(t.total_ms)),
    ] {
        timings.insert(name.into(), ms.into());
    }
    timings
}

/// What `run --json` and `chat --json` say of an answer, in the documented order.
pub fn answer_json(answer: &Answer, load_ms: Option<f64>) -> Map<String, Value> {
    let (stop, stop_string) = stop_json(&answer.stop);
    let mut fields = Map::new();
    for (name, value) in [
        ("state", json!(answer.state)),
        ("text", json!(answer.text)),
        ("tokens", json!(answer.tokens)),
        ("stop", json!(stop)),
        ("stop_string", json!(stop_string)),
        ("prompt_rows", json!(answer.prompt_rows)),
        ("cache", json!(answer.cache)),
        ("timings", timings_json(&answer.timings, load_ms).into()),
        ("stages", json!(answer.stages)),
    ] {
        fields.insert(name.into(), value);
    }
    fields
}

fn to_json(model: &str, engine: &Engine, answer: &Answer, load_ms: f64) -> Value {
    let backend = engine.model.backend();
    let memory = backend.memory();
    let mut fields = Map::new();
    fields.insert("model".into(), model.into());
    fields.insert("device".into(), backend.describe().into());
    fields.append(&mut answer_json(answer, Some(load_ms)));
    let bytes = json!({
        "weights_bytes": memory.weights,
        "states_bytes": memory.states,
        "arenas_bytes": memory.arenas,
        "peak_bytes": memory.peak,
    });
    fields.insert("memory".into(), bytes);
    fields.into()
}
