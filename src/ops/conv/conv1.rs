//! `conv/conv1.cu`, the convolution with one input channel on tensor cores: the launch.

/// Threads and channels of the kernel file.
const WARPS: usize = 4;
const SLAB: usize = 128;
/// CTAs that its registers leave on an SM.
const CTAS_PER_SM: usize = 4;

/// How the 16s of pixels are dealt out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// Warps per 128 channels; each takes every `slots`-th 16 pixels.
    pub slots: usize,
    pub ctas: usize,
}

/// As few warps as end in the rounds that all resident ones need. `pixels` and `channels` are not 0.
pub(super) fn plan(pixels: usize, channels: usize, sm_count: usize) -> Plan {
    let (groups, slabs) = (pixels.div_ceil(16), channels.div_ceil(SLAB));
    let resident = (sm_count * CTAS_PER_SM * WARPS / slabs).max(1);
    let slots = groups.div_ceil(groups.div_ceil(resident));
    Plan { slots, ctas: (slots * slabs).div_ceil(WARPS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warps_have_even_shares() {
        assert_eq!(plan(499 * 39, 1024, 132), Plan { slots: 244, ctas: 488 });
        assert_eq!(plan(1, 8, 132), Plan { slots: 1, ctas: 1 });
        for pixels in [1, 15, 17, 5811, 58461] {
            for channels in [8, 136, 1024, 1 << 20] {
                let Plan { slots, ctas } = plan(pixels, channels, 132);
                assert!((1..=pixels.div_ceil(16)).contains(&slots));
                assert!(ctas * WARPS >= slots * channels.div_ceil(SLAB), "{pixels} {channels}");
            }
        }
    }

    /// The kernel's arithmetic, lane by lane; `mma` as kernels/common/mma.cuh describes it.
    #[test]
    fn lanes_hold_windows_and_neighbouring_channels() {
        for (height, width, channels) in [(7, 9, 40), (12, 10, 136), (3, 3, 8), (9, 80, 264)] {
            let (out_height, out_width) = ((height - 3) / 2 + 1, (width - 3) / 2 + 1);
            let pixels = out_height * out_width;
            let x = |at: usize| {
                assert!(at < height * width);
                (at * 7 % 11) as f32 - 5.0
            };
            let w = |at: usize| (at * 5 % 13) as f32 - 6.0;
            let b = |n: usize| (n * 3 % 17) as f32 - 8.0;
            let mut y = vec![None; pixels * channels];
            let (Plan { slots, ctas }, slabs) = (plan(pixels, channels, 2), channels.div_ceil(SLAB));
            for warp in 0..ctas * WARPS {
                let n0 = warp % slabs * SLAB;
                let mut group = warp / slabs;
                if group >= slots.min(pixels.div_ceil(16)) {
                    continue;
                }
                while group < pixels.div_ceil(16) {
                    let mut a = [[0.0; 16]; 16];
                    for lane in 0..32 {
                        let (g, t) = (lane / 4, lane % 4);
                        let tap = |k: usize| k / 3 * width + k % 3;
                        for h in 0..2 {
                            let pixel = (group * 16 + g + 8 * h).min(pixels - 1);
                            let at = (pixel / out_width * width + pixel % out_width) * 2;
                            let row = &mut a[g + 8 * h];
                            (row[2 * t], row[2 * t + 1]) = (x(at + tap(2 * t)), x(at + tap(2 * t + 1)));
                            if t == 0 {
                                (row[8], row[9]) = (x(at + 2 * width + 2), 1.0);
                            }
                        }
                    }
                    for i in 0..SLAB / 32 {
                        let mut c = [[[0.0; 8]; 16]; 4];
                        for (j, c) in c.iter_mut().enumerate() {
                            let mut weights = [[0.0; 8]; 16];
                            for lane in 0..32 {
                                let (g, t) = (lane / 4, lane % 4);
                                let n = (n0 + 32 * i + g / 2 * 8 + 2 * j + g % 2).min(channels - 1);
                                (weights[2 * t][g], weights[2 * t + 1][g]) =
                                    (w(n * 9 + 2 * t), w(n * 9 + 2 * t + 1));
                                if t == 0 {
                                    (weights[8][g], weights[9][g]) = (w(n * 9 + 8), b(n));
                                }
                            }
                            for (row, out) in a.iter().zip(c.iter_mut()) {
                                for (col, out) in out.iter_mut().enumerate() {
                                    *out = (0..16).map(|k| row[k] * weights[k][col]).sum();
                                }
                            }
                        }
                        for lane in 0..32 {
                            let (g, t) = (lane / 4, lane % 4);
                            let n = n0 + 32 * i + 8 * t;
                            for row in [g, g + 8] {
                                let pixel = group * 16 + row;
                                if pixel < pixels && n < channels {
                                    for j in 0..8 {
                                        let old = &mut y[pixel * channels + n + j];
                                        assert_eq!(old.replace(c[j / 2][row][2 * t + j % 2]), None);
                                    }
                                }
                            }
                        }
                    }
                    group += slots;
                }
            }
            for (at, got) in y.into_iter().enumerate() {
                let (pixel, n) = (at / channels, at % channels);
                let corner = (pixel / out_width * width + pixel % out_width) * 2;
                let want: f32 = (0..9).map(|k| x(corner + k / 3 * width + k % 3) * w(n * 9 + k)).sum();
                assert_eq!(got, Some(want + b(n)), "{height} {width} {channels}: {pixel} {n}");
            }
        }
    }
}
