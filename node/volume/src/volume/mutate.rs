//! How a change is made: plan it, apply it, record it, under one lock; and what a question does when a block is missing.
//!
//! State and journal change together or not at all. A block that is not here is fetched with the lock open, and the
//! whole step is done again.

use parking_lot::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cid::Cid;

use remora_dag::block::BlockSource;
use remora_vfs::attr::Ino;
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::Reply;

use crate::bulk::Run;
use crate::journal::Entry;
use crate::op::Op;
use crate::recover::is_change;
use crate::state::State;
use crate::state::apply::Applied;
use crate::stop::{FETCHES_MAX, Stop};
use crate::volume::shared::{Core, Shared};

/// More unsynced bytes than this, and the writer waits for a sync.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;

/// At so many times the changes at which a checkpoint is due, writers are slowed down.
const OUTRUN_TIMES: usize = 3;

/// How long a writer waits then, at most. It is a brake, not a gate: a checkpoint that takes long, or that needs
/// keepers that are away, stops nobody.
const SLOWED: Duration = Duration::from_millis(5);

/// What an operation that makes something small is taken to need on disk, in bytes.
pub(crate) const SMALL_BYTES: u64 = 4096;

/// Bytes written between two looks at the disk's free space, at most.
const UNLOOKED_BYTES_MAX: u64 = 64 << 20;

impl Shared {
    /// Asks the state something, fetching what it needs.
    pub(crate) fn ask<T>(&self, mut question: impl FnMut(&mut State) -> Result<T, Stop>) -> Reply<T> {
        self.with_blocks(|core| question(&mut core.state))
    }

    /// Runs `step` under the lock until it needs no more blocks. `step` changes nothing when it stops.
    pub(crate) fn with_blocks<T>(&self, mut step: impl FnMut(&mut Core) -> Result<T, Stop>) -> Reply<T> {
        let mut core = self.core.lock();
        for _ in 0..FETCHES_MAX {
            match step(&mut core) {
                Ok(answer) => return Ok(answer),
                Err(Stop::Need(cid)) => self.fetch(&mut core, cid)?,
                Err(stop) => return Err(errno_of(&stop)),
            }
        }
        tracing::error!("an operation needs more than {FETCHES_MAX} blocks");
        Err(Errno::EIO)
    }

