//! How many bytes of a range of an immutable file are data: asked of ranges whose nodes are more than the caches hold.
//!
//! What always holds: what has been counted of a range stays counted while its question waits for a block, so that every block that is
//! supplied brings it on; a sum depends on the file's CID alone and is never out of date.

use std::cell::RefCell;
use std::collections::VecDeque;

use cid::Cid;

use crate::nodes::Nodes;
use crate::state::content::{From, STEP_BYTES_MAX, file_pieces};
use crate::stop::Stop;

/// Sums kept: those of operations that wait for a block, and what one operation asks besides.
const SUMS_MAX: usize = 64;

/// The range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    root: Cid,
    /// The bytes of the file; behind them are zeros.
    size: u64,
    start: u64,
    end: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sum {
    range: Range,
    /// Counted up to here.
    at: u64,
    data: u64,
}

/// The sums of ranges that are longer than a step, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Sums(RefCell<VecDeque<Sum>>);

impl Sums {
    /// How many of the bytes from `start` on are data.
    pub(super) fn data_in_file(
        &self,
        nodes: &Nodes,
        file: (&Cid, u64),
        start: u64,
        len: u64,
    ) -> Result<u64, Stop> {
        if len <= STEP_BYTES_MAX {
            return count(nodes, file, start, len);
        }
        let range = Range { root: *file.0, size: file.1, start, end: start + len };
        let mut sum = self.take(&range).unwrap_or(Sum { range, at: start, data: 0 });
        let mut counted = Ok(());
        while sum.at < range.end && counted.is_ok() {
            let step = STEP_BYTES_MAX.min(range.end - sum.at);
            counted = count(nodes, file, sum.at, step).map(|data| {
                sum.data += data;
                sum.at += step;
            });
        }
        self.keep(sum);
        counted.map(|()| sum.data)
    }

    fn take(&self, range: &Range) -> Option<Sum> {
        let mut sums = self.0.borrow_mut();
        let at = sums.iter().position(|sum| sum.range == *range)?;
        sums.remove(at)
    }

    fn keep(&self, sum: Sum) {
        let mut sums = self.0.borrow_mut();
        if sums.len() >= SUMS_MAX {
            sums.pop_front();
        }
        sums.push_back(sum);
    }
}

fn count(nodes: &Nodes, (root, size): (&Cid, u64), start: u64, len: u64) -> Result<u64, Stop> {
    let mut found = Vec::new();
    file_pieces(nodes, root, size, start, len, &mut found)?;
    Ok(found.iter().filter(|piece| piece.from != From::Zero).map(|piece| piece.len).sum())
}
