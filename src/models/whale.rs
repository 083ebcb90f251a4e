//! Whale, the audio encoder, and its adapter: log-mel frames in, rows of the language model out (VITA's
//! `audio_encoder`; transformer blocks as in WeNet, positions as in Transformer-XL without the relative shift).

use super::builder::Builder;
use super::config::{AudioConfig, TextConfig};
use crate::core::{DType, Recipe, Result, Tensor};
use crate::graph::Graph;
use crate::ops::attention::{AddKeys, Attention, KeyBias, Mask, SinTable, Source};
use crate::ops::conv::{Cmvn, Conv1d, Conv2d};
use crate::ops::elementwise::{Act, Add, Scale, Unary};
use crate::ops::linear::Linear;

const ENCODER: &str = "model.audio_encoder.encoder";
const ADAPTER: &str = "model.audio_encoder.adpter";

/// An audio graph and the tensors that the host touches.
pub struct AudioGraph {
    pub graph: Graph,
    /// f32 `[T, 80]`: log-mel frames, before the normalisation by `global_cmvn`.
    pub fbank: Tensor,
    /// `[T2, C]` after the convolutions and their linear layer.
    pub subsampled: Tensor,
    /// `[T2, C]` after `after_norm`.
    pub encoded: Tensor,
    /// `[(T2 - 1) / 2 + 1, hidden of the language model]`.
    pub embeds: Tensor,
}

/// Frames after the two convolutions, T2.
pub fn encoder_frames(frames: usize) -> usize {
    let half = |t: usize| if t < 3 { 0 } else { (t - 3) / 2 + 1 };
    half(half(frames))
}

/// What a layer's attention adds to a sound, from weights and positions alone:
/// `scale · (q + u)·k + scale · (q + v)·p = scale · (q + u)·(k + p) + scale · (v - u)·p`, since there is no relative
/// shift.
struct Positions {
    /// `[cap, C]`: p.
    keys: Tensor,
    /// `[3 C]`: the biases of q, k and v, with u in that of q.
    bias: Tensor,
    /// f32 `[heads, cap]`: `scale · (v - u)·p`.
    scores: Tensor,
}

impl Positions {
    /// The states of every layer, `cap` positions long: the same ones in all graphs.
    fn states(b: &mut Builder, cfg: &AudioConfig, cap: usize) -> Vec<Positions> {
        let (c, heads) = (cfg.hidden_size, cfg.num_attention_heads);
        (0..cfg.num_hidden_layers)
            .map(|n| Positions {
                keys: b.g.state(&format!("audio.p.{n}"), b.dtype, &[cap, c]),
                bias: b.g.state(&format!("audio.bias.{n}"), b.dtype, &[3 * c]),
                scores: b.g.state(&format!("audio.scores.{n}"), DType::F32, &[heads, cap]),
            })
            .collect()
    }
}

fn layer(n: usize, what: &str) -> String {
    format!("{ENCODER}.enc.1.encoders.{n}.{what}")
}

fn score_scale(cfg: &AudioConfig) -> f32 {
    1.0 / ((cfg.hidden_size / cfg.num_attention_heads) as f32).sqrt()
}

/// Rows of the tensors `linear_q`, `linear_k`, `linear_v` of layer n one after another.
fn qkv(dtype: DType, n: usize, what: &str, shape: &[usize]) -> Result<Recipe> {
    let one = |x| Recipe::plain(&layer(n, &format!("self_attn.linear_{x}.{what}")), dtype, shape);
    let all = ["q", "k", "v"].map(one);
    match Recipe::stack(&all.each_ref()) {
        Some(recipe) => Ok(recipe),
        None => crate::bail_runtime!("{} and those of k and v do not stack", all[0].name()),
    }
}

