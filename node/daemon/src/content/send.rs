//! Content on its way to a command: a file as bytes, a tree as records.

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::BlockSource;
use remora_dag::read::FileReader;
use remora_dag::unixfs::symlink_target;
use remora_store::fault::chain;

use crate::content::browse::{Kind, entries, kind, read};
use crate::exit::{Code, Failure};
use crate::wire::{DATA_BYTES_MAX, Record};

/// Takes what is sent; `false` when the receiver is gone.
pub(crate) type Emit<'a> = dyn FnMut(Bytes) -> bool + 'a;

/// Directories within directories that are sent; a deeper tree is no file tree but an attack on its reader.
const DEPTH_MAX: usize = 512;

/// Sends the bytes of a file.
pub(crate) fn file(blocks: &dyn BlockSource, cid: &Cid, emit: &mut Emit<'_>) -> Result<(), Failure> {
    if kind(blocks, cid)? != Kind::File {
        return Err(Failure::usage(format!("{cid} is no file: use `remora ls` or `remora get`")));
    }
    let mut reader = FileReader::open(blocks, cid).map_err(read)?;
    loop {
        let bytes = reader.next_bytes().map_err(read)?;
        if bytes.is_empty() || !emit(bytes) {
            return Ok(());
        }
    }
}

/// Sends a tree as records.
pub(crate) fn tree(blocks: &dyn BlockSource, cid: &Cid, emit: &mut Emit<'_>) -> Result<(), Failure> {
    let mut records = |record: Record| emit(Bytes::from(record.to_frame()));
    node(blocks, cid, b"root".to_vec(), 0, &mut records).map(drop)
}

/// Sends one node and what is below it; `false` when the receiver is gone.
fn node(
    blocks: &dyn BlockSource,
    cid: &Cid,
    name: Vec<u8>,
    depth: usize,
    emit: &mut dyn FnMut(Record) -> bool,
) -> Result<bool, Failure> {
    if depth > DEPTH_MAX {
        return Err(Failure::failed(format!("more than {DEPTH_MAX} directories deep")));
    }
    match kind(blocks, cid)? {
        Kind::Directory => {
            let mut alive = emit(Record::Enter(name));
            for entry in entries(blocks, cid)? {
                alive = alive && node(blocks, &entry.cid, entry.name, depth + 1, emit)?;
            }
            Ok(alive && emit(Record::Leave))
        }
        Kind::Symlink => {
            let bytes = blocks.get(cid).map_err(|e| read(e.into()))?;
            let target = symlink_target(cid, &bytes).map_err(|e| Failure::new(Code::Damaged, chain(&e)))?;
            Ok(emit(Record::Symlink(name, target.to_vec())))
        }
        Kind::File => {
            let mut reader = FileReader::open(blocks, cid).map_err(read)?;
            let mut alive = emit(Record::File(name));
            while alive {
                let bytes = reader.next_bytes().map_err(read)?;
                if bytes.is_empty() {
                    break;
                }
                alive = bytes.chunks(DATA_BYTES_MAX).all(|part| emit(Record::Data(part.to_vec())));
            }
            Ok(alive && emit(Record::End))
        }
    }
}
