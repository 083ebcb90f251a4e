//! Whale, the audio encoder, and its adapter: log-mel frames in, rows of the language model out (VITA's
//! `audio_encoder`; transformer blocks as in WeNet, positions as in Transformer-XL without the relative shift).

use super::builder::Builder;
use super::config::{AudioConfig, TextConfig};
use crate::core::{DType, Recipe, Result, Tensor};
use crate::graph::Graph;
use crate::ops::attention::{AddKeys, Attention, Batch, KeyBias, Mask, SinTable, Source};
use crate::ops::conv::{Cmvn, Conv1d, Conv2d};
use crate::ops::elementwise::{Act, Add, Scale, Unary};
use crate::ops::embed::{LastRows, Recent, RowsAt};
use crate::ops::linear::Linear;
use crate::ops::preprocess::{FRAME, Filterbank, SHIFT};

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

        let scores = position_scores(&mut b, cfg, n, p)?;
        b.g.store(scores, states.scores)?;
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
    build_with(cfg, text, dtype, frames, cap, None)
}

/// As [`build`], from samples: `fbank` of the graph is f32 `[samples]` at 16 kHz, as many as `frames` frames are made of. The
/// last states are the window f32 `[400]`, the spans u32 `[80, 2]` and the weights f32 `[80, mel_width]` of
/// [`crate::ops::preprocess::Filterbank`].
pub fn build_from_samples(
    cfg: &AudioConfig,
    text: &TextConfig,
    dtype: DType,
    frames: usize,
    cap: usize,
    mel_width: usize,
) -> Result<AudioGraph> {
    build_with(cfg, text, dtype, frames, cap, Some(mel_width))
}

fn build_with(
    cfg: &AudioConfig,
    text: &TextConfig,
    dtype: DType,
    frames: usize,
    cap: usize,
    mel_width: Option<usize>,
) -> Result<AudioGraph> {
    let mut b = Builder::new(dtype);
    let positions = Positions::states(&mut b, cfg, cap);
    let (input, fbank) = match mel_width {
        None => {
            let fbank = b.g.input("fbank", DType::F32, &[frames, cfg.input_dim]);
            (fbank, fbank)
        }
        Some(width) => {
            let samples = b.g.input("samples", DType::F32, &[FRAME + (frames - 1) * SHIFT]);
            let window = b.g.state("audio.window", DType::F32, &[FRAME]);
            let spans = b.g.state("audio.mel.spans", DType::U32, &[cfg.input_dim, 2]);
            let mel = b.g.state("audio.mel", DType::F32, &[cfg.input_dim, width]);
            (samples, b.push1("audio.fbank", Filterbank, &[samples, window, spans, mel])?)
        }
    };
    let (subsampled, mut x) = front(&mut b, cfg, fbank)?;
    let mask = match cfg.chunk_size {
        size if size > 0 => Mask::Chunk { size: size as usize, left: cfg.left_chunks },
        _ => Mask::Full,
    };
    for (n, states) in positions.iter().enumerate() {
        x = block(&mut b, cfg, n, x, |b, y| {
            let y = linear_qkv(b, cfg, n, y, states)?;
            let y = b.push1(&layer(n, "self_attn.keys"), AddKeys, &[y, states.keys])?;
            b.push1(&layer(n, "self_attn.attn"), attention(cfg, mask), &[y, states.scores])
        })?;
    }
    let encoded = b.layer_norm(&format!("{ENCODER}.enc.1.after_norm"), x, EPS)?;
    let embeds = adapter(&mut b, cfg, text, encoded, true)?;
    Ok(AudioGraph { graph: b.g, fbank: input, subsampled, encoded, embeds })
}

/// A piece of a sound for an encoder with chunked attention: the next frames, while those before are known from earlier
/// pieces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Piece {
    /// Encoder frames of the piece: a chunk, or what is left of the last one.
    pub rows: usize,
    /// Frames before it that its frames see.
    pub seen: usize,
    /// Frames before it that the adapter's next row begins with.
    pub carried: usize,
    /// The sound ends with it: what the adapter sees after it is zero.
    pub last: bool,
}

