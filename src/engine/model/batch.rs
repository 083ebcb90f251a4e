//! Several sequences of equal length side by side: states of their own, made when they are first wanted, and one run for
//! a token of each. They begin with rows of the KV cache, of which every sequence gets a copy.

use super::super::graphs::{Graphs, TextIo};
use super::{Model, bucket, create_states};
use crate::core::{Desc, HostData, Result, Step};
use crate::exec::{ExeId, Lane, Leads, StateId, TOKENS_AT_ONCE};
use crate::models::qwen2::{self, Head, Ids, TextGraph, TextKey, TextSizes, state};

/// Sequences of a batch, at most: rows of the products for few rows.
pub const MOST_SEQUENCES: usize = TOKENS_AT_ONCE;
/// Left free beside the states of a batch, for its graphs.
const GRAPHS_BYTES: u64 = 256 << 20;

/// States and graphs of one number of sequences.
pub(super) struct Batch {
    sequences: usize,
    /// S_max of each sequence.
    rows: usize,
    /// As those of the model, two of which it shares.
    states: Vec<StateId>,
    /// Those that are its own.
    own: Vec<StateId>,
    graphs: Graphs<TextKey, TextIo>,
}

/// The key of a step of `sequences` sequences, whose caches hold `rows` rows.
fn key(sequences: usize, rows: usize, kv_len: usize, head: Head) -> TextKey {
    let kv_bucket = bucket(kv_len, rows);
    TextKey { rows: sequences, sequences, kv_bucket, ids: Ids::LastToken, head }
}

/// `Err` unless `needed` bytes are free.
fn require(needed: u64, free: Option<u64>, sequences: usize, rows: usize) -> Result<()> {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    match free {
        Some(free) if needed > free => crate::bail_input!(
            "{sequences} answers side by side need {:.1} GB for {rows} rows of each, {:.1} GB are free: fewer answers or \
             fewer new tokens need less",
            gb(needed),
            gb(free)
        ),
        _ => Ok(()),
    }
}

impl Model {
    /// As the graph of a step of `sequences` sequences with `rows` rows each is written.
    pub(super) fn written_batch(
        &self,
        (sequences, rows): (usize, usize),
        kv_len: usize,
        head: Head,
    ) -> Result<TextGraph> {
        let sizes = TextSizes { max_seq: rows, ..self.sizes };
        qwen2::build(&self.cfg.text, &sizes, self.dtype, key(sequences, rows, kv_len, head))
    }

    /// Rows of the cache of each sequence of a batch that takes `rows`.
    pub(super) fn batch_rows(&self, rows: usize) -> usize {
        bucket(rows, self.sizes.max_seq)
    }

    /// Makes room for `sequences` sequences of up to `rows` rows. What an earlier batch left stays if it is large enough,
    /// and goes if not.
    pub(in crate::engine) fn open_batch(&mut self, sequences: usize, rows: usize) -> Result<()> {
        crate::ensure_input!(
            (1..=MOST_SEQUENCES).contains(&sequences),
            "answers: 1 to {MOST_SEQUENCES} expected, got {sequences}"
        );
        if rows > self.sizes.max_seq {
            crate::bail_runtime!("{rows} rows of a sequence in a context of {}", self.sizes.max_seq);
        }
        if self.batch.as_ref().is_some_and(|b| b.sequences == sequences && b.rows >= rows) {
            return Ok(());
        }
        self.close_batch()?;
        let rows = self.batch_rows(rows);
        let descs = self.written_batch((sequences, rows), rows, Head::None)?.graph.states;
        let shared = |i: usize| [state::MEDIA, state::SAMPLER].contains(&i);
        let own = || descs.iter().enumerate().filter(|(i, _)| !shared(*i)).map(|(_, d)| d);
        let needed = own().map(Desc::bytes).sum::<u64>() + GRAPHS_BYTES;
        require(needed, self.backend.free_bytes()?, sequences, rows)?;
        let named = |desc: &Desc| Desc { name: format!("batch.{}", desc.name), ..desc.clone() };
        let made = create_states(self.backend.as_mut(), own().map(named))?;
        let mut next = made.iter().copied();
        let states = (0..descs.len())
            .map(|i| if shared(i) { Some(self.text_states[i]) } else { next.next() })
            .collect::<Option<Vec<_>>>();
        let Some(states) = states else { crate::bail_runtime!("a batch without some of its states") };
        let graphs = Graphs::new(Lane::Text, &self.source);
        self.batch = Some(Batch { sequences, rows, states, own: made, graphs });
        Ok(())
    }

