//! Turning a tail of the log into a tree while writers go on.
//!
//! ```text
//!   1 freeze    under the lock: cut the batch; s := its commit           (microseconds)
//!   2 wait      until s is durable under the volume's rule
//!   3 replay    a second, private state: base + log up to s              no lock
//!   4 derive    new leaves, directories, tree T'; sync the blocks        no lock
//!   5 record    commit Checkpoint{T', s}, which names T' as its base     lock, for a moment
//!   6 rebase    the live state moves onto T' a bounded step at a time    lock, under a millisecond each
//!   7 forget    once that commit is durable: log segments up to s, as far as nobody needs them
//! ```
//!
//! Always holds: a crash before that commit is durable leaves only blocks nobody refers to; after it the log names T' and everything
//! behind s; the log is dropped only when the tree that replaces it is durable. Once 5 is done there is no way back, also if the commit
//! cannot be written for now: state and journal stand on the same base again when 6 is. Keepers run 3 and 4 on their own logs through
//! [`crate::named_tree`] and compare the CIDs.

mod part;

use std::io;
use std::sync::Arc;

use cid::Cid;

use remora_dag::block::{Block, BlockSink, BlockSource, SinkError};
use remora_store::log::{Log, LogError};
use remora_store::reserve::from_reserve;
use remora_vfs::errno::Errno;

use crate::commit::FLAG_CHECKPOINT;
use crate::derive::{DeriveError, Derived, InlineError, InlineReader, derive};
use crate::journal::blocks::BlockStore;
use crate::journal::payloads::{Payload, Payloads};
use crate::op::Op;
use crate::recover::{GoOn, OpenError, Replayed, replay};
use crate::state::State;
use crate::stop::Stop;
use crate::volume::shared::{Core, Shared};

/// Inodes that are moved onto the new base under one lock.
const REBASE_ITEMS: usize = 256;

/// Why there is no checkpoint. The volume goes on unless it stepped down.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// What is to be in it cannot be made durable.
    #[error("make the tail durable: {0}")]
    NotDurable(Errno),
    /// The log cannot be replayed.
    #[error("replay the tail")]
    Replay(#[from] OpenError),
    /// The tree cannot be derived.
    #[error("derive a tree")]
    Derive(#[from] DeriveError),
    /// The blocks of the tree cannot be made durable.
    #[error("sync the tree's blocks")]
    Sync(#[source] io::Error),
    /// The state cannot go over to the tree: our own bug. What is on disk is good.
    #[error("go over to the tree")]
    Rebase(#[from] Stop),
    /// The old part of the log cannot be dropped; the checkpoint itself is good.
    #[error("drop the old part of the log")]
    Drop(#[from] LogError),
}

impl CheckpointError {
    /// Whether all it takes is space.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            CheckpointError::NotDurable(errno) => *errno == Errno::ENOSPC,
            CheckpointError::Derive(error) => error.is_full(),
            _ => false,
        }
    }
}

/// Puts blocks also on a full disk, as long as something is set aside for that: once they are there, more can go.
struct FromReserve<'a>(&'a dyn BlockStore);

impl BlockSink for FromReserve<'_> {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        let is_full = |error: &SinkError| matches!(error, SinkError::Full { .. });
        from_reserve(|| self.0.relieve(), is_full, || self.0.put(block.clone()))
    }
}

/// Inline data of commits that are in a log.
struct LogInline<'a> {
    log: &'a Log,
    payloads: &'a Payloads,
}

impl InlineReader for LogInline<'_> {
    fn read(&self, seq: u64, offset: u64, len: u64) -> Result<bytes::Bytes, InlineError> {
        let missing = || InlineError::Missing { seq };
        let (position, ops_offset) = match self.payloads.get(seq) {
            Some(Payload::Log { position, ops_offset }) => (*position, *ops_offset),
            _ => return Err(missing()),
        };
        let number = |n: u64| usize::try_from(n).map_err(|_| missing());
        let (offset, len) = (number(offset)?, number(len)?);
        let start = ops_offset.checked_add(offset).ok_or_else(missing)?;
        let end = start.checked_add(len).ok_or_else(missing)?;
        match self.log.read(position, start..end) {
            Ok(bytes) if bytes.len() == len => Ok(bytes),
            Ok(_) => Err(missing()),
            Err(error) => Err(InlineError::Io { seq, source: Arc::new(io::Error::other(error)) }),
        }
    }
}

/// The part of a log that becomes a tree.
#[derive(Clone, Copy)]
pub struct Tail<'a> {
    /// The log; it holds all commits after the base.
    pub log: &'a Log,
    /// The volume's id.
    pub volume: &'a [u8; 16],
    /// The tree before, and the last commit it contains.
    pub base: (Cid, u64),
    /// The last commit that is to be in the new tree.
    pub upto: u64,
}

/// Replays a part of a log over its base and derives the tree of both.
///
/// A pure function of the log and the base: every host gets the same CID. The blocks are put into `sink`, the tree itself last;
/// none is synced. What has been put must be found in `source`. `go_on` may end the replay; whoever wants to end the derivation
/// after it lets `source` or `sink` fail. Answers the bytes of ops it covers, too.
///
/// *Errors*: [`CheckpointError`]; some blocks may have been put.
pub fn derive_from_log(
    tail: &Tail<'_>,
    source: &dyn BlockSource,
    sink: &dyn BlockSink,
    go_on: &GoOn<'_>,
) -> Result<(Derived, u64), CheckpointError> {
    let Tail { log, volume, base, upto } = *tail;
    let Replayed { state, payloads, ops_bytes, .. } = replay(log, source, volume, base, upto, go_on)?;
    let derived = derive_replayed(&state, &payloads, log, (source, sink))?;
    Ok((derived, ops_bytes))
}

