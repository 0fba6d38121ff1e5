//! Random operations on two files that stay, checked against their content in memory.
//!
//! Unlike fsx it opens files as they are, so a file lives through any number of hosts; it also zeroes ranges, clones between files,
//! writes whole chunks of 1 MiB, and asks where data and holes are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::fs::{FallocateFlags, SeekFrom};

use crate::posix::tools::Kernel;

/// The longest file, in bytes: several chunks.
const FILE_BYTES_MAX: u64 = 3 << 20;

/// The longest operation, in bytes, and that of most operations.
const LONG_BYTES: u64 = 1 << 20;
const SHORT_BYTES: u64 = 64 << 10;

const FALLOCATE: [FallocateFlags; 5] = [
    FallocateFlags::empty(),
    FallocateFlags::KEEP_SIZE,
    FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE),
    FallocateFlags::ZERO_RANGE,
    FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE),
];

/// Two files and what they should hold.
pub(super) struct Exerciser<'a> {
    seed: u64,
    rng: ChaCha8Rng,
    models: [Vec<u8>; 2],
    n_done: u64,
    last: String,
    kernel: &'a Kernel,
}

impl<'a> Exerciser<'a> {
    /// Two empty files.
    pub(super) fn new(seed: u64, kernel: &'a Kernel) -> Exerciser<'a> {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Exerciser { seed, rng, models: [Vec::new(), Vec::new()], n_done: 0, last: String::new(), kernel }
    }

    fn path(&self, dir: &Path, index: usize) -> PathBuf {
        dir.join(format!("exerciser-{}-{index}", self.seed))
    }

    /// One of the files, as it is.
    pub(super) fn file(&self, dir: &Path, index: usize) -> Result<File> {
        let path = self.path(dir, index);
        let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        options.with_context(|| format!("open {}", path.display()))
    }

    /// Does so many operations on the files in `dir`.
    pub(super) fn run(&mut self, dir: &Path, n_operations: u64) -> Result<()> {
        let files = [self.file(dir, 0)?, self.file(dir, 1)?];
        for _ in 0..n_operations {
            self.n_done += 1;
            let done = self.operation(dir, &files);
            done.with_context(|| format!("operation {}: {}", self.n_done, self.last))?;
        }
        Ok(())
    }

    /// Compares all of both files.
    pub(super) fn verify(&self, dir: &Path) -> Result<()> {
        for (index, model) in self.models.iter().enumerate() {
            let found = std::fs::read(self.path(dir, index))?;
            ensure!(
                found.len() == model.len(),
                "file {index} has {} bytes, not {}, after operation {}",
                found.len(),
                model.len(),
                self.n_done
            );
            same(model, &found, 0)
                .with_context(|| format!("file {index}, after operation {}", self.n_done))?;
        }
        Ok(())
    }

    /// A place and a length, within `end`.
    fn range(&mut self, end: u64) -> (u64, u64) {
        let offset = self.rng.random_range(0..end.max(1));
        let most = if self.rng.random_ratio(1, 20) { LONG_BYTES } else { SHORT_BYTES };
        let len = self.rng.random_range(1..=most);
        // Every fourth range lies on pages, as those of databases do.
        match self.rng.random_ratio(1, 4) {
            true => (
                offset / 4096 * 4096,
                len.next_multiple_of(4096).min(end.saturating_sub(offset / 4096 * 4096)),
            ),
            false => (offset, len.min(end.saturating_sub(offset))),
        }
    }

    fn operation(&mut self, dir: &Path, files: &[File; 2]) -> Result<()> {
        let index = self.rng.random_range(0..2usize);
        let file = &files[index];
        let size = self.models[index].len() as u64;
        match self.rng.random_range(0..100u32) {
            0..30 => self.write(index, file),
            30..50 => self.read(index, file, size),
            50..58 => self.truncate(index, file, size),
            58..74 => self.fallocate(index, file),
            74..84 => self.copy(index, files),
            84..90 => self.holes(index, file),
            90..93 => self.load(dir, index, size),
            93..96 => self.store(dir, index, size),
            96..98 => file.sync_data().context("fdatasync"),
            _ => file.sync_all().context("fsync"),
        }
    }

    fn write(&mut self, index: usize, file: &File) -> Result<()> {
        let (offset, len) = self.range(FILE_BYTES_MAX);
        self.last = format!("write {index} {offset}+{len}");
        let mut data = vec![0; len as usize];
        self.rng.fill_bytes(&mut data);
        file.write_all_at(&data, offset)?;
        self.grow(index, offset + len);
        self.slice(index, offset, len).copy_from_slice(&data);
        Ok(())
    }

    fn read(&mut self, index: usize, file: &File, size: u64) -> Result<()> {
        let (offset, len) = self.range(size);
        self.last = format!("read {index} {offset}+{len}");
        let mut found = vec![0; len as usize];
        file.read_exact_at(&mut found, offset)?;
        same(self.slice(index, offset, len), &found, offset)
    }

    fn truncate(&mut self, index: usize, file: &File, size: u64) -> Result<()> {
        let near = self.rng.random_ratio(1, 2);
        let to = self.rng.random_range(0..=if near { size } else { FILE_BYTES_MAX });
        self.last = format!("truncate {index} {size} -> {to}");
        file.set_len(to)?;
        self.models[index].resize(to as usize, 0);
        Ok(())
    }

    fn fallocate(&mut self, index: usize, file: &File) -> Result<()> {
        let how = FALLOCATE[self.rng.random_range(0..FALLOCATE.len())];
        let (offset, len) = self.range(FILE_BYTES_MAX);
        self.last = format!("fallocate {how:?} {index} {offset}+{len}");
        rustix::fs::fallocate(file, how, offset, len)?;
        if !how.contains(FallocateFlags::KEEP_SIZE) {
            self.grow(index, offset + len);
        }
        if how.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            let end = (offset + len).min(self.models[index].len() as u64);
            self.slice(index, offset.min(end), end.saturating_sub(offset)).fill(0);
        }
        Ok(())
    }

