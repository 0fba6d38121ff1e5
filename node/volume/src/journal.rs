//! The end of the chain that is still in memory: the open batch, the batches on their way to the log, and who waits.
//!
//! ```text
//!  ops -> open batch -> closed batches -> [pen holder: seal, append, sync] -> log
//!         seq n+1       seq <= n           appended <= n     synced <= appended    durable <= synced
//! ```
//!
//! Owns the numbering of commits and the place where the bytes of every op since the base can be found. Always holds:
//!
//! * an op is applied to the state and put into the open batch under one lock, so the log has the order of the state;
//! * there is one pen, and only who holds it writes to the log;
//! * `durable` never goes back, and a waiter is completed exactly once;
//! * after a failure nothing is ever called durable again.
//!
//! Deliberately knows neither disk nor thread.

pub mod blocks;
pub mod durability;
pub mod frames;
pub(crate) mod payloads;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cid::Cid;

use remora_store::log::Position;
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Done, Reply};

use crate::commit::{FLAG_END, OPS_BYTES_MAX, REFS_MAX, Tip};
use crate::journal::durability::Durability;
use crate::journal::payloads::{Payload, Payloads};

/// A batch of this many bytes of ops is closed.
pub(crate) const BATCH_BYTES: usize = 1 << 20;

/// Ops of one commit, in order.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The number of the commit it becomes.
    pub(crate) seq: u64,
    /// Encoded ops.
    pub(crate) ops: Vec<u8>,
    /// Blocks the ops refer to.
    pub(crate) data: Vec<Cid>,
    /// Flags of the commit.
    pub(crate) flags: u64,
    /// Base of the commit.
    pub(crate) base: Cid,
    /// Last commit contained in `base`.
    pub(crate) base_seq: u64,
    /// What it counts against back-pressure: its bytes and those of the blocks it refers to.
    pub(crate) weight: u64,
}

/// The right to write to the log, and what one must know to do so.
#[derive(Debug)]
pub(crate) struct Pen {
    /// The last commit in the log.
    pub(crate) tip: Tip,
}

/// What the journal must know of an op besides its bytes.
pub(crate) struct Entry {
    /// When.
    pub(crate) now: Duration,
    /// The block it refers to.
    pub(crate) refers_to: Option<Cid>,
    /// Bytes of that block.
    pub(crate) block_bytes: u64,
    /// Whether it changes the file system.
    pub(crate) is_change: bool,
}

/// A batch that has been written to the log.
pub(crate) struct Appended {
    /// Its commit.
    pub(crate) tip: Tip,
    /// Where its frame's payload is.
    pub(crate) position: Position,
    /// Where in the payload its ops begin.
    pub(crate) ops_offset: usize,
}

/// See the module.
pub(crate) struct Journal {
    open: Batch,
    /// When the open batch got its first op.
    open_since: Option<Duration>,
    closed: VecDeque<Arc<Batch>>,
    payloads: Payloads,
    waiters: Vec<(u64, Done)>,
    pen: Option<Pen>,
    tip: Tip,
    synced: u64,
    acked: u64,
    durability: Durability,
    /// When the oldest op that is not synced was applied.
    unsynced_since: Option<Duration>,
    /// (seq, weight) of closed batches that are not synced, oldest first.
    unsynced: VecDeque<(u64, u64)>,
    unsynced_weight: u64,
    base: Cid,
    base_seq: u64,
    tail_bytes: u64,
    /// When the last op was applied.
    touched: Duration,
    /// The last commit that changed the file system.
    changed: u64,
    failed: Option<Arc<str>>,
}

/// Where a chain stands when a journal takes it up.
pub(crate) struct Start {
    /// Its end; everything up to it is on disk.
    pub(crate) tip: Tip,
    /// The tree newer commits are replayed over.
    pub(crate) base: Cid,
    /// The last commit contained in it.
    pub(crate) base_seq: u64,
    /// Bytes of ops since.
    pub(crate) tail_bytes: u64,
    /// Where the ops since are.
    pub(crate) payloads: Payloads,
    /// The last commit that changed the file system; 0 for none since the base.
    pub(crate) changed: u64,
}

impl Journal {
    /// A journal that goes on after `start`.
    pub(crate) fn new(start: Start, durability: Durability) -> Journal {
        let Start { tip, base, base_seq, tail_bytes, payloads, changed } = start;
        Journal {
            open: empty_batch(tip.seq + 1, base, base_seq),
            open_since: None,
            closed: VecDeque::new(),
            payloads,
            waiters: Vec::new(),
            pen: Some(Pen { tip }),
            tip,
            synced: tip.seq,
            acked: if durability == Durability::Local { u64::MAX } else { 0 },
            durability,
            unsynced_since: None,
            unsynced: VecDeque::new(),
            unsynced_weight: 0,
            base,
            base_seq,
            tail_bytes,
            touched: Duration::ZERO,
            changed,
            failed: None,
        }
    }

