//! Numbered records, each fsynced: the raw form of what was promised.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::ledger::{Writer, read_records};
use crate::soak::turn::{Load, Turn};

/// Records beyond which the file begins anew.
const RECORDS_MAX: u64 = 30_000;

/// The load.
pub(super) struct Records {
    there: u64,
}

impl Records {
    /// Nothing is written yet.
    pub(super) fn new() -> Records {
        Records { there: 0 }
    }
}

impl Load for Records {
    fn name(&self) -> &'static str {
        "records"
    }

    fn work(&mut self, dir: &Path, turn: &Turn) -> Result<String> {
        let path = dir.join("records");
        if self.there > RECORDS_MAX {
            std::fs::remove_file(&path).context("begin the records anew")?;
            self.there = 0;
        }
        let before = self.there;
        let writer = Writer::start(&path, before)?;
        turn.wait();
        self.there = writer.finish()?;
        Ok(format!("{} records", self.there - before))
    }

    fn check(&mut self, dir: &Path, _was_killed: bool) -> Result<String> {
        let path = dir.join("records");
        if self.there == 0 && !path.exists() {
            return Ok("none yet".to_owned());
        }
        let found = read_records(&path)?;
        ensure!(found >= self.there, "{} records were acknowledged, {found} are there", self.there);
        self.there = found;
        Ok(format!("{found} there"))
    }
}
