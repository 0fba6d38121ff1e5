//! The exchange of blocks between members, over [`Protocol::Blocks`].
//!
//! One task per exchange owns the wants of everybody on this host: it merges equal ones, puts many into one request, keeps a
//! few requests open with each peer, and goes on to the next peer when one does not have the block, lies, or is away.
//!
//! What always holds: a [`Block`] that comes out hashes to the CID that was asked for; nothing unverified leaves this file;
//! a fetch ends within [`FETCH_TIME_MAX`].

use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use futures::stream::{FuturesUnordered, StreamExt};
use remora_cluster::identity::PeerId;
use remora_dag::block::{Block, BlockSink, SinkError, SourceError, VerifyError, check_cid, identity_bytes};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use crate::block_frames::{HAVE_BYTES_MAX, HaveBuilder, Want, decode_have};
use crate::handler::RequestRefused;
use crate::net::Net;
use crate::protocol::Protocol;
use crate::request::RequestError;
use crate::wants::{Batch, CANDIDATES_MAX, Done, Outcome, Said, Wants};

/// How long a block is looked for.
pub const FETCH_TIME_MAX: Duration = Duration::from_secs(30);
/// How long one peer has for one answer, so that there is time left to ask another.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(12);
const TICK: Duration = Duration::from_millis(100);
/// How many wants wait for the task; more make the one who wants wait.
const INBOX_MAX: usize = 1024;
/// How many bytes of blocks [`Exchange::fetch_many`] has under way, about.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;
const WINDOW_MIN: usize = 64;
const WINDOW_MAX: usize = 1024;
/// How many blocks go to the sink at a time.
const SINK_BATCH_MAX: usize = 32;

/// Why a block could not be fetched.
#[derive(Debug, Error, Clone)]
pub enum FetchError {
    /// All who might have it were asked and have it not, or sent something else.
    #[error("none of {asked} peers has block {cid}")]
    NotFound {
        /// The block.
        cid: Cid,
        /// How many peers were asked.
        asked: usize,
    },
    /// There is nobody to ask.
    #[error("no peer is known that might have block {cid}")]
    NoProvider {
        /// The block.
        cid: Cid,
    },
    /// Those who might have it could not be reached in time. Another attempt may succeed.
    #[error("block {cid} did not arrive in time")]
    Timeout {
        /// The block.
        cid: Cid,
    },
    /// The CID is of a kind we do not deal in; nobody was asked.
    #[error(transparent)]
    Unacceptable(#[from] VerifyError),
    /// The network of this host has been stopped.
    #[error("the network has been stopped")]
    Stopped,
}

impl FetchError {
    /// As an error of a source of blocks, for whoever reads a tree through the network.
    #[must_use]
    pub fn into_source_error(self, cid: &Cid) -> SourceError {
        match self {
            FetchError::NotFound { .. } | FetchError::NoProvider { .. } => {
                SourceError::NotFound { cid: *cid }
            }
            FetchError::Timeout { .. } => SourceError::Timeout { cid: *cid },
            FetchError::Unacceptable(_) | FetchError::Stopped => {
                SourceError::Io { cid: *cid, source: Arc::new(std::io::Error::other(self.to_string())) }
            }
        }
    }
}

/// What came of a [`Exchange::fetch_many`].
#[derive(Debug, Default)]
pub struct Fetched {
    /// How many blocks were put into the sink.
    pub n_blocks: u64,
    /// Their lengths together, in bytes.
    pub bytes: u64,
    /// The blocks that could not be had, in no particular order.
    pub missing: Vec<(Cid, FetchError)>,
}

/// Where the blocks come from that we give to others. Called on threads that may block.
pub trait BlockProvider: Send + Sync + 'static {
    /// The block, if it is here and sound. The asker verifies it again.
    fn block(&self, cid: &Cid) -> Option<Bytes>;
}

