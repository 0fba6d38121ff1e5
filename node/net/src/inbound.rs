//! Requests of others: each runs in a task of its own, within two bounds.
//!
//! What always holds: of one peer and protocol at most [`Protocol::serve_max`] requests are open, from their arrival until
//! the answer has left, so that a peer that does not read its answers holds no more of our memory than that; more are
//! answered "busy". Over all peers, a fixed number a protocol runs at a time and the others wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use libp2p::request_response::{InboundRequestId, ResponseChannel};
use remora_cluster::identity::PeerId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::handler::Handler;
use crate::protocol::Protocol;
use crate::request::REQUEST_TIME_MAX;
use crate::wire::{Reply, Request};

/// An answer that is ready to be sent.
pub(crate) struct Served {
    pub(crate) protocol: Protocol,
    pub(crate) channel: ResponseChannel<Reply>,
    pub(crate) reply: Reply,
}

pub(crate) struct Inbound {
    handler: Arc<dyn Handler>,
    rooms: BTreeMap<Protocol, Arc<Semaphore>>,
    places: HashMap<(PeerId, Protocol), Arc<Semaphore>>,
    open: HashMap<(Protocol, InboundRequestId), (PeerId, OwnedSemaphorePermit)>,
    pub(crate) running: JoinSet<Served>,
}

/// How many requests of a protocol run at a time, over all peers.
fn room(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Join => 8,
        Protocol::Keeper => 256,
        Protocol::Blocks | Protocol::Registry | Protocol::Log => 32,
    }
}

impl Inbound {
    pub(crate) fn new(handler: Arc<dyn Handler>) -> Inbound {
        let rooms = Protocol::ALL.map(|protocol| (protocol, Arc::new(Semaphore::new(room(protocol)))));
        let (places, open) = (HashMap::new(), HashMap::new());
        Inbound { handler, rooms: BTreeMap::from(rooms), places, open, running: JoinSet::new() }
    }

    /// Starts the work on a request; gives the channel back if the peer has too many open.
    pub(crate) fn on_request(
        &mut self,
        peer: PeerId,
        protocol: Protocol,
        id: InboundRequestId,
        request: Request,
        channel: ResponseChannel<Reply>,
    ) -> Result<(), ResponseChannel<Reply>> {
        let places = self.places.entry((peer, protocol));
        let places = places.or_insert_with(|| Arc::new(Semaphore::new(protocol.serve_max())));
        let Ok(place) = places.clone().try_acquire_owned() else { return Err(channel) };
        let Some(room) = self.rooms.get(&protocol).cloned() else { return Err(channel) };
        self.open.insert((protocol, id), (peer, place));
        let handler = self.handler.clone();
        self.running.spawn(async move {
            // The semaphore is never closed, so there always is a permit in the end.
            let _permit = room.acquire_owned().await;
            let work = handler.on_request(peer, protocol, request.body);
            let reply = match tokio::time::timeout(REQUEST_TIME_MAX, work).await {
                Ok(Ok(body)) => Reply::Done(body),
                Ok(Err(refused)) => Reply::Refused(refused.reason),
                Err(_) => Reply::Busy,
            };
            Served { protocol, channel, reply }
        });
        Ok(())
    }

    /// The answer has left, or cannot any more.
    pub(crate) fn on_done(&mut self, protocol: Protocol, id: InboundRequestId) {
        let Some((peer, place)) = self.open.remove(&(protocol, id)) else { return };
        drop(place);
        let idle = |places: &Arc<Semaphore>| places.available_permits() == protocol.serve_max();
        if self.places.get(&(peer, protocol)).is_some_and(idle) {
            self.places.remove(&(peer, protocol));
        }
    }
}