    /// Frees what a batch has taken.
    pub(in crate::engine) fn close_batch(&mut self) -> Result<()> {
        if let Some(mut batch) = self.batch.take() {
            self.backend.sync()?;
            batch.graphs.clear(self.backend.as_mut());
            batch.own.into_iter().for_each(|s| self.backend.release_state(s));
        }
        Ok(())
    }

    fn batch(&self) -> Result<&Batch> {
        match &self.batch {
            Some(batch) => Ok(batch),
            None => crate::bail_runtime!("no batch was opened"),
        }
    }

    /// Enqueues copies of the first `rows` rows of the KV cache: every sequence begins with them.
    pub(in crate::engine) fn branch(&mut self, rows: usize) -> Result<()> {
        let (sequences, states) = (self.batch()?.sequences, self.batch()?.states.clone());
        let heads = self.cfg.text.num_key_value_heads;
        for (&from, &to) in self.text_states[state::KV..].iter().zip(&states[state::KV..]) {
            for sequence in 0..sequences {
                let leads = Leads::Some { src: 0, dst: sequence * heads, count: heads };
                self.backend.copy_state_leads((from, 0), (to, 0), rows, leads)?;
            }
        }
        Ok(())
    }

    /// Gives every sequence the token that the next step begins with.
    pub(in crate::engine) fn set_batch_tokens(&mut self, tokens: Vec<u32>) -> Result<()> {
        let to = self.batch()?.states[state::TOKEN];
        self.backend.write_state(to, 0, &HostData::U32(tokens))
    }

    /// How often ids have occurred in what all sequences begin with.
    pub(in crate::engine) fn set_batch_seen(&mut self, seen: &[u32]) -> Result<()> {
        let batch = self.batch()?;
        let (to, all) = (batch.states[state::SEEN], seen.repeat(batch.sequences));
        self.backend.write_state(to, 0, &HostData::U32(all))
    }

    /// The prepared graph of a step that ends with `kv_len` rows of every sequence.
    pub(in crate::engine) fn batch_graph(&mut self, kv_len: usize, head: Head) -> Result<(ExeId, TextIo)> {
        let Some(batch) = &mut self.batch else { crate::bail_runtime!("no batch was opened") };
        let key = key(batch.sequences, batch.rows, kv_len, head);
        let (cfg, dtype) = (&self.cfg.text, self.dtype);
        let sizes = TextSizes { max_seq: batch.rows, ..self.sizes };
        batch.graphs.get(self.backend.as_mut(), &self.fusion, &batch.states, key, || {
            let t = qwen2::build(cfg, &sizes, dtype, key)?;
            let io =
                TextIo { ids: t.ids, embeds: t.embeds, hidden: t.hidden, logits: t.logits, token: t.token };
            Ok((t.graph, io))
        })
    }

    /// Enqueues one step: the tokens that the last one stored are row `pos` of their sequences.
    pub(in crate::engine) fn run_batch(
        &mut self,
        pos: usize,
        draw: usize,
        head: Head,
    ) -> Result<(ExeId, TextIo)> {
        let (exe, io) = self.batch_graph(pos + 1, head)?;
        self.backend.run(exe, Step::rows(pos, 1, draw))?;
        Ok((exe, io))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ModelParts, TILES_AT_ONCE, Work};
    use super::*;
    use crate::core::DType;
    use crate::engine::cache::CacheOptions;
    use crate::exec::cpu::Cpu;
    use crate::exec::{Backend, Wait};
    use crate::fuse::Fusion;
    use crate::graph::Graph;
    use crate::models::config::{ModelConfig, synthetic};
    use std::sync::Arc;

