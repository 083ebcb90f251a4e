//! The position embedding for another tile size than the one that it was stored for.

use std::sync::Arc;

use super::VisionConfig;
use crate::core::Result;
use crate::weights::{Info, Overlay, Source, convert};

const NAME: &str = "model.vision_tower.vision_tower.embeddings.position_embedding";

/// How many times larger than the stored grid a grid may be along a side: what a config asks for stays in proportion to
/// what the files hold.
const MOST_GROWTH: usize = 8;

/// Parameter of the cubic, torch's. Pillow's, with which pictures are resized, is another.
const A: f32 = -0.75;

/// Puts an interpolated position embedding in the place of the stored one where the tiles of `vision` have another grid
/// of patches. Rows that are not a class token and a square grid stay as they are, as do those of a grid far smaller than
/// is wanted, and fail as any wrong shape does.
pub(super) fn with_positions(
    stored: Arc<dyn Source>,
    vision: Option<&VisionConfig>,
) -> Result<Arc<dyn Source>> {
    let (Some(vision), Some(info)) = (vision, stored.info(NAME)) else { return Ok(stored) };
    let width = vision.hidden_size;
    let to = vision.image_size / vision.patch_size;
    let (Some(dtype), Some(from)) = (info.dtype, grid(&info, width)) else { return Ok(stored) };
    if from == to || to > MOST_GROWTH.saturating_mul(from) {
        return Ok(stored);
    }
    let mut rows = vec![0.0; info.len()];
    convert::widen(dtype, stored.bytes(NAME)?, &mut rows);
    let rows = interpolate(&rows, width, from, to);
    tracing::info!("{NAME}: {from} x {from} patches interpolated to {to} x {to}");
    let place = format!("{}, interpolated", stored.place(NAME));
    let mut all = Overlay::new(stored);
    all.add(NAME, dtype, &[1, to * to + 1, width], &rows, &place);
    Ok(Arc::new(all))
}

/// Patches along a side of the stored grid; `None` for a shape that is not `[1, 1 + n * n, width]`.
fn grid(info: &Info, width: usize) -> Option<usize> {
    let &[1, rows, found] = info.shape.as_slice() else { return None };
    let patches = rows.checked_sub(1)?;
    let side = patches.isqrt();
    (found == width && side > 0 && side * side == patches).then_some(side)
}

/// The row of the class token as it is, and the grid of `from` x `from` rows as one of `to` x `to`: bicubic as torch's
/// `interpolate` with `align_corners=False`, without antialiasing.
fn interpolate(rows: &[f32], width: usize, from: usize, to: usize) -> Vec<f32> {
    let (class, grid) = rows.split_at(width);
    let taps = taps(from, to);
    let mut out = Vec::with_capacity((to * to + 1) * width);
    out.extend_from_slice(class);
    for down in &taps {
        for across in &taps {
            out.extend(
                (0..width).map(|c| blend(down, |y| blend(across, |x| grid[(y * from + x) * width + c]))),
            );
        }
    }
    out
}

/// A neighbour and its weight.
type Tap = (usize, f32);

/// The four neighbours of each of `to` places along a side of `from`; beyond the border the last one counts again.
fn taps(from: usize, to: usize) -> Vec<[Tap; 4]> {
    let scale = from as f32 / to as f32;
    let place = |i: usize| {
        let at = scale * (i as f32 + 0.5) - 0.5;
        let below = at.floor();
        let weights = weights(at - below);
        std::array::from_fn(|k| {
            let neighbour = (below + k as f32 - 1.0).clamp(0.0, (from - 1) as f32);
            (neighbour as usize, weights[k])
        })
    };
    (0..to).map(place).collect()
}

/// Weights of the neighbours at -1, 0, 1 and 2 for a place `t` behind the one at 0.
fn weights(t: f32) -> [f32; 4] {
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let rest = 1.0 - t;
    [far(t + 1.0), near(t), near(rest), far(rest + 1.0)]
}

