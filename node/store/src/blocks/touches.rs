//! What was asked to stay lately, so that a sweep whose caller did not know of it leaves it alone.
//!
//! Time is cut into generations, each with the blocks touched in it and the pack that was written to when it began. What always
//! holds: a block that was put or touched in a generation that is still held is not swept; a generation is held until it ended
//! longer ago than the caller's grace and nobody holds a [`Protection`] from it or an older one.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::index::Digest;

/// Blocks one generation remembers, 16 bytes each; beyond that it protects everything.
const TOUCHES_MAX: usize = 1 << 21;

/// While it lives, no block is swept that was put or touched after it was made.
#[derive(Debug)]
pub struct Protection {
    _generation: Arc<()>,
}

struct Generation {
    number: u64,
    began: Duration,
    /// The pack that was written to when it began: what was put in this generation is in it or behind it.
    first_pack: u64,
    touched: HashSet<u64>,
    is_full: bool,
    token: Arc<()>,
}

impl Generation {
    fn new(number: u64, began: Duration, first_pack: u64) -> Generation {
        Generation { number, began, first_pack, touched: HashSet::new(), is_full: false, token: Arc::new(()) }
    }
}

/// The generations that are held, oldest first; never none.
pub(super) struct Touches(VecDeque<Generation>);

impl Touches {
    /// Nothing was touched; whatever is in packs before `first_pack` may be swept.
    pub(super) fn new(first_pack: u64) -> Touches {
        Touches(VecDeque::from([Generation::new(0, Duration::ZERO, first_pack)]))
    }

    /// Answers the generation it was touched in.
    pub(super) fn touch(&mut self, digest: &Digest) -> u64 {
        let Some(newest) = self.0.back_mut() else { return 0 };
        if newest.touched.len() < TOUCHES_MAX {
            newest.touched.insert(short(digest));
        } else {
            newest.is_full = true;
        }
        newest.number
    }

    /// The block was written anew after it was touched in that generation: where it lies protects it as long. Who touched it in a
    /// later one may have it in a pack from before that.
    pub(super) fn forget(&mut self, digest: &Digest, number: u64) {
        if let Some(newest) = self.0.back_mut().filter(|newest| newest.number == number) {
            newest.touched.remove(&short(digest));
        }
    }

    pub(super) fn protect(&mut self) -> Protection {
        let token = self.0.back().map(|newest| Arc::clone(&newest.token));
        Protection { _generation: token.unwrap_or_default() }
    }

    /// Begins a generation and lets go of old ones. Answers the pack from which on nothing may be swept; `None` if nothing at all
    /// may be.
    pub(super) fn turn(&mut self, now: Duration, grace: Duration, pack: u64) -> Option<u64> {
        if self.0.back().is_none_or(|newest| now.saturating_sub(newest.began) >= grace / 2) {
            let number = self.0.back().map_or(0, |newest| newest.number + 1);
            self.0.push_back(Generation::new(number, now, pack));
        }
        while let [oldest, next, ..] = &*self.0.make_contiguous() {
            let is_over = next.began.saturating_add(grace) <= now;
            if !is_over || Arc::strong_count(&oldest.token) > 1 {
                break;
            }
            self.0.pop_front();
        }
        if self.0.iter().any(|generation| generation.is_full) {
            return None;
        }
        self.0.front().map(|oldest| oldest.first_pack)
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        let short = short(digest);
        self.0.iter().any(|generation| generation.is_full || generation.touched.contains(&short))
    }
}

/// Enough of a digest to tell blocks apart; when it cannot, one more block is kept.
fn short(digest: &Digest) -> u64 {
    digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The blocks that something refers to: what a sweep must keep. About 16 bytes a block.
#[derive(Clone, Debug, Default)]
pub struct Live(HashSet<u64>);

impl Live {
    /// Adds a block by the digest of its multihash; answers whether it was new.
    pub fn add(&mut self, digest: &Digest) -> bool {
        self.0.insert(short(digest))
    }

    /// Whether the block is in it. May say so of a block that is not, never the reverse.
    pub fn has(&self, digest: &Digest) -> bool {
        self.0.contains(&short(digest))
    }

    /// How many blocks it holds.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(600);

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn what_was_touched_is_held_for_the_grace_and_then_let_go() {
        let mut touches = Touches::new(3);
        touches.touch(&[1; 32]);
        assert_eq!(touches.turn(at(400), GRACE, 5), Some(3));
        assert!(touches.has(&[1; 32]));
        assert_eq!(
            touches.turn(at(999), GRACE, 6),
            Some(3),
            "touched less than the grace before the last turn"
        );
        assert!(touches.has(&[1; 32]));
        assert_eq!(touches.turn(at(1000), GRACE, 7), Some(5));
        assert!(!touches.has(&[1; 32]));
    }

    #[test]
    fn a_protection_holds_its_generation_and_the_newer_ones() {
        let mut touches = Touches::new(1);
        touches.touch(&[1; 32]);
        let protection = touches.protect();
        assert_eq!(touches.turn(at(1000), GRACE, 2), Some(1));
        assert_eq!(touches.turn(at(5000), GRACE, 3), Some(1));
        assert!(touches.has(&[1; 32]));
        drop(protection);
        assert_eq!(touches.turn(at(9000), GRACE, 4), Some(3));
        assert!(!touches.has(&[1; 32]));
    }

    #[test]
    fn what_was_touched_again_in_a_later_generation_is_not_forgotten_by_who_wrote_it() {
        let mut touches = Touches::new(1);
        let number = touches.touch(&[1; 32]);
        assert_eq!(touches.turn(at(1000), GRACE, 2), Some(1));
        touches.touch(&[1; 32]);
        touches.forget(&[1; 32], number);
        assert_eq!(touches.turn(at(2000), GRACE, 3), Some(2));
        assert!(touches.has(&[1; 32]), "it lies in pack 1");
        let number = touches.touch(&[2; 32]);
        touches.forget(&[2; 32], number);
        assert!(!touches.has(&[2; 32]));
    }

    #[test]
    fn too_many_touches_protect_everything() {
        let mut touches = Touches::new(1);
        for n in 0..=TOUCHES_MAX as u64 {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            touches.touch(&digest);
        }
        assert!(touches.has(&[9; 32]));
        assert_eq!(touches.turn(at(1000), GRACE, 2), None);
        assert_eq!(touches.turn(at(3000), GRACE, 2), Some(2), "and are let go like all others");
    }
}
