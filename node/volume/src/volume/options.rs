//! What a volume is opened with, and what it says about itself.

use std::fmt;
use std::sync::Arc;

use cid::Cid;
use remora_store::log::Log;

use crate::clock::{Clock, SystemClock};
use crate::commit::{Digest, Tip};
use crate::journal::blocks::BlockStore;
use crate::journal::durability::{Durability, NoReplicas, Replicator};
use crate::state::changes::Changes;

/// How much may differ from the base before a checkpoint is due, when nothing else is said: some 30 MiB of inodes, with
/// what it takes to derive them, or of names. Ranges cost less, and a tree that many of them lead into costs more to derive.
pub const CHANGES_MAX: Changes = Changes { inodes: 32 << 10, names: 256 << 10, ranges: 1 << 20 };

/// Bytes of the disk that holds the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// Free.
    pub free: u64,
}

/// The tree a chain of commits starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// The CID of the `Tree` block.
    pub tree: Cid,
    /// The last commit it contains; 0 for the first tree of a volume.
    pub seq: u64,
    /// The term of that commit; 0 for the first tree.
    pub term: u64,
    /// The digest of that commit; for the first tree, the digest in the tree's CID.
    pub digest: Digest,
}

/// Everything [`crate::volume::Volume::open`] needs.
#[derive(Clone)]
pub struct VolumeOptions {
    /// The volume's id.
    pub id: [u8; 16],
    /// The term of this writer; every commit it makes carries it.
    pub term: u64,
    /// The log of this volume on this host; holds commits and nothing else.
    pub log: Arc<Log>,
    /// Blocks, here or elsewhere.
    pub blocks: Arc<dyn BlockStore>,
    /// Where the chain starts; used only while the log is empty.
    pub base: Base,
    /// The most bytes of file content; `None` for no limit.
    pub size_limit: Option<u64>,
    /// When an fsync may return.
    pub durability: Durability,
    /// Where commits go besides the local log.
    pub replicator: Arc<dyn Replicator>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The space left on the store's disk.
    pub space: Arc<dyn Fn() -> Space + Send + Sync>,
    /// Below this many free bytes nothing new is written; `None` for the larger of 256 MiB and 5 %.
    pub reserve_bytes: Option<u64>,
    /// A log this long is worth a checkpoint while the volume is busy; for a large volume it takes a longer one.
    pub checkpoint_log_bytes: u64,
    /// How much may differ from the base before a checkpoint is due; at several times that, writers are slowed down.
    pub changes_max: Changes,
    /// Whether what only the last writer held open is let go at the opening. Otherwise it stays until [`Volume::drop_orphans`], so that
    /// nothing is written before the caller's [`Op::Start`] and by whom does not get to serve.
    ///
    /// [`Volume::drop_orphans`]: crate::volume::Volume::drop_orphans
    /// [`Op::Start`]: crate::op::Op::Start
    pub drops_orphans: bool,
    /// Whether threads of the volume cut, sync and checkpoint by themselves. Without, only calls do.
    pub background: bool,
}

/// See [`VolumeOptions::checkpoint_log_bytes`]: about as much as is replayed in a few seconds.
pub const CHECKPOINT_LOG_BYTES: u64 = 256 << 20;

impl VolumeOptions {
    /// Local durability, no replicas, the machine's clocks, unlimited space, background threads.
    #[must_use]
    pub fn new(id: [u8; 16], term: u64, log: Arc<Log>, blocks: Arc<dyn BlockStore>, base: Base) -> Self {
        VolumeOptions {
            id,
            term,
            log,
            blocks,
            base,
            size_limit: None,
            durability: Durability::Local,
            replicator: Arc::new(NoReplicas),
            clock: Arc::new(SystemClock::default()),
            space: Arc::new(|| Space { total: u64::MAX / 2, free: u64::MAX / 2 }),
            reserve_bytes: None,
            checkpoint_log_bytes: CHECKPOINT_LOG_BYTES,
            changes_max: CHANGES_MAX,
            drops_orphans: true,
            background: true,
        }
    }
}

impl fmt::Debug for VolumeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeOptions")
            .field("id", &self.id)
            .field("term", &self.term)
            .field("base", &self.base)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

/// What must stay of what is stored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Referred {
    /// Trees, in no order, some of them several times.
    pub trees: Vec<Cid>,
    /// Blocks and roots of files, likewise.
    pub blocks: Vec<Cid>,
}

/// What a volume says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeStatus {
    /// The last commit appended to the local log.
    pub tip: Tip,
    /// The last commit that is durable under the volume's rule.
    pub durable_seq: u64,
    /// The last commit that is on this host's disk.
    pub synced_seq: u64,
    /// The tree that newer commits are replayed over.
    pub base: Cid,
    /// The last commit that `base` contains.
    pub base_seq: u64,
    /// Bytes of ops that are applied and not yet durable.
    pub pending_bytes: u64,
    /// Bytes of ops since `base_seq`.
    pub tail_bytes: u64,
    /// What differs from `base` and is therefore kept in memory.
    pub changes: Changes,
    /// How often a writer was slowed down because checkpoints could not keep up.
    pub n_slowed: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Why the volume stepped down; `None` while it works.
    pub failed: Option<String>,
}
