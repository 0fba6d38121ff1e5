//! A host becomes the writer of a volume: the candidate's side.
//!
//! ```text
//! PersistTerm(t) -> Prepare(t) to the keepers -> a majority promised: the best tip of theirs goes on
//!   -> Elected(t) to all, to this host first -> FetchChain until this host's log ends at that tip
//!   -> BuildStart: the shell commits START(t, keepers) here -> SendLog until a majority has it -> Won
//! ```
//!
//! What always holds: a term is on this host's disk before it is used and is used by one acquisition only; nothing is
//! served before START is where every later candidate meets it, which is a majority of the old and of the new keepers, or
//! this host alone if there is no majority without it ([`alone`]); of a volume that waits for the writer's own
//! disk only, a chain is continued only if it reaches what the last writer had.
//!
//! The shell sends messages to this host's own keeper as to any other. It makes one `Acquire` a mount and drops it
//! after [`AcquireEffect::Won`] or [`AcquireEffect::Lost`].

pub mod alone;
pub mod candidacy;
pub mod starting;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Config, Durability};
use crate::identity::{PeerId, VolumeId};
use crate::lease::Millis;
use crate::message::{Elected, Evidence, Message, Promised, Refusal};
use crate::promise::Hold;
use crate::tip::{Term, Tip};

/// How often unanswered messages are sent again, in milliseconds.
pub const RETRY_MS: u64 = 500;
const ROUNDS_MAX: u32 = 64;

/// What is to be acquired, and how.
#[derive(Debug, Clone)]
pub struct AcquireOptions {
    /// The volume.
    pub volume: VolumeId,
    /// This host.
    pub me: PeerId,
    /// The highest term this host used, promised or saw for this volume, from its disk.
    pub floor: Term,
    /// Whom to ask first: the configuration of this host's own keeper, or one made from the catalogue. The keepers
    /// correct it.
    pub config: Config,
    /// How many keepers there should be.
    pub replicas: usize,
    /// The durability from this START on.
    pub durability: Durability,
    /// All members, best place for this volume first; decides whom this host replaces among the keepers.
    pub ranked: Vec<PeerId>,
    /// Peers to make keepers while there are fewer than `replicas`.
    pub invited: Vec<PeerId>,
    /// An operator's word that the last writer is dead, if there is one.
    pub evidence: Option<Evidence>,
    /// The term in which this host's own record says that it served, see [`crate::promise::Promise::served`].
    pub served: Option<Term>,
    /// Wait for a lease that runs out by itself instead of giving up.
    pub waits_for_lease: bool,
    /// When to give up.
    pub deadline: Millis,
    /// The time for people, milliseconds since 1970.
    pub now_unix_ms: u64,
}

/// What happens to a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcquireEvent {
    /// [`AcquireEffect::PersistTerm`] is done.
    TermPersisted(Term),
    /// A keeper answered.
    Reply {
        /// The authenticated keeper.
        from: PeerId,
        /// Its answer.
        message: Message,
    },
    /// A request got no answer.
    Unreachable {
        /// The keeper.
        peer: PeerId,
    },
    /// [`AcquireEffect::FetchChain`] is done: this host's log ends here, on disk.
    ChainReady {
        /// The end of the log.
        tip: Tip,
    },
    /// [`AcquireEffect::FetchChain`] failed; another source is tried.
    ChainFailed,
    /// [`AcquireEffect::BuildStart`] is done: START is in this host's log, on disk.
    StartReady {
        /// The START commit.
        tip: Tip,
    },
    /// Time passes; at least every [`RETRY_MS`].
    Tick,
}

/// What the shell has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcquireEffect {
    /// Write on this host's disk that this term is used; then report [`AcquireEvent::TermPersisted`].
    PersistTerm(Term),
    /// Ask a keeper, this host's own one included; report its answer or [`AcquireEvent::Unreachable`].
    Send {
        /// The keeper.
        to: PeerId,
        /// The request.
        message: Message,
    },
    /// Bring this host's log from `after` to `target` with FetchLog to `from`, adding what comes through this host's own
    /// keeper as Appends of this term from this host; report [`AcquireEvent::ChainReady`] or `ChainFailed`.
    FetchChain {
        /// Who has the chain.
        from: PeerId,
        /// Where this host's log ends.
        after: Tip,
        /// Where it has to end.
        target: Tip,
    },
    /// Open the volume at `after`, commit START with this term and configuration; report [`AcquireEvent::StartReady`]. It
    /// may come a second time, with a higher term and after the START that was built before.
    BuildStart {
        /// The term of all commits from now on.
        term: Term,
        /// The commit before START.
        after: Tip,
        /// What START says.
        config: Config,
    },
    /// Send a keeper an Append of this host's log after `after`; report its answer or [`AcquireEvent::Unreachable`].
    SendLog {
        /// The keeper.
        to: PeerId,
        /// Where its log ends.
        after: Tip,
        /// What the Append says of it.
        commit_seq: u64,
    },
    /// This host is the writer: serve.
    Won(Box<Won>),
    /// This host is not the writer.
    Lost(AcquireError),
}

