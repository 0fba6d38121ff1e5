//! The handle to the network of this host.
//!
//! What always holds: everything here may be called from any task at any time; the loop behind it ends with
//! [`Net::stop`] or when the last handle is dropped, and then every open request ends with [`RequestError::Stopped`].

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol as Part;
use parking_lot::Mutex;
use remora_cluster::identity::PeerId;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::behaviour::{self, GOSSIP_BYTES_MAX};
use crate::config::NetConfig;
use crate::handler::Handler;
use crate::outbound::{Pending, Target};
use crate::protocol::Protocol;
use crate::request::{REQUEST_TIME_MAX, RequestError};
use crate::task::{Command, Task};
use crate::view::{Connected, View};

/// How many commands wait for the loop; more make the caller wait (a request) or fail (gossip).
const COMMANDS_MAX: usize = 1024;

/// Why the network could not be started. Nothing is left running.
#[derive(Debug, Error)]
pub enum StartError {
    /// [`Net::start`] was called outside of a tokio runtime.
    #[error("the network needs a tokio runtime")]
    NoRuntime,
    /// An address cannot be listened on: it is in use, not ours, or not a TCP address.
    #[error("listen on {address}: {reason}")]
    Listen {
        /// The address from the configuration.
        address: Multiaddr,
        /// What the system said.
        reason: String,
    },
    /// A protocol could not be set up.
    #[error("set up the network: {0}")]
    Setup(String),
}

/// Why a message was not published.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum PublishError {
    /// Longer than gossip allows. Send a hint and let members fetch the rest.
    #[error("a message of {len} bytes is too long for gossip, which takes {max}")]
    TooLong {
        /// Its length, in bytes.
        len: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// Too much is under way. Gossip is a hint, so it may simply be dropped.
    #[error("the network is busy")]
    Busy,
    /// The network of this host has been stopped.
    #[error("the network has been stopped")]
    Stopped,
}

/// Says so if somebody listens at `address` already. The swarm would not: it shares its ports (`SO_REUSEPORT`), and then two
/// processes would each get some of the connections.
fn check_free(address: &Multiaddr) -> Result<(), StartError> {
    let mut parts = address.iter();
    let socket = match (parts.next(), parts.next()) {
        (Some(Part::Ip4(ip)), Some(Part::Tcp(port))) => SocketAddr::from((ip, port)),
        (Some(Part::Ip6(ip)), Some(Part::Tcp(port))) => SocketAddr::from((ip, port)),
        _ => return Ok(()),
    };
    let bound = TcpListener::bind(socket).map(drop);
    bound.map_err(|source| StartError::Listen { address: address.clone(), reason: source.to_string() })
}

/// The network of this host; clones share it.
#[derive(Clone)]
pub struct Net {
    inner: Arc<Inner>,
}

struct Inner {
    id: PeerId,
    commands: mpsc::Sender<Command>,
    wanted: watch::Sender<BTreeMap<PeerId, Vec<Multiaddr>>>,
    view: Arc<View>,
    runtime: Handle,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Net({})", self.inner.id)
    }
}

