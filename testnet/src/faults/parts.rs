//! One part of a data directory lies on a disk that fails: what belongs to it answers an error, everything else goes on.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::corruption::scene::body;
use crate::exe;
use crate::faultdisk::FaultDisk;
use crate::faults::failed::{check_stepped_down, check_told};
use crate::nodes::Node;
use crate::report::Report;

/// Bytes of the disk with the part on it.
const DISK_BYTES: u64 = 96 << 20;

/// A whole chunk of a file: it goes to the packs, not into the log.
const CHUNK_BYTES: usize = 1 << 20;

pub(super) fn run(report: &mut Report) -> Result<()> {
    for is_writes in [false, true] {
        let how = if is_writes { "writes" } else { "flushes" };
        let mut step = |what: &str, work: fn(&mut Scene) -> Result<String>, part: Part| {
            report.step(&format!("{what}: {how} fail"), 0, |_| {
                let mut scene = Scene::make(part, is_writes)?;
                let outcome = work(&mut scene);
                outcome.with_context(|| scene.node.last_words())
            })
        };
        step("packs", packs, Part::Packs)?;
        step("ctl of a volume", ctl, Part::Ctl)?;
        step("registry", registry, Part::Registry)?;
        step("index", index, Part::Index)?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Packs,
    Ctl,
    Registry,
    Index,
}

/// A node with a volume `v`, and the disk below one part of it. Fields end in this order.
struct Scene {
    node: Node,
    disk: FaultDisk,
    is_writes: bool,
    dir: TempDir,
}

impl Scene {
    fn make(part: Part, is_writes: bool) -> Result<Scene> {
        let dir = exe::scratch("part")?;
        let mut disk = FaultDisk::create(&dir.path().join("disk"), DISK_BYTES)?;
        let fs = disk.mount()?;
        let mut node = Node::init(dir.path(), "node")?;
        node.start()?;
        node.ok(&["volume", "create", "v"])?;
        let mount = node.mount("v")?;
        put(&mount.join("before"), 1)?;
        node.unmount(&mount)?;
        node.stop()?;
        lay(part, &node, &fs, dir.path())?;
        rustix::fs::syncfs(File::open(&fs)?).context("sync what was laid on the disk")?;
        node.start()?;
        Ok(Scene { node, disk, is_writes, dir })
    }

    fn fail(&self, on: bool) {
        if self.is_writes {
            self.disk.fail_writes(on);
        } else {
            self.disk.fail_flushes(on);
        }
    }

    /// The disk is well again, without what it had not been made to keep; the daemon is a new one.
    fn mend(&mut self) -> Result<PathBuf> {
        let _ended_as_it_can = self.node.stop();
        self.fail(false);
        self.disk.cut_power(7)?;
        self.disk.power_on()?;
        self.disk.mount()?;
        self.node.start()?;
        let mount = self.node.mount("v")?;
        check(&mount.join("before"), 1)?;
        Ok(mount)
    }
}

/// Moves a part of a data directory to the disk.
fn lay(part: Part, node: &Node, fs: &Path, dir: &Path) -> Result<()> {
    let data = node.data();
    match part {
        Part::Packs => move_and_link(&data.join("packs"), &fs.join("packs")),
        Part::Registry => move_and_link(&data.join("registry"), &fs.join("registry")),
        Part::Index => move_and_link(&data.join("index"), &fs.join("index")),
        Part::Ctl => {
            let volume = std::fs::read_dir(data.join("volumes"))?.next().context("no volume")??.path();
            move_and_link(&volume, &fs.join("volume"))?;
            // The log stays where it was.
            move_and_link(&fs.join("volume/log"), &dir.join("log"))
        }
    }
}

fn move_and_link(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("mv").arg(from).arg(to).status().context("run mv")?;
    ensure!(done.success(), "mv ended with {done}");
    symlink(to, from).with_context(|| format!("link {}", from.display()))
}

fn chunk(number: u64) -> Vec<u8> {
    body(number, CHUNK_BYTES)
}

/// A file of two whole chunks, durable when this returns.
fn put(path: &Path, number: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&chunk(2 * number))?;
    file.write_all(&chunk(2 * number + 1))?;
    file.sync_all()
}

