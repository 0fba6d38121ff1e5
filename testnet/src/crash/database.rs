//! A database: SQLite with a write-ahead log and full synchronisation, one row a transaction, old rows going.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use rusqlite::Connection;

use crate::crash::stamp::Sizes;
use crate::crash::verdict::Verdict;

const SIZES: Sizes = Sizes { usual: 1_500, long: 6_000, longest: 40_000 };

/// Rows that are kept.
const ROWS: u64 = 1_500;

/// Pages after which the log goes into the database: often, so that crashes meet it.
const CHECKPOINT_PAGES: u64 = 250;

fn open(dir: &Path, sync: bool) -> Result<Connection> {
    let db = Connection::open(dir.join("rows.db")).context("open the database")?;
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.pragma_update(None, "journal_mode", "WAL").context("ask for a write-ahead log")?;
    db.pragma_update(None, "synchronous", if sync { "FULL" } else { "OFF" })?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    Ok(db)
}

/// Commits rows from `first` on until something fails.
pub(super) fn work(
    dir: &Path,
    first: u64,
    sync: bool,
    tell: &mut dyn FnMut(u64) -> io::Result<()>,
) -> Result<()> {
    let mut db = open(dir, sync)?;
    db.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, body BLOB)", [])?;
    db.execute(
        "CREATE TABLE IF NOT EXISTS newest (only INTEGER PRIMARY KEY CHECK (only = 0), number INTEGER)",
        [],
    )?;
    for number in first.. {
        let transaction = db.transaction()?;
        transaction.execute("INSERT INTO rows VALUES (?1, ?2)", (number, SIZES.stamp(number)))?;
        transaction.execute("INSERT OR REPLACE INTO newest VALUES (0, ?1)", [number])?;
        transaction.execute("DELETE FROM rows WHERE number <= ?1 - ?2", [number, ROWS])?;
        transaction.commit().context("commit")?;
        tell(number).context("tell the witness")?;
    }
    Ok(())
}

/// Demands the rows up to `acknowledged` (not included), the database as a whole being sound.
pub(super) fn check(dir: &Path, acknowledged: u64) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let has = |what: &str, db: &Connection| -> Result<bool> {
        Ok(db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = ?1", [what], |row| {
            row.get::<_, u64>(0)
        })? > 0)
    };
    let db = open(dir, true)?;
    let sound: String =
        db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).context("check the database")?;
    if sound != "ok" {
        verdict.damage.push(format!("integrity_check: {sound}"));
    }
    if !has("rows", &db)? || !has("newest", &db)? {
        verdict.lost = acknowledged;
        return Ok(verdict);
    }
    let newest: Option<u64> = db.query_row("SELECT max(number) FROM newest", [], |row| row.get(0))?;
    verdict.next = newest.map_or(0, |newest| newest + 1);
    verdict.lost = acknowledged.saturating_sub(verdict.next);
    verdict.survivors = verdict.next.saturating_sub(acknowledged);
    let mut query = db.prepare("SELECT number, body FROM rows ORDER BY number")?;
    let mut rows = query.query([])?;
    let mut expected = verdict.next.saturating_sub(ROWS);
    while let Some(row) = rows.next()? {
        let (number, body): (u64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        if number != expected || SIZES.number_of(&body) != Some(number) {
            verdict.damage.push(format!("row {number} where {expected} should be, or a damaged one"));
        }
        expected = number + 1;
    }
    if expected != verdict.next {
        verdict.damage.push(format!("the newest row is {} and {:?} is named", expected, newest));
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_row_and_a_lost_commit_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let stopped = work(dir.path(), 0, false, &mut |n| {
            if n < 20 { Ok(()) } else { Err(io::Error::other("enough")) }
        });
        assert!(stopped.is_err());
        let verdict = check(dir.path(), 20).unwrap();
        assert_eq!((verdict.lost, verdict.survivors, verdict.next), (0, 1, 21));
        assert!(verdict.damage.is_empty(), "{:?}", verdict.damage);
        assert_eq!(check(dir.path(), 25).unwrap().lost, 4);
        open(dir.path(), true).unwrap().execute("DELETE FROM rows WHERE number = 7", []).unwrap();
        assert!(!check(dir.path(), 20).unwrap().damage.is_empty());
    }

    #[test]
    fn a_database_that_is_not_there_has_lost_everything() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check(dir.path(), 5).unwrap().lost, 5);
    }
}
