//! `gemm/gemv_ring.cu`, one row of x on sm_90a: how rows of w are cut into chunks, and the launch.

/// An instance of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RingShape {
    /// Part of the kernel symbol.
    pub variant: &'static str,
    /// Vectors of 8 elements per lane of a chunk.
    vectors: usize,
    stages: usize,
    /// Chunks of a row that a warp takes one after the other.
    parts: usize,
}

impl RingShape {
    /// The EXPORT lines of the kernel file, that for short rows first.
    pub const ALL: [RingShape; 2] = [
        RingShape { variant: "_v7", vectors: 7, stages: 3, parts: 1 },
        RingShape { variant: "_v5x2", vectors: 5, stages: 5, parts: 2 },
    ];

    fn ring_bytes(&self) -> usize {
        WARPS * self.stages * self.vectors * 512
    }
}

const WARPS: usize = 8;
/// Two kernels of a chain have to fit on an SM: half of 228 KiB, less the 1 KiB that a CTA costs and its barriers.
const SMEM_BYTES: usize = 112 << 10;
/// A share of w that is larger than the ring by at most this goes to the L2 before the wait: 25 MB on 132 SMs.
const AHEAD_BYTES: usize = 192 << 10;
/// What a CTA has not yet asked for when it lets the next kernel start: CTAs do not keep step, the last one counts.
const LEAD_BYTES: usize = 32 << 10;

/// What `VIVACE_GEMV` asks for, to test and to compare: `ring`, or `ring/LEAD` or `ring/LEAD/AHEAD` with other bytes
/// per CTA than the defaults, in KiB. AHEAD holds for shares of any size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    lead_bytes: usize,
    ahead_bytes: Option<usize>,
}

impl Wanted {
    pub fn parse(text: &str) -> Option<Wanted> {
        let mut parts = text.split('/');
        if parts.next() != Some("ring") {
            return None;
        }
        let mut kib = || match parts.next() {
            None => Some(None),
            Some(n) => n.parse::<u16>().ok().map(|n| Some(usize::from(n) << 10)),
        };
        let (lead, ahead_bytes) = (kib()?, kib()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Wanted { lead_bytes: lead.unwrap_or(LEAD_BYTES), ahead_bytes })
    }
}

/// How one product is carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub shape: RingShape,
    /// Warps that share a row: 1, 2, 4 or 8.
    pub ways: usize,
    /// Vectors in a chunk of a row; the last one may have fewer, but has some.
    pub chunk: usize,
    pub ctas: usize,
    /// Chunks per warp that the L2 is asked for beyond the ring.
    pub ahead: usize,
    /// Chunks per warp not yet asked for when the next kernel may start.
    pub lead: usize,
    /// Rows of w of the CTA with the most.
    rows: usize,
}

impl Plan {
    pub fn smem_bytes(&self) -> usize {
        self.shape.ring_bytes() + 4 * self.ways * self.rows
    }
}

/// The plan for w `[n, k]` with `rows_per_col` rows behind an output column; `None` where the kernel does not fit.
pub(crate) fn plan(n: usize, k: usize, rows_per_col: usize, sm_count: usize, wanted: Wanted) -> Option<Plan> {
    let vectors = k / 8;
    if !k.is_multiple_of(8) || vectors == 0 {
        return None;
    }
    let chunks_for = |shape: &RingShape| {
        let ways = vectors.div_ceil(32 * shape.vectors * shape.parts).next_power_of_two();
        (ways <= WARPS).then_some((*shape, ways))
    };
    let (shape, ways) = RingShape::ALL.iter().find_map(chunks_for)?;
    let chunks = ways * shape.parts;
    let chunk = vectors.div_ceil(chunks);
    let cols = n / rows_per_col;
    let ctas = cols.min(sm_count);
    let rows = cols.div_ceil(ctas.max(1)) * rows_per_col;

    let rest = (rows * vectors * 16).saturating_sub(shape.ring_bytes());
    let ahead_bytes = match wanted.ahead_bytes {
        Some(bytes) => bytes,
        None if rest <= AHEAD_BYTES => rest,
        None => 0,
    };
    let per_piece = WARPS * chunk * 16;
    let plan = Plan {
        shape,
        ways,
        chunk,
        ctas,
        // Rounded up: the last rows of a share are not the same number for all warps.
        ahead: if ahead_bytes == 0 { 0 } else { ahead_bytes.div_ceil(per_piece) + shape.parts },
        lead: wanted.lead_bytes.div_ceil(per_piece),
        rows,
    };
    let nonempty = chunk * (chunks - 1) < vectors;
    (ctas > 0 && nonempty && plan.smem_bytes() <= SMEM_BYTES).then_some(plan)
}