/// Fills the states of [`build`] for `cap` positions: it runs once.
pub fn position_tables(cfg: &AudioConfig, dtype: DType, cap: usize) -> Result<Graph> {
    let mut b = Builder::new(dtype);
    let (c, heads) = (cfg.hidden_size, cfg.num_attention_heads);
    let head_dim = c / heads;
    let positions = Positions::states(&mut b, cfg, cap);
    let pe = b.push1("pe", SinTable { rows: cap, width: c, dtype }, &[])?;
    for (n, states) in positions.iter().enumerate() {
        let at = |what: &str| layer(n, what);
        let p = b.linear(&at("self_attn.linear_pos"), pe, c, false)?;
        b.g.store(p, states.keys)?;

        let name = at("self_attn.pos_bias_u");
        let in_q = b.g.weight(Recipe::padded(&name, dtype, &[heads, head_dim], 3 * c));
        let biases = b.g.weight(qkv(dtype, n, "bias", &[c])?);
        let bias = b.push1(&at("self_attn.bias"), Add, &[biases, in_q])?;
        b.g.store(bias, states.bias)?;

        let u = b.g.weight(Recipe::viewed(&name, dtype, &[heads, head_dim], &[c]));
        let less_u = b.push1(&at("self_attn.less_u"), Scale { by: -1.0 }, &[u])?;
        let v = Recipe::viewed(&at("self_attn.pos_bias_v"), dtype, &[heads, head_dim], &[c]);
        let v = b.g.weight(v);
        let op = KeyBias { heads, head_dim, scale: score_scale(cfg) };
        let made = b.g.push(&at("self_attn.scores"), op, &[p, p, less_u, v])?;
        b.g.store(made[1], states.scores)?;
    }
    Ok(b.g)
}

/// Builds the graph for exactly `frames` frames, with the states of `cap` positions that [`position_tables`] fills.
pub fn build(
    cfg: &AudioConfig,
    text: &TextConfig,
    dtype: DType,
    frames: usize,
    cap: usize,
) -> Result<AudioGraph> {
    let mut b = Builder::new(dtype);
    let (c, heads) = (cfg.hidden_size, cfg.num_attention_heads);
    let d = c / heads;
    let eps = 1e-5;
    let positions = Positions::states(&mut b, cfg, cap);

    let fbank = b.g.input("fbank", DType::F32, &[frames, cfg.input_dim]);
    let mean = b.weight(&format!("{ENCODER}.global_cmvn.mean"), &[cfg.input_dim]);
    let istd = b.weight(&format!("{ENCODER}.global_cmvn.istd"), &[cfg.input_dim]);
    let x = b.push1("audio.cmvn", Cmvn { dtype }, &[fbank, mean, istd])?;

    let x = conv(&mut b, "conv.0", x, 1, c)?;
    let x = conv(&mut b, "conv.2", x, c, c)?;
    // The reference flattens channel-major (c·F + f); the activations are frequency-major (f·C + c).
    let bands = b.g.desc(x).cols() / c;
    let name = format!("{ENCODER}.enc.0.core.out.0");
    let w = Recipe::permuted_view(
        &format!("{name}.weight"),
        dtype,
        &[c, c * bands],
        &[c, c, bands],
        &[0, 2, 1],
        &[c, bands * c],
    );
    let w = b.g.weight(w);
    let subsampled = b.linear_with(&name, x, w, c, true)?;

    let x = b.linear(&format!("{ENCODER}.enc.1.embed.0"), subsampled, c, true)?;
    let x = b.layer_norm(&format!("{ENCODER}.enc.1.embed.1"), x, eps)?;
    let x = b.push1("audio.embed.relu", Unary { act: Act::Relu }, &[x])?;
    let mut x = b.push1("audio.embed.scaled", Scale { by: (c as f32).sqrt() }, &[x])?;

    let mask = match cfg.chunk_size {
        size if size > 0 => Mask::Chunk { size: size as usize, left: cfg.left_chunks },
        _ => Mask::Full,
    };
    for (n, states) in positions.iter().enumerate() {
        let at = |what: &str| layer(n, what);

        let y = b.layer_norm(&at("norm1"), x, eps)?;
        let w = b.g.weight(qkv(dtype, n, "weight", &[c, c])?);
        let linear = Linear { bias: true, out_f32: false };
        let y = b.push1(&at("self_attn.linear_qkv"), linear, &[y, w, states.bias])?;
        let y = b.push1(&at("self_attn.keys"), AddKeys, &[y, states.keys])?;
        let attention = Attention {
            heads,
            kv_heads: heads,
            head_dim: d,
            scale: score_scale(cfg),
            mask,
            source: Source::Packed,
            batch: 1,
            bias: true,
        };
        let y = b.push1(&at("self_attn.attn"), attention, &[y, states.scores])?;
        let y = b.linear(&at("self_attn.linear_out"), y, c, true)?;
        x = b.add(&at("self_attn.residual"), x, y)?;

        let y = b.layer_norm(&at("norm2"), x, eps)?;
        let y = b.linear(&at("feed_forward.w_1"), y, cfg.intermediate_size, true)?;
        let y = b.push1(&at("feed_forward.relu"), Unary { act: Act::Relu }, &[y])?;
        let y = b.linear(&at("feed_forward.w_2"), y, c, true)?;
        x = b.add(&at("feed_forward.residual"), x, y)?;
    }
    let encoded = b.layer_norm(&format!("{ENCODER}.enc.1.after_norm"), x, eps)?;

    let taps = cfg.adapter_kernel_size;
    let name = format!("{ADAPTER}.conv1d2");
    let w =
        Recipe::permuted(&format!("{name}.weight"), dtype, &[2 * c, c, taps], &[0, 2, 1], &[2 * c, taps * c]);
    let w = b.g.weight(w);
    let bias = b.weight(&format!("{name}.bias"), &[2 * c]);
    let x = b.push1(&name, Conv1d { kernel: taps, stride: 2, pad_right: taps - 1 }, &[encoded, w, bias])?;
    let x = b.layer_norm(&format!("{ADAPTER}.bn2"), x, 1e-3)?;
    let x = b.push1("audio.adapter.gelu", Unary { act: Act::Gelu }, &[x])?;
    let embeds = b.linear(&format!("{ADAPTER}.project"), x, text.hidden_size, true)?;
    b.g.output(embeds);
    Ok(AudioGraph { graph: b.g, fbank, subsampled, encoded, embeds })
}

