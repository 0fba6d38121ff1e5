//! Where a chain ends: term, sequence number and digest of its newest commit.
//!
//! What always holds: a term has at most one writer and a writer numbers its commits without gaps, so (term, sequence
//! number) names one commit; of two tips the one with the higher term, then the higher number, is on the chain that
//! every later writer must continue.

use std::fmt;

use cid::Cid;
use multihash::Multihash;
use serde::{Deserialize, Serialize};

use crate::bounded::list;

const DAG_CBOR: u64 = 0x71;
const SHA2_256: u64 = 0x12;

/// Most terms a chain tells of itself; older ones are told as one.
pub const BOUNDARIES_MAX: usize = 4096;

/// The number that fences writers. 0 is before the first writer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term(pub u64);

impl Term {
    /// The next higher term.
    #[must_use]
    pub fn next(self) -> Term {
        Term(self.0.saturating_add(1))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A commit: the sha2-256 digest of its block. All zeros for "no commit yet".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommitId(pub [u8; 32]);

impl fmt::Debug for CommitId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

impl CommitId {
    /// The commit's block: CIDv1, dag-cbor, sha2-256. None for "no commit yet".
    pub fn cid(&self) -> Option<Cid> {
        if *self == CommitId::default() {
            return None;
        }
        let hash = Multihash::wrap(SHA2_256, &self.0).ok()?;
        Some(Cid::new_v1(DAG_CBOR, hash))
    }

    /// The commit a CID names; None if it is not dag-cbor with sha2-256.
    pub fn from_cid(cid: &Cid) -> Option<CommitId> {
        if cid.codec() != DAG_CBOR || cid.hash().code() != SHA2_256 {
            return None;
        }
        cid.hash().digest().try_into().ok().map(CommitId)
    }
}

/// The end of a chain; the default is that of a chain without commits. Ordered as the vote orders: term, then number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tip {
    /// The term of the newest commit.
    pub term: Term,
    /// Its sequence number; the first commit of a volume is 1.
    pub seq: u64,
    /// Its digest.
    pub id: CommitId,
}

impl Tip {
    /// (term, number): what the vote compares.
    pub fn rank(&self) -> (Term, u64) {
        (self.term, self.seq)
    }
}

/// What a keeper must know of a commit to judge it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitHeader {
    /// The commit itself: term, number, digest.
    pub tip: Tip,
    /// The digest of the commit before it.
    pub prev: CommitId,
}

/// Where a term begins in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boundary {
    /// The term.
    pub term: Term,
    /// The number of its first commit.
    pub first_seq: u64,
}

/// A tree that stands for all commits up to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last commit it stands for.
    pub tip: Tip,
    /// The root of the tree.
    pub tree: Cid,
}

/// The shape of a chain: enough to find where two chains part without comparing commits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The commit just before the first one that is kept: the default, or the tip of a checkpoint.
    pub base: Tip,
    /// Where each term begins, ascending in both fields, all after `base`; at most 4096.
    #[serde(deserialize_with = "list::<_, _, BOUNDARIES_MAX>")]
    pub boundaries: Vec<Boundary>,
    /// The newest commit; `base` if none is kept.
    pub tip: Tip,
}

impl Chain {
    /// A chain that keeps nothing after `base`.
    pub fn from_base(base: Tip) -> Self {
        Chain { base, boundaries: Vec::new(), tip: base }
    }

    /// Whether `header` continues the chain: next number, right digest before it, no lower term.
    pub fn continues_with(&self, header: &CommitHeader) -> bool {
        Some(header.tip.seq) == self.tip.seq.checked_add(1)
            && header.prev == self.tip.id
            && header.tip.term >= self.tip.term
    }

