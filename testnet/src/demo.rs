//! The main job, end to end, on this machine: `remora-testnet demo`.
//!
//! Three nodes; a volume with a source tree, a database and a big file goes from the first to the second and is compared to
//! the last attribute; the second's daemon is killed in the middle of writes, and everything acknowledged is there again.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::compare::{Manifest, differences, manifest};
use crate::exe;
use crate::ledger::{Writer, read_records};
use crate::nodes::{Node, cluster};
use crate::report::Report;
use crate::workload;

/// Files of the source tree, transactions of the database, bytes of the big file.
const FILES: u64 = 3000;
const TRANSACTIONS: u64 = 1000;
const BIG_BYTES: u64 = 256 << 20;

/// Acknowledged records before the daemon is killed.
const RECORDS_BEFORE_KILL: u64 = 2000;

/// Runs the demo; leaves nothing behind.
pub fn run() -> Result<()> {
    exe::check_fuse()?;
    let dir = exe::scratch("demo")?;
    let mut report = Report::new("Remora demo: a volume that follows its container");
    report.fact("data directories below", dir.path().display());
    let mut nodes = Vec::new();
    report.step("three nodes, one cluster", 3, |bar| {
        nodes = cluster(dir.path(), &["alpha", "beta", "gamma"])?;
        bar.inc(3);
        anyhow::Ok("alpha, beta, gamma")
    })?;
    let [alpha, beta, _gamma] = nodes.as_mut_slice() else { unreachable!("three names make three nodes") };
    let filled = fill(&mut report, alpha)?;
    hand_over(&mut report, alpha, beta, &filled)?;
    crash(&mut report, beta)?;
    report.step("daemons stopped", 3, |bar| {
        for node in &mut nodes {
            node.stop()?;
            bar.inc(1);
        }
        anyhow::Ok("all by themselves")
    })?;
    report.close();
    Ok(())
}

/// Creates and mounts the volume on `node` and fills it with something real.
fn fill(report: &mut Report, node: &mut Node) -> Result<Manifest> {
    node.ok(&["volume", "create", "demo"])?;
    let mut at = std::path::PathBuf::new();
    report.step("volume mounted on alpha", 1, |_| {
        at = node.mount("demo")?;
        anyhow::Ok(at.display().to_string())
    })?;
    report.step("source tree copied in", FILES, |bar| {
        let files = workload::source_tree(&at.join("src"), FILES, &|n| bar.inc(n))?;
        anyhow::Ok(format!("{files} files"))
    })?;
    report.step("SQLite database", TRANSACTIONS, |bar| {
        workload::sqlite_database(&at.join("demo.db"), TRANSACTIONS, &|n| bar.inc(n))?;
        anyhow::Ok(format!("{TRANSACTIONS} committed transactions"))
    })?;
    report.step("big file written and fsynced", BIG_BYTES, |bar| {
        workload::noise_file(&at.join("big.bin"), BIG_BYTES, 7, &|n| bar.inc(n))?;
        anyhow::Ok(format!("{} MiB", BIG_BYTES >> 20))
    })?;
    workload::odd_tree(&at.join("odd"))?;
    let mut filled = Manifest::new();
    report.step("every attribute noted", 0, |bar| {
        filled = manifest(&at, &|n| bar.inc(n))?;
        anyhow::Ok(format!("{} names", filled.len()))
    })?;
    report.step("unmounted on alpha: all durable, released", 1, |_| {
        node.unmount(&at)?;
        anyhow::Ok("handed back")
    })?;
    Ok(filled)
}

/// Mounts on `to` what `from` released, and compares everything.
fn hand_over(report: &mut Report, from: &Node, to: &mut Node, filled: &Manifest) -> Result<()> {
    let mut at = std::path::PathBuf::new();
    report.step("mounted on beta, first byte read", 1, |_| {
        at = to.mount("demo")?;
        let bytes = std::fs::read(at.join("odd/plain"))?;
        ensure!(bytes == b"plain\n", "the first file read on beta is wrong");
        anyhow::Ok("no data was copied first")
    })?;
    report.step("sha256, mode, owner, mtime, links, xattrs compared", 0, |bar| {
        let found = manifest(&at, &|n| bar.inc(n))?;
        let differences = differences(filled, &found, 20);
        ensure!(differences.is_empty(), "beta sees another tree:\n{}", differences.join("\n"));
        anyhow::Ok(format!("{} names equal", found.len()))
    })?;
    report.step("SQLite on beta", 1, |_| {
        workload::check_sqlite(&at.join("demo.db"), TRANSACTIONS)?;
        anyhow::Ok(format!("integrity ok, {TRANSACTIONS} rows"))
    })?;
    report.step("alpha is refused while beta holds it", 1, |_| refused(from))?;
    Ok(())
}

/// A second writer on another host must not get in; the error says who holds the volume.
fn refused(node: &Node) -> Result<String> {
    let dir = node.data().with_extension("refused");
    std::fs::create_dir_all(&dir)?;
    let out = node.run(&["volume", "mount", "demo", &dir.to_string_lossy()])?;
    let text = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    ensure!(!out.status.success(), "alpha mounted a volume that beta holds");
    ensure!(text.contains("beta"), "the refusal does not name the holder: {text}");
    Ok(text)
}

/// Kills the daemon in the middle of fsynced writes; after its restart every acknowledged record must be there.
fn crash(report: &mut Report, node: &mut Node) -> Result<()> {
    let file = node.data().with_extension("mnt-demo").join("records");
    let mut acknowledged = 0;
    report.step("daemon of beta killed with -9 under a writer", RECORDS_BEFORE_KILL, |bar| {
        let writer = Writer::start(&file, 0)?;
        while writer.acknowledged() < RECORDS_BEFORE_KILL {
            bar.set_position(writer.acknowledged());
            ensure!(bar.elapsed().as_secs() < 60, "only {} records in a minute", writer.acknowledged());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        node.kill()?;
        acknowledged = writer.finish()?;
        anyhow::Ok(format!("{acknowledged} fsyncs acknowledged"))
    })?;
    report.step("restarted; the mount came back", 1, |_| {
        node.start()?;
        wait_for(&file)?;
        let found = read_records(&file)?;
        ensure!(found >= acknowledged, "{acknowledged} fsyncs were acknowledged, {found} records are there");
        anyhow::Ok(format!("{found} records there, {acknowledged} were acknowledged"))
    })?;
    Ok(())
}

/// The daemon answers before all remembered mounts are back; they follow at once.
fn wait_for(file: &Path) -> Result<()> {
    for _ in 0..500 {
        if file.exists() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    anyhow::bail!("{} did not come back within 10 s", file.display())
}
