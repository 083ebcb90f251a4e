//! From a question to token ids and from token ids to text: tokenizer, prompt template, streaming, stop conditions.

mod files;
pub mod prompt;
pub mod stop;
pub mod stream;
pub mod tokenizer;

pub use prompt::{Dialogue, Piece, Question, State, StateMarks};
pub use stop::{StopStrings, stop_token_ids, stop_token_ids_from_dir};
pub use stream::Utf8Stream;
pub use tokenizer::Tokenizer;

pub const IM_START: &str = "<|im_start|>";
pub const IM_END: &str = "<|im_end|>";
pub const END_OF_TEXT: &str = "<|endoftext|>";
