//! The votes of a keeper: promises, elections, releases, renewals.

use crate::config::Config;
use crate::identity::PeerId;
use crate::keeper::{Keeper, KeeperEffect, KeeperEvent, RequestId, Step};
use crate::lease::Millis;
use crate::message::{Elected, Message, NackReason, Prepare, Promised, Refusal, RefuseReason};
use crate::promise::Hold;
use crate::tip::{Term, Tip};

impl Keeper {
    pub(super) fn on_message(
        &mut self,
        now: Millis,
        from: PeerId,
        request: RequestId,
        message: Message,
        effects: &mut Vec<KeeperEffect>,
    ) {
        match message {
            Message::Prepare(prepare) => self.on_prepare(now, from, request, prepare, effects),
            Message::Elected(elected) => self.on_elected(now, from, request, *elected, effects),
            Message::Release { term, tip } => self.on_release(from, request, term, tip, effects),
            Message::Renew { term, commit_seq } => {
                self.on_renew(now, (from, request), term, commit_seq, effects);
            }
            _ => effects.push(KeeperEffect::Reply { request, message: Message::NotHere }),
        }
    }

    fn on_prepare(
        &mut self,
        now: Millis,
        from: PeerId,
        request: RequestId,
        prepare: Prepare,
        effects: &mut Vec<KeeperEffect>,
    ) {
        if let Some(reason) = self.refuse_reason(now, from, &prepare) {
            effects.push(self.refuse(now, request, reason));
            return;
        }
        let again = KeeperEvent::Request { from, request, message: Message::Prepare(prepare) };
        if self.stop_local_writer(from, again, effects) {
            return;
        }
        let Some(config) = self.config().cloned() else { return };
        let promised = Promised {
            term: prepare.term,
            chain: self.chain.clone(),
            config,
            hold: self.record.hold,
            checkpoint: self.record.checkpoint,
        };
        let reply = KeeperEffect::Reply { request, message: Message::Promised(Box::new(promised)) };
        if prepare.term == self.record.term && self.record.candidate == Some(from) {
            effects.push(reply);
            return;
        }
        self.record.term = prepare.term;
        self.record.candidate = Some(from);
        effects.push(self.persist(vec![reply]));
    }

    /// Why `from` is not promised what it asks for, if it is not.
    fn refuse_reason(&self, now: Millis, from: PeerId, prepare: &Prepare) -> Option<RefuseReason> {
        if self.is_damaged {
            return Some(RefuseReason::Damaged);
        }
        if self.config().is_none() {
            return Some(RefuseReason::NotKeeper);
        }
        // A writer that is alive is the better reason: it tells the candidate whom to ask.
        if self.is_held_against(now, from, prepare) {
            return Some(RefuseReason::Held);
        }
        let is_elected = self.record.hold.is_some_and(|hold| hold.term == prepare.term);
        let is_repeated =
            prepare.term == self.record.term && self.record.candidate == Some(from) && !is_elected;
        #[cfg(feature = "mistakes")]
        let is_repeated = is_repeated || (self.mistakes.promise_twice && prepare.term == self.record.term);
        (prepare.term <= self.record.term && !is_repeated).then_some(RefuseReason::Outbid)
    }

    /// Evidence counts for the writer it names and older ones: our own hold may be older than what the candidate knows,
    /// and never makes a newer writer's lease worth less.
    fn is_held_against(&self, now: Millis, from: PeerId, prepare: &Prepare) -> bool {
        let Some(hold) = self.record.hold else { return false };
        let is_passed = prepare.evidence.is_some_and(|evidence| evidence.term() >= hold.term);
        let is_lapsed = self.lease_left_ms(now) == 0 && self.is_quorum_durable();
        hold.released.is_none() && hold.peer != from && !is_passed && !is_lapsed
    }

    fn refuse(&self, now: Millis, request: RequestId, reason: RefuseReason) -> KeeperEffect {
        let is_held = self.record.hold.is_some_and(|hold| hold.released.is_none());
        let refusal = Refusal {
            reason,
            promised: self.record.term,
            hold: self.record.hold,
            lease_left_ms: (is_held && self.is_quorum_durable()).then(|| self.lease_left_ms(now)),
            config: self.config().cloned(),
        };
        KeeperEffect::Reply { request, message: Message::Refused(Box::new(refusal)) }
    }

    /// Before anybody else gets anything, the writer on this host has to stop; whether it still has to.
    fn stop_local_writer(
        &mut self,
        from: PeerId,
        again: KeeperEvent,
        effects: &mut Vec<KeeperEffect>,
    ) -> bool {
        let Some(hold) = self.record.hold else { return false };
        if !self.is_local_writer_running || hold.peer != self.me || from == self.me {
            return false;
        }
        self.step = Some(Step::Stopping { then: Box::new(again) });
        effects.push(KeeperEffect::StopLocalWriter { term: hold.term });
        true
    }

