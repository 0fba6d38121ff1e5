//! The writer's side after START: what is durable, who still believes in it, when to stop.
//!
//! What always holds: under quorum durability a commit counts only when this host's own disk and a majority of the
//! keepers have it; under local durability when this host's own disk has it. `commit_seq` told to keepers is always what
//! a majority has. Under quorum durability the writer stops when fewer keepers renewed it than it takes to make every
//! majority contain one that refuses others; renewals are counted from when they were sent.

use std::collections::BTreeMap;

use crate::acquire::Won;
use crate::config::{Config, Durability, majority};
use crate::identity::PeerId;
use crate::lease::{LeaseTimes, Millis};
use crate::message::{Elected, Message, Nack, NackReason};
use crate::promise::Hold;
use crate::tip::{Term, Tip};

/// What happens to a writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriterEvent {
    /// A commit is in this host's log, perhaps not yet on disk: it can be sent.
    Appended {
        /// The newest commit.
        tip: Tip,
    },
    /// This host's log is on disk up to here.
    LocalDurable {
        /// The number of the last commit on disk.
        seq: u64,
    },
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
    /// Flushed, nothing more will be appended: give the volume back.
    Release,
    /// Time passes; at least every quarter of a renewal.
    Tick,
}

/// What the shell has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriterEffect {
    /// Send a keeper an Append of this host's log after `after`; report its answer or [`WriterEvent::Unreachable`].
    SendLog {
        /// The keeper.
        to: PeerId,
        /// Where its log ends.
        after: Tip,
        /// What the Append says of it.
        commit_seq: u64,
    },
    /// Ask a keeper, this host's own one included; report its answer or [`WriterEvent::Unreachable`].
    Send {
        /// The keeper.
        to: PeerId,
        /// The request.
        message: Message,
    },
    /// All commits up to this number are durable under the volume's rule: waiting fsyncs return.
    Durable {
        /// The number.
        seq: u64,
    },
    /// Stop for good: nothing more may be acknowledged, the mount answers EIO.
    StepDown(StepDownReason),
    /// Enough keepers wrote down the release: any other host can have the volume.
    Released,
}

/// Why a writer has to stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepDownReason {
    /// Another host was elected.
    #[error("host {} took over the volume (term {})", hold.peer, hold.term)]
    TakenOver {
        /// The new writer.
        hold: Hold,
    },
    /// So many keepers promised a higher term that no commit can count any more.
    #[error("the keepers promised the volume to another host (term {promised})")]
    Outvoted {
        /// The higher term.
        promised: Term,
    },
    /// Too few keepers answered for a lease's time.
    #[error("too few keepers of the volume were reachable for the time of a lease")]
    LeaseLost,
}

#[derive(Debug, Clone, Copy)]
struct Peer {
    tip: Tip,
    renewed: Option<Millis>,
    /// When the request that awaits its answer was sent.
    in_flight: Option<Millis>,
    rests_until: Millis,
    promised: Term,
    is_released: bool,
    /// It was away at the election and has to be told before it takes commits.
    is_untold: bool,
}

impl Peer {
    /// It answered what was sent then: it believes in the writer for another lease, and has its log up to `tip`.
    fn believes(&mut self, sent: Option<Millis>, tip: Tip) {
        self.renewed = self.renewed.max(sent);
        if tip.rank() > self.tip.rank() {
            self.tip = tip;
        }
    }
}

/// The writer of one volume, from [`Won`] to its release or fall.
#[derive(Debug, Clone)]
pub struct Writer {
    me: PeerId,
    term: Term,
    config: Config,
    elected: Option<Box<Elected>>,
    times: LeaseTimes,
    start: Tip,
    tip: Tip,
    own_durable_seq: u64,
    told_durable_seq: u64,
    peers: BTreeMap<PeerId, Peer>,
    is_releasing: bool,
    is_over: bool,
}

impl Writer {
    /// Begins where the acquisition ended; renews at once.
    pub fn begin(me: PeerId, won: &Won, times: LeaseTimes, now: Millis) -> (Self, Vec<WriterEffect>) {
        let peer = |peer: PeerId| {
            let known = won.progress.get(&peer).copied();
            let state = Peer {
                tip: known.map_or(Tip::default(), |(tip, _)| tip),
                renewed: known.map(|(_, sent)| sent),
                in_flight: None,
                rests_until: Millis(0),
                promised: Term(0),
                is_released: false,
                is_untold: false,
            };
            (peer, state)
        };
        let mut writer = Writer {
            me,
            term: won.term,
            peers: won.config.voters().into_iter().chain([me]).map(peer).collect(),
            config: won.config.clone(),
            elected: won.elected.clone(),
            times,
            start: won.start,
            tip: won.start,
            own_durable_seq: won.start.seq,
            told_durable_seq: won.start.seq,
            is_releasing: false,
            is_over: false,
        };
        let mut effects = Vec::new();
        writer.send(now, &mut effects);
        (writer, effects)
    }

