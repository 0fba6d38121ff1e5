//! One file of a log: its open handle and where its frames lie.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::fault::DiskFault;
use crate::file_header::{FILE_HEADER_BYTES, FileHeader, FileHeaderFault};
use crate::frame::{FrameHeader, FrameKind, HeaderFault, parse_header};
use crate::log::{Frame, LogError, Position};
use crate::scan::FrameView;

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// An open segment. Appended to by one thread at a time (who holds the log's tail), read by any.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) header: FileHeader,
    /// Bytes of the file; frames end here at the latest.
    pub(super) limit: u64,
    /// Where the frames lie, in order.
    pub(super) rows: RwLock<Vec<Row>>,
}

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) seq: u64,
    pub(super) term: u32,
    pub(super) crc: u32,
    pub(super) at: u32,
    pub(super) header_bytes: u32,
    pub(super) payload_bytes: u32,
    pub(super) is_mark: bool,
}

impl Row {
    pub(super) fn of(view: &FrameView<'_>) -> Row {
        let header = view.header;
        Row {
            seq: header.meta.seq,
            term: header.meta.term,
            crc: header.crc,
            at: header.place.at as u32,
            header_bytes: header.header_bytes,
            payload_bytes: header.payload_bytes,
            is_mark: header.meta.kind == FrameKind::MARK,
        }
    }

    pub(super) fn position(&self, segment: &Segment) -> Position {
        Position { segment: segment.number, offset: self.payload_at() }
    }

    pub(super) fn end(&self) -> u64 {
        (self.payload_at() + u64::from(self.payload_bytes)).next_multiple_of(8)
    }

    fn payload_at(&self) -> u64 {
        u64::from(self.at) + u64::from(self.header_bytes)
    }
}

impl Segment {
    /// Opens a segment that is on disk.
    ///
    /// # Errors
    /// The inner error says what is wrong with the file's header.
    pub(super) fn open(
        disk: &dyn Disk,
        path: PathBuf,
        number: u64,
    ) -> Result<Result<Segment, FileHeaderFault>, DiskFault> {
        let file = disk.open(&path, OpenMode::ReadWrite).map_err(DiskFault::at("open segment", &path))?;
        let header = FileHeader::read(&*file).map_err(DiskFault::at("read segment header", &path))?;
        let limit = file.len().map_err(DiskFault::at("measure segment", &path))?;
        Ok(header.map(|header| Segment { number, path, file, header, limit, rows: RwLock::new(Vec::new()) }))
    }

