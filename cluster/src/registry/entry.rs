//! One entry of the registry: who said what, when, and whether that is theirs to say.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bounded::{DecodeError, decode_versioned, encode_versioned};
use crate::cert::{CertError, Revocation, SignedCertificate};
use crate::hlc::{DriftError, Hlc};
use crate::identity::{ClusterId, PeerId, VolumeId};
use crate::volume_record::VolumeRecord;

const VERSION: u8 = 1;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;
/// Longest CID in a pin's key, in bytes.
pub const PIN_CID_BYTES_MAX: usize = 128;
/// Largest encoded entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = VALUE_BYTES_MAX + 512;
const HINT_VERSION: u8 = 1;
const ADDRESSES_MAX: usize = 32;

/// What an entry is about. The order is that of the registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// A member's certificate ([`SignedCertificate`]).
    Member(PeerId),
    /// A member's exclusion ([`Revocation`]); final.
    Revoked(PeerId),
    /// Where a member listens ([`Addresses`]); written by itself only.
    Address(PeerId),
    /// A volume of the catalogue ([`VolumeRecord`]).
    Volume(VolumeId),
    /// Who writes a volume, as it says itself ([`Holder`]); a hint.
    Holder(VolumeId),
    /// A pin: the bytes of its root CID, at most 128.
    Pin(#[serde(with = "serde_bytes")] Vec<u8>),
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Member(peer) => write!(formatter, "member/{peer}"),
            Key::Revoked(peer) => write!(formatter, "revoked/{peer}"),
            Key::Address(peer) => write!(formatter, "address/{peer}"),
            Key::Volume(volume) => write!(formatter, "volume/{volume}"),
            Key::Holder(volume) => write!(formatter, "holder/{volume}"),
            Key::Pin(cid) => write!(formatter, "pin/{}", data_encoding::HEXLOWER.encode(cid)),
        }
    }
}

/// Where a member listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Multiaddr text; at most 32.
    #[serde(deserialize_with = "crate::bounded::list::<_, _, ADDRESSES_MAX>")]
    pub addresses: Vec<String>,
}

/// Who says that it writes a volume. A hint for people and for finding the writer quickly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The writer; the author of the entry. None after a release.
    pub writer: Option<PeerId>,
    /// Since when, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// The term it writes in.
    pub term: u64,
}

impl Addresses {
    /// The value of an `address` entry.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(HINT_VERSION, self)
    }

    /// Reads the value of an `address` entry.
    ///
    /// # Errors
    /// Malformed, too large, or from a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_versioned("addresses", HINT_VERSION, VALUE_BYTES_MAX, bytes)
    }
}

impl Holder {
    /// The value of a `holder` entry.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(HINT_VERSION, self)
    }

    /// Reads the value of a `holder` entry.
    ///
    /// # Errors
    /// Malformed, too large, or from a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_versioned("holder", HINT_VERSION, VALUE_BYTES_MAX, bytes)
    }
}

/// Who said what, when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is about.
    pub key: Key,
    /// When it was said.
    pub hlc: Hlc,
    /// Who said it.
    pub author: PeerId,
    /// The author's number for it: 1, 2, 3 ...
    pub sequence: u64,
    /// What was said; None deletes.
    #[serde(with = "serde_bytes")]
    pub value: Option<Vec<u8>>,
}

/// Why an entry is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Key or value is larger than allowed.
    #[error("{key}: {bytes} bytes are more than the {max} allowed")]
    TooLarge {
        /// The key.
        key: Key,
        /// The size found.
        bytes: usize,
        /// The largest allowed.
        max: usize,
    },
    /// The key belongs to somebody else.
    #[error("{key}: peer {author:?} may not write it")]
    NotTheirs {
        /// The key.
        key: Key,
        /// Who tried.
        author: PeerId,
    },
    /// The key cannot be deleted or replaced.
    #[error("{key}: it is final")]
    Final {
        /// The key.
        key: Key,
    },
    /// The certificate or revocation does not count.
    #[error("{key}: {source}")]
    Paper {
        /// The key.
        key: Key,
        /// What is wrong with it.
        source: CertError,
    },
    /// The value is not of the key's kind.
    #[error("{key}: {source}")]
    Value {
        /// The key.
        key: Key,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The volume record names another volume.
    #[error("{key}: the record is of volume {found:?}")]
    OtherVolume {
        /// The key.
        key: Key,
        /// The volume in the record.
        found: VolumeId,
    },
    /// It has no place in its author's sequence.
    #[error("{key}: sequence number 0")]
    NoSequence {
        /// The key.
        key: Key,
    },
    /// It comes from too far in the future.
    #[error(transparent)]
    Drift(DriftError),
}

