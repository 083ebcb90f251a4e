//! Which kernel multiplies, and how. Pure functions of shape and chip.

use super::wgmma;

/// What the rows of w are, and so what a kernel does with its sums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Plain,
    /// 8 gates and 8 ups in turns.
    Gated,
    /// q, k and v by heads, in pairs: they are turned, and go to y and the cache.
    Turned,
    /// A norm's gain is in them: the factors of rows of x come in the end.
    BehindNorm,
    /// As `Gated`, behind an RmsNorm that has been begun.
    GatedBehindRms,
    /// As `Turned`, likewise.
    TurnedBehindRms,
}

impl End {
    /// Whether the factors of rows of x come in the end.
    pub fn is_behind(self) -> bool {
        matches!(self, End::BehindNorm | End::GatedBehindRms | End::TurnedBehindRms)
    }
}

/// One product `[M, K] · [N, K]ᵀ`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Problem {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Rows of A are a dense matrix, not windows of an image or overlapping rows.
    pub dense: bool,
    /// Every run of 8 elements of A and w is 16-byte aligned.
    pub aligned: bool,
    pub end: End,
    /// Rows of y are whole vectors of 8 elements of 16 bits.
    pub vectors: bool,
}

/// What the choice depends on besides the shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Chip {
    pub sm_count: usize,
    /// Whose kernels run: 90 for Hopper.
    pub arch: u32,
    /// Shared memory of one SM, in bytes.
    pub smem_per_sm: usize,
    /// What split-K may use.
    pub scratch_bytes: usize,
    pub counters: usize,
    pub wanted: Option<Wanted>,
}

/// What may be asked for instead of the choice made here, to test and to compare: `mma`, or a tile of the kernels on wgmma
/// and the parts of K, such as `128x256/1`, `t128x80_4x2/1` and `d64x96_2x4/1` in clusters that share operands, or
/// `d128x64_1x4x2/1` in one that also shares K, and `pt128x136_2x1/1` of ping-pong tiles. It holds for the products that
/// have a choice between these kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    Mma,
    Wgmma(wgmma::Plan),
}

/// What `VIVACE_GEMM` says, separated by commas: `MxNxK=WANTED` for one shape, `WANTED` for all others.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Wishes {
    shapes: Vec<([usize; 3], Wanted)>,
    others: Option<Wanted>,
}

impl Wishes {
    pub fn parse(text: &str) -> Option<Wishes> {
        let mut wishes = Wishes::default();
        for item in text.split(',') {
            match item.split_once('=') {
                Some((shape, wanted)) => {
                    let sizes: Vec<usize> =
                        shape.split('x').map(|n| n.parse().ok()).collect::<Option<_>>()?;
                    wishes.shapes.push((sizes.try_into().ok()?, Wanted::parse(wanted)?));
                }
                None if wishes.others.is_none() => wishes.others = Some(Wanted::parse(item)?),
                None => return None,
            }
        }
        Some(wishes)
    }

    /// What holds for a product of that shape.
    pub fn of(&self, shape: [usize; 3]) -> Option<Wanted> {
        self.shapes.iter().find(|(s, _)| *s == shape).map(|(_, wanted)| *wanted).or(self.others)
    }
}

impl Wanted {
    pub fn parse(text: &str) -> Option<Wanted> {
        if text == "mma" {
            return Some(Wanted::Mma);
        }
        let (tile, splits) = text.split_once('/')?;
        let splits = splits.parse().ok().filter(|&s| s >= 1)?;
        Some(Wanted::Wgmma(wgmma::Plan { tile: wgmma::named(tile)?, splits }))
    }
}

/// A kernel of the family and its one free parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Config {
    /// `gemm/naive.cu`: any alignment.
    Naive,
    /// `gemm/gemv.cu`, M = 1.
    Gemv(Gemv),
    /// `gemm/skinny.cu`, M = 2..=16.
    Skinny(Skinny),
    /// `gemm/mma.cu`: tile and number of CTAs that share the K of a tile.
    Mma { tile: MmaTile, splits: usize },
    /// `gemm/wgmma.cu` or `gemm/wgmma_multicast.cu`, sm_90a: TMA and wgmma.
    Wgmma(wgmma::Plan),
}

