//! Taking frames away: a suffix that lost (saved first), segments that are no longer needed, everything that a snapshot replaces.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::fault::DiskFault;
use crate::file_header::{FILE_HEADER_BYTES, FileHeader, FileKind};
use crate::frame::{
    FrameKind, FrameMeta, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX, Place, Stored, encode_header, frame_span,
    piece_crcs,
};
use crate::layout::{SPARE_SEGMENT, fork_name, segment_name};
use crate::log::ahead::FREE_FRACTION;
use crate::log::segment::{Row, Segment, unfinished_path};
use crate::log::{LogError, LogOptions, Shared, Tail, TailState};
use crate::scan::mark_of;

/// The longest file a snapshot may become: offsets in a segment have 32 bits.
const SNAPSHOT_BYTES_MAX: u64 = 0xf000_0000;

pub(super) fn truncate_after(
    shared: &Shared,
    seq: u64,
    fork_dir: &Path,
) -> Result<Option<PathBuf>, LogError> {
    let mut tail = shared.tail.lock();
    shared.check_writable()?;
    let segments: Vec<Arc<Segment>> = shared.segments.read().values().cloned().collect();
    let lost: Vec<(Arc<Segment>, Row)> =
        segments.iter().flat_map(|segment| rows_after(segment, seq)).collect();
    let Some((first_segment, first)) = lost.first() else { return Ok(None) };
    // The prepared segment follows a number that may be about to go.
    let prepared = shared.ahead.take();
    let fork = save_fork(shared, &lost, fork_dir)?;
    let doomed = segments.iter().filter(|segment| segment.number > first_segment.number);
    let mut paths: Vec<&Path> = doomed.map(|segment| segment.path.as_path()).collect();
    paths.extend(prepared.as_ref().map(|segment| segment.path.as_path()));
    // The newest first, each durably, so that at any moment the log is the beginning of what it was.
    let cut = paths
        .into_iter()
        .rev()
        .try_for_each(|path| remove_durably(&*shared.disk, &shared.dir, path))
        .map_err(LogError::from)
        .and_then(|()| rewrite_prefix(shared, first_segment, u64::from(first.at)))
        .and_then(|kept| install(shared, &mut tail, &segments, kept));
    // Half cut, memory and disk disagree about where the log ends: only opening it again can tell.
    cut.inspect_err(|error| shared.group.fail(error.to_string().into()))?;
    Ok(Some(fork))
}

fn rows_after(segment: &Arc<Segment>, seq: u64) -> Vec<(Arc<Segment>, Row)> {
    let rows = segment.rows.read();
    rows.iter().filter(|row| row.seq > seq && !row.is_mark).map(|row| (segment.clone(), *row)).collect()
}

fn remove_durably(disk: &dyn Disk, dir: &Path, path: &Path) -> Result<(), DiskFault> {
    disk.remove(path).map_err(DiskFault::at("remove segment", path))?;
    disk.sync_dir(dir).map_err(DiskFault::at("sync log directory", dir))
}

/// Writes the frames to a file of their own under a name that nobody has, durably.
fn save_fork(shared: &Shared, lost: &[(Arc<Segment>, Row)], fork_dir: &Path) -> Result<PathBuf, LogError> {
    let disk = &*shared.disk;
    disk.create_dir_all(fork_dir).map_err(DiskFault::at("make fork directory", fork_dir))?;
    let names = disk.list(fork_dir).map_err(DiskFault::at("list fork directory", fork_dir))?;
    let (term, seq) = lost.first().map_or((0, 0), |(_, row)| (row.term, row.seq));
    let name = (0..u32::MAX).map(|copy| fork_name(term, seq, copy)).find(|name| !names.contains(name));
    let path = fork_dir.join(name.unwrap_or_else(|| fork_name(term, seq, u32::MAX)));
    let header = FileHeader { kind: FileKind::Fork, number: seq, ..new_header(shared, seq) };
    let mut writer = FrameWriter::create(disk, &path, header)?;
    for (segment, row) in lost {
        let frame = segment.read_frame(row)?;
        writer.push(&frame.header.meta, &frame.payload)?;
    }
    writer.finish(disk, fork_dir, 0)?;
    Ok(path)
}

