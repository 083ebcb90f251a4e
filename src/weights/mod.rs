//! Checkpoint tensors and how weights are made of them: mapped files, synthetic values, recipes carried out.

pub mod convert;
mod fold;
mod overlay;
mod pack;
mod safetensors;
mod scan;
mod source;
mod synth;
mod write;

pub use overlay::Overlay;
pub use pack::{Packer, check_parts, host_weight, pack};
pub use safetensors::Safetensors;
pub use scan::{NonFinite, first_non_finite};
pub use source::{Info, Source, SynthSpec};
pub use synth::{SynthSource, spec_for, test_input};
pub use write::{SHARD_BYTES, write_checkpoint};
