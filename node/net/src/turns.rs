//! What the loop does about each event: connections that come and go, requests in both directions, gossip.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use libp2p::core::transport::TransportError;
use libp2p::gossipsub::{self, MessageAcceptance};
use libp2p::request_response::{Message, OutboundFailure};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use libp2p::{Multiaddr, PeerId as WirePeerId, mdns, ping};
use remora_cluster::identity::PeerId;

use crate::behaviour::{HostEvent, MembersEvent, RequestEvent};
use crate::dialer::split_peer;
use crate::inbound::Served;
use crate::outbound::{Pending, Target};
use crate::peer::{from_wire, to_wire};
use crate::protocol::Protocol;
use crate::request::RequestError;
use crate::task::{Call, Task};
use crate::wire::{Reply, Request};

impl Task {
    pub(crate) fn on_ask(&mut self, target: Target, pending: Pending) {
        match target {
            Target::Peer(peer) => self.ask_peer(peer, pending),
            Target::At { addresses, peer: Some(peer) } if self.links.is_linked(&peer) => {
                self.call_at(addresses, Some(peer), pending, true);
            }
            Target::At { addresses, peer } => self.call_at(addresses, peer, pending, false),
        }
    }

    fn ask_peer(&mut self, peer: PeerId, pending: Pending) {
        let protocol = pending.protocol;
        if peer == self.me {
            let reason = "that is this host itself".into();
            return pending.fail(RequestError::NotConnected { peer: peer.to_string(), reason });
        }
        let is_linked = self.links.is_linked(&peer);
        if is_linked && protocol != Protocol::Join && !self.handler.is_member(&peer) {
            return pending.fail(RequestError::NotMember { peer, protocol });
        }
        self.outbound.push(peer, pending);
        self.pump(&peer);
        if self.outbound.is_waiting(&peer) && !self.can_send(&peer, protocol) {
            self.call(&peer);
        }
    }

    /// Whether there is a connection for the protocol, so that what waits only waits for its turn.
    fn can_send(&self, peer: &PeerId, protocol: Protocol) -> bool {
        if protocol == Protocol::Join { self.links.is_linked(peer) } else { self.links.admitted(peer) > 0 }
    }

    /// Sends what may be sent to `peer` now.
    fn pump(&mut self, peer: &PeerId) {
        let Ok(wire) = to_wire(peer) else { return };
        for protocol in Protocol::ALL {
            if !self.can_send(peer, protocol) {
                continue;
            }
            while let Some(Pending { body, reply, cancel, .. }) = self.outbound.next(*peer, protocol) {
                let request = Request { body, cancel: Some(cancel) };
                let id = self.swarm.behaviour_mut().requests(protocol).send_request(&wire, request);
                self.outbound.on_sent(*peer, protocol, id, reply);
            }
        }
    }

    /// Calls a peer at its known addresses, unless a call is under way.
    pub(crate) fn call(&mut self, peer: &PeerId) {
        if self.dialer.is_calling(peer) {
            return;
        }
        let addresses = self.dialer.addresses(peer);
        let wire = match to_wire(peer) {
            Ok(wire) if !addresses.is_empty() => wire,
            _ => return self.on_unreachable(peer, "no address is known"),
        };
        let options = DialOpts::peer_id(wire).condition(PeerCondition::Always).addresses(addresses);
        self.dialer.on_calling(*peer);
        if let Err(error) = self.swarm.dial(options.allocate_new_port().build()) {
            self.on_unreachable(peer, &reason_of(&error));
        }
    }

    fn on_unreachable(&mut self, peer: &PeerId, reason: &str) {
        let random = self.draw();
        self.dialer.on_failed(peer, Instant::now(), random);
        let not_connected =
            |_| RequestError::NotConnected { peer: peer.to_string(), reason: reason.to_owned() };
        let keep =
            Protocol::ALL.into_iter().filter(|protocol| self.can_send(peer, *protocol)).collect::<Vec<_>>();
        self.outbound.fail_waiting(peer, &keep, not_connected);
    }

    /// Calls the first of `addresses` for one request; `is_linked` asks the connection that stands instead.
    fn call_at(
        &mut self,
        addresses: Vec<Multiaddr>,
        peer: Option<PeerId>,
        pending: Pending,
        is_linked: bool,
    ) {
        if let Some(peer) = peer.filter(|_| is_linked) {
            return self.ask_peer(peer, pending);
        }
        let named = |address: &Multiaddr| match (peer, split_peer(address).1) {
            (Some(peer), Some(named)) => named == Some(peer),
            _ => true,
        };
        let mut rest: std::collections::VecDeque<_> = addresses.into_iter().filter(named).collect();
        if let Some(wire) = peer.and_then(|peer| to_wire(&peer).ok()) {
            for address in &mut rest {
                *address = split_peer(address).0.with(libp2p::multiaddr::Protocol::P2p(wire));
            }
        }
        self.call_next(Call { rest, tried: "no address was given".into(), pending });
    }

