//! Dynamic tiling: a picture becomes 1 to 12 square tiles of the encoder's size, and a thumbnail when there are
//! several. The rules are InternVL's; the pixels are those of [`super::bicubic`].

use std::borrow::Cow;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::bicubic::{Axis, Between};
use super::image::Picture;
use crate::core::error::Result;
use crate::ensure_input;

/// Channel means of the vision encoder's training data (ImageNet), for values in 0..1.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Channel deviations that go with [`MEAN`].
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// How pictures are tiled; `size` comes from the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileOptions {
    /// Side of a tile in pixels.
    pub size: usize,
    pub min_tiles: usize,
    /// The thumbnail comes on top.
    pub max_tiles: usize,
}

impl Default for TileOptions {
    fn default() -> TileOptions {
        TileOptions { size: 448, min_tiles: 1, max_tiles: 12 }
    }
}

/// Tiles of one picture, or the frames of one video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles<'p> {
    /// Side of a tile in pixels.
    pub size: usize,
    /// Tiles in `data`: columns · rows, and the thumbnail when that is more than 1. Each is one `<image>`.
    pub count: usize,
    /// (columns, rows); (1, count) for video frames.
    pub grid: (usize, usize),
    /// `[count, size, size, 3]`, RGB; row by row, the thumbnail last. A picture of the size of a tile is its own tile.
    pub data: Cow<'p, [u8]>,
}

impl Tiles<'_> {
    /// One black tile.
    pub fn blank(size: usize) -> Tiles<'static> {
        Tiles { size, count: 1, grid: (1, 1), data: vec![0; 3 * size * size].into() }
    }

    /// Writes `(v / 255 - mean) / std` as `[count, 3, size, size]`. Fails when `out` has another length.
    pub fn write_pixel_values(&self, out: &mut [f32]) -> Result<()> {
        let plane = self.size * self.size;
        ensure_input!(
            out.len() == self.count * 3 * plane,
            "pixel_values: [{}, 3, {}, {}] needs {} values, the buffer has {}",
            self.count,
            self.size,
            self.size,
            self.count * 3 * plane,
            out.len()
        );
        let table = normalised();
        out.par_chunks_mut(3 * plane).zip(self.data.par_chunks(3 * plane)).for_each(|(out, tile)| {
            let (r, gb) = out.split_at_mut(plane);
            let (g, b) = gb.split_at_mut(plane);
            for (((px, r), g), b) in tile.as_chunks::<3>().0.iter().zip(r).zip(g).zip(b) {
                *r = table[0][px[0] as usize];
                *g = table[1][px[1] as usize];
                *b = table[2][px[2] as usize];
            }
        });
        Ok(())
    }

    /// [`Tiles::write_pixel_values`] into a new vector.
    pub fn pixel_values(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.count * 3 * self.size * self.size];
        self.write_pixel_values(&mut out)?;
        Ok(out)
    }
}

/// The normalised value of each byte, per channel.
pub fn normalised() -> &'static [[f32; 256]; 3] {
    static TABLE: OnceLock<[[f32; 256]; 3]> = OnceLock::new();
    TABLE.get_or_init(|| {
        std::array::from_fn(|c| std::array::from_fn(|v| (v as f32 / 255.0 - MEAN[c]) / STD[c]))
    })
}

/// The grid (columns, rows) for a picture: the one nearest in aspect ratio, in order of its tile count; of grids
/// equally near, a larger one wins only while the picture fills more than half of its pixels.
pub fn choose_grid(width: usize, height: usize, o: TileOptions) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    let area = width as f64 * height as f64;
    let tile = (o.size * o.size) as f64;
    let (mut best, mut best_diff) = ((1, 1), f64::INFINITY);
    for n in o.min_tiles..=o.max_tiles {
        for columns in (1..=n).filter(|c| n % c == 0) {
            let rows = n / columns;
            let diff = (aspect - columns as f64 / rows as f64).abs();
            if diff < best_diff || (diff == best_diff && area > 0.5 * tile * n as f64) {
                (best, best_diff) = ((columns, rows), diff);
            }
        }
    }
    best
}

