//! Whale's attention without relative shift:
//! `scale·((q_i + u)·k_j + (q_i + v)·p_j) = scale·q_i·(k_j + p_j) + scale·(u·k_j + v·p_j)`:
//! plain attention over keys `k + p` with one bias per key and head. As
//! `scale·(q_i + u)·(k_j + p_j) + scale·(v - u)·p_j` that bias is known before a sound is: the models use this form.

use super::{Case, CpuIo, OpDef, cases, cpu, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};

/// `kp = k + p`, `bias[h, j] = scale · (u_h·k_j + vb_h·p_j)`, from k as it comes in. One rounding of kp.
///
/// ins: k `[T, H·D]`, p `[cap >= T, H·D]` (row j belongs to key j), u `[H·D]`, vb `[H·D]`; outs: kp `[T, H·D]`,
/// bias f32 `[H, T]`.
#[derive(Clone, PartialEq, Debug)]
pub struct KeyBias {
    pub heads: usize,
    pub head_dim: usize,
    pub scale: f32,
}

/// Adds row t of a table to the key columns of row t of a packed qkv; q and v pass through.
///
/// ins: qkv `[T, 3·C]`, p `[cap >= T, C]`; outs: qkv' `[T, 3·C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct AddKeys;

/// Absolute positions (Vaswani et al. 2017): `pe[t, 2i] = sin(t · 10000^(-2i/width))`, `pe[t, 2i+1] = cos(same)`.
/// The frequency is rounded to f32, then the angle.
///
/// ins: none; outs: pe `[rows, width]` of `dtype`.
#[derive(Clone, PartialEq, Debug)]
pub struct SinTable {
    pub rows: usize,
    pub width: usize,
    pub dtype: DType,
}

/// Whether `ins` are keys of `parts` blocks of C columns, and p `[cap >= T, C]`.
fn takes_table(k: &Desc, p: &Desc, c: usize, parts: usize) -> bool {
    let p_rows = p.shape.dims() == [p.rows(), c] && p.rows() >= k.rows();
    k.shape.dims() == [k.rows(), parts * c] && k.dtype.is_float() && c > 0 && p_rows && p.dtype == k.dtype
}

/// Whether `ins` are keys, p `[cap >= T, C]`, u `[C]` and vb `[C]`.
fn fits(ins: &[&Desc], c: usize) -> bool {
    match ins {
        [k, p, u, vb] => {
            let vectors = u.shape.dims() == [c] && vb.shape.dims() == [c];
            takes_table(k, p, c, 1) && vectors && u.dtype == vb.dtype
        }
        _ => false,
    }
}

impl OpDef for KeyBias {
    const NAME: &'static str = "KeyBias";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        let c = self.heads * self.head_dim;
        if !fits(ins, c) {
            let wants = format!("k [T, {c}], p [cap >= T, {c}] of k's type, u [{c}], vb [{c}] of one type");
            return Err(mismatch(Self::NAME, &wants, ins));
        }
        Ok(vec![(ins[0].dtype, ins[0].shape), (DType::F32, Shape::new(&[self.heads, ins[0].rows()]))])
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        let k = ins[0];
        Cost {
            flops: 5 * k.shape.len() as u64,
            read_bytes: 2 * k.bytes() + ins[2].bytes() + ins[3].bytes(),
            written_bytes: outs[0].bytes() + outs[1].bytes(),
        }
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::key_bias(io, self.heads, self.head_dim, self.scale)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::key_bias()
    }
}

impl OpDef for AddKeys {
    const NAME: &'static str = "AddKeys";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [qkv, p] if takes_table(qkv, p, p.cols(), 3) => Ok(vec![(qkv.dtype, qkv.shape)]),
            _ => Err(mismatch(Self::NAME, "qkv [T, 3·C], p [cap >= T, C] of qkv's type", ins)),
        }
    }

    /// In the slot of its input, which is how it runs in a model, it touches the key columns alone.
    fn cost(&self, ins: &[&Desc], _: &[&Desc]) -> Cost {
        let keys = ins[0].bytes() / 3;
        Cost { flops: ins[0].shape.len() as u64 / 3, read_bytes: 2 * keys, written_bytes: keys }
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::add_keys(io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::add_keys()
    }
}

impl OpDef for SinTable {
    const NAME: &'static str = "SinTable";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        if !ins.is_empty() || self.width == 0 || !self.width.is_multiple_of(2) || !self.dtype.is_float() {
            let wants =
                format!("no input, an even width and a float type, has {} {}", self.width, self.dtype);
            return Err(mismatch(Self::NAME, &wants, ins));
        }
        Ok(vec![(self.dtype, Shape::new(&[self.rows, self.width]))])
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::sin_table(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        cases::sin_table()
    }
}
