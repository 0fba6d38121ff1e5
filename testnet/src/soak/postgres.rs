//! PostgreSQL 15 under pgbench, with a ledger of committed numbers beside it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::postgres::{self, user_ids};
use crate::soak::turn::{Load, POLL, STOPPED, Turn};

/// How long the server may take to start (after a crash it recovers first) and to stop.
const SERVER_TIMEOUT: Duration = Duration::from_secs(120);

/// Rows of pgbench's history, and of the ledger, beyond which the tables begin anew.
const ROWS_MAX: u64 = 100_000;

/// Transactions a second that pgbench tries, in a gentle turn and in another.
const RATE: &str = "30";
const RATE_MAX: &str = "5000";

/// Between numbers of the ledger, in a gentle turn.
const PAUSE: Duration = Duration::from_millis(30);

/// Small enough that a checkpoint of the volume has little to write; shared memory in files, so that they are mapped.
const SETTINGS: [&str; 9] = [
    "listen_addresses=",
    "max_connections=30",
    "shared_buffers=32MB",
    "dynamic_shared_memory_type=mmap",
    "max_wal_size=32MB",
    "min_wal_size=8MB",
    "checkpoint_timeout=30s",
    "fsync=on",
    "full_page_writes=on",
];

const SUMS: &str =
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
    (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_history);";

/// The load.
pub(super) struct Postgres {
    /// Its socket lies on the machine's own disk, under a short path.
    sockets: tempfile::TempDir,
    log: PathBuf,
    owner: (u32, u32),
    is_filled: bool,
    committed: u64,
}

