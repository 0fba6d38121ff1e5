//! A disk call that failed, with what we were doing and to which file.

use std::io;
use std::path::{Path, PathBuf};

/// A disk call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}: {source}", path.display())]
pub struct DiskFault {
    /// What we were doing, present tense.
    pub doing: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl DiskFault {
    /// Names the deed and the file for an error of the operating system; made for `map_err`.
    pub fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskFault {
        move |source| DiskFault { doing, path: path.to_path_buf(), source }
    }

    /// Whether the disk (or the quota) is full: nothing is broken, freeing space helps.
    pub fn is_full(&self) -> bool {
        is_full(&self.source)
    }
}

/// Whether an error says that the disk (or the quota) is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
