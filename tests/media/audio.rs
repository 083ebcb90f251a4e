use vivace::media::audio::{LONGEST_SECONDS, Sound};
use vivace::media::fbank::{Fbank, FbankOptions, fbank, log_mel, rows_for_frames};
use vivace::media::resample::resample;

use super::*;

fn frames(sound: &Sound) -> Fbank {
    log_mel(sound, FbankOptions::default()).unwrap()
}

/// Asserts that log energies agree within 1e-3, or that the energies do within `floor` of the frame's loudest. The
/// reference is f32 too: in bins far below the loudest its values are the rounding noise of its own FFT, and an f64
/// computation is as far from them as ours.
fn same_frames(case: &str, got: &Fbank, want: &[f32], floor: f32) {
    assert_eq!(got.data.len(), want.len(), "{case}");
    for (t, (got, want)) in got.data.chunks_exact(80).zip(want.chunks_exact(80)).enumerate() {
        let loudest = want.iter().copied().fold(f32::MIN, f32::max).exp();
        for (bin, (g, w)) in got.iter().zip(want).enumerate() {
            let close = (g - w).abs() < 1e-3 || (g.exp() - w.exp()).abs() < floor * loudest;
            assert!(close, "{case}: frame {t}, bin {bin}: {g}, reference {w}, loudest {}", loudest.ln());
        }
    }
}

