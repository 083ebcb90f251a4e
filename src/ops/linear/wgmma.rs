//! `gemm/wgmma.cu` and the two files of `gemm/wgmma_multicast.cuh`, TMA and wgmma of sm_90a: which tile and split.

#[cfg(feature = "cuda")]
pub(crate) mod launch;
#[cfg(test)]
mod tests;

pub(crate) use super::choose::End;

/// How the CTAs of a launch work together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// `gemm/wgmma.cu`, each for itself.
    Plain,
    /// The same file, for windows over rows: clusters whose CTAs have a part of K each.
    Windows,
    /// `gemm/wgmma_multicast.cu`, clusters whose CTAs share operands.
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
    /// Parts of K, each with CTAs of its own; the sums are joined through shared memory.
    pub ck: usize,
    /// Each of two warpgroups has whole tiles, and finishes one while the other multiplies.
    pub pingpong: bool,
}

impl Grid {
    /// `t128x80x8_4x2` of 128 rows of w and 80 of x, `d128x120x6_1x2x4` with parts of K, `pt128x136x6_2x1`; A and B are
    /// what it has of the operands, with or without the stages of the ring.
    fn name(&self, a: usize, b: &str) -> String {
        let Grid { turned, ca, cb, ck, pingpong } = self;
        let letters = format!("{}{}", if *pingpong { "p" } else { "" }, if *turned { "t" } else { "d" });
        let parts = if *ck == 1 { String::new() } else { format!("x{ck}") };
        format!("{letters}{a}x{b}_{ca}x{cb}{parts}")
    }
}

/// Tiles of the two files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WgmmaTile {
    pub form: Form,
    /// Rows of x and of w.
    pub bm: usize,
    pub bn: usize,
    /// Depth of the ring between copies and products. Part of the kernel symbol, so the two sides cannot disagree.
    pub stages: usize,
    /// Resident CTAs per SM.
    ctas: usize,
}

const fn tile(form: Form, bm: usize, bn: usize, stages: usize) -> WgmmaTile {
    let ctas = if bm * bn <= 64 * 128 { 2 } else { 1 };
    WgmmaTile { form, bm, bn, stages, ctas }
}

/// Rows of w and of x.
const fn turned(w: usize, x: usize, stages: usize, ca: usize, cb: usize) -> WgmmaTile {
    turned_shared(w, x, stages, [ca, cb, 1])
}

/// Rows of x and of w.
const fn direct(x: usize, w: usize, stages: usize, ca: usize, cb: usize) -> WgmmaTile {
    shared(x, w, stages, [ca, cb, 1])
}

/// The same, K shared.
const fn shared(x: usize, w: usize, stages: usize, [ca, cb, ck]: [usize; 3]) -> WgmmaTile {
    let form = Form::Grid(Grid { turned: false, ca, cb, ck, pingpong: false });
    WgmmaTile { form, bm: x, bn: w, stages, ctas: 1 }
}

/// Rows of w and of x, K shared.
const fn turned_shared(w: usize, x: usize, stages: usize, [ca, cb, ck]: [usize; 3]) -> WgmmaTile {
    let form = Form::Grid(Grid { turned: true, ca, cb, ck, pingpong: false });
    WgmmaTile { form, bm: x, bn: w, stages, ctas: 1 }
}

/// The same tile, one for each of two warpgroups in turn.
const fn pingpong(tile: WgmmaTile) -> WgmmaTile {
    let Form::Grid(grid) = tile.form else { panic!("only tiles of clusters") };
    WgmmaTile { form: Form::Grid(Grid { pingpong: true, ..grid }), ..tile }
}

