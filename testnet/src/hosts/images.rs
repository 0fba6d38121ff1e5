//! Images made from what is on this machine, without a registry.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::hosts::debian;
use crate::hosts::needs::{self, PATH};

/// Part of the archives' names; raised whenever what is in them changes.
const RECIPE: u32 = 2;

/// An image as a tar archive that an engine can import.
#[derive(Debug, Clone)]
pub struct Image {
    /// What containers call it.
    pub name: &'static str,
    /// The archive; shared by all labs and kept between runs.
    pub tar: PathBuf,
    /// The `PATH` of its containers.
    pub path: &'static str,
}

/// busybox, about 4 MB. `/data` belongs to 1000:1000 with mode 0711 and holds what is hard to copy: `plain` with the xattr
/// `user.color=blue` and its hard link `hard`, `symbolic`, `sub` (2750) with `sub/private` (0600), `fifo`, `setuid` (4755),
/// `sparse` (8 MiB, only its end written), `old` (mtime with nanoseconds).
///
/// # Errors
/// If it cannot be made; see [`needs::prerequisites`].
pub fn busybox() -> Result<Image> {
    let tar = cached("busybox", |root| {
        let mut script = Command::new("sh");
        script.args(["-c", include_str!("busybox_image.sh"), "busybox"]).arg(root);
        check(&mut script, "make the busybox image")
    })?;
    Ok(Image { name: "localhost/busybox:1", tar, path: "/bin" })
}

/// This machine's Debian with bash, PostgreSQL, Redis, SQLite, tar, attr, acl and procps, about 220 MB.
///
/// # Errors
/// If one of the packages is not installed here; the text says what to type.
pub fn debian() -> Result<Image> {
    let tar = cached("debian", debian::assemble)?;
    Ok(Image { name: "localhost/debian:1", tar, path: PATH })
}

/// The archive of what `fill` puts into a directory, made only once on this machine.
fn cached(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = needs::directory()?.join("images");
    fs::create_dir_all(&directory).context("make the image directory")?;
    let lock = File::create(directory.join(format!("{name}.lock"))).context("lock the image directory")?;
    lock.lock().context("lock the image directory")?;
    let tar = directory.join(format!("{name}-{RECIPE}.tar"));
    if tar.exists() {
        return Ok(tar);
    }
    remove_older(&directory, name)?;
    let scratch =
        TempDir::with_prefix_in(format!("{name}-"), &directory).context("make a scratch directory")?;
    let root = scratch.path().join("root");
    fs::create_dir(&root).context("make a scratch directory")?;
    fill(&root)?;
    let unfinished = scratch.path().join("image.tar");
    let mut archive = Command::new("tar");
    archive.args(["--numeric-owner", "--sparse", "--xattrs", "--xattrs-include=*", "--format=pax", "-cf"]);
    archive.arg(&unfinished).arg("-C").arg(&root).arg(".");
    check(&mut archive, "archive an image")?;
    fs::rename(&unfinished, &tar).context("keep an image")?;
    Ok(tar)
}

/// Removes archives made by another recipe.
fn remove_older(directory: &Path, name: &str) -> Result<()> {
    for entry in fs::read_dir(directory).context("read the image directory")? {
        let path = entry.context("read the image directory")?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_older =
            stem.rsplit_once('-').is_some_and(|(of, recipe)| of == name && recipe.parse::<u32>().is_ok());
        if is_older && path.extension().is_some_and(|extension| extension == "tar") {
            fs::remove_file(&path).context("remove an older image")?;
        }
    }
    Ok(())
}

/// Runs a command that is to succeed.
pub(crate) fn check(command: &mut Command, doing: &str) -> Result<()> {
    let output = command.env("PATH", PATH).stdin(Stdio::null()).output().with_context(|| doing.to_owned())?;
    if !output.status.success() {
        bail!("{doing}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
