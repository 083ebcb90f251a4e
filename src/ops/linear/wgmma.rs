//! `gemm/wgmma.cu`, `gemm/wgmma_teams.cu`, `gemm/wgmma_pairs.cu` and `gemm/wgmma_multicast.cu`, TMA and wgmma of sm_90a: which tile and split.

#[cfg(feature = "cuda")]
pub(crate) mod launch;
#[cfg(test)]
mod tests;

/// Who multiplies a tile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Team {
    /// All warpgroups of a CTA of `gemm/wgmma.cu`.
    Plain,
    /// The same in `gemm/wgmma_teams.cu`.
    One,
    /// One of two warpgroups, in turns.
    Two,
    /// A cluster of CTAs, each with a part of K.
    Cluster,
    /// All warpgroups of a CTA of `gemm/wgmma_multicast.cu`, in a cluster of CTAs that share operands.
    Grid(Grid),
}

/// Clusters of `gemm/wgmma_multicast.cu`. Of the two operands A is the one that warpgroups take 64 rows of at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Grid {
    /// A is w; else x is.
    pub turned: bool,
    /// CTAs along the rows of A, which share B, and along those of B.
    pub ca: usize,
    pub cb: usize,
}

/// What two CTAs on neighbouring tiles have in common (`gemm/wgmma_pairs.cu`): each loads half of it for both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shared {
    Nothing,
    /// Tiles below one another.
    W,
    /// Tiles side by side.
    X,
}

/// Tiles of the three files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WgmmaTile {
    pub team: Team,
    pub shared: Shared,
    pub bm: usize,
    pub bn: usize,
    /// Depth of the ring between copies and products. Part of the kernel symbol, so the two sides cannot disagree.
    pub stages: usize,
    /// Resident CTAs per SM.
    ctas: usize,
}

const fn tile(bm: usize, bn: usize, stages: usize) -> WgmmaTile {
    team_tile(Team::Plain, bm, bn, stages)
}

const fn team_tile(team: Team, bm: usize, bn: usize, stages: usize) -> WgmmaTile {
    let ctas = if bm * bn <= 64 * 128 { 2 } else { 1 };
    WgmmaTile { team, shared: Shared::Nothing, bm, bn, stages, ctas }
}

const fn slim_tile(team: Team, bm: usize, bn: usize, stages: usize) -> WgmmaTile {
    WgmmaTile { team, shared: Shared::Nothing, bm, bn, stages, ctas: 2 }
}

const fn pair_tile(shared: Shared, team: Team, bm: usize, bn: usize, stages: usize) -> WgmmaTile {
    WgmmaTile { team, shared, bm, bn, stages, ctas: 1 }
}

/// Rows of w and of x.
const fn turned(w: usize, x: usize, stages: usize, ca: usize, cb: usize) -> WgmmaTile {
    let team = Team::Grid(Grid { turned: true, ca, cb });
    WgmmaTile { team, shared: Shared::Nothing, bm: x, bn: w, stages, ctas: 1 }
}

/// Rows of x and of w.
const fn direct(x: usize, w: usize, stages: usize, ca: usize, cb: usize) -> WgmmaTile {
    let team = Team::Grid(Grid { turned: false, ca, cb });
    WgmmaTile { team, shared: Shared::Nothing, bm: x, bn: w, stages, ctas: 1 }
}

