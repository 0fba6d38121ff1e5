//! PostgreSQL 15 of Debian as its own user, with its data on a volume and everything else beside it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};

use crate::postgres::{self, user_ids};

/// A database cluster. Dropped, its server is stopped the hard way.
pub(super) struct Postgres {
    data: PathBuf,
    /// Socket and log: not on the volume.
    beside: PathBuf,
}

impl Postgres {
    /// Makes one in `mount/pg`, filled by pgbench; its server runs.
    pub(super) fn make(mount: &Path, beside: &Path, scale: u32) -> Result<Postgres> {
        let (uid, gid) = user_ids()?;
        std::fs::create_dir(beside)?;
        for dir in [beside, mount] {
            chown(dir, Some(uid), Some(gid)).context("give the directory to postgres")?;
            open_the_way(dir)?;
        }
        let server = Postgres { data: mount.join("pg"), beside: beside.to_path_buf() };
        server.ok("initdb", &["-k", "-N", "-E", "UTF8", "-A", "trust", "-D", &server.data()])?;
        server.start()?;
        server.sql(
            "CREATE TABLE ledger (client int, n bigint, PRIMARY KEY (client, n)); CREATE EXTENSION amcheck",
        )?;
        server.ok("pgbench", &["-i", "-q", "-s", &scale.to_string(), "postgres"])?;
        Ok(server)
    }

    fn data(&self) -> String {
        self.data.to_string_lossy().into_owned()
    }

    /// A program of PostgreSQL's, as its user.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = postgres::command(program);
        command.env("PGHOST", &self.beside).env("LC_ALL", "C").current_dir(&self.beside);
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        self.command(program).args(args).output().with_context(|| format!("run {program}"))
    }

    /// Runs a program that has to succeed; answers what it printed.
    pub(super) fn ok(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = self.run(program, args)?;
        ensure!(
            out.status.success(),
            "{program}: {}\n{}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr),
            self.last_words()
        );
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    pub(super) fn sql(&self, text: &str) -> Result<String> {
        self.ok("psql", &["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", text, "postgres"])
    }

    /// Whether the server takes connections.
    pub(super) fn answers(&self) -> bool {
        self.run("pg_isready", &["-q"]).is_ok_and(|out| out.status.success())
    }

    /// Starts the server, after whatever recovery it needs. Little memory for the log, so that much of it is written.
    pub(super) fn start(&self) -> Result<()> {
        let settings = format!(
            "-c listen_addresses= -c unix_socket_directories={} -c max_wal_size=64MB -c shared_buffers=32MB",
            self.beside.display()
        );
        let log = self.log();
        self.ok(
            "pg_ctl",
            &["-D", &self.data(), "-w", "-t", "60", "-l", &log.to_string_lossy(), "-o", &settings, "start"],
        )
        .map(drop)
    }

    /// The server was stopped, and its pid file came back with what a crash took back; its number may be another process's by now.
    pub(super) fn forget_pid(&self) -> Result<()> {
        match std::fs::remove_file(self.data.join("postmaster.pid")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove the pid file")
            }
            _ => Ok(()),
        }
    }

    pub(super) fn stop(&self, how: &str) -> Result<()> {
        self.ok("pg_ctl", &["-D", &self.data(), "-w", "-m", how, "stop"]).map(drop)
    }

    /// Everything the server said.
    pub(super) fn log(&self) -> PathBuf {
        self.beside.join("log")
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// The sums of pgbench agree and the indexes are whole; answers how many transactions there are.
    pub(super) fn check(&self) -> Result<u64> {
        let sums = self.sql(
            "SELECT sum(abalance) FROM pgbench_accounts; SELECT sum(tbalance) FROM pgbench_tellers; \
             SELECT sum(bbalance) FROM pgbench_branches; SELECT coalesce(sum(delta), 0) FROM pgbench_history",
        )?;
        let sums: Vec<&str> = sums.lines().collect();
        ensure!(sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]), "the sums do not agree: {sums:?}");
        let said = self.ok("pg_amcheck", &["--heapallindexed", "--parent-check", "postgres"])?;
        ensure!(said.is_empty(), "pg_amcheck says {said}");
        Ok(self.sql("SELECT count(*) FROM pgbench_history")?.parse()?)
    }

    /// Every page proves its checksum; the server is stopped.
    pub(super) fn check_pages(&self) -> Result<()> {
        self.ok("pg_checksums", &["--check", "-D", &self.data()]).map(drop)
    }

    /// Every row that was acknowledged is there.
    pub(super) fn check_ledger(&self, clients: &[Acknowledged]) -> Result<u64> {
        let mut total = 0;
        for Acknowledged { client, rows } in clients {
            let question = format!("SELECT count(*) FROM ledger WHERE client = {client} AND n < {rows}");
            let found: u64 = self.sql(&question)?.parse()?;
            ensure!(
                found == *rows,
                "client {client}: {rows} rows were acknowledged, {found} of them are there"
            );
            total += rows;
        }
        Ok(total)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists()
            && let Err(error) = self.stop("immediate")
        {
            eprintln!("stop PostgreSQL in {}: {error:#}", self.data.display());
        }
    }
}

/// Lets other users go through the directories that lead to `dir`, as far as they are ours.
fn open_the_way(dir: &Path) -> Result<()> {
    for dir in dir.ancestors() {
        let mode = dir.metadata()?.permissions().mode();
        if mode & 0o111 != 0o111 {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode | 0o111))
                .with_context(|| format!("open {}", dir.display()))?;
        }
    }
    Ok(())
}

/// What a client was told.
#[derive(Clone, Copy)]
pub(super) struct Acknowledged {
    pub(super) client: u32,
    /// Rows 0 up to this one, each committed alone.
    pub(super) rows: u64,
}

/// A client that inserts numbered rows, one a transaction, until something fails.
pub(super) struct Client {
    number: u32,
    session: Child,
    rows: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Goes on behind row `first`.
    pub(super) fn start(server: &Postgres, number: u32, first: u64) -> Result<Client> {
        let mut command = server.command("psql");
        command.args(["-qAtX", "-v", "ON_ERROR_STOP=1", "postgres"]);
        let mut session = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("run psql")?;
        let mut words = session.stdin.take().context("psql has no input")?;
        let mut answers = BufReader::new(session.stdout.take().context("psql has no output")?).lines();
        let rows = Arc::new(AtomicU64::new(first));
        let count = Arc::clone(&rows);
        let thread = std::thread::spawn(move || {
            for n in first.. {
                let asked = writeln!(words, "INSERT INTO ledger VALUES ({number}, {n}) RETURNING n;");
                let told = asked.ok().and_then(|()| answers.next()).and_then(Result::ok);
                if told.as_deref() != Some(n.to_string().as_str()) {
                    return;
                }
                count.store(n + 1, Ordering::SeqCst);
            }
        });
        Ok(Client { number, session, rows, thread: Some(thread) })
    }

    /// Rows acknowledged so far.
    pub(super) fn rows(&self) -> u64 {
        self.rows.load(Ordering::SeqCst)
    }

    /// Ends it if it has not ended, and answers what it was told.
    pub(super) fn finish(mut self) -> Result<Acknowledged> {
        let _gone = self.session.kill();
        self.session.wait().context("wait for psql")?;
        if let Some(thread) = self.thread.take() {
            let _joined = thread.join();
        }
        Ok(Acknowledged { client: self.number, rows: self.rows() })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _gone = self.session.kill();
        let _reaped = self.session.wait();
    }
}
