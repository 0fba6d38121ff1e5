//! A process that was started on a host and goes on.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often what cannot be waited for is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// A process on a host, started in the background. Dropping it leaves the process to its host.
#[derive(Debug)]
pub struct Running {
    /// The one that entered the namespaces and waits there for the real one.
    entered: Child,
    pid: Pid,
    log: PathBuf,
}

impl Running {
    /// Takes over `entered`, an `nsenter` whose only child is the process meant; its output goes to `log`.
    pub(crate) fn adopt(mut entered: Child, log: PathBuf) -> Result<Running> {
        let children = format!("/proc/{0}/task/{0}/children", entered.id());
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            let first =
                text.split_whitespace().next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
            if let Some(pid) = first {
                return Ok(Running { entered, pid, log });
            }
            if let Some(status) = entered.try_wait().context("wait for a process")? {
                bail!("it ended at once ({status}): {}", tail(&log));
            }
            std::thread::sleep(POLL);
        }
        bail!("it did not start: {}", tail(&log))
    }

    /// Its process id on the machine (not on its host).
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its output.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.entered.try_wait(), Ok(None))
    }

    /// Sends it `signal`; nothing if it has ended.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // While the one that entered lives, the pid cannot have been given to anyone else.
        if self.is_running() {
            kill_process(self.pid, signal).context("send a signal")?;
        }
        Ok(())
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait()
    }

    /// Asks it to end (SIGTERM) and waits; kills it after `patience`.
    ///
    /// # Errors
    /// If it had to be killed.
    pub fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.entered.try_wait().context("wait for a process")? {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
        self.kill()?;
        bail!("it did not end within {} s of being asked: {}", patience.as_secs(), self.log_tail())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.entered.wait().context("wait for a process")
    }
}

/// The last lines of a log, for error texts.
pub(crate) fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
