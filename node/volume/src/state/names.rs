//! Questions about names: lookup, listing, parents, symlinks and extended attributes.

use remora_dag::hamt::name_hash;
use remora_dag::list::lookup;
use remora_vfs::attr::{Attr, DirEntry, Ino, Kind, ROOT_INO};
use remora_vfs::errno::Errno;

use crate::inode::{Body, Inode};
use crate::state::State;
use crate::state::pages::Page;
use crate::stop::Stop;
use crate::xattr::{XattrMap, Xattrs};

/// Entries of the base looked at in one step of a listing, so that a long run of removed names costs a bounded time.
const LIST_SCAN_MAX: usize = 1024;

/// A part of a directory listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listing {
    /// The entries; may be empty although there are more.
    pub entries: Vec<DirEntry>,
    /// The cookie to go on with; `None`: the directory ends here.
    pub next: Option<u64>,
}

/// A name in a listing before its inode is looked at.
struct Named {
    hash: u64,
    name: Vec<u8>,
    ino: Ino,
}

/// The cookie of a name: 63 bits of its hash, never 0.
pub(super) fn cookie_of(hash: u64) -> u64 {
    (hash >> 1).max(1)
}

impl State {
    /// The inode a name leads to.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`; [`Stop`].
    pub fn lookup(&mut self, parent: Ino, name: &[u8]) -> Result<Attr, Stop> {
        let ino = self.find(parent, name)?.ok_or(Errno::ENOENT)?;
        self.attr(ino)
    }

    /// The inode a name leads to, if there is one; it is in the table then.
    pub(crate) fn find(&mut self, parent: Ino, name: &[u8]) -> Result<Option<Ino>, Stop> {
        let inode = self.inode(parent)?;
        let Body::Directory(overlay) = &inode.body else { return Err(Errno::ENOTDIR.into()) };
        let base = inode.base.as_deref().map(|base| base.cid);
        if !overlay.is_empty()
            && let Some(slot) = overlay.get(name_hash(name), name)
        {
            let Some(ino) = slot.ino() else { return Ok(None) };
            self.ensure(ino)?;
            return Ok(Some(ino));
        }
        let Some(base) = base else { return Ok(None) };
        match lookup(&self.nodes, &base, name)? {
            None => Ok(None),
            Some(entry) => self.admit(parent, name, &entry).map(Some),
        }
    }

