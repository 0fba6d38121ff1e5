//! Trees of files: moved, copied up from an image, backed up and restored.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::fs::{CWD, FileType, XattrFlags};

use crate::compare::{Manifest, differences, manifest};
use crate::hosts::images::{Image, check};
use crate::moving::pair::{BUSYBOX, DEBIAN, Pair, run_words};
use crate::workload;

/// Names in one directory.
const PER_DIRECTORY: u64 = 50;

/// Length of the sparse file, nearly all of it a hole.
const SPARSE_BYTES: u64 = 64 << 20;

/// A container on X copies a tree onto a volume, a container on Y sees it, and back on X it can be removed.
pub(super) fn tree(pair: &Pair, files: u64) -> Result<String> {
    let source = pair.shelf("tree")?;
    plant(&source, files)?;
    let wanted = manifest(&source, &|_| {})?;
    // xattrs of the `trusted` space are for those who may mount.
    let bind = format!("{}:/source:ro", source.display());
    let options = ["--rm", "--cap-add", "SYS_ADMIN", "-v", "tree:/v", "-v", &bind];
    pair.x.docker(&[&run_words(&options), &[DEBIAN, "cp", "-a", "/source/.", "/v"][..]].concat())?;
    let reader = pair.y.keep("reader", "tree")?;
    compare(&wanted, &pair.y.manifest("tree")?, "the tree that moved")?;
    let sparse =
        pair.y.mount_point("tree")?.join("odd/sparse").metadata().context("look at the sparse file")?;
    let allocated = sparse.blocks() * 512;
    ensure!(allocated < SPARSE_BYTES / 4, "the holes of the sparse file were filled: {allocated} bytes");
    reader.remove()?;
    pair.x.run("tree", BUSYBOX, &["sh", "-c", "rm -rf /v/* && test -z \"$(ls -A /v)\""])?;
    Ok(format!("{} names equal", wanted.len()))
}

fn compare(wanted: &Manifest, found: &Manifest, what: &str) -> Result<()> {
    let differences = differences(wanted, found, 20);
    ensure!(differences.is_empty(), "{what} is not what it was:\n{}", differences.join("\n"));
    Ok(())
}

/// One of everything, and `files` names of all sizes, modes, owners and times.
fn plant(root: &Path, files: u64) -> Result<()> {
    workload::odd_tree(&root.join("odd"))?;
    let sparse = File::create(root.join("odd/sparse"))?;
    sparse.set_len(SPARSE_BYTES)?;
    for at in [0, 5 << 20, SPARSE_BYTES - 7] {
        sparse.write_all_at(b"island!", at)?;
    }
    rustix::fs::mknodat(
        CWD,
        root.join("odd/device"),
        FileType::CharacterDevice,
        0o666.into(),
        rustix::fs::makedev(1, 3),
    )?;
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for number in 0..files {
        let dir = root.join(format!("d{:03}", number / PER_DIRECTORY));
        if number % PER_DIRECTORY == 0 {
            fs::create_dir(&dir)?;
        }
        let path = dir.join(format!("f{number:05}"));
        let before = dir.join(format!("f{:05}", number.saturating_sub(1)));
        match number % PER_DIRECTORY {
            10 => fs::hard_link(&before, &path)?,
            20 => std::os::unix::fs::symlink(&before, &path)?,
            30 => fs::create_dir(&path)?,
            _ => file(&path, number, &mut rng)?,
        }
    }
    Ok(())
}