/// Derives the tree of a state that was replayed.
fn derive_replayed(
    state: &State,
    payloads: &Payloads,
    log: &Log,
    (source, sink): (&dyn BlockSource, &dyn BlockSink),
) -> Result<Derived, CheckpointError> {
    Ok(derive(state, source, sink, &LogInline { log, payloads })?)
}

impl Shared {
    /// See [`crate::volume::Volume::checkpoint`].
    pub(crate) fn make_checkpoint(&self) -> Result<(Cid, u64), CheckpointError> {
        let _one_at_a_time = self.checkpoint.lock();
        // Nothing names the tree until it is announced, however long it takes to derive.
        let _protection = self.blocks.protect();
        let (base, upto, freed_bytes) = {
            let mut core = self.core.lock();
            core.journal.check().map_err(CheckpointError::NotDurable)?;
            let base = core.journal.base();
            if !core.journal.has_changed_since_base() {
                let (last, freed_bytes) = (core.journal.last_seq(), core.pressure.freed_bytes);
                drop(core);
                // The last checkpoint may have been recorded without being durable: the disk was full.
                self.end_checkpoint(base.1, last, freed_bytes)?;
                return Ok(base);
            }
            core.journal.close_batch();
            let upto = core.journal.last_seq();
            core.state.freeze(upto)?;
            (base, upto, core.pressure.freed_bytes)
        };
        let recorded = self.derive_and_record(base, upto);
        if recorded.is_err() {
            self.core.lock().state.thaw();
        }
        let (derived, ops_bytes, seq) = recorded?;
        self.go_over(&derived, upto, ops_bytes)?;
        self.end_checkpoint(upto, seq, freed_bytes)?;
        tracing::info!(tree = %derived.tree_cid, upto, ops_bytes, "checkpoint");
        Ok((derived.tree_cid, upto))
    }

    /// Steps 2 to 5: the tree is durable when this returns, and the next commit names it. Answers the bytes of ops in it and that commit.
    fn derive_and_record(&self, base: (Cid, u64), upto: u64) -> Result<(Derived, u64, u64), CheckpointError> {
        self.flush_until(upto).map_err(CheckpointError::NotDurable)?;
        let tail = Tail { log: &self.log, volume: &self.id, base, upto };
        let (derived, ops_bytes) =
            derive_from_log(&tail, &*self.blocks, &FromReserve(&*self.blocks), &|_| true)?;
        self.sync_tree()?;
        let seq = self.record_checkpoint(&mut self.core.lock(), derived.tree_cid, upto)?;
        Ok((derived, ops_bytes, seq))
    }

    /// Makes the blocks of a derived tree durable. A failed sync is final: the volume steps down.
    fn sync_tree(&self) -> Result<(), CheckpointError> {
        self.blocks.sync().map_err(|error| {
            self.fail(&format!("sync the blocks of a checkpoint: {error}"));
            CheckpointError::Sync(error)
        })
    }

    /// Step 6: the journal names the tree already, so the state must follow, whether or not that is on disk yet.
    fn go_over(&self, derived: &Derived, upto: u64, ops_bytes: u64) -> Result<(), CheckpointError> {
        loop {
            let step = self.core.lock().state.rebase(derived, upto, REBASE_ITEMS);
            match step {
                Ok(true) => break,
                Ok(false) => {}
                Err(stop) => {
                    self.fail(&format!("go over to the tree of a checkpoint: {stop}"));
                    return Err(stop.into());
                }
            }
        }
        let mut core = self.core.lock();
        // A copy made while the tree was derived may still read what the tree contains from the log.
        let inline = core.state.oldest_copied().unwrap_or(u64::MAX);
        core.journal.forget_until(upto.min(inline.saturating_sub(1)), ops_bytes);
        self.look_at_changes(&core);
        self.eased.notify_all();
        Ok(())
    }

    /// Step 7: once commit `seq`, which names the tree of everything up to `upto`, is durable.
    fn end_checkpoint(&self, upto: u64, seq: u64, freed_bytes: u64) -> Result<(), CheckpointError> {
        self.flush_until(seq).map_err(CheckpointError::NotDurable)?;
        let inline = {
            let mut core = self.core.lock();
            core.pressure.given_back(freed_bytes);
            core.state.oldest_copied().unwrap_or(u64::MAX)
        };
        let needed = self.replicator.oldest_needed().unwrap_or(u64::MAX);
        // The commit that the tree ends with stays: it says where a keeper that begins with the tree begins.
        self.log.drop_before(needed.min(inline).min(upto))?;
        Ok(())
    }

    /// Begins the commit of a checkpoint; answers its number.
    fn record_checkpoint(&self, core: &mut Core, tree: Cid, upto: u64) -> Result<u64, CheckpointError> {
        core.journal.check().map_err(CheckpointError::NotDurable)?;
        core.journal.close_batch();
        let recorded = self.record(core, &Op::Checkpoint { tree, upto_seq: upto });
        recorded.map_err(|_| CheckpointError::NotDurable(Errno::EIO))?;
        core.journal.set_base(tree, upto);
        core.journal.flag(FLAG_CHECKPOINT);
        core.journal.close_batch();
        Ok(core.journal.last_seq())
    }
}
