//! All blocks of this host: packs on disk, found by digest.
//!
//! What always holds:
//!
//! * Bytes are handed out only if they hash to the digest asked for (whole blocks) or prove themselves by CRC (ranges).
//! * After [`Blocks::sync`] returned `Ok`, every block put before the call is durable. The first failed sync is final for writing.
//! * A pack is sealed after its blocks were made durable: what is found in a sealed pack is durable.
//! * The index only ever holds places of durable frames, so a crash cannot leave it pointing at what is not there; and what it says
//!   is checked against the frame's header all the same.
//! * Blocks are keyed by multihash: the same bytes under two codecs are one block.
//!
//! Locks, in the order in which they may be taken: `sweeping`, `touches`, `drain`, `sealing`, `append`, `recent`, `packs`. Reads take the last two only, and for a lookup.
//! No lock that reads need is held during a sync.

mod append;
mod drain;
mod open;
mod read;
mod reindex;
mod seal;
pub mod sweep;
pub mod touches;
mod trait_impls;
mod verify;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use parking_lot::{Mutex, RwLock};
use remora_dag::block::{SHA2_256, identity_bytes};

use crate::blocks::drain::Worker;
use crate::blocks::read::read_whole;
use crate::blocks::seal::FullPack;
use crate::blocks::touches::Touches;
use crate::disk::Disk;
use crate::fault::DiskFault;
use crate::frame::PAYLOAD_BYTES_MAX;
use crate::group_sync::GroupSync;
use crate::index::{BlockPlace, Digest, IndexError, IndexKind, IndexStore, Recent};
use crate::pack::{Pack, PackEnd};
use crate::pack_files::PackFiles;
use crate::reserve::Reserve;

/// Places that wait for the index before the background thread is woken.
const DRAIN_AT: usize = 4096;
/// Places that wait for the index before a put has to move them itself.
const DRAIN_NOW: usize = 65_536;
/// Damaged blocks remembered, so that the next put of one stores it anew.
const SUSPECTS_MAX: usize = 65_536;
/// Blocks shorter than this are not worth compressing.
const COMPRESS_BYTES_MIN: usize = 4096;

/// Blocks of a pack, at most: a pack of files of a few bytes would have a million.
pub const PACK_BLOCKS_MAX: usize = 128 << 10;

/// How blocks are kept.
#[derive(Clone, Debug)]
pub struct BlocksOptions {
    /// Where the index is.
    pub index: IndexKind,
    /// A pack is sealed when it is longer than this; at most 2 GiB.
    pub pack_bytes: u64,
    /// A pack is sealed when it has this many blocks: their places are in memory until then, 56 bytes each.
    pub pack_blocks_max: usize,
    /// Packs whose files are open at a time, besides those that are written to.
    pub open_packs_max: usize,
    /// Compress blocks with zstd at this level where it saves an eighth; `None` stores them as they are.
    pub zstd_level: Option<i32>,
    /// Move places to the index on a thread of its own.
    pub is_background: bool,
    /// Space that is given up piece by piece when the disk is full and [`Blocks::relieve`] is called, or a sweep needs it.
    pub reserve: Option<Arc<Reserve>>,
}

