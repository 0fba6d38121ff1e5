//! Operations that change names.

use remora_dag::hamt::name_hash;
use remora_vfs::attr::{Attr, Ino, Kind, ROOT_INO, Timestamp};
use remora_vfs::errno::Errno;

use crate::inode::{Body, DIR_SIZE, Inode, Names};
use crate::inomap::LINKS_MAX;
use crate::op::Op;
use crate::state::State;
use crate::state::acl::take_over;
use crate::state::apply::Applied;
use crate::state::changes::Changes;
use crate::stop::Stop;

/// A name and its directory.
type Place<'a> = (Ino, &'a [u8]);

impl State {
    /// Sees to it that `parent` is a directory that still has a place in the tree.
    fn check_parent(&mut self, parent: Ino) -> Result<(), Stop> {
        let attr = self.attr(parent)?;
        match (attr.kind, attr.nlink) {
            (Kind::Directory, 1..) => Ok(()),
            (Kind::Directory, 0) => Err(Stop::Refused("a name in a removed directory")),
            _ => Err(Stop::Refused("a name in what is not a directory")),
        }
    }

    /// Whether the operations since the base have made a name. Who planned one that makes it has looked into the base as
    /// well; to look again would be a block of a large directory for every file that is replayed.
    fn is_made(&self, parent: Ino, name: &[u8]) -> bool {
        let overlay = self.table.get(&parent).and_then(|inode| inode.overlay());
        overlay
            .and_then(|overlay| overlay.get(name_hash(name), name))
            .is_some_and(|slot| slot.ino().is_some())
    }

    /// Lets a name lead to an inode, in a directory that is in the table.
    fn put_name(&mut self, seq: u64, place: Place<'_>, ino: Ino, replaces: bool, time: Timestamp) {
        let frozen = self.frozen;
        self.edit(place.0, seq, |dir| {
            touch(dir, time);
            if !replaces {
                dir.data += 1;
            }
            if let Body::Directory(overlay) = &mut dir.body {
                overlay.set(name_hash(place.1), place.1, ino, seq, frozen, replaces);
            }
        });
    }

    /// Takes a name away, in a directory that is in the table.
    fn take_name(&mut self, seq: u64, place: Place<'_>, time: Timestamp) {
        let frozen = self.frozen;
        self.edit(place.0, seq, |dir| {
            touch(dir, time);
            dir.data = dir.data.saturating_sub(1);
            if let Body::Directory(overlay) = &mut dir.body {
                overlay.clear(name_hash(place.1), place.1, seq, frozen);
            }
        });
    }

    /// Counts a subdirectory of a directory in the table in or out.
    fn count_subdir(&mut self, parent: Ino, seq: u64, is_added: bool) {
        self.edit(parent, seq, |dir| {
            dir.attr.nlink = match is_added {
                true => dir.attr.nlink.saturating_add(1),
                false => dir.attr.nlink.saturating_sub(1),
            };
        });
    }

    pub(super) fn apply_make(&mut self, seq: u64, op: &Op<'_>) -> Result<Applied, Stop> {
        let Op::Make { parent, name, ino, kind, mode, uid, gid, rdev, target, time } = *op else {
            return Err(Stop::Refused("not a make"));
        };
        self.check_parent(parent)?;
        if ino < self.next_ino || self.is_made(parent, name) {
            return Err(Stop::Refused("a new inode or name that exists"));
        }
        let default = self.default_list(parent)?;
        let attr = Attr {
            ino,
            kind,
            mode: mode & 0o7777,
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev,
            size: match kind {
                Kind::Directory => DIR_SIZE,
                Kind::Symlink => target.len() as u64,
                _ => 0,
            },
            blocks: 0,
            mtime: time,
            ctime: time,
            btime: time,
        };
        let mut inode = Inode::new(attr, target, seq);
        inode.names = Names::One(parent, name.into());
        if let Some(default) = &default {
            take_over(&mut inode, default);
        }
        self.changes = self.changes + Changes::of(&inode);
        self.table.insert(ino, Box::new(inode));
        self.next_ino = ino + 1;
        self.stats.inodes += 1;
        self.put_name(seq, (parent, name), ino, false, time);
        if kind == Kind::Directory {
            self.count_subdir(parent, seq, true);
        }
        Ok(Applied::default())
    }

    pub(super) fn apply_link(
        &mut self,
        seq: u64,
        ino: Ino,
        place: Place<'_>,
        time: Timestamp,
    ) -> Result<Applied, Stop> {
        self.check_parent(place.0)?;
        let attr = self.attr(ino)?;
        if attr.kind == Kind::Directory || attr.nlink == 0 || attr.nlink >= LINKS_MAX {
            return Err(Stop::Refused("a link to what cannot have one"));
        }
        if self.is_made(place.0, place.1) {
            return Err(Stop::Refused("a link under a name that exists"));
        }
        self.edit(ino, seq, |inode| {
            inode.names.add(place.0, place.1);
            inode.attr.nlink += 1;
            inode.attr.ctime = time;
        });
        self.put_name(seq, place, ino, false, time);
        Ok(Applied::default())
    }

    pub(super) fn apply_remove(
        &mut self,
        seq: u64,
        ino: Ino,
        place: Place<'_>,
        time: Timestamp,
        is_dir: bool,
    ) -> Result<Applied, Stop> {
        if self.find(place.0, place.1)? != Some(ino) {
            return Err(Stop::Refused("a removed name that leads elsewhere"));
        }
        let inode = self.loaded(ino)?;
        if (inode.attr.kind == Kind::Directory) != is_dir || is_dir && inode.data != 0 {
            return Err(Stop::Refused("a removal of the wrong kind, or of a directory with entries"));
        }
        self.take_name(seq, place, time);
        Ok(Applied { orphaned: self.lose_name(seq, ino, place, time) })
    }

