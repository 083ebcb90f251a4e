//! Running one op on the CPU in a unit test.

use super::io::{CpuIn, CpuIns, CpuOuts};
use super::{CpuIo, Op};
use crate::core::{DType, Desc, HostData, Place, Result, Shape, Step};

pub(crate) type Input = (Desc, HostData);

pub(crate) fn desc(name: &str, dtype: DType, shape: &[usize]) -> Desc {
    Desc { name: name.to_owned(), dtype, shape: Shape::new(shape), place: Place::Arena }
}

pub(crate) fn floats(name: &str, shape: &[usize], values: &[f32]) -> Input {
    (desc(name, DType::F32, shape), HostData::F32(values.to_vec()))
}

pub(crate) fn ids(name: &str, shape: &[usize], values: &[u32]) -> Input {
    (desc(name, DType::U32, shape), HostData::U32(values.to_vec()))
}

/// The outputs of `op`, not rounded; an output in place starts with the content of its input.
pub(crate) fn run(op: impl Into<Op>, step: Step, ins: Vec<Input>) -> Result<Vec<HostData>> {
    let op = op.into();
    let descs: Vec<&Desc> = ins.iter().map(|i| &i.0).collect();
    let inferred = op.infer(&descs)?;
    let outs: Vec<Desc> = inferred.iter().map(|(t, s)| desc("out", *t, s.dims())).collect();
    let from = |out: usize| op.in_place().iter().find(|p| p.1 == out).map(|p| p.0);
    let data = (0..outs.len()).map(|o| match from(o) {
        Some(i) => ins[i].1.clone(),
        None => HostData::poison(outs[o].dtype, outs[o].shape.len()),
    });
    let mut io = CpuIo {
        step,
        outs: CpuOuts { descs: outs.iter().collect(), data: data.collect() },
        ins: CpuIns {
            data: (0..ins.len())
                .map(|i| match &ins[i].1 {
                    _ if op.in_place().iter().any(|p| p.0 == i) => CpuIn::InPlace,
                    HostData::F32(v) => CpuIn::F32(v),
                    HostData::U32(v) => CpuIn::U32(v),
                })
                .collect(),
            descs,
        },
    };
    op.cpu(&mut io)?;
    Ok(io.outs.data)
}