    /// The term it writes in.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The configuration it writes under.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The last commit that is durable under the volume's rule.
    pub fn durable_seq(&self) -> u64 {
        match self.config.durability {
            Durability::Local => self.own_durable_seq,
            Durability::Quorum => self.own_durable_seq.min(self.majority_seq()),
        }
    }

    /// The last commit that a majority of the keepers has on disk: what the lag of a local volume is measured against.
    pub fn majority_seq(&self) -> u64 {
        let mut seqs: Vec<u64> = self.config.members.iter().map(|peer| self.durable_at(peer)).collect();
        seqs.sort_unstable_by(|a, b| b.cmp(a));
        seqs.get(majority(seqs.len()) - 1).copied().unwrap_or(0)
    }

    /// The last commit that every keeper has on disk: older ones nobody has to be sent again.
    pub fn slowest_seq(&self) -> u64 {
        self.config.members.iter().map(|peer| self.durable_at(peer)).min().unwrap_or(0)
    }

    /// Until when the writer may believe that no other host was let in; None if too few keepers ever renewed it.
    pub fn lease_until(&self) -> Option<Millis> {
        let n = self.config.members.len();
        let renewed = |peer: &PeerId| self.peers.get(peer).and_then(|peer| peer.renewed);
        let mut renewals: Vec<Millis> = self.config.members.iter().filter_map(renewed).collect();
        renewals.sort_unstable_by(|a, b| b.cmp(a));
        renewals.get(n - majority(n)).map(|sent| *sent + self.times.writer_ms)
    }

