//! The protocols of a host, put together: what everybody may speak, and what the gate keeps for members.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use libp2p::core::upgrade::Version;
use libp2p::gossipsub::{
    self, IdentTopic, MaxCountSubscriptionFilter, MessageAuthenticity, ValidationMode,
    WhitelistSubscriptionFilter,
};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol as Part;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{Multiaddr, PeerId, Swarm, Transport, identify, mdns, noise, ping, swarm, tcp, yamux};
use remora_cluster::identity::ClusterId;

use crate::config::NetConfig;
use crate::gate::Gate;
use crate::handler::Handler;
use crate::net::StartError;
use crate::protocol::Protocol;
use crate::request::REQUEST_TIME_MAX;
use crate::wire::{Frames, Reply, Request};

/// The longest gossip message, in bytes (inclusive); signature and framing fit beside it into 64 KiB.
pub(crate) const GOSSIP_BYTES_MAX: usize = 62 * 1024;
const TRANSMIT_BYTES_MAX: usize = 64 * 1024;

const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIME_MAX: Duration = Duration::from_secs(10);
/// A join is small and quick, and its stream may belong to a stranger who only wants to hold it.
const JOIN_TIME_MAX: Duration = Duration::from_secs(30);
const GOSSIP_HEARTBEAT: Duration = Duration::from_millis(700);
const STREAMS_MAX: usize = 512;

pub(crate) type Requests = request_response::Behaviour<Frames>;
pub(crate) type RequestEvent = request_response::Event<Request, Reply>;
type Filter = MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>;
type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, Filter>;

/// What only members get.
#[derive(NetworkBehaviour)]
pub(crate) struct Members {
    pub(crate) keeper: Requests,
    pub(crate) blocks: Requests,
    pub(crate) registry: Requests,
    pub(crate) log: Requests,
    pub(crate) gossip: Toggle<Gossip>,
}

/// Everything. The gate comes first: it denies a connection over the limits before anybody else hears of it.
#[derive(NetworkBehaviour)]
pub(crate) struct Host {
    pub(crate) members: Gate<Members>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    pub(crate) join: Requests,
}

impl Host {
    /// The behaviour behind one of our protocols.
    pub(crate) fn requests(&mut self, protocol: Protocol) -> &mut Requests {
        match protocol {
            Protocol::Join => &mut self.join,
            Protocol::Keeper => &mut self.members.inner().keeper,
            Protocol::Blocks => &mut self.members.inner().blocks,
            Protocol::Registry => &mut self.members.inner().registry,
            Protocol::Log => &mut self.members.inner().log,
        }
    }

    pub(crate) fn gossip(&mut self) -> Option<&mut Gossip> {
        self.members.inner().gossip.as_mut()
    }
}

/// The topic all members of a cluster share.
pub(crate) fn topic_of(cluster: &ClusterId) -> IdentTopic {
    IdentTopic::new(format!("remora/{}/1", cluster.short()))
}

/// Builds the swarm; it listens nowhere yet.
pub(crate) fn build(config: &NetConfig, handler: Arc<dyn Handler>) -> Result<Swarm<Host>, StartError> {
    let keypair = config.key.keypair();
    let id = PeerId::from(keypair.public());
    let noise = noise::Config::new(&keypair).map_err(|source| StartError::Setup(source.to_string()))?;
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(STREAMS_MAX);
    // A cluster-wide pre-shared key, once there is one, wraps the TCP stream here, before the upgrade.
    let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux)
        .timeout(HANDSHAKE_TIME_MAX)
        .boxed();
    let behaviour = host(config, handler, &keypair, id)?;
    // Idle connections are kept: whoever is a member stays connected, and the others are closed by the task.
    let swarm = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(365 * 24 * 3600))
        .with_max_negotiating_inbound_streams(STREAMS_MAX)
        .with_per_connection_event_buffer_size(32);
    Ok(Swarm::new(transport, behaviour, id, swarm))
}

fn host(
    config: &NetConfig,
    handler: Arc<dyn Handler>,
    keypair: &Keypair,
    id: PeerId,
) -> Result<Host, StartError> {
    let gossip = config.cluster.map(|cluster| gossip(keypair, &cluster)).transpose()?;
    let members = Members {
        keeper: requests(Protocol::Keeper),
        blocks: requests(Protocol::Blocks),
        registry: requests(Protocol::Registry),
        log: requests(Protocol::Log),
        gossip: gossip.into(),
    };
    let agent = format!("remora/{}", env!("CARGO_PKG_VERSION"));
    let identify = identify::Config::new("/remora/1".into(), keypair.public())
        .with_agent_version(agent)
        .with_cache_size(0);
    Ok(Host {
        members: Gate::new(members, handler, config.limits),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(
            ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIME_MAX),
        ),
        mdns: mdns(config, id).into(),
        join: requests(Protocol::Join),
    })
}

fn requests(protocol: Protocol) -> Requests {
    let time_max = if protocol == Protocol::Join { JOIN_TIME_MAX } else { REQUEST_TIME_MAX };
    let config = request_response::Config::default()
        .with_request_timeout(time_max)
        .with_max_concurrent_streams(protocol.streams_max());
    Requests::with_codec(Frames::default(), [(protocol, ProtocolSupport::Full)], config)
}

fn gossip(keypair: &Keypair, cluster: &ClusterId) -> Result<Gossip, StartError> {
    let topic = topic_of(cluster);
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(TRANSMIT_BYTES_MAX)
        .heartbeat_initial_delay(GOSSIP_HEARTBEAT)
        .heartbeat_interval(GOSSIP_HEARTBEAT)
        .build()
        .map_err(|source| StartError::Setup(source.to_string()))?;
    let filter = MaxCountSubscriptionFilter {
        filter: WhitelistSubscriptionFilter(HashSet::from([topic.hash()])),
        max_subscribed_topics: 1,
        max_subscriptions_per_request: 8,
    };
    let signed = MessageAuthenticity::Signed(keypair.clone());
    let mut gossip = Gossip::new_with_subscription_filter(signed, config, filter)
        .map_err(|source| StartError::Setup(source.into()))?;
    gossip.subscribe(&topic).map_err(|source| StartError::Setup(source.to_string()))?;
    Ok(gossip)
}

/// mDNS never says loopback addresses, so where there are no others it would only make noise.
fn mdns(config: &NetConfig, id: PeerId) -> Option<mdns::tokio::Behaviour> {
    let reaches_out = config.listen.iter().any(|address| !is_loopback(address));
    if !config.mdns || !reaches_out {
        return None;
    }
    match mdns::tokio::Behaviour::new(mdns::Config::default(), id) {
        Ok(mdns) => Some(mdns),
        Err(error) => {
            tracing::warn!(%error, "mDNS is not available; addresses come from tickets and members alone");
            None
        }
    }
}

/// Whether the address means this machine alone.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        Part::Ip4(ip) => ip.is_loopback(),
        Part::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}
