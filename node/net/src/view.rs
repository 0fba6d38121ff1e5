//! What others may see of the network at any time: where it listens and with whom it is connected.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol as Part;
use parking_lot::Mutex;
use remora_cluster::identity::PeerId;
use tokio::sync::watch;

use crate::behaviour::is_loopback;

/// A member there is a connection with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Who it is.
    pub peer: PeerId,
    /// The last measured time of a round trip; `None` until there is one.
    pub rtt: Option<Duration>,
    /// Where it is; a port the system chose if the peer called us.
    pub address: Multiaddr,
}

/// Shared between the loop, which writes, and the handles, which read.
#[derive(Debug)]
pub(crate) struct View {
    /// In the order in which they are shown.
    listen: watch::Sender<Vec<Multiaddr>>,
    connected: Mutex<BTreeMap<PeerId, Connected>>,
}

impl Default for View {
    fn default() -> View {
        View { listen: watch::Sender::new(Vec::new()), connected: Mutex::default() }
    }
}

impl View {
    pub(crate) fn listen_addrs(&self) -> Vec<Multiaddr> {
        self.listen.borrow().clone()
    }

    pub(crate) fn advertised_addrs(&self) -> Vec<Multiaddr> {
        let all: Vec<_> = self.listen_addrs().into_iter().filter(|address| !is_link_local(address)).collect();
        let far: Vec<_> = all.iter().filter(|address| !is_loopback(address)).cloned().collect();
        if far.is_empty() { all } else { far }
    }

    pub(crate) async fn listening(&self) -> Vec<Multiaddr> {
        let mut changes = self.listen.subscribe();
        match changes.wait_for(|addresses| !addresses.is_empty()).await {
            Ok(addresses) => addresses.clone(),
            Err(_) => Vec::new(),
        }
    }

    pub(crate) fn connected(&self) -> Vec<Connected> {
        self.connected.lock().values().cloned().collect()
    }

    pub(crate) fn on_listening(&self, address: &Multiaddr) {
        self.listen.send_modify(|addresses| {
            if !addresses.contains(address) {
                addresses.push(address.clone());
                addresses.sort_by_key(|address| (is_loopback(address), is_link_local(address)));
            }
        });
    }

    pub(crate) fn on_expired(&self, address: &Multiaddr) {
        self.listen.send_modify(|addresses| addresses.retain(|other| other != address));
    }

    /// The state of the connections with `peer` as it is now; `None` if there are none.
    pub(crate) fn on_peer(&self, peer: &PeerId, now: Option<Connected>) {
        let mut connected = self.connected.lock();
        match now {
            Some(now) => connected.insert(*peer, now),
            None => connected.remove(peer),
        };
    }

    pub(crate) fn on_stopped(&self) {
        self.listen.send_replace(Vec::new());
        self.connected.lock().clear();
    }
}

/// Addresses that mean nothing to another host without the name of an interface.
fn is_link_local(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        Part::Ip4(ip) => ip.is_link_local(),
        Part::Ip6(ip) => ip.is_unicast_link_local(),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_loopback_only_if_there_is_nothing_else() {
        let view = View::default();
        let address = |text: &str| text.parse::<Multiaddr>().unwrap();
        view.on_listening(&address("/ip4/127.0.0.1/tcp/1"));
        assert_eq!(view.advertised_addrs(), [address("/ip4/127.0.0.1/tcp/1")]);
        view.on_listening(&address("/ip6/fe80::1/tcp/1"));
        view.on_listening(&address("/ip4/10.0.0.1/tcp/1"));
        assert_eq!(view.advertised_addrs(), [address("/ip4/10.0.0.1/tcp/1")]);
        assert_eq!(view.listen_addrs().len(), 3);
        assert_eq!(view.listen_addrs()[0], address("/ip4/10.0.0.1/tcp/1"));
        view.on_expired(&address("/ip4/10.0.0.1/tcp/1"));
        assert_eq!(view.advertised_addrs(), [address("/ip4/127.0.0.1/tcp/1")]);
    }
}
