use super::*;
use crate::engine::{AudioChunk, CacheOptions, DeviceChoice, Engine, GenerateOptions, Options, Question};
use crate::models::qwen2::state;

fn open(config: &str, options: Options) -> Engine {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let path = std::path::Path::new(&root).join("tests/fixtures").join(config);
    let device = match options.device {
        DeviceChoice::Auto => DeviceChoice::Cpu,
        named => named,
    };
    let options = Options { device, context: options.context.or(Some(1024)), ..options };
    Engine::open(&format!("synthetic:{}", path.display()), &options, &mut |_, _| {}).unwrap()
}

fn chunked(options: Options) -> Engine {
    open("tiny-chunked.json", options)
}

/// Something like speech: tones that come and go.
fn samples(n: usize) -> Vec<f32> {
    let tone = |i: usize| {
        let t = i as f32 / 16_000.0;
        (t * (700.0 + 300.0 * (t * 9.0).sin())).sin() * 0.4 * (t * 20.0).sin()
    };
    (0..n).map(tone).collect()
}

fn question(sound: Sound) -> Question {
    Question { sounds: vec![sound], ..Question::text("What was said?") }
}

fn once() -> GenerateOptions {
    GenerateOptions { max_new_tokens: 3, answer_noise: true, ..GenerateOptions::default() }
}

/// Tokens of an answer, rows of its sound, and pictures and sounds that were encoded for it.
fn ask(session: &mut Session<'_>, question: &Question) -> (Vec<u32>, Vec<f32>, usize) {
    let answer = session.ask(question, &once(), &mut |_| true).unwrap();
    let model = &mut session.engine.model;
    let media = model.read_text_state(state::MEDIA).unwrap();
    let frames = frame_count((question.sounds[0].seconds() * 16_000.0).ceil() as usize);
    let rows = model.rows_of_sound(frames);
    let rows = media.f32s()[..rows * model.cfg.text.hidden_size].to_vec();
    (answer.tokens, rows, answer.cache.media_encoded)
}

fn stream(session: &mut Session<'_>, rate_hz: u32, dither: f32, samples: &[f32], piece: usize) -> Sound {
    let mut stream = session.sound_stream(rate_hz, dither).unwrap();
    samples.chunks(piece).for_each(|s| stream.push(s).unwrap());
    stream.finish().unwrap()
}

/// A sound in pieces gives the rows and tokens of the whole, to the bit, and is not encoded again.
fn same(engine: &mut Engine, whole: &mut Engine, rate_hz: u32, samples: &[f32], pieces: &[usize]) {
    let sound = Sound::new(rate_hz, samples.to_vec()).unwrap();
    whole.clear_cache();
    let (tokens, rows, _) = ask(&mut whole.session(None).unwrap(), &question(sound.clone()));
    for &piece in pieces {
        engine.clear_cache();
        let mut session = engine.session(None).unwrap();
        let streamed = stream(&mut session, rate_hz, 0.0, samples, piece);
        assert!(streamed == sound);
        let got = ask(&mut session, &question(streamed));
        assert!(got.1 == rows, "{} samples in pieces of {piece}: other rows", samples.len());
        assert_eq!((got.0, got.2), (tokens.clone(), 0), "{} samples in pieces of {piece}", samples.len());
    }
}

#[test]
fn pieces_of_any_size_give_the_rows_of_the_whole_sound() {
    let (mut engine, mut whole) = (chunked(Options::default()), chunked(Options::default()));
    // From the shortest sound there is; around the ends of chunks (2560 samples each) and of histories.
    for n in [1360, 1361, 2960, 3119, 3120, 5679, 5680, 6320, 13_359, 13_360, 13_361, 20_000] {
        same(&mut engine, &mut whole, 16_000, &samples(n), &[n, 1000]);
    }
    same(&mut engine, &mut whole, 16_000, &samples(40_001), &[1, 159, 160, 401, 7919, 32_000]);
}

#[test]
fn other_rates_and_full_attention_too() {
    let (mut engine, mut whole) = (chunked(Options::default()), chunked(Options::default()));
    for rate_hz in [8_000, 44_100, 48_000] {
        same(&mut engine, &mut whole, rate_hz, &samples(rate_hz as usize), &[97, rate_hz as usize / 50]);
    }
    let full = || open("tiny.json", Options::default());
    same(&mut full(), &mut full(), 16_000, &samples(20_000), &[333]);
}