    /// Adds one commit.
    ///
    /// # Panics
    /// If it does not continue the chain: ask [`Chain::continues_with`] first.
    pub fn push(&mut self, tip: Tip) {
        assert!(
            tip.seq == self.tip.seq + 1 && tip.term >= self.tip.term,
            "{tip:?} does not follow {:?}",
            self.tip
        );
        if tip.term > self.tip.term {
            self.boundaries.push(Boundary { term: tip.term, first_seq: tip.seq });
            if self.boundaries.len() > BOUNDARIES_MAX {
                // The oldest term is told as part of the base: a chain that parts there is copied anew.
                let dropped = self.boundaries.remove(0);
                let next_seq = self.boundaries[0].first_seq;
                self.base = Tip { term: dropped.term, seq: next_seq - 1, id: CommitId::default() };
            }
        }
        self.tip = tip;
    }

    /// Adds all commits of one term up to `tip`; those between are known by their writer. Nothing if `tip` is not after
    /// the end of the chain.
    pub fn extend_to(&mut self, tip: Tip) {
        if tip.seq <= self.tip.seq || tip.term < self.tip.term {
            return;
        }
        if tip.term > self.tip.term {
            self.push(Tip { seq: self.tip.seq + 1, ..tip });
        }
        self.tip = tip;
    }

    /// The term of commit `seq`; None outside of what is kept, `base` included.
    pub fn term_of(&self, seq: u64) -> Option<Term> {
        if seq == self.base.seq {
            return Some(self.base.term);
        }
        if seq < self.base.seq || seq > self.tip.seq {
            return None;
        }
        let after = self.boundaries.partition_point(|boundary| boundary.first_seq <= seq);
        Some(after.checked_sub(1).map_or(self.base.term, |index| self.boundaries[index].term))
    }

    /// Whether this chain, as far as it is told, holds the commit that `tip` names.
    pub fn holds(&self, tip: &Tip) -> bool {
        self.term_of(tip.seq) == Some(tip.term)
    }

    /// The number of the last commit this chain has in common with `other`; None if they part before what both tell.
    pub fn common_seq(&self, other: &Chain) -> Option<u64> {
        let first = self.base.seq.max(other.base.seq);
        let mut seq = self.tip.seq.min(other.tip.seq);
        while seq >= first {
            let (Some(mine), Some(theirs)) = (self.term_of(seq), other.term_of(seq)) else { return None };
            if mine == theirs {
                return Some(seq);
            }
            // Every commit of the higher of both terms is on one side only: go to just before it.
            let side = if mine > theirs { self } else { other };
            seq = side.first_seq_of(mine.max(theirs)).checked_sub(1)?;
        }
        None
    }

    fn first_seq_of(&self, term: Term) -> u64 {
        let found = self.boundaries.iter().find(|boundary| boundary.term == term);
        found.map_or(self.base.seq, |boundary| boundary.first_seq)
    }

    /// Forgets every commit after `tip`, which is on the chain.
    ///
    /// # Panics
    /// If `tip` is not on the chain.
    pub fn cut_to(&mut self, tip: Tip) {
        assert!(self.holds(&tip), "{tip:?} is not on {self:?}");
        self.boundaries.retain(|boundary| boundary.first_seq <= tip.seq);
        self.tip = tip;
    }

    /// The rule that a chain from elsewhere breaks, if any.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let mut before = (self.base.term, self.base.seq);
        for boundary in &self.boundaries {
            if boundary.term <= before.0
                || boundary.first_seq <= before.1
                || boundary.first_seq > self.tip.seq
            {
                return Some("the terms of a chain are not in order");
            }
            before = (boundary.term, boundary.first_seq);
        }
        let is_ordered = self.tip.seq >= self.base.seq && self.tip.term == before.0;
        (!is_ordered).then_some("the tip of a chain does not belong to its last term")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{BOUNDARIES_MAX, Chain, CommitHeader, CommitId, Term, Tip};
    use proptest::prelude::{prop_assert_eq, proptest};

