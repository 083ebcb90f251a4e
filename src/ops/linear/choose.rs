//! Which kernel multiplies, and how. Pure functions of shape and chip.

use super::wgmma;

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
    /// Rows of w are 8 gates and 8 ups in turns.
    pub gated: bool,
}

/// What the choice depends on besides the shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Chip {
    pub sm_count: usize,
    /// Compute capability, 90 for Hopper.
    pub arch: u32,
    /// What split-K may use.
    pub scratch_bytes: usize,
    pub counters: usize,
    pub wanted: Option<Wanted>,
    pub few_rows: Option<FewRows>,
}

/// What may be asked for instead of the choice made here, to test and to compare: `mma`, or tile and parts of K of the
/// wgmma kernel, such as `128x256/1`; with teams `1x192x192/1`, `2x128x128/1`, `cx128x128/4`, or `teams` for the plan
/// that its estimate prefers; with operands shared `t128x80_4x2/1`; `encoders` for [`wgmma::of_encoders`]. It holds for the products that have a choice
/// between the two kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    Mma,
    Teams,
    Encoders,
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
        match text {
            "mma" => return Some(Wanted::Mma),
            "teams" => return Some(Wanted::Teams),
            "encoders" => return Some(Wanted::Encoders),
            _ => {}
        }
        let (tile, splits) = text.split_once('/')?;
        if let Some(grid) = wgmma::WgmmaTile::GRIDS.iter().find(|t| t.grid_name() == tile) {
            return (splits == "1").then_some(Wanted::Wgmma(wgmma::Plan { tile: *grid, splits: 1 }));
        }
        let (shared, tile) = match tile.split_at_checked(1)? {
            ("w", rest) => (wgmma::Shared::W, rest),
            ("x", rest) => (wgmma::Shared::X, rest),
            _ => (wgmma::Shared::Nothing, tile),
        };
        let (team, tile) = match tile.split_at_checked(2)? {
            ("1x", rest) => (wgmma::Team::One, rest),
            ("2x", rest) => (wgmma::Team::Two, rest),
            ("cx", rest) => (wgmma::Team::Cluster, rest),
            _ => (wgmma::Team::Plain, tile),
        };
        let (bm, bn) = tile.split_once('x')?;
        let (bm, bn) = (bm.parse().ok()?, bn.parse().ok()?);
        let files: [&[wgmma::WgmmaTile]; 4] = [
            &wgmma::WgmmaTile::ALL,
            &wgmma::WgmmaTile::TEAMS,
            &wgmma::WgmmaTile::SLIM,
            &wgmma::WgmmaTile::PAIRS,
        ];
        let tile = *files
            .into_iter()
            .flatten()
            .find(|t| (t.shared, t.team, t.bm, t.bn) == (shared, team, bm, bn))?;
        let splits = splits.parse().ok().filter(|&s| s >= 1)?;
        Some(Wanted::Wgmma(wgmma::Plan { tile, splits }))
    }
}

/// A kernel of the family and its one free parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Config {
    /// `gemm/naive.cu`: any alignment.
    Naive,
    /// `gemm/gemv.cu`, M = 1.
    Gemv(Gemv),
    /// `gemm/gemv.cu`, M = 2..=16.
    Skinny(FewRows),
    /// `gemm/mma.cu`: tile and number of CTAs that share the K of a tile.
    Mma { tile: MmaTile, splits: usize },
    /// `gemm/wgmma.cu` or `gemm/wgmma_teams.cu`, sm_90a: TMA and wgmma.
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

/// Instances of the kernel for 2 to 16 rows in `gemm/gemv.cu`; `VIVACE_GEMV` asks for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FewRows {
    /// Weights are asked for a batch at a time.
    Batches,
    /// A block of weights is asked for when the one in its registers is used.
    Refill,
}

impl FewRows {
    pub fn parse(text: &str) -> Option<FewRows> {
        match text {
            "batches" => Some(FewRows::Batches),
            "refill" => Some(FewRows::Refill),
            _ => None,
        }
    }

