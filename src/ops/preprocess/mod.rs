//! What `media` does on the host, as ops: log-mel frames of samples, tiles of a picture. The tables (mel triangles, weights
//! of a resize) are made by `media` and come as inputs.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::{Case, CpuIo, Fill, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};

/// Samples of a frame, 25 ms at 16 kHz.
pub const FRAME: usize = 400;
/// Samples from one frame to the next.
pub const SHIFT: usize = 160;
/// Points of the transform.
const FFT: usize = 512;
const PRE_EMPHASIS: f32 = 0.97;
const SCALE: f32 = 32768.0;

/// Kaldi's log-mel frames: mean removed, pre-emphasis 0.97, window, 512-point power spectrum, mel triangles, natural
/// logarithm of at least f32's epsilon. Mean, transform and sums in f64, the rest in f32 as the host has it.
///
/// ins: samples f32 `[N]` (full scale 1), window f32 `[400]`, spans u32 `[F, 2]` (first bin of the spectrum and how many),
/// mel f32 `[F, W]`; outs: y f32 `[(N - 400) / 160 + 1, F]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Filterbank;

/// The horizontal pass of a resize, in fixed point with 22 bits, of an RGB picture in 8 bits: output pixel i of a row is the
/// sum over t of `coeffs[i, t] · input[first_i + t]`, rounded and clamped.
///
/// ins: pixels u32, `[height, width, 3]` bytes in words, the last one filled up; axis u32 `[to, 2 + taps]`: first input,
/// how many, their coefficients as i32; outs: y u32 `[height, 3·to / 4]`, bytes in words.
#[derive(Clone, PartialEq, Debug)]
pub struct ResizeWidth {
    pub width: usize,
    pub height: usize,
}

/// The vertical pass of the same resize, cut into tiles and normalised: `y = table[channel, byte]`. The main picture gives
/// `columns · rows` tiles row by row; with more than one, the thumbnail is the last.
///
/// ins: x u32 `[H, 3·columns·size / 4]` and axis u32 `[rows·size, 2 + taps]`, with more than one tile the same of the
/// thumbnail (one column, one row), table f32 `[3, 256]`; outs: y f32 `[tiles, 3, size, size]`.
#[derive(Clone, PartialEq, Debug)]
pub struct ResizeToTiles {
    pub size: usize,
    pub columns: usize,
    pub rows: usize,
}

