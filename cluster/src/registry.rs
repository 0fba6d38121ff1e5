//! What all members know: who belongs, where they are, which volumes exist. A last-writer-wins map that any two hosts can
//! merge in any order, any number of times, and end up equal.
//!
//! Owns the entries, this host's clock and sequence number, and the vector that says how much of every author is here.
//! What always holds:
//!
//! * for every key the entry with the highest (time, author, sequence, value) is kept, whatever order they came in;
//! * an entry is taken only if its author may write its key, and papers only with the cluster key's signature;
//! * `vector[author] = n` means that everything `author` wrote up to its n-th entry is here, or was superseded.
//!
//! It never decides who writes a volume; `holder` entries are hints. Durability is the caller's: an entry returned by
//! [`Registry::put`] or taken by [`Registry::merge`] must be on disk before anybody is told of it.

pub mod catalogue;
pub mod entry;
pub mod exchange;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::bounded::{DecodeError, decode_versioned, encode_versioned};
use crate::hlc::HybridClock;
use crate::identity::{ClusterId, PeerId, VolumeId};
use crate::registry::entry::{Entry, EntryError, Key};
use crate::volume_record::VolumeRecord;

const VERSION: u8 = 1;
/// Largest frame that [`Registry::frames`] gives, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
const EARLY_PER_AUTHOR_MAX: usize = 4096;

/// Per author, how many of its entries are here without a gap.
pub type Vector = BTreeMap<PeerId, u64>;

/// A sum over all kept entries: equal registries have equal digests. Not proof against a hostile member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryDigest(pub [u64; 4]);

impl RegistryDigest {
    fn of(entry: &Entry) -> Self {
        let hash = Sha256::digest(entry.encode());
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(hash.chunks_exact(8)) {
            *lane = bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        }
        RegistryDigest(lanes)
    }

    fn add(&mut self, entry: &Entry) {
        for (lane, other) in self.0.iter_mut().zip(Self::of(entry).0) {
            *lane = lane.wrapping_add(other);
        }
    }

    fn remove(&mut self, entry: &Entry) {
        for (lane, other) in self.0.iter_mut().zip(Self::of(entry).0) {
            *lane = lane.wrapping_sub(other);
        }
    }
}

/// What became of an entry from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is the newest for its key now: write it to disk, act on it, tell others.
    Taken,
    /// It is known, or something newer is.
    Known,
    /// It breaks a rule and is dropped.
    Refused(EntryError),
}

/// One frame of the registry on disk.
#[derive(Debug, Serialize, Deserialize)]
enum Frame {
    Entry(Entry),
    Vector(Vector),
}

/// The registry of one host.
#[derive(Debug, Clone)]
pub struct Registry {
    me: PeerId,
    cluster: ClusterId,
    clock: HybridClock,
    entries: BTreeMap<Key, Entry>,
    by_author: BTreeMap<(PeerId, u64), Key>,
    vector: Vector,
    /// Sequence numbers that came before their predecessors: merged, but no part of the vector yet.
    early: BTreeMap<PeerId, BTreeSet<u64>>,
    digest: RegistryDigest,
    /// Volumes by the name in their record, removed ones included.
    names: BTreeMap<String, BTreeSet<VolumeId>>,
}

