//! The files that say who this node is: `node.key`, `member.cert`, and for storage members `cluster.key`.

use std::path::{Path, PathBuf};

use remora_cluster::cert::{ClusterKey, SignedCertificate};
use remora_cluster::identity::{ClusterId, PeerId};
use remora_net::identity::{Identity, IdentityError};
use remora_store::fault::chain;

use crate::config::write_durably;
use crate::exit::{Code, Failure};
use crate::paths::DataDir;

/// What a node holds to prove who it is.
pub(crate) struct Papers {
    pub(crate) identity: Identity,
    pub(crate) certificate: SignedCertificate,
    /// Lets a member issue tickets; a witness has none.
    pub(crate) cluster_key: Option<ClusterKey>,
}

impl Papers {
    pub(crate) fn peer(&self) -> PeerId {
        self.identity.peer_id()
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.certificate.certificate.cluster
    }

    /// Reads and checks everything; an error names the file and what to do.
    pub(crate) fn load(data: &DataDir) -> Result<Papers, Failure> {
        let identity = Identity::load(&data.node_key()).map_err(|e| identity_failure(&e))?;
        let certificate = load_certificate(&data.member_cert(), &identity.peer_id())?;
        let cluster_key = load_cluster_key(&data.cluster_key())?;
        if let Some(key) = &cluster_key
            && key.id() != certificate.certificate.cluster
        {
            return Err(damaged(&data.cluster_key(), "it belongs to another cluster"));
        }
        Ok(Papers { identity, certificate, cluster_key })
    }

    /// Writes everything for a new node; durable on return. The certificate comes last: with it the node exists.
    pub(crate) fn save(&self, data: &DataDir) -> Result<(), Failure> {
        if !data.node_key().exists() {
            self.identity.save(&data.node_key()).map_err(|e| identity_failure(&e))?;
        }
        if let Some(key) = &self.cluster_key {
            write_durably(&data.cluster_key(), key_text(&key.seed()).as_bytes(), 0o600)?;
        }
        write_durably(&data.member_cert(), &self.certificate.encode(), 0o600)
    }
}

/// An error about `node.key`.
pub(crate) fn identity_failure(error: &IdentityError) -> Failure {
    let code = match error {
        IdentityError::Missing { .. } | IdentityError::Exists { .. } => Code::NotReady,
        _ => Code::Damaged,
    };
    let remedy = match error {
        IdentityError::Missing { .. } => {
            ": restore it from a backup, or join again as a new member with an empty data directory"
        }
        _ => "",
    };
    Failure::new(code, format!("{}{remedy}", chain(error)))
}

fn damaged(path: &Path, why: &str) -> Failure {
    Failure::new(
        Code::Damaged,
        format!("{} is damaged ({why}): restore it from a backup; nothing was changed", path.display()),
    )
}

fn load_certificate(path: &Path, peer: &PeerId) -> Result<SignedCertificate, Failure> {
    let bytes = std::fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            let data = path.parent().unwrap_or(path).display();
            Failure::new(
                Code::NotReady,
                format!("no node in {data}: type `remora init` for a new cluster or `remora join TICKET`"),
            )
        }
        _ => Failure::failed(format!("read {}: {e}", path.display())),
    })?;
    let certificate = SignedCertificate::decode(&bytes).map_err(|e| damaged(path, &chain(&e)))?;
    let cluster = certificate.certificate.cluster;
    certificate.verify(&cluster, peer).map_err(|e| damaged(path, &chain(&e)))?;
    Ok(certificate)
}

const KEY_HEAD: &str = "remora-cluster-key 1 ";

fn key_text(seed: &[u8; 32]) -> String {
    let hex: String = seed.iter().map(|b| format!("{b:02x}")).collect();
    format!("{KEY_HEAD}{hex}\n")
}

/// Whoever reads the cluster's key can make members.
fn check_mode(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode() & 0o7777);
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let text = format!("{0} has mode {mode:o}, others can read it; run `chmod 600 {0}`", path.display());
    Err(Failure::new(Code::Damaged, text))
}

fn load_cluster_key(path: &PathBuf) -> Result<Option<ClusterKey>, Failure> {
    check_mode(path)?;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => return Err(damaged(path, "it is not text")),
        Err(e) => return Err(Failure::failed(format!("read {}: {e}", path.display()))),
    };
    let hex =
        text.trim_end().strip_prefix(KEY_HEAD).ok_or_else(|| damaged(path, "it does not begin as one"))?;
    let seed = parse_seed(hex).ok_or_else(|| damaged(path, "its digits are wrong"))?;
    Ok(Some(ClusterKey::from_seed(&seed)))
}

fn parse_seed(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut seed = [0u8; 32];
    for (at, byte) in seed.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_key_reads_back_and_a_changed_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        assert!(load_cluster_key(&path).unwrap().is_none());
        let key = ClusterKey::from_seed(&[7; 32]);
        write_durably(&path, key_text(&key.seed()).as_bytes(), 0o600).unwrap();
        assert_eq!(load_cluster_key(&path).unwrap().unwrap().id(), key.id());
        for bad in ["", "remora-cluster-key 1 zz", "remora-cluster-key 2 00", "\u{0}"] {
            std::fs::write(&path, bad).unwrap();
            let failure = load_cluster_key(&path).err().unwrap();
            assert_eq!(failure.code, Code::Damaged, "{bad:?}");
        }
    }
}
