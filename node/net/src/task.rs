//! The loop that owns the swarm: commands and network events in, requests, calls and notices out.
//!
//! Nothing here waits: handlers run in tasks of their own, notices go through their queues, and a request that cannot be
//! sent yet lies in [`Outbound`] until a connection or a place is there.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use libp2p::gossipsub::IdentTopic;
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{Multiaddr, Swarm};
use remora_cluster::identity::PeerId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::behaviour::{Host, HostEvent, topic_of};
use crate::config::NetConfig;
use crate::dialer::Dialer;
use crate::handler::Handler;
use crate::inbound::Inbound;
use crate::links::Links;
use crate::notices::Notices;
use crate::outbound::{Outbound, Pending, Target};
use crate::view::View;

const TICK: Duration = Duration::from_millis(100);
const REVIEW: Duration = Duration::from_secs(1);
/// How long an orderly end may take.
const FAREWELL: Duration = Duration::from_millis(500);
/// How many strangers are remembered so that each is logged once.
const STRANGERS_LOGGED_MAX: usize = 1024;

/// What handles ask of the loop.
pub(crate) enum Command {
    Ask { target: Target, pending: Pending },
    Publish(Bytes),
    Stop(oneshot::Sender<()>),
}

/// A request to an address whose owner we may not know yet.
pub(crate) struct Call {
    pub(crate) rest: VecDeque<Multiaddr>,
    pub(crate) tried: String,
    pub(crate) pending: Pending,
}

pub(crate) struct Task {
    pub(crate) swarm: Swarm<Host>,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) me: PeerId,
    pub(crate) topic: Option<IdentTopic>,
    pub(crate) view: Arc<View>,
    pub(crate) dialer: Dialer,
    pub(crate) links: Links,
    pub(crate) outbound: Outbound,
    pub(crate) inbound: Inbound,
    pub(crate) notices: Notices,
    /// Calls of `request_at` that are under way, each for one waiting caller.
    pub(crate) calls: HashMap<ConnectionId, Call>,
    logged: HashSet<PeerId>,
    random: RandomState,
    drawn: u64,
}

impl Task {
    pub(crate) fn new(
        swarm: Swarm<Host>,
        config: &NetConfig,
        handler: Arc<dyn Handler>,
        view: Arc<View>,
    ) -> Task {
        let me = config.key.peer_id();
        Task {
            swarm,
            me,
            topic: config.cluster.as_ref().map(topic_of),
            view,
            dialer: Dialer::new(me),
            links: Links::default(),
            outbound: Outbound::default(),
            inbound: Inbound::new(handler.clone()),
            notices: Notices::start(handler.clone()),
            handler,
            calls: HashMap::new(),
            logged: HashSet::new(),
            random: RandomState::new(),
            drawn: 0,
        }
    }

    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut wanted: watch::Receiver<BTreeMap<PeerId, Vec<Multiaddr>>>,
    ) {
        let (mut tick, mut review) = (interval(TICK), interval(REVIEW));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        review.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stopped = loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = commands.recv() => match command {
                    Some(Command::Ask { target, pending }) => {
                        // Whoever says where a peer is and then asks it relies on that order.
                        self.on_wanted(&mut wanted);
                        self.on_ask(target, pending);
                    }
                    Some(Command::Publish(message)) => self.on_publish(message),
                    Some(Command::Stop(done)) => break Some(done),
                    None => break None,
                },
                Some(served) = self.inbound.running.join_next() => match served {
                    Ok(served) => self.on_served(served),
                    Err(error) => tracing::error!(%error, "a request handler did not end well"),
                },
                Ok(()) = wanted.changed() => {
                    wanted.mark_changed();
                    self.on_wanted(&mut wanted);
                }
                _ = tick.tick() => self.call_due(),
                _ = review.tick() => self.review(),
            }
        };
        self.farewell().await;
        self.view.on_stopped();
        drop(self);
        if let Some(stopped) = stopped {
            // Whoever asked may have gone meanwhile.
            let _ = stopped.send(());
        }
    }

    fn on_wanted(&mut self, wanted: &mut watch::Receiver<BTreeMap<PeerId, Vec<Multiaddr>>>) {
        if !wanted.has_changed().unwrap_or(false) {
            return;
        }
        let peers = wanted.borrow_and_update().clone();
        self.dialer.set_wanted(&peers, Instant::now());
        self.review();
        self.call_due();
    }

    /// Closes what stands, so that the others need not find out by themselves.
    async fn farewell(&mut self) {
        for id in self.links.ids() {
            self.swarm.close_connection(id);
        }
        let closing = async {
            while !self.links.is_empty() {
                if let SwarmEvent::ConnectionClosed { connection_id, .. } =
                    self.swarm.select_next_some().await
                {
                    self.links.remove(connection_id);
                }
            }
        };
        // Whoever does not take leave in time is left to find out.
        let _ = timeout(FAREWELL, closing).await;
    }

    fn on_publish(&mut self, message: Bytes) {
        let (Some(topic), Some(gossip)) = (self.topic.as_ref(), self.swarm.behaviour_mut().gossip()) else {
            return;
        };
        if let Err(error) = gossip.publish(topic.clone(), message) {
            tracing::debug!(%error, "gossip went nowhere");
        }
    }

    /// Closes the connections whose admission is out of date.
    fn review(&mut self) {
        let (handler, outbound) = (self.handler.clone(), &self.outbound);
        let over = self.links.to_close(
            Instant::now(),
            |peer| handler.is_member(peer),
            |peer| outbound.is_joining(peer),
        );
        for id in over {
            self.swarm.close_connection(id);
        }
    }

    fn call_due(&mut self) {
        for peer in self.dialer.due(Instant::now()) {
            if !self.is_settled(&peer) {
                self.call(&peer);
            }
        }
    }

    /// Whether another connection to `peer` would change nothing.
    fn is_settled(&self, peer: &PeerId) -> bool {
        if self.handler.is_member(peer) { self.links.admitted(peer) > 0 } else { self.links.is_linked(peer) }
    }

    /// Says once, for each stranger, that it is one.
    pub(crate) fn log_stranger(&mut self, peer: &PeerId, address: &Multiaddr) {
        if self.logged.len() < STRANGERS_LOGGED_MAX && self.logged.insert(*peer) {
            tracing::info!(%peer, %address, "a peer without a certificate is connected; it may only ask to join");
        }
    }

    /// A number to spread things in time; nothing depends on its quality.
    pub(crate) fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.random.hash_one(self.drawn)
    }

    pub(crate) fn on_event(&mut self, event: SwarmEvent<HostEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(&peer_id, connection_id, endpoint.get_remote_address());
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                self.on_closed(&peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error } => {
                self.on_call_failed(peer_id.as_ref(), connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(address = %send_back_addr, %error, "an incoming connection did not stand");
            }
            SwarmEvent::NewListenAddr { address, .. } => self.view.on_listening(&address),
            SwarmEvent::ExpiredListenAddr { address, .. } => self.view.on_expired(&address),
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                addresses.iter().for_each(|address| self.view.on_expired(address));
                if let Err(error) = reason {
                    tracing::error!(%error, ?addresses, "a listener failed");
                }
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener had an error"),
            _ => {}
        }
    }
}
