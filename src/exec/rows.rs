//! Where rows lie that are copied from one state to another.

use crate::core::{Desc, Result};

/// Under which of the last leading indices rows are copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leads {
    /// All of both states.
    All,
    /// `count` of them, from `src` on to those from `dst` on.
    Some { src: usize, dst: usize, count: usize },
}

/// Where the rows of [`Backend::copy_state_leads`](super::Backend::copy_state_leads) lie, in elements: blocks of `runs`
/// runs of `len`; in each state blocks and runs are a pitch apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RowRuns {
    pub blocks: usize,
    pub src_block: usize,
    pub dst_block: usize,
    pub runs: usize,
    pub len: usize,
    pub src: usize,
    pub src_pitch: usize,
    pub dst: usize,
    pub dst_pitch: usize,
}

impl RowRuns {
    /// `Err` unless all rows are within both states, and these agree.
    pub fn new(
        (src, src_row): (&Desc, usize),
        (dst, dst_row): (&Desc, usize),
        rows: usize,
        leads: Leads,
    ) -> Result<RowRuns> {
        // Outer extents, the last leading one, rows, columns.
        let split = |d: &Desc| match *d.shape.dims() {
            [ref outer @ .., n, r, c] => Some((outer.to_vec(), n, r, c)),
            [r, c] => Some((Vec::new(), 1, r, c)),
            _ => None,
        };
        let under = match leads {
            Leads::All => String::new(),
            Leads::Some { src, dst, count } => {
                format!(", {count} leading indices from {src} on as those from {dst} on,")
            }
        };
        if let (Some((a, src_leads, src_rows, c)), Some((b, dst_leads, dst_rows, dst_c))) =
            (split(src), split(dst))
        {
            let (src_lead, dst_lead, count) = match leads {
                Leads::All => (0, 0, src_leads),
                Leads::Some { src, dst, count } => (src, dst, count),
            };
            let fits = (&a, c, src.dtype) == (&b, dst_c, dst.dtype)
                && (leads != Leads::All || src_leads == dst_leads)
                && src_lead + count <= src_leads
                && dst_lead + count <= dst_leads
                && src_row + rows <= src_rows
                && dst_row + rows <= dst_rows;
            if fits {
                let outer = a.iter().product();
                // All leading indices of both states are one block.
                let (blocks, runs) = match leads {
                    Leads::All => (1, outer * count),
                    Leads::Some { .. } => (outer, count),
                };
                return Ok(RowRuns {
                    blocks,
                    src_block: src_leads * src_rows * c,
                    dst_block: dst_leads * dst_rows * c,
                    runs,
                    len: rows * c,
                    src: (src_lead * src_rows + src_row) * c,
                    src_pitch: src_rows * c,
                    dst: (dst_lead * dst_rows + dst_row) * c,
                    dst_pitch: dst_rows * c,
                });
            }
        }
        crate::bail_runtime!(
            "{rows} rows of {} {} from row {src_row}{under} do not fit {} {} from row {dst_row}",
            src.name,
            src.brief(),
            dst.name,
            dst.brief()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, cpu};
    use super::*;
    use crate::core::{DType, HostData, Place, Shape};

    fn desc(name: &str, shape: &[usize]) -> Desc {
        Desc { name: name.into(), dtype: DType::F32, shape: Shape::new(shape), place: Place::Arena }
    }

    #[test]
    fn rows_are_copied_under_every_leading_index() {
        let (from, to) = (desc("kv", &[2, 3, 7, 2]), desc("kept", &[2, 3, 5, 2]));
        let mut cpu = cpu::Cpu::new();
        let [src, dst] = [&from, &to].map(|d| cpu.create_state(d).unwrap());
        let values: Vec<f32> = (0..from.shape.len()).map(|i| i as f32).collect();
        cpu.write_state(src, 0, &HostData::F32(values)).unwrap();
        cpu.copy_state_rows(src, 3, dst, 1, 4).unwrap();
        let copied = cpu.read_state(dst).unwrap();
        for (i, &value) in copied.f32s().iter().enumerate() {
            let (lead, row, c) = (i / 10, i / 2 % 5, i % 2);
            let want = if row == 0 { 0 } else { lead * 14 + (row + 2) * 2 + c };
            assert_eq!(value, want as f32, "element {i}");
        }
        // And back: rows that were not copied stay as they were.
        cpu.copy_state_rows(dst, 1, src, 0, 1).unwrap();
        let back = cpu.read_state(src).unwrap();
        assert_eq!(back.f32s()[14..20], [20.0, 21.0, 16.0, 17.0, 18.0, 19.0]);
        let message = cpu.copy_state_rows(src, 0, src, 3, 2).unwrap_err().to_string();
        assert_eq!(message, "a copy of rows from state 0 to state 0: two expected");
    }

    /// Keys and values of two heads, to the place of one sequence among three.
    #[test]
    fn rows_are_copied_under_other_leading_indices() {
        let (from, to) = (desc("kv", &[2, 2, 5, 3]), desc("batch", &[2, 6, 4, 3]));
        let mut cpu = cpu::Cpu::new();
        let [src, dst] = [&from, &to].map(|d| cpu.create_state(d).unwrap());
        let values = (0..from.shape.len()).map(|i| 1.0 + i as f32).collect();
        cpu.write_state(src, 0, &HostData::F32(values)).unwrap();
        let leads = Leads::Some { src: 0, dst: 4, count: 2 };
        cpu.copy_state_leads((src, 2), (dst, 1), 3, leads).unwrap();
        for (i, &value) in cpu.read_state(dst).unwrap().f32s().iter().enumerate() {
            let (part, head, row, c) = (i / 72, i / 12 % 6, i / 3 % 4, i % 3);
            let want = match (head, row) {
                (4.., 1..) => 1 + ((part * 2 + head - 4) * 5 + row + 1) * 3 + c,
                _ => 0,
            };
            assert_eq!(value, want as f32, "element {i}");
        }
        // One head back, to another place.
        cpu.copy_state_leads((dst, 1), (src, 0), 1, Leads::Some { src: 4, dst: 1, count: 1 }).unwrap();
        assert_eq!(cpu.read_state(src).unwrap().f32s()[15..19], [7.0, 8.0, 9.0, 19.0]);
        for (leads, what) in [
            (Leads::Some { src: 0, dst: 5, count: 2 }, ", 2 leading indices from 0 on as those from 5 on,"),
            (Leads::Some { src: 1, dst: 0, count: 2 }, ", 2 leading indices from 1 on as those from 0 on,"),
            (Leads::All, ""),
        ] {
            let message = cpu.copy_state_leads((src, 2), (dst, 1), 3, leads).unwrap_err().to_string();
            assert_eq!(
                message,
                format!(
                    "3 rows of kv [2, 2, 5, 3] f32 from row 2{what} do not fit batch [2, 6, 4, 3] f32 from row 1"
                )
            );
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let from = desc("kv", &[2, 7, 2]);
        let message = |to: &Desc, src_row, dst_row, rows| {
            RowRuns::new((&from, src_row), (to, dst_row), rows, Leads::All).unwrap_err().to_string()
        };
        let kept = desc("kept", &[2, 5, 2]);
        assert_eq!(
            message(&kept, 1, 2, 4),
            "4 rows of kv [2, 7, 2] f32 from row 1 do not fit kept [2, 5, 2] f32 from row 2"
        );
        for (to, src_row, rows) in [
            (kept, 4, 4),
            (desc("heads", &[3, 7, 2]), 0, 1),
            (desc("dim", &[2, 7, 4]), 0, 1),
            (desc("flat", &[14]), 0, 1),
            (Desc { dtype: DType::BF16, ..from.clone() }, 0, 1),
        ] {
            assert!(message(&to, src_row, 0, rows).contains("do not fit"), "{}", to.name);
        }
    }
}