    fn call_next(&mut self, mut call: Call) {
        while let Some(address) = call.rest.pop_front() {
            let (bare, named) = split_peer(&address);
            let options = match named.flatten().and_then(|peer| to_wire(&peer).ok()) {
                Some(wire) => {
                    let options = DialOpts::peer_id(wire).condition(PeerCondition::Always);
                    options.addresses(vec![bare]).allocate_new_port().build()
                }
                None => DialOpts::unknown_peer_id().address(bare).allocate_new_port().build(),
            };
            let id = options.connection_id();
            match self.swarm.dial(options) {
                Ok(()) => {
                    self.calls.insert(id, call);
                    return;
                }
                Err(error) => call.tried = format!("{address}: {}", reason_of(&error)),
            }
        }
        let reason = call.tried;
        call.pending.fail(RequestError::NotConnected { peer: "the given addresses".into(), reason });
    }

    pub(crate) fn on_established(&mut self, wire: &WirePeerId, id: ConnectionId, address: &Multiaddr) {
        let Ok(peer) = from_wire(wire) else {
            self.swarm.close_connection(id);
            return;
        };
        let is_admitted = self.swarm.behaviour().members.is_admitted(wire, id);
        let is_first = is_admitted && self.links.admitted(&peer) == 0;
        self.links.insert(id, peer, address.clone(), is_admitted, Instant::now());
        self.dialer.on_connected(&peer);
        if is_first {
            tracing::info!(%peer, %address, "member connected");
            self.notices.on_connected(peer);
        }
        if !is_admitted {
            self.log_stranger(&peer, address);
        }
        self.view.on_peer(&peer, self.links.view(&peer));
        if let Some(call) = self.calls.remove(&id) {
            self.ask_peer(peer, call.pending);
        }
        self.pump(&peer);
        if !is_admitted && self.links.admitted(&peer) == 0 {
            let not_member = |protocol| RequestError::NotMember { peer, protocol };
            self.outbound.fail_waiting(&peer, &[Protocol::Join], not_member);
        }
    }

    pub(crate) fn on_closed(&mut self, wire: &WirePeerId, id: ConnectionId) {
        let Ok(peer) = from_wire(wire) else { return };
        let was_connected = self.links.admitted(&peer) > 0;
        self.links.remove(id);
        self.view.on_peer(&peer, self.links.view(&peer));
        if was_connected && self.links.admitted(&peer) == 0 {
            tracing::info!(%peer, "member disconnected");
            self.notices.on_disconnected(&peer);
        }
        if !self.links.is_linked(&peer) {
            let random = self.draw();
            self.dialer.on_disconnected(&peer, Instant::now(), random);
            if self.outbound.is_waiting(&peer) {
                self.call(&peer);
            }
        }
    }

    pub(crate) fn on_call_failed(&mut self, wire: Option<&WirePeerId>, id: ConnectionId, error: &DialError) {
        if let Some(mut call) = self.calls.remove(&id) {
            if let (DialError::WrongPeerId { obtained, .. }, Some(expected)) =
                (error, wire.and_then(|wire| from_wire(wire).ok()))
                && call.rest.is_empty()
            {
                let found =
                    from_wire(obtained).map_or_else(|_| obtained.to_string(), |peer| peer.to_string());
                return call.pending.fail(RequestError::WrongPeer { expected, found });
            }
            call.tried = reason_of(error);
            return self.call_next(call);
        }
        if let Some(peer) = wire.and_then(|wire| from_wire(wire).ok()) {
            self.on_unreachable(&peer, &reason_of(error));
        }
    }

    pub(crate) fn on_behaviour(&mut self, event: HostEvent) {
        match event {
            HostEvent::Join(event) => self.on_exchange(Protocol::Join, event),
            HostEvent::Members(MembersEvent::Keeper(event)) => self.on_exchange(Protocol::Keeper, event),
            HostEvent::Members(MembersEvent::Blocks(event)) => self.on_exchange(Protocol::Blocks, event),
            HostEvent::Members(MembersEvent::Registry(event)) => self.on_exchange(Protocol::Registry, event),
            HostEvent::Members(MembersEvent::Log(event)) => self.on_exchange(Protocol::Log, event),
            HostEvent::Members(MembersEvent::Gossip(event)) => self.on_gossip(event),
            HostEvent::Ping(event) => self.on_ping(event),
            HostEvent::Mdns(mdns::Event::Discovered(found)) => self.on_found(&found, true),
            HostEvent::Mdns(mdns::Event::Expired(lost)) => self.on_found(&lost, false),
            HostEvent::Identify(_) => {}
        }
    }

