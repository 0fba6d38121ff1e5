//! Rename: checks in the order Linux makes them, then the change, which cannot fail.

use crate::attr::{Ino, Kind, Timestamp};
use crate::errno::Errno;
use crate::filesystem::{RenameMode, Reply};
use crate::memfs::nodes::State;

/// A directory and a name in it.
type Place<'a> = (Ino, &'a [u8]);

impl State {
    /// See [`crate::filesystem::Filesystem::rename`]; the names are checked already.
    pub(super) fn rename(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
        now: Timestamp,
    ) -> Reply<()> {
        let source = self.directory(from.0)?.get(from.1).ok_or(Errno::ENOENT)?;
        let target = self.live_directory(to.0)?.get(to.1);
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        if self.is_within(to.0, source) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target {
            if self.is_within(from.0, target) {
                let is_exchange = mode == RenameMode::Exchange;
                return Err(if is_exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
            }
            if source == target {
                return Ok(());
            }
            if mode == RenameMode::Exchange {
                return self.exchange((from, source), (to, target), now);
            }
            self.check_replace(source, target)?;
        }
        self.replace((from, source), (to, target), now)
    }

    /// Whether Linux lets `source` take the place of `target`.
    fn check_replace(&self, source: Ino, target: Ino) -> Reply<()> {
        match (self.is_directory(source), self.is_directory(target)) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !self.directory(target)?.is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    fn replace(
        &mut self,
        (from, source): (Place<'_>, Ino),
        (to, target): (Place<'_>, Option<Ino>),
        now: Timestamp,
    ) -> Reply<()> {
        self.remove_name(from.0, from.1, now)?;
        self.set_name(to.0, to.1, source, now)?;
        self.node_mut(source)?.ctime = now;
        if self.is_directory(source) {
            self.node_mut(from.0)?.nlink -= 1;
            self.node_mut(to.0)?.nlink += 1;
        }
        if let Some(target) = target {
            if self.is_directory(target) {
                self.node_mut(to.0)?.nlink -= 1;
            }
            self.drop_link(target, now);
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        (from, source): (Place<'_>, Ino),
        (to, target): (Place<'_>, Ino),
        now: Timestamp,
    ) -> Reply<()> {
        self.set_name(from.0, from.1, target, now)?;
        self.set_name(to.0, to.1, source, now)?;
        for ino in [source, target] {
            self.node_mut(ino)?.ctime = now;
        }
        for (is_directory, leaves, enters) in
            [(self.is_directory(source), from.0, to.0), (self.is_directory(target), to.0, from.0)]
        {
            if is_directory {
                self.node_mut(leaves)?.nlink -= 1;
                self.node_mut(enters)?.nlink += 1;
            }
        }
        Ok(())
    }

    fn is_directory(&self, ino: Ino) -> bool {
        self.node(ino).is_ok_and(|node| node.kind == Kind::Directory)
    }
}
