//! A failed fsync under writers: `EIO`, never a success for bytes that are not there; the volume says why; all that was
//! acknowledged is there once the disk is well.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;

use crate::exe;
use crate::faultdisk::FaultDisk;
use crate::ledger::{Writer, read_records};
use crate::nodes::Node;
use crate::report::Report;

/// Bytes of the disk.
const DISK_BYTES: u64 = 256 << 20;

/// How long a writer may take to be told.
const TOLD_TIMEOUT: Duration = Duration::from_secs(30);

/// How the disk fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Flushes,
    Writes,
}

pub(super) fn run(report: &mut Report, is_short: bool) -> Result<()> {
    let rounds: u64 = if is_short { 1 } else { 5 };
    for how in [How::Flushes, How::Writes] {
        for round in 0..rounds {
            let what = format!("{how:?} of the disk fail, round {}", round + 1).to_lowercase();
            report.step(&what, 0, |_| one_round(how, round))?;
        }
    }
    Ok(())
}

fn one_round(how: How, round: u64) -> Result<String> {
    let dir = exe::scratch("failed")?;
    let mut disk = FaultDisk::create(&dir.path().join("disk"), DISK_BYTES)?;
    let fs = disk.mount()?;
    let mut node = Node::init(&fs, "node")?;
    crate::hostile::full::set_reserve(&node, 0)?;
    let outcome = fail_and_mend(&mut disk, &mut node, how, round);
    let outcome = outcome.with_context(|| node.last_words());
    drop(node);
    outcome
}

fn fail_and_mend(disk: &mut FaultDisk, node: &mut Node, how: How, round: u64) -> Result<String> {
    node.start()?;
    node.ok(&["volume", "create", "v"])?;
    let mount = node.mount("v")?;
    let records = Writer::start(&mount.join("records"), 0)?;
    let rows = Rows::start(&mount.join("db"))?;
    let wanted = 100 + 37 * round;
    wait_for("the writers to get going", || records.acknowledged() > wanted && rows.acknowledged() > wanted)?;
    set(disk, how, true);
    wait_for("the writers to be told", || records.has_ended() && rows.has_ended())?;
    let (n_records, n_rows) = (records.finish()?, rows.finish()?);
    check_stepped_down(node, &mount)?;
    let why = check_told(node)?;
    // The disk is well again, and what it had not been made to keep may be gone.
    let _ended_as_it_can = node.stop();
    set(disk, how, false);
    disk.cut_power(round)?;
    disk.power_on()?;
    disk.mount()?;
    node.start()?;
    let mount = node.mount("v")?;
    let found = read_records(&mount.join("records"))?;
    ensure!(found >= n_records, "{n_records} records were acknowledged, {found} are there");
    check_rows(&mount.join("db"), n_rows)?;
    node.ok(&["store", "verify"])?;
    let mut file = File::create(mount.join("after"))?;
    file.write_all(b"on it goes")?;
    file.sync_all().context("fsync after the disk is well and the daemon was restarted")?;
    drop(file);
    node.unmount(&mount)?;
    node.stop()?;
    Ok(format!("{n_records} records and {n_rows} rows acknowledged and there; it said: {why}"))
}

fn set(disk: &FaultDisk, how: How, on: bool) {
    match how {
        How::Flushes => disk.fail_flushes(on),
        How::Writes => disk.fail_writes(on),
    }
}

fn wait_for(what: &str, yes: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !yes() {
        ensure!(began.elapsed() < TOLD_TIMEOUT, "waited {TOLD_TIMEOUT:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The volume answers `EIO` to every change and fsync, also the second time, and is still read.
pub(super) fn check_stepped_down(node: &Node, mount: &Path) -> Result<()> {
    for attempt in 0..3 {
        let made = File::create(mount.join("more")).and_then(|mut file| {
            file.write_all(b"more")?;
            file.sync_all()
        });
        let code = made.err().and_then(|error| error.raw_os_error());
        ensure!(code == Some(libc::EIO), "attempt {attempt} to write was answered {code:?}, not EIO");
    }
    std::fs::read_dir(mount).context("list a volume that stepped down")?;
    ensure!(
        node.json(&["status"])?["pid"].as_u64() == node.pid().map(u64::from),
        "the daemon is another one"
    );
    Ok(())
}

/// `status` and `inspect` say why, and what to do, in words and in JSON. Answers the reason.
pub(super) fn check_told(node: &Node) -> Result<String> {
    let here = &node.json(&["volume", "inspect", "v"])?["here"];
    let why = here["failed"].as_str().context("inspect tells no reason")?.to_owned();
    let advice = here["advice"].as_str().context("inspect tells nothing to do")?.to_owned();
    for args in [["status"].as_slice(), &["volume", "inspect", "v"]] {
        let said = node.ok(args)?;
        ensure!(
            said.contains(&why) && said.contains(&advice),
            "{args:?} does not say {why:?}, {advice:?}:\n{said}"
        );
        ensure!(said.contains("restart the daemon"), "{args:?} does not say what helps:\n{said}");
    }
    let status = node.json(&["status"])?;
    ensure!(status["warnings"].to_string().contains("stepped down"), "the warnings do not tell it: {status}");
    Ok(why)
}

/// A database that gets a row a transaction, each durable, until something fails.
struct Rows {
    acknowledged: Arc<AtomicU64>,
    has_ended: Arc<AtomicBool>,
    thread: JoinHandle<rusqlite::Error>,
}

impl Rows {
    fn start(path: &Path) -> Result<Rows> {
        let db = Connection::open(path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)", [])?;
        let (acknowledged, has_ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ended) = (Arc::clone(&acknowledged), Arc::clone(&has_ended));
        let thread = std::thread::spawn(move || {
            let error = loop {
                let id = count.load(Ordering::SeqCst);
                match db.execute("INSERT INTO t VALUES (?1, randomblob(300))", [id]) {
                    Ok(_) => count.store(id + 1, Ordering::SeqCst),
                    Err(error) => break error,
                }
            };
            ended.store(true, Ordering::SeqCst);
            error
        });
        Ok(Rows { acknowledged, has_ended, thread })
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Answers how many rows were acknowledged; what ended it must have been the disk.
    fn finish(self) -> Result<u64> {
        let error = self.thread.join().map_err(|_| anyhow::anyhow!("the database's thread panicked"))?;
        let code = error.sqlite_error_code();
        ensure!(code == Some(rusqlite::ErrorCode::SystemIoFailure), "the database ended with {error}");
        Ok(self.acknowledged.load(Ordering::SeqCst))
    }
}

fn check_rows(path: &Path, wanted: u64) -> Result<()> {
    let db = Connection::open(path)?;
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(verdict == "ok", "integrity_check says: {verdict}");
    let found: u64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    ensure!(found >= wanted, "{wanted} rows were acknowledged, {found} are there");
    Ok(())
}
