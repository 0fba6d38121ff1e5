//! Mounts that come back when the daemon does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::config::write_durably;
use crate::exit::{Context, Failure};

/// A mount somebody asked for and did not take back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    /// The volume's id, as text.
    pub(crate) volume: String,
    pub(crate) read_only: bool,
}

/// The file `mounts.json`; durable when a change returns.
pub(crate) struct Mounts {
    path: PathBuf,
    by_dir: Mutex<BTreeMap<PathBuf, Remembered>>,
    damage: Option<String>,
}

impl Mounts {
    /// Reads the file; a damaged one is set aside, since it only costs typing `mount` again.
    pub(crate) fn load(path: PathBuf) -> Self {
        let mut damage = None;
        let by_dir = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|e| {
                damage = Some(set_aside(&path, &e));
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Mounts { path, by_dir: Mutex::new(by_dir), damage }
    }

    /// What was wrong with the file when it was read, if something was.
    pub(crate) fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    pub(crate) fn all(&self) -> Vec<(PathBuf, Remembered)> {
        self.by_dir.lock().iter().map(|(dir, mount)| (dir.clone(), mount.clone())).collect()
    }

    pub(crate) fn get(&self, dir: &Path) -> Option<Remembered> {
        self.by_dir.lock().get(dir).cloned()
    }

    pub(crate) fn add(&self, dir: &Path, mount: Remembered) -> Result<(), Failure> {
        let mut by_dir = self.by_dir.lock();
        if by_dir.get(dir) == Some(&mount) {
            return Ok(());
        }
        by_dir.insert(dir.to_path_buf(), mount);
        self.save(&by_dir)
    }

    pub(crate) fn remove(&self, dir: &Path) -> Result<(), Failure> {
        let mut by_dir = self.by_dir.lock();
        match by_dir.remove(dir) {
            Some(_) => self.save(&by_dir),
            None => Ok(()),
        }
    }

    fn save(&self, by_dir: &BTreeMap<PathBuf, Remembered>) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(by_dir).doing("encode the mounts")?;
        write_durably(&self.path, &text, 0o600)
    }
}

/// Moves a file that cannot be read out of the way of the next one; answers what an operator should know.
fn set_aside(path: &Path, error: &serde_json::Error) -> String {
    let aside = path.with_extension("json.damaged");
    let kept = match std::fs::rename(path, &aside) {
        Ok(()) => format!("it is kept as {}", aside.display()),
        Err(e) => format!("it could not be set aside: {e}"),
    };
    let text = format!("{} is damaged ({error}); {kept}: mount by hand what it listed", path.display());
    tracing::error!("{text}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_outlive_the_daemon_and_a_damaged_file_does_not_stop_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mounts.json");
        let mount = Remembered { volume: "v".into(), read_only: true };
        Mounts::load(path.clone()).add(Path::new("/a"), mount.clone()).unwrap();
        assert_eq!(Mounts::load(path.clone()).all(), [(PathBuf::from("/a"), mount)]);
        std::fs::write(&path, "{").unwrap();
        let damaged = Mounts::load(path.clone());
        assert!(damaged.all().is_empty());
        assert!(damaged.damage().unwrap().contains("mounts.json"));
        assert!(path.with_extension("json.damaged").exists());
    }
}