impl WgmmaTile {
    const BK: usize = 64;
    /// The EXPORT lines of `gemm/wgmma.cu`.
    pub const ALL: [WgmmaTile; 7] = [
        tile(128, 256, 4),
        tile(128, 224, 4),
        tile(128, 192, 5),
        tile(128, 144, 6),
        tile(128, 128, 6),
        tile(64, 256, 5),
        tile(64, 128, 4),
    ];
    /// The EXPORT lines of `gemm/wgmma_teams.cu`.
    pub const TEAMS: [WgmmaTile; 20] = [
        team_tile(Team::One, 192, 192, 4),
        team_tile(Team::One, 192, 144, 4),
        team_tile(Team::One, 192, 128, 4),
        team_tile(Team::One, 192, 96, 5),
        team_tile(Team::One, 128, 256, 4),
        team_tile(Team::One, 128, 224, 4),
        team_tile(Team::One, 128, 208, 4),
        team_tile(Team::One, 128, 192, 5),
        team_tile(Team::One, 128, 144, 6),
        team_tile(Team::One, 128, 128, 6),
        team_tile(Team::One, 64, 128, 4),
        team_tile(Team::One, 64, 96, 5),
        team_tile(Team::Two, 128, 128, 6),
        team_tile(Team::Two, 64, 256, 5),
        team_tile(Team::Cluster, 192, 128, 4),
        team_tile(Team::Cluster, 192, 96, 5),
        team_tile(Team::Cluster, 128, 256, 4),
        team_tile(Team::Cluster, 128, 144, 6),
        team_tile(Team::Cluster, 128, 128, 6),
        team_tile(Team::Cluster, 64, 128, 4),
    ];
    /// Those of the same file of which two fit on an SM though two warpgroups multiply: what one CTA leaves of an SM, the
    /// next kernel may take before this one ends. Not timed yet.
    pub const SLIM: [WgmmaTile; 2] = [slim_tile(Team::One, 128, 96, 3), slim_tile(Team::Cluster, 128, 96, 3)];
    /// The EXPORT lines of `gemm/wgmma_pairs.cu`.
    pub const PAIRS: [WgmmaTile; 10] = [
        pair_tile(Shared::W, Team::One, 128, 256, 4),
        pair_tile(Shared::W, Team::One, 128, 192, 5),
        pair_tile(Shared::W, Team::One, 128, 128, 6),
        pair_tile(Shared::W, Team::Two, 128, 128, 6),
        pair_tile(Shared::W, Team::One, 192, 192, 4),
        pair_tile(Shared::W, Team::One, 192, 96, 5),
        pair_tile(Shared::X, Team::One, 128, 256, 4),
        pair_tile(Shared::X, Team::One, 128, 128, 6),
        pair_tile(Shared::X, Team::Two, 128, 128, 6),
        pair_tile(Shared::X, Team::One, 192, 96, 5),
    ];
    /// The EXPORT lines of `gemm/wgmma_multicast.cu`.
    pub const GRIDS: [WgmmaTile; 28] = [
        turned(64, 8, 24, 4, 1),
        turned(64, 16, 21, 4, 1),
        turned(64, 32, 18, 4, 1),
        turned(64, 64, 13, 4, 2),
        turned(64, 96, 10, 2, 1),
        turned(128, 64, 8, 2, 4),
        turned(128, 80, 7, 4, 2),
        turned(128, 88, 7, 2, 4),
        turned(128, 128, 6, 2, 1),
        turned(192, 176, 4, 1, 2),
        turned(256, 96, 4, 2, 1),
        turned(256, 128, 4, 2, 1),
        turned(256, 128, 4, 1, 2),
        turned(256, 136, 4, 2, 1),
        turned(256, 152, 4, 1, 2),
        direct(64, 32, 17, 2, 1),
        direct(64, 48, 15, 2, 4),
        direct(64, 56, 14, 2, 1),
        direct(64, 64, 13, 2, 1),
        direct(64, 72, 12, 2, 1),
        direct(64, 96, 10, 2, 1),
        direct(64, 96, 10, 2, 4),
        direct(64, 112, 9, 2, 1),
        direct(64, 144, 8, 2, 1),
        direct(128, 80, 7, 2, 4),
        direct(128, 112, 6, 1, 2),
        direct(128, 144, 6, 2, 1),
        direct(192, 128, 4, 1, 2),
    ];
    /// CTAs per cluster that every chip takes.
    const MOST_CTAS_PER_CLUSTER: usize = 8;

    /// Dynamic shared memory: the ring, and what it takes to begin at a multiple of 1024.
    pub fn smem_bytes(&self) -> usize {
        self.stages * (self.bm + self.bn) * Self::BK * 2 + 1024
    }

    /// `_128x256x4` of `gemm_wgmma_128x256x4_bf16`, `_1x192x192x4` of `gemm_teams_1x192x192x4_bf16`, `_w1x128x256x4` of
    /// `gemm_pairs_w1x128x256x4_bf16`, `_t128x80x7_4x2` of `gemm_multicast_t128x80x7_4x2_bf16`.
    pub fn variant(&self) -> String {
        let [bm, bn] = [self.bm, self.bn];
        let shared = match self.shared {
            Shared::Nothing => "",
            Shared::W => "w",
            Shared::X => "x",
        };
        let (team, [a, b], cluster) = match self.team {
            Team::Plain => ("", [bm, bn], String::new()),
            Team::One => ("1x", [bm, bn], String::new()),
            Team::Two => ("2x", [bm, bn], String::new()),
            Team::Cluster => ("cluster_", [bm, bn], String::new()),
            Team::Grid(Grid { turned: true, ca, cb }) => ("t", [bn, bm], format!("_{ca}x{cb}")),
            Team::Grid(Grid { turned: false, ca, cb }) => ("d", [bm, bn], format!("_{ca}x{cb}")),
        };
        format!("_{shared}{team}{a}x{b}x{}{cluster}", self.stages)
    }

