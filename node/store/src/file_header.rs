//! The first 4 KiB of every file of frames: what it is, whose, and the salt that ties its frames to it.

use crate::disk::DiskFile;
use crate::frame::{u32_at, u64_at};
use crate::layout::FILE_VERSION;

/// Bytes before the first frame.
pub const FILE_HEADER_BYTES: u64 = 4096;

const MAGIC: [u8; 8] = *b"Remora\r\n";
const USED_BYTES: usize = 64;
const CRC_AT: usize = 60;
const FLAG_RECYCLED: u8 = 1;
const FLAG_SNAPSHOT: u8 = 2;

/// What a file of frames is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Blocks.
    Pack,
    /// Commits of a volume.
    VolumeLog,
    /// Entries of the registry.
    Registry,
    /// A suffix of a volume's log that lost.
    Fork,
}

impl FileKind {
    fn code(self) -> u8 {
        match self {
            FileKind::Pack => 1,
            FileKind::VolumeLog => 2,
            FileKind::Registry => 3,
            FileKind::Fork => 4,
        }
    }

    fn from_code(code: u8) -> Option<FileKind> {
        [FileKind::Pack, FileKind::VolumeLog, FileKind::Registry, FileKind::Fork]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// A file's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// What the file is.
    pub kind: FileKind,
    /// Whether bytes of a former life may follow the frames; else zeros do.
    pub is_recycled: bool,
    /// Whether the file's first frames replace everything in files with lower numbers.
    pub is_snapshot: bool,
    /// Mixed into the header CRC of each frame.
    pub salt: u32,
    /// Whose file it is: the volume's id; zeros where there is only one owner.
    pub id: [u8; 16],
    /// The number in its name.
    pub number: u64,
    /// Bytes that were written ahead, this header included; 0 if the file grows.
    pub capacity: u64,
}

/// Why bytes are not a file header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileHeaderFault {
    /// Not a header, or damaged.
    #[error("is damaged or not a file of ours")]
    Damaged,
    /// Written by a newer version of this program.
    #[error("has format version {found}; this program knows versions up to {FILE_VERSION}")]
    Newer {
        /// The version found.
        found: u16,
    },
}

impl FileHeader {
    /// The 4 KiB to write at offset 0.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FILE_HEADER_BYTES as usize);
        let recycled = if self.is_recycled { FLAG_RECYCLED } else { 0 };
        let snapshot = if self.is_snapshot { FLAG_SNAPSHOT } else { 0 };
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FILE_VERSION.to_le_bytes());
        out.push(self.kind.code());
        out.push(recycled | snapshot);
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.capacity.to_le_bytes());
        out.resize(CRC_AT, 0);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(FILE_HEADER_BYTES as usize, 0);
        out
    }

    /// Reads and proves a header from a file's first bytes.
    pub fn parse(bytes: &[u8]) -> Result<FileHeader, FileHeaderFault> {
        let used = bytes.get(..USED_BYTES).ok_or(FileHeaderFault::Damaged)?;
        if used[..8] != MAGIC || crc32c::crc32c(&used[..CRC_AT]) != u32_at(used, CRC_AT) {
            return Err(FileHeaderFault::Damaged);
        }
        let version = u16::from_le_bytes([used[8], used[9]]);
        let known_flags = FLAG_RECYCLED | FLAG_SNAPSHOT;
        let (Some(kind), 0, true) =
            (FileKind::from_code(used[10]), used[11] & !known_flags, version <= FILE_VERSION)
        else {
            return Err(FileHeaderFault::Newer { found: version.max(FILE_VERSION + 1) });
        };
        let mut id = [0; 16];
        id.copy_from_slice(&used[16..32]);
        Ok(FileHeader {
            kind,
            is_recycled: used[11] & FLAG_RECYCLED != 0,
            is_snapshot: used[11] & FLAG_SNAPSHOT != 0,
            salt: u32_at(used, 12),
            id,
            number: u64_at(used, 32),
            capacity: u64_at(used, 40),
        })
    }

    /// Reads the header of an open file.
    ///
    /// # Errors
    /// The outer error is the disk's, the inner one says what is wrong with the bytes.
    pub fn read(file: &dyn DiskFile) -> std::io::Result<Result<FileHeader, FileHeaderFault>> {
        Ok(FileHeader::parse(&file.read_vec(0, USED_BYTES)?))
    }
}
