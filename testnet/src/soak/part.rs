//! A load in a process of its own: what dies or hangs with a mount is not the rig.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::exe;
use crate::soak::turn::{POLL, STOPPED, Turn};

/// How long a process may go on after its turn.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// A running part of the soak. It prints a number for everything that is acknowledged, and words at its end.
pub(super) struct Part {
    child: Child,
    acknowledged: Arc<AtomicU64>,
    words: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
}

/// How a part ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// The last number it printed, or the one it was started with.
    pub(super) acknowledged: u64,
    pub(super) words: String,
}

impl Part {
    /// Starts `remora-testnet soak-part ARGS`.
    pub(super) fn start(args: &[&OsStr], already: u64) -> Result<Part> {
        let mut child = Command::new(exe::path()?)
            .arg("soak-part")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start a part of the soak")?;
        let lines = BufReader::new(child.stdout.take().context("the part has no output")?);
        let acknowledged = Arc::new(AtomicU64::new(already));
        let words = Arc::new(Mutex::new(String::new()));
        let (count, said) = (Arc::clone(&acknowledged), Arc::clone(&words));
        let listener = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Ok(number) = line.parse::<u64>() {
                    count.store(number, Ordering::SeqCst);
                } else {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    said.push_str(&line);
                    said.push('\n');
                }
            }
        });
        Ok(Part { child, acknowledged, words, listener: Some(listener) })
    }

    /// Waits until the turn is over, then ends the process the hard way.
    ///
    /// # Errors
    /// If it ended by itself before, and nobody killed its daemon.
    pub(super) fn run_until_over(mut self, turn: &Turn) -> Result<Ended> {
        while !turn.is_over() {
            if let Some(status) = self.child.try_wait().context("look at a part")? {
                let ended = self.end(status);
                if turn.is_killed() {
                    return Ok(ended);
                }
                bail!("it ended too early ({status}): {}", ended.words);
            }
            std::thread::sleep(POLL);
        }
        let _gone = self.child.kill();
        let status = self.child.wait().context("wait for a part")?;
        Ok(self.end(status))
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    /// If it does not.
    pub(super) fn wait(mut self, turn: &Turn) -> Result<Ended> {
        let deadline = Instant::now() + turn.left() + END_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().context("look at a part")? {
                return Ok(self.end(status));
            }
            if turn.is_stopped() {
                bail!(STOPPED);
            }
            if Instant::now() >= deadline {
                bail!("it goes on {END_TIMEOUT:?} after its turn");
            }
            std::thread::sleep(POLL);
        }
    }

    fn end(&mut self, status: ExitStatus) -> Ended {
        if let Some(listener) = self.listener.take() {
            let _joined = listener.join();
        }
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ended { status, acknowledged: self.acknowledged.load(Ordering::SeqCst), words }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
