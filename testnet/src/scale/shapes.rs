//! Very many files: how they are laid out, made, looked at and removed, and what must be seen of them.
//!
//! What always holds: what must be seen follows from the shape alone, never from what was seen before; names and sizes are
//! summed up in a way that does not depend on the order in which a directory is listed.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Files of a few bytes in directories of equal size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Directories.
    pub(super) dirs: u64,
    /// Files in each.
    pub(super) dir_files: u64,
}

/// What was seen, or must be: how many files, and sums over their names and sizes that no order changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    files: u64,
    names: u64,
    sizes: u64,
}

impl Seen {
    fn add(&mut self, name: &Path, size: Option<u64>) {
        self.files += 1;
        self.names = self.names.wrapping_add(sum(&name));
        if let Some(size) = size {
            self.sizes = self.sizes.wrapping_add(sum(&(name, size)));
        }
    }

    /// Without the sizes, as a listing that asks for names alone sees it.
    fn names_only(self) -> Seen {
        Seen { sizes: 0, ..self }
    }
}

fn sum(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Shape {
    /// How many files there are.
    pub(super) fn files(&self) -> u64 {
        self.dirs * self.dir_files
    }

    /// A part of it with at most about `files` files.
    pub(super) fn at_most(self, files: u64) -> Shape {
        let dir_files = self.dir_files.min(files);
        Shape { dirs: self.dirs.min(files / dir_files), dir_files }
    }

    fn name(&self, index: u64) -> PathBuf {
        PathBuf::from(format!("d{:05}", index / self.dir_files)).join(format!("file-{index:07}"))
    }

    /// No two files are equal, so that each has a block of its own.
    fn content(index: u64) -> Vec<u8> {
        let mut content = format!("file {index} of very many\n").into_bytes();
        content.resize(content.len() + usize::try_from(index % 61).unwrap_or(0), b'.');
        content
    }

    /// What must be seen of all of it.
    pub(super) fn expected(&self) -> Seen {
        let mut seen = Seen::default();
        for index in 0..self.files() {
            seen.add(&self.name(index), Some(Shape::content(index).len() as u64));
        }
        seen
    }

    /// Makes all of it below `top`, which is made too.
    pub(super) fn make(&self, top: &Path) -> Result<()> {
        std::fs::create_dir(top).with_context(|| format!("create {}", top.display()))?;
        for index in 0..self.files() {
            let path = top.join(self.name(index));
            if index % self.dir_files == 0
                && let Some(dir) = path.parent()
            {
                std::fs::create_dir(dir)?;
            }
            let made = File::create_new(&path).and_then(|mut file| file.write_all(&Shape::content(index)));
            made.with_context(|| format!("create {}", path.display()))?;
        }
        Ok(())
    }

    /// Lists every name and asks for nothing else (`ls -f`).
    pub(super) fn list_names(&self, top: &Path) -> Result<()> {
        self.check(list(top, false)?, self.expected().names_only(), "names")
    }

    /// Lists every name with its size (`ls -l`).
    pub(super) fn list_sizes(&self, top: &Path) -> Result<()> {
        self.check(list(top, true)?, self.expected(), "names and sizes")
    }

    fn check(&self, seen: Seen, expected: Seen, what: &str) -> Result<()> {
        ensure!(seen == expected, "{what} of {self:?} are not what was made: {seen:?}, not {expected:?}");
        Ok(())
    }

    /// Asks for the attributes of `n` files at random.
    pub(super) fn stat(&self, top: &Path, n: u64, seed: u64) -> Result<()> {
        for index in self.some(n, seed) {
            let path = top.join(self.name(index));
            let size = path.symlink_metadata().with_context(|| format!("look at {}", path.display()))?.len();
            ensure!(size == Shape::content(index).len() as u64, "{} has {size} bytes", path.display());
        }
        Ok(())
    }

    /// Reads `n` files at random.
    pub(super) fn read(&self, top: &Path, n: u64, seed: u64) -> Result<()> {
        for index in self.some(n, seed) {
            let path = top.join(self.name(index));
            let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            ensure!(content == Shape::content(index), "{} is not what was written", path.display());
        }
        Ok(())
    }

    fn some(&self, n: u64, seed: u64) -> impl Iterator<Item = u64> {
        let (mut rng, files) = (ChaCha8Rng::seed_from_u64(seed), self.files());
        (0..n).map(move |_| rng.next_u64() % files)
    }

    /// One of the files, to see whether anything can be read at all, and what is in it.
    pub(super) fn sample(&self, top: &Path) -> (PathBuf, Vec<u8>) {
        let index = self.files() / 2;
        (top.join(self.name(index)), Shape::content(index))
    }

    /// Removes all of it, file by file.
    pub(super) fn remove(&self, top: &Path) -> Result<()> {
        std::fs::remove_dir_all(top).with_context(|| format!("remove {}", top.display()))?;
        ensure!(!top.exists(), "{} is still there", top.display());
        Ok(())
    }
}

fn list(top: &Path, with_sizes: bool) -> Result<Seen> {
    let mut seen = Seen::default();
    for dir in std::fs::read_dir(top).with_context(|| format!("list {}", top.display()))? {
        let dir = dir?;
        for entry in std::fs::read_dir(dir.path())? {
            let entry = entry?;
            let size = if with_sizes { Some(entry.metadata()?.len()) } else { None };
            seen.add(&PathBuf::from(dir.file_name()).join(entry.file_name()), size);
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn a_missing_a_renamed_and_a_cut_file_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        let shape = Shape { dirs: 3, dir_files: 5 };
        shape.make(&top).unwrap();
        let all = || [shape.list_names(&top), shape.list_sizes(&top)].map(|result| result.is_ok());
        assert_eq!(all(), [true, true]);
        let (path, content) = shape.sample(&top);
        std::fs::write(&path, &content[1..]).unwrap();
        assert_eq!(all(), [true, false]);
        std::fs::write(&path, &content).unwrap();
        std::fs::rename(&path, path.with_file_name("other")).unwrap();
        assert_eq!(all(), [false, false]);
        std::fs::remove_file(path.with_file_name("other")).unwrap();
        assert_eq!(all(), [false, false]);
    }
}