#[test]
fn frames_and_waves_equal_the_reference() {
    let (Some(golden), Some(media)) = (shared("golden/preprocess"), shared("media")) else { return };
    let bytes = std::fs::read(golden.join("audio.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for rate in [8_000, 16_000, 22_050, 24_000, 44_100, 48_000] {
        let case = format!("chirp_{rate}");
        let sound = Sound::from_path(golden.join(format!("{case}.wav"))).unwrap();
        assert_eq!(sound.rate_hz, rate);
        let wave = f32s(&file, &format!("{case}.wave16k"));
        let (diff, at) = worst(&resample(&sound.samples, rate, 16_000), &wave);
        assert!(diff < 2e-5, "{case}: sample {at} of the wave is off by {diff}");
        let want = f32s(&file, &format!("{case}.fbank"));
        same_frames(&case, &fbank(&wave, FbankOptions::default()).unwrap(), &want, 1e-10);
        // The reference rounds its resampling weights to f32: 1e-5 in the wave, 1e-9 and more in the energies.
        same_frames(&case, &frames(&sound), &want, 1e-8);
    }
    for (name, t, rows) in [("q1.wav", 352, 44), ("q2.wav", 452, 56)] {
        let got = frames(&Sound::from_path(media.join(name)).unwrap());
        assert_eq!((got.frames, rows_for_frames(got.frames)), (t, rows), "{name}");
        let want = f32s(&file, &format!("{name}.fbank"));
        same_frames(name, &got, &want, 1e-10);
        let off = got.data.iter().zip(&want).filter(|(g, w)| (*g - *w).abs() >= 1e-3).count();
        assert!(off <= 10, "{name}: {off} of {} values are off by 1e-3 or more", want.len());
    }
}

/// A WAV file; `format` 1 is integer PCM, 3 is float.
fn wav(format: u16, bits: u16, channels: u16, rate: u32, data: &[u8]) -> Vec<u8> {
    let block = channels * bits / 8;
    let mut out = b"RIFF".to_vec();
    out.extend((36 + data.len() as u32).to_le_bytes());
    out.extend(b"WAVEfmt \x10\0\0\0");
    out.extend(format.to_le_bytes());
    out.extend(channels.to_le_bytes());
    out.extend(rate.to_le_bytes());
    out.extend((rate * block as u32).to_le_bytes());
    out.extend(block.to_le_bytes());
    out.extend(bits.to_le_bytes());
    out.extend(b"data");
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}

fn wav16(rate: u32, samples: &[i16]) -> Vec<u8> {
    wav(1, 16, 1, rate, &samples.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<_>>())
}

#[test]
fn every_sample_format_means_the_same() {
    let want = [0.0, 0.5, -0.5, -1.0];
    let from =
        |format, bits, data: &[u8]| Sound::from_bytes(&wav(format, bits, 1, 16_000, data), "x").unwrap();
    assert_eq!(from(1, 8, &[128, 192, 64, 0]).samples, want);
    assert_eq!(from(1, 16, &[0, 0, 0, 0x40, 0, 0xC0, 0, 0x80]).samples, want);
    assert_eq!(from(1, 24, &[0, 0, 0, 0, 0, 0x40, 0, 0, 0xC0, 0, 0, 0x80]).samples, want);
    let ints: Vec<u8> =
        [0, 1 << 30, -(1 << 30), i32::MIN].iter().flat_map(|v: &i32| v.to_le_bytes()).collect();
    assert_eq!(from(1, 32, &ints).samples, want);
    let floats: Vec<u8> = want.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(from(3, 32, &floats).samples, want);
    let doubles: Vec<u8> = want.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    assert_eq!(from(3, 64, &doubles).samples, want);
}

#[test]
fn only_the_first_channel_is_heard() {
    let mut data = Vec::new();
    for i in 0..5_000i16 {
        data.extend(i.to_le_bytes());
        data.extend((-9i16).to_le_bytes());
        data.extend(i16::MAX.to_le_bytes());
    }
    let sound = Sound::from_bytes(&wav(1, 16, 3, 44_100, &data), "x").unwrap();
    assert_eq!(sound.rate_hz, 44_100);
    assert_eq!(sound.samples, (0..5_000).map(|i| i as f32 / 32768.0).collect::<Vec<_>>());
}

/// The fixtures hold 0.25 s of 0.5 · sin(2π · 440 t) at 16 kHz.
fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

#[test]
fn compressed_formats_give_the_tone_back() {
    let tone: Vec<f32> =
        (0..4_000).map(|i| 0.5 * (i as f32 * 440.0 / 16_000.0 * std::f32::consts::TAU).sin()).collect();
    // The codecs with loss ring at the ends, where the tone begins and stops at once.
    for (name, inner, tolerance) in [("tone.flac", 0, 5e-5), ("tone.ogg", 200, 0.02), ("tone.mp3", 200, 0.03)]
    {
        // The name says nothing: content decides.
        let sound = Sound::from_bytes(&fixture(name), "question.wav").unwrap();
        assert_eq!((sound.rate_hz, sound.samples.len()), (16_000, 4_000), "{name}");
        let (diff, at) = worst(&sound.samples[inner..4_000 - inner], &tone[inner..4_000 - inner]);
        assert!(diff < tolerance, "{name}: sample {} is off by {diff}", at + inner);
    }
}

#[test]
fn damage_within_a_file_is_found() {
    let mut flac = fixture("tone.flac");
    let middle = flac.len() / 2;
    flac[middle..middle + 64].fill(0xA5);
    refused(Sound::from_bytes(&flac, "damaged.flac"), &["damaged.flac", "corrupt", "checksum"]);
    refused(Sound::from_bytes(&fixture("tone.flac")[..20], "cut.flac"), &["cut.flac"]);
}

#[test]
fn bad_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let from_path = Sound::from_path(&path);
        assert_eq!(from_path.is_ok(), Sound::from_bytes(bytes, name).is_ok(), "{name}: from memory");
        from_path
    };
    refused(Sound::from_path(dir.path().join("absent.wav")), &["absent.wav", "No such file"]);
    refused(Sound::from_path(dir.path()), &["not a regular file or a pipe"]);
    refused(Sound::from_path("/dev/zero"), &["/dev/zero", "not a regular file or a pipe"]);
    refused(at("empty.wav", b""), &["empty.wav", "empty (0 bytes)"]);
    refused(at("text.wav", b"hello, this is no sound"), &["text.wav", "WAV, FLAC, MP3 or OGG Vorbis"]);
    refused(at("zeros.mp3", &[0; 5_000]), &["zeros.mp3", "WAV, FLAC, MP3 or OGG Vorbis"]);
    let noise: Vec<u8> = (0..50_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    refused(at("noise.ogg", &noise), &["noise.ogg", "WAV, FLAC, MP3 or OGG Vorbis"]);
    refused(at("head.wav", &wav16(16_000, &[0; 99])[..30]), &["head.wav"]);
    refused(at("silent.wav", &wav16(16_000, &[])), &["silent.wav", "no samples"]);
    refused(at("slow.wav", &wav16(10, &[0; 99])), &["slow.wav", "10 samples per second", "1000 to 768000"]);
    let nan: Vec<u8> = [0.0, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
    refused(at("nan.wav", &wav(3, 32, 1, 16_000, &nan)), &["nan.wav", "sample 1", "NaN", "finite"]);
    let mut wide = wav16(16_000, &[0; 400]);
    wide[22..24].copy_from_slice(&60_000u16.to_le_bytes());
    refused(at("wide.wav", &wide), &["wide.wav", "60000 channels", "1 to 64"]);
    refused(at("dts.wav", &wav(0x2001, 16, 1, 16_000, &[0; 400])), &["dts.wav"]);
}

#[test]
fn a_file_that_ends_early_is_used_as_far_as_it_goes() {
    let whole = wav16(16_000, &[77; 10_000]);
    let sound = Sound::from_bytes(&whole[..44 + 2 * 5_000], "cut.wav").unwrap();
    assert_eq!(sound.samples, [77.0 / 32768.0; 5_000]);
    // A recorder that writes to a pipe cannot fill in the lengths.
    let mut piped = whole.clone();
    piped[4..8].fill(0xFF);
    piped[40..44].fill(0xFF);
    assert_eq!(Sound::from_bytes(&piped, "piped.wav").unwrap().samples.len(), 10_000);
}

/// A FLAC of silence: 16 bits, one channel, frames of 4096 samples, the last of them whole. What it states as checksum is
/// that of another sound.
fn silent_flac(rate: u32, samples: u64) -> Vec<u8> {
    let crc = |bytes: &[u8], bits: u32, poly: u32| {
        bytes.iter().fold(0u32, |crc, &b| {
            (0..8).fold(crc ^ (u32::from(b) << (bits - 8)), |crc, _| {
                let carry = crc >> (bits - 1) & 1;
                ((crc << 1) ^ (carry * poly)) & ((1 << bits) - 1)
            })
        })
    };
    let mut out = b"fLaC\x80\0\0\x22\x10\0\x10\0\0\0\0\0\0\0".to_vec();
    out.extend(((u64::from(rate) << 44) | (15 << 36) | samples).to_be_bytes());
    out.extend([0xA5; 16]);
    for i in 0..samples.div_ceil(4096) as u32 {
        // The number of a frame is written as UTF-8 writes a character.
        let number = char::from_u32(i).unwrap();
        let mut frame = b"\xff\xf8\xc0\x08".to_vec();
        frame.extend(number.encode_utf8(&mut [0; 4]).as_bytes());
        frame.push(crc(&frame, 8, 0x07) as u8);
        frame.extend([0; 3]); // the same value all along, which is 0
        frame.extend((crc(&frame, 16, 0x8005) as u16).to_be_bytes());
        out.extend(frame);
    }
    out
}

#[test]
fn a_flac_that_ends_early_is_used_as_far_as_it_goes() {
    let whole = silent_flac(16_000, 5 * 4096);
    refused(Sound::from_bytes(&whole, "whole.flac"), &["whole.flac", "20480 samples", "checksum"]);
    for cut in [1, 5, 11] {
        let sound = Sound::from_bytes(&whole[..whole.len() - cut], "cut.flac").unwrap();
        assert_eq!(sound.samples.len(), 4 * 4096, "{cut} bytes less");
    }
    // Of one frame alone nothing is left.
    let one = fixture("tone.flac");
    refused(Sound::from_bytes(&one[..one.len() - 1], "one.flac"), &["one.flac", "corrupt"]);
}

#[test]
fn what_lasts_longer_than_an_hour_is_refused_before_it_is_decoded() {
    let parts = ["up to 3600 s expected, found a longer one", "cut it into shorter pieces"];
    // Two days: 0.8 GB from 0.5 MB. What follows the hour is not looked at.
    let mut long = silent_flac(1_000, 200_000_000);
    let end = long.len();
    long[end / 2..].fill(0);
    refused(Sound::from_bytes(&long, "long.flac"), &[&parts[..], &["long.flac"]].concat());
    let samples = vec![128; 3_600_001];
    refused(
        Sound::from_bytes(&wav(1, 8, 1, 1_000, &samples), "long.wav"),
        &[&parts[..], &["long.wav"]].concat(),
    );
    let hour = Sound::from_bytes(&wav(1, 8, 1, 1_000, &samples[1..]), "hour.wav").unwrap();
    assert_eq!(hour.seconds(), f64::from(LONGEST_SECONDS));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_read_whole() {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    for name in ["tone.flac", "tone.mp3"] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&fixture(name)).unwrap();
        drop(writer);
        let piped = Sound::from_path(format!("/dev/fd/{}", reader.as_raw_fd())).unwrap();
        assert_eq!(piped, Sound::from_bytes(&fixture(name), name).unwrap());
    }
}