    /// Part of a kernel symbol, for `rows` rows.
    pub fn variant(self, rows: usize) -> &'static str {
        match (self, rows) {
            (FewRows::Batches, ..=8) => "_m8",
            (FewRows::Batches, _) => "_m16",
            (FewRows::Refill, ..=8) => "_m8_refill",
            (FewRows::Refill, _) => "_m16_refill",
        }
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
    match p.m {
        _ if !p.aligned => Config::Naive,
        1 if p.dense => Config::Gemv(Gemv::choose(p.k)),
        2..=16 if p.dense && !(chip.arch == 90 && wanted_grid(chip.wanted, p)) => Config::Skinny(chip.few_rows.unwrap_or(FewRows::Batches)),
        // An image for 90a runs on 9.0 and on nothing newer.
        _ if p.dense && chip.arch == 90 => match chip.wanted {
            Some(Wanted::Mma) => mma(p, chip),
            Some(Wanted::Wgmma(plan))
                if plan.tile.takes(p.gated)
                    && plan.fits([p.m, p.n, p.k], chip.scratch_bytes, chip.counters) =>
            {
                Config::Wgmma(plan)
            }
            wanted => {
                let shape = [p.m, p.n, p.k];
                let known = match wanted {
                    Some(Wanted::Encoders) => wgmma::of_encoders(shape),
                    None => wgmma::measured(shape),
                    _ => None,
                };
                if let Some(plan) = known.filter(|plan| plan.fits(shape, chip.scratch_bytes, chip.counters)) {
                    return Config::Wgmma(plan);
                }
                let tiles: &[_] = match wanted == Some(Wanted::Teams) || teams_ahead(p.m, p.n, p.k) {
                    true => &wgmma::WgmmaTile::TEAMS,
                    false => &wgmma::WgmmaTile::ALL,
                };
                let Chip { sm_count, scratch_bytes, counters, .. } = *chip;
                Config::Wgmma(wgmma::choose(tiles, shape, sm_count, scratch_bytes, counters))
            }
        },
        _ => mma(p, chip),
    }
}

/// Whether a tile of `gemm/wgmma_multicast.cu` is asked for, which also takes few rows.
fn wanted_grid(wanted: Option<Wanted>, p: &Problem) -> bool {
    matches!(wanted, Some(Wanted::Wgmma(plan))
        if matches!(plan.tile.team, wgmma::Team::Grid(_)) && plan.tile.takes(p.gated))
}

