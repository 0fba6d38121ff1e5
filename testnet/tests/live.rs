//! Whole nodes, as users run them: processes, a real network, real mounts. Needs root and FUSE.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use remora_testnet::compare::{differences, manifest};
use remora_testnet::ledger::{Writer, read_records};
use remora_testnet::nodes::{Node, cluster};
use remora_testnet::{exe, workload};
use sha2::{Digest, Sha256};

/// A scratch directory, once the program under test is chosen and can mount.
fn rig(name: &str) -> Result<tempfile::TempDir> {
    exe::choose(Path::new(env!("CARGO_BIN_EXE_remora-testnet")));
    exe::check_fuse()?;
    exe::scratch(name)
}

fn one(dir: &Path) -> Result<Node> {
    cluster(dir, &["solo"])?.pop().context("one name makes one node")
}

/// The bytes that the recipe of the public test vectors makes of a seed.
fn recipe(seed: &str, bytes: usize) -> Vec<u8> {
    let mut stream = ChaCha20Rng::from_seed(Sha256::digest(seed).into());
    let mut made = vec![0; bytes];
    stream.fill_bytes(&mut made);
    made
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn wait_for(path: &Path) -> Result<()> {
    let began = Instant::now();
    while !path.exists() {
        ensure!(began.elapsed() < Duration::from_secs(15), "{} did not come back", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn three_nodes_form_a_cluster_and_know_one_another() -> Result<()> {
    let dir = rig("peers")?;
    let nodes = cluster(dir.path(), &["alpha", "beta", "gamma"])?;
    for node in &nodes {
        let peers = node.json(&["peers"])?;
        let peers = peers.as_array().context("a list of peers")?;
        let mut names: Vec<&str> = peers.iter().filter_map(|p| p["name"].as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["alpha", "beta", "gamma"]);
        let others = peers.iter().filter(|p| p["this_host"] == false);
        assert!(
            others.clone().count() == 2 && others.into_iter().all(|p| p["connected"] == true),
            "{peers:?}"
        );
    }
    Ok(())
}

#[test]
fn a_volume_is_the_same_on_the_host_it_goes_to() -> Result<()> {
    let dir = rig("handoff")?;
    let mut nodes = cluster(dir.path(), &["from", "to"])?;
    let [from, to] = nodes.as_mut_slice() else { unreachable!("two names make two nodes") };
    from.ok(&["volume", "create", "v"])?;
    let at = from.mount("v")?;
    workload::odd_tree(&at.join("odd"))?;
    // The sparse file's 5 GiB are not worth reading twice here.
    File::options().write(true).open(at.join("odd/sparse"))?.set_len(3 << 20)?;
    workload::noise_file(&at.join("noise"), 5 << 20, 3, &|_| {})?;
    let before = manifest(&at, &|_| {})?;
    from.unmount(&at)?;
    to.wait_until("the volume is known", |s| s["volumes"].as_array().is_some_and(|v| v.len() == 1))?;
    let at = to.mount("v")?;
    let found = differences(&before, &manifest(&at, &|_| {})?, 9);
    assert!(found.is_empty(), "{found:#?}");
    to.unmount(&at)
}

#[test]
fn a_daemon_whose_log_cannot_be_written_works_on() -> Result<()> {
    let dir = rig("mute")?;
    let mut node = one(dir.path())?;
    node.stop()?;
    std::fs::remove_file(node.log())?;
    std::os::unix::fs::symlink("/dev/full", node.log())?;
    node.start()?;
    node.ok(&["volume", "create", "v"])?;
    let at = node.mount("v")?;
    std::fs::write(at.join("f"), "unheard")?;
    File::open(at.join("f"))?.sync_all()?;
    node.kill()?;
    node.start()?;
    let at = node.mount("v")?;
    assert_eq!(std::fs::read(at.join("f"))?, b"unheard");
    node.unmount(&at)
}

#[test]
fn a_held_volume_is_refused_and_the_holder_named() -> Result<()> {
    let dir = rig("held")?;
    let mut nodes = cluster(dir.path(), &["holder", "other"])?;
    let [holder, other] = nodes.as_mut_slice() else { unreachable!("two names make two nodes") };
    holder.ok(&["volume", "create", "v"])?;
    let at = holder.mount("v")?;
    std::fs::write(at.join("f"), "held")?;
    other.wait_until("the volume is known", |s| s["volumes"].as_array().is_some_and(|v| v.len() == 1))?;
    let place = dir.path().join("refused");
    std::fs::create_dir(&place)?;
    let out = other.run(&["volume", "mount", "v", &text(&place)])?;
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(5), "{said}");
    assert!(said.contains("holder") && said.contains("volume unmount"), "{said}");
    assert_eq!(std::fs::read_dir(&place)?.count(), 0);
    assert_eq!(std::fs::read(at.join("f"))?, b"held");
    holder.unmount(&at)
}

#[test]
fn acknowledged_records_survive_kill_9() -> Result<()> {
    let dir = rig("kill")?;
    let mut node = one(dir.path())?;
    node.ok(&["volume", "create", "ledger"])?;
    let file = node.mount("ledger")?.join("records");
    let mut records = 0;
    for _round in 0..2 {
        let writer = Writer::start(&file, records)?;
        let began = Instant::now();
        while writer.acknowledged() < records + 60 {
            ensure!(began.elapsed() < Duration::from_secs(20), "the writer is stuck: {}", node.last_words());
            std::thread::sleep(Duration::from_millis(1));
        }
        node.kill()?;
        let acknowledged = writer.finish()?;
        node.start()?;
        wait_for(&file)?;
        records = read_records(&file)?;
        assert!(records >= acknowledged, "{acknowledged} were acknowledged, {records} are there");
    }
    Ok(())
}

/// Directories in directories, links, an empty file and one of several blocks.
fn tree(into: &Path) -> Result<()> {
    std::fs::create_dir_all(into.join("a/b/c"))?;
    std::fs::create_dir(into.join("empty"))?;
    std::fs::write(into.join("hello"), "hello world")?;
    std::fs::write(into.join("a/b/c/deep"), "deep\n")?;
    std::fs::write(into.join("a/nothing"), "")?;
    std::fs::write(into.join("a/big"), recipe("live/big", 3 << 20))?;
    std::os::unix::fs::symlink("a/b/c/deep", into.join("link"))?;
    std::os::unix::fs::symlink("/not/there", into.join("a/dangling"))?;
    Ok(())
}

/// Digest of a file's content, target of a link; neither for a directory.
type Content = (Option<[u8; 32]>, Option<Vec<u8>>);

/// Paths with what is there.
fn content(root: &Path) -> Result<BTreeMap<PathBuf, Content>> {
    let found = manifest(root, &|_| {})?;
    Ok(found.into_iter().map(|(path, seen)| (path, (seen.sha256, seen.target))).collect())
}

#[test]
fn what_is_added_is_listed_shown_and_written_back() -> Result<()> {
    let dir = rig("add")?;
    let node = one(dir.path())?;
    let source = dir.path().join("source");
    std::fs::create_dir(&source)?;
    tree(&source)?;
    let cid = node.ok(&["add", "-q", &text(&source)])?.trim().to_owned();
    let listed = node.json(&["ls", &cid])?;
    let names: Vec<&str> =
        listed.as_array().context("a list")?.iter().filter_map(|entry| entry["name"].as_str()).collect();
    assert_eq!(names, ["a", "empty", "hello", "link"]);
    assert_eq!(node.ok(&["cat", &format!("{cid}/a/b/c/deep")])?, "deep\n");
    let big = node.run(&["cat", &format!("{cid}/a/big")])?.stdout;
    assert!(big == recipe("live/big", 3 << 20), "3 MiB come back as other {} bytes", big.len());
    let stat = node.json(&["stat", &format!("{cid}/a/big")])?;
    assert_eq!((stat["size"].as_u64(), stat["local"].as_bool()), (Some(3 << 20), Some(true)), "{stat}");
    let back = dir.path().join("back");
    node.ok(&["get", &cid, "-o", &text(&back)])?;
    assert_eq!(content(&back)?, content(&source)?);
    assert_eq!(node.ok(&["add", "-q", &text(&back)])?.trim(), cid, "the same tree has another CID");
    Ok(())
}

#[test]
fn cids_are_those_that_other_implementations_print() -> Result<()> {
    let dir = rig("cids")?;
    let node = one(dir.path())?;
    let agreed = [
        (b"hello world".to_vec(), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"),
        (recipe("golden/m2", 2 << 20), "bafybeiatybwzom4fposxxyb5mf2f3ht5wqcju6i7cfpthmtymqdwlihjii"),
        (recipe("golden/m10", 10 << 20), "bafybeic572tfsezvnnfewm7rs6axeznsl2j6za334tzyr4ag2ripg2uitm"),
    ];
    for (bytes, cid) in agreed {
        let file = dir.path().join("file");
        std::fs::write(&file, &bytes)?;
        assert_eq!(node.ok(&["add", "-q", &text(&file)])?.trim(), cid);
    }
    let files = dir.path().join("files");
    std::fs::create_dir_all(files.join("foo"))?;
    std::fs::create_dir(files.join("bar"))?;
    std::fs::write(files.join("foo/baz"), "some text\n")?;
    std::os::unix::fs::symlink("files/foo/baz", files.join("bar/baz"))?;
    std::os::unix::fs::symlink("files/does/not/exist", files.join("bad"))?;
    let cid = node.ok(&["add", "-q", &text(&files)])?;
    assert_eq!(cid.trim(), "bafybeibyhlx64cklod6isy3h7tsmr4qvam3ae3b74n3hfes5bythjrwyua");
    Ok(())
}

#[test]
fn content_of_another_node_is_fetched() -> Result<()> {
    let dir = rig("fetch")?;
    let nodes = cluster(dir.path(), &["has", "wants"])?;
    let [has, wants] = nodes.as_slice() else { unreachable!("two names make two nodes") };
    let source = dir.path().join("source");
    std::fs::create_dir(&source)?;
    tree(&source)?;
    let cid = has.ok(&["add", "-q", &text(&source)])?.trim().to_owned();
    let before = wants.json(&["store", "stat"])?["blocks"].as_u64();
    let back = dir.path().join("back");
    wants.ok(&["get", &cid, "-o", &text(&back)])?;
    assert_eq!(content(&back)?, content(&source)?);
    let after = wants.json(&["store", "stat"])?["blocks"].as_u64();
    assert!(after > before, "nothing of it was kept: {before:?}, {after:?}");
    let out = wants.run(&["cat", "bafkreigks6arfsq3xxfpvqrrwonchxcnu6do76auprhhfomao6c273sixm"])?;
    assert_eq!(out.status.code(), Some(4), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

#[test]
fn mounts_come_back_with_the_daemon_until_they_are_unmounted() -> Result<()> {
    let dir = rig("restore")?;
    let mut node = one(dir.path())?;
    for volume in ["kept", "gone"] {
        node.ok(&["volume", "create", volume])?;
        let at = node.mount(volume)?;
        std::fs::write(at.join("f"), volume)?;
    }
    let (kept, gone) = (node.data().with_extension("mnt-kept"), node.data().with_extension("mnt-gone"));
    node.unmount(&gone)?;
    node.stop()?;
    assert!(!kept.join("f").exists(), "a stopped daemon left a mount");
    node.start()?;
    wait_for(&kept.join("f"))?;
    assert_eq!(std::fs::read(kept.join("f"))?, b"kept");
    assert!(!gone.join("f").exists(), "an unmounted volume came back");
    node.unmount(&kept)
}

#[test]
fn a_directory_in_use_is_not_unmounted() -> Result<()> {
    let dir = rig("busy")?;
    let mut node = one(dir.path())?;
    node.ok(&["volume", "create", "v"])?;
    let at = node.mount("v")?;
    let mut open = File::create(at.join("f"))?;
    let out = node.run(&["volume", "unmount", &text(&at)])?;
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(5), "{said}");
    assert!(said.contains("in use") && said.contains("fuser"), "{said}");
    open.write_all(b"goes on")?;
    open.sync_all()?;
    drop(open);
    node.unmount(&at)?;
    let at = node.mount("v")?;
    assert_eq!(std::fs::read(at.join("f"))?, b"goes on");
    node.unmount(&at)
}

#[test]
fn a_read_only_mount_refuses_writes() -> Result<()> {
    let dir = rig("read-only")?;
    let mut node = one(dir.path())?;
    node.ok(&["volume", "create", "v"])?;
    let at = node.mount("v")?;
    std::fs::write(at.join("f"), "one")?;
    let shown = dir.path().join("shown");
    std::fs::create_dir(&shown)?;
    node.ok(&["volume", "mount", "v", &text(&shown), "--read-only"])?;
    let refused = [
        std::fs::write(shown.join("f"), "two").err(),
        std::fs::write(shown.join("new"), "two").err(),
        std::fs::remove_file(shown.join("f")).err(),
        std::fs::create_dir(shown.join("d")).err(),
    ];
    for error in refused {
        assert_eq!(error.and_then(|e| e.raw_os_error()), Some(libc::EROFS));
    }
    std::fs::write(at.join("f"), "two")?;
    assert_eq!(std::fs::read(shown.join("f"))?, b"two");
    node.ok(&["volume", "unmount", &text(&shown)])?;
    node.unmount(&at)
}

#[test]
fn two_directories_of_one_volume_show_the_same_at_once() -> Result<()> {
    let dir = rig("coherent")?;
    let mut node = one(dir.path())?;
    node.ok(&["volume", "create", "v"])?;
    let first = node.mount("v")?;
    let second = dir.path().join("second");
    std::fs::create_dir(&second)?;
    node.ok(&["volume", "mount", "v", &text(&second)])?;
    for round in 0..50 {
        let (here, there) = if round % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let body = format!("round {round}");
        std::fs::write(here.join("f"), &body)?;
        assert_eq!(std::fs::read_to_string(there.join("f"))?, body);
        std::fs::rename(there.join("f"), there.join(format!("f{round}")))?;
        assert!(!here.join("f").exists() && here.join(format!("f{round}")).exists());
    }
    let lock = File::create(first.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    let other = File::open(second.join("lock"))?;
    let taken = rustix::fs::flock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    assert_eq!(taken, Err(rustix::io::Errno::WOULDBLOCK), "two directories have two locks");
    drop((lock, other));
    // The volume is given back with its last directory, not before.
    node.unmount(&first)?;
    assert_eq!(std::fs::read_to_string(second.join("f0"))?, "round 0");
    node.ok(&["volume", "unmount", &text(&second)])?;
    let state = node.json(&["volume", "inspect", "v"])?;
    assert!(state["here"].is_null() && state["holder"].is_null(), "{state}");
    Ok(())
}
