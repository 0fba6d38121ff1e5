//! The next segment, made before it is needed.

use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::fault::DiskFault;
use crate::file_header::FileHeader;
use crate::layout::{SPARE_SEGMENT, segment_name};
use crate::log::segment::Segment;
use crate::log::{LogError, Shared};

/// Segments end on a page.
const PAGE_BYTES: u64 = 4096;

/// A segment takes this part of what is free on the disk at most, if it may be smaller.
pub(super) const FREE_FRACTION: u64 = 8;

/// The place where the next segment waits. At most one is made at a time.
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

enum State {
    Idle,
    Preparing,
    Ready(Segment),
}

impl Ahead {
    /// Nothing waits, or the empty segment that an earlier process had prepared.
    pub(super) fn new(ready: Option<Segment>) -> Ahead {
        Ahead { state: Mutex::new(ready.map_or(State::Idle, State::Ready)), changed: Condvar::new() }
    }

    /// Waits until nothing is being made.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock();
        while matches!(*state, State::Preparing) {
            self.changed.wait(&mut state);
        }
    }

    /// Waits until nothing is being made and takes what is there.
    pub(super) fn take(&self) -> Option<Segment> {
        self.finish();
        match std::mem::replace(&mut *self.state.lock(), State::Idle) {
            State::Ready(segment) => Some(segment),
            State::Idle | State::Preparing => None,
        }
    }

    fn begin(&self) -> bool {
        let mut state = self.state.lock();
        let is_idle = matches!(*state, State::Idle);
        if is_idle {
            *state = State::Preparing;
        }
        is_idle
    }

    fn end(&self, made: Option<Segment>) {
        *self.state.lock() = made.map_or(State::Idle, State::Ready);
        self.changed.notify_all();
    }
}

impl Shared {
    /// Starts making the segment after `current` on a thread, unless one is there or on its way.
    pub(super) fn prepare_ahead(shared: &Arc<Shared>, current: &Segment) {
        if !shared.options.is_background || !shared.ahead.begin() {
            return;
        }
        let (number, capacity) = shared.next_of(current);
        let worker = shared.clone();
        let spawned = std::thread::Builder::new().name("log-ahead".to_owned()).spawn(move || {
            let made = worker.make_segment(number, capacity);
            if let Err(error) = &made {
                // The append that needs the segment tries again and tells its caller.
                tracing::warn!(dir = %worker.dir.display(), %error, "cannot prepare the next log segment");
            }
            worker.ahead.end(made.ok());
        });
        if spawned.is_err() {
            shared.ahead.end(None);
        }
    }

    /// The segment after `current`: the prepared one, or one made now.
    pub(super) fn take_next(&self, current: &Segment) -> Result<Segment, LogError> {
        if let Some(segment) = self.ahead.take() {
            return Ok(segment);
        }
        let (number, capacity) = self.next_of(current);
        let smallest = self.options.segment_bytes_first;
        match self.make_segment(number, capacity).map_err(full_or_failed) {
            Err(LogError::Full(_)) if capacity > smallest => {
                self.make_segment(number, smallest).map_err(full_or_failed)
            }
            made => made,
        }
    }

    /// Makes an empty prepared segment anew at the full size, for a frame that does not fit it.
    pub(super) fn enlarge(&self, segment: &Segment) -> Result<Segment, LogError> {
        self.make_segment(segment.number, self.options.segment_bytes_max).map_err(full_or_failed)
    }

    fn next_of(&self, current: &Segment) -> (u64, u64) {
        let free = self.disk.free_bytes(&self.dir).unwrap_or(u64::MAX);
        // What is written ahead is taken from others.
        let doubled = current.limit.saturating_mul(2).min(free / FREE_FRACTION / PAGE_BYTES * PAGE_BYTES);
        let capacity = doubled.clamp(self.options.segment_bytes_first, self.options.segment_bytes_max);
        (current.number + 1, capacity)
    }

    /// Makes a segment: from the spare one if that is long enough, else by writing zeros.
    pub(super) fn make_segment(&self, number: u64, capacity: u64) -> Result<Segment, DiskFault> {
        make_segment(&*self.disk, &self.dir, &self.options, number, capacity)
    }
}

pub(super) fn make_segment(
    disk: &dyn crate::disk::Disk,
    dir: &Path,
    options: &crate::log::LogOptions,
    number: u64,
    capacity: u64,
) -> Result<Segment, DiskFault> {
    let path = dir.join(segment_name(number));
    let spare = dir.join(SPARE_SEGMENT);
    let mut header = FileHeader {
        kind: options.kind,
        is_recycled: false,
        is_snapshot: false,
        salt: disk.salt(),
        id: options.id,
        number,
        capacity,
    };
    let spare_bytes = disk.open(&spare, crate::disk::OpenMode::Read).and_then(|file| file.len()).unwrap_or(0);
    if spare_bytes >= capacity {
        header.is_recycled = true;
        header.capacity = spare_bytes;
        match Segment::recycle(disk, dir, &spare, path.clone(), header) {
            Ok(segment) => return Ok(segment),
            Err(error) => tracing::warn!(%error, "cannot recycle a log segment"),
        }
        header.is_recycled = false;
        header.capacity = capacity;
    }
    if spare_bytes > 0
        && let Err(error) = disk.remove(&spare)
    {
        tracing::warn!(%error, "cannot remove a spare log segment");
    }
    Segment::create(disk, dir, path, header, &[])
}

fn full_or_failed(fault: DiskFault) -> LogError {
    if fault.is_full() { LogError::Full(fault) } else { LogError::Disk(fault) }
}
