//! One file operation: chosen by a generator, performed below any root, answered with an error number or a digest.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// Times before this one were set by an operation; later ones are the clock's and differ between two trees.
pub(super) const CLOCK_BEGINS: i64 = 1_577_836_800;

/// Longest read that is compared.
const READ_BYTES: usize = 256 << 10;

/// A digest of what an operation showed; 0 if it shows nothing.
pub(super) type Shown = u64;

/// An operation on paths relative to a root.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create { path: PathBuf, is_exclusive: bool, mode: u32 },
    Write { path: PathBuf, offset: u64, length: usize, seed: u64, is_synced: bool },
    Append { path: PathBuf, length: usize, seed: u64 },
    Truncate { path: PathBuf, size: u64 },
    Allocate { path: PathBuf, how: Allocation, offset: u64, length: u64 },
    CopyRange { from: PathBuf, to: PathBuf, from_offset: u64, to_offset: u64, length: usize },
    Read { path: PathBuf, offset: u64 },
    Stat { path: PathBuf },
    List { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, how: Renaming },
    Link { from: PathBuf, to: PathBuf },
    Unlink { path: PathBuf },
    Symlink { target: PathBuf, path: PathBuf },
    Readlink { path: PathBuf },
    Mkdir { path: PathBuf, mode: u32 },
    Rmdir { path: PathBuf },
    SetXattr { path: PathBuf, name: String, value: Vec<u8>, is_new: Option<bool> },
    GetXattr { path: PathBuf, name: String },
    RemoveXattr { path: PathBuf, name: String },
    Chmod { path: PathBuf, mode: u32 },
    Chown { path: PathBuf, uid: u32, gid: u32 },
    SetTimes { path: PathBuf, mtime: (i64, i64) },
    Sync { path: PathBuf },
    Fifo { path: PathBuf },
    Open { path: PathBuf, slot: usize },
    WriteOpen { slot: usize, offset: u64, length: usize, seed: u64 },
    ReadOpen { slot: usize, offset: u64 },
    TruncateOpen { slot: usize, size: u64 },
    SyncOpen { slot: usize },
    StatOpen { slot: usize },
    Close { slot: usize },
}

/// What fallocate is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Allocation {
    Plain,
    KeepSize,
    Punch,
    Zero,
}

/// What a rename does to a name that is taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum Renaming {
    Replace,
    Refuse,
    Exchange,
}

/// Files held open below one root.
pub(super) type Slots = Vec<Option<File>>;

impl Op {
    /// Does it below `root`.
    pub(super) fn perform(&self, root: &Path, slots: &mut Slots) -> Result<Shown, Errno> {
        match self {
            Op::Create { .. }
            | Op::Write { .. }
            | Op::Append { .. }
            | Op::Truncate { .. }
            | Op::Allocate { .. }
            | Op::CopyRange { .. }
            | Op::Sync { .. } => self.change_content(root),
            Op::Read { .. }
            | Op::Stat { .. }
            | Op::List { .. }
            | Op::Readlink { .. }
            | Op::GetXattr { .. } => self.look(root),
            Op::Open { .. }
            | Op::WriteOpen { .. }
            | Op::ReadOpen { .. }
            | Op::TruncateOpen { .. }
            | Op::SyncOpen { .. }
            | Op::StatOpen { .. }
            | Op::Close { .. } => self.use_slot(root, slots),
            _ => self.change_names(root),
        }
    }

    /// Whether it changes nothing; a sync of what was synced before is no change either.
    pub(super) fn only_looks(&self) -> bool {
        matches!(
            self,
            Op::Read { .. }
                | Op::Stat { .. }
                | Op::List { .. }
                | Op::Readlink { .. }
                | Op::GetXattr { .. }
                | Op::Sync { .. }
                | Op::Open { .. }
                | Op::ReadOpen { .. }
                | Op::SyncOpen { .. }
                | Op::StatOpen { .. }
                | Op::Close { .. }
        )
    }

    /// Numbers of the inodes it names below a root, links and what they lead to.
    pub(super) fn inodes(&self, root: &Path, slots: &Slots) -> Vec<u64> {
        let at = |path: &Path| {
            let path = root.join(path);
            let both = [path.symlink_metadata(), path.metadata()];
            both.into_iter().flatten().map(|meta| meta.ino()).collect::<Vec<u64>>()
        };
        match self {
            Op::CopyRange { from, to, .. } | Op::Rename { from, to, .. } | Op::Link { from, to } => {
                [at(from), at(to)].concat()
            }
            Op::Create { path, .. }
            | Op::Write { path, .. }
            | Op::Append { path, .. }
            | Op::Truncate { path, .. }
            | Op::Allocate { path, .. }
            | Op::Read { path, .. }
            | Op::Stat { path }
            | Op::List { path }
            | Op::Unlink { path }
            | Op::Symlink { path, .. }
            | Op::Readlink { path }
            | Op::Mkdir { path, .. }
            | Op::Rmdir { path }
            | Op::SetXattr { path, .. }
            | Op::GetXattr { path, .. }
            | Op::RemoveXattr { path, .. }
            | Op::Chmod { path, .. }
            | Op::Chown { path, .. }
            | Op::SetTimes { path, .. }
            | Op::Sync { path }
            | Op::Fifo { path }
            | Op::Open { path, .. } => at(path),
            Op::WriteOpen { slot, .. }
            | Op::ReadOpen { slot, .. }
            | Op::TruncateOpen { slot, .. }
            | Op::SyncOpen { slot }
            | Op::StatOpen { slot }
            | Op::Close { slot } => {
                let file = slots.get(*slot).and_then(Option::as_ref);
                file.and_then(|file| file.metadata().ok()).map(|meta| meta.ino()).into_iter().collect()
            }
        }
    }