    fn on_elected(
        &mut self,
        now: Millis,
        from: PeerId,
        request: RequestId,
        elected: Elected,
        effects: &mut Vec<KeeperEffect>,
    ) {
        if let Some(reason) = self.not_electable(from, &elected) {
            effects.push(self.nack(request, reason));
            return;
        }
        if self.record.hold.is_some_and(|hold| hold.term == elected.term) {
            effects.push(self.aligned(request));
            return;
        }
        let again =
            KeeperEvent::Request { from, request, message: Message::Elected(Box::new(elected.clone())) };
        if self.stop_local_writer(from, again, effects) {
            return;
        }
        let parted_after = self.parted_after(&elected);
        if parted_after.is_some_and(|seq| seq < self.commit_seq) {
            // Somebody was elected without a commit that is known to be committed: this log must not be cut.
            effects.push(self.nack(request, NackReason::Damaged));
            return;
        }
        if let Some(after_seq) = parted_after {
            // The cut comes first: who is on record as told of an election has a log on its chain, whenever it crashes.
            let again = KeeperEvent::Request { from, request, message: Message::Elected(Box::new(elected)) };
            self.step = Some(Step::Forking { request, then: Box::new(again) });
            effects.push(KeeperEffect::MoveSuffixToFork { after_seq });
            return;
        }
        self.note_elected(now, from, elected);
        effects.push(self.persist(vec![self.aligned(request)]));
    }

    fn note_elected(&mut self, now: Millis, from: PeerId, mut elected: Elected) {
        if from == self.me && self.stays_served(&elected) {
            elected.config.generation = elected.term;
        }
        let (term, since_unix_ms, base) = (elected.term, elected.since_unix_ms, elected.chain.tip);
        self.record.term = term;
        self.record.candidate = Some(from);
        self.record.hold = Some(Hold { peer: from, term, since_unix_ms, base, released: None });
        self.record.config = Some(elected.config);
        self.record.next = Some(elected.next);
        self.is_local_writer_running = from == self.me;
        self.renew_lease(now);
    }

    /// Whether this host served last, and goes on with the same keepers, none of whose majorities is without it: nobody else can have served since.
    fn stays_served(&self, elected: &Elected) -> bool {
        let own = self.record.hold.filter(|hold| hold.peer == self.me);
        let has_served =
            self.record.served(self.me).is_some() || own.is_some_and(|hold| hold.is_served_in(&self.chain));
        let same = Config { generation: elected.config.generation, ..elected.next.clone() };
        has_served && same == elected.config && same.is_met_by_all(|peer| *peer == self.me)
    }

    fn not_electable(&self, from: PeerId, elected: &Elected) -> Option<NackReason> {
        if self.is_damaged {
            return Some(NackReason::Damaged);
        }
        if elected.term < self.record.term {
            return Some(NackReason::Superseded);
        }
        let is_other = self.record.candidate.is_some_and(|candidate| candidate != from);
        if elected.term == self.record.term && is_other {
            return Some(NackReason::Superseded);
        }
        // Who should remember promises and remembers nothing has lost its disk: it must not count.
        let is_amnesiac = self.record.config.is_none() && elected.config.is_veteran(&self.me);
        is_amnesiac.then_some(NackReason::Damaged)
    }

    /// The last number this log has in common with the elected chain, if it goes on after that.
    fn parted_after(&self, elected: &Elected) -> Option<u64> {
        match self.chain.common_seq(&elected.chain) {
            Some(seq) => (seq < self.chain.tip.seq).then_some(seq),
            // All of it is before the elected chain's checkpoint, which will replace it.
            None if self.chain.tip.seq < elected.chain.base.seq => None,
            None => (self.chain.base.seq < self.chain.tip.seq).then_some(self.chain.base.seq),
        }
    }

    fn on_release(
        &mut self,
        from: PeerId,
        request: RequestId,
        term: Term,
        tip: Tip,
        effects: &mut Vec<KeeperEffect>,
    ) {
        let reply = KeeperEffect::Reply { request, message: Message::Released { term } };
        match &mut self.record.hold {
            Some(hold) if hold.peer == from && hold.term == term => {
                if hold.released.is_some() {
                    effects.push(reply);
                    return;
                }
                hold.released = Some(tip);
                self.lease_until = None;
                self.is_local_writer_running &= from != self.me;
                effects.push(self.persist(vec![reply]));
            }
            Some(hold) if hold.term > term => effects.push(self.nack(request, NackReason::Superseded)),
            _ => effects.push(self.nack(request, NackReason::NotElected)),
        }
    }

    fn on_renew(
        &mut self,
        now: Millis,
        (from, request): (PeerId, RequestId),
        term: Term,
        commit_seq: u64,
        effects: &mut Vec<KeeperEffect>,
    ) {
        if let Some(reason) = self.not_writable(from, term) {
            effects.push(self.nack(request, reason));
            return;
        }
        if self.record.hold.is_some_and(|hold| hold.released.is_none()) {
            self.renew_lease(now);
        }
        self.note_committed(commit_seq, effects);
        effects.push(KeeperEffect::Reply { request, message: Message::Renewed { term, tip: self.durable } });
    }
}