    /// Writes a file that is all header and zeros under the name `unfinished`, syncs it, gives it the name `path` and syncs that.
    /// With `prefix`, those bytes follow the header.
    pub(super) fn create(
        disk: &dyn Disk,
        dir: &Path,
        path: PathBuf,
        header: FileHeader,
        prefix: &[u8],
    ) -> Result<Segment, DiskFault> {
        let unfinished = unfinished_path(&path);
        if let Err(error) = disk.remove(&unfinished)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(DiskFault::at("remove unfinished segment", &unfinished)(error));
        }
        let file = disk
            .open(&unfinished, OpenMode::CreateNew)
            .map_err(DiskFault::at("create segment", &unfinished))?;
        let written = fill(&*file, &header, prefix).and_then(|()| {
            disk.rename(&unfinished, &path)?;
            disk.sync_dir(dir)
        });
        if let Err(error) = written {
            // Best effort: what stays is swept by the next open.
            let _ = disk.remove(&unfinished);
            return Err(DiskFault::at("write segment", &unfinished)(error));
        }
        let number = header.number;
        Ok(Segment { number, path, file, header, limit: header.capacity, rows: RwLock::new(Vec::new()) })
    }

    /// Makes a dropped segment's file the new one: only its header is written.
    pub(super) fn recycle(
        disk: &dyn Disk,
        dir: &Path,
        spare: &Path,
        path: PathBuf,
        header: FileHeader,
    ) -> Result<Segment, DiskFault> {
        let file =
            disk.open(spare, OpenMode::ReadWrite).map_err(DiskFault::at("open spare segment", spare))?;
        file.pwrite(0, &[&header.encode()])
            .and_then(|()| file.sync_data())
            .and_then(|()| disk.rename(spare, &path))
            .and_then(|()| disk.sync_dir(dir))
            .map_err(DiskFault::at("recycle segment", spare))?;
        let number = header.number;
        Ok(Segment { number, path, file, header, limit: header.capacity, rows: RwLock::new(Vec::new()) })
    }

    /// Bytes of the frames.
    pub(super) fn used_bytes(&self) -> u64 {
        self.rows.read().last().map_or(0, |row| row.end() - FILE_HEADER_BYTES)
    }

    /// The row whose payload begins at `offset`.
    pub(super) fn row_at(&self, offset: u64) -> Option<Row> {
        let rows = self.rows.read();
        let i = rows.binary_search_by_key(&offset, Row::payload_at).ok()?;
        Some(rows[i])
    }

    /// The first row that is not a mark and whose sequence number is at least `seq`.
    pub(super) fn first_from(&self, seq: u64) -> Option<Row> {
        let rows = self.rows.read();
        let i = rows.partition_point(|row| row.seq < seq);
        rows[i..].iter().find(|row| !row.is_mark).copied()
    }

    /// The newest row's sequence number.
    pub(super) fn last_seq(&self) -> Option<u64> {
        self.rows.read().last().map(|row| row.seq)
    }

    /// Reads a whole frame and proves it.
    pub(super) fn read_frame(&self, row: &Row) -> Result<Frame, LogError> {
        let len = row.header_bytes as usize + row.payload_bytes as usize;
        let bytes = Bytes::from(self.pread(u64::from(row.at), len)?);
        let header = self.prove_header(row, &bytes)?;
        let payload = bytes.slice((row.header_bytes as usize).min(bytes.len())..);
        if !header.proves(&payload) {
            return Err(self.corrupt(row));
        }
        Ok(Frame { header, position: row.position(self), payload })
    }

    /// Reads part of a payload and proves the pieces it lies in.
    pub(super) fn read_range(&self, row: &Row, range: Range<usize>) -> Result<Bytes, LogError> {
        let total = row.payload_bytes as usize;
        let (start, end) = (range.start.min(total), range.end.min(total));
        if total <= crate::frame::PIECE_BYTES {
            let frame = self.read_frame(row)?;
            return Ok(frame.payload.slice(start..end.max(start)));
        }
        let head = self.pread(u64::from(row.at), row.header_bytes as usize)?;
        let header = self.prove_header(row, &head)?;
        let cover = header.cover(start, end.saturating_sub(start));
        let bytes = self.pread(row.payload_at() + cover.start as u64, cover.len())?;
        if bytes.len() != cover.len() || !header.proves_cover(cover.start, &bytes) {
            return Err(self.corrupt(row));
        }
        Ok(Bytes::from(bytes).slice(start - cover.start..end.max(start) - cover.start))
    }

    fn pread(&self, at: u64, len: usize) -> Result<Vec<u8>, DiskFault> {
        self.file.read_vec(at, len).map_err(DiskFault::at("read frame", &self.path))
    }

    fn prove_header(&self, row: &Row, bytes: &[u8]) -> Result<FrameHeader, LogError> {
        match parse_header(bytes, self.header.salt, u64::from(row.at)) {
            Ok(header) if header.crc == row.crc => Ok(header),
            Ok(_) | Err(HeaderFault::NotAFrame | HeaderFault::Newer { .. }) => Err(self.corrupt(row)),
        }
    }

    fn corrupt(&self, row: &Row) -> LogError {
        LogError::Corrupt { path: self.path.clone(), at: u64::from(row.at) }
    }
}

/// The name a file has while it is being made.
pub(super) fn unfinished_path(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(crate::layout::unfinished_name(&name))
}

fn fill(file: &dyn DiskFile, header: &FileHeader, prefix: &[u8]) -> std::io::Result<()> {
    file.pwrite(0, &[&header.encode(), prefix])?;
    let mut at = FILE_HEADER_BYTES + prefix.len() as u64;
    while at < header.capacity {
        let n = (header.capacity - at).min(ZEROS.len() as u64) as usize;
        file.pwrite(at, &[&ZEROS[..n]])?;
        at += n as u64;
    }
    file.sync_data()
}
