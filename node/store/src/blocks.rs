//! All blocks of this host: packs on disk, found by digest.
//!
//! What always holds:
//!
//! * Bytes are handed out only if they hash to the digest asked for (whole blocks) or prove themselves by CRC (ranges).
//! * After [`Blocks::sync`] returned `Ok`, every block put before the call is durable. The first failed sync is final for writing.
//! * The index only ever holds places of durable frames, so a crash cannot leave it pointing at what is not there; and what it says
//!   is checked against the frame's header all the same.
//! * Blocks are keyed by multihash: the same bytes under two codecs are one block.
//!
//! Locks, in the order in which they may be taken: `drain`, `append`, `recent`, `packs`. Reads take the last two only, and for a lookup.
//! No lock that reads need is held during a sync.

mod drain;
mod open;
mod trait_impls;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use parking_lot::{Mutex, RwLock};
use remora_dag::block::{SHA2_256, identity_bytes};
use sha2::{Digest as _, Sha256};

use crate::blocks::drain::Worker;
use crate::disk::Disk;
use crate::fault::DiskFault;
use crate::frame::{
    FrameHeader, FrameKind, FrameMeta, PAYLOAD_BYTES_MAX, Stored, frame_span, parse_header, piece_crcs,
};
use crate::group_sync::GroupSync;
use crate::index::{BlockPlace, Digest, IndexError, IndexKind, IndexStore, Recent};
use crate::pack::{Pack, PackEnd};
use crate::scan::mark_of;

/// Places that wait for the index before the background thread is woken.
const DRAIN_AT: usize = 4096;
/// Places that wait for the index before a put has to move them itself.
const DRAIN_NOW: usize = 65_536;
/// Damaged blocks remembered, so that the next put of one stores it anew.
const SUSPECTS_MAX: usize = 65_536;
/// Blocks shorter than this are not worth compressing.
const COMPRESS_BYTES_MIN: usize = 4096;

/// How blocks are kept.
#[derive(Clone, Debug)]
pub struct BlocksOptions {
    /// Where the index is.
    pub index: IndexKind,
    /// A pack is sealed when it is longer than this; at most 2 GiB.
    pub pack_bytes: u64,
    /// Compress blocks with zstd at this level where it saves an eighth; `None` stores them as they are.
    pub zstd_level: Option<i32>,
    /// Move places to the index on a thread of its own.
    pub is_background: bool,
}

impl BlocksOptions {
    /// Packs of 256 MiB, no compression, the index in the background.
    pub fn new(index: IndexKind) -> BlocksOptions {
        BlocksOptions { index, pack_bytes: 256 << 20, zstd_level: None, is_background: true }
    }
}

/// Why a block was not stored, read or made durable.
#[derive(Debug, thiserror::Error)]
pub enum BlocksError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// The disk is full. Nothing was stored; free space and try again.
    #[error("no space for block {cid}")]
    Full {
        /// The block.
        cid: Cid,
        /// What the disk said.
        source: Box<DiskFault>,
    },
    /// An earlier sync failed: nothing can be stored or made durable until the store is opened again. Reads go on.
    #[error("blocks closed for writing after a failure: {reason}")]
    Failed {
        /// The first failure.
        reason: Arc<str>,
    },
    /// The block is here but its bytes are wrong. Fetch it from a peer and put it; that heals it.
    #[error("block {cid} is damaged in pack {pack} at {at}")]
    Corrupt {
        /// The block.
        cid: Cid,
        /// Number of the pack.
        pack: u32,
        /// Offset of its frame.
        at: u32,
    },
    /// The hash function is none of ours (sha2-256; identity only to read).
    #[error("block {cid} is named by a hash function that is not kept here")]
    Unsupported {
        /// The block.
        cid: Cid,
    },
    /// Longer than a block may be.
    #[error("block {cid} has {bytes} bytes, more than {PAYLOAD_BYTES_MAX}")]
    TooLarge {
        /// The block.
        cid: Cid,
        /// Its length.
        bytes: usize,
    },
    /// Written by a newer version of this program; upgrade.
    #[error("{} {detail}", path.display())]
    Newer {
        /// The pack.
        path: PathBuf,
        /// Which version was found.
        detail: String,
    },
    /// The index failed; the packs are whole.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlocksRecovery {
    /// Blocks put into the index because it did not have them, or was not to be trusted.
    pub n_indexed: u64,
    /// Packs whose torn tail was cut. Nobody had been promised what was cut.
    pub n_torn: u64,
    /// Stretches of packs that were promised and cannot be read. Nothing was cut; readable blocks around them are served.
    pub damaged: Vec<DamagedStretch>,
}

/// Where bytes of a pack are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedStretch {
    /// Number of the pack.
    pub pack: u64,
    /// Where it begins.
    pub at: u64,
    /// The next frame that can be read, if there is one in this pack.
    pub next_valid: Option<u64>,
}

