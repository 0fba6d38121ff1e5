//! The nodes of the base tree that are in memory: two bounded caches, one of blocks, filled from outside, and one of what
//! they say.
//!
//! A decoded node takes several times its block, so few are kept; decoding one again takes microseconds.
//!
//! What always holds:
//! * a lookup never reads: a node whose block is not here is [`Stop::Need`], and the caller supplies it and asks again;
//! * a node that does not decode is [`Stop::Damaged`], every time;
//! * at most [`BLOCK_BYTES_MAX`] and [`DECODED_BYTES_MAX`] are kept, beyond a few nodes of any size, and the ones not used
//!   for longest go first.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use remora_dag::dir_node::DirNode;
use remora_dag::errors::Damaged;
use remora_dag::file::{FileLink, FileNode, FileNodeSource};
use remora_dag::list::NodeSource;
use remora_dag::unixfs::symlink_target;

use crate::fasthash::FastMap;
use crate::inomap::MapNode;
use crate::stop::Stop;

/// Bytes of blocks kept: 16 MiB hold what a volume knows of two hundred thousand names.
const BLOCK_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of decoded nodes kept.
const DECODED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes a cache needs for one node beside the node itself: its CID twice, and its place in two tables. The nodes of a very large
/// directory are not much longer.
const KEEP_BYTES: usize = 384;

/// Nodes kept whatever their size, so that a step that needs several finds them all when it is repeated.
const NODES_MIN: usize = 64;

