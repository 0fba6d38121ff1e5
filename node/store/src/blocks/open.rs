//! Opening the packs: what the index does not cover is walked again, a torn tail is cut, damage is noted and left alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::blocks::read::read_whole;
use crate::blocks::seal::FullPack;
use crate::blocks::touches::Touches;
use crate::blocks::{
    Append, Blocks, BlocksError, BlocksOptions, BlocksRecovery, DamagedStretch, Shared, drain,
};
use crate::disk::{Disk, OpenMode};
use crate::fault::DiskFault;
use crate::file_header::{FILE_HEADER_BYTES, FileHeader, FileHeaderFault, FileKind};
use crate::frame::{FrameKind, HEADER_BYTES_MAX, parse_header};
use crate::group_sync::GroupSync;
use crate::index::{BlockPlace, Covered, Digest, IndexStore, Recent};
use crate::layout::{FRAME_VERSION, is_unfinished, pack_name, parse_pack_name, unfinished_name};
use crate::pack::{Pack, PackEnd, entry_of};
use crate::pack_files::PackFiles;
use crate::rewrite::write_again;
use crate::scan::{Beyond, FrameView, Scan, ScanError, mark_of, offset_of};

type Entries = Vec<(Digest, BlockPlace)>;

/// Places that wait for the index after a start, at most: about what comes between two times that it is made durable.
const WAITING_MAX: usize = 256 * 1024;

/// What was found in the packs.
#[derive(Default)]
struct Seen {
    /// What the index lacks. It is moved there later: a start does not wait for that.
    recent: Recent,
    /// The last pack, if it may be written on.
    tail: Option<(Arc<Pack>, PackEnd, Entries)>,
    /// Packs before it without a seal, in order.
    full: VecDeque<FullPack>,
    /// The last sealed one of those that were looked at.
    sealed_last: Option<Arc<Pack>>,
    /// Header CRC of the last block before the pack that is written on, if its pack had no seal.
    last_prev: u32,
}

/// What became of one pack.
struct Opened {
    entries: Entries,
    state: PackState,
}

enum PackState {
    Sealed,
    /// Durable up to its end, where it may be written on.
    Unsealed {
        end: PackEnd,
        /// Whether the first block of the next pack names its last one.
        is_named: bool,
    },
    Damaged,
}

/// The walked beginning of an unsealed pack.
struct Walk {
    entries: Entries,
    end: PackEnd,
    /// Where the walk stopped; behind `end` if parts of a footer follow.
    stop: u64,
    /// The highest durable position that its frames tell of.
    synced: u64,
}

pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: BlocksOptions,
) -> Result<(Shared, BlocksRecovery), BlocksError> {
    disk.create_dir_all(dir).map_err(DiskFault::at("make pack directory", dir))?;
    let mut recovery = BlocksRecovery::default();
    let files = PackFiles::new(disk.clone(), options.open_packs_max);
    let (packs, highest) = find_packs(&*disk, dir, &files, &mut recovery)?;
    let (mut index, mut covered) = IndexStore::open(&options.index);
    if is_foreign(covered, &packs) {
        tracing::warn!("the index is about other packs: it is rebuilt from these");
        (index, covered) = (index.wiped(&options.index), Covered::default());
    }
    let mut seen = look_through(&packs, &index, covered, &mut recovery)?;
    if let Some(pack) = seen.sealed_last.take() {
        // The seals before it were durable before this one was written; what this one lists was, too.
        pack.seal_again(&*disk)?;
    }
    // Names that a killed process gave may be in memory alone, too.
    disk.sync_dir(dir).map_err(DiskFault::at("sync pack directory", dir))?;
    let recent = std::mem::take(&mut seen.recent);
    let append = end_of(&*disk, dir, &packs, highest, seen)?;
    let mut by_number: BTreeMap<u32, Arc<Pack>> =
        packs.into_iter().map(|pack| (pack.number as u32, pack)).collect();
    by_number.insert(append.pack.number as u32, append.pack.clone());
    // Whoever referred to a block before this start did so in what is on disk.
    let touches = Mutex::new(Touches::new(append.pack.number));
    let shared = Shared {
        disk,
        dir: dir.to_path_buf(),
        options,
        append: Mutex::new(append),
        recent: RwLock::new(recent),
        packs: RwLock::new(by_number),
        files,
        index,
        drain: Mutex::new(()),
        sealing: Mutex::new(()),
        group: GroupSync::new(0),
        suspects: Mutex::new(BTreeSet::new()),
        touches,
        sweeping: Mutex::new(()),
        signal: drain::Signal::default(),
    };
    match shared.seal_full() {
        Err(fault) if shared.group.failed().is_some() => return Err(fault.into()),
        // It is tried again.
        Err(error) => tracing::warn!(%error, "a full pack has no table of contents yet"),
        Ok(()) => {}
    }
    Ok((shared, recovery))
}