    /// An inode in the table loses a name; answers it if that leaves an orphan that nobody holds.
    fn lose_name(&mut self, seq: u64, ino: Ino, place: Place<'_>, time: Timestamp) -> Option<Ino> {
        let (is_dir, is_orphan) = self.edit(ino, seq, |inode| {
            inode.names.remove(place.0, place.1);
            inode.attr.ctime = time;
            let is_dir = inode.attr.kind == Kind::Directory;
            inode.attr.nlink = if is_dir { 0 } else { inode.attr.nlink.saturating_sub(1) };
            (is_dir, inode.attr.nlink == 0)
        })?;
        if is_dir {
            self.count_subdir(place.0, seq, false);
        }
        if !is_orphan {
            return None;
        }
        self.orphans.insert(ino);
        (!self.is_held(ino)).then_some(ino)
    }

    pub(super) fn apply_rename(&mut self, seq: u64, op: &Op<'_>) -> Result<Applied, Stop> {
        let Op::Rename { from_parent, from_name, to_parent, to_name, ino, replaced, exchange, time } = *op
        else {
            return Err(Stop::Refused("not a rename"));
        };
        let (from, to) = ((from_parent, from_name), (to_parent, to_name));
        self.check_parent(to_parent)?;
        let is_as_said = match replaced {
            Some(_) => self.find(to_parent, to_name)? == replaced,
            None => !self.is_made(to_parent, to_name),
        };
        if self.find(from_parent, from_name)? != Some(ino) || !is_as_said {
            return Err(Stop::Refused("renamed names that lead elsewhere"));
        }
        if replaced == Some(ino) || exchange && replaced.is_none() {
            return Err(Stop::Refused("a rename onto itself, or an exchange with nothing"));
        }
        self.check_moves(ino, from, replaced, to, exchange)?;
        let is_dir = self.loaded(ino)?.attr.kind == Kind::Directory;
        if exchange {
            if let Some(other) = replaced {
                self.exchange(seq, (from, ino), (to, other), time)?;
            }
            return Ok(Applied::default());
        }
        let orphaned = replaced.and_then(|old| self.lose_name(seq, old, to, time));
        self.take_name(seq, from, time);
        self.put_name(seq, to, ino, replaced.is_some(), time);
        self.move_name(seq, ino, from, to, time);
        if is_dir && from_parent != to_parent {
            self.count_subdir(from_parent, seq, false);
            self.count_subdir(to_parent, seq, true);
        }
        Ok(Applied { orphaned })
    }

    /// Checks that a rename neither closes a loop nor replaces what it must not.
    fn check_moves(
        &mut self,
        ino: Ino,
        from: Place<'_>,
        replaced: Option<Ino>,
        to: Place<'_>,
        exchange: bool,
    ) -> Result<(), Stop> {
        let is_dir = self.loaded(ino)?.attr.kind == Kind::Directory;
        if is_dir && self.is_within(to.0, ino)? {
            return Err(Stop::Refused("a directory below itself"));
        }
        let Some(other) = replaced else { return Ok(()) };
        let other_inode = self.loaded(other)?;
        let is_other_dir = other_inode.attr.kind == Kind::Directory;
        if exchange {
            if is_other_dir && self.is_within(from.0, other)? {
                return Err(Stop::Refused("a directory below itself"));
            }
        } else if is_dir != is_other_dir || is_other_dir && other_inode.data != 0 {
            return Err(Stop::Refused("a rename over a directory with entries, or over another kind"));
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        seq: u64,
        one: (Place<'_>, Ino),
        two: (Place<'_>, Ino),
        time: Timestamp,
    ) -> Result<(), Stop> {
        let is_dir = |state: &mut State, ino| state.loaded(ino).map(|i| i.attr.kind == Kind::Directory);
        let (is_one_dir, is_two_dir) = (is_dir(self, one.1)?, is_dir(self, two.1)?);
        self.put_name(seq, one.0, two.1, true, time);
        self.put_name(seq, two.0, one.1, true, time);
        self.move_name(seq, one.1, one.0, two.0, time);
        self.move_name(seq, two.1, two.0, one.0, time);
        if one.0.0 != two.0.0 && is_one_dir != is_two_dir {
            self.count_subdir(one.0.0, seq, is_two_dir);
            self.count_subdir(two.0.0, seq, is_one_dir);
        }
        Ok(())
    }

    fn move_name(&mut self, seq: u64, ino: Ino, from: Place<'_>, to: Place<'_>, time: Timestamp) {
        let is_dir = self.edit(ino, seq, |inode| {
            inode.names.remove(from.0, from.1);
            inode.names.add(to.0, to.1);
            inode.attr.ctime = time;
            inode.attr.kind == Kind::Directory
        });
        if is_dir == Some(true) {
            self.dirs_moved_seq = seq;
        }
    }

    /// Whether directory `dir` is `top` or lies below it.
    pub(crate) fn is_within(&mut self, dir: Ino, top: Ino) -> Result<bool, Stop> {
        let mut at = dir;
        while at != ROOT_INO {
            if at == top {
                return Ok(true);
            }
            at = match self.parent(at) {
                Err(Stop::Errno(Errno::ENOENT)) => return Ok(false),
                answer => answer?,
            };
        }
        Ok(top == ROOT_INO)
    }
}

/// The names of a directory have changed.
fn touch(dir: &mut Inode, time: Timestamp) {
    dir.attr.mtime = time;
    dir.attr.ctime = time;
}