impl WgmmaTile {
    const BK: usize = 64;
    /// The EXPORT lines of `gemm/wgmma.cu`.
    pub const PLAIN: [WgmmaTile; 5] = [
        tile(Form::Plain, 128, 256, 4),
        tile(Form::Plain, 128, 144, 6),
        tile(Form::Plain, 128, 128, 6),
        tile(Form::Plain, 64, 128, 4),
        tile(Form::Plain, 64, 96, 5),
    ];
    /// The EXPORT_WINDOWS lines there.
    pub const WINDOWS: [WgmmaTile; 2] = [tile(Form::Windows, 128, 128, 6), tile(Form::Windows, 64, 128, 4)];
    /// The EXPORT lines of `gemm/wgmma_multicast.cu`.
    pub const GRIDS: [WgmmaTile; 34] = [
        turned(64, 16, 21, 4, 1),
        turned(64, 64, 13, 4, 2),
        turned(64, 96, 10, 2, 1),
        turned(128, 64, 8, 2, 4),
        turned(128, 80, 8, 4, 2),
        turned(128, 128, 6, 2, 1),
        turned(256, 96, 4, 2, 1),
        turned(256, 128, 4, 2, 1),
        turned(256, 136, 4, 2, 1),
        turned(256, 152, 4, 1, 2),
        direct(64, 96, 10, 2, 1),
        direct(64, 96, 10, 2, 4),
        direct(64, 144, 8, 2, 1),
        direct(64, 144, 8, 1, 2),
        direct(128, 80, 8, 2, 4),
        direct(128, 112, 6, 1, 2),
        direct(128, 128, 6, 2, 1),
        direct(128, 144, 6, 2, 1),
        direct(128, 144, 6, 1, 2),
        direct(128, 192, 5, 2, 1),
        direct(128, 224, 4, 2, 1),
        direct(128, 256, 4, 2, 1),
        shared(64, 64, 12, [1, 4, 2]),
        shared(64, 80, 10, [1, 4, 2]),
        shared(128, 64, 8, [1, 4, 2]),
        shared(128, 80, 8, [1, 4, 2]),
        shared(128, 120, 6, [2, 1, 2]),
        shared(128, 72, 8, [2, 1, 4]),
        turned_shared(128, 96, 7, [2, 1, 4]),
        turned_shared(128, 112, 6, [2, 1, 2]),
        pingpong(turned(128, 136, 6, 2, 1)),
        pingpong(turned(128, 152, 5, 2, 1)),
        pingpong(direct(128, 144, 6, 2, 1)),
        pingpong(direct(128, 192, 5, 2, 1)),
    ];
    /// The EXPORT_ROPE lines there: products whose sums are turned.
    pub const ROPE: [WgmmaTile; 6] = [
        direct(64, 96, 10, 2, 4),
        direct(128, 80, 8, 2, 4),
        direct(128, 144, 6, 2, 1),
        direct(128, 192, 5, 2, 1),
        shared(64, 80, 10, [1, 4, 2]),
        shared(128, 80, 8, [1, 4, 2]),
    ];
    /// The EXPORT lines of `gemm/wgmma_multicast_norm.cu`: products behind a norm, K whole.
    pub const BEHIND_NORM: [WgmmaTile; 8] = [
        turned(64, 64, 13, 4, 2),
        turned(64, 96, 10, 2, 1),
        turned(128, 64, 8, 2, 4),
        turned(256, 96, 4, 2, 1),
        turned(256, 128, 4, 2, 1),
        direct(128, 80, 8, 2, 4),
        direct(128, 144, 6, 2, 1),
        pingpong(turned(128, 136, 6, 2, 1)),
    ];
    /// And those that give the statistics of y.
    pub const STATS: [WgmmaTile; 10] = [
        turned(64, 16, 21, 4, 1),
        turned(64, 64, 13, 4, 2),
        turned(64, 96, 10, 2, 1),
        turned(128, 64, 8, 2, 4),
        turned(128, 80, 8, 4, 2),
        turned(256, 128, 4, 2, 1),
        turned(256, 136, 4, 2, 1),
        turned_shared(128, 96, 7, [2, 1, 4]),
        turned_shared(128, 112, 6, [2, 1, 2]),
        pingpong(turned(128, 136, 6, 2, 1)),
    ];
    /// Products behind an RmsNorm that has been begun, of gates and ups, and those whose sums are turned.
    pub const GATED_BEHIND_RMS: [WgmmaTile; 2] = [direct(64, 144, 8, 1, 2), direct(128, 144, 6, 1, 2)];
    pub const ROPE_BEHIND_RMS: [WgmmaTile; 2] =
        [shared(64, 80, 10, [1, 4, 2]), shared(128, 80, 8, [1, 4, 2])];
    /// And those that begin one.
    pub const BEGINS_RMS: [WgmmaTile; 2] = [shared(64, 64, 12, [1, 4, 2]), shared(128, 64, 8, [1, 4, 2])];
    /// CTAs per cluster that every chip takes.
    const MOST_CTAS_PER_CLUSTER: usize = 8;