    fn model(fusion: Fusion) -> Model {
        model_on(Box::new(Cpu::new()), DType::F32, fusion)
    }

    fn model_on(backend: Box<dyn Backend>, dtype: DType, fusion: Fusion) -> Model {
        let json = include_str!("../../../tests/fixtures/tiny.json");
        let cfg = ModelConfig::from_json(json, "tiny.json").unwrap();
        let sizes = TextSizes { max_seq: 600, media_rows: 16, token_limit: cfg.text.vocab_size };
        let parts = ModelParts {
            source: Arc::new(synthetic(&cfg)),
            cfg,
            backend,
            dtype,
            sizes,
            fusion,
            cache: CacheOptions::default(),
            observe: false,
        };
        let mut model = Model::load(parts, &mut |_, _| {}).unwrap();
        model.backend_mut().set_poison(true);
        model
    }

    /// Few rows of an encoder have some weights in another form than many; what was not loaded at first comes when wanted.
    #[test]
    fn every_length_finds_its_weights() {
        let mut model = model(Fusion::on());
        let loaded = model.recipes().unwrap();
        let absent = |g: &Graph| g.weights.iter().filter(|r| !loaded.contains(r)).count();
        let vision = |tiles| Work::Vision { tiles, bytes: true };
        let audio = |frames| Work::Audio { frames };
        for work in [vision(1), vision(TILES_AT_ONCE), audio(7), audio(3000)] {
            assert_eq!(absent(&model.fused(work).unwrap()), 0);
        }
        for work in [vision(130), audio(9000)] {
            assert!(absent(&model.fused(work).unwrap()) > 0);
            model.prepared(work).unwrap();
        }
    }

    const PROMPT: [u32; 5] = [3, 141, 59, 26, 53];
    const STEPS: usize = 12;

    /// Tokens and logits of greedy steps that begin with each of `tokens` after the prompt, one sequence after the other.
    fn one_by_one(model: &mut Model, tokens: &[u32]) -> Vec<(Vec<u32>, Vec<f32>)> {
        let mut all = Vec::new();
        for &token in tokens {
            model.run_ids(&PROMPT, 0, 0, Head::None).unwrap();
            model.write_text_state(state::TOKEN, &HostData::U32(vec![token])).unwrap();
            let (mut got, mut logits) = (Vec::new(), Vec::new());
            for n in 0..STEPS {
                let (exe, io) = model.run_token(PROMPT.len() + n, n, Head::Greedy).unwrap();
                let ticket = model.backend.send_token(exe, io.token.unwrap()).unwrap();
                got.push(model.backend.wait_token(ticket, Wait::Busy).unwrap());
                logits = model.backend.read(exe, io.logits.unwrap()).unwrap().data.f32s().to_vec();
            }
            all.push((got, logits));
        }
        all
    }