impl BlocksOptions {
    /// Packs of 256 MiB or [`PACK_BLOCKS_MAX`] blocks, no compression, the index in the background.
    pub fn new(index: IndexKind) -> BlocksOptions {
        BlocksOptions {
            index,
            pack_bytes: 256 << 20,
            pack_blocks_max: PACK_BLOCKS_MAX,
            open_packs_max: 256,
            zstd_level: None,
            is_background: true,
            reserve: None,
        }
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
    files: Arc<PackFiles>,
    index: IndexStore,
    drain: Mutex<()>,
    /// Held by whoever seals packs.
    sealing: Mutex<()>,
    group: GroupSync,
    /// Digests of blocks found damaged; a put of one stores it anew.
    suspects: Mutex<BTreeSet<Digest>>,
    /// Blocks that no sweep may take yet.
    touches: Mutex<Touches>,
    /// Held by whoever walks all packs.
    sweeping: Mutex<()>,
    signal: drain::Signal,
}

/// The end of the pack that is written to.
struct Append {
    pack: Arc<Pack>,
    end: PackEnd,
    /// The table of contents of this pack.
    entries: Vec<(Digest, BlockPlace)>,
    /// Packs before this one that wait for their seals, the oldest first.
    full: VecDeque<Arc<FullPack>>,
    /// Blocks written since the store was opened; what [`GroupSync`] counts.
    n_written: u64,
    /// Packs written to since the last sync took them.
    dirty: Vec<Arc<Pack>>,
    /// Position behind the last block. While this pack has none it is in one before: only a block makes this one follow that one.
    written: u64,
    /// Up to where the packs are durable; see [`Append::claim`].
    synced: u64,
}

impl Blocks {
    /// Opens the packs in `dir`, making it if it is missing; brings the index up to date, from nothing if need be.
    ///
    /// # Errors
    /// [`BlocksError::Newer`] changes nothing. Damage is not an error; see [`Blocks::recovery`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: BlocksOptions) -> Result<Blocks, BlocksError> {
        let (shared, recovery) = match open::open(disk.clone(), dir, options.clone()) {
            // The packs are whole: the store works without its index on disk.
            Err(BlocksError::Index(error)) => {
                let options = BlocksOptions { index: IndexKind::Memory, ..options };
                let (shared, recovery) = open::open(disk, dir, options)?;
                shared.index.note_failure(&error);
                (shared, recovery)
            }
            other => other?,
        };
        let shared = Arc::new(shared);
        if shared.recent.read().len() >= DRAIN_AT {
            shared.signal.wake();
        }
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
        self.shared.read_found(cid, &digest, |pack, place| read_whole(pack, place, &digest))
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
        self.shared
            .read_found(cid, &digest, |pack, place| self.shared.read_range(pack, place, &digest, offset, len))
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
        let read = |pack: &Pack, place: &_| self.shared.read_header(pack, place, &digest);
        match self.shared.read_found(cid, &digest, read) {
            Ok(header) => Ok(header.map(|header| u64::from(header.raw_bytes))),
            Err(BlocksError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
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
        // First, so that a sweep that does not see this has made the block unfindable.
        let generation = self.shared.touches.lock().touch(&digest);
        if self.shared.is_stored(&digest)? {
            return Ok(());
        }
        self.shared.append(cid, &digest, bytes)?;
        self.shared.touches.lock().forget(&digest, generation);
        Ok(())
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

    /// Bytes of all packs; the first question after an open measures every pack, later ones do not.
    ///
    /// # Errors
    /// A pack cannot be measured.
    pub fn pack_bytes(&self) -> Result<u64, BlocksError> {
        let packs: Vec<Arc<Pack>> = self.shared.packs.read().values().cloned().collect();
        packs.iter().try_fold(0, |sum, pack| {
            Ok(sum + pack.file.len().map_err(DiskFault::at("measure pack", &pack.path))?)
        })
    }

    /// Figures; as quick as [`Blocks::pack_bytes`].
    pub fn stat(&self) -> Result<BlocksStat, BlocksError> {
        let n_packs = self.shared.packs.read().len() as u64;
        let pack_bytes = self.pack_bytes()?;
        // A block that was stored anew may be counted twice until the index has it.
        // While places are on their way to the index they are in both; that would count them twice.
        let _at_rest = self.shared.drain.lock();
        let n_recent = self.shared.recent.read().len();
        Ok(BlocksStat { n_blocks: self.shared.index.len() + n_recent as u64, n_packs, pack_bytes })
    }

    /// Space that is set aside for when the disk is full.
    pub fn reserve(&self) -> Option<&Arc<Reserve>> {
        self.shared.options.reserve.as_ref()
    }

    /// Bytes of it that are allocated now.
    pub fn aside_bytes(&self) -> u64 {
        self.shared.aside_bytes()
    }

    /// Gives up a piece of the space that is set aside; answers whether there was any. For whoever has to write something on a full
    /// disk that will give back more.
    pub fn relieve(&self) -> bool {
        self.shared.relieve()
    }

    /// Why the index on disk was given up and places are kept in memory, if so. Nothing is lost by it but memory.
    pub fn index_failure(&self) -> Option<Arc<str>> {
        self.shared.index.failure()
    }

    /// Why nothing can be written, if so.
    pub fn failed(&self) -> Option<Arc<str>> {
        self.shared.group.failed()
    }

    /// Makes everything durable and marks the index as complete, for a store that others still hold. Nothing may be put
    /// afterwards until the store is opened again: the mark would not tell of it.
    ///
    /// # Errors
    /// As [`Blocks::close`].
    pub fn mark_clean(&self) -> Result<(), BlocksError> {
        self.shared.checkpoint(true)
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

fn digest_of(cid: &Cid) -> Result<Digest, BlocksError> {
    let hash = cid.hash();
    match (hash.code(), Digest::try_from(hash.digest())) {
        (SHA2_256, Ok(digest)) => Ok(digest),
        _ => Err(BlocksError::Unsupported { cid: *cid }),
    }
}