/// Writes a segment with what comes before `cut_at` in `segment`, and puts it in that one's place.
fn rewrite_prefix(shared: &Shared, segment: &Segment, cut_at: u64) -> Result<Segment, LogError> {
    let len = (cut_at - FILE_HEADER_BYTES) as usize;
    let read = segment.file.read_vec(FILE_HEADER_BYTES, len);
    let prefix = read.map_err(DiskFault::at("read kept frames", &segment.path))?;
    if prefix.len() != len {
        return Err(LogError::Corrupt { path: segment.path.clone(), at: FILE_HEADER_BYTES });
    }
    // Salt and offsets stay, so the frames prove themselves as they are.
    let header = FileHeader { is_recycled: false, ..segment.header };
    let made = Segment::create(&*shared.disk, &shared.dir, segment.path.clone(), header, &prefix)?;
    let kept = segment.rows.read().iter().take_while(|row| u64::from(row.at) < cut_at).copied().collect();
    *made.rows.write() = kept;
    Ok(made)
}

/// Makes the rewritten segment the tail.
fn install(
    shared: &Shared,
    tail: &mut MutexGuard<'_, TailState>,
    segments: &[Arc<Segment>],
    kept: Segment,
) -> Result<(), LogError> {
    let kept = Arc::new(kept);
    let before: Vec<Arc<Segment>> =
        segments.iter().filter(|segment| segment.number < kept.number).cloned().collect();
    for segment in &before {
        segment.file.sync_data().map_err(DiskFault::at("sync log", &segment.path))?;
    }
    let last_row = |segment: &Arc<Segment>| segment.rows.read().last().copied();
    let last_prev = last_row(&kept).or_else(|| before.iter().rev().find_map(last_row));
    let newest = std::iter::once(&kept).chain(before.iter().rev()).find_map(|segment| {
        let row = segment.rows.read().iter().rev().find(|row| !row.is_mark).copied()?;
        Some(Tail { term: row.term, seq: row.seq, position: row.position(segment) })
    });
    let mut map = shared.segments.write();
    map.retain(|number, _| *number < kept.number);
    map.insert(kept.number, kept.clone());
    tail.end = last_row(&kept).map_or(FILE_HEADER_BYTES, |row| row.end());
    tail.prev = last_prev.map_or(0, |row| row.crc);
    tail.newest = newest;
    tail.synced = mark_of(kept.number, tail.end);
    tail.n_cuts += 1;
    tail.dirty.clear();
    tail.segment = kept;
    Ok(())
}

pub(super) fn drop_before(shared: &Shared, seq: u64) -> Result<(), LogError> {
    let tail = shared.tail.lock();
    shared.check_writable()?;
    let free = shared.disk.free_bytes(&shared.dir).unwrap_or(u64::MAX);
    let is_tight = free / FREE_FRACTION < shared.options.segment_bytes_max;
    loop {
        let oldest = {
            let segments = shared.segments.read();
            segments.first_key_value().map(|(_, segment)| segment.clone())
        };
        let Some(oldest) = oldest else { return Ok(()) };
        let is_needed = oldest.last_seq().is_some_and(|last| last >= seq);
        if oldest.number == tail.segment.number || is_needed {
            return Ok(());
        }
        // Out of the readers' sight first: only a file that none of them holds may get a second life under another salt.
        shared.segments.write().remove(&oldest.number);
        let is_unshared = Arc::strong_count(&oldest) == 1 + usize::from(holds(&tail, &oldest));
        let may_be_spare = is_unshared && !is_tight && oldest.limit >= shared.options.segment_bytes_max;
        if let Err(error) = take_away(shared, &oldest, may_be_spare, is_tight) {
            // A later one must not go before it: without it there would be a gap.
            shared.segments.write().insert(oldest.number, oldest);
            return Err(error.into());
        }
        // A directory that could not be synced may have any of these names after a crash: none goes after it.
        shared.disk.sync_dir(&shared.dir).map_err(|error| {
            let fault = DiskFault::at("sync log directory", &shared.dir)(error);
            shared.group.fail(fault.to_string().into());
            fault
        })?;
    }
}

