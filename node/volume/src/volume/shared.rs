//! What every thread of a volume shares, and the order of its locks.
//!
//! One lock, [`Shared::core`], guards state, journal and runs. It is never held over a read, a write or a sync of a disk
//! or a peer, and nothing is called back under it. Whoever holds the journal's pen may lock the core; nobody who holds
//! the core waits for the pen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use remora_store::log::Log;

use crate::bulk::Runs;
use crate::clock::Clock;
use crate::journal::Journal;
use crate::journal::blocks::BlockStore;
use crate::journal::durability::Replicator;
use crate::state::State;
use crate::state::changes::Changes;
use crate::volume::options::Space;
use crate::volume::pressure::Pressure;

/// What the lock guards.
pub(crate) struct Core {
    /// What the file system is, every applied op included.
    pub(crate) state: State,
    /// The end of the chain.
    pub(crate) journal: Journal,
    /// Writes that are being collected.
    pub(crate) runs: Runs,
    /// What the background thread is asked to do.
    pub(crate) wish: Wish,
    /// Whether the disk is nearly full, and what a checkpoint would help.
    pub(crate) pressure: Pressure,
}

/// What the background thread is asked to do besides what the clock tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wish {
    /// Write out what is closed, and sync if someone waits for that.
    pub(crate) write: bool,
    /// A full disk is left alone until then.
    pub(crate) pause_until: Option<Duration>,
    /// A checkpoint is being made.
    pub(crate) is_checkpointing: bool,
    /// Another checkpoint is not begun before.
    pub(crate) no_checkpoint_before: Option<Duration>,
    /// The last checkpoint failed: it is tried again then, whether or not there is another reason.
    pub(crate) retries_checkpoint: bool,
    /// End.
    pub(crate) stop: bool,
    /// The thread sleeps until it is told: nothing is dirty.
    pub(crate) is_parked: bool,
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) core: Mutex<Core>,
    /// A run has been stored: look again.
    pub(crate) run_stored: Condvar,
    /// The background thread's wish has changed.
    pub(crate) wake: Condvar,
    pub(crate) id: [u8; 16],
    pub(crate) term: u64,
    pub(crate) log: Arc<Log>,
    pub(crate) blocks: Arc<dyn BlockStore>,
    pub(crate) replicator: Arc<dyn Replicator>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) space: Arc<dyn Fn() -> Space + Send + Sync>,
    pub(crate) reserve_bytes: Option<u64>,
    /// A log this long is worth a checkpoint.
    pub(crate) checkpoint_log_bytes: u64,
    /// More changes than this and a checkpoint is due.
    pub(crate) changes_max: Changes,
    pub(crate) has_background: bool,
    /// Set before the volume steps down, and never unset: whoever holds the pen then appends nothing any more, however far it had come.
    pub(crate) is_stopped: AtomicBool,
    /// Bytes that may be written before the next look.
    pub(crate) unlooked_bytes: AtomicU64,
    /// Held while a checkpoint is made: there is one at a time.
    pub(crate) checkpoint: Mutex<()>,
    /// A checkpoint is over.
    pub(crate) eased: Condvar,
    /// There are far more changes than there should be: writers wait a little, if a checkpoint is being made.
    pub(crate) is_outrun: AtomicBool,
    /// How often one did.
    pub(crate) n_slowed: AtomicU64,
}

/// The reserve when none is given: the larger of these.
const RESERVE_BYTES_MIN: u64 = 256 << 20;
const RESERVE_FRACTION: u64 = 20;

impl Shared {
    /// Free bytes below which nothing new is written.
    pub(crate) fn reserve(&self, space: Space) -> u64 {
        self.reserve_bytes.unwrap_or_else(|| RESERVE_BYTES_MIN.max(space.total / RESERVE_FRACTION))
    }

    /// Asks the background thread to write out; the caller holds the lock.
    pub(crate) fn ask_to_write(&self, core: &mut Core) {
        if !core.wish.write {
            core.wish.write = true;
            self.wake.notify_one();
        }
    }
}
