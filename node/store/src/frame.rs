//! The one frame: how a block, a commit or an entry lies on disk.
//!
//! A frame is a header, zeros up to the payload's alignment, the payload, and zeros up to a multiple of eight. The header proves
//! itself (its CRC32C covers the table of payload CRCs, the padding, the file's salt and the frame's own offset, so that a frame
//! of another file, of a recycled file's former life or from another place never passes), and the table proves each 64 KiB of the
//! payload on its own, so that a small read checks 64 KiB and not 2 MiB. `docs/FORMAT.md` draws the bytes.
//!
//! Two fields tell a torn tail from damage: `prev` (the header CRC of the frame before, a chain) and `synced` (how far the file
//! was known to be durable when this frame was written).

use crate::layout::FRAME_VERSION;

/// The first four bytes of a frame.
pub const FRAME_MAGIC: [u8; 4] = *b"RmFr";
/// Bytes of a header without its table of payload CRCs.
pub const FIXED_BYTES: usize = 96;
/// Payload bytes under one CRC.
pub const PIECE_BYTES: usize = 64 << 10;
/// The longest payload: a 2 MiB block and room for what wraps it.
pub const PAYLOAD_BYTES_MAX: usize = (2 << 20) + (64 << 10);
/// The longest header: fixed part, table, and padding up to a 4 KiB boundary.
pub const HEADER_BYTES_MAX: usize = FIXED_BYTES + 4 * PAYLOAD_BYTES_MAX.div_ceil(PIECE_BYTES) + PAGE_BYTES;
/// Multihash code of sha2-256.
pub const SHA2_256: u32 = 0x12;

const PAGE_BYTES: usize = 4096;
const ALIGN: u64 = 8;
const CRC_AT: usize = 88;
const FLAG_ZSTD: u8 = 1;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameKind(pub u8);

impl FrameKind {
    /// A block, named by its digest.
    pub const BLOCK: FrameKind = FrameKind(1);
    /// A commit of a volume.
    pub const COMMIT: FrameKind = FrameKind(2);
    /// A part of a sealed pack's table of contents.
    pub const FOOTER: FrameKind = FrameKind(3);
    /// An entry of the registry.
    pub const ENTRY: FrameKind = FrameKind(4);
    /// An empty frame whose `synced` says that everything before it is durable; never shown to users of a log.
    pub const MARK: FrameKind = FrameKind(5);
}

/// What the writer of a frame says about its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameMeta {
    /// What the frame holds.
    pub kind: FrameKind,
    /// The term a commit was written in; else 0.
    pub term: u32,
    /// The sequence number of a commit or an entry; else 0.
    pub seq: u64,
    /// Multicodec code of the payload (0x55 raw, 0x70 dag-pb, 0x71 dag-cbor); 0 if it has none.
    pub codec: u32,
    /// Sha2-256 of the uncompressed payload; zeros if the payload is not named by a digest.
    pub digest: [u8; 32],
}

/// Where a frame lies and what surrounds it; mixed into the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's salt.
    pub salt: u32,
    /// Offset of the frame's first byte in its file; a multiple of eight.
    pub at: u64,
    /// Position up to which the log or the packs were known to be durable (see [`crate::scan::mark_of`]).
    pub synced: u64,
    /// Header CRC of the frame before; 0 for the first.
    pub prev: u32,
}

/// A header that has proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the writer said.
    pub meta: FrameMeta,
    /// Where the frame lies.
    pub place: Place,
    /// Bytes from the frame's start to its payload.
    pub header_bytes: u32,
    /// Bytes of the payload as stored.
    pub payload_bytes: u32,
    /// Bytes of the payload when uncompressed.
    pub raw_bytes: u32,
    /// Whether the payload is stored compressed with zstd.
    pub is_zstd: bool,
    /// The header's own CRC; the next frame's `prev`.
    pub crc: u32,
    /// CRC32C of each 64 KiB of the stored payload.
    pub pieces: Vec<u32>,
}

impl FrameHeader {
    /// Offset of the payload's first byte in the file.
    pub fn payload_at(&self) -> u64 {
        self.place.at + u64::from(self.header_bytes)
    }

    /// Offset behind the frame, where the next one begins.
    pub fn end(&self) -> u64 {
        round_up(self.payload_at() + u64::from(self.payload_bytes), ALIGN)
    }