/// Takes a segment's name away, and the spare one's if space is tight. Not durable.
fn take_away(
    shared: &Shared,
    segment: &Segment,
    may_be_spare: bool,
    is_tight: bool,
) -> Result<(), DiskFault> {
    let spare = shared.dir.join(SPARE_SEGMENT);
    let has_spare = shared.disk.open(&spare, OpenMode::Read).is_ok();
    if is_tight && has_spare {
        remove_if_there(&*shared.disk, &spare)?;
    }
    if may_be_spare && !has_spare && shared.disk.rename(&segment.path, &spare).is_ok() {
        return Ok(());
    }
    remove_if_there(&*shared.disk, &segment.path)
}

/// Removes a file that somebody else may have removed already.
fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<(), DiskFault> {
    match disk.remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(DiskFault::at("remove segment", path)(error))
        }
        _ => Ok(()),
    }
}

fn holds(tail: &TailState, segment: &Arc<Segment>) -> bool {
    tail.dirty.iter().any(|dirty| Arc::ptr_eq(dirty, segment))
}

pub(super) fn replace_all(
    shared: &Shared,
    entries: &mut dyn Iterator<Item = (FrameMeta, Vec<u8>)>,
) -> Result<(), LogError> {
    let mut tail = shared.tail.lock();
    shared.check_writable()?;
    let prepared = shared.ahead.take();
    let number = prepared.as_ref().map_or(tail.segment.number, |segment| segment.number) + 1;
    let path = shared.dir.join(segment_name(number));
    let header = FileHeader { is_snapshot: true, ..new_header(shared, number) };
    let mut writer = FrameWriter::create(&*shared.disk, &path, header)?;
    let rows = write_entries(&mut writer, entries)?;
    let unfinished = writer.unfinished.clone();
    let finished = writer.finish(&*shared.disk, &shared.dir, shared.options.segment_bytes_first);
    let (segment, end, prev) = finished.inspect_err(|error| {
        // Once it may have its name, the snapshot may be what the next open believes: nothing more may be added to the old log.
        if shared.disk.remove(&unfinished).is_err() {
            shared.group.fail(error.to_string().into());
        }
    })?;
    let segment = Arc::new(segment);
    let newest =
        rows.last().map(|row| Tail { term: row.term, seq: row.seq, position: row.position(&segment) });
    *segment.rows.write() = rows;
    let old = std::mem::take(&mut *shared.segments.write());
    shared.segments.write().insert(number, segment.clone());
    tail.synced = mark_of(number, end);
    (tail.segment, tail.end, tail.prev, tail.newest) = (segment, end, prev, newest);
    tail.n_cuts += 1;
    tail.dirty.clear();
    // The snapshot counts from its name on; what it replaces is swept by the next open if it cannot be removed now.
    for path in
        old.values().map(|segment| &segment.path).chain(prepared.as_ref().map(|segment| &segment.path))
    {
        if let Err(error) = shared.disk.remove(path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a replaced segment");
        }
    }
    Ok(())
}

fn write_entries(
    writer: &mut FrameWriter,
    entries: &mut dyn Iterator<Item = (FrameMeta, Vec<u8>)>,
) -> Result<Vec<Row>, LogError> {
    let mut rows: Vec<Row> = Vec::new();
    for (meta, payload) in entries {
        if let Some(last) = rows.last()
            && meta.seq <= last.seq
        {
            return Err(LogError::Order { last: last.seq, given: meta.seq });
        }
        rows.push(writer.push(&meta, &payload)?);
    }
    Ok(rows)
}