/// The end of a successful acquisition; what the writer begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Won {
    /// The term to write in.
    pub term: Term,
    /// The configuration; settled, unless this host went on alone.
    pub config: Config,
    /// The START commit.
    pub start: Tip,
    /// What each keeper has on disk, and when the request was sent that it answered last.
    pub progress: BTreeMap<PeerId, (Tip, Millis)>,
    /// What keepers that were away are told of the election when they come back.
    pub elected: Option<Box<Elected>>,
}

/// Why the volume was not acquired.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// Another host writes it.
    #[error("the volume is in use on host {} (term {})", hold.peer, hold.term)]
    Held {
        /// Who, and since when.
        hold: Hold,
        /// How long its lease still lasts, in milliseconds; None if only its release or an operator ends it.
        lease_left_ms: Option<u64>,
    },
    /// The last writer had more than any keeper that answered, and has to be reached.
    #[error("the newest data is on host {peer}, which does not answer")]
    Behind {
        /// The last writer.
        peer: PeerId,
    },
    /// Not enough keepers answered in time.
    #[error("not enough keepers of the volume answer: {} missing", missing.len())]
    Unreachable {
        /// Who did not answer, or cannot vote.
        missing: Vec<PeerId>,
    },
    /// Another candidate was faster: try again.
    #[error("another host is acquiring the volume at this moment (term {promised})")]
    Outbid {
        /// Its term.
        promised: Term,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    PersistingTerm,
    Preparing,
    Resting { until: Millis },
    Aligning,
    Fetching,
    Building,
    Starting { start: Tip },
    Done,
}

/// Rules left out on purpose, so that the simulation can prove that it would notice.
#[cfg(feature = "mistakes")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AcquireMistakes {
    /// The longest chain goes on, whatever its term.
    pub longest_wins: bool,
    /// The last writer goes on alone, although others can be elected without it.
    pub alone_of_many: bool,
}

/// One attempt to become the writer.
#[derive(Debug, Clone)]
pub struct Acquire {
    options: AcquireOptions,
    phase: Phase,
    term: Term,
    seen: Term,
    rounds: u32,
    evidence: Option<Evidence>,
    /// The configuration that this attempt settled on its way, by its generation.
    settled: Option<Term>,
    /// Best known so far; its voters are asked.
    config: Config,
    next: Config,
    asked: BTreeSet<PeerId>,
    promises: BTreeMap<PeerId, Promised>,
    refusals: BTreeMap<PeerId, Refusal>,
    silent: BTreeSet<PeerId>,
    target: Tip,
    sources: Vec<PeerId>,
    elected: Option<Box<Elected>>,
    progress: BTreeMap<PeerId, (Tip, Millis)>,
    aligned: BTreeSet<PeerId>,
    in_flight: BTreeMap<PeerId, Millis>,
    retry_at: Millis,
    /// From when this host may go on without keepers that do not answer.
    alone_from: Millis,
    is_alone: bool,
    #[cfg(feature = "mistakes")]
    /// Which rules to leave out.
    pub mistakes: AcquireMistakes,
}

impl Acquire {
    /// Begins; the effects are to be done in order.
    pub fn begin(options: AcquireOptions, now: Millis) -> (Self, Vec<AcquireEffect>) {
        let mut acquire = Acquire {
            phase: Phase::PersistingTerm,
            term: Term(0),
            seen: options.floor,
            rounds: 0,
            evidence: options.evidence,
            settled: None,
            config: options.config.clone(),
            next: options.config.clone(),
            asked: BTreeSet::new(),
            promises: BTreeMap::new(),
            refusals: BTreeMap::new(),
            silent: BTreeSet::new(),
            target: Tip::default(),
            sources: Vec::new(),
            elected: None,
            progress: BTreeMap::new(),
            aligned: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            retry_at: now,
            alone_from: now + alone::WAIT_MS,
            is_alone: false,
            options,
            #[cfg(feature = "mistakes")]
            mistakes: AcquireMistakes::default(),
        };
        let mut effects = Vec::new();
        acquire.new_round(&mut effects);
        (acquire, effects)
    }

