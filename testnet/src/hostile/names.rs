//! Names and options that a user may type.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::hostile::{Cases, check_alive};
use crate::nodes::Node;

/// Names no volume can have.
pub(super) fn bad_names() -> Vec<(&'static str, String)> {
    vec![
        ("../x", "../x".into()),
        ("a b", "a b".into()),
        ("300 characters", "x".repeat(300)),
        ("nothing", String::new()),
        ("..", "..".into()),
        ("an absolute path", "/etc/passwd".into()),
        ("control characters", "a\u{1b}[2Jb".into()),
    ]
}

pub(super) fn run(cases: &mut Cases, dir: &Path) -> Result<()> {
    let mut node = Node::init(dir, "solo")?;
    node.start()?;
    let pid = node.pid();
    for (what, name) in bad_names() {
        let out = node.run(&["volume", "create", "--", &name])?;
        cases.refused(&format!("volume create, name: {what}"), &out, 2, &["volume name"])?;
        for command in [["volume", "inspect", "--"], ["volume", "rm", "--"]] {
            let code = node.run(&[command.as_slice(), &[name.as_str()]].concat())?.status.code();
            ensure!(code == Some(4) || code == Some(2), "{command:?} of {what} ended with {code:?}");
        }
    }
    options(cases, &node)?;
    places(cases, &node, dir)?;
    let volumes = node.json(&["volume", "ls"])?;
    ensure!(volumes.as_array().is_some_and(|v| v.len() == 1), "something was created: {volumes}");
    check_alive(&node, pid)?;
    node.stop()
}

fn options(cases: &mut Cases, node: &Node) -> Result<()> {
    let wrong: [(&[&str], &str); 5] = [
        (&["--size", "lots"], "size"),
        (&["--mode", "999"], "mode"),
        (&["--replicas", "200"], "replicas"),
        (&["--replicas", "0"], "replicas"),
        (&["--durability", "hope"], "durability"),
    ];
    for (option, word) in wrong {
        let out = node.run(&[&["volume", "create", "v"], option].concat())?;
        cases.refused(&format!("volume create {}", option.join(" ")), &out, 2, &[word])?;
    }
    node.ok(&["volume", "create", "v"])?;
    let out = node.run(&["volume", "create", "v"])?;
    cases.refused("volume create, twice", &out, 5, &["already"])
}

fn places(cases: &mut Cases, node: &Node, dir: &Path) -> Result<()> {
    let file = dir.join("file");
    std::fs::write(&file, "not a directory")?;
    let nowhere = dir.join("nowhere").display().to_string();
    let out = node.run(&["volume", "mount", "v", &nowhere])?;
    cases.refused("volume mount on nothing", &out, 1, &["nowhere"])?;
    let out = node.run(&["volume", "mount", "v", &file.display().to_string()])?;
    cases.refused("volume mount on a file", &out, 2, &["no directory"])?;
    let out = node.run(&["volume", "unmount", &nowhere])?;
    cases.refused("volume unmount of nothing", &out, 4, &["nowhere"])?;
    let holder = node.json(&["volume", "inspect", "v"])?;
    ensure!(holder["here"].is_null(), "a refused mount left the volume open: {holder}");
    let out = node.run(&["cat", "bafynonsense"])?;
    cases.refused("cat of no CID", &out, 2, &["bafynonsense"])?;
    let out = node.run(&["add", &nowhere])?;
    cases.refused("add of nothing", &out, 1, &["nowhere"])
}
