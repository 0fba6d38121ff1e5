//! Damage that one volume or one block has to bear alone: the daemon runs, says what is wrong, and serves the rest.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::compare::sha256;
use crate::hostile::disk::{FILES, Filled, MARK, VOLUMES, body, files, find, flip, noise};
use crate::hostile::{Cases, check_alive};
use crate::nodes::{Node, cluster};

/// What is done to a directory.
type Damage = fn(&Path) -> Result<()>;

/// Bytes of a slot of the ctl file.
const SLOT_BYTES: u64 = 4096;

pub(super) fn run(cases: &mut Cases, dir: &Path) -> Result<()> {
    let filled = Filled::make(dir)?;
    volume_log(cases, &filled, dir)?;
    volume_ctl(cases, &filled, dir)?;
    pack(cases, &filled, dir)?;
    index(cases, &filled, dir)?;
    mounts(cases, &filled, dir)?;
    healed(cases, dir)
}

/// Directory of the marked volume.
fn marked(node: &Node) -> Result<PathBuf> {
    let (segment, _) = find(&files(&node.data().join("volumes"), "seg")?, MARK)?;
    segment.parent().and_then(Path::parent).map(Path::to_path_buf).context("a segment outside a volume")
}

/// All files of a volume are as they were written.
fn check_volume(node: &mut Node, volume: &str) -> Result<()> {
    let mount = node.mount(volume)?;
    for file in 0..FILES {
        let want = if volume == VOLUMES[0] && file == FILES / 2 { MARK.to_vec() } else { body(volume, file) };
        let found = std::fs::read(mount.join(format!("f{file}")))
            .with_context(|| format!("read f{file} of {volume}"))?;
        ensure!(found == want, "f{file} of {volume} is another one now");
    }
    node.unmount(&mount)
}

fn check_content(node: &Node, cid: &str) -> Result<()> {
    let out = node.run(&["cat", cid])?;
    ensure!(
        out.status.success() && out.stdout == noise(),
        "the added file is another one now: {}",
        out.status
    );
    Ok(())
}

/// The warnings of `status`.
fn warnings(node: &Node) -> Result<String> {
    Ok(node.json(&["status"])?["warnings"].to_string())
}

/// The marked volume is refused with the file's name, the other one and the content are whole.
fn check_one_is_lost(
    cases: &mut Cases,
    what: &str,
    node: &mut Node,
    filled: &Filled,
    file: &Path,
) -> Result<()> {
    let before = sha256(file)?;
    node.start()?;
    let pid = node.pid();
    let name = file.display().to_string();
    let place = node.data().with_extension("refused");
    std::fs::create_dir(&place)?;
    let out = node.run(&["volume", "mount", VOLUMES[0], &place.display().to_string()])?;
    cases.refused(what, &out, 7, &[&name, VOLUMES[0]])?;
    let warnings = warnings(node)?;
    ensure!(warnings.contains(&name), "{what}: `status` does not name {name}: {warnings}");
    check_volume(node, VOLUMES[1])?;
    check_content(node, &filled.cid)?;
    ensure!(sha256(file)? == before, "{what}: the damaged file was changed");
    check_alive(node, pid)?;
    node.stop()
}

fn volume_log(cases: &mut Cases, filled: &Filled, dir: &Path) -> Result<()> {
    let mut node = filled.copy(dir, "log-middle")?;
    let (segment, at) = find(&files(&node.data().join("volumes"), "seg")?, MARK)?;
    flip(&segment, at)?;
    check_one_is_lost(cases, "volume log: one bit in the middle", &mut node, filled, &segment)?;
    let mut node = filled.copy(dir, "log-head")?;
    let (segment, _) = find(&files(&node.data().join("volumes"), "seg")?, MARK)?;
    flip(&segment, 20)?;
    check_one_is_lost(cases, "volume log: one bit of its head", &mut node, filled, &segment)
}

fn volume_ctl(cases: &mut Cases, filled: &Filled, dir: &Path) -> Result<()> {
    let mut node = filled.copy(dir, "ctl-both")?;
    let ctl = marked(&node)?.join("ctl");
    flip(&ctl, 30)?;
    flip(&ctl, SLOT_BYTES + 30)?;
    check_one_is_lost(cases, "volume ctl: both slots", &mut node, filled, &ctl)
}

