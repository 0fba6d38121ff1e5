//! The registry: any two hosts that hear of one another end up equal, and nobody writes what is not theirs.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use remora_cluster::cert::{Certificate, ClusterKey, Role};
use remora_cluster::config::Durability;
use remora_cluster::identity::{PeerId, VolumeId};
use remora_cluster::registry::entry::{Addresses, Entry, EntryError, Holder, Key};
use remora_cluster::registry::exchange::{GOSSIP_BYTES_MAX, RegistryMessage};
use remora_cluster::registry::{Outcome, Registry};
use remora_cluster::volume_record::VolumeRecord;

const NOW: u64 = 1_000_000;

fn key() -> ClusterKey {
    ClusterKey::from_seed(&[7; 32])
}

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn registry(n: u8) -> Registry {
    Registry::new(peer(n), key().id())
}

fn record(id: u8, name: &str, created_unix_ms: u64) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId([id; 16]),
        name: name.to_owned(),
        created_unix_ms,
        keepers: vec![peer(1)],
        replicas: 1,
        durability: Durability::Local,
        size_limit: None,
        root_uid: 0,
        root_gid: 0,
        root_mode: 0o755,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        removed: false,
    }
}

fn put_volume(registry: &mut Registry, record: &VolumeRecord, now: u64) -> Entry {
    registry.put(Key::Volume(record.id), Some(record.encode()), now).unwrap()
}

/// Brings `a` what `b` has, with messages of at most `bytes_max`; how many messages it took.
fn pull(a: &mut Registry, b: &Registry, bytes_max: usize) -> usize {
    let mut n = 0;
    let mut hello = Some(a.hello());
    while let Some(deltas) = hello.and_then(|hello| b.deltas_for(&hello, bytes_max)) {
        hello = a.merge_deltas(deltas, NOW).next;
        n += 1;
        assert!(n < 10_000, "no end");
    }
    n
}

/// Both ways, as the exchange protocol does.
fn exchange(a: &mut Registry, b: &mut Registry, bytes_max: usize) -> usize {
    pull(a, b, bytes_max) + pull(b, a, bytes_max)
}

/// What three hosts write: (host, key, value or delete, time).
fn writes() -> impl Strategy<Value = Vec<(u8, u8, Option<u8>, u64)>> {
    let write = (1u8..4, 0u8..6, any::<Option<u8>>(), 0u64..1_000);
    proptest::collection::vec(write, 0..40)
}

fn written(writes: &[(u8, u8, Option<u8>, u64)]) -> (Vec<Registry>, Vec<Entry>) {
    let mut hosts: Vec<Registry> = (1..4).map(registry).collect();
    let mut entries = Vec::new();
    for (host, key, value, time) in writes {
        let value = value.map(|byte| vec![byte; usize::from(byte)]);
        entries.push(hosts[usize::from(*host) - 1].put(Key::Pin(vec![*key]), value, NOW + time).unwrap());
    }
    (hosts, entries)
}

