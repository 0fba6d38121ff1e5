//! Where the ops of every commit since the base are: in memory until they are written, then in the log.

use std::collections::VecDeque;
use std::sync::Arc;

use remora_store::log::Position;

use crate::journal::Batch;

/// Where the ops of one commit are.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// In memory, on their way to the log.
    Memory(Arc<Batch>),
    /// In the log, `ops_offset` bytes into the frame at `position`.
    Log {
        /// The frame's payload.
        position: Position,
        /// Where in it the ops begin.
        ops_offset: usize,
    },
}

/// One [`Payload`] a commit, without gaps.
#[derive(Debug, Default)]
pub(crate) struct Payloads {
    first: u64,
    places: VecDeque<Payload>,
}

impl Payloads {
    /// None yet; the first one pushed may have any number.
    pub(crate) fn new() -> Payloads {
        Payloads::default()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Adds the next commit.
    pub(crate) fn push(&mut self, seq: u64, payload: Payload) {
        if self.places.is_empty() {
            self.first = seq;
        }
        assert!(seq == self.first + self.places.len() as u64, "commit numbers have no gaps");
        self.places.push_back(payload);
    }

    /// Where a commit's ops are.
    pub(crate) fn get(&self, seq: u64) -> Option<&Payload> {
        self.places.get(usize::try_from(seq.checked_sub(self.first)?).ok()?)
    }

    /// Notes that a commit has moved.
    pub(crate) fn replace(&mut self, seq: u64, payload: Payload) {
        let index = seq.checked_sub(self.first).and_then(|n| usize::try_from(n).ok());
        if let Some(place) = index.and_then(|n| self.places.get_mut(n)) {
            *place = payload;
        }
    }

    /// The commits that are not in the log yet.
    pub(crate) fn unwritten(&self) -> impl Iterator<Item = &Batch> {
        let written = |place: &&Payload| matches!(place, Payload::Memory(_));
        self.places.iter().rev().take_while(written).filter_map(|place| match place {
            Payload::Memory(batch) => Some(&**batch),
            Payload::Log { .. } => None,
        })
    }

    /// Forgets every commit up to `seq`, but none that is still in memory only.
    pub(crate) fn forget_until(&mut self, seq: u64) {
        while self.first <= seq && matches!(self.places.front(), Some(Payload::Log { .. })) {
            self.places.pop_front();
            self.first += 1;
        }
    }
}