    /// Encodes one op into the open batch, lets `apply` carry it out, and takes it back if that fails.
    ///
    /// `encode` answers where in the buffer the op's inline data begins; `apply` gets the number of the commit the op
    /// will be in and the offset of that data in the commit's ops.
    pub(crate) fn record<T, E>(
        &mut self,
        entry: &Entry,
        encode: impl FnOnce(&mut Vec<u8>) -> usize,
        apply: impl FnOnce(u64, usize) -> Result<T, E>,
    ) -> Result<T, E> {
        let before = self.open.ops.len();
        let mut data_offset = encode(&mut self.open.ops);
        if before > 0 && (self.open.ops.len() > OPS_BYTES_MAX || self.open.data.len() >= REFS_MAX) {
            let op = self.open.ops.split_off(before);
            self.close_batch();
            self.open.ops = op;
            data_offset -= before;
        }
        let start = if self.open_since.is_some() { before } else { 0 };
        let applied = match apply(self.open.seq, data_offset) {
            Ok(applied) => applied,
            Err(stop) => {
                self.open.ops.truncate(start);
                return Err(stop);
            }
        };
        self.open.data.extend(entry.refers_to);
        let weight = (self.open.ops.len() - start) as u64 + entry.block_bytes;
        self.open.weight += weight;
        self.unsynced_weight += weight;
        self.open_since.get_or_insert(entry.now);
        self.unsynced_since.get_or_insert(entry.now);
        self.touched = entry.now;
        if entry.is_change {
            self.changed = self.open.seq;
        }
        if self.open.ops.len() >= BATCH_BYTES {
            self.close_batch();
        }
        Ok(applied)
    }

    /// Closes the open batch if there is anything in it.
    pub(crate) fn close_batch(&mut self) {
        if self.open.ops.is_empty() {
            return;
        }
        let next = empty_batch(self.open.seq + 1, self.base, self.base_seq);
        let batch = Arc::new(std::mem::replace(&mut self.open, next));
        self.open_since = None;
        self.tail_bytes += batch.ops.len() as u64;
        self.unsynced.push_back((batch.seq, batch.weight));
        self.payloads.push(batch.seq, Payload::Memory(batch.clone()));
        self.closed.push_back(batch);
    }

    /// Marks the open batch.
    pub(crate) fn flag(&mut self, flag: u64) {
        self.open.flags |= flag;
    }

    /// From now on, the open batch included, commits are over this base.
    pub(crate) fn set_base(&mut self, base: Cid, base_seq: u64) {
        (self.base, self.base_seq) = (base, base_seq);
        (self.open.base, self.open.base_seq) = (base, base_seq);
    }

    /// Takes the pen and every closed batch; `None` while somebody else holds the pen or the volume stepped down.
    pub(crate) fn take_pen(&mut self) -> Option<Pen> {
        if self.failed.is_some() { None } else { self.pen.take() }
    }

    /// The batches to write next, oldest first; the caller holds the pen.
    pub(crate) fn take_closed(&mut self) -> Vec<Arc<Batch>> {
        self.close_batch();
        self.closed.drain(..).collect()
    }

    /// Gives back batches that could not be written, and the pen.
    pub(crate) fn put_back(&mut self, batches: Vec<Arc<Batch>>) {
        for batch in batches.into_iter().rev() {
            self.closed.push_front(batch);
        }
    }

    /// Gives the pen back.
    pub(crate) fn put_pen(&mut self, pen: Pen) {
        self.pen = Some(pen);
    }

    /// Notes where batches went; their memory is free now.
    pub(crate) fn appended(&mut self, written: &[Appended]) {
        for Appended { tip, position, ops_offset } in written {
            self.payloads.replace(tip.seq, Payload::Log { position: *position, ops_offset: *ops_offset });
            self.tip = *tip;
        }
    }

    /// Everything up to `seq` is on this host's disk; answers who need not wait any longer.
    pub(crate) fn synced(&mut self, seq: u64) -> Vec<Done> {
        self.synced = self.synced.max(seq);
        while let Some((first, weight)) = self.unsynced.front().copied() {
            if first > self.synced {
                break;
            }
            self.unsynced_weight -= weight;
            self.unsynced.pop_front();
        }
        if self.unsynced.is_empty() {
            self.unsynced_since = self.open_since;
        }
        self.completed()
    }

    /// Enough keepers have everything up to `seq`; answers who need not wait any longer.
    pub(crate) fn acked(&mut self, seq: u64) -> Vec<Done> {
        self.acked = self.acked.max(seq);
        self.completed()
    }

    fn completed(&mut self) -> Vec<Done> {
        let durable = self.durable();
        if self.failed.is_some() || self.waiters.iter().all(|(seq, _)| *seq > durable) {
            return Vec::new();
        }
        self.take_waiters(|seq| seq <= durable)
    }

