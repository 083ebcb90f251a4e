//! The shapes that test, benchmark and profile share.

use super::{AssembleTokens, Cmvn, Conv1d, Conv2d, Patchify, PixelShuffle, Pixels, PrependClass};
use crate::core::DType;
use crate::ops::{Case, Fill};

const UNIT: Fill = Fill::Uniform { centre: 0.0, scale: 1.0 };

pub(super) fn patchify() -> Vec<Case<Patchify>> {
    let case = |n: usize, s: usize, patch: usize, padded_cols: usize, dtype: DType| {
        let op = Patchify { pixels: Pixels::Values, patch, padded_cols, dtype };
        Case::new(format!("n{n}_s{s}_p{patch}_{dtype}"), op).act_f32(&[n, 3, s, s], UNIT)
    };
    let bytes = |n: usize, s: usize, patch: usize, padded_cols: usize| {
        let pixels = Pixels::Bytes { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
        let op = Patchify { pixels, patch, padded_cols, dtype: DType::BF16 };
        Case::new(format!("bytes_n{n}_s{s}_p{patch}"), op).ids(&[n, s, 3 * s / 4], u32::MAX)
    };
    vec![
        case(3, 56, 14, 592, DType::BF16),
        case(1, 56, 14, 592, DType::F16),
        case(2, 15, 5, 80, DType::BF16),
        case(1, 448, 14, 592, DType::BF16).bench(),
        case(13, 448, 14, 592, DType::BF16).bench(),
        bytes(3, 56, 14, 592),
        bytes(2, 20, 5, 80),
        bytes(1, 448, 14, 592).bench(),
        bytes(13, 448, 14, 592).bench(),
    ]
}

pub(super) fn prepend_class() -> Vec<Case<PrependClass>> {
    let case = |tiles: usize, p: usize, c: usize| {
        Case::new(format!("n{tiles}_p{p}_c{c}"), PrependClass { tiles }).act(&[tiles * p, c]).weight(&[c])
    };
    vec![case(1, 16, 128), case(3, 17, 136), case(1, 1024, 1024).bench(), case(13, 1024, 1024).bench()]
}

pub(super) fn assemble_tokens() -> Vec<Case<AssembleTokens>> {
    let case = |tiles: usize, p: usize, c: usize| {
        Case::new(format!("n{tiles}_p{p}_c{c}"), AssembleTokens { tiles })
            .act(&[tiles * p, c])
            .weight(&[c])
            .weight(&[p + 1, c])
    };
    vec![case(1, 16, 128), case(3, 17, 136), case(1, 1024, 1024).bench(), case(13, 1024, 1024).bench()]
}

pub(super) fn pixel_shuffle() -> Vec<Case<PixelShuffle>> {
    let case = |tiles: usize, grid: usize, c: usize| {
        Case::new(format!("n{tiles}_g{grid}_c{c}"), PixelShuffle { tiles, grid, scale: 0.5 })
            .act(&[tiles * (1 + grid * grid), c])
    };
    vec![
        case(1, 4, 128),
        case(3, 2, 8),
        case(2, 6, 136),
        case(1, 32, 1024).bench(),
        case(13, 32, 1024).bench(),
    ]
}

pub(super) fn cmvn() -> Vec<Case<Cmvn>> {
    let case = |t: usize, f: usize, dtype: DType| {
        Case::new(format!("t{t}_f{f}_{dtype}"), Cmvn { dtype })
            .act_f32(&[t, f], Fill::Uniform { centre: 10.0, scale: 5.0 })
            .weight_with(&[f], Fill::Uniform { centre: 10.0, scale: 2.0 })
            .weight_with(&[f], Fill::Uniform { centre: 0.3, scale: 0.1 })
    };
    vec![
        case(1, 80, DType::BF16),
        case(17, 80, DType::F16),
        case(333, 80, DType::BF16),
        case(1000, 80, DType::BF16).bench(),
        case(3000, 80, DType::BF16).bench(),
    ]
}

pub(super) fn conv2d() -> Vec<Case<Conv2d>> {
    let case = |name: &str, h: usize, w: usize, c: usize, n: usize, relu: bool, fill: Fill| {
        let name = format!("{name}h{h}_w{w}_c{c}_n{n}");
        let k = 9 * c;
        let weight = match fill {
            Fill::SmallInts => fill,
            _ => Fill::Uniform { centre: 0.0, scale: (3.0 / k as f32).sqrt() },
        };
        Case::new(name, Conv2d { channels: c, relu })
            .act_with(&[h, w * c], fill)
            .weight_with(&[n, k], weight)
            .weight_with(&[n], fill)
    };
    let mut all = vec![
        case("", 3, 3, 1, 8, true, UNIT),
        case("", 17, 80, 1, 128, true, UNIT),
        case("", 64, 79, 1, 72, false, UNIT),
        case("", 3, 3, 8, 16, true, UNIT),
        case("", 8, 39, 128, 128, true, UNIT),
        case("", 31, 39, 64, 136, false, UNIT),
        case("", 50, 20, 24, 40, true, UNIT),
        case("", 9, 11, 3, 10, true, UNIT),
        case("", 9, 11, 1, 10, true, UNIT),
        case("ints_", 9, 80, 1, 40, true, Fill::SmallInts),
        case("ints_", 35, 12, 1, 136, false, Fill::SmallInts),
        case("ints_", 21, 39, 16, 72, true, Fill::SmallInts),
        // Tiles of whole output frames, 10 or 6 of 19 pixels: one frame, an even height, whole tiles, a frame more.
        case("", 4, 39, 64, 8, false, UNIT),
        case("", 21, 39, 64, 208, true, UNIT),
        case("", 22, 39, 72, 216, true, UNIT),
        case("ints_", 23, 39, 64, 208, true, Fill::SmallInts),
        case("ints_", 26, 39, 136, 424, false, Fill::SmallInts),
        // Long K and one tile: split. Frames of one pixel, frames wider than a tile.
        case("ints_", 9, 39, 512, 128, true, Fill::SmallInts),
        case("", 60, 4, 16, 24, true, UNIT),
        case("", 5, 270, 8, 16, true, UNIT),
        case("", 5, 400, 8, 16, true, UNIT),
        // More tiles than CTAs.
        case("ints_", 701, 39, 8, 1040, true, Fill::SmallInts),
    ];
    for t in [300usize, 1000, 3000] {
        all.push(case("", t, 80, 1, 1024, true, UNIT).bench());
        all.push(case("", (t - 3) / 2 + 1, 39, 1024, 1024, true, UNIT).bench());
    }
    all
}

pub(super) fn conv1d() -> Vec<Case<Conv1d>> {
    let case = |t: usize, c: usize, n: usize| {
        let conv = Conv1d { kernel: 5, stride: 2, pad_right: 4 };
        Case::new(format!("t{t}_c{c}_n{n}"), conv).act(&[t, c]).weight(&[n, 5 * c]).weight(&[n])
    };
    let mut all =
        vec![case(1, 128, 256), case(2, 8, 16), case(37, 128, 256), case(130, 72, 136), case(139, 64, 40)];
    // Windows out of even rows and odd ones: two rows, an even number, rows behind the first tile of 64.
    all.extend([(2, 64, 24), (38, 128, 250), (300, 192, 136)].map(|(t, c, n)| case(t, c, n)));
    let ints = Case::new("ints_t45_c16_n40", Conv1d { kernel: 5, stride: 2, pad_right: 4 })
        .act_with(&[45, 16], Fill::SmallInts)
        .weight_with(&[40, 80], Fill::SmallInts)
        .weight_with(&[40], Fill::SmallInts);
    all.push(ints);
    all.extend([249, 749].map(|t| case(t, 1024, 2048).bench()));
    all
}