/// Instances of the kernel for one row in `gemm/gemv.cu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gemv {
    /// Part of a kernel symbol: warps that share the K of a row.
    pub variant: &'static str,
    /// Weight rows of a CTA.
    pub rows: usize,
}

impl Gemv {
    /// Any K, in batches of 2048.
    const TWO: Gemv = Gemv { variant: "_2", rows: 8 };
    /// 7 warps with 512 elements of 4 rows each.
    const SEVEN: Gemv = Gemv { variant: "_7", rows: 4 };
    /// 16 warps with at most 1280 elements of 2 rows each.
    const SIXTEEN: Gemv = Gemv { variant: "_16", rows: 2 };

    /// All of K in flight at once where an instance can. Microseconds at K = 3584 and 18944 in `gemm/LADDER.md`.
    pub fn choose(k: usize) -> Gemv {
        match k {
            3584 => Gemv::SEVEN,
            2049..=20480 => Gemv::SIXTEEN,
            _ => Gemv::TWO,
        }
    }
}

/// How `gemm/skinny.cu` multiplies 2 to 16 rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Skinny {
    /// Part of a kernel symbol.
    pub variant: &'static str,
    /// CTAs that sweep over the rows of w, for each part of K.
    pub ctas: usize,
    pub parts: usize,
    /// Chunks of 8 elements of K in a part.
    pub part_chunks: usize,
}

impl Skinny {
    /// What a CTA holds of a row of x.
    pub const MOST_K: usize = super::FEW_ROWS_K;
    /// Rows of w that it multiplies at a time.
    pub const UNIT: usize = 16;

    pub fn choose([m, n, k]: [usize; 3], sm_count: usize) -> Skinny {
        let chunks = (k / 8).max(1);
        let parts = k.div_ceil(Self::MOST_K).max(1);
        // Whole runs of 32 elements.
        let part_chunks = chunks.div_ceil(parts).next_multiple_of(4);
        let parts = chunks.div_ceil(part_chunks);
        let ctas = (sm_count / parts).clamp(1, n.div_ceil(Self::UNIT).max(1));
        Skinny { variant: if m <= 8 { "_m8" } else { "_m16" }, ctas, parts, part_chunks }
    }

    /// Words in which CTAs claim units.
    pub fn claims(&self) -> usize {
        2 * self.parts
    }

    /// The claims, and with parts of K one for each unit.
    pub fn counters(&self, n: usize) -> usize {
        self.claims() + if self.parts > 1 { n.div_ceil(Self::UNIT) } else { 0 }
    }

    /// Sums of all units for 8 or 16 rows of x, times the parts.
    pub fn partial_bytes(&self, n: usize) -> usize {
        let tokens = if self.variant == "_m8" { 8 } else { 16 };
        if self.parts > 1 { n.div_ceil(Self::UNIT) * self.parts * Self::UNIT * tokens * 4 } else { 0 }
    }

    fn fits(&self, n: usize, chip: &Chip) -> bool {
        self.partial_bytes(n) <= chip.scratch_bytes && self.counters(n) <= chip.counters
    }
}

/// Tiles of `gemm/mma.cu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MmaTile {
    pub bm: usize,
    pub bn: usize,
    /// Part of a kernel symbol.
    pub name: &'static str,
    /// Dynamic shared memory.
    pub smem_bytes: usize,
    /// Resident CTAs per SM that the registers allow.
    ctas: usize,
    /// Share of the rate of the best tile: smaller tiles read more shared memory per product.
    rate_percent: u32,
}

impl MmaTile {
    pub const BK: usize = 64;
    pub const ALL: [MmaTile; 4] = [
        MmaTile { bm: 128, bn: 128, name: "128x128", smem_bytes: 98304, ctas: 2, rate_percent: 100 },
        MmaTile { bm: 128, bn: 64, name: "128x64", smem_bytes: 98304, ctas: 2, rate_percent: 85 },
        MmaTile { bm: 64, bn: 128, name: "64x128", smem_bytes: 98304, ctas: 2, rate_percent: 85 },
        MmaTile { bm: 64, bn: 64, name: "64x64", smem_bytes: 65536, ctas: 3, rate_percent: 75 },
    ];

