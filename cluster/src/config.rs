//! Who keeps a volume and what its fsync waits for, as agreed by the keepers themselves.
//!
//! A configuration is named by the term whose START commit brought it. Until that commit is known to be committed, the
//! configuration before it counts too: electing and committing need a majority of both (joint consensus). A candidate
//! that finds such an unsettled change carries it on and makes no second one.

use serde::{Deserialize, Serialize};

use crate::bounded::list;
use crate::identity::PeerId;
use crate::tip::Term;
use crate::volume_record::KEEPERS_MAX;

/// What a volume's fsync waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A majority of the keepers, the writer's own disk among them.
    Quorum,
    /// The writer's own disk; the other keepers follow behind.
    Local,
}

/// The configuration before an unsettled one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// Its keepers; 1 to 9, no peer twice.
    #[serde(deserialize_with = "list::<_, _, KEEPERS_MAX>")]
    pub members: Vec<PeerId>,
    /// Its durability.
    pub durability: Durability,
}

/// The keepers of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The term whose START brought it; 0 for the configuration of the volume's creation.
    pub generation: Term,
    /// The keepers; 1 to 9, no peer twice.
    #[serde(deserialize_with = "list::<_, _, KEEPERS_MAX>")]
    pub members: Vec<PeerId>,
    /// What fsync waits for.
    pub durability: Durability,
    /// What counts as well until this configuration is settled.
    pub outgoing: Option<Outgoing>,
}

/// How many of `n` are a majority.
pub fn majority(n: usize) -> usize {
    n / 2 + 1
}

fn most_of(members: &[PeerId], holds: &dyn Fn(&PeerId) -> bool) -> bool {
    members.iter().filter(|member| holds(member)).count() >= majority(members.len())
}

impl Config {
    /// The configuration of a new volume.
    pub fn at_creation(members: Vec<PeerId>, durability: Durability) -> Self {
        Config { generation: Term(0), members, durability, outgoing: None }
    }

    /// Whether `holds` is true of a majority, and of a majority of the outgoing members too if there are any.
    pub fn is_quorum(&self, holds: impl Fn(&PeerId) -> bool) -> bool {
        most_of(&self.members, &holds)
            && self.outgoing.as_ref().is_none_or(|outgoing| most_of(&outgoing.members, &holds))
    }

    /// Whether nobody can be elected past `holds`: every majority of the members has one of whom it is true, and every
    /// majority of the outgoing members too if there are any.
    pub fn is_met_by_all(&self, holds: impl Fn(&PeerId) -> bool) -> bool {
        let without = |peer: &PeerId| !holds(peer);
        let outgoing = self.outgoing.iter().map(|outgoing| &outgoing.members);
        [&self.members].into_iter().chain(outgoing).all(|members| !most_of(members, &without))
    }

    /// Everybody who has to be asked: members and outgoing members, ascending, none twice.
    pub fn voters(&self) -> Vec<PeerId> {
        let mut voters = self.members.clone();
        voters.extend(self.outgoing.iter().flat_map(|outgoing| outgoing.members.iter().copied()));
        voters.sort_unstable();
        voters.dedup();
        voters
    }

    /// The weaker promise of this and the outgoing configuration: what may be on one disk only.
    pub fn weakest_durability(&self) -> Durability {
        let outgoing = self.outgoing.as_ref().map(|outgoing| outgoing.durability);
        outgoing.map_or(self.durability, |outgoing| outgoing.max(self.durability))
    }

    /// Whether `peer` was a keeper before this configuration: it must remember what it promised.
    pub fn is_veteran(&self, peer: &PeerId) -> bool {
        match &self.outgoing {
            Some(outgoing) => outgoing.members.contains(peer),
            None => self.members.contains(peer),
        }
    }

    /// The same without the outgoing one: its START is committed.
    #[must_use]
    pub fn settled(&self) -> Config {
        Config { outgoing: None, ..self.clone() }
    }

    /// The configuration for the START of `term`: `members` and `durability`, with this one outgoing; or, while this one
    /// is unsettled, this one carried on.
    #[must_use]
    pub fn succeeded_by(&self, term: Term, members: Vec<PeerId>, durability: Durability) -> Config {
        if self.outgoing.is_some() {
            return Config { generation: term, ..self.clone() };
        }
        let outgoing = Outgoing { members: self.members.clone(), durability: self.durability };
        Config { generation: term, members, durability, outgoing: Some(outgoing) }
    }

