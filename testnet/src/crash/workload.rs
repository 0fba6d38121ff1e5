//! The three programs that run while the crash comes, each a process of its own, and the witness that hears what they were told.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use parking_lot::Mutex;

use crate::crash::replace::N_DOCUMENTS;
use crate::crash::verdict::Verdict;
use crate::crash::{database, records, replace};
use crate::exe;

/// How long a program may take to be told something, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Workload {
    /// Appends records and syncs each
    Records,
    /// Writes a new version, syncs it, renames it over the old one, syncs the directory
    Replace,
    /// SQLite with a write-ahead log and full synchronisation
    Database,
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 3] = [Workload::Records, Workload::Replace, Workload::Database];

    /// Runs in this process until something fails, printing each acknowledged number on a line.
    pub fn run(self, dir: &Path, first: u64, sync: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let mut tell = |number: u64| writeln!(out, "{number}").and_then(|()| out.flush());
        match self {
            Workload::Records => records::work(dir, first, sync, &mut tell),
            Workload::Replace => replace::work(dir, first, sync, &mut tell),
            Workload::Database => database::work(dir, first, sync, &mut tell),
        }
    }

    /// Demands back what was acknowledged.
    pub(super) fn check(self, dir: &Path, acknowledged: &Acknowledged) -> Result<Verdict> {
        match self {
            Workload::Records => records::check(dir, acknowledged.next),
            Workload::Replace => replace::check(dir, &acknowledged.by_document),
            Workload::Database => database::check(dir, acknowledged.next),
        }
    }

    fn word(self) -> String {
        self.to_possible_value().map(|word| word.get_name().to_owned()).unwrap_or_default()
    }
}

/// What a workload was told is safe, since the beginning.
#[derive(Clone, Debug, Default)]
pub(super) struct Acknowledged {
    /// How many times.
    pub(super) count: u64,
    /// The newest number and one.
    pub(super) next: u64,
    /// The newest version of each document.
    pub(super) by_document: [Option<u64>; N_DOCUMENTS as usize],
}

impl Acknowledged {
    fn hear(&mut self, number: u64) {
        self.count += 1;
        self.next = number + 1;
        if let Some(newest) =
            usize::try_from(number % N_DOCUMENTS).ok().and_then(|at| self.by_document.get_mut(at))
        {
            *newest = Some(number);
        }
    }
}

/// A workload at work.
pub(super) struct Running {
    workload: Workload,
    child: Child,
    heard: Arc<Mutex<Acknowledged>>,
    listener: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts a process that goes on at `first`, `so_far` being acknowledged before. It ends with this process.
    pub(super) fn start(
        workload: Workload,
        dir: &Path,
        first: u64,
        so_far: &Acknowledged,
        sync: bool,
    ) -> Result<Running> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(exe::path()?).arg("crash-work");
        command.arg(workload.word()).arg(dir).arg(first.to_string());
        if !sync {
            command.arg("--no-sync");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("start a workload")?;
        let lines = BufReader::new(child.stdout.take().context("a workload has no output")?);
        let heard = Arc::new(Mutex::new(so_far.clone()));
        let told = Arc::clone(&heard);
        let listener = std::thread::spawn(move || {
            for number in lines.lines().map_while(|line| line.ok()?.parse().ok()) {
                told.lock().hear(number);
            }
        });
        Ok(Running { workload, child, heard, listener: Some(listener) })
    }

    /// Waits until `more` numbers were acknowledged since the start. An error if it ends before, or takes too long.
    pub(super) fn wait_for(&mut self, before: u64, more: u64) -> Result<()> {
        let began = Instant::now();
        while self.heard.lock().count < before + more {
            if let Some(status) = self.child.try_wait()? {
                bail!("the workload {:?} ended by itself: {status}", self.workload);
            }
            ensure!(began.elapsed() < PATIENCE, "the workload {:?} is stuck", self.workload);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits until it has ended by itself, at most so long.
    pub(super) fn wait_end(&mut self, at_most: Duration) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < at_most && self.child.try_wait()?.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends it and answers what it was told, to the last line.
    pub(super) fn finish(mut self) -> Result<Acknowledged> {
        let _gone = self.child.kill();
        self.child.wait().context("wait for a workload")?;
        if let Some(listener) = self.listener.take() {
            let _joined = listener.join();
        }
        Ok(self.heard.lock().clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
