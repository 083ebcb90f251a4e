//! Cases of the attention family: ragged lengths, tile edges, every mask, source and head dim; and the shapes of the
//! models.

use super::{AddKeys, Attention, Batch, KeyBias, Mask, SinTable, Source};
use crate::core::DType;
use crate::ops::{Case, Fill};

fn op(heads: usize, kv_heads: usize, head_dim: usize, mask: Mask, source: Source) -> Attention {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Attention { heads, kv_heads, head_dim, scale, mask, source, batch: Batch::Equal(1), bias: false }
}

fn name(op: &Attention) -> String {
    let mask = match op.mask {
        Mask::Full => "full".to_owned(),
        Mask::Causal => "causal".to_owned(),
        Mask::Chunk { size, left } => format!("chunk{size}_left{left}"),
    };
    format!("{mask}_h{}_g{}_d{}", op.heads, op.kv_heads, op.head_dim)
}

fn separate(t: usize, op: Attention) -> Case<Attention> {
    let (h, g, d) = (op.heads, op.kv_heads, op.head_dim);
    let case = Case::new(format!("t{t}_{}", name(&op)), op);
    case.act(&[t, h * d]).act(&[t, g * d]).act(&[t, g * d])
}

/// `batch` sequences of `t` rows; `bias` fills the per-key bias.
fn packed(t: usize, batch: usize, bias: Option<(&str, Fill)>, op: Attention) -> Case<Attention> {
    let op = Attention { batch: Batch::Equal(batch), bias: bias.is_some(), ..op };
    let (h, rows, cols) = (op.heads, batch * t, (op.heads + 2 * op.kv_heads) * op.head_dim);
    let tag = bias.map_or(String::new(), |(tag, _)| format!("_{tag}"));
    let case = Case::new(format!("packed_b{batch}_t{t}_{}{tag}", name(&op)), op);
    let case = case.act(&[rows, cols]);
    match bias {
        Some((_, fill)) => case.act_f32(&[h, rows], fill),
        None => case,
    }
}

/// Sequences of these lengths, from one tensor or three as `op` says; `bias` fills the per-key bias.
fn lengths(lengths: &[usize], bias: Option<(&str, Fill)>, op: Attention) -> Case<Attention> {
    let op = Attention { batch: Batch::Lengths(lengths.to_vec()), bias: bias.is_some(), ..op };
    let (h, g, d, t) = (op.heads, op.kv_heads, op.head_dim, lengths.iter().sum());
    let first: Vec<String> = lengths.iter().take(5).map(usize::to_string).collect();
    let tag = bias.map_or(String::new(), |(tag, _)| format!("_{tag}"));
    let name = format!("lengths{}_{}_t{t}_{}{tag}", lengths.len(), first.join("_"), name(&op));
    let case = match op.source {
        Source::Separate => {
            Case::new(format!("separate_{name}"), op).act(&[t, h * d]).act(&[t, g * d]).act(&[t, g * d])
        }
        _ => Case::new(name, op).act(&[t, (h + 2 * g) * d]),
    };
    match bias {
        Some((_, fill)) => case.act_f32(&[h, t], fill),
        None => case,
    }
}

/// With scores so far apart that a row's largest may come in any tile, above those before by little or by very much.
fn steep(case: Case<Attention>, scale: f32) -> Case<Attention> {
    let op = Attention { scale, ..case.op };
    Case { name: format!("steep{scale}_{}", case.name), op, ..case }
}

/// `t` rows of which `valid` hold tokens, after `pos` rows, in a cache of `s_max`.
fn cache(
    t: usize,
    pos: usize,
    valid: usize,
    (bucket, s_max): (usize, usize),
    heads: (usize, usize, usize),
) -> Case<Attention> {
    let (h, g, d) = heads;
    let op = op(h, g, d, Mask::Causal, Source::Cache { kv_bucket: bucket });
    let case = Case::new(format!("cache_t{t}_pos{pos}_valid{valid}_bucket{bucket}_{}", name(&op)), op);
    case.act(&[t, h * d])
        .state(&[2, g, s_max, d], Fill::Uniform { centre: 0.0, scale: 1.0 })
        .step(pos, valid, 0)
}