impl Piece {
    /// The piece of `rows` frames from frame `first` on, which begins a chunk.
    pub fn new(cfg: &AudioConfig, first: usize, rows: usize, last: bool) -> Piece {
        let chunk = cfg.chunk_size.max(1) as usize;
        let seen =
            usize::try_from(cfg.left_chunks).map_or(first, |left| first.min(left.saturating_mul(chunk)));
        Piece { rows, seen, carried: first.saturating_sub(2 * adapted(cfg, first)), last }
    }

    /// Log-mel frames that make it: the windows of two convolutions of 3 with stride 2.
    pub fn frames(&self) -> usize {
        4 * self.rows + 3
    }
}

/// Rows of the adapter that `frames` encoder frames decide, whatever comes after them.
pub fn adapted(cfg: &AudioConfig, frames: usize) -> usize {
    frames.checked_sub(cfg.adapter_kernel_size).map_or(0, |rest| rest / 2 + 1)
}

/// Frames of a chunk, where the encoder can go ahead chunk by chunk.
pub fn chunk(cfg: &AudioConfig) -> Option<usize> {
    // An adapter of one tap would pass frames over.
    (cfg.chunk_size > 0 && cfg.adapter_kernel_size >= 2).then_some(cfg.chunk_size as usize)
}

/// The graph of a [`Piece`] and the tensors that the host touches.
pub struct PieceGraph {
    pub graph: Graph,
    /// f32 `[piece.frames(), 80]`.
    pub fbank: Tensor,
    /// The rows that the piece completes, `[.., hidden of the language model]`; absent where it completes none.
    pub embeds: Option<Tensor>,
}

/// Rows that the states of [`build_piece`] keep of each layer, for sounds of at most `most` encoder frames.
fn kept_rows(cfg: &AudioConfig, most: usize) -> usize {
    let chunk = cfg.chunk_size.max(1) as usize;
    usize::try_from(cfg.left_chunks)
        .map_or(most, |left| left.saturating_add(1).saturating_mul(chunk).min(most))
}

/// Builds the graph of `piece`; `step.pos` is its first frame, `step.valid_rows` its frames and those they see.
///
/// The states are those of [`build`], then q, v and keys with their positions of the frames before in each layer, then the
/// frames that the adapter still needs. Attention runs on all frames that are seen, and the rows of the piece are taken
/// out: few rows too many in the smallest of the kernels.
pub fn build_piece(
    cfg: &AudioConfig,
    text: &TextConfig,
    dtype: DType,
    piece: Piece,
    cap: usize,
    most: usize,
) -> Result<PieceGraph> {
    let mut b = Builder::new(dtype);
    let positions = Positions::states(&mut b, cfg, cap);
    let kept = piece_states(&mut b, cfg, most);
    let Some((&carried, kept)) = kept.split_last() else { crate::bail_runtime!("no state for the adapter") };
    let fbank = b.g.input("fbank", DType::F32, &[piece.frames(), cfg.input_dim]);
    let (_, mut x) = front(&mut b, cfg, fbank)?;
    let seen = RowsAt { rows: piece.seen + piece.rows, back: piece.seen };
    for (n, (states, &before)) in positions.iter().zip(kept).enumerate() {
        x = block(&mut b, cfg, n, x, |b, y| {
            let at = |what: &str| layer(n, &format!("self_attn.{what}"));
            let y = linear_qkv(b, cfg, n, y, states)?;
            let p = b.push1(&at("p"), RowsAt { rows: piece.rows, back: 0 }, &[states.keys])?;
            let y = b.push1(&at("keys"), AddKeys, &[y, p])?;
            let recent = b.g.push(&at("recent"), Recent { rows: piece.seen }, &[y, before])?;
            // The states' scores, made again for the positions that are seen.
            let p = b.push1(&at("p_seen"), seen.clone(), &[states.keys])?;
            let scores = position_scores(b, cfg, n, p)?;
            let all = b.push1(&at("attn"), attention(cfg, Mask::Full), &[recent[0], scores])?;
            b.push1(&at("attn.rows"), LastRows { n: piece.rows }, &[all])
        })?;
    }
    let encoded = b.layer_norm(&format!("{ENCODER}.enc.1.after_norm"), x, EPS)?;
    let recent = b.g.push("audio.adapter.recent", Recent { rows: piece.carried }, &[encoded, carried])?;
    let mut embeds = None;
    if piece.last || piece.carried + piece.rows >= cfg.adapter_kernel_size {
        embeds = Some(adapter(&mut b, cfg, text, recent[0], piece.last)?);
    } else {
        b.g.output(recent[0]);
    }
    Ok(PieceGraph { graph: b.g, fbank, embeds })
}