    pub fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.bm) * n.div_ceil(self.bn)
    }

    /// Bytes of f32 partial sums.
    pub fn partial_bytes(&self, m: usize, n: usize, splits: usize) -> usize {
        if splits > 1 { 4 * self.tiles(m, n) * splits * self.bm * self.bn } else { 0 }
    }
}

pub(crate) fn choose(p: &Problem, chip: &Chip) -> Config {
    let shape = [p.m, p.n, p.k];
    let bounds = wgmma::Bounds {
        sm_count: chip.sm_count,
        scratch_bytes: chip.scratch_bytes,
        counters: chip.counters,
        end: p.end,
        vectors: p.vectors,
    };
    // An image for 90a runs on 9.0 and on nothing newer.
    let on_wgmma = p.dense && chip.arch == 90;
    let asked = match chip.wanted {
        Some(Wanted::Wgmma(plan)) if on_wgmma && bounds.allow(&plan, shape) => Some(plan),
        _ => None,
    };
    let skinny = Skinny::choose(shape, chip.sm_count);
    match (p.m, asked) {
        _ if !p.aligned => Config::Naive,
        (_, Some(plan)) if p.end.is_behind() => Config::Wgmma(plan),
        _ if p.end.is_behind() => match chip.wanted {
            Some(Wanted::Mma) => mma(p, chip),
            // Where K is shared it has two steps at least.
            _ if on_wgmma && p.vectors => match wgmma::choose(shape, &bounds) {
                plan if bounds.allow(&plan, shape) => Config::Wgmma(plan),
                _ => mma(p, chip),
            },
            _ => mma(p, chip),
        },
        (1, _) if p.dense => Config::Gemv(Gemv::choose(p.k)),
        // Of few rows only what is made for them; from 9 on skinny has two blocks of rows, and tiles of 64 can be ahead.
        (9..=16, Some(plan)) => Config::Wgmma(plan),
        (2..=16, Some(plan)) if plan.tile.bm <= 16 => Config::Wgmma(plan),
        (2..=16, _) if p.dense => match wgmma::measured(shape).filter(|plan| bounds.allow(plan, shape)) {
            Some(plan) if on_wgmma => Config::Wgmma(plan),
            _ if skinny.fits(p.n, chip) => Config::Skinny(skinny),
            _ => mma(p, chip),
        },
        (_, Some(plan)) => Config::Wgmma(plan),
        _ if on_wgmma && chip.wanted != Some(Wanted::Mma) => Config::Wgmma(wgmma::choose(shape, &bounds)),
        _ => mma(p, chip),
    }
}

/// The tile and split with the least estimated time.
fn mma(p: &Problem, chip: &Chip) -> Config {
    let steps = p.k.div_ceil(MmaTile::BK).max(1);
    let mut best = (f64::INFINITY, Config::Naive);
    for tile in MmaTile::ALL {
        for splits in 1..=steps.min(32) {
            let fits = tile.partial_bytes(p.m, p.n, splits) <= chip.scratch_bytes
                && tile.tiles(p.m, p.n) <= chip.counters;
            if splits > 1 && !fits {
                break;
            }
            let clocks = estimate(p, chip, &tile, splits);
            if clocks < best.0 {
                best = (clocks, Config::Mma { tile, splits });
            }
        }
    }
    best.1
}