    /// The term it tries with.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Whether it has won or lost.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Handles one event; the effects are to be done in order.
    pub fn on(&mut self, now: Millis, event: AcquireEvent) -> Vec<AcquireEffect> {
        let mut effects = Vec::new();
        if self.is_done() {
            return effects;
        }
        match event {
            AcquireEvent::TermPersisted(term) => {
                if self.phase == Phase::PersistingTerm && term == self.term {
                    self.phase = Phase::Preparing;
                    self.retry_at = now + RETRY_MS;
                    self.ask(&mut effects);
                }
            }
            AcquireEvent::Reply { from, message } => self.on_reply(now, from, message, &mut effects),
            AcquireEvent::Unreachable { peer } => self.on_unreachable(now, peer, &mut effects),
            AcquireEvent::ChainReady { tip } => self.on_chain_ready(tip, &mut effects),
            AcquireEvent::ChainFailed => self.on_chain_failed(&mut effects),
            AcquireEvent::StartReady { tip } => self.on_start_ready(now, tip, &mut effects),
            AcquireEvent::Tick => self.on_tick(now, &mut effects),
        }
        effects
    }

    fn on_reply(&mut self, now: Millis, from: PeerId, message: Message, effects: &mut Vec<AcquireEffect>) {
        match message {
            Message::Promised(promised) => self.on_promised(now, from, *promised, effects),
            Message::Refused(refusal) => self.on_refused(now, from, *refusal, effects),
            Message::Aligned { term, tip } if term == self.term => self.on_aligned(now, from, tip, effects),
            Message::Ack { term, tip } if term == self.term => self.on_ack(now, from, tip, effects),
            Message::Nack(nack) => self.on_nack(now, from, &nack, effects),
            Message::NotHere => self.on_unreachable(now, from, effects),
            _ => {}
        }
    }

    fn on_unreachable(&mut self, now: Millis, peer: PeerId, effects: &mut Vec<AcquireEffect>) {
        self.in_flight.remove(&peer);
        if self.phase == Phase::Preparing && !self.promises.contains_key(&peer) {
            self.silent.insert(peer);
            self.conclude(now, effects);
        }
    }

    fn on_tick(&mut self, now: Millis, effects: &mut Vec<AcquireEffect>) {
        if now >= self.options.deadline {
            let error = self.deadline_error();
            self.lose(error, effects);
            return;
        }
        match self.phase {
            Phase::Resting { until } if now >= until => self.new_round(effects),
            Phase::Preparing if now >= self.retry_at => {
                self.retry_at = now + RETRY_MS;
                let answered =
                    |peer: &PeerId| self.promises.contains_key(peer) || self.refusals.contains_key(peer);
                self.asked = self.asked.iter().copied().filter(answered).collect();
                self.silent.clear();
                self.ask(effects);
            }
            Phase::Aligning | Phase::Fetching | Phase::Building | Phase::Starting { .. }
                if now >= self.retry_at =>
            {
                self.retry_at = now + RETRY_MS;
                self.send_again(now, effects);
            }
            _ => {}
        }
    }

    fn deadline_error(&self) -> AcquireError {
        if let Some((hold, lease_left_ms)) = self.holder() {
            return AcquireError::Held { hold, lease_left_ms };
        }
        if let Some(peer) = self.missing_writer() {
            return AcquireError::Behind { peer };
        }
        let has = |peer: &PeerId| match self.phase {
            Phase::Preparing | Phase::PersistingTerm | Phase::Resting { .. } => {
                self.promises.contains_key(peer)
            }
            _ => self.progress.contains_key(peer),
        };
        let voters = self.config.voters().into_iter().chain(self.next.voters());
        let missing: BTreeSet<PeerId> = voters.filter(|peer| !has(peer)).collect();
        AcquireError::Unreachable { missing: missing.into_iter().collect() }
    }

    /// Gives up. Keepers that were told of the election are told that nothing was written.
    fn lose(&mut self, error: AcquireError, effects: &mut Vec<AcquireEffect>) {
        if self.elected.is_some() {
            let message = Message::Release { term: self.term, tip: self.target };
            let told: BTreeSet<PeerId> = self.next.voters().into_iter().chain(self.config.voters()).collect();
            for to in told.into_iter().chain([self.options.me]).collect::<BTreeSet<PeerId>>() {
                effects.push(AcquireEffect::Send { to, message: message.clone() });
            }
        }
        self.phase = Phase::Done;
        effects.push(AcquireEffect::Lost(error));
    }
}
