//! Finding and listing entries, free of IO: nodes come from a [`NodeSource`], whose errors are passed on.
//!
//! The order of a listing is that of `(name_hash(name), name)`, for small and large directories alike, so a position in it
//! stays good while entries come and go and while a directory changes its shape.

use std::sync::Arc;

use cid::Cid;

use crate::dir_node::{BasicNode, DirNode, ShardNode, Slot};
use crate::directory::Entry;
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
            DirNode::Basic(node) if depth == 0 => return Ok(node.find(hash, name)),
            DirNode::Shard(shard) if fanout.is_none_or(|fanout| fanout == shard.fanout()) => shard,
            _ => return Err(damaged(&cid, Malformed::Shard).into()),
        };
        fanout = Some(shard.fanout());
        let index = index_at(name, hash, shard, depth).ok_or(damaged(&cid, Malformed::TooDeep))?;
        match shard.slot(index) {
            Some(Slot::Entry(entry)) if entry.name == name => return Ok(Some(entry)),
            Some(Slot::Child(child)) => cid = child.cid,
            _ => return Ok(None),
        }
    }
    Err(damaged(&cid, Malformed::TooDeep).into())
}

/// The slot of a name in a shard of any fan-out; `None` deeper than its hash reaches.
fn index_at(name: &[u8], hash: u64, shard: &ShardNode, depth: usize) -> Option<u16> {
    if shard.fanout() == HAMT_FANOUT {
        return slot_index(name, depth);
    }
    let above = shard.bits() * u32::try_from(depth).ok()?;
    let shift = 64u32.checked_sub(above + shard.bits())?;
    u16::try_from(hash >> shift & (shard.fanout() - 1)).ok()
}

/// A shard on the way down.
#[derive(Debug)]
struct Frame {
    cid: Cid,
    node: Arc<DirNode>,
    /// The place of the next of its slots.
    next: usize,
    /// How many bits of the hash are decided above it, and which.
    above: u32,
    prefix: u64,
}

/// A listing under way. What it has found stays when a node is missing: it goes on from there when it is run again.
#[derive(Debug)]
pub struct Listing {
    root: Cid,
    after: Option<Position>,
    has_begun: bool,
    fanout: u64,
    stack: Vec<Frame>,
    found: Vec<(u64, Entry)>,
}

impl Listing {
    /// A listing of the directory `root`: of the entries after a position, or of all.
    #[must_use]
    pub fn new(root: &Cid, after: Option<Position>) -> Listing {
        Listing { root: *root, after, has_begun: false, fanout: 0, stack: Vec::new(), found: Vec::new() }
    }

    /// Goes on until `max` entries were found, or the directory ends. Every call is given the same `max`.
    ///
    /// # Errors
    /// Those of `nodes`, and [`Damaged`] where shards do not fit together.
    pub fn run<S: NodeSource + ?Sized>(&mut self, nodes: &S, max: usize) -> Result<(), S::Error> {
        if !self.has_begun {
            let node = nodes.node(&self.root)?;
            match &*node {
                DirNode::Basic(node) => self.list_basic(node, max),
                DirNode::Shard(shard) => {
                    self.fanout = shard.fanout();
                    self.enter(self.root, Arc::clone(&node), 0, 0);
                }
            }
            self.has_begun = true;
        }
        while self.found.len() < max && !self.stack.is_empty() {
            self.step(nodes, max)?;
        }
        Ok(())
    }

    /// What was found, with the hashes of the names, in order.
    #[must_use]
    pub fn found(self) -> Vec<(u64, Entry)> {
        self.found
    }

    fn is_after(&self, hash: u64, name: &[u8]) -> bool {
        self.after.as_ref().is_none_or(|after| after.is_before(hash, name))
    }

    fn list_basic(&mut self, node: &BasicNode, max: usize) {
        let after = self.after.as_ref();
        let start = after.map_or(0, |after| node.place_of(after.hash, &after.name));
        let entries = (start..node.len()).filter_map(|place| node.entry(place));
        let is_after = |hash, name: &[u8]| after.is_none_or(|after| after.is_before(hash, name));
        self.found.extend(entries.filter(|(hash, entry)| is_after(*hash, &entry.name)).take(max));
    }