impl Net {
    /// Binds the listen addresses and starts the loop on the current tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]: above all an address that is already in use.
    #[expect(clippy::needless_pass_by_value, reason = "a configuration is used once")]
    pub fn start(config: NetConfig, handler: Arc<dyn Handler>) -> Result<Net, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let mut swarm = behaviour::build(&config, handler.clone())?;
        config.listen.iter().try_for_each(check_free)?;
        for address in &config.listen {
            swarm.listen_on(address.clone()).map_err(|source| StartError::Listen {
                address: address.clone(),
                reason: source.to_string(),
            })?;
        }
        let id = config.key.peer_id();
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (wanted, wanted_inbox) = watch::channel(BTreeMap::new());
        let view = Arc::new(View::default());
        let task = Task::new(swarm, &config, handler, view.clone());
        let task = Mutex::new(Some(runtime.spawn(task.run(inbox, wanted_inbox))));
        Ok(Net { inner: Arc::new(Inner { id, commands, wanted, view, runtime, task }) })
    }

    /// The id of this host.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.inner.id
    }

    /// Sends `request` to a member and waits for its answer, at most `timeout` and [`REQUEST_TIME_MAX`]. Calls the known
    /// addresses of the peer if there is no connection.
    ///
    /// # Errors
    /// [`RequestError`]; see there which of them leave open whether the peer did what was asked.
    ///
    /// # Cancel
    /// Dropping the future takes the request back if it has not been sent, and otherwise stops waiting for its answer.
    pub async fn request(
        &self,
        peer: &PeerId,
        protocol: Protocol,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, RequestError> {
        self.ask(Target::Peer(*peer), protocol, request, timeout).await.map(|(_, answer)| answer)
    }

    /// Sends `request` to whoever listens at one of `addresses`, tried in order, and says who answered. With `peer` (or a
    /// `/p2p/...` in the address) only that peer is talked to. For [`Protocol::Join`], which needs no membership.
    ///
    /// # Errors
    /// [`RequestError`]; [`RequestError::WrongPeer`] if somebody else answers there.
    ///
    /// # Cancel
    /// As [`Net::request`].
    pub async fn request_at(
        &self,
        addresses: &[Multiaddr],
        peer: Option<PeerId>,
        protocol: Protocol,
        request: Bytes,
        timeout: Duration,
    ) -> Result<(PeerId, Bytes), RequestError> {
        let target = Target::At { addresses: addresses.to_vec(), peer };
        self.ask(target, protocol, request, timeout).await
    }

    async fn ask(
        &self,
        target: Target,
        protocol: Protocol,
        body: Bytes,
        timeout: Duration,
    ) -> Result<(PeerId, Bytes), RequestError> {
        let (len, max) = (body.len(), protocol.request_bytes_max());
        if len > max {
            return Err(RequestError::TooLong { protocol, len, max });
        }
        let after = timeout.min(REQUEST_TIME_MAX);
        let name = target.to_string();
        let (reply, answer) = oneshot::channel();
        // Lives as long as this future: its drop tells the stream that nobody waits any more.
        let (_waiting, cancel) = futures::channel::oneshot::channel();
        let pending = Pending { protocol, body, reply, cancel: cancel.shared() };
        let work = async {
            let sent = self.inner.commands.send(Command::Ask { target, pending }).await;
            sent.map_err(|_| RequestError::Stopped)?;
            answer.await.unwrap_or(Err(RequestError::Stopped))
        };
        let timed_out = || RequestError::Timeout { peer: name, protocol, after };
        tokio::time::timeout(after, work).await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Signs `message` and sends it to all members that can be reached now. A hint: nobody says whether it arrived, and
    /// without connections or without a cluster it goes nowhere.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(&self, message: Bytes) -> Result<(), PublishError> {
        let (len, max) = (message.len(), GOSSIP_BYTES_MAX);
        if len > max {
            return Err(PublishError::TooLong { len, max });
        }
        self.inner.commands.try_send(Command::Publish(message)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishError::Busy,
            mpsc::error::TrySendError::Closed(_) => PublishError::Stopped,
        })
    }

    /// Says which peers to stay connected with, and where they are. They are called until they answer, at first after
    /// 0.2 s and later every 10 s; peers that are left out are not called any more, but not hung up on.
    pub fn set_peers(&self, peers: BTreeMap<PeerId, Vec<Multiaddr>>) {
        self.inner.wanted.send_replace(peers);
    }

    /// Where this host listens, wildcard addresses expanded to the interfaces; those that others can reach come first,
    /// loopback last. Empty in the first moments and where nothing is listened on.
    #[must_use]
    pub fn listen_addrs(&self) -> Vec<Multiaddr> {
        self.inner.view.listen_addrs()
    }

    /// What to tell others: as [`Net::listen_addrs`], but without loopback if there is anything else.
    #[must_use]
    pub fn advertised_addrs(&self) -> Vec<Multiaddr> {
        self.inner.view.advertised_addrs()
    }

    /// Waits until this host listens somewhere, or until the network ends; then returns [`Net::listen_addrs`]. Never
    /// returns where nothing is to be listened on.
    pub async fn listening(&self) -> Vec<Multiaddr> {
        self.inner.view.listening().await
    }

    /// The members there is a connection with, in the order of their ids.
    #[must_use]
    pub fn connected(&self) -> Vec<Connected> {
        self.inner.view.connected()
    }

    /// Ends all connections and the loop, and returns when both are gone. Later calls do nothing.
    pub async fn stop(&self) {
        let (done, ended) = oneshot::channel();
        if self.inner.commands.send(Command::Stop(done)).await.is_ok() {
            // An error means that the loop ended by itself, which is what we want.
            let _ = ended.await;
        }
        let task = self.inner.task.lock().take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the network loop did not end well");
        }
    }

    /// The runtime on which the loop runs.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }
}