/// One of the two 3×3 stride-2 convolutions with its ReLU. Activations are `[frames, bands · channels]`.
fn conv(b: &mut Builder, which: &str, x: Tensor, from: usize, to: usize) -> Result<Tensor> {
    let name = format!("{ENCODER}.enc.0.core.{which}");
    let w = Recipe::permuted(
        &format!("{name}.weight"),
        b.dtype,
        &[to, from, 3, 3],
        &[0, 2, 3, 1],
        &[to, 9 * from],
    );
    let w = b.g.weight(w);
    let bias = b.weight(&format!("{name}.bias"), &[to]);
    let x = b.push1(&name, Conv2d { channels: from, relu: false }, &[x, w, bias])?;
    b.push1(&format!("{name}.relu"), Unary { act: Act::Relu }, &[x])
}

/// `prompt_embeddings`, a few learnt rows that some checkpoints put before a sound: `[n, hidden]`.
pub fn prompt_rows(text: &TextConfig, dtype: DType, n: usize) -> Result<(Graph, Tensor, Tensor)> {
    let mut b = Builder::new(dtype);
    let table = b.weight("model.audio_encoder.prompt_embeddings.weight", &[n, text.hidden_size]);
    let ids = b.g.input("prompt_ids", DType::U32, &[n]);
    let rows = b.push1("prompt_embeddings", crate::ops::embed::Embed, &[ids, table])?;
    b.g.output(rows);
    Ok((b.g, ids, rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::fbank::rows_for_frames;

    #[test]
    fn lengths_follow_the_reference() {
        // Ten and thirty seconds.
        assert_eq!((encoder_frames(1000), encoder_frames(3000)), (249, 749));
        assert_eq!((encoder_frames(6), encoder_frames(7)), (0, 1));
    }

    #[test]
    fn the_language_model_never_takes_more_rows_than_there_are() {
        for frames in 7..4000 {
            assert!(rows_for_frames(frames) <= (encoder_frames(frames) - 1) / 2 + 1, "{frames}");
        }
    }
}