/// [`cache`] of each of `batch` sequences.
fn caches(
    batch: usize,
    rows: (usize, usize, usize),
    sizes: (usize, usize),
    heads: (usize, usize, usize),
) -> Case<Attention> {
    let ((t, pos, valid), (h, g, d)) = (rows, heads);
    let one = cache(t, pos, valid, sizes, heads);
    let op = Attention { batch: Batch::Equal(batch), ..one.op };
    Case::new(format!("b{batch}_{}", one.name), op)
        .act(&[batch * t, h * d])
        .state(&[2, batch * g, sizes.1, d], Fill::Uniform { centre: 0.0, scale: 1.0 })
        .step(pos, valid, 0)
}

pub(super) fn attention() -> Vec<Case<Attention>> {
    let mut all = Vec::new();
    let bias = Fill::Uniform { centre: 0.0, scale: 2.0 };

    for t in [1, 17, 63, 64, 65, 129] {
        for d in [64, 128] {
            all.push(separate(t, op(2, 2, d, Mask::Full, Source::Separate)));
            all.push(separate(t, op(7, 1, d, Mask::Causal, Source::Separate)));
        }
    }
    all.push(separate(193, op(2, 1, 64, Mask::Causal, Source::Separate)));
    // Head dims that only the plain kernel takes.
    all.push(separate(33, op(2, 1, 8, Mask::Causal, Source::Separate)));
    all.push(separate(19, op(3, 3, 80, Mask::Full, Source::Separate)));
    all.push(separate(21, op(2, 2, 256, Mask::Chunk { size: 5, left: 1 }, Source::Separate)));

    all.push(packed(1025, 1, None, op(1, 1, 64, Mask::Full, Source::Packed)));
    all.push(packed(65, 3, None, op(2, 2, 64, Mask::Full, Source::Packed)));
    all.push(packed(17, 2, None, op(2, 1, 128, Mask::Causal, Source::Packed)));
    all.push(packed(40, 2, None, op(2, 1, 40, Mask::Causal, Source::Packed)));
    for t in [3, 66, 131] {
        all.push(packed(t, 1, Some(("bias", bias)), op(2, 2, 64, Mask::Full, Source::Packed)));
        for left in [2, -1] {
            let chunk = Mask::Chunk { size: 4, left };
            all.push(packed(t, 1, Some(("bias", bias)), op(2, 2, 64, chunk, Source::Packed)));
        }
    }
    all.push(packed(70, 2, Some(("bias", bias)), op(2, 2, 128, Mask::Full, Source::Packed)));
    all.push(packed(150, 1, None, op(2, 2, 64, Mask::Chunk { size: 70, left: 0 }, Source::Packed)));
    // No key is left; a quarter of the keys is -inf (the sum overflows) and one takes all.
    let none = Fill::Bits(f32::NEG_INFINITY.to_bits());
    all.push(packed(67, 1, Some(("no_key", none)), op(2, 2, 64, Mask::Full, Source::Packed)));
    let some = Fill::Uniform { centre: -2e38, scale: 3e38 };
    all.push(packed(90, 1, Some(("some_keys", some)), op(2, 2, 64, Mask::Full, Source::Packed)));

    // Prefill into an empty cache, behind an old one, and with padding rows.
    for heads in [(7, 1, 128), (4, 2, 64)] {
        all.push(cache(64, 0, 64, (64, 80), heads));
        all.push(cache(64, 0, 37, (64, 64), heads));
        all.push(cache(128, 70, 97, (256, 256), heads));
        all.push(cache(17, 1000, 17, (2048, 1100), heads));
        all.push(cache(9, 3, 9, (16, 16), heads));
    }
    all.push(cache(12, 5, 10, (32, 40), (2, 1, 48)));
    // Decode: one row, a few rows, at a bucket's first and last length.
    for heads in [(7, 1, 128), (28, 4, 128), (14, 2, 64), (2, 2, 64), (16, 1, 64), (3, 1, 24)] {
        for (pos, bucket) in [(0, 256), (16, 256), (63, 256), (64, 256), (255, 256), (700, 1024)] {
            all.push(cache(1, pos, 1, (bucket, 1024), heads));
        }
        all.push(cache(1, 5, 0, (256, 256), heads));
    }
    all.push(cache(1, 2500, 1, (4096, 2600), (7, 1, 128)));
    all.push(cache(1, 4000, 1, (4096, 4010), (14, 2, 64)));
    all.push(cache(2, 3990, 2, (4096, 4000), (7, 1, 128)));
    for (t, pos, valid) in [(2, 100, 2), (4, 0, 4), (8, 61, 8), (8, 300, 5)] {
        all.push(cache(t, pos, valid, (512, 512), (7, 1, 128)));
        all.push(cache(t, pos, valid, (512, 512), (14, 2, 64)));
    }

    // A row of each of several sequences, at a bucket's first and last length, none that holds a token; a few rows, and
    // a prompt, of each.
    for heads in [(7, 1, 128), (28, 4, 128), (4, 2, 64), (3, 1, 24)] {
        for (batch, pos) in [(2, 0), (5, 63), (8, 255), (16, 100), (3, 700)] {
            let bucket = if pos < 256 { 256 } else { 1024 };
            all.push(caches(batch, (1, pos, 1), (bucket, 1024), heads));
        }
        all.push(caches(4, (1, 9, 0), (256, 256), heads));
        all.push(caches(3, (4, 61, 3), (256, 300), heads));
        all.push(caches(2, (70, 5, 66), (128, 90), heads));
    }
    all.push(caches(2, (1, 2500, 1), (4096, 2600), (28, 4, 128)));
    all.push(caches(20, (1, 300, 1), (512, 400), (28, 4, 128)));
    all.push(caches(2, (130, 300, 121), (512, 430), (7, 1, 128)));
    // Edges of tiles of 80, 96, 128 and 208 keys and of 128 and 192 rows, one and more tiles of either, and more tiles than
    // SMs.
    for t in [80, 81, 96, 97, 160, 192, 208, 209, 290, 417] {
        all.push(separate(t, op(2, 2, 64, Mask::Full, Source::Separate)));
    }
    // A row or few behind whole tiles of 128.
    let full = |heads, kv_heads| op(heads, kv_heads, 64, Mask::Full, Source::Packed);
    for (t, batch, op) in [
        (385, 1, full(2, 2)),
        (385, 3, full(4, 2)),
        (391, 2, full(3, 3)),
        (400, 3, full(4, 2)),
        (513, 1, full(5, 1)),
    ] {
        all.push(steep(packed(t, batch, None, op.clone()), 20.0));
        all.push(steep(packed(t, batch, None, op.clone()), 500.0));
        all.push(packed(t, batch, None, op));
    }
    all.push(separate(399, op(2, 1, 64, Mask::Full, Source::Separate)));
    for t in [128, 257, 400] {
        all.push(separate(t, op(7, 1, 128, Mask::Causal, Source::Separate)));
    }
    all.push(separate(300, op(2, 1, 128, Mask::Full, Source::Separate)));
    all.push(separate(390, op(2, 1, 64, Mask::Causal, Source::Separate)));
    all.push(packed(200, 3, Some(("bias", bias)), op(2, 2, 64, Mask::Full, Source::Packed)));
    for t in [128, 257] {
        all.push(packed(t, 1, Some(("bias", bias)), op(2, 2, 64, Mask::Full, Source::Packed)));
    }
    for (t, batch) in [(140, 40), (250, 33)] {
        all.push(packed(t, batch, Some(("bias", bias)), op(4, 4, 64, Mask::Full, Source::Packed)));
    }
    for (size, left) in [(64, 1), (70, 0), (24, 3)] {
        let chunk = Mask::Chunk { size, left };
        all.push(packed(400, 1, Some(("bias", bias)), op(2, 2, 64, chunk, Source::Packed)));
    }
    all.push(packed(400, 1, None, op(2, 2, 128, Mask::Chunk { size: 48, left: 1 }, Source::Packed)));
    all.push(packed(70, 40, None, op(4, 4, 64, Mask::Full, Source::Packed)));
    all.push(packed(130, 40, None, op(4, 4, 64, Mask::Full, Source::Packed)));
    all.push(packed(130, 40, None, op(4, 1, 128, Mask::Causal, Source::Packed)));
    for heads in [(7, 1, 128), (4, 2, 64)] {
        all.push(cache(384, 0, 300, (512, 400), heads));
        all.push(cache(200, 57, 130, (256, 400), heads));
        all.push(cache(130, 1000, 130, (2048, 1130), heads));
        all.push(cache(128, 128, 128, (256, 300), heads));
    }

    for d in [64, 128] {
        for (t, mask) in [(390, Mask::Full), (700, Mask::Causal), (420, Mask::Chunk { size: 64, left: -1 })] {
            all.push(steep(packed(t, 1, None, op(2, 2, d, mask, Source::Packed)), 20.0));
            all.push(steep(packed(t, 1, Some(("bias", bias)), op(2, 2, d, mask, Source::Packed)), 20.0));
        }
        all.push(steep(packed(130, 40, None, op(4, 4, d, Mask::Full, Source::Packed)), 20.0));
        all.push(steep(cache(200, 57, 130, (256, 400), (4, 2, d)), 20.0));
    }

    biased(&mut all);
    of_lengths(&mut all);

    let lm = (28, 4, 128);
    for s in [128, 512, 1024, 2048, 4096, 8192, 16384] {
        all.push(cache(s, 0, s, (s, s), lm).bench());
    }
    all.push(cache(256, 1792, 256, (2048, 2048), lm).bench());
    let vit = || op(16, 16, 64, Mask::Full, Source::Packed);
    for tiles in [1, 4, 13] {
        all.push(packed(1025, tiles, None, vit()).bench());
    }
    for t in [249, 749] {
        all.push(packed(t, 1, Some(("bias", bias)), vit()).bench());
    }
    // Three sounds, and three long sequences, at once.
    all.push(lengths(&[749, 249, 125], Some(("bias", bias)), vit()).bench());
    all.push(lengths(&[1000, 2000, 4096], None, vit()).bench());
    all.push(lengths(&[1000, 2000, 4096], None, op(28, 4, 128, Mask::Causal, Source::Packed)).bench());
    // A bias for more keys than there are: a table that serves sequences of every length.
    for (t, keys, op) in [
        (3, 7, op(2, 2, 64, Mask::Full, Source::Packed)),
        (131, 190, op(3, 3, 64, Mask::Full, Source::Packed)),
        (150, 151, op(2, 2, 128, Mask::Chunk { size: 40, left: 1 }, Source::Packed)),
        (33, 64, op(2, 2, 40, Mask::Full, Source::Packed)),
    ] {
        all.push(bias_table(t, keys, bias, op));
    }
    all.extend([249, 749].map(|t| bias_table(t, 1024, bias, vit()).bench()));
    for kv in [512, 2048, 8192, 32768] {
        all.push(cache(1, kv - 1, 1, (kv, kv), lm).bench());
    }
    all.push(cache(4, 2044, 4, (2048, 2048), lm).bench());
    for (batch, kv) in [(8, 512), (16, 512), (8, 8192)] {
        all.push(caches(batch, (1, kv - 1, 1), (kv, kv), lm).bench());
    }
    all
}

