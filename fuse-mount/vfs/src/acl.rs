//! POSIX access control lists: what they say, and how they go together with a mode.
//!
//! A list is the value of an extended attribute, in the form the kernel has for it (`linux/posix_acl_xattr.h`): version 2 in
//! 32 bits, then entries of tag, permissions (16 bits each) and id (32 bits), all little-endian. Who may do what is for
//! the kernel to say; here are the two rules a file system has to keep, after `fs/posix_acl.c` and draft 17 of POSIX 1003.1e:
//! the access list and the mode always say the same, and a new node takes over the default list of its directory.

use crate::attr::Kind;
use crate::errno::Errno;
use crate::filesystem::Reply;

/// The attribute that says who may use an inode.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

/// The attribute of a directory that says what new nodes in it begin with.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// The most entries of a list.
pub const ENTRIES_MAX: usize = 1024;

const VERSION: [u8; 4] = 2u32.to_le_bytes();
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// One line of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A sound list: entries in the order owner, users, group, groups, mask, others; a mask if anybody is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Reads a value; `None` if it is not sound or has more than [`ENTRIES_MAX`] entries.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Acl> {
        let body = value.strip_prefix(&VERSION)?;
        if !body.len().is_multiple_of(ENTRY_BYTES) || body.len() > ENTRIES_MAX * ENTRY_BYTES {
            return None;
        }
        let mut entries = Vec::with_capacity(body.len() / ENTRY_BYTES);
        for bytes in body.chunks_exact(ENTRY_BYTES) {
            let [a, b, c, d, e, f, g, h] = <[u8; ENTRY_BYTES]>::try_from(bytes).ok()?;
            let (tag, perm) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            entries.push(Entry { tag, perm, id: u32::from_le_bytes([e, f, g, h]) });
        }
        let acl = Acl { entries };
        acl.is_sound().then_some(acl)
    }

    /// The value it is kept as.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_vec();
        for entry in &self.entries {
            value.extend(entry.tag.to_le_bytes());
            value.extend(entry.perm.to_le_bytes());
            value.extend(entry.id.to_le_bytes());
        }
        value
    }

    fn is_sound(&self) -> bool {
        let tags = self.entries.iter().map(|entry| entry.tag);
        let in_order = tags.clone().zip(tags.clone().skip(1)).all(|(one, next)| {
            // Only users and groups come more than once.
            one < next || one == next && matches!(one, USER | GROUP)
        });
        let count = |tag| tags.clone().filter(|t| *t == tag).count();
        let is_known = |tag| matches!(tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER);
        let names_somebody = count(USER) + count(GROUP) > 0;
        in_order
            && self.entries.iter().all(|entry| is_known(entry.tag) && entry.perm <= 7)
            && [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
            && (count(MASK) == 1 || !names_somebody)
    }

    /// The permissions of an entry that comes once.
    fn perm(&mut self, tag: u16) -> Option<&mut u16> {
        self.entries.iter_mut().find(|entry| entry.tag == tag).map(|entry| &mut entry.perm)
    }

    /// The entry that the group bits of the mode stand for.
    fn group_tag(&self) -> u16 {
        if self.entries.iter().any(|entry| entry.tag == MASK) { MASK } else { GROUP_OBJ }
    }

    /// Whether the nine bits of a mode say all that it says.
    #[must_use]
    pub fn is_mode(&self) -> bool {
        self.entries.len() == 3
    }

    /// The nine bits of a mode it stands for: those of the group are the mask's if there is one.
    #[must_use]
    pub fn mode(&self) -> u16 {
        let group = self.group_tag();
        self.entries.iter().fold(0, |mode, entry| match entry.tag {
            USER_OBJ => mode | entry.perm << 6,
            OTHER => mode | entry.perm,
            tag if tag == group => mode | entry.perm << 3,
            _ => mode,
        })
    }

    /// The list after a `chmod`.
    #[must_use]
    pub fn with_mode(mut self, mode: u16) -> Acl {
        for (tag, shift) in [(USER_OBJ, 6), (self.group_tag(), 3), (OTHER, 0)] {
            if let Some(perm) = self.perm(tag) {
                *perm = mode >> shift & 7;
            }
        }
        self
    }

    /// The access list of a new node that is asked for with `mode`, in a directory with this default list: nobody gets more than
    /// both say. Taken over again with the mode it stands for, it stays as it is.
    #[must_use]
    pub fn inherited(mut self, mode: u16) -> Acl {
        for (tag, shift) in [(USER_OBJ, 6), (self.group_tag(), 3), (OTHER, 0)] {
            if let Some(perm) = self.perm(tag) {
                *perm &= mode >> shift & 7;
            }
        }
        self
    }
}

