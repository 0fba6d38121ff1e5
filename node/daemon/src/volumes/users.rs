//! Who uses a mount: the kernel's word, since nobody else's can be trusted.
//!
//! An engine's mount ids are hints: a killed engine never unmounts, `docker cp` unmounts for a container that runs on. What is
//! true is in the mount tables of all mount namespaces: a mount of our file system anywhere but at our own mount point is
//! somebody's bind of it (a container's volume, or a directory of `remora volume mount`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Mounts of a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Users {
    /// Mount points in this process's own namespace, ours left out.
    pub(crate) here: Vec<PathBuf>,
    /// How many mounts there are in other namespaces, mere copies of ours left out.
    pub(crate) elsewhere: usize,
}

impl Users {
    pub(crate) fn is_empty(&self) -> bool {
        self.here.is_empty() && self.elsewhere == 0
    }
}

/// Every mount of `device` that somebody uses: not `own`, and not the copies that a clone of this host's mount namespace (a
/// service's private one, say) took of `own` and of the directories in `bound`, where it was ever bound to.
pub(crate) fn of(device: u64, own: &Path, bound: &BTreeSet<PathBuf>) -> std::io::Result<Users> {
    let mut users = Users::default();
    let mine = std::fs::read_link("/proc/self/ns/mnt")?;
    users.here = here(device, own)?;
    let mut seen = BTreeSet::from([mine]);
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let is_process = entry.file_name().to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        if !is_process {
            continue;
        }
        // A process that ends while we look had nothing to tell.
        let Ok(namespace) = std::fs::read_link(entry.path().join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        if let Ok(table) = std::fs::read_to_string(entry.path().join("mountinfo")) {
            users.elsewhere += count_foreign(&points(&table, device), own, bound);
        }
    }
    Ok(users)
}

/// The mounts of `device` in this process's own namespace, `own` left out: one small file, where [`of`] reads every process's.
pub(crate) fn here(device: u64, own: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut points = points(&std::fs::read_to_string("/proc/self/mountinfo")?, device);
    points.retain(|point| point != own);
    Ok(points)
}

/// How many of a foreign namespace's mounts are uses. A namespace that has our own mount point is a clone of this host's: what it has at
/// paths where we mounted is a copy that nobody asked for. A container's has not.
fn count_foreign(points: &[PathBuf], own: &Path, bound: &BTreeSet<PathBuf>) -> usize {
    let is_clone = points.iter().any(|point| point == own);
    points.iter().filter(|point| !(is_clone && (*point == own || bound.contains(*point)))).count()
}

/// Mount points of `device` in a mount table.
fn points(table: &str, device: u64) -> Vec<PathBuf> {
    let wanted = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let of_line = |line: &str| -> Option<PathBuf> {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        let point = fields.nth(1)?;
        (device == wanted).then(|| PathBuf::from(unescape(point)))
    };
    table.lines().filter_map(of_line).collect()
}

/// Undoes the kernel's octal escapes of blanks and backslashes.
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_of_the_namespace_is_no_user_and_a_container_is() {
        let (own, bound) = (Path::new("/d/mnt/x"), BTreeSet::from([PathBuf::from("/srv")]));
        let count = |points: &[&str]| {
            count_foreign(&points.iter().map(PathBuf::from).collect::<Vec<_>>(), own, &bound)
        };
        assert_eq!(count(&["/d/mnt/x", "/srv"]), 0);
        assert_eq!(count(&["/data"]), 1);
        assert_eq!(count(&["/srv"]), 1);
        assert_eq!(count(&["/d/mnt/x", "/elsewhere"]), 1);
    }

    #[test]
    fn only_mounts_of_the_device_are_looked_at() {
        let table = "36 35 0:54 / /data/mnt/x rw - fuse.remora remora rw\n\
                     37 35 0:54 / /srv/with\\040blank rw - fuse.remora remora rw\n\
                     38 35 0:55 / /other rw - fuse.remora remora rw\n";
        let device = rustix::fs::makedev(0, 54);
        assert_eq!(points(table, device), [PathBuf::from("/data/mnt/x"), PathBuf::from("/srv/with blank")]);
    }
}