    /// A chain of commits with the given terms, whose digests depend on all terms before them.
    pub(crate) fn chain(terms: &[u64]) -> (Chain, Vec<Tip>) {
        let mut chain = Chain::default();
        let mut tips = vec![Tip::default()];
        let mut digest = 1u64;
        for (index, term) in terms.iter().enumerate() {
            digest = digest.wrapping_mul(31).wrapping_add(*term);
            let mut id = CommitId::default();
            id.0[..8].copy_from_slice(&digest.to_le_bytes());
            let tip = Tip { term: Term(*term), seq: index as u64 + 1, id };
            chain.push(tip);
            tips.push(tip);
        }
        (chain, tips)
    }

    #[test]
    fn a_commit_id_is_a_dag_cbor_cid() {
        let id = CommitId([7; 32]);
        let cid = id.cid().unwrap();
        assert!(cid.to_string().starts_with("bafyrei"));
        assert_eq!(CommitId::from_cid(&cid), Some(id));
        assert_eq!(CommitId::default().cid(), None);
    }

    #[test]
    fn only_the_next_commit_continues_a_chain() {
        let (chain, tips) = chain(&[1, 1, 3]);
        let next = Tip { term: Term(3), seq: 4, id: CommitId([1; 32]) };
        assert!(chain.continues_with(&CommitHeader { tip: next, prev: tips[3].id }));
        assert!(!chain.continues_with(&CommitHeader { tip: next, prev: tips[2].id }));
        assert!(!chain.continues_with(&CommitHeader { tip: Tip { seq: 5, ..next }, prev: tips[3].id }));
        assert!(
            !chain.continues_with(&CommitHeader { tip: Tip { term: Term(2), ..next }, prev: tips[3].id })
        );
    }

    #[test]
    fn chains_from_different_checkpoints_compare_where_both_tell() {
        let (whole, tips) = chain(&[1, 1, 2, 2, 5, 5]);
        let mut late = Chain::from_base(tips[4]);
        late.push(tips[5]);
        assert_eq!(whole.common_seq(&late), Some(5));
        assert_eq!(late.common_seq(&whole), Some(5));
        assert_eq!(Chain::from_base(tips[4]).common_seq(&chain(&[1, 1]).0), None);
        assert_eq!(Chain::from_base(tips[4]).common_seq(&chain(&[1, 1, 2, 3]).0), None);
    }

    #[test]
    fn a_chain_of_very_many_terms_stays_bounded_and_valid() {
        let terms: Vec<u64> = (1..BOUNDARIES_MAX as u64 + 100).collect();
        let (chain, tips) = chain(&terms);
        assert_eq!(chain.boundaries.len(), BOUNDARIES_MAX);
        assert_eq!(chain.broken_rule(), None);
        assert!(chain.holds(&tips[tips.len() - 10]));
        assert!(!chain.holds(&tips[3]));
    }

    proptest! {
        #[test]
        fn the_common_commit_is_the_one_commit_by_commit_comparison_finds(
            shared in proptest::collection::vec(0u64..2, 0..8),
            left in proptest::collection::vec(0u64..2, 0..8),
            right in proptest::collection::vec(0u64..2, 0..8),
        ) {
            // One writer a term: after the fork the left side has even terms, the right side odd ones.
            let rising = |start: u64, steps: &[u64], by: u64| -> Vec<u64> {
                steps.iter().scan(start, |term, step| { *term += step * by; Some(*term) }).collect()
            };
            let shared = rising(1, &shared, 1);
            let last = shared.last().copied().unwrap_or(1);
            let even = (last / 2 + 1) * 2;
            let join = |tail: Vec<u64>| [shared.clone(), tail].concat();
            let (left, left_tips) = chain(&join(rising(even, &left, 2)));
            let (right, right_tips) = chain(&join(rising(even + 1, &right, 2)));
            let expected = left_tips.iter().zip(&right_tips).take_while(|(a, b)| a == b).count() - 1;
            prop_assert_eq!(left.common_seq(&right), Some(expected as u64));
            prop_assert_eq!(right.common_seq(&left), Some(expected as u64));
            prop_assert_eq!(left.broken_rule(), None);
            let mut cut = left.clone();
            cut.cut_to(left_tips[expected]);
            prop_assert_eq!(cut, chain(&shared[..expected.min(shared.len())]).0);
        }
    }
}