/// Clocks of one launch, to rank configurations: tensor cores or memory, latency of the rounds, joining of splits.
fn estimate(p: &Problem, chip: &Chip, tile: &MmaTile, splits: usize) -> f64 {
    // Per SM and clock: products of mma.sync, bytes of HBM, bytes one CTA draws from the L2 when it joins.
    const FLOPS: f64 = 2500.0;
    const HBM_BYTES: f64 = 19.0;
    const JOIN_BYTES: f64 = 48.0;
    // Shortest time of a k step of one CTA; launch, first loads and epilogue of a round.
    const STEP: f64 = 330.0;
    const ROUND: f64 = 2500.0;
    let resident = tile.ctas.min(chip.smem_per_sm / (tile.smem_bytes + 1024)).max(1);
    let steps = p.k.div_ceil(MmaTile::BK).div_ceil(splits) as f64;
    let per_sm = (tile.tiles(p.m, p.n) * splits).div_ceil(chip.sm_count);
    let rounds = per_sm.div_ceil(resident) as f64;
    let products =
        (2 * tile.bm * tile.bn * MmaTile::BK) as f64 * steps / (FLOPS * f64::from(tile.rate_percent) / 100.0);
    let operands = 2 * (p.n * p.k + p.m * p.k + p.m * p.n);
    // Partials are written and read once.
    let partials = 2 * tile.partial_bytes(p.m, p.n, splits);
    let per_clock = HBM_BYTES * chip.sm_count as f64;
    let (memory, partials) = (operands as f64 / per_clock, partials as f64 / per_clock);
    let join =
        if splits > 1 { 1500.0 + (4 * tile.bm * tile.bn * (splits + 1)) as f64 / JOIN_BYTES } else { 0.0 };
    (per_sm as f64 * products).max(rounds * steps * STEP).max(memory) + partials + rounds * ROUND + join
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Chip = Chip {
        sm_count: 132,
        arch: 90,
        smem_per_sm: 228 << 10,
        scratch_bytes: 64 << 20,
        counters: 64 << 10,
        wanted: None,
    };

    /// A chip whose large products are for `gemm/mma.cu`.
    const B200: Chip = Chip { arch: 80, ..H200 };

    fn dense(m: usize, n: usize, k: usize) -> Problem {
        Problem {
            m,
            n,
            k,
            dense: true,
            aligned: k.is_multiple_of(8),
            end: End::Plain,
            vectors: n.is_multiple_of(8),
        }
    }

    fn is_skinny(config: Config) -> bool {
        matches!(config, Config::Skinny(_))
    }

    #[test]
    fn few_rows_share_out_rows_of_w_and_a_long_k() {
        let of = |shape| {
            let Skinny { variant, ctas, parts, part_chunks } = Skinny::choose(shape, 132);
            (variant, ctas, parts, part_chunks)
        };
        assert_eq!(of([2, 37888, 3584]), ("_m8", 132, 1, 448));
        assert_eq!(of([8, 515, 896]), ("_m8", 33, 1, 112));
        assert_eq!(of([9, 16, 8]), ("_m16", 1, 1, 4));
        assert_eq!(of([16, 3584, 18944]), ("_m16", 22, 6, 396));
        for m in [2, 9] {
            for k in (8..30000).step_by(8) {
                let s = Skinny::choose([m, 3584, k], 132);
                assert!(s.part_chunks <= Skinny::MOST_K / 8 && s.ctas * s.parts <= 132, "{k}: {s:?}");
                // None is empty, none is missing.
                assert!(
                    (s.parts - 1) * s.part_chunks < k / 8 && s.parts * s.part_chunks >= k / 8,
                    "{k}: {s:?}"
                );
            }
        }
        // Six parts of 224 units of 16 x 8 sums.
        assert_eq!(Skinny::choose([8, 3584, 18944], 132).partial_bytes(3584), 6 * 224 * 512);
        let small = Chip { scratch_bytes: 6 * 224 * 512 - 1, arch: 80, ..H200 };
        assert!(matches!(choose(&dense(8, 3584, 18944), &small), Config::Mma { .. }));
        let small = Chip { counters: 235, arch: 80, ..H200 };
        assert!(matches!(choose(&dense(8, 3584, 18944), &small), Config::Mma { .. }));
    }

    #[test]
    fn few_rows_go_to_the_bandwidth_kernels() {
        for (k, variant) in
            [(8, "_2"), (2048, "_2"), (3584, "_7"), (3592, "_16"), (18944, "_16"), (20488, "_2")]
        {
            match choose(&dense(1, 4608, k), &H200) {
                Config::Gemv(gemv) => assert_eq!(gemv.variant, variant, "{k}"),
                other => panic!("{k}: {other:?}"),
            }
        }
        for m in 2..=16 {
            assert!(is_skinny(choose(&dense(m, 515, 896), &H200)));
        }
        let rows = Problem { dense: false, ..dense(1, 256, 640) };
        assert!(matches!(choose(&rows, &H200), Config::Mma { .. }));
    }

    #[test]
    fn unaligned_rows_go_to_the_naive_kernel() {
        for m in [1, 5, 100] {
            assert_eq!(choose(&dense(m, 64, 27), &H200), Config::Naive);
        }
    }

    #[test]
    fn hopper_takes_wgmma_for_dense_rows_beyond_sixteen() {
        assert!(matches!(choose(&dense(17, 515, 896), &H200), Config::Wgmma(_)));
        assert!(matches!(choose(&dense(17, 515, 896), &B200), Config::Mma { .. }));
        let windows = Problem { dense: false, ..dense(1025, 1024, 9216) };
        assert!(matches!(choose(&windows, &H200), Config::Mma { .. }));
    }

    #[test]
    fn a_wanted_plan_is_taken_where_it_fits() {
        let wanted = Wanted::parse("64x128/3").unwrap();
        let Wanted::Wgmma(plan) = wanted else { panic!("{wanted:?}") };
        assert_eq!((plan.tile.bm, plan.tile.bn, plan.splits), (64, 128, 3));
        let chip = Chip { wanted: Some(wanted), ..H200 };
        assert_eq!(choose(&dense(300, 512, 1024), &chip), Config::Wgmma(plan));
        // Three parts of two steps, and more partial sums than there is room for.
        assert_ne!(choose(&dense(300, 512, 128), &chip), Config::Wgmma(plan));
        assert_ne!(choose(&dense(9000, 4096, 1024), &chip), Config::Wgmma(plan));
        let mma = Chip { wanted: Wanted::parse("mma"), ..H200 };
        assert!(matches!(choose(&dense(300, 512, 1024), &mma), Config::Mma { .. }));
        assert!(is_skinny(choose(&dense(16, 512, 1024), &mma)));
        for bad in [
            "",
            "wgmma",
            "128x256",
            "128x256/0",
            "128x250/1",
            "128x256/1/1",
            "t128x80/1",
            "1x128x128/1",
            "x/1",
        ] {
            assert_eq!(Wanted::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn clusters_are_taken_where_they_fit() {
        let wants = |text| Chip { wanted: Some(Wanted::parse(text).unwrap()), ..H200 };
        let taken = |text, p: Problem| match choose(&p, &wants(text)) {
            Config::Wgmma(plan) => (plan.tile.name(), plan.splits),
            other => panic!("{text}: {other:?}"),
        };
        let wide = |m| dense(m, 512, 1024);
        for (text, name, splits) in [
            ("d128x64_1x4x2/1", "d128x64_1x4x2", 1),
            ("t128x80_4x2/1", "t128x80_4x2", 1),
            ("pt128x136_2x1/1", "pt128x136_2x1", 1),
            ("d64x144_2x1/3", "d64x144_2x1", 3),
        ] {
            assert_eq!(taken(text, wide(300)), (name.to_owned(), splits));
        }
        // What shares K does not split it besides, nor does a tile with two blocks of rows a warpgroup.
        for text in ["d128x64_1x4x2/2", "t256x96_2x1/2", "pt128x136_2x1/2"] {
            let own = choose(&wide(300), &H200);
            assert_eq!(choose(&wide(300), &wants(text)), own, "{text}");
        }
        // Of gates and ups whole groups, and rows of y in whole vectors of 16 bits.
        let odd = "d128x112_1x2/1";
        assert_eq!(taken(odd, Problem { end: End::Gated, ..wide(300) }).0, "d128x112_1x2");
        assert_ne!(taken(odd, Problem { vectors: false, ..wide(300) }).0, "d128x112_1x2");
        // Behind a norm that has been begun; a K of one step cannot be shared.
        let behind = |k| Problem { end: End::TurnedBehindRms, ..dense(64, 512, k) };
        assert!(
            matches!(choose(&behind(128), &H200), Config::Wgmma(plan) if plan.tile.name() == "d64x80_1x4x2")
        );
        assert!(matches!(choose(&behind(64), &H200), Config::Mma { .. }));
        assert!(matches!(choose(&behind(128), &B200), Config::Mma { .. }));
        // Few rows go to tiles for few rows alone.
        assert_eq!(taken("t64x16_4x1/1", wide(8)).0, "t64x16_4x1");
        for (text, p) in [("t64x64_4x2/1", wide(8)), ("t64x16_4x1/1", Problem { vectors: false, ..wide(8) })]
        {
            assert!(is_skinny(choose(&p, &wants(text))), "{text}");
        }
        // Unasked where they were measured ahead.
        let measured = |m, n, k| match choose(&dense(m, n, k), &H200) {
            Config::Wgmma(plan) => plan.tile.name(),
            other => panic!("{other:?}"),
        };
        assert_eq!(measured(1025, 1024, 4096), "t128x80_4x2");
        assert_eq!(measured(16, 3584, 3584), "t64x16_4x1");
        assert!(is_skinny(choose(&dense(8, 3584, 3584), &H200)));
        // Steps of 16 and of 8 sequences: gates and ups, and logits as f32, of the former on tiles of 64 rows.
        let gated = |m| choose(&Problem { end: End::Gated, ..dense(m, 37888, 3584) }, &H200);
        assert!(
            matches!(gated(16), Config::Wgmma(plan) if (plan.tile.name().as_str(), plan.splits) == ("d64x144_1x2", 1))
        );
        assert_eq!(gated(9), gated(16));
        assert!(is_skinny(gated(8)));
        let logits = |m| choose(&Problem { vectors: false, ..dense(m, 152_064, 3584) }, &H200);
        assert!(matches!(logits(16), Config::Wgmma(plan) if plan.tile.name() == "64x128"));
        assert!(is_skinny(logits(8)));
    }

    #[test]
    fn shapes_have_wishes_of_their_own() {
        let wishes = Wishes::parse("300x512x1024=64x128/4,64x96/1").unwrap();
        let by_shape =
            |m| match choose(&dense(m, 512, 1024), &Chip { wanted: wishes.of([m, 512, 1024]), ..H200 }) {
                Config::Wgmma(plan) => (plan.tile.name(), plan.splits),
                other => panic!("{other:?}"),
            };
        assert_eq!(by_shape(300), ("64x128".to_owned(), 4));
        assert_eq!(by_shape(301), ("64x96".to_owned(), 1));
        assert_eq!(Wishes::parse("300x512x1024=mma").unwrap().of([1, 1, 1]), None);
        for bad in
            ["", "mma,64x96/1", "300x512=mma", "300x512x1024=", "300x512x1024x1=mma", "axbxc=mma", "mma,"]
        {
            assert_eq!(Wishes::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn large_products_take_large_tiles_and_no_split() {
        for (m, n, k) in [(4096, 4096, 4096), (2048, 37888, 3584), (4096, 18944, 3584)] {
            match choose(&dense(m, n, k), &B200) {
                Config::Mma { tile, splits: 1 } => assert_eq!(tile.name, "128x128", "{m} {n} {k}"),
                other => panic!("{m} {n} {k}: {other:?}"),
            }
        }
    }

    #[test]
    fn few_tiles_split_k() {
        for (m, n, k) in [(17, 3584, 18944), (64, 1024, 4096), (249, 1024, 19456), (128, 1024, 4096)] {
            match choose(&dense(m, n, k), &B200) {
                Config::Mma { splits, .. } => assert!(splits > 1, "{m} {n} {k}"),
                other => panic!("{m} {n} {k}: {other:?}"),
            }
        }
    }

    #[test]
    fn splits_stay_within_steps_scratch_and_counters() {
        let small = Chip { scratch_bytes: 1 << 20, counters: 16, ..B200 };
        for m in [17, 63, 64, 65, 129, 1025] {
            for n in [8, 515, 2304] {
                for k in [8, 80, 592, 18944] {
                    for chip in
                        [B200, small, Chip { arch: 80, sm_count: 108, smem_per_sm: 164 << 10, ..H200 }]
                    {
                        let Config::Mma { tile, splits } = choose(&dense(m, n, k), &chip) else {
                            panic!("{m} {n} {k} is not for mma");
                        };
                        assert!((1..=k.div_ceil(64)).contains(&splits), "{m} {n} {k}: {splits}");
                        assert!(tile.partial_bytes(m, n, splits) <= chip.scratch_bytes);
                        assert!(splits == 1 || tile.tiles(m, n) <= chip.counters);
                    }
                }
            }
        }
    }
}
