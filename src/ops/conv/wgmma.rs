//! `conv/wgmma.cu`, TMA and wgmma of sm_90a: when it convolves, on which tile, and the launch.

use super::Extents2d;
use crate::ops::linear::wgmma as linear;

/// Tiles of `conv/wgmma.cu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ConvTile {
    /// Rows for the pixels of whole output frames.
    pub bm: usize,
    pub bn: usize,
    /// Depth of the ring between copies and products.
    pub stages: usize,
    /// Whether K can be split: rows that the consumers share are not joined.
    splits: bool,
}

impl ConvTile {
    const BK: usize = 64;
    /// The EXPORT lines of the kernel file.
    pub const ALL: [ConvTile; 3] = [
        ConvTile { bm: 192, bn: 208, stages: 4, splits: false },
        ConvTile { bm: 128, bn: 208, stages: 5, splits: true },
        ConvTile { bm: 128, bn: 128, stages: 6, splits: true },
    ];
    const CONSUMERS: usize = 2;

    /// Dynamic shared memory: the ring, and what it takes to begin at a multiple of 1024.
    pub fn smem_bytes(&self) -> usize {
        self.stages * (self.bm + self.bn) * Self::BK * 2 + 1024
    }

    /// `_192x208x4` of `conv_wgmma_192x208x4_bf16`.
    pub fn variant(&self) -> String {
        format!("_{}x{}x{}", self.bm, self.bn, self.stages)
    }

    /// Output frames of a tile; 0 where one does not fit.
    pub fn frames(&self, out_width: usize) -> usize {
        self.bm / out_width
    }
}

/// The convolution as the kernel sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    pub out_height: usize,
    pub out_width: usize,
    pub channels: usize,
    /// Output channels.
    pub n: usize,
}

impl Problem {
    /// Whether every pixel and every output is whole vectors of 8.
    fn aligned(&self) -> bool {
        self.channels.is_multiple_of(8) && self.n.is_multiple_of(8)
    }

    /// K in steps of 64 channels of one tap.
    fn steps(&self) -> usize {
        9 * self.channels.div_ceil(ConvTile::BK)
    }
}

/// How one convolution is carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub tile: ConvTile,
    /// Parts of K.
    pub splits: usize,
}

impl Plan {
    fn tiles(&self, p: &Problem) -> usize {
        p.out_height.div_ceil(self.tile.frames(p.out_width)) * p.n.div_ceil(self.tile.bn)
    }

    /// CTAs to launch: one per SM at most, each takes its share of the tiles.
    pub fn grid(&self, p: &Problem, sm_count: usize) -> usize {
        (self.tiles(p) * self.splits).min(sm_count)
    }

    /// Bytes of f32 partial sums.
    pub fn partial_bytes(&self, p: &Problem) -> usize {
        if self.splits == 1 { 0 } else { 4 * self.tiles(p) * self.splits * self.tile.bm * self.tile.bn }
    }

    pub fn counters(&self, p: &Problem) -> usize {
        if self.splits == 1 { 0 } else { self.tiles(p) * ConvTile::CONSUMERS }
    }

    fn fits(&self, p: &Problem, chip: &Chip) -> bool {
        self.tile.frames(p.out_width) > 0
            && self.splits <= if self.tile.splits { p.steps() } else { 1 }
            && self.partial_bytes(p) <= chip.scratch_bytes
            && self.counters(p) <= chip.counters
    }

    /// Clocks, to rank plans: rounds of tiles or memory, whichever is longer, and the joining of splits.
    fn clocks(&self, p: &Problem, sm_count: usize) -> f64 {
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

        let Problem { out_height, out_width, channels, n } = *p;
        let ConvTile { bm, bn, .. } = self.tile;
        let (elements, bk) = ((bm * bn) as f64, ConvTile::BK as f64);
        let loaded_rows = self.tile.frames(out_width) * out_width;
        let step =
            (2.0 * elements * bk / 4096.0 / TENSOR).max((loaded_rows + bn) as f64 * 2.0 * bk / L2_BYTES);
        let steps = p.steps().div_ceil(self.splits) as f64;
        let per_sm = (self.tiles(p) * self.splits).div_ceil(sm_count).max(1) as f64;
        let finish = (FINISH + elements / FINISH_ELEMENTS) * per_sm;
        let image = (2 * out_height + 1) * (2 * out_width + 1) * channels;
        let bytes = 2 * (image + 9 * channels * n + out_height * out_width * n);
        let memory = bytes as f64 / (HBM_BYTES * sm_count as f64);
        let join = match self.splits {
            1 => 0.0,
            s => 1500.0 + 4.0 * elements * (1.0 / WRITE_BYTES + (s - 1) as f64 / READ_BYTES),
        };
        // The two overlap, but not wholly.
        let work = per_sm * steps * step + finish;
        work.max(memory) + OVERLAP_LOSS * work.min(memory) + FILL + join
    }
}

