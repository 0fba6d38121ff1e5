//! The closing table.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::crash::Cycle;
use crate::report::{median, seconds};

#[derive(Default)]
struct Row {
    cycles: u64,
    acknowledged: u64,
    lost: u64,
    damaged: u64,
    survivors: u64,
    forgotten: usize,
    recoveries_secs: Vec<f64>,
}

/// Sums by kind of crash.
#[derive(Default)]
pub(super) struct Tally {
    rows: BTreeMap<String, Row>,
}

impl Tally {
    /// Counts a cycle.
    pub(super) fn add(&mut self, kind: &str, cycle: &Cycle) {
        let row = self.rows.entry(kind.to_owned()).or_default();
        row.cycles += 1;
        row.acknowledged += cycle.acknowledged;
        row.forgotten += cycle.cuts.iter().map(|cut| cut.pending - cut.kept + cut.torn).sum::<usize>();
        row.recoveries_secs.push(cycle.recovery.as_secs_f64());
        for (_, verdict) in &cycle.verdicts {
            row.lost += verdict.lost;
            row.damaged += verdict.damage.len() as u64;
            row.survivors += verdict.survivors;
        }
    }

    /// Prints the table.
    pub(super) fn print(&self) {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header([
            "crash",
            "cycles",
            "acknowledged",
            "lost",
            "integrity errors",
            "survivors",
            "blocks lost or torn",
            "recovery",
        ]);
        for (kind, row) in &self.rows {
            table.add_row([
                kind.clone(),
                row.cycles.to_string(),
                row.acknowledged.to_string(),
                row.lost.to_string(),
                row.damaged.to_string(),
                row.survivors.to_string(),
                row.forgotten.to_string(),
                seconds(Duration::from_secs_f64(median(&row.recoveries_secs))),
            ]);
        }
        println!();
        for line in table.to_string().lines() {
            println!("{}", line.trim_end());
        }
        println!(
            "\nsurvivors: there, though never acknowledged, which is allowed; recovery: median from the daemon's start to the mount"
        );
    }
}
