//! Writing bytes of a file once more, as they are.
//!
//! After a sync that failed the kernel takes what it could not write for written: it can be read and is not on the disk, and the next
//! sync says OK. A start cannot see that; so what it found and does not know to be durable it writes again, and then syncs.

use std::io;

use crate::disk::DiskFile;

/// Bytes in memory at a time.
const STEP_BYTES: u64 = 1 << 20;

/// Writes the bytes `from..to` as they are read. Durable after the next sync.
///
/// # Errors
/// Also if the file ends before `to`.
pub(crate) fn write_again(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let wanted = (to - at).min(STEP_BYTES);
        let bytes = file.read_vec(at, wanted as usize)?;
        if bytes.len() as u64 != wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.pwrite(at, &[&bytes])?;
        at += wanted;
    }
    Ok(())
}
