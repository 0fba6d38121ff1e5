//! One pack: a file of block frames, sealed with a table of contents when it is full.
//!
//! A sealed pack ends in footer frames (the sorted digests and places of all its blocks) and a 64-byte trailer, so that the index can
//! be rebuilt without reading the blocks. A pack without a whole trailer is walked frame by frame. The trailer is written after the
//! blocks were made durable, and so proves that they are.

use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::fault::DiskFault;
use crate::file_header::{FILE_HEADER_BYTES, FileHeader, FileHeaderFault};
use crate::frame::{
    EncodedHeader, FrameKind, FrameMeta, HEADER_BYTES_MAX, Place, Stored, encode_header, frame_span,
    parse_header, piece_crcs, u32_at, u64_at,
};
use crate::index::{BlockPlace, Digest};
use crate::layout::TRAILER_VERSION;
use crate::pack_files::{PackFile, PackFiles};
use crate::rewrite::write_again;
use crate::scan::FrameView;

/// Bytes of the trailer at the very end of a sealed pack.
pub const TRAILER_BYTES: u64 = 64;

const TRAILER_MAGIC: [u8; 8] = *b"RmSealed";
const ENTRY_BYTES: usize = 32 + 24;
/// Entries in one footer frame: under 1 MiB of payload.
const FOOTER_ENTRIES: usize = (1 << 20) / ENTRY_BYTES;

/// An open pack.
pub struct Pack {
    /// The number in its name.
    pub number: u64,
    /// The file.
    pub path: PathBuf,
    /// The file; one of a pack that is only read is opened when it is needed.
    pub file: Arc<dyn DiskFile>,
    /// Mixed into its frames' header CRCs.
    pub salt: u32,
    /// The same file, if it may be closed.
    pub(crate) closable: Option<Arc<PackFile>>,
}

/// The end of a pack that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackEnd {
    pub(crate) at: u64,
    pub(crate) prev: u32,
}

/// What the trailer of a sealed pack says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trailer {
    footer_at: u64,
    n_entries: u64,
}

impl Pack {
    /// Opens a pack that is on disk.
    ///
    /// # Errors
    /// The inner error says what is wrong with the file's header.
    pub fn open(
        disk: &dyn Disk,
        path: PathBuf,
        number: u64,
    ) -> Result<Result<(Pack, FileHeader), FileHeaderFault>, DiskFault> {
        let file = disk.open(&path, OpenMode::ReadWrite).map_err(DiskFault::at("open pack", &path))?;
        let header = FileHeader::read(&*file).map_err(DiskFault::at("read pack header", &path))?;
        Ok(header.map(|header| (Pack { number, path, file, salt: header.salt, closable: None }, header)))
    }

    /// The same pack with a file that is opened when it is needed; for one that is not written to.
    pub(crate) fn lazily(&self, files: &Arc<PackFiles>) -> Pack {
        let file = files.lazily(self.number, &self.path);
        let path = self.path.clone();
        Pack { number: self.number, path, file: file.clone(), salt: self.salt, closable: Some(file) }
    }