/// Whether an extended attribute is a list.
#[must_use]
pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// Checks that an inode of this kind can have this list.
///
/// # Errors
/// `EINVAL` for what is not a sound list, `ENOSPC` for more than [`ENTRIES_MAX`] entries, `EOPNOTSUPP` for a symlink,
/// `EACCES` for a default list of what is not a directory.
pub fn check(kind: Kind, name: &[u8], value: &[u8]) -> Reply<()> {
    if kind == Kind::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    if name == DEFAULT && kind != Kind::Directory {
        return Err(Errno::EACCES);
    }
    if value.len() > VERSION.len() + ENTRIES_MAX * ENTRY_BYTES {
        return Err(Errno::ENOSPC);
    }
    Acl::parse(value).map(drop).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::{ACCESS, Acl, DEFAULT, ENTRIES_MAX, GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, check};
    use crate::attr::Kind;
    use crate::errno::Errno;
    use proptest::prelude::{any, prop, proptest};

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries = entries.iter().flat_map(|(tag, perm, id)| {
            [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
        });
        2u32.to_le_bytes().into_iter().chain(entries).collect()
    }

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl::parse(&value(entries)).unwrap()
    }

    #[test]
    fn the_mask_is_what_the_group_bits_say() {
        let named = [(USER_OBJ, 6, 0), (USER, 7, 5), (GROUP_OBJ, 4, 0), (MASK, 5, 0), (OTHER, 1, 0)];
        let acl = acl(&named);
        assert_eq!((acl.mode(), acl.is_mode()), (0o651, false));
        let after = acl.with_mode(0o724);
        let expected = [(USER_OBJ, 7, 0), (USER, 7, 5), (GROUP_OBJ, 4, 0), (MASK, 2, 0), (OTHER, 4, 0)];
        assert_eq!(after.encode(), value(&expected));
    }

    #[test]
    fn without_a_mask_the_group_is_the_group() {
        let acl = acl(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]);
        assert_eq!((acl.mode(), acl.is_mode()), (0o640, true));
        assert_eq!(acl.with_mode(0o7).mode(), 0o7);
    }

    #[test]
    fn nobody_inherits_more_than_was_asked_for() {
        let default = acl(&[(USER_OBJ, 7, 0), (USER, 7, 5), (GROUP_OBJ, 5, 0), (MASK, 7, 0), (OTHER, 5, 0)]);
        let new = default.inherited(0o640);
        let expected = [(USER_OBJ, 6, 0), (USER, 7, 5), (GROUP_OBJ, 5, 0), (MASK, 4, 0), (OTHER, 0, 0)];
        assert_eq!((new.encode(), new.mode()), (value(&expected), 0o640));
    }

    #[test]
    fn what_is_not_sound_is_refused() {
        let (user, group, other) = ((USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (OTHER, 7, 0));
        for entries in [
            &[][..],
            &[user, group],
            &[group, user, other],
            &[user, group, group, other],
            &[user, (USER, 7, 1), group, other],
            &[user, (GROUP, 7, 1), group, (MASK, 7, 0), other],
            &[user, group, (MASK, 7, 0), (MASK, 7, 0), other],
            &[user, group, (OTHER, 8, 0)],
            &[user, group, other, (0x40, 0, 0)],
        ] {
            assert_eq!(check(Kind::File, ACCESS, &value(entries)), Err(Errno::EINVAL), "{entries:?}");
        }
        let minimal = value(&[user, group, other]);
        assert_eq!(check(Kind::File, ACCESS, &minimal), Ok(()));
        assert_eq!(check(Kind::File, ACCESS, &minimal[..minimal.len() - 1]), Err(Errno::EINVAL));
        assert_eq!(check(Kind::File, DEFAULT, &minimal), Err(Errno::EACCES));
        assert_eq!(check(Kind::Symlink, ACCESS, &minimal), Err(Errno::EOPNOTSUPP));
        let many: Vec<_> = (0..ENTRIES_MAX as u32).map(|id| (USER, 7, id)).collect();
        let many = [&[user][..], &many, &[group, (MASK, 7, 0), other]].concat();
        assert_eq!(check(Kind::Directory, DEFAULT, &value(&many)), Err(Errno::ENOSPC));
    }

    proptest! {
        #[test]
        fn taken_over_twice_is_taken_over_once(
            named in prop::collection::vec((0u16..8, any::<u32>()), 0..4),
            perms in [0u16..8, 0..8, 0..8, 0..8],
            mode in 0u16..0o1000,
        ) {
            let mut entries = vec![(USER_OBJ, perms[0], 0)];
            entries.extend(named.iter().map(|(perm, id)| (USER, *perm, *id)));
            entries.push((GROUP_OBJ, perms[1], 0));
            if !named.is_empty() {
                entries.push((MASK, perms[2], 0));
            }
            entries.push((OTHER, perms[3], 0));
            let once = acl(&entries).inherited(mode);
            assert_eq!(once.mode() & !mode, 0);
            assert_eq!(once.clone().inherited(once.mode()), once);
            assert_eq!(once.clone().with_mode(once.mode()), once);
            assert_eq!(Acl::parse(&once.encode()), Some(once));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(acl) = Acl::parse(&bytes) {
                assert_eq!(acl.encode(), bytes);
            }
        }
    }
}