#[test]
fn chunks_of_any_size_and_history() {
    for (frames, left) in [(1, Some(0)), (3, None), (5, Some(1)), (16, None), (2, Some(100)), (64, Some(3))] {
        let audio_chunk = Some(AudioChunk { frames, left });
        let open = || chunked(Options { audio_chunk, poison: true, ..Options::default() });
        same(&mut open(), &mut open(), 16_000, &samples(30_000), &[777]);
    }
    let chunk = |s: &str| s.parse::<AudioChunk>();
    assert_eq!(chunk("16"), Ok(AudioChunk { frames: 16, left: None }));
    assert_eq!(chunk("16/4"), Ok(AudioChunk { frames: 16, left: Some(4) }));
    for wrong in ["", "0", "x/1", "4/", "4/-1", "5000"] {
        assert!(chunk(wrong).unwrap_err().ends_with(&format!("{wrong:?}")), "{wrong}");
    }
}

#[test]
fn noise_that_is_asked_for_is_that_of_the_whole_sound() {
    let (mut engine, mut whole) = (chunked(Options::default()), chunked(Options::default()));
    let sound = Sound::new(16_000, samples(9_000)).unwrap();
    let noisy = Question { dither: 1.0, ..question(sound.clone()) };
    let want = ask(&mut whole.session(None).unwrap(), &noisy);
    let mut session = engine.session(None).unwrap();
    stream(&mut session, 16_000, 1.0, &sound.samples, 500);
    let got = ask(&mut session, &noisy);
    assert!(got.1 == want.1 && got.0 == want.0 && got.2 == 0);
    // Without the noise it is another sound.
    assert_eq!(ask(&mut session, &question(sound)).2, 1);
    assert!(session.sound_stream(16_000, -1.0).err().unwrap().to_string().starts_with("dither -1"));
}

#[test]
fn a_stream_that_is_dropped_leaves_no_trace() {
    let (mut engine, mut whole) = (chunked(Options::default()), chunked(Options::default()));
    let sound = Sound::new(16_000, samples(20_000)).unwrap();
    let other = Sound::new(16_000, samples(12_000).into_iter().map(|s| -s).collect()).unwrap();
    let mut plain = whole.session(None).unwrap();
    let want = [question(sound.clone()), question(other.clone())].map(|q| ask(&mut plain, &q));
    let mut session = engine.session(None).unwrap();
    let first = ask(&mut session, &question(sound));
    let before = session.rows();
    let mut dropped = session.sound_stream(16_000, 0.0).unwrap();
    dropped.push(&samples(40_000)).unwrap();
    assert!((dropped.seconds() - 2.5).abs() < 1e-9);
    drop(dropped);
    assert_eq!(session.rows(), before);
    let streamed = stream(&mut session, 16_000, 0.0, &other.samples, 333);
    let second = ask(&mut session, &question(streamed));
    assert_eq!((first.0, second.0, second.2), (want[0].0.clone(), want[1].0.clone(), 0));
    assert!(first.1 == want[0].1);
}

#[test]
fn what_is_refused_changes_nothing() {
    let (mut engine, mut whole) = (chunked(Options::default()), chunked(Options::default()));
    let all = samples(10_000);
    let sound = Sound::new(16_000, all.clone()).unwrap();
    let want = ask(&mut whole.session(None).unwrap(), &question(sound));
    let mut session = engine.session(None).unwrap();
    assert!(session.sound_stream(10, 0.0).err().unwrap().to_string().contains("10 samples per second"));
    let mut stream = session.sound_stream(16_000, 0.0).unwrap();
    let message = |e: Result<Sound>| e.unwrap_err().to_string();
    assert!(message(stream.finish()).starts_with("the sound lasts 0.0 ms (0 samples"));
    stream.push(&[]).unwrap();
    stream.push(&all[..1359]).unwrap();
    assert!(message(stream.finish()).contains("the model needs at least 85 ms"));
    let refused = stream.push(&[0.0, f32::NAN]).unwrap_err().to_string();
    assert_eq!(refused, "sample 1360 of the sound is NaN: samples must be finite");
    let refused = stream.push(&vec![0.0; 960_000]).unwrap_err().to_string();
    assert_eq!(
        refused,
        "a sound that comes in may last 60 s (960000 samples at 16000 Hz): 1359 samples too many"
    );
    stream.push(&all[1359..]).unwrap();
    let streamed = stream.finish().unwrap();
    assert_eq!(message(stream.finish()), "the sound has ended: begin another one");
    assert_eq!(stream.push(&all).unwrap_err().to_string(), "the sound has ended: begin another one");
    let got = ask(&mut session, &question(streamed));
    assert!(got.1 == want.1 && got.0 == want.0 && got.2 == 0);
}

