//! Who should keep what: weighted rendezvous hashing, one member a zone first. Computed on every host alike, stored nowhere.
//!
//! Source: Thaler and Ravishankar (1998); weights as in Schindelhauer and Schomaker (2005). Scores are integers, so that
//! every machine computes the same order.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use crate::identity::PeerId;

/// A member that can be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The member.
    pub peer: PeerId,
    /// Its failure domain; members with an empty zone are each their own.
    pub zone: String,
    /// Its share relative to the others; 0 is never chosen.
    pub weight: u32,
}

/// -log2(x / 2^64) in units of 2^-24, by repeated squaring; exact integers. `x` is not 0.
fn negative_log2(x: u64) -> u64 {
    let lead = x.leading_zeros();
    let mut mantissa = x << lead;
    let mut fraction = 0u64;
    for _ in 0..24 {
        let square = u128::from(mantissa) * u128::from(mantissa);
        let is_over = square >> 127 == 1;
        fraction = fraction << 1 | u64::from(is_over);
        let shift = if is_over { 64 } else { 63 };
        mantissa = u64::try_from(square >> shift).unwrap_or(u64::MAX);
    }
    // x / 2^64 = (1 + fraction) * 2^-(lead + 1)
    (u64::from(lead) + 1) * (1 << 24) - fraction
}

/// Smaller is better: an exponentially distributed draw divided by the weight.
fn cost(seed: &[u8], candidate: &Candidate) -> u64 {
    let hash = Sha256::new().chain_update(candidate.peer.0).chain_update(seed).finalize();
    let mut head = [0; 8];
    head.copy_from_slice(&hash[..8]);
    negative_log2(u64::from_le_bytes(head).max(1)) * (1 << 24) / u64::from(candidate.weight)
}

/// The best `n` candidates for `seed`, best first: by score, but a second one of a zone only after every zone has one,
/// and so on. Fewer if there are fewer with a weight. The order of `candidates` does not matter.
pub fn choose(seed: &[u8], candidates: &[Candidate], n: usize) -> Vec<PeerId> {
    let mut scored: Vec<(u64, &Candidate)> = candidates
        .iter()
        .filter(|candidate| candidate.weight > 0)
        .map(|candidate| (cost(seed, candidate), candidate))
        .collect();
    scored.sort_by_key(|(cost, candidate)| (*cost, candidate.peer));
    let mut chosen = Vec::new();
    while chosen.len() < n && !scored.is_empty() {
        let mut zones = BTreeSet::new();
        let mut later = Vec::new();
        for (cost, candidate) in scored {
            let is_first = candidate.zone.is_empty() || zones.insert(candidate.zone.as_str());
            if is_first && chosen.len() < n {
                chosen.push(candidate.peer);
            } else {
                later.push((cost, candidate));
            }
        }
        scored = later;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::{Candidate, choose};
    use crate::identity::PeerId;
    use std::collections::BTreeMap;

    fn hosts(n: u8, zones: u8) -> Vec<Candidate> {
        let zone = |index: u8| if zones == 0 { String::new() } else { format!("z{}", index % zones) };
        (0..n)
            .map(|index| Candidate { peer: PeerId([index + 1; 32]), zone: zone(index), weight: 100 })
            .collect()
    }

    #[test]
    fn a_new_host_takes_only_its_share() {
        let (ten, eleven) = (hosts(10, 0), hosts(11, 0));
        let mut moved = 0;
        for key in 0..4000u32 {
            let before = choose(&key.to_le_bytes(), &ten, 3);
            let after = choose(&key.to_le_bytes(), &eleven, 3);
            moved += after.iter().filter(|peer| !before.contains(peer)).count();
        }
        let share = moved as f64 / 12_000.0;
        assert!((0.08..0.10).contains(&share), "{share}");
    }

    #[test]
    fn every_zone_gets_one_before_any_gets_two() {
        for key in 0..500u32 {
            let chosen = choose(&key.to_le_bytes(), &hosts(9, 3), 4);
            let zones: Vec<u8> = chosen.iter().map(|peer| (peer.0[0] - 1) % 3).collect();
            let mut first: Vec<u8> = zones[..3].to_vec();
            first.sort_unstable();
            assert_eq!(first, [0, 1, 2]);
            assert_eq!(chosen.len(), 4);
        }
    }

    #[test]
    fn load_follows_weight_and_order_of_input_does_not_matter() {
        let mut members = hosts(3, 0);
        for (member, weight) in members.iter_mut().zip([100, 200, 400]) {
            member.weight = weight;
        }
        let mut reversed = members.clone();
        reversed.reverse();
        let mut load: BTreeMap<PeerId, u32> = BTreeMap::new();
        for key in 0..14_000u32 {
            let chosen = choose(&key.to_le_bytes(), &members, 1);
            assert_eq!(chosen, choose(&key.to_le_bytes(), &reversed, 1));
            *load.entry(chosen[0]).or_default() += 1;
        }
        let load: Vec<u32> = load.into_values().collect();
        for (found, expected) in load.iter().zip([2000u32, 4000, 8000]) {
            assert!(found.abs_diff(expected) < expected / 10, "{load:?}");
        }
    }

    #[test]
    fn a_member_without_weight_is_never_chosen() {
        let mut members = hosts(3, 0);
        members[1].weight = 0;
        assert_eq!(choose(b"x", &members, 3).len(), 2);
        assert!(choose(b"x", &[], 3).is_empty());
    }
}
