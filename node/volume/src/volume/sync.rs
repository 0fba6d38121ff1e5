//! Group commit: who writes the log, and how an fsync ends.
//!
//! The thread whose fsync finds the pen free writes and syncs for everybody who waits, at most [`ROUNDS_MAX`] times, and
//! then leaves the rest to the background thread, so that no thread of the kernel's is kept. Everybody else leaves a
//! `Done` behind and goes.
//!
//! Always holds: blocks are synced before a commit that refers to them is appended; a failed append or sync is final;
//! nothing is appended after the volume stepped down, whoever holds the pen; every `Done` is called without a lock held.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;

use remora_store::log::LogError;
use remora_store::reserve::from_reserve;
use remora_vfs::attr::Ino;
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Done, Reply};

use crate::commit::{Commit, CommitHeader, Tip};
use crate::journal::durability::CommitFrame;
use crate::journal::frames::commit_meta;
use crate::journal::{Appended, Batch, Pen};
use crate::volume::shared::Shared;

/// How often a thread that called fsync writes for others before it hands over.
const ROUNDS_MAX: usize = 2;

/// Why a round ended early.
pub(crate) enum Trouble {
    /// The disk is full: nothing is lost, what was not written waits.
    Full,
    /// The volume must step down.
    Failed(String),
}

impl Shared {
    /// See `Filesystem::fsync`. What a directory above was renamed to is a part of the inode's name.
    pub(crate) fn fsync(&self, ino: Ino, done: Done) {
        let mut core = self.settled(ino);
        let own = core.state.dirty_seq(ino);
        let seq = own.max(core.state.dirs_moved_seq());
        let decided = match core.journal.check() {
            Err(errno) => Some(Err(errno)),
            Ok(()) if seq > core.journal.durable() => None,
            Ok(()) if own == 0 => {
                // As it is in the base, if it is there at all.
                drop(core);
                return done(self.ask(|state| state.attr(ino)).map(drop));
            }
            Ok(()) => Some(Ok(())),
        };
        if let Some(reply) = decided {
            drop(core);
            return done(reply);
        }
        let pen = if seq > core.journal.synced_seq() { core.journal.take_pen() } else { None };
        core.journal.wait_for(seq, done);
        drop(core);
        self.lead(pen);
    }

    /// Waits until everything done so far is durable under the volume's rule. Answers the last commit.
    pub(crate) fn flush(&self) -> Reply<Tip> {
        self.settle_all()?;
        let seq = self.core.lock().journal.last_seq();
        self.flush_until(seq)?;
        Ok(self.core.lock().journal.tip())
    }

    /// Waits until a commit is durable under the volume's rule.
    pub(crate) fn flush_until(&self, seq: u64) -> Reply<()> {
        let (sender, receiver) = sync_channel(1);
        let pen = {
            let mut core = self.core.lock();
            core.journal.check()?;
            if seq <= core.journal.durable() {
                return Ok(());
            }
            let done: Done = Box::new(move |reply| {
                // Nobody listens any more only if the caller is gone.
                let _ = sender.send(reply);
            });
            core.journal.wait_for(seq, done);
            core.journal.take_pen()
        };
        self.lead(pen);
        receiver.recv().unwrap_or(Err(Errno::EIO))
    }

    /// Writes and syncs for those who wait, with the pen if the caller got it.
    pub(crate) fn lead(&self, pen: Option<Pen>) {
        let Some(mut pen) = pen else { return };
        let rounds_max = if self.has_background { ROUNDS_MAX } else { usize::MAX };
        for _ in 0..rounds_max {
            if !self.round_or_trouble(&mut pen, true) {
                break;
            }
            let mut core = self.core.lock();
            if !core.journal.has_unsynced_waiters() {
                core.journal.put_pen(pen);
                return;
            }
        }
        let mut core = self.core.lock();
        core.journal.put_pen(pen);
        if core.journal.has_unsynced_waiters() {
            self.ask_to_write(&mut core);
        }
    }

