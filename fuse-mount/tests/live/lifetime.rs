//! Mounts from beginning to end.

use crate::live::scene::{Place, Scene};
use remora_fuse_mount::mount::{Mount, MountError, MountOptions, Unmounted};
use remora_fuse_mount::stale::{FS_TYPE, clear_dead, is_dead, is_mount_of_ours, mount_at};
use remora_vfs::attr::{Attr, DirEntry, Ino, NewNode, ROOT_INO, SetAttr, StatFs, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Allocate, Caller, Done, Filesystem, RenameMode, Reply, Seek, XattrMode};
use remora_vfs::memfs::MemFs;
use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

fn code(result: std::io::Result<impl std::fmt::Debug>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn an_unmount_leaves_nothing() {
    let scene = Scene::new();
    scene.file("f", b"x");
    assert!(is_mount_of_ours(scene.place.dir()).unwrap() && scene.mount.is_live());
    let (sender, ended) = channel();
    scene.mount.on_end(Box::new(move || sender.send(()).unwrap()));
    assert_eq!(scene.mount.unmount().unwrap(), Unmounted::Ended);
    ended.recv_timeout(LONG).unwrap();
    assert!(!scene.mount.is_live());
    assert_eq!(mount_at(scene.place.dir()).unwrap(), None);
    assert_eq!(fs::read_dir(scene.place.dir()).unwrap().count(), 0);
    assert_eq!(scene.mount.unmount().unwrap(), Unmounted::Ended, "a second time is no error");
    let (sender, ended) = channel();
    scene.mount.on_end(Box::new(move || sender.send(()).unwrap()));
    ended.recv_timeout(LONG).unwrap();
    // Nobody else holds the file system any more.
    assert!(Arc::strong_count(&scene.fs) == 1);
}

#[test]
fn the_mount_table_says_what_is_mounted() {
    let options = MountOptions { fs_name: "remora:a,suid b".to_owned(), ..MountOptions::default() };
    let scene = Scene::with(&options);
    let entry = mount_at(scene.place.dir()).unwrap().unwrap();
    assert_eq!((entry.fs_type.as_str(), entry.source.as_str()), (FS_TYPE, "remora:a_suid_b"));
    assert_eq!(entry.device, scene.mount.device());
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let scene = Scene::with(&MountOptions { read_only: true, ..MountOptions::default() });
    assert_eq!(code(fs::write(scene.path("f"), b"x")), libc::EROFS);
}

#[test]
fn a_busy_mount_is_detached_and_served_to_its_end() {
    let scene = Scene::new();
    let path = scene.file("f", b"still served");
    let file = fs::File::open(&path).unwrap();
    assert_eq!(scene.mount.unmount().unwrap(), Unmounted::Lingering);
    assert_eq!(mount_at(scene.place.dir()).unwrap(), None);
    assert!(scene.mount.is_live());
    let mut data = [0; 12];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut data, 0).unwrap();
    assert_eq!(&data, b"still served");
    drop(file);
    assert!(scene.mount.wait_end(LONG));
    assert!(!scene.mount.is_live());
}

#[test]
fn dropping_a_mount_unmounts() {
    let scene = Scene::new();
    let Scene { mount, place, .. } = scene;
    drop(mount);
    assert_eq!(mount_at(place.dir()).unwrap(), None);
}

#[test]
fn a_dead_mount_is_cleared_and_mounted_again() {
    let place = Place::new();
    let first =
        Mount::start(Arc::new(MemFs::new(Timestamp(1))), place.dir(), &MountOptions::default()).unwrap();
    fs::write(place.dir().join("f"), b"x").unwrap();
    first.abort().unwrap();
    assert!(first.wait_end(LONG));
    assert_eq!(code(fs::write(place.dir().join("f"), b"y")), libc::ENOTCONN);
    assert!(is_dead(place.dir()).unwrap());
    let second =
        Mount::start(Arc::new(MemFs::new(Timestamp(1))), place.dir(), &MountOptions::default()).unwrap();
    assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 0);
    drop(first);
    assert!(
        second.is_live() && is_mount_of_ours(place.dir()).unwrap(),
        "the old one's end leaves the new one alone"
    );
    second.abort().unwrap();
    assert!(second.wait_end(LONG));
    assert_eq!(clear_dead(place.dir()).unwrap(), 1);
    assert_eq!(clear_dead(place.dir()).unwrap(), 0);
}

