//! Notices to the handler, from tasks of their own, so that a slow handler never holds up the network.
//!
//! What always holds: `on_connected` and `on_disconnected` of a peer alternate, beginning with `on_connected`, and the last
//! one told is true once the queue is empty. A peer that went and came back while nobody was told is told as both, because
//! what was said between the two connections is lost. Gossip beyond the queue is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use remora_cluster::identity::PeerId;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::handler::Handler;

/// How many messages of gossip wait for the handler; at most 64 KiB each.
const GOSSIP_MAX: usize = 256;

/// How often a peer has come; odd while it is here.
type Changes = u64;

#[derive(Default)]
struct Board {
    peers: Mutex<BTreeMap<PeerId, Changes>>,
    changed: Notify,
}

pub(crate) struct Notices {
    board: Arc<Board>,
    gossip: mpsc::Sender<(PeerId, Bytes)>,
    /// Ends both tasks when dropped.
    _tasks: JoinSet<()>,
}

impl Notices {
    /// Starts the two tasks on the current runtime.
    pub(crate) fn start(handler: Arc<dyn Handler>) -> Notices {
        let board = Arc::new(Board::default());
        let (gossip, heard) = mpsc::channel(GOSSIP_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(tell_gossip(handler.clone(), heard));
        tasks.spawn(tell_peers(handler, board.clone()));
        Notices { board, gossip, _tasks: tasks }
    }

    pub(crate) fn on_gossip(&self, author: PeerId, message: Bytes) {
        if self.gossip.try_send((author, message)).is_err() {
            tracing::debug!(peer = %author, "gossip dropped: the handler is behind");
        }
    }

    pub(crate) fn on_connected(&self, peer: PeerId) {
        let mut peers = self.board.peers.lock();
        let changes = peers.entry(peer).or_default();
        *changes += 1 - *changes % 2;
        self.board.changed.notify_one();
    }

    pub(crate) fn on_disconnected(&self, peer: &PeerId) {
        if let Some(changes) = self.board.peers.lock().get_mut(peer) {
            *changes += *changes % 2;
        }
        self.board.changed.notify_one();
    }
}

async fn tell_gossip(handler: Arc<dyn Handler>, mut heard: mpsc::Receiver<(PeerId, Bytes)>) {
    while let Some((author, message)) = heard.recv().await {
        handler.on_gossip(author, message);
    }
}

async fn tell_peers(handler: Arc<dyn Handler>, board: Arc<Board>) {
    let mut told: BTreeMap<PeerId, Changes> = BTreeMap::new();
    loop {
        for (peer, changes) in news(&board, &mut told) {
            let (was, is) = (changes.0 % 2 == 1, changes.1 % 2 == 1);
            if was {
                handler.on_disconnected(peer);
            }
            if is {
                handler.on_connected(peer);
            } else if !was {
                handler.on_connected(peer);
                handler.on_disconnected(peer);
            }
        }
        board.changed.notified().await;
    }
}

/// What has changed since it was told, as (told, now); peers that are gone are forgotten on both sides.
fn news(board: &Board, told: &mut BTreeMap<PeerId, Changes>) -> Vec<(PeerId, (Changes, Changes))> {
    let mut peers = board.peers.lock();
    let mut news = Vec::new();
    for (peer, now) in peers.iter() {
        let before = told.insert(*peer, *now).unwrap_or(0);
        if before != *now {
            news.push((*peer, (before, *now)));
        }
    }
    peers.retain(|_, changes| *changes % 2 == 1);
    told.retain(|peer, _| peers.contains_key(peer));
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coming_and_going_unseen_is_still_told() {
        let board = Board::default();
        let (gossip, _heard) = mpsc::channel(1);
        let notices = Notices { board: Arc::new(board), gossip, _tasks: JoinSet::new() };
        let mut told = BTreeMap::new();
        let peer = PeerId([1; 32]);
        notices.on_connected(peer);
        assert_eq!(news(&notices.board, &mut told), [(peer, (0, 1))]);
        notices.on_disconnected(&peer);
        notices.on_connected(peer);
        assert_eq!(news(&notices.board, &mut told), [(peer, (1, 3))], "odd before, odd now: gone and back");
        notices.on_disconnected(&peer);
        assert_eq!(news(&notices.board, &mut told), [(peer, (3, 4))]);
        assert!(told.is_empty() && notices.board.peers.lock().is_empty());
        notices.on_connected(peer);
        assert_eq!(news(&notices.board, &mut told), [(peer, (0, 1))]);
    }
}
