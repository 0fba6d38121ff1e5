//! Profiles: the choices that must be equal for two implementations to give the same bytes the same CID.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use thiserror::Error;

use crate::block::Block;

/// The size past which a directory becomes a HAMT, in bytes (exclusive).
pub const HAMT_BYTES: usize = 262_144;

/// The fan-out of every HAMT we write.
pub const HAMT_FANOUT: u64 = 256;

/// A named set of choices. Volumes use [`Profile::V1_2025`]; the others exist to reproduce what other tools made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
#[allow(non_camel_case_types)]
pub enum Profile {
    /// `unixfs-v1-2025`: CIDv1, raw leaves of 1 MiB, 1024 links, directories split by the size of their block.
    #[default]
    V1_2025,
    /// `unixfs-v0-2015`: CIDv0, dag-pb leaves of 256 KiB, 174 links, directories split by the size of names and CIDs.
    V0_2015,
    /// `kubo-v1-256k`: as `unixfs-v0-2015`, but CIDv1 and raw leaves.
    KuboV1_256k,
}

/// What a directory's size is measured by when it is decided whether it becomes a HAMT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HamtRule {
    /// The bytes of its encoded block (without POSIX rows).
    BlockBytes,
    /// The sum of its names and binary CIDs.
    LinkBytes,
}

/// A profile name nobody knows.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("unknown profile {0:?}; known are unixfs-v1-2025, unixfs-v0-2015 and kubo-v1-256k")]
pub struct UnknownProfile(pub String);

impl Profile {
    /// All profiles.
    pub const ALL: [Profile; 3] = [Profile::V1_2025, Profile::V0_2015, Profile::KuboV1_256k];

    /// The name on the command line and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Profile::V1_2025 => "unixfs-v1-2025",
            Profile::V0_2015 => "unixfs-v0-2015",
            Profile::KuboV1_256k => "kubo-v1-256k",
        }
    }

    /// The bytes of a full leaf.
    #[must_use]
    pub fn chunk_bytes(self) -> usize {
        match self {
            Profile::V1_2025 => 1024 * 1024,
            Profile::V0_2015 | Profile::KuboV1_256k => 256 * 1024,
        }
    }

    /// The most links in a node of a file.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Profile::V1_2025 => 1024,
            Profile::V0_2015 | Profile::KuboV1_256k => 174,
        }
    }

    /// Whether leaves are plain bytes; else they are dag-pb nodes.
    #[must_use]
    pub fn has_raw_leaves(self) -> bool {
        self != Profile::V0_2015
    }

    /// How a directory's size is measured.
    #[must_use]
    pub fn hamt_rule(self) -> HamtRule {
        match self {
            Profile::V1_2025 => HamtRule::BlockBytes,
            Profile::V0_2015 | Profile::KuboV1_256k => HamtRule::LinkBytes,
        }
    }

    /// Hashes an encoded dag-pb node into a block with the profile's CID version.
    ///
    /// # Panics
    /// If it is longer than a block may be.
    #[must_use]
    pub fn seal_node(self, bytes: Bytes) -> Block {
        match self {
            Profile::V0_2015 => Block::seal_v0(bytes),
            Profile::V1_2025 | Profile::KuboV1_256k => Block::seal(crate::block::Codec::DagPb, bytes),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(s: &str) -> Result<Profile, UnknownProfile> {
        Profile::ALL
            .into_iter()
            .find(|profile| profile.name() == s)
            .ok_or_else(|| UnknownProfile(s.to_owned()))
    }
}
