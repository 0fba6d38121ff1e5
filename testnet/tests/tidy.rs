//! The rules of the house as tests: what docs/CONTRIBUTING.md says about the repository, checked on the repository.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on says why and ends")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of the longest file.
const FILE_LINES_MAX: usize = 800;
/// Lines that 95 of 100 files stay under.
const FILE_LINES_P95: usize = 500;
/// Lines of the longest function.
const FUNCTION_LINES_MAX: usize = 80;
/// Words that say nothing about what a file holds.
const EMPTY_WORDS: [&str; 6] = ["util", "common", "helper", "misc", "manager", "base"];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("testnet lies in the workspace").to_path_buf()
}

/// Every file git would take, relative to the root.
fn files() -> Vec<PathBuf> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    assert!(out.status.success(), "git ls-files: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).expect("file names are UTF-8");
    let paths: Vec<PathBuf> = text.lines().map(PathBuf::from).filter(|p| root().join(p).is_file()).collect();
    assert!(paths.len() > 50, "only {} files: is this the repository?", paths.len());
    paths
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(root().join(path)).ok()
}

fn sources() -> Vec<(PathBuf, String)> {
    let is_rust = |p: &PathBuf| p.extension().is_some_and(|e| e == "rs");
    files().into_iter().filter(is_rust).filter_map(|p| read(&p).map(|text| (p, text))).collect()
}

fn complain(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn files_are_short() {
    let mut sizes: Vec<(usize, PathBuf)> =
        sources().into_iter().map(|(p, t)| (t.lines().count(), p)).collect();
    sizes.sort();
    let long: Vec<String> = sizes
        .iter()
        .filter(|(n, _)| *n > FILE_LINES_MAX)
        .map(|(n, p)| format!("{} {n}", p.display()))
        .collect();
    complain("files over the limit", &long);
    let p95 = sizes[(sizes.len() - 1) * 95 / 100].0;
    assert!(p95 <= FILE_LINES_P95, "95 of 100 files are to be under {FILE_LINES_P95} lines, not {p95}");
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let body = line.trim_start();
            let indent = line.len() - body.len();
            let words: Vec<&str> = body.split_whitespace().collect();
            let is_fn = words.iter().take(5).any(|w| *w == "fn") && !body.starts_with("//");
            if !is_fn || body.ends_with(';') {
                continue;
            }
            // rustfmt closes a function with a brace at the indent where it began.
            let close = format!("{}}}", " ".repeat(indent));
            if let Some(length) = lines[at..].iter().position(|l| *l == close)
                && length + 1 > FUNCTION_LINES_MAX
            {
                long.push(format!("{}:{} {} lines", path.display(), at + 1, length + 1));
            }
        }
    }
    complain("functions over the limit", &long);
}

#[test]
fn file_names_say_something() {
    let empty: Vec<String> = sources()
        .iter()
        .filter(|(p, _)| p.file_stem().is_some_and(|s| EMPTY_WORDS.iter().any(|w| s == *w)))
        .map(|(p, _)| p.display().to_string())
        .collect();
    complain("file names that say nothing", &empty);
}

#[test]
fn the_layout_at_the_top_is_fixed() {
    let allowed: BTreeSet<&str> =
        ["Cargo.toml", "Cargo.lock", "node", "cluster", "fuse-mount", "testnet", "docs"]
            .into_iter()
            .chain(["README.md", "LICENSE-MIT", "LICENSE-APACHE", "clippy.toml", "rustfmt.toml"])
            .collect();
    let strangers: BTreeSet<String> = files()
        .iter()
        .filter_map(|p| p.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned()))
        .filter(|top| !top.starts_with('.') && !allowed.contains(top.as_str()))
        .collect();
    complain("strangers at the top", &strangers.into_iter().collect::<Vec<_>>());
}

