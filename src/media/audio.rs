//! Decoding of WAV, FLAC, MP3 and OGG Vorbis to one channel of f32, judged by content and never by file extension.

use std::io::{Cursor, ErrorKind, Read, SeekFrom};
use std::path::Path;

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as Failure;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};

use super::pipe::{is_pipe, read_piped};
use super::wav::{WavStream, is_wav};
use crate::core::error::{Error, Result};
use crate::{bail_input, ensure_input};

/// Sampling rates that are accepted, in Hz.
pub const RATES_HZ: std::ops::RangeInclusive<u32> = 1_000..=768_000;

/// The longest sound that is read. A context of 32768 rows holds 44 minutes; small files can be made that decode to days.
pub const LONGEST_SECONDS: u32 = 3600;

const FORMATS: &str = "WAV, FLAC, MP3 or OGG Vorbis";

/// The first channel of a sound; full scale is -1..1.
#[derive(Clone, Debug, PartialEq)]
pub struct Sound {
    pub rate_hz: u32,
    pub samples: Vec<f32>,
}

impl Sound {
    /// Wraps samples. Fails when there is none, one is not finite, or the rate is outside [`RATES_HZ`].
    pub fn new(rate_hz: u32, samples: Vec<f32>) -> Result<Sound> {
        check_rate(rate_hz)?;
        ensure_input!(!samples.is_empty(), "the sound has no samples");
        if let Some(i) = samples.iter().position(|s| !s.is_finite()) {
            bail_input!("sample {i} of the sound is {}: samples must be finite", samples[i]);
        }
        Ok(Sound { rate_hz, samples })
    }

    /// Opens and decodes a file, or what a pipe gives up to [`MOST_PIPED_BYTES`](super::pipe::MOST_PIPED_BYTES); see
    /// [`Sound::from_bytes`].
    pub fn from_path(path: impl AsRef<Path>) -> Result<Sound> {
        let path = path.as_ref();
        let io = |e| Error::io(path, e);
        let file = std::fs::File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        let name = path.display().to_string();
        if is_pipe(&meta) {
            return from_vec(read_piped(file, &name)?, &name);
        }
        ensure_input!(meta.is_file(), "{name}: not a regular file or a pipe");
        decode(Box::new(file), meta.len(), &name)
    }

    /// Decodes WAV (8 to 32-bit integers, floats, ADPCM), FLAC, MP3 or OGG Vorbis bytes; `name` stands in messages.
    ///
    /// A file that ends early is used as far as it goes, with a warning in the log. Empty, malformed and unsupported
    /// files, FLAC that is whole and whose checksum does not match, files without an audio track, and sounds longer than
    /// [`LONGEST_SECONDS`] are input errors.
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Sound> {
        // The decoder wants to own its source: the encoded bytes are copied, which is little beside the samples.
        from_vec(bytes.to_vec(), name)
    }

    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / self.rate_hz as f64
    }
}

/// Fails when the rate is outside [`RATES_HZ`].
pub(crate) fn check_rate(rate_hz: u32) -> Result<()> {
    ensure_input!(
        RATES_HZ.contains(&rate_hz),
        "the sound has {rate_hz} samples per second, supported are {} to {}",
        RATES_HZ.start(),
        RATES_HZ.end()
    );
    Ok(())
}

/// Fails when so many samples last longer than [`LONGEST_SECONDS`]. To be asked while they come, before they fill the
/// memory.
pub(super) fn check_length(samples: usize, rate_hz: u32, name: &str) -> Result<()> {
    ensure_input!(
        samples as u64 <= u64::from(LONGEST_SECONDS) * u64::from(rate_hz),
        "{name}: a sound of up to {LONGEST_SECONDS} s expected, found a longer one; cut it into shorter pieces"
    );
    Ok(())
}

fn from_vec(bytes: Vec<u8>, name: &str) -> Result<Sound> {
    let len_bytes = bytes.len() as u64;
    decode(Box::new(Cursor::new(bytes)), len_bytes, name)
}

fn decode(mut source: Box<dyn MediaSource>, len_bytes: u64, name: &str) -> Result<Sound> {
    ensure_input!(len_bytes > 0, "{name}: the sound file is empty (0 bytes)");
    match read_plain_wav(source.as_mut(), name)? {
        Some(sound) => Ok(sound),
        None => decode_any(source, name),
    }
}

