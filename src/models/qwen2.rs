//! Qwen2 / Qwen2.5, the language model: pre-norm blocks of grouped-query attention and SwiGLU (Qwen2.5 technical
//! report; `transformers` Qwen2ForCausalLM).

use super::builder::Builder;
use super::config::TextConfig;
use crate::core::{DType, Result, Tensor};
use crate::graph::Graph;
use crate::ops::attention::{Attention, Batch, Mask, Source};
use crate::ops::elementwise::{Act, Mul, Unary};
use crate::ops::embed::{Embed, LastRows, Splice};
use crate::ops::linear::Linear;
use crate::ops::rope::{KvAppend, Rope};
use crate::ops::sample::{ArgMax, Sample};

/// Where the ids of a run come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ids {
    /// The host writes them; ids with `MEDIA_BIT` are rows of the media state.
    Host,
    /// The tokens that the previous run stored, one of each sequence.
    LastToken,
}

/// What a run computes after the last layer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Head {
    /// Nothing: a prompt's chunk that only fills the cache. Ends with the last layer's keys and values.
    None,
    /// The most likely token of the last valid row; of several sequences, of the row of each.
    Greedy,
    /// A token drawn by the parameters in the state `sampler`, likewise.
    Sample,
    /// Logits and most likely token of every row, for comparisons.
    All,
}

/// One graph per key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TextKey {
    /// T, padded rows included: of one sequence, or one row of each.
    pub rows: usize,
    /// B: sequences of equal length, each with keys and values of its own.
    pub sequences: usize,
    /// Upper bound of the KV rows that the run sees.
    pub kv_bucket: usize,
    pub ids: Ids,
    pub head: Head,
}

/// Sizes of the states, fixed when a model is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TextSizes {
    /// S_max: rows of the KV cache.
    pub max_seq: usize,
    /// Rows for projected tiles and sounds.
    pub media_rows: usize,
    /// Ids from here on are never produced: the checkpoint pads its vocabulary.
    pub token_limit: usize,
}

/// Indices into [`Graph::states`], the same in every text graph.
pub mod state {
    /// `[B]` u32: the tokens of the last run.
    pub const TOKEN: usize = 0;
    /// `[media_rows, C]`: projected tiles and sounds.
    pub const MEDIA: usize = 1;
    /// `[B, V]` u32: how often an id has occurred, for the repetition penalty.
    pub const SEEN: usize = 2;
    /// `[8]` u32: the sampler's parameters.
    pub const SAMPLER: usize = 3;
    /// `[2, B·G, S_max, D]` per layer, from here on.
    pub const KV: usize = 4;
}

/// A text graph and the tensors that the host touches.
pub struct TextGraph {
    pub graph: Graph,
    /// `[T]` u32, when the host writes the ids.
    pub ids: Option<Tensor>,
    /// `[T, C]`: merged embeddings.
    pub embeds: Tensor,
    /// After the final norm: `[T, C]`, with [`Head::All`].
    pub hidden: Option<Tensor>,
    /// f32 `[B, V]`, or `[T, V]` with [`Head::All`].
    pub logits: Option<Tensor>,
    /// `[B]` or `[T]` u32.
    pub token: Option<Tensor>,
}