/// Answers a request of [`Protocol::Blocks`]; blocks the thread for as long as the provider does.
///
/// # Errors
/// [`RequestRefused`] if the request is malformed or of a newer version.
pub fn answer(provider: &dyn BlockProvider, request: &Bytes) -> Result<Bytes, RequestRefused> {
    let want = Want::decode(request).map_err(|error| RequestRefused::new(error.to_string()))?;
    let mut have = HaveBuilder::new(want.bytes_max);
    for cid in &want.cids {
        if !have.push(provider.block(cid).as_ref()) {
            break;
        }
    }
    Ok(have.finish())
}

/// As [`answer`], on a thread of its own: what a handler returns for [`Protocol::Blocks`].
///
/// # Errors
/// As [`answer`].
pub async fn serve(provider: Arc<dyn BlockProvider>, request: Bytes) -> Result<Bytes, RequestRefused> {
    let work = tokio::task::spawn_blocking(move || answer(&*provider, &request)).await;
    work.unwrap_or_else(|_| Err(RequestRefused::new("the blocks could not be read")))
}

/// Says who might have a block, the best to ask first. Called by whoever fetches, on its own thread.
pub type Providers = Arc<dyn Fn(&Cid) -> Vec<PeerId> + Send + Sync>;

/// Fetches blocks from other members; clones share the work.
#[derive(Clone)]
pub struct Exchange {
    net: Net,
    providers: Providers,
    preferred: Arc<[PeerId]>,
    inbox: mpsc::Sender<NewWant>,
}

struct NewWant {
    cid: Cid,
    candidates: Vec<PeerId>,
    is_urgent: bool,
    waiter: Waiter,
}

enum Waiter {
    Task(oneshot::Sender<Result<Block, FetchError>>),
    Thread(blocking::SyncSender<Result<Block, FetchError>>),
}

impl Waiter {
    /// A thread that has given up is not noticed; its deadline is ours.
    fn is_gone(&self) -> bool {
        matches!(self, Waiter::Task(reply) if reply.is_closed())
    }

    fn tell(self, result: Result<Block, FetchError>) {
        // Whoever waited may have gone in this moment.
        match self {
            Waiter::Task(reply) => drop(reply.send(result)),
            Waiter::Thread(reply) => drop(reply.try_send(result)),
        }
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exchange({:?})", self.net)
    }
}

impl Exchange {
    /// Starts the exchange on the runtime of `net`. It ends with the last clone, or with the network.
    #[must_use]
    pub fn new(net: Net, providers: Providers) -> Exchange {
        let (inbox, wants) = mpsc::channel(INBOX_MAX);
        net.runtime().spawn(run(net.clone(), wants));
        Exchange { net, providers, preferred: Arc::new([]), inbox }
    }

    /// The same exchange, which asks `peers` before those whom the providers name: the keepers of a volume, say.
    #[must_use]
    pub fn preferring(&self, peers: &[PeerId]) -> Exchange {
        Exchange { preferred: peers.into(), ..self.clone() }
    }

    /// Fetches a block somebody waits for; it goes before those of [`Exchange::fetch_many`].
    ///
    /// # Errors
    /// [`FetchError`].
    ///
    /// # Cancel
    /// Dropping the future withdraws the want, unless others have the same.
    pub async fn fetch(&self, cid: Cid) -> Result<Block, FetchError> {
        self.fetch_as(cid, true).await
    }

