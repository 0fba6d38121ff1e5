//! A tree as a user sees it: everything but the numbers of inodes.

use std::collections::BTreeMap;

use remora_vfs::attr::{Attr, Ino, Kind, ROOT_INO};
use remora_vfs::filesystem::{Filesystem, Seek};

/// A path from the root, the root itself being empty.
pub type Path = Vec<u8>;

/// An inode as seen at one of its paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sight {
    /// The first path that leads to it: two paths with the same one are hard links.
    pub first: Path,
    /// Its attributes without number and blocks: holes are known less exactly after a checkpoint.
    pub attr: Attr,
}

/// What an inode holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub bytes: Vec<u8>,
}

/// Names and attributes of a tree.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    pub sights: BTreeMap<Path, Sight>,
    /// The number at each path.
    pub inos: BTreeMap<Path, Ino>,
}

/// A tree in full.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Picture {
    pub names: Names,
    pub held: BTreeMap<Ino, Held>,
}

/// The names of a tree, having looked that listing, lookup, links and parents agree.
pub fn names_of(fs: &dyn Filesystem) -> Names {
    let mut names = Names::default();
    let mut firsts = BTreeMap::new();
    let mut todo = vec![(Path::new(), ROOT_INO, ROOT_INO)];
    while let Some((path, ino, parent)) = todo.pop() {
        let attr = fs.getattr(ino).unwrap();
        assert_eq!(attr.ino, ino);
        let first = firsts.entry(ino).or_insert_with(|| path.clone()).clone();
        names.sights.insert(path.clone(), Sight { first, attr: Attr { ino: 0, blocks: 0, ..attr } });
        names.inos.insert(path.clone(), ino);
        if attr.kind == Kind::Directory {
            assert_eq!(fs.parent(ino), Ok(parent));
            todo.extend(children(fs, ino).into_iter().rev().map(|(name, child)| {
                let path = [&path[..], b"/", &name].concat();
                (path, child, ino)
            }));
        }
    }
    check_links(&names);
    names
}

/// The entries of a directory, by name.
fn children(fs: &dyn Filesystem, dir: Ino) -> BTreeMap<Vec<u8>, Ino> {
    let mut listed = BTreeMap::new();
    fs.readdir(dir, 0, &mut |entry| {
        let is_new = listed.insert(entry.name.clone(), entry.attr.ino).is_none();
        assert!(is_new, "{:?} is listed twice", entry.name);
        true
    })
    .unwrap();
    for (name, ino) in &listed {
        let found = fs.lookup(dir, name).unwrap();
        fs.forget(found.ino, 1);
        assert_eq!(found.ino, *ino, "listing and lookup agree");
    }
    listed
}

fn check_links(names: &Names) {
    for (path, ino) in &names.inos {
        let sight = &names.sights[path];
        let n = match sight.attr.kind {
            Kind::Directory => 2 + n_subdirs(names, path),
            _ => names.inos.values().filter(|other| *other == ino).count(),
        };
        assert_eq!(sight.attr.nlink as usize, n, "links of {:?}", String::from_utf8_lossy(path));
    }
}

fn n_subdirs(names: &Names, dir: &Path) -> usize {
    let is_child = |path: &Path| {
        path.strip_prefix(&dir[..]).is_some_and(|rest| rest.len() > 1 && !rest[1..].contains(&b'/'))
    };
    let is_dir = |sight: &Sight| sight.attr.kind == Kind::Directory;
    names.sights.iter().filter(|(path, sight)| is_child(path) && is_dir(sight)).count()
}

/// What an inode holds.
pub fn held_by(fs: &dyn Filesystem, ino: Ino) -> Held {
    let names = fs.listxattr(ino).unwrap();
    let xattrs = names.into_iter().map(|name| (name.clone(), fs.getxattr(ino, &name).unwrap())).collect();
    let attr = fs.getattr(ino).unwrap();
    let bytes = match attr.kind {
        Kind::File => fs.read(ino, 0, attr.size as usize + 1).unwrap(),
        Kind::Symlink => fs.readlink(ino).unwrap(),
        _ => Vec::new(),
    };
    if attr.kind == Kind::File {
        assert_eq!(bytes.len() as u64, attr.size, "a file has as many bytes as it says");
    }
    Held { xattrs, bytes }
}

/// A tree in full.
pub fn picture_of(fs: &dyn Filesystem) -> Picture {
    let names = names_of(fs);
    let held = names.inos.values().map(|ino| (*ino, held_by(fs, *ino))).collect();
    Picture { names, held }
}

impl Picture {
    /// What is held at a path.
    pub fn at(&self, path: &Path) -> (&Sight, &Held) {
        (&self.names.sights[path], &self.held[&self.names.inos[path]])
    }
}

/// Bytes of a file that are no hole.
pub fn data_bytes(fs: &dyn Filesystem, ino: Ino) -> u64 {
    let (mut at, mut sum) = (0, 0);
    while let Ok(start) = fs.seek(ino, Seek::Data, at) {
        at = fs.seek(ino, Seek::Hole, start).unwrap();
        sum += at - start;
    }
    sum
}
