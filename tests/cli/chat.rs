//! Conversations: on a terminal's lines, and for programs.

use serde_json::json;

use super::*;

#[test]
fn a_conversation_survives_an_error() {
    let model = tiny();
    let args = ["chat", "--model", &model, "--device", "cpu", "--max-new-tokens", "4"];
    let chat = |lines: &str| vivace_with_stdin(&args, lines.as_bytes());
    let clean = chat("hello\nand then?\n");
    assert_eq!((clean.code, clean.err), (0, "(cut off by --max-new-tokens 4)\n".repeat(2)));
    assert!(!clean.out.is_empty());

    let lines = "hello\n/image nowhere.png\n/sing\n/audio\n/timings\nand then?\n/quit\nnot asked\n";
    let broken = chat(lines);
    assert_eq!((broken.code, &broken.out), (0, &clean.out), "{}", broken.err);
    for part in ["vivace: nowhere.png: ", "vivace: /sing: no such command", "vivace: /audio: ", "prefill "] {
        assert!(broken.err.contains(part), "{part:?} is not in {:?}", broken.err);
    }
    // A new conversation answers as at the start; an attached sound may go without text.
    let first = chat("hello\n").out;
    assert_eq!(chat("hello\n/reset\nhello\n").out, format!("{first}{first}"));
    let heard = chat(&format!("/audio {SOUND}\n\n/timings\n"));
    assert!(heard.code == 0 && heard.err.contains("filterbank "), "{}", heard.err);
}

#[test]
fn a_conversation_in_json_goes_on_after_an_error() {
    let model = tiny();
    let args = ["chat", "--json", "--model", &model, "--device", "cpu", "--max-new-tokens", "4"];
    let lines = format!("hello\n/image nowhere.png\n/audio {SOUND}\n\n/reset\nhello\n");
    let chat = vivace_with_stdin(&args, lines.as_bytes());
    assert_eq!((chat.code, chat.err.as_str()), (0, ""));
    let lines = chat.json_lines();
    assert_eq!(lines.len(), 6, "{}", chat.out);
    assert!(lines[1]["error"].as_str().is_some_and(|e| e.starts_with("nowhere.png: ")), "{}", lines[1]);
    assert_eq!(lines[1]["command"], "image");
    assert_eq!((&lines[2], &lines[4]), (&json!({"ok": "audio"}), &json!({"ok": "reset"})));
    let alone = run(&["--json", "--prompt", "hello", "--max-new-tokens", "4"]).json();
    for name in ["state", "text", "tokens", "stop", "stop_string", "prompt_rows"] {
        assert_eq!(lines[0][name], alone[name], "{name}");
        assert_eq!(lines[5][name], alone[name], "{name} after /reset");
    }
    assert_eq!(lines[0]["cache"]["reused_rows"], 0);
    let rows = lines[5]["prompt_rows"].as_u64().expect("rows");
    assert_eq!(lines[5]["cache"]["reused_rows"], rows - 1, "all but the last row is there already");
    let off = vivace_with_stdin(&[&args[..], &["--no-prefix-cache"]].concat(), b"hello\n/reset\nhello\n");
    let off = off.json_lines();
    assert_eq!((off.len(), &off[2]["cache"]["reused_rows"]), (3, &0.into()));
    assert_eq!((&off[2]["tokens"], &off[2]["text"]), (&lines[5]["tokens"], &lines[5]["text"]));
    assert_eq!(lines[0]["timings"]["filterbank_ms"], 0.0);
    assert!(lines[3]["timings"]["filterbank_ms"].as_f64() > Some(0.0), "{}", lines[3]);
}

