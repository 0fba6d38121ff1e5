//! The messages of the block exchange, inside a request and a response of [`crate::protocol::Protocol::Blocks`].
//!
//! ```text
//! want   version u8 = 1 | bytes_max u32 BE | count u16 BE | count x (length u8 | CID)
//! have   version u8 = 1 | for each wanted CID, in order: 0, or 1 | length u32 BE | bytes
//! ```
//!
//! A have may end early, at least one entry in: what it does not speak of is to be asked for again.

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::BLOCK_BYTES_MAX;
use thiserror::Error;

/// How many CIDs one want names (inclusive).
pub const WANTS_MAX: usize = 256;
/// How many bytes of blocks one have carries (inclusive), unless its first block alone is longer.
pub const HAVE_BYTES_MAX: usize = 8 * 1024 * 1024;

const VERSION: u8 = 1;
const CID_BYTES_MAX: usize = 128;

/// A message that cannot be read.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// It is not of this version.
    #[error("a block message has version {0}, which this program does not know")]
    Version(u8),
    /// A length or a count in it does not fit.
    #[error("a block message is malformed")]
    Malformed,
}

/// Asks for blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The blocks, at most [`WANTS_MAX`].
    pub cids: Vec<Cid>,
    /// How many bytes the answer should carry at most.
    pub bytes_max: u32,
}

impl Want {
    /// The bytes of the message. CIDs after the first [`WANTS_MAX`] are not asked for.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let cids: Vec<Vec<u8>> = self.cids.iter().take(WANTS_MAX).map(Cid::to_bytes).collect();
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.bytes_max.to_be_bytes());
        bytes.extend_from_slice(&u16::try_from(cids.len()).unwrap_or(0).to_be_bytes());
        for cid in cids {
            // A CID that is too long for the length byte is none we would accept; its place stays, empty.
            let cid = if cid.len() <= CID_BYTES_MAX { cid } else { Vec::new() };
            bytes.push(u8::try_from(cid.len()).unwrap_or(0));
            bytes.extend_from_slice(&cid);
        }
        bytes.into()
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &Bytes) -> Result<Want, FrameError> {
        let mut reader = Reader::new(bytes)?;
        let bytes_max = u32::from_be_bytes(reader.array()?);
        let count = usize::from(u16::from_be_bytes(reader.array()?));
        if count > WANTS_MAX {
            return Err(FrameError::Malformed);
        }
        let mut cids = Vec::with_capacity(count);
        for _ in 0..count {
            let [len] = reader.array()?;
            if usize::from(len) > CID_BYTES_MAX {
                return Err(FrameError::Malformed);
            }
            let cid = Cid::try_from(reader.take(usize::from(len))?.as_ref());
            cids.push(cid.map_err(|_| FrameError::Malformed)?);
        }
        if reader.is_at_end() { Ok(Want { cids, bytes_max }) } else { Err(FrameError::Malformed) }
    }
}

/// Builds an answer, block by block in the order of the want.
#[derive(Debug)]
pub struct HaveBuilder {
    bytes: Vec<u8>,
    carried: usize,
    bytes_max: usize,
}

impl HaveBuilder {
    /// For an answer that carries at most `bytes_max` bytes of blocks.
    #[must_use]
    pub fn new(bytes_max: u32) -> HaveBuilder {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(HAVE_BYTES_MAX).min(HAVE_BYTES_MAX);
        HaveBuilder { bytes: vec![VERSION], carried: 0, bytes_max }
    }

    /// Says what there is of the next wanted block. Returns false, and adds nothing, once the answer is full.
    pub fn push(&mut self, block: Option<&Bytes>) -> bool {
        let Some(block) = block.filter(|block| block.len() <= BLOCK_BYTES_MAX) else {
            self.bytes.push(0);
            return true;
        };
        if self.carried > 0 && self.carried + block.len() > self.bytes_max {
            return false;
        }
        self.carried += block.len();
        self.bytes.push(1);
        // A block is at most 2 MiB long.
        self.bytes.extend_from_slice(&u32::try_from(block.len()).unwrap_or(0).to_be_bytes());
        self.bytes.extend_from_slice(block);
        true
    }

