use super::super::{CacheOptions, DeviceChoice, Options, Sampling};
use super::*;
use crate::media::image::Picture;
use crate::models::qwen2::Ids;

const CONTEXT: usize = 1024;

fn open(cache: CacheOptions) -> Engine {
    open_with(&Options { cache, ..Options::default() })
}

pub(super) fn open_with(options: &Options) -> Engine {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let spec =
        format!("synthetic:{}", std::path::Path::new(&root).join("tests/fixtures/tiny.json").display());
    let context = options.context.or(Some(CONTEXT));
    let device = match options.device {
        DeviceChoice::Auto => DeviceChoice::Cpu,
        named => named,
    };
    let options = Options { device, context, ..options.clone() };
    Engine::open(&spec, &options, &mut |_, _| {}).unwrap()
}

pub(super) fn on() -> Engine {
    open(CacheOptions::default())
}

fn off() -> Engine {
    open(CacheOptions { enabled: false, ..CacheOptions::default() })
}

/// One tile, 4 rows.
pub(super) fn picture(seed: usize) -> Picture {
    let data = (0..56 * 56 * 3).map(|i| ((i * 7 + seed * 13) % 251) as u8).collect();
    Picture::new(56, 56, data).unwrap()
}

pub(super) fn sound(seed: usize) -> Sound {
    let samples = (0..8000).map(|i| (i as f32 * (0.05 + seed as f32 * 0.01)).sin() * 0.3).collect();
    Sound::new(16_000, samples).unwrap()
}

fn seen(text: &str, picture: Picture) -> Question {
    Question { images: vec![picture], ..Question::text(text) }
}

fn tokens_of(n: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens: n, answer_noise: true, ..GenerateOptions::default() }
}

/// An answer and all that the model computed on the way to its first token: logits, and the cache, layer by layer.
#[derive(PartialEq, Debug)]
struct Computed {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    kv: Vec<Vec<f32>>,
}

/// Asks for one token and reads what the model computed.
fn compute(session: &mut Session<'_>, question: &Question) -> (Computed, CacheUse) {
    let answer = session.ask(question, &tokens_of(1), &mut |_| true).unwrap();
    assert_eq!(answer.cache.reused_rows + answer.cache.prefilled_rows, answer.prompt_rows);
    let rows = session.pos;
    let model = &mut session.engine.model;
    let padded = model.padded_rows(answer.cache.prefilled_rows);
    let (exe, io) = model.text_graph(padded, rows, Ids::Host, Head::Greedy).unwrap();
    let logits = model.backend_mut().read(exe, io.logits.unwrap()).unwrap().data.f32s().to_vec();
    let text = &model.cfg.text;
    let (heads, dim, layers) = (2 * text.num_key_value_heads, text.head_dim, text.num_hidden_layers);
    let context = model.sizes.max_seq;
    let mut kv = Vec::new();
    for layer in 0..layers {
        let state = model.read_text_state(state::KV + layer).unwrap();
        let of_head = |h: usize| &state.f32s()[h * context * dim..][..rows * dim];
        kv.push((0..heads).flat_map(of_head).copied().collect());
    }
    (Computed { tokens: answer.tokens, logits, kv }, answer.cache)
}

/// Asks the same conversations of an engine that keeps and of one that does not; all numbers agree to the bit.
/// Returns what was reused, question by question.
fn same_numbers(mut keeping: Engine, conversations: &[(&str, Vec<Question>)]) -> Vec<CacheUse> {
    let mut whole = off();
    let mut used = Vec::new();
    for (n, (system, questions)) in conversations.iter().enumerate() {
        let mut a = keeping.session(Some(system)).unwrap();
        let mut b = whole.session(Some(system)).unwrap();
        for (m, question) in questions.iter().enumerate() {
            let (kept, cache) = compute(&mut a, question);
            let (computed, nothing) = compute(&mut b, question);
            assert_eq!((nothing.reused_rows, nothing.media_reused), (0, 0));
            assert!(kept == computed, "conversation {n}, question {m}: other numbers");
            used.push(cache);
        }
    }
    used
}

