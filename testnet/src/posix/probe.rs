//! `remora-testnet posix --probe`: what a file system can do, feature by feature, on ext4, on a volume and on a volume with ACLs.
//!
//! A feature that ext4 has and a volume has not is a failure, unless it is one of `REFUSED` and is refused in just that way. A
//! volume that takes what is said to be refused fails as well: then the list is to be shortened.

mod attributes;
mod content;
mod names;
mod places;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Error, Result, bail, ensure};

use crate::exe;
use crate::nodes::cluster;
use crate::posix::tools::Kernel;
use crate::report::Report;

/// Looks for one feature in an empty directory; answers a word about it.
type Probe = fn(&Place<'_>) -> Result<String>;

/// What a probe finds when all is well and there is nothing to say.
const YES: &str = "yes";

/// The columns.
const COLUMNS: [&str; 3] = ["ext4", "volume", "volume --acl"];

/// What volumes refuse, and how; `docs/SEMANTICS.md` says so too. The first column is the one it starts with.
const REFUSED: [(&str, &[usize], &str); 7] = [
    ("O_TMPFILE", &[1, 2], "EOPNOTSUPP"),
    ("rename WHITEOUT", &[1, 2], "EINVAL"),
    ("fallocate collapse", &[1, 2], "EOPNOTSUPP"),
    ("fallocate insert", &[1, 2], "EOPNOTSUPP"),
    ("inode flags (chattr)", &[1, 2], "ENOTTY"),
    ("POSIX ACL", &[1], "EOPNOTSUPP"),
    ("creation time (statx)", &[1, 2], "not told"),
];

/// Where a probe works.
struct Place<'a> {
    dir: PathBuf,
    kernel: &'a Kernel,
}

impl Place<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A file with this content, open for reading and writing.
    fn file(&self, name: &str, content: &[u8]) -> Result<File> {
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(self.at(name))?;
        std::io::Write::write_all(&mut file, content)?;
        Ok(file)
    }

    /// Whether a shell line, run here, ends well; as user and group 65534 if not as root.
    fn shell(&self, line: &str, as_root: bool) -> Result<bool> {
        let mut command = if as_root { Command::new("sh") } else { Command::new("setpriv") };
        if !as_root {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh"]);
        }
        command.args(["-c", line]).current_dir(&self.dir).stdin(Stdio::null()).stderr(Stdio::null());
        Ok(command.stdout(Stdio::null()).status().context("run sh")?.success())
    }
}

/// Probes all three, prints them side by side, and then what is still the same on another host.
///
/// # Errors
/// What a volume lacks without being excused.
pub fn run() -> Result<()> {
    exe::check_fuse()?;
    let dir = exe::scratch("pp")?;
    let kernel = Kernel::build(dir.path())?;
    let native = dir.path().join("ext4");
    std::fs::create_dir(&native)?;
    let mut nodes = cluster(dir.path(), &["a", "b"])?;
    nodes[0].ok(&["volume", "create", "v"])?;
    nodes[0].ok(&["volume", "create", "w", "--acl"])?;
    let places = [native, nodes[0].mount("v")?, nodes[0].mount("w")?];
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["feature"].iter().chain(COLUMNS.iter()));
    let mut failures = Vec::new();
    let probes = [names::PROBES, content::PROBES, attributes::PROBES].concat();
    for (index, (what, probe)) in probes.iter().enumerate() {
        let found: Vec<Result<String, String>> = places
            .iter()
            .map(|place| {
                let dir = place.join(format!("probe-{index}"));
                std::fs::create_dir(&dir).map_err(|e| e.to_string())?;
                probe(&Place { dir, kernel: &kernel }).map_err(|error| word(&error))
            })
            .collect();
        failures.extend((1..COLUMNS.len()).filter_map(|column| judge(what, column, &found)));
        table.add_row(
            std::iter::once((*what).to_owned())
                .chain(found.into_iter().map(|f| f.unwrap_or_else(|error| error))),
        );
    }
    for line in table.to_string().lines() {
        println!("{}", line.trim_end());
    }
    let mut report = Report::new("what only a volume has");
    let result = places::run(&mut report, &mut nodes, &kernel);
    report.fact("features", format!("{} probed, {} not as they should be", probes.len(), failures.len()));
    report.close();
    failures.extend(result.err().map(|error| format!("{error:#}")));
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// What is wrong with a volume's answer, if anything.
fn judge(what: &str, column: usize, found: &[Result<String, String>]) -> Option<String> {
    let excuse = REFUSED.iter().find(|(name, columns, _)| *name == what && columns.contains(&column));
    let name = COLUMNS[column];
    match (&found[column], excuse) {
        (Ok(_), None) => None,
        (Err(error), Some((_, _, wanted))) if error == wanted => None,
        (Err(error), Some((_, _, wanted))) => {
            Some(format!("{name}: {what} should be refused with {wanted}, and is with {error}"))
        }
        (Ok(_), Some(_)) => Some(format!("{name}: {what} is said to be refused, and works")),
        (Err(_), None) if found[0].is_err() => None,
        (Err(error), None) => Some(format!("{name}: {what}: {error}")),
    }
}

/// An error in a word: the kernel's if it is one of the kernel's.
fn word(error: &Error) -> String {
    let code = error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        io.or_else(|| cause.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error()))
    });
    code.map_or_else(|| error.to_string(), |code| remora_vfs::errno::Errno::from_raw(code).to_string())
}

/// An operation that must fail with this error.
fn refused<T, E: Into<std::io::Error>>(result: Result<T, E>, errno: i32) -> Result<()> {
    match result.map_err(Into::into) {
        Ok(_) => bail!("taken, in place of {}", remora_vfs::errno::Errno::from_raw(errno)),
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes `path` a place of `mode`.
fn chmod(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn a_refusal_is_excused_only_in_the_way_that_is_said() {
        let (yes, no) = (|| Ok("yes".to_owned()), |word: &str| Err(word.to_owned()));
        assert!(judge("O_TMPFILE", 1, &[yes(), no("EOPNOTSUPP"), yes()]).is_none());
        assert!(judge("O_TMPFILE", 1, &[yes(), no("EIO"), yes()]).is_some());
        assert!(judge("O_TMPFILE", 1, &[yes(), yes(), yes()]).is_some(), "the list is too long");
        assert!(judge("hard link", 2, &[yes(), yes(), no("EPERM")]).is_some());
        assert!(judge("hard link", 2, &[no("EPERM"), yes(), no("EPERM")]).is_none(), "ext4 has not got it");
        assert!(judge("POSIX ACL", 2, &[yes(), no("EOPNOTSUPP"), no("EOPNOTSUPP")]).is_some());
    }
}
