//! The ops. One folder per family holds all that is true of an op on every machine (`mod.rs`: shape rule, cost,
//! cases), its f32 reference (`cpu.rs`) and its launcher (`cuda.rs`).
//!
//! Primitive ops are the equations of the models. A fused op is an ordinary op whose meaning is its expansion into
//! primitives (`crate::fuse`).

pub mod case;
pub mod io;

use crate::core::{Cost, DType, Desc, Result, Shape};
#[cfg(feature = "cuda")]
use crate::gpu::launch::{GpuIo, Launcher};
pub use case::{Case, Fill};
pub use io::CpuIo;

/// All that is true of an op on every machine.
pub trait OpDef: Clone + PartialEq + std::fmt::Debug {
    /// Spelling in dumps, profiles and benchmarks.
    const NAME: &'static str;

    /// The shape rule, and the only shape check: element type and shape of every output.
    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>>;

    /// Work and bytes of one run. Unless an op says otherwise, every input is read once and every output written
    /// once.
    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        Cost {
            flops: outs.iter().map(|d| d.shape.len() as u64).sum(),
            read_bytes: ins.iter().map(|d| d.bytes()).sum(),
            written_bytes: outs.iter().map(|d| d.bytes()).sum(),
        }
    }

    /// Pairs (input, output) where the output is the next version of an input that is a state: same memory, written
    /// in place. The CPU sees the current content in the output and nothing in the input.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// Pairs (input, output) that may share an arena slot when the input dies here. Such kernels take no
    /// `__restrict__` pointers for the pair.
    fn reuse(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// The reference: f32 inside; the executor rounds outputs to their element type.
    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()>;

    /// The shapes that test, benchmark and profile share.
    fn cases() -> Vec<Case<Self>>;
}

/// The launcher of an op, in `cuda.rs` of its family.
#[cfg(feature = "cuda")]
pub trait CudaOp: OpDef {
    /// Records the launches of one run: kernel, geometry, parameters with their final addresses.
    fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()>;
}

/// Declares the closed set of ops: an enum, and one exhaustive match per method.
macro_rules! ops {
    ($($family:ident :: $op:ident),+ $(,)?) => {
        /// Every op there is.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Op { $($op($family::$op)),+ }

        $(impl From<$family::$op> for Op {
            fn from(op: $family::$op) -> Op { Op::$op(op) }
        })+

        impl Op {
            pub fn name(&self) -> &'static str {
                match self { $(Op::$op(_) => <$family::$op as OpDef>::NAME),+ }
            }

            pub fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
                match self { $(Op::$op(op) => op.infer(ins)),+ }
            }

            pub fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
                match self { $(Op::$op(op) => op.cost(ins, outs)),+ }
            }

            pub fn in_place(&self) -> &'static [(usize, usize)] {
                match self { $(Op::$op(op) => op.in_place()),+ }
            }

            pub fn reuse(&self) -> &'static [(usize, usize)] {
                match self { $(Op::$op(op) => op.reuse()),+ }
            }

            pub fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
                match self { $(Op::$op(op) => op.cpu(io)),+ }
            }

            #[cfg(feature = "cuda")]
            pub fn launch(&self, l: &mut Launcher<'_>, io: &GpuIo<'_>) -> Result<()> {
                match self { $(Op::$op(op) => CudaOp::launch(op, l, io)),+ }
            }

            /// The cases of every op, op by op.
            pub fn all_cases() -> Vec<Case<Op>> {
                let mut all = Vec::new();
                $(all.extend(<$family::$op as OpDef>::cases().into_iter().map(Case::erase));)+
                all
            }
        }
    };
}

pub mod attention;
#[cfg(feature = "cuda")]
pub(crate) mod checks;
pub mod conv;
pub mod elementwise;
pub mod embed;
pub mod linear;
pub mod norm;
pub mod preprocess;
pub mod rope;
pub mod sample;
#[cfg(test)]
pub(crate) mod testing;

ops! {
    norm::RmsNorm,
    norm::LayerNorm,
    norm::AddRmsNorm,
    norm::AddLayerNorm,
    norm::RowStats,
    norm::RmsBegin,
    rope::Rope,
    rope::KvAppend,
    rope::RopeKvAppend,
    rope::RopeTable,
    elementwise::Unary,
    elementwise::Scale,
    elementwise::Add,
    elementwise::Mul,
    elementwise::RowScale,
    elementwise::AddTable,
    embed::Embed,
    embed::Splice,
    embed::EmbedSplice,
    embed::LastRows,
    embed::RowsAt,
    embed::Recent,
    sample::ArgMax,
    sample::Sample,
    linear::Linear,
    linear::LinearFused,
    linear::LinearRope,
    linear::LinearArgMax,
    conv::Patchify,
    conv::PrependClass,
    conv::AssembleTokens,
    conv::PixelShuffle,
    conv::Cmvn,
    conv::Conv2d,
    conv::Conv1d,
    attention::Attention,
    attention::KeyBias,
    attention::AddKeys,
    attention::SinTable,
    preprocess::Filterbank,
    preprocess::ResizeWidth,
    preprocess::ResizeToTiles,
}

/// `Err` naming the op and what it got, for `infer`.
pub(crate) fn mismatch(op: &str, wants: &str, ins: &[&Desc]) -> crate::core::Error {
    let got: Vec<String> = ins.iter().map(|d| format!("{} {}", d.name, d.brief())).collect();
    crate::core::Error::input(format!("{op} wants {wants}; got {}", got.join(", ")))
}
