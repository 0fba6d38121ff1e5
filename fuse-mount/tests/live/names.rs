//! Names, attributes and listings through the kernel.

use crate::live::scene::{Scene, as_nobody};
use remora_fuse_mount::mount::{Mount, MountOptions};
use remora_vfs::attr::ROOT_INO;
use remora_vfs::filesystem::Filesystem;
use remora_vfs::memfs::MemFs;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags, getxattr, lgetxattr,
    listxattr, mknodat, removexattr, renameat_with, setxattr, utimensat,
};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::sync::Arc;

#[test]
fn files_come_and_go() {
    let scene = Scene::new();
    let a = scene.file("a", b"hello");
    assert_eq!(fs::read(&a).unwrap(), b"hello");
    let meta = fs::metadata(&a).unwrap();
    assert_eq!((meta.len(), meta.nlink(), meta.dev()), (5, 1, scene.mount.device()));
    fs::create_dir_all(scene.path("d/e/f")).unwrap();
    fs::rename(&a, scene.path("d/e/b")).unwrap();
    assert!(!a.exists());
    assert_eq!(fs::read(scene.path("d/e/b")).unwrap(), b"hello");
    assert_eq!(fs::metadata(scene.path("d")).unwrap().nlink(), 3);
    fs::hard_link(scene.path("d/e/b"), &a).unwrap();
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(&a).unwrap().ino(), fs::metadata(scene.path("d/e/b")).unwrap().ino());
    fs::remove_dir_all(scene.path("d")).unwrap();
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 1);
    fs::remove_file(&a).unwrap();
    assert_eq!(fs::read_dir(scene.place.dir()).unwrap().count(), 0);
}

#[test]
fn a_name_that_was_missing_is_seen_when_it_comes() {
    let scene = Scene::new();
    for _ in 0..3 {
        assert_eq!(fs::metadata(scene.path("a")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
    scene.file("a", b"x");
    assert_eq!(fs::read(scene.path("a")).unwrap(), b"x");
}

#[test]
fn rename_flags_work() {
    let scene = Scene::new();
    let (a, b) = (scene.file("a", b"a"), scene.file("b", b"b"));
    assert_eq!(renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE), Err(Errno::EXIST));
    renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    assert_eq!(renameat_with(CWD, &a, CWD, &b, RenameFlags::WHITEOUT), Err(Errno::INVAL));
}

#[test]
fn every_kind_of_node_can_be_made() {
    let scene = Scene::new();
    symlink("target/of/link", scene.path("l")).unwrap();
    assert_eq!(fs::read_link(scene.path("l")).unwrap().to_str(), Some("target/of/link"));
    let make = |name, kind, device| {
        mknodat(CWD, scene.path(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
        fs::symlink_metadata(scene.path(name)).unwrap()
    };
    assert!(make("p", FileType::Fifo, 0).file_type().is_fifo());
    assert!(make("s", FileType::Socket, 0).file_type().is_socket());
    let null = rustix::fs::makedev(1, 3);
    let device = make("c", FileType::CharacterDevice, null);
    assert!(device.file_type().is_char_device());
    assert_eq!(device.rdev(), null);
    let big = rustix::fs::makedev(0xfff, 0xf_ffff);
    assert_eq!(make("b", FileType::BlockDevice, big).rdev(), big);
    // The mount is not `nodev`: this is the real null device.
    fs::OpenOptions::new().write(true).open(scene.path("c")).unwrap().write_all(b"gone").unwrap();
}

#[test]
fn a_fifo_connects_two_processes() {
    let scene = Scene::new();
    let path = scene.path("p");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let reading = path.clone();
    let reader = std::thread::spawn(move || fs::read(reading).unwrap());
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(b"through").unwrap();
    assert_eq!(reader.join().unwrap(), b"through");
}

#[test]
fn a_listing_of_20000_is_complete() {
    let scene = Scene::new();
    let mut expected = BTreeSet::new();
    for i in 0..20_000 {
        let name = format!("entry-{i:05}");
        mknodat(CWD, scene.path(&name), FileType::RegularFile, Mode::from_raw_mode(0o600), 0).unwrap();
        expected.insert(name);
    }
    for _ in 0..2 {
        let mut n = 0;
        let listed: BTreeSet<String> = fs::read_dir(scene.place.dir())
            .unwrap()
            .inspect(|_| n += 1)
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(n, 20_000);
        assert!(listed == expected);
    }
    fs::remove_dir_all(scene.place.dir().join(".")).unwrap_err();
    for entry in fs::read_dir(scene.place.dir()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(scene.place.dir()).unwrap().count(), 0, "removing while listing misses nothing");
}

#[test]
fn dots_are_listed_with_their_inodes() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("a/b")).unwrap();
    let fd = rustix::fs::open(scene.path("a/b"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    let dots: Vec<_> = rustix::fs::Dir::read_from(&fd)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().to_str().unwrap().to_owned(), entry.ino()))
        .collect();
    let ino = |name| fs::metadata(scene.path(name)).unwrap().ino();
    assert_eq!(dots, [(".".to_owned(), ino("a/b")), ("..".to_owned(), ino("a"))]);
}

#[test]
fn attributes_are_kept() {
    let scene = Scene::new();
    let path = scene.file("f", b"x");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6751)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode(), 0o106_751);
    std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1234, 4321));
    assert_eq!(meta.mode() & 0o6000, 0, "chown clears set-user-id and set-group-id");
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let scene = Scene::new();
    let path = scene.file("f", b"x");
    let omit = Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    for (secs, nanos) in
        [(1_700_000_000, 123_456_789), (0, 1), (-1, 0), (-2, 250_000_000), (9_000_000_000, 999_999_999)]
    {
        let mtime = Timespec { tv_sec: secs, tv_nsec: nanos };
        let times = Timestamps { last_access: omit, last_modification: mtime };
        utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (secs, nanos));
        let attr = scene.fs.lookup(ROOT_INO, b"f").unwrap();
        assert_eq!(
            (attr.mtime.secs(), i64::from(attr.mtime.nanos())),
            (secs, nanos),
            "as told to the file system"
        );
    }
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    let times = Timestamps { last_access: Timespec { tv_sec: 5, tv_nsec: 0 }, last_modification: omit };
    utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.modified().unwrap(), meta.atime()), (mtime, 5));
}

