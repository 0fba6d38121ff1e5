//! A volume that is mounted here: the one writer of a chain of commits, and the file system it is.
//!
//! ```text
//!   kernel -> Filesystem -> plan -> [state + journal, one lock] -> open batch -> log -> keepers
//!                                        ^                            |
//!                                        +---- checkpoint (rebase) <--+
//! ```
//!
//! Owns the life of a volume on this host: open (replay), serve, step down, close. Always holds:
//!
//! * what an operation answered is in the state, and every op in the state is in the journal, in the same order;
//! * nothing is called durable before the volume's rule says so, and nothing at all after it stepped down;
//! * no lock is held over the disk, the network or a callback.

mod background;
mod control;
mod filesystem;
mod mutate;
pub mod options;
pub(crate) mod pressure;
mod read;
pub(crate) mod shared;
pub(crate) mod sync;
mod write;

use std::sync::Arc;
use std::thread::JoinHandle;

use cid::Cid;
use parking_lot::Mutex;

use remora_vfs::filesystem::Reply;

use crate::checkpoint::CheckpointError;
use crate::commit::Tip;
use crate::op::Op;
use crate::recover::OpenError;
use crate::volume::options::{Referred, VolumeOptions, VolumeStatus};
use crate::volume::shared::Shared;

/// A mounted volume; see the module. It is a [`remora_vfs::filesystem::Filesystem`].
///
/// Dropping it ends its threads and makes nothing durable; [`Volume::close`] does.
pub struct Volume {
    shared: Arc<Shared>,
    background: Mutex<Option<JoinHandle<()>>>,
}

impl Volume {
    /// Opens a volume for writing: replays the log over its base, and lets go of what only the last writer held open.
    ///
    /// *Durability*: nothing new is durable yet; the caller appends its [`Op::Start`] with [`Volume::append_control`].
    /// *Errors*: [`OpenError`]; nothing has been changed.
    pub fn open(options: VolumeOptions) -> Result<Volume, OpenError> {
        let has_background = options.background;
        let shared = Arc::new(Shared::recover(options)?);
        let background = if has_background { Some(background::spawn(shared.clone())?) } else { None };
        Ok(Volume { shared, background: Mutex::new(background) })
    }

    /// What the volume says about itself; reads no disk.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        self.shared.status()
    }

    /// The last commit in the local log.
    #[must_use]
    pub fn tip(&self) -> Tip {
        self.shared.core.lock().journal.tip()
    }

    /// The last commit that is durable under the volume's rule.
    #[must_use]
    pub fn durable_seq(&self) -> u64 {
        self.shared.core.lock().journal.durable()
    }

    /// Tells the volume that enough keepers have every commit up to `seq` on disk. Counts under
    /// [`crate::journal::durability::Durability::Quorum`] only.
    pub fn acked(&self, seq: u64) {
        let done = self.shared.core.lock().journal.acked(seq);
        done.into_iter().for_each(|done| done(Ok(())));
    }

    /// Steps down for good: everybody who waits and every later change gets `EIO`; reads go on. What its log ends with once this
    /// has returned is the last that it ever appends.
    ///
    /// The first reason is kept and shown by [`Volume::status`].
    pub fn fail(&self, reason: &str) {
        self.shared.fail(reason);
    }

    /// Waits until everything done so far is durable under the volume's rule. Answers the last commit.
    ///
    /// *Errors*: `EIO` if the volume stepped down, `ENOSPC` if the log cannot be written for now.
    pub fn flush(&self) -> Reply<Tip> {
        self.shared.flush()
    }

    /// Appends an op that is no operation of the file system: [`Op::Start`], [`Op::Members`] or [`Op::Snapshot`].
    ///
    /// *Durability*: durable under the volume's rule when it returns. Answers its commit's number.
    /// *Errors*: as [`Volume::flush`]; `EINVAL` for any other op.
    pub fn append_control(&self, op: &Op<'_>) -> Reply<u64> {
        let seq = self.begin_control(op)?;
        self.shared.flush_until(seq)?;
        Ok(seq)
    }

    /// Lets go of what only the last writer held open, if that was left at the opening: see [`VolumeOptions::drops_orphans`]. To be
    /// called before anybody uses the volume.
    ///
    /// *Durability*: none is waited for. *Errors*: of the first inode that cannot be let go; the others after it stay, too.
    pub fn drop_orphans(&self) -> Reply<()> {
        self.shared.drop_orphans().map_err(|(_, errno)| errno)
    }

    /// As [`Volume::append_control`], but does not wait: for a caller who must go on to make it durable.
    pub fn begin_control(&self, op: &Op<'_>) -> Reply<u64> {
        self.shared.begin_control(op)
    }

    /// Makes a tree of everything that is durable now and drops the log it replaces. Answers the tree and the last
    /// commit it contains. Writers go on meanwhile.
    ///
    /// *Errors*: [`CheckpointError`]; the volume is as it was, unless it stepped down.
    pub fn checkpoint(&self) -> Result<(Cid, u64), CheckpointError> {
        self.shared.make_checkpoint()
    }

    /// What this volume reads from, or will refer to, that its log does not tell of. Together with the log and the tree that the
    /// log's newest commit names, this is all that must stay.
    pub fn referred(&self) -> Referred {
        let core = self.shared.core.lock();
        let mut blocks = core.journal.referred();
        blocks.extend(core.state.referred());
        // The journal may name a tree already that the state has not gone over to.
        let mut trees = core.state.base_trees();
        trees.push(core.journal.base().0);
        Referred { trees, blocks }
    }

    /// Makes everything durable and answers the tree of exactly that state: a snapshot.
    ///
    /// *Errors*: as [`Volume::checkpoint`].
    pub fn snapshot_tree(&self) -> Result<(Cid, u64), CheckpointError> {
        self.shared.flush().map_err(CheckpointError::NotDurable)?;
        self.shared.make_checkpoint()
    }

    /// Does once what the background threads do when it is due; for those who opened the volume without them.
    pub fn tick(&self) {
        self.shared.tick();
    }

    /// Ends the volume for a hand-off: everything is durable when it returns, and nothing can be changed any more.
    ///
    /// Answers the last commit: the next writer goes on from there.
    /// *Errors*: as [`Volume::flush`]; the volume goes on then.
    pub fn close(&self) -> Reply<Tip> {
        let tip = self.shared.end()?;
        self.join();
        Ok(tip)
    }

    fn join(&self) {
        self.shared.stop();
        if let Some(thread) = self.background.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the background thread of a volume panicked");
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.join();
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("id", &self.shared.id)
            .field("term", &self.shared.term)
            .finish_non_exhaustive()
    }
}
