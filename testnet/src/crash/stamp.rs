//! Bytes that prove themselves: a number, and content that follows from it.

use sha2::{Digest, Sha256};

/// Magic, length of the body, number, digest of number and body.
pub(super) const HEADER_BYTES: usize = 48;

const MAGIC: [u8; 4] = *b"crsh";

/// How long the body of a number is, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Most bodies are shorter than this.
    pub(super) usual: u64,
    /// One of twenty is shorter than this.
    pub(super) long: u64,
    /// One of 256 is shorter than this.
    pub(super) longest: u64,
}

fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Sizes {
    /// Bytes of the whole stamp with this number.
    pub(super) fn stamp_bytes(self, number: u64) -> usize {
        let random = mixed(number);
        let below = match random % 256 {
            0 => self.longest,
            1..=12 => self.long,
            _ => self.usual,
        };
        HEADER_BYTES + usize::try_from((random >> 8) % below).unwrap_or(0)
    }

    /// The stamp with this number.
    pub(super) fn stamp(self, number: u64) -> Vec<u8> {
        let len = self.stamp_bytes(number) - HEADER_BYTES;
        let words = (0..=len as u64 / 8).flat_map(|at| mixed(number ^ (at << 32)).to_le_bytes());
        let body: Vec<u8> = words.take(len).collect();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(number.to_le_bytes());
        bytes.extend(Sha256::new().chain_update(number.to_le_bytes()).chain_update(&body).finalize());
        bytes.extend(body);
        bytes
    }

    /// The number of the stamp that these bytes are, all of them; `None` if they are not one.
    pub(super) fn number_of(self, bytes: &[u8]) -> Option<u64> {
        let number = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
        (bytes.len() == self.stamp_bytes(number) && bytes == self.stamp(number)).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { usual: 100, long: 1000, longest: 10_000 };

    #[test]
    fn a_stamp_tells_its_number_and_a_damaged_one_nothing() {
        for number in 0..500 {
            let mut bytes = SIZES.stamp(number);
            assert_eq!(SIZES.number_of(&bytes), Some(number));
            assert_eq!(SIZES.number_of(&bytes[..bytes.len() - 1]), None);
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            assert_eq!(SIZES.number_of(&bytes), None);
        }
        assert_eq!(SIZES.number_of(&[]), None);
        assert_eq!(SIZES.number_of(&[0; 500]), None);
    }
}
