//! The store fills up in the middle of pgbench; space comes back from outside the store, and from inside the volume.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::exe;
use crate::faults::postgres::{Acknowledged, Client, Postgres};
use crate::faults::untar::Store;
use crate::nodes::Node;
use crate::report::Report;
use crate::workload::noise_file;

/// Bytes of a file in the volume that is removed while the disk is full, and of another one that is cut.
const SPARE_BYTES: u64 = 8 << 20;

/// Bytes left above the reserve when the disk fills up.
const LEFT_BYTES: u64 = 24 << 20;

/// How long it may take until a program is told that the disk is full, and until freed space is used.
const TOLD_TIMEOUT: Duration = Duration::from_secs(120);
const FREED_TIMEOUT: Duration = Duration::from_secs(60);

/// Clients whose every row is in the ledger.
const N_CLIENTS: u32 = 2;

pub(super) fn run(report: &mut Report, is_short: bool) -> Result<()> {
    let dir = exe::scratch("full-pg")?;
    let mut store = Store::make(dir.path(), if is_short { 700 << 20 } else { 1500 << 20 })?;
    let outcome = under_pgbench(report, dir.path(), &mut store, is_short);
    outcome.with_context(|| store.node.last_words())
}

/// The database on the volume, and what its clients were told.
struct Bench {
    server: Postgres,
    told: Vec<Acknowledged>,
}

fn under_pgbench(report: &mut Report, dir: &Path, store: &mut Store, is_short: bool) -> Result<()> {
    let (scale, secs) = if is_short { (1, 2) } else { (5, 10) };
    let mount = store.start()?;
    let pid = store.node.pid();
    for name in ["removed", "cut"] {
        noise_file(&mount.join(name), SPARE_BYTES, 3, &|_| {})?;
    }
    let server = Postgres::make(&mount, &dir.join("beside"), scale)?;
    let told = (0..N_CLIENTS).map(|client| Acknowledged { client, rows: 0 }).collect();
    let mut bench = Bench { server, told };
    for round in 1..=if is_short { 1 } else { 3 } {
        report.step(&format!("pgbench, round {round}: the disk fills up"), 0, |_| {
            bench.fill_up(store, Duration::from_secs(secs))
        })?;
        report.step("on the full disk: unlink, truncate, reads", 0, |_| on_the_full_disk(&mount, round))?;
        report.step("space is freed: it goes on without a restart", 0, |_| {
            store.free_ballast()?;
            let what = bench.go_on(secs)?;
            ensure!(store.node.pid() == pid && pid.is_some(), "the daemon is another one");
            anyhow::Ok(what)
        })?;
    }
    report.step("kill -9 of everything, restart", 0, |_| {
        bench.server.stop("immediate")?;
        restart(&mut store.node)?;
        bench.server.forget_pid()?;
        bench.server.start()?;
        let n = bench.server.check()?;
        let rows = bench.server.check_ledger(&bench.told)?;
        bench.server.stop("fast")?;
        bench.server.check_pages()?;
        anyhow::Ok(format!(
            "{n} transactions, {rows} rows of the ledger; sums, amcheck, page checksums agree"
        ))
    })?;
    drop(bench);
    store.node.unmount(&mount)?;
    store.node.stop()
}

fn restart(node: &mut Node) -> Result<()> {
    node.kill()?;
    node.start()?;
    node.mount("v").map(drop)
}

