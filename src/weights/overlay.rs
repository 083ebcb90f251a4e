//! A checkpoint with a few tensors that are computed: such as it lacks, or such as are needed in another shape.

use std::sync::Arc;

use super::{Info, Source, SynthSpec, convert};
use crate::core::{DType, Result};

/// `base` and, before its tensors, computed ones.
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

    /// Adds a tensor of `values` rounded to `dtype`, instead of that of `base` if there is one. `place` says where the
    /// values come from.
    pub fn add(&mut self, name: &str, dtype: DType, shape: &[usize], values: &[f32], place: &str) {
        let mut bytes = vec![0; values.len() * dtype.bytes()];
        convert::narrow(dtype, values, &mut bytes);
        let info = Info::new(dtype, shape);
        self.added.push(Added { name: name.to_owned(), info, bytes, place: place.to_owned() });
    }

    fn find(&self, name: &str) -> Option<&Added> {
        self.added.iter().find(|a| a.name == name)
    }
}

impl Source for Overlay {
    fn names(&self) -> Vec<String> {
        let mut names = self.base.names();
        let new = self.added.iter().filter(|a| self.base.info(&a.name).is_none());
        names.extend(new.map(|a| a.name.clone()));
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
        match self.find(name) {
            Some(_) => None,
            None => self.base.synth(name),
        }
    }

    fn place(&self, name: &str) -> String {
        self.find(name).map_or_else(|| self.base.place(name), |a| a.place.clone())
    }

    fn describe(&self) -> String {
        self.base.describe()
    }
}

#[cfg(test)]
mod tests {
    use super::super::SynthSource;
    use super::*;

    #[test]
    fn computed_tensors_stand_beside_and_before_those_of_the_base() {
        let tensors = ["a", "b"].map(|name| (name.to_owned(), vec![2, 2]));
        let base = Arc::new(SynthSource::new(0, DType::F16, tensors.to_vec()));
        let mut all = Overlay::new(base.clone());
        all.add("b", DType::BF16, &[3], &[1.0, -2.0, 1.0 + 1.0 / 512.0], "somewhere");
        all.add("c", DType::F32, &[1], &[0.5], "elsewhere");
        assert_eq!(all.names(), ["a", "b", "c"]);
        assert_eq!(all.info("a"), base.info("a"));
        assert_eq!(all.bytes("a").unwrap(), base.bytes("a").unwrap());
        assert_eq!(all.info("b"), Some(Info::new(DType::BF16, &[3])));
        assert_eq!(all.bytes("b").unwrap(), [0x80, 0x3f, 0x00, 0xc0, 0x80, 0x3f]);
        assert_eq!(all.bytes("c").unwrap(), 0.5f32.to_le_bytes());
        assert_eq!((all.synth("a"), all.synth("b")), (base.synth("a"), None));
        assert_eq!((all.place("b"), all.place("a")), ("somewhere".to_owned(), base.place("a")));
    }
}
