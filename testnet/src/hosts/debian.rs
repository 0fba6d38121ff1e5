//! A Debian image put together from the packages this machine has installed: no download, the same on every Debian 12.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::hosts::images::check;
use crate::hosts::needs::PATH;

/// What the image is for.
const WANTED: [&str; 8] =
    ["postgresql-15", "redis-server", "sqlite3", "attr", "acl", "procps", "tar", "util-linux"];

/// Packages PostgreSQL can do without: its compiler, 110 MB.
const UNWANTED: [&str; 2] = ["libllvm14", "systemd"];

/// Paths left out, by their beginning: what the kernel or a running system changes while we look, and what nobody reads.
const LEFT_OUT: [&str; 12] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/locale",
    "/usr/share/info",
    "/usr/share/postgresql/15/man",
    "/usr/lib/postgresql/15/lib/bitcode",
    "/usr/lib/postgresql/15/lib/llvmjit",
];

/// Packages as dpkg knows them: each with those it depends on, alternatives side by side.
type Packages = BTreeMap<String, Vec<Vec<String>>>;

/// Fills the directory `root`.
///
/// # Errors
/// If a package is not installed here; the text says what to type.
pub(crate) fn assemble(root: &Path) -> Result<()> {
    let (packages, provided) = installed()?;
    let missing: Vec<&str> = WANTED.into_iter().filter(|name| !packages.contains_key(*name)).collect();
    if !missing.is_empty() {
        bail!(
            "the image needs packages that are not here: apt-get install -y --no-install-recommends {}",
            missing.join(" ")
        );
    }
    let chosen = closure(&packages, &provided, base()?);
    let mut paths = BTreeSet::new();
    for package in &chosen {
        paths.extend(files_of(package)?);
    }
    paths.extend(made_at_installation()?);
    copy(&paths, root)?;
    furnish(root)
}

/// What belongs to no package: links of the merged /usr, choices between alternatives, how to log in.
fn made_at_installation() -> Result<Vec<PathBuf>> {
    let single =
        ["/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/bin", "/sbin", "/lib", "/lib64"];
    let mut paths: Vec<PathBuf> =
        single.into_iter().map(PathBuf::from).filter(|path| path.symlink_metadata().is_ok()).collect();
    for directory in ["/etc/alternatives", "/etc/pam.d"] {
        paths.push(PathBuf::from(directory));
        for entry in fs::read_dir(directory).with_context(|| format!("read {directory}"))? {
            let entry = entry.with_context(|| format!("read {directory}"))?;
            paths.push(entry.path());
            // The name people type is a link to an alternative.
            paths.push(Path::new("/usr/bin").join(entry.file_name()));
        }
    }
    paths.retain(|path| !path.starts_with("/usr/bin") || path.is_symlink());
    Ok(paths)
}

/// What every Debian has, plus what is wanted.
fn base() -> Result<Vec<String>> {
    let essential = query("${Essential} ${Package}\n")?;
    let essential = essential.lines().filter_map(|line| line.strip_prefix("yes ")).map(str::to_owned);
    Ok(essential.chain(WANTED.map(str::to_owned)).collect())
}

/// Installed packages, and who provides a name that is none.
fn installed() -> Result<(Packages, BTreeMap<String, String>)> {
    let (mut packages, mut provided) = (Packages::new(), BTreeMap::new());
    for line in query("${db:Status-Status}|${Package}|${Provides}|${Pre-Depends}, ${Depends}\n")?.lines() {
        let mut fields = line.splitn(4, '|');
        let (Some("installed"), Some(name), Some(provides), Some(depends)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        for group in names(provides) {
            provided.extend(group.into_iter().map(|virtual_name| (virtual_name, name.to_owned())));
        }
        packages.insert(name.to_owned(), names(depends));
    }
    Ok((packages, provided))
}

/// The names in a dependency field: versions, architectures and blanks left out.
fn names(field: &str) -> Vec<Vec<String>> {
    let bare = |text: &str| text.trim().split([' ', ':', '(']).next().unwrap_or_default().to_owned();
    field
        .split(',')
        .filter(|group| !group.trim().is_empty())
        .map(|group| group.split('|').map(bare).collect())
        .collect()
}

fn closure(
    packages: &Packages,
    provided: &BTreeMap<String, String>,
    mut todo: Vec<String>,
) -> BTreeSet<String> {
    let mut chosen = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if UNWANTED.contains(&name.as_str()) || !packages.contains_key(&name) || !chosen.insert(name.clone())
        {
            continue;
        }
        for group in packages.get(&name).into_iter().flatten() {
            let found = group.iter().find(|wanted| packages.contains_key(*wanted));
            let found = found.or_else(|| group.iter().find_map(|wanted| provided.get(wanted)));
            todo.extend(found.cloned());
        }
    }
    chosen
}

