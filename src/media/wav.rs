//! WAV of plain numbers, which may come in piece by piece from a pipe: what recorders write while they record.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

use super::audio::{Sound, check_length, check_rate};
use crate::core::error::{Error, Result};
use crate::{bail_input, ensure_input};

/// Channels that a WAV may have, whichever way it comes.
pub const MOST_CHANNELS: u16 = 64;

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
    F64,
}

impl Format {
    /// `None` for what is no plain number.
    fn of(tag: u16, bits: u16) -> Option<Format> {
        match (tag, bits) {
            (1, 8) => Some(Format::U8),
            (1, 16) => Some(Format::S16),
            (1, 24) => Some(Format::S24),
            (1, 32) => Some(Format::S32),
            (3, 32) => Some(Format::F32),
            (3, 64) => Some(Format::F64),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Format::U8 => 1,
            Format::S16 => 2,
            Format::S24 => 3,
            Format::S32 | Format::F32 => 4,
            Format::F64 => 8,
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
            (Format::F64, &[a, b, c, d, e, f, g, h, ..]) => {
                f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32
            }
            _ => 0.0,
        }
    }
}

/// A data chunk of this length or more goes on to the end of the input, and so does one of none: a recorder does not know,
/// and says the most or nothing.
const ENDLESS: u32 = 0x7fff_0000;
/// Bytes that one read asks for.
const BLOCK: usize = 16 << 10;

/// What stands before the samples.
#[derive(Clone, Copy)]
struct Head {
    /// How samples are stored, and bits of one.
    tag: u16,
    bits: u16,
    channels: u16,
    rate_hz: u32,
    /// Bytes of samples; `None`: up to the end of the input.
    len: Option<u64>,
}

impl Head {
    /// Reads up to the samples.
    fn read(input: &mut impl Read, name: &str) -> Result<Head> {
        let mut head = [0; 12];
        exact(input, &mut head, name)?;
        ensure_input!(is_wav(&head), "{name}: a WAV expected, found something else");
        let mut format = None;
        loop {
            let mut chunk = [0; 8];
            exact(input, &mut chunk, name)?;
            let len = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]);
            match (&chunk[..4], format) {
                (b"fmt ", _) => {
                    ensure_input!((16..=4096).contains(&len), "{name}: corrupt WAV: a format of {len} bytes");
                    let mut fmt = vec![0; len.next_multiple_of(2) as usize];
                    exact(input, &mut fmt, name)?;
                    format = Some(Head::of_format(&fmt, name)?);
                }
                (b"data", Some(head)) => {
                    let len = (1..ENDLESS).contains(&len).then_some(u64::from(len));
                    return Ok(Head { len, ..head });
                }
                (b"data", None) => bail_input!("{name}: corrupt WAV: samples before their format"),
                _ => {
                    let len = u64::from(len) + u64::from(len % 2);
                    let skipped = io::copy(&mut input.by_ref().take(len), &mut io::sink())
                        .map_err(|e| Error::input(format!("{name}: {e}")))?;
                    ensure_input!(skipped == len, "{name}: the WAV ends in its header");
                }
            }
        }
    }

    /// Of a `fmt ` chunk of at least 16 bytes.
    fn of_format(fmt: &[u8], name: &str) -> Result<Head> {
        let u16_at = |at: usize| u16::from_le_bytes([fmt[at], fmt[at + 1]]);
        let (channels, bits) = (u16_at(2), u16_at(14));
        let rate_hz = u32::from_le_bytes([fmt[4], fmt[5], fmt[6], fmt[7]]);
        // Extensible: the tag is the beginning of a longer one.
        let tag = if u16_at(0) == 0xfffe && fmt.len() >= 26 { u16_at(24) } else { u16_at(0) };
        ensure_input!(
            (1..=MOST_CHANNELS).contains(&channels),
            "{name}: corrupt WAV: {channels} channels, supported are 1 to {MOST_CHANNELS}"
        );
        check_rate(rate_hz).map_err(|e| e.context(name))?;
        Ok(Head { tag, bits, channels, rate_hz, len: None })
    }
}

/// Whether the rest of a file is a chain of chunks that ends with it. Leaves it where it was.
fn only_chunks_follow(input: &mut (impl Read + Seek)) -> io::Result<bool> {
    let from = input.stream_position()?;
    let end = input.seek(SeekFrom::End(0))?;
    let mut at = from;
    while at + 8 <= end {
        input.seek(SeekFrom::Start(at))?;
        let mut chunk = [0; 8];
        input.read_exact(&mut chunk)?;
        let len = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]);
        at += 8 + u64::from(len);
        // The padding of the last one is often forgotten.
        at += u64::from(len % 2).min(end.saturating_sub(at));
    }
    input.seek(SeekFrom::Start(from))?;
    Ok(at == end)
}