    /// Goes down into a shard, to the first slot that can hold what is looked for.
    fn enter(&mut self, cid: Cid, node: Arc<DirNode>, above: u32, prefix: u64) {
        let next = match (&*node, &self.after) {
            (DirNode::Shard(shard), Some(after)) if after.hash > prefix => {
                let below = 64u32.saturating_sub(above + shard.bits());
                let index = after.hash >> below & (shard.fanout() - 1);
                shard.place_of(u16::try_from(index).unwrap_or(u16::MAX))
            }
            _ => 0,
        };
        self.stack.push(Frame { cid, node, next, above, prefix });
    }

    /// Looks at one slot. Nothing has changed when a node is missing.
    fn step<S: NodeSource + ?Sized>(&mut self, nodes: &S, max: usize) -> Result<(), S::Error> {
        let Some(frame) = self.stack.last() else { return Ok(()) };
        let (cid, above) = (frame.cid, frame.above);
        let DirNode::Shard(shard) = &*frame.node else {
            return Err(damaged(&cid, Malformed::Shard).into());
        };
        let is_sound = shard.fanout() == self.fanout && (above == 0 || !shard.is_empty());
        let below = 64u32.checked_sub(above + shard.bits()).filter(|_| is_sound);
        let below = below.ok_or(damaged(&cid, Malformed::Shard))?;
        let above = above + shard.bits();
        let Some((index, slot)) = shard.at(frame.next) else {
            self.stack.pop();
            return Ok(());
        };
        let prefix = frame.prefix | u64::from(index) << below;
        let last = prefix | 1u64.checked_shl(below).map_or(u64::MAX, |bit| bit - 1);
        let child = match slot {
            Slot::Entry(entry) => {
                let hash = name_hash(&entry.name);
                if !(prefix..=last).contains(&hash) {
                    return Err(damaged(&cid, Malformed::Misplaced).into());
                }
                if self.is_after(hash, &entry.name) {
                    self.found.push((hash, entry));
                }
                None
            }
            Slot::Child(child) if below == 0 => {
                let mut group = collided(nodes, &child.cid, prefix)?;
                group.retain(|entry| self.is_after(prefix, &entry.name));
                let room = max - self.found.len();
                self.found.extend(group.into_iter().take(room).map(|entry| (prefix, entry)));
                None
            }
            Slot::Child(child) => Some((child.cid, nodes.node(&child.cid)?)),
        };
        if let Some(frame) = self.stack.last_mut() {
            frame.next += 1;
        }
        if let Some((cid, node)) = child {
            self.enter(cid, node, above, prefix);
        }
        Ok(())
    }
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
    let mut listing = Listing::new(root, after.cloned());
    listing.run(nodes, max)?;
    Ok(listing.found())
}

/// All entries of a subtree whose names have the same hash, sorted by name.
fn collided<S: NodeSource + ?Sized>(nodes: &S, root: &Cid, hash: u64) -> Result<Vec<Entry>, S::Error> {
    let mut entries = Vec::new();
    let mut stack: Vec<(Cid, Vec<u16>)> = vec![(*root, Vec::new())];
    while let Some((cid, path)) = stack.pop() {
        let node = nodes.node(&cid)?;
        let DirNode::Shard(shard) = &*node else { return Err(damaged(&cid, Malformed::Shard).into()) };
        if shard.fanout() != HAMT_FANOUT || shard.is_empty() {
            return Err(damaged(&cid, Malformed::Shard).into());
        }
        if path.len() + 8 >= SHARD_DEPTH_MAX {
            return Err(damaged(&cid, Malformed::TooDeep).into());
        }
        for (index, slot) in shard.slots() {
            let path: Vec<u16> = path.iter().copied().chain([index]).collect();
            match slot {
                Slot::Child(child) => stack.push((child.cid, path)),
                Slot::Entry(entry) => {
                    let is_here =
                        path.iter().zip(8..).all(|(i, depth)| slot_index(&entry.name, depth) == Some(*i));
                    if name_hash(&entry.name) != hash || !is_here {
                        return Err(damaged(&cid, Malformed::Misplaced).into());
                    }
                    entries.push(entry);
                }
            }
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}
