//! From what a user asks of a new volume to its record in the catalogue.

use std::collections::BTreeMap;

use remora_cluster::cert::Role;
use remora_cluster::config::Durability;
use remora_cluster::identity::{PeerId, VolumeId};
use remora_cluster::placement::choose;
use remora_cluster::registry::Registry;
use remora_cluster::volume_record::{KEEPERS_MAX, VolumeRecord, check_name};
use remora_fuse_mount::docker::options::{self, VolumeOptions};
use remora_store::fault::chain;

use crate::exit::Failure;
use crate::wire::CreateVolume;

/// How many hosts keep a volume unless it is told otherwise.
const REPLICAS_DEFAULT: u32 = 3;

/// From this many storage members on, fsync waits for a majority of keepers unless it is told otherwise: with fewer, the
/// loss of one host would stop every writer.
const QUORUM_MEMBERS: usize = 3;

/// The permission bits of a new volume's root directory, as Docker's own volumes have them.
const ROOT_MODE_DEFAULT: u32 = 0o755;

/// Reads the words of a `remora volume create` as the options of the volume driver: one meaning for both.
pub(crate) fn options(wish: &CreateVolume) -> Result<VolumeOptions, Failure> {
    let texts = [
        ("replicas", wish.replicas.map(|n| n.to_string())),
        ("durability", wish.durability.clone()),
        ("size", wish.size.clone()),
        ("uid", wish.uid.map(|n| n.to_string())),
        ("gid", wish.gid.map(|n| n.to_string())),
        ("mode", wish.mode.clone()),
        ("acl", wish.acl.then(|| "true".to_owned())),
    ];
    let mut options = VolumeOptions::default();
    for (key, text) in texts {
        if let Some(text) = text {
            options.set(key, &text).map_err(|e| Failure::usage(chain(&e)))?;
        }
    }
    Ok(options)
}

/// The record of a new volume.
pub(crate) fn record(
    id: VolumeId,
    name: &str,
    options: &VolumeOptions,
    registry: &Registry,
    now_unix_ms: u64,
) -> Result<VolumeRecord, Failure> {
    check_name(name).map_err(|e| Failure::usage(chain(&e)))?;
    let replicas = options.replicas.map_or(REPLICAS_DEFAULT, u32::from);
    if replicas as usize > KEEPERS_MAX {
        return Err(Failure::usage(format!("replicas={replicas}: at most {KEEPERS_MAX}")));
    }
    let storage = storage_members(registry);
    let durability = match options.durability {
        Some(options::Durability::Quorum) => Durability::Quorum,
        Some(options::Durability::Local) => Durability::Local,
        None if replicas > 2 && storage >= QUORUM_MEMBERS => Durability::Quorum,
        None => Durability::Local,
    };
    Ok(VolumeRecord {
        id,
        name: name.to_owned(),
        created_unix_ms: now_unix_ms,
        keepers: keepers(&id, registry, replicas as usize),
        replicas,
        durability,
        size_limit: options.size,
        root_uid: options.uid.unwrap_or(0),
        root_gid: options.gid.unwrap_or(0),
        root_mode: options.mode.map_or(ROOT_MODE_DEFAULT, u32::from),
        options: options.to_given(),
        labels: BTreeMap::new(),
        removed: false,
    })
}

fn storage_members(registry: &Registry) -> usize {
    registry.members().values().filter(|m| m.roles.contains(&Role::Storage)).count()
}

/// The first keeper is this host: the volume exists here when `create` returns, whoever else can be reached. Others become keepers
/// as they are placed, at the next election.
fn keepers(_id: &VolumeId, registry: &Registry, _replicas: usize) -> Vec<PeerId> {
    vec![registry.me()]
}

/// Who should keep a volume: this host, then those that placement likes best.
pub(crate) fn wanted_keepers(
    id: &VolumeId,
    registry: &Registry,
    replicas: usize,
    connected: &[PeerId],
) -> Vec<PeerId> {
    let me = registry.me();
    let mut candidates = registry.candidates();
    let is_storage = |peer: &PeerId| registry.member(peer).is_some_and(|m| m.roles.contains(&Role::Storage));
    candidates.retain(|c| c.peer != me && is_storage(&c.peer) && connected.contains(&c.peer));
    let mut wanted = vec![me];
    wanted.extend(choose(&id.0, &candidates, replicas.saturating_sub(1)));
    wanted
}
