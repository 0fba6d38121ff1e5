//! The checksum that proves the tables' files to be those of the last clean stop.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::disk::{Disk, RealDisk};
use crate::fault::DiskFault;

/// Bytes read at once.
const STEP_BYTES: usize = 1 << 20;

/// CRC32C over names, lengths and contents of all files in `dir`, in order of their names.
pub(super) fn crc_of(dir: &Path) -> Result<u32, DiskFault> {
    let mut crc = 0;
    add(dir, &mut crc)?;
    Ok(crc)
}

fn add(dir: &Path, crc: &mut u32) -> Result<(), DiskFault> {
    for name in RealDisk.list(dir).map_err(DiskFault::at("list index", dir))? {
        *crc = crc32c::crc32c_append(*crc, name.as_bytes());
        let path = dir.join(name);
        if path.is_dir() {
            add(&path, crc)?;
        } else {
            add_file(&path, crc).map_err(DiskFault::at("read index", &path))?;
        }
    }
    Ok(())
}

fn add_file(path: &Path, crc: &mut u32) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    *crc = crc32c::crc32c_append(*crc, &file.metadata()?.len().to_le_bytes());
    let mut buffer = vec![0; STEP_BYTES];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        *crc = crc32c::crc32c_append(*crc, &buffer[..n]);
    }
}
