//! A checkpoint with a few tensors added that it lacks.

use std::sync::Arc;

use super::{Info, Source, SynthSpec};
use crate::core::{DType, Result};

/// `base` and, beside it, computed f32 tensors. A tensor of `base` is never hidden.
pub struct Overlay {
    base: Arc<dyn Source>,
    added: Vec<Added>,
}

struct Added {
    name: String,
    info: Info,
    bytes: Vec<u8>,
    place: String,
}

impl Overlay {
    pub fn new(base: Arc<dyn Source>) -> Overlay {
        Overlay { base, added: Vec::new() }
    }

    /// Adds an f32 tensor; `place` says where its values come from.
    pub fn add(&mut self, name: &str, shape: &[usize], values: &[f32], place: &str) {
        self.added.push(Added {
            name: name.to_owned(),
            info: Info::new(DType::F32, shape),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            place: place.to_owned(),
        });
    }

    fn find(&self, name: &str) -> Option<&Added> {
        self.added.iter().find(|a| a.name == name && self.base.info(name).is_none())
    }
}

impl Source for Overlay {
    fn names(&self) -> Vec<String> {
        let mut names = self.base.names();
        names.extend(self.added.iter().filter(|a| self.find(&a.name).is_some()).map(|a| a.name.clone()));
        names
    }

    fn info(&self, name: &str) -> Option<Info> {
        self.find(name).map(|a| a.info.clone()).or_else(|| self.base.info(name))
    }

    fn bytes(&self, name: &str) -> Result<&[u8]> {
        match self.find(name) {
            Some(added) => Ok(&added.bytes),
            None => self.base.bytes(name),
        }
    }

    fn synth(&self, name: &str) -> Option<SynthSpec> {
        self.base.synth(name)
    }

    fn place(&self, name: &str) -> String {
        self.find(name).map_or_else(|| self.base.place(name), |a| a.place.clone())
    }

    fn describe(&self) -> String {
        self.base.describe()
    }
}
