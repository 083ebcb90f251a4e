//! vivace: a from-scratch CUDA inference engine for VITA-1.5.
//!
//! [`engine`] is the way in: open a model, begin a conversation, ask.
//!
//! ```no_run
//! use vivace::engine::{Engine, Event, GenerateOptions, Options, Question};
//! use vivace::media::image::Picture;
//!
//! # fn main() -> vivace::core::Result<()> {
//! # let png: Vec<u8> = Vec::new();
//! let mut engine = Engine::open("path/to/VITA-1.5", &Options::default(), &mut |_done, _total| {})?;
//! let mut session = engine.session(None)?;
//! let mut question = Question::text("What is in these pictures?").image("cat.jpg")?;
//! // From memory, too.
//! question.images.push(Picture::from_bytes(&png, "upload")?);
//! let answer = session.ask(&question, &GenerateOptions::default(), &mut |event| {
//!     if let Event::Text(text) = event {
//!         print!("{text}");
//!     }
//!     true // false stops the answer
//! })?;
//! println!("{:?} after {:.1} ms", answer.stop, answer.timings.first_token_ms);
//! println!("{} bytes of weights", engine.model.backend().memory().weights);
//! # Ok(()) }
//! ```
//!
//! Below it, for those who measure or study: [`models`] writes graphs of [`ops`], [`fuse`] replaces parts of them, [`plan`]
//! gives them memory, [`exec`] runs them.

pub mod core;
pub mod cpu;
pub mod engine;
pub mod exec;
pub mod fuse;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod graph;
pub mod media;
pub mod models;
pub mod ops;
pub mod plan;
pub mod text;
pub mod weights;