/// Looks at every pack that the index does not cover.
fn look_through(
    packs: &[Arc<Pack>],
    index: &IndexStore,
    covered: Covered,
    recovery: &mut BlocksRecovery,
) -> Result<Seen, BlocksError> {
    let mut seen = Seen::default();
    for (i, pack) in packs.iter().enumerate() {
        let is_last = i + 1 == packs.len();
        if pack.number < covered.pack && !is_last {
            continue;
        }
        let opened = open_pack(pack, &packs[i + 1..], covered, recovery)?;
        let new: Entries =
            opened.entries.iter().filter(|(_, place)| !covers(covered, place)).copied().collect();
        recovery.n_indexed += new.len() as u64;
        let new = without_lesser_copies(packs, index, &seen.recent, new)?;
        add_places(index, &mut seen.recent, new)?;
        match opened.state {
            PackState::Unsealed { end, is_named } if !is_last => {
                seen.last_prev = end.prev;
                let (pack, entries) = (pack.clone(), opened.entries);
                seen.full.push_back(FullPack { pack, end, entries, n_written: 0, is_named });
            }
            PackState::Unsealed { end, .. } => seen.tail = Some((pack.clone(), end, opened.entries)),
            PackState::Sealed if pack.number >= covered.pack => seen.sealed_last = Some(pack.clone()),
            PackState::Sealed | PackState::Damaged => {}
        }
    }
    Ok(seen)
}

/// Where writing goes on: at the end of the unsealed last pack, else in a new one.
fn end_of(
    disk: &dyn Disk,
    dir: &Path,
    packs: &[Arc<Pack>],
    highest: u64,
    seen: Seen,
) -> Result<Append, DiskFault> {
    let Seen { tail, mut full, last_prev, .. } = seen;
    let begin = PackEnd { at: FILE_HEADER_BYTES, prev: last_prev };
    let (pack, end, entries) = match tail {
        Some((pack, end, entries)) if end.at > FILE_HEADER_BYTES => (pack, end, entries),
        Some((pack, _, entries)) => {
            // The first block that is written names the last one before it.
            let before = packs.iter().rev().nth(1).map(|before| before.number);
            if let Some(last) = full.back_mut().filter(|last| Some(last.pack.number) == before) {
                last.is_named = last_prev != 0;
            }
            (pack, begin, entries)
        }
        None => (Arc::new(create_pack(disk, dir, highest + 1)?), begin, Entries::new()),
    };
    let written = match full.back() {
        Some(last) if end.at == FILE_HEADER_BYTES => last.mark(),
        _ => mark_of(pack.number, end.at),
    };
    Ok(Append {
        pack,
        end,
        entries,
        full: full.into_iter().map(Arc::new).collect(),
        n_written: 0,
        dirty: Vec::new(),
        written,
        synced: written,
    })
}

/// Makes an empty pack, durable with its name when it returns.
pub(super) fn create_pack(disk: &dyn Disk, dir: &Path, number: u64) -> Result<Pack, DiskFault> {
    let path = dir.join(pack_name(number));
    let unfinished = dir.join(unfinished_name(&pack_name(number)));
    match disk.remove(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(DiskFault::at("remove unfinished pack", &unfinished)(error));
        }
        _ => {}
    }
    let file =
        disk.open(&unfinished, OpenMode::CreateNew).map_err(DiskFault::at("create pack", &unfinished))?;
    let header = FileHeader {
        kind: FileKind::Pack,
        is_recycled: false,
        is_snapshot: false,
        salt: disk.salt(),
        id: [0; 16],
        number,
        capacity: 0,
    };
    let written = file
        .pwrite(0, &[&header.encode()])
        .and_then(|()| file.sync_data())
        .and_then(|()| disk.rename(&unfinished, &path))
        .and_then(|()| disk.sync_dir(dir));
    if let Err(error) = written {
        // Best effort: what stays is swept by the next open.
        let _ = disk.remove(&unfinished);
        return Err(DiskFault::at("write pack header", &unfinished)(error));
    }
    Ok(Pack { number, path, file, salt: header.salt, closable: None })
}