    /// The whole content of the file it reads; for the story of a difference.
    pub(super) fn look_again(&self, root: &Path, slots: &Slots) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Op::Read { path, .. } => bytes = std::fs::read(root.join(path)).unwrap_or_default(),
            Op::ReadOpen { slot, .. } => {
                if let Some(file) = slots.get(*slot).and_then(Option::as_ref) {
                    bytes.resize(file.metadata().map_or(0, |meta| meta.len() as usize), 0);
                    let _as_far_as_it_goes = file.read_exact_at(&mut bytes, 0);
                }
            }
            _ => {}
        }
        bytes
    }

    fn change_content(&self, root: &Path) -> Result<Shown, Errno> {
        match self {
            Op::Create { path, is_exclusive, mode } => {
                let exclusive = if *is_exclusive { OFlags::EXCL } else { OFlags::empty() };
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK | exclusive;
                open(&root.join(path), flags, Mode::from_raw_mode(*mode)).map(drop)?;
            }
            Op::Write { path, offset, length, seed, is_synced } => {
                let file = open_existing(&root.join(path), OFlags::WRONLY)?;
                file.write_all_at(&content(*seed, *length), *offset).map_err(errno)?;
                if *is_synced {
                    file.sync_all().map_err(errno)?;
                }
            }
            Op::Append { path, length, seed } => {
                let file = open_existing(&root.join(path), OFlags::WRONLY | OFlags::APPEND)?;
                std::io::Write::write_all(&mut &file, &content(*seed, *length)).map_err(errno)?;
            }
            Op::Truncate { path, size } => {
                open_existing(&root.join(path), OFlags::WRONLY)?.set_len(*size).map_err(errno)?;
            }
            Op::Allocate { path, how, offset, length } => {
                let flags = match how {
                    Allocation::Plain => FallocateFlags::empty(),
                    Allocation::KeepSize => FallocateFlags::KEEP_SIZE,
                    Allocation::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    Allocation::Zero => FallocateFlags::ZERO_RANGE,
                };
                let file = open_existing(&root.join(path), OFlags::WRONLY)?;
                rustix::fs::fallocate(&file, flags, *offset, *length)?;
            }
            Op::CopyRange { from, to, from_offset, to_offset, length } => {
                let from = open_existing(&root.join(from), OFlags::RDONLY)?;
                let to = open_existing(&root.join(to), OFlags::WRONLY)?;
                let (mut at, mut onto) = (*from_offset, *to_offset);
                let n = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut onto), *length)?;
                return Ok(n as u64);
            }
            Op::Sync { path } => {
                open_existing(&root.join(path), OFlags::RDONLY)?.sync_all().map_err(errno)?;
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(0)
    }

    fn look(&self, root: &Path) -> Result<Shown, Errno> {
        match self {
            Op::Read { path, offset } => read_at(&open_existing(&root.join(path), OFlags::RDONLY)?, *offset),
            Op::Stat { path } => root.join(path).symlink_metadata().map(|m| attributes(&m)).map_err(errno),
            Op::List { path } => {
                let mut names = Vec::new();
                for entry in root.join(path).read_dir().map_err(errno)? {
                    names.push(entry.map_err(errno)?.file_name());
                }
                names.sort();
                Ok(digest(names.iter().map(|name| name.as_bytes())))
            }
            Op::Readlink { path } => {
                let target = rustix::fs::readlink(root.join(path), Vec::new())?;
                Ok(digest([target.as_bytes()]))
            }
            Op::GetXattr { path, name } => {
                let mut value = vec![0u8; 4096];
                let n = rustix::fs::lgetxattr(root.join(path), name.as_str(), &mut value[..])?;
                Ok(digest([&value[..n]]))
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn change_names(&self, root: &Path) -> Result<Shown, Errno> {
        match self {
            Op::Rename { from, to, how } => {
                let flags = match how {
                    Renaming::Replace => RenameFlags::empty(),
                    Renaming::Refuse => RenameFlags::NOREPLACE,
                    Renaming::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(CWD, root.join(from), CWD, root.join(to), flags)?;
            }
            Op::Link { from, to } => {
                rustix::fs::linkat(CWD, root.join(from), CWD, root.join(to), AtFlags::empty())?;
            }
            Op::Unlink { path } => rustix::fs::unlink(root.join(path))?,
            Op::Symlink { target, path } => rustix::fs::symlink(target, root.join(path))?,
            Op::Mkdir { path, mode } => rustix::fs::mkdir(root.join(path), Mode::from_raw_mode(*mode))?,
            Op::Rmdir { path } => rustix::fs::rmdir(root.join(path))?,
            Op::SetXattr { path, name, value, is_new } => {
                let flags = match is_new {
                    None => XattrFlags::empty(),
                    Some(true) => XattrFlags::CREATE,
                    Some(false) => XattrFlags::REPLACE,
                };
                rustix::fs::lsetxattr(root.join(path), name.as_str(), value, flags)?;
            }
            Op::RemoveXattr { path, name } => rustix::fs::lremovexattr(root.join(path), name.as_str())?,
            Op::Chmod { path, mode } => rustix::fs::chmod(root.join(path), Mode::from_raw_mode(*mode))?,
            Op::Chown { path, uid, gid } => {
                std::os::unix::fs::lchown(root.join(path), Some(*uid), Some(*gid)).map_err(errno)?;
            }
            Op::SetTimes { path, mtime } => {
                let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, root.join(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Op::Fifo { path } => {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(CWD, root.join(path), kind, Mode::from_raw_mode(0o640), 0)?;
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(0)
    }

    fn use_slot(&self, root: &Path, slots: &mut Slots) -> Result<Shown, Errno> {
        let held = |slot: &usize| slots.get(*slot).and_then(Option::as_ref).ok_or(Errno::BADF);
        match self {
            Op::Open { path, slot } => {
                let file = open_existing(&root.join(path), OFlags::RDWR)?;
                *slots.get_mut(*slot).ok_or(Errno::BADF)? = Some(file);
            }
            Op::WriteOpen { slot, offset, length, seed } => {
                held(slot)?.write_all_at(&content(*seed, *length), *offset).map_err(errno)?;
            }
            Op::ReadOpen { slot, offset } => return read_at(held(slot)?, *offset),
            Op::TruncateOpen { slot, size } => held(slot)?.set_len(*size).map_err(errno)?,
            Op::SyncOpen { slot } => held(slot)?.sync_data().map_err(errno)?,
            Op::StatOpen { slot } => return held(slot)?.metadata().map(|m| attributes(&m)).map_err(errno),
            Op::Close { slot } => *slots.get_mut(*slot).ok_or(Errno::BADF)? = None,
            _ => return Err(Errno::INVAL),
        }
        Ok(0)
    }
}

/// Opens without waiting for the other end of a fifo.
fn open(path: &Path, flags: OFlags, mode: Mode) -> Result<File, Errno> {
    Ok(File::from(rustix::fs::open(path, flags | OFlags::CLOEXEC, mode)?))
}

/// Opens a file or a directory; a fifo is refused before it is opened, for what happens in one is not the volume's.
fn open_existing(path: &Path, flags: OFlags) -> Result<File, Errno> {
    let file = open(path, flags | OFlags::NONBLOCK, Mode::empty())?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind == rustix::fs::FileType::Fifo { Err(Errno::SPIPE) } else { Ok(file) }
}

fn read_at(file: &File, offset: u64) -> Result<Shown, Errno> {
    let mut bytes = vec![0u8; READ_BYTES];
    let mut n = 0;
    while n < bytes.len() {
        match file.read_at(&mut bytes[n..], offset + n as u64).map_err(errno)? {
            0 => break,
            more => n += more,
        }
    }
    Ok(digest([&bytes[..n]]))
}

/// What `stat` shows and two trees share.
fn attributes(meta: &std::fs::Metadata) -> Shown {
    let is_dir = meta.is_dir();
    let mtime = if meta.mtime() < CLOCK_BEGINS { (meta.mtime(), meta.mtime_nsec()) } else { (0, 0) };
    let numbers = [
        u64::from(meta.mode()),
        u64::from(meta.uid()),
        u64::from(meta.gid()),
        if is_dir { 0 } else { meta.size() },
        if is_dir { 0 } else { meta.nlink() },
        mtime.0.cast_unsigned(),
        mtime.1.cast_unsigned(),
    ];
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    digest([bytes.as_slice()])
}

fn digest<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Shown {
    let mut hasher = Sha256::new();
    for piece in pieces {
        hasher.update((piece.len() as u64).to_le_bytes());
        hasher.update(piece);
    }
    let all: [u8; 32] = hasher.finalize().into();
    all.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// `length` bytes that this seed always gives.
pub(super) fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Names of extended attributes that are used.
pub(super) fn xattr_name(number: u32) -> String {
    let space = if number.is_multiple_of(3) { "trusted" } else { "user" };
    format!("{space}.soak-{number}")
}