/// The first channel of a WAV, as it comes.
pub struct WavStream<R> {
    input: R,
    name: String,
    rate_hz: u32,
    format: Format,
    channels: usize,
    /// Bytes of samples that are still to come, where the header says it.
    left: Option<u64>,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are a part of a sample.
    kept: usize,
}

impl<R: Read> WavStream<R> {
    /// Reads the header, up to the samples; `name` stands in messages.
    ///
    /// # Errors
    /// `Input` for what is no WAV of 8 to 32-bit integers or of floats.
    pub fn open(mut input: R, name: &str) -> Result<WavStream<R>> {
        let head = Head::read(&mut input, name)?;
        let Some(format) = Format::of(head.tag, head.bits) else {
            bail_input!(
                "{name}: integers of 8, 16, 24 or 32 bits or floats of 32 or 64 expected while a WAV comes in, \
                 found format {} of {} bits",
                head.tag,
                head.bits
            );
        };
        Ok(WavStream::new(input, name, head, format))
    }

    /// As [`WavStream::open`] for a file, but `None` for a WAV that is left to a decoder.
    pub(super) fn open_plain(mut input: R, name: &str) -> Result<Option<WavStream<R>>>
    where
        R: Seek,
    {
        let mut head = Head::read(&mut input, name)?;
        if head.len.is_none() && only_chunks_follow(&mut input).map_err(|e| Error::io(name, e))? {
            // No recorder that broke off, but a sound without samples, perhaps with tags.
            head.len = Some(0);
        }
        Ok(Format::of(head.tag, head.bits).map(|format| WavStream::new(input, name, head, format)))
    }

    fn new(input: R, name: &str, head: Head, format: Format) -> WavStream<R> {
        WavStream {
            input,
            name: name.to_owned(),
            rate_hz: head.rate_hz,
            format,
            channels: usize::from(head.channels),
            left: head.len,
            buffer: Vec::new(),
            kept: 0,
        }
    }

    pub fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// Waits for the next samples and appends them to `out`; `false` at the end. Part of a sample at the end is dropped.
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<bool> {
        let frame = self.format.bytes() * self.channels;
        let block = BLOCK.next_multiple_of(frame);
        let wanted = self.left.map_or(block, |left| left.min(block as u64) as usize);
        self.buffer.resize(self.kept + wanted, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[self.kept..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other.map_err(|e| Error::input(format!("{}: {e}", self.name)))?,
            }
        };
        if let Some(left) = &mut self.left {
            *left -= read as u64;
        }
        if read == 0 && self.left.is_some_and(|left| left > 0) {
            tracing::warn!("{}: the WAV ends early; the sound is used as far as it goes", self.name);
        }
        let there = self.kept + read;
        let whole = there / frame * frame;
        out.extend(self.buffer[..whole].chunks_exact(frame).map(|f| self.format.sample(f)));
        self.buffer.copy_within(whole..there, 0);
        self.kept = there - whole;
        Ok(read > 0)
    }

    /// Reads what is left, as one sound.
    ///
    /// # Errors
    /// `Input` for a sound that is longer than [`LONGEST_SECONDS`](super::audio::LONGEST_SECONDS), has no samples, or such
    /// as are not finite.
    pub fn read_all(mut self) -> Result<Sound> {
        let mut samples = Vec::new();
        while self.read(&mut samples)? {
            check_length(samples.len(), self.rate_hz, &self.name)?;
        }
        Sound::new(self.rate_hz, samples).map_err(|e| e.context(&self.name))
    }
}

