//! Data directories to damage: copies of a good one, and what may and may not change in them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::compare::{Manifest, differences, manifest};
use crate::nodes::Node;

/// How long a daemon that must not run may take to say so.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// What a file begins with that a case looks for again in logs and packs.
pub(crate) const MARK: &[u8] = b"the quick remora holds on to the slow shark";

/// A node that was filled and stopped: two volumes, one block of content.
pub(crate) struct Filled {
    pub(crate) data: PathBuf,
    /// Of the added file.
    pub(crate) cid: String,
}

/// Volumes of the filled node; the first holds [`MARK`].
pub(crate) const VOLUMES: [&str; 2] = ["marked", "bystander"];

/// Files of each volume.
pub(crate) const FILES: u64 = 20;

impl Filled {
    /// Makes the node in `dir`; it does not run afterwards.
    pub(crate) fn make(dir: &Path) -> Result<Filled> {
        let mut node = Node::init(dir, "good")?;
        node.start()?;
        node.ok(&["ticket"])?;
        for (at, volume) in VOLUMES.iter().enumerate() {
            node.ok(&["volume", "create", volume])?;
            let mount = node.mount(volume)?;
            for file in 0..FILES {
                let text = if at == 0 && file == FILES / 2 { MARK.to_vec() } else { body(volume, file) };
                let path = mount.join(format!("f{file}"));
                std::fs::write(&path, text)?;
                File::open(&path)?.sync_all()?;
            }
            node.unmount(&mount)?;
        }
        let content = dir.join("content");
        std::fs::write(&content, noise())?;
        let cid = node.ok(&["add", "-q", &content.display().to_string()])?.trim().to_owned();
        node.stop()?;
        Ok(Filled { data: node.data().to_owned(), cid })
    }

    /// A copy of it as the node `name`.
    pub(crate) fn copy(&self, dir: &Path, name: &str) -> Result<Node> {
        let node = Node::place(dir, name);
        let done =
            Command::new("cp").arg("-a").arg(&self.data).arg(node.data()).status().context("run cp")?;
        ensure!(done.success(), "cp ended with {done}");
        Ok(node)
    }
}

/// What a file of a volume holds, the marked one aside.
pub(crate) fn body(volume: &str, file: u64) -> Vec<u8> {
    format!("{volume} {file}\n").repeat(10).into_bytes()
}

/// 512 KiB that do not compress, so that they are found again in a pack.
pub(crate) fn noise() -> Vec<u8> {
    (0..1u64 << 16)
        .flat_map(|n| (n ^ 0x5555).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23).to_le_bytes())
        .collect()
}

/// Turns one bit over.
pub(crate) fn flip(path: &Path, at: u64) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, at).with_context(|| format!("{} has no byte {at}", path.display()))?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    Ok(())
}

/// Files below `dir`, in order.
pub(crate) fn all_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut queue = vec![dir.to_path_buf()];
    while let Some(dir) = queue.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                queue.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Files below `dir` with this extension, in order.
pub(crate) fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let has_it = |path: &PathBuf| path.extension().is_some_and(|e| e == extension);
    Ok(all_files(dir)?.into_iter().filter(has_it).collect())
}

/// The file among `files` that holds these bytes, and where.
pub(crate) fn find(files: &[PathBuf], bytes: &[u8]) -> Result<(PathBuf, u64)> {
    for path in files {
        let held = std::fs::read(path)?;
        if let Some(at) = held.windows(bytes.len()).position(|window| window == bytes) {
            return Ok((path.clone(), at as u64));
        }
    }
    bail!("none of {files:?} holds the marked bytes")
}

/// What is durable of a node: all but the lock, the index (which is rebuilt from the rest) and sockets. Times do not count: a start
/// writes the same bytes again where it cannot know that they are on the disk.
pub(crate) fn truth(data: &Path) -> Result<Manifest> {
    let mut found = manifest(data, &|_| {})?;
    found.retain(|path, seen| {
        let is_socket = seen.mode & libc::S_IFMT == libc::S_IFSOCK;
        let is_empty_dir = path.as_os_str().is_empty() || path == Path::new("index");
        seen.mtime = (0, 0);
        !is_socket && !is_empty_dir && path != Path::new("LOCK") && !path.starts_with("index")
    });
    Ok(found)
}

/// Nothing durable was changed.
pub(crate) fn check_unchanged(what: &str, before: &Manifest, data: &Path) -> Result<()> {
    let changed = differences(before, &truth(data)?, 5);
    ensure!(changed.is_empty(), "{what}: the refused start changed files:\n{}", changed.join("\n"));
    Ok(())
}

/// Starts a daemon that has to end by itself, and answers how.
pub(crate) fn short_life(node: &Node) -> Result<Output> {
    let mut command = node.command()?;
    command.args(["daemon", "--docker-plugin", "off"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start the daemon")?;
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > END_TIMEOUT {
            child.kill()?;
            let out = child.wait_with_output()?;
            bail!("the daemon runs in spite of it: {}", String::from_utf8_lossy(&out.stderr));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().context("read what the daemon said")
}
