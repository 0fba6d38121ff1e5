//! The map from inode numbers to names: how any inode of a tree is found without walking it.
//!
//! ```text
//!  height 1   [ 0: cid, 1: cid, ... ]            8 bits of the number a level, high ones first
//!  height 0   [ 2: [[1,"etc"]], 3: ... ]         the names of up to 256 inodes
//! ```
//!
//! What always holds:
//! * the shape follows from the content alone: no empty nodes but the empty map's, and no more levels than the
//!   highest number needs;
//! * an update rewrites the nodes above what changed and no others;
//! * the root directory (which has no name) and orphans are not in it.

use std::collections::BTreeMap;

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{Block, BlockSink, BlockSource, Codec};
use remora_dag::errors::{Damaged, Malformed, ReadError, WriteError};
use remora_vfs::attr::Ino;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Children of a node.
const FANOUT: u64 = 256;

/// Levels above the lowest: 8 levels of 8 bits are all there is to a number.
const HEIGHT_MAX: u8 = 7;

/// Name lists longer than this have a block of their own, so that a node stays far below a block's limit.
const NAMES_INLINE_BYTES_MAX: usize = 1024;

/// How many names an inode may have: with the longest names, their list still fits into a block.
pub const LINKS_MAX: u32 = 7000;

/// A name: the directory's inode number and the bytes.
pub type Name = (Ino, ByteBuf);

/// The names of an inode in a node of the map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum NameList {
    Here(Vec<Name>),
    There(Cid),
}

/// One node of the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapNode {
    height: u8,
    children: Vec<(u8, Cid)>,
    leaves: Vec<(u8, NameList)>,
}

#[derive(Serialize, Deserialize)]
struct InnerRecord(u8, Vec<(u8, Cid)>);

#[derive(Serialize, Deserialize)]
struct LeafRecord(u8, Vec<(u8, NameList)>);

#[derive(Deserialize)]
struct HeightRecord(u8, serde::de::IgnoredAny);

/// Where the names of an inode are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Here; empty: there is no such inode.
    Names(Vec<Name>),
    /// In this block; see [`decode_names`].
    Block(Cid),
}

impl MapNode {
    fn empty(height: u8) -> MapNode {
        MapNode { height, children: Vec::new(), leaves: Vec::new() }
    }

    /// Reads a node; `None` if it is not sound.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<MapNode> {
        let HeightRecord(height, _) = serde_ipld_dagcbor::from_slice(bytes).ok()?;
        if height > HEIGHT_MAX {
            return None;
        }
        if height == 0 {
            let LeafRecord(_, leaves) = serde_ipld_dagcbor::from_slice(bytes).ok()?;
            let is_sorted = leaves.windows(2).all(|w| w[0].0 < w[1].0);
            return is_sorted.then_some(MapNode { height, children: Vec::new(), leaves });
        }
        let InnerRecord(_, children) = serde_ipld_dagcbor::from_slice(bytes).ok()?;
        let is_sorted = children.windows(2).all(|w| w[0].0 < w[1].0);
        (is_sorted && !children.is_empty()).then_some(MapNode { height, children, leaves: Vec::new() })
    }

    fn to_block(&self) -> Block {
        // Encoding plain numbers, bytes and links into memory has no way to fail.
        let bytes = if self.height == 0 {
            serde_ipld_dagcbor::to_vec(&LeafRecord(0, self.leaves.clone()))
        } else {
            serde_ipld_dagcbor::to_vec(&InnerRecord(self.height, self.children.clone()))
        };
        Block::seal(Codec::DagCbor, bytes.unwrap_or_default().into())
    }

    /// About how many bytes of memory its tables take.
    pub(crate) fn table_bytes(&self) -> usize {
        self.children.len() * size_of::<(u8, Cid)>() + self.leaves.len() * size_of::<(u8, NameList, Name)>()
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.leaves.is_empty()
    }

    fn child(&self, index: u8) -> Option<&Cid> {
        self.children.binary_search_by_key(&index, |(i, _)| *i).ok().map(|at| &self.children[at].1)
    }

    fn set_child(&mut self, index: u8, cid: Option<Cid>) {
        match (self.children.binary_search_by_key(&index, |(i, _)| *i), cid) {
            (Ok(at), Some(cid)) => self.children[at].1 = cid,
            (Ok(at), None) => {
                self.children.remove(at);
            }
            (Err(at), Some(cid)) => self.children.insert(at, (index, cid)),
            (Err(_), None) => {}
        }
    }

    fn set_leaf(&mut self, index: u8, names: Option<NameList>) {
        match (self.leaves.binary_search_by_key(&index, |(i, _)| *i), names) {
            (Ok(at), Some(names)) => self.leaves[at].1 = names,
            (Ok(at), None) => {
                self.leaves.remove(at);
            }
            (Err(at), Some(names)) => self.leaves.insert(at, (index, names)),
            (Err(_), None) => {}
        }
    }
}