    /// Dynamic shared memory: the ring, and what it takes to begin at a multiple of 1024.
    pub fn smem_bytes(&self) -> usize {
        self.stages * (self.bm + self.bn) * Self::BK * 2 + 1024
    }

    /// `128x256`, `t128x80_4x2`, `d128x120_1x2x4`: how `VIVACE_GEMM` names it.
    pub fn name(&self) -> String {
        let [bm, bn] = [self.bm, self.bn];
        match self.form {
            Form::Plain | Form::Windows => format!("{bm}x{bn}"),
            Form::Grid(grid) => grid.name(self.rows_of_a(), &self.rows_of_b().to_string()),
        }
    }

    /// `_128x256x4` of `gemm_wgmma_128x256x4_bf16`, `_t128x80x8_4x2` of `gemm_multicast_t128x80x8_4x2_bf16`.
    pub fn variant(&self) -> String {
        let [bm, bn, stages] = [self.bm, self.bn, self.stages];
        match self.form {
            Form::Plain | Form::Windows => format!("_{bm}x{bn}x{stages}"),
            Form::Grid(grid) => {
                format!("_{}", grid.name(self.rows_of_a(), &format!("{}x{stages}", self.rows_of_b())))
            }
        }
    }

    /// Whether there is a kernel of the tile for that end of a product: a tile has whole groups of gates and ups, and y
    /// whole vectors where it has to.
    pub fn takes(&self, end: End, vectors: bool) -> bool {
        let fits = match end {
            End::Plain => true,
            End::Gated => self.bn.is_multiple_of(16),
            End::Turned => Self::ROPE.contains(self),
            End::BehindNorm => Self::BEHIND_NORM.contains(self),
            End::GatedBehindRms => Self::GATED_BEHIND_RMS.contains(self),
            End::TurnedBehindRms => Self::ROPE_BEHIND_RMS.contains(self),
        };
        fits && (vectors || !matches!(self.form, Form::Grid(_)))
    }

    /// Whether there is a kernel of the tile that gives statistics of the rows of y.
    pub fn gives_stats(&self) -> bool {
        Self::STATS.contains(self)
    }

    /// Parts of K that a cluster adds up by itself.
    fn shares_k(&self) -> usize {
        if let Form::Grid(grid) = self.form { grid.ck } else { 1 }
    }

    /// Tiles of a cluster that shares operands below one another, and side by side.
    fn clustered(&self) -> (usize, usize) {
        match self.form {
            Form::Grid(Grid { turned: true, ca, cb, .. }) => (cb, ca),
            Form::Grid(Grid { turned: false, ca, cb, .. }) => (ca, cb),
            _ => (1, 1),
        }
    }

    /// Rows of the operand that warpgroups take 64 of at a time.
    fn rows_of_a(&self) -> usize {
        match self.form {
            Form::Grid(Grid { turned: true, .. }) => self.bn,
            _ => self.bm,
        }
    }

    fn rows_of_b(&self) -> usize {
        self.bm + self.bn - self.rows_of_a()
    }

    /// Whether a CTA multiplies one tile while it finishes another.
    fn is_pingpong(&self) -> bool {
        matches!(self.form, Form::Grid(Grid { pingpong: true, .. }))
    }

    /// Warpgroups that multiply one tile where K may be split, 64 rows of A each.
    fn consumers(&self) -> usize {
        self.rows_of_a() / 64
    }
}

/// Rows of x up to which weights are the first to leave the L2: what is read once leaves room for rows, and for the code of
/// the kernels between. A step of 16 sequences 4.34 -> 4.21 ms, a picture 1.81 -> 1.78, 512 rows 11.2 -> 11.15; of 2048 rows
/// and more, which read weights again, 41.0 -> 41.3 and 18.65 -> 18.9 (13 tiles).
const STREAMED_ROWS: usize = 1088;