    /// Whether a tile has whole groups of gates and ups, where rows of w are those.
    pub fn takes(&self, gated: bool) -> bool {
        !gated || self.bn.is_multiple_of(16)
    }

    /// `t128x80_4x2`, as `VIVACE_GEMM` names a tile of `gemm/wgmma_multicast.cu`; empty for others.
    pub fn grid_name(&self) -> String {
        match self.team {
            Team::Grid(Grid { turned: true, ca, cb }) => format!("t{}x{}_{ca}x{cb}", self.bn, self.bm),
            Team::Grid(Grid { turned: false, ca, cb }) => format!("d{}x{}_{ca}x{cb}", self.bm, self.bn),
            _ => String::new(),
        }
    }

    /// Tiles of a pair, or of a cluster that shares operands, below one another, and side by side.
    fn paired(&self) -> (usize, usize) {
        match self.shared {
            Shared::Nothing => match self.team {
                Team::Grid(Grid { turned: true, ca, cb }) => (cb, ca),
                Team::Grid(Grid { turned: false, ca, cb }) => (ca, cb),
                _ => (1, 1),
            },
            Shared::W => (2, 1),
            Shared::X => (1, 2),
        }
    }

    /// Rows that one copy loads, of x and of w.
    fn boxes(&self) -> (usize, usize) {
        match self.shared {
            Shared::Nothing => (self.bm, self.bn),
            Shared::W => (self.bm, self.bn / 2),
            Shared::X => (self.bm / 2, self.bn),
        }
    }

    /// The EXPORT_WINDOWS lines of `gemm/wgmma_teams.cu`.
    fn takes_windows(&self) -> bool {
        self.team == Team::Cluster && matches!((self.bm, self.bn), (128, 128) | (64, 128))
    }

    /// Warpgroups that multiply one tile where K may be split, 64 rows each.
    fn consumers(&self) -> usize {
        self.bm / 64
    }
}

/// CTAs of clusters, one per SM, that are on the chip at once. A cluster lies within a GPC: of an H200's 132 SMs some GPCs
/// have 18, others 16.
fn resident_in_clusters(ctas: usize, sm_count: usize) -> usize {
    match ctas {
        1 => sm_count,
        2 => sm_count & !1,
        _ => sm_count / 16 * 16 / ctas * ctas,
    }
}

/// How one product is carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub tile: WgmmaTile,
    /// Parts of K.
    pub splits: usize,
}

impl Plan {
    /// Those of a pair count both, also where one lies outside.
    fn tiles(&self, m: usize, n: usize) -> usize {
        let (below, beside) = self.tile.paired();
        m.div_ceil(self.tile.bm * below) * below * n.div_ceil(self.tile.bn * beside) * beside
    }

    /// CTAs to launch: as many as are resident, each takes its share of the tiles; in clusters that share K one per
    /// unit. Pairs fit wherever an even number of SMs is free: they are those of a TPC.
    pub fn grid(&self, m: usize, n: usize, sm_count: usize) -> usize {
        let units = self.tiles(m, n) * self.splits;
        match self.tile.team {
            Team::Cluster => units,
            Team::Grid(g) => units.min(resident_in_clusters(g.ca * g.cb, sm_count)),
            _ if self.tile.shared != Shared::Nothing => units.min(sm_count & !1),
            _ => units.min(sm_count * self.tile.ctas),
        }
    }

    /// CTAs per cluster; 1: none.
    pub fn cluster(&self) -> usize {
        match self.tile.team {
            Team::Cluster => self.splits,
            Team::Grid(g) => g.ca * g.cb,
            _ if self.tile.shared != Shared::Nothing => 2,
            _ => 1,
        }
    }