    /// As [`Exchange::fetch`], for a thread that may block. Also works on a thread of the runtime, which it blocks.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn fetch_blocking(&self, cid: Cid) -> Result<Block, FetchError> {
        if let Some(block) = inline(&cid)? {
            return Ok(block);
        }
        let (reply, result) = blocking::sync_channel(1);
        let want = self.want(cid, true, Waiter::Thread(reply));
        let inbox = self.inbox.clone();
        self.net.runtime().spawn(async move {
            // If the task has ended, the waiter is dropped with the want, and the thread hears of it.
            let _ = inbox.send(want).await;
        });
        match result.recv_timeout(FETCH_TIME_MAX + 10 * TICK) {
            Ok(result) => result,
            Err(blocking::RecvTimeoutError::Timeout) => Err(FetchError::Timeout { cid }),
            Err(blocking::RecvTimeoutError::Disconnected) => Err(FetchError::Stopped),
        }
    }

    /// Fetches many blocks in any order and puts each into `sink`. Takes of `cids` only as many as are under way.
    ///
    /// # Errors
    /// [`SinkError`] if a block could not be kept; the rest is then not fetched. Blocks that could not be had are no
    /// error but listed in [`Fetched::missing`].
    ///
    /// # Cancel
    /// Dropping the future withdraws the wants. Blocks on their way into the sink still go there.
    pub async fn fetch_many(
        &self,
        cids: impl IntoIterator<Item = Cid> + Send,
        sink: Arc<dyn BlockSink>,
    ) -> Result<Fetched, SinkError> {
        let mut cids = cids.into_iter();
        let mut fetches = FuturesUnordered::new();
        let mut fetched = Fetched::default();
        let mut arrived: Vec<Block> = Vec::new();
        let mut storing: Option<JoinHandle<Result<(), SinkError>>> = None;
        let mut is_exhausted = false;
        loop {
            while !is_exhausted && fetches.len() + arrived.len() < window(&fetched) {
                match cids.next() {
                    Some(cid) => fetches.push(async move { (cid, self.fetch_as(cid, false).await) }),
                    None => is_exhausted = true,
                }
            }
            if storing.is_none() && !arrived.is_empty() {
                let rest = arrived.split_off(arrived.len().min(SINK_BATCH_MAX));
                storing = Some(store(std::mem::replace(&mut arrived, rest), sink.clone()));
            }
            if storing.is_none() && fetches.is_empty() {
                return Ok(fetched);
            }
            tokio::select! {
                stored = stored(&mut storing) => { storing = None; stored?; }
                Some((cid, result)) = fetches.next(), if !fetches.is_empty() => match result {
                    Ok(block) => {
                        fetched.n_blocks += 1;
                        fetched.bytes += block.bytes().len() as u64;
                        arrived.push(block);
                    }
                    Err(error) => fetched.missing.push((cid, error)),
                },
            }
        }
    }

    async fn fetch_as(&self, cid: Cid, is_urgent: bool) -> Result<Block, FetchError> {
        if let Some(block) = inline(&cid)? {
            return Ok(block);
        }
        let (reply, result) = oneshot::channel();
        let want = self.want(cid, is_urgent, Waiter::Task(reply));
        self.inbox.send(want).await.map_err(|_| FetchError::Stopped)?;
        result.await.unwrap_or(Err(FetchError::Stopped))
    }

    fn want(&self, cid: Cid, is_urgent: bool, waiter: Waiter) -> NewWant {
        let mut candidates: Vec<PeerId> = Vec::new();
        for peer in self.preferred.iter().copied().chain((self.providers)(&cid)) {
            let is_new = peer != self.net.peer_id() && !candidates.contains(&peer);
            if is_new && candidates.len() < CANDIDATES_MAX {
                candidates.push(peer);
            }
        }
        NewWant { cid, candidates, is_urgent, waiter }
    }
}

/// A block that needs no peer, because its CID carries it; an error if no block can have such a CID.
fn inline(cid: &Cid) -> Result<Option<Block>, FetchError> {
    check_cid(cid)?;
    let Some(bytes) = identity_bytes(cid) else { return Ok(None) };
    Ok(Some(Block::verify(*cid, bytes)?))
}

/// How many blocks may be under way: few while they are large.
fn window(fetched: &Fetched) -> usize {
    let typical = fetched.bytes.checked_div(fetched.n_blocks).unwrap_or(u64::MAX).max(1);
    let typical = usize::try_from(typical).unwrap_or(usize::MAX);
    (WINDOW_BYTES / typical).clamp(WINDOW_MIN, WINDOW_MAX)
}