fn file(path: &Path, number: u64, rng: &mut ChaCha8Rng) -> Result<()> {
    // Some are longer than a block, and not by a whole number of them.
    let length = if number % 1000 == 999 { (3 << 20) + 17 } else { rng.random_range(0..8192) };
    let mut content = vec![0u8; length];
    rng.fill_bytes(&mut content);
    fs::write(path, &content)?;
    let owner = |n: u64| u32::try_from(n % 70_000).ok();
    std::os::unix::fs::chown(path, owner(number * 13), owner(number * 17))?;
    fs::set_permissions(path, Permissions::from_mode(rng.random_range(0..0o10000)))?;
    if number.is_multiple_of(7) {
        rustix::fs::setxattr(path, "user.number", &number.to_le_bytes(), XattrFlags::empty())?;
    }
    let time = UNIX_EPOCH + Duration::new(number * 300_000, rng.random_range(0..1_000_000_000));
    File::open(path)?.set_modified(time).with_context(|| format!("set the time of {}", path.display()))
}

/// A new volume over a directory of the image gets what is there, once.
pub(super) fn copy_up(pair: &Pair, image: &Image) -> Result<String> {
    let original = pair.shelf("image")?;
    let mut unpack = Command::new("tar");
    unpack
        .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(&image.tar)
        .arg("-C")
        .arg(&original);
    check(unpack.arg("./data"), "unpack the image's directory")?;
    let options = ["-d", "--init", "--name", "copied-up", "-v", "up:/data"];
    pair.x.docker(&[&run_words(&options), &[BUSYBOX, "sleep", "1000"][..]].concat())?;
    let mut wanted = manifest(&original.join("data"), &|_| {})?;
    let mut found = pair.x.manifest("up")?;
    ensure!(wanted.len() > 8, "the image's directory has only {} names", wanted.len());
    // An engine gives directories the time of the copy, with its own volumes too.
    for tree in [&mut wanted, &mut found] {
        tree.values_mut()
            .filter(|seen| seen.mode & 0o170_000 == 0o040_000)
            .for_each(|seen| seen.mtime = (0, 0));
    }
    compare(&wanted, &found, "what the engine copied up")?;
    pair.x.docker(&["exec", "copied-up", "rm", "/data/plain"])?;
    pair.x.docker(&["rm", "-f", "copied-up"])?;
    let options = ["--rm", "-v", "up:/data"];
    let left = pair.y.docker(&[&run_words(&options), &[BUSYBOX, "ls", "-A", "/data"][..]].concat())?;
    ensure!(left.lines().any(|name| name == "hard"), "the volume did not come to Y:\n{left}");
    ensure!(!left.lines().any(|name| name == "plain"), "on Y the engine copied up once more");
    Ok(format!("{} names equal; not copied again on Y", wanted.len()))
}

/// A container of X is backed up by tar from another container, and restored into another volume on Y.
pub(super) fn backup(pair: &Pair) -> Result<String> {
    let source = pair.shelf("small-tree")?;
    plant(&source, 500)?;
    let wanted = manifest(&source, &|_| {})?;
    let bind = format!("{}:/source:ro", source.display());
    let fill = ["--rm", "--cap-add", "SYS_ADMIN", "-v", "original:/v", "-v", &bind];
    pair.x.docker(&[&run_words(&fill), &[DEBIAN, "cp", "-a", "/source/.", "/v"][..]].concat())?;
    let running = pair.x.keep("served", "original")?;
    let shelf = pair.shelf("backup")?;
    let shelf = format!("{}:/backup", shelf.display());
    let tar = ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--sparse", "-C", "/v"];
    let options = ["--rm", "--cap-add", "SYS_ADMIN", "-v", &shelf];
    let write = ["-cf", "/backup/v.tar", "."];
    pair.x.docker(
        &[&run_words(&options), &["--volumes-from", "served", DEBIAN][..], &tar[..], &write[..]].concat(),
    )?;
    running.remove()?;
    let restored = pair.y.keep("restored", "copy")?;
    let write = ["-xpf", "/backup/v.tar"];
    pair.y.docker(
        &[&run_words(&options), &["--volumes-from", "restored", DEBIAN][..], &tar[..], &write[..]].concat(),
    )?;
    compare(&wanted, &pair.y.manifest("copy")?, "the restored tree")?;
    restored.remove()?;
    Ok(format!("{} names equal", wanted.len()))
}