/// How the L2 keeps the weights of a product of `m` rows: the constants that CUTLASS has for hints of TMA copies. The second
/// is as no hint at all; what `createpolicy` makes of evict_normal is not (kernels/gemm/LADDER.md).
pub(crate) fn policy_of_weights(m: usize) -> u64 {
    const EVICT_FIRST: u64 = 0x12f0_0000_0000_0000;
    const EVICT_NORMAL: u64 = 0x1000_0000_0000_0000;
    if m <= STREAMED_ROWS { EVICT_FIRST } else { EVICT_NORMAL }
}

/// CTAs of clusters, one per SM, that are on the chip at once: a cluster lies within a GPC, and those are not whole
/// multiples of it.
fn resident_in_clusters(ctas: usize, sm_count: usize) -> usize {
    // What cuOccupancyMaxActiveClusters says of an H200's 132 SMs: clusters of 1 to 8 CTAs.
    const CLUSTERS: [usize; 8] = [132, 66, 39, 30, 22, 17, 15, 15];
    (CLUSTERS[ctas - 1] * sm_count / 132).max(1) * ctas
}

/// How one product is carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub tile: WgmmaTile,
    /// Parts of K.
    pub splits: usize,
}

impl Plan {
    /// Those of a cluster all count, also where some lie outside.
    fn tiles(&self, m: usize, n: usize) -> usize {
        let (below, beside) = self.tile.clustered();
        m.div_ceil(self.tile.bm * below) * below * n.div_ceil(self.tile.bn * beside) * beside
    }

    /// CTAs to launch: as many as are resident, each takes its share of the tiles; in clusters that share K one per
    /// part of a tile.
    pub fn grid(&self, m: usize, n: usize, sm_count: usize) -> usize {
        let units = self.tiles(m, n) * self.splits * self.tile.shares_k();
        match self.tile.form {
            Form::Windows => units,
            Form::Grid(Grid { ck: 2.., .. }) => units,
            _ => units.min(self.resident(sm_count)),
        }
    }

    fn resident(&self, sm_count: usize) -> usize {
        resident_in_clusters(self.cluster(), sm_count) * self.tile.ctas
    }

    /// Whether it begins an RmsNorm of y.
    pub fn begins_norms(&self) -> bool {
        WgmmaTile::BEGINS_RMS.contains(&self.tile) && self.splits == 1
    }

    /// CTAs per cluster; 1: none.
    pub fn cluster(&self) -> usize {
        match self.tile.form {
            Form::Plain => 1,
            Form::Windows => self.splits,
            Form::Grid(g) => g.ca * g.cb * g.ck,
        }
    }

    /// Whether parts of K are joined through scratch memory.
    fn joins(&self) -> bool {
        self.splits > 1 && self.tile.form != Form::Windows
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
        let parts = match self.tile.form {
            Form::Windows => 2..=steps.min(WgmmaTile::MOST_CTAS_PER_CLUSTER),
            Form::Grid(Grid { ck: ck @ 2.., .. }) => 1..=usize::from(ck <= steps),
            // Of 256 rows a warpgroup has two blocks, and of a tile of its own.
            Form::Grid(_) if self.tile.is_pingpong() || self.tile.rows_of_a() == 256 => 1..=1,
            _ => 1..=steps,
        };
        parts.contains(&self.splits)
            && self.partial_bytes(m, n) <= scratch_bytes
            && self.counters(m, n) <= counters
    }

