//! Antialiased bicubic resizing of RGB pictures, equal to the bit to Pillow 10.4's `Image.resize(BICUBIC)`: a
//! horizontal pass, then a vertical one, both in fixed point, with an 8-bit picture between them. The encoder was
//! trained on these very pixels, so the rounding is part of the model.

use std::borrow::Cow;

use rayon::prelude::*;

use super::image::Picture;
use crate::core::error::Result;
use crate::ensure_input;

/// Fractional bits of a coefficient: 32 less 8 for the pixel less 2 for the sign and the overshoot of the kernel.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Rows that the horizontal pass takes at once, so that a weight is loaded for all of them. 1920x1080 to 1792 wide, one
/// thread of an EPYC with AVX2: 16.4 ms for 1 row, 7.9 for 2, 7.0 for 4, 7.3 for 8.
const ROWS: usize = 4;

/// The largest picture between the two passes, in bytes. Only pictures thousands of times taller than wide reach it.
const MAX_BETWEEN_BYTES: usize = 1 << 30;

/// The kernel of Keys with a = -0.5, which is 0 from |x| = 2.
fn kernel(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// The weights of one axis: output i is the sum over t of `coeffs[i, t] * input[first[i] + t]`.
pub struct Axis {
    /// Per output: the first input it reads and how many.
    spans: Vec<(usize, usize)>,
    /// `[outputs, taps]`, fixed point with [`PRECISION_BITS`], 0 beyond the span.
    coeffs: Vec<i32>,
    taps: usize,
    /// Where there are as many outputs as inputs, every output is the input at its place: that of the first output.
    same: Option<usize>,
}

impl Axis {
    /// Weights that resize `from` inputs to `to` outputs, of which only `keep` are computed (a crop costs nothing).
    pub fn new(from: usize, to: usize, keep: std::ops::Range<usize>) -> Axis {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = 2.0 * stretch;
        let taps = Axis::taps(from, to);
        let same = (from == to).then_some(keep.start);
        let mut spans = Vec::with_capacity(keep.len());
        let mut coeffs = vec![0; keep.len() * taps];
        let mut w = Vec::with_capacity(taps);
        for (i, row) in keep.zip(coeffs.chunks_exact_mut(taps)) {
            let center = (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(from);
            w.clear();
            w.extend((first..last).map(|x| kernel((x as f64 - center + 0.5) * (1.0 / stretch))));
            let sum: f64 = w.iter().sum();
            for (c, w) in row.iter_mut().zip(&w) {
                let k = if sum != 0.0 { w / sum } else { *w } * (1 << PRECISION_BITS) as f64;
                *c = if k < 0.0 { k - 0.5 } else { k + 0.5 } as i32;
            }
            spans.push((first, last - first));
        }
        Axis { spans, coeffs, taps, same }
    }

    /// Weights of the whole axis.
    pub fn whole(from: usize, to: usize) -> Axis {
        Axis::new(from, to, 0..to)
    }

    fn len(&self) -> usize {
        self.spans.len()
    }

    /// `[outputs, 2 + taps]`: first input, how many, their coefficients (i32). Also returns the columns.
    pub fn words(&self) -> (Vec<u32>, usize) {
        let mut words = Vec::with_capacity(self.len() * (2 + self.taps));
        for (&(first, count), coeffs) in self.spans.iter().zip(self.coeffs.chunks_exact(self.taps)) {
            words.extend([first as u32, count as u32]);
            words.extend(coeffs.iter().map(|&k| k as u32));
        }
        (words, 2 + self.taps)
    }

    /// Inputs of an output at most, for a whole axis.
    pub fn taps(from: usize, to: usize) -> usize {
        let support = 2.0 * (from as f64 / to as f64).max(1.0);
        (support.ceil() as usize * 2 + 1).min(from)
    }

    fn coeffs(&self, i: usize) -> &[i32] {
        &self.coeffs[i * self.taps..][..self.spans[i].1]
    }

    /// The inputs that any output reads.
    fn reach(&self) -> std::ops::Range<usize> {
        let first = self.spans.first().map_or(0, |s| s.0);
        first..self.spans.last().map_or(first, |s| s.0 + s.1)
    }
}

/// A picture after its horizontal pass; rows of the result are made from it one by one, in any order.
///
/// A pass that would give back what it gets is left out, as in Pillow.
pub struct Between<'p> {
    /// `[rows, width, 3]`: the source rows `first_row..first_row + rows`, or the picture itself.
    data: Cow<'p, [u8]>,
    row_bytes: usize,
    first_row: usize,
    vertical: Axis,
}

impl<'p> Between<'p> {
    /// Runs the horizontal pass over the rows that `vertical` will read.
    ///
    /// Fails when the intermediate picture would not fit `MAX_BETWEEN_BYTES`.
    pub fn new(src: &'p Picture, horizontal: &Axis, vertical: Axis) -> Result<Between<'p>> {
        let row_bytes = horizontal.len() * 3;
        if horizontal.same == Some(0) && horizontal.len() == src.width {
            return Ok(Between { data: Cow::Borrowed(&src.data), row_bytes, first_row: 0, vertical });
        }
        let rows = vertical.reach();
        let bytes = rows.len().saturating_mul(row_bytes);
        ensure_input!(
            bytes <= MAX_BETWEEN_BYTES,
            "the image is {}x{}: too tall for its width (resizing would need {bytes} bytes, the limit is {})",
            src.width,
            src.height,
            MAX_BETWEEN_BYTES
        );
        let first_row = rows.start;
        let mut data = vec![0; bytes];
        let src_row = src.width * 3;
        data.par_chunks_mut(row_bytes * ROWS).enumerate().for_each(|(block, out)| {
            // One byte of the next row is welcome, as pixels are loaded four bytes at a time; the last row has none.
            let mut padded = Vec::new();
            let last = first_row + (block + 1) * ROWS >= src.height;
            if last {
                padded.extend_from_slice(&src.data[(src.height - 1) * src_row..]);
                padded.push(0);
            }
            // Rows past the end repeat the last one and are dropped.
            let rows = std::array::from_fn(|r| match first_row + block * ROWS + r {
                y if y + 1 < src.height => &src.data[y * src_row..][..src_row + 1],
                _ => &padded[..],
            });
            horizontal_rows(rows, horizontal, out);
        });
        Ok(Between { data: Cow::Owned(data), row_bytes, first_row, vertical })
    }

    /// Computes row `y` of the result from byte `from_byte` on, as many bytes as `out` has.
    pub fn row(&self, y: usize, from_byte: usize, out: &mut [u8]) {
        let (first, _) = self.vertical.spans[y];
        if let Some(same) = self.vertical.same {
            let row = same + y - self.first_row;
            return out.copy_from_slice(&self.data[row * self.row_bytes + from_byte..][..out.len()]);
        }
        let start = (first - self.first_row) * self.row_bytes + from_byte;
        vertical_row(&self.data[start..], self.row_bytes, self.vertical.coeffs(y), out);
    }
}

/// Resizes a whole picture.
pub fn resize(src: &Picture, width: usize, height: usize) -> Result<Picture> {
    ensure_input!(width > 0 && height > 0, "resize: the target {width}x{height} has no pixels");
    let between = Between::new(src, &Axis::whole(src.width, width), Axis::whole(src.height, height))?;
    let mut data = vec![0; width * height * 3];
    data.par_chunks_mut(width * 3).with_min_len(4).enumerate().for_each(|(y, out)| between.row(y, 0, out));
    Picture::new(width, height, data)
}

fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Calls the body compiled for AVX2 where the processor has it: SSE2, the baseline, cannot multiply 32-bit lanes.
macro_rules! with_avx2 {
    ($name:ident, $body:ident, ($($arg:ident: $ty:ty),*)) => {
        fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) {
                    $body($($arg),*)
                }
                if std::is_x86_feature_detected!("avx2") {
                    // SAFETY: the only condition is that the processor has AVX2, which the line above asked.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
with_avx2!(horizontal_rows, horizontal_body, (src: [&[u8]; ROWS], axis: &Axis, out: &mut [u8]));
with_avx2!(vertical_row, vertical_body, (src: &[u8], stride: usize, coeffs: &[i32], out: &mut [u8]));

/// `src`: rows of pixels, each with one byte more; `out`: as many rows or fewer. The fourth lane is computed and
/// dropped.
#[inline(always)]
fn horizontal_body(src: [&[u8]; ROWS], axis: &Axis, out: &mut [u8]) {
    let row_bytes = axis.len() * 3;
    for i in 0..axis.len() {
        let (first, count) = axis.spans[i];
        let taps = src.map(|row| &row[first * 3..(first + count) * 3 + 1]);
        let mut sum = [[1i32 << (PRECISION_BITS - 1); 4]; ROWS];
        for (t, &k) in axis.coeffs(i).iter().enumerate() {
            for (sum, taps) in sum.iter_mut().zip(taps) {
                for (s, &v) in sum.iter_mut().zip(&taps[t * 3..t * 3 + 4]) {
                    *s += v as i32 * k;
                }
            }
        }
        for (row, sum) in out.chunks_exact_mut(row_bytes).zip(sum) {
            row[i * 3..i * 3 + 3].copy_from_slice(&[clip8(sum[0]), clip8(sum[1]), clip8(sum[2])]);
        }
    }
}

/// `src`: starts at the first row and byte to read; `stride`: bytes per row.
#[inline(always)]
fn vertical_body(src: &[u8], stride: usize, coeffs: &[i32], out: &mut [u8]) {
    const LANES: usize = 32;
    let (blocks, rest) = out.as_chunks_mut::<LANES>();
    let done = blocks.len() * LANES;
    for (b, out) in blocks.iter_mut().enumerate() {
        let mut sum = [1i32 << (PRECISION_BITS - 1); LANES];
        for (t, &k) in coeffs.iter().enumerate() {
            let row = &src[t * stride + b * LANES..][..LANES];
            for (s, &v) in sum.iter_mut().zip(row) {
                *s += v as i32 * k;
            }
        }
        for (o, s) in out.iter_mut().zip(sum) {
            *o = clip8(s);
        }
    }
    for (i, o) in rest.iter_mut().enumerate() {
        let sum: i32 = coeffs.iter().enumerate().map(|(t, &k)| src[t * stride + done + i] as i32 * k).sum();
        *o = clip8(sum + (1 << (PRECISION_BITS - 1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_and_stay_inside() {
        for (from, to) in [(1, 1), (1, 448), (17, 5), (1025, 448), (448, 448), (3, 1)] {
            let axis = Axis::whole(from, to);
            for i in 0..to {
                let (first, count) = axis.spans[i];
                assert!(count > 0 && first + count <= from, "{from} -> {to}, output {i}: {first} + {count}");
                let sum: i32 = axis.coeffs(i).iter().sum();
                assert!(
                    (sum - (1 << PRECISION_BITS)).abs() <= count as i32,
                    "{from} -> {to}, output {i}: {sum}"
                );
            }
        }
    }

    /// The passes that are left out give what they would: the weights of an axis of the same length are one-hot.
    #[test]
    fn same_size_is_the_identity_and_flat_stays_flat() {
        let data: Vec<u8> = (0..17 * 13 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let p = Picture::new(17, 13, data).unwrap();
        assert_eq!(resize(&p, 17, 13).unwrap(), p);
        let passes = |mut across: Axis, mut down: Axis| {
            (across.same, down.same) = (None, None);
            let (width, height) = (across.len(), down.len());
            let between = Between::new(&p, &across, down).unwrap();
            let mut data = vec![0; width * height * 3];
            data.chunks_exact_mut(width * 3).enumerate().for_each(|(y, out)| between.row(y, 0, out));
            Picture::new(width, height, data).unwrap()
        };
        assert_eq!(passes(Axis::whole(17, 17), Axis::whole(13, 13)), p);
        for (width, height) in [(17, 40), (17, 5), (40, 13), (5, 13)] {
            let computed = passes(Axis::whole(17, width), Axis::whole(13, height));
            assert_eq!(resize(&p, width, height).unwrap(), computed, "{width}x{height}");
        }
        // A part of an axis of the same length.
        let part = Between::new(&p, &Axis::whole(17, 17), Axis::new(13, 13, 4..9)).unwrap();
        let mut row = [0; 2 * 3];
        part.row(3, 5 * 3, &mut row);
        assert_eq!(row, p.data[(7 * 17 + 5) * 3..][..6]);
        let flat = Picture::new(19, 7, vec![201; 19 * 7 * 3]).unwrap();
        assert!(resize(&flat, 41, 3).unwrap().data.iter().all(|&v| v == 201));
    }

    #[test]
    fn a_crop_equals_the_same_part_of_the_whole() {
        let data: Vec<u8> = (0..50 * 9 * 3).map(|i| (i * 91 % 251) as u8).collect();
        let p = Picture::new(50, 9, data).unwrap();
        let whole = resize(&p, 35, 31).unwrap();
        let crop = Between::new(&p, &Axis::new(50, 35, 4..20), Axis::new(9, 31, 10..25)).unwrap();
        let mut row = vec![0; 16 * 3];
        for y in 0..15 {
            crop.row(y, 0, &mut row);
            assert_eq!(row, whole.data[((10 + y) * 35 + 4) * 3..][..16 * 3], "row {y}");
        }
    }

    #[test]
    fn a_needle_is_refused_before_memory_is_spent() {
        let p = Picture::new(1, 2_000_000, vec![0; 6_000_000]).unwrap();
        let e = resize(&p, 448, 448 * 12).err().unwrap().to_string();
        assert!(e.contains("1x2000000") && e.contains("too tall"), "{e}");
    }
}
