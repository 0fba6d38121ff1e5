//! A disk that is nearly full: when deleted data makes a checkpoint worth its while at once, because only that gives the space back.
//!
//! What always holds: the disk is asked at most once a [`LOOK_EVERY`], and only while there is something to give back.

use std::time::Duration;

use crate::checkpoint::CheckpointError;
use crate::volume::options::Space;
use crate::volume::shared::{Core, Shared};

/// Less data than this is left for the next checkpoint that is made anyway.
const FREED_BYTES_MIN: u64 = 1 << 20;

/// How long what was seen of the disk counts.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Between two checkpoints on a nearly full disk; and after one that failed, for somebody may have removed more.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_FAILED: Duration = Duration::from_secs(5);

/// With fewer free bytes than so many reserves, the disk is nearly full.
const TIGHT_RESERVES: u64 = 2;

/// What is known of it.
#[derive(Debug)]
pub(crate) struct Pressure {
    /// Bytes of data that were removed since the base was made: a checkpoint lets go of them.
    pub(crate) freed_bytes: u64,
    looked: Option<Duration>,
    is_tight: bool,
}

impl Pressure {
    /// When so many bytes of data are known to have been removed.
    pub(crate) fn new(freed_bytes: u64) -> Pressure {
        Pressure { freed_bytes, looked: None, is_tight: false }
    }

    /// Notes what an operation did to the bytes of data.
    pub(crate) fn changed(&mut self, before: u64, after: u64) {
        self.freed_bytes = self.freed_bytes.saturating_add(before.saturating_sub(after));
    }

    /// A checkpoint let go of so many bytes.
    pub(crate) fn given_back(&mut self, bytes: u64) {
        self.freed_bytes = self.freed_bytes.saturating_sub(bytes);
    }

    /// Whether a checkpoint gives back space that is wanted.
    pub(crate) fn is_urgent(&self) -> bool {
        self.is_tight && self.is_worth()
    }

    /// How long to wait after a checkpoint, if the disk is nearly full, or was when the checkpoint was tried.
    pub(crate) fn pause<T>(&self, made: &Result<T, CheckpointError>) -> Option<Duration> {
        match made {
            Ok(_) => self.is_tight.then_some(PAUSE),
            Err(error) => (self.is_tight || error.is_full()).then_some(PAUSE_FAILED),
        }
    }

    fn is_worth(&self) -> bool {
        self.freed_bytes >= FREED_BYTES_MIN
    }
}

impl Shared {
    /// Whether it is time to look at the disk.
    pub(crate) fn is_look_due(&self, core: &Core, now: Duration) -> bool {
        self.next_look(core).is_some_and(|at| at <= now)
    }

    /// When the disk is to be looked at; `None` while nothing depends on it.
    pub(crate) fn next_look(&self, core: &Core) -> Option<Duration> {
        let is_of_use = core.pressure.is_worth() && !core.wish.is_checkpointing;
        let seen = core.pressure.looked.map_or(Duration::ZERO, |at| at + LOOK_EVERY);
        is_of_use.then(|| core.wish.no_checkpoint_before.map_or(seen, |not_before| not_before.max(seen)))
    }

    /// The bytes that a checkpoint can count on, if the disk is nearly full: writers may take all but the reserve meanwhile.
    pub(crate) fn room_if_tight(&self) -> Option<u64> {
        let space = (self.space)();
        self.is_tight(space).then(|| space.free.min(self.reserve(space)))
    }

    fn is_tight(&self, space: Space) -> bool {
        space.free < self.reserve(space).saturating_mul(TIGHT_RESERVES)
    }

    /// Looks at the disk. The caller holds no lock.
    pub(crate) fn look_at_space(&self) {
        let space = (self.space)();
        let is_tight = self.is_tight(space);
        let mut core = self.core.lock();
        core.pressure.is_tight = is_tight;
        core.pressure.looked = Some(self.clock.elapsed());
    }
}
