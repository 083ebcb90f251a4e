use super::super::tests::{on, open_with, picture, sound};
use super::*;
use crate::engine::{Engine, Options, Sampling, StopReason};

fn drawn(seed: u64, max_new_tokens: usize) -> GenerateOptions {
    let sampling = Sampling { temperature: 1.5, seed, repetition_penalty: 1.1, ..Sampling::default() };
    GenerateOptions { max_new_tokens, sampling, answer_noise: true, ..GenerateOptions::default() }
}

fn asked() -> Question {
    Question { images: vec![picture(0)], sounds: vec![sound(0)], ..Question::text("What is this?") }
}

fn tokens_of(answers: &[Answer]) -> Vec<Vec<u32>> {
    answers.iter().map(|a| a.tokens.clone()).collect()
}

fn all(engine: &mut Engine, question: &Question, options: &GenerateOptions, n: usize) -> Vec<Answer> {
    let mut session = engine.session(Some("Be brief.")).unwrap();
    session.answers(question, options, n, &mut |_, _| true).unwrap()
}

#[test]
fn a_seed_gives_the_same_answers_and_every_answer_is_another() {
    let mut engine = on();
    let first = all(&mut engine, &asked(), &drawn(7, 20), 4);
    let again = all(&mut engine, &asked(), &drawn(7, 20), 4);
    let other = all(&mut engine, &asked(), &drawn(8, 20), 4);
    assert_eq!(tokens_of(&first), tokens_of(&again));
    assert_eq!(
        first.iter().map(|a| &a.text).collect::<Vec<_>>(),
        again.iter().map(|a| &a.text).collect::<Vec<_>>()
    );
    for (i, a) in first.iter().enumerate() {
        assert!(!a.tokens.is_empty() && first[..i].iter().all(|b| a.tokens != b.tokens), "answer {i}");
        assert_ne!(a.tokens, other[i].tokens);
        assert_eq!((a.prompt_rows, a.cache), (first[0].prompt_rows, first[0].cache));
    }
    assert_eq!((first[0].cache.media_encoded, again[0].cache.media_encoded), (2, 0));
    assert_eq!(again[0].cache.prefilled_rows, 1, "the last row alone");
    // Fewer answers are the first of more of them, and the first is the one that is drawn alone.
    let two = all(&mut engine, &asked(), &drawn(7, 20), 2);
    assert_eq!(tokens_of(&two), tokens_of(&first)[..2]);
    let mut session = engine.session(Some("Be brief.")).unwrap();
    let alone = session.ask(&asked(), &drawn(7, 20), &mut |_| true).unwrap();
    assert_eq!((&alone.tokens, &alone.text), (&first[0].tokens, &first[0].text));
}

#[test]
fn one_greedy_answer_is_that_of_ask() {
    let options = GenerateOptions { max_new_tokens: 30, answer_noise: true, ..GenerateOptions::default() };
    let one = all(&mut on(), &asked(), &options, 1);
    let mut engine = on();
    let asked = engine.session(Some("Be brief.")).unwrap().ask(&asked(), &options, &mut |_| true).unwrap();
    assert_eq!(
        (&one[0].tokens, &one[0].text, &one[0].stop, one[0].prompt_rows),
        (&asked.tokens, &asked.text, &asked.stop, asked.prompt_rows)
    );
}

#[test]
fn the_conversation_stays_as_it_was() {
    let (one, two) = (asked(), Question::text("And where?"));
    let greedy = GenerateOptions { max_new_tokens: 8, answer_noise: true, ..GenerateOptions::default() };
    let (mut plain, mut engine) = (on(), on());
    let mut want = plain.session(None).unwrap();
    let mut session = engine.session(None).unwrap();
    for (turn, question) in [one, two].iter().enumerate() {
        let before = session.rows();
        let answers = session.answers(question, &drawn(3, 12), 3, &mut |_, _| true).unwrap();
        assert_eq!(session.rows(), before);
        let a = want.ask(question, &greedy, &mut |_| true).unwrap();
        let b = session.ask(question, &greedy, &mut |_| true).unwrap();
        assert_eq!((&a.tokens, &a.text, a.prompt_rows), (&b.tokens, &b.text, b.prompt_rows), "turn {turn}");
        assert_eq!(b.cache.prefilled_rows, 1, "what the answers computed is there");
        assert_eq!(answers[0].prompt_rows, b.prompt_rows);
        assert_eq!(session.rows(), want.rows());
    }
    // And what is drawn in a later turn knows the turns before it.
    let drawn_again = want.ask(&Question::text("Why?"), &drawn(3, 12), &mut |_| true).unwrap();
    let answers = session.answers(&Question::text("Why?"), &drawn(3, 12), 2, &mut |_, _| true).unwrap();
    assert_eq!(answers[0].tokens, drawn_again.tokens);
}

