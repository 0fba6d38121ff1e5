//! Opening a log: find its segments, walk the chain of frames, tell a torn tail from damage, cut the one and keep the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::disk::Disk;
use crate::fault::DiskFault;
use crate::file_header::{FILE_HEADER_BYTES, FileHeaderFault};
use crate::frame::FrameKind;
use crate::group_sync::GroupSync;
use crate::layout::{FRAME_VERSION, is_unfinished, parse_segment_name, segment_name};
use crate::log::ahead::{Ahead, make_segment};
use crate::log::segment::{Row, Segment};
use crate::log::{Log, LogError, LogOptions, Recovery, Shared, Tail, TailState, VisitError};
use crate::rewrite::write_again;
use crate::scan::{Beyond, FrameView, Scan, ScanError, mark_of, offset_of};

type Visit<'a> = &'a mut dyn FnMut(FrameView<'_>) -> Result<(), VisitError>;

/// Where the chain of frames ends.
struct ChainEnd {
    /// Index of the segment in the list.
    index: usize,
    at: u64,
    prev: Option<u32>,
    n_frames: u64,
    /// The highest durable position that the frames tell of.
    synced: u64,
}

/// What was found on disk: segments without a gap, and whether something unreadable follows them.
pub(super) struct Found {
    pub(super) segments: Vec<Segment>,
    /// The number at which the row of readable segments breaks off although there are higher ones.
    pub(super) broken: Option<u64>,
}

pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: LogOptions,
    visit: Visit<'_>,
) -> Result<(Log, Recovery), LogError> {
    disk.create_dir_all(dir).map_err(DiskFault::at("make log directory", dir))?;
    let mut found = find_segments(&*disk, dir, &options)?;
    if found.segments.is_empty() && found.broken.is_none() {
        found.segments.push(make_segment(&*disk, dir, &options, 1, options.segment_bytes_first)?);
    }
    if found.segments.is_empty() {
        let path = dir.join(segment_name(found.broken.unwrap_or(0)));
        return Err(LogError::Corrupt { path, at: 0 });
    }
    let end = walk_chain(&found.segments, visit)?;
    let beyond = search_beyond(&found.segments, &end)?;
    let segment = &found.segments[end.index];
    let end_mark = mark_of(segment.number, end.at);
    let damage = beyond.iter().any(|(_, beyond)| beyond.synced_max > end_mark) || found.broken.is_some();
    if damage {
        let next_valid = beyond.iter().find_map(|(number, beyond)| Some((*number, beyond.first_valid?)));
        let recovery =
            Recovery::Damaged { n_frames: end.n_frames, segment: segment.number, at: end.at, next_valid };
        return Ok((assemble(disk, dir, options, found.segments, &end, true), recovery));
    }
    let is_torn = cut_tail(&*disk, dir, &mut found.segments, &end, &beyond)?;
    make_durable(&*disk, dir, &found.segments, &end)?;
    let n_frames = end.n_frames;
    let recovery = if is_torn {
        Recovery::TornTail { n_frames, segment: found.segments[end.index].number, at: end.at }
    } else {
        Recovery::Clean { n_frames }
    };
    Ok((assemble(disk, dir, options, found.segments, &end, false), recovery))
}

/// Opens the segments in order of their numbers; sweeps what a crash left unfinished and what a snapshot has replaced.
pub(super) fn find_segments(disk: &dyn Disk, dir: &Path, options: &LogOptions) -> Result<Found, LogError> {
    let names = disk.list(dir).map_err(DiskFault::at("list log directory", dir))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    numbers.sort_unstable();
    let mut found = Found { segments: Vec::new(), broken: None };
    for number in numbers {
        let path = dir.join(segment_name(number));
        let segment = match Segment::open(disk, path.clone(), number)? {
            Ok(segment) => segment,
            Err(fault @ FileHeaderFault::Newer { .. }) => {
                return Err(LogError::Newer { path, detail: fault.to_string() });
            }
            Err(FileHeaderFault::Damaged) => {
                found.broken.get_or_insert(number);
                continue;
            }
        };
        if segment.header.kind != options.kind || segment.header.id != options.id {
            return Err(LogError::Foreign { path });
        }
        if segment.header.is_snapshot {
            found = Found { segments: vec![segment], broken: None };
            continue;
        }
        let expected = found.segments.last().map(|last: &Segment| last.number + 1);
        if segment.header.number != number || expected.is_some_and(|expected| expected != number) {
            found.broken.get_or_insert(number);
        }
        if found.broken.is_none() {
            found.segments.push(segment);
        }
    }
    let first = found.segments.first().map_or(0, |first| first.number);
    sweep(disk, dir, &names, first)?;
    Ok(found)
}

