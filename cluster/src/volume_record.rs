//! What the catalogue says of a volume: its name and the wishes of whoever created it.
//!
//! A record is a hint for everything that matters: who may write and who keeps the chain is decided by the keepers'
//! promises, never by this record.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bounded::{DecodeError, decode_versioned, encode_versioned, list, map};
use crate::config::Durability;
use crate::identity::{PeerId, VolumeId};

const VERSION: u8 = 1;

/// Longest volume name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Most keepers of a volume.
pub const KEEPERS_MAX: usize = 9;
/// Largest encoded record, in bytes.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;
const PAIRS_MAX: usize = 64;
const PAIR_BYTES_MAX: usize = 4096;

/// A volume, as all members know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The volume.
    pub id: VolumeId,
    /// The name it was created with. Two volumes may have one name for a while; see the registry's catalogue.
    pub name: String,
    /// When it was created, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Where to look for its keepers: those of its creation or of the last change that was announced; 1 to 9.
    #[serde(deserialize_with = "list::<_, _, KEEPERS_MAX>")]
    pub keepers: Vec<PeerId>,
    /// How many keepers it should have; 1 to 9.
    pub replicas: u32,
    /// What fsync waits for.
    pub durability: Durability,
    /// Most bytes of content, if limited.
    pub size_limit: Option<u64>,
    /// Owner of the root directory at creation.
    pub root_uid: u32,
    /// Group of the root directory at creation.
    pub root_gid: u32,
    /// Permission bits of the root directory at creation, 0 to 0o7777.
    pub root_mode: u32,
    /// Options of the creator, as given; at most 64.
    #[serde(deserialize_with = "map::<_, _, _, PAIRS_MAX>")]
    pub options: BTreeMap<String, String>,
    /// Labels, as given; at most 64.
    #[serde(deserialize_with = "map::<_, _, _, PAIRS_MAX>")]
    pub labels: BTreeMap<String, String>,
    /// Removed: not shown, its name is free.
    pub removed: bool,
}

/// A volume name breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters.
    #[error("a volume name must not be empty")]
    Empty,
    /// More than [`NAME_BYTES_MAX`].
    #[error("a volume name has at most {NAME_BYTES_MAX} characters; this one has {bytes}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A character that is not allowed where it is.
    #[error(
        "{character:?} at position {index} is not allowed in a volume name: use letters, digits, `_`, `.` and `-`, \
         and begin with a letter or digit"
    )]
    BadCharacter {
        /// The character.
        character: char,
        /// Its position in bytes.
        index: usize,
    },
}

/// Whether `name` can be a volume's name: 1 to 128 of `a-z A-Z 0-9 _ . -`, beginning with a letter or digit. This is
/// what container engines allow; it is no path, and cannot collide with the `name~id` shown for a name taken twice.
///
/// # Errors
/// The first rule it breaks.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { bytes: name.len() });
    }
    for (index, character) in name.char_indices() {
        let is_inner = index > 0 && matches!(character, '_' | '.' | '-');
        if !character.is_ascii_alphanumeric() && !is_inner {
            return Err(NameError::BadCharacter { character, index });
        }
    }
    Ok(())
}

impl VolumeRecord {
    /// The bytes for registry, disk and wire.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(VERSION, self)
    }

    /// Reads what [`VolumeRecord::encode`] wrote, and checks every bound.
    ///
    /// # Errors
    /// Malformed, too large, from a newer version, or a field out of its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let record: VolumeRecord = decode_versioned("volume record", VERSION, RECORD_BYTES_MAX, bytes)?;
        match record.broken_rule() {
            Some(reason) => Err(DecodeError::Invalid { what: "volume record", reason }),
            None => Ok(record),
        }
    }

    /// The bound a field breaks, if any. A record without one encodes and decodes.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let is_large = |pairs: &BTreeMap<String, String>| {
            pairs.len() > PAIRS_MAX
                || pairs.iter().any(|(key, value)| key.len() + value.len() > PAIR_BYTES_MAX)
        };
        if check_name(&self.name).is_err() {
            return Some("the name is not allowed");
        }
        if self.keepers.is_empty() || self.keepers.len() > KEEPERS_MAX {
            return Some("there are not 1 to 9 keepers");
        }
        if self.replicas == 0 || self.replicas as usize > KEEPERS_MAX {
            return Some("replicas are not 1 to 9");
        }
        if self.root_mode > 0o7777 {
            return Some("the root mode is more than 07777");
        }
        if is_large(&self.options) || is_large(&self.labels) {
            return Some("there are more than 64 options or labels, or one is longer than 4096 bytes");
        }
        (self.encode().len() > RECORD_BYTES_MAX).then_some("the record is larger than 16 KiB")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{NameError, VolumeRecord, check_name};
    use crate::config::Durability;
    use crate::identity::{PeerId, VolumeId};
    use proptest::prelude::{any, proptest};

    pub(crate) fn record(id: u8, name: &str, created_unix_ms: u64) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId([id; 16]),
            name: name.to_owned(),
            created_unix_ms,
            keepers: vec![PeerId([1; 32])],
            replicas: 3,
            durability: Durability::Quorum,
            size_limit: Some(1 << 30),
            root_uid: 0,
            root_gid: 0,
            root_mode: 0o755,
            options: [("a".to_owned(), "b".to_owned())].into(),
            labels: [].into(),
            removed: false,
        }
    }

    #[test]
    fn names_that_engines_allow_are_allowed() {
        for name in ["a", "9", "notes", "pg_data.v2-x", &"n".repeat(128)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn names_that_could_be_paths_or_options_are_refused() {
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert_eq!(check_name(&"n".repeat(300)), Err(NameError::TooLong { bytes: 300 }));
        for name in ["../x", ".hidden", "-rf", "a b", "a/b", "a~b", "a\0b", "a\nb", "é", "_x"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_record_reads_back_and_a_bad_one_is_refused() {
        assert_eq!(VolumeRecord::decode(&record(1, "notes", 5).encode()), Ok(record(1, "notes", 5)));
        for change in [
            |r: &mut VolumeRecord| r.name = "../x".to_owned(),
            |r: &mut VolumeRecord| r.keepers.clear(),
            |r: &mut VolumeRecord| r.keepers = vec![PeerId([1; 32]); 10],
            |r: &mut VolumeRecord| r.replicas = 0,
            |r: &mut VolumeRecord| r.root_mode = 0o10000,
            |r: &mut VolumeRecord| r.labels = [("k".to_owned(), "v".repeat(5000))].into(),
            |r: &mut VolumeRecord| r.labels = (0..65).map(|n| (n.to_string(), String::new())).collect(),
        ] {
            let mut record = record(1, "notes", 5);
            change(&mut record);
            assert!(VolumeRecord::decode(&record.encode()).is_err(), "{record:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = VolumeRecord::decode(&bytes);
        }
    }
}
