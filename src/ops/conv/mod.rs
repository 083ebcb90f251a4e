//! What stands before and between the encoders' layers: patches, class tokens, pixel shuffle, CMVN, convolutions.

mod cases;
#[cfg(any(feature = "cuda", test))]
mod conv1;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", test))]
mod wgmma;

use super::{Case, CpuIo, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};

/// How tiles come in.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pixels {
    /// f32 `[n, 3, S, S]`, normalised.
    Values,
    /// RGB bytes `[n, S, S, 3]`, four of them in a u32 `[n, S, 3·S / 4]`, the first the lowest. Each becomes
    /// `(byte / 255 - mean) / std` of its channel, every step rounded to f32.
    Bytes { mean: [f32; 3], std: [f32; 3] },
}

/// Cuts tiles into patches: row `n·P + i·g + j` is patch (i, j) of tile n, columns in the order (c, y, x) of a
/// convolution's weights, zeros from `3·patch²` to `padded_cols`.
///
/// ins: tiles as [`Pixels`] says; outs: x `[n·P, padded_cols]` of type `dtype`, P = g² = (S / patch)².
#[derive(Clone, PartialEq, Debug)]
pub struct Patchify {
    pub pixels: Pixels,
    pub patch: usize,
    pub padded_cols: usize,
    pub dtype: DType,
}

/// Puts the class token before the patches of every tile.
///
/// ins: x `[tiles·P, C]`, cls `[C]`; outs: y `[tiles·(P + 1), C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct PrependClass {
    pub tiles: usize,
}

/// `[cls | x] + pos`: [`PrependClass`] and the position table in one, one rounding.
///
/// ins: x `[tiles·P, C]`, cls `[C]`, pos `[P + 1, C]`; outs: y `[tiles·(P + 1), C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct AssembleTokens {
    pub tiles: usize,
}

/// Drops the class token, multiplies by `scale` and joins 2×2 patches: output row (i, j) is (2i, 2j), (2i, 2j+1),
/// (2i+1, 2j), (2i+1, 2j+1) one after another (VITA's order).
///
/// ins: x `[tiles·(1 + grid²), C]`; outs: y `[tiles·grid²/4, 4·C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct PixelShuffle {
    pub tiles: usize,
    pub grid: usize,
    pub scale: f32,
}

/// `(fbank - mean) · istd`, in f32, one rounding.
///
/// ins: fbank f32 `[T, F]`, mean `[F]`, istd `[F]`; outs: y `[T, F]` of type `dtype`.
#[derive(Clone, PartialEq, Debug)]
pub struct Cmvn {
    pub dtype: DType,
}

/// 3×3 convolution with stride 2 and no padding, activations `[height, width·channels]` (channels innermost).
///
/// ins: x `[H, W·channels]`, w `[Cout, 9·channels]` in the order (r, s, c), b `[Cout]`; outs: y `[H2, W2·Cout]`,
/// H2 = (H - 3) / 2 + 1, W2 likewise.
#[derive(Clone, PartialEq, Debug)]
pub struct Conv2d {
    /// Channels of x.
    pub channels: usize,
    pub relu: bool,
}

/// Convolution over rows with zero rows appended: output row i sees rows `stride·i .. stride·i + kernel`.
///
/// ins: x `[T, C]`, w `[N, kernel·C]` in the order (tap, c), b `[N]`; outs: y `[(T + pad_right - kernel) / stride + 1,
/// N]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Conv1d {
    pub kernel: usize,
    pub stride: usize,
    pub pad_right: usize,
}

impl Pixels {
    /// Side of the tiles `x`, if that is what they are.
    fn side(&self, x: &Desc) -> Option<usize> {
        match (self, x.shape.dims(), x.dtype) {
            (Pixels::Values, &[_, 3, h, w], DType::F32) if h == w => Some(h),
            (Pixels::Bytes { .. }, &[_, h, words], DType::U32) if 3 * h == 4 * words => Some(h),
            _ => None,
        }
    }
}

impl OpDef for Patchify {
    const NAME: &'static str = "Patchify";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let p = self.patch;
        let side = match ins {
            [x] => self.pixels.side(x).filter(|side| p > 0 && side % p == 0),
            _ => None,
        };
        match side {
            Some(side) if self.padded_cols >= 3 * p * p => {
                let rows = ins[0].shape[0] * (side / p).pow(2);
                Ok(vec![(self.dtype, Shape::new(&[rows, self.padded_cols]))])
            }
            _ => {
                let tiles = match self.pixels {
                    Pixels::Values => "pixels f32 [n, 3, S, S]",
                    Pixels::Bytes { .. } => "pixels u32 [n, S, 3·S / 4]",
                };
                let wants = format!("{tiles} with S % {p} == 0, and {} padded columns or more", 3 * p * p);
                Err(mismatch(Self::NAME, &wants, ins))
            }
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::patchify(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::patchify()
    }
}

/// P of `tiles·P` rows; `None` if they do not divide.
fn patches(x: &Desc, tiles: usize) -> Option<usize> {
    (x.shape.rank() == 2 && tiles > 0 && x.rows().is_multiple_of(tiles)).then(|| x.rows() / tiles)
}

impl OpDef for PrependClass {
    const NAME: &'static str = "PrependClass";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, cls] if cls.shape.dims() == [x.cols()] => match patches(x, self.tiles) {
                Some(p) => Ok(vec![(x.dtype, Shape::new(&[self.tiles * (p + 1), x.cols()]))]),
                None => Err(mismatch(Self::NAME, &format!("x [{}·P, C], cls [C]", self.tiles), ins)),
            },
            _ => Err(mismatch(Self::NAME, &format!("x [{}·P, C], cls [C]", self.tiles), ins)),
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::assemble(self.tiles, None, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::prepend_class()
    }
}