impl Postgres {
    /// A server that writes its log into `dir`; it does not run yet.
    pub(super) fn new(dir: &Path) -> Result<Postgres> {
        let owner = user_ids()?;
        let sockets =
            tempfile::Builder::new().prefix("soak").tempdir().context("make a directory for sockets")?;
        chown(sockets.path(), Some(owner.0), Some(owner.1)).context("give the sockets to postgres")?;
        Ok(Postgres { sockets, log: dir.join("postgres.log"), owner, is_filled: false, committed: 0 })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = postgres::command(program);
        command.env("PGHOST", self.sockets.path()).env("LC_ALL", "C.UTF-8").current_dir("/");
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = self.command(program).args(args).output().with_context(|| format!("run {program}"))?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(
            out.status.success(),
            "{program} {}: {}\n{said}{}\n{}",
            args.join(" "),
            out.status,
            String::from_utf8_lossy(&out.stderr),
            self.last_words()
        );
        Ok(said)
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn sql(&self, text: &str) -> Result<String> {
        self.run("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text, "postgres"])
    }

    /// Makes the database if there is none, and starts the server.
    fn start(&self, dir: &Path) -> Result<Server> {
        let log =
            File::options().create(true).append(true).open(&self.log).context("open the server's log")?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(data(dir)).arg("-c");
        command.arg(format!("unix_socket_directories={}", self.sockets.path().display()));
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        let child = command.stdout(log.try_clone()?).stderr(log).spawn().context("start PostgreSQL")?;
        let mut server = Server { child };
        let deadline = Instant::now() + SERVER_TIMEOUT;
        while self.run("psql", &["-X", "-q", "-c", "SELECT 1", "postgres"]).is_err() {
            if let Some(status) = server.child.try_wait().context("look at PostgreSQL")? {
                bail!("PostgreSQL ended at once ({status}):\n{}", self.last_words());
            }
            ensure!(Instant::now() < deadline, "PostgreSQL does not answer:\n{}", self.last_words());
            std::thread::sleep(POLL);
        }
        Ok(server)
    }

    fn prepare(&mut self, dir: &Path) -> Result<()> {
        let above = data(dir).parent().map(Path::to_path_buf).context("the data lie in a directory")?;
        if above.exists() {
            std::fs::remove_dir_all(&above).context("remove a database that was not finished")?;
        }
        std::fs::create_dir_all(&above).context("make the database's directory")?;
        chown(&above, Some(self.owner.0), Some(self.owner.1)).context("give the directory to postgres")?;
        let at = data(dir).to_string_lossy().into_owned();
        self.run("initdb", &["-D", &at, "-k", "--wal-segsize=1", "-A", "trust", "-E", "UTF8"])?;
        let server = self.start(dir)?;
        self.sql("CREATE EXTENSION amcheck; CREATE TABLE ledger (n bigint PRIMARY KEY)")?;
        self.run("pgbench", &["-i", "-q", "-s", "1", "postgres"])?;
        server.stop()?;
        self.is_filled = true;
        Ok(())
    }

    /// pgbench and the ledger side by side; answers the transactions that pgbench counted.
    fn load(&mut self, turn: &Turn) -> Result<String> {
        let seconds = turn.left().as_secs().max(1).to_string();
        let rate = if turn.is_gentle { RATE } else { RATE_MAX };
        let args = ["-n", "-c", "4", "-T", &seconds, "-R", rate, "postgres"];
        let bench = self.command("pgbench").args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut bench = Bench(bench.context("start pgbench")?);
        let mut ledger = Ledger::open(self)?;
        while !turn.is_over() {
            let next = self.committed + 1;
            if !ledger.commit(next)? {
                ensure!(turn.is_over(), "the server is gone:\n{}", self.last_words());
                break;
            }
            self.committed = next;
            std::thread::sleep(turn.pause(PAUSE));
        }
        drop(ledger);
        ensure!(!turn.is_stopped(), STOPPED);
        if turn.is_killed() {
            return Ok(String::new());
        }
        let out = bench.finish()?;
        let line =
            out.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
        Ok(line.with_context(|| format!("pgbench says\n{out}\n{}", self.last_words()))?.to_owned())
    }

    fn look(&mut self) -> Result<String> {
        let line = self.sql(SUMS)?;
        let sums: Vec<&str> = line.trim().split('|').collect();
        ensure!(
            sums.len() == 6 && sums[..4].iter().all(|sum| *sum == sums[0]) && sums[4] == "100000",
            "the sums do not agree: {line}"
        );
        let line = self.sql("SELECT coalesce(min(n), 0), coalesce(max(n), 0), count(*) FROM ledger")?;
        let numbers: Vec<u64> = line.trim().split('|').map(str::parse).collect::<Result<_, _>>()?;
        let [low, high, n] = numbers[..] else { bail!("the ledger says {line}") };
        ensure!(high >= self.committed, "{} was committed, the last in the ledger is {high}", self.committed);
        ensure!(high <= self.committed + 1 && (n == 0 || n == high - low + 1), "{n} from {low} to {high}");
        self.committed = high;
        self.run("pg_amcheck", &["--heapallindexed", "--parent-check", "postgres"])?;
        if sums[5].parse::<u64>()? > ROWS_MAX {
            self.run("pgbench", &["-i", "-q", "-s", "1", "postgres"])?;
        }
        if n > ROWS_MAX {
            self.sql(&format!("DELETE FROM ledger WHERE n < {high}"))?;
            self.sql("VACUUM ledger")?;
        }
        Ok(format!("{} in history, {high} in the ledger, amcheck and checksums ok", sums[5]))
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("postgres").join("data")
}

impl Load for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn work(&mut self, dir: &Path, turn: &Turn) -> Result<String> {
        let result = if self.is_filled { Ok(()) } else { self.prepare(dir) };
        let result = result.and_then(|()| self.start(dir)).and_then(|server| {
            let done = self.load(turn);
            let stopped = if turn.is_killed() { Ok(()) } else { server.stop() };
            done.and_then(|done| stopped.map(|()| done))
        });
        match result {
            Ok(done) => Ok(format!("{done} transactions")),
            // What the loss of the mount did to the server is for the check to judge.
            Err(_) if turn.is_killed() => Ok("killed".to_owned()),
            Err(e) => Err(e),
        }
    }

    fn check(&mut self, dir: &Path, _was_killed: bool) -> Result<String> {
        if !self.is_filled {
            return Ok("no database yet".to_owned());
        }
        let server = self.start(dir)?;
        let said = self.look()?;
        server.stop()?;
        self.run("pg_checksums", &["--check", "-D", &data(dir).to_string_lossy()])?;
        Ok(said)
    }
}

/// A running server; dropped, it is ended the hard way.
struct Server {
    child: Child,
}

impl Server {
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _gone = pid.map(|pid| kill_process(pid, signal));
    }

    /// Stops it: transactions are ended, everything is written.
    fn stop(mut self) -> Result<()> {
        self.signal(Signal::INT);
        let deadline = Instant::now() + SERVER_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("look at PostgreSQL")? {
                ensure!(status.success(), "PostgreSQL ended with {status}");
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        bail!("PostgreSQL does not stop")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Its own processes end with it; were it killed at once, they would be found out about only later.
        self.signal(Signal::QUIT);
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(POLL);
        }
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A running pgbench; dropped, it is killed.
struct Bench(Child);

impl Bench {
    fn finish(&mut self) -> Result<String> {
        let mut said = String::new();
        if let Some(mut out) = self.0.stdout.take() {
            std::io::Read::read_to_string(&mut out, &mut said).context("read what pgbench says")?;
        }
        self.0.wait().context("wait for pgbench")?;
        Ok(said)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// One connection that commits numbers.
struct Ledger {
    psql: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Ledger {
    fn open(postgres: &Postgres) -> Result<Ledger> {
        let mut psql = postgres
            .command("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "postgres"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start psql")?;
        let ask = psql.stdin.take().context("psql has no input")?;
        let answers = BufReader::new(psql.stdout.take().context("psql has no output")?);
        Ok(Ledger { psql, ask, answers })
    }

    /// Whether the number was committed; not, when the server is gone.
    fn commit(&mut self, number: u64) -> Result<bool> {
        if writeln!(self.ask, "INSERT INTO ledger VALUES ({number}) RETURNING n;").is_err() {
            return Ok(false);
        }
        let mut answer = String::new();
        self.answers.read_line(&mut answer).context("read psql's answer")?;
        Ok(answer.trim() == number.to_string())
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let _gone = self.psql.kill();
        let _reaped = self.psql.wait();
    }
}