impl Bench {
    /// Transactions run; after `after` a foreign file takes the space. Ends when the programs have been told.
    fn fill_up(&mut self, store: &mut Store, after: Duration) -> Result<String> {
        let before = std::fs::metadata(self.server.log())?.len();
        let clients = self
            .told
            .iter()
            .map(|told| Client::start(&self.server, told.client, told.rows))
            .collect::<Result<Vec<_>>>()?;
        let mut pgbench = Pgbench::start(&self.server, 600)?;
        std::thread::sleep(after);
        ensure!(clients.iter().all(|client| client.rows() > 0), "the clients do not get going");
        ensure!(pgbench.is_running()?, "pgbench ended before anybody took the space");
        let began = Instant::now();
        // What the store gives back is taken, too.
        let said = pgbench.wait(TOLD_TIMEOUT, || store.take_space(LEFT_BYTES))?;
        let took = began.elapsed();
        // A client may have lost its session when the server restarted itself; it is not told anything new then.
        self.told = clients.into_iter().map(Client::finish).collect::<Result<_>>()?;
        let log = std::fs::read(self.server.log())?;
        let log = String::from_utf8_lossy(&log[usize::try_from(before)?.min(log.len())..]).into_owned();
        let full = log.matches("No space left on device").count();
        ensure!(full > 0, "PostgreSQL was not told that the disk is full; pgbench: {said}\n{log}");
        ensure!(!log.contains("Input/output error"), "PostgreSQL was told EIO:\n{log}");
        Ok(format!(
            "{full} times ENOSPC, never EIO; pgbench told after {:.1} s; {} rows acknowledged",
            took.as_secs_f64(),
            self.told.iter().map(|told| told.rows).sum::<u64>()
        ))
    }

    /// The server works again, by itself or started anew, and everything that was acknowledged is there.
    fn go_on(&mut self, secs: u64) -> Result<String> {
        let began = Instant::now();
        let by_itself = self.server.answers();
        while !(self.server.answers() && self.server.sql("CHECKPOINT").is_ok()) {
            ensure!(began.elapsed() < FREED_TIMEOUT, "space was freed and PostgreSQL does not work again");
            // After a PANIC it may have given up; whoever runs it starts it again.
            let _may_run_already = self.server.start();
            std::thread::sleep(Duration::from_millis(100));
        }
        let waited = began.elapsed();
        let mut pgbench = Pgbench::start(&self.server, secs)?;
        let said = pgbench.wait(Duration::from_secs(secs) + FREED_TIMEOUT, || Ok(()))?;
        ensure!(pgbench.has_succeeded, "pgbench after space was freed: {said}");
        let n = self.server.check()?;
        let rows = self.server.check_ledger(&self.told)?;
        let how = if by_itself { "never stopped" } else { "started again" };
        Ok(format!("after {} ms; PostgreSQL {how}; {n} transactions, {rows} rows there", waited.as_millis()))
    }
}

/// pgbench at work.
struct Pgbench {
    child: Child,
    has_succeeded: bool,
}

impl Pgbench {
    fn start(server: &Postgres, secs: u64) -> Result<Pgbench> {
        let mut command = server.command("pgbench");
        command.args(["-n", "-c", "8", "-j", "2", "-T", &secs.to_string(), "postgres"]);
        let out = File::create(server.log().with_file_name("pgbench"))?;
        let child = command.stdout(out.try_clone()?).stderr(out).stdin(Stdio::null()).spawn();
        Ok(Pgbench { child: child.context("run pgbench")?, has_succeeded: false })
    }

    fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end, and answers how it ended. `meanwhile` is done again and again.
    fn wait(&mut self, at_most: Duration, meanwhile: impl Fn() -> Result<()>) -> Result<String> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.has_succeeded = status.success();
                return Ok(status.to_string());
            }
            if began.elapsed() > at_most {
                bail!("pgbench hangs: nobody told it anything in {at_most:?}");
            }
            meanwhile()?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What must work when nothing new can be written.
fn on_the_full_disk(mount: &Path, round: u64) -> Result<String> {
    if round > 1 {
        return Ok("as before".into());
    }
    let (removed, cut) = (mount.join("removed"), mount.join("cut"));
    std::fs::remove_file(&removed).context("unlink on a full disk")?;
    ensure!(!removed.exists(), "an unlinked file is still there");
    let file = File::options().write(true).open(&cut)?;
    file.set_len(4096).context("truncate on a full disk")?;
    file.sync_all().context("fsync of a truncation on a full disk")?;
    std::fs::rename(&cut, mount.join("renamed")).context("rename on a full disk")?;
    ensure!(std::fs::read(mount.join("renamed"))?.len() == 4096, "a truncated file has another length");
    Ok("work, durably".into())
}
