//! The gate: behaviours that exist only on connections to members, and the limits on all connections.
//!
//! Membership is asked once, when a connection is established, before any protocol is negotiated on it. A connection that
//! was let in carries the inner behaviour; one that was not carries nothing of it, and its peer is told "no such protocol".
//! If the answer changes later, the connection is closed and made anew, which is simple and right: gossip, for one, decides
//! once per connection whether the other side takes part.
//!
//! The limits live here rather than in libp2p's own behaviour, which remembers every peer that was ever connected.
//!
//! What always holds: the inner behaviour never hears of a connection that was not let in, and the counts it is told
//! (`other_established`, `remaining_established`) are those of admitted connections alone.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use either::Either;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol as Part;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};
use thiserror::Error;

use crate::config::Limits;
use crate::handler::Handler;
use crate::peer::from_wire;

/// Why a connection was not let stand.
#[derive(Debug, Error)]
pub(crate) enum Denied {
    #[error("too many connections")]
    Total,
    #[error("too many connections with this peer")]
    SamePeer,
    #[error("too many connections of peers that are not members")]
    Strangers,
    #[error("too many unfinished connections")]
    Pending,
    #[error("too many unfinished connections from {0}")]
    Address(IpAddr),
    #[error("the peer has no ed25519 key")]
    Key,
}

/// `inner`, for members only.
pub(crate) struct Gate<B> {
    inner: B,
    handler: Arc<dyn Handler>,
    limits: Limits,
    /// Admitted connections of each peer; no empty sets.
    admitted: HashMap<PeerId, HashSet<ConnectionId>>,
    strangers: HashMap<ConnectionId, PeerId>,
    /// Let in, while another behaviour may still deny the connection.
    letting_in: HashSet<ConnectionId>,
    pending_in: HashMap<ConnectionId, IpAddr>,
}

impl<B: NetworkBehaviour> Gate<B> {
    pub(crate) fn new(inner: B, handler: Arc<dyn Handler>, limits: Limits) -> Gate<B> {
        Gate {
            inner,
            handler,
            limits,
            admitted: HashMap::new(),
            strangers: HashMap::new(),
            letting_in: HashSet::new(),
            pending_in: HashMap::new(),
        }
    }

    pub(crate) fn inner(&mut self) -> &mut B {
        &mut self.inner
    }

    /// Whether the inner behaviour runs on this connection.
    pub(crate) fn is_admitted(&self, peer: &PeerId, connection: ConnectionId) -> bool {
        self.admitted.get(peer).is_some_and(|connections| connections.contains(&connection))
    }

    /// Whether the connection gets the inner behaviour; an error if it may not stand at all.
    fn admit(&mut self, peer: &PeerId, connection: ConnectionId) -> Result<bool, ConnectionDenied> {
        self.pending_in.remove(&connection);
        let id = from_wire(peer).map_err(|_| ConnectionDenied::new(Denied::Key))?;
        let total = self.strangers.len() + self.admitted.values().map(HashSet::len).sum::<usize>();
        if total >= self.limits.connections_max as usize {
            return Err(ConnectionDenied::new(Denied::Total));
        }
        let strange = self.strangers.values().filter(|other| *other == peer).count();
        let same = strange + self.admitted.get(peer).map_or(0, HashSet::len);
        if same >= self.limits.per_peer_max as usize {
            return Err(ConnectionDenied::new(Denied::SamePeer));
        }
        if self.handler.is_member(&id) {
            self.letting_in.insert(connection);
            return Ok(true);
        }
        if self.strangers.len() >= self.limits.strangers_max as usize {
            return Err(ConnectionDenied::new(Denied::Strangers));
        }
        Ok(false)
    }

    fn forget(&mut self, connection: ConnectionId) {
        self.letting_in.remove(&connection);
        self.pending_in.remove(&connection);
    }

    fn on_established(&mut self, event: ConnectionEstablished<'_>) {
        if !self.letting_in.remove(&event.connection_id) {
            self.strangers.insert(event.connection_id, event.peer_id);
            return;
        }
        let connections = self.admitted.entry(event.peer_id).or_default();
        let other_established = connections.len();
        connections.insert(event.connection_id);
        let event = ConnectionEstablished { other_established, ..event };
        self.inner.on_swarm_event(FromSwarm::ConnectionEstablished(event));
    }

    fn on_closed(&mut self, event: ConnectionClosed<'_>) {
        self.strangers.remove(&event.connection_id);
        let Some(connections) = self.admitted.get_mut(&event.peer_id) else { return };
        if !connections.remove(&event.connection_id) {
            return;
        }
        let remaining_established = connections.len();
        if remaining_established == 0 {
            self.admitted.remove(&event.peer_id);
        }
        let event = ConnectionClosed { remaining_established, ..event };
        self.inner.on_swarm_event(FromSwarm::ConnectionClosed(event));
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Gate<B> {
    type ConnectionHandler = Either<THandler<B>, dummy::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(connection, local, remote)?;
        if self.pending_in.len() >= self.limits.pending_in_max as usize {
            return Err(ConnectionDenied::new(Denied::Pending));
        }
        let Some(address) = ip_of(remote) else { return Ok(()) };
        let same = self.pending_in.values().filter(|other| **other == address).count();
        if same >= self.limits.pending_in_per_ip_max as usize {
            return Err(ConnectionDenied::new(Denied::Address(address)));
        }
        self.pending_in.insert(connection, address);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.admit(&peer, connection)? {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.inner.handle_established_inbound_connection(connection, peer, local, remote).map(Either::Left)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.admit(&peer, connection)? {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        let handler =
            self.inner.handle_established_outbound_connection(connection, peer, address, role, port_use);
        handler.map(Either::Left)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(event),
            FromSwarm::AddressChange(event) => {
                if self.is_admitted(&event.peer_id, event.connection_id) {
                    self.inner.on_swarm_event(FromSwarm::AddressChange(event));
                }
            }
            FromSwarm::DialFailure(event) => {
                self.forget(event.connection_id);
                self.inner.on_swarm_event(FromSwarm::DialFailure(event));
            }
            FromSwarm::ListenFailure(event) => {
                self.forget(event.connection_id);
                self.inner.on_swarm_event(FromSwarm::ListenFailure(event));
            }
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            Either::Left(event) => self.inner.on_connection_handler_event(peer, connection, event),
            Either::Right(never) => match never {},
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(cx).map(|action| action.map_in(Either::Left))
    }
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Part::Ip4(ip) => Some(IpAddr::V4(ip)),
        Part::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    })
}
