//! The HAMT of a large directory: the hash of a name, and shards in memory while they change.
//!
//! What always holds:
//! * the shape depends on the set of names alone: an entry sits in the highest slot it has for itself, so a shard below the
//!   root never holds just one entry;
//! * slots are in the order of the hash, read from its most significant bit;
//! * names whose 64-bit hashes are equal go on by their sha2-256. Such names can be made on purpose; they cost depth, not the directory.
//!   Other implementations list them, but do not find them by name.

use std::collections::BTreeMap;

use bytes::Bytes;
use cid::Cid;
use sha2::{Digest, Sha256};

use crate::block::BlockSink;
use crate::dagpb;
use crate::dir_node::{DirNode, Slot};
use crate::directory::{DirRoot, Entry, Measure};
use crate::errors::{Malformed, ReadError, WriteError};
use crate::posix::{Row, encode_rows};
use crate::profile::{HAMT_BYTES, HAMT_FANOUT, Profile};
use crate::unixfs::{Data, HAMT_MURMUR3, NodeType};

/// How deep shards can be: 8 levels by the hash, 32 by the digest.
pub(crate) const SHARD_DEPTH_MAX: usize = 40;

/// The first 64 bits of murmur3-x64-128 of a name, as the big-endian number whose leading bits choose the slots.
///
/// Directory order is the order of this number, then of the name. Not a secret hash: collisions can be made.
#[must_use]
pub fn name_hash(name: &[u8]) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mix1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let (mut h1, mut h2) = (0u64, 0u64);
    let mut blocks = name.chunks_exact(16);
    for block in &mut blocks {
        let (k1, k2) = (little_endian(&block[..8]), little_endian(&block[8..]));
        h1 = (h1 ^ mix1(k1)).rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 = (h2 ^ mix2(k2)).rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let tail = blocks.remainder();
    let (low, high) = tail.split_at(tail.len().min(8));
    h1 ^= mix1(little_endian(low));
    h2 ^= mix2(little_endian(high));
    h1 ^= name.len() as u64;
    h2 ^= name.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    // The first half of the 128 bits; nobody uses the second.
    avalanche(h1).wrapping_add(avalanche(h2))
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn avalanche(mut k: u64) -> u64 {
    k ^= k >> 33;
    k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
    k ^= k >> 33;
    k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ (k >> 33)
}

/// The slot of `name` in a shard of fan-out 256 at this depth; `None` below [`SHARD_DEPTH_MAX`].
pub(crate) fn slot_index(name: &[u8], depth: usize) -> Option<u16> {
    let byte = match depth {
        0..8 => name_hash(name).to_be_bytes().get(depth).copied(),
        8..SHARD_DEPTH_MAX => Sha256::digest(name).get(depth - 8).copied(),
        _ => None,
    };
    byte.map(u16::from)
}

/// What a shard in memory reads from: the node of a stored shard.
pub(crate) type Load<'a> = dyn Fn(&Cid) -> Result<DirNode, ReadError> + 'a;

/// A shard while it changes; what was not touched stays in its block.
#[derive(Default)]
pub(crate) struct MemShard {
    slots: BTreeMap<u16, MemSlot>,
    /// Where it is stored, as long as nothing in it changed.
    stored: Option<DirRoot>,
}

/// Small, because a change of one slot moves others.
enum MemSlot {
    Entry(Box<Entry>),
    Stored(Box<DirRoot>),
    Shard(Box<MemShard>),
}

impl MemShard {
    /// A shard as it is stored at `depth`.
    pub(crate) fn of_node(root: DirRoot, node: &DirNode, depth: usize) -> Result<MemShard, ReadError> {
        let DirNode::Shard(shard) = node else {
            return Err(ReadError::damaged(&root.cid, Malformed::Shard));
        };
        if shard.fanout() != HAMT_FANOUT {
            return Err(ReadError::damaged(&root.cid, Malformed::Fanout(shard.fanout())));
        }
        let mut slots = BTreeMap::new();
        for (index, slot) in shard.slots() {
            let slot = match slot {
                Slot::Entry(entry) if slot_index(&entry.name, depth) != Some(index) => {
                    return Err(ReadError::damaged(&root.cid, Malformed::Misplaced));
                }
                Slot::Entry(entry) => MemSlot::Entry(Box::new(entry)),
                Slot::Child(child) => MemSlot::Stored(Box::new(child)),
            };
            slots.insert(index, slot);
        }
        Ok(MemShard { slots, stored: Some(root) })
    }

    fn load(load: &Load<'_>, root: DirRoot, depth: usize) -> Result<MemShard, WriteError> {
        if depth >= SHARD_DEPTH_MAX {
            return Err(ReadError::damaged(&root.cid, Malformed::TooDeep).into());
        }
        Ok(MemShard::of_node(root, &load(&root.cid)?, depth)?)
    }

    /// Puts an entry in and returns the one of that name that was there.
    pub(crate) fn set(
        &mut self,
        load: &Load<'_>,
        depth: usize,
        entry: Entry,
    ) -> Result<Option<Entry>, WriteError> {
        let index = slot_index(&entry.name, depth).ok_or(WriteError::TooDeep)?;
        let (slot, before) = match self.slots.remove(&index) {
            None => (MemSlot::Entry(Box::new(entry)), None),
            Some(MemSlot::Entry(before)) if before.name == entry.name => {
                if *before == entry {
                    self.slots.insert(index, MemSlot::Entry(before));
                    return Ok(Some(entry));
                }
                (MemSlot::Entry(Box::new(entry)), Some(*before))
            }
            Some(MemSlot::Entry(other)) => {
                let mut child = MemShard::default();
                child.set(load, depth + 1, *other)?;
                child.set(load, depth + 1, entry)?;
                (MemSlot::Shard(Box::new(child)), None)
            }
            Some(MemSlot::Stored(root)) => {
                let mut child = MemShard::load(load, *root, depth + 1)?;
                let before = child.set(load, depth + 1, entry)?;
                (MemSlot::Shard(Box::new(child)), before)
            }
            Some(MemSlot::Shard(mut child)) => {
                let before = child.set(load, depth + 1, entry)?;
                (MemSlot::Shard(child), before)
            }
        };
        if !matches!(&slot, MemSlot::Shard(child) if child.stored.is_some()) {
            self.stored = None;
        }
        self.slots.insert(index, slot);
        Ok(before)
    }

    /// Takes an entry out and returns it.
    pub(crate) fn remove(
        &mut self,
        load: &Load<'_>,
        depth: usize,
        name: &[u8],
    ) -> Result<Option<Entry>, WriteError> {
        let Some(index) = slot_index(name, depth) else { return Ok(None) };
        let mut child = match self.slots.remove(&index) {
            None => return Ok(None),
            Some(MemSlot::Entry(entry)) if entry.name == name => {
                self.stored = None;
                return Ok(Some(*entry));
            }
            Some(other @ MemSlot::Entry(_)) => {
                self.slots.insert(index, other);
                return Ok(None);
            }
            Some(MemSlot::Stored(root)) => Box::new(MemShard::load(load, *root, depth + 1)?),
            Some(MemSlot::Shard(child)) => child,
        };
        let removed = child.remove(load, depth + 1, name)?;
        if removed.is_some() {
            self.stored = None;
        }
        match child.into_only_entry() {
            Ok(Some(entry)) => {
                self.slots.insert(index, MemSlot::Entry(Box::new(entry)));
            }
            Ok(None) => {}
            Err(child) => {
                self.slots.insert(index, MemSlot::Shard(child));
            }
        }
        Ok(removed)
    }

    /// The one entry (or none at all) of a shard that should not be one any more; else the shard.
    #[allow(clippy::type_complexity)]
    fn into_only_entry(mut self: Box<Self>) -> Result<Option<Entry>, Box<MemShard>> {
        let is_lonely =
            self.slots.len() == 1 && matches!(self.slots.values().next(), Some(MemSlot::Entry(_)));
        if self.stored.is_some() || !(is_lonely || self.slots.is_empty()) {
            return Err(self);
        }
        Ok(match self.slots.pop_first() {
            Some((_, MemSlot::Entry(entry))) => Some(*entry),
            _ => None,
        })
    }

    /// All entries, if together they are small enough for a directory in one block.
    ///
    /// Stops reading as soon as they are not.
    pub(crate) fn small_entries(
        &self,
        load: &Load<'_>,
        measure: Measure,
        depth: usize,
    ) -> Result<Option<Vec<Entry>>, WriteError> {
        let mut entries = Vec::new();
        let mut bytes = measure.empty();
        let is_small = self.collect(load, depth, &mut |entry| {
            bytes += measure.entry(entry);
            entries.push(entry.clone());
            bytes <= HAMT_BYTES
        })?;
        Ok(is_small.then_some(entries))
    }

    /// Hands every entry to `each` until it has enough; says whether it never had.
    pub(crate) fn collect(
        &self,
        load: &Load<'_>,
        depth: usize,
        each: &mut dyn FnMut(&Entry) -> bool,
    ) -> Result<bool, WriteError> {
        for slot in self.slots.values() {
            let goes_on = match slot {
                MemSlot::Entry(entry) => each(entry),
                MemSlot::Shard(child) => child.collect(load, depth + 1, each)?,
                MemSlot::Stored(root) => {
                    MemShard::load(load, **root, depth + 1)?.collect(load, depth + 1, each)?
                }
            };
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the shard in a slot, in which nothing will change any more, and lets go of it.
    pub(crate) fn finish_slot(
        &mut self,
        index: u16,
        profile: Profile,
        sink: &dyn BlockSink,
    ) -> Result<(), WriteError> {
        if let Some(MemSlot::Shard(child)) = self.slots.get(&index) {
            let root = child.write(profile, sink)?;
            self.slots.insert(index, MemSlot::Stored(Box::new(root)));
        }
        Ok(())
    }

    /// Writes the shards that changed.
    pub(crate) fn write(&self, profile: Profile, sink: &dyn BlockSink) -> Result<DirRoot, WriteError> {
        if let Some(stored) = self.stored {
            return Ok(stored);
        }
        let mut bits = [0u8; 32];
        let (mut links, mut name) = (Vec::new(), Vec::new());
        let mut rows: Vec<Option<&Row>> = Vec::new();
        let mut below = 0u64;
        for (index, slot) in &self.slots {
            let place = usize::from(*index);
            bits[31 - place / 8] |= 1 << (place % 8);
            let (target, suffix): (DirRoot, &[u8]) = match slot {
                MemSlot::Entry(entry) => {
                    rows.push(entry.row.as_ref());
                    (DirRoot { cid: entry.cid, tsize: entry.tsize }, &entry.name)
                }
                MemSlot::Stored(root) => (**root, b""),
                MemSlot::Shard(child) => (child.write(profile, sink)?, b""),
            };
            name.clear();
            name.extend([index >> 4 & 0xf, index & 0xf].map(|digit| b"0123456789ABCDEF"[usize::from(digit)]));
            name.extend_from_slice(suffix);
            dagpb::put_link(&mut links, &target.cid, &name, target.tsize);
            below = below.saturating_add(target.tsize);
        }
        let n_zero = bits.iter().take_while(|byte| **byte == 0).count();
        let message = Data {
            data: Some(Bytes::copy_from_slice(&bits[n_zero..])),
            hash_type: Some(HAMT_MURMUR3),
            fanout: Some(HAMT_FANOUT),
            ..Data::of(NodeType::HamtShard)
        };
        crate::directory::put_dir_block(profile, links, message, encode_rows(&rows)?, below, sink)
    }
}
