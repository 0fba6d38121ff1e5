//! The first half of an acquisition: from the question to the election.

use crate::acquire::{Acquire, AcquireEffect, AcquireError, Phase, ROUNDS_MAX};
use crate::config::{Config, Durability, members_after};
use crate::identity::PeerId;
use crate::lease::Millis;
use crate::message::{Elected, Evidence, Message, Prepare, Promised, Refusal, RefuseReason};
use crate::promise::Hold;
use crate::tip::{Term, Tip};

/// How long a candidate rests before it asks again for a volume that is held, in milliseconds.
const REST_MS_MAX: u64 = 1_000;

impl Acquire {
    /// Begins again with a term higher than every one seen.
    pub(super) fn new_round(&mut self, effects: &mut Vec<AcquireEffect>) {
        self.rounds += 1;
        self.term = self.seen.max(self.term).next();
        self.phase = Phase::PersistingTerm;
        self.asked.clear();
        self.promises.clear();
        self.refusals.clear();
        self.silent.clear();
        self.is_alone = false;
        effects.push(AcquireEffect::PersistTerm(self.term));
    }

    /// Asks every voter that was not asked in this round.
    pub(super) fn ask(&mut self, effects: &mut Vec<AcquireEffect>) {
        // A writer may be no keeper while a change of keepers is unsettled; its log may count all the same.
        let writer = self.last_hold().filter(|hold| hold.released.is_none()).map(|hold| hold.peer);
        for to in self.config.voters().into_iter().chain(writer) {
            if self.asked.insert(to) {
                let prepare = Prepare { term: self.term, evidence: self.evidence };
                effects.push(AcquireEffect::Send { to, message: Message::Prepare(prepare) });
            }
        }
    }

    pub(super) fn on_promised(
        &mut self,
        now: Millis,
        from: PeerId,
        promised: Promised,
        effects: &mut Vec<AcquireEffect>,
    ) {
        if self.phase != Phase::Preparing || promised.term != self.term {
            return;
        }
        self.silent.remove(&from);
        self.refusals.remove(&from);
        self.promises.insert(from, promised);
        self.weigh(now, effects);
    }

    pub(super) fn on_refused(
        &mut self,
        now: Millis,
        from: PeerId,
        refusal: Refusal,
        effects: &mut Vec<AcquireEffect>,
    ) {
        if self.phase != Phase::Preparing || self.promises.contains_key(&from) {
            return;
        }
        self.seen = self.seen.max(refusal.promised);
        let known = refusal.config.as_ref().filter(|config| config.generation > self.config.generation);
        if let Some(config) = known.filter(|_| self.promises.is_empty()) {
            self.config = config.clone();
        }
        self.refusals.insert(from, refusal);
        self.weigh(now, effects);
    }

    /// Elects if the promises suffice, else asks whom they name, else concludes.
    fn weigh(&mut self, now: Millis, effects: &mut Vec<AcquireEffect>) {
        if let Some((best, config)) = self.best() {
            self.config = config;
            let is_quorum = self.config.is_quorum(|peer| self.promises.contains_key(peer));
            if is_quorum && self.reaches_last_writer(&best) {
                self.elect(now, &best, effects);
                return;
            }
        }
        self.ask(effects);
        self.conclude(now, effects);
    }

    /// The end of the best chain promised, and the configuration in it; settled if anybody knows it to be.
    pub(super) fn best(&self) -> Option<(Tip, Config)> {
        #[cfg(feature = "mistakes")]
        if self.mistakes.longest_wins {
            let longest = self.promises.values().max_by_key(|promised| promised.chain.tip.seq)?;
            return Some((longest.chain.tip, longest.config.clone()));
        }
        let best = self.promises.values().max_by_key(|promised| promised.chain.tip.rank())?;
        let is_same =
            |config: &&Config| config.generation == best.config.generation && config.outgoing.is_none();
        let settled = self.promises.values().map(|promised| &promised.config).find(is_same);
        let config = settled.unwrap_or(&best.config);
        let is_settled_here = self.settled == Some(config.generation);
        Some((best.chain.tip, if is_settled_here { config.settled() } else { config.clone() }))
    }

    /// The newest writer that anybody who answered knows of.
    pub(super) fn last_hold(&self) -> Option<Hold> {
        let promised = self.promises.values().filter_map(|promised| promised.hold);
        let refused = self.refusals.values().filter_map(|refusal| refusal.hold);
        promised.chain(refused).max_by_key(|hold| (hold.term, hold.released.is_some()))
    }

