//! What a graph knows of a tensor: name, element type, shape, where it lives.

use super::{dtype::DType, shape::Shape};

/// Index of a tensor in its graph. Its facts are in [`Desc`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Tensor(pub u32);

/// Where a tensor's bytes live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A slot of the arena, live from its writer to its last reader.
    Arena,
    /// Index into `Graph::weights`.
    Weight(u32),
    /// Index into `Graph::states`: memory that outlives a run (KV cache, media rows, the sampled token).
    State(u32),
    /// A slot of the arena that the host writes before a run (input) or reads after it (output): never reused.
    Io,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Desc {
    /// Dotted path in checkpoint spelling: `layers.7.mlp.gate`.
    pub name: String,
    pub dtype: DType,
    pub shape: Shape,
    pub place: Place,
}

impl Desc {
    pub fn rows(&self) -> usize {
        self.shape.rows()
    }

    pub fn cols(&self) -> usize {
        self.shape.cols()
    }

    /// Bytes in the tensor's own element type.
    pub fn bytes(&self) -> u64 {
        self.shape.len() as u64 * self.dtype.bytes() as u64
    }

    /// `[512, 3584] bf16`, for messages.
    pub fn brief(&self) -> String {
        format!("{} {}", self.shape, self.dtype)
    }
}

/// What one launch must do at least; the roofline follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Cost {
    pub flops: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

impl Cost {
    pub fn bytes(&self) -> u64 {
        self.read_bytes + self.written_bytes
    }
}

impl std::ops::Add for Cost {
    type Output = Cost;
    fn add(self, o: Cost) -> Cost {
        Cost {
            flops: self.flops + o.flops,
            read_bytes: self.read_bytes + o.read_bytes,
            written_bytes: self.written_bytes + o.written_bytes,
        }
    }
}

/// The few numbers that change between runs of one prepared graph. They sit in device memory and kernels read
/// them, so a captured graph is replayed as it is. Layout shared with `kernels/common/step.cuh`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Step {
    /// Position of the first row of this run in the sequence: rows of the KV cache before it are valid.
    pub pos: u32,
    /// Valid KV rows after this run: `pos + valid_rows`.
    pub kv_len: u32,
    /// Rows of this run that hold tokens; rows beyond are padding up to the graph's row count.
    pub valid_rows: u32,
    /// Number of this draw since the request began: the counter of the sampler's random numbers.
    pub draw: u32,
}

impl Step {
    pub fn rows(pos: usize, valid_rows: usize, draw: usize) -> Step {
        Step {
            pos: pos as u32,
            kv_len: (pos + valid_rows) as u32,
            valid_rows: valid_rows as u32,
            draw: draw as u32,
        }
    }
}