    /// One round; answers whether it went well, after having told everybody if it did not.
    pub(crate) fn round_or_trouble(&self, pen: &mut Pen, is_synced: bool) -> bool {
        match self.round(pen, is_synced) {
            Ok(()) => true,
            Err(Trouble::Full) => {
                let done = self.core.lock().journal.give_up_waiting();
                tracing::warn!(waiters = done.len(), "no space left for the log");
                done.into_iter().for_each(|done| done(Err(Errno::ENOSPC)));
                false
            }
            Err(Trouble::Failed(reason)) => {
                self.fail(&reason);
                false
            }
        }
    }

    /// Writes every batch to the log, and syncs it if asked to.
    fn round(&self, pen: &mut Pen, is_synced: bool) -> Result<(), Trouble> {
        let batches = self.core.lock().journal.take_closed();
        if batches.iter().any(|batch| !batch.data.is_empty()) {
            self.blocks.sync().map_err(|error| Trouble::Failed(format!("sync blocks: {error}")))?;
        }
        let mut written = Vec::with_capacity(batches.len());
        let mut ended = Ok(());
        for batch in &batches {
            let is_full = |trouble: &Trouble| matches!(trouble, Trouble::Full);
            match from_reserve(|| self.relieve(), is_full, || self.append(&pen.tip, batch)) {
                Ok(appended) => {
                    pen.tip = appended.tip;
                    written.push(appended);
                }
                Err(why) => {
                    ended = Err(why);
                    break;
                }
            }
        }
        let synced = {
            let mut core = self.core.lock();
            core.journal.appended(&written);
            core.journal.put_back(batches[written.len()..].to_vec());
            core.journal.synced_seq()
        };
        drop(batches);
        if matches!(ended, Err(Trouble::Failed(_))) {
            return ended;
        }
        // Also on a full disk: who waits for what was still written hears that it is durable.
        if is_synced && pen.tip.seq > synced {
            self.log.sync().map_err(|error| Trouble::Failed(format!("sync the log: {error}")))?;
            let done = self.core.lock().journal.synced(pen.tip.seq);
            done.into_iter().for_each(|done| done(Ok(())));
        }
        ended
    }

    fn relieve(&self) -> bool {
        let has_given = self.blocks.relieve();
        if has_given {
            // What was seen of the disk is no longer so: the next write looks anew.
            self.unlooked_bytes.store(0, Ordering::Relaxed);
        }
        has_given
    }

    /// Seals one batch and appends it to the log and to the stream for the keepers.
    fn append(&self, tip: &Tip, batch: &Arc<Batch>) -> Result<Appended, Trouble> {
        let header = CommitHeader {
            volume: self.id,
            prev: tip.digest,
            term: self.term,
            seq: batch.seq,
            base: batch.base,
            base_seq: batch.base_seq,
            flags: batch.flags,
            time: self.clock.now(),
        };
        assert!(batch.seq == tip.seq + 1, "batches are written in order");
        let commit = Commit::seal(header, &batch.ops, batch.data.clone())
            .map_err(|error| Trouble::Failed(format!("seal commit {}: {error}", batch.seq)))?;
        let meta = commit_meta(&commit)
            .ok_or_else(|| Trouble::Failed(format!("term {} is too large", self.term)))?;
        let position =
            self.log.append_unless(&self.is_stopped, &meta, &[&commit.bytes]).map_err(log_trouble)?;
        let appended = Appended { tip: commit.tip(), position, ops_offset: commit.ops_offset() };
        self.replicator.commit(CommitFrame {
            seq: commit.header.seq,
            term: commit.header.term,
            cid: commit.cid(),
            bytes: commit.bytes,
        });
        Ok(appended)
    }

    /// Steps down for good: see [`crate::volume::Volume::fail`].
    pub(crate) fn fail(&self, reason: &str) {
        self.is_stopped.store(true, Ordering::Release);
        let done = {
            let mut core = self.core.lock();
            if core.journal.failure().is_none() {
                tracing::error!(reason, "the volume steps down");
            }
            let done = core.journal.fail(reason);
            self.run_stored.notify_all();
            self.wake.notify_all();
            done
        };
        done.into_iter().for_each(|done| done(Err(Errno::EIO)));
        self.replicator.failed(reason);
    }
}

fn log_trouble(error: LogError) -> Trouble {
    match error {
        LogError::Full(_) => Trouble::Full,
        error => Trouble::Failed(format!("append to the log: {error}")),
    }
}