fn blend(taps: &[Tap; 4], value: impl Fn(usize) -> f32) -> f32 {
    taps.iter().map(|&(at, weight)| weight * value(at)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::DType;
    use crate::models::config::{Hints, ModelConfig};
    use crate::weights::SynthSource;

    /// A class row of -1 and a grid of `value(y, x)`, the second channel the first with its sign turned.
    fn stored(side: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        let patch = |i: usize| value(i / side, i % side);
        let grid = (0..side * side).flat_map(|i| [patch(i), -patch(i)]);
        [-1.0, -1.0].into_iter().chain(grid).collect()
    }

    /// The first channel of the grid; the class row and the second channel are checked.
    fn interpolated(rows: &[f32], from: usize, to: usize) -> Vec<f32> {
        let out = interpolate(rows, 2, from, to);
        assert_eq!((out.len(), &out[..2]), (2 * (to * to + 1), &[-1.0, -1.0][..]));
        let patches = out[2..].as_chunks::<2>().0;
        assert!(patches.iter().all(|&[a, b]| a == -b));
        patches.iter().map(|&[a, _]| a).collect()
    }

    #[test]
    fn constants_stay_constant() {
        for (from, to) in [(1, 2), (4, 6), (6, 4), (32, 24), (32, 46)] {
            let out = interpolated(&stored(from, |_, _| 3.0), from, to);
            let worst = out.iter().fold(0f32, |worst, x| worst.max((x - 3.0).abs()));
            assert!(worst < 1e-5, "{from} to {to}: {worst}");
        }
    }

    /// At half the size, places lie in the middle between neighbours, and at a third on one of them: there the cubic
    /// keeps a ramp. (Elsewhere it only does with -0.5 for the parameter.)
    #[test]
    fn a_ramp_keeps_its_inner_values() {
        for (from, to, inner) in [(8, 4, 1..3), (9, 3, 0..3)] {
            let out = interpolated(&stored(from, |y, x| 10.0 * y as f32 + x as f32), from, to);
            let step = from / to;
            let place = |i: usize| (i * step) as f32 + (step - 1) as f32 / 2.0;
            for (y, x) in inner.clone().flat_map(|y| inner.clone().map(move |x| (y, x))) {
                let (want, found) = (10.0 * place(y) + place(x), out[y * to + x]);
                assert!((want - found).abs() < 1e-5, "{from} to {to}, {y} {x}: {found}, not {want}");
            }
        }
    }

    /// 4 to 8: place 3 is 1.25, a quarter behind neighbour 1, and place 0 is -0.25, where neighbours -2, -1 and 0 are all
    /// the first. With a = -0.75, t(1-t)²a, (a+2)t³-(a+3)t²+1, the second with 1-t, and t²(1-t)a give these weights.
    #[test]
    fn values_by_hand() {
        assert_eq!(weights(0.25), [-0.10546875, 0.87890625, 0.26171875, -0.03515625]);
        assert_eq!(weights(0.75), [-0.03515625, 0.26171875, 0.87890625, -0.10546875]);
        // Along a row 1, 2, 4, 8; the third row lies 16 higher.
        let rows = stored(4, |y, x| [1.0, 2.0, 4.0, 8.0][x] + if y == 2 { 16.0 } else { 0.0 });
        let out = interpolated(&rows, 4, 8);
        let along = -0.10546875 * 1.0 + 0.87890625 * 2.0 + 0.26171875 * 4.0 - 0.03515625 * 8.0;
        assert_eq!(along, 619.0 / 256.0);
        assert_eq!(out[3], along); // its last neighbour is row 1
        assert_eq!(out[3 * 8 + 3], along + 0.26171875 * 16.0);
        assert_eq!(out[0], 1.0 - 0.10546875 * (2.0 - 1.0));
    }

    fn source(shape: &[usize]) -> Arc<dyn Source> {
        Arc::new(SynthSource::new(0, DType::F16, vec![(NAME.to_owned(), shape.to_vec())]))
    }

    #[test]
    fn only_another_square_grid_is_interpolated() {
        let tiny = include_str!("../../../tests/fixtures/tiny.json");
        let vision = ModelConfig::from_value(&serde_json::from_str(tiny).unwrap(), "tiny.json", Hints::NONE)
            .unwrap()
            .vision
            .unwrap();
        let shape = |rows: &[usize], image_size| {
            let vision = VisionConfig { image_size, ..vision.clone() };
            with_positions(source(rows), Some(&vision)).unwrap().info(NAME).unwrap()
        };
        assert_eq!(shape(&[1, 17, 128], 84), Info::new(DType::F16, &[1, 37, 128]));
        assert_eq!(shape(&[1, 17, 128], 28), Info::new(DType::F16, &[1, 5, 128]));
        assert_eq!(shape(&[1, 2, 128], 8 * 14), Info::new(DType::F16, &[1, 65, 128]));
        for (rows, image_size) in [
            (&[1, 17, 128][..], 56),
            (&[1, 18, 128], 84),
            (&[1, 1, 128], 84),
            (&[1, 0, 128], 84),
            (&[1, 17, 120], 84),
            (&[2, 17, 128], 84),
            (&[17, 128], 84),
            (&[1, 2, 128], 10 * 14),
        ] {
            assert_eq!(shape(rows, image_size).shape, rows, "{image_size}");
        }

        // Nothing is made of the same grid, and a text model has none.
        let same = with_positions(source(&[1, 17, 128]), Some(&vision)).unwrap();
        assert!(same.synth(NAME).is_some());
        assert!(with_positions(source(&[1, 17, 128]), None).unwrap().synth(NAME).is_some());
    }
}
