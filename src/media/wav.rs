//! WAV that comes in piece by piece, from a pipe: what recorders write while they record.

use std::io::{ErrorKind, Read};

use super::audio::RATES_HZ;
use crate::core::error::{Error, Result};
use crate::{bail_input, ensure_input};

/// Whether `head`, the first 12 bytes of a file, begin a WAV.
pub fn is_wav(head: &[u8]) -> bool {
    head.len() >= 12 && head.starts_with(b"RIFF") && &head[8..12] == b"WAVE"
}

/// How a sample is stored, little-endian.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Format {
    U8,
    S16,
    S24,
    S32,
    F32,
}

impl Format {
    fn bytes(self) -> usize {
        match self {
            Format::U8 => 1,
            Format::S16 => 2,
            Format::S24 => 3,
            Format::S32 | Format::F32 => 4,
        }
    }

    fn sample(self, b: &[u8]) -> f32 {
        match (self, b) {
            (Format::U8, &[a, ..]) => (f32::from(a) - 128.0) / 128.0,
            (Format::S16, &[a, b, ..]) => f32::from(i16::from_le_bytes([a, b])) / 32_768.0,
            (Format::S24, &[a, b, c, ..]) => {
                (f64::from(i32::from_le_bytes([0, a, b, c]) >> 8) / 8_388_608.0) as f32
            }
            (Format::S32, &[a, b, c, d, ..]) => {
                (f64::from(i32::from_le_bytes([a, b, c, d])) / 2_147_483_648.0) as f32
            }
            (Format::F32, &[a, b, c, d, ..]) => f32::from_le_bytes([a, b, c, d]),
            _ => 0.0,
        }
    }
}

/// The first channel of a WAV, as it comes.
pub struct WavStream<R> {
    input: R,
    name: String,
    rate_hz: u32,
    format: Format,
    channels: usize,
    /// Bytes of samples that are still to come; a recorder does not know, and says the most or nothing.
    left: u64,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are a part of a sample.
    kept: usize,
}

/// A data chunk of this length or more goes on to the end of the input, and so does one of none.
const ENDLESS: u32 = 0x7fff_0000;
/// Bytes that one read asks for.
const BLOCK: usize = 16 << 10;

impl<R: Read> WavStream<R> {
    /// Reads the header, up to the samples; `name` stands in messages.
    ///
    /// # Errors
    /// `Input` for what is no WAV of 8 to 32-bit integers or 32-bit floats.
    pub fn open(mut input: R, name: &str) -> Result<WavStream<R>> {
        let mut head = [0; 12];
        exact(&mut input, &mut head, name)?;
        ensure_input!(is_wav(&head), "{name}: a WAV expected, found something else");
        let mut format = None;
        loop {
            let mut chunk = [0; 8];
            exact(&mut input, &mut chunk, name)?;
            let len = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]);
            match (&chunk[..4], format) {
                (b"fmt ", _) => {
                    ensure_input!((16..=4096).contains(&len), "{name}: corrupt WAV: a format of {len} bytes");
                    let mut fmt = vec![0; len.next_multiple_of(2) as usize];
                    exact(&mut input, &mut fmt, name)?;
                    format = Some(read_format(&fmt, name)?);
                }
                (b"data", Some((rate_hz, format, channels))) => {
                    let left = if len == 0 || len >= ENDLESS { u64::MAX } else { u64::from(len) };
                    let buffer = Vec::new();
                    let name = name.to_owned();
                    return Ok(WavStream { input, name, rate_hz, format, channels, left, buffer, kept: 0 });
                }
                (b"data", None) => bail_input!("{name}: corrupt WAV: samples before their format"),
                _ => {
                    let len = u64::from(len) + u64::from(len % 2);
                    let skipped = std::io::copy(&mut (&mut input).take(len), &mut std::io::sink())
                        .map_err(|e| Error::input(format!("{name}: {e}")))?;
                    ensure_input!(skipped == len, "{name}: the WAV ends in its header");
                }
            }
        }
    }

    pub fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// Waits for the next samples and appends them to `out`; `false` at the end. Part of a sample at the end is dropped.
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<bool> {
        let frame = self.format.bytes() * self.channels;
        let wanted = self.left.min(BLOCK.next_multiple_of(frame) as u64) as usize;
        self.buffer.resize(self.kept + wanted, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[self.kept..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other.map_err(|e| Error::input(format!("{}: {e}", self.name)))?,
            }
        };
        if self.left != u64::MAX {
            self.left -= read as u64;
        }
        let there = self.kept + read;
        let whole = there / frame * frame;
        out.extend(self.buffer[..whole].chunks_exact(frame).map(|f| self.format.sample(f)));
        self.buffer.copy_within(whole..there, 0);
        self.kept = there - whole;
        Ok(read > 0)
    }
}

