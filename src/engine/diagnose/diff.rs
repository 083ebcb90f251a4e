//! A device against the CPU, node by node.
//!
//! The same graphs run three times: on the device, on the CPU in f32, and on the CPU with every edge rounded to the
//! device's element type. The last shows what rounding alone costs; a tensor leaves its tolerance when the device
//! errs more than twice that.

use std::fmt;

use serde::Serialize;

use super::super::measure::relative;
use super::super::model::Model;
use super::super::session::Inputs;
use super::super::verify::rounded_cpu;
use super::super::{DeviceChoice, Engine, Options, Question, open_on};
use super::{prepare, runs};
use crate::core::{DType, Desc, HostData, Place, Result};
use crate::models::config::{Opened, open_model_with};
use crate::models::qwen2::state;

/// What a device may always err, relative to the norm of the tensor, however little rounding costs.
pub const FLOOR_REL: f64 = 1e-5;

/// A tensor that left its tolerance.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Leaves {
    /// `prefill, 352 rows`.
    pub graph: String,
    /// Index of the node in its graph.
    pub node: usize,
    pub op: &'static str,
    pub tensor: String,
    /// `[352, 3584] bf16`.
    pub shape: String,
    /// ‖device − f32‖ / ‖f32‖.
    pub rel: f64,
    /// ‖rounded − f32‖ / ‖f32‖.
    pub rounded_rel: f64,
    /// Flat index of the largest difference, and the values there.
    pub worst: usize,
    pub found: f32,
    pub expected: f32,
}

/// How a device compares with the CPU.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct DiffReport {
    pub device: String,
    pub tensors: usize,
    /// The first that leaves its tolerance, in order of execution.
    pub first: Option<Leaves>,
    /// How many leave it.
    pub outside: usize,
    /// The largest part of its tolerance that a tensor inside uses, and which; empty where that is 0.
    pub most_used: f64,
    pub most_used_by: String,
}

impl DiffReport {
    pub fn passed(&self) -> bool {
        self.outside == 0
    }
}

/// Runs `question` on the device of `options` and on the CPU, and compares the outputs of every node.
///
/// # Errors
/// `Input` when the model cannot be opened or the question does not fit, `Runtime` when the device fails.
pub fn diff(spec: &str, options: &Options, system: Option<&str>, question: &Question) -> Result<DiffReport> {
    let opened = open_model_with(spec, &options.folders)?;
    let mut engine = Engine::from_opened(opened.clone(), options, &mut |_, _| {})?;
    // With the mask of sounds that the options may ask for.
    let opened = Opened { config: engine.model.cfg.clone(), ..opened };
    let inputs = engine.session(system)?.inputs(question)?;
    let act = engine.model.dtype;
    let sizes = engine.model.sizes;
    let rows = engine.model.padded_rows(inputs.ids.len());
    let (device, token) = record(&mut engine.model, &inputs, rows, None)?;
    let mut report = DiffReport {
        device: engine.model.backend().describe(),
        tensors: 0,
        first: None,
        outside: 0,
        most_used: 0.0,
        most_used_by: String::new(),
    };
    drop(engine);

    let cpu = Options { device: DeviceChoice::Cpu, ..options.clone() };
    let exact = {
        let mut model = open_on(opened.clone(), sizes, &cpu, false, &mut |_, _| {})?;
        record(&mut model, &inputs, rows, Some(token))?.0
    };
    let rounded = if act == DType::F32 {
        None
    } else {
        let mut model = rounded_cpu(opened, sizes, &cpu, act)?;
        Some(record(&mut model, &inputs, rows, Some(token))?.0)
    };
    report.compare(&device, &exact, rounded.as_deref())?;
    Ok(report)
}

/// What a node gave.
pub(super) struct Recorded {
    pub graph: String,
    pub node: usize,
    pub op: &'static str,
    pub desc: Desc,
    pub values: Vec<f32>,
}

