//! The writer's side after START, asked what it sends next.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use remora_cluster::acquire::Won;
use remora_cluster::config::{Config, Durability};
use remora_cluster::identity::PeerId;
use remora_cluster::lease::{LeaseTimes, Millis};
use remora_cluster::message::{Elected, Message, Nack, NackReason};
use remora_cluster::promise::Hold;
use remora_cluster::tip::{Chain, CommitId, Term, Tip};
use remora_cluster::writer::{Writer, WriterEffect, WriterEvent};

const ME: PeerId = PeerId([1; 32]);
const X: PeerId = PeerId([2; 32]);
const AWAY: PeerId = PeerId([3; 32]);
const START: Tip = Tip { term: Term(2), seq: 5, id: CommitId([25; 32]) };

/// A writer whose third keeper was away at the election, and what it sends to that one first.
fn writer() -> (Writer, Vec<WriterEffect>) {
    let config = Config::at_creation(vec![ME, X, AWAY], Durability::Quorum);
    let elected = Elected {
        term: Term(2),
        chain: Chain::default(),
        config: config.clone(),
        next: config.clone(),
        since_unix_ms: 7,
    };
    let progress = BTreeMap::from([(ME, (START, Millis(0))), (X, (START, Millis(0)))]);
    let won = Won { term: Term(2), config, start: START, progress, elected: Some(Box::new(elected)) };
    let (writer, effects) = Writer::begin(ME, &won, LeaseTimes::default(), Millis(0));
    (writer, to(AWAY, effects))
}

fn to(peer: PeerId, effects: Vec<WriterEffect>) -> Vec<WriterEffect> {
    let is_to = |effect: &WriterEffect| match effect {
        WriterEffect::SendLog { to, .. } | WriterEffect::Send { to, .. } => *to == peer,
        _ => false,
    };
    effects.into_iter().filter(is_to).collect()
}

fn reply(writer: &mut Writer, now: u64, message: Message) -> Vec<WriterEffect> {
    to(AWAY, writer.on(Millis(now), WriterEvent::Reply { from: AWAY, message }))
}

fn not_elected() -> Message {
    let nack = Nack { reason: NackReason::NotElected, promised: Term(1), hold: None, tip: Tip::default() };
    Message::Nack(Box::new(nack))
}

#[test]
fn a_keeper_that_was_away_is_told_of_the_election_and_then_sent_the_log() {
    let (mut writer, first) = writer();
    assert!(matches!(first[..], [WriterEffect::SendLog { .. }]));
    let told = reply(&mut writer, 10, not_elected());
    assert!(
        matches!(&told[..], [WriterEffect::Send { message: Message::Elected(e), .. }] if e.term == Term(2))
    );
    let tip = Tip { term: Term(1), seq: 3, id: CommitId([13; 32]) };
    let sent = reply(&mut writer, 20, Message::Aligned { term: Term(2), tip });
    assert!(matches!(sent[..], [WriterEffect::SendLog { after, .. }] if after == tip));
}

#[test]
fn hearing_of_the_election_is_no_renewal() {
    let (mut writer, _) = writer();
    let before = writer.lease_until();
    reply(&mut writer, 9_000, not_elected());
    reply(&mut writer, 9_001, Message::Aligned { term: Term(2), tip: Tip::default() });
    assert_eq!(writer.lease_until(), before);
}

#[test]
fn a_keeper_that_refuses_again_rests() {
    let (mut writer, _) = writer();
    reply(&mut writer, 10, not_elected());
    assert_eq!(reply(&mut writer, 20, not_elected()), vec![]);
    assert!(to(AWAY, writer.on(Millis(700), WriterEvent::Tick)).len() == 1);
}

#[test]
fn a_keeper_that_was_away_is_told_of_the_election_and_then_of_the_release() {
    let (mut writer, _) = writer();
    writer.on(Millis(5), WriterEvent::Release);
    let told = reply(&mut writer, 10, not_elected());
    assert!(
        matches!(&told[..], [WriterEffect::Send { message: Message::Elected(e), .. }] if e.term == Term(2))
    );
    // It lacks the log, and is sent the release all the same.
    let sent = reply(&mut writer, 20, Message::Aligned { term: Term(2), tip: Tip::default() });
    assert!(
        matches!(&sent[..], [WriterEffect::Send { message: Message::Release { tip, .. }, .. }] if *tip == START)
    );
    assert_eq!(reply(&mut writer, 30, Message::Released { term: Term(2) }), vec![]);
    assert!(writer.is_released_at(&AWAY));
}

#[test]
fn a_log_that_goes_on_in_an_older_term_counts_only_up_to_where_this_term_began() {
    let (mut writer, _) = writer();
    let newest = Tip { seq: 9, ..START };
    writer.on(Millis(1), WriterEvent::Appended { tip: newest });
    writer.on(Millis(2), WriterEvent::LocalDurable { seq: 9 });
    let longer = Tip { term: Term(1), seq: 9, id: CommitId([19; 32]) };
    let nack = Nack { reason: NackReason::Gap, promised: Term(2), hold: None, tip: longer };
    for from in [X, AWAY] {
        let message = Message::Nack(Box::new(nack));
        writer.on(Millis(3), WriterEvent::Reply { from, message });
    }
    assert_eq!(writer.durable_seq(), START.seq - 1);
}

#[test]
fn a_keeper_whose_disk_is_full_renews_the_lease_and_is_asked_again_later() {
    let (mut writer, _) = writer();
    let before = writer.lease_until().unwrap();
    let newest = Tip { seq: 9, ..START };
    writer.on(Millis(3_000), WriterEvent::Appended { tip: newest });
    let fitted = Tip { seq: 7, ..START };
    let hold = Hold { peer: ME, term: Term(2), since_unix_ms: 7, base: Tip::default(), released: None };
    let nack = Nack { reason: NackReason::Full, promised: Term(2), hold: Some(hold), tip: fitted };
    let full = |from| WriterEvent::Reply { from, message: Message::Nack(Box::new(nack)) };
    for peer in [X, AWAY] {
        writer.on(Millis(3_001), WriterEvent::Unreachable { peer });
        writer.on(Millis(4_000), WriterEvent::Tick);
        assert_eq!(to(peer, writer.on(Millis(4_001), full(peer))), vec![], "it rests");
    }
    assert!(writer.lease_until().unwrap() > before);
    let again = to(X, writer.on(Millis(6_000), WriterEvent::Tick));
    assert!(matches!(again[..], [WriterEffect::SendLog { after, .. }] if after == fitted));
}