impl Registry {
    /// An empty registry of `me` in `cluster`.
    pub fn new(me: PeerId, cluster: ClusterId) -> Self {
        Registry {
            me,
            cluster,
            clock: HybridClock::default(),
            entries: BTreeMap::new(),
            by_author: BTreeMap::new(),
            vector: Vector::new(),
            early: BTreeMap::new(),
            digest: RegistryDigest::default(),
            names: BTreeMap::new(),
        }
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The host it is on.
    pub fn me(&self) -> PeerId {
        self.me
    }

    /// Writes `value` under `key` (None deletes it), newer than everything seen: [`Registry::draft`] and [`Registry::admit`] in one.
    ///
    /// # Errors
    /// Too large, or not ours to write; nothing has changed.
    pub fn put(&mut self, key: Key, value: Option<Vec<u8>>, now_unix_ms: u64) -> Result<Entry, EntryError> {
        let entry = self.draft(key, value, now_unix_ms)?;
        self.admit(entry.clone());
        Ok(entry)
    }

    /// The entry that writes `value` under `key` (None deletes it), newer than everything seen. Nothing has changed yet: write
    /// it to disk, [`Registry::admit`] it, then gossip it. An entry that did not reach the disk is forgotten, and its number is
    /// the next one's.
    ///
    /// # Errors
    /// Too large, or not ours to write.
    pub fn draft(&self, key: Key, value: Option<Vec<u8>>, now_unix_ms: u64) -> Result<Entry, EntryError> {
        let mut clock = self.clock;
        let sequence = self.next_sequence();
        let entry = Entry { key, hlc: clock.tick(now_unix_ms), author: self.me, sequence, value };
        entry.check(&self.cluster)?;
        if let Some(kept) = self.entries.get(&entry.key).filter(|kept| kept.is_final()) {
            return Err(EntryError::Final { key: kept.key.clone() });
        }
        Ok(entry)
    }

    /// Takes the newest draft, which is on disk now.
    pub fn admit(&mut self, entry: Entry) {
        self.clock.restore(entry.hlc);
        self.note_sequence(self.me, entry.sequence);
        self.insert(entry);
    }

    /// Takes an entry from elsewhere.
    pub fn merge(&mut self, entry: Entry, now_unix_ms: u64) -> Outcome {
        if let Err(error) = entry.check(&self.cluster) {
            return Outcome::Refused(error);
        }
        if let Err(drift) = self.clock.observe(entry.hlc, now_unix_ms) {
            return Outcome::Refused(EntryError::Drift(drift));
        }
        self.note_sequence(entry.author, entry.sequence);
        if self.insert(entry) { Outcome::Taken } else { Outcome::Known }
    }

    /// The kept entry of a key; a deleted one has no value.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All kept entries, in the order of their keys, deleted ones included.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// How much of every author is here.
    pub fn vector(&self) -> &Vector {
        &self.vector
    }

    /// The sum over all kept entries.
    pub fn digest(&self) -> RegistryDigest {
        self.digest
    }

    /// Everything, as frames for a snapshot on disk; [`Registry::restore`] reads them in this order.
    pub fn frames(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let vector = encode_versioned(VERSION, &Frame::Vector(self.vector.clone()));
        let entries = self.entries.values().map(Registry::frame);
        std::iter::once(vector).chain(entries)
    }

    /// One entry as a frame for the disk.
    pub fn frame(entry: &Entry) -> Vec<u8> {
        encode_versioned(VERSION, &Frame::Entry(entry.clone()))
    }

    /// Takes back a frame from our own disk; the clock drift of the past is not judged.
    ///
    /// # Errors
    /// The frame does not decode, or its entry breaks a rule. The registry is as before; anti-entropy brings back what
    /// was lost.
    pub fn restore(&mut self, frame: &[u8]) -> Result<(), RestoreError> {
        match decode_versioned("registry frame", VERSION, FRAME_BYTES_MAX, frame)? {
            Frame::Vector(vector) => {
                for (author, sequence) in vector {
                    self.advance(author, sequence);
                }
            }
            Frame::Entry(entry) => {
                entry.check(&self.cluster)?;
                self.clock.restore(entry.hlc);
                self.note_sequence(entry.author, entry.sequence);
                self.insert(entry);
            }
        }
        Ok(())
    }

    fn next_sequence(&self) -> u64 {
        let early = self.early.get(&self.me).and_then(|early| early.last().copied());
        let known = self.vector.get(&self.me).copied().max(early).unwrap_or(0);
        known.saturating_add(1)
    }

    /// Keeps the entry if it wins; whether it did.
    fn insert(&mut self, entry: Entry) -> bool {
        if let Some(kept) = self.entries.get(&entry.key) {
            if !entry.wins_over(kept) {
                return false;
            }
            self.digest.remove(kept);
            self.by_author.remove(&(kept.author, kept.sequence));
        }
        self.digest.add(&entry);
        self.by_author.insert((entry.author, entry.sequence), entry.key.clone());
        self.note_name(&entry);
        self.entries.insert(entry.key.clone(), entry);
        true
    }

    /// Puts a volume under the name that its new entry gives it.
    fn note_name(&mut self, entry: &Entry) {
        let Key::Volume(id) = entry.key else { return };
        if let Some(before) = self.volume(&id)
            && let Some(ids) = self.names.get_mut(&before.name)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.names.remove(&before.name);
            }
        }
        let record = entry.value.as_deref().and_then(|value| VolumeRecord::decode(value).ok());
        if let Some(record) = record {
            self.names.entry(record.name).or_default().insert(id);
        }
    }

    /// Counts an entry of `author`: the vector moves over it and over those that came early.
    fn note_sequence(&mut self, author: PeerId, sequence: u64) {
        let here = self.vector.get(&author).copied().unwrap_or(0);
        if sequence <= here {
            return;
        }
        let early = self.early.entry(author).or_default();
        early.insert(sequence);
        if early.len() > EARLY_PER_AUTHOR_MAX {
            // Forgetting one only means that it is sent once more.
            early.pop_last();
        }
        self.advance(author, here);
    }

    /// Everything of `author` up to `sequence` is here.
    fn advance(&mut self, author: PeerId, sequence: u64) {
        let mut here = self.vector.get(&author).copied().unwrap_or(0).max(sequence);
        if let Some(early) = self.early.get_mut(&author) {
            *early = early.split_off(&here.saturating_add(1));
            while early.first() == here.checked_add(1).as_ref() {
                early.pop_first();
                here += 1;
            }
            if early.is_empty() {
                self.early.remove(&author);
            }
        }
        if here > 0 {
            self.vector.insert(author, here);
        }
    }
}

/// Why a frame of the registry on disk was not taken back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It decodes and breaks a rule.
    #[error(transparent)]
    Entry(#[from] EntryError),
}