    fn on_found(&mut self, addresses: &[(WirePeerId, Multiaddr)], is_found: bool) {
        for (wire, address) in addresses {
            match from_wire(wire) {
                Ok(peer) if is_found => self.dialer.found(peer, address, Instant::now()),
                Ok(peer) => self.dialer.lost(&peer, address),
                Err(_) => {}
            }
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        match event.result {
            Ok(rtt) => {
                if let Some(peer) = self.links.on_ping(event.connection, rtt) {
                    self.view.on_peer(&peer, self.links.view(&peer));
                }
            }
            Err(ping::Failure::Unsupported) => {}
            Err(error) => {
                // A cable that was cut says nothing; without this, TCP would believe in it for a quarter of an hour.
                tracing::debug!(peer = %event.peer, %error, "no answer to a ping");
                self.swarm.close_connection(event.connection);
            }
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        let gossipsub::Event::Message { propagation_source, message_id, message } = event else { return };
        let author = message.source.and_then(|wire| from_wire(&wire).ok());
        let author = author.filter(|author| self.handler.is_member(author));
        let verdict = if author.is_some() { MessageAcceptance::Accept } else { MessageAcceptance::Ignore };
        if let Some(gossip) = self.swarm.behaviour_mut().gossip() {
            gossip.report_message_validation_result(&message_id, &propagation_source, verdict);
        }
        if let Some(author) = author {
            self.notices.on_gossip(author, Bytes::from(message.data));
        }
    }

    fn on_exchange(&mut self, protocol: Protocol, event: RequestEvent) {
        match event {
            RequestEvent::Message { peer, connection_id, message } => {
                if protocol == Protocol::Join {
                    self.links.on_join(connection_id, Instant::now());
                }
                match message {
                    Message::Response { request_id, response } => {
                        let Some((peer, reply)) = self.outbound.on_done(protocol, request_id) else { return };
                        // The caller may have given up meanwhile.
                        let _ = reply.send(answer_of(peer, response));
                        self.pump(&peer);
                    }
                    Message::Request { request_id, request, channel } => {
                        let Ok(peer) = from_wire(&peer) else { return };
                        if protocol != Protocol::Join && !self.handler.is_member(&peer) {
                            let reply = Reply::Refused("this host does not know yours as a member".into());
                            return self.on_served(Served { protocol, channel, reply });
                        }
                        if let Err(channel) =
                            self.inbound.on_request(peer, protocol, request_id, request, channel)
                        {
                            self.on_served(Served { protocol, channel, reply: Reply::Busy });
                        }
                    }
                }
            }
            RequestEvent::OutboundFailure { request_id, error, .. } => {
                let Some((peer, reply)) = self.outbound.on_done(protocol, request_id) else { return };
                // The caller may have given up meanwhile.
                let _ = reply.send(Err(failure_of(peer, protocol, error)));
                self.pump(&peer);
            }
            RequestEvent::InboundFailure { peer, request_id, error, .. } => {
                tracing::debug!(%peer, %protocol, %error, "an answer did not leave");
                self.inbound.on_done(protocol, request_id);
            }
            RequestEvent::ResponseSent { connection_id, request_id, .. } => {
                if protocol == Protocol::Join {
                    self.links.on_join(connection_id, Instant::now());
                }
                self.inbound.on_done(protocol, request_id);
            }
        }
    }

    pub(crate) fn on_served(&mut self, served: Served) {
        let Served { protocol, channel, reply } = served;
        // If the asker has gone, the failure comes as an event of its own.
        let _ = self.swarm.behaviour_mut().requests(protocol).send_response(channel, reply);
    }
}

fn answer_of(peer: PeerId, reply: Reply) -> Result<(PeerId, Bytes), RequestError> {
    match reply {
        Reply::Done(body) => Ok((peer, body)),
        Reply::Refused(reason) => Err(RequestError::Refused(reason)),
        Reply::Busy => Err(RequestError::Busy { peer }),
    }
}

fn failure_of(peer: PeerId, protocol: Protocol, failure: OutboundFailure) -> RequestError {
    let broken = |source: io::Error| RequestError::Broken { peer, source: Arc::new(source) };
    match failure {
        OutboundFailure::DialFailure => {
            let reason = "the connection went away".into();
            RequestError::NotConnected { peer: peer.to_string(), reason }
        }
        OutboundFailure::UnsupportedProtocols => RequestError::NotMember { peer, protocol },
        OutboundFailure::Timeout => broken(io::Error::from(io::ErrorKind::TimedOut)),
        OutboundFailure::ConnectionClosed => broken(io::Error::from(io::ErrorKind::ConnectionReset)),
        OutboundFailure::Io(source) => broken(source),
    }
}

/// The error in a line, without the type names libp2p prints.
fn reason_of(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => {
            let each = errors.iter().map(|(address, error)| match error {
                TransportError::MultiaddrNotSupported(_) => format!("{address}: not a TCP address"),
                TransportError::Other(error) => format!("{address}: {}", innermost(error)),
            });
            each.collect::<Vec<_>>().join("; ")
        }
        DialError::WrongPeerId { obtained, .. } => format!("{obtained} answers there"),
        DialError::LocalPeerId { .. } => "that is this host itself".into(),
        DialError::Denied { cause } => innermost(cause),
        other => other.to_string(),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
