//! Writing file content: collected runs, whole chunks as blocks, everything else inline.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use remora_dag::block::{Block, BlockSink, Codec};
use remora_vfs::attr::{FILE_BYTES_MAX, Ino, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::Reply;

use crate::bulk::{CHUNK_BYTES, Run, Step};
use crate::op::Op;
use crate::stop::Stop;
use crate::volume::shared::{Core, Shared};

/// What one look at a write led to.
enum Outcome {
    /// This many bytes are done.
    Done(usize),
    /// A chunk is full and must be stored; this many bytes of the write are in it. Others were told that theirs in it are written.
    Full(Run, usize),
    /// The write has a whole chunk, which must be stored.
    Whole(Run),
    /// Look again when no run is left: with all of them the volume's limit may be reached.
    Tight,
    /// Look again when the inode's run is out of the way.
    Busy,
}

impl Shared {
    /// See `Filesystem::write`.
    pub(crate) fn write(&self, ino: Ino, offset: u64, data: &[u8], now: Timestamp) -> Reply<()> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX);
        end.ok_or(Errno::EFBIG)?;
        self.admit(data.len() as u64)?;
        let mut at = 0;
        while at < data.len() {
            at += self.write_some(ino, offset + at as u64, &data[at..], now)?;
        }
        self.hold_back()
    }

    /// Writes the first bytes of `data`; answers how many. May be none when there was something else to do first.
    fn write_some(&self, ino: Ino, offset: u64, data: &[u8], now: Timestamp) -> Reply<usize> {
        let outcome = self.with_blocks(|core| {
            core.journal.check()?;
            self.begin_write(core, ino, offset, data, now)
        })?;
        match outcome {
            Outcome::Done(n) => Ok(n),
            Outcome::Busy => {
                drop(self.settled(ino));
                Ok(0)
            }
            Outcome::Tight => self.settle_all().map(|()| 0),
            Outcome::Full(run, n) => {
                self.store_run(ino, run).inspect_err(|errno| {
                    self.fail(&format!("log a collected chunk of inode {ino}: {errno}"));
                })?;
                Ok(n)
            }
            Outcome::Whole(run) => self.store_run(ino, run).map(|()| CHUNK_BYTES),
        }
    }

    fn begin_write(
        &self,
        core: &mut Core,
        ino: Ino,
        offset: u64,
        data: &[u8],
        now: Timestamp,
    ) -> Result<Outcome, Stop> {
        // Everything that can be refused is refused before a byte is taken.
        let waiting = core.runs.bytes();
        if waiting > 0 && core.state.may_reach_limit(waiting + data.len() as u64) {
            return Ok(Outcome::Tight);
        }
        core.state.plan_write(ino, offset, data, now)?;
        let size = core.state.attr(ino)?.size;
        match core.runs.step(ino, size, offset, data.len()) {
            Step::Wait | Step::Close => Ok(Outcome::Busy),
            Step::Collect(n) => {
                // What applying it will need of the tree: now the write can still be refused.
                core.state.data_within(ino, offset, offset + n as u64)?;
                let elapsed = self.clock.elapsed();
                Ok(match core.runs.collect(ino, offset, &data[..n], now, elapsed) {
                    Some(run) => Outcome::Full(run, n),
                    None => Outcome::Done(n),
                })
            }
            Step::Store => {
                core.runs.begin_storing(ino);
                Ok(Outcome::Whole(Run::whole(offset, data[..CHUNK_BYTES].to_vec(), now)))
            }
            Step::Inline(n) => {
                self.record(core, &Op::Write { ino, offset, data: &data[..n], time: now })?;
                Ok(Outcome::Done(n))
            }
        }
    }

    /// Stores a whole chunk as a block and logs the reference; if the store cannot take it, logs the bytes.
    ///
    /// The inode's run is `Storing`: nobody else gets near the inode until this returns. An error means that nothing of it is logged; if
    /// somebody was told that bytes of it are written, the caller must step down.
    fn store_run(&self, ino: Ino, run: Run) -> Reply<()> {
        let Run { start: offset, bytes, time, .. } = run;
        let len = bytes.len() as u64;
        let block = Block::seal(Codec::Raw, Bytes::from(bytes));
        let (cid, bytes) = (*block.cid(), block.bytes().clone());
        // Until the reference is recorded, nothing else says that the block counts.
        let _protection = self.blocks.protect();
        let stored = self.blocks.put(block);
        if let Err(error) = &stored {
            tracing::warn!(ino, %error, "a chunk goes into the log");
            self.unlooked_bytes.store(0, Ordering::Relaxed);
        }
        let recorded = self.with_blocks(|core| {
            if stored.is_ok() {
                self.record(core, &Op::WriteRef { ino, offset, len, cid, time })
            } else {
                self.record(core, &Op::Write { ino, offset, data: &bytes, time })
            }
        });
        self.core.lock().runs.end_storing(ino);
        self.run_stored.notify_all();
        recorded.map(drop)
    }
}
