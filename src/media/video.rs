//! Videos, given as decoded frames: which frames to take, and how a frame becomes one tile. Reading video containers
//! is left to the caller.

use rayon::prelude::*;

use super::bicubic::{Axis, Between};
use super::image::Picture;
use super::tiles::Tiles;
use crate::core::error::Result;
use crate::ensure_input;

/// Frames taken of a video at least; a shorter one repeats some.
pub const MIN_FRAMES: usize = 4;
/// Frames taken of a video at most.
pub const MAX_FRAMES: usize = 16;

/// Indices of the frames to take of a video with `frames` frames at `fps`: one per second, and where that makes fewer
/// than 4 or more than 16, that many spread evenly over the per-second frames.
///
/// Fails when there is no frame or `fps` is not a positive number.
pub fn choose_frames(frames: usize, fps: f64) -> Result<Vec<usize>> {
    ensure_input!(frames > 0, "video: it has no frames");
    ensure_input!(fps.is_finite() && fps > 0.0, "video: {fps} frames per second: wanted a positive number");
    let stride = (fps.round_ties_even() as usize).max(1);
    let seconds = frames.div_ceil(stride);
    let want = seconds.clamp(MIN_FRAMES, MAX_FRAMES);
    if want == seconds {
        return Ok((0..frames).step_by(stride).collect());
    }
    // linspace(0, seconds - 1, want) truncated to integers; the last point is exact.
    let step = (seconds - 1) as f64 / (want - 1) as f64;
    let at = |i: usize| if i == want - 1 { seconds - 1 } else { (i as f64 * step) as usize };
    Ok((0..want).map(|i| at(i) * stride).collect())
}

/// Makes each frame one tile: the shortest side to `size` (bicubic), then the central `size` x `size`.
///
/// The frames may differ in size. Fails when there is none.
pub fn frame_tiles(frames: &[Picture], size: usize) -> Result<Tiles<'static>> {
    ensure_input!(!frames.is_empty(), "video: it has no frames");
    ensure_input!(size > 0, "video: the tile size is 0");
    let frame_bytes = size * size * 3;
    let mut data = vec![0; frames.len() * frame_bytes];
    data.par_chunks_mut(frame_bytes).zip(frames).enumerate().try_for_each(|(i, (out, frame))| {
        let between = Between::new(
            frame,
            &axis(frame.width, frame.height, size),
            axis(frame.height, frame.width, size),
        )
        .map_err(|e| e.context(format!("video frame {i}")))?;
        out.chunks_exact_mut(size * 3).enumerate().for_each(|(y, row)| between.row(y, 0, row));
        Ok(())
    })?;
    Ok(Tiles { size, count: frames.len(), grid: (1, frames.len()), data: data.into() })
}

/// The axis of length `own` in a picture whose other side is `other`: only the central part is kept.
fn axis(own: usize, other: usize, size: usize) -> Axis {
    // In f64 first, then truncated, as the reference does.
    let to = if own > other { (size as f64 * own as f64 / other as f64) as usize } else { size };
    let first = (to - size) / 2;
    Axis::new(own, to, first..first + size)
}

#[cfg(test)]
mod tests {
    use super::super::bicubic::resize;
    use super::*;

    #[test]
    fn one_frame_per_second_between_4_and_16() {
        assert_eq!(choose_frames(150, 30.0).unwrap(), [0, 30, 60, 90, 120]);
        assert_eq!(choose_frames(150, 29.97).unwrap(), [0, 30, 60, 90, 120]);
        // 2 s: frames 0 and 30, spread to 4 by truncation: 0, 1/3, 2/3, 1.
        assert_eq!(choose_frames(60, 30.0).unwrap(), [0, 0, 0, 30]);
        assert_eq!(choose_frames(1, 25.0).unwrap(), [0; 4]);
        // 31 s: 31 frames to 16, every second one.
        assert_eq!(choose_frames(310, 10.0).unwrap(), (0..16).map(|i| i * 20).collect::<Vec<_>>());
        assert_eq!(choose_frames(16, 0.2).unwrap(), (0..16).collect::<Vec<_>>());
        // 100 s: linspace(0, 99, 16) truncated.
        assert_eq!(
            choose_frames(100, 1.0).unwrap(),
            [0, 6, 13, 19, 26, 33, 39, 46, 52, 59, 66, 72, 79, 85, 92, 99]
        );
    }

    #[test]
    fn impossible_videos_say_why() {
        assert_eq!(choose_frames(0, 25.0).unwrap_err().to_string(), "video: it has no frames");
        for fps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(choose_frames(9, fps).unwrap_err().to_string().contains("wanted a positive number"));
        }
        assert_eq!(frame_tiles(&[], 448).unwrap_err().to_string(), "video: it has no frames");
    }

    #[test]
    fn a_frame_is_the_centre_of_the_resized_picture() {
        let picture = |w: usize, h: usize| {
            let data = (0..w * h * 3).map(|i| (i * 53 % 249) as u8).collect();
            Picture::new(w, h, data).unwrap()
        };
        let (wide, tall) = (picture(131, 47), picture(33, 90));
        let t = frame_tiles(&[wide.clone(), tall.clone()], 56).unwrap();
        assert_eq!((t.count, t.data.len()), (2, 2 * 56 * 56 * 3));
        // 56 · 131 / 47 = 156.08 -> 156 wide, crop from 50; 56 · 90 / 33 = 152.7 -> 152 tall, crop from 48.
        let (w, h) = (resize(&wide, 156, 56).unwrap(), resize(&tall, 56, 152).unwrap());
        for y in 0..56 {
            assert_eq!(t.data[y * 168..][..168], w.data[(y * 156 + 50) * 3..][..168], "wide, row {y}");
            assert_eq!(t.data[(56 + y) * 168..][..168], h.data[(48 + y) * 168..][..168], "tall, row {y}");
        }
        // A needle costs no more than its crop.
        assert_eq!(frame_tiles(&[picture(200_000, 1)], 56).unwrap().count, 1);
    }
}
