//! The connections that stand, admitted ones and those of strangers.
//!
//! What always holds: a connection whose admission no longer agrees with the membership of its peer is closed within a
//! second or two, and a stranger's after [`STRANGER_TIME_MAX`]; not in the middle of a join, whose answer might be lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::swarm::ConnectionId;
use remora_cluster::identity::PeerId;

use crate::view::Connected;

/// How long a peer may stay connected without being a member.
pub(crate) const STRANGER_TIME_MAX: Duration = Duration::from_secs(15);
/// How long a connection is left alone after a join, so that the answer is read before the connection ends.
const JOIN_QUIET: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Link {
    peer: PeerId,
    address: Multiaddr,
    is_admitted: bool,
    since: Instant,
    joined_at: Option<Instant>,
    rtt: Option<Duration>,
}

#[derive(Debug, Default)]
pub(crate) struct Links {
    links: BTreeMap<ConnectionId, Link>,
}

impl Links {
    pub(crate) fn insert(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: Multiaddr,
        is_admitted: bool,
        now: Instant,
    ) {
        let link = Link { peer, address, is_admitted, since: now, joined_at: None, rtt: None };
        self.links.insert(id, link);
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) {
        self.links.remove(&id);
    }

    pub(crate) fn ids(&self) -> Vec<ConnectionId> {
        self.links.keys().copied().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Whether there is any connection with the peer, admitted or not.
    pub(crate) fn is_linked(&self, peer: &PeerId) -> bool {
        self.links.values().any(|link| link.peer == *peer)
    }

    /// How many admitted connections there are with the peer.
    pub(crate) fn admitted(&self, peer: &PeerId) -> usize {
        self.links.values().filter(|link| link.peer == *peer && link.is_admitted).count()
    }

    /// What others may see of the peer.
    pub(crate) fn view(&self, peer: &PeerId) -> Option<Connected> {
        let mut links = self.links.values().filter(|link| link.peer == *peer && link.is_admitted);
        let first = links.next()?;
        let rtt = first.rtt.or_else(|| links.find_map(|link| link.rtt));
        Some(Connected { peer: *peer, rtt, address: first.address.clone() })
    }

    /// A round trip was measured; says with whom.
    pub(crate) fn on_ping(&mut self, id: ConnectionId, rtt: Duration) -> Option<PeerId> {
        let link = self.links.get_mut(&id)?;
        link.rtt = Some(rtt);
        link.is_admitted.then_some(link.peer)
    }

    /// Something of a join has come or gone over the connection.
    pub(crate) fn on_join(&mut self, id: ConnectionId, now: Instant) {
        if let Some(link) = self.links.get_mut(&id) {
            link.joined_at = Some(now);
        }
    }

    /// The connections to close now.
    pub(crate) fn to_close(
        &self,
        now: Instant,
        is_member: impl Fn(&PeerId) -> bool,
        is_joining: impl Fn(&PeerId) -> bool,
    ) -> Vec<ConnectionId> {
        let is_over = |link: &Link| {
            let is_member = is_member(&link.peer);
            if link.is_admitted {
                return !is_member;
            }
            let is_quiet = link.joined_at.is_none_or(|at| now.duration_since(at) >= JOIN_QUIET);
            let is_old = now.duration_since(link.since) >= STRANGER_TIME_MAX;
            is_quiet && (is_member || is_old) && !is_joining(&link.peer)
        };
        self.links.iter().filter(|(_, link)| is_over(link)).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_ends_when_admission_and_membership_differ_or_a_stranger_stays_too_long() {
        let start = Instant::now();
        let (member, stranger) = (PeerId([1; 32]), PeerId([2; 32]));
        let (one, two) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        let mut links = Links::default();
        links.insert(one, member, Multiaddr::empty(), true, start);
        links.insert(two, stranger, Multiaddr::empty(), false, start);
        let only_one = |peer: &PeerId| *peer == member;
        let nobody = |_: &PeerId| false;
        let everybody = |_: &PeerId| true;
        assert_eq!(links.to_close(start, only_one, nobody), []);
        assert_eq!(links.to_close(start, nobody, nobody), [one], "revoked");
        assert_eq!(links.to_close(start, everybody, nobody), [two], "to be admitted anew");
        let late = start + STRANGER_TIME_MAX;
        assert_eq!(links.to_close(late, only_one, nobody), [two]);
        assert_eq!(links.to_close(late, only_one, everybody), [], "our own join is waited for");
        links.on_join(two, late);
        assert_eq!(links.to_close(late, everybody, nobody), [], "the answer is still on its way");
        assert_eq!(links.to_close(late + JOIN_QUIET, everybody, nobody), [two]);
    }
}