    fn copy(&mut self, index: usize, files: &[File; 2]) -> Result<()> {
        let to = self.rng.random_range(0..2usize);
        let (from_offset, len) = self.range(self.models[index].len() as u64);
        let to_offset = self.rng.random_range(0..FILE_BYTES_MAX - len);
        self.last = format!("copy {index} {from_offset}+{len} to {to} {to_offset}");
        if len == 0 || index == to && from_offset < to_offset + len && to_offset < from_offset + len {
            return Ok(());
        }
        let data = self.slice(index, from_offset, len).to_vec();
        let (mut source, mut target, mut left) = (from_offset, to_offset, len as usize);
        while left > 0 {
            let n = rustix::fs::copy_file_range(
                &files[index],
                Some(&mut source),
                &files[to],
                Some(&mut target),
                left,
            )?;
            ensure!(n > 0, "nothing copied with {left} bytes left");
            left -= n;
        }
        self.grow(to, to_offset + len);
        self.slice(to, to_offset, len).copy_from_slice(&data);
        Ok(())
    }

    /// What is called a hole reads as zeros.
    fn holes(&mut self, index: usize, file: &File) -> Result<()> {
        self.last = format!("seek in {index}");
        let size = self.models[index].len() as u64;
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Err(rustix::io::Errno::NXIO) => size,
                found => found?,
            };
            ensure!(data >= at && data <= size, "data at {data} after {at}, of {size} bytes");
            let is_zero = self.slice(index, at, data - at).iter().all(|byte| *byte == 0);
            ensure!(is_zero, "{at}..{data} is called a hole and has data");
            if data == size {
                break;
            }
            at = rustix::fs::seek(file, SeekFrom::Hole(data))?;
            ensure!(at > data && at <= size, "a hole at {at} after data at {data}, of {size} bytes");
        }
        Ok(())
    }

    fn load(&mut self, dir: &Path, index: usize, size: u64) -> Result<()> {
        let (offset, len) = self.range(size);
        self.last = format!("load {index} {offset}+{len} through a mapping");
        if len == 0 {
            return Ok(());
        }
        let found = self.kernel.run("load", &self.path(dir, index), &[offset, len])?;
        same(self.slice(index, offset, len), &found, offset)
    }

    fn store(&mut self, dir: &Path, index: usize, size: u64) -> Result<()> {
        let ((offset, len), byte) = (self.range(size), self.rng.random::<u8>());
        self.last = format!("store {index} {offset}+{len} through a mapping");
        if len == 0 {
            return Ok(());
        }
        self.kernel.run("store", &self.path(dir, index), &[offset, len, u64::from(byte)])?;
        self.slice(index, offset, len).fill(byte);
        Ok(())
    }

    fn grow(&mut self, index: usize, end: u64) {
        let model = &mut self.models[index];
        model.resize(model.len().max(end as usize), 0);
    }

    fn slice(&mut self, index: usize, offset: u64, len: u64) -> &mut [u8] {
        &mut self.models[index][offset as usize..(offset + len) as usize]
    }
}

/// Both are the same bytes; those at hand begin at `offset` of the file.
fn same(wanted: &[u8], found: &[u8], offset: u64) -> Result<()> {
    let Some(at) = wanted.iter().zip(found).position(|(a, b)| a != b) else {
        ensure!(wanted.len() == found.len(), "{} bytes, not {}", found.len(), wanted.len());
        return Ok(());
    };
    let n_wrong = wanted.iter().zip(found).filter(|(a, b)| a != b).count();
    anyhow::bail!(
        "byte {} is {:#04x}, not {:#04x}; {n_wrong} bytes differ",
        offset + at as u64,
        found[at],
        wanted[at]
    )
}
