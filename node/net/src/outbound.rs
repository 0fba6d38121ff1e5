//! Our requests on their way: waiting for a connection or for their turn, or sent and waiting for the answer.
//!
//! What always holds: with one peer and for one protocol at most [`Protocol::in_flight_max`] requests are sent and at most
//! [`WAITING_MAX`] wait, in order; every request gets exactly one reply, or its sender is dropped with the network.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

use bytes::Bytes;
use libp2p::Multiaddr;
use libp2p::request_response::OutboundRequestId;
use remora_cluster::identity::PeerId;
use tokio::sync::oneshot;

use crate::protocol::Protocol;
use crate::request::RequestError;
use crate::wire::Cancel;

/// How many requests of one protocol wait for one peer.
pub(crate) const WAITING_MAX: usize = 1024;

/// Whom to ask.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Peer(PeerId),
    At { addresses: Vec<Multiaddr>, peer: Option<PeerId> },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Peer(peer) | Target::At { peer: Some(peer), .. } => peer.fmt(f),
            Target::At { addresses, peer: None } => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                f.write_str(&addresses.join(", "))
            }
        }
    }
}

pub(crate) type Answer = Result<(PeerId, Bytes), RequestError>;

/// A request that has not been sent.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) protocol: Protocol,
    pub(crate) body: Bytes,
    pub(crate) reply: oneshot::Sender<Answer>,
    pub(crate) cancel: Cancel,
}

impl Pending {
    /// Ends the request; if its caller has gone, nobody hears of it.
    pub(crate) fn fail(self, error: RequestError) {
        let _ = self.reply.send(Err(error));
    }
}

#[derive(Debug, Default)]
struct Lane {
    in_flight: usize,
    waiting: VecDeque<Pending>,
}

#[derive(Debug, Default)]
pub(crate) struct Outbound {
    lanes: BTreeMap<(PeerId, Protocol), Lane>,
    sent: HashMap<(Protocol, OutboundRequestId), (PeerId, oneshot::Sender<Answer>)>,
}

impl Outbound {
    /// Puts a request at the end of its queue; fails it if the queue is full.
    pub(crate) fn push(&mut self, peer: PeerId, pending: Pending) {
        let lane = self.lanes.entry((peer, pending.protocol)).or_default();
        lane.waiting.retain(|waiting| !waiting.reply.is_closed());
        if lane.waiting.len() >= WAITING_MAX {
            pending.fail(RequestError::Busy { peer });
        } else {
            lane.waiting.push_back(pending);
        }
    }

    /// The next request that may be sent now. Follow with [`Outbound::on_sent`].
    pub(crate) fn next(&mut self, peer: PeerId, protocol: Protocol) -> Option<Pending> {
        let lane = self.lanes.get_mut(&(peer, protocol))?;
        if lane.in_flight >= protocol.in_flight_max() {
            return None;
        }
        while let Some(pending) = lane.waiting.pop_front() {
            if !pending.reply.is_closed() {
                lane.in_flight += 1;
                return Some(pending);
            }
        }
        if lane.in_flight == 0 {
            self.lanes.remove(&(peer, protocol));
        }
        None
    }

    pub(crate) fn on_sent(
        &mut self,
        peer: PeerId,
        protocol: Protocol,
        id: OutboundRequestId,
        reply: oneshot::Sender<Answer>,
    ) {
        self.sent.insert((protocol, id), (peer, reply));
    }

    /// The request is over; gives its place in the lane free and returns whom to tell.
    pub(crate) fn on_done(
        &mut self,
        protocol: Protocol,
        id: OutboundRequestId,
    ) -> Option<(PeerId, oneshot::Sender<Answer>)> {
        let (peer, reply) = self.sent.remove(&(protocol, id))?;
        if let Some(lane) = self.lanes.get_mut(&(peer, protocol)) {
            lane.in_flight = lane.in_flight.saturating_sub(1);
            if lane.in_flight == 0 && lane.waiting.is_empty() {
                self.lanes.remove(&(peer, protocol));
            }
        }
        Some((peer, reply))
    }

    /// Whether anybody still waits to send to `peer`.
    pub(crate) fn is_waiting(&self, peer: &PeerId) -> bool {
        Protocol::ALL.iter().any(|protocol| {
            let lane = self.lanes.get(&(*peer, *protocol));
            lane.is_some_and(|lane| lane.waiting.iter().any(|pending| !pending.reply.is_closed()))
        })
    }

    /// Whether a join of ours with `peer` is waiting or under way.
    pub(crate) fn is_joining(&self, peer: &PeerId) -> bool {
        self.lanes.contains_key(&(*peer, Protocol::Join))
    }

    /// Fails all requests to `peer` that wait, but for those of the protocols in `keep`.
    pub(crate) fn fail_waiting(
        &mut self,
        peer: &PeerId,
        keep: &[Protocol],
        error: impl Fn(Protocol) -> RequestError,
    ) {
        for protocol in Protocol::ALL {
            if keep.contains(&protocol) {
                continue;
            }
            let Some(lane) = self.lanes.get_mut(&(*peer, protocol)) else { continue };
            for pending in lane.waiting.drain(..) {
                pending.fail(error(protocol));
            }
            if lane.in_flight == 0 {
                self.lanes.remove(&(*peer, protocol));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn pending() -> (Pending, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        let (_, cancel) = futures::channel::oneshot::channel();
        let pending =
            Pending { protocol: Protocol::Blocks, body: Bytes::new(), reply, cancel: cancel.shared() };
        (pending, answer)
    }

    #[test]
    fn a_full_queue_says_busy_and_those_who_gave_up_make_room() {
        let peer = PeerId([1; 32]);
        let mut outbound = Outbound::default();
        let mut waiting = Vec::new();
        for _ in 0..WAITING_MAX {
            let (pending, answer) = pending();
            outbound.push(peer, pending);
            waiting.push(answer);
        }
        let (one_more, mut answer) = pending();
        outbound.push(peer, one_more);
        assert!(matches!(answer.try_recv(), Ok(Err(RequestError::Busy { .. }))));
        waiting.pop();
        let (one_more, mut answer) = pending();
        outbound.push(peer, one_more);
        assert!(answer.try_recv().is_err(), "it waits");
    }

    #[test]
    fn no_more_than_the_bound_is_under_way() {
        let peer = PeerId([1; 32]);
        let mut outbound = Outbound::default();
        let mut answers = Vec::new();
        for _ in 0..100 {
            let (pending, answer) = pending();
            outbound.push(peer, pending);
            answers.push(answer);
        }
        let sent = std::iter::from_fn(|| outbound.next(peer, Protocol::Blocks)).count();
        assert_eq!(sent, Protocol::Blocks.in_flight_max());
        assert!(outbound.is_waiting(&peer));
        outbound.fail_waiting(&peer, &[], |_| RequestError::Stopped);
        assert!(!outbound.is_waiting(&peer));
    }
}
