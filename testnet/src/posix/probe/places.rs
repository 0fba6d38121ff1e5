//! What only a volume has: a limit of its own, and another host.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::compare::{differences, manifest};
use crate::nodes::Node;
use crate::posix::probe::refused;
use crate::posix::tools::Kernel;
use crate::report::Report;
use crate::workload;

const LIMIT: u64 = 64 << 20;

/// Both, on the two nodes of the probe.
pub(super) fn run(report: &mut Report, nodes: &mut [Node], kernel: &Kernel) -> Result<()> {
    let [a, b] = nodes else { anyhow::bail!("two nodes are probed") };
    report.step("statfs and ENOSPC of a volume with a size", 0, |_| limited(a))?;
    report.step("inode numbers, ACLs and all attributes on another host", 0, |_| moved(a, b, kernel))
}

fn limited(node: &mut Node) -> Result<String> {
    node.ok(&["volume", "create", "small", "--size", "64MiB"])?;
    let at = node.mount("small")?;
    let room = |what: &str| -> Result<(u64, u64)> {
        let found = rustix::fs::statvfs(&at).with_context(|| what.to_owned())?;
        Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
    };
    ensure!(room("statfs")? == (LIMIT, LIMIT), "statfs says {:?}", room("statfs")?);
    let most = vec![1; LIMIT as usize];
    std::fs::write(at.join("f"), &most)?;
    std::fs::File::open(at.join("f"))?.sync_all()?;
    ensure!(room("full")? == (LIMIT, 0), "full, statfs says {:?}", room("full")?);
    refused(std::fs::write(at.join("g"), b"x"), libc::ENOSPC)?;
    std::fs::File::options().write(true).open(at.join("f"))?.set_len(LIMIT / 2)?;
    std::fs::write(at.join("g"), b"x")?;
    node.unmount(&at)?;
    Ok("64 MiB and no byte more; freed, it goes on".into())
}

fn moved(a: &mut Node, b: &mut Node, kernel: &Kernel) -> Result<String> {
    let at = a.data().with_extension("mnt-w");
    workload::odd_tree(&at.join("odd"))?;
    std::fs::copy(kernel.path(), at.join("odd/program"))?;
    let line = "setfacl -m u:65534:rx,g:7:w plain && mkdir taken && setfacl -d -m u:8:rwx taken && echo x > taken/over";
    shell(&at.join("odd"), line)?;
    let (before, inodes, lists) = (manifest(&at, &|_| ())?, inodes(&at)?, acls(&at)?);
    a.unmount(&at)?;
    let at = b.mount("w")?;
    let found = differences(&before, &manifest(&at, &|_| ())?, 10);
    ensure!(found.is_empty(), "the other host sees another tree:\n{}", found.join("\n"));
    ensure!(self::inodes(&at)? == inodes, "inode numbers have changed");
    ensure!(
        acls(&at)? == lists && lists.contains("user:8:rwx"),
        "ACLs have changed:\n{lists}\n{}",
        acls(&at)?
    );
    shell(
        &at.join("odd"),
        "umask 077; echo y > taken/later && getfacl -cnE taken/later | grep -q user:8:rwx",
    )?;
    b.unmount(&at)?;
    Ok(format!("{} names equal", before.len()))
}

fn shell(dir: &Path, line: &str) -> Result<()> {
    let status = Command::new("sh").args(["-c", line]).current_dir(dir).status().context("run sh")?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

fn acls(dir: &Path) -> Result<String> {
    let out = Command::new("getfacl").args(["-RnE", "."]).current_dir(dir).output().context("run getfacl")?;
    ensure!(out.status.success(), "getfacl: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The inode number of every name below a directory.
fn inodes(dir: &Path) -> Result<Vec<(std::path::PathBuf, u64)>> {
    let (mut found, mut left) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(at) = left.pop() {
        for entry in std::fs::read_dir(&at)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                left.push(entry.path());
            }
            found.push((entry.path().strip_prefix(dir)?.to_path_buf(), meta.ino()));
        }
    }
    found.sort();
    Ok(found)
}