    /// Whether parts of K are joined through scratch memory.
    fn joins(&self) -> bool {
        self.splits > 1 && self.tile.team != Team::Cluster
    }

    /// Bytes of f32 partial sums.
    pub fn partial_bytes(&self, m: usize, n: usize) -> usize {
        if !self.joins() {
            return 0;
        }
        4 * self.tiles(m, n) * self.splits * self.tile.bm * self.tile.bn
    }

    pub fn counters(&self, m: usize, n: usize) -> usize {
        if self.joins() { self.tiles(m, n) * self.tile.consumers() } else { 0 }
    }

    /// Whether K may have that many parts, and scratch memory room for them.
    pub fn fits(&self, [m, n, k]: [usize; 3], scratch_bytes: usize, counters: usize) -> bool {
        let steps = k.div_ceil(WgmmaTile::BK).max(1);
        let parts = match self.tile.team {
            Team::Plain | Team::One => 1..=steps,
            Team::Two | Team::Grid(_) => 1..=1,
            Team::Cluster => 2..=steps.min(WgmmaTile::MOST_CTAS_PER_CLUSTER),
        };
        parts.contains(&self.splits)
            && self.partial_bytes(m, n) <= scratch_bytes
            && self.counters(m, n) <= counters
    }

    fn estimate(&self, m: usize, n: usize, k: usize, sm_count: usize) -> f64 {
        let WgmmaTile { bm, bn, ctas, .. } = self.tile;
        Work {
            bm,
            bn,
            loaded_rows: bm,
            ctas,
            tiles: self.tiles(m, n),
            splits: self.splits,
            steps: k.div_ceil(WgmmaTile::BK),
            bytes: 2 * (n * k + m * k + m * n),
        }
        .clocks(sm_count)
    }

    /// The same for `gemm/wgmma_teams.cu`, whose constants are read from its SASS and from what the other file measures:
    /// off by 31 % on the plans that `tools/gemm-sweep` timed, 15 % with those that `tools/gemm-fit` found.
    fn estimate_teams(&self, m: usize, n: usize, k: usize, sm_count: usize) -> f64 {
        // Per SM and clock: bytes from L2 to shared memory, bytes of HBM, bytes of partial sums written and read.
        const L2_BYTES: f64 = 57.0;
        const HBM_BYTES: f64 = 17.0;
        const WRITE_BYTES: f64 = 24.0;
        const READ_BYTES: f64 = 36.0;
        const TENSOR: f64 = 0.91;
        // Launch and first loads; epilogue, fixed and per clock of elements.
        const FILL: f64 = 5000.0;
        const FINISH: f64 = 1500.0;
        const FINISH_ELEMENTS: f64 = 9.0;
        const JOIN: f64 = 2500.0;
        const CLUSTER_JOIN: f64 = 2500.0;
        const OVERLAP_LOSS: f64 = 0.1;

        let WgmmaTile { team, bm, bn, ctas, .. } = self.tile;
        let elements = (bm * bn) as f64;
        let step = (2.0 * elements * Self::bk() / 4096.0 / TENSOR)
            .max((bm + bn) as f64 * 2.0 * Self::bk() / L2_BYTES);
        let steps = k.div_ceil(WgmmaTile::BK).div_ceil(self.splits) as f64;
        let rounds = match team {
            // Clusters stay within a GPC of 16 SMs or 18.
            Team::Cluster => {
                let resident =
                    if self.splits == 2 { sm_count / 2 } else { sm_count / 16 * (16 / self.splits) };
                self.tiles(m, n).div_ceil(resident.max(1))
            }
            _ => (self.tiles(m, n) * self.splits).div_ceil(sm_count),
        };
        let rounds = rounds.max(1) as f64;
        let finish = FINISH + elements / FINISH_ELEMENTS;
        let finishes = match team {
            // In each other's shadow, which is as long as a product; the last stands alone.
            Team::Two => finish + (rounds - 1.0) * (finish - steps * step).max(0.0),
            Team::Cluster => rounds * finish / self.splits as f64 + (rounds - 1.0) * FILL,
            _ => finish * (rounds / ctas as f64).ceil(),
        };
        let memory = (2 * (n * k + m * k + m * n)) as f64 / (HBM_BYTES * sm_count as f64);
        let join = match self.splits {
            1 => 0.0,
            _ if team == Team::Cluster => rounds * CLUSTER_JOIN,
            s => JOIN + 4.0 * elements * (1.0 / WRITE_BYTES + (s - 1) as f64 / READ_BYTES),
        };
        let work = rounds * steps * step + finishes;
        work.max(memory) + OVERLAP_LOSS * work.min(memory) + FILL + join
    }

