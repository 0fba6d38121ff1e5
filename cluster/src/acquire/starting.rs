//! The second half of an acquisition: from the election to a START that a majority has.

use std::collections::BTreeSet;

use crate::acquire::{Acquire, AcquireEffect, AcquireError, Phase, RETRY_MS, Won};
use crate::identity::PeerId;
use crate::lease::Millis;
use crate::message::{Message, Nack, NackReason};
use crate::tip::Tip;

/// After this long without an answer a request counts as lost, in milliseconds.
const ANSWER_MS_MAX: u64 = 4 * RETRY_MS;

impl Acquire {
    /// Everybody who has to know of the election: this host, the keepers before and the keepers after it.
    fn audience(&self) -> BTreeSet<PeerId> {
        let voters = self.config.voters().into_iter().chain(self.next.voters());
        voters.chain([self.options.me]).collect()
    }

    /// Sends each peer what it has to get next, unless an answer from it is awaited.
    pub(super) fn send_again(&mut self, now: Millis, effects: &mut Vec<AcquireEffect>) {
        self.in_flight.retain(|_, sent| now.since(*sent) < ANSWER_MS_MAX);
        for to in self.audience() {
            self.send_next(now, to, effects);
        }
    }

    fn send_next(&mut self, now: Millis, to: PeerId, effects: &mut Vec<AcquireEffect>) {
        let Some(elected) = self.elected.as_ref().filter(|_| !self.in_flight.contains_key(&to)) else {
            return;
        };
        if !self.aligned.contains(&to) {
            let message = Message::Elected(elected.clone());
            effects.push(AcquireEffect::Send { to, message });
            self.in_flight.insert(to, now);
            return;
        }
        let Phase::Starting { start } = self.phase else { return };
        let after = self.progress.get(&to).map_or(Tip::default(), |(tip, _)| *tip);
        if to != self.options.me && after.seq < start.seq {
            effects.push(AcquireEffect::SendLog { to, after, commit_seq: 0 });
            self.in_flight.insert(to, now);
        }
    }

    fn note_progress(&mut self, now: Millis, from: PeerId, tip: Tip) {
        let sent = self.in_flight.remove(&from).unwrap_or(now);
        // Without a request on record the answer may be to an old one: it must not look like a fresh renewal.
        let sent = if sent == now { Millis(now.0.saturating_sub(ANSWER_MS_MAX)) } else { sent };
        self.progress.insert(from, (tip, sent));
    }

    pub(super) fn on_aligned(
        &mut self,
        now: Millis,
        from: PeerId,
        tip: Tip,
        effects: &mut Vec<AcquireEffect>,
    ) {
        if self.elected.is_none() {
            return;
        }
        let is_first = self.aligned.insert(from);
        if !is_first {
            return;
        }
        self.note_progress(now, from, tip);
        if from == self.options.me && self.phase == Phase::Aligning {
            self.phase = Phase::Fetching;
            if tip == self.target {
                self.on_chain_ready(tip, effects);
            } else {
                self.fetch(effects);
            }
        }
        self.send_next(now, from, effects);
    }

    fn fetch(&mut self, effects: &mut Vec<AcquireEffect>) {
        let after = self.progress.get(&self.options.me).map_or(Tip::default(), |(tip, _)| *tip);
        match self.sources.first() {
            Some(from) => effects.push(AcquireEffect::FetchChain { from: *from, after, target: self.target }),
            None => self.lose(AcquireError::Unreachable { missing: self.config.voters() }, effects),
        }
    }

    pub(super) fn on_chain_failed(&mut self, effects: &mut Vec<AcquireEffect>) {
        if self.phase == Phase::Fetching && !self.sources.is_empty() {
            self.sources.remove(0);
            self.fetch(effects);
        }
    }