    /// Fetches a block for the state, with the lock open meanwhile.
    fn fetch(&self, core: &mut MutexGuard<'_, Core>, cid: Cid) -> Reply<()> {
        let fetched = MutexGuard::unlocked(core, || self.blocks.get(&cid));
        match fetched {
            Ok(bytes) => {
                core.state.supply(&cid, bytes);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%cid, %error, "a block of the tree cannot be had");
                Err(Errno::EIO)
            }
        }
    }

    /// Makes one change: `plan` says which op, if any is needed; `then` runs under the same lock after it was applied.
    ///
    /// Runs of every inode the op names are closed first.
    pub(crate) fn change<'a, T>(
        &self,
        mut plan: impl FnMut(&mut State) -> Result<Option<Op<'a>>, Stop>,
        mut then: impl FnMut(&mut State, Option<&Op<'a>>) -> Result<T, Stop>,
    ) -> Reply<T> {
        loop {
            let mut busy = None;
            let done = self.with_blocks(|core| {
                core.journal.check()?;
                let op = plan(&mut core.state)?;
                if let Some(op) = &op {
                    busy = inos_of(op).into_iter().flatten().find(|ino| core.runs.has(*ino));
                    if busy.is_some() {
                        return Ok(None);
                    }
                    let applied = self.record(core, op)?;
                    if let Some(ino) = applied.orphaned {
                        self.record(core, &Op::Drop { ino })?;
                    }
                }
                then(&mut core.state, op.as_ref()).map(Some)
            })?;
            match (done, busy) {
                (Some(answer), _) => return Ok(answer),
                (None, Some(ino)) => drop(self.settled(ino)),
                (None, None) => return Err(Errno::EIO),
            }
        }
    }

    /// Applies an op and puts it into the open batch. Nothing has changed when it stops.
    pub(crate) fn record(&self, core: &mut Core, op: &Op<'_>) -> Result<Applied, Stop> {
        let (refers_to, block_bytes) = match op {
            Op::WriteRef { cid, len, .. } => (Some(*cid), *len),
            _ => (None, 0),
        };
        let entry = Entry { now: self.clock.elapsed(), refers_to, block_bytes, is_change: is_change(op) };
        let Core { state, journal, pressure, .. } = core;
        let bytes_before = state.stats().bytes;
        let applied = journal.record(
            &entry,
            |ops| op.encode(ops).data_offset,
            |seq, data_offset| state.apply(seq, data_offset, op),
        )?;
        pressure.changed(bytes_before, state.stats().bytes);
        self.look_at_changes(core);
        if core.wish.is_parked {
            core.wish.is_parked = false;
            self.wake.notify_one();
        } else if core.journal.has_closed() {
            self.ask_to_write(core);
        }
        Ok(applied)
    }

    /// Locks the core when no run of the inode is left.
    pub(crate) fn settled(&self, ino: Ino) -> MutexGuard<'_, Core> {
        let mut core = self.core.lock();
        while core.runs.has(ino) && core.journal.check().is_ok() {
            if core.runs.is_storing(ino) {
                self.run_stored.wait(&mut core);
            } else if let Some(run) = core.runs.take(ino) {
                self.log_run(&mut core, ino, run);
            }
        }
        core
    }

    /// Closes every run.
    pub(crate) fn settle_all(&self) -> Reply<()> {
        let inos = self.core.lock().runs.inos();
        inos.into_iter().for_each(|ino| drop(self.settled(ino)));
        self.core.lock().journal.check()
    }

    /// Logs a run. Its writer has been told that it is written, so there is no way back: if it cannot be, step down.
    pub(crate) fn log_run(&self, core: &mut MutexGuard<'_, Core>, ino: Ino, run: Run) {
        let op = Op::Write { ino, offset: run.start, data: &run.bytes, time: run.time };
        let stop = match self.record(core, &op) {
            Ok(_) => return,
            Err(stop) => stop,
        };
        if let Stop::Need(cid) = stop
            && core.runs.put_back(ino, run)
            && self.fetch(core, cid).is_ok()
        {
            return;
        }
        MutexGuard::unlocked(core, || self.fail(&format!("log a collected write of inode {ino}: {stop}")));
    }

    /// Waits while too much is not on disk. The caller holds no lock.
    pub(crate) fn hold_back(&self) -> Reply<()> {
        let seq = {
            let mut core = self.core.lock();
            if core.journal.unsynced_weight() <= UNSYNCED_BYTES_MAX {
                return Ok(());
            }
            core.journal.close_batch();
            core.journal.last_seq()
        };
        self.flush_until(seq)
    }

    /// Before something that takes memory and disk: `ENOSPC` if `bytes` more would touch the reserve. Waits a moment if
    /// checkpoints do not keep up with writers. The caller holds no lock.
    pub(crate) fn admit(&self, bytes: u64) -> Reply<()> {
        self.slow_down();
        self.check_space(bytes)
    }

    fn slow_down(&self) {
        if !self.is_outrun.load(Ordering::Relaxed) {
            return;
        }
        let mut core = self.core.lock();
        if core.wish.is_checkpointing {
            self.n_slowed.fetch_add(1, Ordering::Relaxed);
            self.eased.wait_for(&mut core, SLOWED);
        }
    }

    /// Notes whether checkpoints keep up.
    pub(crate) fn look_at_changes(&self, core: &Core) {
        let is_outrun = core.state.changes().reaches(&self.changes_max, OUTRUN_TIMES);
        self.is_outrun.store(is_outrun, Ordering::Relaxed);
    }

    /// `ENOSPC` if writing `bytes` would touch the reserve.
    fn check_space(&self, bytes: u64) -> Reply<()> {
        let take = |left: u64| left.checked_sub(bytes);
        if self.unlooked_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Ok(());
        }
        let space = (self.space)();
        let room = space.free.saturating_sub(self.reserve(space));
        if room < bytes {
            self.unlooked_bytes.store(0, Ordering::Relaxed);
            return Err(Errno::ENOSPC);
        }
        self.unlooked_bytes.store((room / 4).min(UNLOOKED_BYTES_MAX), Ordering::Relaxed);
        Ok(())
    }
}

/// What the kernel is told.
fn errno_of(stop: &Stop) -> Errno {
    match stop {
        Stop::Errno(errno) => *errno,
        stop => {
            tracing::error!(%stop, "the state cannot answer");
            Errno::EIO
        }
    }
}

/// The inodes whose earlier writes must be recorded before this op.
fn inos_of(op: &Op<'_>) -> [Option<Ino>; 2] {
    match op {
        Op::Link { ino, .. }
        | Op::Unlink { ino, .. }
        | Op::SetAttr { ino, .. }
        | Op::SetXattr { ino, .. }
        | Op::RemoveXattr { ino, .. }
        | Op::Write { ino, .. }
        | Op::WriteRef { ino, .. }
        | Op::Zero { ino, .. }
        | Op::Drop { ino } => [Some(*ino), None],
        Op::Rename { ino, replaced, .. } => [Some(*ino), *replaced],
        Op::Clone { src, dst, .. } => [Some(*src), Some(*dst)],
        Op::Make { .. }
        | Op::Rmdir { .. }
        | Op::Checkpoint { .. }
        | Op::Start { .. }
        | Op::Members { .. }
        | Op::Snapshot { .. } => [None, None],
    }
}