    /// Whether `peer` wrote down the release. If this host's own keeper did and the others are away, the volume can be
    /// had by any host that reaches this one.
    pub fn is_released_at(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.is_released)
    }

    /// Whether it is giving the volume back: some keepers may already let others in.
    pub fn is_releasing(&self) -> bool {
        self.is_releasing
    }

    /// Whether it stopped for good or was released.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Handles one event; the effects are to be done in order.
    pub fn on(&mut self, now: Millis, event: WriterEvent) -> Vec<WriterEffect> {
        let mut effects = Vec::new();
        if self.is_over {
            return effects;
        }
        match event {
            WriterEvent::Appended { tip } if tip.seq > self.tip.seq => self.tip = tip,
            WriterEvent::Appended { .. } | WriterEvent::Tick => {}
            WriterEvent::LocalDurable { seq } => self.own_durable_seq = self.own_durable_seq.max(seq),
            WriterEvent::Unreachable { peer } => self.on_unreachable(now, peer),
            WriterEvent::Release => self.is_releasing = true,
            WriterEvent::Reply { from, message } => self.on_reply(now, from, &message, &mut effects),
        }
        if !self.is_over {
            self.check_lease(now, &mut effects);
        }
        if !self.is_over {
            self.tell_durable(&mut effects);
            self.send(now, &mut effects);
        }
        effects
    }

    fn durable_at(&self, peer: &PeerId) -> u64 {
        if *peer == self.me {
            return self.own_durable_seq;
        }
        // What a log holds of older terms is on this chain only as far as that goes back before START.
        let on_chain =
            |tip: Tip| if tip.term < self.term { tip.seq.min(self.start.seq - 1) } else { tip.seq };
        self.peers.get(peer).map_or(0, |peer| on_chain(peer.tip))
    }

    fn on_unreachable(&mut self, now: Millis, peer: PeerId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.in_flight = None;
            peer.rests_until = now + self.times.renew_ms / 4;
        }
    }

    fn on_reply(&mut self, now: Millis, from: PeerId, message: &Message, effects: &mut Vec<WriterEffect>) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let sent = peer.in_flight.take();
        match *message {
            Message::Ack { term, tip } | Message::Renewed { term, tip } if term == self.term => {
                peer.believes(sent, tip);
            }
            Message::Aligned { term, tip } if term == self.term => {
                // Its log was cut to where it is on this chain. No renewal: a keeper that knew already renews nothing.
                peer.tip = tip;
                peer.is_untold = false;
            }
            Message::Released { term } if term == self.term => {
                peer.is_released = true;
                let is_released = |peer: &PeerId| self.peers.get(peer).is_some_and(|peer| peer.is_released);
                if self.config.is_quorum(is_released) && is_released(&self.me) {
                    self.is_over = true;
                    effects.push(WriterEffect::Released);
                }
            }
            Message::Nack(ref nack) => {
                let is_own = nack.hold.is_some_and(|hold| hold.term == self.term);
                if nack.reason == NackReason::Full && is_own && nack.promised == self.term {
                    // It takes nothing for now, and lets nobody else in either.
                    peer.believes(sent, nack.tip);
                }
                self.on_nack(now, from, nack, effects);
            }
            // A keeper that never heard of the volume is made one by hearing of the election.
            Message::NotHere => {
                peer.is_untold = self.elected.is_some();
                peer.rests_until = now + self.times.renew_ms / 4;
            }
            _ => peer.rests_until = now + self.times.renew_ms / 4,
        }
    }

    fn on_nack(&mut self, now: Millis, from: PeerId, nack: &Nack, effects: &mut Vec<WriterEffect>) {
        if let Some(hold) = nack.hold.filter(|hold| hold.term > self.term) {
            self.step_down(StepDownReason::TakenOver { hold }, effects);
            return;
        }
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.promised = peer.promised.max(nack.promised);
        match nack.reason {
            NackReason::Gap => peer.tip = nack.tip,
            NackReason::NotElected if self.elected.is_some() && !peer.is_untold => peer.is_untold = true,
            _ => peer.rests_until = now + self.times.renew_ms / 4,
        }
        // One keeper that was away may promise somebody else: that alone must not stop a writer whom a majority serves.
        let is_loyal = |peer: &PeerId| self.peers.get(peer).is_none_or(|peer| peer.promised <= self.term);
        let is_quorum_rule = self.config.durability == Durability::Quorum;
        if is_quorum_rule && !self.is_releasing && !self.config.is_quorum(is_loyal) {
            self.step_down(StepDownReason::Outvoted { promised: nack.promised }, effects);
        }
    }

    fn check_lease(&mut self, now: Millis, effects: &mut Vec<WriterEffect>) {
        if self.config.durability == Durability::Local || self.is_releasing {
            return;
        }
        if self.lease_until().is_none_or(|until| now >= until) {
            self.step_down(StepDownReason::LeaseLost, effects);
        }
    }

    fn step_down(&mut self, reason: StepDownReason, effects: &mut Vec<WriterEffect>) {
        self.is_over = true;
        effects.push(WriterEffect::StepDown(reason));
    }

    fn tell_durable(&mut self, effects: &mut Vec<WriterEffect>) {
        let seq = self.durable_seq();
        if seq > self.told_durable_seq {
            self.told_durable_seq = seq;
            effects.push(WriterEffect::Durable { seq });
        }
    }

    /// Gives every idle keeper what it has to get next: commits, the release, or a renewal when one is due.
    fn send(&mut self, now: Millis, effects: &mut Vec<WriterEffect>) {
        let commit_seq = self.majority_seq();
        let (term, tip, me, times) = (self.term, self.tip, self.me, self.times);
        for (to, peer) in &mut self.peers {
            if peer.in_flight.is_some_and(|sent| now.since(sent) < times.writer_ms) || now < peer.rests_until
            {
                continue;
            }
            let is_due = peer.renewed.is_none_or(|renewed| now.since(renewed) >= times.renew_ms);
            // A keeper takes no release of a term it was not told of, so the election comes first, also while releasing. Of
            // the log nothing more is sent then: what a keeper lacks the next writer brings, a hand-off does not wait.
            let untold = self.elected.as_ref().filter(|_| peer.is_untold);
            let message = if self.is_releasing && peer.is_released {
                continue;
            } else if let Some(elected) = untold {
                Message::Elected(elected.clone())
            } else if self.is_releasing {
                Message::Release { term, tip }
            } else if *to != me && peer.tip.seq < tip.seq {
                effects.push(WriterEffect::SendLog { to: *to, after: peer.tip, commit_seq });
                peer.in_flight = Some(now);
                continue;
            } else if is_due {
                Message::Renew { term, commit_seq }
            } else {
                continue;
            };
            effects.push(WriterEffect::Send { to: *to, message });
            peer.in_flight = Some(now);
        }
    }
}