    /// Clocks, to rank plans: rounds of tiles or memory, whichever is longer. Off by 9 % on the 450 plans that
    /// `tools/gemm-sweep` timed on an H200 and `tools/gemm-fit` found the constants from; the plan that it prefers takes
    /// 1 % longer than the fastest on the geometric mean.
    fn estimate(&self, [m, n, k]: [usize; 3], sm_count: usize) -> f64 {
        // Per SM and clock: bytes that arrive in shared memory, those of them that the L2 is asked for, bytes of HBM,
        // bytes of partial sums read.
        const ARRIVE_BYTES: f64 = 65.0;
        const L2_BYTES: f64 = 52.0;
        const HBM_BYTES: f64 = 16.9;
        const READ_BYTES: f64 = 104.0;
        // Share of the tensor cores' 4096 flops per clock.
        const TENSOR: f64 = 0.984;
        // Launch and first loads; shortest step; end of a tile, fixed, per clock of elements, and by way of f32.
        const FILL: f64 = 1140.0;
        const STEP: f64 = 265.0;
        const FINISH: f64 = 1800.0;
        const FINISH_ELEMENTS: f64 = 9.25;
        const FINISH_F32: f64 = 360.0;
        const CLUSTER_JOIN: f64 = 6720.0;
        const GRID_JOIN: f64 = 2500.0;
        const JOIN: f64 = 8330.0;
        const OVERLAP_LOSS: f64 = 0.235;

        let WgmmaTile { bm, bn, .. } = self.tile;
        let (below, beside) = self.tile.clustered();
        let (elements, row_bytes) = ((bm * bn) as f64, 2.0 * WgmmaTile::BK as f64);
        let shares_k = self.tile.shares_k();
        let units = self.tiles(m, n) * self.splits * shares_k;
        let resident = match self.tile.form {
            Form::Windows => resident_in_clusters(self.splits, sm_count),
            _ => self.resident(sm_count),
        };
        // Two CTAs on an SM share what it has.
        let sharing = (units.min(resident) as f64 / sm_count as f64).max(1.0);
        let asked = bm as f64 / beside as f64 + bn as f64 / below as f64;
        let flops = 2.0 * WgmmaTile::BK as f64 * elements;
        let step = (flops / 4096.0 / TENSOR * sharing)
            .max((bm + bn) as f64 * row_bytes / ARRIVE_BYTES * sharing)
            .max(asked * row_bytes / L2_BYTES * sharing)
            .max(STEP);
        let join = match self.splits {
            1 if shares_k > 1 => GRID_JOIN,
            1 => 0.0,
            _ if self.tile.form == Form::Windows => CLUSTER_JOIN,
            s => JOIN + 4.0 * elements * (s - 1) as f64 / READ_BYTES,
        };
        let by_f32 = if matches!(self.tile.form, Form::Grid(_)) { 0.0 } else { FINISH_F32 };
        let finish = FINISH + elements / FINISH_ELEMENTS + by_f32 + join;
        let steps = k.div_ceil(WgmmaTile::BK).div_ceil(self.splits * shares_k) as f64;
        let rounds = units.div_ceil(resident.max(1)).max(1) as f64;
        let finishes = if self.tile.is_pingpong() { 1.0 } else { rounds };
        let work = rounds * steps * step + finishes * finish;
        let memory = (2 * (n * k + m * k + m * n)) as f64 / (HBM_BYTES * sm_count as f64);
        work.max(memory) + OVERLAP_LOSS * work.min(memory) + FILL
    }
}

/// What bounds a choice beside the shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub sm_count: usize,
    /// Of scratch memory, for the splitting of K.
    pub scratch_bytes: usize,
    pub counters: usize,
    /// As [`WgmmaTile::takes`].
    pub end: End,
    pub vectors: bool,
}

impl Bounds {
    pub fn allow(&self, plan: &Plan, shape: [usize; 3]) -> bool {
        let whole = !self.end.is_behind() || plan.splits == 1;
        whole
            && plan.tile.takes(self.end, self.vectors)
            && plan.fits(shape, self.scratch_bytes, self.counters)
    }
}

/// The measured plan, or the one with the least estimated time.
pub(crate) fn choose(shape: [usize; 3], bounds: &Bounds) -> Plan {
    let tiles = || WgmmaTile::PLAIN.into_iter().chain(WgmmaTile::GRIDS);
    measured(shape).filter(|plan| bounds.allow(plan, shape)).unwrap_or_else(|| least(tiles(), shape, bounds))
}

/// The plan of `tiles` with the least estimated time; the first tile whole, where none is allowed.
fn least(tiles: impl Iterator<Item = WgmmaTile>, shape: [usize; 3], bounds: &Bounds) -> Plan {
    let steps = shape[2].div_ceil(WgmmaTile::BK).max(1);
    let mut best = (f64::INFINITY, Plan { tile: WgmmaTile::PLAIN[0], splits: 1 });
    for tile in tiles {
        for splits in 1..=steps.min(16) {
            let plan = Plan { tile, splits };
            if !bounds.allow(&plan, shape) {
                continue;
            }
            let clocks = plan.estimate(shape, bounds.sm_count);
            if clocks < best.0 {
                best = (clocks, plan);
            }
        }
    }
    best.1
}