/// A WAV of plain numbers is read as on standard input: a file and a pipe then mean the same, lengths that a recorder did
/// not know and all channels included. For anything else the source is where it was.
fn read_plain_wav(mut source: &mut dyn MediaSource, name: &str) -> Result<Option<Sound>> {
    let io = |e| Error::io(name, e);
    let mut head = Vec::new();
    (&mut source).take(12).read_to_end(&mut head).map_err(io)?;
    source.seek(SeekFrom::Start(0)).map_err(io)?;
    if !is_wav(&head) {
        return Ok(None);
    }
    if let Some(stream) = WavStream::open_plain(&mut source, name)? {
        return stream.read_all().map(Some);
    }
    source.seek(SeekFrom::Start(0)).map_err(io)?;
    Ok(None)
}

/// Decodes whatever the decoder knows.
pub(super) fn decode_any(source: Box<dyn MediaSource>, name: &str) -> Result<Sound> {
    let stream = MediaSourceStream::new(source, Default::default());
    let mut reader = symphonia::default::get_probe()
        .probe(&Hint::new(), stream, Default::default(), Default::default())
        .map_err(|e| match e {
            Failure::Unsupported(_) | Failure::LimitError(_) => {
                Error::input(format!("{name}: not a sound in a known format; give a {FORMATS} file"))
            }
            e => Error::input(format!("{name}: corrupt sound, or not a {FORMATS} file: {e}")),
        })?;
    let (mut track, mut decoder) = open_track(reader.as_ref(), name)?;
    let (mut rate_hz, mut cut) = (None, false);
    let (mut samples, mut scratch, mut skipped) = (Vec::new(), Vec::new(), 0);
    loop {
        let packet = match reader.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(Failure::ResetRequired) => {
                // The next stream of a chained OGG file.
                (track, decoder) = open_track(reader.as_ref(), name)?;
                continue;
            }
            Err(e) if is_end(&e) => {
                tracing::warn!("{name}: the file ends early; the sound is used as far as it goes");
                cut = true;
                break;
            }
            Err(e) => return Err(malformed(name, rate_hz, samples.len(), e)),
        };
        if packet.track_id != track {
            continue;
        }
        match decoder.decode(&packet) {
            Ok(buffer) => {
                let rate = buffer.spec().rate();
                ensure_input!(
                    *rate_hz.get_or_insert(rate) == rate,
                    "{name}: the sampling rate changes within the file, which is not supported"
                );
                append_first_channel(&buffer, &mut scratch, &mut samples);
                check_length(samples.len(), rate, name)?;
            }
            // The first packets of a cut MP3 refer to data before the cut; a bad packet later is damage.
            Err(Failure::DecodeError(_)) if samples.is_empty() => skipped += 1,
            Err(e) => return Err(malformed(name, rate_hz, samples.len(), e)),
        }
    }
    // The checksum is that of the whole sound.
    ensure_input!(
        cut || decoder.finalize().verify_ok != Some(false),
        "{name}: corrupt sound: the {} samples that can be decoded do not have the checksum that the file states",
        samples.len()
    );
    if let (true, 1..) = (samples.is_empty(), skipped) {
        bail_input!("{name}: corrupt sound: none of its {skipped} packets can be decoded");
    }
    if skipped > 0 {
        tracing::warn!("{name}: skipped {skipped} packets before the first that can be decoded");
    }
    let Some(rate_hz) = rate_hz else { bail_input!("{name}: the sound has no samples") };
    Sound::new(rate_hz, samples).map_err(|e| e.context(name))
}

fn open_track(reader: &dyn FormatReader, name: &str) -> Result<(u32, Box<dyn AudioDecoder>)> {
    let track = reader.default_track(TrackType::Audio);
    let Some((id, params)) = track.and_then(|t| Some((t.id, t.codec_params.as_ref()?.audio()?))) else {
        bail_input!("{name}: the file has no audio track");
    };
    let decoder = symphonia::default::get_codecs()
        .make_audio_decoder(params, &AudioDecoderOptions::default().verify(true))
        .map_err(|e| {
            Error::input(format!("{name}: the sound cannot be decoded: {e}; give a {FORMATS} file"))
        })?;
    Ok((id, decoder))
}

fn append_first_channel(buffer: &GenericAudioBufferRef<'_>, scratch: &mut Vec<f32>, samples: &mut Vec<f32>) {
    buffer.copy_to_vec_interleaved(scratch);
    samples.extend(scratch.iter().step_by(buffer.num_planes().max(1)));
}

fn is_end(e: &Failure) -> bool {
    matches!(e, Failure::IoError(e) if e.kind() == ErrorKind::UnexpectedEof)
}

fn malformed(name: &str, rate_hz: Option<u32>, samples: usize, e: Failure) -> Error {
    let at = samples as f64 / rate_hz.map_or(1.0, f64::from);
    Error::input(format!("{name}: corrupt sound at {at:.2} s: {e}"))
}
