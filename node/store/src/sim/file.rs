//! One simulated file: its durable bytes, its bytes as read, and the writes in between.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::DiskFile;
use crate::sim::{CallKind, Inner, Keep, Random};

const SECTOR_BYTES: usize = 512;

/// A file's bytes.
#[derive(Clone)]
pub(super) struct Node {
    /// What a reader sees.
    pub(super) current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl Node {
    pub(super) fn durable(bytes: Vec<u8>) -> Node {
        Node { current: bytes.clone(), durable: bytes, pending: Vec::new() }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        put(&mut self.current, offset, bytes);
        self.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
    }

    fn set_len(&mut self, len: usize) {
        self.current.resize(len, 0);
        self.pending.push(Change::SetLen(len));
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            match change {
                Change::Write { offset, bytes } => put(&mut self.durable, offset, &bytes),
                Change::SetLen(len) => self.durable.resize(len, 0),
            }
        }
    }

    /// The sync failed: some of the writes reached the disk, none is tried again.
    fn fail_sync(&mut self, random: &mut Random) {
        self.durable = self.after_crash(Keep::Some, random).durable;
        self.pending.clear();
    }

    pub(super) fn after_crash(&self, keep: Keep, random: &mut Random) -> Node {
        let mut bytes = self.durable.clone();
        if keep != Keep::Nothing {
            for change in &self.pending {
                match change {
                    Change::SetLen(len) if keep == Keep::All || random.one_in(2) => bytes.resize(*len, 0),
                    Change::SetLen(_) => {}
                    Change::Write { offset, bytes: written } => {
                        keep_sectors(&mut bytes, *offset, written, keep, random);
                    }
                }
            }
        }
        Node::durable(bytes)
    }

    pub(super) fn flip(&mut self, bit: u64) -> bool {
        let (byte, mask) = ((bit / 8) as usize, 1_u8 << (bit % 8));
        if byte >= self.current.len() {
            return false;
        }
        self.current[byte] ^= mask;
        if let Some(byte) = self.durable.get_mut(byte) {
            *byte ^= mask;
        }
        true
    }
}

/// Writes those sectors that the crash keeps.
fn keep_sectors(bytes: &mut Vec<u8>, offset: usize, written: &[u8], keep: Keep, random: &mut Random) {
    // A write is often lost or kept as a whole; torn ones are the rest.
    let fate = random.next() % 4;
    let mut at = 0;
    while at < written.len() {
        let n = (SECTOR_BYTES - (offset + at) % SECTOR_BYTES).min(written.len() - at);
        let is_kept = match (keep, fate) {
            (Keep::All, _) | (_, 0) => true,
            (_, 1) => false,
            _ => random.one_in(2),
        };
        if is_kept {
            put(bytes, offset + at, &written[at..at + n]);
        }
        at += n;
    }
}

fn put(into: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if into.len() < end {
        into.resize(end, 0);
    }
    into[offset..end].copy_from_slice(bytes);
}

/// An open simulated file.
pub(super) struct SimFile {
    pub(super) inner: Arc<Mutex<Inner>>,
    pub(super) id: u64,
}

impl SimFile {
    fn with<T>(
        &self,
        kind: Option<CallKind>,
        act: impl FnOnce(&mut Node, u64, &mut Random) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut inner = self.inner.lock();
        if let Some(kind) = kind {
            inner.count(kind)?;
        }
        // Counting all files is needed only when there is a limit.
        let free = if inner.capacity.is_some() { inner.free_bytes() } else { u64::MAX };
        let Inner { nodes, random, .. } = &mut *inner;
        let node = nodes.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        act(node, free, random)
    }
}

impl DiskFile for SimFile {
    fn pread(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.with(Some(CallKind::Read), |node, _, _| {
            let from = (offset as usize).min(node.current.len());
            let n = buf.len().min(node.current.len() - from);
            buf[..n].copy_from_slice(&node.current[from..from + n]);
            Ok(n)
        })
    }

    fn pwrite(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let bytes = parts.concat();
        self.with(Some(CallKind::Write), |node, free, _| {
            let grown = (offset as usize + bytes.len()).saturating_sub(node.current.len()) as u64;
            if grown > free {
                // The disk fills up in the middle of the write.
                let fits = bytes.len() - (grown - free).min(bytes.len() as u64) as usize;
                node.write(offset as usize, &bytes[..fits]);
                return Err(io::ErrorKind::StorageFull.into());
            }
            node.write(offset as usize, &bytes);
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(Some(CallKind::Write), |node, free, _| {
            let at = node.current.len();
            let more = (len as usize).saturating_sub(at);
            if more as u64 > free {
                return Err(io::ErrorKind::StorageFull.into());
            }
            node.write(at, &vec![0; more]);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let result = {
            let mut inner = self.inner.lock();
            let is_lying = inner.is_lying;
            inner.count(CallKind::Sync).map(|()| is_lying)
        };
        self.with(None, |node, _, random| match result {
            Ok(true) => Ok(()),
            Ok(false) => {
                node.sync();
                Ok(())
            }
            Err(error) => {
                node.fail_sync(random);
                Err(error)
            }
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(None, |node, _, _| Ok(node.current.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(Some(CallKind::Write), |node, free, _| {
            if len.saturating_sub(node.current.len() as u64) > free {
                return Err(io::ErrorKind::StorageFull.into());
            }
            node.set_len(len as usize);
            Ok(())
        })
    }
}