    /// Whether `payload`, the whole stored payload, is what was written.
    pub fn proves(&self, payload: &[u8]) -> bool {
        payload.len() == self.payload_bytes as usize
            && payload.chunks(PIECE_BYTES).zip(&self.pieces).all(|(piece, crc)| crc32c::crc32c(piece) == *crc)
    }

    /// The range of the stored payload that must be read to prove `offset..offset + len`: whole pieces, clipped to the payload.
    pub fn cover(&self, offset: usize, len: usize) -> std::ops::Range<usize> {
        let total = self.payload_bytes as usize;
        let start = (offset.min(total) / PIECE_BYTES) * PIECE_BYTES;
        let end = offset.saturating_add(len).min(total).next_multiple_of(PIECE_BYTES).min(total);
        start..end.max(start)
    }

    /// Whether `bytes`, read from payload offset `start` (a range given by [`FrameHeader::cover`]), are what was written.
    pub fn proves_cover(&self, start: usize, bytes: &[u8]) -> bool {
        let first = start / PIECE_BYTES;
        bytes
            .chunks(PIECE_BYTES)
            .enumerate()
            .all(|(i, piece)| self.pieces.get(first + i) == Some(&crc32c::crc32c(piece)))
    }
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// No frame of this file begins here.
    NotAFrame,
    /// The header is whole but was written by a newer version of this program.
    Newer {
        /// The version found.
        found: u8,
    },
}

/// An encoded header, ready to be written before its payload.
#[derive(Clone, Debug)]
pub struct EncodedHeader {
    /// The header with its padding.
    pub bytes: Vec<u8>,
    /// Its CRC; the next frame's `prev`.
    pub crc: u32,
}

/// The sizes of a frame at `at`: bytes before the payload, and bytes of the whole frame with its padding.
pub fn frame_span(at: u64, payload_bytes: usize) -> (usize, u64) {
    let bare = at + round_up((FIXED_BYTES + 4 * payload_bytes.div_ceil(PIECE_BYTES)) as u64, ALIGN);
    let payload_at = if payload_bytes >= PIECE_BYTES { round_up(bare, PAGE_BYTES as u64) } else { bare };
    let end = round_up(payload_at + payload_bytes as u64, ALIGN);
    ((payload_at - at) as usize, end - at)
}

/// CRC32C of each 64 KiB of the payload that `parts` make together.
pub fn piece_crcs(parts: &[&[u8]]) -> Vec<u32> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let mut crcs = Vec::with_capacity(total.div_ceil(PIECE_BYTES));
    let (mut crc, mut filled) = (0, 0);
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PIECE_BYTES - filled));
            crc = crc32c::crc32c_append(crc, now);
            filled += now.len();
            rest = later;
            if filled == PIECE_BYTES {
                crcs.push(crc);
                (crc, filled) = (0, 0);
            }
        }
    }
    if filled > 0 {
        crcs.push(crc);
    }
    crcs
}

/// How a payload is stored.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Bytes as stored.
    pub payload_bytes: usize,
    /// Bytes when uncompressed.
    pub raw_bytes: usize,
    /// Whether zstd was applied.
    pub is_zstd: bool,
    /// CRC32C of each 64 KiB as stored.
    pub pieces: &'a [u32],
}

/// Encodes a header.
///
/// # Panics
/// If the payload is longer than [`PAYLOAD_BYTES_MAX`] or the table does not fit it; callers check before.
pub fn encode_header(meta: &FrameMeta, place: &Place, stored: &Stored<'_>) -> EncodedHeader {
    assert!(stored.payload_bytes <= PAYLOAD_BYTES_MAX && stored.raw_bytes <= PAYLOAD_BYTES_MAX);
    assert!(stored.pieces.len() == stored.payload_bytes.div_ceil(PIECE_BYTES));
    let (header_bytes, _) = frame_span(place.at, stored.payload_bytes);
    let mut out = Vec::with_capacity(header_bytes);
    out.extend_from_slice(&FRAME_MAGIC);
    out.push(FRAME_VERSION);
    out.push(meta.kind.0);
    out.push(if stored.is_zstd { FLAG_ZSTD } else { 0 });
    out.push(0);
    out.extend_from_slice(&(header_bytes as u32).to_le_bytes());
    out.extend_from_slice(&(stored.payload_bytes as u32).to_le_bytes());
    out.extend_from_slice(&(stored.raw_bytes as u32).to_le_bytes());
    out.extend_from_slice(&meta.term.to_le_bytes());
    out.extend_from_slice(&meta.seq.to_le_bytes());
    out.extend_from_slice(&place.synced.to_le_bytes());
    out.extend_from_slice(&place.prev.to_le_bytes());
    out.extend_from_slice(&meta.codec.to_le_bytes());
    out.extend_from_slice(&SHA2_256.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&meta.digest);
    out.extend_from_slice(&[0; 8]);
    for crc in stored.pieces {
        out.extend_from_slice(&crc.to_le_bytes());
    }
    out.resize(header_bytes, 0);
    let crc = header_crc(&out, place.salt, place.at);
    out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    EncodedHeader { bytes: out, crc }
}

