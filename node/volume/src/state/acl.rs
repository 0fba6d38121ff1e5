//! Access lists and modes say the same: what an operation does to one it does to the other.
//!
//! The rules are those of [`remora_vfs::acl`]; they are part of what an operation means, so every replay keeps them. Callers have
//! read the attributes of the inode if they are in a block.

use remora_vfs::acl::{ACCESS, Acl, DEFAULT};
use remora_vfs::attr::{Ino, Kind};

use crate::inode::Inode;
use crate::state::State;
use crate::stop::Stop;

impl State {
    /// The default list of a directory.
    pub(crate) fn default_list(&mut self, dir: Ino) -> Result<Option<Acl>, Stop> {
        let value = self.xattrs(dir)?.and_then(|map| map.get(DEFAULT));
        value
            .map(|value| Acl::parse(value).ok_or(Stop::Refused("a default list that is not sound")))
            .transpose()
    }
}

/// Sets an attribute; an access list sets the mode too, and is kept only if the mode does not say all of it. `None`, and nothing has
/// changed, if it is no sound list.
pub(super) fn set_xattr(inode: &mut Inode, name: &[u8], value: &[u8]) -> Option<()> {
    if name != ACCESS {
        inode.xattrs.set(name, value);
        return Some(());
    }
    let list = Acl::parse(value)?;
    inode.attr.mode = inode.attr.mode & !0o777 | list.mode();
    if list.is_mode() {
        inode.xattrs.remove(name);
    } else {
        inode.xattrs.set(name, value);
    }
    Some(())
}

/// The access list follows a new mode.
pub(super) fn change_access_list(inode: &mut Inode, mode: u16) {
    let list = inode.xattrs.known().and_then(|map| Acl::parse(map.get(ACCESS)?));
    if let Some(list) = list {
        inode.xattrs.set(ACCESS, &list.with_mode(mode).encode());
    }
}

/// A new inode takes over the default list of its directory.
pub(super) fn take_over(inode: &mut Inode, default: &Acl) {
    if inode.attr.kind == Kind::Symlink {
        return;
    }
    if inode.attr.kind == Kind::Directory {
        inode.xattrs.set(DEFAULT, &default.encode());
    }
    let access = default.clone().inherited(inode.attr.mode);
    // What was just encoded is sound.
    let _ = set_xattr(inode, ACCESS, &access.encode());
}
