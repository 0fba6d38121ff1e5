//! Finding and listing entries, free of IO: nodes come from a [`NodeSource`], whose errors are passed on.
//!
//! The order of a listing is that of `(name_hash(name), name)`, for small and large directories alike, so a position in it
//! stays good while entries come and go and while a directory changes its shape.

use std::sync::Arc;

use cid::Cid;

use crate::directory::{DirNode, Entry, ShardNode, Slot};
use crate::errors::{Damaged, Malformed, ReadError};
use crate::hamt::{Load, SHARD_DEPTH_MAX, name_hash, slot_index};
use crate::profile::HAMT_FANOUT;

/// Where decoded directory nodes come from: a cache, a store, or "not yet" as an error of the caller's own.
pub trait NodeSource {
    /// What can go wrong; a damaged tree is one of it.
    type Error: From<Damaged>;

    /// The node.
    ///
    /// # Errors
    /// Whatever the implementation cannot do; it is passed on.
    fn node(&self, cid: &Cid) -> Result<Arc<DirNode>, Self::Error>;
}

/// A place in a listing; orders as the listing does. An empty name stands before all names of the hash.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord, Default)]
pub struct Position {
    /// The hash of a name.
    pub hash: u64,
    /// The name.
    pub name: Vec<u8>,
}

impl Position {
    /// The place of a name.
    #[must_use]
    pub fn of(name: &[u8]) -> Position {
        Position { hash: name_hash(name), name: name.to_vec() }
    }

    /// Before all names whose hash is at least this.
    #[must_use]
    pub fn before_hash(hash: u64) -> Position {
        Position { hash, name: Vec::new() }
    }

    fn is_before(&self, hash: u64, name: &[u8]) -> bool {
        (self.hash, self.name.as_slice()) < (hash, name)
    }
}

/// Nodes from the function that a HAMT under change reads with.
pub(crate) struct LoadNodes<'a>(pub(crate) &'a Load<'a>);

impl NodeSource for LoadNodes<'_> {
    type Error = ReadError;

    fn node(&self, cid: &Cid) -> Result<Arc<DirNode>, ReadError> {
        self.0(cid).map(Arc::new)
    }
}

fn damaged(cid: &Cid, why: Malformed) -> Damaged {
    Damaged { cid: *cid, why }
}

/// The entry of this name in the directory `root`.
///
/// # Errors
/// Those of `nodes`, and [`Damaged`] where shards do not fit together.
pub fn lookup<S: NodeSource + ?Sized>(nodes: &S, root: &Cid, name: &[u8]) -> Result<Option<Entry>, S::Error> {
    let hash = name_hash(name);
    let mut cid = *root;
    let mut fanout = None;
    for depth in 0..SHARD_DEPTH_MAX {
        let node = nodes.node(&cid)?;
        let shard = match &*node {
            DirNode::Basic(entries) if depth == 0 => {
                let place = entries.partition_point(|(h, e)| (*h, e.name.as_slice()) < (hash, name));
                return Ok(entries.get(place).filter(|(_, e)| e.name == name).map(|(_, e)| e.clone()));
            }
            DirNode::Shard(shard) if fanout.is_none_or(|fanout| fanout == shard.fanout) => shard,
            _ => return Err(damaged(&cid, Malformed::Shard).into()),
        };
        fanout = Some(shard.fanout);
        let index = index_at(name, hash, shard, depth).ok_or(damaged(&cid, Malformed::TooDeep))?;
        match shard.slot(index) {
            Some(Slot::Entry(entry)) if entry.name == name => return Ok(Some(entry.clone())),
            Some(Slot::Child(child)) => cid = child.cid,
            _ => return Ok(None),
        }
    }
    Err(damaged(&cid, Malformed::TooDeep).into())
}

/// The slot of a name in a shard of any fan-out; `None` deeper than its hash reaches.
fn index_at(name: &[u8], hash: u64, shard: &ShardNode, depth: usize) -> Option<u16> {
    if shard.fanout == HAMT_FANOUT {
        return slot_index(name, depth);
    }
    let above = shard.bits() * u32::try_from(depth).ok()?;
    let shift = 64u32.checked_sub(above + shard.bits())?;
    u16::try_from(hash >> shift & (shard.fanout - 1)).ok()
}

