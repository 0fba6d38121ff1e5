//! A volume without durability: the pure state behind the file system trait, a log in memory, and blocks in memory. It
//! can replay itself and change its base, which is all the tests need to hold the state to its rules.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use remora_dag::block::{Block, BlockSink, BlockSource, Codec, MemBlocks};
use remora_vfs::attr::{Attr, DirEntry, Ino, NewNode, SetAttr, StatFs, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Allocate, Caller, Done, Filesystem, RenameMode, Reply, Seek, XattrMode};
use remora_volume::derive::{Derived, InlineError, InlineReader, derive};
use remora_volume::op::{Op, decode_all};
use remora_volume::state::State;
use remora_volume::state::content::From as PieceFrom;
use remora_volume::stop::Stop;
use remora_volume::tree::{Tree, genesis};

/// The operations of commits by number.
#[derive(Clone, Default)]
pub struct Log(pub BTreeMap<u64, Vec<u8>>);

impl InlineReader for Log {
    fn read(&self, seq: u64, offset: u64, len: u64) -> Result<Bytes, InlineError> {
        let ops = self.0.get(&seq).ok_or(InlineError::Missing { seq })?;
        let range = offset as usize..(offset + len) as usize;
        ops.get(range).map(Bytes::copy_from_slice).ok_or(InlineError::Missing { seq })
    }
}

pub struct Core {
    pub state: State,
    pub log: Log,
    /// The commit that is open.
    pub seq: u64,
    pub base: Tree,
    pub base_seq: u64,
    pub rebase: Option<(Derived, u64)>,
}

pub struct Rig {
    pub blocks: MemBlocks,
    n_supplied: AtomicUsize,
    core: Mutex<Core>,
}

/// Asks until nothing is needed any more.
pub fn ask<T>(
    blocks: &MemBlocks,
    state: &mut State,
    mut question: impl FnMut(&mut State) -> Result<T, Stop>,
) -> Result<T, Stop> {
    loop {
        match question(state) {
            Err(Stop::Need(cid)) => state.supply(&cid, blocks.get(&cid).expect("a block of the base")),
            answer => return answer,
        }
    }
}

fn errno(stop: &Stop) -> Errno {
    match stop {
        Stop::Errno(errno) => *errno,
        other => panic!("{other}"),
    }
}

impl Rig {
    pub fn new() -> Rig {
        let blocks = MemBlocks::new();
        let (tree, made) = genesis(0, 0, 0o755, Timestamp(0)).unwrap();
        for block in made {
            blocks.put(block).unwrap();
        }
        let state = Rig::open_state(&blocks, &tree);
        let core = Core { state, log: Log::default(), seq: 1, base: tree, base_seq: 0, rebase: None };
        Rig { blocks, n_supplied: AtomicUsize::new(0), core: Mutex::new(core) }
    }

