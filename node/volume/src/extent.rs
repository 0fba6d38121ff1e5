//! The changed ranges of one file: what lies over its base content.
//!
//! What always holds:
//! * extents are not empty, do not overlap and do not pass `u64::MAX`;
//! * an extent's `seq` is not older than the operation that put it there; raising it is always allowed, because what
//!   it hides in any base derived meanwhile is what the base would show there;
//! * looking up, inserting over and cutting are O(log n) and the number of extents removed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use cid::Cid;

/// Where the bytes of an extent are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExtentSource {
    /// In the operations of commit `seq`, from byte `offset` of them.
    Inline {
        /// The commit.
        seq: u64,
        /// The position in its operations, in bytes.
        offset: u64,
    },
    /// In a raw block, from byte `offset` of it.
    Block {
        /// The block.
        cid: Arc<Cid>,
        /// The position in it, in bytes.
        offset: u64,
    },
    /// In an immutable file, from byte `offset` of it.
    File {
        /// Its root.
        cid: Arc<Cid>,
        /// The position in it, in bytes.
        offset: u64,
    },
    /// Nowhere: a hole.
    Zero,
}

impl ExtentSource {
    /// The same bytes without the first `n`.
    #[must_use]
    pub fn skip(&self, n: u64) -> ExtentSource {
        match self {
            ExtentSource::Inline { seq, offset } => ExtentSource::Inline { seq: *seq, offset: offset + n },
            ExtentSource::Block { cid, offset } => {
                ExtentSource::Block { cid: Arc::clone(cid), offset: offset + n }
            }
            ExtentSource::File { cid, offset } => {
                ExtentSource::File { cid: Arc::clone(cid), offset: offset + n }
            }
            ExtentSource::Zero => ExtentSource::Zero,
        }
    }

    /// Whether `next` goes on where `len` bytes of this end.
    fn is_followed_by(&self, len: u64, next: &ExtentSource) -> bool {
        match (self, next) {
            (ExtentSource::Inline { seq: a, offset }, ExtentSource::Inline { seq: b, offset: then }) => {
                a == b && offset + len == *then
            }
            (ExtentSource::Block { cid: a, offset }, ExtentSource::Block { cid: b, offset: then })
            | (ExtentSource::File { cid: a, offset }, ExtentSource::File { cid: b, offset: then }) => {
                a == b && offset + len == *then
            }
            (ExtentSource::Zero, ExtentSource::Zero) => true,
            _ => false,
        }
    }
}

/// A changed range; its start is its key in [`Extents`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Its length in bytes; at least 1.
    pub len: u64,
    /// The newest commit that shaped it.
    pub seq: u64,
    /// Its bytes.
    pub source: ExtentSource,
}

/// The changed ranges of a file, by their start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extents {
    map: BTreeMap<u64, Extent>,
}

/// A part of a range: changed, or as the base has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Where it starts in the file.
    pub start: u64,
    /// Its length; at least 1.
    pub len: u64,
    /// Its bytes; `None`: as in the base.
    pub source: Option<ExtentSource>,
}

impl Extents {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// How many extents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// All extents in order of their start.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Extent)> {
        self.map.iter().map(|(start, extent)| (*start, extent))
    }

    /// Puts a range over whatever is there. `len` 0 does nothing.
    pub fn insert(&mut self, start: u64, len: u64, seq: u64, source: ExtentSource) {
        if len == 0 {
            return;
        }
        // The common case is a write behind the last one: nothing to remove.
        let is_last = self.map.last_key_value().is_none_or(|(at, last)| at + last.len <= start);
        if !is_last {
            self.remove(start..start + len);
        }
        let (mut start, mut len, mut seq, mut source) = (start, len, seq, source);
        if let Some((&before, extent)) = self.map.range(..start).next_back()
            && before + extent.len == start
            && extent.source.is_followed_by(extent.len, &source)
        {
            (start, len, seq) = (before, len + extent.len, seq.max(extent.seq));
            source = extent.source.clone();
        }
        if !is_last
            && let Some(next) = self.map.get(&(start + len))
            && source.is_followed_by(len, &next.source)
        {
            let next_start = start + len;
            (len, seq) = (len + next.len, seq.max(next.seq));
            self.map.remove(&next_start);
        }
        self.map.insert(start, Extent { len, seq, source });
    }

    /// Forgets the changes of a range, cutting the extents at its ends.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some((&start, extent)) = self.map.range_mut(..range.start).next_back() {
            let end = start + extent.len;
            if end > range.start {
                let (seq, tail) = (extent.seq, extent.source.skip(range.end.saturating_sub(start)));
                extent.len = range.start - start;
                if end > range.end {
                    self.map.insert(range.end, Extent { len: end - range.end, seq, source: tail });
                }
            }
        }
        while let Some((&start, _)) = self.map.range(range.clone()).next() {
            let Some(extent) = self.map.remove(&start) else { break };
            let end = start + extent.len;
            if end > range.end {
                let source = extent.source.skip(range.end - start);
                self.map.insert(range.end, Extent { len: end - range.end, seq: extent.seq, source });
            }
        }
    }

    /// Forgets what `upto` and older commits changed: the base has it now.
    pub fn forget_upto(&mut self, upto: u64) {
        self.map.retain(|_, extent| extent.seq > upto);
    }

    /// The parts of a range, in order and without gaps.
    #[must_use]
    pub fn parts(&self, range: Range<u64>) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = range.start;
        let first = self.map.range(..range.start).next_back().filter(|(s, e)| *s + e.len > range.start);
        for (&start, extent) in first.into_iter().chain(self.map.range(range.clone())) {
            if start > at {
                parts.push(Part { start: at, len: start - at, source: None });
                at = start;
            }
            let end = (start + extent.len).min(range.end);
            if end > at {
                parts.push(Part { start: at, len: end - at, source: Some(extent.source.skip(at - start)) });
                at = end;
            }
        }
        if at < range.end {
            parts.push(Part { start: at, len: range.end - at, source: None });
        }
        parts
    }

    /// The oldest commit whose operations hold bytes of this file.
    #[must_use]
    pub fn oldest_inline(&self) -> Option<u64> {
        self.map
            .values()
            .filter_map(|extent| match extent.source {
                ExtentSource::Inline { seq, .. } => Some(seq),
                _ => None,
            })
            .min()
    }
}
