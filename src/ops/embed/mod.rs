//! Rows chosen by ids or by position: token embeddings, media rows, the last rows of a run, rows of earlier runs.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::{Case, CpuIo, Fill, OpDef, mismatch};
use crate::core::{Cost, DType, Desc, Result, Shape};

/// An id with this bit is no token: the other bits are a row of the media state.
pub const MEDIA_BIT: u32 = 1 << 31;

/// `y[t] = table[ids[t]]`; a zero row for media ids and ids beyond the table.
///
/// ins: ids u32, T of them, table `[V, C]`; outs: y `[T, C]` of the table's type.
#[derive(Clone, PartialEq, Debug)]
pub struct Embed;

/// `y[t] = media[ids[t] without MEDIA_BIT]` where the bit is set (a zero row beyond the state), else `x[t]`.
///
/// ins: x `[T, C]`, ids u32, T of them, media state `[R, C]`; outs: y `[T, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Splice;

/// [`Embed`], then [`Splice`].
///
/// ins: ids u32, T of them, table `[V, C]`, media state `[R, C]`; outs: y `[T, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct EmbedSplice;

/// The last n valid rows: `y[i] = x[step.valid_rows - n + i]`; a zero row where there is none.
///
/// ins: x `[T, C]`; outs: y `[n, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct LastRows {
    pub n: usize,
}

/// Rows of a table by position: `y[i] = table[step.pos - back + i]`; a zero row where there is none.
///
/// ins: table state `[R, C]`; outs: y `[rows, C]`.
#[derive(Clone, PartialEq, Debug)]
pub struct RowsAt {
    pub rows: usize,
    pub back: usize,
}

/// The rows of this run behind the last `rows` of earlier ones, and kept for later ones. The state is a ring: the row at
/// position i lies in row i mod R. x are the rows from `step.pos` on, y the rows from `step.pos - rows` on; a zero row
/// where there is none.
///
/// ins: x `[T, C]`, ring state `[R >= rows + T, C]`; outs: y `[rows + T, C]`, the same state.
#[derive(Clone, PartialEq, Debug)]
pub struct Recent {
    pub rows: usize,
}

/// What copying the rows of `y` reads and writes: the rows, and one id for each.
fn rows_cost(y: &Desc) -> Cost {
    Cost { flops: 0, read_bytes: y.bytes() + 4 * y.rows() as u64, written_bytes: y.bytes() }
}

impl OpDef for Embed {
    const NAME: &'static str = "Embed";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [ids, table] if ids.dtype == DType::U32 && table.dtype.is_float() && table.shape.rank() == 2 => {
                Ok(vec![(table.dtype, Shape::new(&[ids.shape.len(), table.cols()]))])
            }
            _ => Err(mismatch(Self::NAME, "ids u32 [T], table [V, C]", ins)),
        }
    }

    fn cost(&self, _: &[&Desc], outs: &[&Desc]) -> Cost {
        rows_cost(outs[0])
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::embed(io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |t: usize, v: usize, c: usize, limit: u32| {
            Case::new(format!("t{t}_v{v}_c{c}_below{limit}"), Embed).ids(&[t], limit).weight(&[v, c])
        };
        vec![
            case(1, 515, 896, 515),
            case(17, 33, 8, 66),
            case(5, 515, 1032, u32::MAX),
            case(1, 151665, 3584, 151665).bench(),
            case(512, 151665, 3584, 151665).bench(),
        ]
    }
}

impl OpDef for Splice {
    const NAME: &'static str = "Splice";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, ids, media]
                if ids.dtype == DType::U32
                    && ids.shape.len() == x.rows()
                    && media.dtype == x.dtype
                    && media.shape.rank() == 2
                    && media.cols() == x.cols() =>
            {
                Ok(vec![(x.dtype, x.shape)])
            }
            _ => Err(mismatch(Self::NAME, "x [T, C], ids u32 [T], media [R, C] of x's type", ins)),
        }
    }

    fn cost(&self, _: &[&Desc], outs: &[&Desc]) -> Cost {
        rows_cost(outs[0])
    }

    fn reuse(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::splice(io)
    }

    fn cases() -> Vec<Case<Self>> {
        let fill = Fill::Uniform { centre: 0.0, scale: 1.0 };
        let case = |name: &str, ids: Fill, t: usize, r: usize, c: usize| {
            let case = Case::new(format!("{name}_t{t}_r{r}_c{c}"), Splice).act(&[t, c]);
            case.act_u32(&[t], ids).state(&[r, c], fill)
        };
        vec![
            case("mixed", Fill::Ids { limit: u32::MAX }, 17, 5, 896),
            case("text", Fill::Ids { limit: 515 }, 17, 5, 896),
            case("media", Fill::Bits(MEDIA_BIT | 4), 3, 5, 8),
            case("beyond", Fill::Bits(MEDIA_BIT | 5), 3, 5, 1032),
            case("media", Fill::Bits(MEDIA_BIT | 100), 512, 256, 3584).bench(),
        ]
    }
}

