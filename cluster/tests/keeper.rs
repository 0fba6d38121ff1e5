//! The keeper's rules, one by one, on one keeper that is told what to do.

#![allow(clippy::unwrap_used, clippy::panic)]

use remora_cluster::config::{Config, Durability};
use remora_cluster::identity::{PeerId, VolumeId};
use remora_cluster::keeper::{Keeper, KeeperEffect, KeeperEvent, RequestId};
use remora_cluster::lease::{LeaseTimes, Millis};
use remora_cluster::message::{Elected, Evidence, Message, NackReason, Prepare, RefuseReason};
use remora_cluster::promise::Promise;
use remora_cluster::tip::{Chain, CommitHeader, CommitId, Term, Tip};

const VOLUME: VolumeId = VolumeId([1; 16]);
const ME: PeerId = PeerId([1; 32]);
const X: PeerId = PeerId([2; 32]);
const Y: PeerId = PeerId([3; 32]);
const KEEPER_MS: u64 = 12_000;

struct Rig {
    keeper: Keeper,
    now: Millis,
    next: u64,
}

fn commit(term: u64, seq: u64) -> Tip {
    Tip { term: Term(term), seq, id: CommitId([(term * 16 + seq) as u8; 32]) }
}

fn rig(durability: Durability) -> Rig {
    let config = Config::at_creation(vec![ME, X, Y], durability);
    let record = Promise::at_creation(VOLUME, config);
    let keeper = Keeper::new(ME, record, Chain::default(), false, LeaseTimes::default(), Millis(0));
    Rig { keeper, now: Millis(1_000), next: 0 }
}

impl Rig {
    fn raw(&mut self, from: PeerId, message: Message) -> Vec<KeeperEffect> {
        self.next += 1;
        self.keeper.on(self.now, KeeperEvent::Request { from, request: RequestId(self.next), message })
    }

    /// The one reply, and whether it was inside of a Persist.
    fn ask(&mut self, from: PeerId, message: Message) -> (Message, bool) {
        reply(&self.raw(from, message))
    }

    fn prepare(&mut self, from: PeerId, term: u64) -> (Message, bool) {
        self.ask(from, Message::Prepare(Prepare { term: Term(term), evidence: None }))
    }

    fn elect(&mut self, from: PeerId, term: u64, chain: Chain) -> Vec<KeeperEffect> {
        let config = Config::at_creation(vec![ME, X, Y], Durability::Quorum);
        let next = Config { generation: Term(term), ..config.clone() };
        let elected = Elected { term: Term(term), chain, config, next, since_unix_ms: 77 };
        self.raw(from, Message::Elected(Box::new(elected)))
    }

    fn append(&mut self, from: PeerId, term: u64, commits: &[(Tip, Tip)]) -> Vec<KeeperEffect> {
        self.next += 1;
        let headers = commits.iter().map(|(prev, tip)| CommitHeader { tip: *tip, prev: prev.id }).collect();
        self.keeper.on(
            self.now,
            KeeperEvent::Append {
                from,
                request: RequestId(self.next),
                term: Term(term),
                checkpoint: None,
                headers,
                commit_seq: 0,
            },
        )
    }

    /// X writes two commits in term 1.
    fn written(durability: Durability) -> Rig {
        let mut rig = rig(durability);
        rig.prepare(X, 1);
        rig.elect(X, 1, Chain::default());
        let commits = [(Tip::default(), commit(1, 1)), (commit(1, 1), commit(1, 2))];
        rig.append(X, 1, &commits);
        rig.keeper.on(rig.now, KeeperEvent::LogDurable { tip: commit(1, 2) });
        rig
    }

    fn restart(&mut self) {
        let (record, chain) = (self.keeper.record().clone(), self.keeper.chain().clone());
        let record = Promise::decode(&record.encode()).unwrap();
        self.keeper = Keeper::new(ME, record, chain, false, LeaseTimes::default(), self.now);
    }
}

fn reply(effects: &[KeeperEffect]) -> (Message, bool) {
    match effects {
        [KeeperEffect::Reply { message, .. }] => (message.clone(), false),
        [KeeperEffect::Persist { then, .. }] => (reply(then).0, true),
        other => panic!("no single reply: {other:?}"),
    }
}

