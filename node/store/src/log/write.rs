//! The writing half of a log: room, frames, syncs, and finding frames again.

use std::sync::Arc;

use crate::fault::DiskFault;
use crate::file_header::FILE_HEADER_BYTES;
use crate::frame::{FrameKind, FrameMeta, Place, Stored, encode_header, frame_span};
use crate::log::segment::{Row, Segment};
use crate::log::{LogError, Position, Shared, TailState};
use crate::scan::mark_of;

/// The kernel's page.
const PAGE_BYTES: u64 = 4096;

impl Shared {
    pub(super) fn check_writable(&self) -> Result<(), LogError> {
        if self.is_read_only {
            return Err(LogError::ReadOnly { dir: self.dir.clone() });
        }
        match self.group.failed() {
            Some(reason) => Err(LogError::Failed { reason }),
            None => Ok(()),
        }
    }

    /// Rolls to the next segment if the frame does not fit this one.
    pub(super) fn make_room(&self, tail: &mut TailState, payload_bytes: usize) -> Result<(), LogError> {
        if tail.end + frame_span(tail.end, payload_bytes).1 <= tail.segment.limit {
            return Ok(());
        }
        let fits = |limit: u64| FILE_HEADER_BYTES + frame_span(FILE_HEADER_BYTES, payload_bytes).1 <= limit;
        if !fits(self.options.segment_bytes_max) {
            let max = (self.options.segment_bytes_max / 2) as usize;
            return Err(LogError::TooLarge { bytes: payload_bytes, max });
        }
        let next = self.take_next(&tail.segment)?;
        let next = if fits(next.limit) { next } else { self.enlarge(&next)? };
        let next = Arc::new(next);
        self.segments.write().insert(next.number, next.clone());
        tail.segment = next;
        tail.end = FILE_HEADER_BYTES;
        Ok(())
    }

    /// Writes a frame at the tail. Room was made, order was checked.
    pub(super) fn write(
        &self,
        tail: &mut TailState,
        meta: &FrameMeta,
        stored: &Stored<'_>,
        parts: &[&[u8]],
    ) -> Result<Position, LogError> {
        let segment = tail.segment.clone();
        let place = Place { salt: segment.header.salt, at: tail.end, synced: tail.synced, prev: tail.prev };
        let header = encode_header(meta, &place, stored);
        let (header_bytes, span) = frame_span(place.at, stored.payload_bytes);
        let padding = [0; 8 + PAGE_BYTES as usize];
        // To the end of the page, so that the kernel never has to read what lies there before it writes. Nothing does.
        let filled_end =
            (place.at + span).next_multiple_of(PAGE_BYTES).min(segment.limit.max(place.at + span));
        let pad = (filled_end - place.at) as usize - header_bytes - stored.payload_bytes;
        let mut slices = Vec::with_capacity(parts.len() + 2);
        slices.push(&header.bytes[..]);
        slices.extend_from_slice(parts);
        slices.push(&padding[..pad]);
        if let Err(error) = segment.file.pwrite(place.at, &slices) {
            let reason: Arc<str> = DiskFault::at("append frame", &segment.path)(error).to_string().into();
            self.group.fail(reason.clone());
            return Err(LogError::Failed { reason });
        }
        let row = Row {
            seq: meta.seq,
            term: meta.term,
            crc: header.crc,
            at: place.at as u32,
            header_bytes: header_bytes as u32,
            payload_bytes: stored.payload_bytes as u32,
            is_mark: meta.kind == FrameKind::MARK,
        };
        segment.rows.write().push(row);
        tail.end += span;
        tail.prev = header.crc;
        tail.n_appended += 1;
        if tail.dirty.last().is_none_or(|last| last.number != segment.number) {
            tail.dirty.push(segment.clone());
        }
        Ok(row.position(&segment))
    }

    /// One sync of everything written so far; run by one caller at a time.
    pub(super) fn sync_dirty(&self) -> Result<u64, Arc<str>> {
        let (n_appended, mark, n_cuts, dirty) = {
            let mut tail = self.tail.lock();
            let mark = mark_of(tail.segment.number, tail.end);
            (tail.n_appended, mark, tail.n_cuts, std::mem::take(&mut tail.dirty))
        };
        for segment in dirty {
            segment
                .file
                .sync_data()
                .map_err(|error| Arc::from(DiskFault::at("sync log", &segment.path)(error).to_string()))?;
        }
        let mut tail = self.tail.lock();
        if tail.n_cuts == n_cuts {
            tail.synced = tail.synced.max(mark);
        }
        Ok(n_appended)
    }

    pub(super) fn write_mark(&self) -> Result<(), LogError> {
        let mut tail = self.tail.lock();
        self.check_writable()?;
        let Some(newest) = tail.newest else { return Ok(()) };
        let ends_marked = tail.segment.rows.read().last().is_some_and(|row| row.is_mark);
        if ends_marked || tail.end + frame_span(tail.end, 0).1 > tail.segment.limit {
            return Ok(());
        }
        let meta = FrameMeta {
            kind: FrameKind::MARK,
            term: newest.term,
            seq: newest.seq,
            codec: 0,
            digest: [0; 32],
        };
        self.write(
            &mut tail,
            &meta,
            &Stored { payload_bytes: 0, raw_bytes: 0, is_zstd: false, pieces: &[] },
            &[],
        )?;
        Ok(())
    }

    pub(super) fn find(&self, position: Position) -> Result<(Arc<Segment>, Row), LogError> {
        let segment = self.segments.read().get(&position.segment).cloned();
        segment
            .and_then(|segment| segment.row_at(position.offset).map(|row| (segment, row)))
            .ok_or(LogError::Gone { position })
    }

    /// The first frame whose sequence number is at least `seq`.
    pub(super) fn first_from(&self, seq: u64) -> Option<(Arc<Segment>, Row)> {
        let segments = self.segments.read();
        segments.values().find_map(|segment| Some((segment.clone(), segment.first_from(seq)?)))
    }
}
