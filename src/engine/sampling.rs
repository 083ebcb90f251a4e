//! How the next token is chosen.

use crate::core::{HostData, Result};

/// Greedy unless `temperature > 0`. The same seed gives the same tokens on the same device, to which the same questions
/// were put before ([`super::CacheOptions::enabled`] says why).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sampling {
    /// 0 is greedy; else 1e-6 to 1e6.
    pub temperature: f32,
    /// The `k` most likely tokens stay; 0 keeps all.
    pub top_k: u32,
    /// The smallest set of tokens with at least this mass stays; 1 keeps all.
    pub top_p: f32,
    /// Logits of tokens that have occurred are divided (positive) or multiplied (negative) by it, 0.01 to 100; 1 is off.
    pub repetition_penalty: f32,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Whether the plain most likely token is wanted.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    pub fn check(&self) -> Result<()> {
        let Sampling { temperature, top_p, repetition_penalty, .. } = *self;
        // Far beyond these bounds logits become infinite; within them nothing is lost that 0 does not give.
        crate::ensure_input!(
            temperature == 0.0 || (1e-6..=1e6).contains(&temperature),
            "temperature: 0 (greedy), or 0.000001 to 1000000 expected, got {temperature}"
        );
        crate::ensure_input!(top_p > 0.0 && top_p <= 1.0, "top_p: above 0 and up to 1 expected, got {top_p}");
        crate::ensure_input!(
            (1e-2..=1e2).contains(&repetition_penalty),
            "repetition_penalty: 0.01 to 100 expected, got {repetition_penalty}"
        );
        Ok(())
    }

    /// The content of the state `sampler`.
    pub(super) fn words(&self) -> HostData {
        HostData::U32(vec![
            self.temperature.to_bits(),
            self.top_p.to_bits(),
            self.repetition_penalty.to_bits(),
            self.top_k,
            self.seed as u32,
            (self.seed >> 32) as u32,
            0,
            0,
        ])
    }
}
