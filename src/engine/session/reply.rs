//! An answer while it is generated: its tokens become text, and what ends it is noticed.

use super::super::{Answer, Engine, Event, GenerateOptions, StopReason};
use crate::core::Result;
use crate::text::{State, StopStrings, Utf8Stream};

pub(super) struct Reply<'o> {
    pub options: &'o GenerateOptions,
    stops: StopStrings,
    stream: Utf8Stream,
    pub answer: Answer,
    /// Nothing more is taken.
    pub ended: bool,
}

impl<'o> Reply<'o> {
    pub fn new(options: &'o GenerateOptions) -> Result<Reply<'o>> {
        let stops = StopStrings::new(options.stop.clone())?;
        Ok(Reply { options, stops, stream: Utf8Stream::new(), answer: Answer::default(), ended: false })
    }

    /// Takes the next token; behind the last row of the context if `full`. The answer may end with it.
    pub fn take(
        &mut self,
        engine: &Engine,
        id: u32,
        full: bool,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) {
        let ended = self.ended_by(engine, id, full, on_event);
        self.ended = ended.is_some();
        self.answer.stop = ended.unwrap_or_default();
    }

    fn ended_by(
        &mut self,
        engine: &Engine,
        id: u32,
        full: bool,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Option<StopReason> {
        if engine.stop_ids.contains(&id) {
            return Some(StopReason::EndOfTurn);
        }
        let first = self.answer.tokens.is_empty();
        self.answer.tokens.push(id);
        let mark = if first { engine.marks.state(id) } else { None };
        let mut go_on = true;
        if let Some(mark) = mark {
            self.answer.state = Some(mark);
            go_on = on_event(Event::State(mark));
            if mark == State::Noise && !self.options.answer_noise {
                return Some(StopReason::Noise);
            }
        } else {
            let text = self.stops.push(&self.stream.push(&engine.tokenizer, id));
            if !text.is_empty() {
                self.answer.text.push_str(&text);
                go_on = on_event(Event::Text(&text));
            }
            if let Some(hit) = self.stops.hit() {
                return Some(StopReason::StopString(hit.to_owned()));
            }
        }
        if !go_on {
            return Some(StopReason::Cancelled);
        }
        if self.answer.tokens.len() == self.options.max_new_tokens {
            return Some(StopReason::MaxNewTokens);
        }
        full.then_some(StopReason::Context)
    }

    /// Text that was held back because more might have followed. Who has cancelled the answer is told nothing more, but
    /// finds it in there.
    pub fn flush(&mut self, on_event: &mut dyn FnMut(Event<'_>) -> bool) {
        let mut rest = self.stops.push(&self.stream.flush());
        rest.push_str(&self.stops.finish());
        if !rest.is_empty() {
            self.answer.text.push_str(&rest);
            if self.answer.stop != StopReason::Cancelled {
                on_event(Event::Text(&rest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_cancelled_is_told_nothing_more() {
        let options = GenerateOptions { stop: vec!["b!".to_owned()], ..GenerateOptions::default() };
        for (stop, told) in [(StopReason::Cancelled, ""), (StopReason::MaxNewTokens, "b")] {
            let mut reply = Reply::new(&options).unwrap();
            let first = reply.stops.push("ab");
            assert_eq!(first, "a");
            (reply.answer.text, reply.answer.stop) = (first, stop);
            let mut events = String::new();
            reply.flush(&mut |event| {
                if let Event::Text(text) = event {
                    events.push_str(text);
                }
                true
            });
            assert_eq!((events.as_str(), reply.answer.text.as_str()), (told, "ab"));
        }
    }
}
