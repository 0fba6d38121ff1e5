//! Directories: entries by name, in one block or as a HAMT of shards, with or without POSIX rows.
//!
//! What always holds:
//! * the root's CID depends on the set of entries and the profile alone, not on the order in which they came or on what was there
//!   before: [`update_dir`] gives what [`build_dir`] of the resulting set gives;
//! * a directory becomes a HAMT by the size of its block *without* POSIX rows, and sizes in links count blocks without rows,
//!   so that a volume's tree has the shape of the plain tree of the same content.

use std::collections::BTreeMap;

use bytes::Bytes;
use cid::Cid;

use crate::block::{BLOCK_BYTES_MAX, BlockSink, BlockSource, Codec};
use crate::dagpb;
use crate::dir_node::{DirNode, Slot, is_name};
use crate::errors::{Damaged, Malformed, ReadError, WriteError};
use crate::hamt::{Load, MemShard, name_hash, slot_index};
use crate::posix::{Row, encode_rows};
use crate::profile::{HAMT_BYTES, HAMT_FANOUT, HamtRule, Profile};
use crate::unixfs::{Data, HAMT_MURMUR3, NodeType};

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The name: not empty, not `.` or `..`, without `/` and NUL.
    pub name: Vec<u8>,
    /// What it names.
    pub cid: Cid,
    /// The bytes of the target's block and of all below it; a hint.
    pub tsize: u64,
    /// Its POSIX side, in directories of volumes.
    pub row: Option<Row>,
}

/// A directory (or a shard of one), and what hangs on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirRoot {
    /// The node.
    pub cid: Cid,
    /// The bytes of its block without POSIX rows, and of all below it.
    pub tsize: u64,
}

/// How a directory's size is measured, entry by entry.
#[derive(Clone, Copy)]
pub(crate) struct Measure(HamtRule);

impl Measure {
    /// What a directory without entries has.
    pub(crate) fn empty(self) -> usize {
        match self.0 {
            HamtRule::BlockBytes => 4,
            HamtRule::LinkBytes => 0,
        }
    }

    /// What an entry adds.
    pub(crate) fn entry(self, entry: &Entry) -> usize {
        match self.0 {
            HamtRule::BlockBytes => dagpb::encoded_link_len(&entry.cid, entry.name.len(), entry.tsize),
            HamtRule::LinkBytes => entry.name.len() + entry.cid.encoded_len(),
        }
    }
}

/// Puts the last touches to a directory block and keeps it.
pub(crate) fn put_dir_block(
    profile: Profile,
    mut links: Vec<u8>,
    message: Data,
    rows: Option<Bytes>,
    below: u64,
    sink: &dyn BlockSink,
) -> Result<DirRoot, WriteError> {
    let plain = message.to_bytes();
    let plain_len = links.len() + dagpb::encoded_data_len(plain.len());
    let data = match rows {
        Some(rows) => Data { posix: Some(rows), ..message }.to_bytes(),
        None => plain,
    };
    dagpb::put_data(&mut links, &data);
    if links.len() > BLOCK_BYTES_MAX {
        return Err(WriteError::TooLong { len: links.len() });
    }
    let block = profile.seal_node(Bytes::from(links));
    let root = DirRoot { cid: *block.cid(), tsize: below.saturating_add(plain_len as u64) };
    sink.put(block)?;
    Ok(root)
}

/// Checks an entry and moves xattrs that are too long for its row into a block of their own.
fn settle(mut entry: Entry, sink: &dyn BlockSink) -> Result<Entry, WriteError> {
    if !is_name(&entry.name) {
        return Err(WriteError::Name { name: entry.name });
    }
    if let Some(block) = entry.row.as_mut().map(Row::spill).transpose()?.flatten() {
        sink.put(block)?;
    }
    Ok(entry)
}