#[test]
fn every_answer_ends_by_itself() {
    let mut engine = on();
    // The first answer ends its turn, the others go on without it.
    let ends = |answers: &[Answer]| {
        let long = |a: &Answer| a.stop == StopReason::MaxNewTokens && a.tokens.len() == 24;
        answers[0].stop == StopReason::EndOfTurn && answers[1..].iter().all(long)
    };
    let (seed, whole) = (0..40)
        .map(|seed| (seed, all(&mut engine, &asked(), &drawn(seed, 24), 3)))
        .find(|(_, answers)| ends(answers))
        .expect("a seed with which one of three ends");
    let alone = engine.session(Some("Be brief.")).unwrap().ask(&asked(), &drawn(seed, 24), &mut |_| true);
    assert_eq!(alone.unwrap().tokens, whole[0].tokens);
    // Something that the second answer alone says, not at its end.
    let text = whole[1].text.char_indices().find_map(|(at, c)| {
        let of: String = whole[1].text[at..].chars().take(2).collect();
        let once = !whole[0].text.contains(&of) && !whole[2].text.contains(&of);
        (c.is_ascii() && once && at > 0 && at < whole[1].text.len() / 2).then_some(of)
    });
    let text = text.expect("two characters that the others do not have");
    let options = GenerateOptions { stop: vec![text.clone()], ..drawn(seed, 24) };
    let stopped = all(&mut engine, &asked(), &options, 3);
    assert_eq!(stopped[1].stop, StopReason::StopString(text.clone()));
    assert!(whole[1].text.starts_with(&stopped[1].text) && !stopped[1].text.contains(&text));
    assert!(stopped[1].tokens.len() < 24);
    assert_eq!(tokens_of(&stopped)[0], whole[0].tokens);
    assert_eq!(tokens_of(&stopped)[2], whole[2].tokens);

    // Events tell which answer they are of; one that is not wanted any more ends, the others do not.
    let mut texts = vec![String::new(); 3];
    let mut session = engine.session(Some("Be brief.")).unwrap();
    let cancelled = session
        .answers(&asked(), &drawn(seed, 24), 3, &mut |i, event| {
            if let Event::Text(text) = event {
                texts[i].push_str(text);
            }
            i != 2
        })
        .unwrap();
    assert_eq!(cancelled[2].stop, StopReason::Cancelled);
    assert!(cancelled[2].tokens.len() < 24 && whole[2].tokens.starts_with(&cancelled[2].tokens));
    assert_eq!(tokens_of(&cancelled)[..2], tokens_of(&whole)[..2]);
    assert_eq!(texts, cancelled.iter().map(|a| a.text.clone()).collect::<Vec<_>>());
}

#[test]
fn answers_end_where_the_context_does() {
    let mut engine = open_with(&Options { context: Some(80), ..Options::default() });
    let question = Question::text("What is this?");
    for most in [500, usize::MAX] {
        let answers = all(&mut engine, &question, &drawn(5, most), 3);
        let mut session = engine.session(Some("Be brief.")).unwrap();
        let alone = session.ask(&question, &drawn(5, most), &mut |_| true).unwrap();
        assert_eq!(alone.stop, StopReason::Context);
        assert_eq!((&answers[0].tokens, &answers[0].stop), (&alone.tokens, &alone.stop));
        assert!(
            answers.iter().all(|a| a.stop == StopReason::Context && a.tokens.len() == alone.tokens.len())
        );
    }
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let mut engine = on();
    let mut session = engine.session(None).unwrap();
    let mut message = |options: &GenerateOptions, n| {
        let result = session.answers(&Question::text("?"), options, n, &mut |_, _| true);
        result.unwrap_err().to_string()
    };
    assert_eq!(message(&drawn(0, 5), 0), "answers: 1 to 16 expected, got 0");
    assert_eq!(message(&drawn(0, 5), 17), "answers: 1 to 16 expected, got 17");
    assert_eq!(message(&drawn(0, 0), 2), "max_new_tokens: 1 or more expected, got 0");
    let cold = GenerateOptions::default();
    let penalised = Sampling { repetition_penalty: 1.2, ..Sampling::default() };
    for options in [cold.clone(), GenerateOptions { sampling: penalised, ..cold }] {
        assert_eq!(
            message(&options, 3),
            "3 answers: at temperature 0 every answer is the same; a temperature above 0 expected"
        );
    }
    let long = Question::text("?".repeat(2000));
    let error = session.answers(&long, &drawn(0, 5), 2, &mut |_, _| true).unwrap_err().to_string();
    assert!(error.starts_with("the prompt is too long for the context by "), "{error}");
    assert_eq!(session.rows(), 0);
    // Nothing has been taken for them, and what is taken can be given back.
    let states = |engine: &Engine| engine.model.backend().memory().states;
    let none = states(&engine);
    all(&mut engine, &Question::text("?"), &drawn(0, 5), 2);
    let vocab = engine.model.cfg.text.vocab_size as u64;
    assert_eq!(states(&engine), none + 2 * (256 * 2 * 2 * 128 * 4 + 4 * vocab + 4));
    engine.free_answers().unwrap();
    assert_eq!(states(&engine), none);
}