/// Figures about the blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlocksStat {
    /// Distinct blocks.
    pub n_blocks: u64,
    /// Packs on disk.
    pub n_packs: u64,
    /// Bytes of the packs on disk.
    pub pack_bytes: u64,
}

/// The blocks of this host, open. Any number of threads may put, read and sync at once.
pub struct Blocks {
    shared: Arc<Shared>,
    worker: Option<Worker>,
    recovery: BlocksRecovery,
}

struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: BlocksOptions,
    append: Mutex<Append>,
    recent: RwLock<Recent>,
    packs: RwLock<BTreeMap<u32, Arc<Pack>>>,
    index: IndexStore,
    drain: Mutex<()>,
    group: GroupSync,
    /// Digests of blocks found damaged; a put of one stores it anew.
    suspects: Mutex<BTreeSet<Digest>>,
    signal: drain::Signal,
}

/// The end of the pack that is written to.
struct Append {
    pack: Arc<Pack>,
    end: PackEnd,
    /// The table of contents of this pack.
    entries: Vec<(Digest, BlockPlace)>,
    /// Blocks written since the store was opened; what [`GroupSync`] counts.
    n_written: u64,
    /// Packs written to since the last sync took them.
    dirty: Vec<Arc<Pack>>,
    /// Up to where the packs are durable; written into each frame.
    synced: u64,
}

impl Blocks {
    /// Opens the packs in `dir`, making it if it is missing; brings the index up to date, from nothing if need be.
    ///
    /// # Errors
    /// [`BlocksError::Newer`] changes nothing. Damage is not an error; see [`Blocks::recovery`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: BlocksOptions) -> Result<Blocks, BlocksError> {
        let (shared, recovery) = open::open(disk, dir, options)?;
        let shared = Arc::new(shared);
        let worker = if shared.options.is_background { Worker::start(&shared) } else { None };
        Ok(Blocks { shared, worker, recovery })
    }

    /// What opening found.
    pub fn recovery(&self) -> &BlocksRecovery {
        &self.recovery
    }

    /// The block's bytes, hashed and found right; `None` if it is not here.
    ///
    /// # Errors
    /// [`BlocksError::Corrupt`]: fetch the block elsewhere and put it.
    pub fn get(&self, cid: &Cid) -> Result<Option<Bytes>, BlocksError> {
        if let Some(bytes) = identity_bytes(cid) {
            return Ok(Some(bytes));
        }
        let digest = digest_of(cid)?;
        let Some((pack, place)) = self.shared.find(&digest) else { return Ok(None) };
        let bytes = self.shared.read_whole(&pack, &place, &digest)?;
        bytes.map(Some).ok_or_else(|| self.shared.suspect(cid, digest, &place))
    }

    /// `len` bytes from `offset` of the block, clipped to it; only the 64 KiB pieces they lie in are read and proved.
    ///
    /// # Errors
    /// As [`Blocks::get`].
    pub fn get_range(&self, cid: &Cid, offset: u64, len: usize) -> Result<Option<Bytes>, BlocksError> {
        if let Some(bytes) = identity_bytes(cid) {
            return Ok(Some(remora_dag::block::slice_of(&bytes, offset, len)));
        }
        let digest = digest_of(cid)?;
        let Some((pack, place)) = self.shared.find(&digest) else { return Ok(None) };
        let bytes = self.shared.read_range(&pack, &place, &digest, offset, len)?;
        bytes.map(Some).ok_or_else(|| self.shared.suspect(cid, digest, &place))
    }

    /// Whether the block is here: its frame's header was read and names it.
    pub fn has(&self, cid: &Cid) -> Result<bool, BlocksError> {
        Ok(identity_bytes(cid).is_some() || self.len_of(cid)?.is_some())
    }

    /// The block's length in bytes, from its frame's header.
    pub fn len_of(&self, cid: &Cid) -> Result<Option<u64>, BlocksError> {
        if let Some(bytes) = identity_bytes(cid) {
            return Ok(Some(bytes.len() as u64));
        }
        let digest = digest_of(cid)?;
        let Some((pack, place)) = self.shared.find(&digest) else { return Ok(None) };
        let header = self.shared.read_header(&pack, &place, &digest)?;
        Ok(header.map(|header| u64::from(header.raw_bytes)))
    }

    /// Stores a block whose bytes the caller has hashed. Readable at once, durable after the next [`Blocks::sync`]. A block that is
    /// here already is not stored again, unless it was found damaged. An identity CID needs no storing.
    ///
    /// # Errors
    /// [`BlocksError::Full`] leaves everything as it was.
    pub fn put(&self, cid: &Cid, bytes: &[u8]) -> Result<(), BlocksError> {
        if identity_bytes(cid).is_some() {
            return Ok(());
        }
        let digest = digest_of(cid)?;
        if bytes.len() > PAYLOAD_BYTES_MAX {
            return Err(BlocksError::TooLarge { cid: *cid, bytes: bytes.len() });
        }
        if self.shared.is_stored(&digest)? {
            return Ok(());
        }
        self.shared.append(cid, &digest, bytes)
    }

    /// Stores blocks in order, stopping at the first that cannot be stored.
    ///
    /// # Errors
    /// As [`Blocks::put`]; the blocks before it are stored.
    pub fn put_many<'a>(
        &self,
        blocks: &mut dyn Iterator<Item = (&'a Cid, &'a [u8])>,
    ) -> Result<(), BlocksError> {
        for (cid, bytes) in blocks {
            self.put(cid, bytes)?;
        }
        Ok(())
    }

    /// Makes every block put before the call durable. Callers that come while a sync runs share the next one.
    ///
    /// # Errors
    /// [`BlocksError::Failed`] for ever after the first failure.
    pub fn sync(&self) -> Result<(), BlocksError> {
        self.shared.sync()
    }

    /// Figures; counts the index.
    pub fn stat(&self) -> Result<BlocksStat, BlocksError> {
        let packs: Vec<Arc<Pack>> = self.shared.packs.read().values().cloned().collect();
        let mut stat = BlocksStat { n_packs: packs.len() as u64, ..BlocksStat::default() };
        for pack in packs {
            stat.pack_bytes += pack.file.len().map_err(DiskFault::at("measure pack", &pack.path))?;
        }
        // A block that was stored anew may be counted twice until the index has it.
        let n_recent = self.shared.recent.read().len();
        stat.n_blocks = self.shared.index.len() + n_recent as u64;
        Ok(stat)
    }

    /// Why nothing can be written, if so.
    pub fn failed(&self) -> Option<Arc<str>> {
        self.shared.group.failed()
    }

    /// Stops the background thread, makes everything durable and marks the index as complete, so that the next open is quick.
    ///
    /// # Errors
    /// If anything could not be made durable; what [`Blocks::sync`] promised before stands.
    pub fn close(mut self) -> Result<(), BlocksError> {
        if let Some(worker) = self.worker.take() {
            worker.stop(&self.shared);
        }
        self.shared.checkpoint(true)
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop(&self.shared);
        }
    }
}

