//! Several answers to one question, drawn side by side.

use std::time::Instant;

use super::super::ledger::Ledger;
use super::super::{Answer, Event, GenerateOptions, Question};
use super::reply::Reply;
use super::{Session, tokens};
use crate::core::Result;
use crate::exec::{Lane, Ticket, Wait};
use crate::models::qwen2::{Head, state};

impl Session<'_> {
    /// Draws `n` answers to one question (1 to 16), side by side: a step gives a token of each and takes little longer than
    /// a step of one answer, until the last of them has ended. `on_event` is told which answer something is of; `false`
    /// ends that one.
    ///
    /// Every answer has random numbers of its own, all from one seed; the first draws those that [`Session::ask`] draws. At
    /// temperature 0 all would be the same: more than one is an error then.
    ///
    /// None of the answers becomes part of the conversation, nor does the question: it stays as it was. To go on from
    /// here, ask the question again; its rows are kept, which makes that cheap.
    ///
    /// The answers have a cache of their own, as long as question and answers can become, which is taken when they are
    /// first wanted, kept for the next ones, and an error if there is no room for it. What an answer tells of stages and
    /// times before its tokens is the same for all.
    pub fn answers(
        &mut self,
        question: &Question,
        options: &GenerateOptions,
        n: usize,
        on_event: &mut dyn FnMut(usize, Event<'_>) -> bool,
    ) -> Result<Vec<Answer>> {
        options.check_answers(n)?;
        let answers = self.side_by_side(question, options, n, on_event);
        if answers.is_err() {
            // As for one answer.
            let _ = self.engine.model.backend_mut().sync();
        }
        answers
    }

    fn side_by_side(
        &mut self,
        question: &Question,
        options: &GenerateOptions,
        n: usize,
        on_event: &mut dyn FnMut(usize, Event<'_>) -> bool,
    ) -> Result<Vec<Answer>> {
        let mut ledger = Ledger::new();
        ledger.begin(self.engine.model.backend_mut())?;
        let asked = self.find(question, &mut ledger)?;
        let end = self.pos + asked.keys.len();
        // The last token of an answer is never fed back.
        let rows = end.saturating_add(options.max_new_tokens - 1).min(self.engine.context_rows());
        self.engine.model.open_batch(n, rows)?;
        self.restore(&asked, &mut ledger)?;
        // The last row of the question is the first step of the sequences: what it gives is drawn from n times.
        let (Some(last), [rest @ .., _]) = (tokens(&asked.keys).last(), self.rest(&asked)) else {
            crate::bail_runtime!("an empty prompt")
        };
        let filled = self.fill(asked.found.rows(), rest, &asked.encoded, Head::None, &mut ledger)?;
        let model = &mut self.engine.model;
        let start = match filled {
            Some((start, _)) => start,
            None => model.backend_mut().mark(Lane::Text)?,
        };
        ledger.host("enqueue", || model.branch(end - 1))?;
        model.set_batch_tokens(vec![last; n])?;
        let head = if options.sampling.is_greedy() { Head::Greedy } else { Head::Sample };
        if head == Head::Sample {
            let seen = ledger.host("sampler", || self.seen(&asked.keys));
            self.engine.model.set_batch_seen(&seen)?;
            self.engine.model.write_text_state(state::SAMPLER, &options.sampling.words())?;
        }
        let first = self.batch_step(end - 1, 0, head, n)?;
        ledger.device("prefill", start, self.engine.model.backend_mut().mark(Lane::Text)?);
        let cache = self.keep(&asked, &mut ledger);

        let (mut answers, first_token_ms) = self.draw((first, end), (head, n), options, &ledger, on_event)?;
        let stages = ledger.close(first_token_ms, self.engine.model.backend_mut())?;
        for answer in &mut answers {
            let prompt_rows = asked.keys.len();
            *answer = Answer { prompt_rows, cache, ..std::mem::take(answer) }.with_stages(&stages, question);
        }
        Ok(answers)
    }

    /// As [`Session::generate`], for `n` answers in step; `first` are the first tokens on their way, those of row `end`.
    /// An answer that has ended keeps its place until all have. Also says when the first tokens were there.
    fn draw(
        &mut self,
        (first, end): (Ticket, usize),
        (head, n): (Head, usize),
        options: &GenerateOptions,
        ledger: &Ledger,
        on_event: &mut dyn FnMut(usize, Event<'_>) -> bool,
    ) -> Result<(Vec<Answer>, f64)> {
        let context = self.engine.context_rows();
        let ahead = self.engine.model.backend().asynchronous();
        let mut replies = (0..n).map(|_| Reply::new(options)).collect::<Result<Vec<_>>>()?;
        let (mut ids, mut times_ms, mut first_token_ms) = (vec![0; n], Vec::new(), 0.0);
        let (mut next, mut step, mut last) = (Some(first), 0, Instant::now());
        while let Some(ticket) = next.take() {
            let wanted = step + 1 < options.max_new_tokens && end + step < context;
            if ahead && wanted {
                next = Some(self.batch_step(end + step, step + 1, head, n)?);
            }
            let wait = if step == 0 { Wait::Busy } else { Wait::Asleep };
            self.engine.model.backend_mut().wait_tokens(ticket, wait, &mut ids)?;
            let now = Instant::now();
            match step {
                0 => first_token_ms = ledger.now_ms(),
                _ => times_ms.push((now - last).as_secs_f64() * 1e3),
            }
            last = now;
            let engine = &*self.engine;
            for (i, reply) in replies.iter_mut().enumerate().filter(|(_, reply)| !reply.ended) {
                let mut event = |event: Event<'_>| on_event(i, event);
                reply.take(engine, ids[i], end + step >= context, &mut event);
                if reply.ended {
                    reply.flush(&mut event);
                    let mut steps = times_ms.clone();
                    steps.sort_by(f64::total_cmp);
                    let t = &mut reply.answer.timings;
                    t.per_token_ms = steps.get(steps.len() / 2).copied();
                    (t.first_token_ms, t.total_ms) = (first_token_ms, ledger.now_ms());
                }
            }
            if replies.iter().all(|reply| reply.ended) {
                break;
            }
            if !ahead {
                next = Some(self.batch_step(end + step, step + 1, head, n)?);
            }
            step += 1;
        }
        if let Some(ticket) = next {
            self.engine.model.backend_mut().wait_tokens(ticket, Wait::Asleep, &mut ids)?;
        }
        Ok((replies.into_iter().map(|reply| reply.answer).collect(), first_token_ms))
    }

    fn batch_step(&mut self, pos: usize, draw: usize, head: Head, n: usize) -> Result<Ticket> {
        let model = &mut self.engine.model;
        let (exe, io) = model.run_batch(pos, draw, head)?;
        match io.token {
            Some(token) => model.backend_mut().send_tokens(exe, token, n),
            None => crate::bail_runtime!("a decoding step without tokens"),
        }
    }
}

#[cfg(test)]
mod tests;