/// Biases of odd lengths, whose rows begin anywhere: one and more tiles of keys, hidden keys, large ones.
fn biased(all: &mut Vec<Case<Attention>>) {
    let uniform = |centre, scale| Fill::Uniform { centre, scale };
    let bias = Some(("bias", uniform(0.0, 2.0)));
    let full = |heads, d| op(heads, heads, d, Mask::Full, Source::Packed);
    for (t, heads) in [
        (1, 1),
        (63, 3),
        (64, 1),
        (65, 3),
        (96, 3),
        (97, 1),
        (249, 1),
        (250, 3),
        (251, 1),
        (749, 3),
        (750, 1),
    ] {
        all.push(packed(t, 1, bias, full(heads, 64)));
    }
    for t in [1, 129, 251, 300] {
        all.push(packed(t, 1, bias, full(3, 128)));
    }
    // A bias that 16 bits round to the next whole number; biases that decide alone; one that all share, far off; hidden
    // keys (a quarter overflows to -inf) and none seen, over several tiles.
    for (tag, fill) in [
        ("bias100", uniform(100.0, 2.0)),
        ("bias1e4", uniform(0.0, 1e4)),
        ("bias-1e30", uniform(-1e30, 1e30)),
        ("bias1e38", uniform(1e38, 1e38)),
        ("shared", Fill::Bits((-1e30f32).to_bits())),
        ("some_keys", uniform(-2e38, 3e38)),
        ("no_key", Fill::Bits(f32::NEG_INFINITY.to_bits())),
    ] {
        all.push(packed(301, 1, Some((tag, fill)), full(3, 64)));
        let chunk = Mask::Chunk { size: 50, left: 1 };
        // Half a unit of 1e4 in f32 alone takes what f16 may err, where two keys share a row.
        if tag != "bias1e4" {
            all.push(packed(131, 2, Some((tag, fill)), full(3, 128)));
            // So many heads that on Hopper tiles have three consumers.
            all.push(packed(301, 3, Some((tag, fill)), full(10, 64)));
            all.push(packed(290, 3, Some((tag, fill)), op(10, 10, 64, chunk, Source::Packed)));
        }
        all.push(packed(390, 1, Some((tag, fill)), op(1, 1, 64, chunk, Source::Packed)));
    }
    for (t, batch) in [(63, 5), (129, 3), (251, 3)] {
        all.push(packed(t, batch, bias, full(3, 64)));
        all.push(packed(t, batch, bias, op(3, 3, 64, Mask::Chunk { size: 16, left: 2 }, Source::Packed)));
    }
    all.push(packed(257, 3, bias, full(9, 64)));
    all.push(packed(290, 3, bias, op(6, 6, 64, Mask::Chunk { size: 50, left: 1 }, Source::Packed)));
    all.push(bias_table(321, 333, uniform(0.0, 2.0), full(24, 64)));
    all.push(bias_table(749, 1023, uniform(0.0, 2.0), full(3, 64)));
    all.push(bias_table(249, 251, uniform(0.0, 2.0), op(3, 1, 64, Mask::Full, Source::Packed)));
}