/// The names in a block of their own; `None` if it is not sound.
#[must_use]
pub fn decode_names(bytes: &[u8]) -> Option<Vec<Name>> {
    serde_ipld_dagcbor::from_slice(bytes).ok()
}

/// The map without inodes.
#[must_use]
pub fn empty_map() -> Block {
    MapNode::empty(0).to_block()
}

fn index_at(ino: Ino, height: u8) -> u8 {
    ((ino >> (8 * u32::from(height))) & 0xff) as u8
}

fn height_of(ino: Ino) -> u8 {
    ((63 - (ino | 1).leading_zeros()) / 8) as u8
}

/// What one step of a search answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Go on in this node, which has this height.
    Down(Cid, u8),
    /// The search is over.
    Done(Found),
}

/// One step of the search for an inode: from `node` to the next one.
///
/// The root may have any height; a child must have exactly one less than its parent, which the caller checks against
/// the height in [`Step::Down`] by passing it back as `expected`. `None`: the map is damaged at this node.
#[must_use]
pub fn step(node: &MapNode, expected: Option<u8>, ino: Ino) -> Option<Step> {
    if expected.is_some_and(|height| height != node.height) {
        return None;
    }
    if expected.is_none() && height_of(ino) > node.height {
        return Some(Step::Done(Found::Names(Vec::new())));
    }
    Some(skip(node, ino))
}

fn skip(node: &MapNode, ino: Ino) -> Step {
    let index = index_at(ino, node.height);
    if node.height > 0 {
        return match node.child(index) {
            Some(cid) => Step::Down(*cid, node.height - 1),
            None => Step::Done(Found::Names(Vec::new())),
        };
    }
    Step::Done(match node.leaves.binary_search_by_key(&index, |(i, _)| *i) {
        Err(_) => Found::Names(Vec::new()),
        Ok(at) => match &node.leaves[at].1 {
            NameList::Here(names) => Found::Names(names.clone()),
            NameList::There(cid) => Found::Block(*cid),
        },
    })
}

fn damaged(cid: &Cid) -> ReadError {
    ReadError::Damaged(Damaged { cid: *cid, why: Malformed::Cbor("not a node of an inode map") })
}

fn fetch(source: &dyn BlockSource, cid: &Cid) -> Result<MapNode, ReadError> {
    MapNode::decode(&source.get(cid)?).ok_or_else(|| damaged(cid))
}

/// The names of an inode, read through a source. Empty if there is no such inode.
///
/// # Errors
/// [`ReadError`].
pub fn names_of(source: &dyn BlockSource, root: &Cid, ino: Ino) -> Result<Vec<Name>, ReadError> {
    let (mut cid, mut height) = (*root, None);
    loop {
        let node = fetch(source, &cid)?;
        match step(&node, height, ino).ok_or_else(|| damaged(&cid))? {
            Step::Down(child, below) => (cid, height) = (child, Some(below)),
            Step::Done(Found::Names(names)) => return Ok(names),
            Step::Done(Found::Block(block)) => {
                return decode_names(&source.get(&block)?).ok_or_else(|| damaged(&block));
            }
        }
    }
}