/// Builds a directory.
///
/// Extended attributes that are too long for a row are moved into blocks of their own.
///
/// # Errors
/// [`WriteError`]: a name that is not allowed or comes twice, a row that cannot be written, or the sink's.
pub fn build_dir(
    profile: Profile,
    entries: impl IntoIterator<Item = Entry>,
    sink: &dyn BlockSink,
) -> Result<DirRoot, WriteError> {
    let mut by_name = BTreeMap::new();
    for entry in entries {
        let entry = settle(entry, sink)?;
        if let Some(before) = by_name.insert(entry.name.clone(), entry) {
            return Err(WriteError::Duplicate { name: before.name });
        }
    }
    build_sorted(profile, by_name, sink)
}

fn build_sorted(
    profile: Profile,
    entries: BTreeMap<Vec<u8>, Entry>,
    sink: &dyn BlockSink,
) -> Result<DirRoot, WriteError> {
    let measure = Measure(profile.hamt_rule());
    let bytes: usize = entries.values().map(|entry| measure.entry(entry)).sum();
    if measure.empty() + bytes <= HAMT_BYTES {
        return build_basic(profile, entries.values(), sink);
    }
    let mut root = MemShard::default();
    for entry in entries.into_values() {
        root.set(&never_stored, 0, entry)?;
    }
    root.write(profile, sink)
}

/// What a HAMT that was never stored reads from: nothing.
fn never_stored(cid: &Cid) -> Result<DirNode, ReadError> {
    Err(ReadError::damaged(cid, Malformed::Shard))
}

fn build_basic<'a>(
    profile: Profile,
    entries: impl Iterator<Item = &'a Entry>,
    sink: &dyn BlockSink,
) -> Result<DirRoot, WriteError> {
    let mut links = Vec::new();
    let mut rows = Vec::new();
    let mut below = 0u64;
    for entry in entries {
        dagpb::put_link(&mut links, &entry.cid, &entry.name, entry.tsize);
        rows.push(entry.row.as_ref());
        below = below.saturating_add(entry.tsize);
    }
    put_dir_block(profile, links, Data::of(NodeType::Directory), encode_rows(&rows)?, below, sink)
}

/// Changes a directory: `Some` sets the entry of that name, `None` removes it. Without a `root` it starts empty.
///
/// The result is what [`build_dir`] of the resulting entries gives, provided `root` was built by the same profile; only blocks on the
/// way to a change are written. The key of a change is the name; the name inside the entry is not looked at. What has been
/// put into `sink` must be found in `source`.
///
/// # Errors
/// [`WriteError`]: as [`build_dir`], or the old directory could not be read.
pub fn update_dir(
    source: &dyn BlockSource,
    sink: &dyn BlockSink,
    root: Option<&Cid>,
    changes: &BTreeMap<Vec<u8>, Option<Entry>>,
    profile: Profile,
) -> Result<DirRoot, WriteError> {
    let load = |cid: &Cid| read_dir_node(source, cid);
    let node = root.map(&load).transpose()?;
    match (root, node) {
        (Some(root), Some(node @ DirNode::Shard(_))) => {
            update_hamt(&load, sink, root, node, changes, profile)
        }
        (_, Some(DirNode::Basic(node))) => {
            let entries = node.entries().map(|(_, entry)| (entry.name.clone(), entry)).collect();
            rebuild(entries, sink, changes, profile)
        }
        _ => rebuild(BTreeMap::new(), sink, changes, profile),
    }
}

/// Reads one directory block.
///
/// # Errors
/// [`ReadError`]: the block did not come, or is not a sound directory block.
pub fn read_dir_node(source: &dyn BlockSource, cid: &Cid) -> Result<DirNode, ReadError> {
    if Codec::of(cid) != Some(Codec::DagPb) {
        return Err(ReadError::damaged(cid, Malformed::Codec(cid.codec())));
    }
    let bytes = source.get(cid)?;
    Ok(DirNode::decode(&bytes).map_err(|why| Damaged { cid: *cid, why })?)
}

