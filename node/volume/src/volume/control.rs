//! Opening, describing and ending a volume.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use remora_vfs::attr::Ino;
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::Reply;

use crate::bulk::Runs;
use crate::commit::{FLAG_MEMBERS, FLAG_SNAPSHOT, FLAG_START, Tip};
use crate::journal::{Journal, Start};
use crate::op::Op;
use crate::recover::{OpenError, replay_all};
use crate::volume::options::{VolumeOptions, VolumeStatus};
use crate::volume::pressure::Pressure;
use crate::volume::shared::{Core, Shared, Wish};

/// The reason a closed volume gives.
const CLOSED: &str = "the volume was released";

impl Shared {
    /// Replays the log and takes up its end.
    pub(crate) fn recover(options: VolumeOptions) -> Result<Shared, OpenError> {
        let VolumeOptions { id, term, log, blocks, base, size_limit, durability, .. } = options;
        let mut replayed = replay_all(&log, &*blocks, &id, &base)?;
        if replayed.tip.term > term {
            return Err(OpenError::OldTerm { term, tip_term: replayed.tip.term });
        }
        replayed.state.set_size_limit(size_limit);
        // What was read may have been appended and not synced: it must not be called durable on the word of a read.
        log.sync()?;
        let start = Start {
            tip: replayed.tip,
            base: replayed.base,
            base_seq: replayed.base_seq,
            tail_bytes: replayed.ops_bytes,
            payloads: replayed.payloads,
            changed: replayed.changed,
        };
        let journal = Journal::new(start, durability);
        let pressure = Pressure::new(replayed.freed_bytes);
        let core =
            Core { state: replayed.state, journal, runs: Runs::default(), wish: Wish::default(), pressure };
        let shared = Shared {
            core: Mutex::new(core),
            run_stored: Condvar::new(),
            wake: Condvar::new(),
            id,
            term,
            log,
            blocks,
            replicator: options.replicator,
            clock: options.clock,
            space: options.space,
            reserve_bytes: options.reserve_bytes,
            checkpoint_log_bytes: options.checkpoint_log_bytes,
            changes_max: options.changes_max,
            has_background: options.background,
            is_stopped: AtomicBool::new(false),
            unlooked_bytes: AtomicU64::new(0),
            checkpoint: Mutex::new(()),
            eased: Condvar::new(),
            is_outrun: AtomicBool::new(false),
            n_slowed: AtomicU64::new(0),
        };
        if options.drops_orphans {
            shared.drop_orphans().map_err(|(ino, errno)| OpenError::Orphan { ino, errno })?;
        }
        Ok(shared)
    }

    /// See [`crate::volume::Volume::drop_orphans`]. An error names the inode that cannot be let go.
    pub(crate) fn drop_orphans(&self) -> Result<(), (Ino, Errno)> {
        let unheld: Vec<Ino> = {
            let core = self.core.lock();
            core.state.orphans().filter(|ino| !core.state.is_held(*ino)).collect()
        };
        for ino in unheld {
            self.with_blocks(|core| self.record(core, &Op::Drop { ino })).map_err(|errno| (ino, errno))?;
        }
        Ok(())
    }

    /// See [`crate::volume::Volume::status`].
    pub(crate) fn status(&self) -> VolumeStatus {
        let core = self.core.lock();
        let (base, base_seq) = core.journal.base();
        let stats = core.state.stats();
        VolumeStatus {
            tip: core.journal.tip(),
            durable_seq: core.journal.durable(),
            synced_seq: core.journal.synced_seq(),
            base,
            base_seq,
            pending_bytes: core.journal.unsynced_weight(),
            tail_bytes: core.journal.tail_bytes(),
            changes: core.state.changes(),
            n_slowed: self.n_slowed.load(Ordering::Relaxed),
            inodes: stats.inodes,
            bytes: stats.bytes,
            failed: core.journal.failure().map(str::to_owned),
        }
    }

    /// See [`crate::volume::Volume::begin_control`].
    pub(crate) fn begin_control(&self, op: &Op<'_>) -> Reply<u64> {
        let flag = match op {
            Op::Start { .. } => FLAG_START,
            Op::Members { .. } => FLAG_MEMBERS,
            Op::Snapshot { .. } => FLAG_SNAPSHOT,
            _ => return Err(Errno::EINVAL),
        };
        self.with_blocks(|core| {
            core.journal.check()?;
            core.journal.close_batch();
            self.record(core, op)?;
            core.journal.flag(flag);
            core.journal.close_batch();
            Ok(core.journal.last_seq())
        })
    }

    /// See [`crate::volume::Volume::close`].
    pub(crate) fn end(&self) -> Reply<Tip> {
        loop {
            let tip = self.flush()?;
            let mut core = self.core.lock();
            let is_quiet = core.runs.is_empty() && core.journal.last_seq() == core.journal.durable();
            if is_quiet {
                self.is_stopped.store(true, Ordering::Release);
                let waiting = core.journal.fail(CLOSED);
                drop(core);
                assert!(waiting.is_empty(), "everything is durable, so nobody waits");
                return Ok(tip);
            }
        }
    }

    /// Ends the threads; waits for a checkpoint that is being made.
    pub(crate) fn stop(&self) {
        self.core.lock().wish.stop = true;
        self.wake.notify_all();
        drop(self.checkpoint.lock());
    }
}
