//! Decoding with limits: a list from a stranger is counted before it is kept.
//!
//! The encoded form is postcard's own; only reading is stricter.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

struct ListVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "at most {MAX} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(MAX).min(64));
        while let Some(item) = seq.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::custom(format_args!("more than {MAX} items")));
            }
            list.push(item);
        }
        Ok(list)
    }
}

/// Reads a list of at most `MAX` items; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// The format's own, and one for item `MAX + 1`, before it is kept.
pub fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(ListVisitor::<T, MAX>(PhantomData))
}

struct MapVisitor<K, V, const MAX: usize>(PhantomData<(K, V)>);

impl<'de, K, V, const MAX: usize> Visitor<'de> for MapVisitor<K, V, MAX>
where
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    type Value = BTreeMap<K, V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "at most {MAX} entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry()? {
            if map.len() == MAX {
                return Err(A::Error::custom(format_args!("more than {MAX} entries")));
            }
            map.insert(key, value);
        }
        Ok(map)
    }
}

/// Reads a map of at most `MAX` entries; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// The format's own, and one for entry `MAX + 1`, before it is kept.
pub fn map<'de, D, K, V, const MAX: usize>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    deserializer.deserialize_map(MapVisitor::<K, V, MAX>(PhantomData))
}

/// Why bytes are not the thing they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version of Remora: update this host.
    #[error("{what} has version {version}, newer than this program knows: update Remora on this host")]
    Newer {
        /// What was decoded.
        what: &'static str,
        /// The version found.
        version: u8,
    },
    /// Larger than anything valid.
    #[error("{what} of {bytes} bytes is larger than the {max} allowed")]
    TooLarge {
        /// What was decoded.
        what: &'static str,
        /// The size found.
        bytes: usize,
        /// The largest size that is valid.
        max: usize,
    },
    /// Not such a thing at all: damaged, or not ours.
    #[error("{what} does not decode: {source}")]
    Malformed {
        /// What was decoded.
        what: &'static str,
        /// What the format said.
        source: postcard::Error,
    },
    /// It decodes, and is followed by bytes that belong to nothing.
    #[error("{what} is followed by {bytes} bytes that do not belong to it")]
    Trailing {
        /// What was decoded.
        what: &'static str,
        /// How many bytes follow.
        bytes: usize,
    },
    /// It decodes, and says something that cannot be.
    #[error("{what} says something that cannot be: {reason}")]
    Invalid {
        /// What was decoded.
        what: &'static str,
        /// The rule it breaks.
        reason: &'static str,
    },
}

/// Writes one version byte and the value after it.
///
/// # Panics
/// Only for a type that postcard cannot write (a list of unknown length), which none of ours is.
pub(crate) fn encode_versioned<T: serde::Serialize>(version: u8, value: &T) -> Vec<u8> {
    // Writing into memory fails only for sequences of unknown length; our derived types have none.
    match postcard::to_extend(value, vec![version]) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("a derived type failed to encode: {error}"),
    }
}

/// Reads one version byte (at most `version`) and a value that fills the rest of `bytes`, which may be `max` long.
pub(crate) fn decode_versioned<'de, T: Deserialize<'de>>(
    what: &'static str,
    version: u8,
    max: usize,
    bytes: &'de [u8],
) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLarge { what, bytes: bytes.len(), max });
    }
    let Some((&found, body)) = bytes.split_first() else {
        return Err(DecodeError::Malformed { what, source: postcard::Error::DeserializeUnexpectedEnd });
    };
    if found > version {
        return Err(DecodeError::Newer { what, version: found });
    }
    if found == 0 {
        return Err(DecodeError::Invalid { what, reason: "version 0" });
    }
    let (value, rest) =
        postcard::take_from_bytes(body).map_err(|source| DecodeError::Malformed { what, source })?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing { what, bytes: rest.len() });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::{DecodeError, decode_versioned, encode_versioned, list};

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Three(#[serde(deserialize_with = "list::<_, _, 3>")] Vec<u8>);

    #[test]
    fn a_list_over_its_limit_is_refused() {
        let bytes = encode_versioned(1, &Three(vec![1, 2, 3]));
        assert_eq!(decode_versioned("list", 1, 100, &bytes), Ok(Three(vec![1, 2, 3])));
        let bytes = encode_versioned(1, &Three(vec![1, 2, 3, 4]));
        assert!(decode_versioned::<Three>("list", 1, 100, &bytes).is_err());
    }

    #[test]
    fn newer_versions_trailing_bytes_and_large_inputs_are_told_apart() {
        let mut bytes = encode_versioned(2, &Three(vec![]));
        assert!(matches!(
            decode_versioned::<Three>("list", 1, 100, &bytes),
            Err(DecodeError::Newer { version: 2, .. })
        ));
        bytes.push(0);
        assert!(matches!(
            decode_versioned::<Three>("list", 2, 100, &bytes),
            Err(DecodeError::Trailing { bytes: 1, .. })
        ));
        assert!(matches!(decode_versioned::<Three>("list", 2, 2, &bytes), Err(DecodeError::TooLarge { .. })));
        assert!(decode_versioned::<Three>("list", 2, 2, &[]).is_err());
    }
}
