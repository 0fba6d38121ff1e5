//! Whom to call, and when: every wanted peer that is not connected, again and again, ever more slowly. Pure.
//!
//! What always holds: a peer is called at most once at a time, at most every [`BACKOFF_MIN`], at least every
//! [`BACKOFF_MAX`] (half as much again with jitter); of two hosts that want each other, the one with the greater id holds
//! back at first, so that they mostly end up with one connection.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol as Part;
use remora_cluster::identity::PeerId;

use crate::peer::from_wire;

/// The first pause after a failure.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest pause, before jitter.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How many addresses of one peer are kept and tried.
pub(crate) const ADDRESSES_MAX: usize = 16;
/// How many peers that nobody asked for are remembered from the local network.
const FOUND_MAX: usize = 1024;

#[derive(Debug)]
struct Wanted {
    failures: u32,
    next_at: Instant,
}

/// The book of peers to call.
#[derive(Debug)]
pub(crate) struct Dialer {
    me: PeerId,
    told: BTreeMap<PeerId, Vec<Multiaddr>>,
    found: BTreeMap<PeerId, Vec<Multiaddr>>,
    wanted: BTreeMap<PeerId, Wanted>,
    calling: BTreeSet<PeerId>,
}

impl Dialer {
    pub(crate) fn new(me: PeerId) -> Dialer {
        let (told, found) = (BTreeMap::new(), BTreeMap::new());
        Dialer { me, told, found, wanted: BTreeMap::new(), calling: BTreeSet::new() }
    }

    /// Replaces who is wanted, and where they are. Peers whose addresses changed are called at once.
    pub(crate) fn set_wanted(&mut self, peers: &BTreeMap<PeerId, Vec<Multiaddr>>, now: Instant) {
        let me = self.me;
        self.wanted.retain(|peer, _| peers.contains_key(peer));
        let mut told = BTreeMap::new();
        for (peer, addresses) in peers.iter().filter(|(peer, _)| **peer != me) {
            let addresses = cleaned(peer, addresses);
            let hold_back = if *peer < me { BACKOFF_MIN } else { Duration::ZERO };
            let fresh = Wanted { failures: 0, next_at: now + hold_back };
            if self.told.get(peer) == Some(&addresses) {
                self.wanted.entry(*peer).or_insert(fresh);
            } else {
                self.wanted.insert(*peer, fresh);
            }
            told.insert(*peer, addresses);
        }
        self.told = told;
    }

    /// An address seen on the local network. Kept only as a hint: who answers there must still prove the id.
    pub(crate) fn found(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) {
        let is_known = self.found.contains_key(&peer) || self.wanted.contains_key(&peer);
        if !is_known && self.found.len() >= FOUND_MAX {
            return;
        }
        let Some(address) = cleaned(&peer, std::slice::from_ref(address)).pop() else { return };
        let known = self.found.entry(peer).or_default();
        if known.len() < ADDRESSES_MAX && !known.contains(&address) {
            known.push(address);
            if let Some(wanted) = self.wanted.get_mut(&peer) {
                wanted.next_at = wanted.next_at.min(now + BACKOFF_MIN);
            }
        }
    }

    /// The address is no longer seen.
    pub(crate) fn lost(&mut self, peer: &PeerId, address: &Multiaddr) {
        let gone = cleaned(peer, std::slice::from_ref(address));
        if let Some(known) = self.found.get_mut(peer) {
            known.retain(|address| !gone.contains(address));
            if known.is_empty() {
                self.found.remove(peer);
            }
        }
    }