impl Shared {
    /// Where the block's frame should be.
    fn find(&self, digest: &Digest) -> Option<(Arc<Pack>, BlockPlace)> {
        // Recent first, the index second, and recent once more: a place moves from one to the other in between.
        let place = {
            let recent = self.recent.read().get(digest);
            recent.or_else(|| self.index.get(digest)).or_else(|| self.recent.read().get(digest))
        }?;
        let pack = self.packs.read().get(&place.pack).cloned()?;
        Some((pack, place))
    }

    /// The whole block, or `None` if the bytes at that place are not it.
    fn read_whole(
        &self,
        pack: &Pack,
        place: &BlockPlace,
        digest: &Digest,
    ) -> Result<Option<Bytes>, BlocksError> {
        let header_bytes = place.header_bytes as usize;
        let len = header_bytes.saturating_add(place.stored_bytes as usize);
        if len > crate::frame::HEADER_BYTES_MAX + PAYLOAD_BYTES_MAX {
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

    fn read_range(
        &self,
        pack: &Pack,
        place: &BlockPlace,
        digest: &Digest,
        offset: u64,
        len: usize,
    ) -> Result<Option<Bytes>, BlocksError> {
        let Some(header) = self.read_header(pack, place, digest)? else { return Ok(None) };
        if header.is_zstd {
            let whole = self.read_whole(pack, place, digest)?;
            return Ok(whole.map(|bytes| remora_dag::block::slice_of(&bytes, offset, len)));
        }
        let total = header.payload_bytes as usize;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(total);
        let end = start.saturating_add(len).min(total);
        let cover = header.cover(start, end - start);
        let at = header.payload_at() + cover.start as u64;
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
    fn read_header(
        &self,
        pack: &Pack,
        place: &BlockPlace,
        digest: &Digest,
    ) -> Result<Option<FrameHeader>, BlocksError> {
        let len = (place.header_bytes as usize).min(crate::frame::HEADER_BYTES_MAX);
        let read = pack
            .file
            .read_vec(u64::from(place.at), len)
            .map_err(DiskFault::at("read block header", &pack.path))?;
        Ok(checked_header(&read, pack.salt, place, digest))
    }

    /// Whether a put of this block may be skipped.
    fn is_stored(&self, digest: &Digest) -> Result<bool, BlocksError> {
        let Some((pack, place)) = self.find(digest) else { return Ok(false) };
        if self.suspects.lock().contains(digest) {
            return Ok(false);
        }
        Ok(self.read_header(&pack, &place, digest)?.is_some())
    }

    fn suspect(&self, cid: &Cid, digest: Digest, place: &BlockPlace) -> BlocksError {
        let mut suspects = self.suspects.lock();
        if suspects.len() < SUSPECTS_MAX {
            suspects.insert(digest);
        }
        BlocksError::Corrupt { cid: *cid, pack: place.pack, at: place.at }
    }

    /// Writes the block's frame at the end of the packs.
    fn append(&self, cid: &Cid, digest: &Digest, bytes: &[u8]) -> Result<(), BlocksError> {
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

    fn write(
        &self,
        append: &mut Append,
        cid: &Cid,
        meta: &FrameMeta,
        stored: &Stored<'_>,
        payload: &[u8],
    ) -> Result<BlockPlace, BlocksError> {
        let span = frame_span(append.end.at, stored.payload_bytes).1;
        if append.end.at + span > self.options.pack_bytes && !append.entries.is_empty() {
            self.roll(append).map_err(|fault| refused(cid, fault))?;
        }
        let pack = append.pack.clone();
        let at = append.end.at;
        let written = pack.write(append.end, append.synced, meta, stored, payload);
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
        append.n_written += 1;
        append.entries.push((meta.digest, place));
        if append.dirty.last().is_none_or(|last| last.number != pack.number) {
            append.dirty.push(pack);
        }
        Ok(place)
    }

    /// Cuts off what a failed write may have left behind `at`. If even that fails nothing more may be written.
    fn take_back(&self, pack: &Pack, at: u64) {
        if let Err(error) = pack.file.set_len(at) {
            let fault = DiskFault::at("cut a half-written block", &pack.path)(error);
            self.group.fail(fault.to_string().into());
        }
    }

    /// Seals the pack and begins the next. The seal becomes durable with the next sync.
    fn roll(&self, append: &mut Append) -> Result<(), DiskFault> {
        let next = open::create_pack(&*self.disk, &self.dir, append.pack.number + 1)?;
        let entries = std::mem::take(&mut append.entries);
        if let Err(error) = append.pack.seal(append.end, append.synced, entries) {
            // Not sealed is slower to open, not wrong.
            tracing::warn!(pack = append.pack.number, %error, "cannot seal a pack");
            self.take_back(&append.pack, append.end.at);
        }
        // The seal was written, so the pack has something to sync even if its last block has been synced before.
        if append.dirty.last().is_none_or(|last| last.number != append.pack.number) {
            append.dirty.push(append.pack.clone());
        }
        let next = Arc::new(next);
        self.packs.write().insert(next.number as u32, next.clone());
        append.pack = next;
        append.end = PackEnd { at: crate::file_header::FILE_HEADER_BYTES, prev: 0 };
        self.signal.wake_rolled();
        Ok(())
    }

    fn sync(&self) -> Result<(), BlocksError> {
        let wanted = self.append.lock().n_written;
        self.group.reach(wanted, || self.sync_dirty()).map_err(|reason| BlocksError::Failed { reason })
    }

    /// One sync of everything written so far; run by one caller at a time.
    fn sync_dirty(&self) -> Result<u64, Arc<str>> {
        let (n_written, mark, dirty) = {
            let mut append = self.append.lock();
            let mark = mark_of(append.pack.number, append.end.at);
            (append.n_written, mark, std::mem::take(&mut append.dirty))
        };
        for pack in dirty {
            pack.file
                .sync_data()
                .map_err(|error| Arc::from(DiskFault::at("sync pack", &pack.path)(error).to_string()))?;
        }
        let mut append = self.append.lock();
        append.synced = append.synced.max(mark);
        Ok(n_written)
    }
}

fn digest_of(cid: &Cid) -> Result<Digest, BlocksError> {
    let hash = cid.hash();
    match (hash.code(), Digest::try_from(hash.digest())) {
        (SHA2_256, Ok(digest)) => Ok(digest),
        _ => Err(BlocksError::Unsupported { cid: *cid }),
    }
}

fn refused(cid: &Cid, fault: DiskFault) -> BlocksError {
    if fault.is_full() { BlocksError::Full { cid: *cid, source: Box::new(fault) } } else { fault.into() }
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
fn raw_of(header: &FrameHeader, stored: Bytes) -> Option<Bytes> {
    if !header.is_zstd {
        return Some(stored);
    }
    let raw = zstd::bulk::decompress(&stored, header.raw_bytes as usize).ok()?;
    (raw.len() == header.raw_bytes as usize).then(|| Bytes::from(raw))
}

fn compress(bytes: &[u8], level: i32) -> Option<Vec<u8>> {
    if bytes.len() < COMPRESS_BYTES_MIN {
        return None;
    }
    let packed = zstd::bulk::compress(bytes, level).ok()?;
    (packed.len() <= bytes.len() - bytes.len() / 8).then_some(packed)
}