#[test]
fn kept_rows_give_the_same_numbers_as_computed_ones() {
    let long = "Where, in all of this, would you say that the answer to the question lies?";
    let mixed = Question { sounds: vec![sound(0)], ..seen("What is this?", picture(0)) };
    let conversations = [
        ("Be brief.", vec![mixed.clone(), Question::text(long)]),
        ("Be brief.", vec![mixed.clone(), Question::text(long)]),
        ("Be verbose.", vec![Question::text("One"), mixed.clone()]),
        ("Be brief.", vec![seen("What is that?", picture(0)), seen(long, picture(1))]),
        (
            "Be brief.",
            vec![mixed, Question::text(long), Question { sounds: vec![sound(0)], ..Question::text("") }],
        ),
    ];
    let used = same_numbers(on(), &conversations);
    let reused: Vec<usize> = used.iter().map(|u| u.reused_rows).collect();
    let computed: Vec<usize> = used.iter().map(|u| u.prefilled_rows).collect();
    // The first conversation is computed whole, the second one is there but for the last row of each question.
    assert_eq!((reused[0], reused[1]), (0, 0));
    assert_eq!((computed[2], computed[3]), (1, 1));
    // "Be " is shared, and the picture and the sound are known in another place.
    assert_eq!(reused[4], "[system\nBe ".len());
    assert_eq!((used[5].media_reused, used[5].media_encoded, used[5].reused_rows), (2, 0, 0));
    // The system text and the picture, then a picture that was never seen.
    let shared = "[system\nBe brief.]\n[user\n".len() + 4 + "\nWhat is th".len();
    assert_eq!((reused[6], used[6].media_encoded), (shared, 0));
    assert_eq!((reused[7], used[7].media_encoded), (0, 1));
    // The first conversation was kept, both of its questions; a sound that was heard is known in the third.
    assert_eq!((computed[8], computed[9]), (1, 1));
    assert_eq!((used[10].media_reused, used[10].media_encoded), (1, 0));
}

#[test]
fn poisoned_arenas_change_nothing() {
    let engine = open_with(&Options { poison: true, ..Options::default() });
    let asked = || vec![seen("What is this?", picture(0)), seen("And this?", picture(1))];
    let used = same_numbers(engine, &[("A", asked()), ("B", asked()), ("A", asked())]);
    assert_eq!(used[4].prefilled_rows, 1);
}

#[test]
fn a_second_turn_computes_its_own_rows_only() {
    for mut engine in [on(), off()] {
        let mut session = engine.session(Some("Be brief.")).unwrap();
        let first = session.ask(&seen("One", picture(0)), &tokens_of(8), &mut |_| true).unwrap();
        assert_eq!(first.cache.prefilled_rows, first.prompt_rows);
        let before = session.rows();
        let second = session.ask(&Question::text("Two"), &tokens_of(8), &mut |_| true).unwrap();
        // The last token of the answer and its end, the question, the template.
        assert_eq!(second.prompt_rows, 1 + "]\n[user\nTwo]\n[assistant\n".len());
        assert_eq!(second.cache.prefilled_rows, second.prompt_rows);
        assert_eq!(second.cache.reused_rows, 0);
        assert_eq!(session.rows(), before + second.prompt_rows + 7);
    }
}

#[test]
fn a_turn_goes_on_after_every_token_of_the_answer() {
    let mut engine = on();
    for n in [1, 2, 8] {
        let mut session = engine.session(Some("S")).unwrap();
        let first = session.ask(&seen("One", picture(0)), &tokens_of(n), &mut |_| true).unwrap();
        assert_eq!((first.tokens.len(), &first.stop), (n, &StopReason::MaxNewTokens));
        let rows = session.rows();
        assert_eq!(rows, first.prompt_rows + n - 1);
        session.ask(&Question::text("Two"), &tokens_of(1), &mut |_| true).unwrap();
        let kept: Vec<u32> = tokens(&session.engine.model.cache.kv()[first.prompt_rows..][..n]).collect();
        assert_eq!(kept, first.tokens);
        // And the repetition penalty counts each once.
        let ids: Vec<u32> = tokens(session.engine.model.cache.kv()).collect();
        assert_eq!(session.history, ids);
    }
}

