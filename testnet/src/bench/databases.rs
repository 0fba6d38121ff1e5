//! Databases, as they come: SQLite in this process, PostgreSQL as its own user.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;

use crate::bench::peers::Peer;
use crate::bench::scale::Scale;
use crate::postgres::{self, user_ids};

/// Connections of pgbench.
const N_CLIENTS: &str = "8";

/// Transactions a second of a durable SQLite in WAL mode.
pub(super) fn sqlite(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    let dir = peer.dir.join("sqlite");
    std::fs::create_dir(&dir)?;
    let mut db = Connection::open(dir.join("db"))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)", [])?;
    let body = [7u8; 200];
    let began = Instant::now();
    for _ in 0..scale.transactions {
        let transaction = db.transaction()?;
        transaction.execute("INSERT INTO t (body) VALUES (?1)", [&body])?;
        transaction.commit()?;
    }
    #[allow(clippy::cast_precision_loss)]
    let rate = scale.transactions as f64 / began.elapsed().as_secs_f64();
    db.close().map_err(|(_, error)| error)?;
    std::fs::remove_dir_all(&dir)?;
    Ok(rate)
}

/// Transactions a second of pgbench with eight clients.
pub(super) fn pgbench(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    let cluster = Cluster::prepare(&peer.dir.join("postgres"))?;
    let running = cluster.start()?;
    let secs = scale.pgbench_secs.to_string();
    let out = cluster.run(
        "pgbench",
        &["-c", N_CLIENTS, "-j", "2", "-T", &secs, "-n", "-h", &cluster.socket(), "postgres"],
    )?;
    running.stop()?;
    let text = String::from_utf8_lossy(&out.stdout);
    tps(&text).with_context(|| format!("pgbench printed no rate:\n{text}"))
}

fn tps(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split(' ').next()?.parse().ok()
}

/// One database cluster in a directory.
struct Cluster {
    dir: PathBuf,
}

/// A cluster whose server runs; dropped, the server is stopped the hard way.
struct Running<'a>(Option<&'a Cluster>);

impl Cluster {
    /// The cluster in `dir`, filled if it is new.
    fn prepare(dir: &Path) -> Result<Cluster> {
        let cluster = Cluster { dir: dir.to_path_buf() };
        if cluster.data().exists() {
            return Ok(cluster);
        }
        std::fs::create_dir(dir)?;
        let (uid, gid) = user_ids()?;
        chown(dir, Some(uid), Some(gid)).context("give the directory to postgres")?;
        cluster.run("initdb", &["-D", &cluster.data().to_string_lossy(), "-A", "trust", "--no-sync"])?;
        let running = cluster.start()?;
        cluster.run("pgbench", &["-i", "-q", "-s", "5", "-h", &cluster.socket(), "postgres"])?;
        running.stop()?;
        Ok(cluster)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn socket(&self) -> String {
        self.dir.to_string_lossy().into_owned()
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let out = postgres::command(program)
            .args(args)
            .current_dir(&self.dir)
            .output()
            .with_context(|| format!("run {program}"))?;
        ensure!(out.status.success(), "{program}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
        Ok(out)
    }

    fn start(&self) -> Result<Running<'_>> {
        let settings = format!("-c listen_addresses= -c unix_socket_directories={}", self.socket());
        let log = self.dir.join("log");
        self.run(
            "pg_ctl",
            &[
                "-D",
                &self.data().to_string_lossy(),
                "-w",
                "-l",
                &log.to_string_lossy(),
                "-o",
                &settings,
                "start",
            ],
        )?;
        Ok(Running(Some(self)))
    }

    fn stop(&self, how: &str) -> Result<()> {
        self.run("pg_ctl", &["-D", &self.data().to_string_lossy(), "-w", "-m", how, "stop"]).map(drop)
    }
}

impl Running<'_> {
    fn stop(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |cluster| cluster.stop("fast"))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(cluster) = self.0.take()
            && let Err(error) = cluster.stop("immediate")
        {
            eprintln!("stop PostgreSQL in {}: {error:#}", cluster.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::tps;

    #[test]
    fn the_rate_is_read_as_printed() {
        let text = "latency average = 2.1 ms\ntps = 3801.25 (without initial connection time)\n";
        assert_eq!(tps(text), Some(3801.25));
        assert_eq!(tps("nothing"), None);
    }
}
