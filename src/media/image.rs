//! Decoding of PNG, JPEG and WebP to RGB, judged by content and never by file extension.

use std::io::Cursor;
use std::path::Path;

use ::image::codecs::{jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder};
use ::image::{ColorType, ImageDecoder, ImageFormat, ImageResult, Limits};

use super::pipe::read_path;
use crate::core::error::{Error, Result};
use crate::{bail_input, ensure_input};

/// The largest picture that is decoded, in pixels; the header is checked before anything is allocated.
pub const MAX_PIXELS: u64 = 100_000_000;

/// What a decoder may allocate besides the picture itself, in bytes (16-bit RGBA at [`MAX_PIXELS`] fits).
const MAX_DECODER_BYTES: u64 = 1 << 30;

/// A decoded picture: `data` is `[height, width, 3]`, RGB, 8 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

impl Picture {
    /// Wraps RGB bytes `[height, width, 3]`. Fails when a side is 0 or `data` has another length.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Picture> {
        ensure_input!(width > 0 && height > 0, "picture: {width}x{height} has no pixels");
        let want = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        ensure_input!(
            want == Some(data.len()),
            "picture: {width}x{height} RGB needs width * height * 3 bytes, got {}",
            data.len()
        );
        Ok(Picture { width, height, data })
    }

    /// Reads and decodes a file, or what a pipe gives up to [`MOST_PIPED_BYTES`](super::pipe::MOST_PIPED_BYTES); see
    /// [`Picture::from_bytes`].
    pub fn from_path(path: impl AsRef<Path>) -> Result<Picture> {
        let path = path.as_ref();
        let bytes = read_path(path)?;
        Picture::from_bytes(&bytes, &path.display().to_string())
    }

    /// Decodes PNG, JPEG or WebP bytes; `name` stands in messages.
    ///
    /// Alpha is dropped (not blended), grey and palette become RGB, 16-bit samples keep their high byte, an EXIF
    /// orientation is not applied: all as the reference pipeline does, but for 16-bit grey, which it clips at 255. Of an
    /// animation the first frame is taken and a warning is logged. Corrupt, truncated, unsupported and oversized pictures
    /// are input errors.
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Picture> {
        ensure_input!(!bytes.is_empty(), "{name}: the image file is empty (0 bytes)");
        let cursor = Cursor::new(bytes);
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(MAX_DECODER_BYTES);
        match ::image::guess_format(bytes) {
            Ok(ImageFormat::Png) => {
                let d = PngDecoder::with_limits(cursor, limits).map_err(|e| corrupt(name, "PNG", e))?;
                warn_if_animated(name, "PNG", d.is_apng().unwrap_or(false));
                decode(d, name, "PNG")
            }
            Ok(ImageFormat::WebP) => {
                let d = WebPDecoder::new(cursor).map_err(|e| corrupt(name, "WebP", e))?;
                warn_if_animated(name, "WebP", d.has_animation());
                decode(d, name, "WebP")
            }
            Ok(ImageFormat::Jpeg) => {
                let d = JpegDecoder::new(cursor).map_err(|e| corrupt(name, "JPEG", e))?;
                check_size(d.dimensions(), name)?;
                // The decoder fills what is missing with grey; the reference refuses such a file.
                ensure_input!(
                    jpeg_is_whole(bytes),
                    "{name}: corrupt JPEG: the data ends before the end marker"
                );
                decode(d, name, "JPEG")
            }
            Ok(other) => bail_input!("{name}: {other:?} images are not supported; give a PNG, JPEG or WebP"),
            Err(_) => bail_input!("{name}: not an image in a known format; give a PNG, JPEG or WebP"),
        }
    }
}

fn warn_if_animated(name: &str, format: &str, animated: bool) {
    if animated {
        tracing::warn!("{name}: animated {format}: only the first frame is used");
    }
}

fn corrupt(name: &str, format: &str, e: ::image::ImageError) -> Error {
    Error::input(format!("{name}: corrupt {format}: {e}"))
}

fn check_size((width, height): (u32, u32), name: &str) -> Result<()> {
    let pixels = width as u64 * height as u64;
    ensure_input!(
        pixels <= MAX_PIXELS,
        "{name}: the image is {width}x{height} = {:.1} megapixels, the limit is {} megapixels",
        pixels as f64 / 1e6,
        MAX_PIXELS / 1_000_000
    );
    Ok(())
}

fn decode(decoder: impl ImageDecoder, name: &str, format: &str) -> Result<Picture> {
    let dims = decoder.dimensions();
    check_size(dims, name)?;
    let (width, height) = (dims.0 as usize, dims.1 as usize);
    let color = decoder.color_type();
    let mut raw = vec![0u8; width * height * color.bytes_per_pixel() as usize];
    let read: ImageResult<()> = decoder.read_image(&mut raw);
    read.map_err(|e| corrupt(name, format, e))?;
    let data = match color {
        ColorType::Rgb8 => raw,
        ColorType::Rgba8 => drop_to_rgb::<4>(&raw, |p| [p[0], p[1], p[2]]),
        ColorType::L8 => drop_to_rgb::<1>(&raw, |p| [p[0]; 3]),
        ColorType::La8 => drop_to_rgb::<2>(&raw, |p| [p[0]; 3]),
        ColorType::L16 => drop_to_rgb::<2>(&raw, |p| [high(p, 0); 3]),
        ColorType::La16 => drop_to_rgb::<4>(&raw, |p| [high(p, 0); 3]),
        ColorType::Rgb16 => drop_to_rgb::<6>(&raw, |p| [high(p, 0), high(p, 1), high(p, 2)]),
        ColorType::Rgba16 => drop_to_rgb::<8>(&raw, |p| [high(p, 0), high(p, 1), high(p, 2)]),
        other => bail_input!("{name}: {format} with pixels of type {other:?} is not supported"),
    };
    Picture::new(width, height, data).map_err(|e| e.context(name))
}

/// The high byte of the `i`-th native-endian 16-bit sample.
fn high(p: &[u8], i: usize) -> u8 {
    (u16::from_ne_bytes([p[2 * i], p[2 * i + 1]]) >> 8) as u8
}

fn drop_to_rgb<const N: usize>(raw: &[u8], rgb: impl Fn(&[u8; N]) -> [u8; 3]) -> Vec<u8> {
    raw.as_chunks::<N>().0.iter().flat_map(rgb).collect()
}

/// Whether an end-of-image marker follows the first scan. Inside entropy-coded data 0xFF is always stuffed, so the
/// two bytes cannot occur there by chance; the segments before the scan (thumbnails have markers too) are skipped.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[mark, kind, hi, lo]) = bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>()) {
        if mark != 0xFF || kind == 0xFF {
            at += 1; // fill bytes between segments
            continue;
        }
        at += 2 + u16::from_be_bytes([hi, lo]) as usize;
        if kind == 0xDA {
            return bytes.get(at..).is_some_and(|scan| scan.windows(2).any(|w| w == [0xFF, 0xD9]));
        }
    }
    false
}
