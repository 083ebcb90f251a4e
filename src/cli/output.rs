//! What commands print: notes on stderr, tables, JSON, progress bars.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use vivace::engine::{Answer, StopReason, Timings, overlap_ms};

use super::Outcome;

/// A line on stderr. That nobody reads it is no reason to fail.
pub fn note(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Text on stdout, at once.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// One JSON object on stdout.
pub fn print_json(value: &impl Serialize) -> Outcome<()> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    Ok(print(&format!("{text}\n"))?)
}

/// A progress bar on stderr where that is a terminal; it vanishes when dropped.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// `what` is the word before the bar; counts are bytes.
    pub fn bytes(what: &'static str, quiet: bool) -> Progress {
        let shown = !quiet && io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target).with_message(what);
        let style =
            "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Progress { bar }
    }

    pub fn at(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// How an answer came about, as lines for stderr. `load_ms` where the model was loaded for it.
pub fn summary(answer: &Answer, load_ms: Option<f64>) -> String {
    let mut lines = Vec::new();
    if let Some(state) = answer.state {
        lines.push(format!("state         {} {}", state.mark(), state.as_str()));
    }
    let (n, rows) = (answer.tokens.len(), answer.prompt_rows);
    lines.push(format!("tokens        {rows} in, {n} out; ended by {}", stop_text(&answer.stop)));
    lines.extend(times(answer, load_ms));
    lines.join("\n")
}

/// The same for answers that were drawn side by side.
pub fn summaries(answers: &[Answer], load_ms: f64) -> String {
    let mut lines = Vec::new();
    for (i, answer) in answers.iter().enumerate() {
        let mark = answer.state.map_or(String::new(), |s| format!("{} {}; ", s.mark(), s.as_str()));
        let (n, rows) = (answer.tokens.len(), answer.prompt_rows);
        let stop = stop_text(&answer.stop);
        lines.push(format!("answer {:<6} {mark}{rows} in, {n} out; ended by {stop}", i + 1));
    }
    // That of the one that ended last is the time of all.
    let last = answers.iter().max_by(|a, b| a.timings.total_ms.total_cmp(&b.timings.total_ms));
    lines.extend(last.into_iter().flat_map(|answer| times(answer, Some(load_ms))));
    lines.join("\n")
}

/// What was reused for an answer, and its times.
fn times(answer: &Answer, load_ms: Option<f64>) -> Vec<String> {
    let (mut lines, rows) = (Vec::new(), answer.prompt_rows);
    let c = &answer.cache;
    if c.reused_rows + c.media_reused > 0 {
        let (reused, media, all) = (c.reused_rows, c.media_reused, c.media_reused + c.media_encoded);
        let of = if all > 0 { format!(", {media} of {all} pictures and sounds") } else { String::new() };
        lines.push(format!("reused        {reused} of {rows} rows{of}"));
    }
    let t: &Timings = &answer.timings;
    let stages = [
        ("load", load_ms.unwrap_or(0.0)),
        ("decode", t.decode_ms),
        ("cache", t.cache_ms),
        ("tile", t.tile_ms),
        ("vision", t.vision_ms),
        ("filterbank", t.filterbank_ms),
        ("audio", t.audio_ms),
        ("prefill", t.prefill_ms),
        ("first token", t.first_token_ms),
    ];
    for (name, ms) in stages.into_iter().filter(|(_, ms)| *ms > 0.0) {
        lines.push(format!("{name:<12} {ms:>10.2} ms"));
    }
    let overlap = overlap_ms(&answer.stages, "vision", "audio");
    if overlap > 0.005 {
        lines.push(format!("{:<12} {overlap:>10.2} ms  of vision and audio side by side", "overlap"));
    }
    if let Some(ms) = t.per_token_ms {
        lines.push(format!("{:<12} {ms:>10.2} ms  ({:.1} tokens/s)", "per token", 1e3 / ms.max(1e-6)));
    }
    lines.push(format!("{:<12} {:>10.2} ms", "total", t.total_ms));
    lines
}

fn stop_text(stop: &StopReason) -> String {
    match stop {
        StopReason::EndOfTurn => "end of turn".to_owned(),
        StopReason::StopString(s) => format!("stop text {s:?}"),
        StopReason::MaxNewTokens => "--max-new-tokens".to_owned(),
        StopReason::Context => "a full context".to_owned(),
        StopReason::Noise => "noise (--answer-noise goes on)".to_owned(),
        StopReason::Cancelled => "the reader of the output".to_owned(),
    }
}

/// The stable name of a stop reason in JSON, and the stop text that was met.
pub fn stop_json(stop: &StopReason) -> (&'static str, Option<&str>) {
    match stop {
        StopReason::EndOfTurn => ("end_of_turn", None),
        StopReason::StopString(s) => ("stop_string", Some(s)),
        StopReason::MaxNewTokens => ("max_new_tokens", None),
        StopReason::Context => ("context", None),
        StopReason::Noise => ("noise", None),
        StopReason::Cancelled => ("cancelled", None),
    }
}

/// Bytes for people.
pub fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}