/// Builds the graph of one run of T rows.
pub fn build(cfg: &TextConfig, sizes: &TextSizes, dtype: DType, key: TextKey) -> Result<TextGraph> {
    let mut b = Builder::new(dtype);
    let (c, v) = (cfg.hidden_size, cfg.vocab_size);
    let (h, g, d) = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim);
    let eps = cfg.rms_norm_eps;
    let sequences = key.sequences;
    if sequences == 0 || sequences > 1 && key.rows != sequences {
        crate::bail_runtime!(
            "{} rows of {sequences} sequences: those of one expected, or one of each",
            key.rows
        );
    }

    let token_state = b.g.state("token", DType::U32, &[sequences]);
    let media = b.g.state("media", dtype, &[sizes.media_rows, c]);
    let seen = b.g.state("seen", DType::U32, &[sequences, v]);
    let sampler = b.g.state("sampler", DType::U32, &[8]);
    let kv: Vec<Tensor> = (0..cfg.num_hidden_layers)
        .map(|n| b.g.state(&format!("kv.{n}"), dtype, &[2, sequences * g, sizes.max_seq, d]))
        .collect();

    let table = b.weight("model.embed_tokens.weight", &[v, c]);
    let (ids, mut x) = match key.ids {
        Ids::Host => {
            let ids = b.g.input("ids", DType::U32, &[key.rows]);
            let x = b.push1("embed_tokens", Embed, &[ids, table])?;
            (Some(ids), b.push1("inputs_embeds", Splice, &[x, ids, media])?)
        }
        Ids::LastToken => (None, b.push1("inputs_embeds", Embed, &[token_state, table])?),
    };
    let embeds = x;

    // Behind the keys and values of the last layer only the rows count that the head reads. With none the graph ends there (q
    // is made all the same, in one product with k and v); with the last row alone its attention is still that of all rows,
    // and what follows is of one: 3 % of a prompt of 2048.
    let last_row_alone = matches!(key.head, Head::Greedy | Head::Sample) && key.rows > sequences;
    for (n, &kv) in kv.iter().enumerate() {
        let at = |what: &str| format!("model.layers.{n}.{what}");
        let last = n + 1 == cfg.num_hidden_layers;

        let y = b.rms_norm(&at("input_layernorm"), x, eps)?;
        let q = b.linear(&at("self_attn.q_proj"), y, h * d, true)?;
        let k = b.linear(&at("self_attn.k_proj"), y, g * d, true)?;
        let v = b.linear(&at("self_attn.v_proj"), y, g * d, true)?;
        let rope = |heads| Rope { heads, head_dim: d, theta: cfg.rope_theta, sequences };
        let q = b.push1(&at("self_attn.q_rope"), rope(h), &[q])?;
        let k = b.push1(&at("self_attn.k_rope"), rope(g), &[k])?;
        let append = KvAppend { kv_heads: g, head_dim: d, sequences };
        let kv = b.push1(&at("self_attn.kv"), append, &[k, v, kv])?;
        if last && key.head == Head::None {
            break;
        }
        let attention = Attention {
            heads: h,
            kv_heads: g,
            head_dim: d,
            scale: 1.0 / (d as f32).sqrt(),
            mask: Mask::Causal,
            source: Source::Cache { kv_bucket: key.kv_bucket },
            batch: Batch::Equal(sequences),
            bias: false,
        };
        let mut o = b.push1(&at("self_attn.attn"), attention, &[q, kv])?;
        if last && last_row_alone {
            o = b.push1(&at("self_attn.last_row"), LastRows { n: 1 }, &[o])?;
            x = b.push1(&at("last_row"), LastRows { n: 1 }, &[x])?;
        }
        let o = b.linear(&at("self_attn.o_proj"), o, c, false)?;
        x = b.add(&at("self_attn.residual"), x, o)?;

        let y = b.rms_norm(&at("post_attention_layernorm"), x, eps)?;
        let gate = b.linear(&at("mlp.gate_proj"), y, cfg.intermediate_size, false)?;
        let up = b.linear(&at("mlp.up_proj"), y, cfg.intermediate_size, false)?;
        let gate = b.push1(&at("mlp.silu"), Unary { act: Act::Silu }, &[gate])?;
        let y = b.push1(&at("mlp.mul"), Mul, &[gate, up])?;
        let y = b.linear(&at("mlp.down_proj"), y, c, false)?;
        x = b.add(&at("mlp.residual"), x, y)?;
    }

    let mut out = TextGraph { graph: Graph::new(), ids, embeds, hidden: None, logits: None, token: None };
    if key.head != Head::None {
        let hidden = b.rms_norm("model.norm", x, eps)?;
        let lm_head = match cfg.tie_word_embeddings {
            true => table,
            false => b.weight("lm_head.weight", &[v, c]),
        };
        let logits = b.push1("logits", Linear { bias: false, out_f32: true }, &[hidden, lm_head])?;
        let limit = sizes.token_limit as u32;
        let token = match key.head {
            Head::Sample => b.g.push("token", Sample { limit }, &[logits, seen, sampler])?[0],
            _ => b.push1("token", ArgMax { limit }, &[logits])?,
        };
        b.g.output(logits);
        match key.head {
            Head::All => {
                b.g.output(hidden);
                b.g.output(token);
                out.hidden = Some(hidden);
            }
            _ => b.g.store(token, token_state)?,
        }
        (out.logits, out.token) = (Some(logits), Some(token));
    }
    if key.head == Head::All {
        b.g.output(embeds);
    }
    out.graph = b.g;
    Ok(out)
}