    #[test]
    fn sequences_side_by_side_are_sequences_one_by_one() {
        for (fusion, n) in [(Fusion::on(), 1), (Fusion::on(), 5), (Fusion::on(), 16), (Fusion::off(), 3)] {
            let mut model = model(fusion);
            let tokens: Vec<u32> = (0..n).map(|i| (i * 31 + 7) as u32).collect();
            let want = one_by_one(&mut model, &tokens);
            assert!(n == 1 || want[0].0 != want[1].0, "sequences that are told apart");

            model.open_batch(n, PROMPT.len() + STEPS).unwrap();
            model.branch(PROMPT.len()).unwrap();
            model.set_batch_tokens(tokens).unwrap();
            for step in 0..STEPS {
                let (exe, io) = model.run_batch(PROMPT.len() + step, step, Head::Greedy).unwrap();
                let ticket = model.backend.send_tokens(exe, io.token.unwrap(), n).unwrap();
                let mut ids = vec![0; n];
                model.backend.wait_tokens(ticket, Wait::Busy, &mut ids).unwrap();
                let expected: Vec<u32> = want.iter().map(|(tokens, _)| tokens[step]).collect();
                assert_eq!(ids, expected, "step {step} of {n} sequences");
                if step + 1 == STEPS {
                    let logits = model.backend.read(exe, io.logits.unwrap()).unwrap().data.f32s().to_vec();
                    let apart: f32 = want
                        .iter()
                        .flat_map(|(_, logits)| logits)
                        .zip(&logits)
                        .map(|(a, b)| (a - b).abs())
                        .fold(0.0, f32::max);
                    assert!(apart < 1e-4, "{apart}");
                }
            }
        }
    }

    /// On a GPU the logits of a step of several sequences err as those of a step of one; launched, captured, replayed.
    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_errs_no_more_in_a_batch() {
        let device = crate::engine::DeviceChoice::Cuda(0);
        let open = |fusion| {
            Ok::<_, crate::core::Error>(model_on(crate::engine::open_backend(device)?, DType::BF16, fusion))
        };
        if let Err(why) = open(Fusion::on()) {
            let required = std::env::var_os("VIVACE_REQUIRE_GPU").is_some_and(|v| v != "0");
            assert!(!required, "a GPU is required: {why}");
            println!("no GPU: nothing checked ({why})");
            return;
        }
        // Logits of one step on each of `tokens` after the prompt.
        let single = |model: &mut Model, token: u32| {
            model.run_ids(&PROMPT, 0, 0, Head::None).unwrap();
            model.write_text_state(state::TOKEN, &HostData::U32(vec![token])).unwrap();
            let (exe, io) = model.run_token(PROMPT.len(), 0, Head::Greedy).unwrap();
            model.backend.read(exe, io.logits.unwrap()).unwrap().data.f32s().to_vec()
        };
        for (fusion, n) in [(Fusion::on(), 2), (Fusion::on(), 8), (Fusion::on(), 16), (Fusion::off(), 5)] {
            let (mut exact, mut gpu) = (model(fusion.clone()), open(fusion).unwrap());
            let tokens: Vec<u32> = (0..n).map(|i| (i * 31 + 7) as u32).collect();
            let mut both = |token| [&mut exact, &mut gpu].map(|m| single(m, token));
            let alone: Vec<[Vec<f32>; 2]> = tokens.iter().map(|&token| both(token)).collect();
            gpu.open_batch(n, PROMPT.len() + 1).unwrap();
            for again in 0..3 {
                gpu.branch(PROMPT.len()).unwrap();
                gpu.set_batch_tokens(tokens.clone()).unwrap();
                let (exe, io) = gpu.run_batch(PROMPT.len(), 0, Head::Greedy).unwrap();
                let ticket = gpu.backend.send_tokens(exe, io.token.unwrap(), n).unwrap();
                let mut ids = vec![0; n];
                gpu.backend.wait_tokens(ticket, Wait::Busy, &mut ids).unwrap();
                let logits = gpu.backend.read(exe, io.logits.unwrap()).unwrap().data.f32s().to_vec();
                let v = logits.len() / n;
                for (row, [exact, one]) in alone.iter().enumerate() {
                    let got = &logits[row * v..][..v];
                    let error = |x: &[f32]| crate::engine::measure::relative(x, exact).0;
                    let (batch, one) = (error(got), error(one));
                    assert!(batch <= 2.0 * one + 1e-3, "row {row} of {n}, run {again}: {batch}, alone {one}");
                    let most = got.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    assert_eq!(got[ids[row] as usize], most, "the token of row {row}");
                }
            }
        }
    }

