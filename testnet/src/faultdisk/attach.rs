//! Loop device, ext4 and mounts of a disk, and who takes them down when we cannot.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::faultdisk::LoopIo;

/// System programs are here, also where `PATH` does not say so.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn run(program: &str, args: &[&str]) -> Result<Output> {
    Command::new(program)
        .args(args)
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// A loop device; dropped, it is detached.
pub(super) struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Any free device, on this image.
    pub(super) fn attach(image: &Path, io: LoopIo) -> Result<LoopDevice> {
        let direct = if io == LoopIo::Direct { "--direct-io=on" } else { "--direct-io=off" };
        let out = run("losetup", &["--find", "--show", direct, &image.to_string_lossy()])?;
        ensure!(out.status.success(), "losetup {}: {}", image.display(), said(&out));
        let path = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
        let device = LoopDevice { path };
        let is_direct = device.is_direct()?;
        ensure!(is_direct == (io == LoopIo::Direct), "losetup did not take {direct}");
        Ok(device)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn is_direct(&self) -> Result<bool> {
        let name = self.path.file_name().context("a loop device has a name")?;
        let file = Path::new("/sys/block").join(name).join("loop/dio");
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(text.trim() == "1")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        match run("losetup", &["--detach", &self.path.to_string_lossy()]) {
            Ok(out) if out.status.success() => {}
            Ok(out) => eprintln!("losetup --detach {}: {}", self.path.display(), said(&out)),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

/// Makes an empty ext4, complete at once (nothing is left for the kernel to do in the background), with a small journal.
pub(super) fn make_ext4(device: &Path) -> Result<()> {
    let options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
    let device = device.to_string_lossy();
    let args = ["-q", "-F", "-m", "0", "-b", "4096", "-J", "size=8", "-E", options, &device];
    let out = run("mkfs.ext4", &args)?;
    ensure!(out.status.success(), "mkfs.ext4 {device}: {}", said(&out));
    Ok(())
}

/// What a host does when it comes up: replays the journal and looks. An error if more was wrong than a journal mends.
pub(super) fn check_ext4(device: &Path) -> Result<()> {
    let device = device.to_string_lossy();
    let out = run("e2fsck", &["-f", "-p", &device])?;
    // 1: something small was mended, such as the list of orphans.
    ensure!(matches!(out.status.code(), Some(0 | 1)), "e2fsck {device}: {}\n{}", out.status, said(&out));
    Ok(())
}

/// Mounts the device.
pub(super) fn mount_ext4(device: &Path, dir: &Path) -> Result<()> {
    rustix::mount::mount(device, dir, "ext4", MountFlags::NOATIME, c"errors=remount-ro")
        .with_context(|| format!("mount {} on {}", device.display(), dir.display()))
}

/// Mount points in and below `dir`, innermost and newest first.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut found: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    found.reverse();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(found)
}

/// Unmounts `dir` for good, first what is mounted in it; an error if it stays busy for so long.
pub(super) fn unmount_all(dir: &Path, at_most: Duration) -> Result<()> {
    let began = Instant::now();
    for point in mounts_below(dir)?.into_iter().filter(|point| point != dir) {
        rustix::mount::unmount(&point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    loop {
        match rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if began.elapsed() < at_most => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => bail!("unmount {}: {error}", dir.display()),
        }
    }
}

/// Takes `dir` and what is mounted in it out of sight, whoever uses it.
pub(super) fn detach_all(dir: &Path) {
    for point in mounts_below(dir).unwrap_or_default() {
        let _gone = rustix::mount::unmount(&point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
    }
}

/// A shell that takes the disk down if we cannot.
pub(super) struct Janitor {
    child: Child,
}

impl Janitor {
    pub(super) fn start(dir: &Path) -> Result<Janitor> {
        let mut command = Command::new("sh");
        command.args(["-c", include_str!("janitor.sh"), "janitor"]).arg(dir).env("PATH", PATH);
        // Not in our process group: Ctrl-C is for us, and then for it to clean up.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Janitor { child: command.spawn().context("start the janitor")? })
    }

    /// Tells it of a loop device.
    pub(super) fn knows(&mut self, device: &Path) {
        self.tell(&device.to_string_lossy());
    }

    /// There is nothing left for it to do.
    pub(super) fn dismiss(&mut self) {
        self.tell("done");
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }

    fn tell(&mut self, line: &str) {
        if let Some(pipe) = &mut self.child.stdin
            && let Err(error) = writeln!(pipe, "{line}")
        {
            eprintln!("tell the janitor: {error}");
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
}