#[test]
fn an_engine_answers_in_any_thread() {
    let mut engine = on();
    let question = seen("What is this?", picture(0));
    let here = engine.session(None).unwrap().ask(&question, &tokens_of(4), &mut |_| true).unwrap();
    let there = std::thread::scope(|threads| {
        let engine = &mut engine;
        let ask = move || engine.session(None).unwrap().ask(&question, &tokens_of(4), &mut |_| true);
        threads.spawn(ask).join().unwrap().unwrap()
    });
    assert_eq!(there.tokens, here.tokens);
    let engine = std::thread::spawn(move || engine).join().unwrap();
    assert_eq!(engine.cache_stats().media, 1);
}

#[test]
fn an_answer_of_no_tokens_is_refused() {
    let mut engine = on();
    let mut session = engine.session(Some("S")).unwrap();
    let message = session.ask(&Question::text("?"), &tokens_of(0), &mut |_| true).unwrap_err().to_string();
    assert_eq!(message, "max_new_tokens: 1 or more expected, got 0");
    assert_eq!((session.rows(), session.engine.model.cache.kv().len()), (0, 0));
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let mut engine = on();
    let vocab = engine.model.cfg.text.vocab_size;
    engine.model.cfg.text.vocab_size = 90;
    let message = engine
        .session(Some("S"))
        .unwrap()
        .ask(&Question::text("zebra"), &tokens_of(2), &mut |_| true)
        .unwrap_err()
        .to_string();
    assert!(message.starts_with("the tokenizer gives id "), "{message}");
    engine.model.cfg.text.vocab_size = vocab;
    engine.session(Some("S")).unwrap().ask(&Question::text("zebra"), &tokens_of(2), &mut |_| true).unwrap();
}

#[test]
fn a_stop_text_that_cannot_be_leaves_no_trace() {
    let mut engine = on();
    let mut session = engine.session(Some("S")).unwrap();
    let one = session.ask(&Question::text("One"), &tokens_of(4), &mut |_| true).unwrap();
    let before = (session.rows(), session.turns, session.history.clone());
    let wrong = GenerateOptions { stop: vec![String::new()], ..tokens_of(4) };
    assert!(session.ask(&Question::text("Two"), &wrong, &mut |_| true).is_err());
    assert_eq!((session.rows(), session.turns, session.history.clone()), before);
    let two = session.ask(&Question::text("Two"), &tokens_of(4), &mut |_| true).unwrap();
    let mut whole = off();
    let mut session = whole.session(Some("S")).unwrap();
    for (question, want) in [("One", one), ("Two", two)] {
        let got = session.ask(&Question::text(question), &tokens_of(4), &mut |_| true).unwrap();
        assert_eq!(got.tokens, want.tokens);
    }
}

#[test]
fn generated_rows_are_reused_as_history() {
    let mut engine = on();
    let (one, two) = (Question::text("One"), Question::text("Two, and what comes after that"));
    let ask = |session: &mut Session<'_>, q| session.ask(q, &tokens_of(24), &mut |_| true).unwrap();
    let mut session = engine.session(None).unwrap();
    let first = [ask(&mut session, &one), ask(&mut session, &two)];
    let mut session = engine.session(None).unwrap();
    let again = [ask(&mut session, &one), ask(&mut session, &two)];
    for (first, again) in first.iter().zip(&again) {
        assert_eq!((&again.tokens, &again.text), (&first.tokens, &first.text));
        assert_eq!(again.cache.prefilled_rows, 1);
    }
    let stats = engine.cache_stats();
    let rows: usize = first.iter().map(|a| a.prompt_rows).sum();
    assert_eq!((stats.reused_rows, stats.prefilled_rows), (rows as u64 - 2, rows as u64 + 2));
    assert_eq!(stats.prefixes, 1);
}

#[test]
fn one_pixel_in_the_middle_is_another_picture() {
    let mut engine = on();
    let mut other = picture(0);
    other.data[56 * 56 * 3 / 2] ^= 1;
    let both = |first: Picture| Question {
        images: vec![first, picture(1)],
        sounds: vec![sound(0)],
        ..Question::text("What is this?")
    };
    let first = engine.session(None).unwrap().ask(&both(picture(0)), &tokens_of(1), &mut |_| true).unwrap();
    let second =
        engine.session(None).unwrap().ask(&both(other.clone()), &tokens_of(1), &mut |_| true).unwrap();
    assert_eq!(first.prompt_rows, second.prompt_rows);
    let before = format!("[system\n{}]\n[user\n", crate::text::prompt::SYSTEM_IMAGE).len();
    assert_eq!(second.cache.reused_rows, before, "nothing from the first row of the picture on");
    assert_eq!((second.cache.media_reused, second.cache.media_encoded), (2, 1));
    same_numbers(engine, &[("A", vec![both(picture(0))]), ("A", vec![both(other)])]);
}