fn store(blocks: Vec<Block>, sink: Arc<dyn BlockSink>) -> JoinHandle<Result<(), SinkError>> {
    tokio::task::spawn_blocking(move || blocks.into_iter().try_for_each(|block| sink.put(block)))
}

/// Waits for the running job; for ever if there is none.
async fn stored(storing: &mut Option<JoinHandle<Result<(), SinkError>>>) -> Result<(), SinkError> {
    match storing {
        Some(job) => job.await.unwrap_or_else(|error| {
            let source = Arc::new(std::io::Error::other(error.to_string()));
            Err(SinkError::Io { cid: Cid::default(), source })
        }),
        None => std::future::pending().await,
    }
}

/// The task behind all clones.
async fn run(net: Net, mut inbox: mpsc::Receiver<NewWant>) {
    let mut wants: Wants<Waiter> = Wants::new();
    let mut requests: JoinSet<(Batch, Result<Outcome, RequestError>)> = JoinSet::new();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            want = inbox.recv() => {
                let Some(want) = want else { break };
                add(&mut wants, want);
                // Whoever came at the same time goes into the same request.
                while let Ok(want) = inbox.try_recv() {
                    add(&mut wants, want);
                }
            }
            Some(joined) = requests.join_next() => match joined {
                Ok((_, Err(RequestError::Stopped))) => break,
                Ok((batch, outcome)) => {
                    let outcome = outcome.unwrap_or_else(|error| match error.is_passing() {
                        true => Outcome::Unreachable,
                        false => Outcome::Useless,
                    });
                    tell(wants.on_outcome(batch, outcome, Instant::now()));
                }
                Err(error) => tracing::error!(%error, "a request for blocks did not end well"),
            },
            _ = tick.tick(), if !wants.is_empty() => tell(wants.on_tick(Instant::now())),
        }
        for batch in wants.take(Waiter::is_gone) {
            requests.spawn(ask(net.clone(), batch));
        }
    }
    tell(wants.on_stopped());
}

fn add(wants: &mut Wants<Waiter>, want: NewWant) {
    let NewWant { cid, candidates, is_urgent, waiter } = want;
    let now = Instant::now();
    tell(wants.add(cid, &candidates, is_urgent, waiter, now, now + FETCH_TIME_MAX));
}

fn tell(done: Vec<Done<Waiter>>) {
    for (waiter, result) in done {
        waiter.tell(result);
    }
}

async fn ask(net: Net, batch: Batch) -> (Batch, Result<Outcome, RequestError>) {
    let bytes_max = u32::try_from(HAVE_BYTES_MAX).unwrap_or(u32::MAX);
    let want = Want { cids: batch.cids.clone(), bytes_max };
    let response = net.request(&batch.peer, Protocol::Blocks, want.encode(), ANSWER_TIME_MAX).await;
    let response = match response {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(peer = %batch.peer, %error, "no blocks");
            return (batch, Err(error));
        }
    };
    let (peer, cids) = (batch.peer, batch.cids.clone());
    let checked = tokio::task::spawn_blocking(move || check(&peer, &cids, &response)).await;
    (batch, Ok(checked.unwrap_or(Outcome::Useless)))
}

/// Verifies what a peer has sent; takes about half a millisecond for each MiB.
fn check(peer: &PeerId, cids: &[Cid], response: &Bytes) -> Outcome {
    let entries = match decode_have(response, cids.len()) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(%peer, %error, "an answer with blocks makes no sense");
            return Outcome::Useless;
        }
    };
    let said =
        cids.iter().zip(entries).map(|(cid, entry)| match entry.map(|bytes| Block::verify(*cid, bytes)) {
            None => Said::Missing,
            Some(Ok(block)) => Said::Block(block),
            Some(Err(error)) => {
                tracing::warn!(%peer, %error, "a wrong block was sent");
                Said::Wrong
            }
        });
    Outcome::Said(said.collect())
}