    /// Steps down; answers everybody who waits. The first reason stays.
    pub(crate) fn fail(&mut self, reason: &str) -> Vec<Done> {
        if self.failed.is_none() {
            self.failed = Some(reason.into());
        }
        std::mem::take(&mut self.waiters).into_iter().map(|(_, done)| done).collect()
    }

    /// Answers everybody who waits for this host's disk, without stepping down: it is full. Who waits for keepers alone goes on.
    pub(crate) fn give_up_waiting(&mut self) -> Vec<Done> {
        let synced = self.synced;
        self.take_waiters(|seq| seq > synced)
    }

    /// Those who wait for commits of which `is_meant` says yes; they wait no longer.
    fn take_waiters(&mut self, is_meant: impl Fn(u64) -> bool) -> Vec<Done> {
        let (taken, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiters).into_iter().partition(|(seq, _)| is_meant(*seq));
        self.waiters = waiting;
        taken.into_iter().map(|(_, done)| done).collect()
    }

    /// `EIO` once the volume stepped down.
    pub(crate) fn check(&self) -> Reply<()> {
        if self.failed.is_some() { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Why the volume stepped down.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Waits for a commit; the caller has seen that it is not durable yet.
    pub(crate) fn wait_for(&mut self, seq: u64, done: Done) {
        self.waiters.push((seq, done));
    }

    /// Whether somebody waits for something that is not on this host's disk.
    pub(crate) fn has_unsynced_waiters(&self) -> bool {
        self.waiters.iter().any(|(seq, _)| *seq > self.synced)
    }

    /// Whether batches wait for the pen.
    pub(crate) fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// The number of the last commit that has an op, the open batch included.
    pub(crate) fn last_seq(&self) -> u64 {
        if self.open.ops.is_empty() { self.open.seq - 1 } else { self.open.seq }
    }

    /// The last commit that is durable under the volume's rule.
    pub(crate) fn durable(&self) -> u64 {
        match self.durability {
            Durability::Local => self.synced,
            Durability::Quorum => self.synced.min(self.acked),
        }
    }

    /// The last commit on this host's disk.
    pub(crate) fn synced_seq(&self) -> u64 {
        self.synced
    }

    /// The last commit in the log.
    pub(crate) fn tip(&self) -> Tip {
        self.tip
    }

    /// The base of new commits and the last commit it contains.
    pub(crate) fn base(&self) -> (Cid, u64) {
        (self.base, self.base_seq)
    }

    /// Bytes that are applied and not on disk.
    pub(crate) fn unsynced_weight(&self) -> u64 {
        self.unsynced_weight
    }

    /// When the open batch was begun and when the oldest unsynced op was applied.
    pub(crate) fn ages(&self) -> (Option<Duration>, Option<Duration>) {
        (self.open_since, self.unsynced_since)
    }

    /// When the last op was applied.
    pub(crate) fn touched(&self) -> Duration {
        self.touched
    }

    /// Counts the time of being left alone from `now`.
    pub(crate) fn touch(&mut self, now: Duration) {
        self.touched = now;
    }

    /// Whether a checkpoint would find anything new.
    pub(crate) fn has_changed_since_base(&self) -> bool {
        self.changed > self.base_seq
    }

    /// Bytes of ops since the base.
    pub(crate) fn tail_bytes(&self) -> u64 {
        self.tail_bytes + self.open.ops.len() as u64
    }

    /// Commits whose place is kept.
    pub(crate) fn n_commits(&self) -> usize {
        self.payloads.len()
    }

    /// The base contains everything up to `seq`, `bytes` of ops: they need not be found any more.
    pub(crate) fn forget_until(&mut self, seq: u64, bytes: u64) {
        self.payloads.forget_until(seq);
        self.tail_bytes = self.tail_bytes.saturating_sub(bytes);
    }

    /// The blocks that ops refer to which are not in the log yet.
    pub(crate) fn referred(&self) -> Vec<Cid> {
        let unwritten = self.payloads.unwritten().flat_map(|batch| &batch.data);
        self.open.data.iter().chain(unwritten).copied().collect()
    }

    /// The ops of the open batch if that is commit `seq`.
    pub(crate) fn open_ops(&self, seq: u64) -> Option<&[u8]> {
        (self.open.seq == seq).then_some(&self.open.ops[..])
    }

    /// Where the ops of a closed commit are; `None` when a checkpoint contains them.
    pub(crate) fn payload(&self, seq: u64) -> Option<&Payload> {
        self.payloads.get(seq)
    }
}

fn empty_batch(seq: u64, base: Cid, base_seq: u64) -> Batch {
    Batch { seq, ops: Vec::new(), data: Vec::new(), flags: FLAG_END, base, base_seq, weight: 0 }
}