#[test]
fn a_sound_of_the_longest_length_and_one_that_the_context_cannot_hold() {
    let mut engine = chunked(Options::default());
    let mut session = engine.session(None).unwrap();
    let mut stream = session.sound_stream(16_000, 0.0).unwrap();
    let quiet = samples(96_000);
    (0..10).for_each(|_| stream.push(&quiet).unwrap());
    assert_eq!((stream.seconds(), stream.finish().unwrap().samples.len()), (60.0, 960_000));

    let mut small = chunked(Options { context: Some(64), ..Options::default() });
    let mut session = small.session(None).unwrap();
    let mut stream = session.sound_stream(16_000, 0.0).unwrap();
    stream.push(&quiet[..48_000]).unwrap();
    let refused = stream.push(&quiet).unwrap_err().to_string();
    assert!(refused.starts_with("a sound of 9.0 s takes 112 rows of the context, 64 are free"), "{refused}");
    assert_eq!(stream.finish().unwrap().samples.len(), 48_000);
}

#[test]
fn a_streamed_sound_is_found_where_nothing_else_is_kept() {
    let cache = CacheOptions { enabled: false, ..CacheOptions::default() };
    let mut engine = chunked(Options { cache, ..Options::default() });
    let mut session = engine.session(None).unwrap();
    let streamed = stream(&mut session, 16_000, 0.0, &samples(20_000), 1000);
    let question = question(streamed);
    assert_eq!(ask(&mut session, &question).2, 0);
    assert_eq!(ask(&mut session, &question).2, 1, "once");
    let text = open("tiny.json", Options::default());
    assert_eq!(text.model.audio_chunk(), None);
}

/// On a GPU the kernels of few rows err as those of many.
#[cfg(feature = "cuda")]
#[test]
fn a_gpu_errs_no_more_in_pieces() {
    let device = DeviceChoice::Cuda(0);
    if let Err(why) = crate::engine::open_backend(device) {
        let required = std::env::var_os("VIVACE_REQUIRE_GPU").is_some_and(|v| v != "0");
        assert!(!required, "a GPU is required: {why}");
        println!("no GPU: nothing checked ({why})");
        return;
    }
    for audio_chunk in [None, Some(AudioChunk { frames: 5, left: None })] {
        let open = |device| chunked(Options { device, audio_chunk, ..Options::default() });
        let (mut engine, mut whole, mut exact) = (open(device), open(device), open(DeviceChoice::Cpu));
        for n in [1360, 13_360, 50_001] {
            let sound = Sound::new(16_000, samples(n)).unwrap();
            let [a, b] = [&mut whole, &mut exact].map(|engine| {
                engine.clear_cache();
                ask(&mut engine.session(None).unwrap(), &question(sound.clone())).1
            });
            // Three times: launched one by one, captured, replayed.
            for piece in [n, 999, 999] {
                engine.clear_cache();
                let mut session = engine.session(None).unwrap();
                let streamed = stream(&mut session, 16_000, 0.0, &sound.samples, piece);
                let got = ask(&mut session, &question(streamed));
                let error = |x: &[f32]| crate::engine::measure::relative(x, &b).0;
                let (streamed, computed) = (error(&got.1), error(&a));
                assert!(streamed <= 2.0 * computed + 1e-3, "{n}: {streamed} in pieces, {computed} whole");
                assert_eq!(got.2, 0);
            }
        }
    }
}