fn rebuild(
    mut entries: BTreeMap<Vec<u8>, Entry>,
    sink: &dyn BlockSink,
    changes: &BTreeMap<Vec<u8>, Option<Entry>>,
    profile: Profile,
) -> Result<DirRoot, WriteError> {
    for (name, change) in changes {
        match change {
            None => entries.remove(name),
            Some(entry) => {
                let entry = settle(Entry { name: name.clone(), ..entry.clone() }, sink)?;
                entries.insert(name.clone(), entry)
            }
        };
    }
    build_sorted(profile, entries, sink)
}

fn update_hamt(
    load: &Load<'_>,
    sink: &dyn BlockSink,
    root: &Cid,
    node: DirNode,
    changes: &BTreeMap<Vec<u8>, Option<Entry>>,
    profile: Profile,
) -> Result<DirRoot, WriteError> {
    let measure = Measure(profile.hamt_rule());
    let DirNode::Shard(shard_node) = &node else { return rebuild(BTreeMap::new(), sink, changes, profile) };
    if shard_node.fanout() != HAMT_FANOUT {
        // Made by somebody else with another fan-out: it becomes one of ours.
        let nodes = crate::list::LoadNodes(load);
        let entries = crate::list::list_after(&nodes, root, None, usize::MAX)?;
        let entries = entries.into_iter().map(|(_, entry)| (entry.name.clone(), entry)).collect();
        return rebuild(entries, sink, changes, profile);
    }
    let tsize = dir_tsize(&node);
    let mut shard = MemShard::of_node(DirRoot { cid: *root, tsize }, &node, 0)?;
    let (mut grown, mut shrunk) = (0usize, 0usize);
    // In the order of the shards: each is written when it is done, so that only one of them is in memory at a time.
    let mut in_order: Vec<(&Vec<u8>, &Option<Entry>)> = changes.iter().collect();
    in_order.sort_by_cached_key(|(name, _)| name_hash(name));
    let mut last = None;
    for (name, change) in in_order {
        let index = slot_index(name, 0);
        if let Some(done) = last.filter(|_| last != index) {
            shard.finish_slot(done, profile, sink)?;
        }
        last = index;
        let before = match change {
            None => shard.remove(load, 0, name)?,
            Some(entry) => {
                let entry = settle(Entry { name: name.clone(), ..entry.clone() }, sink)?;
                grown += measure.entry(&entry);
                shard.set(load, 0, entry)?
            }
        };
        shrunk += before.map_or(0, |entry| measure.entry(&entry));
    }
    // It was too large for one block; only if it shrank can it have become small enough.
    if shrunk > grown
        && let Some(entries) = shard.small_entries(load, measure, 0)?
    {
        let entries = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        return build_sorted(profile, entries, sink);
    }
    shard.write(profile, sink)
}

/// What [`DirRoot::tsize`] says of a node, given the node.
fn dir_tsize(node: &DirNode) -> u64 {
    let (mut links, mut below) = (0, 0u64);
    let mut add = |cid: &Cid, name_len: usize, tsize: u64| {
        links += dagpb::encoded_link_len(cid, name_len, tsize);
        below = below.saturating_add(tsize);
    };
    let message = match node {
        DirNode::Basic(node) => {
            node.entries().for_each(|(_, entry)| add(&entry.cid, entry.name.len(), entry.tsize));
            Data::of(NodeType::Directory)
        }
        DirNode::Shard(shard) => {
            let mut highest = 0;
            for (index, slot) in shard.slots() {
                highest = usize::from(index) / 8 + 1;
                match slot {
                    Slot::Entry(entry) => add(&entry.cid, 2 + entry.name.len(), entry.tsize),
                    Slot::Child(child) => add(&child.cid, 2, child.tsize),
                }
            }
            Data {
                data: Some(Bytes::from(vec![0; highest])),
                hash_type: Some(HAMT_MURMUR3),
                fanout: Some(shard.fanout()),
                ..Data::of(NodeType::HamtShard)
            }
        }
    };
    below.saturating_add((links + dagpb::encoded_data_len(message.to_bytes().len())) as u64)
}