#[test]
fn too_short_a_sound_says_how_long_it_is_and_what_is_needed() {
    let sound = |rate, n| Sound::new(rate, vec![0.1; n]).unwrap();
    let short = log_mel(&sound(16_000, 48), FbankOptions::default());
    refused(short, &["lasts 3.0 ms (48 samples at 16000 Hz)", "at least 85 ms", "7 frames of 25 ms"]);
    refused(log_mel(&sound(48_000, 4_077), FbankOptions::default()), &["4077 samples at 48000 Hz"]);
    assert_eq!(frames(&sound(16_000, 1_360)).frames, 7);
    assert_eq!(frames(&sound(48_000, 4_080)).frames, 7);
    refused(Sound::new(16_000, vec![]), &["no samples"]);
    refused(Sound::new(0, vec![0.0]), &["0 samples per second"]);
}

#[test]
fn an_hour_is_no_trouble() {
    let hour: Vec<i16> = (0..8_000 * 3_600).map(|i| (i % 441) as i16).collect();
    let sound = Sound::from_bytes(&wav16(8_000, &hour), "hour.wav").unwrap();
    assert_eq!(sound.seconds(), 3_600.0);
    let f = frames(&sound);
    assert_eq!((f.frames, rows_for_frames(f.frames)), (359_998, 44_999));
    assert!(f.data.iter().all(|v| v.is_finite()));
}
