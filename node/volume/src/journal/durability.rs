//! The rule that says when an fsync may return, and the door through which commits leave this host.

use bytes::Bytes;
use cid::Cid;

/// What an fsync waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// The commit is on this host's disk.
    #[default]
    Local,
    /// The commit is on this host's disk, and [`crate::volume::Volume::acked`] was told that enough keepers have it.
    Quorum,
}

/// One commit on its way to the keepers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitFrame {
    /// Its number; frames come in this order, without gaps.
    pub seq: u64,
    /// The writer's term.
    pub term: u64,
    /// Its CID.
    pub cid: Cid,
    /// The block.
    pub bytes: Bytes,
}

/// Carries commits to the keepers and tells what they still need.
///
/// Every method is called from the thread that writes the log: it must return at once and must not call the volume.
pub trait Replicator: Send + Sync + 'static {
    /// A commit has been appended to the local log; its sync may still be under way.
    fn commit(&self, frame: CommitFrame);

    /// The oldest commit that some keeper still has to fetch from this host's log; `None` if there is none.
    fn oldest_needed(&self) -> Option<u64> {
        None
    }

    /// The volume stepped down and will never accept another change.
    fn failed(&self, _reason: &str) {}
}

/// For a volume with one keeper.
#[derive(Debug, Default)]
pub struct NoReplicas;

impl Replicator for NoReplicas {
    fn commit(&self, _frame: CommitFrame) {}
}
