//! Synthetic checkpoints on disk: what a folder needs besides its tensors.

use std::path::Path;

use crate::core::Result;
use crate::models::config::{read_config, synthetic};
use crate::text::Tokenizer;
use crate::weights::write_checkpoint;

/// `vivace synth`: writes the synthetic checkpoint of the config at `config`, with a byte tokenizer, into the new or
/// empty folder `out_dir`, in files of at most `shard_bytes`. See [`write_checkpoint`].
pub fn write_synthetic(
    config: &Path,
    out_dir: &Path,
    shard_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let (bytes, parsed) = read_config(config)?;
    let tokenizer = Tokenizer::byte_fallback(parsed.text.vocab_size)?.to_json()?;
    let files = [("config.json", bytes.as_slice()), ("tokenizer.json", tokenizer.as_bytes())];
    write_checkpoint(&files, &synthetic(&parsed), out_dir, shard_bytes, progress)
}