    /// Where fsync waits for one disk only, the chain that goes on has to reach what the last writer had: its last word
    /// if it released, else the chain that it was elected to go on with, and its own log if it ever served: then its
    /// START is on a majority, and so on the best chain.
    pub(super) fn reaches_last_writer(&self, best: &Tip) -> bool {
        if self.config.weakest_durability() == Durability::Quorum {
            return true;
        }
        let Some(hold) = self.last_hold() else { return true };
        match (hold.released, self.evidence) {
            (_, Some(Evidence::Fenced { term, .. })) if term >= hold.term => true,
            (Some(tip), _) => best.rank() >= tip.rank(),
            (None, _) => {
                let is_heard = best.term < hold.term || self.promises.contains_key(&hold.peer);
                best.rank() >= hold.base.rank() && is_heard
            }
        }
    }

    /// The writer that stands in the way, as the refusals tell it, and what is left of its lease.
    pub(super) fn holder(&self) -> Option<(Hold, Option<u64>)> {
        let held = self.refusals.values().filter(|refusal| refusal.reason == RefuseReason::Held);
        let newest = held.filter_map(|refusal| Some((refusal.hold?, refusal.lease_left_ms)));
        newest.max_by_key(|(hold, left)| (hold.term, *left))
    }

    /// When everybody asked has answered or is silent, and that does not suffice: what now.
    pub(super) fn conclude(&mut self, now: Millis, effects: &mut Vec<AcquireEffect>) {
        let is_waiting = self.asked.iter().any(|peer| {
            let has_answered = self.promises.contains_key(peer) || self.refusals.contains_key(peer);
            !has_answered && !self.silent.contains(peer)
        });
        if self.phase != Phase::Preparing || is_waiting || self.rounds > ROUNDS_MAX {
            return;
        }
        if let Some((hold, lease_left_ms)) = self.holder() {
            self.on_held(now, hold, lease_left_ms, effects);
        } else if self.refusals.values().any(|refusal| refusal.reason == RefuseReason::Outbid) {
            self.new_round(effects);
        } else if self.refusals.values().any(|refusal| refusal.reason == RefuseReason::Busy) {
            self.phase = Phase::Resting { until: now + REST_MS_MAX };
        } else {
            // Too many are silent, or the one that counts: they are asked again until the deadline.
            self.try_alone(now, effects);
        }
    }

    /// The last writer, if the promises suffice but do not reach what it had.
    pub(super) fn missing_writer(&self) -> Option<PeerId> {
        let (best, config) = self.best()?;
        let is_quorum = config.is_quorum(|peer| self.promises.contains_key(peer));
        let is_behind = self.phase == Phase::Preparing && is_quorum && !self.reaches_last_writer(&best);
        self.last_hold().filter(|_| is_behind).map(|hold| hold.peer)
    }

    fn on_held(
        &mut self,
        now: Millis,
        hold: Hold,
        lease_left_ms: Option<u64>,
        effects: &mut Vec<AcquireEffect>,
    ) {
        if let Some(evidence) = self.newer_evidence(&hold) {
            self.evidence = Some(evidence);
            self.new_round(effects);
            return;
        }
        match lease_left_ms {
            Some(left_ms) if self.options.waits_for_lease => {
                self.phase = Phase::Resting { until: now + left_ms.clamp(1, REST_MS_MAX) };
            }
            _ => self.lose(AcquireError::Held { hold, lease_left_ms }, effects),
        }
    }

    /// What a keeper that was away may not know of its holder: that it released, or that this very host was elected after
    /// it (and was gone before it told everybody), so that everything before ended where that election went on.
    fn newer_evidence(&self, held: &Hold) -> Option<Evidence> {
        let last = self.last_hold()?;
        let (term, tip) = match last.released {
            Some(tip) if last.term >= held.term => (last.term, tip),
            None if last.term > held.term && last.peer == self.options.me => {
                (Term(last.term.0 - 1), last.base)
            }
            _ => return None,
        };
        let is_new = self.evidence.is_none_or(|evidence| evidence.term() < term);
        is_new.then_some(Evidence::Released { term, tip })
    }

    pub(super) fn elect(&mut self, now: Millis, best: &Tip, effects: &mut Vec<AcquireEffect>) {
        let options = &self.options;
        let sources = self.promises.iter().filter(|(_, promised)| promised.chain.tip == *best);
        self.sources = sources.map(|(peer, _)| *peer).collect();
        let Some(promised) = self.sources.first().and_then(|peer| self.promises.get(peer)) else { return };
        let members = members_after(
            &self.config.members,
            options.me,
            options.replicas,
            &options.ranked,
            &options.invited,
        );
        let is_same = members == self.config.members && options.durability == self.config.durability;
        self.next = if self.is_alone || (is_same && self.config.outgoing.is_none()) {
            Config { generation: self.term, ..self.config.clone() }
        } else {
            self.config.succeeded_by(self.term, members, options.durability)
        };
        let elected = Elected {
            term: self.term,
            chain: promised.chain.clone(),
            config: self.config.clone(),
            next: self.next.clone(),
            since_unix_ms: options.now_unix_ms,
        };
        self.target = *best;
        self.elected = Some(Box::new(elected));
        self.phase = Phase::Aligning;
        self.send_again(now, effects);
    }
}