impl OpDef for EmbedSplice {
    const NAME: &'static str = "EmbedSplice";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [ids, table, media]
                if ids.dtype == DType::U32
                    && table.dtype == media.dtype
                    && table.shape.rank() == 2
                    && media.shape.rank() == 2
                    && table.cols() == media.cols() =>
            {
                Ok(vec![(table.dtype, Shape::new(&[ids.shape.len(), table.cols()]))])
            }
            _ => Err(mismatch(Self::NAME, "ids u32 [T], table [V, C], media [R, C] of one type", ins)),
        }
    }

    fn cost(&self, _: &[&Desc], outs: &[&Desc]) -> Cost {
        rows_cost(outs[0])
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::embed_splice(io)
    }

    fn cases() -> Vec<Case<Self>> {
        let fill = Fill::Uniform { centre: 0.0, scale: 1.0 };
        let case = |name: &str, ids: Fill, t: usize, v: usize, c: usize| {
            let case = Case::new(format!("{name}_t{t}_v{v}_c{c}"), EmbedSplice).act_u32(&[t], ids);
            case.weight(&[v, c]).state(&[300, c], fill)
        };
        vec![
            case("mixed", Fill::Ids { limit: u32::MAX }, 17, 515, 896),
            case("text", Fill::Ids { limit: 515 }, 5, 515, 1032),
            case("media", Fill::Bits(MEDIA_BIT | 299), 3, 33, 8),
            case("text", Fill::Ids { limit: 151665 }, 512, 151665, 3584).bench(),
        ]
    }
}

impl OpDef for LastRows {
    const NAME: &'static str = "LastRows";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x] if x.shape.rank() == 2 => Ok(vec![(x.dtype, Shape::new(&[self.n, x.cols()]))]),
            _ => Err(mismatch(Self::NAME, "x [T, C]", ins)),
        }
    }

    fn cost(&self, _: &[&Desc], outs: &[&Desc]) -> Cost {
        Cost { flops: 0, read_bytes: outs[0].bytes(), written_bytes: outs[0].bytes() }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::last_rows(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |n: usize, t: usize, valid: usize, c: usize| {
            let case = Case::new(format!("n{n}_t{t}_v{valid}_c{c}"), LastRows { n });
            case.act(&[t, c]).step(40, valid, 0)
        };
        vec![
            case(1, 1, 1, 896),
            case(1, 17, 11, 896),
            case(3, 17, 17, 1032),
            case(3, 4, 2, 8),
            case(1, 512, 500, 3584).bench(),
        ]
    }
}

impl OpDef for RowsAt {
    const NAME: &'static str = "RowsAt";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [table] if table.shape.rank() == 2 && table.dtype.is_float() => {
                Ok(vec![(table.dtype, Shape::new(&[self.rows, table.cols()]))])
            }
            _ => Err(mismatch(Self::NAME, "table [R, C]", ins)),
        }
    }

    fn cost(&self, _: &[&Desc], outs: &[&Desc]) -> Cost {
        Cost { flops: 0, read_bytes: outs[0].bytes(), written_bytes: outs[0].bytes() }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::rows_at(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |rows: usize, back: usize, pos: usize, r: usize, c: usize| {
            let fill = Fill::Uniform { centre: 0.0, scale: 1.0 };
            let case = Case::new(format!("n{rows}_back{back}_at{pos}_r{r}_c{c}"), RowsAt { rows, back });
            case.state(&[r, c], fill).step(pos, rows, 0)
        };
        vec![
            case(1, 0, 0, 1, 8),
            case(12, 8, 16, 64, 128),
            case(5, 3, 2, 9, 1032),
            case(7, 2, 60, 63, 16),
            case(68, 64, 240, 1024, 1024).bench(),
        ]
    }
}