/// How a convolution over rows with stride 2 is carried out; `None` where no plan has parts of K enough.
pub(crate) fn of_windows(shape: [usize; 3], sm_count: usize) -> Option<Plan> {
    let bounds = Bounds { sm_count, scratch_bytes: 0, counters: 0, end: End::Plain, vectors: true };
    Some(least(WgmmaTile::WINDOWS.into_iter(), shape, &bounds))
        .filter(|plan| WgmmaTile::WINDOWS.contains(&plan.tile))
}

/// A plan that was measured: the shape, the name of its tile, the parts of K.
struct Measured {
    shape: [usize; 3],
    tile: &'static str,
    splits: usize,
}

const fn fastest(shape: [usize; 3], tile: &'static str, splits: usize) -> Measured {
    Measured { shape, tile, splits }
}

/// Products that are not the fastest by themselves with these plans, but the encoders that they are a part of are, by up to
/// 5 us a layer: a tile that its neighbours in the graph use too, one that leaves SMs for the next kernel to wait on, or one
/// that gives the statistics of its rows.
const IN_STEP: [Measured; 5] = [
    fastest([249, 1024, 4096], "t128x96_2x1x4", 1),
    fastest([749, 1024, 1024], "t128x64_2x4", 1),
    fastest([249, 3072, 1024], "t128x64_2x4", 1),
    fastest([249, 4096, 1024], "d128x80_2x4", 1),
    fastest([4100, 4096, 1024], "t256x128_2x1", 1),
];