#[test]
fn an_option_that_changes_the_rows_is_another_sound() {
    let mut engine = on();
    let mut ask = |rate_hz: u32, dither: f32| {
        let sounds = vec![Sound { rate_hz, ..sound(0) }];
        let question = Question { sounds, dither, ..Question::default() };
        engine.session(None).unwrap().ask(&question, &tokens_of(1), &mut |_| true).unwrap().cache
    };
    assert_eq!(ask(16_000, 0.0).media_encoded, 1);
    assert_eq!(ask(16_000, 0.0).media_encoded, 0);
    assert_eq!(ask(8_000, 0.0).media_encoded, 1);
    assert_eq!(ask(16_000, 1.0).media_encoded, 1);
    assert_eq!(ask(16_000, 1.0).media_encoded, 0);
}

#[test]
fn a_frame_of_a_video_is_not_a_picture_and_a_picture_given_twice_is_seen_once() {
    let mut engine = on();
    let twice = Question { images: vec![picture(0), picture(0)], ..Question::text("What?") };
    let film = Question { video: true, ..twice.clone() };
    let used = same_numbers(on(), &[("A", vec![twice.clone()]), ("A", vec![film.clone()])]);
    assert_eq!((used[0].media_reused, used[0].media_encoded), (1, 1));
    assert_eq!((used[1].media_reused, used[1].media_encoded), (0, 1));
    let ask =
        |engine: &mut Engine, q| engine.session(Some("A")).unwrap().ask(q, &tokens_of(1), &mut |_| true);
    let (a, b) = (ask(&mut engine, &film).unwrap(), ask(&mut engine, &twice).unwrap());
    assert_eq!(a.prompt_rows, b.prompt_rows);
    assert_eq!(b.cache.reused_rows, "[system\nA]\n[user\n".len());
}

#[test]
fn kept_beginnings_are_bounded_and_the_least_recently_used_goes() {
    let question =
        |system: &str| (system.to_owned(), Question::text("What is there to say about it? Tell me."));
    let conversations = ["Apples.", "Pears.", "Plums."].map(question);
    let ask = |engine: &mut Engine, n: usize| {
        let (system, q) = &conversations[n];
        engine.session(Some(system)).unwrap().ask(q, &tokens_of(1), &mut |_| true).unwrap().cache
    };
    // Two layers of keys and values of one head of 128, in blocks of 64 rows; every conversation takes two of these.
    let row_bytes = 2 * 2 * 128 * 4;
    let bytes = 4 * 64 * row_bytes + 1;
    let mut engine = open(CacheOptions { enabled: true, bytes });
    for n in 0..3 {
        let used = ask(&mut engine, n);
        assert!((65..128).contains(&(used.reused_rows + used.prefilled_rows)), "{used:?}");
        assert!(used.reused_rows <= "[system\nP".len(), "{used:?}");
        if n == 0 {
            assert_eq!(engine.cache_stats().prefix_bytes, 0, "no memory before anything is kept");
        }
    }
    // The third one is in the KV cache itself, the others are kept.
    let stats = engine.cache_stats();
    assert_eq!((stats.prefixes, stats.prefix_rows, stats.evicted), (2, 256, 0));
    assert_eq!(stats.prefix_bytes, bytes - 1);
    // Going back to the pears keeps the plums, for which the apples go.
    assert_eq!(ask(&mut engine, 1).prefilled_rows, 1);
    assert_eq!(engine.cache_stats().evicted, 1);
    assert_eq!(ask(&mut engine, 2).prefilled_rows, 1);
    assert_eq!(ask(&mut engine, 1).prefilled_rows, 1);
    assert_eq!(engine.cache_stats().evicted, 1, "these two fit");
    assert_eq!(ask(&mut engine, 0).reused_rows, "[system\n".len());
    assert_eq!(engine.cache_stats().prefix_bytes, bytes - 1);

    engine.clear_cache();
    assert_eq!(ask(&mut engine, 0).reused_rows, 0);
    assert_eq!(engine.cache_stats().prefixes, 0);
}