fn refused(message: &(Message, bool)) -> RefuseReason {
    match &message.0 {
        Message::Refused(refusal) => refusal.reason,
        other => panic!("not refused: {other:?}"),
    }
}

fn is_promised(message: &(Message, bool)) -> bool {
    matches!(message.0, Message::Promised(_))
}

#[test]
fn a_promise_is_told_only_after_it_is_on_disk_and_only_once_per_term() {
    let mut rig = rig(Durability::Quorum);
    let promised = rig.prepare(X, 5);
    assert!(is_promised(&promised) && promised.1);
    assert_eq!(refused(&rig.prepare(Y, 5)), RefuseReason::Outbid);
    assert_eq!(refused(&rig.prepare(Y, 4)), RefuseReason::Outbid);
    assert!(is_promised(&rig.prepare(X, 5)), "a repeated question gets its answer again");
    rig.restart();
    assert_eq!(refused(&rig.prepare(Y, 5)), RefuseReason::Outbid);
    assert!(is_promised(&rig.prepare(Y, 6)));
}

#[test]
fn others_are_refused_while_the_writer_holds_and_told_who_it_is() {
    let mut rig = Rig::written(Durability::Quorum);
    let Message::Refused(refusal) = rig.prepare(Y, 9).0 else { panic!("promised") };
    assert_eq!(refusal.reason, RefuseReason::Held);
    assert_eq!(refusal.hold.map(|hold| (hold.peer, hold.since_unix_ms)), Some((X, 77)));
    assert_eq!(refusal.lease_left_ms, Some(KEEPER_MS));
    assert!(is_promised(&rig.prepare(X, 9)), "the same host need not wait for itself");
}

#[test]
fn a_lease_runs_out_under_quorum_and_a_restart_assumes_a_full_one() {
    let mut rig = Rig::written(Durability::Quorum);
    rig.now = rig.now + (KEEPER_MS - 1);
    assert_eq!(refused(&rig.prepare(Y, 9)), RefuseReason::Held);
    rig.restart();
    rig.now = rig.now + (KEEPER_MS - 1);
    assert_eq!(refused(&rig.prepare(Y, 9)), RefuseReason::Held);
    rig.now = rig.now + 1;
    assert!(is_promised(&rig.prepare(Y, 9)));
}

#[test]
fn a_local_volume_is_let_go_only_by_release_or_evidence() {
    let mut rig = rig(Durability::Local);
    rig.prepare(X, 1);
    let config = Config::at_creation(vec![ME, X, Y], Durability::Local);
    let elected =
        Elected { term: Term(1), chain: Chain::default(), next: config.clone(), config, since_unix_ms: 0 };
    rig.raw(X, Message::Elected(Box::new(elected)));
    rig.now = rig.now + 100 * KEEPER_MS;
    assert_eq!(refused(&rig.prepare(Y, 5)), RefuseReason::Held);
    let fence = |peer, term| {
        Message::Prepare(Prepare {
            term: Term(6),
            evidence: Some(Evidence::Fenced { peer, term: Term(term) }),
        })
    };
    assert_eq!(refused(&rig.ask(Y, fence(X, 0))), RefuseReason::Held, "evidence about an older writer");
    assert!(is_promised(&rig.ask(Y, fence(X, 1))));
}

#[test]
fn a_release_is_on_disk_before_it_is_told_and_lets_others_in() {
    let mut rig = Rig::written(Durability::Quorum);
    let not_theirs = rig.ask(Y, Message::Release { term: Term(1), tip: commit(1, 2) });
    assert!(matches!(not_theirs.0, Message::Nack(_)));
    let released = rig.ask(X, Message::Release { term: Term(1), tip: commit(1, 2) });
    assert_eq!(released, (Message::Released { term: Term(1) }, true));
    rig.restart();
    assert!(is_promised(&rig.prepare(Y, 2)));
}

