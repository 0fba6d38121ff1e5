//! The one small door to the disk: real files in the daemon, a simulated disk in tests.
//!
//! What always holds: offsets are explicit, so any number of threads may use one file at once; nothing is durable before
//! `sync_data` (bytes and length) or `sync_dir` (names) has returned without an error.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, FallocateFlags};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Must exist; is not written.
    Read,
    /// Must exist; is read and written.
    ReadWrite,
    /// Must not exist; is made, read and written. Its name is durable after `sync_dir` of its directory.
    CreateNew,
}

/// A place that holds files.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file. `NotFound` and `AlreadyExists` are answered as such.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, replacing what has the new name. Durable after `sync_dir` of both directories.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name. Durable after `sync_dir`; open handles stay readable.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted; names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a directory and its missing parents, mode 0700, durably.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes all earlier changes of names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that may still be written to the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// A number that no other file is likely to have got; salts the checksums of a new file.
    fn salt(&self) -> u32;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads at `offset` until `buf` is full or the file ends; returns how many bytes were read.
    fn pread(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Reads up to `len` bytes at `offset`; shorter only where the file ends.
    fn read_vec(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buf = vec![0; len];
        let n = self.pread(offset, &mut buf)?;
        buf.truncate(n);
        Ok(buf)
    }

    /// Says that these bytes will be read soon. Does not wait; a matter of speed alone.
    fn will_read(&self, _offset: u64, _len: u64) {}

    /// Writes all parts, one after the other, at `offset`. After an error any part of them may have been written.
    fn pwrite(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;

    /// Makes all earlier writes and the length durable. After an error nothing is known of what was written since the last
    /// success, and a later success says nothing about it: never retry.
    fn sync_data(&self) -> io::Result<()>;

    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Gives the file at least this length and space on the disk for all of it, so that nobody else gets that. After an error
    /// some of it may have been done.
    fn allocate(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The real disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        Ok(Arc::new(RealFile { file: options.open(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        if dir.as_os_str().is_empty() || dir.is_dir() {
            return Ok(());
        }
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        self.create_dir_all(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => self.sync_dir(parent),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn salt(&self) -> u32 {
        let mut bytes = [0; 4];
        match getrandom::fill(&mut bytes) {
            Ok(()) => u32::from_le_bytes(bytes),
            Err(_) => {
                // Without a source of randomness the clock still tells files apart.
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
                (now.tv_nsec as u32).rotate_left(7) ^ (now.tv_sec as u32)
            }
        }
    }
}

struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn pread(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn read_vec(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buf = Vec::with_capacity(len);
        while buf.len() < len {
            let at = offset + buf.len() as u64;
            // The capacity may exceed what was asked for; the surplus is cut below.
            match rustix::io::pread(&self.file, spare_capacity(&mut buf), at) {
                Ok(0) => break,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        buf.truncate(len);
        Ok(buf)
    }

    fn will_read(&self, offset: u64, len: u64) {
        let advised = rustix::fs::fadvise(&self.file, offset, NonZeroU64::new(len), Advice::WillNeed);
        if let Err(error) = advised {
            tracing::debug!(%error, "the system takes no advice on reads");
        }
    }

    fn pwrite(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut done = match rustix::io::pwritev(&self.file, &slices, offset) {
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        if done == total {
            return Ok(());
        }
        // A short write: go on part by part; what is wrong shows itself as an error of the next call.
        let mut at = 0;
        for part in parts {
            let skip = done.saturating_sub(at).min(part.len());
            if skip < part.len() {
                self.file.write_all_at(&part[skip..], offset + (at + skip) as u64)?;
                done = at + part.len();
            }
            at += part.len();
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len)?)
    }
}