/// A cache with a bound on its bytes that gives what was used lately a second chance.
#[derive(Debug)]
struct Recent<T> {
    map: FastMap<Cid, Kept<T>>,
    order: VecDeque<Cid>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Kept<T> {
    value: T,
    bytes: usize,
    is_used: bool,
}

impl<T> Recent<T> {
    fn new(bytes_max: usize) -> Recent<T> {
        Recent { map: FastMap::default(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    fn get(&mut self, cid: &Cid) -> Option<&T> {
        let kept = self.map.get_mut(cid)?;
        kept.is_used = true;
        Some(&kept.value)
    }

    fn put(&mut self, cid: Cid, value: T, bytes: usize) {
        let bytes = bytes + KEEP_BYTES;
        self.bytes += bytes;
        // It has not been used yet: whoever puts it asks for it next, and whoever only passed by goes before what is used.
        let old = self.map.insert(cid, Kept { value, bytes, is_used: false });
        self.bytes -= old.as_ref().map_or(0, |old| old.bytes);
        let mut n_seen = 0;
        while self.bytes > self.bytes_max && self.map.len() > NODES_MIN && n_seen < 2 * self.order.len() {
            n_seen += 1;
            let Some(oldest) = self.order.pop_front() else { break };
            let is_used = self.map.get_mut(&oldest).is_some_and(|kept| std::mem::take(&mut kept.is_used));
            if is_used || oldest == cid {
                self.order.push_back(oldest);
            } else if let Some(kept) = self.map.remove(&oldest) {
                self.bytes -= kept.bytes;
            }
        }
        if old.is_none() {
            self.order.push_back(cid);
        }
    }
}

#[derive(Clone, Debug)]
enum Decoded {
    Dir(Arc<DirNode>),
    File(Arc<FileNode>),
    Map(Arc<MapNode>),
}

impl Decoded {
    /// About how much memory it takes, made of a block of this length.
    fn bytes(&self, block_bytes: usize) -> usize {
        let parts = match self {
            Decoded::Dir(node) => node.table_bytes(),
            Decoded::File(node) => match &**node {
                FileNode::Interior { links, .. } => links.len() * size_of::<FileLink>(),
                FileNode::Leaf { .. } => 0,
            },
            Decoded::Map(node) => node.table_bytes(),
        };
        parts + block_bytes
    }
}

/// The caches.
#[derive(Debug)]
pub(crate) struct Nodes {
    blocks: RefCell<Recent<Bytes>>,
    decoded: RefCell<Recent<Decoded>>,
}

impl Default for Nodes {
    fn default() -> Nodes {
        let (blocks, decoded) = (Recent::new(BLOCK_BYTES_MAX), Recent::new(DECODED_BYTES_MAX));
        Nodes { blocks: RefCell::new(blocks), decoded: RefCell::new(decoded) }
    }
}

impl Nodes {
    /// Puts a block in. The caller has verified it against its CID.
    pub(crate) fn supply(&mut self, cid: &Cid, bytes: Bytes) {
        let len = bytes.len();
        self.blocks.get_mut().put(*cid, bytes, len);
    }

    /// The bytes of a block.
    pub(crate) fn bytes(&self, cid: &Cid) -> Result<Bytes, Stop> {
        self.blocks.borrow_mut().get(cid).cloned().ok_or(Stop::Need(*cid))
    }

    fn decoded<T>(
        &self,
        cid: &Cid,
        decode: impl FnOnce(&Bytes) -> Option<Decoded>,
        pick: impl Fn(&Decoded) -> Option<&Arc<T>>,
    ) -> Result<Arc<T>, Stop> {
        let damaged = Stop::Damaged { cid: *cid };
        if let Some(decoded) = self.decoded.borrow_mut().get(cid) {
            return pick(decoded).cloned().ok_or(damaged);
        }
        let bytes = self.bytes(cid)?;
        let decoded = decode(&bytes).ok_or(damaged.clone())?;
        self.decoded.borrow_mut().put(*cid, decoded.clone(), decoded.bytes(bytes.len()));
        pick(&decoded).cloned().ok_or(damaged)
    }

    /// A node of the map from inode numbers to names.
    pub(crate) fn map_node(&self, cid: &Cid) -> Result<Arc<MapNode>, Stop> {
        self.decoded(
            cid,
            |bytes| Some(Decoded::Map(Arc::new(MapNode::decode(bytes)?))),
            |decoded| if let Decoded::Map(node) = decoded { Some(node) } else { None },
        )
    }

    /// The target of a symlink.
    pub(crate) fn symlink(&self, cid: &Cid) -> Result<Bytes, Stop> {
        symlink_target(cid, &self.bytes(cid)?).map_err(|_| Stop::Damaged { cid: *cid })
    }
}

impl NodeSource for Nodes {
    type Error = Stop;

    fn node(&self, cid: &Cid) -> Result<Arc<DirNode>, Stop> {
        self.decoded(
            cid,
            |bytes| Some(Decoded::Dir(Arc::new(DirNode::decode(bytes).ok()?))),
            |decoded| if let Decoded::Dir(node) = decoded { Some(node) } else { None },
        )
    }
}

impl FileNodeSource for Nodes {
    type Error = Stop;

    fn file_node(&self, cid: &Cid) -> Result<Arc<FileNode>, Stop> {
        self.decoded(
            cid,
            |bytes| Some(Decoded::File(Arc::new(FileNode::decode(cid, bytes).ok()?))),
            |decoded| if let Decoded::File(node) = decoded { Some(node) } else { None },
        )
    }
}

impl From<Damaged> for Stop {
    fn from(damaged: Damaged) -> Stop {
        Stop::Damaged { cid: damaged.cid }
    }
}

#[cfg(test)]
mod tests {
    use super::{KEEP_BYTES, NODES_MIN, Recent};
    use bytes::Bytes;
    use cid::Cid;
    use remora_dag::block::{Block, Codec};

    const BYTES_MAX: usize = 128 * 1024;

    fn cid(i: usize) -> Cid {
        *Block::seal(Codec::Raw, Bytes::from(i.to_string())).cid()
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_used_stays() {
        let mut recent = Recent::new(BYTES_MAX);
        for i in 0..10 * NODES_MIN {
            recent.put(cid(i), i, BYTES_MAX / NODES_MIN / 2);
            assert!(recent.get(&cid(0)).is_some(), "used all the time");
            assert!(recent.bytes <= BYTES_MAX);
        }
        assert!(recent.get(&cid(1)).is_none());
        recent.put(cid(2), 2, 10 * BYTES_MAX);
        assert_eq!(recent.get(&cid(2)), Some(&2), "a large one is there until others come");
        assert_eq!(recent.map.len(), NODES_MIN, "and so are a few others");
        assert_eq!(recent.order.len(), recent.map.len());
    }

    #[test]
    fn small_nodes_count_for_what_the_cache_itself_takes() {
        let mut recent = Recent::new(BYTES_MAX);
        for i in 0..5000 {
            recent.put(cid(i), i, 1);
        }
        assert!(recent.map.len() > NODES_MIN && recent.map.len() <= BYTES_MAX / KEEP_BYTES);
    }
}