fn sweep(disk: &dyn Disk, dir: &Path, names: &[String], first: u64) -> Result<(), DiskFault> {
    for name in names {
        let is_replaced = parse_segment_name(name).is_some_and(|number| number < first);
        if is_unfinished(name) || is_replaced {
            let path = dir.join(name);
            disk.remove(&path).map_err(DiskFault::at("remove unused segment", &path))?;
        }
    }
    Ok(())
}

/// Walks from the first segment's first frame as far as each frame names the one before.
fn walk_chain(segments: &[Segment], visit: Visit<'_>) -> Result<ChainEnd, LogError> {
    let mut end = ChainEnd { index: 0, at: FILE_HEADER_BYTES, prev: None, n_frames: 0, synced: 0 };
    let mut last_seq = None;
    for (index, segment) in segments.iter().enumerate() {
        let (mut n_shown, mut synced) = (0, end.synced);
        let walked = scan_of(segment).walk(FILE_HEADER_BYTES, end.prev, &mut |view| {
            if view.header.meta.kind != FrameKind::MARK {
                if last_seq.is_some_and(|last| view.header.meta.seq <= last) {
                    return Err("sequence number does not grow".into());
                }
                last_seq = Some(view.header.meta.seq);
                visit(view)?;
                n_shown += 1;
            }
            segment.rows.write().push(Row::of(&view));
            synced = synced.max(match view.header.place.synced {
                // Of a file that got its name when all of it was durable.
                0 => mark_of(segment.number, view.header.end()),
                synced => synced,
            });
            Ok(())
        });
        let walked = walked.map_err(|error| scan_failed(segment, error))?;
        if index > 0 && walked.n_frames == 0 {
            break;
        }
        let n_frames = end.n_frames + n_shown;
        end = ChainEnd { index, at: walked.end, prev: walked.prev, n_frames, synced };
    }
    Ok(end)
}

/// What lies behind the end of the chain, in its segment and in each later one.
fn search_beyond(segments: &[Segment], end: &ChainEnd) -> Result<Vec<(u64, Beyond)>, LogError> {
    let mut found = Vec::new();
    for (index, segment) in segments.iter().enumerate().skip(end.index) {
        let from = if index == end.index { end.at } else { FILE_HEADER_BYTES };
        let beyond = scan_of(segment)
            .search(from, &mut |_| Ok(()))
            .map_err(|error: ScanError<VisitError>| scan_failed(segment, error))?;
        found.push((segment.number, beyond));
    }
    Ok(found)
}

/// Makes the end of the chain the end of the log: zeros behind it, no later segment that was written to. Returns whether anything
/// had been there. Can be interrupted and repeated at any point: what is left stays a torn tail until it is gone.
fn cut_tail(
    disk: &dyn Disk,
    dir: &Path,
    segments: &mut Vec<Segment>,
    end: &ChainEnd,
    beyond: &[(u64, Beyond)],
) -> Result<bool, LogError> {
    let is_written = |segment: &Segment, beyond: &Beyond| {
        beyond.first_valid.is_some() || (!segment.header.is_recycled && beyond.written_end > 0)
    };
    let mut is_torn = false;
    while segments.len() > end.index + 1 {
        let i = segments.len() - 1;
        let is_spoiled = is_written(&segments[i], &beyond[i - end.index].1);
        // One empty segment ahead is what every log has.
        if !is_spoiled && i == end.index + 1 && !is_torn {
            break;
        }
        is_torn |= is_spoiled;
        let path = segments[i].path.clone();
        disk.remove(&path).map_err(DiskFault::at("remove torn segment", &path))?;
        disk.sync_dir(dir).map_err(DiskFault::at("sync log directory", dir))?;
        segments.pop();
    }
    let (segment, beyond) = (&segments[end.index], &beyond[0].1);
    let has_header_at_end = segment.header.is_recycled && begins_frame(segment, end.at)?;
    if is_written(segment, beyond) || has_header_at_end {
        is_torn = true;
        let last = if segment.header.is_recycled { beyond.last_end } else { beyond.written_end };
        // In a recycled file only frames of this life count; a page more takes the torn header with it.
        let stop = last.max(end.at + 4096).min(segment.limit);
        zero(segment, end.at, stop).map_err(DiskFault::at("clear torn tail", &segment.path))?;
    }
    Ok(is_torn)
}

