//! The keeper of one volume on one host: who may write, and which commits are added.
//!
//! What always holds:
//!
//! * a promise, an election, a release is on disk before it is told: such replies exist only inside a
//!   [`KeeperEffect::Persist`];
//! * the promised term never goes down; a commit is added only in the promised term, after its election was told here,
//!   and only if it joins the log;
//! * an acknowledgement names what is on disk, never what is merely written;
//! * while a step of the shell is under way or commits are not yet on disk, elections, promises and releases wait;
//! * a damaged log does not vote.
//!
//! The shell feeds one event at a time, does the effects in order, and finishes a `Persist` before what is in its `then`
//! and before the next event. It hashes and decodes commits itself; a header here is a fact.

pub mod voting;

use std::collections::VecDeque;

use crate::config::{Config, Durability};
use crate::identity::PeerId;
use crate::lease::{LeaseTimes, Millis};
use crate::message::{Message, Nack, NackReason};
use crate::promise::Promise;
use crate::tip::{Chain, Checkpoint, CommitHeader, Term, Tip};

const DEFERRED_MAX: usize = 64;

/// Pairs a request with its reply; the shell's own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What happens to a keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeeperEvent {
    /// Prepare, Elected, Release or Renew arrived.
    Request {
        /// The authenticated sender.
        from: PeerId,
        /// For the reply.
        request: RequestId,
        /// What it says.
        message: Message,
    },
    /// An Append arrived; its commits are decoded, and their blocks and the blocks they name are here.
    Append {
        /// The authenticated sender.
        from: PeerId,
        /// For the reply, and to find the commits again.
        request: RequestId,
        /// The writer's term.
        term: Term,
        /// Where to begin anew if the log ends before it.
        checkpoint: Option<Checkpoint>,
        /// The commits, in order.
        headers: Vec<CommitHeader>,
        /// Everything up to here is committed.
        commit_seq: u64,
    },
    /// Everything up to here that [`KeeperEffect::AppendLog`] asked for is on disk.
    LogDurable {
        /// The last commit on disk.
        tip: Tip,
    },
    /// There was no room for the rest of what [`KeeperEffect::AppendLog`] asked for, and nothing of that is in the log.
    LogFull {
        /// The last commit in the log, which is on disk.
        tip: Tip,
    },
    /// The writer on this host has put its own commits on disk up to here.
    LocalDurable {
        /// The last commit on disk.
        tip: Tip,
    },
    /// [`KeeperEffect::MoveSuffixToFork`] is done, durably.
    SuffixMoved {
        /// Where the log ends now.
        tip: Tip,
    },
    /// [`KeeperEffect::InstallCheckpoint`] is done, durably.
    CheckpointInstalled,
    /// This host appends nothing more by itself: [`KeeperEffect::StopLocalWriter`] is done, or the writer or candidate
    /// here ended in any other way after its BuildStart. To be told before another acquisition begins here.
    LocalStopped {
        /// Where the log ends, on disk.
        tip: Tip,
    },
    /// The log is damaged or its disk failed: for good, until the shell makes a new keeper.
    LogDamaged,
}

/// What the shell has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeeperEffect {
    /// Write the record durably, then do the rest. If writing fails: nothing of the rest, and [`KeeperEvent::LogDamaged`].
    Persist {
        /// What to write.
        record: Box<Promise>,
        /// What may be done only then.
        then: Vec<KeeperEffect>,
    },
    /// Add the commits of an Append to the log, without its first `skip`; report [`KeeperEvent::LogDurable`], or
    /// [`KeeperEvent::LogFull`] and do no other AppendLog before that is handled.
    AppendLog {
        /// The Append.
        request: RequestId,
        /// How many of its commits are here already.
        skip: usize,
        /// The last one to add.
        upto: Tip,
    },
    /// Save all commits after this number as a fork and cut them off; report [`KeeperEvent::SuffixMoved`].
    MoveSuffixToFork {
        /// The last number that stays.
        after_seq: u64,
    },
    /// Save the whole log as a fork, if it holds anything, and begin anew after this checkpoint; report
    /// [`KeeperEvent::CheckpointInstalled`].
    InstallCheckpoint {
        /// Where to begin.
        checkpoint: Checkpoint,
    },
    /// Another host takes over: the writer on this host must stop for good (mount answers EIO); report
    /// [`KeeperEvent::LocalStopped`].
    StopLocalWriter {
        /// The term of the writer that must stop.
        term: Term,
    },
    /// Answer a request.
    Reply {
        /// The request.
        request: RequestId,
        /// The answer.
        message: Message,
    },
}