    /// The parent of a directory; the root is its own.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOENT` for a directory that has been removed; [`Stop`].
    pub fn parent(&mut self, ino: Ino) -> Result<Ino, Stop> {
        if ino == ROOT_INO {
            return Ok(ROOT_INO);
        }
        let inode = self.inode(ino)?;
        if inode.attr.kind != Kind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        inode.names.first().map(|(parent, _)| parent).ok_or(Errno::ENOENT.into())
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// `EINVAL` for anything else; [`Stop`].
    pub fn readlink(&mut self, ino: Ino) -> Result<Vec<u8>, Stop> {
        let inode = self.inode(ino)?;
        let Body::Symlink(target) = &inode.body else { return Err(Errno::EINVAL.into()) };
        if let Some(target) = target {
            return Ok(target.to_vec());
        }
        let Some(cid) = inode.base.as_deref().map(|base| base.cid) else { return Err(Errno::EIO.into()) };
        let target = self.nodes.symlink(&cid)?;
        self.loaded(ino)?.body = Body::Symlink(Some(target.as_ref().into()));
        Ok(target.to_vec())
    }

    /// The entries after `cookie` (0: from the start), at most about `max`.
    ///
    /// Entries come in the order of the hash of their names. An entry that is there during the whole walk is given
    /// exactly once. Names whose hashes agree in 63 bits, which takes an attacker to make, are always given together;
    /// a reader that stops between them is given them again.
    ///
    /// # Errors
    /// `ENOTDIR`; [`Stop`].
    pub fn readdir(&mut self, ino: Ino, cookie: u64, max: usize) -> Result<Listing, Stop> {
        let max = max.clamp(1, LIST_SCAN_MAX);
        let (named, next) = self.list(ino, cookie, max)?;
        let mut entries = Vec::with_capacity(named.len());
        for (i, entry) in named.iter().enumerate() {
            let attr = self.attr(entry.ino)?;
            let cookie = cookie_of(entry.hash);
            let is_last = named.get(i + 1).is_none_or(|next| cookie_of(next.hash) != cookie);
            let cookie = if is_last { cookie } else { (cookie - 1).max(1) };
            entries.push(DirEntry { name: entry.name.clone(), cookie, attr });
        }
        Ok(Listing { entries, next })
    }

    /// The names after `cookie`, base and overlay merged, in whole groups of equal cookies, and where to go on.
    fn list(&mut self, ino: Ino, cookie: u64, max: usize) -> Result<(Vec<Named>, Option<u64>), Stop> {
        self.trim();
        let inode = self.inode(ino)?;
        if inode.attr.kind != Kind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        let base = inode.base.as_deref().map(|base| base.cid);
        let Some(from) = first_hash_after(cookie) else { return Ok((Vec::new(), None)) };
        let Some(base) = base else {
            return Ok(self.list_changed(ino, from, None, max));
        };
        let mut page = self.pages.take((base, from, max));
        let listed = page.fill(&self.nodes).and_then(|()| self.list_page(ino, &page, max));
        if let Err(Stop::Need(_)) = &listed {
            self.pages.put(page);
        }
        listed
    }

    /// The names of a page of the base and those that lie over it.
    fn list_page(&mut self, ino: Ino, page: &Page, max: usize) -> Result<(Vec<Named>, Option<u64>), Stop> {
        let (mut named, upto) = self.list_changed(ino, page.from(), page.upto(), max);
        for (hash, entry) in page.entries() {
            let is_beyond = upto.is_some_and(|upto| cookie_of(*hash) > upto);
            let is_masked = self.loaded(ino)?.overlay().is_some_and(|o| o.get(*hash, &entry.name).is_some());
            if !is_beyond && !is_masked {
                let child = self.admit(ino, &entry.name, entry)?;
                named.push(Named { hash: *hash, name: entry.name.clone(), ino: child });
            }
        }
        named.sort_unstable_by(|a, b| (a.hash, &a.name).cmp(&(b.hash, &b.name)));
        Ok((named, upto))
    }

    /// The names that lie over the base, `max` at most, from a hash up to a cookie; and the cookie up to which these are all.
    fn list_changed(
        &self,
        ino: Ino,
        from: u64,
        mut upto: Option<u64>,
        max: usize,
    ) -> (Vec<Named>, Option<u64>) {
        let Some(overlay) = self.peek(ino).and_then(Inode::overlay) else { return (Vec::new(), upto) };
        let (mut named, mut last, mut n_scanned) = (Vec::new(), 0, 0);
        for (hash, slot) in overlay.iter_from(from) {
            let cookie = cookie_of(hash);
            if upto.is_some_and(|upto| cookie > upto) {
                break;
            }
            if n_scanned >= max && cookie != last {
                upto = Some(last);
                break;
            }
            (last, n_scanned) = (cookie, n_scanned + 1);
            if let Some(child) = slot.ino() {
                named.push(Named { hash, name: slot.name.to_vec(), ino: child });
            }
        }
        (named, upto)
    }

    /// The extended attributes of an inode.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn xattrs(&mut self, ino: Ino) -> Result<Option<&XattrMap>, Stop> {
        if let Xattrs::Block(cid) = &self.inode(ino)?.xattrs {
            let cid = **cid;
            let map = Xattrs::decode_block(&self.nodes.bytes(&cid)?).ok_or(Stop::Damaged { cid })?;
            self.loaded(ino)?.xattrs = Xattrs::Known(Box::new(map));
        }
        Ok(self.loaded(ino)?.xattrs.known())
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`; [`Stop`].
    pub fn getxattr(&mut self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Stop> {
        let value = self.xattrs(ino)?.and_then(|map| map.get(name));
        value.map(|value| value.to_vec()).ok_or(Errno::ENODATA.into())
    }

    /// All names of extended attributes, sorted.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn listxattr(&mut self, ino: Ino) -> Result<Vec<Vec<u8>>, Stop> {
        let map = self.xattrs(ino)?;
        Ok(map.map(|map| map.keys().map(|name| name.to_vec()).collect()).unwrap_or_default())
    }
}

/// The lowest hash whose cookie is above `cookie`.
fn first_hash_after(cookie: u64) -> Option<u64> {
    if cookie == 0 {
        return Some(0);
    }
    let next = cookie.checked_add(1)?;
    (next < 1 << 63).then_some(next << 1)
}
