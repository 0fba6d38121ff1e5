//! Walking the frames of a file, and telling a torn tail from damage.
//!
//! A walk goes from frame to frame and stops at the first bytes that are not the next one. What lies behind decides what that
//! means. Every frame says in `synced` how far the log was known to be durable when it was written. If any frame behind the stop
//! says that the stop itself was durable, bytes were lost that somebody was promised: damage, and nothing may be cut. Otherwise
//! nobody was promised anything from there on: a torn tail, even if some of its frames reached the disk and earlier ones did not.

use std::cmp::Ordering;
use std::io;

use crate::disk::DiskFile;
use crate::file_header::FILE_HEADER_BYTES;
use crate::frame::{
    FIXED_BYTES, FrameHeader, HEADER_BYTES_MAX, HeaderFault, PAYLOAD_BYTES_MAX, parse_header,
    peek_header_bytes,
};

const WINDOW_BYTES: usize = 4 << 20;
const HEADER_WINDOW_BYTES: usize = 16 << 10;
const ZERO_BLOCK: [u8; 4096] = [0; 4096];

/// A position in a sequence of files as one number that grows: file number and offset.
pub fn mark_of(number: u64, offset: u64) -> u64 {
    (number << 32) | (offset & 0xffff_ffff)
}

/// The position that `mark` stands for, as an offset in the file `number` whose frames end at `end`: all of a file before it, nothing of
/// one behind it.
pub(crate) fn offset_of(mark: u64, number: u64, end: u64) -> u64 {
    let known = match (mark >> 32).cmp(&number) {
        Ordering::Less => FILE_HEADER_BYTES,
        Ordering::Equal => (mark & 0xffff_ffff).max(FILE_HEADER_BYTES),
        Ordering::Greater => end,
    };
    known.min(end)
}

/// A frame as the walk shows it.
#[derive(Clone, Copy, Debug)]
pub struct FrameView<'a> {
    /// The proved header.
    pub header: &'a FrameHeader,
    /// The number of the file it lies in.
    pub number: u64,
    /// The stored payload, proved by the header's CRCs; compressed if the header says so.
    pub payload: &'a [u8],
}

/// Why a walk could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ScanError<E> {
    /// The disk failed.
    #[error("read frames: {0}")]
    Disk(#[from] io::Error),
    /// A frame of a newer format version.
    #[error("frame at {at} has format version {found}")]
    Newer {
        /// Offset of the frame.
        at: u64,
        /// The version found.
        found: u8,
    },
    /// The visitor refused a frame.
    #[error("visitor refused the frame at {at}")]
    Visit {
        /// Offset of the frame.
        at: u64,
        /// What it said.
        source: E,
    },
}

/// The file to be scanned.
#[derive(Clone, Copy)]
pub struct Scan<'a> {
    /// The open file.
    pub file: &'a dyn DiskFile,
    /// The number in its name.
    pub number: u64,
    /// Its salt.
    pub salt: u32,
    /// Where its frames end at the latest; at most the file's length.
    pub limit: u64,
}

/// How far a walk came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Offset behind the last valid frame.
    pub end: u64,
    /// Header CRC of the last valid frame, or what was given if there was none.
    pub prev: Option<u32>,
    /// How many frames were shown.
    pub n_frames: u64,
}

/// What lies behind the end of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beyond {
    /// The first valid frame.
    pub first_valid: Option<u64>,
    /// Offset behind the last valid frame.
    pub last_end: u64,
    /// The highest `synced` of the valid frames.
    pub synced_max: u64,
    /// Offset behind the last byte that is not zero, or 0.
    pub written_end: u64,
}

/// What the end of one file means, taken alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Frames, then nothing.
    Clean {
        /// Offset behind the last frame.
        end: u64,
    },
    /// Bytes from `at` on were never promised to anybody.
    TornTail {
        /// Offset behind the last frame to keep.
        at: u64,
    },
    /// Promised bytes are lost.
    Damaged {
        /// Where they begin.
        at: u64,
        /// The next frame that can be read.
        next_valid: u64,
    },
}

