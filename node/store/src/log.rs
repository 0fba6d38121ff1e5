//! A log: frames with growing sequence numbers in a row of preallocated segments. Volumes keep their commits in one.
//!
//! What always holds:
//!
//! * A frame is durable after a [`Log::sync`] that began after its append has returned `Ok`.
//! * The first failed write or sync closes the log for ever: nothing is retried, every later append and sync fails.
//! * Segments are written ahead, synced and named before their first use, so a sync carries no metadata.
//! * What is read has been proved by its checksums.
//!
//! Locks, in the order in which they may be taken: `tail`, then `segments`, then a segment's rows. No lock is held during a sync.

mod ahead;
mod cut;
mod fork;
mod heal;
mod recover;
mod segment;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::disk::Disk;
use crate::fault::DiskFault;
use crate::file_header::FileKind;
use crate::frame::{FrameHeader, FrameMeta, PAYLOAD_BYTES_MAX, Stored, piece_crcs};
use crate::group_sync::GroupSync;
use crate::log::ahead::Ahead;
use crate::log::segment::Segment;
use crate::scan::FrameView;

/// What a visitor of [`Log::open`] may say against a frame.
pub type VisitError = Box<dyn std::error::Error + Send + Sync>;

/// Where a payload begins: the segment's number and the offset in it. Stays valid until the frame is dropped or cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment's number.
    pub segment: u64,
    /// Offset of the payload's first byte in the segment.
    pub offset: u64,
}

impl Position {
    /// Where the payload of a frame seen by a visitor lies.
    pub fn of(view: &FrameView<'_>) -> Position {
        Position { segment: view.number, offset: view.header.payload_at() }
    }
}

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// What the segments say they are.
    pub kind: FileKind,
    /// Whose they are; a segment with another id is refused.
    pub id: [u8; 16],
    /// Bytes of the first segment; the next ones double.
    pub segment_bytes_first: u64,
    /// Bytes of a segment at most.
    pub segment_bytes_max: u64,
    /// Prepare the next segment on a thread of its own. Without it the append that needs a segment makes it.
    pub is_background: bool,
}

impl LogOptions {
    /// 4 MiB at first, doubling to 64 MiB, prepared in the background.
    pub fn new(kind: FileKind, id: [u8; 16]) -> LogOptions {
        LogOptions {
            kind,
            id,
            segment_bytes_first: 4 << 20,
            segment_bytes_max: 64 << 20,
            is_background: true,
        }
    }
}

/// What opening a log found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Everything that was written is there.
    Clean {
        /// Frames shown to the visitor.
        n_frames: u64,
    },
    /// The end was torn by a crash and has been cut. Nobody had been promised what was cut.
    TornTail {
        /// Frames shown to the visitor.
        n_frames: u64,
        /// The segment in which the log now ends.
        segment: u64,
        /// Offset at which it ends.
        at: u64,
    },
    /// Promised frames are lost. The log is read-only, nothing was cut, the visitor saw the frames before the damage.
    Damaged {
        /// Frames shown to the visitor.
        n_frames: u64,
        /// The segment in which the damage begins.
        segment: u64,
        /// Offset at which it begins.
        at: u64,
        /// The next readable frame's segment and offset, if there is one.
        next_valid: Option<(u64, u64)>,
    },
}

/// Why a log did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed; unless the error is [`LogError::Failed`] the log is still good.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// There is no space for another segment. Nothing was written; free space and try again.
    #[error("no space for the next segment: {0}")]
    Full(#[source] DiskFault),
    /// An earlier write or sync failed. Final: close the log, open it again to find out what is on the disk.
    #[error("log closed after a failure: {reason}")]
    Failed {
        /// The first failure.
        reason: Arc<str>,
    },
    /// The log was opened damaged and is read-only until it is healed.
    #[error("log {} is damaged and read-only", dir.display())]
    ReadOnly {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The writer that wanted to append was stopped, see [`Log::append_unless`]. The log is good, and others may append to it.
    #[error("its writer was stopped")]
    Stopped,
    /// The frame is longer than a segment or than any frame may be.
    #[error("frame of {bytes} bytes is longer than {max}")]
    TooLarge {
        /// Bytes of the payload.
        bytes: usize,
        /// The most that fits.
        max: usize,
    },
    /// Sequence numbers must grow.
    #[error("sequence number {given} does not follow {last}")]
    Order {
        /// The newest frame's.
        last: u64,
        /// The one refused.
        given: u64,
    },
    /// No frame of this log lies there (any more).
    #[error("no frame at segment {} offset {}", position.segment, position.offset)]
    Gone {
        /// Where a frame was expected.
        position: Position,
    },
    /// The bytes there are not what was written.
    #[error("damaged frame in {} at {at}", path.display())]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Offset of the frame.
        at: u64,
    },
    /// Written by a newer version of this program; upgrade.
    #[error("{} {detail}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Which version was found.
        detail: String,
    },
    /// The segment is a whole one, but of another log.
    #[error("{} belongs to another log", path.display())]
    Foreign {
        /// The segment.
        path: PathBuf,
    },
    /// The visitor refused a frame.
    #[error("frame in {} at {at} refused", path.display())]
    Refused {
        /// The segment.
        path: PathBuf,
        /// Offset of the frame.
        at: u64,
        /// What the visitor said.
        source: VisitError,
    },
}