fn piece_states(b: &mut Builder, cfg: &AudioConfig, most: usize) -> Vec<Tensor> {
    let (c, rows) = (cfg.hidden_size, kept_rows(cfg, most));
    let mut states: Vec<Tensor> = (0..cfg.num_hidden_layers)
        .map(|n| b.g.state(&format!("audio.recent.{n}"), b.dtype, &[rows, 3 * c]))
        .collect();
    let chunk = cfg.chunk_size.max(1) as usize;
    states.push(b.g.state("audio.carried", b.dtype, &[chunk + cfg.adapter_kernel_size - 1, c]));
    states
}

/// LayerNorm's epsilon throughout the encoder.
const EPS: f32 = 1e-5;

/// From log-mel frames to the first layer: the frames after the convolutions, and these embedded.
fn front(b: &mut Builder, cfg: &AudioConfig, fbank: Tensor) -> Result<(Tensor, Tensor)> {
    let c = cfg.hidden_size;
    let mean = b.weight(&format!("{ENCODER}.global_cmvn.mean"), &[cfg.input_dim]);
    let istd = b.weight(&format!("{ENCODER}.global_cmvn.istd"), &[cfg.input_dim]);
    let x = b.push1("audio.cmvn", Cmvn { dtype: b.dtype }, &[fbank, mean, istd])?;

    let x = conv(b, "conv.0", x, 1, c)?;
    let x = conv(b, "conv.2", x, c, c)?;
    // The reference flattens channel-major (c·F + f); the activations are frequency-major (f·C + c).
    let bands = b.g.desc(x).cols() / c;
    let name = format!("{ENCODER}.enc.0.core.out.0");
    let w = Recipe::permuted_view(
        &format!("{name}.weight"),
        b.dtype,
        &[c, c * bands],
        &[c, c, bands],
        &[0, 2, 1],
        &[c, bands * c],
    );
    let w = b.g.weight(w);
    let subsampled = b.linear_with(&name, x, w, c, true)?;

    let x = b.linear(&format!("{ENCODER}.enc.1.embed.0"), subsampled, c, true)?;
    let x = b.layer_norm(&format!("{ENCODER}.enc.1.embed.1"), x, EPS)?;
    let x = b.push1("audio.embed.relu", Unary { act: Act::Relu }, &[x])?;
    let x = b.push1("audio.embed.scaled", Scale { by: (c as f32).sqrt() }, &[x])?;
    Ok((subsampled, x))
}