impl Entry {
    /// The bytes for wire and digest.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(VERSION, self)
    }

    /// Reads what [`Entry::encode`] wrote; checks no rule.
    ///
    /// # Errors
    /// Malformed, too large, or from a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_versioned("registry entry", VERSION, ENTRY_BYTES_MAX, bytes)
    }

    /// Whether nothing can replace it.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.key, Key::Revoked(_))
    }

    /// The order of last-writer-wins: total, the same on every host. Of two exclusions of one peer the first one stays.
    pub(crate) fn wins_over(&self, kept: &Entry) -> bool {
        let order = |entry: &Entry| (entry.hlc, entry.author, entry.sequence);
        let is_later = (order(self), &self.value) > (order(kept), &kept.value);
        if self.is_final() { !is_later && self != kept } else { is_later }
    }

    /// Whether it is its author's to say.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub(crate) fn check(&self, cluster: &ClusterId) -> Result<(), EntryError> {
        let key = || self.key.clone();
        let too_large = |bytes, max| Err(EntryError::TooLarge { key: key(), bytes, max });
        let bytes = self.value.as_ref().map_or(0, Vec::len);
        if bytes > VALUE_BYTES_MAX {
            return too_large(bytes, VALUE_BYTES_MAX);
        }
        if self.sequence == 0 {
            return Err(EntryError::NoSequence { key: key() });
        }
        match (&self.key, &self.value) {
            (Key::Member(_) | Key::Revoked(_), None) => Err(EntryError::Final { key: key() }),
            (Key::Member(peer), Some(value)) => self.check_member(cluster, peer, value),
            (Key::Revoked(peer), Some(value)) => self.check_revocation(cluster, peer, value),
            (Key::Address(peer), value) => self.check_address(peer, value.as_deref()),
            (Key::Volume(volume), Some(value)) => self.check_volume(volume, value),
            (Key::Holder(_), Some(value)) => self.check_holder(value),
            (Key::Pin(cid), _) if cid.len() > PIN_CID_BYTES_MAX => too_large(cid.len(), PIN_CID_BYTES_MAX),
            (Key::Volume(_) | Key::Holder(_), None) | (Key::Pin(_), _) => Ok(()),
        }
    }

    fn value_error(&self, source: DecodeError) -> EntryError {
        EntryError::Value { key: self.key.clone(), source }
    }

    fn check_member(&self, cluster: &ClusterId, peer: &PeerId, value: &[u8]) -> Result<(), EntryError> {
        let signed = SignedCertificate::decode(value).map_err(|source| self.value_error(source))?;
        let verified = signed.verify(cluster, peer).map(|_| ());
        verified.map_err(|source| EntryError::Paper { key: self.key.clone(), source })
    }

    fn check_revocation(&self, cluster: &ClusterId, peer: &PeerId, value: &[u8]) -> Result<(), EntryError> {
        let revocation = Revocation::decode(value).map_err(|source| self.value_error(source))?;
        let verified = revocation.verify(cluster, peer);
        verified.map_err(|source| EntryError::Paper { key: self.key.clone(), source })
    }

    fn check_address(&self, peer: &PeerId, value: Option<&[u8]>) -> Result<(), EntryError> {
        if *peer != self.author {
            return Err(EntryError::NotTheirs { key: self.key.clone(), author: self.author });
        }
        if let Some(value) = value {
            Addresses::decode(value).map_err(|source| self.value_error(source))?;
        }
        Ok(())
    }

    fn check_volume(&self, volume: &VolumeId, value: &[u8]) -> Result<(), EntryError> {
        let record = VolumeRecord::decode(value).map_err(|source| self.value_error(source))?;
        if record.id == *volume {
            return Ok(());
        }
        Err(EntryError::OtherVolume { key: self.key.clone(), found: record.id })
    }

    fn check_holder(&self, value: &[u8]) -> Result<(), EntryError> {
        let holder = Holder::decode(value).map_err(|source| self.value_error(source))?;
        match holder.writer {
            Some(writer) if writer != self.author => {
                Err(EntryError::NotTheirs { key: self.key.clone(), author: self.author })
            }
            _ => Ok(()),
        }
    }
}
