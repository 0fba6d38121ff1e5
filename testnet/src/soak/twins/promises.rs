//! What fsync promised: files that were synced and that nobody touched since.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::soak::twins::op::Op;

/// By inode number of the native tree, the name under which the file was synced.
#[derive(Default)]
pub(super) struct Promises {
    kept: Mutex<BTreeMap<u64, PathBuf>>,
}

impl Promises {
    /// Before an operation: what it may change is promised no longer.
    pub(super) fn release(&self, op: &Op, inodes: &[u64]) {
        if op.only_looks() {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for inode in inodes {
            kept.remove(inode);
        }
        if let Op::Rename { from, to, .. } = op {
            kept.retain(|_, path| !path.starts_with(from) && !path.starts_with(to));
        }
    }

    /// After an operation that succeeded on both trees: a synced file is promised with its name.
    pub(super) fn note(&self, op: &Op, native: &Path) {
        let path = match op {
            Op::Sync { path } | Op::Write { path, is_synced: true, .. } => path,
            _ => return,
        };
        // A link may lead to a file whose name this is not.
        let Ok(meta) = native.join(path).symlink_metadata() else { return };
        if meta.is_file() {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert(std::os::unix::fs::MetadataExt::ino(&meta), path.clone());
        }
    }

    /// Everything that is promised now.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_promise_ends_with_the_next_change_or_move() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "one").unwrap();
        let inode = dir.path().join("d/f").metadata().unwrap().ino();
        let sync = Op::Sync { path: "d/f".into() };
        let promises = Promises::default();
        let promise = || promises.note(&sync, dir.path());
        promise();
        promises.release(&Op::Stat { path: "d/f".into() }, &[inode]);
        assert_eq!(promises.paths(), [PathBuf::from("d/f")], "a look changes nothing");
        promises.release(&Op::Append { path: "d/f".into(), length: 1, seed: 1 }, &[inode]);
        assert!(promises.paths().is_empty());
        promise();
        let how = crate::soak::twins::op::Renaming::Replace;
        promises.release(&Op::Rename { from: "d".into(), to: "e".into(), how }, &[]);
        assert!(promises.paths().is_empty(), "the directory above was moved");
    }
}
