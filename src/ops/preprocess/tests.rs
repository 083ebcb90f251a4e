use super::*;
use crate::core::{HostData, Step};
use crate::media::bicubic::Axis;
use crate::media::fbank::{BINS, FbankOptions, fbank, frame_count, mel_width, op_tables};
use crate::media::image::Picture;
use crate::media::tiles::{TileOptions, normalised, tile};
use crate::ops::testing::{floats, ids, run};

fn frames(samples: &[f32]) -> Vec<f32> {
    let (window, spans, mel) = op_tables();
    let ins = vec![
        floats("samples", &[samples.len()], samples),
        floats("window", &[FRAME], &window),
        ids("spans", &[BINS, 2], &spans),
        floats("mel", &[BINS, mel_width()], &mel),
    ];
    run(Filterbank, Step::default(), ins).unwrap()[0].f32s().to_vec()
}

#[test]
fn frames_are_those_of_the_host() {
    let noise = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5;
    let speech = |i: usize| {
        let t = i as f32 / 16_000.0;
        0.3 * (t * 1300.0 + (t * 30.0).sin()).sin() * (t * 12.0).sin() + 0.01 * noise(i) + 0.02
    };
    for (name, wave) in
        [("noise", &noise as &dyn Fn(usize) -> f32), ("speech", &speech), ("constant", &|_| 0.3)]
    {
        for n in [400, 559, 560, 16_001] {
            let samples: Vec<f32> = (0..n).map(wave).collect();
            let (got, want) = (frames(&samples), fbank(&samples, FbankOptions::default()).unwrap());
            assert_eq!((got.len(), want.frames), (want.data.len(), frame_count(n)));
            let worst = got.iter().zip(&want.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{name}, {n} samples: {worst}");
        }
    }
}

#[test]
fn tiles_are_those_of_the_host_to_the_bit() {
    for (width, height, size) in
        [(56, 56, 56), (1, 1, 28), (131, 47, 28), (40, 300, 28), (613, 401, 56), (9, 7, 4)]
    {
        let bytes = (0..width * height * 3).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 19) as u8);
        let picture = Picture::new(width, height, bytes.collect()).unwrap();
        let want = tile(&picture, TileOptions { size, ..TileOptions::default() }).unwrap();
        let (columns, rows) = want.grid;
        let mut words = vec![0u32; (width * height * 3).div_ceil(4)];
        bytemuck::cast_slice_mut::<u32, u8>(&mut words)[..picture.data.len()].copy_from_slice(&picture.data);
        let mut ins = Vec::new();
        for (columns, rows) in [(columns, rows), (1, 1)].into_iter().take(1 + usize::from(want.count > 1)) {
            let axis = |from, to| {
                let (words, cols) = Axis::whole(from, to).words();
                assert_eq!(cols, 2 + Axis::taps(from, to));
                ids("axis", &[to, cols], &words)
            };
            let across = vec![ids("picture", &[words.len()], &words), axis(width, columns * size)];
            let x = run(ResizeWidth { width, height }, Step::default(), across).unwrap();
            ins.push(ids("x", &[height, 3 * columns * size / 4], x[0].u32s()));
            ins.push(axis(height, rows * size));
        }
        ins.push(floats("table", &[3, 256], &normalised().concat()));
        let got = run(ResizeToTiles { size, columns, rows }, Step::default(), ins).unwrap();
        assert!(got[0] == HostData::F32(want.pixel_values().unwrap()), "{width}x{height} at {size}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let few = vec![floats("samples", &[399], &[0.0; 399])];
    let message = run(Filterbank, Step::default(), few).unwrap_err().to_string();
    assert!(message.starts_with("Filterbank wants samples f32 [N >= 400]"), "{message}");
    let odd = vec![ids("picture", &[3], &[0; 3]), ids("axis", &[6, 3], &[0; 18])];
    let message = run(ResizeWidth { width: 2, height: 2 }, Step::default(), odd).unwrap_err().to_string();
    assert!(message.starts_with("ResizeWidth wants pixels u32 [3], axis u32 [to, 2 + taps]"), "{message}");
}
