//! InternViT-300M-448px and the projector: tiles in, rows of the language model out (Chen et al. 2023;
//! InternVisionModel, VITA's `mm_projector`).

use super::builder::Builder;
use super::config::{TextConfig, VisionConfig};
use crate::core::{DType, Recipe, Result, Tensor};
use crate::graph::Graph;
use crate::ops::attention::{Attention, Batch, Mask, Source};
pub use crate::ops::conv::Pixels;
use crate::ops::conv::{Patchify, PixelShuffle, PrependClass};
use crate::ops::elementwise::{Act, AddTable, RowScale, Unary};
use crate::ops::preprocess::{ResizeToTiles, ResizeWidth};

/// A vision graph and the tensors that the host touches.
pub struct VisionGraph {
    pub graph: Graph,
    /// The tiles, as their [`Pixels`] say.
    pub pixels: Tensor,
    /// `[tiles · (1 + P), C]`, output of the last layer, class token included.
    pub last_hidden: Tensor,
    /// `[tiles · P / 4, 4 C]` after the pixel shuffle.
    pub features: Tensor,
    /// `[tiles · P / 4, hidden of the language model]`.
    pub projected: Tensor,
}

/// Rows that one tile gives the language model.
pub fn rows_per_tile(cfg: &VisionConfig) -> usize {
    (cfg.image_size / cfg.patch_size).pow(2) / 4
}

/// Whether tiles may come as bytes: rows of them are whole u32.
pub fn takes_bytes(cfg: &VisionConfig) -> bool {
    (3 * cfg.image_size).is_multiple_of(4)
}

/// Builds the graph for `tiles` tiles.
pub fn build(
    cfg: &VisionConfig,
    text: &TextConfig,
    dtype: DType,
    tiles: usize,
    pixels: Pixels,
) -> Result<VisionGraph> {
    let mut b = Builder::new(dtype);
    let s = cfg.image_size;
    let input = match pixels {
        Pixels::Values => b.g.input("pixel_values", DType::F32, &[tiles, 3, s, s]),
        Pixels::Bytes { .. } => b.g.input("pixels", DType::U32, &[tiles, s, 3 * s / 4]),
    };
    build_on(b, cfg, text, dtype, tiles, (input, pixels))
}

/// A picture as it was decoded, and the grid of tiles that it becomes; a thumbnail comes on top of several.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tiling {
    pub width: usize,
    pub height: usize,
    pub columns: usize,
    pub rows: usize,
}

impl Tiling {
    pub fn tiles(&self) -> usize {
        self.columns * self.rows + usize::from(self.columns * self.rows > 1)
    }

    /// Grids that the picture is resized to: the main one, and that of the thumbnail.
    pub fn grids(&self) -> Vec<(usize, usize)> {
        let mut grids = vec![(self.columns, self.rows)];
        if self.tiles() > 1 {
            grids.push((1, 1));
        }
        grids
    }
}

/// What the host writes for a graph of [`build_tiled`].
#[derive(Clone, Debug)]
pub struct TiledInputs {
    /// u32: the bytes of the picture `[height, width, 3]` in words.
    pub picture: Tensor,
    /// Per grid of [`Tiling::grids`] the axes of the resize, across and down: u32 `[.., 2 + taps]`.
    pub axes: Vec<[Tensor; 2]>,
    /// f32 `[3, 256]`: the normalised value of each byte.
    pub table: Tensor,
}

/// As [`build`], from a picture: resized, cut and normalised by ops. `taps(from, to)` is how many inputs an output of a
/// resize reads at most.
pub fn build_tiled(
    cfg: &VisionConfig,
    text: &TextConfig,
    dtype: DType,
    tiling: Tiling,
    taps: impl Fn(usize, usize) -> usize,
) -> Result<(VisionGraph, TiledInputs)> {
    let mut b = Builder::new(dtype);
    let (s, Tiling { width, height, columns, rows }) = (cfg.image_size, tiling);
    let picture = b.g.input("picture", DType::U32, &[(width * height * 3).div_ceil(4)]);
    let table = b.g.input("normalised", DType::F32, &[3, 256]);
    let mut axes = Vec::new();
    let mut ins = Vec::new();
    for (columns, rows) in tiling.grids() {
        let mut axis = |name: &str, from: usize, to: usize| {
            b.g.input(&format!("{name}.{columns}x{rows}"), DType::U32, &[to, 2 + taps(from, to)])
        };
        let (across, down) = (axis("across", width, columns * s), axis("down", height, rows * s));
        let name = format!("resized.{columns}x{rows}");
        let x = b.push1(&name, ResizeWidth { width, height }, &[picture, across])?;
        axes.push([across, down]);
        ins.extend([x, down]);
    }
    ins.push(table);
    let values = b.push1("pixel_values", ResizeToTiles { size: s, columns, rows }, &ins)?;
    let v = build_on(b, cfg, text, dtype, tiling.tiles(), (values, Pixels::Values))?;
    Ok((v, TiledInputs { picture, axes, table }))
}

