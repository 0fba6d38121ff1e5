//! Many small files: made, unpacked, listed, removed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bench::peers::Peer;
use crate::bench::scale::Scale;
use crate::workload;

/// Files in one directory.
const DIR_FILES: u64 = 100;

/// What is in a file that is created.
const FILE_BYTES: usize = 4096;

/// Makes the archive of real source files that is unpacked later.
pub(super) fn make_archive(dir: &Path, files: u64) -> Result<PathBuf> {
    let (tree, archive) = (dir.join("tree"), dir.join("tree.tar"));
    workload::source_tree(&tree, files, &|_| ())?;
    run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&tree).arg("."))?;
    std::fs::remove_dir_all(&tree)?;
    Ok(archive)
}

/// Seconds to create files of 4 KiB.
pub(super) fn create(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    let top = peer.dir.join("created");
    let began = Instant::now();
    make_files(&top, scale.files, FILE_BYTES)?;
    let took = began.elapsed().as_secs_f64();
    std::fs::remove_dir_all(&top)?;
    Ok(took)
}

/// Makes `files` files of `bytes` each, a hundred to a directory.
pub(super) fn make_files(top: &Path, files: u64, bytes: usize) -> Result<()> {
    std::fs::create_dir(top)?;
    let content = vec![0x61; bytes];
    let mut dir = PathBuf::new();
    for i in 0..files {
        if i % DIR_FILES == 0 {
            dir = top.join(format!("d{}", i / DIR_FILES));
            std::fs::create_dir(&dir)?;
        }
        File::create_new(dir.join(format!("file-{i}")))?.write_all(&content)?;
    }
    Ok(())
}

fn unpacked(peer: &Peer) -> PathBuf {
    peer.dir.join("unpacked")
}

/// Seconds to unpack the archive.
pub(super) fn unpack(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    let tree = unpacked(peer);
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    std::fs::create_dir(&tree)?;
    timed(Command::new("tar").arg("-xf").arg(&scale.archive).arg("-C").arg(&tree))
}

/// Seconds of a second `ls -lR` of the unpacked tree.
pub(super) fn list(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    prepare(peer, scale)?;
    let tree = unpacked(peer);
    let list = || timed(Command::new("ls").arg("-lR").arg(&tree).stdout(Stdio::null()));
    list()?;
    list()
}

/// Seconds to remove the unpacked tree.
pub(super) fn remove(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    prepare(peer, scale)?;
    timed(Command::new("rm").arg("-rf").arg(unpacked(peer)))
}

fn prepare(peer: &mut Peer, scale: &Scale) -> Result<()> {
    if unpacked(peer).exists() { Ok(()) } else { unpack(peer, scale).map(drop) }
}

fn timed(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    run(command)?;
    Ok(began.elapsed().as_secs_f64())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
