//! Which frame holds a block: digest to place. Disposable; the packs are the truth.
//!
//! An answer is a hint: whoever reads the frame compares the digest in its header. A lost answer costs a block that is not found until
//! the index is rebuilt, so [`IndexStore`] says when it may not be trusted: a mark beside the tables holds the generation, whether
//! the last stop was clean, which packs it is about, and after a clean stop the checksum of the tables. sled panics inside `open` on
//! some damage, so it runs under `catch_unwind`, and any error or panic there wipes the directory. The first error later is final:
//! from then on the places are kept in memory, and the next open begins anew.

mod count;
mod proof;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::ctl::{Slots, SlotsError};
use crate::disk::{Disk, RealDisk};
use crate::fault::DiskFault;
use crate::index::count::Count;
use crate::layout::{INDEX_MARK, INDEX_TABLES, INDEX_VERSION};

/// A block's name on disk: the digest of its multihash.
pub type Digest = [u8; 32];

/// Bytes of tables that sled keeps decoded, as long as they are on disk: it takes about four times that, and a fixed 20 MiB.
const CACHE_BYTES: u64 = 16 << 20;
const PLACE_BYTES: usize = 24;
/// Flushes until nothing is left, at most.
const FLUSHES_MAX: usize = 16;
/// How long an opening waits for sled's lock, and between two looks.
const LOCKED_TIMEOUT: Duration = Duration::from_secs(5);
const LOCKED_PAUSE: Duration = Duration::from_millis(5);
const GENERATION_KEY: &[u8] = b"generation";

/// Where a block's frame lies, and enough of its header to read it in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Number of the pack.
    pub pack: u32,
    /// Offset of the frame in the pack; packs are far below 4 GiB.
    pub at: u32,
    /// Bytes from the frame's start to its payload.
    pub header_bytes: u32,
    /// Bytes of the payload as stored.
    pub stored_bytes: u32,
    /// Bytes of the block.
    pub raw_bytes: u32,
    /// Multicodec code it was put under.
    pub codec: u32,
}

impl BlockPlace {
    /// The place as it is kept in footers and in the index: six little-endian numbers.
    pub fn encode(&self) -> [u8; PLACE_BYTES] {
        let mut out = [0; PLACE_BYTES];
        let fields = [self.pack, self.at, self.header_bytes, self.stored_bytes, self.raw_bytes, self.codec];
        for (slot, field) in out.chunks_exact_mut(4).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    /// Reads a place; `None` if the length is wrong.
    pub fn decode(bytes: &[u8]) -> Option<BlockPlace> {
        if bytes.len() != PLACE_BYTES {
            return None;
        }
        let field = |i: usize| crate::frame::u32_at(bytes, 4 * i);
        Some(BlockPlace {
            pack: field(0),
            at: field(1),
            header_bytes: field(2),
            stored_bytes: field(3),
            raw_bytes: field(4),
            codec: field(5),
        })
    }
}

/// Where the index is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexKind {
    /// In memory, rebuilt from the packs at every open: for tests and simulations.
    Memory,
    /// In this directory of the real disk.
    Sled(PathBuf),
}

/// An index that failed; the packs are not touched by it.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The tables answered with an error.
    #[error("index: {0}")]
    Tables(#[from] sled::Error),
    /// sled panicked; the index must be wiped.
    #[error("index panicked")]
    Panicked,
    /// The mark beside the tables could not be kept.
    #[error("index mark: {0}")]
    Mark(#[from] SlotsError),
    /// The directory could not be made or wiped.
    #[error(transparent)]
    Disk(#[from] DiskFault),
}

/// Up to where the packs are in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct Covered {
    /// Number of the pack.
    pub pack: u64,
    /// Offset in it.
    pub offset: u64,
    /// The pack's salt: the index of another store is about other packs.
    pub salt: u32,
}

/// What the mark beside the tables says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    version: u32,
    generation: u64,
    is_clean: bool,
    covered: Covered,
    n_entries: u64,
    /// CRC32C of the tables' files; after a clean stop.
    tables_crc: Option<u32>,
}

