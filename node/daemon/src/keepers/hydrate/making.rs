//! The tree of a checkpoint, made on this host from the log that it has: what is in the log does not cross the network twice.
//!
//! What always holds: a tree counts only if it has the CID that the chain names; whatever goes wrong, the tree is fetched instead;
//! the work ends soon after nobody wants it, and leaves the disk and the processor to the mounts of this host half of the time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use parking_lot::Mutex;
use remora_dag::block::{Block, BlockSink, BlockSource, SinkError, SourceError};
use remora_store::fault::chain;
use remora_volume::named_tree::{Made, NamedTreeError, make_named_tree};
use remora_volume::volume::options::CHANGES_MAX;

use crate::keepers::desk::Keepers;
use crate::keepers::hydrate::collect::Stopped;
use crate::keepers::hydrate::rest;
use crate::keepers::kept::Kept;

/// A tree that differs from the one before it by more than so many times what makes a checkpoint due is fetched: the difference
/// is held in memory.
const CHANGES_TIMES: usize = 8;

/// Blocks of earlier trees, or that commits refer to, that may be fetched for it; with more to fetch, the tree itself is cheaper.
const FETCHES_MAX: u64 = 64;

/// The work goes on for so long before it rests.
const WORK_TIME: Duration = Duration::from_millis(50);

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The tree is here, not yet durable.
    Made { n_trees: usize, ops_bytes: u64 },
    /// This host comes to another tree.
    Different(Difference),
    /// It cannot be made here.
    Left,
}

/// Two trees where there should be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The last commit in it.
    pub(crate) upto: u64,
    /// What the chain names.
    pub(crate) named: Cid,
    /// What this host derived from the same commits.
    pub(crate) derived: Cid,
}

/// Makes the tree that the newest commit of a volume names. Blocks; one at a time on a host.
///
/// *Errors*: [`Stopped::Interrupted`] if `still` says that nobody wants it any more.
pub(super) fn make(
    keepers: &Keepers,
    kept: &Kept,
    still: &(dyn Fn() -> bool + Sync),
) -> Result<(Outcome, u64), Stopped> {
    bring_first_tree(keepers, kept);
    let bench = Bench {
        keepers,
        still,
        fetches_left: AtomicU64::new(FETCHES_MAX),
        fetched_bytes: AtomicU64::new(0),
        began: Mutex::new(Instant::now()),
    };
    let is_here = |cid: &Cid| keepers.blocks().store().has(cid).unwrap_or(false);
    let made = make_named_tree(kept.log(), &kept.id().0, (&bench, &bench), &is_here, &|so_far| {
        bench.go_on().is_ok() && !so_far.reaches(&CHANGES_MAX, CHANGES_TIMES)
    });
    if !still() {
        return Err(Stopped::Interrupted);
    }
    let outcome = match made {
        Ok(Made::Same { n_trees, ops_bytes }) => {
            tracing::info!(volume = %kept.id(), n_trees, ops_bytes, "the tree of a checkpoint was made from the log");
            Outcome::Made { n_trees, ops_bytes }
        }
        Ok(Made::Different { upto, named, derived }) => {
            tracing::error!(
                volume = %kept.id(), upto, %named, %derived,
                "this host derives another tree from the log than the writer named: the writer's is fetched"
            );
            Outcome::Different(Difference { upto, named, derived })
        }
        Err(NamedTreeError::NoStart) => Outcome::Left,
        Err(error) => {
            tracing::info!(volume = %kept.id(), why = chain(&error), "the tree of a checkpoint is fetched");
            Outcome::Left
        }
    };
    Ok((outcome, bench.fetched_bytes.into_inner()))
}

/// A volume's first tree follows from its record: nobody need be asked for it.
fn bring_first_tree(keepers: &Keepers, kept: &Kept) {
    if kept.log().first_seq() != Some(1) {
        return;
    }
    if let Some(record) = keepers.members().read(|registry| registry.volume(&kept.id()))
        && let Err(failure) = keepers.first_tree(&record)
    {
        tracing::warn!(volume = %kept.id(), error = %failure, "the first tree");
    }
}

/// Where a tree is made: this host's blocks, a few of others', and an eye on the clock.
struct Bench<'a> {
    keepers: &'a Keepers,
    still: &'a (dyn Fn() -> bool + Sync),
    fetches_left: AtomicU64,
    fetched_bytes: AtomicU64,
    /// When the work began, or went on after the last rest.
    began: Mutex<Instant>,
}

impl Bench<'_> {
    /// Rests if it is time; an error if nobody wants the work any more.
    fn go_on(&self) -> Result<(), io::Error> {
        if !(self.still)() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut began = self.began.lock();
        if began.elapsed() >= WORK_TIME {
            rest(self.keepers, *began);
            *began = Instant::now();
        }
        Ok(())
    }

    /// Whether a block is to be fetched, for it is not here.
    fn is_fetched(&self, cid: &Cid) -> Result<bool, SourceError> {
        self.go_on().map_err(|e| SourceError::Io { cid: *cid, source: Arc::new(e) })?;
        if self.keepers.blocks().store().has(cid).unwrap_or(false) {
            return Ok(false);
        }
        let less = |left: u64| left.checked_sub(1);
        match self.fetches_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => Ok(true),
            Err(_) => Err(SourceError::NotFound { cid: *cid }),
        }
    }

    fn count(&self, bytes: u64) {
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl BlockSource for Bench<'_> {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        let is_fetched = self.is_fetched(cid)?;
        let bytes = BlockSource::get(&**self.keepers.blocks(), cid)?;
        if is_fetched {
            self.count(bytes.len() as u64);
        }
        Ok(bytes)
    }

    fn get_range(&self, cid: &Cid, offset: u64, len: usize) -> Result<Bytes, SourceError> {
        if self.is_fetched(cid)? {
            let whole = BlockSource::get(&**self.keepers.blocks(), cid)?;
            self.count(whole.len() as u64);
            return Ok(remora_dag::block::slice_of(&whole, offset, len));
        }
        self.keepers.blocks().get_range(cid, offset, len)
    }
}

impl BlockSink for Bench<'_> {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        let cid = *block.cid();
        self.go_on().map_err(|e| SinkError::Io { cid, source: Arc::new(e) })?;
        self.keepers.blocks().put(block)
    }
}