/// What the shell is doing for the keeper, and what comes after.
#[derive(Debug, Clone)]
enum Step {
    Stopping { then: Box<KeeperEvent> },
    Forking { request: RequestId, then: Box<KeeperEvent> },
    Installing { then: Box<KeeperEvent> },
}

/// Rules left out on purpose, so that the simulation can prove that it would notice.
#[cfg(feature = "mistakes")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeeperMistakes {
    /// Commits are added whatever their term.
    pub ignore_term: bool,
    /// A term is promised to whoever asks for it next, too.
    pub promise_twice: bool,
}

/// The keeper of one volume on one host.
#[derive(Debug, Clone)]
pub struct Keeper {
    me: PeerId,
    times: LeaseTimes,
    record: Promise,
    /// The log as it is written; `durable` is how much of it is on disk.
    chain: Chain,
    durable: Tip,
    commit_seq: u64,
    lease_until: Option<Millis>,
    is_damaged: bool,
    is_local_writer_running: bool,
    waiting_acks: VecDeque<(u64, RequestId)>,
    deferred: VecDeque<KeeperEvent>,
    step: Option<Step>,
    #[cfg(feature = "mistakes")]
    /// Which rules to leave out.
    pub mistakes: KeeperMistakes,
}

impl Keeper {
    /// The keeper after a start of this host: `record` and `log` as they are on disk. A full lease is assumed, for
    /// nobody remembers when it was renewed last.
    pub fn new(
        me: PeerId,
        record: Promise,
        log: Chain,
        is_damaged: bool,
        times: LeaseTimes,
        now: Millis,
    ) -> Self {
        let is_held = record.hold.is_some_and(|hold| hold.released.is_none());
        Keeper {
            me,
            times,
            durable: log.tip,
            chain: log,
            commit_seq: 0,
            lease_until: is_held.then(|| now + times.keeper_ms),
            is_damaged,
            is_local_writer_running: false,
            waiting_acks: VecDeque::new(),
            deferred: VecDeque::new(),
            step: None,
            record,
            #[cfg(feature = "mistakes")]
            mistakes: KeeperMistakes::default(),
        }
    }

    /// What is promised, as it is on disk.
    pub fn record(&self) -> &Promise {
        &self.record
    }

    /// The log as far as it is written.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The end of the log on disk.
    pub fn durable_tip(&self) -> Tip {
        self.durable
    }

    /// Up to where the keeper knows commits to be committed.
    pub fn commit_seq(&self) -> u64 {
        self.commit_seq
    }

    /// Whether this host may be appending to the log by itself: from its election to [`KeeperEvent::LocalStopped`].
    pub fn is_local_writer_running(&self) -> bool {
        self.is_local_writer_running
    }

    /// The configuration that counts; None if this host was never made a keeper.
    pub fn config(&self) -> Option<&Config> {
        self.record.config_with(&self.chain)
    }

    /// Handles one event; the effects are to be done in order.
    pub fn on(&mut self, now: Millis, event: KeeperEvent) -> Vec<KeeperEffect> {
        let mut effects = Vec::new();
        if self.is_request(&event) {
            if self.must_wait(&event) || !self.deferred.is_empty() {
                self.defer(event, &mut effects);
                return effects;
            }
            self.on_request(now, event, &mut effects);
        } else {
            self.on_fact(now, &event, &mut effects);
        }
        while let Some(next) = self.deferred.pop_front() {
            if self.must_wait(&next) {
                self.deferred.push_front(next);
                break;
            }
            self.on_request(now, next, &mut effects);
        }
        effects
    }

    fn is_request(&self, event: &KeeperEvent) -> bool {
        matches!(event, KeeperEvent::Request { .. } | KeeperEvent::Append { .. })
    }

    /// Requests wait for the shell's step; all but plain Appends and renewals wait for the log to be on disk.
    fn must_wait(&self, event: &KeeperEvent) -> bool {
        let needs_quiet = match event {
            KeeperEvent::Append { checkpoint, .. } => self.to_install(checkpoint.as_ref()).is_some(),
            KeeperEvent::Request { message, .. } => !matches!(message, Message::Renew { .. }),
            _ => false,
        };
        self.step.is_some() || (needs_quiet && self.durable != self.chain.tip && !self.is_damaged)
    }

    fn defer(&mut self, event: KeeperEvent, effects: &mut Vec<KeeperEffect>) {
        if self.deferred.len() < DEFERRED_MAX {
            self.deferred.push_back(event);
            return;
        }
        if let KeeperEvent::Request { request, .. } | KeeperEvent::Append { request, .. } = event {
            effects.push(self.nack(request, NackReason::Busy));
        }
    }