/// One layer; `attend` is its attention on normalised rows, before `linear_out`.
fn block(
    b: &mut Builder,
    cfg: &AudioConfig,
    n: usize,
    x: Tensor,
    attend: impl FnOnce(&mut Builder, Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let c = cfg.hidden_size;
    let at = |what: &str| layer(n, what);
    let y = b.layer_norm(&at("norm1"), x, EPS)?;
    let y = attend(b, y)?;
    let y = b.linear(&at("self_attn.linear_out"), y, c, true)?;
    let x = b.add(&at("self_attn.residual"), x, y)?;

    let y = b.layer_norm(&at("norm2"), x, EPS)?;
    let y = b.linear(&at("feed_forward.w_1"), y, cfg.intermediate_size, true)?;
    let y = b.push1(&at("feed_forward.relu"), Unary { act: Act::Relu }, &[y])?;
    let y = b.linear(&at("feed_forward.w_2"), y, c, true)?;
    b.add(&at("feed_forward.residual"), x, y)
}

/// The product that makes q, k and v of normalised rows, `[T, 3 C]`.
fn linear_qkv(b: &mut Builder, cfg: &AudioConfig, n: usize, y: Tensor, states: &Positions) -> Result<Tensor> {
    let c = cfg.hidden_size;
    let w = b.g.weight(qkv(b.dtype, n, "weight", &[c, c])?);
    let linear = Linear { bias: true, out_f32: false };
    b.push1(&layer(n, "self_attn.linear_qkv"), linear, &[y, w, states.bias])
}

/// f32 `[heads, rows of p]`: `scale · (v - u)·p`.
fn position_scores(b: &mut Builder, cfg: &AudioConfig, n: usize, p: Tensor) -> Result<Tensor> {
    let (c, heads) = (cfg.hidden_size, cfg.num_attention_heads);
    let head_dim = c / heads;
    let [u, v] = ["pos_bias_u", "pos_bias_v"].map(|which| {
        let name = layer(n, &format!("self_attn.{which}"));
        b.g.weight(Recipe::viewed(&name, b.dtype, &[heads, head_dim], &[c]))
    });
    let less_u = b.push1(&layer(n, "self_attn.less_u"), Scale { by: -1.0 }, &[u])?;
    let op = KeyBias { heads, head_dim, scale: score_scale(cfg) };
    Ok(b.g.push(&layer(n, "self_attn.scores"), op, &[p, p, less_u, v])?[1])
}

/// Attention over packed q, k and v, with a bias per key and head.
fn attention(cfg: &AudioConfig, mask: Mask) -> Attention {
    let (heads, source, scale) = (cfg.num_attention_heads, Source::Packed, score_scale(cfg));
    let head_dim = cfg.hidden_size / heads;
    Attention { heads, kv_heads: heads, head_dim, scale, mask, source, batch: Batch::Equal(1), bias: true }
}

/// From encoder frames to rows of the language model; `ends`: zero frames follow.
fn adapter(b: &mut Builder, cfg: &AudioConfig, text: &TextConfig, x: Tensor, ends: bool) -> Result<Tensor> {
    let (c, taps) = (cfg.hidden_size, cfg.adapter_kernel_size);
    let name = format!("{ADAPTER}.conv1d2");
    let w = Recipe::permuted(
        &format!("{name}.weight"),
        b.dtype,
        &[2 * c, c, taps],
        &[0, 2, 1],
        &[2 * c, taps * c],
    );
    let w = b.g.weight(w);
    let bias = b.weight(&format!("{name}.bias"), &[2 * c]);
    let pad_right = if ends { taps - 1 } else { 0 };
    let x = b.push1(&name, Conv1d { kernel: taps, stride: 2, pad_right }, &[x, w, bias])?;
    let x = b.layer_norm(&format!("{ADAPTER}.bn2"), x, 1e-3)?;
    let x = b.push1("audio.adapter.gelu", Unary { act: Act::Gelu }, &[x])?;
    let embeds = b.linear(&format!("{ADAPTER}.project"), x, text.hidden_size, true)?;
    b.g.output(embeds);
    Ok(embeds)
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

    #[test]
    fn pieces_complete_every_row_once() {
        let json = include_str!("../../tests/fixtures/tiny-chunked.json");
        let cfg = crate::models::config::ModelConfig::from_json(json, "tiny-chunked.json").unwrap();
        for (chunk, left, taps) in [(4, 2, 5), (1, 0, 5), (3, -1, 5), (7, 1, 2), (2, 40, 3)] {
            let audio = AudioConfig {
                chunk_size: chunk as i64,
                left_chunks: left,
                adapter_kernel_size: taps,
                ..cfg.audio.clone().unwrap()
            };
            for frames in 1..40usize {
                let (mut rows, mut first) = (0, 0);
                while first < frames {
                    let last = first + chunk >= frames;
                    let n = chunk.min(frames - first);
                    let piece = Piece::new(&audio, first, n, last);
                    assert_eq!(rows, adapted(&audio, first), "{frames} frames in chunks of {chunk}");
                    let mask = Mask::Chunk { size: chunk, left };
                    assert_eq!(mask.keys(first, frames), first - piece.seen..first + n);
                    let g = build_piece(&audio, &cfg.text, DType::F32, piece, 64, 64).unwrap();
                    g.graph.verify().unwrap();
                    rows += g.embeds.map_or(0, |e| g.graph.desc(e).rows());
                    first += n;
                }
                assert_eq!(rows, (frames - 1) / 2 + 1, "{frames} frames in chunks of {chunk}");
            }
        }
    }
}