/// The index, wherever it is kept.
pub struct IndexStore {
    tables: RwLock<Tables>,
    /// Whether it is known to have every place it should have.
    is_proven: AtomicBool,
    /// Why the tables were given up, if they were.
    failure: RwLock<Option<Arc<str>>>,
}

enum Tables {
    Memory(RwLock<BTreeMap<Digest, BlockPlace>>),
    Sled(Box<SledTables>),
}

struct SledTables {
    dir: PathBuf,
    /// How many places there are. Held while places come or go.
    count: Count,
    db: sled::Db,
    places: sled::Tree,
    mark: Slots<Mark>,
}

impl SledTables {
    fn len(&self) -> u64 {
        self.count.get(&self.places)
    }
}

impl IndexStore {
    /// Opens the index. What it returns beside it is up to where the packs are in it: everything behind must be put in again. A new,
    /// damaged or incomplete index comes back empty with nothing covered; one that cannot be made is kept in memory.
    pub fn open(kind: &IndexKind) -> (IndexStore, Covered) {
        let IndexKind::Sled(dir) = kind else { return (IndexStore::in_memory(), Covered::default()) };
        match reopen(dir) {
            Ok(Some((tables, covered, is_proven))) => {
                return (IndexStore::over(Tables::Sled(Box::new(tables)), is_proven), covered);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(dir = %dir.display(), %error, "index is wiped and rebuilt"),
        }
        (IndexStore::empty(dir), Covered::default())
    }

    /// An empty index in this directory, or in memory if that cannot be.
    fn empty(dir: &Path) -> IndexStore {
        match make_empty(dir) {
            Ok(tables) => IndexStore::over(Tables::Sled(Box::new(tables)), true),
            Err(error) => {
                tracing::error!(dir = %dir.display(), %error, "no index can be made: places are kept in memory");
                let index = IndexStore::in_memory();
                index.note_failure(&error);
                index
            }
        }
    }

    /// An empty index in memory.
    pub fn in_memory() -> IndexStore {
        IndexStore::over(Tables::Memory(RwLock::new(BTreeMap::new())), true)
    }

    fn over(tables: Tables, is_proven: bool) -> IndexStore {
        IndexStore {
            tables: RwLock::new(tables),
            is_proven: AtomicBool::new(is_proven),
            failure: RwLock::new(None),
        }
    }

    /// The same index without anything in it: what it said is about other packs.
    pub fn wiped(self, kind: &IndexKind) -> IndexStore {
        drop(self);
        match kind {
            IndexKind::Memory => IndexStore::in_memory(),
            IndexKind::Sled(dir) => IndexStore::empty(dir),
        }
    }

    /// Whether it is known to have every place it should have: made anew, or proved by its checksum after a clean stop.
    pub fn is_proven(&self) -> bool {
        self.is_proven.load(Ordering::Acquire)
    }

    /// Every place of the packs has been put in.
    pub fn set_proven(&self) {
        self.is_proven.store(true, Ordering::Release);
    }

    /// Why the tables on disk were given up and the places are in memory, if so.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.failure.read().clone()
    }

    /// The tables on disk cannot be used; the first reason stays.
    pub fn note_failure(&self, error: &IndexError) {
        self.failure.write().get_or_insert_with(|| error.to_string().into());
    }

    /// Gives the tables up after `error`: from here on the places of `places` are the index. The next open begins anew.
    pub fn give_up(&self, places: IndexStore, error: &IndexError) {
        let before = std::mem::replace(&mut *self.tables.write(), places.tables.into_inner());
        self.note_failure(error);
        self.set_proven();
        if let Tables::Sled(tables) = before {
            if let Err(error) = std::fs::remove_file(tables.dir.join(INDEX_MARK)) {
                tracing::warn!(%error, "the mark of a failed index stays; it says nothing that was not durable");
            }
            // Its destructor would write to what has failed.
            std::mem::forget(tables);
        }
    }

