//! The names of things that agree: peers, clusters, volumes; and the signatures that peers and clusters make.
//!
//! Every id is a fixed number of bytes, ordered as bytes, written for people as lower-case base32 without padding. In
//! self-describing formats (JSON) an id is that text, elsewhere it is its bytes.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use ed25519_dalek::{Signature as Ed25519Signature, VerifyingKey};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text is not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: expected {letters} letters of lower-case base32")]
pub struct IdParseError {
    /// What was expected, for people.
    pub what: &'static str,
    /// How many letters the text of such an id has.
    pub letters: usize,
    /// The text, cut to 80 characters.
    pub text: String,
}

/// Lower-case base32 without padding (RFC 4648 letters); accepts upper case when decoding.
///
/// # Panics
/// Never for input; only if this function's own table were wrong.
pub(crate) fn base32() -> Encoding {
    let mut table = Specification::new();
    table.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    table.translate.from.push_str("ABCDEFGHIJKLMNOPQRSTUVWXYZ");
    table.translate.to.push_str("abcdefghijklmnopqrstuvwxyz");
    table.encoding().unwrap_or(BASE32_NOPAD)
}

struct BytesVisitor<const N: usize>;

impl<'de, const N: usize> Visitor<'de> for BytesVisitor<N> {
    type Value = [u8; N];

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{N} bytes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut bytes = [0; N];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = seq.next_element()?.ok_or_else(|| A::Error::invalid_length(index, &self))?;
        }
        Ok(bytes)
    }
}

fn write_bytes<const N: usize, S: Serializer>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeTuple;
    let mut tuple = serializer.serialize_tuple(N)?;
    for byte in bytes {
        tuple.serialize_element(byte)?;
    }
    tuple.end()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// The bytes of the id.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The first eight letters: for people and logs, not unique for certain.
            pub fn short(&self) -> String {
                self.to_string().chars().take(8).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&base32().encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdParseError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let refused = || IdParseError {
                    what: $what,
                    letters: base32().encode_len($bytes),
                    text: text.chars().take(80).collect(),
                };
                if text.len() != base32().encode_len($bytes) {
                    return Err(refused());
                }
                let bytes = base32().decode(text.as_bytes()).map_err(|_| refused())?;
                bytes.try_into().map($name).map_err(|_| refused())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    return serializer.collect_str(self);
                }
                write_bytes(&self.0, serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    return text.parse().map_err(D::Error::custom);
                }
                deserializer.deserialize_tuple($bytes, BytesVisitor::<$bytes>).map($name)
            }
        }
    };
}

id! {
    /// A host: the ed25519 public key of its node key. Not every 32 bytes are a key; a signature check finds out.
    PeerId, 32, "peer id"
}

id! {
    /// A cluster: the ed25519 public key whose private half signs member certificates.
    ClusterId, 32, "cluster id"
}

id! {
    /// A volume: sixteen random bytes chosen at its creation and never used again.
    VolumeId, 16, "volume id"
}

/// An ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signature({}..)", base32().encode(&self.0[..5]))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write_bytes(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(64, BytesVisitor::<64>).map(Signature)
    }
}

fn verifies(key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(key) else { return false };
    key.verify_strict(message, &Ed25519Signature::from_bytes(&signature.0)).is_ok()
}

impl PeerId {
    /// Whether this peer signed `message`. Strict: weak keys and malleable signatures are refused; false for bytes that
    /// are no key.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        verifies(&self.0, message, signature)
    }
}

impl ClusterId {
    /// Whether the cluster key signed `message`; strict as [`PeerId::verifies`].
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        verifies(&self.0, message, signature)
    }
}

#[cfg(test)]
mod tests {
    use super::{ClusterId, PeerId, Signature, VolumeId};

    #[test]
    fn an_id_reads_back_from_its_text() {
        let peer = PeerId([0xA5; 32]);
        assert_eq!(peer.to_string().len(), 52);
        assert_eq!(peer.to_string().parse(), Ok(peer));
        assert_eq!(peer.to_string().to_uppercase().parse(), Ok(peer));
        let volume = VolumeId([7; 16]);
        assert_eq!(volume.to_string().parse(), Ok(volume));
        assert_eq!(volume.short().len(), 8);
    }

    #[test]
    fn text_that_is_no_id_is_refused_whatever_its_length() {
        for text in ["", "a", "../../etc", &"a".repeat(5000), &"1".repeat(52), &"é".repeat(26)] {
            assert!(text.parse::<PeerId>().is_err(), "{text}");
            assert!(text.parse::<ClusterId>().is_err(), "{text}");
        }
        let trailing_bits = format!("{}b", "a".repeat(51));
        assert!(trailing_bits.parse::<PeerId>().is_err(), "one id has one text");
    }

    #[test]
    fn ids_are_bare_bytes_on_the_wire() {
        let bytes = postcard::to_stdvec(&VolumeId([9; 16])).unwrap();
        assert_eq!(bytes, [9; 16]);
        assert_eq!(postcard::from_bytes::<VolumeId>(&bytes), Ok(VolumeId([9; 16])));
        let signature = Signature([3; 64]);
        let bytes = postcard::to_stdvec(&signature).unwrap();
        assert_eq!(bytes, [3; 64]);
        assert_eq!(postcard::from_bytes::<Signature>(&bytes), Ok(signature));
    }

    #[test]
    fn bytes_that_are_no_key_verify_nothing() {
        for byte in [0u8, 1, 2, 0xFF] {
            assert!(!PeerId([byte; 32]).verifies(b"message", &Signature([0; 64])));
        }
    }
}