/// Changes the names of inodes (an empty list: the inode goes) and answers the new root.
///
/// # Errors
/// [`WriteError`].
pub fn update(
    source: &dyn BlockSource,
    sink: &dyn BlockSink,
    root: &Cid,
    changes: &BTreeMap<Ino, Vec<Name>>,
) -> Result<Cid, WriteError> {
    let Some((&highest, _)) = changes.last_key_value() else { return Ok(*root) };
    let mut update = Update { source, sink, leftmost: BTreeMap::new() };
    let mut node = fetch(source, root)?;
    while node.height < height_of(highest) {
        let mut above = MapNode::empty(node.height + 1);
        if !node.is_empty() {
            let cid = update.put(0, node)?;
            above.set_child(0, Some(cid));
        }
        node = above;
    }
    let changes: Vec<(Ino, &[Name])> = changes.iter().map(|(ino, names)| (*ino, names.as_slice())).collect();
    update.change(&mut node, &changes)?;
    // Levels that the numbers left do not need go away.
    while node.height > 0 && node.children.iter().all(|(index, _)| *index == 0) {
        node = match node.child(0) {
            Some(cid) => update.fetch(cid)?,
            None => MapNode::empty(0),
        };
    }
    let block = node.to_block();
    let cid = *block.cid();
    sink.put(block)?;
    Ok(cid)
}

struct Update<'a> {
    source: &'a dyn BlockSource,
    sink: &'a dyn BlockSink,
    /// Nodes just written that may be needed again: only a first child can become the root.
    leftmost: BTreeMap<Cid, MapNode>,
}

impl Update<'_> {
    fn fetch(&self, cid: &Cid) -> Result<MapNode, ReadError> {
        match self.leftmost.get(cid) {
            Some(node) => Ok(node.clone()),
            None => fetch(self.source, cid),
        }
    }

    fn put(&mut self, index: u8, node: MapNode) -> Result<Cid, WriteError> {
        let block = node.to_block();
        let cid = *block.cid();
        self.sink.put(block)?;
        if index == 0 {
            self.leftmost.insert(cid, node);
        }
        Ok(cid)
    }

    fn change(&mut self, node: &mut MapNode, changes: &[(Ino, &[Name])]) -> Result<(), WriteError> {
        if node.height == 0 {
            for (ino, names) in changes {
                let list = if names.is_empty() { None } else { Some(name_list(self.sink, names)?) };
                node.set_leaf(index_at(*ino, 0), list);
            }
            return Ok(());
        }
        let height = node.height;
        for part in changes.chunk_by(|a, b| index_at(a.0, height) == index_at(b.0, height)) {
            let index = index_at(part[0].0, height);
            let mut child = match node.child(index) {
                Some(cid) => {
                    let child = self.fetch(cid)?;
                    if child.height != height - 1 {
                        return Err(damaged(cid).into());
                    }
                    child
                }
                None => MapNode::empty(height - 1),
            };
            self.change(&mut child, part)?;
            let cid = if child.is_empty() { None } else { Some(self.put(index, child)?) };
            node.set_child(index, cid);
        }
        Ok(())
    }
}

fn name_list(sink: &dyn BlockSink, names: &[Name]) -> Result<NameList, WriteError> {
    let mut sorted = names.to_vec();
    sorted.sort_by(|a, b| (a.0, a.1.as_slice()).cmp(&(b.0, b.1.as_slice())));
    let bytes: usize = sorted.iter().map(|(_, name)| name.len() + 12).sum();
    if bytes <= NAMES_INLINE_BYTES_MAX {
        return Ok(NameList::Here(sorted));
    }
    let encoded: Bytes = serde_ipld_dagcbor::to_vec(&sorted).unwrap_or_default().into();
    let block = Block::seal(Codec::DagCbor, encoded);
    let cid = *block.cid();
    sink.put(block)?;
    Ok(NameList::There(cid))
}

const _: () = assert!(FANOUT == 256, "an index is one byte");
