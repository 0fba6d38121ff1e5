//! Writing blocks, rolling from pack to pack, and making them durable.

use std::sync::Arc;

use cid::Cid;

use crate::blocks::seal::FullPack;
use crate::blocks::{Append, BlocksError, COMPRESS_BYTES_MIN, DRAIN_AT, DRAIN_NOW, Shared, open};
use crate::fault::DiskFault;
use crate::file_header::FILE_HEADER_BYTES;
use crate::frame::{FrameKind, FrameMeta, Stored, frame_span, piece_crcs};
use crate::index::{BlockPlace, Digest};
use crate::pack::{Pack, PackEnd};
use crate::reserve::from_reserve;
use crate::scan::mark_of;

impl Shared {
    /// Writes the block's frame at the end of the packs.
    pub(super) fn append(&self, cid: &Cid, digest: &Digest, bytes: &[u8]) -> Result<(), BlocksError> {
        let packed = self.options.zstd_level.and_then(|level| compress(bytes, level));
        let payload = packed.as_deref().unwrap_or(bytes);
        let pieces = piece_crcs(&[payload]);
        let stored = Stored {
            payload_bytes: payload.len(),
            raw_bytes: bytes.len(),
            is_zstd: packed.is_some(),
            pieces: &pieces,
        };
        let codec = u32::try_from(cid.codec()).map_err(|_| BlocksError::Unsupported { cid: *cid })?;
        let meta = FrameMeta { kind: FrameKind::BLOCK, term: 0, seq: 0, codec, digest: *digest };
        let n_fresh = {
            let mut append = self.append.lock();
            if let Some(reason) = self.group.failed() {
                return Err(BlocksError::Failed { reason });
            }
            let is_suspect = self.suspects.lock().contains(digest);
            if !is_suspect && self.recent.read().get(digest).is_some() {
                return Ok(());
            }
            let place = self.write(&mut append, cid, &meta, &stored, payload)?;
            self.suspects.lock().remove(digest);
            self.recent.write().insert(*digest, place)
        };
        if n_fresh >= DRAIN_NOW {
            self.drain()?;
        } else if n_fresh >= DRAIN_AT {
            self.signal.wake();
        }
        Ok(())
    }

    pub(super) fn write(
        &self,
        append: &mut Append,
        cid: &Cid,
        meta: &FrameMeta,
        stored: &Stored<'_>,
        payload: &[u8],
    ) -> Result<BlockPlace, BlocksError> {
        let span = frame_span(append.end.at, stored.payload_bytes).1;
        let is_full = append.end.at + span > self.options.pack_bytes
            || append.entries.len() >= self.options.pack_blocks_max;
        if is_full && !append.entries.is_empty() {
            self.roll(append).map_err(|fault| refused(cid, fault))?;
        }
        let pack = append.pack.clone();
        let at = append.end.at;
        let written = pack.write(append.end, append.claim(), meta, stored, payload);
        let (end, header_bytes) = match written {
            Ok(written) => written,
            Err(error) => {
                self.take_back(&pack, at);
                return Err(refused(cid, DiskFault::at("append block", &pack.path)(error)));
            }
        };
        let place = BlockPlace {
            pack: pack.number as u32,
            at: at as u32,
            header_bytes: header_bytes as u32,
            stored_bytes: stored.payload_bytes as u32,
            raw_bytes: stored.raw_bytes as u32,
            codec: meta.codec,
        };
        append.end = end;
        append.written = mark_of(pack.number, end.at);
        append.n_written += 1;
        append.entries.push((meta.digest, place));
        if append.dirty.last().is_none_or(|last| last.number != pack.number) {
            append.dirty.push(pack);
        }
        Ok(place)
    }

    /// Cuts off what a failed write may have left behind `at`. If even that fails nothing more may be written.
    pub(super) fn take_back(&self, pack: &Pack, at: u64) {
        if let Err(error) = pack.file.set_len(at) {
            let fault = DiskFault::at("cut a half-written block", &pack.path)(error);
            self.group.fail(fault.to_string().into());
        }
    }

    pub(super) fn aside_bytes(&self) -> u64 {
        self.options.reserve.as_ref().map_or(0, |reserve| reserve.bytes())
    }

    pub(super) fn relieve(&self) -> bool {
        self.options.reserve.as_ref().is_some_and(|reserve| reserve.give())
    }

    /// As [`Shared::append`], with what is set aside for a full disk.
    pub(super) fn append_from_reserve(
        &self,
        cid: &Cid,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), BlocksError> {
        let is_full = |error: &BlocksError| matches!(error, BlocksError::Full { .. });
        from_reserve(|| self.relieve(), is_full, || self.append(cid, digest, bytes))
    }

    /// Begins the next pack if this one has at least `bytes_min`; answers whether it did.
    pub(super) fn roll_early(&self, bytes_min: u64) -> Result<bool, DiskFault> {
        let mut append = self.append.lock();
        if append.entries.is_empty() || append.end.at < bytes_min || self.group.failed().is_some() {
            return Ok(false);
        }
        from_reserve(|| self.relieve(), DiskFault::is_full, || self.roll(&mut append))?;
        Ok(true)
    }

    /// Begins the next pack. The full one is sealed when its blocks are durable.
    pub(super) fn roll(&self, append: &mut Append) -> Result<(), DiskFault> {
        let next = Arc::new(open::create_pack(&*self.disk, &self.dir, append.pack.number + 1)?);
        self.packs.write().insert(next.number as u32, next.clone());
        append.full.push_back(Arc::new(FullPack {
            pack: std::mem::replace(&mut append.pack, next),
            end: append.end,
            entries: std::mem::take(&mut append.entries),
            n_written: append.n_written,
            is_named: true,
        }));
        // The chain goes on, which proves to a later open that this pack ended where it did, even without its seal.
        append.end = PackEnd { at: FILE_HEADER_BYTES, prev: append.end.prev };
        self.signal.wake_rolled();
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), BlocksError> {
        let wanted = self.append.lock().n_written;
        self.group.reach(wanted, || self.sync_dirty()).map_err(|reason| BlocksError::Failed { reason })?;
        // Else the thread that was woken when the pack was full does it, and nobody waits for that.
        if !self.options.is_background {
            self.seal_full_or_later();
        }
        Ok(())
    }

    /// One sync of everything written so far; run by one caller at a time.
    pub(super) fn sync_dirty(&self) -> Result<u64, Arc<str>> {
        let (n_written, mark, dirty) = {
            let mut append = self.append.lock();
            (append.n_written, append.written, std::mem::take(&mut append.dirty))
        };
        for pack in &dirty {
            pack.file
                .sync_data()
                .map_err(|error| Arc::from(DiskFault::at("sync pack", &pack.path)(error).to_string()))?;
        }
        let mut append = self.append.lock();
        append.synced = append.synced.max(mark);
        Ok(n_written)
    }
}

fn refused(cid: &Cid, fault: DiskFault) -> BlocksError {
    if fault.is_full() { BlocksError::Full { cid: *cid, source: Box::new(fault) } } else { fault.into() }
}

fn compress(bytes: &[u8], level: i32) -> Option<Vec<u8>> {
    if bytes.len() < COMPRESS_BYTES_MIN {
        return None;
    }
    let packed = zstd::bulk::compress(bytes, level).ok()?;
    (packed.len() <= bytes.len() - bytes.len() / 8).then_some(packed)
}