    /// The rule that a configuration from elsewhere breaks, if any.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let outgoing = self.outgoing.as_ref().map(|outgoing| &outgoing.members);
        for members in [Some(&self.members), outgoing].into_iter().flatten() {
            let mut sorted = members.clone();
            sorted.sort_unstable();
            sorted.dedup();
            if members.is_empty() || sorted.len() != members.len() || members.len() > KEEPERS_MAX {
                return Some("a configuration has no members, too many, or one twice");
            }
        }
        None
    }
}

/// The keepers after `me` becomes writer: `old` and me; when that is more than `replicas`, me in place of the member that
/// comes last in `ranked` (best first; who is not in it comes last). While there is room, `invited` peers are added too.
pub fn members_after(
    old: &[PeerId],
    me: PeerId,
    replicas: usize,
    ranked: &[PeerId],
    invited: &[PeerId],
) -> Vec<PeerId> {
    let replicas = replicas.clamp(1, KEEPERS_MAX);
    let mut members = old.to_vec();
    if !members.contains(&me) {
        if members.len() >= replicas {
            let rank = |peer: &PeerId| ranked.iter().position(|other| other == peer).unwrap_or(usize::MAX);
            let worst = members.iter().copied().max_by_key(|peer| (rank(peer), *peer));
            members.retain(|peer| Some(*peer) != worst);
        }
        members.push(me);
    }
    for peer in invited {
        if members.len() < replicas && !members.contains(peer) {
            members.push(*peer);
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::{Config, Durability, members_after};
    use crate::identity::PeerId;
    use crate::tip::Term;

    fn peers(range: std::ops::Range<u8>) -> Vec<PeerId> {
        range.map(|n| PeerId([n; 32])).collect()
    }

    #[test]
    fn an_unsettled_change_needs_both_majorities_and_is_carried_on() {
        let old = Config::at_creation(peers(0..3), Durability::Local);
        let joint = old.succeeded_by(Term(4), peers(1..6), Durability::Quorum);
        let among = |range: std::ops::Range<u8>| move |peer: &PeerId| range.contains(&peer.0[0]);
        assert!(joint.is_quorum(among(1..4)));
        assert!(!joint.is_quorum(among(2..6)), "one of three old members is no majority");
        assert!(!joint.is_quorum(among(0..3)), "two of five new members are no majority");
        assert_eq!(joint.weakest_durability(), Durability::Local);
        assert_eq!(joint.voters(), peers(0..6));
        let carried = joint.succeeded_by(Term(5), peers(7..8), Durability::Local);
        assert_eq!(carried, Config { generation: Term(5), ..joint.clone() });
        assert!(joint.settled().is_quorum(among(2..6)));
    }

    #[test]
    fn of_two_each_is_needed_and_of_three_none() {
        let is_first = |peer: &PeerId| peer.0[0] == 0;
        for (n, is_needed) in [(1, true), (2, true), (3, false), (4, false)] {
            let config = Config::at_creation(peers(0..n), Durability::Local);
            assert_eq!(config.is_met_by_all(is_first), is_needed, "{n} keepers");
        }
        let pair = Config::at_creation(peers(0..2), Durability::Local);
        assert!(pair.succeeded_by(Term(2), peers(0..1), Durability::Local).is_met_by_all(is_first));
        assert!(!pair.succeeded_by(Term(2), peers(0..3), Durability::Local).is_met_by_all(is_first));
        assert!(!pair.succeeded_by(Term(2), peers(1..3), Durability::Local).is_met_by_all(is_first));
    }

    #[test]
    fn keepers_grow_to_the_replicas_and_then_replace_the_least_liked() {
        let ranked = peers(0..10);
        let me = PeerId([9; 32]);
        assert_eq!(members_after(&peers(0..1), me, 3, &ranked, &[]), [peers(0..1), vec![me]].concat());
        assert_eq!(members_after(&peers(0..3), me, 3, &ranked, &[]), [peers(0..2), vec![me]].concat());
        assert_eq!(members_after(&peers(0..3), PeerId([1; 32]), 3, &ranked, &[]), peers(0..3));
        assert_eq!(members_after(&peers(0..1), PeerId([0; 32]), 3, &ranked, &peers(1..5)), peers(0..3));
        assert_eq!(members_after(&peers(0..1), me, 1, &ranked, &[]), vec![me]);
    }
}