#[test]
fn rows_that_gave_way_are_encoded_again() {
    let small = |enabled| {
        let cache = CacheOptions { enabled, ..CacheOptions::default() };
        open_with(&Options { context: Some(160), cache, ..Options::default() })
    };
    // 13 tiles, 52 rows: three of these fill the 160 media rows.
    let large = |seed: usize| {
        let data = (0..80 * 60 * 3).map(|i| ((i * 7 + seed * 13) % 251) as u8).collect();
        Picture::new(80, 60, data).unwrap()
    };
    let (mut keeping, mut whole) = (small(true), small(false));
    let mut ask = |n: usize, system: &str| {
        let question = seen("?", large(n));
        let [a, b] = [&mut keeping, &mut whole].map(|engine| {
            engine.session(Some(system)).unwrap().ask(&question, &tokens_of(2), &mut |_| true).unwrap()
        });
        assert_eq!(a.tokens, b.tokens);
        (a.cache.media_encoded, a.timings.tile_ms > 0.0, a.timings.vision_ms > 0.0)
    };
    for n in 0..4 {
        assert_eq!(ask(n, "S"), (1, true, true));
    }
    assert_eq!(ask(2, "T"), (0, false, false));
    assert_eq!(ask(0, "U"), (1, true, true));
    assert_eq!(ask(0, "V"), (0, false, false));
}

#[test]
fn a_picture_that_gave_way_comes_back_beside_a_new_one_and_a_sound() {
    let small = |enabled| {
        let cache = CacheOptions { enabled, ..CacheOptions::default() };
        open_with(&Options { context: Some(160), cache, ..Options::default() })
    };
    let large = |seed: usize| {
        let data = (0..80 * 60 * 3).map(|i| ((i * 7 + seed * 13) % 251) as u8).collect();
        Picture::new(80, 60, data).unwrap()
    };
    let both = Question {
        images: vec![large(0), picture(5), large(0)],
        sounds: vec![sound(0), sound(1), sound(0)],
        ..Question::text("?")
    };
    let conversations: Vec<(&str, Vec<Question>)> =
        [seen("?", large(0)), seen("?", large(1)), seen("?", large(2)), seen("?", large(3))]
            .into_iter()
            .chain([both.clone(), both])
            .map(|q| ("S", vec![q]))
            .collect();
    let used = {
        let (mut keeping, mut whole) = (small(true), small(false));
        let mut used = Vec::new();
        for (system, questions) in &conversations {
            let [a, b] = [&mut keeping, &mut whole]
                .map(|engine| compute(&mut engine.session(Some(system)).unwrap(), &questions[0]));
            assert!(a.0 == b.0, "other numbers");
            used.push((a.1.media_reused, a.1.media_encoded));
        }
        used
    };
    // The first large picture is known and has no rows: it is encoded again, once, as are the new ones.
    assert_eq!(used, [(0, 1), (0, 1), (0, 1), (0, 1), (2, 4), (6, 0)]);
}

#[test]
fn encoders_begin_as_soon_as_they_can() {
    let mixed = Question { sounds: vec![sound(0)], ..seen("What is this?", picture(0)) };
    let mut engine = on();
    let answer = engine.session(None).unwrap().ask(&mixed, &tokens_of(1), &mut |_| true).unwrap();
    let stages = |name: &str| {
        let of_name = answer.stages.iter().filter(|s| s.stage == name);
        of_name.map(|s| (s.start_ms, s.start_ms + s.ms)).collect::<Vec<_>>()
    };
    let ([filterbank], [tile], [prompt]) =
        (&stages("filterbank")[..], &stages("tile")[..], &stages("prompt")[..])
    else {
        panic!("one stage of each expected: {:?}", answer.stages)
    };
    let [vision, audio, prefill, _] = stages("enqueue")[..] else { panic!("{:?}", answer.stages) };
    // The sound is filtered from the beginning; the picture does not wait for it, and no encoder waits for the prompt.
    assert!(filterbank.0 <= tile.0 && tile.1 <= vision.0);
    assert!(filterbank.1 <= audio.0 && vision.1 <= audio.0);
    assert!(audio.1 <= prompt.0 && prompt.1 <= prefill.0);
}