impl<'a> Scan<'a> {
    /// Walks the chain of frames from `from`, showing each, up to the first bytes that do not continue it. With `prev` `None`
    /// any first frame is taken.
    pub fn walk<E>(
        &self,
        from: u64,
        prev: Option<u32>,
        visit: &mut dyn FnMut(FrameView<'_>) -> Result<(), E>,
    ) -> Result<Walked, ScanError<E>> {
        let mut window = Window::new(self);
        let mut walked = Walked { end: from, prev, n_frames: 0 };
        while let Some(header) = self.header_at(&mut window, walked.end)? {
            if walked.prev.is_some_and(|prev| prev != header.place.prev) {
                break;
            }
            let Some(payload) = payload_of(&mut window, &header)? else { break };
            visit(FrameView { header: &header, number: self.number, payload })
                .map_err(|source| ScanError::Visit { at: walked.end, source })?;
            walked = Walked { end: header.end(), prev: Some(header.crc), n_frames: walked.n_frames + 1 };
        }
        Ok(walked)
    }

    /// Walks the chain from `from` to `to` by headers alone, for stretches that are known to be durable: payloads are neither read nor
    /// proved, and the views' payloads are empty.
    pub fn walk_headers<E>(
        &self,
        from: u64,
        to: u64,
        visit: &mut dyn FnMut(FrameView<'_>) -> Result<(), E>,
    ) -> Result<Walked, ScanError<E>> {
        let mut window = Window::new(self);
        window.step = HEADER_WINDOW_BYTES;
        let mut walked = Walked { end: from, prev: None, n_frames: 0 };
        while walked.end < to
            && let Some(header) = self.header_at(&mut window, walked.end)?
        {
            if walked.prev.is_some_and(|prev| prev != header.place.prev) {
                break;
            }
            visit(FrameView { header: &header, number: self.number, payload: &[] })
                .map_err(|source| ScanError::Visit { at: walked.end, source })?;
            walked = Walked { end: header.end(), prev: Some(header.crc), n_frames: walked.n_frames + 1 };
        }
        Ok(walked)
    }

    /// Looks for valid frames from `from` to the end of the file, in steps of eight bytes, whatever lies between them.
    pub fn search<E>(
        &self,
        from: u64,
        found: &mut dyn FnMut(FrameView<'_>) -> Result<(), E>,
    ) -> Result<Beyond, ScanError<E>> {
        let mut window = Window::new(self);
        let mut beyond = Beyond::default();
        let mut at = from;
        while at < self.limit {
            if let Some(next) = window.skip_zeros(at)? {
                at = next;
                continue;
            }
            if let Some(header) = self.header_at(&mut window, at)?
                && let Some(payload) = payload_of(&mut window, &header)?
            {
                found(FrameView { header: &header, number: self.number, payload })
                    .map_err(|source| ScanError::Visit { at, source })?;
                beyond.first_valid.get_or_insert(at);
                beyond.synced_max = beyond.synced_max.max(header.place.synced);
                at = header.end();
                (beyond.last_end, beyond.written_end) = (at, at);
                continue;
            }
            if window.bytes(at, 8)?.iter().any(|byte| *byte != 0) {
                beyond.written_end = (at + 8).min(self.limit);
            }
            at += 8;
        }
        Ok(beyond)
    }

    /// Walks and classifies one file on its own; `is_recycled` files may hold bytes of a former life behind their frames.
    pub fn classify<E>(
        &self,
        from: u64,
        is_recycled: bool,
        visit: &mut dyn FnMut(FrameView<'_>) -> Result<(), E>,
    ) -> Result<Outcome, ScanError<E>> {
        let at = self.walk(from, None, visit)?.end;
        let beyond = self.search::<E>(at, &mut |_| Ok(()))?;
        Ok(match beyond.first_valid {
            Some(next_valid) if beyond.synced_max > mark_of(self.number, at) => {
                Outcome::Damaged { at, next_valid }
            }
            Some(_) => Outcome::TornTail { at },
            None if beyond.written_end > at && !is_recycled => Outcome::TornTail { at },
            None => Outcome::Clean { end: at },
        })
    }

    fn header_at<E>(&self, window: &mut Window<'a>, at: u64) -> Result<Option<FrameHeader>, ScanError<E>> {
        let Some(header_bytes) = peek_header_bytes(window.bytes(at, FIXED_BYTES)?) else { return Ok(None) };
        match parse_header(window.bytes(at, header_bytes)?, self.salt, at) {
            Ok(header) if header.end() <= self.limit => Ok(Some(header)),
            Ok(_) | Err(HeaderFault::NotAFrame) => Ok(None),
            Err(HeaderFault::Newer { found }) => Err(ScanError::Newer { at, found }),
        }
    }
}

/// The payload, if it is what the header says and nothing but zeros pads it.
fn payload_of<'w>(window: &'w mut Window<'_>, header: &FrameHeader) -> io::Result<Option<&'w [u8]>> {
    let padded = (header.end() - header.payload_at()) as usize;
    let bytes = window.bytes(header.payload_at(), padded)?;
    if bytes.len() < padded {
        return Ok(None);
    }
    let (payload, padding) = bytes.split_at(header.payload_bytes as usize);
    Ok((header.proves(payload) && padding.iter().all(|byte| *byte == 0)).then_some(payload))
}

/// A piece of the file in memory that slides forward.
struct Window<'a> {
    file: &'a dyn DiskFile,
    limit: u64,
    start: u64,
    /// Bytes to read at once.
    step: usize,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(scan: &Scan<'a>) -> Window<'a> {
        Window { file: scan.file, limit: scan.limit, start: 0, step: WINDOW_BYTES, bytes: Vec::new() }
    }

    /// Up to `len` bytes at `at`; fewer where the file ends.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        debug_assert!(len <= HEADER_BYTES_MAX + PAYLOAD_BYTES_MAX + 8);
        let end = at.saturating_add(len as u64).min(self.limit);
        if at >= end {
            return Ok(&[]);
        }
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            let wanted = (self.limit - at).min(self.step.max(len) as u64) as usize;
            self.bytes = self.file.read_vec(at, wanted)?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        let to = ((end - self.start) as usize).min(self.bytes.len());
        Ok(&self.bytes[from.min(to)..to])
    }

    /// The next multiple of 4 KiB if there are only zeros before it.
    fn skip_zeros(&mut self, at: u64) -> io::Result<Option<u64>> {
        let next = (at / 4096 + 1) * 4096;
        let bytes = self.bytes(at, (next - at) as usize)?;
        if bytes.is_empty() {
            return Ok(Some(self.limit));
        }
        Ok((bytes == &ZERO_BLOCK[..bytes.len()]).then_some(next))
    }
}
