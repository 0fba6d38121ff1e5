//! Calls about this node and its peers.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use remora_cluster::cert::Role;
use remora_cluster::identity::PeerId;

use crate::api::Services;
use crate::api::answer::{Answer, blocking_json, read_json};
use crate::exit::Failure;
use crate::members::now::unix_ms;
use crate::wire::{Collected, Peer, Status, StoreStat, TicketLine, TicketWish, Verified};

type Shared = State<Arc<Services>>;

/// The longest life of a ticket.
const TICKET_SECS_MAX: u64 = 30 * 24 * 3600;

pub(crate) async fn status(State(services): Shared) -> Answer<Status> {
    blocking_json(move || {
        let net = services.members.net();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            name: services.config.name.clone(),
            zone: services.config.zone.clone(),
            peer: services.members.me().to_string(),
            cluster: services.members.papers().cluster().to_string(),
            pid: std::process::id(),
            uptime_secs: services.started.elapsed().as_secs(),
            listen: net
                .map(|n| n.listen_addrs().iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            docker_plugin: services.docker.lock().clone(),
            members: services.members.read(|r| r.members().len()),
            connected: net.map_or(0, |n| n.connected().len()),
            store: stat(&services),
            volumes: services.volumes.list(),
            warnings: warnings(&services),
        })
    })
    .await
}

fn warnings(services: &Services) -> Vec<String> {
    let mut warnings = services.warnings.lock().clone();
    warnings.extend(services.volumes.warnings());
    warnings.extend(failures(services));
    warnings.extend(services.garbage.warning());
    warnings
}

/// Parts of the store that failed under this daemon; a restart opens what is really on disk.
fn failures(services: &Services) -> Vec<String> {
    let then = "look at the kernel's log, mend the disk, then restart the daemon";
    let store = services.data.store();
    let packs = services
        .blocks
        .store()
        .failed()
        .map(|why| format!("{} takes no more blocks ({why}): {then}", store.packs().display()));
    let index = services.blocks.store().index_failure().map(|why| {
        let index = store.index();
        format!("{} failed ({why}): nothing is lost, places of blocks are kept in memory until the daemon is restarted", index.display())
    });
    let registry = services
        .members
        .failed()
        .map(|why| format!("{} takes no more entries ({why}): {then}", store.registry().display()));
    [packs, index, registry].into_iter().flatten().collect()
}

fn stat(services: &Services) -> StoreStat {
    let stat = services.blocks.store().stat().unwrap_or_default();
    let aside_bytes = services.blocks.store().aside_bytes();
    StoreStat {
        blocks: stat.n_blocks,
        bytes: stat.pack_bytes,
        packs: stat.n_packs,
        free_bytes: crate::volumes::space::free(services.data.root(), aside_bytes)
            .map_or(0, |space| space.free),
    }
}

pub(crate) async fn peers(State(services): Shared) -> Answer<Vec<Peer>> {
    blocking_json(move || {
        let me = services.members.me();
        let connected = services.members.net().map(|n| n.connected()).unwrap_or_default();
        let members = services.members.read(|r| {
            let with_addresses = |(peer, cert)| (peer, cert, r.addresses(&peer));
            r.members().into_iter().map(with_addresses).collect::<Vec<_>>()
        });
        let peer =
            |(peer, certificate, addresses): (PeerId, remora_cluster::cert::Certificate, Vec<String>)| {
                let seen = connected.iter().find(|c| c.peer == peer);
                Peer {
                    name: certificate.name,
                    peer: peer.to_string(),
                    zone: certificate.zone,
                    roles: certificate.roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                    this_host: peer == me,
                    connected: seen.is_some(),
                    rtt_us: seen.and_then(|c| c.rtt).and_then(|rtt| u64::try_from(rtt.as_micros()).ok()),
                    addresses,
                }
            };
        Ok(members.into_iter().map(peer).collect())
    })
    .await
}

pub(crate) async fn exclude(State(services): Shared, Path(peer): Path<String>) -> Answer<()> {
    let id: PeerId =
        peer.parse().map_err(|_| Failure::usage(format!("{peer:?} is no peer id: see `remora peers`")))?;
    blocking_json(move || services.members.exclude(id)).await
}

pub(crate) async fn ticket(State(services): Shared, body: Bytes) -> Answer<TicketLine> {
    let wish: TicketWish = read_json(&body)?;
    if wish.expires_secs == 0 || wish.expires_secs > TICKET_SECS_MAX {
        return Err(Failure::usage("a ticket lives between one second and 30 days"));
    }
    let role = if wish.witness { Role::Witness } else { Role::Storage };
    let expires = unix_ms().saturating_add(wish.expires_secs * 1000);
    blocking_json(move || services.members.issue(role, expires).map(|ticket| TicketLine { ticket })).await
}

pub(crate) async fn store_stat(State(services): Shared) -> Answer<StoreStat> {
    blocking_json(move || Ok(stat(&services))).await
}

pub(crate) async fn store_gc(State(services): Shared) -> Answer<Collected> {
    blocking_json(move || services.garbage.collect_now()).await
}

pub(crate) async fn store_verify(State(services): Shared) -> Answer<Verified> {
    blocking_json(move || {
        let mut bytes = 0;
        let report = services.blocks.store().verify(&mut |progress| {
            bytes = progress.total_bytes;
            true
        });
        let report = report.map_err(|e| Failure::failed(e.to_string()))?;
        Ok(Verified {
            blocks: report.n_good,
            bytes,
            damaged: report.damaged.iter().map(ToString::to_string).collect(),
        })
    })
    .await
}
