//! Who is asked for which block next. Pure: events in, requests to send and answers to hand out.
//!
//! What always holds:
//! * equal wants are one want, with many waiters;
//! * a want asks one peer at a time, in the order of its candidates; peers that have sent a wrong block come last;
//! * a peer that said no, or lied, is not asked again for that block; one that could not be reached is, until the deadline;
//! * at most [`BULK_MAX`] requests are open with a peer, and [`URGENT_MAX`] if somebody waits for a single block.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use cid::Cid;
use remora_cluster::identity::PeerId;
use remora_dag::block::Block;

use crate::block_frames::{HAVE_BYTES_MAX, WANTS_MAX};
use crate::exchange::FetchError;

/// Requests open with one peer for wants that nobody waits for in particular.
pub(crate) const BULK_MAX: usize = 4;
/// Requests open with one peer, urgent wants included.
pub(crate) const URGENT_MAX: usize = 6;
/// How many candidates of one want are kept.
pub(crate) const CANDIDATES_MAX: usize = 32;
/// How long to wait before those who could not be reached are asked again.
pub(crate) const RETRY: Duration = Duration::from_millis(250);
/// How long a peer that has sent a wrong block is asked last.
const DEMOTION: Duration = Duration::from_secs(600);
/// A request is at least worth this many bytes if there is that much to ask for.
const BATCH_BYTES_MIN: usize = 256 * 1024;

/// What a peer said about one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Block(Block),
    Missing,
    Wrong,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// For the first of the blocks asked for, in order; the others are to be asked for again.
    Said(Vec<Said>),
    /// The peer could not be reached, or was busy.
    Unreachable,
    /// The peer does not answer such requests, or answers nonsense.
    Useless,
}

/// A request to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) peer: PeerId,
    pub(crate) cids: Vec<Cid>,
}

/// A want that is over, for one waiter.
pub(crate) type Done<W> = (W, Result<Block, FetchError>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued(PeerId),
    Asked(PeerId),
    Resting(Instant),
}

struct Want<W> {
    waiters: Vec<W>,
    candidates: VecDeque<PeerId>,
    known: BTreeSet<PeerId>,
    unreachable: VecDeque<PeerId>,
    is_urgent: bool,
    state: State,
    deadline: Instant,
}

#[derive(Default)]
struct Queue {
    urgent: VecDeque<Cid>,
    bulk: VecDeque<Cid>,
    in_flight: usize,
    /// Moving average of the length of a block of this peer, in bytes; 0 before the first.
    block_bytes: usize,
}

impl Queue {
    fn typical_bytes(&self) -> usize {
        if self.block_bytes == 0 { 1024 * 1024 } else { self.block_bytes.max(1) }
    }
}

pub(crate) struct Wants<W> {
    wants: HashMap<Cid, Want<W>>,
    queues: BTreeMap<PeerId, Queue>,
    demoted: BTreeMap<PeerId, Instant>,
}