/// Makes durable what was read. What a killed process had written may be in the page cache alone, and clean there if a sync failed; so
/// may the names it gave. From here on all of it counts as durable.
fn make_durable(disk: &dyn Disk, dir: &Path, segments: &[Segment], end: &ChainEnd) -> Result<(), DiskFault> {
    for (index, segment) in segments[..=end.index].iter().enumerate() {
        let stop = match segment.rows.read().last() {
            _ if index == end.index => end.at,
            Some(row) => row.end(),
            None => FILE_HEADER_BYTES,
        };
        write_again(&*segment.file, offset_of(end.synced, segment.number, stop), stop)
            .and_then(|()| segment.file.sync_data())
            .map_err(DiskFault::at("sync recovered log", &segment.path))?;
    }
    disk.sync_dir(dir).map_err(DiskFault::at("sync log directory", dir))
}

fn begins_frame(segment: &Segment, at: u64) -> Result<bool, DiskFault> {
    let bytes = segment
        .file
        .read_vec(at, crate::frame::HEADER_BYTES_MAX)
        .map_err(DiskFault::at("read torn frame", &segment.path))?;
    Ok(crate::frame::parse_header(&bytes, segment.header.salt, at).is_ok())
}

fn zero(segment: &Segment, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let n = (to - at).min(zeros.len() as u64);
        segment.file.pwrite(at, &[&zeros[..n as usize]])?;
        at += n;
    }
    segment.file.sync_data()
}

fn assemble(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: LogOptions,
    segments: Vec<Segment>,
    end: &ChainEnd,
    is_read_only: bool,
) -> Log {
    let mut kept = BTreeMap::new();
    let mut ready = None;
    let mut newest = None;
    for (index, segment) in segments.into_iter().enumerate() {
        if index > end.index {
            ready = ready.or(Some(segment));
            continue;
        }
        let last = segment.rows.read().iter().rev().find(|row| !row.is_mark).copied();
        if let Some(row) = last {
            newest = Some(Tail { term: row.term, seq: row.seq, position: row.position(&segment) });
        }
        kept.insert(segment.number, Arc::new(segment));
    }
    let segment = match kept.last_key_value() {
        Some((_, segment)) => segment.clone(),
        None => unreachable!("a log has at least one segment"),
    };
    let tail = TailState {
        synced: mark_of(segment.number, end.at),
        segment,
        end: end.at,
        prev: end.prev.unwrap_or(0),
        newest,
        n_appended: 0,
        dirty: Vec::new(),
        n_cuts: 0,
    };
    let shared = Shared {
        disk,
        dir: dir.to_path_buf(),
        options,
        tail: Mutex::new(tail),
        segments: RwLock::new(kept),
        group: GroupSync::new(0),
        ahead: Ahead::new(ready.filter(|_| !is_read_only)),
        is_read_only,
    };
    Log { shared: Arc::new(shared) }
}

pub(super) fn scan_of(segment: &Segment) -> Scan<'_> {
    Scan { file: &*segment.file, number: segment.number, salt: segment.header.salt, limit: segment.limit }
}

pub(super) fn scan_failed(segment: &Segment, error: ScanError<VisitError>) -> LogError {
    match error {
        ScanError::Disk(error) => DiskFault::at("read segment", &segment.path)(error).into(),
        ScanError::Newer { at, found } => LogError::Newer {
            path: segment.path.clone(),
            detail: format!(
                "frame at {at} has version {found}; this program knows versions up to {FRAME_VERSION}"
            ),
        },
        ScanError::Visit { at, source } => LogError::Refused { path: segment.path.clone(), at, source },
    }
}