pub(super) fn new_header(shared: &Shared, number: u64) -> FileHeader {
    let LogOptions { kind, id, .. } = shared.options;
    let salt = shared.disk.salt();
    FileHeader { kind, is_recycled: false, is_snapshot: false, salt, id, number, capacity: 0 }
}

/// Writes frames to a new file that gets its name when it is complete.
pub(super) struct FrameWriter {
    path: PathBuf,
    unfinished: PathBuf,
    file: Arc<dyn DiskFile>,
    header: FileHeader,
    end: u64,
    prev: u32,
}

impl FrameWriter {
    pub(super) fn create(disk: &dyn Disk, path: &Path, header: FileHeader) -> Result<FrameWriter, DiskFault> {
        let unfinished = unfinished_path(path);
        if let Err(error) = disk.remove(&unfinished)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(DiskFault::at("remove unfinished file", &unfinished)(error));
        }
        let file = disk
            .open(&unfinished, OpenMode::CreateNew)
            .map_err(DiskFault::at("create file of frames", &unfinished))?;
        Ok(FrameWriter {
            path: path.to_path_buf(),
            unfinished,
            file,
            header,
            end: FILE_HEADER_BYTES,
            prev: 0,
        })
    }

    pub(super) fn push(&mut self, meta: &FrameMeta, payload: &[u8]) -> Result<Row, LogError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(LogError::TooLarge { bytes: payload.len(), max: PAYLOAD_BYTES_MAX });
        }
        if self.end > SNAPSHOT_BYTES_MAX - (HEADER_BYTES_MAX + PAYLOAD_BYTES_MAX) as u64 {
            return Err(LogError::TooLarge { bytes: payload.len(), max: 0 });
        }
        let pieces = piece_crcs(&[payload]);
        let stored = Stored {
            payload_bytes: payload.len(),
            raw_bytes: payload.len(),
            is_zstd: false,
            pieces: &pieces,
        };
        let place = Place { salt: self.header.salt, at: self.end, synced: 0, prev: self.prev };
        let head = encode_header(meta, &place, &stored);
        let (header_bytes, span) = frame_span(self.end, payload.len());
        let pad = [0; 8];
        let n_pad = span as usize - header_bytes - payload.len();
        self.file
            .pwrite(self.end, &[&head.bytes, payload, &pad[..n_pad]])
            .map_err(DiskFault::at("write frame", &self.unfinished))?;
        let row = Row {
            seq: meta.seq,
            term: meta.term,
            crc: head.crc,
            at: self.end as u32,
            header_bytes: header_bytes as u32,
            payload_bytes: payload.len() as u32,
            is_mark: meta.kind == FrameKind::MARK,
        };
        self.end += span;
        self.prev = head.crc;
        Ok(row)
    }

    /// Writes `ahead` bytes of zeros behind the frames and the file's header, syncs, names, and syncs the name.
    pub(super) fn finish(
        mut self,
        disk: &dyn Disk,
        dir: &Path,
        ahead: u64,
    ) -> Result<(Segment, u64, u32), LogError> {
        self.header.capacity = (self.end + ahead).next_multiple_of(4096);
        let zeros = [0; 64 << 10];
        let mut at = self.end;
        let written = (|| {
            while at < self.header.capacity {
                let n = (self.header.capacity - at).min(zeros.len() as u64);
                self.file.pwrite(at, &[&zeros[..n as usize]])?;
                at += n;
            }
            self.file.pwrite(0, &[&self.header.encode()])?;
            self.file.sync_data()?;
            disk.rename(&self.unfinished, &self.path)?;
            disk.sync_dir(dir)
        })();
        written.map_err(DiskFault::at("write file of frames", &self.unfinished))?;
        let segment = Segment {
            number: self.header.number,
            path: self.path,
            file: self.file,
            limit: self.header.capacity,
            header: self.header,
            rows: parking_lot::RwLock::new(Vec::new()),
        };
        Ok((segment, self.end, self.prev))
    }
}
