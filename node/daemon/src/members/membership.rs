//! The registry of this host: in memory, on disk, and on its way to the others.
//!
//! What always holds: an entry is on this host's disk before anybody is told of it, and before the call that made it
//! returns. The lock is held over the write to disk, so that entries reach it in the order of their sequence numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use remora_cluster::cert::{Certificate, Role, SignedCertificate};
use remora_cluster::identity::PeerId;
use remora_cluster::registry::Registry;
use remora_cluster::registry::entry::{Addresses, Key};
use remora_cluster::registry::exchange::{Merged, RegistryMessage};
use remora_cluster::ticket::{Secret, Ticket, TicketBook};
use remora_net::net::Net;
use remora_store::disk::RealDisk;
use remora_store::fault::chain;
use remora_store::layout::segment_name;
use remora_store::log::Recovery;
use remora_store::registry::Registry as RegistryFile;
use tokio::sync::watch;

use crate::config::write_durably;
use crate::exit::{Code, Context, Failure};
use crate::members::found::WEIGHT_DEFAULT;
use crate::members::join::{JOIN_VERSION, JoinAnswer, JoinRequest};
use crate::members::now::unix_ms;
use crate::members::papers::Papers;
use crate::paths::DataDir;

/// A registry file is folded into a snapshot at start when it is larger than this, in bytes.
const COMPACT_BYTES: u64 = 4 << 20;

/// Entries of this host that are lost must not be numbered again: a damaged registry ends the start.
fn check_registry(data: &DataDir, recovery: &Recovery) -> Result<(), Failure> {
    let Recovery::Damaged { segment, at, .. } = recovery else { return Ok(()) };
    let file = data.store().registry().join(segment_name(*segment));
    let text =
        format!("{} is damaged at byte {at}: restore it from a backup; nothing was changed", file.display());
    Err(Failure::new(Code::Damaged, text))
}

/// What all members know, as this host knows it.
pub(crate) struct Membership {
    papers: Papers,
    registry: Mutex<Registry>,
    file: RegistryFile,
    tickets: Mutex<TicketBook>,
    tickets_path: std::path::PathBuf,
    net: OnceLock<Net>,
    changed: watch::Sender<u64>,
}

impl Membership {
    /// Reads the registry from disk.
    pub(crate) fn open(data: &DataDir, papers: Papers) -> Result<Arc<Self>, Failure> {
        let mut registry = Registry::new(papers.peer(), papers.cluster());
        let mut skipped = 0u64;
        let (file, recovery) =
            RegistryFile::open(Arc::new(RealDisk), &data.store().registry(), &mut |frame| {
                if let Err(e) = registry.restore(frame) {
                    skipped += 1;
                    tracing::warn!(error = %chain(&e), "an entry of the registry is not taken back");
                }
                Ok(())
            })
            .map_err(|e| Failure::new(Code::Damaged, format!("open the registry: {}", chain(&e))))?;
        check_registry(data, &recovery)?;
        tracing::debug!(?recovery, skipped, "registry read");
        if file.bytes() > COMPACT_BYTES {
            file.compact(&mut registry.frames()).doing("compact the registry")?;
        }
        let tickets_path = data.tickets();
        let tickets = match std::fs::read(&tickets_path) {
            Ok(bytes) => TicketBook::decode(&bytes).map_err(|e| {
                Failure::new(
                    Code::Damaged,
                    format!(
                        "{}: {}: move it away, tickets in it are lost",
                        tickets_path.display(),
                        chain(&e)
                    ),
                )
            })?,
            Err(_) => TicketBook::default(),
        };
        Ok(Arc::new(Membership {
            papers,
            registry: Mutex::new(registry),
            file,
            tickets: Mutex::new(tickets),
            tickets_path,
            net: OnceLock::new(),
            changed: watch::Sender::new(0),
        }))
    }

    /// From here on news go out by gossip.
    pub(crate) fn connect(&self, net: Net) {
        let _first_wins = self.net.set(net);
        self.call_members();
    }

    /// Why nothing can be written into the registry any more, if so.
    pub(crate) fn failed(&self) -> Option<Arc<str>> {
        self.file.failed()
    }

    pub(crate) fn net(&self) -> Option<&Net> {
        self.net.get()
    }

    pub(crate) fn me(&self) -> PeerId {
        self.papers.peer()
    }

    pub(crate) fn papers(&self) -> &Papers {
        &self.papers
    }

