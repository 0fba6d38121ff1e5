//! Reading file content: the state says where the bytes are, and they are fetched without its lock.

use std::ops::Range;
use std::sync::Arc;

use cid::Cid;

use remora_dag::block::{BlockSource, SourceError};
use remora_store::log::{LogError, Position};
use remora_vfs::attr::Ino;
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::Reply;

use crate::journal::Batch;
use crate::journal::payloads::Payload;
use crate::state::content::{From as PieceFrom, Piece};
use crate::stop::Stop;
use crate::volume::shared::{Core, Shared};

/// How often a read starts again because a checkpoint took away what it was about to read.
const ATTEMPTS_MAX: usize = 8;

/// The most one call reads, in bytes.
const READ_BYTES_MAX: usize = 64 << 20;

/// Bytes, or where to get them without a lock.
enum Source {
    Bytes(Vec<u8>),
    Memory(Arc<Batch>, Range<usize>),
    Log(Position, Range<usize>),
    Block(Cid, u64, usize),
    Zero(usize),
}

/// Why bytes could not be read.
enum Failed {
    /// The log's segment is gone: a checkpoint has them now.
    Moved,
    /// For good.
    Errno(Errno),
}

impl Shared {
    /// See `Filesystem::read`.
    pub(crate) fn read(&self, ino: Ino, offset: u64, len: usize) -> Reply<Vec<u8>> {
        let len = len.min(READ_BYTES_MAX);
        for _ in 0..ATTEMPTS_MAX {
            let sources = self.with_blocks(|core| {
                if core.runs.has(ino) {
                    return Ok(None);
                }
                let pieces = core.state.read_plan(ino, offset, len as u64)?;
                pieces.iter().map(|piece| source_of(core, piece)).collect::<Result<Vec<_>, _>>().map(Some)
            })?;
            let Some(sources) = sources else {
                drop(self.settled(ino));
                self.core.lock().journal.check()?;
                continue;
            };
            match self.gather(sources) {
                Ok(bytes) => return Ok(bytes),
                Err(Failed::Moved) => {}
                Err(Failed::Errno(errno)) => return Err(errno),
            }
        }
        tracing::error!(ino, offset, "the log has lost what the state refers to");
        Err(Errno::EIO)
    }

    fn gather(&self, sources: Vec<Source>) -> Result<Vec<u8>, Failed> {
        if let [Source::Block(cid, offset, len)] = sources[..] {
            // What bulk data is read as: handed on without a copy.
            let bytes = self.blocks.get_range(&cid, offset, len).map_err(|error| block_failure(&error))?;
            return if bytes.len() == len { Ok(Vec::from(bytes)) } else { Err(short_piece()) };
        }
        let mut out = Vec::with_capacity(sources.iter().map(Source::len).sum());
        for source in sources {
            let wanted = out.len() + source.len();
            match source {
                Source::Bytes(bytes) => out.extend_from_slice(&bytes),
                Source::Memory(batch, range) => out.extend_from_slice(&batch.ops[range]),
                Source::Log(position, range) => {
                    out.extend_from_slice(
                        &self.log.read(position, range).map_err(|error| log_failure(&error))?,
                    );
                }
                Source::Block(cid, offset, len) => {
                    let bytes =
                        self.blocks.get_range(&cid, offset, len).map_err(|error| block_failure(&error))?;
                    out.extend_from_slice(&bytes);
                }
                Source::Zero(len) => out.resize(out.len() + len, 0),
            }
            if out.len() != wanted {
                return Err(short_piece());
            }
        }
        Ok(out)
    }
}

impl Source {
    fn len(&self) -> usize {
        match self {
            Source::Bytes(bytes) => bytes.len(),
            Source::Memory(_, range) | Source::Log(_, range) => range.len(),
            Source::Block(_, _, len) | Source::Zero(len) => *len,
        }
    }
}

/// Where a piece's bytes are right now. The open batch is copied: it changes as soon as the lock is open.
fn source_of(core: &Core, piece: &Piece) -> Result<Source, Stop> {
    let len = usize::try_from(piece.len).map_err(|_| Errno::EIO)?;
    let (seq, offset) = match &piece.from {
        PieceFrom::Zero => return Ok(Source::Zero(len)),
        PieceFrom::Block { cid, offset } => return Ok(Source::Block(*cid, *offset, len)),
        PieceFrom::Inline { seq, offset } => (*seq, usize::try_from(*offset).map_err(|_| Errno::EIO)?),
    };
    let range = offset..offset.checked_add(len).ok_or(Errno::EIO)?;
    if let Some(ops) = core.journal.open_ops(seq) {
        return ops.get(range).map(|bytes| Source::Bytes(bytes.to_vec())).ok_or(Stop::Errno(Errno::EIO));
    }
    match core.journal.payload(seq) {
        Some(Payload::Memory(batch)) if range.end <= batch.ops.len() => {
            Ok(Source::Memory(batch.clone(), range))
        }
        Some(Payload::Log { position, ops_offset }) => {
            Ok(Source::Log(*position, ops_offset + range.start..ops_offset + range.end))
        }
        _ => Err(Stop::Refused("an extent refers to ops that are not there")),
    }
}

fn short_piece() -> Failed {
    tracing::error!("a piece of a file is shorter than it must be");
    Failed::Errno(Errno::EIO)
}

fn log_failure(error: &LogError) -> Failed {
    if let LogError::Gone { .. } = error {
        return Failed::Moved;
    }
    tracing::error!(%error, "read file content from the log");
    Failed::Errno(Errno::EIO)
}

fn block_failure(error: &SourceError) -> Failed {
    tracing::warn!(%error, "read file content");
    Failed::Errno(Errno::EIO)
}