/// Finds every pack whose header can be read; returns them in order, and the highest number in use.
fn find_packs(
    disk: &dyn Disk,
    dir: &Path,
    files: &Arc<PackFiles>,
    recovery: &mut BlocksRecovery,
) -> Result<(Vec<Arc<Pack>>, u64), BlocksError> {
    let names = disk.list(dir).map_err(DiskFault::at("list packs", dir))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_pack_name(name)).collect();
    numbers.sort_unstable();
    let mut packs = Vec::with_capacity(numbers.len());
    for number in &numbers {
        let path = dir.join(pack_name(*number));
        match Pack::open(disk, path.clone(), *number)? {
            Ok((pack, header)) if header.kind == FileKind::Pack && header.number == *number => {
                packs.push(Arc::new(pack.lazily(files)));
            }
            Ok(_) | Err(FileHeaderFault::Damaged) => {
                recovery.damaged.push(DamagedStretch { pack: *number, at: 0, next_valid: None });
            }
            Err(fault @ FileHeaderFault::Newer { .. }) => {
                return Err(BlocksError::Newer { path, detail: fault.to_string() });
            }
        }
    }
    for name in names.iter().filter(|name| is_unfinished(name)) {
        let path = dir.join(name);
        disk.remove(&path).map_err(DiskFault::at("remove unfinished pack", &path))?;
    }
    Ok((packs, numbers.last().copied().unwrap_or(0)))
}

/// Adds places to those that wait for the index; if that makes too many, all of them go there.
fn add_places(index: &IndexStore, recent: &mut Recent, new: Entries) -> Result<(), BlocksError> {
    if recent.len() + new.len() <= WAITING_MAX {
        for (digest, place) in new {
            recent.insert(digest, place);
        }
        return Ok(());
    }
    let waiting: Entries = std::mem::take(recent).all().into_iter().collect();
    index.insert_all(&waiting)?;
    Ok(index.insert_all(&new)?)
}

/// What is to be put into the index, in the order of the digests, in which an index is quick.
///
/// Leaves out what it has already, and second copies that are not whole: a sweep was cut off, and the first copy is still there.
pub(super) fn without_lesser_copies(
    packs: &[Arc<Pack>],
    index: &IndexStore,
    recent: &Recent,
    mut new: Entries,
) -> Result<Entries, BlocksError> {
    let pack_of = |number: u32| {
        let at = packs.binary_search_by_key(&u64::from(number), |pack| pack.number).ok()?;
        packs.get(at)
    };
    // Copies of one block stay in order: the last one counts.
    new.sort_by_key(|(digest, _)| *digest);
    let mut kept: Entries = Vec::with_capacity(new.len());
    for (digest, place) in new {
        let waiting = recent.get(&digest);
        let known = match waiting {
            Some(place) => Some(place),
            None => index.get(&digest)?,
        };
        if waiting.is_none() && known == Some(place) && kept.last().is_none_or(|last| last.0 != digest) {
            continue;
        }
        let known = known.filter(|known| *known != place && pack_of(known.pack).is_some());
        let is_lesser = match (known, pack_of(place.pack)) {
            (Some(_), Some(pack)) => !matches!(read_whole(pack, &place, &digest), Ok(Some(_))),
            _ => false,
        };
        if !is_lesser {
            kept.push((digest, place));
        }
    }
    Ok(kept)
}

/// Whether an index that covers this much was made over other packs than these.
fn is_foreign(covered: Covered, packs: &[Arc<Pack>]) -> bool {
    covered != Covered::default()
        && !packs.iter().any(|pack| pack.number == covered.pack && pack.salt == covered.salt)
}

fn covers(covered: Covered, place: &BlockPlace) -> bool {
    (u64::from(place.pack), u64::from(place.at)) < (covered.pack, covered.offset)
}

fn open_pack(
    pack: &Arc<Pack>,
    later: &[Arc<Pack>],
    covered: Covered,
    recovery: &mut BlocksRecovery,
) -> Result<Opened, BlocksError> {
    if let Some(entries) = pack.read_footer().map_err(DiskFault::at("read pack footer", &pack.path))? {
        return Ok(Opened { entries, state: PackState::Sealed });
    }
    let len = pack.file.len().map_err(DiskFault::at("measure pack", &pack.path))?;
    let scan = scan_of(pack, len);
    let walk = walk_pack(pack, &scan, covered)?;
    let beyond = search(pack, &scan, walk.stop, &mut |_| {})?;
    let end_mark = mark_of(pack.number, walk.stop);
    // The index covers only what was durable: a pack that ends before has lost something.
    let is_short = covered.pack == pack.number && walk.stop < covered.offset;
    let is_named = is_named(&walk, later)?;
    let is_lost = || Ok::<_, BlocksError>(!is_named && synced_max(&beyond, later)? > end_mark);
    if is_short || beyond.synced_max > end_mark || is_lost()? {
        return open_damaged(pack, &scan, walk, &beyond, recovery);
    }
    pack.hold()?;
    if len > walk.end.at {
        // Leftovers of a footer are no loss: the pack is sealed anew.
        recovery.n_torn += u64::from(walk.stop < len);
        pack.file.set_len(walk.end.at).map_err(DiskFault::at("cut torn pack", &pack.path))?;
    }
    // What a killed process had written may be in the page cache alone, and clean there if a sync failed. From here on it counts
    // as durable.
    let end = walk.end.at;
    write_again(&*pack.file, offset_of(walk.synced, pack.number, end), end)
        .and_then(|()| pack.file.sync_data())
        .map_err(DiskFault::at("sync recovered pack", &pack.path))?;
    Ok(Opened { entries: walk.entries, state: PackState::Unsealed { end: walk.end, is_named } })
}

