//! A checkpoint of the first part of a tail, for a disk that has no room for the tree of all of it.
//!
//! ```text
//!  choose    a commit s, the later the better, whose tree fits
//!  derive    base + log up to s, and make the blocks durable               no lock
//!  replay    a second state: the new tree + the log behind s               no lock
//!  swap      when it has caught up: it becomes the live state, and the
//!            checkpoint is recorded                                       lock, for a moment
//!  forget    once that is durable: the log up to s
//! ```
//!
//! A state that was not frozen at `s` cannot go over to the tree of `s`, so another one takes its place. It is the same file system
//! over another base; what is held open goes over to it. Always holds: until the swap nothing has changed; after it state and journal
//! stand on the same base.

use cid::Cid;

use remora_dag::block::BlockSource;
use remora_vfs::errno::Errno;

use crate::checkpoint::{CheckpointError, FromReserve, derive_replayed};
use crate::recover::{Replay, Replayed, replay};
use crate::volume::shared::Shared;

/// A part is not looked for among fewer commits.
const COMMITS_MIN: u64 = 2;

/// How often the second state tries to catch up with the live one.
const ATTEMPTS_MAX: usize = 100;

/// This part of the room is left for what cannot be foreseen.
const SPARE_FRACTION: u64 = 8;

impl Shared {
    /// Makes a checkpoint of a part of the tail if `room` bytes are too few for one of all of it; `None` if they are enough, or nothing
    /// can be done.
    ///
    /// *Errors*: [`CheckpointError`]; the volume goes on as before.
    pub(crate) fn checkpoint_part(&self, room: u64) -> Result<Option<(Cid, u64)>, CheckpointError> {
        let _one_at_a_time = self.checkpoint.lock();
        let _protection = self.blocks.protect();
        let (base, last) = {
            let mut core = self.core.lock();
            core.journal.check().map_err(CheckpointError::NotDurable)?;
            core.journal.close_batch();
            (core.journal.base(), core.journal.last_seq())
        };
        self.flush_until(last).map_err(CheckpointError::NotDurable)?;
        let Some((upto, replayed)) = self.part_that_fits(base, last, room - room / SPARE_FRACTION)? else {
            return Ok(None);
        };
        let derived = derive_replayed(
            &replayed.state,
            &replayed.payloads,
            &self.log,
            (&*self.blocks, &FromReserve(&*self.blocks)),
        )?;
        self.sync_tree()?;
        let ops_bytes = replayed.ops_bytes;
        drop(replayed);
        let Some(seq) = self.swap(derived.tree_cid, upto)? else { return Ok(None) };
        self.core.lock().journal.forget_until(upto, ops_bytes);
        // What was removed is counted until a checkpoint of all of it.
        self.end_checkpoint(upto, seq, 0)?;
        tracing::info!(tree = %derived.tree_cid, upto, last, "checkpoint of a part: the disk is nearly full");
        Ok(Some((derived.tree_cid, upto)))
    }

    /// The last commit of a part whose tree fits, and the state there; `None` if all of it fits, or nothing does.
    fn part_that_fits(
        &self,
        base: (Cid, u64),
        last: u64,
        room: u64,
    ) -> Result<Option<(u64, Replayed)>, CheckpointError> {
        let source: &dyn BlockSource = &*self.blocks;
        let fitting = |n_commits: u64| {
            let upto = base.1 + n_commits;
            let replayed = replay(&self.log, source, &self.id, base, upto, &|_| true)?;
            Ok::<_, CheckpointError>((replayed.state.fold_bytes() <= room).then_some((upto, replayed)))
        };
        let n_all = last.saturating_sub(base.1);
        let mut n_commits = n_all;
        while n_commits >= COMMITS_MIN {
            if let Some(part) = fitting(n_commits)? {
                let is_all = n_commits == n_all;
                // Twice as many do not fit; half as many more may.
                return if is_all {
                    Ok(None)
                } else {
                    Ok(fitting(n_commits + n_commits / 2)?.or(Some(part)))
                };
            }
            n_commits /= 2;
        }
        Ok(None)
    }

    /// Puts the state on the tree that contains everything up to `upto`, and records that. Answers the commit that says so; `None` if
    /// too much goes on meanwhile.
    fn swap(&self, tree: Cid, upto: u64) -> Result<Option<u64>, CheckpointError> {
        let source: &dyn BlockSource = &*self.blocks;
        let mut behind = Replay::begin(&self.log, source, &self.id, (tree, upto, None))?;
        for _ in 0..ATTEMPTS_MAX {
            let last = {
                let mut core = self.core.lock();
                core.journal.close_batch();
                core.journal.last_seq()
            };
            self.flush_until(last).map_err(CheckpointError::NotDurable)?;
            let seen = behind.catch_up(&self.log, last, &|_| true)?;
            let mut core = self.core.lock();
            if core.journal.last_seq() != seen {
                continue;
            }
            let mut state = behind.end().state;
            if !state.is_like(&core.state) {
                tracing::error!("a replay of the log is another file system than the one in memory");
                return Err(CheckpointError::NotDurable(Errno::EIO));
            }
            state.succeed(&mut core.state);
            let old = std::mem::replace(&mut core.state, state);
            let recorded = self.record_checkpoint(&mut core, tree, upto);
            drop(core);
            drop(old);
            return recorded.map(Some);
        }
        Ok(None)
    }
}
