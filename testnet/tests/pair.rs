//! Two hosts: the one that wrote last goes on while the other is away, and the other catches up. Needs root and FUSE.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remora_testnet::exe;
use remora_testnet::nodes::Node;

fn wait_for(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < Duration::from_secs(60), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all().context("fsync")
}

/// A loopback address that a daemon has again after its restart: a host that was away finds the other where it was.
fn address() -> Result<String> {
    let free = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    Ok(format!("/ip4/127.0.0.1/tcp/{free}"))
}

/// Two running hosts that know each other, each at an address that stays.
fn pair(dir: &Path) -> Result<[Node; 2]> {
    let (mut x, mut y) = (Node::place(dir, "x"), Node::place(dir, "y"));
    x.ok(&["init", "--name", "x", "--listen", &address()?])?;
    x.start()?;
    y.ok(&["join", x.ok(&["ticket"])?.trim(), "--name", "y", "--listen", &address()?])?;
    y.start()?;
    wait_for("the first meeting", || are_met(&y))?;
    Ok([x, y])
}

fn are_met(node: &Node) -> Result<bool> {
    Ok(node.json(&["status"])?["connected"] == serde_json::json!(1))
}

#[test]
fn of_two_hosts_the_last_writer_mounts_again_alone_and_the_other_catches_up() -> Result<()> {
    exe::choose(Path::new(env!("CARGO_BIN_EXE_remora-testnet")));
    exe::check_fuse()?;
    let dir = exe::scratch("pair")?;
    let [mut x, mut y] = pair(dir.path())?;
    x.ok(&["volume", "create", "v", "--replicas", "2"])?;
    let at = x.mount("v")?;
    put(&at.join("first"), "both are up")?;
    let is_whole = |node: &Node| {
        Ok(node.json(&["volume", "inspect", "v"])?["copy"]["complete"] == serde_json::json!(true))
    };
    wait_for("the copy on y", || is_whole(&y))?;
    ensure!(x.json(&["volume", "inspect", "v"])?["keepers"].as_array().map(Vec::len) == Some(2));

    // The peer is gone, and this host crashes.
    y.kill()?;
    put(&at.join("second"), "y is gone")?;
    x.kill()?;
    x.start()?;
    wait_for("the mount after a crash", || Ok(at.join("second").exists()))?;
    ensure!(fs::read_to_string(at.join("second"))? == "y is gone");
    put(&at.join("third"), "x is back alone")?;

    // It stops in good order, and comes back alone again.
    x.stop()?;
    x.start()?;
    wait_for("the mount after a stop", || Ok(at.join("third").exists()))?;
    put(&at.join("fourth"), "and again")?;

    // The peer comes back, is told what became of the volume, and can have it.
    y.start()?;
    wait_for("the members to meet", || are_met(&y))?;
    x.unmount(&at)?;
    let there = y.mount("v")?;
    for (name, text) in [
        ("first", "both are up"),
        ("second", "y is gone"),
        ("third", "x is back alone"),
        ("fourth", "and again"),
    ] {
        ensure!(fs::read_to_string(there.join(name))? == text, "{name} on y");
    }
    put(&there.join("fifth"), "from y")?;
    y.unmount(&there)?;

    // Now y wrote last: x must not go on without it.
    y.stop()?;
    let refused = x.run(&["volume", "mount", "v", &at.to_string_lossy()])?;
    ensure!(!refused.status.success(), "x may lack the newest data");
    Ok(())
}
