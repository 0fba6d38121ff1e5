//! Files without which a node must not run: a clear error that names the file, and nothing changed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::hostile::Cases;
use crate::hostile::disk::{Filled, check_unchanged, files, flip, short_life, truth};

/// What is done to the data directory.
type Damage = fn(&Path) -> Result<()>;

/// A case: what is done, and which file the message has to name.
const FATAL: [(&str, &str, Damage); 18] = [
    ("node.key: garbage", "node.key", |d| write(d, "node.key", b"garbage")),
    ("node.key: empty", "node.key", |d| write(d, "node.key", b"")),
    ("node.key: one bit", "node.key", |d| flip(&d.join("node.key"), 60)),
    ("node.key: of a newer version", "node.key", |d| edit(d, "node.key", "key 1 ", "key 9 ")),
    ("node.key: mode 0644", "node.key", |d| mode(d, "node.key", 0o644)),
    ("node.key: mode 0640", "node.key", |d| mode(d, "node.key", 0o640)),
    ("cluster.key: garbage", "cluster.key", |d| write(d, "cluster.key", b"garbage")),
    ("cluster.key: no text", "cluster.key", |d| write(d, "cluster.key", b"\xff\xfe")),
    ("cluster.key: one digit", "cluster.key", |d| flip(&d.join("cluster.key"), 40)),
    ("cluster.key: mode 0644", "cluster.key", |d| mode(d, "cluster.key", 0o644)),
    ("member.cert: garbage", "member.cert", |d| write(d, "member.cert", b"\0garbage")),
    ("member.cert: one bit", "member.cert", |d| flip(&d.join("member.cert"), 100)),
    ("config.toml: garbage", "config.toml", |d| write(d, "config.toml", b"\0\x01\x02")),
    ("config.toml: unknown key", "config.toml", |d| edit(d, "config.toml", "zone", "zoom")),
    ("config.toml: wrong value", "config.toml", |d| {
        edit(d, "config.toml", "/ip4/127.0.0.1", "/ip4/localhost")
    }),
    ("tickets: garbage", "tickets", |d| write(d, "tickets", b"garbage")),
    ("registry: one bit of an entry", ".seg", |d| flip(&registry(d)?, 4096 + 200)),
    ("registry: one bit of its head", ".seg", |d| flip(&registry(d)?, 20)),
];

pub(super) fn run(cases: &mut Cases, dir: &Path) -> Result<()> {
    let filled = Filled::make(dir)?;
    for (at, (what, file, damage)) in FATAL.iter().enumerate() {
        let node = filled.copy(dir, &format!("case{at}"))?;
        damage(node.data()).with_context(|| format!("{what}: the damage cannot be done"))?;
        let before = truth(node.data())?;
        let out = short_life(&node).context(*what)?;
        cases.refused(what, &out, 7, &[file])?;
        check_unchanged(what, &before, node.data())?;
        std::fs::remove_dir_all(node.data())?;
    }
    missing(cases, &filled, dir)
}

/// A file that is gone is no damage: there is no node, or it lost its key.
fn missing(cases: &mut Cases, filled: &Filled, dir: &Path) -> Result<()> {
    for (file, words) in
        [("config.toml", "remora init"), ("node.key", "backup"), ("member.cert", "remora init")]
    {
        let what = format!("{file}: gone");
        let node = filled.copy(dir, &format!("without-{file}"))?;
        std::fs::remove_file(node.data().join(file))?;
        let before = truth(node.data())?;
        let out = short_life(&node).context(what.clone())?;
        cases.refused(&what, &out, 6, &[words])?;
        check_unchanged(&what, &before, node.data())?;
    }
    Ok(())
}

fn write(data: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    std::fs::write(data.join(name), bytes).context("write")
}

fn mode(data: &Path, name: &str, mode: u32) -> Result<()> {
    std::fs::set_permissions(data.join(name), std::fs::Permissions::from_mode(mode)).context("chmod")
}

fn edit(data: &Path, name: &str, from: &str, to: &str) -> Result<()> {
    let path = data.join(name);
    let text = std::fs::read_to_string(&path)?;
    let edited = text.replacen(from, to, 1);
    anyhow::ensure!(edited != text, "{name} does not hold {from:?}");
    std::fs::write(path, edited).context("write")
}

fn registry(data: &Path) -> Result<std::path::PathBuf> {
    files(&data.join("registry"), "seg")?.pop().context("the registry has no segment")
}