fn check(path: &Path, number: u64) -> Result<()> {
    let found = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let wanted = [chunk(2 * number), chunk(2 * number + 1)].concat();
    ensure!(found == wanted, "{} is another one now", path.display());
    Ok(())
}

fn packs(scene: &mut Scene) -> Result<String> {
    let mount = scene.node.mount("v")?;
    put(&mount.join("good"), 2)?;
    scene.fail(true);
    let code = put(&mount.join("lost"), 3).err().and_then(|error| error.raw_os_error());
    ensure!(code == Some(libc::EIO), "chunks that the disk did not take were answered {code:?}, not EIO");
    check_stepped_down(&scene.node, &mount)?;
    let why = check_told(&scene.node)?;
    let status = scene.node.json(&["status"])?["warnings"].to_string();
    ensure!(status.contains("packs takes no more blocks"), "`status` does not name the packs: {status}");
    let mount = scene.mend()?;
    check(&mount.join("good"), 2)?;
    put(&mount.join("after"), 4)?;
    scene.node.ok(&["store", "verify"])?;
    Ok(format!("EIO; {why}"))
}

fn ctl(scene: &mut Scene) -> Result<String> {
    scene.fail(true);
    let place = scene.dir.path().join("place");
    std::fs::create_dir(&place)?;
    let out = scene.node.run(&["volume", "mount", "v", &place.display().to_string()])?;
    let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    ensure!(!out.status.success(), "a term that is not on disk was used: {said}");
    ensure!(said.contains("ctl"), "the message does not name the file: {said}");
    let mount = scene.mend()?;
    put(&mount.join("after"), 4)?;
    Ok(format!("the mount is refused: {}", said.lines().next().unwrap_or_default()))
}

fn registry(scene: &mut Scene) -> Result<String> {
    scene.fail(true);
    for name in ["lost", "lost-too"] {
        let out = scene.node.run(&["volume", "create", name])?;
        ensure!(!out.status.success(), "volume {name} is acknowledged and not on disk");
    }
    let names = scene.node.json(&["volume", "ls"])?.to_string();
    ensure!(!names.contains("lost"), "a volume that was not created is listed: {names}");
    let status = scene.node.json(&["status"])?["warnings"].to_string();
    ensure!(status.contains("registry takes no more entries"), "`status` does not tell it: {status}");
    scene.mend()?;
    // What was written and not synced may have reached the disk all the same: then the volume is there, whole.
    let out = scene.node.run(&["volume", "create", "lost"])?;
    ensure!(matches!(out.status.code(), Some(0 | 5)), "the name is neither free nor taken: {}", out.status);
    scene.node.mount("lost").map(drop)?;
    Ok("no volume is acknowledged, none is listed; afterwards it is there or can be made".into())
}

fn index(scene: &mut Scene) -> Result<String> {
    scene.fail(true);
    let mount = scene.node.mount("v")?;
    put(&mount.join("during"), 5)?;
    scene.node.ok(&["store", "verify"])?;
    check(&mount.join("before"), 1)?;
    scene.node.unmount(&mount)?;
    scene.node.stop()?;
    // It starts without, too.
    scene.node.start()?;
    let status = scene.node.json(&["status"])?["warnings"].to_string();
    ensure!(status.contains("index failed"), "`status` does not tell it: {status}");
    let mount = scene.node.mount("v")?;
    check(&mount.join("before"), 1)?;
    check(&mount.join("during"), 5)?;
    put(&mount.join("later"), 6)?;
    let mount = scene.mend()?;
    for (name, number) in [("during", 5), ("later", 6)] {
        check(&mount.join(name), number)?;
    }
    scene.node.ok(&["store", "verify"])?;
    let status = scene.node.json(&["status"])?["warnings"].to_string();
    ensure!(!status.contains("index failed"), "the index is still missed: {status}");
    Ok("nothing is missed: written, read, started without it".into())
}