/// The length of the header that seems to begin here, if `bytes` (at least [`FIXED_BYTES`]) look like one at all.
/// Proves nothing; bounds what must be read to call [`parse_header`].
pub fn peek_header_bytes(bytes: &[u8]) -> Option<usize> {
    let fixed = bytes.get(..FIXED_BYTES)?;
    let header_bytes = u32_at(fixed, 8) as usize;
    let plausible = fixed[..4] == FRAME_MAGIC
        && (FIXED_BYTES..=HEADER_BYTES_MAX).contains(&header_bytes)
        && header_bytes.is_multiple_of(ALIGN as usize);
    plausible.then_some(header_bytes)
}

/// Reads and proves a header; `bytes` begin at the frame and hold at least the whole header.
///
/// # Errors
/// [`HeaderFault`] for anything that is not a header of this file at this offset.
pub fn parse_header(bytes: &[u8], salt: u32, at: u64) -> Result<FrameHeader, HeaderFault> {
    let header_bytes = peek_header_bytes(bytes).ok_or(HeaderFault::NotAFrame)?;
    let header = bytes.get(..header_bytes).ok_or(HeaderFault::NotAFrame)?;
    let crc = u32_at(header, CRC_AT);
    if header_crc(header, salt, at) != crc {
        return Err(HeaderFault::NotAFrame);
    }
    if header[4] > FRAME_VERSION || header[6] & !FLAG_ZSTD != 0 {
        return Err(HeaderFault::Newer { found: header[4].max(FRAME_VERSION + 1) });
    }
    let payload_bytes = u32_at(header, 12);
    let raw_bytes = u32_at(header, 16);
    let fits = payload_bytes as usize <= PAYLOAD_BYTES_MAX
        && raw_bytes as usize <= PAYLOAD_BYTES_MAX
        && frame_span(at, payload_bytes as usize).0 == header_bytes;
    if !fits || u32_at(header, 48) != SHA2_256 {
        return Err(HeaderFault::NotAFrame);
    }
    let n_pieces = (payload_bytes as usize).div_ceil(PIECE_BYTES);
    let table = &header[FIXED_BYTES..FIXED_BYTES + 4 * n_pieces];
    let mut digest = [0; 32];
    digest.copy_from_slice(&header[56..88]);
    Ok(FrameHeader {
        meta: FrameMeta {
            kind: FrameKind(header[5]),
            term: u32_at(header, 20),
            seq: u64_at(header, 24),
            codec: u32_at(header, 44),
            digest,
        },
        place: Place { salt, at, synced: u64_at(header, 32), prev: u32_at(header, 40) },
        header_bytes: header_bytes as u32,
        payload_bytes,
        raw_bytes,
        is_zstd: header[6] & FLAG_ZSTD != 0,
        crc,
        pieces: table.chunks_exact(4).map(|crc| u32_at(crc, 0)).collect(),
    })
}

/// The header's CRC: over salt, offset, and the header with the CRC field as zeros.
fn header_crc(header: &[u8], salt: u32, at: u64) -> u32 {
    let mut seed = [0; 12];
    seed[..4].copy_from_slice(&salt.to_le_bytes());
    seed[4..].copy_from_slice(&at.to_le_bytes());
    let crc = crc32c::crc32c(&seed);
    let crc = crc32c::crc32c_append(crc, &header[..CRC_AT]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &header[CRC_AT + 4..])
}

/// Rounds up to a multiple of `to`.
pub(crate) fn round_up(value: u64, to: u64) -> u64 {
    value.div_ceil(to) * to
}

/// The little-endian number at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

/// The little-endian number at `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}