/// The paths of a package, with links in their directories resolved, since an archive cannot unpack through them.
fn files_of(package: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("dpkg-query")
        .args(["-L", package])
        .env("PATH", PATH)
        .output()
        .context("run dpkg-query")?;
    let text = String::from_utf8(output.stdout).context("read a package's files")?;
    let listed = text
        .lines()
        .filter(|line| line.starts_with('/') && !LEFT_OUT.iter().any(|out| line.starts_with(out)));
    let real = |path: &str| {
        let path = Path::new(path);
        let (directory, name) = (path.parent()?.canonicalize().ok()?, path.file_name()?);
        let path = directory.join(name);
        // Not all that is listed is there: some packages remove files of their own.
        path.symlink_metadata().is_ok().then_some(path)
    };
    Ok(listed.filter_map(real).collect())
}

/// Copies the paths themselves, not what is below them, with all that belongs to them.
fn copy(paths: &BTreeSet<PathBuf>, root: &Path) -> Result<()> {
    let mut list = tempfile::NamedTempFile::new().context("list the image's files")?;
    for path in paths {
        list.write_all(path.as_os_str().as_bytes())
            .and_then(|()| list.write_all(b"\0"))
            .context("list the image's files")?;
    }
    let script = "tar -C / --null --no-recursion --xattrs -T \"$1\" -cf - | tar -C \"$2\" -p --xattrs --numeric-owner -xf -";
    // bash for the failure of the first half.
    let mut pipe = Command::new("bash");
    pipe.args(["-o", "pipefail", "-c", script, "copy"]).arg(list.path()).arg(root);
    check(&mut pipe, "copy this machine's packages")
}

/// What packages make when they are installed: users, empty directories.
fn furnish(root: &Path) -> Result<()> {
    let script = "set -e; cd \"$1\"
        mkdir -p root tmp run var/tmp var/run var/lib/postgresql var/lib/redis var/log/postgresql proc sys dev home data
        rmdir var/run && ln -s /run var/run
        chmod 1777 tmp var/tmp
        for list in passwd group; do awk -F: '$3 < 1000' /etc/$list >etc/$list; done
        echo 'app:x:1000:1000:app:/home:/bin/sh' >>etc/passwd
        echo 'app:x:1000:' >>etc/group
        awk -F: '{ print $1 \":*:19000:0:99999:7:::\" }' etc/passwd >etc/shadow && chmod 600 etc/shadow
        user() { awk -F: -v name=\"$1\" '$1 == name { print $3 \":\" $4 }' /etc/passwd; }
        chown \"$(user postgres)\" var/lib/postgresql var/log/postgresql
        chown \"$(user redis)\" var/lib/redis
        mkdir -p run/postgresql && chown \"$(user postgres)\" run/postgresql && chmod 2775 run/postgresql";
    let mut furnish = Command::new("sh");
    furnish.args(["-c", script, "furnish"]).arg(root);
    check(&mut furnish, "furnish the Debian image")
}

fn query(format: &str) -> Result<String> {
    let mut command = Command::new("dpkg-query");
    command.args(["-W", "-f", format]).env("PATH", PATH).stdin(Stdio::null());
    let output = command.output().context("run dpkg-query; images are made on Debian")?;
    String::from_utf8(output.stdout).context("read the list of packages")
}

#[cfg(test)]
mod tests {
    use super::{Packages, closure, names};
    use std::collections::BTreeMap;

    #[test]
    fn dependencies_are_names_without_versions() {
        let field = "libc6 (>= 2.34), , perl:any | mawk, awk";
        let wanted: [&[&str]; 3] = [&["libc6"], &["perl", "mawk"], &["awk"]];
        assert_eq!(names(field), wanted);
        assert!(names("").is_empty());
    }

    #[test]
    fn everything_needed_is_chosen_once_and_by_whoever_provides_it() {
        let mut packages = Packages::new();
        packages.insert("a".to_owned(), names("b | missing, awk"));
        packages.insert("b".to_owned(), names("a"));
        packages.insert("mawk".to_owned(), Vec::new());
        packages.insert("other".to_owned(), Vec::new());
        let provided = BTreeMap::from([("awk".to_owned(), "mawk".to_owned())]);
        let chosen = closure(&packages, &provided, vec!["a".to_owned()]);
        assert_eq!(chosen.into_iter().collect::<Vec<_>>(), ["a", "b", "mawk"]);
    }
}