/// Tiles a picture. Fails when the options make no sense or the picture is thousands of times taller than wide.
pub fn tile(src: &Picture, o: TileOptions) -> Result<Tiles<'_>> {
    ensure_input!(
        o.size > 0 && o.min_tiles > 0 && o.min_tiles <= o.max_tiles,
        "tiling: size {}, {} to {} tiles: wanted a positive size and 1 <= min <= max",
        o.size,
        o.min_tiles,
        o.max_tiles
    );
    let (columns, rows) = choose_grid(src.width, src.height, o);
    let s = o.size;
    if (columns, rows) == (1, 1) && (src.width, src.height) == (s, s) {
        return Ok(Tiles { size: s, count: 1, grid: (1, 1), data: Cow::Borrowed(&src.data) });
    }
    let resized = |columns: usize, rows: usize| {
        Between::new(src, &Axis::whole(src.width, s * columns), Axis::whole(src.height, s * rows))
    };
    let several = columns * rows > 1;
    let (main, thumbnail) =
        rayon::join(|| resized(columns, rows), || several.then(|| resized(1, 1)).transpose());
    let (main, thumbnail) = (main?, thumbnail?);
    let count = columns * rows + several as usize;
    let mut data = vec![0; count * s * s * 3];
    // Rows of the resized picture land in their tiles at once.
    data.par_chunks_mut(s * 3).with_min_len(8).enumerate().for_each(|(r, out)| {
        let (tile, y) = (r / s, r % s);
        match &thumbnail {
            Some(t) if tile == columns * rows => t.row(y, 0, out),
            _ => main.row(tile / columns * s + y, tile % columns * s * 3, out),
        }
    });
    Ok(Tiles { size: s, count, grid: (columns, rows), data: data.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(width: usize, height: usize, size: usize) -> (usize, usize) {
        choose_grid(width, height, TileOptions { size, ..TileOptions::default() })
    }

    #[test]
    fn the_nearest_aspect_ratio_wins() {
        assert_eq!(grid(640, 480, 448), (4, 3));
        assert_eq!(grid(480, 640, 448), (3, 4));
        assert_eq!(grid(1024, 300, 448), (3, 1));
        assert_eq!(grid(1920, 1080, 448), (4, 2)); // 16:9 is nearer to 2 than to 3/2, and large enough for 8 tiles
        assert_eq!(grid(10_000, 1, 448), (12, 1));
        assert_eq!(grid(1, 10_000, 448), (1, 12));
    }

    #[test]
    fn ties_go_to_the_larger_grid_only_when_the_picture_fills_half_of_it() {
        assert_eq!(grid(448, 448, 448), (1, 1));
        // 2x2 tiles are 4 · 448², half of that is 633.6²; 3x3 is 950.3².
        assert_eq!(grid(633, 633, 448), (1, 1));
        assert_eq!(grid(634, 634, 448), (2, 2));
        assert_eq!(grid(950, 950, 448), (2, 2));
        assert_eq!(grid(951, 951, 448), (3, 3));
        // 1:2 with few pixels stays at 2 tiles: 2x4 wants more than 4 · 448² pixels.
        assert_eq!(grid(448, 896, 448), (1, 2));
    }

    #[test]
    fn limits_on_the_number_of_tiles_hold() {
        let o = TileOptions { size: 448, min_tiles: 1, max_tiles: 1 };
        assert_eq!(choose_grid(1920, 1080, o), (1, 1));
        let o = TileOptions { size: 448, min_tiles: 4, max_tiles: 6 };
        assert_eq!(choose_grid(100, 100, o), (2, 2));
        let p = Picture::new(1, 1, vec![9, 8, 7]).unwrap();
        let e = tile(&p, TileOptions { size: 56, min_tiles: 3, max_tiles: 2 }).unwrap_err().to_string();
        assert!(e.contains("3 to 2 tiles"), "{e}");
    }

    #[test]
    fn a_picture_of_the_size_of_a_tile_is_its_tile() {
        let o = TileOptions { size: 56, ..TileOptions::default() };
        let p = Picture::new(56, 56, (0..56 * 56 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
        let t = tile(&p, o).unwrap();
        assert_eq!((t.count, t.grid, &t.data[..]), (1, (1, 1), &p.data[..]));
        // One column of pixels more, and it is resized.
        let wide = Picture::new(57, 56, (0..57 * 56 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
        let t = tile(&wide, o).unwrap();
        let resized = super::super::bicubic::resize(&wide, 56, 56).unwrap();
        assert_eq!((t.count, &t.data[..]), (1, &resized.data[..]));
    }

    #[test]
    fn one_pixel_fills_a_tile() {
        let p = Picture::new(1, 1, vec![9, 8, 7]).unwrap();
        let t = tile(&p, TileOptions::default()).unwrap();
        assert_eq!((t.count, t.grid, t.data.len()), (1, (1, 1), 448 * 448 * 3));
        assert!(t.data.as_chunks::<3>().0.iter().all(|p| *p == [9, 8, 7]));
        let px = t.pixel_values().unwrap();
        assert_eq!(px.len(), 3 * 448 * 448);
        assert!((px[448 * 448] - (8.0 / 255.0 - 0.456) / 0.224).abs() < 1e-6);
        let e = t.write_pixel_values(&mut [0.0; 5]).unwrap_err().to_string();
        assert!(e.contains("[1, 3, 448, 448] needs 602112 values, the buffer has 5"), "{e}");
    }
}