    fn open_state(blocks: &MemBlocks, tree: &Tree) -> State {
        let block = tree.to_block();
        let tree = Tree::decode(block.cid(), block.bytes()).unwrap();
        let mut state = State::open(tree);
        ask(blocks, &mut state, State::ready).unwrap();
        state
    }

    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap()
    }

    fn ask<T>(&self, question: impl FnMut(&mut State) -> Result<T, Stop>) -> Reply<T> {
        ask(&self.blocks, &mut self.core().state, question).map_err(|stop| errno(&stop))
    }

    /// Blocks that planned operations and replays needed so far.
    pub fn n_supplied(&self) -> usize {
        self.n_supplied.load(Ordering::Relaxed)
    }

    /// Plans and applies one operation.
    fn run<'a>(&self, mut plan: impl FnMut(&mut State) -> Result<Option<Op<'a>>, Stop>) -> Reply<()> {
        let mut core = self.core();
        let counted = |state: &mut State| {
            plan(state).inspect_err(|stop| {
                let is_need = matches!(stop, Stop::Need(_));
                self.n_supplied.fetch_add(usize::from(is_need), Ordering::Relaxed);
            })
        };
        let planned = ask(&self.blocks, &mut core.state, counted).map_err(|stop| errno(&stop))?;
        match planned {
            Some(op) => self.commit(&mut core, &op),
            None => Ok(()),
        }
    }

    fn commit(&self, core: &mut Core, op: &Op<'_>) -> Reply<()> {
        let seq = core.seq;
        let batch = core.log.0.entry(seq).or_default();
        let at = op.encode(batch);
        let applied = ask(&self.blocks, &mut core.state, |state| {
            let applied = state.apply(seq, at.data_offset, op);
            let is_need = matches!(applied, Err(Stop::Need(_)));
            self.n_supplied.fetch_add(usize::from(is_need), Ordering::Relaxed);
            applied
        });
        let applied = applied.expect("a planned operation applies");
        if let Some(ino) = applied.orphaned {
            self.commit(core, &Op::Drop { ino })?;
        }
        Ok(())
    }

    pub fn drop_orphan(&self, ino: Ino, is_due: bool) {
        if is_due {
            self.commit(&mut self.core(), &Op::Drop { ino }).unwrap();
        }
    }

    /// The inode a name leads to, without a reference.
    pub fn ask_lookup(&self, parent: Ino, name: &[u8]) -> Ino {
        self.ask(|state| state.lookup(parent, name)).unwrap().ino
    }

    /// Writes a whole block by reference.
    pub fn write_ref(&self, ino: Ino, offset: u64, data: &[u8], now: Timestamp) -> Reply<()> {
        let block = Block::seal(Codec::Raw, Bytes::copy_from_slice(data));
        let cid = *block.cid();
        self.blocks.put(block).unwrap();
        self.run(|state| state.plan_write_ref(ino, offset, data.len() as u64, &cid, now).map(Some))
    }

    /// Ends the open commit.
    pub fn cut(&self) {
        let mut core = self.core();
        if core.log.0.contains_key(&core.seq) {
            core.seq += 1;
        }
    }

    /// The state that a replay of the log up to a commit gives.
    pub fn replay(&self, upto: u64) -> State {
        let core = self.core();
        let mut state = Rig::open_state(&self.blocks, &core.base);
        for (seq, ops) in core.log.0.range(core.base_seq + 1..upto + 1) {
            for decoded in decode_all(ops) {
                let (op, at) = decoded.unwrap();
                let counted = |state: &mut State| {
                    state.apply(*seq, at, &op).inspect_err(|stop| {
                        let is_need = matches!(stop, Stop::Need(_));
                        self.n_supplied.fetch_add(usize::from(is_need), Ordering::Relaxed);
                    })
                };
                ask(&self.blocks, &mut state, counted).unwrap();
            }
        }
        state
    }

    /// Derives the tree of everything so far and starts to take it over.
    pub fn checkpoint(&self) -> bool {
        self.cut();
        let upto = self.core().seq - 1;
        if upto <= self.core().base_seq || self.core().rebase.is_some() {
            return false;
        }
        self.core().state.freeze(upto).unwrap();
        let shadow = self.replay(upto);
        let derived = self.derive(&shadow);
        self.core().rebase = Some((derived, upto));
        true
    }

    pub fn derive(&self, shadow: &State) -> Derived {
        let log = self.core().log.clone();
        derive(shadow, &self.blocks, &self.blocks, &log).unwrap()
    }

    /// Goes on with taking over.
    pub fn rebase(&self, max_items: usize) -> bool {
        let mut core = self.core();
        let Some((derived, upto)) = core.rebase.take() else { return true };
        let is_done = core.state.rebase(&derived, upto, max_items).unwrap();
        if is_done {
            (core.base, core.base_seq) = (derived.tree, upto);
            let oldest = core.state.oldest_copied().unwrap_or(u64::MAX).min(upto + 1);
            core.log.0.retain(|seq, _| *seq >= oldest);
        } else {
            core.rebase = Some((derived, upto));
        }
        is_done
    }

    /// Crashes and comes back: orphans are dropped, as nobody holds them any more.
    pub fn reopen(&self) {
        self.cut();
        let upto = self.core().seq - 1;
        let state = self.replay(upto);
        let orphans: Vec<Ino> = state.orphans().collect();
        let mut core = self.core();
        core.state = state;
        core.rebase = None;
        for ino in orphans {
            self.commit(&mut core, &Op::Drop { ino }).unwrap();
        }
    }
}

impl Filesystem for Rig {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Reply<Attr> {
        remora_volume::plan::check_name(name)?;
        let attr = self.ask(|state| state.lookup(parent, name))?;
        self.core().state.reference(attr.ino, 1);
        Ok(attr)
    }

    fn forget(&self, ino: Ino, n: u64) {
        let is_due = self.core().state.forget(ino, n);
        self.drop_orphan(ino, is_due);
    }