#[cfg(feature = "cuda")]
pub(super) mod launch {
    use super::Plan;
    use crate::core::Result;
    use crate::gpu::launch::{DevicePtr, Geometry, GpuTensor, Kernel, Launcher};
    use crate::ops::linear::cuda::Epilogue;

    /// `GemvRingParams` of kernels/gemm/gemv_ring.cu.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct GemvRingParams {
        x: DevicePtr,
        w: DevicePtr,
        e: Epilogue,
        n: u32,
        k: u32,
        way_bits: u32,
        chunk: u32,
        ahead: u32,
        lead: u32,
    }

    struct GemvRingKernel;
    // SAFETY: `gemv_ring_*` in kernels/gemm/gemv_ring.cu take one GemvRingParams by value; loading compares the sizes.
    unsafe impl Kernel for GemvRingKernel {
        const FILE: &'static str = "gemm/gemv_ring";
        const SYMBOL: &'static str = "gemv_ring";
        type Params = GemvRingParams;
    }

    /// Records the product of x `[K]` and w `[N, K]`.
    ///
    /// # Safety
    /// The addresses in `e` are valid for `e.cols` columns and N biases; the plan is for this w and these columns.
    pub unsafe fn launch(
        l: &mut Launcher<'_>,
        plan: Plan,
        x: GpuTensor<'_>,
        w: GpuTensor<'_>,
        e: Epilogue,
    ) -> Result<()> {
        let p = GemvRingParams {
            x: x.ptr,
            w: w.ptr,
            e,
            n: w.rows() as u32,
            k: w.cols() as u32,
            way_bits: plan.ways.trailing_zeros(),
            chunk: plan.chunk as u32,
            ahead: plan.ahead as u32,
            lead: plan.lead as u32,
        };
        let geometry = Geometry::grid([plan.ctas as u32, 1, 1]).smem(plan.smem_bytes());
        // SAFETY: the caller's promise; the chunks of a plan lie within the rows of w and of x, and its shared memory
        // holds the rings and the sums of the CTA with the most rows.
        unsafe { l.launch_variant::<GemvRingKernel>(plan.shape.variant, x.desc.dtype, geometry, &p) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: Wanted = Wanted { lead_bytes: LEAD_BYTES, ahead_bytes: None };

    fn h200(n: usize, k: usize, rows_per_col: usize) -> Plan {
        plan(n, k, rows_per_col, 132, RING).unwrap()
    }

    /// The chunks that `warp` of `cta` takes, as the kernel counts them: row of w, first vector, vectors.
    fn pieces(p: &Plan, [n, k, rpc]: [usize; 3], cta: usize, warp: usize) -> Vec<(usize, usize, usize)> {
        let (cols_all, parts) = (n / rpc, p.shape.parts);
        let (share, rest) = (cols_all / p.ctas, cols_all % p.ctas);
        let col0 = cta * share + cta.min(rest);
        let rows = (share + usize::from(cta < rest)) * rpc;
        assert!(rows <= p.rows);
        let (way, group, groups) = (warp % p.ways, warp / p.ways, WARPS / p.ways);
        let count = if rows > group { (rows - group).div_ceil(groups) * parts } else { 0 };
        let piece = |i: usize| {
            let at = group + i / parts * groups;
            let row = match rpc {
                1 => col0 + at,
                _ => (col0 + at / 2) / 8 * 16 + (col0 + at / 2) % 8 + at % 2 * 8,
            };
            let first = (way * parts + i % parts) * p.chunk;
            (row, first, p.chunk.min(k / 8 - first))
        };
        (0..count).map(piece).collect()
    }

    const SHAPES: [[usize; 3]; 17] = [
        [4608, 3584, 1],
        [3584, 3584, 1],
        [3584, 18944, 1],
        [37888, 3584, 2],
        [515, 896, 1],
        [64, 80, 1],
        [3, 8, 1],
        [1, 8, 1],
        [40, 18944, 1],
        [70, 512, 1],
        [2560, 896, 2],
        [16, 8, 2],
        [48, 256, 2],
        [37, 1800, 1],
        [130, 1792, 1],
        [133, 14336, 1],
        [32, 20480, 2],
    ];

    #[test]
    fn every_vector_of_w_is_taken_once() {
        for shape @ [n, k, rpc] in SHAPES {
            for sms in [132, 7, 1] {
                let Some(p) = plan(n, k, rpc, sms, RING) else {
                    assert!(sms < 132 && n > 1000, "{shape:?} on {sms}");
                    continue; // more sums than there is room for
                };
                let mut seen = vec![0u8; n * k / 8];
                for (cta, warp) in (0..p.ctas).flat_map(|c| (0..WARPS).map(move |w| (c, w))) {
                    for (row, first, len) in pieces(&p, shape, cta, warp) {
                        assert!(len > 0 && len <= 32 * p.shape.vectors, "{shape:?}: {p:?}");
                        seen[row * (k / 8) + first..][..len].iter_mut().for_each(|n| *n += 1);
                    }
                }
                assert!(seen.iter().all(|&n| n == 1), "{shape:?} on {sms}: {p:?}");
            }
        }
    }

    /// A warp alone with its ring: what a stage holds when its chunk is taken, and the phases that pass.
    #[test]
    fn rings_turn_in_step_with_their_barriers() {
        for shape in SHAPES {
            let Some(p) = plan(shape[0], shape[1], shape[2], 7, RING) else { continue };
            let (stages, count) = (p.shape.stages, pieces(&p, shape, 0, 0).len());
            let mut holds: Vec<Option<usize>> = (0..stages).map(|s| (s < count).then_some(s)).collect();
            let mut completed: Vec<usize> = holds.iter().map(|h| usize::from(h.is_some())).collect();
            let (mut stage, mut parity) = (0, 0);
            for i in 0..count {
                assert_eq!(holds[stage], Some(i));
                // The wait for `parity` passes once the phase of that parity has ended, and only that one has.
                assert_eq!((completed[stage] - 1) % 2, parity);
                holds[stage] = (i + stages < count).then_some(i + stages);
                completed[stage] += usize::from(holds[stage].is_some());
                stage += 1;
                if stage == stages {
                    (stage, parity) = (0, parity ^ 1);
                }
            }
            assert!(holds.iter().all(Option::is_none), "no copy is left in flight");
        }
    }

    #[test]
    fn warps_of_the_model_are_even() {
        for (shape, least) in [
            ([4608, 3584, 1], 0.96),
            ([3584, 3584, 1], 0.96),
            ([3584, 18944, 1], 0.96),
            ([37888, 3584, 2], 0.99),
            ([151665, 3584, 1], 0.99),
        ] {
            let [n, k, rpc] = shape;
            let p = h200(n, k, rpc);
            let loads = (0..132 * WARPS).map(|i| -> usize {
                pieces(&p, shape, i / WARPS, i % WARPS).iter().map(|(_, _, len)| len).sum()
            });
            let even = (n * k / 8) as f64 / (132 * WARPS) as f64 / loads.max().unwrap() as f64;
            assert!(even >= least, "{shape:?}: {even}");
        }
    }

    #[test]
    fn two_kernels_share_an_sm() {
        let chain = [h200(4608, 3584, 1), h200(3584, 3584, 1), h200(37888, 3584, 2), h200(3584, 18944, 1)];
        for p in chain.iter().chain([&h200(151665, 3584, 1)]) {
            assert!(2 * (p.smem_bytes() + 320 + 1024) <= 228 << 10, "{p:?}");
            // Little's law.
            let in_flight = WARPS * p.shape.stages * p.chunk * 16;
            assert!(in_flight >= 64 << 10, "{p:?}");
        }
    }

    #[test]
    fn small_shares_go_to_the_l2_whole() {
        for (n, ahead) in [(4608, true), (3584, true), (37888, false), (151665, false)] {
            let p = h200(n, 3584, 1);
            assert_eq!(p.ahead > 0, ahead, "{n}");
            if ahead {
                assert!((0..WARPS).all(|w| pieces(&p, [n, 3584, 1], 0, w).len() <= p.shape.stages + p.ahead));
            }
        }
        let none = Wanted { ahead_bytes: Some(0), ..RING };
        assert_eq!(plan(3584, 3584, 1, 132, none).unwrap().ahead, 0);
    }

    #[test]
    fn what_does_not_fit_is_left() {
        assert_eq!(plan(64, 20488, 1, 132, RING), None);
        assert_eq!(plan(64, 20, 1, 132, RING), None);
        assert_eq!(plan(64, 0, 1, 132, RING), None);
        // More sums than there is room for.
        assert_eq!(plan(1 << 20, 3584, 1, 8, RING), None);
        assert_eq!(h200(3584, 3584, 1).shape.variant, "_v7");
        assert_eq!(h200(3584, 18944, 1).shape.variant, "_v5x2");
    }

    #[test]
    fn wanted_rings() {
        assert_eq!(Wanted::parse("ring"), Some(RING));
        let other = Wanted { lead_bytes: 64 << 10, ahead_bytes: None };
        assert_eq!(Wanted::parse("ring/64"), Some(other));
        assert_eq!(Wanted::parse("ring/64/0"), Some(Wanted { ahead_bytes: Some(0), ..other }));
        for bad in ["", "gemv", "rings", "ring/", "ring/x", "ring/1/2/3", "ring/70000"] {
            assert_eq!(Wanted::parse(bad), None, "{bad}");
        }
    }
}
