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

/// What `node` says of its copy of a volume, with the commit up to which the log is a tree.
fn copy_of(node: &Node, name: &str) -> Result<serde_json::Value> {
    let status = node.json(&["status"])?;
    Ok(volume(&status, name).context("no such volume")?["copy"].clone())
}

/// Has `node` turn its log into trees from 4 MiB on.
fn fold_early(node: &mut Node) -> Result<()> {
    node.stop()?;
    let path = node.data().join("config.toml");
    let config = std::fs::read_to_string(&path)?;
    let line = "checkpoint_log_bytes = 268435456";
    ensure!(config.contains(line), "{config}");
    std::fs::write(&path, config.replace(line, "checkpoint_log_bytes = 4194304"))?;
    node.start()?;
    node.wait_until("the other is connected", |status| status["connected"] == 1)
}

#[test]
fn what_is_in_a_keepers_log_does_not_come_again_as_a_tree() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut nodes) = two(dir.path()) else { return };
    let [x, y] = nodes.as_mut_slice() else { unreachable!() };
    fold_early(x).unwrap();
    x.ok(&["volume", "create", "small"]).unwrap();
    let at = x.mount("small").unwrap();
    // Files of one write each, far below a block: all of it goes through the log. The keeper is let to follow: one that is many
    // trees behind fetches the last one.
    for round in 0..4u32 {
        for n in round * 150..(round + 1) * 150 {
            std::fs::write(at.join(n.to_string()), small(n)).unwrap();
        }
        rustix::fs::syncfs(std::fs::File::open(&at).unwrap()).unwrap();
        x.wait_until("a durable tail", |status| {
            let here = volume(status, "small").map(|volume| &volume["here"]);
            here.is_some_and(|here| here["seq"] == here["durable_seq"] && here["lag_commits"] == 0)
        })
        .unwrap();
        let seq = volume(&x.json(&["status"]).unwrap(), "small").unwrap()["here"]["seq"].as_u64().unwrap();
        wait_for_copy(y, "small", seq).unwrap();
    }
    let copy = copy_of(y, "small").unwrap();
    eprintln!("{copy}");
    let count = |what: &str| copy[what].as_u64().unwrap();
    assert!(count("trees_made") > 0, "{copy}");
    assert_eq!(count("trees_different"), 0);
    assert!(count("made_bytes") > 30 * count("fetched_bytes"), "{copy}");
    x.unmount(&at).unwrap();
    let there = y.mount("small").unwrap();
    x.kill().unwrap();
    for n in 0..600u32 {
        assert!(std::fs::read(there.join(n.to_string())).unwrap() == small(n), "file {n} differs");
    }
}

#[test]
fn a_keeper_needs_no_writer_for_the_tree_of_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut nodes) = two(dir.path()) else { return };
    let [x, y] = nodes.as_mut_slice() else { unreachable!() };
    fold_early(x).unwrap();
    x.ok(&["volume", "create", "orphaned"]).unwrap();
    let at = x.mount("orphaned").unwrap();
    // Past the first seconds, in which a keeper leaves a volume alone.
    wait_for_copy(y, "orphaned", 1).unwrap();
    for n in 0..300u32 {
        std::fs::write(at.join(n.to_string()), small(n * 3)).unwrap();
    }
    // The writer is killed as soon as its checkpoint is committed, mostly before the keeper looks for it.
    x.wait_until("a checkpoint that the keeper heard of", |status| {
        let said = std::fs::read_to_string(x.log()).unwrap_or_default();
        let here = volume(status, "orphaned").map(|volume| &volume["here"]);
        said.contains("checkpoint tree=") && here.is_some_and(|here| here["lag_commits"] == 0)
    })
    .unwrap();
    x.kill().unwrap();
    y.wait_until("a complete copy with a tree of its own", |status| {
        let copy = volume(status, "orphaned").map(|volume| &volume["copy"]);
        copy.is_some_and(|copy| copy["complete"] == true && copy["trees_made"].as_u64() > Some(0))
    })
    .unwrap();
    // What a killed daemon leaves mounted, and nobody starts it again to clear it up.
    let inner = std::fs::read_dir(x.data().join("mnt")).unwrap().map(|entry| entry.unwrap().path());
    for dead in std::iter::once(at).chain(inner) {
        let _dead = rustix::mount::unmount(&dead, rustix::mount::UnmountFlags::DETACH);
    }
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
