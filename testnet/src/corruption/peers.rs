//! What is damaged on one host and whole on another one comes from there.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::corruption::scene::body;
use crate::nodes::cluster;
use crate::report::Report;

/// Bytes of the file that is damaged.
const FILE_BYTES: usize = 3 << 20;

pub(super) fn run(report: &mut Report, dir: &Path) -> Result<()> {
    report.step("pack damaged, a second host has the blocks", 0, |_| pack(dir))
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