#[test]
fn crate_roots_only_declare() {
    let mut found = Vec::new();
    for (path, text) in sources().iter().filter(|(p, _)| p.ends_with("src/lib.rs")) {
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            let fine = line.is_empty()
                || line.starts_with("//")
                || line.starts_with("#")
                || line.starts_with("pub mod ")
                || line.starts_with("mod ");
            if !fine {
                found.push(format!("{}:{} {line}", path.display(), at + 1));
            }
        }
    }
    complain("crate roots that define something", &found);
}

#[test]
fn nothing_is_left_to_do_in_the_code() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut found = Vec::new();
    for (path, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            if words.iter().any(|w| line.contains(w)) {
                found.push(format!("{}:{}", path.display(), at + 1));
            }
        }
    }
    complain("an open question is an issue, not a comment", &found);
}

#[test]
fn no_path_of_a_developers_machine_is_in_the_repository() {
    let paths =
        [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/."), concat!("../sha", "red")];
    let mut found = Vec::new();
    for path in files() {
        let Some(text) = read(&path) else { continue };
        for (at, line) in text.lines().enumerate() {
            if paths.iter().any(|p| line.contains(p)) {
                found.push(format!("{}:{} {}", path.display(), at + 1, line.trim()));
            }
        }
    }
    complain("machine paths", &found);
}

/// Which of our crates each crate may depend on; dev-dependencies may also use what is below them.
fn arrows() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let set = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
    let everything = set(&[
        "remora-dag",
        "remora-store",
        "remora-volume",
        "remora-net",
        "remora-cluster",
        "remora-vfs",
        "remora-fuse-mount",
    ]);
    BTreeMap::from([
        ("node/dag", set(&[])),
        ("node/store", set(&["remora-dag"])),
        ("node/volume", set(&["remora-dag", "remora-store", "remora-vfs"])),
        ("node/net", set(&["remora-dag", "remora-cluster"])),
        ("node/daemon", everything.clone()),
        ("cluster", set(&[])),
        ("fuse-mount/vfs", set(&[])),
        ("fuse-mount", set(&["remora-vfs"])),
        ("testnet", everything.into_iter().chain(["remora"]).collect()),
    ])
}

#[test]
fn arrows_between_crates_run_one_way() {
    let mut found = Vec::new();
    for (dir, allowed) in arrows() {
        let manifest = read(&Path::new(dir).join("Cargo.toml")).unwrap_or_else(|| panic!("{dir}/Cargo.toml"));
        // A crate's tests may use the crate itself with a feature more.
        let own = manifest
            .lines()
            .find_map(|line| line.strip_prefix("name = "))
            .unwrap_or_default()
            .trim_matches('"');
        for line in manifest.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let ours = (name == "remora" || name.starts_with("remora-")) && name != own;
            if ours && !allowed.contains(name) {
                found.push(format!("{dir} -> {name}"));
            }
        }
    }
    complain("arrows that run back", &found);
}

#[test]
fn pure_crates_stay_pure() {
    let impure =
        ["std::fs", "std::net", "std::time::Instant", "SystemTime", "tokio", "std::thread", "rand::rng"];
    let pure = ["node/dag/src", "cluster/src", "fuse-mount/vfs/src"];
    let mut found = Vec::new();
    for (path, text) in sources().iter().filter(|(p, _)| pure.iter().any(|d| p.starts_with(d))) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (at, line) in code.lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            if !is_comment && impure.iter().any(|w| line.contains(w)) {
                found.push(format!("{}:{} {}", path.display(), at + 1, line.trim()));
            }
        }
    }
    complain("IO, clocks or threads in a pure crate", &found);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut found = Vec::new();
    for path in files().iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let Some(text) = read(path) else { continue };
        let dir = path.parent().unwrap_or(Path::new(""));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let outside = file.contains("://") || file.is_empty();
            if !outside && !root().join(dir).join(file).exists() {
                found.push(format!("{}: {target}", path.display()));
            }
        }
    }
    complain("links that lead nowhere", &found);
}
