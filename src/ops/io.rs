//! What an op's CPU reference reads and writes.

use std::borrow::Cow;

use crate::core::{Desc, HostData, HostWeight, Result, Step};

/// One input.
pub enum CpuIn<'a> {
    /// Activations, float states and host inputs, widened to f32.
    F32(&'a [f32]),
    /// Ids and counts.
    U32(&'a [u32]),
    Weight(&'a dyn HostWeight),
    /// A state that the op writes in place: its content is in the output.
    InPlace,
}

/// Inputs, outputs and step of one run of one op. The fields are public so that inputs and outputs can be borrowed
/// side by side.
pub struct CpuIo<'a> {
    pub step: Step,
    pub ins: CpuIns<'a>,
    pub outs: CpuOuts<'a>,
}

/// Inputs with their descriptions.
pub struct CpuIns<'a> {
    pub descs: Vec<&'a Desc>,
    pub data: Vec<CpuIn<'a>>,
}

/// Outputs with their descriptions. A fresh output is poisoned and rounded to its type after the op; a state holds
/// its current content, and the op rounds what it writes there.
pub struct CpuOuts<'a> {
    pub descs: Vec<&'a Desc>,
    pub data: Vec<HostData>,
}

impl<'a> CpuIns<'a> {
    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Rows and columns of input `i`.
    pub fn extent(&self, i: usize) -> (usize, usize) {
        (self.descs[i].rows(), self.descs[i].cols())
    }

    /// Activation `i` in f32.
    pub fn f32s(&self, i: usize) -> Result<&'a [f32]> {
        match &self.data[i] {
            CpuIn::F32(v) => Ok(v),
            _ => crate::bail_runtime!("{}: not an f32 activation on the CPU", self.descs[i].name),
        }
    }

    /// Ids `i`.
    pub fn u32s(&self, i: usize) -> Result<&'a [u32]> {
        match &self.data[i] {
            CpuIn::U32(v) => Ok(v),
            _ => crate::bail_runtime!("{}: not a u32 tensor on the CPU", self.descs[i].name),
        }
    }

    /// Weight `i`, to be read row by row.
    pub fn weight(&self, i: usize) -> Result<&'a dyn HostWeight> {
        match &self.data[i] {
            CpuIn::Weight(w) => Ok(*w),
            _ => crate::bail_runtime!("{}: not a weight on the CPU", self.descs[i].name),
        }
    }

    /// Input `i` whole in f32, be it a weight or an activation: for vectors and small tables.
    pub fn vector(&self, i: usize) -> Result<Vec<f32>> {
        match &self.data[i] {
            CpuIn::Weight(w) => Ok(w.to_f32()),
            _ => Ok(self.f32s(i)?.to_vec()),
        }
    }

    /// The same without a copy where it is an activation.
    pub fn values(&self, i: usize) -> Result<Cow<'a, [f32]>> {
        match &self.data[i] {
            CpuIn::Weight(w) => Ok(Cow::Owned(w.to_f32())),
            _ => Ok(Cow::Borrowed(self.f32s(i)?)),
        }
    }
}

impl CpuOuts<'_> {
    pub fn f32s(&mut self, i: usize) -> Result<&mut [f32]> {
        match &mut self.data[i] {
            HostData::F32(v) => Ok(v),
            HostData::U32(_) => {
                crate::bail_runtime!("{}: output is u32, the op writes f32", self.descs[i].name)
            }
        }
    }

    pub fn u32s(&mut self, i: usize) -> Result<&mut [u32]> {
        match &mut self.data[i] {
            HostData::U32(v) => Ok(v),
            HostData::F32(_) => {
                crate::bail_runtime!("{}: output is f32, the op writes u32", self.descs[i].name)
            }
        }
    }

    /// The first N outputs at once, all of floats.
    pub fn first_f32s<const N: usize>(&mut self) -> Result<[&mut [f32]; N]> {
        let all = self.data.iter_mut().map_while(|data| match data {
            HostData::F32(v) => Some(v.as_mut_slice()),
            HostData::U32(_) => None,
        });
        let first: Vec<_> = all.take(N).collect();
        let fail =
            || crate::core::Error::runtime(format!("{}: the op writes {N} f32 outputs", self.descs[0].name));
        first.try_into().map_err(|_: Vec<_>| fail())
    }
}
