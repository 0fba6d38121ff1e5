//! Things to put on a volume: real ones where the machine has them.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Copies source trees of the local cargo registry until there are at least `files` files. Answers how many.
///
/// Copies with modes, mtimes, symlinks and hard links, as `cp -a` does.
pub fn source_tree(into: &Path, files: u64, progress: &dyn Fn(u64)) -> Result<u64> {
    let registry = registry_sources()?;
    std::fs::create_dir_all(into).context("create the source tree")?;
    let mut copied = 0;
    for krate in registry {
        if copied >= files {
            break;
        }
        let name = krate.file_name().context("a crate without a name")?;
        copied += copy_tree(&krate, &into.join(name), progress)?;
    }
    ensure!(copied >= files, "the cargo registry holds only {copied} files: `cargo fetch` brings more");
    Ok(copied)
}

/// Unpacked crates on this machine, in order of their names.
fn registry_sources() -> Result<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?.join("registry").join("src");
    let mut found = Vec::new();
    for index in std::fs::read_dir(&sources).with_context(|| format!("list {}", sources.display()))? {
        for krate in std::fs::read_dir(index?.path())? {
            let path = krate?.path();
            if path.is_dir() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn copy_tree(from: &Path, to: &Path, progress: &dyn Fn(u64)) -> Result<u64> {
    std::fs::create_dir(to).with_context(|| format!("create {}", to.display()))?;
    let mut copied = 0;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copied += copy_tree(&entry.path(), &target, progress)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, &target)?;
            copied += 1;
        } else {
            std::fs::copy(entry.path(), &target).with_context(|| format!("copy to {}", target.display()))?;
            let modified = entry.metadata()?.modified()?;
            File::options().write(true).open(&target).and_then(|f| f.set_modified(modified)).or_else(
                |e| {
                    // A read-only file: root may open it, another user may not, and then its time does not matter here.
                    if e.kind() == std::io::ErrorKind::PermissionDenied { Ok(()) } else { Err(e) }
                },
            )?;
            copied += 1;
            progress(1);
        }
    }
    Ok(copied)
}

/// Writes `bytes` of seeded noise and fsyncs.
pub fn noise_file(path: &Path, bytes: u64, seed: u64, progress: &dyn Fn(u64)) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut chunk = vec![0u8; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        rng.fill_bytes(&mut chunk);
        let n = left.min(chunk.len() as u64) as usize;
        file.write_all(&chunk[..n]).with_context(|| format!("write {}", path.display()))?;
        left -= n as u64;
        progress(n as u64);
    }
    file.sync_all().context("fsync")
}

/// A SQLite database with `rows` transactions of one row each, in WAL mode with full sync.
pub fn sqlite_database(path: &Path, rows: u64, progress: &dyn Fn(u64)) -> Result<()> {
    let db = rusqlite::Connection::open(path).context("open the database")?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB NOT NULL)", [])?;
    for id in 0..rows {
        let body = id.to_le_bytes().repeat(40);
        db.execute("INSERT INTO t VALUES (?1, ?2)", rusqlite::params![id as i64, body])?;
        progress(1);
    }
    Ok(())
}

/// Checks such a database: whole, and with exactly `rows` rows.
pub fn check_sqlite(path: &Path, rows: u64) -> Result<()> {
    let db = rusqlite::Connection::open(path).context("open the database")?;
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(verdict == "ok", "integrity_check of {} says: {verdict}", path.display());
    let found: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    ensure!(found as u64 == rows, "{} has {found} rows of {rows}", path.display());
    Ok(())
}

/// One of everything a file system has: links, a fifo, setuid, odd owners, xattrs, a sparse file, an old time.
pub fn odd_tree(into: &Path) -> Result<()> {
    std::fs::create_dir(into).with_context(|| format!("create {}", into.display()))?;
    let at = |name: &str| into.join(name);
    std::fs::write(at("plain"), "plain\n")?;
    std::fs::hard_link(at("plain"), at("hard"))?;
    std::os::unix::fs::symlink("plain", at("symbolic"))?;
    std::os::unix::fs::symlink("/nowhere/at all", at("dangling"))?;
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o640.into(), 0)?;
    std::fs::write(at("setuid"), "#!/bin/sh\n")?;
    std::os::unix::fs::chown(at("setuid"), Some(1234), Some(4321))?;
    std::fs::set_permissions(at("setuid"), std::fs::Permissions::from_mode(0o4755))?;
    std::fs::create_dir(at("sticky"))?;
    std::fs::set_permissions(at("sticky"), std::fs::Permissions::from_mode(0o1777))?;
    rustix::fs::setxattr(at("plain"), "user.colour", b"blue", rustix::fs::XattrFlags::empty())?;
    rustix::fs::setxattr(at("sticky"), "trusted.note", &[0u8, 255, 7], rustix::fs::XattrFlags::empty())?;
    let sparse = File::create(at("sparse"))?;
    sparse.write_all_at(b"start", 0)?;
    sparse.write_all_at(b"far away", 64 << 20)?;
    sparse.sync_all()?;
    std::fs::write(at("name with \n newline \u{fc}"), "odd")?;
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(981_173_106, 789_000_001);
    File::options().write(true).open(at("setuid"))?.set_modified(old)?;
    // A write by root keeps the setuid bit only if it comes before the chmod; make sure the tree has one to compare.
    ensure!(at("setuid").metadata()?.permissions().mode() & 0o4000 != 0, "the setuid bit did not stick");
    Ok(())
}