fn build_on(
    mut b: Builder,
    cfg: &VisionConfig,
    text: &TextConfig,
    dtype: DType,
    tiles: usize,
    (input, pixels): (Tensor, Pixels),
) -> Result<VisionGraph> {
    const TOWER: &str = "model.vision_tower.vision_tower";
    let (c, p, s) = (cfg.hidden_size, cfg.patch_size, cfg.image_size);
    let grid = s / p;
    let patches = grid * grid;
    let heads = cfg.num_attention_heads;
    let eps = cfg.layer_norm_eps;

    let at = |what: &str| format!("{TOWER}.embeddings.{what}");
    // K = 3·14·14 = 588 is padded with zeros to a multiple of 16: whole tensor-core steps, 16-byte rows.
    let k = (3 * p * p).next_multiple_of(16);
    let x = b.push1(&at("patches"), Patchify { pixels, patch: p, padded_cols: k, dtype }, &[input])?;
    let w = b.g.weight(Recipe::padded_cols(&at("patch_embedding.weight"), dtype, &[c, 3, p, p], k));
    let x = b.linear_with(&at("patch_embedding"), x, w, c, true)?;
    let class = b.g.weight(Recipe::viewed(&at("class_embedding"), dtype, &[1, 1, c], &[c]));
    let x = b.push1(&at("with_class"), PrependClass { tiles }, &[x, class])?;
    let positions =
        b.g.weight(Recipe::viewed(&at("position_embedding"), dtype, &[1, patches + 1, c], &[patches + 1, c]));
    let mut x = b.push1(&at("embedded"), AddTable, &[x, positions])?;

    for n in 0..cfg.num_hidden_layers {
        let at = |what: &str| format!("{TOWER}.encoder.layers.{n}.{what}");

        let y = b.layer_norm(&at("norm1"), x, eps)?;
        let qkv = b.linear(&at("attn.qkv"), y, 3 * c, true)?;
        let attention = Attention {
            heads,
            kv_heads: heads,
            head_dim: c / heads,
            scale: 1.0 / ((c / heads) as f32).sqrt(),
            mask: Mask::Full,
            source: Source::Packed,
            batch: Batch::Equal(tiles),
            bias: false,
        };
        let y = b.push1(&at("attn"), attention, &[qkv])?;
        let y = b.linear(&at("attn.proj"), y, c, true)?;
        let ls1 = b.weight(&at("ls1"), &[c]);
        let y = b.push1(&at("attn.scaled"), RowScale, &[y, ls1])?;
        x = b.add(&at("attn.residual"), x, y)?;

        let y = b.layer_norm(&at("norm2"), x, eps)?;
        let y = b.linear(&at("mlp.fc1"), y, cfg.intermediate_size, true)?;
        let y = b.push1(&at("mlp.gelu"), Unary { act: Act::Gelu }, &[y])?;
        let y = b.linear(&at("mlp.fc2"), y, c, true)?;
        let ls2 = b.weight(&at("ls2"), &[c]);
        let y = b.push1(&at("mlp.scaled"), RowScale, &[y, ls2])?;
        x = b.add(&at("mlp.residual"), x, y)?;
    }

    // The factor 0.5 is VITA's, applied before the shuffle.
    let shuffle = PixelShuffle { tiles, grid, scale: 0.5 };
    let features = b.push1("vision.features", shuffle, &[x])?;
    let y = b.linear("model.mm_projector.0", features, text.hidden_size, true)?;
    let y = b.push1("model.mm_projector.1", Unary { act: Act::Gelu }, &[y])?;
    let projected = b.linear("model.mm_projector.2", y, text.hidden_size, true)?;
    b.g.output(projected);
    Ok(VisionGraph { graph: b.g, pixels: input, last_hidden: x, features, projected })
}