#[test]
fn what_is_not_ours_stays() {
    let place = Place::new();
    rustix::mount::mount("none", place.dir(), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    assert!(!is_mount_of_ours(place.dir()).unwrap());
    assert_eq!(clear_dead(place.dir()).unwrap(), 0);
    assert_eq!(mount_at(place.dir()).unwrap().unwrap().fs_type, "tmpfs");
}

#[test]
fn a_covered_mount_is_not_unmounted_by_mistake() {
    let scene = Scene::new();
    rustix::mount::mount("none", scene.place.dir(), "tmpfs", rustix::mount::MountFlags::empty(), None)
        .unwrap();
    assert!(matches!(scene.mount.unmount(), Err(MountError::Covered { .. })));
    assert_eq!(mount_at(scene.place.dir()).unwrap().unwrap().fs_type, "tmpfs");
    rustix::mount::unmount(scene.place.dir(), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(scene.mount.unmount().unwrap(), Unmounted::Ended);
}

#[test]
fn a_place_that_cannot_be_mounted_on_is_refused() {
    let scene = Scene::new();
    let again = |dir: &Path| Mount::start(Arc::new(MemFs::new(Timestamp(1))), dir, &MountOptions::default());
    assert!(matches!(again(scene.place.dir()), Err(MountError::AlreadyMounted { .. })));
    let place = Place::new();
    assert!(matches!(again(&place.dir().join("missing")), Err(MountError::Directory { .. })));
    let file = place.dir().join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(again(&file), Err(MountError::Directory { .. })));
}

#[test]
fn the_kernel_forgets_what_it_is_told_to() {
    let scene = Scene::new();
    let path = scene.file("f", b"old");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert!(!scene.path("g").exists());
    let ino = scene.fs.lookup(ROOT_INO, b"f").unwrap().ino;
    scene.fs.write(ino, 0, b"new", Timestamp(5)).unwrap();
    scene.fs.link(ino, ROOT_INO, b"g", Timestamp(5)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old", "what the kernel remembers");
    assert!(!scene.path("g").exists());
    let notifier = scene.mount.notifier();
    notifier.inval_inode(ino).unwrap();
    notifier.inval_entry(ROOT_INO, b"g").unwrap();
    notifier.inval_entry(ROOT_INO, b"never-heard-of").unwrap();
    notifier.wait().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert!(scene.path("g").exists());
}

/// Answers fsync later and panics on reads of a certain file.
struct Odd {
    inner: MemFs,
    late: Mutex<Vec<Done>>,
}

const PANICS: &[u8] = b"panics";

impl Odd {
    fn check(&self, name: &[u8]) {
        assert!(name != PANICS, "this name panics");
    }
}

macro_rules! pass_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $reply:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> $reply { self.inner.$name($($arg),*) })*
    };
}

impl Filesystem for Odd {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Reply<Attr> {
        self.check(name);
        self.inner.lookup(parent, name)
    }

    fn fsync(&self, _ino: Ino, _data_only: bool, done: Done) {
        self.late.lock().unwrap().push(done);
    }