    fn getattr(&self, ino: Ino) -> Reply<Attr> {
        self.ask(|state| state.attr(ino))
    }

    fn setattr(&self, ino: Ino, change: &SetAttr, now: Timestamp) -> Reply<Attr> {
        self.run(|state| state.plan_setattr(ino, change, now))?;
        self.getattr(ino)
    }

    fn readlink(&self, ino: Ino) -> Reply<Vec<u8>> {
        self.ask(|state| state.readlink(ino))
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
        self.run(|state| state.plan_make(caller, (parent, name), node, mode, now).map(Some))?;
        self.lookup(parent, name)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Timestamp) -> Reply<Attr> {
        self.run(|state| state.plan_link(ino, parent, name, now).map(Some))?;
        self.lookup(parent, name)
    }

    fn unlink(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.run(|state| state.plan_unlink(parent, name, now).map(Some))
    }

    fn rmdir(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.run(|state| state.plan_rmdir(parent, name, now).map(Some))
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode, now: Timestamp) -> Reply<()> {
        self.run(|state| state.plan_rename(from, to, mode, now))
    }

    fn open(&self, ino: Ino) -> Reply<()> {
        self.ask(|state| state.attr(ino))?;
        self.core().state.open_handle(ino);
        Ok(())
    }

    fn release(&self, ino: Ino) {
        let is_due = self.core().state.release(ino);
        self.drop_orphan(ino, is_due);
    }

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Reply<Vec<u8>> {
        let pieces = self.ask(|state| state.read_plan(ino, offset, len as u64))?;
        let mut out = Vec::new();
        for piece in pieces {
            let len = piece.len as usize;
            match piece.from {
                PieceFrom::Zero => out.resize(out.len() + len, 0),
                PieceFrom::Inline { seq, offset } => {
                    out.extend_from_slice(&self.core().log.read(seq, offset, piece.len).unwrap());
                }
                PieceFrom::Block { cid, offset } => {
                    let bytes = self.blocks.get_range(&cid, offset, len).unwrap();
                    assert_eq!(bytes.len(), len, "a piece lies within its block");
                    out.extend_from_slice(&bytes);
                }
            }
        }
        Ok(out)
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], now: Timestamp) -> Reply<()> {
        self.run(|state| state.plan_write(ino, offset, data, now))
    }

    fn fsync(&self, ino: Ino, _data_only: bool, done: Done) {
        done(self.getattr(ino).map(|_| ()));
    }

    fn allocate(&self, ino: Ino, how: Allocate, offset: u64, len: u64, now: Timestamp) -> Reply<()> {
        self.run(|state| state.plan_allocate(ino, how, offset, len, now).map(Some))
    }

    fn seek(&self, ino: Ino, what: Seek, offset: u64) -> Reply<u64> {
        self.ask(|state| state.seek(ino, what, offset))
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64, now: Timestamp) -> Reply<u64> {
        let mut copied = 0;
        self.run(|state| {
            let planned = state.plan_clone(from, to, len, now)?;
            copied = planned.as_ref().map_or(0, |(_, len)| *len);
            Ok(planned.map(|(op, _)| op))
        })?;
        Ok(copied)
    }

    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Reply<()> {
        let mut cookie = cookie;
        loop {
            let listing = self.ask(|state| state.readdir(ino, cookie, 3))?;
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
        self.ask(|state| state.attr(ino)).map_err(|_| Errno::ENOENT)?;
        self.core().state.reference(ino, 1);
        Ok(())
    }

    fn parent(&self, ino: Ino) -> Reply<Ino> {
        self.ask(|state| state.parent(ino))
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Reply<Vec<u8>> {
        self.ask(|state| state.getxattr(ino, name))
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode, now: Timestamp) -> Reply<()> {
        self.run(|state| state.plan_setxattr(ino, name, value, mode, now).map(Some))
    }

    fn listxattr(&self, ino: Ino) -> Reply<Vec<Vec<u8>>> {
        self.ask(|state| state.listxattr(ino))
    }

    fn removexattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.run(|state| state.plan_removexattr(ino, name, now))
    }

    fn statfs(&self) -> Reply<StatFs> {
        let stats = self.core().state.stats();
        let blocks = 1 << 40;
        let used = stats.bytes.div_ceil(4096);
        Ok(StatFs {
            blocks,
            blocks_free: blocks - used,
            blocks_available: blocks - used,
            files: 1 << 40,
            files_free: (1 << 40) - stats.inodes,
        })
    }
}
