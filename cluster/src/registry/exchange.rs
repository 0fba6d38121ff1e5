//! How two registries become equal: hello, what you lack, until nothing is left.
//!
//! ```text
//! A -> B   Hello { vector, digest }
//! B -> A   Deltas { spans, entries, more, hello of B }     A merges, asks again while `more`
//! A -> B   Deltas { .. }                                   what B's hello shows that B lacks
//! B -> A   Done
//! ```
//!
//! What always holds: a span (author, after, to) is sent with every kept entry of that author in it, so the receiver may
//! move its vector to `to`; a span is used only if it joins what the receiver has. When vectors are equal and digests
//! are not (a host lost its disk and began to count anew, or gossip brought news out of order), everything is sent, in
//! the order of keys.

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use crate::bounded::{DecodeError, decode_versioned, encode_versioned, list, map};
use crate::identity::PeerId;
use crate::registry::entry::{Entry, EntryError, Key};
use crate::registry::{Outcome, Registry, RegistryDigest, Vector};

const VERSION: u8 = 1;
/// Largest gossip message: what [`Registry::pack_news`] packs stays under it.
pub const GOSSIP_BYTES_MAX: usize = 60_000;
/// Largest answer in an exchange.
pub const EXCHANGE_BYTES_MAX: usize = 1_000_000;
const AUTHORS_MAX: usize = 4096;
const ENTRIES_MAX: usize = 16_384;
/// Room for the version, the counts and the flag of a message.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
/// An author and two numbers.
const SPAN_BYTES_MAX: usize = 32 + 10 + 10;

/// How much a host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Per author.
    #[serde(deserialize_with = "map::<_, _, _, AUTHORS_MAX>")]
    pub vector: Vector,
    /// Over everything.
    pub digest: RegistryDigest,
    /// If everything is being sent: the last key that came.
    pub resume: Option<Key>,
}

/// A run of one author's sequence numbers that a [`Deltas`] covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The author.
    pub author: PeerId,
    /// The number before the first one covered.
    pub after: u64,
    /// The last number covered.
    pub to: u64,
}

/// What the other one lacks, or the first part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deltas {
    /// What is covered; one span an author.
    #[serde(deserialize_with = "list::<_, _, AUTHORS_MAX>")]
    pub spans: Vec<Span>,
    /// Every kept entry of the spans.
    #[serde(deserialize_with = "list::<_, _, ENTRIES_MAX>")]
    pub entries: Vec<Entry>,
    /// Whether there is more: merge, then say [`Merged::next`].
    pub more: bool,
    /// How much the sender has, so that it can be sent what it lacks.
    pub hello: Option<Hello>,
}

/// A message of the registry protocol, or of gossip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryMessage {
    /// What do I lack?
    Hello(Hello),
    /// This.
    Deltas(Deltas),
    /// News, by gossip: entries as they are written.
    News(#[serde(deserialize_with = "list::<_, _, ENTRIES_MAX>")] Vec<Entry>),
    /// Deltas were taken.
    Done,
}

impl RegistryMessage {
    /// The bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(VERSION, self)
    }

    /// Reads what [`RegistryMessage::encode`] wrote.
    ///
    /// # Errors
    /// Malformed, larger than 1 MB, or from a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_versioned("registry message", VERSION, EXCHANGE_BYTES_MAX + AUTHORS_MAX * 64, bytes)
    }
}

/// What merging a message did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// Entries that are the newest now: write them to disk, act on them.
    pub taken: Vec<Entry>,
    /// Entries that broke a rule: log them.
    pub refused: Vec<EntryError>,
    /// Whether [`Registry::vector`] moved.
    pub is_vector_moved: bool,
    /// What to say to the sender to get the rest, if there is more.
    pub next: Option<Hello>,
}

impl Registry {
    /// How much is here.
    pub fn hello(&self) -> Hello {
        Hello { vector: self.vector.clone(), digest: self.digest, resume: None }
    }

    /// What the host that said `hello` lacks, at most about `bytes_max` bytes (at least one entry); None if nothing.
    pub fn deltas_for(&self, hello: &Hello, bytes_max: usize) -> Option<Deltas> {
        if hello.vector == self.vector && hello.digest != self.digest {
            return self.everything_after(hello.resume.as_ref(), bytes_max);
        }
        let theirs = &hello.vector;
        let mut deltas = Deltas { spans: Vec::new(), entries: Vec::new(), more: false, hello: None };
        let mut room = bytes_max.saturating_sub(MESSAGE_OVERHEAD_BYTES);
        for (author, to) in &self.vector {
            let after = theirs.get(author).copied().unwrap_or(0);
            if after >= *to {
                continue;
            }
            let span =
                self.pack_span(Span { author: *author, after, to: *to }, &mut deltas.entries, &mut room);
            deltas.spans.extend((span.to > after).then_some(span));
            if span.to < *to || deltas.spans.len() == AUTHORS_MAX {
                deltas.more = true;
                break;
            }
        }
        (!deltas.spans.is_empty()).then_some(deltas)
    }