impl OpDef for Filterbank {
    const NAME: &'static str = "Filterbank";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, window, spans, mel]
                if x.shape.rank() == 1
                    && x.shape.len() >= FRAME
                    && window.shape.dims() == [FRAME]
                    && spans.shape.dims() == [mel.rows(), 2]
                    && spans.dtype == DType::U32
                    && mel.shape.rank() == 2
                    && [x, window, mel].iter().all(|d| d.dtype == DType::F32) =>
            {
                let frames = (x.shape.len() - FRAME) / SHIFT + 1;
                Ok(vec![(DType::F32, Shape::new(&[frames, mel.rows()]))])
            }
            _ => {
                let wants = "samples f32 [N >= 400], window f32 [400], spans u32 [F, 2], mel f32 [F, W]";
                Err(mismatch(Self::NAME, wants, ins))
            }
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        let frames = outs[0].rows() as u64;
        let transform = (5 * FFT * FFT.ilog2() as usize) as u64;
        Cost {
            flops: frames * (transform + 2 * ins[3].shape.len() as u64),
            read_bytes: ins.iter().map(|d| d.bytes()).sum(),
            written_bytes: outs[0].bytes(),
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::filterbank(io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |n: usize, f: usize, w: usize, scale: f32| {
            let noise = |centre: f32, scale: f32| Fill::Uniform { centre, scale };
            Case::new(format!("n{n}_f{f}_w{w}_s{scale}"), Filterbank)
                .act_f32(&[n], noise(0.1, scale))
                .act_f32(&[FRAME], noise(0.5, 0.5))
                .act_u32(&[f, 2], Fill::Ids { limit: w as u32 })
                .act_f32(&[f, w], noise(0.5, 0.5))
        };
        vec![
            case(400, 80, 24, 0.3),
            case(559, 80, 24, 0.3),
            case(560, 1, 7, 1.0),
            case(1361, 80, 128, 0.01),
            // A constant: silence, to the floor.
            case(900, 40, 24, 0.0),
            case(160_000, 80, 24, 0.3).bench(),
        ]
    }
}

/// Whether `axis` can be one of `to` outputs.
fn is_axis(axis: &Desc, to: usize) -> bool {
    axis.dtype == DType::U32 && axis.shape.rank() == 2 && axis.rows() == to && axis.cols() > 2
}

impl OpDef for ResizeWidth {
    const NAME: &'static str = "ResizeWidth";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, axis]
                if x.dtype == DType::U32
                    && x.shape.len() == (self.width * self.height * 3).div_ceil(4)
                    && is_axis(axis, axis.rows())
                    && axis.rows().is_multiple_of(4) =>
            {
                Ok(vec![(DType::U32, Shape::new(&[self.height, 3 * axis.rows() / 4]))])
            }
            _ => {
                let words = (self.width * self.height * 3).div_ceil(4);
                let wants = format!("pixels u32 [{words}], axis u32 [to, 2 + taps] with to % 4 == 0");
                Err(mismatch(Self::NAME, &wants, ins))
            }
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        Cost {
            flops: 8 * outs[0].shape.len() as u64 * (ins[1].cols() - 2) as u64,
            read_bytes: ins.iter().map(|d| d.bytes()).sum(),
            written_bytes: outs[0].bytes(),
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::resize_width(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |width: usize, height: usize, to: usize, axis: &'static [u32]| {
            let case = Case::new(format!("{width}x{height}_to{to}"), ResizeWidth { width, height });
            let taps = axis.len() / to;
            case.act_u32(&[(width * height * 3).div_ceil(4)], Fill::Ids { limit: u32::MAX })
                .act_u32(&[to, taps], Fill::Words(axis))
        };
        vec![
            case(4, 1, 4, axis::<4, 5>(4, 3)),
            case(5, 3, 8, axis::<8, 7>(5, 5)),
            case(17, 7, 4, axis::<4, 19>(17, 17)),
            case(3, 2, 60, axis::<60, 5>(3, 3)),
            case(1920, 1080, 1792, axis::<1792, 7>(1920, 5)).bench(),
        ]
    }
}

impl ResizeToTiles {
    fn tiles(&self) -> usize {
        self.columns * self.rows + usize::from(self.columns * self.rows > 1)
    }
}

impl OpDef for ResizeToTiles {
    const NAME: &'static str = "ResizeToTiles";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let s = self.size;
        let is = |x: &Desc, axis: &Desc, columns: usize, rows: usize| {
            x.dtype == DType::U32
                && x.shape.rank() == 2
                && x.cols() * 4 == 3 * columns * s
                && is_axis(axis, rows * s)
        };
        let is_table = |t: &Desc| t.dtype == DType::F32 && t.shape.dims() == [3, 256];
        let whole = s > 0 && s.is_multiple_of(4) && self.tiles() > 0;
        let fits = match (ins, self.tiles()) {
            ([x, axis, table], 1) => is(x, axis, 1, 1) && is_table(table),
            ([x, axis, thumb, thumb_axis, table], 2..) => {
                is(x, axis, self.columns, self.rows) && is(thumb, thumb_axis, 1, 1) && is_table(table)
            }
            _ => false,
        };
        if !whole || !fits {
            let wants = format!(
                "x u32 [H, {}], axis u32 [{}, 2 + taps], beside several tiles those of the thumbnail, table f32 [3, 256]; \
                 size % 4 == 0",
                3 * self.columns * s / 4,
                self.rows * s
            );
            return Err(mismatch(Self::NAME, &wants, ins));
        }
        Ok(vec![(DType::F32, Shape::new(&[self.tiles(), 3, s, s]))])
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        Cost {
            flops: 2 * outs[0].shape.len() as u64 * (ins[1].cols() - 2) as u64,
            read_bytes: ins.iter().map(|d| d.bytes()).sum(),
            written_bytes: outs[0].bytes(),
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::resize_to_tiles(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let bytes = Fill::Ids { limit: u32::MAX };
        let table = Fill::Uniform { centre: 0.0, scale: 2.0 };
        let op = |size, columns, rows| ResizeToTiles { size, columns, rows };
        vec![
            Case::new("s4_one", op(4, 1, 1))
                .act_u32(&[9, 3], bytes)
                .act_u32(&[4, 11], Fill::Words(axis::<4, 11>(9, 9)))
                .act_f32(&[3, 256], table),
            Case::new("s4_3x2", op(4, 3, 2))
                .act_u32(&[5, 9], bytes)
                .act_u32(&[8, 7], Fill::Words(axis::<8, 7>(5, 5)))
                .act_u32(&[5, 3], bytes)
                .act_u32(&[4, 7], Fill::Words(axis::<4, 7>(5, 5)))
                .act_f32(&[3, 256], table),
            Case::new("s60_1x2", op(60, 1, 2))
                .act_u32(&[3, 45], bytes)
                .act_u32(&[120, 5], Fill::Words(axis::<120, 5>(3, 3)))
                .act_u32(&[3, 45], bytes)
                .act_u32(&[60, 5], Fill::Words(axis::<60, 5>(3, 3)))
                .act_f32(&[3, 256], table),
            Case::new("s448_4x2", op(448, 4, 2))
                .act_u32(&[1080, 1344], bytes)
                .act_u32(&[896, 9], Fill::Words(axis::<896, 9>(1080, 7)))
                .act_u32(&[1080, 336], bytes)
                .act_u32(&[448, 15], Fill::Words(axis::<448, 15>(1080, 13)))
                .act_f32(&[3, 256], table)
                .bench(),
        ]
    }
}

/// An axis for a case: `N` outputs of at most `taps` of `from` inputs, coefficients that overshoot on both sides.
fn axis<const N: usize, const W: usize>(from: usize, taps: usize) -> &'static [u32] {
    debug_assert!(W == 2 + taps && taps <= from);
    let mut words = Vec::with_capacity(N * W);
    for i in 0..N {
        let first = i * (from - 1) / N;
        let count = taps.min(from - first);
        words.extend([first as u32, count as u32]);
        for t in 0..taps {
            let k = ((i * 31 + t * 17) % 23) as i32 - 7;
            words.push((if t < count { k * (1 << 18) } else { 0 }) as u32);
        }
    }
    // Cases are made a few times in a process, and their words are few.
    words.leak()
}

#[cfg(test)]
mod tests;