fn pack(cases: &mut Cases, filled: &Filled, dir: &Path) -> Result<()> {
    let mut node = filled.copy(dir, "pack")?;
    let (pack, at) = find(&files(&node.data().join("packs"), "pack")?, &noise()[1000..1064])?;
    flip(&pack, at + 100)?;
    let before = sha256(&pack)?;
    node.start()?;
    let pid = node.pid();
    let out = node.run(&["store", "verify"])?;
    cases.refused("pack: one bit; store verify", &out, 7, &[&filled.cid])?;
    let out = node.run(&["cat", &filled.cid])?;
    ensure!(out.stdout.is_empty(), "damaged bytes were shown");
    cases.refused("pack: one bit; cat", &out, 7, &[&filled.cid])?;
    for volume in VOLUMES {
        check_volume(&mut node, volume)?;
    }
    let after = sha256(&pack)?;
    check_alive(&node, pid)?;
    node.stop()?;
    // Blocks may have been appended; what is there stays.
    ensure!(before == after || std::fs::metadata(&pack)?.len() > at, "the damaged pack was cut");
    Ok(())
}

/// The index is disposable: nothing of it is missed.
fn index(cases: &mut Cases, filled: &Filled, dir: &Path) -> Result<()> {
    let damages: [(&str, Damage); 4] = [
        ("index: garbage in every file", |index| fill(index, &|bytes| bytes.fill(0xA5))),
        ("index: every file empty", |index| fill(index, &Vec::clear)),
        ("index: mark is garbage", |index| Ok(std::fs::write(index.join("mark"), "garbage")?)),
        ("index: gone", |index| Ok(std::fs::remove_dir_all(index)?)),
    ];
    for (at, (what, damage)) in damages.iter().enumerate() {
        let mut node = filled.copy(dir, &format!("index{at}"))?;
        damage(&node.data().join("index"))?;
        node.start().context(*what)?;
        check_content(&node, &filled.cid).context(*what)?;
        for volume in VOLUMES {
            check_volume(&mut node, volume).context(*what)?;
        }
        node.ok(&["store", "verify"]).context(*what)?;
        node.stop()?;
        cases.row(what, "rebuilt, everything is there");
    }
    Ok(())
}

fn fill(dir: &Path, change: &dyn Fn(&mut Vec<u8>)) -> Result<()> {
    let mut queue = vec![dir.to_path_buf()];
    while let Some(dir) = queue.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                queue.push(path);
                continue;
            }
            let mut bytes = std::fs::read(&path)?;
            change(&mut bytes);
            std::fs::write(&path, bytes)?;
        }
    }
    Ok(())
}

/// A list of mounts that cannot be read costs typing `mount` again, no more.
fn mounts(cases: &mut Cases, filled: &Filled, dir: &Path) -> Result<()> {
    let mut node = filled.copy(dir, "mounts")?;
    let file = node.data().join("mounts.json");
    std::fs::write(&file, "{\"/x\": ")?;
    node.start()?;
    let warnings = warnings(&node)?;
    ensure!(warnings.contains("mounts.json"), "`status` does not name the file: {warnings}");
    let kept = std::fs::read_to_string(file.with_extension("json.damaged"))?;
    ensure!(kept == "{\"/x\": ", "the damaged file is not kept");
    for volume in VOLUMES {
        check_volume(&mut node, volume)?;
    }
    node.stop()?;
    cases.row("mounts.json: garbage", "set aside, told in `status`, volumes mount");
    Ok(())
}

/// What is damaged here and whole on another host is shown whole.
fn healed(cases: &mut Cases, dir: &Path) -> Result<()> {
    let mut nodes = cluster(dir, &["hurt", "whole"])?;
    let [hurt, whole] = nodes.as_mut_slice() else { bail!("two names make two nodes") };
    let content = dir.join("content");
    let add = ["add", "-q", &content.display().to_string()].map(str::to_owned);
    let add: Vec<&str> = add.iter().map(String::as_str).collect();
    let cid = hurt.ok(&add)?.trim().to_owned();
    ensure!(whole.ok(&add)?.trim() == cid, "two hosts give one file two CIDs");
    hurt.stop()?;
    let (pack, at) = find(&files(&hurt.data().join("packs"), "pack")?, &noise()[1000..1064])?;
    flip(&pack, at + 100)?;
    hurt.start()?;
    hurt.wait_until("the other host is connected", |s| s["connected"].as_u64() == Some(1))?;
    check_content(hurt, &cid)?;
    cases.row("pack: one bit, with a second host", "read whole, from the second host");
    Ok(())
}
