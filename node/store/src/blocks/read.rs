//! Finding and proving blocks.

use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use sha2::{Digest as _, Sha256};

use crate::blocks::{BlocksError, SUSPECTS_MAX, Shared};
use crate::fault::DiskFault;
use crate::frame::{FrameHeader, FrameKind, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX, parse_header};
use crate::index::{BlockPlace, Digest};
use crate::pack::Pack;

/// Whoever reads this much of a block at once is likely to read the next one too.
const BULK_BYTES: usize = 256 << 10;

/// How often a block is looked up whose pack went away meanwhile.
const FIND_ATTEMPTS: usize = 3;

/// How far the disk reads ahead then.
const AHEAD_BYTES: u64 = 2 << 20;

impl Shared {
    /// Where the block's frame should be.
    pub(super) fn find(&self, digest: &Digest) -> Option<(Arc<Pack>, BlockPlace)> {
        // A pack that is gone after its number was read has been swept: what was live in it has another place by now.
        for _ in 0..FIND_ATTEMPTS {
            // Recent first, the index second, and recent once more: a place moves from one to the other in between.
            let place = {
                let recent = self.recent.read().get(digest);
                recent.or_else(|| self.indexed(digest)).or_else(|| self.recent.read().get(digest))
            }?;
            if let Some(pack) = self.packs.read().get(&place.pack).cloned() {
                return Some((pack, place));
            }
        }
        None
    }

    pub(super) fn read_range(
        &self,
        pack: &Pack,
        place: &BlockPlace,
        digest: &Digest,
        offset: u64,
        len: usize,
    ) -> Result<Option<Bytes>, BlocksError> {
        let Some(header) = self.read_header(pack, place, digest)? else { return Ok(None) };
        if header.is_zstd {
            let whole = read_whole(pack, place, digest)?;
            return Ok(whole.map(|bytes| remora_dag::block::slice_of(&bytes, offset, len)));
        }
        let total = header.payload_bytes as usize;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(total);
        let end = start.saturating_add(len).min(total);
        let cover = header.cover(start, end - start);
        let at = header.payload_at() + cover.start as u64;
        if cover.len() >= BULK_BYTES {
            // Blocks that are read one after the other were mostly written so.
            pack.file.will_read(at + cover.len() as u64, AHEAD_BYTES);
        }
        let bytes =
            pack.file.read_vec(at, cover.len()).map_err(DiskFault::at("read part of block", &pack.path))?;
        if bytes.len() != cover.len() || !header.proves_cover(cover.start, &bytes) {
            return Ok(None);
        }
        if start == end {
            return Ok(Some(Bytes::new()));
        }
        Ok(Some(Bytes::from(bytes).slice(start - cover.start..end - cover.start)))
    }

    /// The frame's header, or `None` if it is not that of the block.
    pub(super) fn read_header(
        &self,
        pack: &Pack,
        place: &BlockPlace,
        digest: &Digest,
    ) -> Result<Option<FrameHeader>, BlocksError> {
        let len = (place.header_bytes as usize).min(HEADER_BYTES_MAX);
        let read = pack
            .file
            .read_vec(u64::from(place.at), len)
            .map_err(DiskFault::at("read block header", &pack.path))?;
        Ok(checked_header(&read, pack.salt, place, digest))
    }

    /// Whether a put of this block may be skipped.
    pub(super) fn is_stored(&self, digest: &Digest) -> Result<bool, BlocksError> {
        let Some((pack, place)) = self.find(digest) else { return Ok(false) };
        if self.suspects.lock().contains(digest) {
            return Ok(false);
        }
        // A frame that cannot be read is as good as none: the block is stored anew.
        Ok(matches!(self.read_header(&pack, &place, digest), Ok(Some(_))))
    }

    pub(super) fn suspect(&self, cid: &Cid, digest: Digest, place: &BlockPlace) -> BlocksError {
        let mut suspects = self.suspects.lock();
        if suspects.len() < SUSPECTS_MAX {
            suspects.insert(digest);
        }
        BlocksError::Corrupt { cid: *cid, pack: place.pack, at: place.at }
    }
}

/// The whole block, or `None` if the bytes at that place are not it.
pub(super) fn read_whole(
    pack: &Pack,
    place: &BlockPlace,
    digest: &Digest,
) -> Result<Option<Bytes>, BlocksError> {
    let header_bytes = place.header_bytes as usize;
    let len = header_bytes.saturating_add(place.stored_bytes as usize);
    if len > HEADER_BYTES_MAX + PAYLOAD_BYTES_MAX {
        return Ok(None);
    }
    let read =
        pack.file.read_vec(u64::from(place.at), len).map_err(DiskFault::at("read block", &pack.path))?;
    let Some(header) = checked_header(&read, pack.salt, place, digest) else { return Ok(None) };
    let stored = Bytes::from(read).slice(header_bytes..);
    let Some(raw) = raw_of(&header, stored) else { return Ok(None) };
    let is_right = <[u8; 32]>::from(Sha256::digest(&raw)) == *digest;
    Ok(is_right.then_some(raw))
}

/// The header, if it is that of this block and agrees with what the index said.
fn checked_header(bytes: &[u8], salt: u32, place: &BlockPlace, digest: &Digest) -> Option<FrameHeader> {
    let header = parse_header(bytes, salt, u64::from(place.at)).ok()?;
    let is_it = header.meta.kind == FrameKind::BLOCK
        && header.meta.digest == *digest
        && header.header_bytes == place.header_bytes
        && header.payload_bytes == place.stored_bytes;
    is_it.then_some(header)
}

/// The block out of what is stored; `None` if it cannot be.
pub(super) fn raw_of(header: &FrameHeader, stored: Bytes) -> Option<Bytes> {
    if !header.is_zstd {
        return Some(stored);
    }
    let raw = zstd::bulk::decompress(&stored, header.raw_bytes as usize).ok()?;
    (raw.len() == header.raw_bytes as usize).then(|| Bytes::from(raw))
}
