use image::{ExtendedColorType, ImageEncoder, ImageFormat};
use vivace::media::image::Picture;
use vivace::media::tiles::{TileOptions, tile};

use super::*;

#[test]
fn tiles_equal_the_reference_to_the_bit() {
    let (Some(golden), Some(media)) = (shared("golden/preprocess"), shared("media")) else { return };
    let bytes = std::fs::read(golden.join("images.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for key in file.names() {
        let Some(case) = key.strip_suffix(".u8") else { continue };
        let (name, size) = case.rsplit_once(".s").unwrap();
        let size: usize = size.parse().unwrap();
        let path = if name.contains('.') { media.join(name) } else { golden.join(format!("{name}.png")) };
        let picture = Picture::from_path(path).unwrap();
        let tiles = tile(&picture, TileOptions { size, ..TileOptions::default() }).unwrap();

        compared += 1;

        let want = file.tensor(key).unwrap();
        let (count, side) = (want.shape()[0], want.shape()[1]);
        assert_eq!(tiles.count, count, "{case}: tiles");
        let step = if side == size { 1 } else { 7 };
        for t in 0..count {
            for y in 0..side {
                for x in 0..side {
                    let got = &tiles.data[((t * size + y * step) * size + x * step) * 3..][..3];
                    let want = &want.data()[((t * side + y) * side + x) * 3..][..3];
                    assert_eq!(got, want, "{case}: tile {t}, row {}, column {}", y * step, x * step);
                }
            }
        }

        // The reference means were summed in f32, which costs them up to 5e-4 at 448 x 448; ours are exact.
        let Ok(_) = file.tensor(&format!("{case}.mean_px")) else { continue };
        let px = tiles.pixel_values().unwrap();
        let plane = size * size;
        let mean: Vec<f32> = px
            .chunks_exact(plane)
            .map(|p| (p.iter().map(|&v| v as f64).sum::<f64>() / plane as f64) as f32)
            .collect();
        let (diff, at) = worst(&mean, &f32s(&file, &format!("{case}.mean_px")));
        assert!(
            diff < if size == 56 { 2e-5 } else { 1e-3 },
            "{case}: mean of tile {}, channel {} is off by {diff}",
            at / 3,
            at % 3
        );
    }
    assert_eq!(compared, 17);
}

fn encoded(format: ImageFormat, w: u32, h: u32, color: ExtendedColorType, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match format {
        ImageFormat::Png => {
            image::codecs::png::PngEncoder::new(&mut out).write_image(raw, w, h, color).unwrap()
        }
        ImageFormat::WebP => {
            image::codecs::webp::WebPEncoder::new_lossless(&mut out).write_image(raw, w, h, color).unwrap()
        }
        _ => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 95)
            .write_image(raw, w, h, color)
            .unwrap(),
    }
    out
}

fn decoded(bytes: &[u8]) -> Vec<u8> {
    Picture::from_bytes(bytes, "x").unwrap().data
}

#[test]
fn every_pixel_layout_becomes_rgb() {
    use ExtendedColorType::*;
    let png = |color, raw: &[u8]| encoded(ImageFormat::Png, 2, 1, color, raw);
    assert_eq!(decoded(&png(Rgb8, &[1, 2, 3, 4, 5, 6])), [1, 2, 3, 4, 5, 6]);
    // Alpha is dropped, not blended: a fully transparent pixel keeps its colour.
    assert_eq!(decoded(&png(Rgba8, &[1, 2, 3, 0, 4, 5, 6, 255])), [1, 2, 3, 4, 5, 6]);
    assert_eq!(decoded(&png(L8, &[7, 200])), [7, 7, 7, 200, 200, 200]);
    assert_eq!(decoded(&png(La8, &[7, 0, 200, 9])), [7, 7, 7, 200, 200, 200]);
    // 16 bits: the high byte, also where rounding would go up (0x12FF).
    let wide: Vec<u8> =
        [0x12FFu16, 0x3400, 0xFFFF, 0, 0x00FF, 0x8000].iter().flat_map(|v| v.to_ne_bytes()).collect();
    assert_eq!(decoded(&png(Rgb16, &wide)), [0x12, 0x34, 0xFF, 0, 0, 0x80]);
    assert_eq!(decoded(&png(L16, &wide[..4])), [0x12, 0x12, 0x12, 0x34, 0x34, 0x34]);
    let webp = encoded(ImageFormat::WebP, 2, 1, Rgba8, &[1, 2, 3, 255, 4, 5, 6, 128]);
    assert_eq!(decoded(&webp), [1, 2, 3, 4, 5, 6]);
}

/// A PNG chunk: length, type, data, CRC.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind, data].concat();
    let mut crc = !0u32;
    for &byte in &body {
        crc ^= byte as u32;
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    [&(data.len() as u32).to_be_bytes()[..], &body, &(!crc).to_be_bytes()].concat()
}

