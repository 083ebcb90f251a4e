//! `gemm/wgmma.cu` and `gemm/wgmma_teams.cu`, TMA and wgmma of sm_90a: which tile and split, and the launch.

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

const fn pair_tile(shared: Shared, team: Team, bm: usize, bn: usize, stages: usize) -> WgmmaTile {
    WgmmaTile { team, shared, bm, bn, stages, ctas: 1 }
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
    /// CTAs per cluster that every chip takes.
    const MOST_CTAS_PER_CLUSTER: usize = 8;

    /// Dynamic shared memory: the ring, and what it takes to begin at a multiple of 1024.
    pub fn smem_bytes(&self) -> usize {
        self.stages * (self.bm + self.bn) * Self::BK * 2 + 1024
    }

    /// `_128x256x4` of `gemm_wgmma_128x256x4_bf16`, `_1x192x192x4` of `gemm_teams_1x192x192x4_bf16`, `_w1x128x256x4` of
    /// `gemm_pairs_w1x128x256x4_bf16`.
    pub fn variant(&self) -> String {
        let team = match self.team {
            Team::Plain => "",
            Team::One => "1x",
            Team::Two => "2x",
            Team::Cluster => "cluster_",
        };
        let shared = match self.shared {
            Shared::Nothing => "",
            Shared::W => "w",
            Shared::X => "x",
        };
        format!("_{shared}{team}{}x{}x{}", self.bm, self.bn, self.stages)
    }

    /// Tiles of a pair below one another, and side by side.
    fn paired(&self) -> (usize, usize) {
        match self.shared {
            Shared::Nothing => (1, 1),
            Shared::W => (2, 1),
            Shared::X => (1, 2),
        }
    }

    /// Rows that one copy loads, of x and of w.
    fn boxes(&self) -> (usize, usize) {
        let (below, beside) = self.paired();
        (self.bm / beside, self.bn / below)
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
            _ if self.tile.shared != Shared::Nothing => units.min(sm_count & !1),
            _ => units.min(sm_count * self.tile.ctas),
        }
    }

    /// CTAs per cluster; 1: none.
    pub fn cluster(&self) -> usize {
        match self.tile.team {
            Team::Cluster => self.splits,
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
            Team::Two => 1..=1,
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

    /// The same for `gemm/wgmma_teams.cu`, whose constants `tools/gemm-sweep` is to replace: they are read from its
    /// SASS and from what the other file measures.
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

/// What `tools/gemm-sweep` found fastest on an H200, where that was at least 2 % ahead of the choice by estimate: the shape,
/// the team and tile, the parts of K.
const MEASURED: [([usize; 3], (Team, usize, usize), usize); 8] = [
    ([128, 3584, 3584], (Team::Cluster, 128, 128), 4), // 17.6 -> 14.9 us
    ([128, 3584, 18944], (Team::Cluster, 128, 128), 4), // 49.6 -> 43.8
    ([128, 37888, 3584], (Team::One, 128, 144), 1),    // 73.4 -> 71.4
    ([512, 4608, 3584], (Team::One, 128, 144), 1),     // 26.2 -> 25.2
    ([512, 37888, 3584], (Team::Two, 128, 128), 1),    // 197 -> 189
    ([1025, 1024, 1024], (Team::One, 128, 128), 1),    // 10.8 -> 9.3
    ([4100, 1024, 1024], (Team::One, 128, 256), 1),    // 21.0 -> 18.7
    ([13325, 1024, 1024], (Team::One, 128, 208), 1),   // 59.5 -> 56.2
];

/// The measured plan of that N and K that has as many row blocks of its tile for m rows as for those it was measured with,
/// and at most twice the rows.
pub(crate) fn measured([m, n, k]: [usize; 3]) -> Option<Plan> {
    let holds = |&&([rows, cols, depth], (_, bm, _), _): &&([usize; 3], (Team, usize, usize), usize)| {
        (cols, depth) == (n, k) && rows.div_ceil(bm) == m.div_ceil(bm) && 2 * m > rows
    };
    let &(_, tile, splits) = MEASURED.iter().find(holds)?;
    let tile = WgmmaTile::TEAMS.into_iter().find(|t| (t.team, t.bm, t.bn) == tile)?;
    Some(Plan { tile, splits })
}

/// Plans by arithmetic for the layers of the two encoders, 1024 wide with 4096 in between, where their rows are few
/// enough to be one round on 132 SMs. The bytes that an SM draws from the L2, at some 57 a clock, are what counts:
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

#[cfg(feature = "cuda")]
pub(crate) mod launch {
    use super::{Plan, Shared, Team};
    use crate::core::Result;
    use crate::gpu::launch::{DevicePtr, Geometry, GpuTensor, Kernel, Launcher};
    use crate::gpu::tensor_map::{L2Promotion, Swizzle, TensorMap};
    use crate::ops::linear::cuda::Epilogue;

    /// `WgmmaParams` of kernels/gemm/wgmma.cuh.
    #[repr(C, align(128))]
    #[derive(Clone, Copy)]
    pub(crate) struct WgmmaParams {
        pub x: TensorMap,
        pub w: TensorMap,
        pub e: Epilogue,
        pub partials: DevicePtr,
        pub counters: DevicePtr,
        pub m: u32,
        pub n: u32,
        pub k: u32,
        pub splits: u32,
    }

    struct WgmmaKernel;
    // SAFETY: `gemm_wgmma_*` in kernels/gemm/wgmma.cu take one WgmmaParams by value; loading compares the sizes.
    unsafe impl Kernel for WgmmaKernel {
        const FILE: &'static str = "gemm/wgmma";
        const SYMBOL: &'static str = "gemm_wgmma";
        type Params = WgmmaParams;
    }

    struct PairsKernel;
    // SAFETY: `gemm_pairs_*` in kernels/gemm/wgmma_pairs.cu take one WgmmaParams by value; loading compares the sizes.
    unsafe impl Kernel for PairsKernel {
        const FILE: &'static str = "gemm/wgmma_pairs";
        const SYMBOL: &'static str = "gemm_pairs";
        type Params = WgmmaParams;
    }

    struct TeamsKernel;
    // SAFETY: `gemm_teams_*` in kernels/gemm/wgmma_teams.cu take one WgmmaParams by value; loading compares the sizes.
    unsafe impl Kernel for TeamsKernel {
        const FILE: &'static str = "gemm/wgmma_teams";
        const SYMBOL: &'static str = "gemm_teams";
        type Params = WgmmaParams;
    }

    /// `WindowParams` of kernels/gemm/wgmma_teams.cu.
    #[repr(C, align(128))]
    #[derive(Clone, Copy)]
    struct WindowParams {
        g: WgmmaParams,
        odd: TensorMap,
        chunks: u32,
    }

    struct WindowsKernel;
    // SAFETY: `gemm_windows_*` in kernels/gemm/wgmma_teams.cu take one WindowParams by value; loading compares sizes.
    unsafe impl Kernel for WindowsKernel {
        const FILE: &'static str = "gemm/wgmma_teams";
        const SYMBOL: &'static str = "gemm_windows";
        type Params = WindowParams;
    }

    /// `[rows, k]` in boxes of `box_rows` rows and 64 columns.
    fn map(t: GpuTensor<'_>, rows: usize, k: usize, box_rows: usize) -> Result<TensorMap> {
        map_rows(t, (0, 1), rows, k, box_rows)
    }

    /// The same of every `step`-th row of `t` from row `first` on.
    fn map_rows(
        t: GpuTensor<'_>,
        (first, step): (usize, usize),
        rows: usize,
        k: usize,
        box_rows: usize,
    ) -> Result<TensorMap> {
        let dims = [k as u64, rows as u64];
        let boxes = [super::WgmmaTile::BK as u32, box_rows as u32];
        let (pitch, ptr) = (2 * (k * step) as u64, t.ptr.offset(2 * first * k));
        TensorMap::encode(t.desc.dtype, ptr, &dims, &[pitch], &boxes, Swizzle::B128, L2Promotion::B256)
    }

    /// Records the product of the windows of x `[T, C]`, with stride 2, and w `[N, kernel·C]`, into m rows. No window
    /// begins behind the last row of x.
    ///
    /// # Safety
    /// The addresses in `e` are valid for m rows of `e.cols` columns and N biases; T >= 2, C % 64 == 0.
    pub unsafe fn launch_windows(
        l: &mut Launcher<'_>,
        plan: Plan,
        (x, m): (GpuTensor<'_>, usize),
        w: GpuTensor<'_>,
        e: Epilogue,
    ) -> Result<()> {
        let Plan { tile, splits } = plan;
        let (t, c, n, k) = (x.rows(), x.cols(), w.rows(), w.cols());
        let g = WgmmaParams {
            x: map_rows(x, (0, 2), t.div_ceil(2), c, tile.bm)?,
            w: map(w, n, k, tile.bn)?,
            e,
            partials: DevicePtr::NULL,
            counters: DevicePtr::NULL,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            splits: splits as u32,
        };
        let chunks = (c / super::WgmmaTile::BK) as u32;
        let p = WindowParams { g, odd: map_rows(x, (1, 2), t / 2, c, tile.bm)?, chunks };
        let geometry = Geometry::grid([plan.grid(m, n, l.device.sm_count()) as u32, 1, 1])
            .cluster(plan.cluster() as u32)
            .smem(tile.smem_bytes());
        let variant = format!("_{}x{}x{}", tile.bm, tile.bn, tile.stages);
        // SAFETY: the caller's promise; the maps bound all reads of x and w, the kernel checks rows and columns of
        // all else.
        unsafe { l.launch_variant::<WindowsKernel>(&variant, x.desc.dtype, geometry, &p) }
    }

    /// Records the product of x `[m, K]` and w `[N, K]`.
    ///
    /// # Safety
    /// The addresses in `e` are valid for m rows of `e.cols` columns and N biases; K % 8 == 0.
    pub unsafe fn launch(
        l: &mut Launcher<'_>,
        plan: Plan,
        (x, m): (GpuTensor<'_>, usize),
        w: GpuTensor<'_>,
        e: Epilogue,
    ) -> Result<()> {
        let Plan { tile, splits } = plan;
        let (n, k) = (w.rows(), w.cols());
        let (mut partials, mut counters) = (DevicePtr::NULL, DevicePtr::NULL);
        if plan.joins() {
            partials = l.scratch(plan.partial_bytes(m, n))?;
            counters = l.counters(plan.counters(m, n))?;
        }
        let p = WgmmaParams {
            x: map(x, m, k, tile.boxes().0)?,
            w: map(w, n, k, tile.boxes().1)?,
            e,
            partials,
            counters,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            splits: splits as u32,
        };
        let grid = plan.grid(m, n, l.device.sm_count());
        let geometry =
            Geometry::grid([grid as u32, 1, 1]).cluster(plan.cluster() as u32).smem(tile.smem_bytes());
        // SAFETY: the caller's promise; the maps bound all reads of x and w, the kernel checks rows and columns of
        // all else; partials and counters have the sizes that the plan needs.
        unsafe {
            match tile.team {
                Team::Plain => l.launch_variant::<WgmmaKernel>(&tile.variant(), x.desc.dtype, geometry, &p),
                _ if tile.shared != Shared::Nothing => {
                    l.launch_variant::<PairsKernel>(&tile.variant(), x.desc.dtype, geometry, &p)
                }
                _ => l.launch_variant::<TeamsKernel>(&tile.variant(), x.desc.dtype, geometry, &p),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMS: usize = 132;

    fn plan(m: usize, n: usize, k: usize) -> Plan {
        choose(&WgmmaTile::ALL, [m, n, k], SMS, 64 << 20, 64 << 10)
    }

    fn team_plan(m: usize, n: usize, k: usize) -> Plan {
        choose(&WgmmaTile::TEAMS, [m, n, k], SMS, 64 << 20, 64 << 10)
    }

    #[test]
    fn shared_memory_fits_beside_what_the_kernel_declares() {
        for tile in WgmmaTile::ALL {
            // Staging of the epilogue, barriers and flags, and the 1 KiB that every resident CTA costs.
            let declared = tile.consumers() * 10240 + 256;
            assert!(tile.ctas * (tile.smem_bytes() + declared + 1024) <= 228 << 10, "{}", tile.variant());
        }
        assert_eq!(WgmmaTile::ALL[0].smem_bytes(), 197_632);
        assert_eq!(WgmmaTile::ALL[0].variant(), "_128x256x4");
    }

    #[test]
    fn teams_fit_in_shared_memory_and_registers() {
        for tile in WgmmaTile::TEAMS {
            let consumers = if tile.team == Team::Two { 2 } else { tile.consumers() };
            // Staging, and bias and scale of whole chunks of 32 columns; barriers.
            let declared = consumers * (10240 + 4 * tile.bn.next_multiple_of(32)) + 256;
            let per_cta = tile.smem_bytes() + declared;
            assert!(per_cta <= 227 << 10 && tile.ctas * (per_cta + 1024) <= 228 << 10, "{}", tile.variant());
            // Sums of a thread, beside some forty registers of the epilogue.
            let sums = tile.bm * tile.bn / (128 * if tile.team == Team::Two { 1 } else { consumers });
            assert!(sums <= if consumers == 3 { 96 } else { 128 }, "{}", tile.variant());
        }
        assert_eq!(WgmmaTile::TEAMS[0].variant(), "_1x192x192x4");
    }

    #[test]
    fn pairs_fit_and_halve_what_they_share() {
        for tile in WgmmaTile::PAIRS {
            let consumers = if tile.team == Team::Two { 2 } else { tile.consumers() };
            let declared = consumers * (10240 + 4 * tile.bn.next_multiple_of(32)) + 256;
            assert!(tile.smem_bytes() + declared <= 227 << 10, "{}", tile.variant());
            // Both halves of a box begin at a group of 8 rows.
            let (x, w) = tile.boxes();
            assert!(x % 8 == 0 && w % 8 == 0 && x * w * 2 == tile.bm * tile.bn, "{}", tile.variant());
        }
        assert_eq!(WgmmaTile::PAIRS[0].variant(), "_w1x128x256x4");
        let plan = |tile| Plan { tile, splits: 2 };
        // 9 row blocks are 5 pairs, of which one lies half outside; 4 column blocks are 2.
        let below = plan(WgmmaTile::PAIRS[0]);
        assert_eq!((below.tiles(1025, 1024), below.cluster()), (10 * 4, 2));
        assert_eq!((below.grid(1025, 1024, 132), below.grid(1025, 4096, 131)), (80, 130));
        assert_eq!(below.counters(1025, 1024), 10 * 4 * 2);
        let beside = plan(WgmmaTile::PAIRS[6]);
        assert_eq!(
            (beside.tile.shared, beside.tiles(1025, 1024), beside.tiles(1, 257)),
            (Shared::X, 9 * 4, 2)
        );
    }

    #[test]
    fn tiles_are_what_the_kernels_are_built_of() {
        let all = WgmmaTile::ALL.into_iter().chain(WgmmaTile::TEAMS);
        for tile in all.chain(WgmmaTile::PAIRS) {
            assert!(tile.bn % 16 == 0 && tile.bm % 64 == 0, "{tile:?}");
        }
    }

    #[test]
    fn one_picture_is_one_wave_of_teams() {
        for (n, k) in [(3072, 1024), (4096, 1024), (1024, 1024), (1024, 4096)] {
            let plan = team_plan(1025, n, k);
            assert!(plan.tiles(1025, n) * plan.splits <= SMS * plan.tile.ctas, "{n} {k}: {plan:?}");
        }
    }

    #[test]
    fn windows_share_k_in_clusters_without_scratch() {
        for (shape, clusters) in [([125, 2048, 5120], 16), ([375, 2048, 5120], 48), ([1, 256, 640], 4)] {
            let plan = of_windows(shape, SMS).unwrap();
            assert!(plan.tile.takes_windows() && plan.tiles(shape[0], shape[1]) <= clusters, "{plan:?}");
            assert_eq!(plan.partial_bytes(shape[0], shape[1]), 0);
        }
        assert_eq!(of_windows([10, 64, 64], SMS), None);
    }

    /// `WindowRows` of the kernel: row m + tap / 2 of the even rows or the odd ones is row 2 m + tap of all.
    #[test]
    fn taps_alternate_between_even_and_odd_rows() {
        for rows in [2usize, 7, 249] {
            for m in 0..rows {
                for tap in 0..5 {
                    let (odd, at) = (tap % 2, m + tap / 2);
                    let held = if odd == 1 { rows / 2 } else { rows.div_ceil(2) };
                    let row = (at < held).then_some(2 * at + odd);
                    assert_eq!(row, Some(2 * m + tap).filter(|row| *row < rows), "{rows} {m} {tap}");
                }
            }
        }
    }

    #[test]
    fn measured_plans_hold_around_their_rows() {
        for ([m, n, k], tile, splits) in MEASURED {
            let plan = measured([m, n, k]).unwrap();
            assert_eq!(
                ((plan.tile.team, plan.tile.bm, plan.tile.bn), plan.splits),
                (tile, splits),
                "{m} {n} {k}"
            );
            assert!(plan.fits([m, n, k], 64 << 20, 64 << 10), "{m} {n} {k}");
        }
        let rows = |m| measured([m, 3584, 3584]).map(|plan| plan.splits);
        assert_eq!([64, 65, 128, 129].map(rows), [None, Some(4), Some(4), None]);
        let picture = |m| measured([m, 1024, 1024]).map(|plan| plan.tile.bn);
        assert_eq!(
            [1024, 1025, 1152, 1153, 4100, 13325].map(picture),
            [None, Some(128), Some(128), None, Some(256), Some(208)]
        );
        assert_eq!(measured([128, 3584, 3592]), None);
    }

    #[test]
    fn layers_of_the_encoders_are_one_round() {
        let layer = [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)];
        for m in [17, 74, 249, 256, 257, 749, 768, 769, 1025, 1152] {
            for (n, k) in layer {
                let plan = of_encoders([m, n, k]).unwrap();
                let units = plan.tiles(m, n) * plan.splits;
                assert!(units <= SMS, "{m} {n} {k}: {plan:?}");
                assert!(plan.fits([m, n, k], 0, 0), "{m} {n} {k}: no scratch is needed");
                // Clusters stay within a GPC, of 16 SMs at least: 8 GPCs.
                let clusters = units / plan.cluster();
                assert!(
                    plan.cluster() == 1 || clusters <= 8 * (16 / plan.cluster()),
                    "{m} {n} {k}: {plan:?}"
                );
                // No plan of the two files moves fewer bytes per SM by more than a third.
                let bytes = |p: &Plan| {
                    (p.tile.bm + p.tile.bn)
                        * 128
                        * k.div_ceil(64).div_ceil(p.splits)
                        * (p.tiles(m, n) * p.splits).div_ceil(SMS)
                };
                if m % 64 != 0 && [249, 749, 1025].contains(&m) {
                    let least = WgmmaTile::TEAMS
                        .iter()
                        .filter(|t| t.team == plan.tile.team)
                        .map(|&tile| bytes(&Plan { tile, splits: plan.splits }));
                    assert!(bytes(&plan) * 2 <= least.min().unwrap() * 3, "{m} {n} {k}: {plan:?}");
                }
            }
        }
        for other in [[1153, 1024, 1024], [249, 3584, 2048], [13325, 3072, 1024]] {
            assert_eq!(of_encoders(other), None, "{other:?}");
        }
    }

    /// `Cursor::skip` of the kernel lands where as many steps do: the teams agree with the producer about the ring.
    #[test]
    fn skipped_steps_count_like_steps() {
        for stages in [5, 6] {
            for steps in [1, 2, 5, 6, 7, 16, 64] {
                for units in 1..6 {
                    // Ring positions in the order in which the teams, in turns, wait for them.
                    let waits = (0..units).flat_map(|unit| {
                        let (mut stage, mut phase) = (0, 0);
                        // Cursor::skip, unit by unit, as both teams do.
                        for _ in 0..unit {
                            stage += steps;
                            phase ^= (stage / stages) % 2;
                            stage %= stages;
                        }
                        (0..steps).map(move |_| {
                            let at = (stage, phase);
                            stage += 1;
                            if stage == stages {
                                (stage, phase) = (0, phase ^ 1);
                            }
                            at
                        })
                    });
                    for (position, (stage, phase)) in waits.enumerate() {
                        assert_eq!((stage, phase), (position % stages, position / stages % 2));
                    }
                }
            }
        }
    }

    #[test]
    fn large_products_take_large_tiles_and_no_split() {
        for (m, n, k) in [(2048, 37888, 3584), (4096, 4096, 4096), (4096, 37888, 3584)] {
            let Plan { tile, splits, .. } = plan(m, n, k);
            assert_eq!((tile.bm, splits), (128, 1), "{m} {n} {k}");
            assert!(tile.bn >= 192, "{m} {n} {k}: {tile:?}");
        }
    }

    #[test]
    fn few_tiles_split_k() {
        for (m, n, k) in [(17, 3584, 18944), (64, 1024, 4096), (128, 3584, 18944), (249, 1024, 19456)] {
            assert!(plan(m, n, k).splits > 1, "{m} {n} {k}");
        }
    }

    #[test]
    fn plans_stay_within_steps_scratch_counters_and_chip() {
        for m in [17, 64, 65, 127, 129, 1025, 13325] {
            for n in [8, 515, 3072, 37888] {
                for k in [8, 80, 1024, 18944] {
                    for (sms, scratch, counters) in [(132, 64 << 20, 64 << 10), (114, 1 << 20, 16), (1, 0, 0)]
                    {
                        for tiles in [&WgmmaTile::ALL[..], &WgmmaTile::TEAMS[..]] {
                            let plan = choose(tiles, [m, n, k], sms, scratch, counters);
                            assert!((1..=k.div_ceil(64)).contains(&plan.splits), "{m} {n} {k}: {plan:?}");
                            assert!(plan.partial_bytes(m, n) <= scratch && plan.counters(m, n) <= counters);
                            let grid = plan.grid(m, n, sms);
                            assert!(grid >= 1 && grid.is_multiple_of(plan.cluster()));
                            assert!(grid <= sms * plan.tile.ctas || plan.tile.team == Team::Cluster);
                        }
                    }
                }
            }
        }
    }
}
