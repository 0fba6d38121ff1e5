//! The changed names of one directory: what lies over its base content.
//!
//! What always holds:
//! * a slot exists for every name that differs from the base, or that a base being derived may hold;
//! * names are ordered by their hash, then by their bytes, as in the tree's directories.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::Bound;

use remora_vfs::attr::Ino;

/// What became of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The name.
    pub name: Box<[u8]>,
    /// The inode it leads to; `None`: it is gone.
    ino: Option<NonZeroU64>,
    /// The newest commit that touched it.
    pub seq: u64,
    /// Whether no base has the name: not the one below, nor one that was being derived when it was made.
    is_fresh: bool,
}

impl Slot {
    /// The inode it leads to; `None`: it is gone.
    #[must_use]
    pub fn ino(&self) -> Option<Ino> {
        self.ino.map(NonZeroU64::get)
    }
}

/// Slots whose names have one hash. Two is what a hundred million names may bring; more is an attack.
#[derive(Clone, Debug)]
enum Bucket {
    One(Slot),
    Many(Vec<Slot>),
}

impl Bucket {
    fn slots(&self) -> &[Slot] {
        match self {
            Bucket::One(slot) => std::slice::from_ref(slot),
            Bucket::Many(slots) => slots,
        }
    }

    fn slots_mut(&mut self) -> &mut [Slot] {
        match self {
            Bucket::One(slot) => std::slice::from_mut(slot),
            Bucket::Many(slots) => slots,
        }
    }
}

/// The changed names of a directory.
#[derive(Clone, Debug, Default)]
pub struct DirOverlay {
    buckets: BTreeMap<u64, Bucket>,
}

impl DirOverlay {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// How many hashes have changed names: as good as the number of names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// The slot of a name; `None`: as in the base.
    #[must_use]
    pub fn get(&self, hash: u64, name: &[u8]) -> Option<&Slot> {
        self.buckets.get(&hash)?.slots().iter().find(|slot| *slot.name == *name)
    }

    /// Lets a name lead to an inode. `frozen` is the newest commit of the base that is being derived, or 0;
    /// `is_in_base` whether the base below has the name, which matters only while the overlay has no slot for it.
    pub fn set(&mut self, hash: u64, name: &[u8], ino: Ino, seq: u64, frozen: u64, is_in_base: bool) {
        if let Some(slot) = self.get_mut(hash, name) {
            slot.is_fresh &= slot.seq > frozen;
            slot.ino = NonZeroU64::new(ino);
            slot.seq = seq;
            return;
        }
        self.add(hash, Slot { name: name.into(), ino: NonZeroU64::new(ino), seq, is_fresh: !is_in_base });
    }

    /// Takes a name away. `frozen` is the newest commit of the base that is being derived, or 0.
    pub fn clear(&mut self, hash: u64, name: &[u8], seq: u64, frozen: u64) {
        let Some(slot) = self.get_mut(hash, name) else {
            self.add(hash, Slot { name: name.into(), ino: None, seq, is_fresh: false });
            return;
        };
        if slot.is_fresh && slot.seq > frozen {
            self.remove(hash, name);
        } else {
            slot.ino = None;
            slot.seq = seq;
            slot.is_fresh = false;
        }
    }

    fn get_mut(&mut self, hash: u64, name: &[u8]) -> Option<&mut Slot> {
        self.buckets.get_mut(&hash)?.slots_mut().iter_mut().find(|slot| *slot.name == *name)
    }

    fn add(&mut self, hash: u64, slot: Slot) {
        match self.buckets.remove(&hash) {
            None => {
                self.buckets.insert(hash, Bucket::One(slot));
            }
            Some(bucket) => {
                let mut slots = match bucket {
                    Bucket::One(first) => vec![first],
                    Bucket::Many(slots) => slots,
                };
                let at = slots.partition_point(|other| other.name < slot.name);
                slots.insert(at, slot);
                self.buckets.insert(hash, Bucket::Many(slots));
            }
        }
    }

    fn remove(&mut self, hash: u64, name: &[u8]) {
        if let Some(Bucket::Many(slots)) = self.buckets.get_mut(&hash) {
            slots.retain(|slot| *slot.name != *name);
            if !slots.is_empty() {
                return;
            }
        }
        self.buckets.remove(&hash);
    }

    /// All slots with a hash of at least `from`, in order.
    pub fn iter_from(&self, from: u64) -> impl Iterator<Item = (u64, &Slot)> {
        self.buckets
            .range((Bound::Included(from), Bound::Unbounded))
            .flat_map(|(hash, bucket)| bucket.slots().iter().map(move |slot| (*hash, slot)))
    }

    /// Forgets what `upto` and older commits changed, for the base has it now, among `max` hashes from `from` on. Answers
    /// where to go on; `None`: there are no more.
    pub fn forget_upto(&mut self, upto: u64, from: u64, max: usize) -> Option<u64> {
        let (mut old, mut last, mut n_seen) = (Vec::new(), from, 0);
        for (hash, bucket) in self.buckets.range(from..).take(max) {
            (last, n_seen) = (*hash, n_seen + 1);
            if bucket.slots().iter().any(|slot| slot.seq <= upto) {
                old.push(*hash);
            }
        }
        for hash in old {
            if let Some(Bucket::Many(slots)) = self.buckets.get_mut(&hash) {
                slots.retain(|slot| slot.seq > upto);
                if !slots.is_empty() {
                    continue;
                }
            }
            self.buckets.remove(&hash);
        }
        if n_seen < max { None } else { last.checked_add(1) }
    }
}