impl OpDef for AssembleTokens {
    const NAME: &'static str = "AssembleTokens";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let out = match ins {
            [x, cls, pos] if cls.shape.dims() == [x.cols()] => patches(x, self.tiles)
                .filter(|p| pos.shape.dims() == [p + 1, x.cols()])
                .map(|p| (x.dtype, Shape::new(&[self.tiles * (p + 1), x.cols()]))),
            _ => None,
        };
        let wants = || format!("x [{}·P, C], cls [C], pos [P + 1, C]", self.tiles);
        out.map(|out| vec![out]).ok_or_else(|| mismatch(Self::NAME, &wants(), ins))
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        let pos = io.ins.vector(2)?;
        cpu::assemble(self.tiles, Some(&pos), io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::assemble_tokens()
    }
}

impl OpDef for PixelShuffle {
    const NAME: &'static str = "PixelShuffle";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let patches = self.grid * self.grid;
        match ins {
            [x] if self.grid.is_multiple_of(2)
                && x.shape.rank() == 2
                && x.rows() == self.tiles * (1 + patches) =>
            {
                Ok(vec![(x.dtype, Shape::new(&[self.tiles * patches / 4, 4 * x.cols()]))])
            }
            _ => {
                let wants = format!("x [{}·(1 + {g}·{g}), C] with an even grid", self.tiles, g = self.grid);
                Err(mismatch(Self::NAME, &wants, ins))
            }
        }
    }

    fn cost(&self, _ins: &[&Desc], outs: &[&Desc]) -> Cost {
        // The class rows are not read.
        let bytes = outs[0].bytes();
        Cost { flops: outs[0].shape.len() as u64, read_bytes: bytes, written_bytes: bytes }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::pixel_shuffle(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::pixel_shuffle()
    }
}

impl OpDef for Cmvn {
    const NAME: &'static str = "Cmvn";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, mean, istd]
                if x.dtype == DType::F32
                    && x.shape.rank() == 2
                    && mean.shape.dims() == [x.cols()]
                    && istd.shape == mean.shape
                    && istd.dtype == mean.dtype =>
            {
                Ok(vec![(self.dtype, x.shape)])
            }
            _ => Err(mismatch(Self::NAME, "fbank f32 [T, F], mean [F], istd [F]", ins)),
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::cmvn(io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::cmvn()
    }
}

/// Extents of a [`Conv2d`].
#[derive(Clone, Copy)]
struct Extents2d {
    width: usize,
    out_height: usize,
    out_width: usize,
}

impl Conv2d {
    fn extents(&self, x: &Desc) -> Option<Extents2d> {
        let half = |n: usize| n.checked_sub(3).map(|n| n / 2 + 1);
        if self.channels == 0 || !x.cols().is_multiple_of(self.channels) {
            return None;
        }
        let width = x.cols() / self.channels;
        Some(Extents2d { width, out_height: half(x.rows())?, out_width: half(width)? })
    }
}

impl OpDef for Conv2d {
    const NAME: &'static str = "Conv2d";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let out = match ins {
            [x, w, b] if w.shape.dims() == [b.shape.len(), 9 * self.channels] && b.shape.rank() == 1 => {
                self.extents(x).map(|e| (x.dtype, Shape::new(&[e.out_height, e.out_width * w.rows()])))
            }
            _ => None,
        };
        let c = self.channels;
        let wants = || format!("x [H, W·{c}] with H, W >= 3, w [N, {}], b [N]", 9 * c);
        out.map(|out| vec![out]).ok_or_else(|| mismatch(Self::NAME, &wants(), ins))
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        Cost {
            flops: 2 * outs[0].shape.len() as u64 * ins[1].cols() as u64,
            read_bytes: ins.iter().map(|d| d.bytes()).sum(),
            written_bytes: outs[0].bytes(),
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::conv2d(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::conv2d()
    }
}

impl Conv1d {
    /// Rows of y for `rows` rows of x.
    fn out_rows(&self, rows: usize) -> Option<usize> {
        Some((rows + self.pad_right).checked_sub(self.kernel)?.checked_div(self.stride)? + 1)
    }
}

impl OpDef for Conv1d {
    const NAME: &'static str = "Conv1d";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let out = match ins {
            [x, w, b] if w.shape.dims() == [b.shape.len(), self.kernel * x.cols()] && b.shape.rank() == 1 => {
                self.out_rows(x.rows()).map(|rows| (x.dtype, Shape::new(&[rows, w.rows()])))
            }
            _ => None,
        };
        let wants =
            || format!("x [T, C] with T + {} >= {k}, w [N, {k}·C], b [N]", self.pad_right, k = self.kernel);
        out.map(|out| vec![out]).ok_or_else(|| mismatch(Self::NAME, &wants(), ins))
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        Cost {
            flops: 2 * outs[0].shape.len() as u64 * ins[1].cols() as u64,
            read_bytes: ins.iter().map(|d| d.bytes()).sum(),
            written_bytes: outs[0].bytes(),
        }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::conv1d(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::conv1d()
    }
}

#[cfg(test)]
mod tests;