/// The newest frame of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Its term.
    pub term: u32,
    /// Its sequence number.
    pub seq: u64,
    /// Where its payload lies.
    pub position: Position,
}

/// A frame read back.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Where its payload lies.
    pub position: Position,
    /// The whole payload, proved by its checksums.
    pub payload: Bytes,
}

/// A log that is open. Any number of threads may append, sync and read at once.
pub struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: LogOptions,
    tail: Mutex<TailState>,
    segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    group: GroupSync,
    ahead: Ahead,
    is_read_only: bool,
}

struct TailState {
    segment: Arc<Segment>,
    end: u64,
    /// Header CRC of the last frame.
    prev: u32,
    newest: Option<Tail>,
    /// Frames appended since the log was opened; what [`GroupSync`] counts. Never goes back, as positions do when a suffix is cut.
    n_appended: u64,
    /// Segments written to since the last sync took them.
    dirty: Vec<Arc<Segment>>,
    /// Up to where the log is durable; written into each frame.
    synced: u64,
    /// Grows when a suffix is cut, so that a sync that began before does not tell of positions that are no more.
    n_cuts: u64,
}

impl Log {
    /// Opens the log in `dir`, making it if it is missing, and shows every frame in order. A torn tail is cut, damage makes the log
    /// read-only; see [`Recovery`].
    ///
    /// # Errors
    /// [`LogError::Newer`] and [`LogError::Foreign`] for files that are not ours to touch; [`LogError::Refused`] if the visitor
    /// refuses. Nothing was changed on disk then.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
        visit: &mut dyn FnMut(FrameView<'_>) -> Result<(), VisitError>,
    ) -> Result<(Log, Recovery), LogError> {
        recover::open(disk, dir, options, visit)
    }

    /// Appends a frame whose payload is the parts one after the other. Durable after the next [`Log::sync`]; readable at once.
    ///
    /// # Errors
    /// [`LogError::Full`], [`LogError::TooLarge`] and [`LogError::Order`] leave the log as it was; a failed write is final.
    pub fn append(&self, meta: &FrameMeta, parts: &[&[u8]]) -> Result<Position, LogError> {
        self.append_unless(&AtomicBool::new(false), meta, parts)
    }

