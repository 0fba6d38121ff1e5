//! The roots that people added on this host: what the store keeps though no volume refers to it.

use std::collections::BTreeSet;
use std::sync::Arc;

use cid::Cid;
use parking_lot::Mutex;
use remora_store::disk::RealDisk;
use remora_store::fault::chain;
use remora_store::file_header::FileKind;
use remora_store::log::{LogOptions, Recovery};
use remora_store::registry::Registry;

use crate::exit::{Code, Failure};
use crate::paths::DataDir;

/// Whose the files are, so that no other registry is taken for this one.
const ID: [u8; 16] = *b"remora/added/v1.";

/// The list; a root is on disk when [`Added::note`] returns.
pub(crate) struct Added {
    file: Registry,
    roots: Mutex<BTreeSet<Cid>>,
    damage: Option<String>,
}

impl Added {
    /// Reads the list. A damaged one is opened all the same: what it lost can only keep the store from giving back space.
    pub(crate) fn open(data: &DataDir) -> Result<Arc<Self>, Failure> {
        let dir = data.store().added();
        let mut roots = BTreeSet::new();
        let mut unread = 0_u32;
        let options = LogOptions {
            segment_bytes_first: 64 << 10,
            segment_bytes_max: 16 << 20,
            ..LogOptions::new(FileKind::Registry, ID)
        };
        let (file, recovery) = Registry::open_with(Arc::new(RealDisk), &dir, options, &mut |entry| {
            match Cid::try_from(entry) {
                Ok(cid) => drop(roots.insert(cid)),
                Err(_) => unread += 1,
            }
            Ok(())
        })
        .map_err(|e| Failure::new(Code::Damaged, format!("open the list of added roots: {}", chain(&e))))?;
        let is_damaged = unread > 0 || matches!(recovery, Recovery::Damaged { .. });
        let damage = is_damaged.then(|| {
            format!(
                "{} is damaged: what was added on this host is not all known, so the store gives back no space; \
                 move the directory away and add again what is to stay",
                dir.display()
            )
        });
        Ok(Arc::new(Added { file, roots: Mutex::new(roots), damage }))
    }

    /// What is wrong with the list, if something is.
    pub(crate) fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// All roots.
    pub(crate) fn all(&self) -> Vec<Cid> {
        self.roots.lock().iter().copied().collect()
    }

    /// Notes a root; durable on return.
    pub(crate) fn note(&self, root: &Cid) -> Result<(), Failure> {
        let mut roots = self.roots.lock();
        if !roots.contains(root) {
            self.file
                .append(&root.to_bytes())
                .map_err(|e| Failure::failed(format!("note what was added: {}", chain(&e))))?;
            roots.insert(*root);
        }
        Ok(())
    }

    /// Marks a clean end.
    pub(crate) fn close(&self) {
        if let Err(e) = self.file.close() {
            tracing::warn!(error = %chain(&e), "close the list of added roots");
        }
    }
}

#[cfg(test)]
mod tests {
    use remora_dag::block::{Block, Codec};

    use super::*;

    #[test]
    fn added_roots_are_there_after_a_restart_once_each() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        let roots: Vec<Cid> = (0..3u8).map(|n| *Block::seal(Codec::Raw, vec![n].into()).cid()).collect();
        let added = Added::open(&data).unwrap();
        for root in roots.iter().chain(&roots) {
            added.note(root).unwrap();
        }
        drop(added);
        let added = Added::open(&data).unwrap();
        let mut want = roots.clone();
        want.sort();
        assert_eq!(added.all(), want);
        assert_eq!(added.damage(), None);
    }
}