fn exact(input: &mut impl Read, buffer: &mut [u8], name: &str) -> Result<()> {
    input.read_exact(buffer).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => Error::input(format!("{name}: the WAV ends in its header")),
        _ => Error::input(format!("{name}: {e}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::audio::decode_any;

    /// A WAV with a foreign chunk before its samples; `len` is what the header says of them.
    fn wav(tag: u16, bits: u16, channels: u16, samples: &[u8], len: u32) -> Vec<u8> {
        let block = channels.wrapping_mul(bits / 8);
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

    /// The same with its format in the extensible form, for the speakers in `mask`.
    fn extensible(wav: &[u8], mask: u32) -> Vec<u8> {
        let (before, format, after) = (&wav[..24], &wav[32..48], &wav[48..]);
        let mut out = [before, b"fmt \x28\0\0\0\xfe\xff", &format[2..], b"\x16\0", &format[14..]].concat();
        out.extend(mask.to_le_bytes());
        out.extend(&format[..2]);
        out.extend(b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71");
        out.extend(after);
        let riff = (out.len() as u32 - 8).to_le_bytes();
        out[4..8].copy_from_slice(&riff);
        out
    }

    fn decoded(bytes: &[u8]) -> Sound {
        decode_any(Box::new(io::Cursor::new(bytes.to_vec())), "x.wav").unwrap()
    }

    /// Gives `step` bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
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
        let noise: Vec<u8> = (0..2400u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let floats: Vec<u8> = (0..300).flat_map(|i| (i as f32 * 0.003 - 0.5).to_le_bytes()).collect();
        let doubles: Vec<u8> = (0..300).flat_map(|i| (f64::from(i) * 0.003 - 0.5).to_le_bytes()).collect();
        for (tag, bits, data) in [
            (1, 8, &noise),
            (1, 16, &noise),
            (1, 24, &noise),
            (1, 32, &noise),
            (3, 32, &floats),
            (3, 64, &doubles),
        ] {
            for channels in [1, 2] {
                let bytes = wav(tag, bits, channels, data, data.len() as u32);
                let case = format!("format {tag} of {bits} bits, {channels} channels");
                let want = decoded(&bytes).samples;
                assert_eq!(want.len(), data.len() / usize::from(channels * bits / 8), "{case}");
                for step in [1, 5, 1 << 20] {
                    assert!(all(&bytes, step).unwrap() == want, "{case}");
                    assert!(all(&extensible(&bytes, 3), step).unwrap() == want, "{case}, extensible");
                }
                assert!(decoded(&extensible(&bytes, 3)).samples == want, "{case}, extensible, decoder");
                assert!(Sound::from_bytes(&bytes, "x.wav").unwrap().samples == want, "{case}, from memory");
            }
        }
    }

    #[test]
    fn every_number_of_channels_is_one_both_ways() {
        for channels in [1, 18, 33, MOST_CHANNELS] {
            let data: Vec<u8> = (0..20 * channels).flat_map(|i| (i / channels).to_le_bytes()).collect();
            let want: Vec<f32> = (0..20).map(|i| i as f32 / 32_768.0).collect();
            let bytes = wav(1, 16, channels, &data, data.len() as u32);
            assert_eq!(all(&bytes, 100).unwrap(), want, "{channels}");
            assert_eq!(Sound::from_bytes(&bytes, "x.wav").unwrap().samples, want, "{channels}");
            // A mask with a bit that no channel of it has.
            let bytes = extensible(&bytes, 1 << 31);
            assert_eq!(Sound::from_bytes(&bytes, "x.wav").unwrap().samples, want, "{channels}, extensible");
        }
        for channels in [0, MOST_CHANNELS + 1, u16::MAX] {
            let bytes = wav(1, 8, channels, &[128; 200], 200);
            let part = format!("{channels} channels, supported are 1 to {MOST_CHANNELS}");
            for refused in [all(&bytes, 100).unwrap_err(), Sound::from_bytes(&bytes, "-").unwrap_err()] {
                assert!(refused.to_string().ends_with(&part), "{refused}");
            }
        }
    }

    #[test]
    fn a_length_that_nobody_knew_is_not_believed() {
        let data: Vec<u8> = (0..801u32).map(|i| i as u8).collect();
        for len in [0, 0x7fff_fff0, u32::MAX] {
            // The last byte is half a sample. The length of the RIFF is right, as in a pipe that was made a file.
            let bytes = wav(1, 16, 1, &data, len);
            let samples = all(&bytes, 7).unwrap();
            assert_eq!(samples.len(), 400, "{len}");
            assert_eq!(Sound::from_bytes(&bytes, "x.wav").unwrap().samples, samples, "{len}");
        }
        // Tags behind no samples are none, in a file.
        for tags in
            [&b""[..], b"LIST\x04\0\0\0INFO", b"id3 \x03\0\0\0abc\0", b"LIST\x04\0\0\0INFOid3 \x01\0\0\0a"]
        {
            let message = Sound::from_bytes(&wav(1, 16, 1, tags, 0), "x.wav").unwrap_err().to_string();
            assert_eq!(message, "x.wav: the sound has no samples");
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
