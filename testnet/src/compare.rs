//! What a file tree is, down to the last attribute, and how two of them differ.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Everything a user can see of one name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Bytes; 0 for a directory, whose size is its file system's business.
    pub size: u64,
    /// Device number of a device node.
    pub rdev: u64,
    /// SHA-256 of a file's content.
    pub sha256: Option<[u8; 32]>,
    /// Target of a symlink.
    pub target: Option<Vec<u8>>,
    /// The first path (in order) that leads to the same inode: equal groups mean equal hard links.
    pub first_name: PathBuf,
    /// Number of names; 1 for a directory.
    pub nlink: u64,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A whole tree, by path relative to its root; the root itself is `""`.
pub type Manifest = BTreeMap<PathBuf, Seen>;

/// Reads a tree completely. Calls `progress` with the bytes of each file read.
pub fn manifest(root: &Path, progress: &dyn Fn(u64)) -> Result<Manifest> {
    let mut found = Manifest::new();
    let mut first = BTreeMap::new();
    let mut queue = vec![PathBuf::new()];
    while let Some(relative) = queue.pop() {
        let path = root.join(&relative);
        let meta = path.symlink_metadata().with_context(|| format!("look at {}", path.display()))?;
        if meta.is_dir() {
            let list = std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))?;
            let mut names = list.map(|e| Ok(relative.join(e?.file_name()))).collect::<Result<Vec<_>>>()?;
            // The queue is a stack: reverse order makes the walk go through names in order.
            names.sort_by(|a, b| b.cmp(a));
            queue.extend(names);
        }
        let seen = look(&path, &meta, first.entry(meta.ino()).or_insert_with(|| relative.clone()))?;
        progress(seen.size);
        found.insert(relative, seen);
    }
    // A stack walk meets the names of an inode in path order, so `first_name` is the same for equal trees.
    Ok(found)
}

fn look(path: &Path, meta: &std::fs::Metadata, first_name: &Path) -> Result<Seen> {
    let kind = meta.file_type();
    Ok(Seen {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        size: if kind.is_dir() { 0 } else { meta.size() },
        rdev: meta.rdev(),
        sha256: if kind.is_file() { Some(sha256(path)?) } else { None },
        target: if kind.is_symlink() {
            let target = std::fs::read_link(path).with_context(|| format!("read link {}", path.display()))?;
            Some(target.as_os_str().as_bytes().to_vec())
        } else {
            None
        },
        first_name: first_name.to_path_buf(),
        nlink: if kind.is_dir() { 1 } else { meta.nlink() },
        xattrs: xattrs(path)?,
    })
}

/// SHA-256 of a file's content.
pub fn sha256(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("read {}", path.display()))?;
        if n == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..n]);
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..])
        .with_context(|| format!("list the xattrs of {}", path.display()))?;
    let mut found = BTreeMap::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])
            .with_context(|| format!("read xattr {} of {}", String::from_utf8_lossy(name), path.display()))?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// How `found` differs from `wanted`, a line a path, at most `most` lines.
#[must_use]
pub fn differences(wanted: &Manifest, found: &Manifest, most: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, w) in wanted {
        match found.get(path) {
            None => lines.push(format!("{}: missing", path.display())),
            Some(f) if f != w => lines.push(format!("{}: {w:?} became {f:?}", path.display())),
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|path| !wanted.contains_key(*path));
    lines.extend(extra.map(|path| format!("{}: was not there before", path.display())));
    lines.truncate(most);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/a"), "one").unwrap();
        std::fs::hard_link(dir.path().join("d/a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("d/a", dir.path().join("s")).unwrap();
        dir
    }

    #[test]
    fn every_kind_of_change_is_a_difference() {
        let dir = tree();
        let before = manifest(dir.path(), &|_| {}).unwrap();
        assert_eq!(before[Path::new("d/a")].first_name, Path::new("b"));
        assert!(differences(&before, &manifest(dir.path(), &|_| {}).unwrap(), 9).is_empty());
        let changes: [(&str, fn(&Path)); 4] = [
            ("content", |d| std::fs::write(d.join("b"), "two").unwrap()),
            ("a link broken up", |d| {
                std::fs::remove_file(d.join("b")).unwrap();
                std::fs::write(d.join("b"), "two").unwrap();
            }),
            ("a name gone", |d| std::fs::remove_file(d.join("s")).unwrap()),
            ("a name more", |d| std::fs::write(d.join("n"), "").unwrap()),
        ];
        for (what, change) in changes {
            let before = manifest(dir.path(), &|_| {}).unwrap();
            change(dir.path());
            let after = manifest(dir.path(), &|_| {}).unwrap();
            assert!(!differences(&before, &after, 9).is_empty(), "{what} is not seen");
        }
    }
}
