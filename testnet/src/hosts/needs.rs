//! What a machine needs before hosts can be made on it, and where they are put.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where programs are looked for, on the machine and in its hosts.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs a lab runs, and the Debian packages they come in.
const PROGRAMS: [(&str, &str); 7] = [
    ("dockerd", "docker.io"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("busybox", "busybox-static"),
    ("setfattr", "attr"),
    ("tar", "tar"),
];

/// File systems on which an engine's overlay cannot lie, by their magic number.
const UNFIT: [(u64, &str); 3] = [(0x794c_7630, "overlay"), (0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

/// Succeeds if this machine can run hosts.
///
/// # Errors
/// Says what is missing and what to type.
pub fn prerequisites() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("hosts are made of namespaces, which needs root: run it with sudo, or as root");
    }
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    if !packages.is_empty() {
        bail!(
            "hosts need programs that are not here: apt-get install -y --no-install-recommends {}",
            packages.join(" ")
        );
    }
    let directory = directory()?;
    let magic =
        rustix::fs::statfs(&directory).with_context(|| format!("look at {}", directory.display()))?.f_type;
    if let Some((_, name)) = UNFIT.iter().find(|(unfit, _)| i128::from(*unfit) == i128::from(magic)) {
        bail!(
            "{} lies on {name}, where a Docker engine cannot keep its images: name a directory on ext4 or xfs in REMORA_LAB_DIR",
            directory.display()
        );
    }
    Ok(())
}

/// The directory for labs and images, made if need be: `REMORA_LAB_DIR`, or `lab` in the workspace's target directory.
///
/// # Errors
/// If it can be neither found nor made.
pub fn directory() -> Result<PathBuf> {
    let directory = match env::var_os("REMORA_LAB_DIR") {
        Some(named) => PathBuf::from(named),
        None => target_directory()?.join("lab"),
    };
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    directory.canonicalize().with_context(|| format!("resolve {}", directory.display()))
}

/// The directory this program was built in; cargo marks it as a cache.
fn target_directory() -> Result<PathBuf> {
    let program = env::current_exe().context("find this program")?;
    let marked = program.ancestors().skip(1).find(|directory| directory.join("CACHEDIR.TAG").is_file());
    match marked.or_else(|| program.parent()) {
        Some(directory) => Ok(directory.to_owned()),
        None => bail!("the program lies in no directory"),
    }
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    PATH.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}
