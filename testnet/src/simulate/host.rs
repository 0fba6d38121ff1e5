//! One simulated host: its disk, its memory, and the shell that turns the state machines.

use std::collections::{BTreeMap, VecDeque};

use remora_cluster::acquire::Acquire;
use remora_cluster::identity::{PeerId, VolumeId};
use remora_cluster::keeper::{Keeper, KeeperEffect, KeeperEvent, RequestId};
use remora_cluster::lease::{LeaseTimes, Millis};
use remora_cluster::message::Message;
use remora_cluster::promise::Promise;
use remora_cluster::tip::{Chain, CommitHeader, CommitId, Term, Tip};
use remora_cluster::writer::Writer;

use crate::simulate::Mistake;

/// The one volume.
pub(crate) const VOLUME: VolumeId = VolumeId([1; 16]);
/// Shorter than in life, so that a run sees many of them.
pub(crate) const TIMES: LeaseTimes = LeaseTimes { writer_ms: 1_000, keeper_ms: 1_200, renew_ms: 250 };

/// A commit: as much of it as the protocol sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Term, number, digest.
    pub(crate) tip: Tip,
    /// The digest before it.
    pub(crate) prev: CommitId,
}

impl Commit {
    /// The commit after `prev`; `nonce` stands for its content.
    pub(crate) fn after(prev: Tip, term: Term, nonce: u64) -> Self {
        let mut id = CommitId::default();
        id.0[..8].copy_from_slice(&nonce.to_le_bytes());
        id.0[8..16].copy_from_slice(&term.0.to_le_bytes());
        id.0[16..24].copy_from_slice(&prev.id.0[..8]);
        id.0[24] = 1;
        Commit { tip: Tip { term, seq: prev.seq + 1, id }, prev: prev.id }
    }

    /// As a keeper sees it.
    pub(crate) fn header(&self) -> CommitHeader {
        CommitHeader { tip: self.tip, prev: self.prev }
    }
}

/// What survives a crash.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    /// The ctl record.
    pub(crate) record: Promise,
    /// The log.
    pub(crate) log: Vec<Commit>,
    /// The highest term this host used as a candidate.
    pub(crate) term_used: Term,
}

/// Who waits for the answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The candidate of this attempt.
    Acquire(u64),
    /// The candidate of this attempt, fetching the chain.
    Fetch(u64),
    /// The candidate of this attempt, adding what it fetched to its own log.
    Adopt(u64),
    /// The writer of this attempt.
    Writer(u64),
}

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Payload {
    /// A message without commits.
    Plain(Message),
    /// An Append.
    Append { term: Term, commits: Vec<Commit>, commit_seq: u64 },
    /// An answer to FetchLog; None if the chain does not hold what was asked from.
    Chunk(Option<Vec<Commit>>),
}

/// A request that a keeper has not answered yet.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    /// Who asked.
    pub(crate) from: usize,
    /// Its number for the answer.
    pub(crate) rpc: u64,
    /// The commits of an Append.
    pub(crate) commits: Vec<Commit>,
}

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    /// Its place in the world.
    pub(crate) index: usize,
    /// What survives.
    pub(crate) disk: Disk,
    /// The log as written, synced or not.
    pub(crate) log: Vec<Commit>,
    /// Its keeper.
    pub(crate) keeper: Keeper,
    /// The attempt under way.
    pub(crate) acquire: Option<Acquire>,
    /// The writer, after it won.
    pub(crate) writer: Option<Writer>,
    /// The number of the newest attempt.
    pub(crate) attempt: u64,
    /// Raised by every crash: what was scheduled before is void.
    pub(crate) life: u64,
    /// Whether it runs.
    pub(crate) is_up: bool,
    /// Whether the application has stopped and the volume is to be given back.
    pub(crate) is_closing: bool,
    /// The last commit acknowledged by the writer here.
    pub(crate) acked_seq: u64,
    /// Requests that the keeper has not answered.
    pub(crate) pending: BTreeMap<RequestId, Pending>,
    /// Effects that wait for the disk.
    pub(crate) effects: VecDeque<KeeperEffect>,
    /// Events that wait for the effects.
    pub(crate) inbox: VecDeque<KeeperEvent>,
    /// Whether the ctl record or the fork is being written.
    pub(crate) is_disk_busy: bool,
}