fn exact(input: &mut impl Read, buffer: &mut [u8], name: &str) -> Result<()> {
    input.read_exact(buffer).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => Error::input(format!("{name}: the WAV ends in its header")),
        _ => Error::input(format!("{name}: {e}")),
    })
}

/// Rate, format and channels of a `fmt ` chunk of at least 16 bytes.
fn read_format(fmt: &[u8], name: &str) -> Result<(u32, Format, usize)> {
    let u16_at = |at: usize| u16::from_le_bytes([fmt[at], fmt[at + 1]]);
    let (channels, bits) = (u16_at(2), u16_at(14));
    let rate_hz = u32::from_le_bytes([fmt[4], fmt[5], fmt[6], fmt[7]]);
    // Extensible: the tag is the beginning of a longer one.
    let tag = if u16_at(0) == 0xfffe && fmt.len() >= 26 { u16_at(24) } else { u16_at(0) };
    let format = match (tag, bits) {
        (1, 8) => Format::U8,
        (1, 16) => Format::S16,
        (1, 24) => Format::S24,
        (1, 32) => Format::S32,
        (3, 32) => Format::F32,
        _ => bail_input!(
            "{name}: integers of 8, 16, 24 or 32 bits or floats of 32 expected while a WAV comes in, \
             found format {tag} of {bits} bits"
        ),
    };
    ensure_input!(
        (1..=64).contains(&channels),
        "{name}: corrupt WAV: {channels} channels, supported are 1 to 64"
    );
    ensure_input!(
        RATES_HZ.contains(&rate_hz),
        "{name}: the sound has {rate_hz} samples per second, supported are {} to {}",
        RATES_HZ.start(),
        RATES_HZ.end()
    );
    Ok((rate_hz, format, usize::from(channels)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::audio::Sound;

    /// A WAV with a foreign chunk before its samples; `len` is what the header says of them.
    fn wav(tag: u16, bits: u16, channels: u16, samples: &[u8], len: u32) -> Vec<u8> {
        let block = channels * bits / 8;
        let mut out = b"RIFF\0\0\0\0WAVEJUNK\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
        out.extend(tag.to_le_bytes());
        out.extend(channels.to_le_bytes());
        out.extend(16_000u32.to_le_bytes());
        out.extend((16_000 * u32::from(block)).to_le_bytes());
        out.extend(block.to_le_bytes());
        out.extend(bits.to_le_bytes());
        out.extend(b"data");
        out.extend(len.to_le_bytes());
        out.extend(samples);
        let riff = (out.len() as u32 - 8).to_le_bytes();
        out[4..8].copy_from_slice(&riff);
        out
    }

    /// Gives `step` bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let n = self.1.min(out.len()).min(self.0.len());
            out[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn all(bytes: &[u8], step: usize) -> Result<Vec<f32>> {
        let mut stream = WavStream::open(Drip(bytes, step), "-")?;
        assert_eq!(stream.rate_hz(), 16_000);
        let mut out = Vec::new();
        while stream.read(&mut out)? {}
        Ok(out)
    }

    #[test]
    fn samples_are_those_of_the_decoder() {
        let noise: Vec<u8> = (0..1200u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let floats: Vec<u8> = (0..300).flat_map(|i| (i as f32 * 0.003 - 0.5).to_le_bytes()).collect();
        for (tag, bits, data) in
            [(1, 8, &noise), (1, 16, &noise), (1, 24, &noise), (1, 32, &noise), (3, 32, &floats)]
        {
            for channels in [1, 2] {
                let bytes = wav(tag, bits, channels, data, data.len() as u32);
                let want = Sound::from_bytes(&bytes, "x.wav").unwrap().samples;
                for step in [1, 5, 1 << 20] {
                    assert!(all(&bytes, step).unwrap() == want, "{tag} {bits} bits, {channels} channels");
                }
            }
        }
    }

    #[test]
    fn a_length_that_nobody_knew_is_not_believed() {
        let data: Vec<u8> = (0..801u32).map(|i| i as u8).collect();
        for len in [0, 0x7fff_fff0, u32::MAX] {
            // The last byte is half a sample.
            assert_eq!(all(&wav(1, 16, 1, &data, len), 7).unwrap().len(), 400, "{len}");
        }
        // What follows the samples is not sound.
        assert_eq!(all(&wav(1, 16, 1, &data, 600), 7).unwrap().len(), 300);
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let message = |bytes: &[u8]| all(bytes, 100).unwrap_err().to_string();
        assert_eq!(message(b"RIFF"), "-: the WAV ends in its header");
        assert_eq!(message(b"fLaC0000WAVE0000"), "-: a WAV expected, found something else");
        assert!(message(&wav(1, 12, 1, &[], 0)).ends_with("found format 1 of 12 bits"));
        assert!(message(&wav(1, 16, 0, &[], 0)).contains("0 channels"));
        assert_eq!(message(&wav(1, 16, 1, &[], 0)[..30]), "-: the WAV ends in its header");
    }
}