#[test]
fn pictures_that_fill_the_context_are_refused_as_a_long_text_is() {
    let mut engine = open_with(&Options { context: Some(160), ..Options::default() });
    let mut session = engine.session(Some("S")).unwrap();
    let first = session.ask(&seen("One", picture(0)), &tokens_of(2), &mut |_| true).unwrap();
    let rows = session.rows();
    let many = Question { images: (1..41).map(picture).collect(), ..Question::text("Two") };
    let message = session.ask(&many, &tokens_of(2), &mut |_| true).unwrap_err().to_string();
    assert!(message.starts_with("the prompt is too long for the context by "), "{message}");
    assert!(message.contains("(160 of them pictures and sounds)"), "{message}");
    assert_eq!((session.rows(), session.turns), (rows, 1));
    engine.clear_cache();
    let again = engine
        .session(Some("S"))
        .unwrap()
        .ask(&seen("One", picture(0)), &tokens_of(2), &mut |_| true)
        .unwrap();
    assert_eq!(again.tokens, first.tokens);
}

#[test]
fn questions_of_one_of_the_threads_that_filter_are_answered() {
    let mixed = Question { sounds: vec![sound(0), sound(1)], ..seen("What is this?", picture(0)) };
    let ask = || on().session(Some("S")).unwrap().ask(&mixed, &tokens_of(2), &mut |_| true).unwrap().tokens;
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(alone.install(ask), ask());
}

#[test]
fn sampling_and_the_repetition_penalty_see_the_whole_prompt() {
    let sampling = Sampling { temperature: 1.5, top_k: 50, top_p: 0.95, repetition_penalty: 1.3, seed: 3 };
    let options = GenerateOptions { sampling, ..tokens_of(16) };
    let question = seen("What is this?", picture(0));
    let (mut keeping, mut whole) = (on(), off());
    let [a, b] = [&mut keeping, &mut whole]
        .map(|e| [0, 1].map(|_| e.session(None).unwrap().ask(&question, &options, &mut |_| true).unwrap()));
    assert_eq!(a[1].cache.prefilled_rows, 1);
    for answer in [&a[0], &a[1], &b[1]] {
        assert_eq!(answer.tokens, b[0].tokens);
    }
}

#[test]
fn what_others_write_to_the_states_is_not_reused() {
    let mut engine = on();
    let question = seen("What is this?", picture(0));
    let ask =
        |e: &mut Engine| e.session(Some("S")).unwrap().ask(&question, &tokens_of(4), &mut |_| true).unwrap();
    let first = ask(&mut engine);
    let noise = vec![0.5; 3 * 56 * 56];
    engine.model.encode_tiles(&noise, 2).unwrap();
    engine.model.run_ids(&[1, 2, 3], 5, 0, Head::Greedy).unwrap();
    let second = ask(&mut engine);
    assert_eq!(second.tokens, first.tokens);
    assert_eq!((second.cache.reused_rows, second.cache.media_encoded), (5, 1));
    super::super::diagnose::profile(&mut engine, None, &Question::text("x"), 1).unwrap();
    let third = ask(&mut engine);
    assert_eq!((third.tokens, third.cache.reused_rows), (first.tokens, 0));
}

#[test]
fn a_question_that_fails_leaves_no_trace() {
    let mut engine = on();
    let mut session = engine.session(Some("S")).unwrap();
    let one = session.ask(&seen("One", picture(0)), &tokens_of(4), &mut |_| true).unwrap();
    let rows = session.rows();
    let long = seen(&"x".repeat(2000), picture(1));
    let message = session.ask(&long, &tokens_of(4), &mut |_| true).unwrap_err().to_string();
    assert!(message.starts_with("the prompt is too long for the context by "), "{message}");
    assert_eq!(session.rows(), rows);
    let two = session.ask(&seen("Two", picture(1)), &tokens_of(4), &mut |_| true).unwrap();
    assert_eq!((two.cache.reused_rows, two.cache.media_encoded), (0, 1));
    let mut whole = off();
    let mut session = whole.session(Some("S")).unwrap();
    assert_eq!(
        session.ask(&seen("One", picture(0)), &tokens_of(4), &mut |_| true).unwrap().tokens,
        one.tokens
    );
    assert_eq!(
        session.ask(&seen("Two", picture(1)), &tokens_of(4), &mut |_| true).unwrap().tokens,
        two.tokens
    );
}