/// What the choice depends on besides the shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chip {
    pub sm_count: usize,
    /// Compute capability, 90 for Hopper.
    pub arch: u32,
    /// What split-K may use.
    pub scratch_bytes: usize,
    pub counters: usize,
    pub wanted: Option<Wanted>,
}

/// What `VIVACE_CONV` asks for, to test and to compare: `mma`, `wgmma`, or tile and parts of K of the wgmma kernel,
/// such as `192x208/1`, which holds where it fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    Mma,
    Wgmma(Option<Plan>),
}

impl Wanted {
    pub fn parse(text: &str) -> Option<Wanted> {
        match text {
            "mma" => return Some(Wanted::Mma),
            "wgmma" => return Some(Wanted::Wgmma(None)),
            _ => {}
        }
        let (tile, splits) = text.split_once('/')?;
        let tile = ConvTile::ALL.into_iter().find(|t| format!("{}x{}", t.bm, t.bn) == tile)?;
        let splits = splits.parse().ok().filter(|&s| s >= 1)?;
        Some(Wanted::Wgmma(Some(Plan { tile, splits })))
    }
}

/// The plan of a convolution over rows `[T, C]` as a product `[m, n, k]` in clusters (29 -> 15 us of 249 rows, 64 -> 19 of 749).
/// `None` where it is for the kernel that takes rows of any pitch.
pub(super) fn windows(
    chip: &Chip,
    stride: usize,
    [t, c]: [usize; 2],
    product: [usize; 3],
) -> Option<linear::Plan> {
    let wanted = chip.wanted != Some(Wanted::Mma);
    // An image for 90a runs on 9.0 and on nothing newer.
    let takes = chip.arch == 90 && stride == 2 && t >= 2 && c > 0 && c % 64 == 0 && product[0] > 0;
    if wanted && takes { linear::of_windows(product, chip.sm_count) } else { None }
}

/// `None` where the convolution is for the kernels of [`crate::ops::linear`].
pub(super) fn choose(p: &Problem, chip: &Chip) -> Option<Plan> {
    let wanted = match chip.wanted {
        Some(Wanted::Mma) => return None,
        Some(Wanted::Wgmma(plan)) => plan,
        None => None,
    };
    // An image for 90a runs on 9.0 and on nothing newer.
    if chip.arch != 90 || !p.aligned() {
        return None;
    }
    if let Some(plan) = wanted.filter(|plan| plan.fits(p, chip)) {
        return Some(plan);
    }
    let plans = ConvTile::ALL.into_iter().flat_map(|tile| (1..=16).map(move |splits| Plan { tile, splits }));
    plans
        .filter(|plan| plan.fits(p, chip))
        .min_by(|a, b| a.clocks(p, chip.sm_count).total_cmp(&b.clocks(p, chip.sm_count)))
}

/// A tensor as copies see it: elements, innermost dimension first, and what one copy moves.
#[derive(Clone, PartialEq, Eq, Debug)]
struct View<const RANK: usize> {
    dims: [usize; RANK],
    /// Elements from one index of a dimension to the next; 1 for the first.
    strides: [usize; RANK],
    boxes: [usize; RANK],
}

/// The even (`odd` = 0) or odd (1) rows of the image `[height, width, channels]`, which begin at element
/// `odd · width · channels`: {C, column parity, column / 2, row / 2}. With an odd width the column past the last
/// aliases the next row; no box reaches it. A box is the pixels that `frames` output frames see through one tap.
fn image_rows(height: usize, e: &Extents2d, channels: usize, odd: usize, frames: usize) -> View<4> {
    let row = e.width * channels;
    View {
        dims: [channels, 2, e.width.div_ceil(2), (height - odd).div_ceil(2)],
        strides: [1, channels, 2 * channels, 2 * row],
        boxes: [ConvTile::BK, 1, e.out_width, frames],
    }
}

/// Weights `[N, 9, C]`. Apart from the taps, so that a box at the end of C does not reach into the next one.
fn weights(channels: usize, n: usize, bn: usize) -> View<3> {
    View { dims: [channels, 9, n], strides: [1, channels, 9 * channels], boxes: [ConvTile::BK, 1, bn] }
}