    /// Wakes whenever the registry changed.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Looks at the registry; the closure must not block.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.registry.lock())
    }

    /// The name of a member, or the beginning of its id.
    pub(crate) fn name_of(&self, peer: &PeerId) -> String {
        self.read(|r| r.member(peer)).map_or_else(|| peer.short(), |c| c.name)
    }

    /// Writes an entry: on disk when it returns, gossiped as a hint.
    pub(crate) fn put(&self, key: Key, value: Option<Vec<u8>>) -> Result<(), Failure> {
        let entry = {
            let mut registry = self.registry.lock();
            let entry = registry.draft(key, value, unix_ms()).map_err(|e| Failure::failed(chain(&e)))?;
            // What is not on disk must not be told: after a restart its number would be given to another entry.
            self.file
                .append(&Registry::frame(&entry))
                .map_err(|e| Failure::failed(format!("write the registry: {}", chain(&e))))?;
            registry.admit(entry.clone());
            entry
        };
        for message in Registry::pack_news(&[entry]) {
            self.publish(message);
        }
        self.has_changed();
        Ok(())
    }

    fn publish(&self, message: Vec<u8>) {
        if let Some(net) = self.net.get()
            && let Err(e) = net.publish(message.into())
        {
            tracing::debug!(error = %e, "news not gossiped; anti-entropy brings them");
        }
    }

    /// Takes news that came by gossip.
    pub(crate) fn take_news(&self, message: &[u8]) {
        match RegistryMessage::decode(message) {
            Ok(RegistryMessage::News(entries)) => {
                let mut registry = self.registry.lock();
                let merged = registry.merge_news(entries, unix_ms());
                self.keep(&merged);
                drop(registry);
                self.announce(&merged);
            }
            Ok(_) => tracing::debug!("gossip that is no news is dropped"),
            Err(e) => tracing::warn!(error = %chain(&e), "gossip that cannot be read is dropped"),
        }
    }

    /// Answers another host's part of anti-entropy; what it brought is on disk when this returns.
    pub(crate) fn answer(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let request = RegistryMessage::decode(request).map_err(|e| chain(&e))?;
        let mut registry = self.registry.lock();
        let (answer, merged) = registry.answer(request, unix_ms());
        let kept = self.keep(&merged);
        drop(registry);
        self.announce(&merged);
        if kept { Ok(answer.encode()) } else { Err("this host cannot write its registry".into()) }
    }

    /// Merges what another host answered.
    pub(crate) fn merge(&self, deltas: remora_cluster::registry::exchange::Deltas) -> Merged {
        let mut registry = self.registry.lock();
        let merged = registry.merge_deltas(deltas, unix_ms());
        self.keep(&merged);
        drop(registry);
        self.announce(&merged);
        merged
    }

    /// Writes what was taken to disk; called with the registry locked.
    fn keep(&self, merged: &Merged) -> bool {
        for error in &merged.refused {
            tracing::warn!(error = %chain(error), "an entry of another host is refused");
        }
        let frames: Vec<Vec<u8>> = merged.taken.iter().map(Registry::frame).collect();
        let parts: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        if parts.is_empty() {
            return true;
        }
        match self.file.append_all(&parts) {
            Ok(()) => true,
            Err(e) => {
                tracing::error!(error = %chain(&e), "the registry cannot be written; it is asked for again later");
                false
            }
        }
    }

    fn announce(&self, merged: &Merged) {
        if !merged.taken.is_empty() {
            self.has_changed();
        }
    }

    fn has_changed(&self) {
        self.changed.send_modify(|n| *n += 1);
        self.call_members();
    }

    /// Keeps the network calling exactly the members, where they say they are.
    fn call_members(&self) {
        let Some(net) = self.net.get() else { return };
        let me = self.me();
        let peers: BTreeMap<PeerId, _> = self.read(|registry| {
            let members = registry.members().into_keys().filter(|peer| *peer != me);
            let addresses = |peer: &PeerId| {
                registry
                    .addresses(peer)
                    .iter()
                    .filter_map(|a| remora_net::peer::parse_address(a).ok())
                    .collect()
            };
            members.map(|peer| (peer, addresses(&peer))).collect()
        });
        net.set_peers(peers);
    }

    /// Tells the others where this host listens, if that changed.
    pub(crate) fn announce_addresses(&self) -> Result<(), Failure> {
        let Some(net) = self.net.get() else { return Ok(()) };
        let addresses: Vec<String> =
            net.advertised_addrs().iter().map(ToString::to_string).take(32).collect();
        let me = self.me();
        if addresses.is_empty() || self.read(|r| r.addresses(&me)) == addresses {
            return Ok(());
        }
        self.put(Key::Address(me), Some(Addresses { addresses }.encode()))
    }

    /// Issues a one-use ticket; it is on disk before it is told.
    pub(crate) fn issue(&self, role: Role, expires_unix_ms: u64) -> Result<String, Failure> {
        if self.papers.cluster_key.is_none() {
            return Err(Failure::failed("a witness cannot issue tickets: use a storage member"));
        }
        let net = self.net.get().ok_or_else(|| Failure::failed("the network is not up yet"))?;
        let addresses: Vec<String> = net.advertised_addrs().iter().map(ToString::to_string).take(8).collect();
        if addresses.is_empty() {
            return Err(Failure::failed("this node listens nowhere yet: look at `remora status`"));
        }
        let mut secret = [0u8; 16];
        getrandom::fill(&mut secret).doing("draw a secret")?;
        let ticket = Ticket {
            cluster: self.papers.cluster(),
            issuer: self.me(),
            addresses,
            role,
            expires_unix_ms,
            secret: Secret(secret),
        };
        let mut book = self.tickets.lock();
        let mut next = book.clone();
        next.issue(&ticket, unix_ms());
        write_durably(&self.tickets_path, &next.encode(), 0o600)?;
        *book = next;
        Ok(ticket.encode())
    }

    /// Lets a newcomer in: spends its ticket, signs its certificate.
    pub(crate) fn admit(&self, peer: PeerId, request: &[u8]) -> Result<Vec<u8>, String> {
        let request: JoinRequest = postcard::from_bytes(request)
            .map_err(|_| "the request cannot be read: is this host older?".to_owned())?;
        if request.version != JOIN_VERSION {
            return Err(format!("join version {} is not known here", request.version));
        }
        let key = self.papers.cluster_key.as_ref().ok_or("a witness cannot admit members")?;
        let role = self.redeem(&Secret(request.secret), peer)?;
        let serial = self.read(|r| r.member(&peer)).map_or(1, |known| known.serial + 1);
        let certificate = key
            .certify(Certificate {
                cluster: self.papers.cluster(),
                peer,
                name: request.name,
                zone: request.zone,
                weight: WEIGHT_DEFAULT,
                roles: BTreeSet::from([role]),
                issued_unix_ms: unix_ms(),
                serial,
            })
            .map_err(|e| chain(&e))?;
        self.put(Key::Member(peer), Some(certificate.encode())).map_err(|e| e.text)?;
        tracing::info!(peer = %peer, name = %certificate.certificate.name, "a new member was admitted");
        self.welcome(peer, &certificate, role)
    }

    fn redeem(&self, secret: &Secret, peer: PeerId) -> Result<Role, String> {
        let mut book = self.tickets.lock();
        let mut next = book.clone();
        let role = next.redeem(secret, peer, unix_ms()).map_err(|e| chain(&e))?;
        write_durably(&self.tickets_path, &next.encode(), 0o600).map_err(|e| e.text)?;
        *book = next;
        Ok(role)
    }

    fn welcome(&self, peer: PeerId, certificate: &SignedCertificate, role: Role) -> Result<Vec<u8>, String> {
        let me = self.me();
        let (entries, members) = self.read(|registry| {
            let keys = [Key::Member(peer), Key::Member(me), Key::Address(me)];
            let entries: Vec<_> = keys.iter().filter_map(|key| registry.get(key).cloned()).collect();
            (entries, registry.members().len())
        });
        let seed = self.papers.cluster_key.as_ref().filter(|_| role == Role::Storage).map(|key| key.seed());
        let answer = JoinAnswer {
            version: JOIN_VERSION,
            certificate: certificate.encode(),
            cluster_seed: seed,
            news: Registry::pack_news(&entries),
            members: u32::try_from(members).unwrap_or(u32::MAX),
        };
        postcard::to_stdvec(&answer).map_err(|e| e.to_string())
    }

    /// Excludes a member for good.
    pub(crate) fn exclude(&self, peer: PeerId) -> Result<(), Failure> {
        if peer == self.me() {
            return Err(Failure::usage("a host cannot exclude itself: type it on another member"));
        }
        if self.read(|r| r.member(&peer)).is_none() {
            return Err(Failure::not_found(format!("no member {peer}: look at `remora peers`")));
        }
        let key = self.papers.cluster_key.as_ref();
        let key =
            key.ok_or_else(|| Failure::failed("a witness cannot exclude members: use a storage member"))?;
        self.put(Key::Revoked(peer), Some(key.revoke(peer, unix_ms()).encode()))
    }

    /// Marks a clean end.
    pub(crate) fn close(&self) {
        if let Err(e) = self.file.close() {
            tracing::warn!(error = %chain(&e), "close the registry");
        }
    }
}