/// Sequences of different lengths: around the edges of tiles of 64, 128 and 192 rows and of 64, 96 and 128 keys, single
/// rows, none, more than a launch takes.
fn of_lengths(all: &mut Vec<Case<Attention>>) {
    let bias = Some(("bias", Fill::Uniform { centre: 0.0, scale: 2.0 }));
    let packed = |heads: (usize, usize, usize), mask| op(heads.0, heads.1, heads.2, mask, Source::Packed);
    let chunk = |size, left| Mask::Chunk { size, left };
    let masks = [Mask::Full, Mask::Causal, chunk(50, 1), chunk(16, -1)];

    let short: &[usize] = &[1, 63, 64, 65, 190];
    let long: &[usize] = &[127, 400, 1, 129, 128, 0, 257];
    for mask in masks {
        for heads in [(2, 2, 64), (7, 1, 128)] {
            all.push(lengths(short, None, packed(heads, mask)));
            all.push(lengths(long, None, packed(heads, mask)));
        }
        all.push(lengths(&[31, 0, 1, 5], None, packed((2, 1, 40), mask)));
        // So many tiles that those of 192 rows are fewer rounds, of one and of several to a CTA.
        all.push(lengths(&[191, 192, 193, 500, 1, 95, 96, 97], None, packed((12, 12, 64), mask)));
        let several = [192, 191, 190, 150, 400, 140, 130, 129, 180, 185, 135];
        all.push(lengths(&several, None, packed((20, 5, 64), mask)));
        all.push(lengths(&[385, 1, 300, 290, 130], None, packed((20, 4, 128), mask)));
    }
    for mask in [Mask::Full, chunk(50, 1)] {
        for (heads, rows) in [
            ((3, 3, 64), &[64, 250, 63, 65, 1][..]),
            ((10, 10, 64), &[250, 63, 65, 1, 64]),
            ((7, 7, 64), &[191, 300, 193, 250, 192]),
            ((20, 20, 64), &[191, 300, 193, 250, 192]),
            ((3, 3, 128), &[127, 300, 131, 1, 64]),
            ((3, 1, 24), &[9, 1, 30]),
        ] {
            all.push(lengths(rows, bias, packed(heads, mask)));
        }
    }
    // So many that the portable kernel takes 128 rows at once.
    let many = [256, 384, 383, 255, 127, 380, 250, 128, 381];
    for (heads, bias) in
        [((16, 16, 64), None), ((16, 16, 64), bias), ((16, 4, 128), None), ((16, 16, 128), bias)]
    {
        all.push(lengths(&many, bias, packed(heads, Mask::Full)));
    }
    // Hidden keys, over a sequence of one tile of keys and of several.
    for (tag, fill) in [
        ("some_keys", Fill::Uniform { centre: -2e38, scale: 3e38 }),
        ("no_key", Fill::Bits(f32::NEG_INFINITY.to_bits())),
    ] {
        all.push(lengths(&[301, 40, 129], Some((tag, fill)), packed((3, 3, 64), Mask::Full)));
    }
    for mask in [Mask::Full, Mask::Causal] {
        let separate = |(h, g, d)| op(h, g, d, mask, Source::Separate);
        all.push(lengths(&[400, 65, 129], None, separate((2, 2, 64))));
        all.push(lengths(&[66, 1, 200], None, separate((4, 2, 128))));
        // More sequences than a launch takes; all alike, which is an equal batch.
        let many: Vec<usize> = (0..70).map(|n| 1 + n * 37 % 190).collect();
        all.push(lengths(&many, None, packed((4, 2, 64), mask)));
        all.push(lengths(&many, bias.filter(|_| mask == Mask::Full), packed((2, 2, 128), mask)));
        all.push(lengths(&[70, 70, 70], None, packed((2, 2, 64), mask)));
    }
}

