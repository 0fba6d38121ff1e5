//! When the last writer may go on without the other keepers, and when not.

#![allow(clippy::unwrap_used, clippy::panic)]

use remora_cluster::acquire::alone::WAIT_MS;
use remora_cluster::acquire::{Acquire, AcquireEffect, AcquireEvent, AcquireOptions};
use remora_cluster::config::{Config, Durability};
use remora_cluster::identity::{PeerId, VolumeId};
use remora_cluster::lease::Millis;
use remora_cluster::message::{Message, Promised, Refusal, RefuseReason};
use remora_cluster::promise::Hold;
use remora_cluster::tip::{Chain, CommitId, Term, Tip};

const ME: PeerId = PeerId([1; 32]);
const X: PeerId = PeerId([2; 32]);
const Y: PeerId = PeerId([3; 32]);
const TIP: Tip = Tip { term: Term(4), seq: 1, id: CommitId([49; 32]) };

fn hold(peer: PeerId, term: u64, released: Option<Tip>) -> Hold {
    Hold { peer, term: Term(term), since_unix_ms: 1, base: Tip::default(), released }
}

/// What this host's own keeper promises.
fn promised(term: Term, config: &Config, hold: Hold) -> Message {
    let mut chain = Chain::default();
    chain.push(TIP);
    let config = config.clone();
    Message::Promised(Box::new(Promised { term, chain, config, hold: Some(hold), checkpoint: None }))
}

/// A candidate whose own keeper promises, and whom nobody else answers for some time, unless `refusal` is what X says.
/// Answers whether it went on to an election.
fn goes_on(config: &Config, own: Hold, refusal: Option<Hold>) -> bool {
    goes_on_having(Some(own.term), config, own, refusal)
}

/// The same, if its record says that it served in this term.
fn goes_on_having(served: Option<Term>, config: &Config, own: Hold, refusal: Option<Hold>) -> bool {
    let options = AcquireOptions {
        volume: VolumeId([1; 16]),
        me: ME,
        floor: Term(7),
        config: config.clone(),
        replicas: config.members.len(),
        durability: config.durability,
        ranked: vec![ME, X, Y],
        invited: Vec::new(),
        evidence: None,
        served,
        waits_for_lease: true,
        deadline: Millis(1_000_000),
        now_unix_ms: 1,
    };
    let (mut acquire, _) = Acquire::begin(options, Millis(0));
    let mut events = vec![AcquireEvent::TermPersisted(acquire.term())];
    let mut now = 0;
    while now < 3 * WAIT_MS {
        now += 100;
        events.push(AcquireEvent::Tick);
        for event in std::mem::take(&mut events) {
            for effect in acquire.on(Millis(now), event) {
                match effect {
                    AcquireEffect::Send { message: Message::Elected(_), .. } => {
                        assert!(now >= WAIT_MS, "the others are waited for first");
                        return true;
                    }
                    AcquireEffect::Send { to: ME, .. } => {
                        let message = promised(acquire.term(), config, own);
                        events.push(AcquireEvent::Reply { from: ME, message });
                    }
                    AcquireEffect::Send { to, .. } => events.push(match refusal {
                        Some(hold) if to == X => AcquireEvent::Reply { from: X, message: refused(hold) },
                        _ => AcquireEvent::Unreachable { peer: to },
                    }),
                    AcquireEffect::PersistTerm(term) => events.push(AcquireEvent::TermPersisted(term)),
                    _ => {}
                }
            }
        }
    }
    false
}

fn refused(hold: Hold) -> Message {
    Message::Refused(Box::new(Refusal {
        reason: RefuseReason::Damaged,
        promised: hold.term,
        hold: Some(hold),
        lease_left_ms: None,
        config: None,
    }))
}

fn keepers(members: &[PeerId], durability: Durability) -> Config {
    Config::at_creation(members.to_vec(), durability)
}

#[test]
fn of_two_keepers_the_last_writer_goes_on_without_the_other() {
    let pair = keepers(&[ME, X], Durability::Local);
    assert!(goes_on(&pair, hold(ME, 4, None), None));
    assert!(goes_on(&pair, hold(ME, 4, Some(TIP)), None), "after a release too");
    let grown = keepers(&[ME], Durability::Local).succeeded_by(Term(4), vec![ME, X], Durability::Local);
    assert!(goes_on(&grown, hold(ME, 4, None), None), "while the change to two is not settled, too");
}

#[test]
fn who_is_not_the_last_writer_does_not_go_on_alone() {
    let pair = keepers(&[ME, X], Durability::Local);
    assert!(!goes_on(&pair, hold(X, 4, None), None));
    assert!(!goes_on(&pair, hold(X, 4, Some(TIP)), None));
    assert!(!goes_on(&pair, hold(ME, 4, None), Some(hold(X, 5, None))), "somebody knows of a newer writer");
}

#[test]
fn where_others_are_a_majority_nobody_goes_on_alone() {
    let three = keepers(&[ME, X, Y], Durability::Local);
    assert!(!goes_on(&three, hold(ME, 4, None), None));
    let pair = keepers(&[ME, X], Durability::Local);
    let growing = pair.succeeded_by(Term(4), vec![ME, X, Y], Durability::Local);
    assert!(!goes_on(&growing, hold(ME, 4, None), None), "nor while a change to three may have been settled");
    let leaving = pair.succeeded_by(Term(4), vec![X], Durability::Local);
    assert!(!goes_on(&leaving, hold(ME, 4, None), None));
}

#[test]
fn where_an_fsync_waits_for_both_nobody_goes_on_alone() {
    assert!(!goes_on(&keepers(&[ME, X], Durability::Quorum), hold(ME, 4, None), None));
}

#[test]
fn who_was_elected_but_is_not_known_to_have_served_does_not_go_on_alone() {
    let pair = keepers(&[ME, X], Durability::Local);
    assert!(!goes_on_having(None, &pair, hold(ME, 4, None), None), "START may be here only");
    assert!(!goes_on_having(Some(Term(3)), &pair, hold(ME, 4, None), None), "it served in an older term");
    let failed = Some(Tip { term: Term(3), ..TIP });
    assert!(!goes_on_having(None, &pair, hold(ME, 4, failed), None), "it gave up before it served");
    assert!(goes_on_having(None, &pair, hold(ME, 4, Some(TIP)), None), "it released what it wrote");
}