proptest! {
    #[test]
    fn merging_does_not_depend_on_order_or_repetition(writes in writes(), order in any::<u64>()) {
        let (_, entries) = written(&writes);
        let mut forward = registry(9);
        for entry in &entries {
            forward.merge(entry.clone(), NOW);
        }
        let mut shuffled = entries.clone();
        shuffled.extend(entries.iter().take(5).cloned());
        shuffled.sort_by_key(|entry| (entry.hlc.0 ^ order).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut other = registry(9);
        for entry in &shuffled {
            other.merge(entry.clone(), NOW);
        }
        prop_assert!(forward.entries().eq(other.entries()));
        prop_assert_eq!(forward.digest(), other.digest());
        prop_assert_eq!(forward.vector(), other.vector());
    }

    #[test]
    fn hosts_that_exchange_end_up_equal(writes in writes(), bytes_max in 100usize..2_000) {
        let (mut hosts, _) = written(&writes);
        let (first, rest) = hosts.split_at_mut(1);
        let (second, third) = rest.split_at_mut(1);
        exchange(&mut first[0], &mut second[0], bytes_max);
        exchange(&mut second[0], &mut third[0], bytes_max);
        exchange(&mut first[0], &mut second[0], bytes_max);
        prop_assert_eq!(first[0].digest(), third[0].digest());
        prop_assert!(first[0].entries().eq(third[0].entries()));
        prop_assert_eq!(first[0].vector(), second[0].vector());
        prop_assert_eq!(exchange(&mut first[0], &mut third[0], bytes_max), 0, "equal hosts send nothing");
    }

    #[test]
    fn lost_gossip_is_made_good_by_exchange(writes in writes(), lost in any::<u64>()) {
        let (mut hosts, entries) = written(&writes);
        let mut listener = registry(9);
        for (index, entry) in entries.iter().enumerate() {
            if lost >> (index % 64) & 1 == 0 {
                listener.merge(entry.clone(), NOW);
            }
        }
        for host in &mut hosts {
            exchange(&mut listener, host, 500);
        }
        let mut all = registry(8);
        for entry in entries {
            all.merge(entry, NOW);
        }
        prop_assert!(listener.entries().eq(all.entries()));
    }

    #[test]
    fn a_snapshot_restores_everything(writes in writes()) {
        let (hosts, _) = written(&writes);
        let mut back = registry(1);
        for frame in hosts[0].frames() {
            back.restore(&frame).unwrap();
        }
        prop_assert_eq!(back.digest(), hosts[0].digest());
        prop_assert_eq!(back.vector(), hosts[0].vector());
        let entry = back.put(Key::Pin(vec![99]), None, 0).unwrap();
        prop_assert!(hosts[0].vector().get(&peer(1)).is_none_or(|last| entry.sequence > *last));
        prop_assert!(hosts[0].entries().all(|old| entry.hlc > old.hlc));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = RegistryMessage::decode(&bytes);
        let _ = Entry::decode(&bytes);
        let _ = registry(1).restore(&bytes);
        let _ = RegistryMessage::decode(&[vec![1, 1], bytes].concat());
    }
}

#[test]
fn only_a_certificate_of_the_cluster_key_makes_a_member() {
    let certificate = |cluster: &ClusterKey, n: u8| Certificate {
        cluster: cluster.id(),
        peer: peer(n),
        name: "h".to_owned(),
        zone: String::new(),
        weight: 1,
        roles: [Role::Storage].into(),
        issued_unix_ms: 1,
        serial: 1,
    };
    let mut registry = registry(1);
    let good = key().certify(certificate(&key(), 2)).unwrap().encode();
    let stranger = ClusterKey::from_seed(&[8; 32]);
    let bad = stranger.certify(certificate(&stranger, 3)).unwrap().encode();
    registry.put(Key::Member(peer(2)), Some(good.clone()), NOW).unwrap();
    assert!(registry.put(Key::Member(peer(3)), Some(bad), NOW).is_err());
    assert!(registry.put(Key::Member(peer(3)), Some(good), NOW).is_err());
    assert!(registry.put(Key::Member(peer(2)), None, NOW).is_err(), "a member is revoked, not deleted");
    assert!(registry.is_member(&peer(2)) && !registry.is_member(&peer(3)));

    let revocation = key().revoke(peer(2), NOW).encode();
    registry.put(Key::Revoked(peer(2)), Some(revocation.clone()), NOW).unwrap();
    assert!(!registry.is_member(&peer(2)));
    assert!(registry.members().is_empty());
    let again = registry.put(Key::Revoked(peer(2)), Some(revocation), NOW);
    assert!(matches!(again, Err(EntryError::Final { .. })));
}

#[test]
fn addresses_and_holders_are_their_authors_own() {
    let mut mine = registry(1);
    let mut theirs = registry(2);
    let addresses = Addresses { addresses: vec!["/ip4/1.2.3.4/tcp/1".to_owned()] };
    let entry = theirs.put(Key::Address(peer(2)), Some(addresses.encode()), NOW).unwrap();
    assert_eq!(mine.merge(entry.clone(), NOW), Outcome::Taken);
    assert_eq!(mine.merge(entry, NOW), Outcome::Known);
    assert_eq!(mine.addresses(&peer(2)), addresses.addresses);
    assert!(mine.put(Key::Address(peer(2)), None, NOW).is_err());
    let holder = Holder { writer: Some(peer(2)), since_unix_ms: 5, term: 3 }.encode();
    assert!(mine.put(Key::Holder(VolumeId([1; 16])), Some(holder.clone()), NOW).is_err());
    let entry = theirs.put(Key::Holder(VolumeId([1; 16])), Some(holder), NOW).unwrap();
    assert_eq!(mine.merge(entry, NOW), Outcome::Taken);
    assert_eq!(mine.holder(&VolumeId([1; 16])).unwrap().0.term, 3);
}

#[test]
fn too_large_and_too_early_entries_are_refused() {
    let mut registry = registry(1);
    assert!(registry.put(Key::Pin(vec![1]), Some(vec![0; 16 * 1024 + 1]), NOW).is_err());
    assert!(registry.put(Key::Pin(vec![1; 129]), None, NOW).is_err());
    let mut ahead = Registry::new(peer(2), key().id());
    let entry = ahead.put(Key::Pin(vec![1]), None, NOW + 61_000).unwrap();
    assert!(matches!(registry.merge(entry, NOW), Outcome::Refused(EntryError::Drift(_))));
    assert!(registry.vector().is_empty(), "it must be asked for again");
    let deltas = ahead.deltas_for(&registry.hello(), 10_000).unwrap();
    registry.merge_deltas(deltas.clone(), NOW);
    assert!(registry.vector().is_empty());
    registry.merge_deltas(deltas, NOW + 5_000);
    assert_eq!(registry.digest(), ahead.digest());
}

#[test]
fn two_volumes_of_one_name_are_both_shown_and_alike_everywhere() {
    let (mut a, mut b) = (registry(1), registry(2));
    put_volume(&mut a, &record(1, "notes", 20), NOW);
    put_volume(&mut b, &record(2, "notes", 10), NOW);
    put_volume(&mut b, &record(3, "other", 30), NOW);
    assert_eq!(a.volume_named("notes").unwrap().record.id, VolumeId([1; 16]));
    exchange(&mut a, &mut b, 100_000);
    assert_eq!(a.volumes(), b.volumes());
    let names: Vec<String> = a.volumes().into_iter().map(|entry| entry.shown_name).collect();
    assert_eq!(
        names,
        ["notes".to_owned(), format!("notes~{}", VolumeId([1; 16]).short()), "other".to_owned()]
    );
    assert_eq!(a.volume_named("notes").unwrap().record.id, VolumeId([2; 16]), "the older one has the name");
    assert_eq!(a.volume_named(&names[1]).unwrap().record.id, VolumeId([1; 16]), "and the other one is found");
    assert!(a.volume_named("notes~").is_none() && a.volume_named("").is_none());
    put_volume(&mut b, &VolumeRecord { removed: true, ..record(2, "notes", 10) }, NOW + 1);
    exchange(&mut a, &mut b, 100_000);
    assert_eq!(
        a.volume_named("notes").unwrap().record.id,
        VolumeId([1; 16]),
        "a removed volume frees its name"
    );
    put_volume(&mut b, &record(3, "another", 30), NOW + 2);
    assert!(b.volume_named("other").is_none(), "a volume is found under its newest name alone");
    assert_eq!(b.volume_named("another").unwrap().record.id, VolumeId([3; 16]));
}

#[test]
fn a_host_that_lost_its_registry_gets_everything_and_counts_on() {
    let (mut a, mut b) = (registry(1), registry(2));
    for n in 0..20 {
        a.put(Key::Pin(vec![n]), Some(vec![n]), NOW).unwrap();
    }
    exchange(&mut a, &mut b, 100_000);
    let mut a = registry(1);
    a.put(Key::Pin(vec![200]), Some(vec![1]), NOW + 1).unwrap();
    exchange(&mut a, &mut b, 100_000);
    assert_eq!(a.put(Key::Pin(vec![201]), None, NOW + 2).unwrap().sequence, 21);
    exchange(&mut a, &mut b, 100_000);
    exchange(&mut a, &mut b, 100_000);
    assert_eq!(a.digest(), b.digest());
}

#[test]
fn news_fits_gossip_messages_and_answers_fit_exchanges() {
    let mut a = registry(1);
    let entries: Vec<Entry> =
        (0..200).map(|n| a.put(Key::Pin(vec![n]), Some(vec![n; 3_000]), NOW).unwrap()).collect();
    let messages = Registry::pack_news(&entries);
    let mut b = registry(2);
    for message in &messages {
        assert!(message.len() <= GOSSIP_BYTES_MAX);
        let (answer, merged) = b.answer(RegistryMessage::decode(message).unwrap(), NOW);
        assert_eq!(answer, RegistryMessage::Done);
        assert!(!merged.taken.is_empty() && merged.is_vector_moved);
    }
    assert_eq!(a.digest(), b.digest());
    let (answer, _) = a.answer(RegistryMessage::Hello(registry(3).hello()), NOW);
    assert!(RegistryMessage::decode(&answer.encode()).is_ok());
}

#[test]
fn an_entry_that_did_not_reach_the_disk_was_never_there() {
    let mut registry = registry(1);
    let name = |n: u8| Key::Holder(VolumeId([n; 16]));
    let before = (registry.vector().clone(), registry.digest());
    let lost = registry.draft(name(1), None, 5).unwrap();
    assert_eq!((registry.vector().clone(), registry.digest()), before);
    assert_eq!(registry.get(&name(1)), None);
    let kept = registry.draft(name(2), None, 6).unwrap();
    assert_eq!(kept.sequence, lost.sequence);
    registry.admit(kept.clone());
    assert_eq!(registry.get(&name(2)), Some(&kept));
    assert!(
        registry.put(name(3), None, 1).unwrap().hlc > kept.hlc,
        "the clock goes on behind what was admitted"
    );
}
