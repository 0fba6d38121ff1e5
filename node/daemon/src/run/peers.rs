//! What peers ask of this host, sent to whoever answers it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use remora_cluster::identity::PeerId;
use remora_net::exchange::{self, BlockProvider};
use remora_net::handler::{Handler, RequestRefused};
use remora_net::net::Net;
use remora_net::protocol::Protocol;
use remora_store::blocks::Blocks;

use crate::content::blocks::Served;
use crate::keepers::desk::Keepers;
use crate::members::membership::Membership;
use crate::members::spread;

/// The network's handler: routes, and decides nothing.
pub(crate) struct Peers {
    members: Arc<Membership>,
    blocks: Arc<dyn BlockProvider>,
    /// Set once the keepers are open and the network runs; until then their protocol is refused.
    ready: OnceLock<(Arc<Keepers>, Net)>,
    runtime: tokio::runtime::Handle,
}

impl Peers {
    /// Must be called on a tokio runtime.
    pub(crate) fn new(members: Arc<Membership>, blocks: &Arc<Blocks>) -> Arc<Self> {
        Arc::new(Peers {
            members,
            blocks: Arc::new(Served(Arc::clone(blocks))),
            ready: OnceLock::new(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// From here on everything is answered.
    pub(crate) fn serve(&self, keepers: Arc<Keepers>, net: Net) {
        for peer in net.connected() {
            self.compare_with(&net, peer.peer);
        }
        let _first_wins = self.ready.set((keepers, net));
    }

    fn compare_with(&self, net: &Net, peer: PeerId) {
        let (members, net) = (Arc::clone(&self.members), net.clone());
        self.runtime.spawn(async move {
            if let Err(why) = spread::exchange(&members, &net, peer).await {
                tracing::debug!(%peer, why, "anti-entropy did not complete");
            }
        });
    }
}

/// Answers on a thread that may wait for the disk.
fn on_thread(
    work: impl FnOnce() -> Result<Vec<u8>, String> + Send + 'static,
) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
    async move {
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(bytes)) => Ok(Bytes::from(bytes)),
            Ok(Err(why)) => Err(RequestRefused::new(why)),
            Err(_) => Err(RequestRefused::new("this host failed in the middle of the request")),
        }
    }
    .boxed()
}

impl Handler for Peers {
    fn is_member(&self, peer: &PeerId) -> bool {
        self.members.read(|registry| registry.is_member(peer))
    }

    fn on_request(
        &self,
        peer: PeerId,
        protocol: Protocol,
        request: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
        let members = Arc::clone(&self.members);
        match protocol {
            Protocol::Join => on_thread(move || members.admit(peer, &request)),
            Protocol::Registry => on_thread(move || members.answer(&request)),
            Protocol::Blocks => exchange::serve(Arc::clone(&self.blocks), request).boxed(),
            Protocol::Keeper | Protocol::Log => match self.ready.get() {
                Some((keepers, _)) => {
                    let keepers = Arc::clone(keepers);
                    on_thread(move || keepers.answer(peer, &request))
                }
                None => async { Err(RequestRefused::new("this host is starting")) }.boxed(),
            },
        }
    }

    fn on_gossip(&self, _author: PeerId, message: Bytes) {
        let members = Arc::clone(&self.members);
        self.runtime.spawn_blocking(move || members.take_news(&message));
    }

    fn on_connected(&self, peer: PeerId) {
        tracing::info!(host = %self.members.name_of(&peer), %peer, "connected");
        if let Some((keepers, net)) = self.ready.get() {
            self.compare_with(net, peer);
            keepers.on_connected(peer);
        }
    }

    fn on_disconnected(&self, peer: PeerId) {
        tracing::info!(host = %self.members.name_of(&peer), %peer, "disconnected");
    }
}