#[cfg(feature = "cuda")]
pub(super) mod launch {
    use super::{Chip, Plan, Problem, View, Wanted, image_rows, weights};
    use crate::core::Result;
    use crate::core::asked;
    use crate::gpu::launch::{DevicePtr, Geometry, GpuTensor, Kernel, Launcher};
    use crate::gpu::tensor_map::{L2Promotion, Swizzle, TensorMap};
    use crate::ops::conv::Extents2d;
    use crate::ops::linear::cuda::Epilogue;
    use crate::ops::linear::wgmma::launch::WgmmaParams;

    /// `ConvParams` of kernels/conv/wgmma.cu.
    #[repr(C, align(128))]
    #[derive(Clone, Copy)]
    struct ConvParams {
        g: WgmmaParams,
        odd_rows: TensorMap,
        out_height: u32,
        out_width: u32,
        frames: u32,
        chunks: u32,
    }

    struct ConvKernel;
    // SAFETY: `conv_wgmma_*` in kernels/conv/wgmma.cu take one ConvParams by value; loading compares the sizes.
    unsafe impl Kernel for ConvKernel {
        const FILE: &'static str = "conv/wgmma";
        const SYMBOL: &'static str = "conv_wgmma";
        type Params = ConvParams;
    }

    pub fn chip(l: &Launcher<'_>) -> Result<Chip> {
        Ok(Chip {
            sm_count: l.device.sm_count(),
            arch: l.device.arch(),
            scratch_bytes: l.scratch.bytes,
            counters: l.scratch.counter_len,
            wanted: asked("VIVACE_CONV", Wanted::parse, "mma, wgmma, or a plan such as 192x208/1")?,
        })
    }

    impl<const RANK: usize> View<RANK> {
        fn map(&self, t: GpuTensor<'_>, ptr: DevicePtr) -> Result<TensorMap> {
            let bytes = t.desc.dtype.bytes();
            let dims = self.dims.map(|x| x as u64);
            let strides = self.strides.map(|x| (x * bytes) as u64);
            let boxes = self.boxes.map(|x| x as u32);
            let (swizzle, l2) = (Swizzle::B128, L2Promotion::B256);
            TensorMap::encode(t.desc.dtype, ptr, &dims, &strides[1..], &boxes, swizzle, l2)
        }
    }