#[test]
fn commits_are_added_only_in_the_promised_term_and_only_if_they_join() {
    let mut rig = Rig::written(Durability::Quorum);
    let nack = |effects: &[KeeperEffect]| match reply(effects).0 {
        Message::Nack(nack) => nack.reason,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(nack(&rig.append(Y, 1, &[(commit(1, 2), commit(1, 3))])), NackReason::NotElected);
    assert_eq!(nack(&rig.append(X, 2, &[(commit(1, 2), commit(2, 3))])), NackReason::NotElected);
    assert_eq!(nack(&rig.append(X, 1, &[(commit(1, 1), commit(1, 3))])), NackReason::Gap);
    assert_eq!(nack(&rig.append(X, 1, &[(commit(1, 3), commit(1, 4))])), NackReason::Gap);
    assert_eq!(nack(&rig.append(X, 1, &[(commit(1, 2), commit(2, 3))])), NackReason::Gap);
    rig.prepare(X, 4);
    assert_eq!(nack(&rig.append(X, 1, &[(commit(1, 2), commit(1, 3))])), NackReason::Superseded);
    assert_eq!(rig.keeper.durable_tip(), commit(1, 2));
}

#[test]
fn a_commit_of_another_term_is_never_taken_for_one_that_is_here_already() {
    let mut rig = Rig::written(Durability::Quorum);
    let chain = rig.keeper.chain().clone();
    rig.prepare(X, 3);
    rig.elect(X, 3, chain.clone());
    // A log that goes on in the old term after the election, as no log should.
    let mut longer = chain;
    longer.push(commit(1, 3));
    let record = rig.keeper.record().clone();
    rig.keeper = Keeper::new(ME, record, longer, false, LeaseTimes::default(), rig.now);
    let answer = reply(&rig.append(X, 3, &[(commit(1, 2), commit(3, 3))])).0;
    let Message::Nack(nack) = answer else { panic!("counted as had: {answer:?}") };
    assert_eq!(nack.reason, NackReason::Damaged, "not a place to go on from");
}

#[test]
fn an_acknowledgement_waits_for_the_disk_and_a_duplicate_is_acknowledged() {
    let mut rig = Rig::written(Durability::Quorum);
    let effects = rig.append(X, 1, &[(commit(1, 1), commit(1, 2)), (commit(1, 2), commit(1, 3))]);
    let [KeeperEffect::AppendLog { skip: 1, upto, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(*upto, commit(1, 3));
    assert!(
        rig.raw(Y, Message::Prepare(Prepare { term: Term(9), evidence: None })).is_empty(),
        "votes wait too"
    );
    let effects = rig.keeper.on(rig.now, KeeperEvent::LogDurable { tip: commit(1, 3) });
    let [KeeperEffect::Reply { message: Message::Ack { tip, .. }, .. }, vote] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(*tip, commit(1, 3));
    assert_eq!(refused(&reply(std::slice::from_ref(vote))), RefuseReason::Held);
    let again = reply(&rig.append(X, 1, &[(commit(1, 2), commit(1, 3))]));
    assert_eq!(again.0, Message::Ack { term: Term(1), tip: commit(1, 3) });
}

#[test]
fn a_full_disk_is_no_damage_and_what_fitted_counts() {
    let mut rig = Rig::written(Durability::Quorum);
    let new = [(commit(1, 2), commit(1, 3)), (commit(1, 3), commit(1, 4))];
    rig.append(X, 1, &new);
    let effects = rig.keeper.on(rig.now, KeeperEvent::LogFull { tip: commit(1, 3) });
    let Message::Nack(nack) = reply(&effects).0 else { panic!("{effects:?}") };
    assert_eq!((nack.reason, nack.tip), (NackReason::Full, commit(1, 3)));
    assert_eq!(rig.keeper.chain().tip, commit(1, 3), "the rest is not in the log");
    assert_eq!(refused(&rig.prepare(Y, 9)), RefuseReason::Held, "it votes, and believes in the writer");
    let effects = rig.append(X, 1, &new);
    let [KeeperEffect::AppendLog { skip: 1, upto, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(*upto, commit(1, 4), "there is room again");
    let effects = rig.keeper.on(rig.now, KeeperEvent::LogDurable { tip: *upto });
    assert_eq!(reply(&effects).0, Message::Ack { term: Term(1), tip: commit(1, 4) });
}

#[test]
fn a_suffix_that_lost_is_cut_before_the_election_is_noted() {
    let mut rig = Rig::written(Durability::Quorum);
    rig.prepare(X, 3);
    let mut chain = Chain::default();
    chain.push(commit(1, 1));
    chain.push(commit(2, 2));
    let effects = rig.elect(X, 3, chain);
    assert_eq!(effects, [KeeperEffect::MoveSuffixToFork { after_seq: 1 }]);
    assert!(rig.raw(X, Message::Renew { term: Term(3), commit_seq: 0 }).is_empty(), "requests wait");
    let effects = rig.keeper.on(rig.now, KeeperEvent::SuffixMoved { tip: commit(1, 1) });
    let KeeperEffect::Persist { record, then } = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(record.hold.map(|hold| hold.term), Some(Term(3)));
    assert_eq!(reply(then).0, Message::Aligned { term: Term(3), tip: commit(1, 1) });
}

#[test]
fn the_writer_on_this_host_stops_before_another_host_is_promised() {
    let mut rig = rig(Durability::Quorum);
    rig.prepare(ME, 1);
    rig.elect(ME, 1, Chain::default());
    rig.keeper.on(rig.now, KeeperEvent::LocalDurable { tip: commit(1, 1) });
    rig.now = rig.now + KEEPER_MS;
    let effects = rig.raw(Y, Message::Prepare(Prepare { term: Term(2), evidence: None }));
    assert_eq!(effects, [KeeperEffect::StopLocalWriter { term: Term(1) }]);
    let effects = rig.keeper.on(rig.now, KeeperEvent::LocalStopped { tip: commit(1, 4) });
    let (Message::Promised(promised), true) = reply(&effects) else { panic!("{effects:?}") };
    assert_eq!(promised.chain.tip, commit(1, 4), "what was written until then is told");
}

#[test]
fn what_a_writer_leaves_behind_after_another_host_was_elected_is_not_on_the_chain() {
    let mut rig = rig(Durability::Quorum);
    rig.prepare(ME, 1);
    rig.elect(ME, 1, Chain::default());
    rig.ask(ME, Message::Release { term: Term(1), tip: Tip::default() });
    assert!(is_promised(&rig.prepare(Y, 2)));
    rig.elect(Y, 2, Chain::default());
    rig.append(Y, 2, &[(Tip::default(), commit(2, 1))]);
    rig.keeper.on(rig.now, KeeperEvent::LocalStopped { tip: commit(1, 3) });
    assert_eq!(rig.keeper.chain().tip, commit(2, 1));
    assert_eq!(rig.keeper.durable_tip(), Tip::default(), "nor is what is not on disk yet");
}

#[test]
fn a_damaged_log_does_not_vote_and_a_blank_keeper_has_no_vote() {
    let mut rig = Rig::written(Durability::Quorum);
    rig.keeper.on(rig.now, KeeperEvent::LogDamaged);
    assert_eq!(refused(&rig.prepare(X, 9)), RefuseReason::Damaged);
    assert!(matches!(reply(&rig.elect(X, 9, Chain::default())).0, Message::Nack(_)));
    let blank = Promise::blank(VOLUME);
    rig.keeper = Keeper::new(ME, blank, Chain::default(), false, LeaseTimes::default(), rig.now);
    assert_eq!(refused(&rig.prepare(X, 9)), RefuseReason::NotKeeper);
    let Message::Nack(nack) = reply(&rig.elect(X, 9, Chain::default())).0 else {
        panic!("a member without memory")
    };
    assert_eq!(nack.reason, NackReason::Damaged);
}

#[test]
fn waiting_requests_are_bounded() {
    let mut rig = Rig::written(Durability::Quorum);
    rig.append(X, 1, &[(commit(1, 2), commit(1, 3))]);
    let answers: usize =
        (0..200).map(|_| rig.raw(X, Message::Release { term: Term(1), tip: commit(1, 3) }).len()).sum();
    assert_eq!(answers, 200 - 64, "the rest is told that this keeper is busy");
}