#[test]
fn a_set_atime_changes_the_ctime_and_is_shown_until_the_mount_ends() {
    let scene = Scene::new();
    let path = scene.file("f", b"x");
    let before = fs::metadata(&path).unwrap();
    let omit = Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    let times = Timestamps { last_access: Timespec { tv_sec: 5, tv_nsec: 7 }, last_modification: omit };
    utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.atime(), after.atime_nsec()), (5, 7));
    assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    assert_ne!((after.ctime(), after.ctime_nsec()), (before.ctime(), before.ctime_nsec()));
    assert_eq!((after.uid(), after.mode()), (before.uid(), before.mode()));
    scene.mount.unmount().unwrap();
    let shared: Arc<dyn Filesystem> = Arc::<MemFs>::clone(&scene.fs);
    let _again = Mount::start(shared, scene.place.dir(), &MountOptions::default()).unwrap();
    let forgotten = fs::metadata(&path).unwrap();
    assert_eq!(forgotten.accessed().unwrap(), forgotten.modified().unwrap(), "it reads as mtime");
}

#[test]
fn xattrs_work() {
    let scene = Scene::new();
    let path = scene.file("f", b"x");
    let get = |name| {
        let mut value = [0; 100];
        getxattr(&path, name, &mut value[..]).map(|n| value[..n].to_vec())
    };
    assert_eq!(get("user.a"), Err(Errno::NODATA));
    setxattr(&path, "user.a", b"1", XattrFlags::CREATE).unwrap();
    assert_eq!(setxattr(&path, "user.a", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
    setxattr(&path, "user.a", b"22", XattrFlags::REPLACE).unwrap();
    setxattr(&path, "trusted.b", b"", XattrFlags::empty()).unwrap();
    assert_eq!(get("user.a").unwrap(), b"22");
    let mut list = [0; 100];
    let n = listxattr(&path, &mut list[..]).unwrap();
    assert_eq!(&list[..n], b"trusted.b\0user.a\0");
    assert_eq!(getxattr(&path, "user.a", &mut [0; 1][..]), Err(Errno::RANGE));
    removexattr(&path, "user.a").unwrap();
    assert_eq!(get("user.a"), Err(Errno::NODATA));
}

#[test]
fn acls_are_refused_not_kept_without_being_enforced() {
    let scene = Scene::new();
    let path = scene.file("f", b"x");
    // A minimal ACL: what cp -a sends for mode 0640. Refused, cp sets the mode.
    let entry = |tag: u16, perm: u16| [tag.to_le_bytes(), perm.to_le_bytes(), [255; 2], [255; 2]].concat();
    let acl = [2u32.to_le_bytes().to_vec(), entry(1, 6), entry(4, 4), entry(0x20, 0)].concat();
    for name in ["system.posix_acl_access", "system.other", "security.selinux", "other.name", "name"] {
        assert_eq!(setxattr(&path, name, &acl, XattrFlags::empty()), Err(Errno::OPNOTSUPP));
        assert_eq!(getxattr(&path, name, &mut [0; 100][..]), Err(Errno::OPNOTSUPP));
        assert_eq!(removexattr(&path, name), Err(Errno::OPNOTSUPP));
    }
    assert_eq!(listxattr(&path, &mut [0; 100][..]).unwrap(), 0);
}

#[test]
fn without_xattrs_there_are_none() {
    let scene = Scene::with(&MountOptions { xattr: false, ..MountOptions::default() });
    let path = scene.file("f", b"x");
    assert_eq!(setxattr(&path, "user.a", b"1", XattrFlags::empty()), Err(Errno::OPNOTSUPP));
    assert_eq!(lgetxattr(&path, "user.a", &mut [0; 10][..]), Err(Errno::OPNOTSUPP));
}

#[test]
fn an_unlinked_open_file_lives_until_its_close() {
    let scene = Scene::new();
    let path = scene.path("f");
    let mut file =
        fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b"still here").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let mut again =
        fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
    let mut text = String::new();
    again.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    assert_eq!(scene.fs.n_inodes(), 2);
    drop((file, again));
    scene.mount.unmount().unwrap();
}

#[test]
fn the_kernel_checks_permissions() {
    let scene = Scene::new();
    fs::set_permissions(scene.place.dir().parent().unwrap(), fs::Permissions::from_mode(0o1777)).unwrap();
    let path = scene.file("f", b"secret");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!as_nobody(&format!("cat {} 2>/dev/null", path.display())));
    assert!(!as_nobody(&format!("touch {} 2>/dev/null", scene.path("g").display())));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    assert!(as_nobody(&format!("cat {} >/dev/null", path.display())));
}

