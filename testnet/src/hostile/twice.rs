//! Two daemons where one belongs, and none where one is needed.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::hostile::{Cases, check_alive};
use crate::nodes::Node;

pub(super) fn run(cases: &mut Cases, dir: &Path) -> Result<()> {
    let mut node = Node::init(dir, "solo")?;
    let out = node.run(&["status"])?;
    cases.refused("status without a daemon", &out, 3, &["remora daemon"])?;
    let nobody = Node::place(dir, "nobody");
    let out = nobody.run(&["daemon", "--docker-plugin", "off"])?;
    cases.refused("daemon without init", &out, 6, &["remora init"])?;
    ensure!(!nobody.data().exists(), "a refused daemon made {}", nobody.data().display());
    let out = node.run(&["init", "--name", "again"])?;
    cases.refused("init, twice", &out, 6, &["already"])?;
    let out = Node::place(dir, "odd").run(&["init", "--name", "a/b"])?;
    cases.refused("init with a name that is a path", &out, 2, &["name"])?;
    let out = Node::place(dir, "deaf").run(&["init", "--listen", "localhost:80"])?;
    cases.refused("init with a wrong address", &out, 2, &["listen"])?;
    node.start()?;
    let pid = node.pid();
    let out = node.run(&["daemon", "--docker-plugin", "off"])?;
    let holder = pid.map_or_else(String::new, |pid| pid.to_string());
    cases.refused("a second daemon on the same data", &out, 5, &["in use", &holder])?;
    let out = node.run(&["init", "--name", "again"])?;
    cases.refused("init under a running daemon", &out, 5, &["in use"])?;
    let other = Node::init(dir, "other")?;
    let taken = node.data().join("api.sock").display().to_string();
    let out = other.run(&["daemon", "--docker-plugin", "off", "--api", &taken])?;
    cases.refused("a daemon on another one's API socket", &out, 5, &["already"])?;
    let out = other.run(&["daemon", "--docker-plugin", "relative/path"])?;
    cases.refused("daemon with a relative plugin socket", &out, 2, &["docker_plugin"])?;
    check_alive(&node, pid)?;
    node.stop()
}