impl<W> Wants<W> {
    pub(crate) fn new() -> Wants<W> {
        Wants { wants: HashMap::new(), queues: BTreeMap::new(), demoted: BTreeMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wants.is_empty()
    }

    /// Adds a want, or a waiter to an equal one.
    pub(crate) fn add(
        &mut self,
        cid: Cid,
        candidates: &[PeerId],
        is_urgent: bool,
        waiter: W,
        now: Instant,
        deadline: Instant,
    ) -> Vec<Done<W>> {
        let (bad, good): (Vec<_>, Vec<_>) = candidates.iter().partition(|peer| self.is_demoted(peer, now));
        let ordered = good.into_iter().chain(bad).copied();
        let is_new = !self.wants.contains_key(&cid);
        let want = self.wants.entry(cid).or_insert_with(|| Want {
            waiters: Vec::new(),
            candidates: VecDeque::new(),
            known: BTreeSet::new(),
            unreachable: VecDeque::new(),
            is_urgent,
            state: State::Resting(now),
            deadline,
        });
        want.waiters.push(waiter);
        want.deadline = want.deadline.max(deadline);
        for peer in ordered {
            if want.known.len() < CANDIDATES_MAX && want.known.insert(peer) {
                want.candidates.push_back(peer);
            }
        }
        let becomes_urgent = is_urgent && !want.is_urgent;
        want.is_urgent |= is_urgent;
        match want.state {
            State::Queued(peer) if becomes_urgent => {
                if let Some(queue) = self.queues.get_mut(&peer) {
                    queue.bulk.retain(|other| *other != cid);
                    queue.urgent.push_back(cid);
                }
                Vec::new()
            }
            State::Resting(_) if is_new || !want.candidates.is_empty() => self.place(cid, now),
            _ => Vec::new(),
        }
    }

    /// The requests to send now; each must be followed by [`Wants::on_outcome`].
    pub(crate) fn take(&mut self, is_gone: impl Fn(&W) -> bool) -> Vec<Batch> {
        let mut batches = Vec::new();
        for (peer, queue) in &mut self.queues {
            loop {
                let urgent_only = queue.in_flight >= BULK_MAX;
                let ready = queue.urgent.len() + if urgent_only { 0 } else { queue.bulk.len() };
                if ready == 0 || queue.in_flight >= URGENT_MAX {
                    break;
                }
                let free = if urgent_only { URGENT_MAX } else { BULK_MAX } - queue.in_flight;
                let typical = queue.typical_bytes();
                let most = (HAVE_BYTES_MAX / typical).clamp(1, WANTS_MAX);
                let least = (BATCH_BYTES_MIN / typical).clamp(1, WANTS_MAX);
                let count = ready.div_ceil(free).max(least).min(most);
                let mut cids = Vec::new();
                while cids.len() < count {
                    let bulk = if urgent_only { None } else { Some(&mut queue.bulk) };
                    let next = queue.urgent.pop_front().or_else(|| bulk.and_then(VecDeque::pop_front));
                    let Some(cid) = next else { break };
                    let Some(want) = self.wants.get_mut(&cid) else { continue };
                    if want.state != State::Queued(*peer) {
                        continue;
                    }
                    want.waiters.retain(|waiter| !is_gone(waiter));
                    if want.waiters.is_empty() {
                        self.wants.remove(&cid);
                        continue;
                    }
                    want.state = State::Asked(*peer);
                    cids.push(cid);
                }
                if !cids.is_empty() {
                    queue.in_flight += 1;
                    batches.push(Batch { peer: *peer, cids });
                }
            }
        }
        batches
    }

    /// What became of a request.
    pub(crate) fn on_outcome(&mut self, batch: Batch, outcome: Outcome, now: Instant) -> Vec<Done<W>> {
        let Batch { peer, cids } = batch;
        if let Some(queue) = self.queues.get_mut(&peer) {
            queue.in_flight = queue.in_flight.saturating_sub(1);
        }
        let mut done = Vec::new();
        match outcome {
            Outcome::Said(said) => self.on_said(peer, &cids, said, now, &mut done),
            Outcome::Unreachable => {
                for cid in cids {
                    if let Some(want) = self.asked(&cid, peer) {
                        want.unreachable.push_back(peer);
                        done.extend(self.place(cid, now));
                    }
                }
            }
            Outcome::Useless => {
                for cid in cids {
                    if self.asked(&cid, peer).is_some() {
                        done.extend(self.place(cid, now));
                    }
                }
            }
        }
        self.sweep(&peer);
        done
    }

    fn on_said(
        &mut self,
        peer: PeerId,
        cids: &[Cid],
        said: Vec<Said>,
        now: Instant,
        done: &mut Vec<Done<W>>,
    ) {
        let answered = said.len();
        for (cid, said) in cids.iter().zip(said) {
            match said {
                Said::Block(block) => {
                    self.on_length(&peer, block.bytes().len());
                    // A correct block is good whoever is being asked for it by now.
                    if let Some(want) = self.wants.remove(cid) {
                        done.extend(want.waiters.into_iter().map(|waiter| (waiter, Ok(block.clone()))));
                    }
                }
                Said::Missing => {
                    if self.asked(cid, peer).is_some() {
                        done.extend(self.place(*cid, now));
                    }
                }
                Said::Wrong => {
                    done.extend(self.demote(peer, now));
                    if self.asked(cid, peer).is_some() {
                        done.extend(self.place(*cid, now));
                    }
                }
            }
        }
        for cid in cids.iter().skip(answered) {
            let Some(want) = self.asked(cid, peer) else { continue };
            if answered == 0 {
                // Saying nothing at all is no way to make somebody ask for ever.
                done.extend(self.place(*cid, now));
                continue;
            }
            want.state = State::Queued(peer);
            let is_urgent = want.is_urgent;
            let queue = self.queues.entry(peer).or_default();
            if is_urgent { queue.urgent.push_back(*cid) } else { queue.bulk.push_front(*cid) }
        }
    }

    /// Time has passed: those who rest are placed again, and those whose deadline is over end.
    pub(crate) fn on_tick(&mut self, now: Instant) -> Vec<Done<W>> {
        let over = self.wants.iter().filter(|(_, want)| want.deadline <= now).map(|(cid, _)| *cid);
        let mut done = Vec::new();
        for cid in over.collect::<Vec<_>>() {
            done.extend(self.finish(&cid, &FetchError::Timeout { cid }));
        }
        let rested = |want: &Want<W>| matches!(want.state, State::Resting(until) if until <= now);
        let rested = self.wants.iter().filter(|(_, want)| rested(want)).map(|(cid, _)| *cid);
        for cid in rested.collect::<Vec<_>>() {
            done.extend(self.place(cid, now));
        }
        self.demoted.retain(|_, until| *until > now);
        done
    }

    /// Ends all wants.
    pub(crate) fn on_stopped(&mut self) -> Vec<Done<W>> {
        let wants = std::mem::take(&mut self.wants).into_values();
        wants.flat_map(|want| want.waiters).map(|waiter| (waiter, Err(FetchError::Stopped))).collect()
    }

    /// Puts a want into the queue of its next candidate, lets it rest if some of them may come back, or ends it.
    fn place(&mut self, cid: Cid, now: Instant) -> Vec<Done<W>> {
        let Some(want) = self.wants.get_mut(&cid) else { return Vec::new() };
        if let (State::Resting(_), true) = (want.state, want.candidates.is_empty()) {
            want.candidates.append(&mut want.unreachable);
        }
        if let Some(peer) = want.candidates.pop_front() {
            want.state = State::Queued(peer);
            let queue = self.queues.entry(peer).or_default();
            if want.is_urgent {
                queue.urgent.push_back(cid);
            } else {
                queue.bulk.push_back(cid);
            }
            return Vec::new();
        }
        if !want.unreachable.is_empty() {
            want.state = State::Resting(now + RETRY);
            return Vec::new();
        }
        let asked = want.known.len();
        let error =
            if asked == 0 { FetchError::NoProvider { cid } } else { FetchError::NotFound { cid, asked } };
        self.finish(&cid, &error)
    }

    fn finish(&mut self, cid: &Cid, error: &FetchError) -> Vec<Done<W>> {
        let waiters = self.wants.remove(cid).map(|want| want.waiters).unwrap_or_default();
        waiters.into_iter().map(|waiter| (waiter, Err(error.clone()))).collect()
    }

    /// The want, if it still waits for the answer of `peer`.
    fn asked(&mut self, cid: &Cid, peer: PeerId) -> Option<&mut Want<W>> {
        self.wants.get_mut(cid).filter(|want| want.state == State::Asked(peer))
    }

    fn is_demoted(&self, peer: &PeerId, now: Instant) -> bool {
        self.demoted.get(peer).is_some_and(|until| *until > now)
    }

    /// Asks `peer` last from now on, for what already waits in its queue too.
    fn demote(&mut self, peer: PeerId, now: Instant) -> Vec<Done<W>> {
        self.demoted.insert(peer, now + DEMOTION);
        let Some(queue) = self.queues.get_mut(&peer) else { return Vec::new() };
        let waiting: Vec<Cid> = queue.urgent.drain(..).chain(queue.bulk.drain(..)).collect();
        let mut done = Vec::new();
        for cid in waiting {
            let Some(want) = self.wants.get_mut(&cid) else { continue };
            if want.state == State::Queued(peer) {
                want.candidates.push_back(peer);
                done.extend(self.place(cid, now));
            }
        }
        done
    }

    fn on_length(&mut self, peer: &PeerId, len: usize) {
        let queue = self.queues.entry(*peer).or_default();
        let before = if queue.block_bytes == 0 { len } else { queue.block_bytes };
        queue.block_bytes = ((before * 7 + len) / 8).max(1);
    }

    /// Forgets the queue of a peer that nothing is wanted from.
    fn sweep(&mut self, peer: &PeerId) {
        let is_idle =
            |queue: &Queue| queue.in_flight == 0 && queue.urgent.is_empty() && queue.bulk.is_empty();
        if self.wants.is_empty() && self.queues.get(peer).is_some_and(is_idle) {
            self.queues.remove(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use remora_dag::block::Codec;

    use super::*;

    fn block(seed: u8) -> Block {
        Block::seal(Codec::Raw, vec![seed; 3000].into())
    }

    fn peer(index: usize) -> PeerId {
        PeerId([u8::try_from(index).unwrap_or(u8::MAX); 32])
    }

    /// How a peer of the model behaves.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Kind {
        /// Has every block whose seed is a multiple of this.
        Honest(u8),
        Liar,
        Away,
        Useless,
        Mute,
    }

    fn kind(choice: u8) -> Kind {
        match choice % 6 {
            0 | 1 => Kind::Honest(choice % 3 + 1),
            2 => Kind::Liar,
            3 => Kind::Away,
            4 => Kind::Useless,
            _ => Kind::Mute,
        }
    }

    fn respond(kind: Kind, seeds: &[u8], answered: usize) -> Outcome {
        let said = |seed: &u8| match kind {
            Kind::Honest(every) if seed.is_multiple_of(every) => Said::Block(block(*seed)),
            Kind::Honest(_) => Said::Missing,
            _ => Said::Wrong,
        };
        match kind {
            Kind::Away => Outcome::Unreachable,
            Kind::Useless => Outcome::Useless,
            Kind::Mute => Outcome::Said(Vec::new()),
            _ => Outcome::Said(seeds.iter().take(answered.max(1)).map(said).collect()),
        }
    }

    proptest! {
        #[test]
        fn every_waiter_ends_once_and_has_the_block_if_anybody_honest_does(
            kinds in vec(any::<u8>(), 1..6),
            seeds in vec((any::<u8>(), any::<bool>()), 1..60),
            schedule in vec(any::<u16>(), 1..40),
        ) {
            let kinds: Vec<Kind> = kinds.into_iter().map(kind).collect();
            let candidates: Vec<PeerId> = (0..kinds.len()).map(peer).collect();
            let seed_of: HashMap<Cid, u8> = seeds.iter().map(|(seed, _)| (*block(*seed).cid(), *seed)).collect();
            let (mut wants, mut now) = (Wants::new(), Instant::now());
            let deadline = now + Duration::from_secs(5);
            let mut ended: BTreeMap<usize, bool> = BTreeMap::new();
            let mut done = Vec::new();
            for (waiter, (seed, is_urgent)) in seeds.iter().enumerate() {
                done.extend(wants.add(*block(*seed).cid(), &candidates, *is_urgent, waiter, now, deadline));
            }
            let mut open: Vec<Batch> = Vec::new();
            let mut turn = 0;
            while !wants.is_empty() {
                turn += 1;
                prop_assert!(turn < 20_000, "it ends");
                open.extend(wants.take(|_| false));
                for candidate in &candidates {
                    prop_assert!(open.iter().filter(|batch| batch.peer == *candidate).count() <= URGENT_MAX);
                }
                let choice = usize::from(schedule[turn % schedule.len()]);
                if open.is_empty() {
                    now += Duration::from_millis(100);
                    done.extend(wants.on_tick(now));
                } else {
                    let batch = open.swap_remove(choice % open.len());
                    let asked: Vec<u8> = batch.cids.iter().map(|cid| seed_of[cid]).collect();
                    let kind = kinds[usize::from(batch.peer.0[0])];
                    done.extend(wants.on_outcome(batch, respond(kind, &asked, choice % 5), now));
                }
                for (waiter, result) in done.drain(..) {
                    if let Ok(block) = &result {
                        prop_assert_eq!(seed_of[block.cid()], seeds[waiter].0);
                    }
                    prop_assert!(ended.insert(waiter, result.is_ok()).is_none(), "one end each");
                }
            }
            for (waiter, (seed, _)) in seeds.iter().enumerate() {
                let has = |kind: &Kind| matches!(kind, Kind::Honest(every) if seed.is_multiple_of(*every));
                prop_assert_eq!(ended.get(&waiter), Some(&kinds.iter().any(has)));
            }
        }
    }

    #[test]
    fn a_want_whose_waiters_have_gone_is_not_asked_for() {
        let now = Instant::now();
        let mut wants = Wants::new();
        wants.add(*block(1).cid(), &[peer(1)], true, 7, now, now + RETRY);
        assert_eq!(wants.take(|waiter| *waiter == 7), []);
        assert!(wants.is_empty());
    }

    #[test]
    fn what_somebody_waits_for_goes_before_the_rest() {
        let now = Instant::now();
        let mut wants = Wants::new();
        for seed in 0..200 {
            wants.add(*block(seed).cid(), &[peer(1)], false, 0, now, now + RETRY);
        }
        let bulk = wants.take(|_| false);
        assert_eq!(bulk.len(), BULK_MAX);
        let urgent = *block(250).cid();
        wants.add(urgent, &[peer(1)], true, 0, now, now + RETRY);
        let waiting = bulk.iter().flat_map(|batch| &batch.cids).collect::<BTreeSet<_>>();
        let late = (0..200).map(|seed| *block(seed).cid()).find(|cid| !waiting.contains(cid));
        wants.add(late.unwrap(), &[peer(1)], true, 0, now, now + RETRY);
        let cids: Vec<Cid> = wants.take(|_| false).into_iter().flat_map(|batch| batch.cids).collect();
        assert_eq!(cids, [urgent, late.unwrap()]);
    }
}
