//! Pictures and sounds of a question on their way to their encoders. What is known is found; for the rest, other threads
//! filter sounds while this one sees to the pictures, and an encoder begins as soon as its input is there.

use std::borrow::Cow;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Instant;

use rayon::Scope;

use super::super::Question;
use super::super::cache::{Content, Placed, Source};
use super::super::ledger::Ledger;
use super::super::model::TILES_AT_ONCE;
use super::Session;
use crate::core::Result;
use crate::exec::Lane;
use crate::media::audio::Sound;
use crate::media::fbank::{Fbank, FbankOptions, at_rate, frames_of, log_mel};
use crate::media::image::Picture;
use crate::media::tiles::{TileOptions, Tiles, choose_grid, tile};
use crate::media::video;
use crate::models::intern_vit::Tiling;

/// A picture, a video or a sound of a question.
pub(super) struct Medium<'q> {
    pub source: Source<'q>,
    pub content: Content,
    /// 0 for a sound.
    pub tiles: usize,
    /// In the sequence.
    pub rows: usize,
    /// What its encoder gets, where that had to be made.
    pub made: Option<Made<'q>>,
    /// The same on its way from other threads.
    pub coming: Option<Receiver<Filtered>>,
    /// It was not known.
    pub new: bool,
}

impl Medium<'_> {
    pub fn is_sound(&self) -> bool {
        matches!(self.source, Source::Sound(..))
    }
}