    /// The bytes of the message.
    #[must_use]
    pub fn finish(self) -> Bytes {
        self.bytes.into()
    }
}

/// Reads an answer to a want of `wanted` CIDs: what is said of the first of them, in order. Copies no block; nothing is
/// verified yet.
///
/// # Errors
/// [`FrameError`].
pub fn decode_have(bytes: &Bytes, wanted: usize) -> Result<Vec<Option<Bytes>>, FrameError> {
    let mut reader = Reader::new(bytes)?;
    let mut entries = Vec::new();
    while !reader.is_at_end() {
        if entries.len() >= wanted {
            return Err(FrameError::Malformed);
        }
        entries.push(match reader.array()? {
            [0] => None,
            [1] => {
                let len = usize::try_from(u32::from_be_bytes(reader.array()?));
                Some(reader.take(len.map_err(|_| FrameError::Malformed)?)?)
            }
            _ => return Err(FrameError::Malformed),
        });
    }
    Ok(entries)
}

struct Reader {
    rest: Bytes,
}

impl Reader {
    fn new(bytes: &Bytes) -> Result<Reader, FrameError> {
        let mut reader = Reader { rest: bytes.clone() };
        match reader.array()? {
            [VERSION] => Ok(reader),
            [version] => Err(FrameError::Version(version)),
        }
    }

    fn take(&mut self, len: usize) -> Result<Bytes, FrameError> {
        if len > self.rest.len() { Err(FrameError::Malformed) } else { Ok(self.rest.split_to(len)) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let bytes = self.take(N)?;
        <[u8; N]>::try_from(bytes.as_ref()).map_err(|_| FrameError::Malformed)
    }

    fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use remora_dag::block::{Codec, cid_of};

    use super::*;

    #[test]
    fn a_full_answer_ends_early_and_a_single_long_block_still_goes() {
        let block = Bytes::from(vec![7; 1000]);
        let mut have = HaveBuilder::new(2500);
        assert!(have.push(Some(&block)) && have.push(None) && have.push(Some(&block)));
        assert!(!have.push(Some(&block)));
        assert_eq!(decode_have(&have.finish(), 9).unwrap(), [Some(block.clone()), None, Some(block.clone())]);
        let mut have = HaveBuilder::new(1);
        assert!(have.push(Some(&block)));
        assert!(!have.push(Some(&block)));
    }

    #[test]
    fn an_answer_to_more_than_was_wanted_is_malformed() {
        assert_eq!(decode_have(&Bytes::from_static(&[1, 0, 0]), 1), Err(FrameError::Malformed));
        assert_eq!(decode_have(&Bytes::from_static(&[2]), 1), Err(FrameError::Version(2)));
        assert_eq!(
            decode_have(&Bytes::from_static(&[1, 1, 255, 255, 255, 255, 0]), 1),
            Err(FrameError::Malformed)
        );
    }

    proptest! {
        #[test]
        fn wants_and_haves_read_back(
            seeds in vec(any::<u64>(), 0..WANTS_MAX),
            blocks in vec(of(vec(any::<u8>(), 0..300)), 0..40),
            bytes_max in any::<u32>(),
        ) {
            let cids: Vec<Cid> = seeds.iter().map(|seed| cid_of(Codec::Raw, &seed.to_le_bytes())).collect();
            let want = Want { cids, bytes_max };
            prop_assert_eq!(Want::decode(&want.encode()).unwrap(), want);
            let blocks: Vec<Option<Bytes>> = blocks.into_iter().map(|block| block.map(Bytes::from)).collect();
            let mut have = HaveBuilder::new(u32::MAX);
            for block in &blocks {
                prop_assert!(have.push(block.as_ref()));
            }
            prop_assert_eq!(decode_have(&have.finish(), blocks.len()).unwrap(), blocks);
        }

        #[test]
        fn no_bytes_make_a_reader_panic(mut bytes in vec(any::<u8>(), 0..400), version in any::<bool>()) {
            if let (true, Some(first)) = (version, bytes.first_mut()) {
                *first = VERSION;
            }
            let bytes = Bytes::from(bytes);
            let _ = Want::decode(&bytes);
            let _ = decode_have(&bytes, 16);
        }
    }
}