/// Keeps what can be read on both sides of the damage, and everything else as it is.
fn open_damaged(
    pack: &Pack,
    scan: &Scan<'_>,
    walk: Walk,
    beyond: &Beyond,
    recovery: &mut BlocksRecovery,
) -> Result<Opened, BlocksError> {
    let mut entries = walk.entries;
    search(pack, scan, walk.stop, &mut |view| entries.extend(entry_of(&view)))?;
    let stretch = DamagedStretch { pack: pack.number, at: walk.stop, next_valid: beyond.first_valid };
    tracing::warn!(pack = pack.number, at = walk.stop, "pack is damaged");
    recovery.damaged.push(stretch);
    Ok(Opened { entries, state: PackState::Damaged })
}

/// Walks the frames: by headers as far as the index covers the pack, with payloads from there on.
fn walk_pack(pack: &Pack, scan: &Scan<'_>, covered: Covered) -> Result<Walk, BlocksError> {
    let mut walk = Walk {
        entries: Vec::new(),
        end: PackEnd { at: FILE_HEADER_BYTES, prev: 0 },
        stop: FILE_HEADER_BYTES,
        synced: mark_of(covered.pack, covered.offset),
    };
    let mut has_footer = false;
    let mut visit = |view: FrameView<'_>| {
        has_footer |= view.header.meta.kind == FrameKind::FOOTER;
        walk.entries.extend(entry_of(&view));
        walk.stop = view.header.end();
        walk.synced = walk.synced.max(view.header.place.synced);
        if !has_footer {
            walk.end = PackEnd { at: walk.stop, prev: view.header.crc };
        }
        Ok::<(), Infallible>(())
    };
    let mut from = (FILE_HEADER_BYTES, None);
    if covered.pack == pack.number && covered.offset > FILE_HEADER_BYTES {
        let walked = scan
            .walk_headers(FILE_HEADER_BYTES, covered.offset, &mut visit)
            .map_err(|error| scan_failed(pack, error))?;
        from = (walked.end, walked.prev);
    }
    scan.walk(from.0, from.1, &mut visit).map_err(|error| scan_failed(pack, error))?;
    Ok(walk)
}

fn search(
    pack: &Pack,
    scan: &Scan<'_>,
    from: u64,
    found: &mut dyn FnMut(FrameView<'_>),
) -> Result<Beyond, BlocksError> {
    scan.search(from, &mut |view| {
        found(view);
        Ok::<(), Infallible>(())
    })
    .map_err(|error| scan_failed(pack, error))
}

/// Whether the next pack's first frame names the last block of this one: then no block is missing between them.
fn is_named(walk: &Walk, later: &[Arc<Pack>]) -> Result<bool, BlocksError> {
    let Some(next) = later.first() else { return Ok(false) };
    let bytes = next
        .file
        .read_vec(FILE_HEADER_BYTES, HEADER_BYTES_MAX)
        .map_err(DiskFault::at("read first block of pack", &next.path))?;
    let first = parse_header(&bytes, next.salt, FILE_HEADER_BYTES);
    Ok(first.is_ok_and(|first| walk.end.prev != 0 && first.place.prev == walk.end.prev))
}

/// The highest durable position that frames behind the walk tell of, in this pack and in later ones.
fn synced_max(beyond: &Beyond, later: &[Arc<Pack>]) -> Result<u64, BlocksError> {
    let mut max = beyond.synced_max;
    for pack in later {
        let len = pack.file.len().map_err(DiskFault::at("measure pack", &pack.path))?;
        scan_of(pack, len)
            .walk_headers(FILE_HEADER_BYTES, len, &mut |view| {
                max = max.max(view.header.place.synced);
                Ok::<(), Infallible>(())
            })
            .map_err(|error| scan_failed(pack, error))?;
    }
    Ok(max)
}

pub(super) fn scan_of(pack: &Pack, limit: u64) -> Scan<'_> {
    Scan { file: &*pack.file, number: pack.number, salt: pack.salt, limit }
}

pub(super) fn scan_failed(pack: &Pack, error: ScanError<Infallible>) -> BlocksError {
    match error {
        ScanError::Disk(error) => DiskFault::at("read pack", &pack.path)(error).into(),
        ScanError::Newer { at, found } => BlocksError::Newer {
            path: pack.path.clone(),
            detail: format!(
                "frame at {at} has version {found}; this program knows versions up to {FRAME_VERSION}"
            ),
        },
        ScanError::Visit { source, .. } => match source {},
    }
}

impl Blocks {
    /// The directory of the packs.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }
}