/// What `tools/gemm-sweep` found fastest on an H200, in microseconds.
const MEASURED: [Measured; 63] = [
    fastest([249, 1024, 1024], "t64x64_4x2", 1),      // 3.9
    fastest([749, 1024, 1024], "t64x96_2x1", 1),      // 5.5
    fastest([1025, 1024, 1024], "t128x80_4x2", 1),    // 6.4
    fastest([4100, 1024, 1024], "t256x128_2x1", 1),   // 14.4
    fastest([13325, 1024, 1024], "pt128x136_2x1", 1), // 40.5
    fastest([96, 1024, 4096], "t128x96_2x1x4", 1),    // 8.4 of 74 rows
    fastest([249, 1024, 4096], "d128x72_2x1x4", 1),   // 8.6
    fastest([749, 1024, 4096], "t128x112_2x1x2", 1),  // 13.5
    fastest([1025, 1024, 4096], "t128x80_4x2", 1),    // 15.9
    fastest([4100, 1024, 4096], "t256x128_2x1", 1),   // 45.0
    fastest([13325, 1024, 4096], "t256x136_2x1", 1),  // 142.6
    fastest([249, 1024, 19456], "d128x72_2x1x4", 1),  // 25.9
    fastest([249, 3072, 1024], "d64x96_2x1", 1),      // 5.8
    fastest([749, 3072, 1024], "d128x144_2x1", 1),    // 9.6
    fastest([1025, 3072, 1024], "t256x96_2x1", 1),    // 12.9
    fastest([4100, 3072, 1024], "pt128x152_2x1", 1),  // 36.5
    fastest([13325, 3072, 1024], "pt128x152_2x1", 1), // 111.8
    fastest([16, 3584, 3584], "t64x16_4x1", 1),       // 10.5
    fastest([64, 3584, 3584], "d64x64_1x4x2", 1),     // 9.6
    fastest([128, 3584, 3584], "d128x64_1x4x2", 1),   // 11.0
    fastest([256, 3584, 3584], "d128x120_2x1x2", 1),  // 13.7
    fastest([512, 3584, 3584], "d128x112_1x2", 1),    // 20.6
    fastest([1024, 3584, 3584], "d128x224_2x1", 1),   // 35.3
    fastest([2048, 3584, 3584], "d128x224_2x1", 1),   // 69.0
    fastest([3328, 3584, 3584], "pd128x144_2x1", 1),  // 111.1
    fastest([4096, 3584, 3584], "t256x152_1x2", 1),   // 136.8
    fastest([256, 3584, 4096], "d128x120_2x1x2", 1),  // 14.7
    fastest([1024, 3584, 4096], "d128x224_2x1", 1),   // 39.7
    fastest([3328, 3584, 4096], "pd128x144_2x1", 1),  // 126.9
    fastest([2, 3584, 18944], "t64x16_4x1", 2),       // 35.7
    fastest([4, 3584, 18944], "t64x16_4x1", 2),       // 35.7
    fastest([8, 3584, 18944], "t64x16_4x1", 2),       // 35.7
    fastest([16, 3584, 18944], "t64x16_4x1", 2),      // 35.8
    fastest([64, 3584, 18944], "d64x64_1x4x2", 1),    // 36.4
    fastest([128, 3584, 18944], "d128x64_1x4x2", 1),  // 39.6
    fastest([256, 3584, 18944], "d128x120_2x1x2", 1), // 51.3
    fastest([512, 3584, 18944], "d128x112_1x2", 1),   // 95.1
    fastest([1024, 3584, 18944], "d128x224_2x1", 1),  // 172
    fastest([2048, 3584, 18944], "d128x224_2x1", 1),  // 342
    fastest([4096, 3584, 18944], "d128x224_2x1", 1),  // 684
    fastest([249, 4096, 1024], "d64x144_2x1", 1),     // 6.9
    fastest([749, 4096, 1024], "t256x96_2x1", 1),     // 12.4
    fastest([1025, 4096, 1024], "pt128x136_2x1", 1),  // 15.1
    fastest([4100, 4096, 1024], "pt128x152_2x1", 1),  // 48.8
    fastest([13325, 4096, 1024], "pt128x152_2x1", 1), // 149.4
    fastest([16, 4608, 3584], "t64x16_4x1", 1),       // 11.2
    fastest([64, 4608, 3584], "d64x80_1x4x2", 1),     // 11.5
    fastest([128, 4608, 3584], "d128x80_1x4x2", 1),   // 13.0
    fastest([256, 4608, 3584], "d128x80_2x4", 1),     // 16.0
    fastest([512, 4608, 3584], "d128x144_2x1", 1),    // 24.2
    fastest([1024, 4608, 3584], "d128x144_2x1", 1),   // 46.8
    fastest([2048, 4608, 3584], "d128x192_2x1", 1),   // 89.6
    fastest([4096, 4608, 3584], "d128x192_2x1", 1),   // 178.0
    fastest([16, 152064, 3584], "64x128", 1), // a step of 16 rows 0.13 ms less than by what came before skinny.cu
    fastest([16, 37888, 3584], "d64x144_1x2", 1), // that of 64 rows, for 84.9 on t64x16_4x1
    fastest([64, 37888, 3584], "d64x144_1x2", 1), // 67.5
    fastest([128, 37888, 3584], "d128x144_1x2", 1), // 70.8
    fastest([256, 37888, 3584], "d128x192_2x1", 1), // 97.2
    fastest([512, 37888, 3584], "pd128x192_2x1", 1), // 183.0
    fastest([1024, 37888, 3584], "pd128x192_2x1", 1), // 351.0
    fastest([2048, 37888, 3584], "pd128x192_2x1", 1), // 693.3
    fastest([3584, 37888, 3584], "pd128x192_2x1", 1), // a prompt of 3584 rows 73.9 -> 73.0 ms
    fastest([4096, 37888, 3584], "pd128x192_2x1", 1), // 1427 to 1580
];

/// The measured plan of that N and K whose tile has as many row blocks for m rows as for those it was measured with, and at
/// most twice the rows.
pub(crate) fn measured([m, n, k]: [usize; 3]) -> Option<Plan> {
    IN_STEP.iter().chain(&MEASURED).find_map(|of| {
        let [rows, cols, depth] = of.shape;
        if (cols, depth) != (n, k) || 2 * m <= rows {
            return None;
        }
        let tile = named(of.tile)?;
        (rows.div_ceil(tile.bm) == m.div_ceil(tile.bm)).then_some(Plan { tile, splits: of.splits })
    })
}

/// The tile of that [`WgmmaTile::name`].
pub(crate) fn named(name: &str) -> Option<WgmmaTile> {
    WgmmaTile::PLAIN.into_iter().chain(WgmmaTile::GRIDS).find(|tile| tile.name() == name)
}
