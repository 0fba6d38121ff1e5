//! One load's share of a round.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

/// How often what cannot be waited for is looked at.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// The error of a load that was ended early.
pub(super) const STOPPED: &str = "ended early";

/// Something that works on a volume and can tell afterwards whether the volume kept it.
pub(super) trait Load: Send {
    /// For the log.
    fn name(&self) -> &'static str;

    /// Works in `dir` until the turn is over; answers what was done.
    ///
    /// # Errors
    /// What the volume did wrong. After the turn was killed nothing is wrong that only [`Load::check`] can judge.
    fn work(&mut self, dir: &Path, turn: &Turn) -> Result<String>;

    /// Demands back what was acknowledged; nothing else touches `dir` meanwhile.
    ///
    /// # Errors
    /// What is lost or damaged.
    fn check(&mut self, dir: &Path, was_killed: bool) -> Result<String>;
}

/// When a load ends, and why.
pub(super) struct Turn {
    /// Decides everything random in it.
    pub(super) seed: u64,
    /// Whether loads leave pauses between operations: what is written is not collected yet, and disks are finite.
    pub(super) is_gentle: bool,
    until: Instant,
    is_killed: AtomicBool,
    is_stopped: AtomicBool,
}

impl Turn {
    /// A turn of this length that begins now.
    pub(super) fn new(seed: u64, length: Duration, is_gentle: bool) -> Turn {
        Turn {
            seed,
            is_gentle,
            until: Instant::now() + length,
            is_killed: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
        }
    }

    /// Said before the daemon under the load is killed: from now on every call may fail.
    pub(super) fn kill(&self) {
        self.is_killed.store(true, Ordering::SeqCst);
    }

    /// Ends the turn early.
    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
    }

    /// Whether the daemon was killed under it.
    pub(super) fn is_killed(&self) -> bool {
        self.is_killed.load(Ordering::SeqCst)
    }

    /// The pause a load makes between operations, if it makes any.
    pub(super) fn pause(&self, gentle: Duration) -> Duration {
        if self.is_gentle { gentle } else { Duration::ZERO }
    }

    /// Whether it was ended early: what was begun is of no interest any more.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }

    /// Whether there is nothing more to do.
    pub(super) fn is_over(&self) -> bool {
        self.is_killed() || self.is_stopped() || Instant::now() >= self.until
    }

    /// What is left.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Sleeps until the turn is over.
    pub(super) fn wait(&self) {
        while !self.is_over() {
            std::thread::sleep(POLL);
        }
    }
}
