//! Nodes with something on them, and copies of their data directories.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::nodes::Node;

/// Noise of this length, the same for the same number.
pub(crate) fn body(number: u64, bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes];
    ChaCha8Rng::seed_from_u64(number).fill_bytes(&mut body);
    body
}

pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.write_all(bytes)?;
    file.sync_all().with_context(|| format!("fsync {}", path.display()))
}

/// The directory of the only volume a node keeps.
pub(super) fn only_volume(node: &Node) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(node.data().join("volumes"))? {
        found.push(entry?.path());
    }
    ensure!(found.len() == 1, "{} volumes in {}", found.len(), node.data().display());
    found.pop().context("no volume")
}

/// A copy of a stopped node's data directory as the node `name`.
pub(super) fn copy(of: &Node, dir: &Path, name: &str) -> Result<Node> {
    let node = Node::place(dir, name);
    copy_dir(of.data(), node.data())?;
    Ok(node)
}

/// `cp -a` to a name that is free.
pub(super) fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().context("run cp")?;
    ensure!(done.success(), "cp ended with {done}");
    Ok(())
}