/// Where `gemm/wgmma_teams.cu` was measured ahead at every shape that was tried: many rows and few steps of K, so that
/// epilogues count; and at N = 1024, K = 4096 with 1025 rows (26.0 against 32.5 us) and with 13325 (166 against 203),
/// though not with 4100 (64.4 against 54.1) (`gemm/LADDER.md`). Elsewhere its estimate has to be fitted first.
fn teams_ahead(m: usize, n: usize, k: usize) -> bool {
    let narrow_and_deep = n <= 1024 && k <= 4096 && (m <= 1152 || m >= 8192);
    m >= 1025 && (k <= 1024 || narrow_and_deep)
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
    let smem_per_sm = match chip.arch {
        90.. => 228 << 10,
        80 | 87 => 164 << 10,
        _ => 100 << 10,
    };
    let resident = tile.ctas.min(smem_per_sm / (tile.smem_bytes + 1024)).max(1);
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
        scratch_bytes: 64 << 20,
        counters: 64 << 10,
        wanted: None,
        few_rows: None,
    };

    /// A chip whose large products are for `gemm/mma.cu`.
    const B200: Chip = Chip { arch: 100, ..H200 };

    fn dense(m: usize, n: usize, k: usize) -> Problem {
        Problem { m, n, k, dense: true, aligned: k.is_multiple_of(8), gated: false }
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
            assert_eq!(choose(&dense(m, 515, 896), &H200), Config::Skinny(FewRows::Batches));
            let refilled = Chip { few_rows: FewRows::parse("refill"), ..H200 };
            assert_eq!(choose(&dense(m, 515, 896), &refilled), Config::Skinny(FewRows::Refill));
        }
        let variants = |few: FewRows| [2, 8, 9, 16].map(|m| few.variant(m));
        assert_eq!(variants(FewRows::Batches), ["_m8", "_m8", "_m16", "_m16"]);
        assert_eq!(variants(FewRows::Refill), ["_m8_refill", "_m8_refill", "_m16_refill", "_m16_refill"]);
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
        assert_eq!(choose(&dense(16, 512, 1024), &mma), Config::Skinny(FewRows::Batches));
        for bad in [
            "",
            "wgmma",
            "128x256",
            "128x256/0",
            "128x250/1",
            "128x256/1/1",
            "0x128x256/1",
            "3x128x128/1",
            "x/1",
        ] {
            assert_eq!(Wanted::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn wanted_teams_are_taken_where_they_fit() {
        let teams = |text| Chip { wanted: Some(Wanted::parse(text).unwrap()), ..H200 };
        let taken = |text, m| match choose(&dense(m, 512, 1024), &teams(text)) {
            Config::Wgmma(plan) => (plan.tile.team, plan.tile.bm, plan.tile.bn, plan.splits),
            other => panic!("{other:?}"),
        };
        assert_eq!(taken("1x192x192/2", 300), (wgmma::Team::One, 192, 192, 2));
        assert_eq!(taken("2x128x128/1", 300), (wgmma::Team::Two, 128, 128, 1));
        assert_eq!(taken("cx128x128/4", 300), (wgmma::Team::Cluster, 128, 128, 4));
        // Unasked where they were measured ahead.
        for (m, n, k, ahead) in [
            (1025, 4096, 1024, true),
            (13325, 4096, 1024, true),
            (1024, 4096, 1024, false),
            (1025, 1024, 4096, true),
            (4100, 1024, 4096, false),
            (13325, 1024, 4096, true),
            (1025, 3584, 4096, false),
            (2048, 3584, 18944, false),
        ] {
            let Config::Wgmma(plan) = choose(&dense(m, n, k), &H200) else { panic!("{m} {n} {k}") };
            assert_eq!(plan.tile.team != wgmma::Team::Plain, ahead, "{m} {n} {k}");
        }
        // Pairs only where they are asked for.
        let pair = |text| match choose(&dense(300, 512, 1024), &teams(text)) {
            Config::Wgmma(plan) => (plan.tile.shared, plan.tile.team, plan.splits),
            other => panic!("{other:?}"),
        };
        assert_eq!(pair("w1x128x256/2"), (wgmma::Shared::W, wgmma::Team::One, 2));
        assert_eq!(pair("x2x128x128/1"), (wgmma::Shared::X, wgmma::Team::Two, 1));
        assert_eq!(pair("teams").0, wgmma::Shared::Nothing);
        assert_eq!(pair("cx128x96/2"), (wgmma::Shared::Nothing, wgmma::Team::Cluster, 2));
        // Clusters that share operands, which also take few rows; of gates and ups only whole groups.
        let grid = |text, p| choose(&p, &teams(text));
        let wide = |m| dense(m, 512, 1024);
        for m in [8, 300] {
            let Config::Wgmma(plan) = grid("t64x16_4x1/1", wide(m)) else { panic!("{m}") };
            assert_eq!((plan.tile.grid_name().as_str(), plan.splits), ("t64x16_4x1", 1));
        }
        assert_eq!(Wanted::parse("t64x16_4x1/2"), None);
        let Config::Wgmma(plan) = grid("d64x72_2x1/1", wide(300)) else { panic!("not on wgmma") };
        assert_eq!(plan.tile.grid_name(), "d64x72_2x1");
        let Config::Wgmma(plan) = grid("d64x72_2x1/1", Problem { gated: true, ..wide(300) }) else { panic!() };
        assert_ne!(plan.tile.grid_name(), "d64x72_2x1");
        // By shape, beside a plan for all others.
        let wishes = Wishes::parse("300x512x1024=cx64x128/4,1x64x96/1").unwrap();
        let by_shape =
            |m| match choose(&dense(m, 512, 1024), &Chip { wanted: wishes.of([m, 512, 1024]), ..H200 }) {
                Config::Wgmma(plan) => (plan.tile.team, plan.tile.bm, plan.tile.bn, plan.splits),
                other => panic!("{other:?}"),
            };
        assert_eq!(by_shape(300), (wgmma::Team::Cluster, 64, 128, 4));
        assert_eq!(by_shape(301), (wgmma::Team::One, 64, 96, 1));
        assert_eq!(Wishes::parse("300x512x1024=mma").unwrap().of([1, 1, 1]), None);
        for bad in
            ["", "mma,teams", "300x512=mma", "300x512x1024=", "300x512x1024x1=mma", "axbxc=mma", "mma,"]
        {
            assert_eq!(Wishes::parse(bad), None, "{bad}");
        }
        // Teams that take turns do not split K; a cluster is two to eight CTAs.
        for none in ["2x128x128/2", "cx128x128/1", "cx128x128/9"] {
            assert_eq!(taken(none, 300).0, wgmma::Team::Plain, "{none}");
        }
        assert_ne!(taken("teams", 300).0, wgmma::Team::Plain);
        assert_eq!(choose(&dense(16, 512, 1024), &teams("teams")), Config::Skinny(FewRows::Batches));
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
                    for chip in [B200, small, Chip { arch: 80, sm_count: 108, ..H200 }] {
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