    /// Where the block may lie. `None` also for an answer that cannot be read.
    ///
    /// # Errors
    /// The tables failed: see [`IndexStore::give_up`].
    pub fn get(&self, digest: &Digest) -> Result<Option<BlockPlace>, IndexError> {
        match &*self.tables.read() {
            Tables::Memory(map) => Ok(map.read().get(digest).copied()),
            Tables::Sled(tables) => {
                let value = guarded(|| tables.places.get(digest))?;
                Ok(value.and_then(|value| BlockPlace::decode(&value)))
            }
        }
    }

    /// Puts places in; not durable.
    pub fn insert_all(&self, places: &[(Digest, BlockPlace)]) -> Result<(), IndexError> {
        match &*self.tables.read() {
            Tables::Memory(map) => {
                map.write().extend(places.iter().copied());
                Ok(())
            }
            Tables::Sled(tables) => {
                let mut count = tables.count.lock();
                for (digest, place) in places {
                    let before = guarded(|| tables.places.insert(&digest[..], &place.encode()[..]))?;
                    count.add(u64::from(before.is_none()));
                }
                Ok(())
            }
        }
    }

    /// Takes places out; not durable: after a crash they may be back, and lead nowhere.
    pub fn remove_all(&self, digests: &[Digest]) -> Result<(), IndexError> {
        match &*self.tables.read() {
            Tables::Memory(map) => {
                let mut map = map.write();
                for digest in digests {
                    map.remove(digest);
                }
                Ok(())
            }
            Tables::Sled(tables) => {
                let mut count = tables.count.lock();
                for digest in digests {
                    let before = guarded(|| tables.places.remove(&digest[..]))?;
                    count.take(u64::from(before.is_some()));
                }
                Ok(())
            }
        }
    }

    /// Says how many places there are at least; fewer at an open after a crash mean that the tables lost some.
    pub fn set_count(&self, n_entries: u64) -> Result<(), IndexError> {
        let held = self.tables.read();
        let Tables::Sled(tables) = &*held else { return Ok(()) };
        Ok(tables.mark.put(&Mark { n_entries, ..tables.mark.get() })?)
    }

    /// Makes everything put in so far durable, then says so: `covered` is where the packs were when the last of it was put in.
    pub fn checkpoint(&self, covered: Covered, is_clean: bool) -> Result<(), IndexError> {
        let held = self.tables.read();
        let Tables::Sled(tables) = &*held else { return Ok(()) };
        // After an unclean stop the last count is a lower bound; a sweep that runs sets it by itself.
        let n_entries = if is_clean { tables.len() } else { tables.mark.get().n_entries };
        // One flush may leave something for the next; sled's end would write it behind the checksum's back.
        for _ in 0..FLUSHES_MAX {
            if guarded(|| tables.db.flush())? == 0 {
                break;
            }
        }
        sync_tables(&tables.dir)?;
        let tables_crc = if is_clean { Some(proof::crc_of(&tables.dir.join(INDEX_TABLES))?) } else { None };
        let mark = Mark { is_clean, covered, n_entries, tables_crc, ..tables.mark.get() };
        Ok(tables.mark.put(&mark)?)
    }

    /// Whether it has fewer places than its mark says: after a power cut sled may have lost some without saying so. Counts them, if
    /// nobody has.
    pub fn lacks_places(&self) -> bool {
        match &*self.tables.read() {
            Tables::Memory(_) => false,
            Tables::Sled(tables) => tables.len() < tables.mark.get().n_entries,
        }
    }

    /// How many blocks it knows. After an unclean stop they are counted when this is asked for the first time.
    pub fn len(&self) -> u64 {
        match &*self.tables.read() {
            Tables::Memory(map) => map.read().len() as u64,
            Tables::Sled(tables) => tables.len(),
        }
    }

