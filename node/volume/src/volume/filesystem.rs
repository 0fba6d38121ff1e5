//! The volume as the kernel's side sees it: every operation is a question to the state or a change of it.

use remora_vfs::attr::{Attr, DirEntry, Ino, NewNode, SetAttr, StatFs, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Allocate, Caller, Done, Filesystem, RenameMode, Reply, Seek, XattrMode};

use crate::op::Op;
use crate::plan::check_name;
use crate::state::State;
use crate::stop::Stop;
use crate::volume::Volume;
use crate::volume::mutate::SMALL_BYTES;

/// Entries of a directory taken from the state at once, first and then: few, for a reader with a small buffer comes back
/// for every page of it, and not too many, which bounds how long the state's lock is held.
const LIST_FIRST: usize = 40;
const LIST_NEXT: usize = 256;

/// Bytes of the unit of `statfs`.
const UNIT_BYTES: u64 = 4096;

/// What a volume without a limit says of its inodes: as many as fit a disk.
const BYTES_PER_INODE: u64 = 4096;

impl Filesystem for Volume {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Reply<Attr> {
        check_name(name)?;
        let attr = self.shared.ask(|state| {
            let attr = state.lookup(parent, name)?;
            state.reference(attr.ino, 1);
            Ok(attr)
        })?;
        self.fresh(attr)
    }

    fn forget(&self, ino: Ino, n: u64) {
        self.let_go(ino, |state| state.forget(ino, n));
    }

    fn getattr(&self, ino: Ino) -> Reply<Attr> {
        drop(self.shared.settled(ino));
        self.shared.ask(|state| state.attr(ino))
    }

    fn setattr(&self, ino: Ino, change: &SetAttr, now: Timestamp) -> Reply<Attr> {
        self.shared.change(|state| state.plan_setattr(ino, change, now), |state, _| state.attr(ino))
    }

    fn readlink(&self, ino: Ino) -> Reply<Vec<u8>> {
        self.shared.ask(|state| state.readlink(ino))
    }

    fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode,
        mode: u16,
        now: Timestamp,
    ) -> Reply<Attr> {
        self.shared.admit(SMALL_BYTES)?;
        self.shared.change(
            |state| state.plan_make(caller, (parent, name), node, mode, now).map(Some),
            |state, op| match op {
                Some(Op::Make { ino, .. }) => referenced(state, *ino),
                _ => Err(Errno::EIO.into()),
            },
        )
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Timestamp) -> Reply<Attr> {
        self.shared.admit(SMALL_BYTES)?;
        self.shared.change(
            |state| state.plan_link(ino, parent, name, now).map(Some),
            |state, _| referenced(state, ino),
        )
    }

    fn unlink(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.shared.change(|state| state.plan_unlink(parent, name, now).map(Some), |_, _| Ok(()))
    }

    fn rmdir(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.shared.change(|state| state.plan_rmdir(parent, name, now).map(Some), |_, _| Ok(()))
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode, now: Timestamp) -> Reply<()> {
        self.shared.change(|state| state.plan_rename(from, to, mode, now), |_, _| Ok(()))
    }

    fn open(&self, ino: Ino) -> Reply<()> {
        self.shared.ask(|state| {
            state.attr(ino)?;
            state.open_handle(ino);
            Ok(())
        })
    }

    fn release(&self, ino: Ino) {
        self.let_go(ino, |state| state.release(ino));
    }

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Reply<Vec<u8>> {
        self.shared.read(ino, offset, len)
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], now: Timestamp) -> Reply<()> {
        self.shared.write(ino, offset, data, now)
    }

    fn fsync(&self, ino: Ino, _data_only: bool, done: Done) {
        self.shared.fsync(ino, done);
    }

    fn allocate(&self, ino: Ino, how: Allocate, offset: u64, len: u64, now: Timestamp) -> Reply<()> {
        if how != Allocate::Punch {
            self.shared.admit(SMALL_BYTES)?;
        }
        self.shared.change(|state| state.plan_allocate(ino, how, offset, len, now).map(Some), |_, _| Ok(()))
    }

    fn seek(&self, ino: Ino, what: Seek, offset: u64) -> Reply<u64> {
        drop(self.shared.settled(ino));
        self.shared.ask(|state| state.seek(ino, what, offset))
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64, now: Timestamp) -> Reply<u64> {
        self.shared.admit(SMALL_BYTES)?;
        drop(self.shared.settled(from.0));
        if self.shared.core.lock().state.size_limit().is_some() {
            // What is collected counts against the limit, too.
            self.shared.settle_all()?;
        }
        self.shared.change(
            |state| Ok(state.plan_clone(from, to, len, now)?.map(|(op, _)| op)),
            |_, op| match op {
                Some(Op::Clone { len, .. }) => Ok(*len),
                _ => Ok(0),
            },
        )
    }

    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Reply<()> {
        if !self.shared.core.lock().runs.is_empty() {
            self.shared.settle_all()?;
        }
        let (mut cookie, mut max) = (cookie, LIST_FIRST);
        loop {
            let listing = self.shared.ask(|state| state.readdir(ino, cookie, max))?;
            max = LIST_NEXT;
            for entry in &listing.entries {
                if !emit(entry) {
                    return Ok(());
                }
            }
            match listing.next {
                Some(next) => cookie = next,
                None => return Ok(()),
            }
        }
    }

    fn reference(&self, ino: Ino) -> Reply<()> {
        let known = self.shared.ask(|state| {
            state.attr(ino)?;
            state.reference(ino, 1);
            Ok(())
        });
        known.map_err(|errno| if errno == Errno::ESTALE { Errno::ENOENT } else { errno })
    }

    fn parent(&self, ino: Ino) -> Reply<Ino> {
        self.shared.ask(|state| state.parent(ino))
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Reply<Vec<u8>> {
        self.shared.ask(|state| state.getxattr(ino, name))
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode, now: Timestamp) -> Reply<()> {
        self.shared.admit(SMALL_BYTES + value.len() as u64)?;
        self.shared.change(|state| state.plan_setxattr(ino, name, value, mode, now).map(Some), |_, _| Ok(()))
    }

    fn listxattr(&self, ino: Ino) -> Reply<Vec<Vec<u8>>> {
        self.shared.ask(|state| state.listxattr(ino))
    }

    fn removexattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.shared.change(|state| state.plan_removexattr(ino, name, now), |_, _| Ok(()))
    }

    fn statfs(&self) -> Reply<StatFs> {
        let space = (self.shared.space)();
        let room = space.free.saturating_sub(self.shared.reserve(space));
        let (stats, limit) = {
            let core = self.shared.core.lock();
            (core.state.stats(), core.state.size_limit())
        };
        let free = limit.map_or(room, |limit| room.min(limit.saturating_sub(stats.bytes)));
        let total = limit.unwrap_or_else(|| stats.bytes.saturating_add(room));
        let files_free = free / BYTES_PER_INODE;
        Ok(StatFs {
            blocks: total / UNIT_BYTES,
            blocks_free: free / UNIT_BYTES,
            blocks_available: free / UNIT_BYTES,
            files: stats.inodes.saturating_add(files_free),
            files_free,
        })
    }
}

impl Volume {
    /// The attributes of an inode that a lookup found, its run included.
    fn fresh(&self, attr: Attr) -> Reply<Attr> {
        let core = self.shared.core.lock();
        if !core.runs.has(attr.ino) {
            return Ok(attr);
        }
        drop(core);
        self.getattr(attr.ino)
    }

    /// Lets go of an inode; if that was its last hold, it is no more.
    fn let_go(&self, ino: Ino, release: impl Fn(&mut State) -> bool) {
        let is_last = release(&mut self.shared.core.lock().state);
        if is_last {
            drop(self.shared.settled(ino));
            let dropped = self.shared.with_blocks(|core| {
                core.journal.check()?;
                let is_gone = core.state.is_held(ino) || core.state.attr(ino).is_err();
                if is_gone { Ok(()) } else { self.shared.record(core, &Op::Drop { ino }).map(drop) }
            });
            if let Err(errno) = dropped {
                tracing::warn!(ino, %errno, "an unlinked inode stays until the volume is opened again");
            }
        }
    }
}

fn referenced(state: &mut State, ino: Ino) -> Result<Attr, Stop> {
    let attr = state.attr(ino)?;
    state.reference(ino, 1);
    Ok(attr)
}
