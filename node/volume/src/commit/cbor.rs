//! The few shapes of CBOR that a commit is made of, each in its one shortest form.

use std::ops::Range;

use cid::Cid;

use crate::commit::{CommitError, REFS_MAX};

/// The longest CID accepted in a commit, in bytes.
const CID_BYTES_MAX: usize = 64;

pub(super) const UINT: u8 = 0;
const NEGATIVE: u8 = 1;
pub(super) const BYTES: u8 = 2;
const TEXT: u8 = 3;
pub(super) const ARRAY: u8 = 4;
pub(super) const MAP: u8 = 5;
const TAG: u8 = 6;
const TAG_CID: u64 = 42;

/// Writes the few shapes of CBOR that a commit is made of, each in its shortest form.
pub(super) struct Encoder(pub(super) Vec<u8>);

impl Encoder {
    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn head(&mut self, major: u8, n: u64) {
        let major = major << 5;
        match n {
            0..24 => self.0.push(major | n as u8),
            24..0x100 => self.0.extend_from_slice(&[major | 24, n as u8]),
            0x100..0x1_0000 => {
                self.0.push(major | 25);
                self.0.extend_from_slice(&(n as u16).to_be_bytes());
            }
            0x1_0000..0x1_0000_0000 => {
                self.0.push(major | 26);
                self.0.extend_from_slice(&(n as u32).to_be_bytes());
            }
            _ => {
                self.0.push(major | 27);
                self.0.extend_from_slice(&n.to_be_bytes());
            }
        }
    }

    pub(super) fn int(&mut self, n: i64) {
        match u64::try_from(n) {
            Ok(n) => self.head(UINT, n),
            Err(_) => self.head(NEGATIVE, !n.cast_unsigned()),
        }
    }

    pub(super) fn key(&mut self, key: &str) {
        self.head(TEXT, key.len() as u64);
        self.0.extend_from_slice(key.as_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.head(BYTES, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn cid(&mut self, cid: &Cid) {
        let raw = cid.to_bytes();
        self.head(TAG, TAG_CID);
        self.head(BYTES, raw.len() as u64 + 1);
        self.0.push(0);
        self.0.extend_from_slice(&raw);
    }
}

/// Reads what [`Encoder`] writes and nothing else.
pub(super) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    /// Reads from the start of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { bytes, at: 0 }
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), CommitError> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.malformed("the end")) }
    }

    pub(super) fn malformed(&self, what: &'static str) -> CommitError {
        CommitError::Malformed { what, at: self.at }
    }

    fn take(&mut self, n: usize, what: &'static str) -> Result<Range<usize>, CommitError> {
        match self.at.checked_add(n) {
            Some(end) if end <= self.bytes.len() => {
                let range = self.at..end;
                self.at = end;
                Ok(range)
            }
            _ => Err(self.malformed(what)),
        }
    }

    /// The next head: its major type and number, which must be in the shortest form.
    pub(super) fn head(&mut self, what: &'static str) -> Result<(u8, u64), CommitError> {
        let first = self.take(1, what)?.start;
        let (major, short) = (self.bytes[first] >> 5, self.bytes[first] & 31);
        let (width, least) = match short {
            0..24 => return Ok((major, u64::from(short))),
            24 => (1, 24),
            25 => (2, 0x100),
            26 => (4, 0x1_0000),
            27 => (8, 0x1_0000_0000),
            _ => return Err(self.malformed(what)),
        };
        let range = self.take(width, what)?;
        let n = self.bytes[range].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        if n < least { Err(self.malformed(what)) } else { Ok((major, n)) }
    }

    fn number(&mut self, major: u8, what: &'static str) -> Result<u64, CommitError> {
        let (found, n) = self.head(what)?;
        if found == major { Ok(n) } else { Err(self.malformed(what)) }
    }

    pub(super) fn expect(&mut self, major: u8, n: u64, what: &'static str) -> Result<(), CommitError> {
        if self.number(major, what)? == n { Ok(()) } else { Err(self.malformed(what)) }
    }

    pub(super) fn uint(&mut self, what: &'static str) -> Result<u64, CommitError> {
        self.number(UINT, what)
    }

    pub(super) fn int(&mut self) -> Result<i64, CommitError> {
        let (major, n) = self.head("a time")?;
        let n = i64::try_from(n).map_err(|_| self.malformed("a time"))?;
        match major {
            UINT => Ok(n),
            NEGATIVE => Ok(-1 - n),
            _ => Err(self.malformed("a time")),
        }
    }

    pub(super) fn key(&mut self, key: &'static str) -> Result<(), CommitError> {
        self.expect(TEXT, key.len() as u64, key)?;
        let range = self.take(key.len(), key)?;
        if &self.bytes[range] == key.as_bytes() { Ok(()) } else { Err(self.malformed(key)) }
    }

    pub(super) fn byte_string(
        &mut self,
        what: &'static str,
        max: usize,
    ) -> Result<Range<usize>, CommitError> {
        let n = self.number(BYTES, what)?;
        match usize::try_from(n) {
            Ok(n) if n <= max => self.take(n, what),
            _ => Err(self.malformed(what)),
        }
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CommitError> {
        let range = self.byte_string(what, N)?;
        self.bytes[range].try_into().map_err(|_| self.malformed(what))
    }

    pub(super) fn cid(&mut self) -> Result<Cid, CommitError> {
        self.expect(TAG, TAG_CID, "a link")?;
        let range = self.byte_string("a link", CID_BYTES_MAX)?;
        let raw = match self.bytes[range].split_first() {
            Some((0, raw)) => raw,
            _ => return Err(self.malformed("a link")),
        };
        let cid = Cid::try_from(raw).map_err(|_| self.malformed("a CID"))?;
        if cid.to_bytes() == raw { Ok(cid) } else { Err(self.malformed("a CID")) }
    }

    pub(super) fn cids(&mut self) -> Result<Vec<Cid>, CommitError> {
        let n = usize::try_from(self.number(ARRAY, "references")?).unwrap_or(usize::MAX);
        if n > REFS_MAX {
            return Err(self.malformed("fewer references"));
        }
        let mut cids = Vec::with_capacity(n);
        for _ in 0..n {
            cids.push(self.cid()?);
        }
        Ok(cids)
    }
}
