//! The words the checks are written in.

use crate::attr::{Attr, Ino, NewNode, ROOT_INO, SetAttr, Timestamp};
use crate::errno::Errno;
use crate::filesystem::{Caller, Filesystem, RenameMode, Reply};
use std::fmt::Debug;

/// The owner of what [`Scene::make`] makes.
pub(super) const CALLER: Caller = Caller { uid: 1000, gid: 1001 };

/// The `n`th moment of a check.
pub(super) fn at(n: i64) -> Timestamp {
    Timestamp(1_700_000_000_123_456_789 + n * 1_000_000_007)
}

/// The value of an operation that must work.
#[track_caller]
pub(super) fn ok<T>(reply: Reply<T>) -> T {
    match reply {
        Ok(value) => value,
        Err(errno) => panic!("should have worked: {errno}"),
    }
}

/// An operation must fail with one of these.
#[track_caller]
pub(super) fn fails<T: Debug>(reply: Reply<T>, errnos: &[Errno]) {
    match reply {
        Ok(value) => panic!("should have failed with {errnos:?}: {value:?}"),
        Err(errno) => assert!(errnos.contains(&errno), "failed with {errno} in place of {errnos:?}"),
    }
}

/// The errors of an inode that is gone.
pub(super) const GONE: &[Errno] = &[Errno::ENOENT, Errno::ESTALE];

/// A file system with the shorthand checks need.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a>(pub(super) &'a dyn Filesystem);

impl Scene<'_> {
    #[track_caller]
    pub(super) fn make(&self, parent: Ino, name: &str, node: &NewNode) -> Ino {
        ok(self.0.make(CALLER, parent, name.as_bytes(), node, 0o644, at(0))).ino
    }

    #[track_caller]
    pub(super) fn file(&self, name: &str) -> Ino {
        self.make(ROOT_INO, name, &NewNode::File)
    }

    /// A file that holds `data`, written at moment 0.
    #[track_caller]
    pub(super) fn file_of(&self, name: &str, data: &[u8]) -> Ino {
        let ino = self.file(name);
        self.write(ino, 0, data);
        ino
    }

    #[track_caller]
    pub(super) fn directory(&self, name: &str) -> Ino {
        self.directory_in(ROOT_INO, name)
    }

    #[track_caller]
    pub(super) fn directory_in(&self, parent: Ino, name: &str) -> Ino {
        self.make(parent, name, &NewNode::Directory)
    }

    #[track_caller]
    pub(super) fn attr(&self, ino: Ino) -> Attr {
        ok(self.0.getattr(ino))
    }

    /// What a name leads to; keeps no reference.
    #[track_caller]
    pub(super) fn find(&self, parent: Ino, name: &str) -> Option<Ino> {
        match self.0.lookup(parent, name.as_bytes()) {
            Ok(attr) => {
                self.0.forget(attr.ino, 1);
                Some(attr.ino)
            }
            Err(errno) => {
                assert_eq!(errno, Errno::ENOENT, "lookup of {name}");
                None
            }
        }
    }

    #[track_caller]
    pub(super) fn write(&self, ino: Ino, offset: u64, data: &[u8]) {
        ok(self.0.write(ino, offset, data, at(0)));
    }

    #[track_caller]
    pub(super) fn read(&self, ino: Ino, offset: u64, len: usize) -> Vec<u8> {
        ok(self.0.read(ino, offset, len))
    }

    #[track_caller]
    pub(super) fn truncate(&self, ino: Ino, size: u64) {
        ok(self.0.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }, at(0)));
    }

    pub(super) fn unlink(&self, parent: Ino, name: &str) -> Reply<()> {
        self.0.unlink(parent, name.as_bytes(), at(1))
    }

    pub(super) fn rmdir(&self, parent: Ino, name: &str) -> Reply<()> {
        self.0.rmdir(parent, name.as_bytes(), at(1))
    }

    pub(super) fn rename(&self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Reply<()> {
        self.0.rename((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()), mode, at(2))
    }

    /// All names of a directory, in listing order.
    #[track_caller]
    pub(super) fn list(&self, ino: Ino) -> Vec<String> {
        let mut names = Vec::new();
        ok(self.0.readdir(ino, 0, &mut |entry| {
            names.push(String::from_utf8_lossy(&entry.name).into_owned());
            true
        }));
        names
    }
}

/// Bytes that differ from their neighbours and from other salts.
pub(super) fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i / 251 % 256) as u8 ^ salt).collect()
}
