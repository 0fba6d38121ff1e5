//! What a volume asks of the place where blocks live.

use std::io;

use remora_dag::block::{BlockSink, BlockSource};
use remora_store::blocks::Blocks;
use remora_store::blocks::touches::Protection;

/// Blocks that can be read, kept and made durable.
///
/// *Reading* may go to the network: `get` and `get_range` answer a verified block or fail after a deadline of the
/// implementation (30 s in the daemon), and the reader of the volume gets `EIO`. They are called without any lock held.
pub trait BlockStore: BlockSource + BlockSink + 'static {
    /// Makes every block that was put before durable on this host.
    ///
    /// *Errors*: a failed sync is final for those blocks; the volume steps down.
    fn sync(&self) -> io::Result<()>;

    /// Gives up a piece of what is set aside for a full disk; answers whether there was any. For what the volume has to write to
    /// give back more: its log and the tree of a checkpoint.
    fn relieve(&self) -> bool {
        false
    }

    /// While the answer lives, no block that is put from now on is given up because nothing refers to it yet. A store that gives
    /// nothing up answers `None`.
    fn protect(&self) -> Option<Protection> {
        None
    }
}

/// The blocks of this host alone: what is not here is not found.
impl BlockStore for Blocks {
    fn sync(&self) -> io::Result<()> {
        Blocks::sync(self).map_err(io::Error::other)
    }

    fn protect(&self) -> Option<Protection> {
        Some(Blocks::protect(self))
    }

    fn relieve(&self) -> bool {
        Blocks::relieve(self)
    }
}