    fn on_fact(&mut self, now: Millis, fact: &KeeperEvent, effects: &mut Vec<KeeperEffect>) {
        match *fact {
            KeeperEvent::LogDurable { tip } => self.on_durable(tip, effects),
            KeeperEvent::LogFull { tip } => self.on_full(tip, effects),
            KeeperEvent::LocalDurable { tip } => {
                let is_own =
                    self.record.hold.is_some_and(|hold| hold.peer == self.me && hold.term == tip.term);
                if is_own && self.is_local_writer_running && tip.seq > self.chain.tip.seq {
                    self.chain.extend_to(tip);
                    self.on_durable(tip, effects);
                }
            }
            KeeperEvent::SuffixMoved { tip } => {
                if let Some(Step::Forking { then, .. }) = self.step.take() {
                    self.chain.cut_to(tip);
                    self.durable = tip;
                    self.on_request(now, *then, effects);
                }
            }
            KeeperEvent::CheckpointInstalled => {
                if let (Some(Step::Installing { then }), Some(checkpoint)) =
                    (self.step.take(), self.record.checkpoint)
                {
                    self.chain = Chain::from_base(checkpoint.tip);
                    self.durable = checkpoint.tip;
                    self.on_request(now, *then, effects);
                }
            }
            KeeperEvent::LocalStopped { tip } => {
                self.is_local_writer_running = false;
                // Once another host holds the volume, nothing that this one wrote is on its chain.
                if let Some(hold) = self.record.hold.filter(|hold| hold.peer == self.me) {
                    if hold.term == tip.term {
                        self.chain.extend_to(tip);
                    }
                    self.durable = self.chain.tip;
                }
                if let Some(Step::Stopping { then }) = self.step.take() {
                    self.on_request(now, *then, effects);
                }
            }
            KeeperEvent::LogDamaged => self.on_damaged(effects),
            KeeperEvent::Request { .. } | KeeperEvent::Append { .. } => {}
        }
    }

    fn on_request(&mut self, now: Millis, event: KeeperEvent, effects: &mut Vec<KeeperEffect>) {
        match event {
            KeeperEvent::Append { .. } => self.on_append(now, event, effects),
            KeeperEvent::Request { from, request, message } => {
                self.on_message(now, from, request, message, effects);
            }
            _ => {}
        }
    }

    fn on_durable(&mut self, tip: Tip, effects: &mut Vec<KeeperEffect>) {
        if tip.seq > self.durable.seq && tip.seq <= self.chain.tip.seq {
            self.durable = tip;
        }
        while self.waiting_acks.front().is_some_and(|(seq, _)| *seq <= self.durable.seq) {
            if let Some((_, request)) = self.waiting_acks.pop_front() {
                effects.push(self.ack(request));
            }
        }
    }

    /// What did not fit was never here: its writer is told so, and has it still.
    fn on_full(&mut self, tip: Tip, effects: &mut Vec<KeeperEffect>) {
        if tip.seq < self.chain.tip.seq {
            self.chain.cut_to(tip);
        }
        self.commit_seq = self.commit_seq.min(self.chain.tip.seq);
        self.on_durable(tip, effects);
        let refused: Vec<RequestId> = self.waiting_acks.drain(..).map(|(_, request)| request).collect();
        effects.extend(refused.into_iter().map(|request| self.nack(request, NackReason::Full)));
    }

    fn on_damaged(&mut self, effects: &mut Vec<KeeperEffect>) {
        self.is_damaged = true;
        let acks: Vec<RequestId> = self.waiting_acks.drain(..).map(|(_, request)| request).collect();
        effects.extend(acks.into_iter().map(|request| self.nack(request, NackReason::Damaged)));
        match self.step.take() {
            Some(Step::Forking { request, .. }) => effects.push(self.nack(request, NackReason::Damaged)),
            Some(Step::Stopping { then } | Step::Installing { then }) => self.deferred.push_front(*then),
            None => {}
        }
    }