impl OpDef for Recent {
    const NAME: &'static str = "Recent";

    fn infer(&self, ins: &[&Desc]) -> Result<Vec<(DType, Shape)>> {
        match ins {
            [x, ring]
                if x.shape.rank() == 2
                    && ring.shape.rank() == 2
                    && ring.cols() == x.cols()
                    && ring.dtype == x.dtype
                    && ring.rows() >= self.rows + x.rows() =>
            {
                let y = Shape::new(&[self.rows + x.rows(), x.cols()]);
                Ok(vec![(x.dtype, y), (ring.dtype, ring.shape)])
            }
            _ => {
                let wants = format!("x [T, C], ring [R, C] of x's type with R >= T + {}", self.rows);
                Err(mismatch(Self::NAME, &wants, ins))
            }
        }
    }

    fn cost(&self, ins: &[&Desc], outs: &[&Desc]) -> Cost {
        let bytes = outs[0].bytes();
        Cost { flops: 0, read_bytes: bytes, written_bytes: bytes + ins[0].bytes() }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 1)]
    }

    fn cpu(&self, io: &mut CpuIo<'_>) -> Result<()> {
        cpu::recent(self, io)
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |rows: usize, t: usize, pos: usize, r: usize, c: usize| {
            let fill = Fill::Uniform { centre: 0.0, scale: 1.0 };
            let case = Case::new(format!("n{rows}_t{t}_at{pos}_r{r}_c{c}"), Recent { rows });
            case.act(&[t, c]).state(&[r, c], fill).step(pos, rows + t, 0)
        };
        vec![
            case(0, 1, 0, 1, 8),
            case(8, 4, 36, 12, 384),
            case(3, 4, 9, 8, 1032),
            case(8, 2, 14, 12, 128),
            case(5, 3, 2, 9, 16),
            case(64, 4, 240, 68, 3072).bench(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Step;
    use crate::ops::testing::{floats, ids, run};

    #[test]
    fn rows_by_position() {
        let table = || floats("table", &[4, 1], &[1.0, 2.0, 3.0, 4.0]);
        let at = |rows, back, pos| {
            run(RowsAt { rows, back }, Step::rows(pos, rows, 0), vec![table()]).unwrap()[0].clone()
        };
        assert_eq!(at(2, 0, 1).f32s(), [2.0, 3.0]);
        assert_eq!(at(3, 2, 3).f32s(), [2.0, 3.0, 4.0]);
        assert_eq!(at(3, 2, 1).f32s(), [0.0, 1.0, 2.0]);
        assert_eq!(at(2, 0, 3).f32s(), [4.0, 0.0]);
    }

    #[test]
    fn ids_choose_rows() {
        let table = floats("table", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let media = floats("media", &[2, 2], &[-1.0, -2.0, -3.0, -4.0]);
        let chosen = [2, MEDIA_BIT | 1, 3, MEDIA_BIT | 2, 0];
        let step = Step::default();
        let x = run(Embed, step, vec![ids("ids", &[5], &chosen), table.clone()]).unwrap();
        assert_eq!(x[0].f32s(), [5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);

        let x = floats("x", &[5, 2], &[9.0; 10]);
        let spliced = run(Splice, step, vec![x, ids("ids", &[5], &chosen), media.clone()]).unwrap();
        assert_eq!(spliced[0].f32s(), [9.0, 9.0, -3.0, -4.0, 9.0, 9.0, 0.0, 0.0, 9.0, 9.0]);

        let both = run(EmbedSplice, step, vec![ids("ids", &[5], &chosen), table, media]).unwrap();
        assert_eq!(both[0].f32s(), [5.0, 6.0, -3.0, -4.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn last_rows_count_from_the_valid_ones() {
        let x = || floats("x", &[4, 1], &[1.0, 2.0, 3.0, 4.0]);
        let last = |n, valid| run(LastRows { n }, Step::rows(7, valid, 0), vec![x()]).unwrap()[0].clone();
        assert_eq!(last(1, 4).f32s(), [4.0]);
        assert_eq!(last(2, 3).f32s(), [2.0, 3.0]);
        assert_eq!(last(3, 1).f32s(), [0.0, 0.0, 1.0]);
    }
}
