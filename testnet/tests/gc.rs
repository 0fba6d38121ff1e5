//! Space of what was deleted comes back, and nothing else goes.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remora_testnet::nodes::{Node, cluster};
use remora_testnet::workload::noise_file;
use remora_testnet::{compare, exe};

const MIB: u64 = 1 << 20;

/// Two nodes whose stores give up at once what nothing refers to.
fn eager_pair(dir: &Path) -> Result<Vec<Node>> {
    let mut nodes = cluster(dir, &["x", "y"])?;
    for node in &mut nodes {
        node.stop()?;
        let path = node.data().join("config.toml");
        let config = std::fs::read_to_string(&path)?;
        ensure!(config.contains("gc_grace_secs = 600"), "{config}");
        std::fs::write(&path, config.replace("gc_grace_secs = 600", "gc_grace_secs = 1"))?;
        node.start()?;
        // One after the other: ports change at every start, and the one that stays up is found by its old one.
        node.wait_until("the other is connected", |status| status["connected"] == 1)?;
    }
    Ok(nodes)
}

fn pack_bytes(node: &Node) -> Result<u64> {
    node.json(&["store", "stat"])?["bytes"].as_u64().context("no bytes")
}

/// Asks for a collection until the packs are below `bytes`: before, a checkpoint has to let go of the log that still refers to them.
fn collect_until(node: &Node, bytes: u64) -> Result<()> {
    let began = Instant::now();
    let mut said = String::new();
    while pack_bytes(node)? >= bytes {
        ensure!(
            began.elapsed() < Duration::from_secs(100),
            "{} bytes are still there: {said}",
            pack_bytes(node)?
        );
        // Refused while copies are brought here; that ends.
        let out = node.run(&["store", "gc"])?;
        said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

#[test]
fn deleted_files_give_their_space_back_on_every_keeper_and_what_is_left_is_whole() -> Result<()> {
    exe::choose(Path::new(env!("CARGO_BIN_EXE_remora-testnet")));
    exe::check_fuse()?;
    let dir = exe::scratch("gc")?;
    let mut nodes = eager_pair(dir.path())?;
    let [x, y] = nodes.as_mut_slice() else { anyhow::bail!("two names make two nodes") };
    let added = dir.path().join("added");
    noise_file(&added, 3 * MIB, 5, &|_| ())?;
    let cid = x.ok(&["add", "-q", &added.display().to_string()])?;
    x.ok(&["volume", "create", "v", "--replicas", "2"])?;
    let at = x.mount("v")?;
    noise_file(&at.join("kept"), 40 * MIB, 1, &|_| ())?;
    for n in 0..3 {
        noise_file(&at.join(format!("big{n}")), 300 * MIB, 10 + n, &|_| ())?;
    }
    noise_file(&at.join("kept too"), 40 * MIB, 2, &|_| ())?;
    let before = compare::manifest(&at, &|_| ())?;
    ensure!(pack_bytes(x)? > 900 * MIB, "the files are in packs");
    for n in 0..3 {
        std::fs::remove_file(at.join(format!("big{n}")))?;
    }
    File::open(&at)?.sync_all()?;
    let left = 380 * MIB;
    collect_until(x, left)?;
    collect_until(y, left)?;
    let check = |at: &Path| -> Result<()> {
        let now = compare::manifest(at, &|_| ())?;
        for (path, was) in before.iter().filter(|(path, _)| path.to_string_lossy().starts_with("kept")) {
            ensure!(now.get(path) == Some(was), "{path:?} has changed");
        }
        ensure!(now.len() == 3, "the root and two files: {:?}", now.keys());
        Ok(())
    };
    check(&at)?;
    let out = dir.path().join("out");
    x.ok(&["get", cid.trim(), "-o", &out.display().to_string()])?;
    ensure!(std::fs::read(&out)? == std::fs::read(&added)?, "what was added has changed");
    // The same from the packs alone, by a node that lost its index, and by the other keeper.
    x.kill()?;
    std::fs::remove_dir_all(x.data().join("index"))?;
    x.start()?;
    let began = Instant::now();
    while !at.join("kept").exists() {
        ensure!(began.elapsed() < Duration::from_secs(40), "the mount did not come back: {}", x.last_words());
        std::thread::sleep(Duration::from_millis(20));
    }
    check(&at)?;
    ensure!(x.ok(&["store", "verify"]).is_ok(), "the store is sound");
    x.unmount(&at)?;
    let at = y.mount("v")?;
    check(&at)?;
    y.unmount(&at)?;
    Ok(())
}
