//! A keeper has all of a volume by itself a moment after its writer stopped writing. Needs root and FUSE; says so and passes
//! without them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on says why and ends")]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use remora_testnet::nodes::{Node, cluster};
use remora_testnet::{exe, workload};

const SMALL_FILES: u32 = 200;
const BIG_BYTES: u64 = 20 << 20;

fn small(n: u32) -> Vec<u8> {
    format!("file {n}\n").repeat(1 + n as usize * 7).into_bytes()
}

fn fill(dir: &Path) -> Result<Vec<u8>> {
    workload::noise_file(&dir.join("big"), BIG_BYTES, 11, &|_| {})?;
    std::fs::create_dir(dir.join("many"))?;
    for n in 0..SMALL_FILES {
        std::fs::write(dir.join(format!("many/{n}")), small(n))?;
    }
    Ok(std::fs::read(dir.join("big"))?)
}

fn check(dir: &Path, big: &[u8]) -> Result<()> {
    ensure!(std::fs::read(dir.join("big")).context("read the big file")? == big, "the big file differs");
    for n in 0..SMALL_FILES {
        let found = std::fs::read(dir.join(format!("many/{n}"))).with_context(|| format!("read file {n}"))?;
        ensure!(found == small(n), "file {n} differs");
    }
    Ok(())
}

/// Two nodes, or nothing where mounts are not possible.
fn two(dir: &Path) -> Option<Vec<Node>> {
    exe::choose(Path::new(env!("CARGO_BIN_EXE_remora-testnet")));
    if let Err(why) = exe::check_fuse() {
        eprintln!("not run: {why}");
        return None;
    }
    Some(cluster(dir, &["x", "y"]).unwrap())
}

fn volume<'a>(status: &'a serde_json::Value, name: &str) -> Option<&'a serde_json::Value> {
    status["volumes"].as_array()?.iter().find(|volume| volume["name"] == name)
}

/// Waits until `node` says that its copy is complete up to commit `seq`.
fn wait_for_copy(node: &Node, name: &str, seq: u64) -> Result<()> {
    node.wait_until("a complete copy", |status| {
        let copy = volume(status, name).map(|volume| &volume["copy"]);
        copy.is_some_and(|copy| copy["complete"] == true && copy["seq"].as_u64() >= Some(seq))
    })
}

#[test]
fn a_keeper_that_is_complete_needs_nobody_to_read_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut nodes) = two(dir.path()) else { return };
    let [x, y] = nodes.as_mut_slice() else { unreachable!() };
    x.ok(&["volume", "create", "kept"]).unwrap();
    let at = x.mount("kept").unwrap();
    let big = fill(&at).unwrap();
    rustix::fs::syncfs(std::fs::File::open(&at).unwrap()).unwrap();
    // What was written last is cut into a commit by the clock; the keeper follows.
    x.wait_until("a durable tail", |status| {
        let here = volume(status, "kept").map(|volume| &volume["here"]);
        here.is_some_and(|here| here["seq"] == here["durable_seq"] && here["lag_commits"] == 0)
    })
    .unwrap();
    let seq = volume(&x.json(&["status"]).unwrap(), "kept").unwrap()["here"]["seq"].as_u64().unwrap();
    wait_for_copy(y, "kept", seq).unwrap();
    x.unmount(&at).unwrap();
    let there = y.mount("kept").unwrap();
    x.kill().unwrap();
    check(&there, &big).unwrap();
}

#[test]
fn a_writer_brings_what_was_there_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut nodes) = two(dir.path()) else { return };
    let [x, y] = nodes.as_mut_slice() else { unreachable!() };
    x.ok(&["volume", "create", "alone", "--replicas", "1"]).unwrap();
    let at = x.mount("alone").unwrap();
    let big = fill(&at).unwrap();
    x.unmount(&at).unwrap();
    let there = y.mount("alone").unwrap();
    wait_for_copy(y, "alone", 1).unwrap();
    x.kill().unwrap();
    check(&there, &big).unwrap();
}