#[test]
fn a_change_by_another_user_clears_set_user_id() {
    let scene = Scene::new();
    let changes = [
        "echo x >> F",
        "echo x > F",
        "truncate -s 1 F",
        "dd if=/dev/zero of=F bs=1 count=1 conv=notrunc 2>/dev/null",
        "dd if=/dev/zero of=F bs=4096 count=1 oflag=direct conv=notrunc 2>/dev/null",
        "fallocate -l 8192 F",
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let path = scene.file(&format!("f{i}"), b"program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        assert!(as_nobody(&change.replace('F', path.to_str().unwrap())), "{change}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777, "after {change}");
    }
}

#[test]
fn root_may_change_a_set_user_id_program() {
    let scene = Scene::new();
    let path = scene.file("f", b"program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    fs::write(&path, b"a newer one").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6777);
}

#[test]
fn a_file_may_be_written_by_who_made_it_whatever_its_mode() {
    let scene = Scene::new();
    fs::set_permissions(scene.place.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = scene.path("f");
    assert!(as_nobody(&format!("umask 777; echo x > {}", path.display())));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777, meta.len()), (65534, 0, 2));
    assert!(
        !as_nobody(&format!("echo y > {} 2>/dev/null", path.display())),
        "the second open is an ordinary one"
    );
}

#[test]
fn a_set_user_id_program_gets_its_owner() {
    let scene = Scene::new();
    let path = scene.path("id");
    fs::copy("/usr/bin/id", &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    assert!(as_nobody(&format!("test \"$({} -u)\" = 0", path.display())));
}

#[test]
fn a_new_file_takes_the_group_of_a_setgid_directory() {
    let scene = Scene::new();
    fs::create_dir(scene.path("d")).unwrap();
    std::os::unix::fs::chown(scene.path("d"), None, Some(77)).unwrap();
    fs::set_permissions(scene.path("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    scene.file("d/f", b"");
    fs::create_dir(scene.path("d/e")).unwrap();
    assert_eq!(fs::metadata(scene.path("d/f")).unwrap().gid(), 77);
    let below = fs::metadata(scene.path("d/e")).unwrap();
    assert_eq!((below.gid(), below.mode() & 0o2000), (77, 0o2000));
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(scene.path("g")).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o640);
}
