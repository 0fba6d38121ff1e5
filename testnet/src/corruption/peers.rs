//! What is damaged on one host and whole on another one comes from there.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::compare::{differences, manifest};
use crate::corruption::area;
use crate::corruption::scene::{body, only_volume, write_synced};
use crate::nodes::{Node, cluster};
use crate::report::Report;

/// Bytes of the file that is damaged.
const FILE_BYTES: usize = 3 << 20;

pub(super) fn run(report: &mut Report, dir: &Path) -> Result<()> {
    report.step("pack damaged, a second host has the blocks", 0, |_| pack(&area(dir, "pack")?))?;
    for (writer, what) in [(0, "its writer's"), (1, "a follower's")] {
        let what = format!("log damaged, {what}; two other keepers have the commits");
        report.step(&what, 0, |_| log(&area(dir, &format!("log{writer}"))?, writer))?;
    }
    Ok(())
}

/// Files of the volume whose log is damaged.
const N_FILES: u64 = 30;

/// How long a damaged log may take to be healed once the others are connected.
const HEAL_TIMEOUT: Duration = Duration::from_secs(30);

/// A bit of a commit in the middle is turned over on the first host; the volume was written by host `writer`.
fn log(dir: &Path, writer: usize) -> Result<String> {
    let mut nodes = cluster(dir, &["hurt", "whole", "too"])?;
    nodes[writer].ok(&["volume", "create", "v", "--replicas", "3", "--durability", "quorum"])?;
    let mount = nodes[writer].mount("v")?;
    for file in 0..N_FILES {
        write_synced(&mount.join(format!("f{file}")), &body(file, 700))?;
    }
    let files = manifest(&mount, &|_| {})?;
    nodes[writer].unmount(&mount)?;
    wait_for_copy(&nodes[0])?;
    nodes[0].stop()?;
    let segment = only_volume(&nodes[0])?.join("log/0000000001.seg");
    let mut held = std::fs::read(&segment)?;
    let wanted = body(N_FILES / 3, 700);
    let at = held.windows(64).position(|w| w == &wanted[..64]).context("the file is not in the log")?;
    held[at + 100] ^= 16;
    std::fs::write(&segment, held)?;
    let hurt = &mut nodes[0];
    hurt.start()?;
    let said = hurt.json(&["status"])?["warnings"].to_string();
    let is_told = said.contains("0000000001.seg");
    let began = Instant::now();
    while hurt.json(&["status"])?["warnings"].to_string().contains("is damaged") {
        ensure!(began.elapsed() < HEAL_TIMEOUT, "the log is not healed: {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(is_told, "`status` did not name the damaged file: {said}");
    // It votes again: with one of the others it is a majority.
    nodes[1].stop()?;
    let mount = nodes[0].mount("v")?;
    let changed = differences(&files, &manifest(&mount, &|_| {})?, 5);
    ensure!(changed.is_empty(), "the volume is another one:\n{}", changed.join("\n"));
    write_synced(&mount.join("after"), b"on it goes")?;
    nodes[0].unmount(&mount)?;
    Ok(format!("told, healed after {:.1} s, votes and is mounted again", began.elapsed().as_secs_f64()))
}

/// Waits until the host has all commits of the volume.
fn wait_for_copy(node: &Node) -> Result<()> {
    let began = Instant::now();
    while node.json(&["volume", "inspect", "v"])?["copy"]["complete"].as_bool() != Some(true) {
        ensure!(began.elapsed() < HEAL_TIMEOUT, "{} gets no copy of the volume", node.name);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn pack(dir: &Path) -> Result<String> {
    let mut nodes = cluster(dir, &["hurt", "whole"])?;
    let content = dir.join("content");
    let bytes = body(1, FILE_BYTES);
    std::fs::write(&content, &bytes)?;
    let path = content.display().to_string();
    let cid = nodes[1].ok(&["add", "-q", &path])?.trim().to_owned();
    ensure!(nodes[0].ok(&["add", "-q", &path])?.trim() == cid, "two hosts give one file two CIDs");
    let hurt = &mut nodes[0];
    hurt.stop()?;
    let pack = hurt.data().join("packs/0000000001.pack");
    let mut held = std::fs::read(&pack)?;
    let at = held.windows(64).position(|w| w == &bytes[..64]).context("the file is not in the pack")?;
    for place in [0, FILE_BYTES / 3, FILE_BYTES - 4096] {
        held[at + place] ^= 4;
    }
    std::fs::write(&pack, held)?;
    hurt.start()?;
    hurt.wait_until("the other host is connected", |s| s["connected"].as_u64() == Some(1))?;
    let out = hurt.run(&["cat", &cid])?;
    ensure!(out.status.success() && out.stdout == bytes, "the file is another one now: {}", out.status);
    hurt.ok(&["store", "verify"]).context("a damaged block was not stored anew")?;
    Ok("read whole, stored anew, `store verify` is content".into())
}