    /// Where `peer` may be, told addresses first.
    pub(crate) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let told = self.told.get(peer).into_iter().flatten();
        let found = self.found.get(peer).into_iter().flatten();
        let mut addresses: Vec<Multiaddr> = Vec::new();
        for address in told.chain(found) {
            if addresses.len() < ADDRESSES_MAX && !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    /// The peers to call now; the caller leaves out those who are connected.
    pub(crate) fn due(&self, now: Instant) -> Vec<PeerId> {
        let due = self.wanted.iter().filter(|(peer, wanted)| wanted.next_at <= now && !self.is_calling(peer));
        due.map(|(peer, _)| *peer).collect()
    }

    /// Whether a call to `peer` is under way.
    pub(crate) fn is_calling(&self, peer: &PeerId) -> bool {
        self.calling.contains(peer)
    }

    /// A call has begun.
    pub(crate) fn on_calling(&mut self, peer: PeerId) {
        self.calling.insert(peer);
    }

    /// A call has failed; `random` spreads the next one.
    pub(crate) fn on_failed(&mut self, peer: &PeerId, now: Instant, random: u64) {
        self.calling.remove(peer);
        if let Some(wanted) = self.wanted.get_mut(peer) {
            wanted.next_at = now + pause(wanted.failures, random);
            wanted.failures = wanted.failures.saturating_add(1);
        }
    }

    /// The peer is connected, by whoever's call.
    pub(crate) fn on_connected(&mut self, peer: &PeerId) {
        self.calling.remove(peer);
        if let Some(wanted) = self.wanted.get_mut(peer) {
            wanted.failures = 0;
        }
    }

    /// The last connection is gone: call again soon, but not in the same moment as the other side.
    pub(crate) fn on_disconnected(&mut self, peer: &PeerId, now: Instant, random: u64) {
        let hold_back = if *peer < self.me { 2 * BACKOFF_MIN } else { BACKOFF_MIN };
        if let Some(wanted) = self.wanted.get_mut(peer) {
            wanted.next_at = now + hold_back + jitter(hold_back, random);
        }
    }
}

fn pause(failures: u32, random: u64) -> Duration {
    let doubled = BACKOFF_MIN.saturating_mul(2u32.saturating_pow(failures.min(16)));
    let pause = doubled.min(BACKOFF_MAX);
    pause + jitter(pause, random)
}

/// Up to half of `pause`.
fn jitter(pause: Duration, random: u64) -> Duration {
    let part = u32::try_from(random % 1000).unwrap_or(0);
    pause / 2 * part / 1000
}

/// At most [`ADDRESSES_MAX`], without `/p2p/...` at the end; those that name somebody else are left out.
fn cleaned(peer: &PeerId, addresses: &[Multiaddr]) -> Vec<Multiaddr> {
    let mut cleaned = Vec::new();
    for address in addresses.iter().take(ADDRESSES_MAX) {
        let (address, named) = split_peer(address);
        if named.is_none_or(|named| named == Some(*peer)) && !cleaned.contains(&address) {
            cleaned.push(address);
        }
    }
    cleaned
}

/// Splits `/ip4/.../p2p/ID` into the address and the id: `None` if it names nobody, `Some(None)` if nobody we can name.
pub(crate) fn split_peer(address: &Multiaddr) -> (Multiaddr, Option<Option<PeerId>>) {
    let mut bare = address.clone();
    match bare.pop() {
        Some(Part::P2p(peer)) => (bare, Some(from_wire(&peer).ok())),
        _ => (address.clone(), None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    fn wanting(me: u8, peer: u8, now: Instant) -> Dialer {
        let mut dialer = Dialer::new(PeerId([me; 32]));
        let peers =
            BTreeMap::from([(PeerId([peer; 32]), vec![address(1)]), (PeerId([me; 32]), vec![address(2)])]);
        dialer.set_wanted(&peers, now);
        dialer
    }

    #[test]
    fn the_lesser_id_calls_first_and_nobody_calls_itself() {
        let now = Instant::now();
        let (lesser, greater) = (wanting(1, 2, now), wanting(2, 1, now));
        assert_eq!(lesser.due(now), [PeerId([2; 32])]);
        assert_eq!(greater.due(now), []);
        assert_eq!(greater.due(now + BACKOFF_MIN), [PeerId([1; 32])]);
    }

    #[test]
    fn new_addresses_are_tried_at_once_and_the_same_ones_are_not() {
        let now = Instant::now();
        let peer = PeerId([2; 32]);
        let mut dialer = wanting(1, 2, now);
        dialer.on_calling(peer);
        assert_eq!(dialer.due(now), [], "one call at a time");
        dialer.on_failed(&peer, now, 0);
        dialer.set_wanted(&BTreeMap::from([(peer, vec![address(1)])]), now);
        assert_eq!(dialer.due(now), []);
        dialer.set_wanted(&BTreeMap::from([(peer, vec![address(3)])]), now);
        assert_eq!(dialer.due(now), [peer]);
        assert_eq!(dialer.addresses(&peer), [address(3)]);
        dialer.set_wanted(&BTreeMap::new(), now);
        assert_eq!(dialer.due(now), []);
        assert_eq!(dialer.addresses(&peer), []);
    }

    #[test]
    fn an_address_that_names_somebody_else_is_not_called() {
        let now = Instant::now();
        let (peer, other) = (crate::identity::Identity::generate(), crate::identity::Identity::generate());
        let named = |identity: &crate::identity::Identity, port| {
            let id = crate::peer::to_wire(&identity.peer_id()).unwrap();
            address(port).with(Part::P2p(id))
        };
        let mut dialer = Dialer::new(PeerId([1; 32]));
        let addresses = vec![named(&other, 1), named(&peer, 2), address(2)];
        dialer.set_wanted(&BTreeMap::from([(peer.peer_id(), addresses)]), now);
        assert_eq!(dialer.addresses(&peer.peer_id()), [address(2)]);
    }

    #[test]
    fn what_the_local_network_says_is_a_bounded_hint() {
        let now = Instant::now();
        let peer = PeerId([2; 32]);
        let mut dialer = wanting(1, 2, now);
        for port in 10..100 {
            dialer.found(peer, &address(port), now);
        }
        assert_eq!(dialer.addresses(&peer).len(), ADDRESSES_MAX);
        assert_eq!(dialer.addresses(&peer)[0], address(1), "what we were told comes first");
        for port in 10..100 {
            dialer.lost(&peer, &address(port));
        }
        assert_eq!(dialer.addresses(&peer), [address(1)]);
    }

    proptest! {
        #[test]
        fn pauses_stay_within_their_bounds(failures in any::<u32>(), random in any::<u64>()) {
            let pause = pause(failures, random);
            prop_assert!(pause >= BACKOFF_MIN && pause <= BACKOFF_MAX * 3 / 2);
        }
    }
}
