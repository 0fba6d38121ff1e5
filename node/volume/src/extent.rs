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
///
/// Nearly every file that is made has one; it lies here and takes no memory of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Extents {
    /// None.
    #[default]
    Empty,
    /// One, with its start.
    One(u64, Extent),
    /// At least two, by their start.
    Many(BTreeMap<u64, Extent>),
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
        matches!(self, Extents::Empty)
    }

    /// How many extents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Extents::Empty => 0,
            Extents::One(..) => 1,
            Extents::Many(map) => map.len(),
        }
    }

    /// All extents in order of their start.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Extent)> {
        self.range(0..u64::MAX)
    }

    /// The extents that start in a range, in order.
    fn range(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Extent)> {
        let (one, many) = match self {
            Extents::Empty => (None, None),
            Extents::One(start, extent) => (range.contains(start).then_some((*start, extent)), None),
            Extents::Many(map) => (None, Some(map.range(range))),
        };
        one.into_iter().chain(many.into_iter().flatten().map(|(start, extent)| (*start, extent)))
    }

    /// The start of the first extent that starts in a range.
    fn first_in(&self, range: Range<u64>) -> Option<u64> {
        self.range(range).next().map(|(start, _)| start)
    }

    /// The extent that starts at `at`.
    fn at(&self, at: u64) -> Option<&Extent> {
        match self {
            Extents::Empty => None,
            Extents::One(start, extent) => (*start == at).then_some(extent),
            Extents::Many(map) => map.get(&at),
        }
    }

    /// The last extent that starts before `at`.
    fn before(&self, at: u64) -> Option<(u64, &Extent)> {
        match self {
            Extents::Empty => None,
            Extents::One(start, extent) => (*start < at).then_some((*start, extent)),
            Extents::Many(map) => map.range(..at).next_back().map(|(start, extent)| (*start, extent)),
        }
    }

    /// Adds an extent where there is none.
    fn put(&mut self, start: u64, extent: Extent) {
        *self = match std::mem::take(self) {
            Extents::Empty => Extents::One(start, extent),
            Extents::One(at, first) => Extents::Many(BTreeMap::from([(at, first), (start, extent)])),
            Extents::Many(mut map) => {
                map.insert(start, extent);
                Extents::Many(map)
            }
        };
    }

    /// Takes an extent out.
    fn take(&mut self, start: u64) -> Option<Extent> {
        let taken;
        (*self, taken) = match std::mem::take(self) {
            Extents::One(at, extent) if at == start => (Extents::Empty, Some(extent)),
            Extents::Many(mut map) => {
                let taken = map.remove(&start);
                (Extents::of(map), taken)
            }
            other => (other, None),
        };
        taken
    }

    fn of(mut map: BTreeMap<u64, Extent>) -> Extents {
        if map.len() > 1 {
            return Extents::Many(map);
        }
        map.pop_first().map_or(Extents::Empty, |(start, extent)| Extents::One(start, extent))
    }

    /// Puts a range over whatever is there. `len` 0 does nothing.
    pub fn insert(&mut self, start: u64, len: u64, seq: u64, source: ExtentSource) {
        if len == 0 {
            return;
        }
        self.remove(start..start + len);
        let (mut start, mut len, mut seq, mut source) = (start, len, seq, source);
        if let Some((before, extent)) = self.before(start)
            && before + extent.len == start
            && extent.source.is_followed_by(extent.len, &source)
        {
            (len, seq) = (len + extent.len, seq.max(extent.seq));
            source = extent.source.clone();
            start = before;
            self.take(before);
        }
        let end = start + len;
        let next = self.at(end).filter(|next| source.is_followed_by(len, &next.source));
        if let Some((next_len, next_seq)) = next.map(|next| (next.len, next.seq)) {
            (len, seq) = (len + next_len, seq.max(next_seq));
            self.take(end);
        }
        self.put(start, Extent { len, seq, source });
    }

    /// Forgets the changes of a range, cutting the extents at its ends.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some((start, extent)) = self.before(range.start)
            && start + extent.len > range.start
        {
            self.cut(start, &range);
        }
        while let Some(start) = self.first_in(range.clone()) {
            self.cut(start, &range);
        }
    }

    /// Leaves of an extent what lies outside of a range.
    fn cut(&mut self, start: u64, range: &Range<u64>) {
        let Some(mut extent) = self.take(start) else { return };
        let end = start + extent.len;
        if end > range.end {
            let source = extent.source.skip(range.end - start);
            self.put(range.end, Extent { len: end - range.end, seq: extent.seq, source });
        }
        if start < range.start {
            extent.len = range.start - start;
            self.put(start, extent);
        }
    }

    /// Forgets what `upto` and older commits changed, for the base has it now, among `max` extents from `from` on.
    /// Answers where to go on; `None`: there are no more.
    pub fn forget_upto(&mut self, upto: u64, from: u64, max: usize) -> Option<u64> {
        let seen: Vec<(u64, u64)> =
            self.range(from..u64::MAX).take(max).map(|(start, extent)| (start, extent.seq)).collect();
        for (start, _) in seen.iter().filter(|(_, seq)| *seq <= upto) {
            self.take(*start);
        }
        let (last, _) = seen.last()?;
        (seen.len() == max).then_some(last + 1)
    }

    /// The parts of a range, in order and without gaps.
    #[must_use]
    pub fn parts(&self, range: Range<u64>) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = range.start;
        let first = self.before(range.start).filter(|(start, extent)| start + extent.len > range.start);
        for (start, extent) in first.into_iter().chain(self.range(range.clone())) {
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
}
