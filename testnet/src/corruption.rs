//! `remora-testnet corruption`: bits turn over, files are cut short, an index is gone or another host's.
//!
//! In memory every bit of files that a daemon made is turned over in turn, and every length of a tail is tried. Then the
//! same is done to the files of a daemon that is down, a few bits of every kind of file, and to its index. What counts:
//! never wrong bytes, never a silent loss, and nothing is cut that somebody was promised.

mod index;
mod live;
mod memory;
mod peers;
pub(crate) mod scene;

use std::path::Path;

use anyhow::{Context, Result};

use crate::exe;
use crate::report::Report;

/// How much is done.
#[derive(Clone, Copy)]
struct Scale {
    /// Small files that are written to the volume whose log is turned over bit by bit.
    log_files: u64,
    /// Blocks in the pack that is turned over bit by bit.
    blocks: u64,
    /// Turned bits of each kind of file of a daemon that is down.
    live_rounds: u64,
    /// Random damages of the index.
    index_rounds: u64,
}

const SHORT: Scale = Scale { log_files: 6, blocks: 6, live_rounds: 1, index_rounds: 2 };
const LONG: Scale = Scale { log_files: 40, blocks: 60, live_rounds: 8, index_rounds: 12 };

/// Runs everything; the first wrong byte or silent loss ends the run. Leaves nothing behind.
pub fn run(is_short: bool, seed: u64) -> Result<()> {
    exe::check_fuse()?;
    let scale = if is_short { SHORT } else { LONG };
    let dir = exe::scratch("corruption")?;
    let mut report = Report::new("Corruption");
    report.fact("seed", seed);
    let outcome = parts(&mut report, dir.path(), scale, seed);
    outcome.with_context(|| format!("seed {seed}"))?;
    report.fact("wrong bytes", 0);
    report.close();
    Ok(())
}

fn parts(report: &mut Report, dir: &Path, scale: Scale, seed: u64) -> Result<()> {
    memory::run(report, &area(dir, "memory")?, scale)?;
    live::run(report, &area(dir, "live")?, scale.live_rounds, seed)?;
    index::run(report, &area(dir, "index")?, scale.index_rounds, seed)?;
    peers::run(report, &area(dir, "peers")?)
}

fn area(dir: &Path, name: &str) -> Result<std::path::PathBuf> {
    let area = dir.join(name);
    std::fs::create_dir(&area)?;
    Ok(area)
}