    /// As [`Log::append`], for a writer that others stop by setting `is_stopped`. Whoever set it and then looks at [`Log::tail`] sees the
    /// last frame that this writer ever appends, wherever it stood in a call of this.
    ///
    /// # Errors
    /// As [`Log::append`]; [`LogError::Stopped`] leaves the log as it was, too.
    pub fn append_unless(
        &self,
        is_stopped: &AtomicBool,
        meta: &FrameMeta,
        parts: &[&[u8]],
    ) -> Result<Position, LogError> {
        let shared = &self.shared;
        let payload_bytes: usize = parts.iter().map(|part| part.len()).sum();
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(LogError::TooLarge { bytes: payload_bytes, max: PAYLOAD_BYTES_MAX });
        }
        let pieces = piece_crcs(parts);
        let mut tail = shared.tail.lock();
        if is_stopped.load(Ordering::Acquire) {
            return Err(LogError::Stopped);
        }
        shared.check_writable()?;
        if let Some(newest) = tail.newest
            && meta.seq <= newest.seq
        {
            return Err(LogError::Order { last: newest.seq, given: meta.seq });
        }
        shared.make_room(&mut tail, payload_bytes)?;
        let stored = Stored { payload_bytes, raw_bytes: payload_bytes, is_zstd: false, pieces: &pieces };
        let position = shared.write(&mut tail, meta, &stored, parts)?;
        tail.newest = Some(Tail { term: meta.term, seq: meta.seq, position });
        if tail.end > tail.segment.limit / 2 {
            Shared::prepare_ahead(shared, &tail.segment);
        }
        Ok(position)
    }

    /// Makes everything appended before the call durable. Callers that come while a sync runs share the next one.
    ///
    /// # Errors
    /// [`LogError::Failed`] for ever after the first failure.
    pub fn sync(&self) -> Result<(), LogError> {
        let wanted = self.shared.tail.lock().n_appended;
        self.shared
            .group
            .reach(wanted, || self.shared.sync_dirty())
            .map_err(|reason| LogError::Failed { reason })
    }

    /// Reads `range` of the payload at `position`, proving only the 64 KiB pieces it touches; clipped to the payload.
    ///
    /// # Errors
    /// [`LogError::Gone`] if no frame lies there, [`LogError::Corrupt`] if its bytes do not prove themselves.
    pub fn read(&self, position: Position, range: Range<usize>) -> Result<Bytes, LogError> {
        let (segment, row) = self.shared.find(position)?;
        segment.read_range(&row, range)
    }

    /// Reads the whole frame whose payload lies at `position`.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn frame(&self, position: Position) -> Result<Frame, LogError> {
        let (segment, row) = self.shared.find(position)?;
        segment.read_frame(&row)
    }

    /// Where the frame with this sequence number lies.
    pub fn position_of(&self, seq: u64) -> Option<Position> {
        self.shared
            .first_from(seq)
            .filter(|(_, row)| row.seq == seq)
            .map(|(segment, row)| row.position(&segment))
    }

    /// The frames from sequence number `seq` on, in order, up to the newest when the iterator gets there.
    pub fn iter_from(&self, seq: u64) -> Frames<'_> {
        Frames { log: self, next: Some(seq) }
    }

    /// Saves every frame behind `seq` as a file in `fork_dir`, durably, and cuts it from the log. Returns the file, or `None` if there was
    /// nothing behind `seq`. A crash leaves the log with all, some, or none of the suffix, and the whole suffix saved before any is cut.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if the suffix cannot be read; nothing is cut then.
    pub fn truncate_after(&self, seq: u64, fork_dir: &Path) -> Result<Option<PathBuf>, LogError> {
        cut::truncate_after(&self.shared, seq, fork_dir)
    }

    /// Drops whole segments that hold only frames before `seq`; the newest segment always stays. Durable when it returns.
    pub fn drop_before(&self, seq: u64) -> Result<(), LogError> {
        cut::drop_before(&self.shared, seq)
    }

    /// Replaces everything in the log by `entries`, atomically and durably. Appends wait meanwhile: the iterator should read the state
    /// to be kept when it is run, not before. A crash leaves either all the old frames or all the new ones.
    pub fn replace_all(
        &self,
        entries: &mut dyn Iterator<Item = (FrameMeta, Vec<u8>)>,
    ) -> Result<(), LogError> {
        cut::replace_all(&self.shared, entries)
    }

    /// Bytes of the frames in the log, headers and padding included.
    pub fn bytes(&self) -> u64 {
        self.shared.segments.read().values().map(|segment| segment.used_bytes()).sum()
    }

    /// Bytes of the log's segments on disk, what is written ahead included.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.segments.read().values().map(|segment| segment.limit).sum()
    }

    /// The newest frame.
    pub fn tail(&self) -> Option<Tail> {
        self.shared.tail.lock().newest
    }

    /// The oldest frame's sequence number.
    pub fn first_seq(&self) -> Option<u64> {
        self.shared.first_from(0).map(|(_, row)| row.seq)
    }

    /// Whether the log was opened damaged.
    pub fn is_read_only(&self) -> bool {
        self.shared.is_read_only
    }

    /// Why the log is closed for writing, if it is.
    pub fn failed(&self) -> Option<Arc<str>> {
        self.shared.group.failed()
    }

    /// Makes everything durable and marks the end, so that the next open can tell damage of the last frames from a torn tail.
    pub fn close(&self) -> Result<(), LogError> {
        if self.shared.is_read_only {
            return Ok(());
        }
        self.sync()?;
        self.shared.write_mark()?;
        self.sync()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // A segment that is being prepared must not appear after somebody else has opened the log.
        self.shared.ahead.finish();
    }
}

/// Frames in order; made by [`Log::iter_from`].
pub struct Frames<'a> {
    log: &'a Log,
    next: Option<u64>,
}

impl Iterator for Frames<'_> {
    type Item = Result<Frame, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (segment, row) = self.log.shared.first_from(self.next?)?;
        self.next = row.seq.checked_add(1);
        Some(segment.read_frame(&row))
    }
}