    fn bk() -> f64 {
        WgmmaTile::BK as f64
    }
}

/// What a product costs on tiles out of a ring.
pub(crate) struct Work {
    pub bm: usize,
    pub bn: usize,
    /// Rows of x that a step loads.
    pub loaded_rows: usize,
    /// Resident CTAs per SM.
    pub ctas: usize,
    pub tiles: usize,
    pub splits: usize,
    /// Of a whole tile, 64 of K each.
    pub steps: usize,
    /// Of all operands.
    pub bytes: usize,
}

impl Work {
    /// Clocks, to rank plans: rounds of tiles or memory, whichever is longer, and the joining of splits.
    pub fn clocks(&self, sm_count: usize) -> f64 {
        // Per SM and clock: bytes from L2 to shared memory, bytes of HBM, bytes of partial sums written and read.
        const L2_BYTES: f64 = 52.0;
        const HBM_BYTES: f64 = 19.5;
        const WRITE_BYTES: f64 = 24.0;
        const READ_BYTES: f64 = 36.0;
        // Share of the tensor cores' 4096 flops per clock that the loop reaches.
        const TENSOR: f64 = 0.93;
        // First loads; epilogue, fixed and per clock of elements.
        const FILL: f64 = 1500.0;
        const FINISH: f64 = 800.0;
        const FINISH_ELEMENTS: f64 = 12.0;
        const OVERLAP_LOSS: f64 = 0.1;

        let bk = WgmmaTile::BK as f64;
        let elements = (self.bm * self.bn) as f64;
        let step = (2.0 * elements * bk / 4096.0 / TENSOR)
            .max((self.loaded_rows + self.bn) as f64 * 2.0 * bk / L2_BYTES);
        let steps = self.steps.div_ceil(self.splits) as f64;
        let per_sm = (self.tiles * self.splits).div_ceil(sm_count).max(1);
        // Epilogues of CTAs that share an SM run beside the products of the others.
        let finish = (FINISH + elements / FINISH_ELEMENTS) * per_sm.div_ceil(self.ctas) as f64;
        let memory = self.bytes as f64 / (HBM_BYTES * sm_count as f64);
        let join = match self.splits {
            1 => 0.0,
            s => 1500.0 + 4.0 * elements * (1.0 / WRITE_BYTES + (s - 1) as f64 / READ_BYTES),
        };
        // The two overlap, but not wholly.
        let work = per_sm as f64 * steps * step + finish;
        work.max(memory) + OVERLAP_LOSS * work.min(memory) + FILL + join
    }
}

/// The plan of `tiles` with the least estimated time. `scratch_bytes` and `counters` bound the splitting of K.
pub(crate) fn choose(
    tiles: &[WgmmaTile],
    [m, n, k]: [usize; 3],
    sm_count: usize,
    scratch_bytes: usize,
    counters: usize,
) -> Plan {
    let steps = k.div_ceil(WgmmaTile::BK).max(1);
    let mut best = (f64::INFINITY, Plan { tile: tiles[0], splits: 1 });
    for &tile in tiles {
        for splits in 1..=steps.min(16) {
            let plan = Plan { tile, splits };
            if !plan.fits([m, n, k], scratch_bytes, counters) {
                continue;
            }
            let clocks = match tile.team {
                Team::Plain => plan.estimate(m, n, k, sm_count),
                _ => plan.estimate_teams(m, n, k, sm_count),
            };
            if clocks < best.0 {
                best = (clocks, plan);
            }
        }
    }
    best.1
}

/// How a convolution over rows with stride 2 is carried out; `None` where no plan has parts of K enough.
pub(crate) fn of_windows([m, n, k]: [usize; 3], sm_count: usize) -> Option<Plan> {
    let tiles: Vec<WgmmaTile> = WgmmaTile::TEAMS.into_iter().filter(WgmmaTile::takes_windows).collect();
    Some(choose(&tiles, [m, n, k], sm_count, 0, 0)).filter(|plan| plan.fits([m, n, k], 0, 0))
}