/// The signature and header of a PNG with 8 bits per sample.
fn png_head(w: u32, h: u32, color: u8) -> Vec<u8> {
    let mut header = [w.to_be_bytes(), h.to_be_bytes()].concat();
    header.extend([8, color, 0, 0, 0]);
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header)].concat()
}

/// Image data as one stored (uncompressed) deflate block.
fn png_data(raw: &[u8]) -> Vec<u8> {
    let n = raw.len() as u16;
    let (mut a, mut b) = (1u32, 0u32);
    for &v in raw {
        a = (a + v as u32) % 65521;
        b = (b + a) % 65521;
    }
    let adler = (b << 16 | a).to_be_bytes();
    let z = [&[0x78, 1, 1][..], &n.to_le_bytes(), &(!n).to_le_bytes(), raw, &adler].concat();
    [chunk(b"IDAT", &z), chunk(b"IEND", &[])].concat()
}

#[test]
fn palettes_and_animations() {
    let palette = [
        png_head(3, 1, 3),
        chunk(b"PLTE", &[10, 11, 12, 20, 21, 22]),
        chunk(b"tRNS", &[0, 255]),
        png_data(&[0, 1, 0, 1]),
    ]
    .concat();
    assert_eq!(decoded(&palette), [20, 21, 22, 10, 11, 12, 20, 21, 22]);

    let control = [&[0; 4][..], &[0, 0, 0, 1, 0, 0, 0, 1], &[0; 8], &[0, 1, 0, 1, 0, 0]].concat();
    let animated = [
        png_head(1, 1, 0),
        chunk(b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]),
        chunk(b"fcTL", &control),
        png_data(&[0, 42]),
    ]
    .concat();
    assert_eq!(decoded(&animated), [42; 3], "the first frame");
}

#[test]
fn content_decides_and_not_the_extension() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("photo.png");
    let gray = vec![128; 16 * 16 * 3];
    std::fs::write(&path, encoded(ImageFormat::Jpeg, 16, 16, ExtendedColorType::Rgb8, &gray)).unwrap();
    let p = Picture::from_path(&path).unwrap();
    assert_eq!((p.width, p.height), (16, 16));
    assert!(p.data.iter().all(|v| v.abs_diff(128) <= 1));
}

#[test]
fn bad_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Picture::from_path(path)
    };
    refused(Picture::from_path(dir.path().join("absent.png")), &["absent.png", "No such file"]);
    refused(at("empty.png", b""), &["empty.png", "empty (0 bytes)"]);
    refused(at("text.jpg", b"hello, this is no image"), &["text.jpg", "not an image in a known format"]);
    refused(at("a.gif", b"GIF89a\x01\0\x01\0\0\0\0"), &["a.gif", "Gif", "PNG, JPEG or WebP"]);

    let noise: Vec<u8> = (0..64 * 64 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (format, name) in
        [(ImageFormat::Png, "PNG"), (ImageFormat::WebP, "WebP"), (ImageFormat::Jpeg, "JPEG")]
    {
        let whole = encoded(format, 64, 64, ExtendedColorType::Rgb8, &noise);
        assert_eq!(Picture::from_bytes(&whole, "whole").unwrap().width, 64, "{name}");
        for keep in [whole.len() / 2, 40, 16] {
            refused(at("cut.bin", &whole[..keep]), &["cut.bin", "corrupt", name]);
        }
    }
    let mut flipped = encoded(ImageFormat::Png, 64, 64, ExtendedColorType::Rgb8, &noise);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    refused(at("flipped.png", &flipped), &["flipped.png", "corrupt PNG"]);
}

#[test]
fn the_pixel_limit_is_checked_before_decoding() {
    let huge = [png_head(30_000, 30_000, 2), png_data(&[0; 64])].concat();
    let parts = ["huge.png", "30000x30000 = 900.0 megapixels", "limit is 100 megapixels"];
    refused(Picture::from_bytes(&huge, "huge.png"), &parts);
    // The smallest and a long one pass.
    assert_eq!(decoded(&[png_head(1, 1, 2), png_data(&[0, 1, 2, 3])].concat()), [1, 2, 3]);
    let line = encoded(ImageFormat::Png, 20_000, 1, ExtendedColorType::L8, &[50; 20_000]);
    let picture = Picture::from_bytes(&line, "line").unwrap();
    let tiles = tile(&picture, TileOptions::default()).unwrap();
    assert_eq!(tiles.grid, (12, 1));
    assert!(tiles.data.iter().all(|&v| v == 50));
}

#[test]
fn pictures_from_memory_are_checked() {
    refused(Picture::new(0, 5, vec![]), &["0x5 has no pixels"]);
    refused(Picture::new(2, 2, vec![0; 11]), &["2x2 RGB needs", "got 11"]);
    refused(Picture::new(usize::MAX, 2, vec![]), &["needs width * height * 3"]);
}
