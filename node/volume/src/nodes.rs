//! The nodes of the base tree that are in memory: a bounded cache that is filled from outside.
//!
//! What always holds:
//! * a lookup never reads: a node that is not here is [`Stop::Need`], and the caller supplies it and asks again;
//! * a node that does not decode is [`Stop::Damaged`], every time;
//! * at most [`NODE_BYTES_MAX`] bytes of blocks are kept, the ones not used for longest going first.

use std::cell::{Cell, OnceCell};
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use remora_dag::directory::DirNode;
use remora_dag::errors::Damaged;
use remora_dag::file::{FileNode, FileNodeSource};
use remora_dag::list::NodeSource;
use remora_dag::unixfs::symlink_target;

use crate::fasthash::FastMap;
use crate::inomap::MapNode;
use crate::stop::Stop;

/// Bytes of blocks kept. Decoded nodes take about three times that; 16 MiB hold the shards of half a million names.
const NODE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Nodes kept whatever their size, so that a step that needs several finds them all when it is repeated.
const NODES_MIN: usize = 256;

#[derive(Debug)]
enum Decoded {
    Dir(Arc<DirNode>),
    File(Arc<FileNode>),
    Map(Arc<MapNode>),
}

#[derive(Debug)]
struct Node {
    bytes: Bytes,
    decoded: OnceCell<Decoded>,
    is_used: Cell<bool>,
}

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    map: FastMap<Cid, Node>,
    order: VecDeque<Cid>,
    bytes: usize,
}

impl Nodes {
    /// Puts a block in. The caller has verified it against its CID.
    pub(crate) fn supply(&mut self, cid: &Cid, bytes: Bytes) {
        let len = bytes.len();
        let node = Node { bytes, decoded: OnceCell::new(), is_used: Cell::new(true) };
        if self.map.insert(*cid, node).is_some() {
            return;
        }
        self.bytes += len;
        self.order.push_back(*cid);
        let mut n_seen = 0;
        while self.bytes > NODE_BYTES_MAX && self.map.len() > NODES_MIN && n_seen < 2 * self.order.len() {
            n_seen += 1;
            let Some(oldest) = self.order.pop_front() else { break };
            let is_used = self.map.get(&oldest).is_some_and(|node| node.is_used.replace(false));
            if is_used {
                self.order.push_back(oldest);
            } else if let Some(node) = self.map.remove(&oldest) {
                self.bytes -= node.bytes.len();
            }
        }
    }

    fn get(&self, cid: &Cid) -> Result<&Node, Stop> {
        let node = self.map.get(cid).ok_or(Stop::Need(*cid))?;
        node.is_used.set(true);
        Ok(node)
    }

    fn decoded<T>(
        &self,
        cid: &Cid,
        decode: impl FnOnce(&Bytes) -> Option<Decoded>,
        pick: impl FnOnce(&Decoded) -> Option<&Arc<T>>,
    ) -> Result<Arc<T>, Stop> {
        let node = self.get(cid)?;
        let decoded = match node.decoded.get() {
            Some(decoded) => decoded,
            None => {
                let fresh = decode(&node.bytes).ok_or(Stop::Damaged { cid: *cid })?;
                node.decoded.get_or_init(|| fresh)
            }
        };
        pick(decoded).cloned().ok_or(Stop::Damaged { cid: *cid })
    }

    /// A node of the map from inode numbers to names.
    pub(crate) fn map_node(&self, cid: &Cid) -> Result<Arc<MapNode>, Stop> {
        self.decoded(
            cid,
            |bytes| Some(Decoded::Map(Arc::new(MapNode::decode(bytes)?))),
            |decoded| if let Decoded::Map(node) = decoded { Some(node) } else { None },
        )
    }

    /// The bytes of a block.
    pub(crate) fn bytes(&self, cid: &Cid) -> Result<Bytes, Stop> {
        Ok(self.get(cid)?.bytes.clone())
    }

    /// The target of a symlink.
    pub(crate) fn symlink(&self, cid: &Cid) -> Result<Bytes, Stop> {
        symlink_target(cid, &self.get(cid)?.bytes).map_err(|_| Stop::Damaged { cid: *cid })
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