    /// Whether it knows no block.
    pub fn is_empty(&self) -> bool {
        match &*self.tables.read() {
            Tables::Memory(map) => map.read().is_empty(),
            Tables::Sled(tables) => tables.places.is_empty(),
        }
    }

    /// Up to `max` places in order of digest, behind `after`.
    pub fn page(&self, after: Option<&Digest>, max: usize) -> Result<Vec<(Digest, BlockPlace)>, IndexError> {
        use std::ops::Bound::{Excluded, Unbounded};
        match &*self.tables.read() {
            Tables::Memory(map) => {
                let map = map.read();
                let from = after.map_or(Unbounded, |after| Excluded(*after));
                Ok(map.range((from, Unbounded)).take(max).map(|(digest, place)| (*digest, *place)).collect())
            }
            Tables::Sled(tables) => guarded(|| {
                let from = after.map_or(Unbounded, |after| Excluded(after.to_vec()));
                let mut page = Vec::new();
                for entry in tables.places.range((from, Unbounded)).take(max) {
                    let (key, value) = entry?;
                    if let (Ok(digest), Some(place)) =
                        (Digest::try_from(&key[..]), BlockPlace::decode(&value))
                    {
                        page.push((digest, place));
                    }
                }
                Ok(page)
            }),
        }
    }
}

/// Opens what an earlier process left, and says whether its checksum proved it; `None` if there is nothing to be trusted.
fn reopen(dir: &Path) -> Result<Option<(SledTables, Covered, bool)>, IndexError> {
    let mark: Slots<Mark> = match Slots::open(&RealDisk, &dir.join(INDEX_MARK)) {
        Ok(mark) => mark,
        Err(SlotsError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let said = mark.get();
    if said.version != INDEX_VERSION {
        return Ok(None);
    }
    // Before sled sees them: it takes some damage for a torn end and forgets what follows.
    let is_proven = match said.tables_crc.filter(|_| said.is_clean) {
        Some(crc) if crc != proof::crc_of(&dir.join(INDEX_TABLES))? => {
            tracing::warn!(dir = %dir.display(), "index is damaged: it is rebuilt from the packs");
            return Ok(None);
        }
        crc => crc.is_some(),
    };
    let (db, places) = open_tables(dir)?;
    let generation = guarded(|| db.get(GENERATION_KEY))?;
    if generation.as_deref() != Some(&said.generation.to_le_bytes()[..]) {
        return Ok(None);
    }
    // To count them takes a look at each: a start does not wait for that.
    let count = if said.is_clean { Count::known(said.n_entries) } else { Count::unknown() };
    mark.put(&Mark { is_clean: false, tables_crc: None, ..said.clone() })?;
    Ok(Some((SledTables { dir: dir.to_path_buf(), count, db, places, mark }, said.covered, is_proven)))
}

fn make_empty(dir: &Path) -> Result<SledTables, IndexError> {
    let mark_path = dir.join(INDEX_MARK);
    let before: u64 = match Slots::<Mark>::open(&RealDisk, &mark_path) {
        Ok(mark) => mark.get().generation,
        Err(_) => 0,
    };
    if dir.is_file() {
        std::fs::remove_file(dir).map_err(DiskFault::at("wipe index", dir))?;
    }
    let tables = dir.join(INDEX_TABLES);
    match std::fs::remove_dir_all(&tables) {
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            std::fs::remove_file(&tables).map_err(DiskFault::at("wipe index", &tables))?;
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(DiskFault::at("wipe index", &tables)(error).into());
        }
        _ => {}
    }
    RealDisk.create_dir_all(dir).map_err(DiskFault::at("make index directory", dir))?;
    let (db, places) = open_tables(dir)?;
    let generation = before + 1 + u64::from(RealDisk.salt());
    guarded(|| db.insert(GENERATION_KEY, &generation.to_le_bytes()[..]))?;
    let mark = Mark {
        version: INDEX_VERSION,
        generation,
        is_clean: false,
        covered: Covered::default(),
        n_entries: 0,
        tables_crc: None,
    };
    let mark = Slots::create(&RealDisk, &mark_path, &mark)?;
    Ok(SledTables { dir: dir.to_path_buf(), count: Count::known(0), db, places, mark })
}

/// Opens the tables. An earlier handle of this process may hold sled's lock a moment longer than it lives: one of sled's threads drops
/// what it shares with it. Nobody else has it: the data directory has one owner.
fn open_tables(dir: &Path) -> Result<(sled::Db, sled::Tree), IndexError> {
    let began = Instant::now();
    loop {
        match guarded(|| open_tables_once(dir)) {
            Err(error) if is_locked(&error) && began.elapsed() < LOCKED_TIMEOUT => sleep(LOCKED_PAUSE),
            other => return other,
        }
    }
}

fn open_tables_once(dir: &Path) -> Result<(sled::Db, sled::Tree), sled::Error> {
    let db = sled::Config::new()
        .path(dir.join(INDEX_TABLES))
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
        .mode(sled::Mode::HighThroughput)
        .open()?;
    let places = db.open_tree(b"places")?;
    Ok((db, places))
}

/// sled has no kind of its own for it.
fn is_locked(error: &IndexError) -> bool {
    matches!(error, IndexError::Tables(sled::Error::Io(error)) if error.to_string().contains("acquire lock"))
}

/// Runs a call of sled; a panic inside becomes an error.
fn guarded<T>(call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Ok(result?),
        Err(_) => Err(IndexError::Panicked),
    }
}