/// As [`packed`], one sequence, with a bias for `keys` keys.
fn bias_table(t: usize, keys: usize, fill: Fill, op: Attention) -> Case<Attention> {
    let one = packed(t, 1, None, op);
    let op = Attention { bias: true, ..one.op.clone() };
    let heads = op.heads;
    Case { name: format!("{}_bias{keys}", one.name), op, ..one }.act_f32(&[heads, keys], fill)
}

/// (T, rows of p, heads, head dim).
const KEYS: [(usize, usize, usize, usize); 5] =
    [(1, 1, 2, 64), (17, 40, 2, 64), (65, 65, 3, 8), (3, 9, 1, 128), (33, 33, 2, 40)];

pub(super) fn key_bias() -> Vec<Case<KeyBias>> {
    let case = |(t, cap, heads, head_dim): (usize, usize, usize, usize)| {
        let op = KeyBias { heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() };
        let c = heads * head_dim;
        Case::new(format!("t{t}_h{heads}_d{head_dim}"), op)
            .act(&[t, c])
            .act(&[cap, c])
            .weight(&[c])
            .weight(&[c])
    };
    let mut all: Vec<_> = KEYS.map(case).into();
    all.extend([249, 749].map(|t| case((t, 1024, 16, 64)).bench()));
    all
}

pub(super) fn add_keys() -> Vec<Case<AddKeys>> {
    let case = |(t, cap, heads, head_dim): (usize, usize, usize, usize)| {
        let c = heads * head_dim;
        Case::new(format!("t{t}_c{c}"), AddKeys).act(&[t, 3 * c]).act(&[cap, c])
    };
    let mut all: Vec<_> = KEYS.map(case).into();
    all.extend([249, 749].map(|t| case((t, 1024, 16, 64)).bench()));
    all
}

pub(super) fn sin_table() -> Vec<Case<SinTable>> {
    let case =
        |rows, width| Case::new(format!("t{rows}_c{width}"), SinTable { rows, width, dtype: DType::BF16 });
    vec![case(1, 2), case(17, 64), case(749, 1024), case(3, 1030)]
}