/// The peer id of a host.
pub(crate) fn peer(index: usize) -> PeerId {
    PeerId([index as u8 + 1; 32])
}

/// The host of a peer id.
pub(crate) fn host_of(peer: &PeerId) -> usize {
    peer.0[0] as usize - 1
}

fn chain_of(log: &[Commit]) -> Chain {
    let mut chain = Chain::default();
    for commit in log {
        chain.push(commit.tip);
    }
    chain
}

/// The end of a log.
pub(crate) fn tip_of(log: &[Commit]) -> Tip {
    log.last().map_or(Tip::default(), |commit| commit.tip)
}

impl Host {
    /// A new host with this record on its disk.
    pub(crate) fn new(index: usize, record: Promise, mistake: Option<Mistake>) -> Self {
        let disk = Disk { record: record.clone(), log: Vec::new(), term_used: Term(0) };
        let keeper = Keeper::new(peer(index), record, Chain::default(), false, TIMES, Millis(0));
        let mut host = Host {
            index,
            disk,
            log: Vec::new(),
            keeper,
            acquire: None,
            writer: None,
            attempt: 0,
            life: 0,
            is_up: true,
            is_closing: false,
            acked_seq: 0,
            pending: BTreeMap::new(),
            effects: VecDeque::new(),
            inbox: VecDeque::new(),
            is_disk_busy: false,
        };
        host.plant(mistake);
        host
    }

    fn plant(&mut self, mistake: Option<Mistake>) {
        self.keeper.mistakes.promise_twice = mistake == Some(Mistake::ReusedTerm);
        self.keeper.mistakes.ignore_term = mistake == Some(Mistake::IgnoreTermOnAppend);
    }

    /// Loses power. Of what was written and not synced, the first `n_kept` commits are on disk all the same.
    pub(crate) fn crash(&mut self, n_kept: usize) {
        let n_synced = self.disk.log.len();
        if self.log.get(..n_synced) == Some(self.disk.log.as_slice()) {
            let end = self.log.len().min(n_synced + n_kept);
            self.disk.log.extend_from_slice(&self.log[n_synced..end]);
        }
        self.life += 1;
        self.is_up = false;
        self.acquire = None;
        self.writer = None;
        self.pending.clear();
        self.effects.clear();
        self.inbox.clear();
        self.is_disk_busy = false;
    }

    /// Starts again from its disk.
    pub(crate) fn restart(&mut self, now: Millis, mistake: Option<Mistake>) {
        self.is_up = true;
        self.is_closing = false;
        self.log = self.disk.log.clone();
        let record = self.disk.record.clone();
        self.keeper = Keeper::new(peer(self.index), record, chain_of(&self.log), false, TIMES, now);
        self.plant(mistake);
    }

    /// Puts the log on disk up to `tip`, if it is still in the log.
    pub(crate) fn sync_to(&mut self, tip: Tip) {
        let end = tip.seq as usize;
        let is_there = end > 0 && self.log.get(end - 1).is_some_and(|commit| commit.tip == tip);
        if is_there && end > self.disk.log.len() {
            self.disk.log = self.log[..end].to_vec();
        }
    }

    /// The commits after `after`; None if the log does not hold it.
    pub(crate) fn commits_after(&self, after: &Tip) -> Option<Vec<Commit>> {
        let start = after.seq as usize;
        let holds = start == 0 || self.log.get(start - 1).is_some_and(|commit| commit.tip == *after);
        holds.then(|| self.log.get(start..).unwrap_or_default().iter().take(4_096).copied().collect())
    }
}
