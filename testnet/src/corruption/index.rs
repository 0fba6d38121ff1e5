//! The index is disposable: whatever becomes of it while the daemon is down, everything is back after the start.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compare::{Manifest, differences, manifest};
use crate::corruption::scene::{body, copy, copy_dir, write_synced};
use crate::hostile::disk::all_files;
use crate::nodes::Node;
use crate::report::Report;

/// Files of the volume and blocks added beside it.
const N_FILES: u64 = 120;
const N_ADDED: u64 = 40;

/// What is done to the index in a data directory.
type Damage<'a> = Box<dyn Fn(&Path) -> Result<()> + 'a>;

pub(super) fn run(report: &mut Report, dir: &Path, rounds: u64, seed: u64) -> Result<()> {
    let whole = Whole::make(dir, "whole", 1)?;
    let other = Whole::make(dir, "other", 2)?;
    for (at, (what, damage)) in damages(&other.node, rounds, seed).into_iter().enumerate() {
        report.step(&format!("index {what}"), 0, |_| {
            let mut node = copy(&whole.node, dir, &format!("copy{at}"))?;
            damage(&node.data().join("index")).context("do the damage")?;
            node.start()?;
            let n_blocks = whole.check(&mut node)?;
            // The same after a crash: nothing marks the index as whole then.
            node.kill()?;
            damage_again(&node, at as u64 ^ seed)?;
            node.start()?;
            whole.check(&mut node).context("after kill -9 and random bits")?;
            node.stop()?;
            std::fs::remove_dir_all(node.data())?;
            anyhow::Ok(format!(
                "everything is there, {n_blocks} blocks verified; again after kill -9 and random bits"
            ))
        })?;
    }
    Ok(())
}

fn damages<'a>(other: &'a Node, rounds: u64, seed: u64) -> Vec<(String, Damage<'a>)> {
    let gone = |index: &Path| Ok(std::fs::remove_dir_all(index)?);
    let mut all: Vec<(String, Damage<'a>)> = vec![
        ("gone".into(), Box::new(gone)),
        ("without its mark".into(), Box::new(|index| Ok(std::fs::remove_file(index.join("mark"))?))),
        ("without its tables".into(), Box::new(|index| Ok(std::fs::remove_dir_all(index.join("tables"))?))),
        ("of empty files".into(), Box::new(|index| change(index, &mut Vec::clear))),
        (
            "of half files".into(),
            Box::new(|index| change(index, &mut |bytes| bytes.truncate(bytes.len() / 2))),
        ),
        ("of zeros".into(), Box::new(|index| change(index, &mut |bytes| bytes.fill(0)))),
        (
            "a file in its place".into(),
            Box::new(|index| {
                std::fs::remove_dir_all(index)?;
                Ok(std::fs::write(index, "in the way")?)
            }),
        ),
        (
            "of another host".into(),
            Box::new(|index| {
                std::fs::remove_dir_all(index)?;
                copy_dir(&other.data().join("index"), index)
            }),
        ),
    ];
    for round in 0..rounds {
        let damage =
            move |index: &Path| random_bits(&index.join("tables"), seed ^ round << 20, 1 << (2 * round % 12));
        all.push((format!("with {} random bits turned", 1 << (2 * round % 12)), Box::new(damage)));
    }
    all
}

/// Changes every file.
fn change(dir: &Path, how: &mut dyn FnMut(&mut Vec<u8>)) -> Result<()> {
    for path in all_files(dir)? {
        let mut bytes = std::fs::read(&path)?;
        how(&mut bytes);
        std::fs::write(&path, bytes)?;
    }
    Ok(())
}

/// Turns bits over where something is written.
fn random_bits(dir: &Path, seed: u64, n: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut n_turned = 0;
    change(dir, &mut |bytes| {
        let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        for _ in 0..if used.is_empty() { 0 } else { n } {
            bytes[used[rng.random_range(0..used.len())]] ^= 1 << rng.random_range(0..8u32);
            n_turned += 1;
        }
    })?;
    ensure!(n_turned > 0, "{} holds nothing to turn", dir.display());
    Ok(())
}

fn damage_again(node: &Node, seed: u64) -> Result<()> {
    random_bits(&node.data().join("index/tables"), seed, 64)
}

/// A node that is whole and stopped, and what is on it.
struct Whole {
    node: Node,
    files: Manifest,
    /// Added files by CID.
    added: Vec<(String, Vec<u8>)>,
}

impl Whole {
    fn make(dir: &Path, name: &str, salt: u64) -> Result<Whole> {
        let mut node = Node::init(dir, name)?;
        node.start()?;
        node.ok(&["volume", "create", "v"])?;
        let mount = node.mount("v")?;
        for file in 0..N_FILES {
            // Some in the log, some as blocks.
            let bytes = if file % 20 == 0 { 1 << 20 } else { 100 + 97 * file as usize };
            write_synced(&mount.join(format!("f{file}")), &body(salt << 32 | file, bytes))?;
        }
        let files = manifest(&mount, &|_| {})?;
        node.unmount(&mount)?;
        let mut added = Vec::new();
        for file in 0..N_ADDED {
            let (path, bytes) = (dir.join("content"), body(salt << 33 | file, 3000));
            std::fs::write(&path, &bytes)?;
            added.push((node.ok(&["add", "-q", &path.display().to_string()])?.trim().to_owned(), bytes));
        }
        node.stop()?;
        Ok(Whole { node, files, added })
    }

    /// Everything is on the running node as it was made; answers how many blocks it has.
    fn check(&self, node: &mut Node) -> Result<u64> {
        for (cid, bytes) in &self.added {
            let out = node.run(&["cat", cid])?;
            let words = String::from_utf8_lossy(&out.stderr).into_owned();
            ensure!(out.status.success() && out.stdout == *bytes, "{cid} is not what was added: {words}");
        }
        let mount = node.mount("v")?;
        let changed = differences(&self.files, &manifest(&mount, &|_| {})?, 5);
        ensure!(changed.is_empty(), "the volume is another one:\n{}", changed.join("\n"));
        node.unmount(&mount)?;
        let verified = node.json(&["store", "verify"])?;
        verified["blocks"].as_u64().context("verify tells no number of blocks")
    }
}