    /// Logits of a prompt, of steps after it and of steps of a batch, to the bit, with kernels that begin before the one
    /// before them has ended and without.
    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_computes_the_same_bits_with_overlapping_kernels() {
        use crate::exec::cuda::Cuda;
        let required = std::env::var_os("VIVACE_REQUIRE_GPU").is_some_and(|v| v != "0");
        if let Err(why) = Cuda::open(0) {
            assert!(!required, "a GPU is required: {why}");
            println!("no GPU: nothing checked ({why})");
            return;
        }
        let bits = |model: &mut Model, exe, logits| {
            let logits = model.backend.read(exe, logits).unwrap();
            logits.data.f32s().iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
        };
        let all = |overlapping: bool, n: usize| {
            let cuda = Cuda::open(0).unwrap();
            let cuda = if overlapping { cuda } else { cuda.one_after_another() };
            let mut model = model_on(Box::new(cuda), DType::BF16, Fusion::on());
            let (exe, io) = model.run_ids(&PROMPT, 0, 0, Head::Greedy).unwrap();
            let mut all = vec![bits(&mut model, exe, io.logits.unwrap())];
            for step in 0..STEPS {
                let (exe, io) = model.run_token(PROMPT.len() + step, step, Head::Greedy).unwrap();
                all.push(bits(&mut model, exe, io.logits.unwrap()));
            }
            model.open_batch(n, PROMPT.len() + STEPS).unwrap();
            model.branch(PROMPT.len()).unwrap();
            model.set_batch_tokens((0..n).map(|i| (i * 31 + 7) as u32).collect()).unwrap();
            for step in 0..STEPS {
                let (exe, io) = model.run_batch(PROMPT.len() + step, step, Head::Greedy).unwrap();
                all.push(bits(&mut model, exe, io.logits.unwrap()));
            }
            all
        };
        for n in [8, 16] {
            let (overlapping, apart) = (all(true, n), all(false, n));
            for (at, (a, b)) in overlapping.iter().zip(&apart).enumerate() {
                assert!(a == b, "run {at}, then a batch of {n}: other bits where kernels overlap");
            }
        }
    }

    #[test]
    fn a_batch_is_used_again_while_it_is_large_enough() {
        let mut model = model(Fusion::on());
        let states = |model: &Model| model.backend.memory().states;
        let (none, row_bytes) = (states(&model), 2 * 2 * 128 * 4);
        let of = |sequences: u64, rows: u64| {
            none + sequences * (rows * row_bytes + 4 * model.cfg.text.vocab_size as u64 + 4)
        };
        let sizes = [of(3, 256), of(3, 512), of(2, 256), of(2, 600)];
        for (sequences, rows, bytes) in [
            (3, 10, sizes[0]),
            (3, 256, sizes[0]),
            (3, 257, sizes[1]),
            (3, 20, sizes[1]),
            (2, 20, sizes[2]),
            (2, 600, sizes[3]),
        ] {
            model.open_batch(sequences, rows).unwrap();
            assert_eq!(states(&model), bytes, "{sequences} of {rows} rows");
            model.run_batch(rows - 1, 0, Head::Greedy).unwrap();
        }
        model.close_batch().unwrap();
        assert_eq!(states(&model), none);
        let message = |e: Result<()>| e.unwrap_err().to_string();
        assert_eq!(message(model.open_batch(17, 20)), "answers: 1 to 16 expected, got 17");
        assert_eq!(message(model.open_batch(0, 20)), "answers: 1 to 16 expected, got 0");
        assert_eq!(message(model.branch(1)), "no batch was opened");
    }

    #[test]
    fn what_does_not_fit_is_said() {
        assert!(require(5, Some(5), 2, 3).is_ok() && require(5, None, 2, 3).is_ok());
        let error = require(30_100_000_000, Some(12_340_000_000), 16, 32768).unwrap_err();
        assert_eq!(
            error.to_string(),
            "16 answers side by side need 30.1 GB for 32768 rows of each, 12.3 GB are free: fewer answers or fewer new \
             tokens need less"
        );
    }
}