/// A shard on the way down.
struct Frame {
    cid: Cid,
    node: Arc<DirNode>,
    /// The next of its slots.
    next: usize,
    /// How many bits of the hash are decided above it, and which.
    above: u32,
    prefix: u64,
}

/// At most `max` entries of the directory `root` with the hashes of their names: those after a position, or the first ones.
///
/// # Errors
/// Those of `nodes`, and [`Damaged`] where shards do not fit together.
pub fn list_after<S: NodeSource + ?Sized>(
    nodes: &S,
    root: &Cid,
    after: Option<&Position>,
    max: usize,
) -> Result<Vec<(u64, Entry)>, S::Error> {
    let is_after = |hash: u64, name: &[u8]| after.is_none_or(|after| after.is_before(hash, name));
    let node = nodes.node(root)?;
    let mut out = Vec::new();
    let fanout = match &*node {
        DirNode::Basic(entries) => {
            let start = entries.partition_point(|(hash, entry)| !is_after(*hash, &entry.name));
            out.extend(entries.iter().skip(start).take(max).cloned());
            return Ok(out);
        }
        DirNode::Shard(shard) => shard.fanout,
    };
    let mut stack = vec![Frame { cid: *root, node, next: 0, above: 0, prefix: 0 }];
    while let Some(frame) = stack.last_mut().filter(|_| out.len() < max) {
        let DirNode::Shard(shard) = &*frame.node else {
            return Err(damaged(&frame.cid, Malformed::Shard).into());
        };
        let is_sound = shard.fanout == fanout && (frame.above == 0 || !shard.slots.is_empty());
        let below = 64u32.checked_sub(frame.above + shard.bits()).filter(|_| is_sound);
        let below = below.ok_or(damaged(&frame.cid, Malformed::Shard))?;
        let Some((index, slot)) = shard.slots.get(frame.next) else {
            stack.pop();
            continue;
        };
        frame.next += 1;
        let prefix = frame.prefix | u64::from(*index) << below;
        let last = prefix | 1u64.checked_shl(below).map_or(u64::MAX, |bit| bit - 1);
        if after.is_some_and(|after| last < after.hash) {
            continue;
        }
        match slot {
            Slot::Entry(entry) => {
                let hash = name_hash(&entry.name);
                if !(prefix..=last).contains(&hash) {
                    return Err(damaged(&frame.cid, Malformed::Misplaced).into());
                }
                if is_after(hash, &entry.name) {
                    out.push((hash, entry.clone()));
                }
            }
            Slot::Child(child) if below == 0 => {
                let mut group = collided(nodes, &child.cid, prefix)?;
                group.retain(|entry| is_after(prefix, &entry.name));
                out.extend(group.into_iter().take(max - out.len()).map(|entry| (prefix, entry)));
            }
            Slot::Child(child) => {
                let above = frame.above + shard.bits();
                let (cid, node) = (child.cid, nodes.node(&child.cid)?);
                stack.push(Frame { cid, node, next: 0, above, prefix });
            }
        }
    }
    Ok(out)
}

/// All entries of a subtree whose names have the same hash, sorted by name.
fn collided<S: NodeSource + ?Sized>(nodes: &S, root: &Cid, hash: u64) -> Result<Vec<Entry>, S::Error> {
    let mut entries = Vec::new();
    let mut stack: Vec<(Cid, Vec<u16>)> = vec![(*root, Vec::new())];
    while let Some((cid, path)) = stack.pop() {
        let node = nodes.node(&cid)?;
        let DirNode::Shard(shard) = &*node else { return Err(damaged(&cid, Malformed::Shard).into()) };
        if shard.fanout != HAMT_FANOUT || shard.slots.is_empty() {
            return Err(damaged(&cid, Malformed::Shard).into());
        }
        if path.len() + 8 >= SHARD_DEPTH_MAX {
            return Err(damaged(&cid, Malformed::TooDeep).into());
        }
        for (index, slot) in &shard.slots {
            let path: Vec<u16> = path.iter().copied().chain([*index]).collect();
            match slot {
                Slot::Child(child) => stack.push((child.cid, path)),
                Slot::Entry(entry) => {
                    let is_here =
                        path.iter().zip(8..).all(|(i, depth)| slot_index(&entry.name, depth) == Some(*i));
                    if name_hash(&entry.name) != hash || !is_here {
                        return Err(damaged(&cid, Malformed::Misplaced).into());
                    }
                    entries.push(entry.clone());
                }
            }
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}
