//! The links of a dag-cbor block, found without building its value.

use bytes::Bytes;
use cid::Cid;

use crate::dagpb::decode_cid;
use crate::errors::Malformed;

/// The deepest nesting of lists, maps and tags.
const DEPTH_MAX: usize = 128;

/// The CBOR tag of a link.
const LINK_TAG: u64 = 42;

/// All CIDs in a dag-cbor item that fills `bytes` exactly, in its order.
///
/// # Errors
/// [`Malformed::Cbor`]: not an item of definite lengths, or a link without a sound CID.
pub(crate) fn links(bytes: &Bytes) -> Result<Vec<Cid>, Malformed> {
    let mut rest: &[u8] = bytes;
    let mut links = Vec::new();
    // How many items are still to come, per nesting.
    let mut open: Vec<u64> = vec![1];
    while let Some(left) = open.last_mut() {
        if *left == 0 {
            open.pop();
            continue;
        }
        *left -= 1;
        let (major, value) = take_head(&mut rest)?;
        let n_inside = match major {
            0 | 1 | 7 => 0,
            2 | 3 => {
                take(&mut rest, value)?;
                0
            }
            4 => value,
            5 => value.checked_mul(2).ok_or(Malformed::Cbor("a length"))?,
            _ if value == LINK_TAG => {
                links.push(take_link(&mut rest)?);
                0
            }
            _ => return Err(Malformed::Cbor("a tag that is not a link")),
        };
        // Every item is at least a byte, so a count beyond the bytes left is a lie.
        if n_inside > rest.len() as u64 || open.len() > DEPTH_MAX {
            return Err(Malformed::Cbor("a length or depth"));
        }
        if n_inside > 0 {
            open.push(n_inside);
        }
    }
    if rest.is_empty() { Ok(links) } else { Err(Malformed::Cbor("bytes after the item")) }
}

/// Reads the major type and the number of an item; of floats and simple values only the length matters.
fn take_head(rest: &mut &[u8]) -> Result<(u8, u64), Malformed> {
    let first = *take(rest, 1)?.first().ok_or(Malformed::Cbor("the end"))?;
    let value = match first & 0x1f {
        small @ 0..=23 => u64::from(small),
        size @ 24..=27 => {
            let bytes = take(rest, 1 << (size - 24))?;
            bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
        }
        _ => return Err(Malformed::Cbor("an indefinite length")),
    };
    Ok((first >> 5, value))
}

fn take<'a>(rest: &mut &'a [u8], n: u64) -> Result<&'a [u8], Malformed> {
    let n = usize::try_from(n).map_err(|_| Malformed::Cbor("a length"))?;
    let (head, tail) = rest.split_at_checked(n).ok_or(Malformed::Cbor("the end"))?;
    *rest = tail;
    Ok(head)
}

fn take_link(rest: &mut &[u8]) -> Result<Cid, Malformed> {
    let (major, len) = take_head(rest)?;
    if major != 2 {
        return Err(Malformed::Cbor("a link that is not bytes"));
    }
    // The leading zero is the multibase prefix for binary.
    match take(rest, len)? {
        [0, cid @ ..] => decode_cid(cid).ok_or(Malformed::Cbor("a link without a sound CID")),
        _ => Err(Malformed::Cbor("a link without its prefix")),
    }
}