    /// Keeps the file open from here on.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn hold(&self) -> Result<(), DiskFault> {
        let held = self.closable.as_ref().map_or(Ok(()), |file| file.hold());
        held.map_err(DiskFault::at("open pack", &self.path))
    }

    /// Writes frames of block `stored` parts at `end`; returns the end behind it.
    pub(crate) fn write(
        &self,
        end: PackEnd,
        synced: u64,
        meta: &FrameMeta,
        stored: &Stored<'_>,
        payload: &[u8],
    ) -> std::io::Result<(PackEnd, usize)> {
        let place = Place { salt: self.salt, at: end.at, synced, prev: end.prev };
        let EncodedHeader { bytes, crc } = encode_header(meta, &place, stored);
        let (header_bytes, span) = frame_span(end.at, stored.payload_bytes);
        let padding = [0; 8];
        let pad = span as usize - header_bytes - stored.payload_bytes;
        self.file.pwrite(end.at, &[&bytes, payload, &padding[..pad]])?;
        Ok((PackEnd { at: end.at + span, prev: crc }, header_bytes))
    }

    /// Writes the table of contents behind `end`, where the blocks must be durable: a sound trailer says that they are. Not durable
    /// itself; a pack whose seal is lost is walked instead.
    pub(crate) fn seal(
        &self,
        end: PackEnd,
        synced: u64,
        entries: &[(Digest, BlockPlace)],
    ) -> std::io::Result<()> {
        let mut entries = entries.to_vec();
        entries.sort_unstable_by_key(|(digest, _)| *digest);
        let footer_at = end.at;
        let mut end = end;
        for (i, chunk) in entries.chunks(FOOTER_ENTRIES).enumerate() {
            let mut payload = Vec::with_capacity(chunk.len() * ENTRY_BYTES);
            for (digest, place) in chunk {
                payload.extend_from_slice(digest);
                payload.extend_from_slice(&place.encode());
            }
            let meta =
                FrameMeta { kind: FrameKind::FOOTER, term: 0, seq: i as u64, codec: 0, digest: [0; 32] };
            let pieces = piece_crcs(&[&payload]);
            let n = payload.len();
            let stored = Stored { payload_bytes: n, raw_bytes: n, is_zstd: false, pieces: &pieces };
            end = self.write(end, synced, &meta, &stored, &payload)?.0;
        }
        let trailer = Trailer { footer_at, n_entries: entries.len() as u64 };
        self.file.pwrite(end.at, &[&trailer.encode(self.salt)])
    }

    /// Writes the table of contents and the trailer once more, as they are, and makes them durable.
    pub(crate) fn seal_again(&self, disk: &dyn Disk) -> Result<(), DiskFault> {
        let again = || {
            let file = disk.open(&self.path, OpenMode::ReadWrite)?;
            let len = file.len()?;
            let at = len.saturating_sub(TRAILER_BYTES);
            let trailer = Trailer::decode(&file.read_vec(at, TRAILER_BYTES as usize)?, self.salt);
            write_again(&*file, trailer.map_or(at, |trailer| trailer.footer_at), len)?;
            file.sync_data()
        };
        again().map_err(DiskFault::at("sync sealed pack", &self.path))
    }

    /// Whether it ends in a sound trailer.
    pub fn is_sealed(&self) -> std::io::Result<bool> {
        let Some(at) = self.file.len()?.checked_sub(TRAILER_BYTES) else { return Ok(false) };
        let bytes = self.file.read_vec(at, TRAILER_BYTES as usize)?;
        Ok(Trailer::decode(&bytes, self.salt).is_some())
    }

    /// The table of contents, if the pack is sealed and the table proves itself.
    pub fn read_footer(&self) -> std::io::Result<Option<Vec<(Digest, BlockPlace)>>> {
        let len = self.file.len()?;
        if len < FILE_HEADER_BYTES + TRAILER_BYTES {
            return Ok(None);
        }
        let bytes = self.file.read_vec(len - TRAILER_BYTES, TRAILER_BYTES as usize)?;
        let Some(trailer) = Trailer::decode(&bytes, self.salt) else { return Ok(None) };
        let mut at = trailer.footer_at;
        let mut entries = Vec::new();
        while at < len - TRAILER_BYTES {
            let bytes = self.file.read_vec(at, HEADER_BYTES_MAX)?;
            let Ok(header) = parse_header(&bytes, self.salt, at) else { return Ok(None) };
            if header.meta.kind != FrameKind::FOOTER {
                return Ok(None);
            }
            let payload = self.file.read_vec(header.payload_at(), header.payload_bytes as usize)?;
            if !header.proves(&payload) || payload.len() % ENTRY_BYTES != 0 {
                return Ok(None);
            }
            for entry in payload.chunks_exact(ENTRY_BYTES) {
                let (digest, place) = entry.split_at(32);
                if let (Ok(digest), Some(place)) = (Digest::try_from(digest), BlockPlace::decode(place)) {
                    entries.push((digest, place));
                }
            }
            at = header.end();
        }
        let is_whole = entries.len() as u64 == trailer.n_entries
            && entries.iter().all(|(_, place)| u64::from(place.pack) == self.number);
        Ok(is_whole.then_some(entries))
    }
}

/// The index entry of a block frame.
pub(crate) fn entry_of(view: &FrameView<'_>) -> Option<(Digest, BlockPlace)> {
    let header = view.header;
    if header.meta.kind != FrameKind::BLOCK {
        return None;
    }
    let place = BlockPlace {
        pack: view.number as u32,
        at: header.place.at as u32,
        header_bytes: header.header_bytes,
        stored_bytes: header.payload_bytes,
        raw_bytes: header.raw_bytes,
        codec: header.meta.codec,
    };
    Some((header.meta.digest, place))
}

impl Trailer {
    fn encode(&self, salt: u32) -> [u8; TRAILER_BYTES as usize] {
        let mut out = [0; TRAILER_BYTES as usize];
        out[..8].copy_from_slice(&TRAILER_MAGIC);
        out[8..10].copy_from_slice(&TRAILER_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&salt.to_le_bytes());
        out[16..24].copy_from_slice(&self.footer_at.to_le_bytes());
        out[24..32].copy_from_slice(&self.n_entries.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], salt: u32) -> Option<Trailer> {
        let is_ours = bytes.len() == TRAILER_BYTES as usize
            && bytes[..8] == TRAILER_MAGIC
            && u16::from_le_bytes([bytes[8], bytes[9]]) == TRAILER_VERSION
            && u32_at(bytes, 12) == salt
            && crc32c::crc32c(&bytes[..60]) == u32_at(bytes, 60);
        is_ours.then(|| Trailer { footer_at: u64_at(bytes, 16), n_entries: u64_at(bytes, 24) })
    }
}
