//! `remora-testnet restart`: kill -9 of the daemon under a writer that fsyncs numbered records, again and again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::exe;
use crate::ledger::{Writer, read_records};
use crate::nodes::cluster;
use crate::report::Report;

/// How long a mount may take to come back after a restart.
const BACK_TIMEOUT: Duration = Duration::from_secs(15);

/// Kills and restarts `rounds` times; answers the records acknowledged in all. Any lost one is an error.
pub fn run(rounds: u32) -> Result<u64> {
    exe::check_fuse()?;
    let dir = exe::scratch("restart")?;
    let mut report = Report::new("kill -9 under a writer");
    let mut nodes = cluster(dir.path(), &["solo"])?;
    let node = nodes.first_mut().context("one name makes one node")?;
    node.ok(&["volume", "create", "ledger"])?;
    let file = node.mount("ledger")?.join("records");
    let mut records = 0;
    for round in 1..=rounds {
        report.step(&format!("round {round}"), 0, |_| {
            let writer = Writer::start(&file, records)?;
            // Each round dies at another moment: after some records, and some microseconds into the next.
            let wanted = records + 50 + u64::from(round) * 13 % 170;
            let began = Instant::now();
            while writer.acknowledged() < wanted {
                ensure!(
                    began.elapsed() < Duration::from_secs(30),
                    "the writer is stuck: {}",
                    node.last_words()
                );
                std::thread::sleep(Duration::from_micros(300));
            }
            std::thread::sleep(Duration::from_micros(u64::from(round) * 37 % 900));
            node.kill()?;
            let acknowledged = writer.finish()?;
            let restarted = Instant::now();
            node.start()?;
            wait_until_back(&file)?;
            let back = restarted.elapsed();
            let found = read_records(&file)?;
            ensure!(found >= acknowledged, "{acknowledged} were acknowledged, {found} are there");
            records = found;
            anyhow::Ok(format!(
                "{acknowledged} acknowledged, {found} there, back after {} ms",
                back.as_millis()
            ))
        })?;
    }
    report.fact("lost", 0);
    report.close();
    Ok(records)
}

fn wait_until_back(file: &Path) -> Result<()> {
    let began = Instant::now();
    while !file.exists() {
        ensure!(began.elapsed() < BACK_TIMEOUT, "{} did not come back", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
