//! One process owns a data directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};

use crate::disk::{Disk, RealDisk};
use crate::fault::DiskFault;
use crate::layout::DataDir;

/// Why a data directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it; stop that one first, or use another data directory.
    #[error("{} is in use by {holder}", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// What the lock file says of the holder: `process 1234`, or `another process`.
        holder: String,
    },
    /// The lock file could not be made or locked.
    #[error(transparent)]
    Disk(#[from] DiskFault),
}

/// Ownership of a data directory, given up when dropped (or when the process ends, however it ends).
#[derive(Debug)]
pub struct DataLock {
    file: File,
}

impl DataLock {
    /// Takes the data directory, making it if it is missing. Does not wait.
    ///
    /// # Errors
    /// [`LockError::Held`] names the holder's process id.
    pub fn take(data: &DataDir) -> Result<DataLock, LockError> {
        let path = data.lock();
        RealDisk.create_dir_all(data.root()).map_err(DiskFault::at("make data directory", data.root()))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(DiskFault::at("open lock", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held { holder: holder_of(&mut file), path });
            }
            Err(error) => return Err(DiskFault::at("lock", &path)(error.into()).into()),
        }
        write_holder(&mut file).map_err(DiskFault::at("write lock", &path))?;
        Ok(DataLock { file })
    }
}

impl Drop for DataLock {
    fn drop(&mut self) {
        // The lock goes with the file; an empty file tells the curious that nobody is here.
        let _ = self.file.set_len(0);
    }
}

fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

fn holder_of(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(32).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "another process".to_owned(),
    }
}