/// Runs everything node by node with prompts of `rows` rows and keeps every float output; whole states, which are
/// large and seen through their readers, are left out. The decoding step starts from `token`, or from what the
/// prompt gave, which is returned.
fn record(
    model: &mut Model,
    inputs: &Inputs<'_>,
    rows: usize,
    token: Option<u32>,
) -> Result<(Vec<Recorded>, u32)> {
    let mut recorded = Vec::new();
    let mut first = token;
    for run in runs(model, inputs)? {
        let run = run.with_rows(rows);
        if run.input.is_none()
            && let Some(token) = first
        {
            model.write_text_state(state::TOKEN, &HostData::U32(vec![token]))?;
        }
        let exe = prepare(model, &run)?;
        let mut token = None;
        model.backend_mut().trace(exe, run.step, &mut |at, node, outs| {
            for out in outs {
                match (&out.data, out.desc.place) {
                    (HostData::U32(ids), _) => token = ids.first().copied(),
                    (HostData::F32(_), Place::State(_)) => {}
                    (HostData::F32(values), _) => {
                        let (all, cols) = (out.desc.rows(), out.desc.cols());
                        // Padding rows hold whatever the kernels leave there.
                        let keep = if all == rows { run.valid_rows.min(all) } else { all };
                        recorded.push(Recorded {
                            graph: run.name.clone(),
                            node: at,
                            op: node.op.name(),
                            desc: out.desc.clone(),
                            values: values[..keep * cols].to_vec(),
                        });
                    }
                }
            }
            Ok(())
        })?;
        if first.is_none() && run.valid_rows != usize::MAX {
            first = token;
        }
    }
    match first {
        Some(token) => Ok((recorded, token)),
        None => crate::bail_runtime!("the prompt gave no token"),
    }
}

impl DiffReport {
    pub(super) fn compare(
        &mut self,
        device: &[Recorded],
        exact: &[Recorded],
        rounded: Option<&[Recorded]>,
    ) -> Result<()> {
        if device.len() != exact.len() || rounded.is_some_and(|r| r.len() != exact.len()) {
            crate::bail_runtime!(
                "the device traced {} tensors, the CPU {}: their graphs differ",
                device.len(),
                exact.len()
            );
        }
        for (i, (dev, exact)) in device.iter().zip(exact).enumerate() {
            if dev.desc.name != exact.desc.name || dev.values.len() != exact.values.len() {
                crate::bail_runtime!(
                    "{} {} on the device is {} {} on the CPU: their graphs differ",
                    dev.desc.name,
                    dev.desc.brief(),
                    exact.desc.name,
                    exact.desc.brief()
                );
            }
            let (rel, worst) = relative(&dev.values, &exact.values);
            let rounded_rel = rounded.map_or(0.0, |r| relative(&r[i].values, &exact.values).0);
            let budget = 2.0 * rounded_rel + FLOOR_REL;
            self.tensors += 1;
            if rel <= budget {
                if rel / budget > self.most_used {
                    self.most_used = rel / budget;
                    self.most_used_by = format!("{}: {}", dev.graph, dev.desc.name);
                }
                continue;
            }
            self.outside += 1;
            self.first.get_or_insert_with(|| Leaves {
                graph: dev.graph.clone(),
                node: dev.node,
                op: dev.op,
                tensor: dev.desc.name.clone(),
                shape: dev.desc.brief(),
                rel,
                rounded_rel,
                worst,
                found: dev.values.get(worst).copied().unwrap_or(f32::NAN),
                expected: exact.values.get(worst).copied().unwrap_or(f32::NAN),
            });
        }
        Ok(())
    }
}

impl fmt::Display for DiffReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} against the CPU: {} tensors", self.device, self.tensors)?;
        match &self.first {
            // As when the device is the CPU itself.
            None if self.most_used == 0.0 => writeln!(f, "all equal"),
            None => writeln!(
                f,
                "all inside their tolerance; the nearest to it is {} at {:.0}% of it",
                self.most_used_by,
                self.most_used * 100.0
            ),
            Some(l) => {
                writeln!(f, "{} leave their tolerance, the first one is", self.outside)?;
                writeln!(f, "  {} {} (node {} of {}, {})", l.tensor, l.shape, l.node, l.graph, l.op)?;
                writeln!(f, "  relative error {:.3e}, rounding alone {:.3e}", l.rel, l.rounded_rel)?;
                writeln!(f, "  worst at {}: found {}, expected {}", l.worst, l.found, l.expected)
            }
        }
    }
}