/// A program writes a line and reads one.
#[test]
fn a_conversation_in_json_has_one_line_for_every_line() {
    let model = tiny();
    let args = ["chat", "--json", "--model", &model, "--device", "cpu", "--max-new-tokens", "4"];
    let answered = |v: &Value| v["tokens"].is_array() && v.get("ok").is_none() && v.get("error").is_none();
    let done = |name: &'static str| move |v: &Value| *v == json!({ "ok": name });
    let failed = |name: Option<&'static str>, part: &'static str| {
        move |v: &Value| {
            let why = v["error"].as_str().unwrap_or_default();
            why.contains(part) && v.get("command").and_then(Value::as_str) == name
        }
    };
    let timed = |v: &Value| v["ok"] == "timings" && v["timings"]["prefill_ms"].as_f64() > Some(0.0);
    let helped = |v: &Value| v["ok"] == "help" && v["text"].as_str().is_some_and(|t| t.contains("/ask"));
    let picture = format!("/image {PICTURE}");
    type Wanted<'a> = &'a dyn Fn(&Value) -> bool;
    let lines: &[(&[u8], Wanted)] = &[
        (b"", &failed(None, "nothing to answer")),
        (b"/timings", &failed(Some("timings"), "nothing was answered yet")),
        (b"/help", &helped),
        (b"hello\r", &answered),
        (b"/timings", &timed),
        (b"\xff", &failed(None, "not UTF-8")),
        (b"/sing", &failed(Some("sing"), "no such command")),
        (b"/", &failed(Some(""), "no such command")),
        (b"/image", &failed(Some("image"), "something after it expected")),
        (b"/system", &failed(Some("system"), "something after it expected")),
        (b"/audio nowhere.wav", &failed(Some("audio"), "nowhere.wav")),
        (picture.as_bytes(), &done("image")),
        (b"/system Be brief.", &done("system")),
        (b"/ask \"\"", &answered),
        (b"/ask \"\"", &failed(Some("ask"), "nothing to answer")),
        (b"/ask hello", &failed(Some("ask"), "a JSON string expected")),
        (b"/ask", &failed(Some("ask"), "a JSON string expected")),
        (br#"/ask "a" "b""#, &failed(Some("ask"), "a JSON string expected")),
        (br#"/ask "one\ntwo""#, &answered),
        (b"/reset", &done("reset")),
        (b"//etc/hosts?", &answered),
        (b"/quit", &done("quit")),
    ];
    let mut stdin = Vec::new();
    for (line, _) in lines {
        stdin.extend_from_slice(line);
        stdin.push(b'\n');
    }
    stdin.extend(b"not read\n");
    let chat = vivace_with_stdin(&args, &stdin);
    assert_eq!((chat.code, chat.err.as_str()), (0, ""));
    let said = chat.json_lines();
    assert_eq!(said.len(), lines.len(), "{}", chat.out);
    for ((line, as_wanted), said) in lines.iter().zip(&said) {
        assert!(as_wanted(said), "{}: {said}", line.escape_ascii());
    }
}

#[test]
fn a_question_of_several_lines_can_be_asked_in_a_conversation() {
    let model = tiny();
    let args = ["chat", "--model", &model, "--device", "cpu", "--max-new-tokens", "4"];
    let line = br#"/ask "one\ntwo \"three\"""#;
    let alone = run(&["--json", "--prompt", "one\ntwo \"three\"", "--max-new-tokens", "4"]).json();
    let json = vivace_with_stdin(&[&args[..], &["--json"]].concat(), line).json();
    for name in ["text", "tokens", "prompt_rows"] {
        assert_eq!(json[name], alone[name], "{name}");
    }
    let plain = vivace_with_stdin(&args, line);
    assert_eq!(plain.code, 0, "{}", plain.err);
    assert_eq!(
        plain.out.trim_end_matches('\n'),
        alone["text"].as_str().expect("text").trim_end_matches('\n')
    );
}

#[test]
fn a_turn_that_does_not_fit_is_as_if_it_had_not_been_asked() {
    let model = tiny();
    let args = ["chat", "--model", &model, "--device", "cpu", "--max-new-tokens", "4", "--context", "256"];
    let long = "x".repeat(300);
    let broken = vivace_with_stdin(&args, format!("hello\n{long}\nyou\n").as_bytes());
    let clean = vivace_with_stdin(&args, b"hello\nyou\n");
    assert_eq!((broken.code, broken.out), (0, clean.out));
    let why =
        broken.err.lines().find(|l| l.starts_with("vivace: the prompt is too long for the context by "));
    assert!(why.is_some_and(|l| l.ends_with("; /reset begins anew")), "{}", broken.err);
    // What does not fit by itself is not helped by a new conversation.
    let first = vivace_with_stdin(&args, format!("{long}\n").as_bytes());
    assert!(
        first.err.contains("too long for the context by ") && !first.err.contains("/reset"),
        "{}",
        first.err
    );
}

#[test]
fn an_answer_that_ends_with_the_context_says_so() {
    let rows = run(&["--json", "--max-new-tokens", "1", "--prompt", "hello"]).json()["prompt_rows"].clone();
    let context = (rows.as_u64().expect("rows") + 2).to_string();
    let model = tiny();
    let args = ["chat", "--model", &model, "--device", "cpu", "--context", &context];
    let chat = vivace_with_stdin(&args, b"hello\n");
    assert_eq!((chat.code, chat.err.as_str()), (0, "(cut off: the context is full; /reset begins anew)\n"));
}
