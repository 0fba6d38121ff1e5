//! Where a node keeps what: the data directory and the API socket.

use std::path::{Path, PathBuf};

use crate::exit::Failure;

/// The data directory: `--data`, else `/var/lib/remora` for root, else `$XDG_DATA_HOME/remora`.
pub(crate) fn data_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return std::path::absolute(dir)
            .map_err(|e| Failure::usage(format!("--data {}: {e}", dir.display())));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/remora"));
    }
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local").join("share")));
    match base {
        Some(base) => Ok(base.join("remora")),
        None => Err(Failure::usage("neither HOME nor XDG_DATA_HOME is set: give --data DIR")),
    }
}

/// The API socket: `--api`, else `api.sock` in the data directory.
pub(crate) fn api_socket(given: Option<&Path>, data: &Path) -> PathBuf {
    given.map_or_else(|| data.join("api.sock"), Path::to_path_buf)
}

/// Names inside the data directory that belong to the daemon; the store owns the rest (its `layout`).
pub(crate) struct DataDir {
    root: PathBuf,
}

impl DataDir {
    pub(crate) fn new(root: &Path) -> Self {
        DataDir { root: root.to_path_buf() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The part of it that belongs to the store.
    pub(crate) fn store(&self) -> remora_store::layout::DataDir {
        remora_store::layout::DataDir::new(&self.root)
    }

    /// The node's identity (ed25519, 0600).
    pub(crate) fn node_key(&self) -> PathBuf {
        self.store().node_key()
    }

    /// The cluster's signing key (0600); storage members hold it, so that each can issue tickets.
    pub(crate) fn cluster_key(&self) -> PathBuf {
        self.root.join("cluster.key")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.store().config()
    }

    /// What the cluster says of this node, signed.
    pub(crate) fn member_cert(&self) -> PathBuf {
        self.root.join("member.cert")
    }

    /// Issued and used join tickets.
    pub(crate) fn tickets(&self) -> PathBuf {
        self.root.join("tickets")
    }

    /// Mounts to bring back after a restart.
    pub(crate) fn mounts(&self) -> PathBuf {
        self.root.join("mounts.json")
    }

    /// Where Docker's volumes are mounted: `mnt/<volume id>`.
    pub(crate) fn docker_mounts(&self) -> PathBuf {
        self.root.join("mnt")
    }
}