    fn on_append(&mut self, now: Millis, event: KeeperEvent, effects: &mut Vec<KeeperEffect>) {
        let KeeperEvent::Append { from, request, term, checkpoint, headers, commit_seq } = &event else {
            return;
        };
        let (request, commit_seq) = (*request, *commit_seq);
        if let Some(reason) = self.not_writable(*from, *term) {
            effects.push(self.nack(request, reason));
            return;
        }
        if let Some(checkpoint) = self.to_install(checkpoint.as_ref()) {
            self.record.checkpoint = Some(checkpoint);
            self.step = Some(Step::Installing { then: Box::new(event) });
            effects.push(self.persist(vec![KeeperEffect::InstallCheckpoint { checkpoint }]));
            return;
        }
        let skip = headers.iter().take_while(|header| header.tip.seq <= self.chain.tip.seq).count();
        let (had, added) = headers.split_at(skip);
        if had.iter().any(|header| self.has_another(header)) {
            // This log is not on the writer's chain. What it holds must not count, so it is not told as a place to go on from.
            effects.push(self.nack(request, NackReason::Damaged));
            return;
        }
        self.renew_lease(now);
        let mut end = self.chain.tip;
        for header in added {
            if header.prev != end.id || header.tip.seq != end.seq + 1 || header.tip.term < end.term {
                effects.push(self.nack(request, NackReason::Gap));
                return;
            }
            end = header.tip;
        }
        if end.term > *term {
            effects.push(self.nack(request, NackReason::Gap));
            return;
        }
        for header in added {
            self.chain.push(header.tip);
        }
        let last_seq = headers.last().map_or(self.chain.tip.seq, |header| header.tip.seq);
        if !added.is_empty() {
            effects.push(KeeperEffect::AppendLog { request, skip, upto: end });
        }
        self.note_committed(commit_seq, effects);
        if self.durable.seq >= last_seq {
            effects.push(self.ack(request));
        } else {
            self.waiting_acks.push_back((last_seq, request));
        }
    }

    /// Whether a commit of another term is known to stand where this one would.
    fn has_another(&self, header: &CommitHeader) -> bool {
        header.tip.seq > self.chain.base.seq && !self.chain.holds(&header.tip)
    }

    /// Why `from` may not add commits in `term`, if it may not.
    fn not_writable(&self, from: PeerId, term: Term) -> Option<NackReason> {
        if self.is_damaged {
            return Some(NackReason::Damaged);
        }
        #[cfg(feature = "mistakes")]
        if self.mistakes.ignore_term {
            return None;
        }
        if term < self.record.term {
            return Some(NackReason::Superseded);
        }
        let is_elected = self.record.hold.is_some_and(|hold| hold.term == term && hold.peer == from);
        (term > self.record.term || !is_elected).then_some(NackReason::NotElected)
    }

    fn to_install(&self, checkpoint: Option<&Checkpoint>) -> Option<Checkpoint> {
        checkpoint.filter(|checkpoint| checkpoint.tip.seq > self.chain.tip.seq).copied()
    }

    /// Takes note of what is committed; once the START of this term is, its configuration is settled.
    fn note_committed(&mut self, commit_seq: u64, effects: &mut Vec<KeeperEffect>) {
        self.commit_seq = self.commit_seq.max(commit_seq.min(self.chain.tip.seq));
        let Some(hold) = self.record.hold else { return };
        let is_started = self.chain.term_of(self.commit_seq) == Some(hold.term);
        let is_unsettled = self.record.next.as_ref().is_some_and(|next| next.outgoing.is_some());
        let is_news = hold.peer == self.me && self.record.served(self.me).is_none();
        if is_started && (is_unsettled || is_news) {
            self.record.next = self.record.next.as_ref().map(Config::settled);
            if hold.peer == self.me {
                self.record.config = self.record.next.clone();
            }
            effects.push(self.persist(Vec::new()));
        }
    }

    fn renew_lease(&mut self, now: Millis) {
        self.lease_until = Some(now + self.times.keeper_ms);
    }

    fn lease_left_ms(&self, now: Millis) -> u64 {
        self.lease_until.map_or(0, |until| until.since(now))
    }

    fn is_quorum_durable(&self) -> bool {
        self.config().is_some_and(|config| config.weakest_durability() == Durability::Quorum)
    }

    fn persist(&self, then: Vec<KeeperEffect>) -> KeeperEffect {
        KeeperEffect::Persist { record: Box::new(self.record.clone()), then }
    }

    fn ack(&self, request: RequestId) -> KeeperEffect {
        let term = self.record.hold.map_or(self.record.term, |hold| hold.term);
        KeeperEffect::Reply { request, message: Message::Ack { term, tip: self.durable } }
    }

    fn aligned(&self, request: RequestId) -> KeeperEffect {
        KeeperEffect::Reply {
            request,
            message: Message::Aligned { term: self.record.term, tip: self.durable },
        }
    }

    fn nack(&self, request: RequestId, reason: NackReason) -> KeeperEffect {
        let nack = Nack { reason, promised: self.record.term, hold: self.record.hold, tip: self.durable };
        KeeperEffect::Reply { request, message: Message::Nack(Box::new(nack)) }
    }
}