    pub(super) fn on_chain_ready(&mut self, tip: Tip, effects: &mut Vec<AcquireEffect>) {
        if self.phase != Phase::Fetching {
            return;
        }
        if tip != self.target {
            self.on_chain_failed(effects);
            return;
        }
        self.phase = Phase::Building;
        let config = self.next.clone();
        effects.push(AcquireEffect::BuildStart { term: self.term, after: tip, config });
    }

    pub(super) fn on_start_ready(&mut self, now: Millis, start: Tip, effects: &mut Vec<AcquireEffect>) {
        if self.phase != Phase::Building {
            return;
        }
        self.phase = Phase::Starting { start };
        let me = self.options.me;
        let sent = self.progress.get(&me).map_or(now, |(_, sent)| *sent);
        self.progress.insert(me, (start, sent));
        self.retry_at = now + RETRY_MS;
        self.send_again(now, effects);
        self.check_won(effects);
    }

    pub(super) fn on_ack(&mut self, now: Millis, from: PeerId, tip: Tip, effects: &mut Vec<AcquireEffect>) {
        if !self.aligned.contains(&from) || from == self.options.me {
            return;
        }
        self.note_progress(now, from, tip);
        self.check_won(effects);
        if !self.is_done() {
            self.send_next(now, from, effects);
        }
    }

    fn check_won(&mut self, effects: &mut Vec<AcquireEffect>) {
        let Phase::Starting { start } = self.phase else { return };
        // By term first: a log that goes on in an older term is long, and has no START.
        let has_start =
            |peer: &PeerId| self.progress.get(peer).is_some_and(|(tip, _)| tip.rank() >= start.rank());
        let is_majority = self.next.is_quorum(has_start);
        let is_enough = is_majority || (self.is_alone && self.is_needed(&self.next));
        if !is_enough || !has_start(&self.options.me) {
            return;
        }
        if !self.next.members.contains(&self.options.me) {
            self.go_on_as_keeper(effects);
            return;
        }
        self.phase = Phase::Done;
        let aligned = &self.aligned;
        let known = self.progress.iter().filter(|(peer, _)| aligned.contains(peer));
        let progress = known.map(|(peer, known)| (*peer, *known)).collect();
        let elected = self.elected.clone();
        let config = if is_majority { self.next.settled() } else { self.next.clone() };
        let won = Won { term: self.term, config, start, progress, elected };
        effects.push(AcquireEffect::Won(Box::new(won)));
    }

    /// A change of keepers that somebody else began is settled now. A writer that is no keeper could leave what it alone
    /// has where nobody asks, so a second START makes this host one.
    fn go_on_as_keeper(&mut self, effects: &mut Vec<AcquireEffect>) {
        self.settled = Some(self.term);
        self.config = self.next.settled();
        self.elected = None;
        self.aligned.clear();
        self.progress.clear();
        self.in_flight.clear();
        self.new_round(effects);
    }

    pub(super) fn on_nack(
        &mut self,
        now: Millis,
        from: PeerId,
        nack: &Nack,
        effects: &mut Vec<AcquireEffect>,
    ) {
        if self.elected.is_none() {
            return;
        }
        self.in_flight.remove(&from);
        match nack.reason {
            NackReason::Superseded => {
                self.seen = self.seen.max(nack.promised);
                let newer = nack.hold.filter(|hold| hold.term > self.term && hold.released.is_none());
                let error = match newer {
                    Some(hold) => AcquireError::Held { hold, lease_left_ms: None },
                    None => AcquireError::Outbid { promised: nack.promised },
                };
                self.lose(error, effects);
            }
            NackReason::NotElected => {
                self.aligned.remove(&from);
                self.send_next(now, from, effects);
            }
            NackReason::Gap => {
                let sent = self.progress.get(&from).map_or(Millis(0), |(_, sent)| *sent);
                self.progress.insert(from, (nack.tip, sent));
            }
            NackReason::Damaged | NackReason::Busy | NackReason::Full => {}
        }
    }
}