pub(super) enum Made<'q> {
    Tiles(Tiles<'q>),
    Sound(Fbank),
    /// A picture that the device tiles.
    Grid(Tiling),
    /// Samples at 16 kHz that the device filters.
    Samples(Cow<'q, [f32]>),
}

/// Frames of a sound, and when they were asked for and made.
pub(super) struct Filtered {
    fbank: Result<Fbank>,
    from: Instant,
    to: Instant,
}

/// The largest picture that the device tiles, in bytes, and the largest between the two passes of its resize. Larger ones
/// the host tiles, or refuses.
const DEVICE_PICTURE_BYTES: usize = 128 << 20;

/// Work of the encoders for a question.
pub(super) struct Encoded {
    pub placed: Vec<Placed>,
    /// What ran.
    pub contents: Vec<Content>,
    /// Where it ran.
    pub lanes: Vec<Lane>,
}

impl Session<'_> {
    /// The pictures (or the video) and then the sounds of a question, as the prompt has them.
    pub(super) fn sources<'q>(&self, question: &'q Question) -> Result<Vec<Source<'q>>> {
        let cfg = &self.engine.model.cfg;
        let mut sources = Vec::new();
        if !question.images.is_empty() {
            let Some(vision) = &cfg.vision else {
                crate::bail_input!("this model has no vision tower: it cannot take pictures")
            };
            let size = vision.image_size;
            let tiling = TileOptions { size, ..TileOptions::default() };
            match question.video {
                true => sources.push(Source::Video(&question.images, size)),
                false => sources.extend(question.images.iter().map(|p| Source::Picture(p, tiling))),
            }
        }
        if !question.sounds.is_empty() && cfg.audio.is_none() {
            crate::bail_input!("this model has no audio encoder: it cannot take sounds");
        }
        let fbank = FbankOptions { dither: question.dither, ..FbankOptions::default() };
        sources.extend(question.sounds.iter().map(|s| Source::Sound(s, fbank)));
        Ok(sources)
    }

    /// Finds the pictures and sounds that are known, and has the encoders begin with the others.
    pub(super) fn begin_encoding<'q>(
        &mut self,
        question: &'q Question,
        ledger: &mut Ledger,
    ) -> Result<(Vec<Medium<'q>>, Encoded)> {
        let mut sources = self.sources(question)?;
        // Sounds first: other threads filter them while this one sees to the pictures.
        sources.sort_by_key(|source| !matches!(source, Source::Sound(..)));
        rayon::in_place_scope(|threads| {
            let mut media = self.recognise(sources, threads, ledger)?;
            let (context, rows) = (self.engine.context_rows(), media.iter().map(|m| m.rows).sum::<usize>());
            if self.pos + rows >= context {
                // The error that the whole prompt gives, before the encoders run.
                self.check_context(&self.merge(&mut self.dialogue.clone(), question, &media)?)?;
            }
            let mut contents: Vec<Content> = Vec::new();
            for m in &media {
                if !contents.contains(&m.content) {
                    contents.push(m.content);
                }
            }
            let placed = self.engine.model.cache.media.place(&contents)?;
            let mut encoded = Encoded { placed, contents: Vec::new(), lanes: Vec::new() };
            self.encode(&mut media, |m| m.new, &mut encoded, ledger)?;
            Ok((media, encoded))
        })
    }

    /// Finds the pictures and sounds that are known; other sounds are begun to be filtered, on `threads`.
    fn recognise<'q>(
        &mut self,
        sources: Vec<Source<'q>>,
        threads: &Scope<'q>,
        ledger: &mut Ledger,
    ) -> Result<Vec<Medium<'q>>> {
        self.engine.model.cache.media.begin();
        let mut media: Vec<Medium<'q>> = Vec::new();
        for source in sources {
            if let Source::Sound(sound, _) = source {
                self.check_sound(sound)?;
            }
            let cache = &mut self.engine.model.cache;
            let known = ledger.host("cache", || match media.iter().find(|m| m.source.same(&source)) {
                Some(m) if cache.enabled() => Some((m.content, m.tiles, m.rows)),
                _ => cache.media.find(&source),
            });
            media.push(match known {
                Some((content, tiles, rows)) => {
                    Medium { source, content, tiles, rows, made: None, coming: None, new: false }
                }
                None => {
                    let (tiles, rows) = self.size_of(&source)?;
                    let content = self.engine.model.cache.media.insert(tiles, rows);
                    let coming = match source {
                        Source::Sound(sound, o) if !self.device_filters(o) => Some(filter(sound, o, threads)),
                        _ => None,
                    };
                    Medium { source, content, tiles, rows, made: None, coming, new: true }
                }
            });
        }
        Ok(media)
    }

    /// Tiles of a picture or a video (none for a sound), and rows: known before they are made.
    pub(super) fn size_of(&self, source: &Source<'_>) -> Result<(usize, usize)> {
        let model = &self.engine.model;
        let tiles = match *source {
            Source::Picture(picture, o) => tiling(picture, o).tiles(),
            Source::Video(frames, _) => frames.len(),
            Source::Sound(sound, _) => return Ok((0, model.rows_of_sound(frames_of(sound)?))),
        };
        Ok((tiles, tiles * model.rows_per_tile()))
    }

    /// Whether the device filters sounds.
    fn device_filters(&self, o: FbankOptions) -> bool {
        self.engine.device_filterbank && o.dither == 0.0
    }

    /// As [`Session::make_here`], unless the device does that.
    fn make<'q>(&self, source: Source<'q>, ledger: &mut Ledger) -> Result<Made<'q>> {
        match source {
            Source::Picture(picture, o) if self.engine.device_tiling => {
                let tiling = tiling(picture, o);
                let between = picture.height.saturating_mul(3 * tiling.columns * o.size);
                let large = picture.data.len().max(between) > DEVICE_PICTURE_BYTES;
                match large || tiling.tiles() > TILES_AT_ONCE {
                    true => self.make_here(source, ledger),
                    false => Ok(Made::Grid(tiling)),
                }
            }
            Source::Sound(sound, o) if self.device_filters(o) => {
                Ok(Made::Samples(ledger.host("filterbank", || at_rate(sound))?))
            }
            _ => self.make_here(source, ledger),
        }
    }

    /// Tiles a picture, filters a sound.
    pub(super) fn make_here<'q>(&self, source: Source<'q>, ledger: &mut Ledger) -> Result<Made<'q>> {
        Ok(match source {
            Source::Picture(picture, o) => Made::Tiles(ledger.host("tile", || tile(picture, o))?),
            Source::Video(frames, size) => {
                Made::Tiles(ledger.host("tile", || video::frame_tiles(frames, size))?)
            }
            Source::Sound(sound, o) => {
                self.check_sound(sound)?;
                Made::Sound(ledger.host("filterbank", || log_mel(sound, o))?)
            }
        })
    }

    /// Enqueues the encoders, side by side, for those of the media that are `wanted` and not in the media state.
    pub(super) fn encode(
        &mut self,
        media: &mut [Medium<'_>],
        wanted: impl Fn(&Medium<'_>) -> bool,
        encoded: &mut Encoded,
        ledger: &mut Ledger,
    ) -> Result<()> {
        for (lane, stage) in [(Lane::Vision, "vision"), (Lane::Audio, "audio")] {
            let mut from = None;
            for p in encoded.placed.iter().filter(|p| p.wanted) {
                let Some(m) = media.iter_mut().find(|m| m.content == p.content) else {
                    crate::bail_runtime!("rows of a picture or sound that is not in the question")
                };
                if m.is_sound() != (lane == Lane::Audio) || !wanted(m) {
                    continue;
                }
                let made = match m.coming.take() {
                    Some(coming) => arrived(&coming, ledger)?,
                    None => self.make(m.source, ledger)?,
                };
                let made = m.made.insert(made);
                let model = &mut self.engine.model;
                if from.is_none() {
                    // A sound that came in may still be on its way to rows that are given to others now.
                    model.backend_mut().join(lane, Lane::Text)?;
                    from = Some(model.backend_mut().mark(lane)?);
                }
                ledger.host("enqueue", || match (made, m.source) {
                    (Made::Tiles(tiles), _) => model.encode_picture(tiles, p.first_row),
                    (Made::Sound(f), _) => model.encode_sound(&f.data, f.frames, p.first_row),
                    (Made::Samples(samples), _) => model.encode_samples(samples, p.first_row),
                    (Made::Grid(tiling), Source::Picture(picture, _)) => {
                        model.encode_tiling(picture, *tiling, p.first_row)
                    }
                    (Made::Grid(_), _) => Ok(()),
                })?;
                encoded.contents.push(p.content);
            }
            if let Some(from) = from {
                ledger.device(stage, from, self.engine.model.backend_mut().mark(lane)?);
                encoded.lanes.push(lane);
            }
        }
        let there = |p: &&Placed| !p.wanted || encoded.contents.contains(&p.content);
        let there: Vec<Placed> = encoded.placed.iter().filter(there).copied().collect();
        self.engine.model.cache.media.settle(&there);
        Ok(())
    }
}

/// The grid of a picture.
fn tiling(picture: &Picture, o: TileOptions) -> Tiling {
    let (columns, rows) = choose_grid(picture.width, picture.height, o);
    Tiling { width: picture.width, height: picture.height, columns, rows }
}

/// Has `threads` filter a sound.
fn filter<'q>(sound: &'q Sound, o: FbankOptions, threads: &Scope<'q>) -> Receiver<Filtered> {
    let (send, coming) = channel();
    let from = Instant::now();
    threads.spawn(move |_| {
        let fbank = log_mel(sound, o);
        // Nobody waits for it where the question has failed meanwhile.
        let _ = send.send(Filtered { fbank, from, to: Instant::now() });
    });
    coming
}

/// Waits for the frames of a sound: awake, for what wakes a thread takes longer than what is left to do. A thread that
/// is itself one of those that filter does its share.
fn arrived<'q>(coming: &Receiver<Filtered>, ledger: &mut Ledger) -> Result<Made<'q>> {
    loop {
        match coming.try_recv() {
            Ok(Filtered { fbank, from, to }) => {
                ledger.threads("filterbank", from, to);
                return fbank.map(Made::Sound);
            }
            Err(TryRecvError::Empty) if rayon::yield_now().is_none() => std::thread::yield_now(),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => crate::bail_runtime!("no frames came of a sound"),
        }
    }
}
