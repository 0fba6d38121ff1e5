//! Unsigned LEB128 numbers as protobuf writes them, with exactly one accepted spelling for each.

use thiserror::Error;

/// Why bytes are not a number.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum VarintError {
    /// The input ends inside it.
    #[error("the input ends inside a number")]
    Short,
    /// More than 64 bits, or padded with empty groups.
    #[error("a number is too long or padded")]
    Long,
}

/// Appends `n`.
pub(crate) fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// How many bytes [`put`] appends for `n`: 1 to 10.
pub(crate) fn len(n: u64) -> usize {
    (64 - (n | 1).leading_zeros() as usize).div_ceil(7)
}

/// Reads one number off the front of `input`, which is left behind it.
pub(crate) fn take(input: &mut &[u8]) -> Result<u64, VarintError> {
    let mut n = 0u64;
    for (index, byte) in input.iter().copied().enumerate().take(10) {
        let group = u64::from(byte & 0x7f);
        if index == 9 && group > 1 {
            return Err(VarintError::Long);
        }
        n |= group << (7 * index);
        if byte & 0x80 == 0 {
            if byte == 0 && index > 0 {
                return Err(VarintError::Long);
            }
            *input = input.get(index + 1..).unwrap_or_default();
            return Ok(n);
        }
    }
    Err(if input.len() < 10 { VarintError::Short } else { VarintError::Long })
}

/// Folds the sign into the lowest bit, so that small negative numbers are short.
pub(crate) fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

/// The opposite of [`zigzag`].
pub(crate) fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}
