//! Who is measured: a directory of the disk, the same through a pass-through, and a volume. All on one disk.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use remora_fuse_mount::mount::{Mount, MountOptions};

use crate::bench::passthrough::PassThrough;
use crate::nodes::{Node, cluster};

/// The volume's name.
const VOLUME: &str = "bench";

/// How a peer's directory comes about.
enum Way {
    Native,
    /// Shows `backing`; the mount is there except during a remount.
    PassThrough {
        backing: PathBuf,
        mount: Option<Mount>,
    },
    /// The nodes of one cluster: the first writes, all are keepers.
    Volume(Vec<Node>),
}

/// One of those that are compared.
pub(super) struct Peer {
    /// What the table calls it.
    pub(super) name: &'static str,
    /// Where it can be written to.
    pub(super) dir: PathBuf,
    way: Way,
}

impl Peer {
    /// All three, native first, below one directory.
    pub(super) fn all(scratch: &Path) -> Result<Vec<Peer>> {
        open_to_all(scratch)?;
        let native = scratch.join("native");
        std::fs::create_dir(&native)?;
        let (backing, shown) = (scratch.join("backing"), scratch.join("shown"));
        std::fs::create_dir(&backing)?;
        std::fs::create_dir(&shown)?;
        let mount = Some(pass_through(&backing, &shown)?);
        let peers = vec![
            Peer { name: "ext4", dir: native, way: Way::Native },
            Peer { name: "pass-through", dir: shown, way: Way::PassThrough { backing, mount } },
            Peer::volume("volume", scratch, &["solo"])?,
        ];
        for peer in &peers {
            open_to_all(&peer.dir)?;
        }
        Ok(peers)
    }

    /// A volume with one keeper and one whose fsync waits for two of three.
    pub(super) fn one_and_three(scratch: &Path) -> Result<Vec<Peer>> {
        Ok(vec![
            Peer::volume("one keeper", scratch, &["alone"])?,
            Peer::volume("quorum of three", scratch, &["first", "second", "third"])?,
        ])
    }

    /// A volume that all of a new cluster's nodes keep, mounted on the first.
    fn volume(name: &'static str, scratch: &Path, names: &[&str]) -> Result<Peer> {
        let mut nodes = cluster(scratch, names)?;
        let writer = nodes.first_mut().context("a cluster has at least one node")?;
        let replicas = names.len().to_string();
        writer.ok(&["volume", "create", VOLUME, "--replicas", &replicas, "--durability", "quorum"])?;
        let dir = writer.mount(VOLUME)?;
        Ok(Peer { name, dir, way: Way::Volume(nodes) })
    }

    /// Writes everything out and forgets what the kernel and the peer's process have cached of it.
    pub(super) fn go_cold(&mut self) -> Result<()> {
        match &mut self.way {
            Way::Native => {}
            Way::PassThrough { backing, mount } => {
                drop(mount.take());
                *mount = Some(pass_through(backing, &self.dir)?);
            }
            Way::Volume(nodes) => {
                let writer = nodes.first_mut().context("a cluster has at least one node")?;
                writer.unmount(&self.dir)?;
                self.dir = writer.mount(VOLUME)?;
            }
        }
        rustix::fs::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop the kernel's caches")
    }

    /// Process id of the daemon, if this peer has one.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.way {
            Way::Volume(nodes) => nodes.first().and_then(Node::pid),
            Way::Native | Way::PassThrough { .. } => None,
        }
    }
}

fn pass_through(backing: &Path, at: &Path) -> Result<Mount> {
    let filesystem = PassThrough::new(backing).context("open the directory behind the pass-through")?;
    let options = MountOptions { fs_name: "pass-through".to_owned(), ..MountOptions::default() };
    Mount::start(Arc::new(filesystem), at, &options).context("mount the pass-through")
}

/// The databases' user goes through here.
fn open_to_all(dir: &Path) -> Result<()> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("open {} to other users", dir.display()))
}