    pass_on! {
        forget(ino: Ino, n: u64) -> ();
        getattr(ino: Ino) -> Reply<Attr>;
        setattr(ino: Ino, change: &SetAttr, now: Timestamp) -> Reply<Attr>;
        readlink(ino: Ino) -> Reply<Vec<u8>>;
        make(who: Caller, parent: Ino, name: &[u8], node: &NewNode, mode: u16, now: Timestamp) -> Reply<Attr>;
        link(ino: Ino, parent: Ino, name: &[u8], now: Timestamp) -> Reply<Attr>;
        unlink(parent: Ino, name: &[u8], now: Timestamp) -> Reply<()>;
        rmdir(parent: Ino, name: &[u8], now: Timestamp) -> Reply<()>;
        rename(from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode, now: Timestamp) -> Reply<()>;
        open(ino: Ino) -> Reply<()>;
        release(ino: Ino) -> ();
        read(ino: Ino, offset: u64, len: usize) -> Reply<Vec<u8>>;
        write(ino: Ino, offset: u64, data: &[u8], now: Timestamp) -> Reply<()>;
        allocate(ino: Ino, how: Allocate, offset: u64, len: u64, now: Timestamp) -> Reply<()>;
        seek(ino: Ino, what: Seek, offset: u64) -> Reply<u64>;
        copy_range(from: (Ino, u64), to: (Ino, u64), len: u64, now: Timestamp) -> Reply<u64>;
        readdir(ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Reply<()>;
        reference(ino: Ino) -> Reply<()>;
        parent(ino: Ino) -> Reply<Ino>;
        getxattr(ino: Ino, name: &[u8]) -> Reply<Vec<u8>>;
        setxattr(ino: Ino, name: &[u8], value: &[u8], mode: XattrMode, now: Timestamp) -> Reply<()>;
        listxattr(ino: Ino) -> Reply<Vec<Vec<u8>>>;
        removexattr(ino: Ino, name: &[u8], now: Timestamp) -> Reply<()>;
        statfs() -> Reply<StatFs>;
    }
}

#[test]
fn a_panic_in_the_file_system_is_an_error_of_one_request() {
    let place = Place::new();
    let odd = Arc::new(Odd { inner: MemFs::new(Timestamp(1)), late: Mutex::default() });
    let mount = Mount::start(odd, place.dir(), &MountOptions::default()).unwrap();
    for _ in 0..10 {
        assert_eq!(code(fs::metadata(place.dir().join("panics"))), libc::EIO);
    }
    fs::write(place.dir().join("f"), b"fine").unwrap();
    assert!(mount.is_live());
}

#[test]
fn an_fsync_may_be_answered_later_from_elsewhere() {
    let place = Place::new();
    let odd = Arc::new(Odd { inner: MemFs::new(Timestamp(1)), late: Mutex::default() });
    let shared: Arc<dyn Filesystem> = Arc::<Odd>::clone(&odd);
    let options = MountOptions { threads: 1, ..MountOptions::default() };
    let _mount = Mount::start(shared, place.dir(), &options).unwrap();
    let answers = [Ok(()), Err(Errno::EIO)];
    for answer in answers {
        let path = place.dir().join("f");
        let file = fs::File::create(&path).unwrap();
        let syncer = std::thread::spawn(move || file.sync_all());
        let done = loop {
            if let Some(done) = odd.late.lock().unwrap().pop() {
                break done;
            }
            // The only thread is free while the fsync waits: it answers this.
            fs::metadata(place.dir().join("other")).unwrap_err();
            std::thread::yield_now();
        };
        done(answer);
        let expected = answer.err().map(|errno| errno.code());
        assert_eq!(syncer.join().unwrap().err().and_then(|error| error.raw_os_error()), expected);
    }
}

#[test]
fn a_time_at_the_end_of_what_64_bits_hold_is_answered() {
    let scene = Scene::new();
    let path = scene.file("f", b"x");
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    for secs in [i64::MIN, i64::MIN + 1, -1, i64::MAX - 1, i64::MAX] {
        for nanos in [0, 1, 999_999_999] {
            let end = rustix::fs::Timespec { tv_sec: secs, tv_nsec: nanos };
            for (last_access, last_modification) in [(omit, end), (end, omit), (end, end)] {
                let times = rustix::fs::Timestamps { last_access, last_modification };
                let flags = rustix::fs::AtFlags::empty();
                rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
                fs::metadata(&path).unwrap();
            }
        }
    }
    assert!(scene.mount.is_live());
    fs::write(&path, b"served as before").unwrap();
}