/// A plan that was measured: the shape, the team and rows and columns of its tile, the parts of K.
struct Measured {
    shape: [usize; 3],
    tile: (Team, usize, usize),
    splits: usize,
}

const fn fastest(shape: [usize; 3], tile: (Team, usize, usize), splits: usize) -> Measured {
    Measured { shape, tile, splits }
}

/// What `tools/gemm-sweep` found fastest on an H200, where that was at least 2 % ahead of the choice by estimate.
const MEASURED: [Measured; 8] = [
    fastest([128, 3584, 3584], (Team::Cluster, 128, 128), 4), // 17.6 -> 14.9 us
    fastest([128, 3584, 18944], (Team::Cluster, 128, 128), 4), // 49.6 -> 43.8
    fastest([128, 37888, 3584], (Team::One, 128, 144), 1),    // 73.4 -> 71.4
    fastest([512, 4608, 3584], (Team::One, 128, 144), 1),     // 26.2 -> 25.2
    fastest([512, 37888, 3584], (Team::Two, 128, 128), 1),    // 197 -> 189
    fastest([1025, 1024, 1024], (Team::One, 128, 128), 1),    // 10.8 -> 9.3
    fastest([4100, 1024, 1024], (Team::One, 128, 256), 1),    // 21.0 -> 18.7
    fastest([13325, 1024, 1024], (Team::One, 128, 208), 1),   // 59.5 -> 56.2
];

/// The measured plan of that N and K that has as many row blocks of its tile for m rows as for those it was measured with,
/// and at most twice the rows.
pub(crate) fn measured([m, n, k]: [usize; 3]) -> Option<Plan> {
    let found = MEASURED.iter().find(|of| {
        let ([rows, cols, depth], (_, bm, _)) = (of.shape, of.tile);
        (cols, depth) == (n, k) && rows.div_ceil(bm) == m.div_ceil(bm) && 2 * m > rows
    })?;
    let tile = WgmmaTile::TEAMS.into_iter().find(|t| (t.team, t.bm, t.bn) == found.tile)?;
    Some(Plan { tile, splits: found.splits })
}

/// Plans by arithmetic for the layers of the two encoders, 1024 wide with 4096 in between, where their rows are few
/// enough to be one round on 132 SMs. The bytes that an SM draws from the L2, at some 57 a clock (40 to 45
/// are measured), are what counts:
/// `(bm + bn) · 128` a step. Right of each plan its CTAs, and the steps of one.
pub(crate) fn of_encoders([m, n, k]: [usize; 3]) -> Option<Plan> {
    use Team::{Cluster, One};
    let rows = [256, 768, 1152].into_iter().position(|most| m <= most)?;
    let (team, bm, bn, splits) = match (rows, n, k) {
        // 10 s of sound, 4 row blocks of 64. Two CTAs fit on an SM: the next kernel's are set up, and have asked for
        // their weights, while these multiply.
        (0, 3072, 1024) => (One, 64, 96, 1),        // 128, 16
        (0, 4096, 1024) => (One, 64, 128, 1),       // 128, 16
        (0, 1024, 1024) => (Cluster, 64, 128, 4),   // 128, 4: all of them on their way at once
        (0, 1024, 4096) => (Cluster, 64, 128, 4),   // 128, 16
        (0, 1024, 19456) => (Cluster, 128, 128, 8), // 128, 38
        // 30 s, 4 row blocks of 192 or 6 of 128.
        (1, 3072, 1024) => (One, 128, 144, 1),            // 132, 16
        (1, 4096, 1024) => (One, 192, 128, 1),            // 128, 16
        (1, 1024, 1024 | 4096) => (Cluster, 192, 128, 4), // 128, 4 or 16
        (1, 1024, 19456) => (Cluster, 192, 128, 4),       // 128, 76
        // One picture, 6 row blocks of 192. With 192 x 96 all 66 pairs of SMs would have to be free for clusters.
        (2, 3072, 1024) => (One, 192, 144, 1),            // 132, 16
        (2, 4096, 1024) => (One, 192, 192, 1),            // 132, 16
        (2, 1024, 1024 | 4096) => (Cluster, 192, 128, 2), // 96, 8 or 32
        _ => return None,
    };
    let tile = WgmmaTile::TEAMS.into_iter().find(|t| (t.team, t.bm, t.bn) == (team, bm, bn))?;
    Some(Plan { tile, splits })
}