/// sled's own flush ends in `sync_file_range`, which neither writes metadata nor empties the disk's cache.
fn sync_tables(dir: &Path) -> Result<(), DiskFault> {
    let tables = dir.join(INDEX_TABLES);
    for name in RealDisk.list(&tables).map_err(DiskFault::at("list index", &tables))? {
        let path = tables.join(name);
        if path.is_file() {
            std::fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(DiskFault::at("sync index", &path))?;
        }
    }
    RealDisk.sync_dir(&tables).map_err(DiskFault::at("sync index", &tables))
}

/// Places that were put in lately and are not in the tables yet; looked up first.
#[derive(Default)]
pub(crate) struct Recent {
    fresh: BTreeMap<Digest, BlockPlace>,
    draining: Arc<BTreeMap<Digest, BlockPlace>>,
}

impl Recent {
    pub(crate) fn get(&self, digest: &Digest) -> Option<BlockPlace> {
        self.fresh.get(digest).or_else(|| self.draining.get(digest)).copied()
    }

    pub(crate) fn insert(&mut self, digest: Digest, place: BlockPlace) -> usize {
        self.fresh.insert(digest, place);
        self.fresh.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.fresh.len() + self.draining.len()
    }

    /// All places.
    pub(crate) fn all(&self) -> BTreeMap<Digest, BlockPlace> {
        let mut all = (*self.draining).clone();
        all.extend(self.fresh.iter().map(|(digest, place)| (*digest, *place)));
        all
    }

    /// Everything fresh; it stays visible until [`Recent::drained`].
    pub(crate) fn begin_drain(&mut self) -> Arc<BTreeMap<Digest, BlockPlace>> {
        let fresh = std::mem::take(&mut self.fresh);
        self.draining = Arc::new(fresh);
        self.draining.clone()
    }

    pub(crate) fn drained(&mut self) {
        self.draining = Arc::default();
    }

    /// Puts back what could not be put into the tables.
    pub(crate) fn undrain(&mut self) {
        let draining = std::mem::take(&mut self.draining);
        for (digest, place) in draining.iter() {
            self.fresh.entry(*digest).or_insert(*place);
        }
    }
}
