//! The simulated directories: names as they are, names as they are durable, and the changes in between.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// All names of a disk. Directories are durable as soon as they are made, as [`crate::disk::Disk::create_dir_all`] promises.
#[derive(Clone, Default)]
pub(super) struct Names {
    dirs: BTreeSet<PathBuf>,
    current: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Link { path: PathBuf, node: u64 },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, node: u64 },
}

impl Change {
    fn touches(&self, dir: &Path) -> bool {
        let is_in = |path: &Path| path.parent() == Some(dir);
        match self {
            Change::Link { path, .. } | Change::Unlink { path } => is_in(path),
            Change::Rename { from, to, .. } => is_in(from) || is_in(to),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Change::Link { path, node } => {
                names.insert(path.clone(), *node);
            }
            Change::Unlink { path } => {
                names.remove(path);
            }
            Change::Rename { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl Names {
    pub(super) fn find(&self, path: &Path) -> Option<u64> {
        self.current.get(path).copied()
    }

    pub(super) fn has_dir(&self, dir: &Path) -> bool {
        dir.as_os_str().is_empty() || self.dirs.contains(dir)
    }

    pub(super) fn link(&mut self, path: &Path, node: u64) {
        self.change(Change::Link { path: path.to_path_buf(), node });
    }

    pub(super) fn unlink(&mut self, path: &Path) -> bool {
        let is_there = self.current.contains_key(path);
        if is_there {
            self.change(Change::Unlink { path: path.to_path_buf() });
        }
        is_there
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> bool {
        let Some(node) = self.find(from) else { return false };
        self.change(Change::Rename { from: from.to_path_buf(), to: to.to_path_buf(), node });
        true
    }

    pub(super) fn make_dir_all(&mut self, dir: &Path) {
        self.dirs.extend(dir.ancestors().map(Path::to_path_buf));
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) {
        let (now, later) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.touches(dir));
        self.pending = later;
        let now: Vec<Change> = now;
        for change in now {
            change.apply(&mut self.durable);
        }
    }

    pub(super) fn list(&self, dir: &Path) -> Option<Vec<String>> {
        if !self.has_dir(dir) {
            return None;
        }
        let inside = self.current.keys().filter(|path| path.parent() == Some(dir));
        Some(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.current.keys().cloned().collect()
    }

    pub(super) fn nodes(&self) -> BTreeSet<u64> {
        self.current.values().copied().collect()
    }

    /// The names after a crash that keeps those un-synced changes for which `is_kept` says so.
    pub(super) fn after_crash(&self, is_kept: &mut dyn FnMut() -> bool) -> Names {
        let mut durable = self.durable.clone();
        for change in &self.pending {
            if is_kept() {
                change.apply(&mut durable);
            }
        }
        Names { dirs: self.dirs.clone(), current: durable.clone(), durable, pending: Vec::new() }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }
}