    /// Records the convolution of x with w as `plan` says.
    ///
    /// # Safety
    /// x, w, b and y have the extents that infer() gives them and one 16-bit type; `e` is x's, `p` theirs.
    pub unsafe fn launch(
        l: &mut Launcher<'_>,
        plan: Plan,
        (p, e): (&Problem, &Extents2d),
        [x, w, b, y]: [GpuTensor<'_>; 4],
        act: u32,
    ) -> Result<()> {
        let Plan { tile, splits } = plan;
        let Problem { out_height, out_width, channels, n } = *p;
        let frames = tile.frames(out_width);
        let (mut partials, mut counters) = (DevicePtr::NULL, DevicePtr::NULL);
        if splits > 1 {
            partials = l.scratch(plan.partial_bytes(p))?;
            counters = l.counters(plan.counters(p))?;
        }
        let rows = |odd: usize| {
            let first = x.ptr.offset(odd * e.width * channels * x.desc.dtype.bytes());
            image_rows(x.rows(), e, channels, odd, frames).map(x, first)
        };
        let null = DevicePtr::NULL;
        let params = ConvParams {
            g: WgmmaParams {
                x: rows(0)?,
                w: weights(channels, n, tile.bn).map(w, w.ptr)?,
                e: Epilogue {
                    bias: b.ptr,
                    scale: null,
                    residual: null,
                    y: y.ptr,
                    stats: null,
                    stats_of_y: null,
                    squares: null,
                    squares_of_y: null,
                    gained: null,
                    cols: n as u32,
                    act,
                    out_f32: 0,
                    residual_first: 0,
                    residual_cols: 0,
                    eps: 0.0,
                },
                partials,
                counters,
                m: (out_height * out_width) as u32,
                n: n as u32,
                k: w.cols() as u32,
                splits: splits as u32,
                policy: 0,
            },
            odd_rows: rows(1)?,
            out_height: out_height as u32,
            out_width: out_width as u32,
            frames: frames as u32,
            chunks: channels.div_ceil(super::ConvTile::BK) as u32,
        };
        let grid = plan.grid(p, l.device.sm_count());
        let geometry = Geometry::grid([grid as u32, 1, 1]).smem(tile.smem_bytes());
        // SAFETY: the caller's promise; the maps bound all reads of x and w, the kernel checks rows and columns of y
        // and b; partials and counters have the sizes that the plan needs.
        unsafe { l.launch_variant::<ConvKernel>(&tile.variant(), x.desc.dtype, geometry, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Chip =
        Chip { sm_count: 132, arch: 90, scratch_bytes: 64 << 20, counters: 64 << 10, wanted: None };

    fn extents(height: usize, width: usize) -> Extents2d {
        Extents2d { width, out_height: (height - 3) / 2 + 1, out_width: (width - 3) / 2 + 1 }
    }

    fn problem(height: usize, width: usize, channels: usize, n: usize) -> Problem {
        let e = extents(height, width);
        Problem { out_height: e.out_height, out_width: e.out_width, channels, n }
    }

    /// The convolution of the subsampling after `frames` frames of filter banks.
    fn subsampling(frames: usize) -> Problem {
        problem((frames - 3) / 2 + 1, 39, 1024, 1024)
    }

    /// Element of the tensor at `coordinates`; `None` where a copy fills in zero.
    fn element<const RANK: usize>(v: &View<RANK>, coordinates: [usize; RANK]) -> Option<usize> {
        let inside = coordinates.iter().zip(v.dims).all(|(&c, dim)| c < dim);
        inside.then(|| coordinates.iter().zip(v.strides).map(|(c, stride)| c * stride).sum())
    }

    #[test]
    fn windows_of_rows_go_to_clusters_where_they_fit() {
        let asked = Chip { wanted: Wanted::parse("wgmma"), ..H200 };
        let adapter = [125, 2048, 5120];
        assert!(windows(&asked, 2, [249, 1024], adapter).is_some());
        assert_eq!(windows(&H200, 2, [249, 1024], adapter), windows(&asked, 2, [249, 1024], adapter));
        assert_eq!(windows(&Chip { wanted: Wanted::parse("mma"), ..H200 }, 2, [249, 1024], adapter), None);
        assert_eq!(windows(&Chip { arch: 100, ..asked }, 2, [249, 1024], adapter), None);
        // Another stride, one row, columns that are not whole steps, one step of K.
        assert_eq!(windows(&asked, 1, [249, 1024], adapter), None);
        assert_eq!(windows(&asked, 2, [1, 1024], [1, 2048, 5120]), None);
        assert_eq!(windows(&asked, 2, [249, 72], [125, 2048, 360]), None);
        assert_eq!(windows(&asked, 2, [249, 64], [125, 2048, 64]), None);
    }

    #[test]
    fn boxes_hold_the_pixels_of_the_windows() {
        for (height, width) in
            [(3, 3), (3, 39), (4, 39), (8, 4), (21, 39), (22, 39), (23, 20), (50, 79), (5, 386)]
        {
            let (e, channels) = (extents(height, width), 72);
            let p = problem(height, width, channels, 8);
            for tile in ConvTile::ALL {
                let frames = tile.frames(e.out_width);
                if frames == 0 {
                    continue;
                }
                let views = [0, 1].map(|odd| image_rows(height, &e, channels, odd, frames));
                assert!(views.iter().all(|v| v.boxes[1..].iter().all(|&b| b <= 256)));
                let mut written = vec![0; e.out_height * e.out_width];
                for tile_row in 0..p.out_height.div_ceil(frames) {
                    // As the kernel has it: ConvUnit, load_x and finish.
                    let frame = tile_row * frames;
                    let m0 = frame * e.out_width;
                    let end = (m0 + frames * e.out_width).min(e.out_height * e.out_width);
                    written[m0..end].iter_mut().for_each(|w| *w += 1);
                    for step in 0..p.steps() {
                        let (c, r, s) = (step / 9 * 64, step % 9 / 3, step % 3);
                        let (odd, corner) = if r == 1 { (1, frame) } else { (0, frame + r / 2) };
                        let first = odd * width * channels;
                        for row in 0..frames * e.out_width {
                            let at = [c, s % 2, s / 2 + row % e.out_width, corner + row / e.out_width];
                            let pixel = element(&views[odd], at).map(|at| first + at);
                            assert!(
                                pixel.is_none_or(|at| at + 64.min(channels - c) <= height * width * channels)
                            );
                            let m = m0 + row;
                            if m < end {
                                let (p, q) = (m / e.out_width, m % e.out_width);
                                let want = ((2 * p + r) * width + 2 * q + s) * channels + c;
                                assert_eq!(pixel, Some(want), "{height} {width} {tile:?} {step} {row}");
                            }
                        }
                    }
                }
                assert!(written.iter().all(|&w| w == 1), "{height} {width} {tile:?}");
            }
        }
    }

    #[test]
    fn weights_are_found_tap_by_tap() {
        let v = weights(72, 40, 208);
        assert_eq!(element(&v, [64, 8, 39]), Some(39 * 648 + 8 * 72 + 64));
        assert_eq!(element(&v, [72, 0, 0]), None);
        assert_eq!(element(&v, [0, 0, 40]), None);
    }

    #[test]
    fn shared_memory_fits_beside_what_the_kernel_declares() {
        for tile in ConvTile::ALL {
            // Staging of the epilogue, barriers and flags.
            assert!(tile.smem_bytes() + 12288 + 256 <= 227 << 10, "{}", tile.variant());
            assert!((tile.bm * 128).is_multiple_of(1024) && (tile.bn * 64).is_multiple_of(512));
        }
        assert_eq!(ConvTile::ALL[0].smem_bytes(), 205_824);
        assert_eq!(ConvTile::ALL[0].variant(), "_192x208x4");
    }

    #[test]
    fn the_subsampling_takes_these_plans() {
        let plan = |frames| {
            let plan = choose(&subsampling(frames), &H200).unwrap();
            (plan.tile.variant(), plan.splits, plan.tiles(&subsampling(frames)))
        };
        assert_eq!(subsampling(1000).out_height * 19, 4731);
        assert_eq!(plan(300), ("_128x208x5".into(), 2, 65));
        assert_eq!(plan(1000), ("_192x208x4".into(), 1, 125));
        assert_eq!(plan(3000), ("_192x208x4".into(), 1, 375));
    }

    #[test]
    fn plans_stay_within_steps_scratch_counters_and_chip() {
        for (height, width, channels, n) in
            [(3, 3, 8, 8), (31, 39, 64, 136), (999, 20, 24, 40), (7, 300, 256, 520), (149, 39, 1024, 1024)]
        {
            let p = problem(height, width, channels, n);
            for (sm_count, scratch_bytes, counters) in
                [(132, 64 << 20, 64 << 10), (114, 1 << 20, 16), (1, 0, 0)]
            {
                let chip = Chip { sm_count, scratch_bytes, counters, ..H200 };
                let plan = choose(&p, &chip).unwrap();
                assert!((1..=p.steps()).contains(&plan.splits), "{p:?}: {plan:?}");
                assert!(plan.splits == 1 || plan.tile.splits);
                assert!(plan.partial_bytes(&p) <= scratch_bytes && plan.counters(&p) <= counters);
                assert!((1..=sm_count).contains(&plan.grid(&p, sm_count)));
            }
        }
    }

    #[test]
    fn only_where_asked_for_and_possible() {
        let p = subsampling(1000);
        assert!(choose(&p, &H200).is_some());
        let mma = Chip { wanted: Wanted::parse("mma"), ..H200 };
        assert_eq!(choose(&p, &mma), None);
        assert_eq!(choose(&p, &Chip { arch: 100, ..H200 }), None);
        assert_eq!(choose(&Problem { channels: 9, ..p }, &H200), None);
        assert_eq!(choose(&Problem { n: 10, ..p }, &H200), None);
        assert_eq!(choose(&Problem { out_width: 193, ..p }, &H200), None);
        assert_eq!(choose(&Problem { out_width: 192, ..p }, &H200).unwrap().tile.bm, 192);
    }

    #[test]
    fn a_wanted_plan_is_taken_where_it_fits() {
        let wanted = Wanted::parse("128x128/3").unwrap();
        let plan = Plan { tile: ConvTile::ALL[2], splits: 3 };
        assert_eq!(wanted, Wanted::Wgmma(Some(plan)));
        let chip = Chip { wanted: Some(wanted), ..H200 };
        assert_eq!(choose(&subsampling(300), &chip), Some(plan));
        assert_ne!(choose(&Problem { out_width: 150, ..subsampling(300) }, &chip), Some(plan));
        let shared = Chip { wanted: Wanted::parse("192x208/2"), ..H200 };
        assert_eq!(choose(&subsampling(1000), &shared), choose(&subsampling(1000), &H200));
        for bad in ["", "192x208", "192x208/0", "128x250/1", "128x208/1/1"] {
            assert_eq!(Wanted::parse(bad), None, "{bad}");
        }
    }
}
