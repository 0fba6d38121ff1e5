//! The program under test: this very binary, called as `remora-testnet remora ...`.
//!
//! One program means one build, and that what is tested is what was built with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Names the `remora-testnet` binary, for integration tests, whose own binary is another one.
pub fn choose(path: &Path) {
    let _first_wins = CHOSEN.set(path.to_path_buf());
}

/// The binary that answers to `remora ...` as its first argument.
pub fn path() -> Result<PathBuf> {
    match CHOSEN.get() {
        Some(path) => Ok(path.clone()),
        None => std::env::current_exe().context("find this program"),
    }
}

/// A `remora` command with no arguments yet.
pub fn remora() -> Result<Command> {
    let mut command = Command::new(path()?);
    command.arg("remora");
    Ok(command)
}

/// Says what this machine lacks for FUSE mounts, with what to do about it.
pub fn check_fuse() -> Result<()> {
    if !Path::new("/dev/fuse").exists() {
        bail!(
            "/dev/fuse is missing: load the module (`modprobe fuse`), or give the container `--device /dev/fuse`"
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!("mounting needs root: run it with sudo, or as root");
    }
    Ok(())
}

/// A directory for this run on the disk the workspace is built on (never a RAM disk: fsync has to mean something).
pub fn scratch(name: &str) -> Result<tempfile::TempDir> {
    let near = path()?.parent().and_then(Path::parent).map(|target| target.join("testnet"));
    let dir = near.context("the program lies in no directory")?;
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(&dir)
        .context("create a scratch directory")
}