#[test]
fn tiles_made_by_the_device_are_the_same_and_frames_nearly() {
    let tall = Picture::new(90, 300, (0..90 * 300 * 3).map(|i| (i * 31 % 253) as u8).collect()).unwrap();
    let seen = Question { images: vec![picture(0), tall], ..Question::text("What is this?") };
    let heard =
        Question { sounds: vec![Sound { rate_hz: 8_000, ..sound(0) }], ..Question::text("And this?") };
    let mut device = open_with(&Options { device_tiling: true, poison: true, ..Options::default() });
    let mut host = on();
    for question in [&seen, &heard, &seen] {
        let [a, b] = [&mut device, &mut host].map(|e| compute(&mut e.session(Some("S")).unwrap(), question));
        assert!(a == b);
    }
    let mut device = open_with(&Options { device_filterbank: true, poison: true, ..Options::default() });
    let mut host = on();
    let noisy = Question { dither: 1.0, ..heard.clone() };
    for question in [&heard, &noisy] {
        let [a, b] = [&mut device, &mut host].map(|e| compute(&mut e.session(Some("S")).unwrap(), question));
        assert_eq!((a.0.tokens, a.1), (b.0.tokens, b.1));
        let rel = super::super::measure::relative(&a.0.logits, &b.0.logits).0;
        assert!(rel < 1e-4 && (rel == 0.0) == (question.dither > 0.0), "{rel}");
    }
    // What looks into the model has the host make its inputs.
    super::super::diagnose::profile(&mut device, None, &seen, 1).unwrap();
}

#[test]
fn getting_ready_changes_no_answer() {
    let mixed = Question { sounds: vec![sound(0)], ..seen("What is this?", picture(0)) };
    let mut ready = on();
    ready.model.warm().unwrap();
    same_numbers(ready, &[("A", vec![mixed.clone(), Question::text("And then?")]), ("A", vec![mixed])]);
}

/// What a GPU computes from kept rows errs as what it computes whole, and the rows that come back are those that went.
#[cfg(feature = "cuda")]
#[test]
fn a_gpu_errs_no_more_with_kept_rows() {
    let device = DeviceChoice::Cuda(0);
    if let Err(why) = super::super::open_backend(device) {
        let required = std::env::var_os("VIVACE_REQUIRE_GPU").is_some_and(|v| v != "0");
        assert!(!required, "a GPU is required: {why}");
        println!("no GPU: nothing checked ({why})");
        return;
    }
    let disabled = CacheOptions { enabled: false, ..CacheOptions::default() };
    let mut keeping = open_with(&Options { device, ..Options::default() });
    let mut whole = open_with(&Options { device, cache: disabled, ..Options::default() });
    let mut exact = off();
    let mixed =
        Question { sounds: vec![sound(0)], ..seen("What is this, and what was said of it?", picture(0)) };
    let mut kv = Vec::new();
    for (system, reused) in [("A", 0), ("A", 1), ("Another", 0), ("A", 1), ("Another", 1)] {
        let [a, b, c] = [&mut keeping, &mut whole, &mut exact]
            .map(|engine| compute(&mut engine.session(Some(system)).unwrap(), &mixed));
        assert_eq!(a.1.prefilled_rows == 1, reused == 1, "{system}: {:?}", a.1);
        let error = |x: &Computed| super::super::measure::relative(&x.logits, &c.0.logits).0;
        let (kept, computed) = (error(&a.0), error(&b.0));
        assert!(kept <= 2.0 * computed + 1e-3, "{system}: {kept} with kept rows, {computed} without");
        kv.push(a.0.kv);
    }
    // The last row is computed anew, by the kernels of a single row.
    for (first, again) in [(0, 1), (0, 3), (2, 4)] {
        for (layer, (x, y)) in kv[first].iter().zip(&kv[again]).enumerate() {
            let dim = whole.model.cfg.text.head_dim;
            let rows = x.len() / dim / (2 * whole.model.cfg.text.num_key_value_heads);
            for (at, (x, y)) in x.chunks(dim).zip(y.chunks(dim)).enumerate() {
                assert!(x == y || at % rows == rows - 1, "layer {layer}, row {at} of question {again}");
            }
        }
    }
}
