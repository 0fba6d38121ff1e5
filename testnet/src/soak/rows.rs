//! SQLite in WAL mode with full sync: what was committed is there, and the database is whole.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, params};

use crate::soak::part::Part;
use crate::soak::turn::{Load, Turn};

/// Rows beyond which the older half is deleted.
const ROWS_MAX: u64 = 6000;

/// Accounts between which every transaction moves something; their sum is always 0.
const N_ACCOUNTS: u64 = 100;

/// Between transactions, in a gentle turn.
const PAUSE: Duration = Duration::from_millis(20);

/// The load.
pub(super) struct Rows {
    committed: u64,
}

impl Rows {
    /// Nothing is committed yet.
    pub(super) fn new() -> Rows {
        Rows { committed: 0 }
    }
}

fn database(dir: &Path) -> PathBuf {
    dir.join("sqlite").join("rows.db")
}

impl Load for Rows {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn work(&mut self, dir: &Path, turn: &Turn) -> Result<String> {
        let path = database(dir);
        std::fs::create_dir_all(dir.join("sqlite")).context("make the database's directory")?;
        let before = self.committed;
        let first = (before + 1).to_string();
        let pause = turn.pause(PAUSE).as_millis().to_string();
        let args = ["rows".as_ref(), path.as_os_str(), first.as_ref(), pause.as_ref()];
        let ended = Part::start(&args, before)?.run_until_over(turn)?;
        self.committed = ended.acknowledged;
        Ok(format!("{} transactions", self.committed - before))
    }

    fn check(&mut self, dir: &Path, _was_killed: bool) -> Result<String> {
        let path = database(dir);
        if !path.exists() {
            ensure!(self.committed == 0, "{} is gone with {} transactions", path.display(), self.committed);
            return Ok("no database yet".to_owned());
        }
        let db = open(&path)?;
        let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        ensure!(verdict == "ok", "integrity_check of {} says: {verdict}", path.display());
        let (low, high, n): (u64, u64, u64) =
            db.query_row("SELECT coalesce(min(id), 0), coalesce(max(id), 0), count(*) FROM t", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        ensure!(high >= self.committed, "{} were committed, the last there is {high}", self.committed);
        ensure!(high <= self.committed + 1, "{high} is there, {} were committed", self.committed);
        ensure!(n == 0 || n == high - low + 1, "{n} rows from {low} to {high}");
        let sum: i64 =
            db.query_row("SELECT coalesce(sum(balance), 0) FROM accounts", [], |row| row.get(0))?;
        ensure!(sum == 0, "the accounts' sum is {sum}");
        let torn: u64 =
            db.query_row("SELECT count(*) FROM t WHERE length(body) != 100 + id % 400", [], |row| {
                row.get(0)
            })?;
        ensure!(torn == 0, "{torn} rows have not the length that was written");
        self.committed = high;
        db.close().map_err(|(_, error)| error).context("close the database")?;
        Ok(format!("integrity ok, {high} committed"))
    }
}

fn open(path: &Path) -> Result<Connection> {
    let db = Connection::open(path).with_context(|| format!("open {}", path.display()))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
         CREATE TABLE IF NOT EXISTS accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);",
    )?;
    Ok(db)
}

/// The part: one transaction a row from id `first` on until something fails, printing each committed id.
pub(super) fn commit_rows(path: &Path, first: u64, pause: Duration) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let mut db = open(path)?;
    for id in first.. {
        let transaction = db.transaction()?;
        let body = vec![id.to_le_bytes()[0]; usize::try_from(100 + id % 400)?];
        transaction.execute("INSERT INTO t VALUES (?1, ?2)", params![id, body])?;
        let amount = i64::try_from(id % 1000)?;
        let (from, to) = (id % N_ACCOUNTS, id * 7 % N_ACCOUNTS);
        for (account, change) in [(from, -amount), (to, amount)] {
            transaction.execute(
                "INSERT INTO accounts VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET balance = balance + ?2",
                params![account, change],
            )?;
        }
        if id % ROWS_MAX == 0 {
            transaction.execute("DELETE FROM t WHERE id <= ?1", params![id - ROWS_MAX / 2])?;
        }
        transaction.commit()?;
        writeln!(out, "{id}").and_then(|()| out.flush()).context("tell the rig")?;
        std::thread::sleep(pause);
    }
    Ok(())
}
