//! Bytes through the kernel.

use crate::live::scene::Scene;
use remora_vfs::attr::ROOT_INO;
use remora_vfs::filesystem::Filesystem;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom, copy_file_range, fallocate, flock, seek};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

const TIB: u64 = 1 << 40;

fn open(scene: &Scene, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(scene.path(name)).unwrap()
}

#[test]
fn large_writes_arrive_whole() {
    let scene = Scene::new();
    let data: Vec<u8> = (0..5_000_003_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let path = scene.file("f", &data);
    assert!(fs::read(&path).unwrap() == data);
    let attr = scene.fs.lookup(ROOT_INO, b"f").unwrap();
    assert!(scene.fs.read(attr.ino, 0, data.len()).unwrap() == data, "every write went through");
}

#[test]
fn appends_from_many_threads_do_not_overlap() {
    let scene = Scene::new();
    let path = scene.file("log", b"");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut file = OpenOptions::new().append(true).open(path).unwrap();
                for i in 0..200 {
                    file.write_all(format!("{thread}:{i:04}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 800);
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 800);
}

#[test]
fn a_tebibyte_of_hole_can_be_walked() {
    let scene = Scene::new();
    let file = open(&scene, "f");
    file.write_all_at(b"head", 0).unwrap();
    file.write_all_at(b"tail", TIB).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), TIB + 4);
    assert!(meta.blocks() < 100);
    assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), 4096);
    assert_eq!(seek(&file, SeekFrom::Data(4096)).unwrap(), TIB);
    assert_eq!(seek(&file, SeekFrom::Hole(TIB)).unwrap(), TIB + 4);
    assert_eq!(seek(&file, SeekFrom::Data(TIB + 4)), Err(Errno::NXIO));
    let mut middle = [1; 8];
    file.read_exact_at(&mut middle, TIB / 2).unwrap();
    assert_eq!(middle, [0; 8]);
}

#[test]
fn fallocate_does_what_it_can_and_refuses_the_rest() {
    let scene = Scene::new();
    let file = open(&scene, "f");
    file.write_all_at(&[7; 20_000], 0).unwrap();
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 8192).unwrap();
    let mut data = vec![1; 20_000];
    file.read_exact_at(&mut data, 0).unwrap();
    assert!(data[..4096].iter().all(|b| *b == 7) && data[4096..12_288].iter().all(|b| *b == 0));
    fallocate(&file, FallocateFlags::ZERO_RANGE, 19_000, 5000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 24_000);
    fallocate(&file, FallocateFlags::empty(), 0, 50_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 50_000);
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 90_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 50_000);
    assert_eq!(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096), Err(Errno::OPNOTSUPP));
}

#[test]
fn copy_file_range_copies_in_the_file_system() {
    let scene = Scene::new();
    let (from, to) = (open(&scene, "a"), open(&scene, "b"));
    let data: Vec<u8> = (0..300_000_u32).map(|i| (i * 7) as u8).collect();
    from.write_all_at(&data, 0).unwrap();
    let (mut source, mut target) = (1000, 5);
    let n = copy_file_range(&from, Some(&mut source), &to, Some(&mut target), 200_000).unwrap();
    assert_eq!(n, 200_000);
    assert!(fs::read(scene.path("b")).unwrap()[5..] == data[1000..201_000]);
}

#[test]
fn mapped_writes_reach_the_file_system() {
    let scene = Scene::new();
    scene.file("f", &[0; 8192]);
    // A program that maps files for writing, present wherever these tests run.
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[4090:4100]=b'0123456789'\nm.close()\nf.close()\n";
    let done = Command::new("python3").args(["-c", script]).arg(scene.path("f")).status().unwrap();
    assert!(done.success());
    let attr = scene.fs.lookup(ROOT_INO, b"f").unwrap();
    assert_eq!(scene.fs.read(attr.ino, 4090, 10).unwrap(), b"0123456789");
}

#[test]
fn direct_io_sees_what_cached_io_wrote() {
    let scene = Scene::new();
    scene.file("f", &[3; 8192]);
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(scene.path("f"))
        .unwrap();
    let mut data = vec![0; 8192];
    direct.read_exact_at(&mut data, 0).unwrap();
    assert!(data.iter().all(|b| *b == 3));
    direct.write_all_at(&[4; 4096], 4096).unwrap();
    assert!(fs::read(scene.path("f")).unwrap()[4096..].iter().all(|b| *b == 4));
}

#[test]
fn a_truncating_open_empties_the_file() {
    let scene = Scene::new();
    let path = scene.file("f", b"something long");
    assert_eq!(fs::read(&path).unwrap(), b"something long");
    scene.file("f", b"new");
    assert_eq!(fs::read(&path).unwrap(), b"new");
    File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
}

#[test]
fn fsync_is_answered_for_files_and_directories() {
    let scene = Scene::new();
    let file = open(&scene, "f");
    file.write_all_at(b"x", 0).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    File::open(scene.place.dir()).unwrap().sync_all().unwrap();
}

#[test]
fn flock_excludes_within_the_host() {
    let scene = Scene::new();
    let (a, b) = (open(&scene, "f"), open(&scene, "f"));
    flock(&a, FlockOperation::LockExclusive).unwrap();
    assert_eq!(flock(&b, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
    flock(&a, FlockOperation::Unlock).unwrap();
    flock(&b, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn times_of_writes_differ() {
    let scene = Scene::new();
    let file = open(&scene, "f");
    let mut last = None;
    for i in 0..50 {
        file.write_all_at(b"x", i).unwrap();
        let meta = file.metadata().unwrap();
        let mtime = (meta.mtime(), meta.mtime_nsec());
        assert!(last < Some(mtime), "{last:?} then {mtime:?}");
        last = Some(mtime);
    }
}