    /// The entries after a key, in the order of keys, without spans.
    fn everything_after(&self, resume: Option<&Key>, bytes_max: usize) -> Option<Deltas> {
        let start = resume.map_or(Bound::Unbounded, Bound::Excluded);
        let mut room = bytes_max.saturating_sub(MESSAGE_OVERHEAD_BYTES);
        let mut deltas = Deltas { spans: Vec::new(), entries: Vec::new(), more: false, hello: None };
        for entry in self.entries.range((start, Bound::Unbounded)).map(|(_, entry)| entry) {
            let bytes = entry.encode().len();
            if (bytes > room && !deltas.entries.is_empty()) || deltas.entries.len() == ENTRIES_MAX {
                deltas.more = true;
                break;
            }
            room = room.saturating_sub(bytes);
            deltas.entries.push(entry.clone());
        }
        (!deltas.entries.is_empty()).then_some(deltas)
    }

    /// Adds the entries of `wanted` while there is room; the part that is covered.
    fn pack_span(&self, wanted: Span, entries: &mut Vec<Entry>, room: &mut usize) -> Span {
        *room = room.saturating_sub(SPAN_BYTES_MAX);
        let mut to = wanted.after;
        let keys = self.by_author.range((wanted.author, wanted.after + 1)..=(wanted.author, wanted.to));
        for ((_, sequence), key) in keys {
            let Some(entry) = self.entries.get(key) else { continue };
            let bytes = entry.encode().len();
            if (bytes > *room && !entries.is_empty()) || entries.len() == ENTRIES_MAX {
                return Span { to, ..wanted };
            }
            *room = room.saturating_sub(bytes);
            entries.push(entry.clone());
            to = *sequence;
        }
        wanted
    }

    /// Takes what another host sent.
    pub fn merge_deltas(&mut self, deltas: Deltas, now_unix_ms: u64) -> Merged {
        let before = self.vector.clone();
        let mut merged = Merged::default();
        let resume = deltas.entries.last().map(|entry| entry.key.clone()).filter(|_| deltas.spans.is_empty());
        let mut spans = deltas.spans;
        for entry in deltas.entries {
            let (author, sequence) = (entry.author, entry.sequence);
            if let Some(EntryError::Drift(_)) = self.merge_one(entry, now_unix_ms, &mut merged) {
                // It may be acceptable later: let the next hello ask for it again.
                for span in spans.iter_mut().filter(|span| span.author == author) {
                    span.to = span.to.min(sequence.saturating_sub(1));
                }
            }
        }
        for span in spans {
            let here = self.vector.get(&span.author).copied().unwrap_or(0);
            if span.after <= here && span.to > here {
                self.advance(span.author, span.to);
            }
        }
        merged.is_vector_moved = before != self.vector;
        // Without progress of either kind, asking again would bring the same again.
        let has_progress = resume.is_some() || merged.is_vector_moved;
        merged.next = (deltas.more && has_progress).then(|| Hello { resume, ..self.hello() });
        merged
    }

    /// Takes news that came by gossip.
    pub fn merge_news(&mut self, news: Vec<Entry>, now_unix_ms: u64) -> Merged {
        let before = self.vector.clone();
        let mut merged = Merged::default();
        for entry in news {
            self.merge_one(entry, now_unix_ms, &mut merged);
        }
        merged.is_vector_moved = before != self.vector;
        merged
    }

    fn merge_one(&mut self, entry: Entry, now_unix_ms: u64, merged: &mut Merged) -> Option<EntryError> {
        match self.merge(entry.clone(), now_unix_ms) {
            Outcome::Taken => merged.taken.push(entry),
            Outcome::Known => {}
            Outcome::Refused(error) => {
                merged.refused.push(error.clone());
                return Some(error);
            }
        }
        None
    }

    /// The answer to a request of the registry protocol, and what to write to disk before it is sent.
    pub fn answer(&mut self, request: RegistryMessage, now_unix_ms: u64) -> (RegistryMessage, Merged) {
        match request {
            RegistryMessage::Hello(hello) => {
                let empty = Deltas { spans: Vec::new(), entries: Vec::new(), more: false, hello: None };
                let mut deltas = self.deltas_for(&hello, EXCHANGE_BYTES_MAX).unwrap_or(empty);
                deltas.hello = Some(self.hello());
                (RegistryMessage::Deltas(deltas), Merged::default())
            }
            RegistryMessage::Deltas(deltas) => {
                (RegistryMessage::Done, self.merge_deltas(deltas, now_unix_ms))
            }
            RegistryMessage::News(news) => (RegistryMessage::Done, self.merge_news(news, now_unix_ms)),
            RegistryMessage::Done => (RegistryMessage::Done, Merged::default()),
        }
    }

    /// Packs entries for gossip: encoded messages under 60 KB, in order.
    pub fn pack_news(entries: &[Entry]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let mut batch: Vec<Entry> = Vec::new();
        let mut bytes = MESSAGE_OVERHEAD_BYTES;
        for entry in entries {
            let entry_bytes = entry.encode().len();
            if bytes + entry_bytes > GOSSIP_BYTES_MAX && !batch.is_empty() {
                messages.push(RegistryMessage::News(std::mem::take(&mut batch)).encode());
                bytes = MESSAGE_OVERHEAD_BYTES;
            }
            bytes += entry_bytes;
            batch.push(entry.clone());
        }
        if !batch.is_empty() {
            messages.push(RegistryMessage::News(batch).encode());
        }
        messages
    }
}
