//! Walking a DAG without IO: which blocks are needed next, within budgets, each once.
//!
//! What always holds: no recursion; a block is asked for once, however many paths lead to it; the walk ends with an error before
//! it takes more blocks, bytes or depth than it was given.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use cid::Cid;
use thiserror::Error;

use crate::block::{Codec, IDENTITY};
use crate::cbor;
use crate::dagpb::Node;
use crate::dir_node::{DirNode, Slot};
use crate::directory::Entry;
use crate::errors::{Damaged, Malformed};
use crate::unixfs::{self, NodeType};

/// The CIDs in a block, in its order: links of dag-pb, the blocks of spilled xattrs, links of dag-cbor. Raw blocks have none.
///
/// # Errors
/// [`Malformed`]: the bytes are not what the codec of the CID says.
pub fn links_of(cid: &Cid, bytes: &Bytes) -> Result<Vec<Cid>, Malformed> {
    match Codec::of(cid) {
        Some(Codec::Raw) => Ok(Vec::new()),
        Some(Codec::DagCbor) => cbor::links(bytes),
        Some(Codec::DagPb) => {
            let mut links: Vec<Cid> = Node::decode(bytes)?.links.into_iter().map(|link| link.cid).collect();
            links.extend(xattrs_blocks(bytes)?);
            Ok(links)
        }
        None => Err(Malformed::Codec(cid.codec())),
    }
}

fn xattrs_blocks(bytes: &Bytes) -> Result<Vec<Cid>, Malformed> {
    let has_rows = unixfs::decode_node(bytes).is_ok_and(|(_, message)| {
        message.posix.is_some()
            && matches!(message.node_type(), Some(NodeType::Directory | NodeType::HamtShard))
    });
    if !has_rows {
        return Ok(Vec::new());
    }
    let entries: Vec<Entry> = match DirNode::decode(bytes)? {
        DirNode::Basic(node) => node.entries().map(|(_, entry)| entry).collect(),
        DirNode::Shard(shard) => shard
            .slots()
            .filter_map(|(_, slot)| match slot {
                Slot::Entry(entry) => Some(entry),
                Slot::Child(_) => None,
            })
            .collect(),
    };
    Ok(entries.into_iter().filter_map(|entry| entry.row?.xattrs_block.map(|cid| *cid)).collect())
}

/// How much a walk may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// The most different blocks.
    pub blocks: u64,
    /// The most bytes in them.
    pub bytes: u64,
    /// The longest path, in links.
    pub depth: u32,
}

impl Default for Budget {
    /// A million blocks, a tebibyte, 4096 links deep.
    fn default() -> Budget {
        Budget { blocks: 1_000_000, bytes: 1 << 40, depth: 4096 }
    }
}

/// Why a walk ended early.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum WalkError {
    /// A block is not what its codec says.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// More blocks than the budget.
    #[error("more than {0} blocks")]
    Blocks(u64),
    /// More bytes than the budget.
    #[error("more than {0} bytes")]
    Bytes(u64),
    /// A path longer than the budget.
    #[error("more than {0} links deep")]
    Depth(u32),
    /// A block was supplied that was not asked for.
    #[error("block {0} was not asked for")]
    Unasked(Cid),
}

/// A walk over all blocks below some roots, depth first.
///
/// Ask with [`Walk::next_wanted`], answer with [`Walk::supply`] (or [`Walk::skip`]) in any order; it is over when nothing is wanted and
/// nothing is out.
#[derive(Debug)]
pub struct Walk {
    budget: Budget,
    /// Found and not yet asked for, the next one last.
    found: Vec<(Cid, u32)>,
    /// Asked for and not yet supplied.
    out: BTreeMap<Cid, u32>,
    /// All that were ever found; only looked up, never iterated.
    seen: HashSet<Cid>,
    bytes: u64,
}

impl Walk {
    /// A walk from `roots`, the first one first.
    ///
    /// # Errors
    /// [`WalkError::Blocks`]: the roots alone are too many.
    pub fn new(roots: &[Cid], budget: Budget) -> Result<Walk, WalkError> {
        let mut walk =
            Walk { budget, found: Vec::new(), out: BTreeMap::new(), seen: HashSet::new(), bytes: 0 };
        walk.find(roots.iter().copied(), 0)?;
        Ok(walk)
    }

    fn find(&mut self, cids: impl Iterator<Item = Cid>, depth: u32) -> Result<(), WalkError> {
        let mark = self.found.len();
        for cid in cids {
            // An identity CID is its own block; nobody has to fetch it.
            if cid.hash().code() == IDENTITY || !self.seen.insert(cid) {
                continue;
            }
            if depth > self.budget.depth {
                return Err(WalkError::Depth(self.budget.depth));
            }
            if self.seen.len() as u64 > self.budget.blocks {
                return Err(WalkError::Blocks(self.budget.blocks));
            }
            self.found.push((cid, depth));
        }
        if let Some(new) = self.found.get_mut(mark..) {
            new.reverse();
        }
        Ok(())
    }

    /// The next block to fetch; `None` if all that are known were asked for.
    pub fn next_wanted(&mut self) -> Option<Cid> {
        let (cid, depth) = self.found.pop()?;
        self.out.insert(cid, depth);
        Some(cid)
    }

    /// Takes a block that was asked for; its links become wanted.
    ///
    /// # Errors
    /// [`WalkError`]: a budget is used up, or the block is not sound.
    pub fn supply(&mut self, cid: &Cid, bytes: &Bytes) -> Result<(), WalkError> {
        let depth = self.out.remove(cid).ok_or(WalkError::Unasked(*cid))?;
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > self.budget.bytes {
            return Err(WalkError::Bytes(self.budget.bytes));
        }
        let links = links_of(cid, bytes).map_err(|why| Damaged { cid: *cid, why })?;
        self.find(links.into_iter(), depth.saturating_add(1))
    }

    /// Gives up on a block that was asked for, and on what is only below it; says whether it was.
    pub fn skip(&mut self, cid: &Cid) -> bool {
        self.out.remove(cid).is_some()
    }

    /// Whether nothing is wanted and nothing is out.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.found.is_empty() && self.out.is_empty()
    }

    /// Blocks found so far, the roots included.
    #[must_use]
    pub fn n_found(&self) -> u64 {
        self.seen.len() as u64
    }

    /// Bytes supplied so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
