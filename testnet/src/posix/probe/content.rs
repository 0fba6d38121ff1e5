//! Content: holes, allocation, copies, mappings, direct I/O, appending, locks.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use anyhow::{Result, ensure};
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, copy_file_range, fallocate, flock, seek};

use super::{Place, Probe, YES, refused};

pub(super) const PROBES: &[(&str, Probe)] = &[
    ("SEEK_DATA, SEEK_HOLE", seek_data_and_hole),
    ("holes take no blocks", holes_take_no_blocks),
    ("sparse file of 1 TiB", sparse_tebibyte),
    ("fallocate", allocate_extend),
    ("fallocate keep size", allocate_keep_size),
    ("fallocate punch", punch),
    ("fallocate zero range", zero_range),
    ("fallocate collapse", collapse),
    ("fallocate insert", insert),
    ("copy_file_range", copy_range),
    ("reflink (FICLONE)", reflink),
    ("mmap shared", |place| mapping(place, "shared")),
    ("mmap private", |place| mapping(place, "private")),
    ("O_DIRECT", direct),
    ("O_DIRECT mixed with buffered", direct_mixed),
    ("O_APPEND from two processes", append),
    ("O_SYNC, fdatasync, syncfs", syncing),
    ("flock", whole_file_locks),
    ("fcntl locks", |place| mapping(place, "record-locks")),
    ("OFD locks", |place| mapping(place, "ofd-locks")),
];

const MIB: u64 = 1 << 20;

fn seek_data_and_hole(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", b"x")?;
    file.write_all_at(b"y", 4 * MIB)?;
    let hole = seek(&file, SeekFrom::Hole(0))?;
    let data = seek(&file, SeekFrom::Data(hole))?;
    ensure!((1..=MIB).contains(&hole) && data > MIB && data <= 4 * MIB, "hole at {hole}, data at {data}");
    ensure!(seek(&file, SeekFrom::Hole(4 * MIB))? == 4 * MIB + 1, "the end is a hole");
    refused(seek(&file, SeekFrom::Data(8 * MIB)), libc::ENXIO)?;
    file.set_len(8 * MIB)?;
    refused(seek(&file, SeekFrom::Data(6 * MIB)), libc::ENXIO)?;
    Ok(YES.into())
}

fn holes_take_no_blocks(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", &[7; 8192])?;
    file.write_all_at(&[7; 4096], 64 * MIB)?;
    file.sync_all()?;
    let bytes = file.metadata()?.blocks() * 512;
    ensure!((12_288..=MIB).contains(&bytes), "{bytes} bytes of blocks for 12288 of data");
    Ok(YES.into())
}

fn sparse_tebibyte(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", b"")?;
    file.write_all_at(b"end", (1 << 40) - 3)?;
    file.sync_all()?;
    let (mut tail, mut middle) = ([0; 6], [1; 4096]);
    file.read_exact_at(&mut tail, (1 << 40) - 6)?;
    file.read_exact_at(&mut middle, 1 << 39)?;
    ensure!(&tail == b"\0\0\0end" && middle == [0; 4096], "it reads otherwise");
    ensure!(file.metadata()?.len() == 1 << 40, "{} bytes", file.metadata()?.len());
    file.set_len(0)?;
    Ok(YES.into())
}

fn allocate_extend(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", b"abc")?;
    fallocate(&file, FallocateFlags::empty(), 0, MIB)?;
    ensure!(file.metadata()?.len() == MIB, "{} bytes", file.metadata()?.len());
    ensure!(std::fs::read(place.at("f"))?.starts_with(b"abc\0"), "the content changed");
    Ok(YES.into())
}

fn allocate_keep_size(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", b"abc")?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, MIB)?;
    ensure!(file.metadata()?.len() == 3, "{} bytes", file.metadata()?.len());
    Ok(YES.into())
}

fn punch(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", &[1; 3 << 20])?;
    file.sync_all()?;
    let before = file.metadata()?.blocks();
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, MIB + 1, MIB)?;
    file.sync_all()?;
    let found = std::fs::read(place.at("f"))?;
    let (start, end) = (MIB as usize + 1, 2 * MIB as usize + 1);
    let is_right = |(at, byte): (usize, &u8)| *byte == u8::from(!(start..end).contains(&at));
    ensure!(found.len() == 3 << 20 && found.iter().enumerate().all(is_right), "it reads otherwise");
    ensure!(file.metadata()?.blocks() < before, "no space came free");
    Ok(YES.into())
}

fn zero_range(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", &[1; 8192])?;
    fallocate(&file, FallocateFlags::ZERO_RANGE, 100, 200)?;
    fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 8000, 5000)?;
    ensure!(file.metadata()?.len() == 8192, "{} bytes", file.metadata()?.len());
    fallocate(&file, FallocateFlags::ZERO_RANGE, 8192, 1000)?;
    let found = std::fs::read(place.at("f"))?;
    let n_ones = found.iter().filter(|byte| **byte == 1).count();
    ensure!((found.len(), n_ones) == (9192, 8192 - 200 - 192), "{} bytes, {n_ones} kept", found.len());
    Ok(YES.into())
}

fn collapse(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", &[1; 16384])?;
    fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096)?;
    Ok(YES.into())
}

fn insert(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", &[1; 16384])?;
    fallocate(&file, FallocateFlags::INSERT_RANGE, 0, 4096)?;
    Ok(YES.into())
}

fn copy_range(place: &Place<'_>) -> Result<String> {
    let data: Vec<u8> = (0..3 * MIB).map(|i| (i % 251) as u8).collect();
    let (from, to) = (place.file("f", &data)?, place.file("g", b"")?);
    let (mut source, mut target) = (5, 3);
    while source < data.len() as u64 {
        let n = copy_file_range(&from, Some(&mut source), &to, Some(&mut target), data.len())?;
        ensure!(n > 0, "nothing copied at {source}");
    }
    let found = std::fs::read(place.at("g"))?;
    ensure!(found[..3] == [0; 3] && found[3..] == data[5..], "the copy is another");
    Ok(YES.into())
}

fn reflink(place: &Place<'_>) -> Result<String> {
    let (from, to) = (place.file("f", &[1; 8192])?, place.file("g", b"")?);
    rustix::fs::ioctl_ficlone(&to, &from)?;
    Ok(YES.into())
}

fn mapping(place: &Place<'_>, what: &str) -> Result<String> {
    place.file("f", b"")?;
    place.kernel.run(what, &place.at("f"), &[])?;
    Ok(YES.into())
}

/// A buffer of 64 KiB, and where in it a page begins.
fn aligned(fill: u8) -> (Vec<u8>, usize) {
    let buffer = vec![fill; 65_536 + 4096];
    let start = buffer.as_ptr().align_offset(4096);
    (buffer, start)
}

fn direct(place: &Place<'_>) -> Result<String> {
    let path = place.at("f");
    let file =
        File::options().read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path)?;
    let (buffer, start) = aligned(7);
    file.write_all_at(&buffer[start..start + 65_536], 0)?;
    let (mut buffer, start) = aligned(0);
    file.read_exact_at(&mut buffer[start..start + 65_536], 0)?;
    ensure!(buffer[start..start + 65_536].iter().all(|byte| *byte == 7), "it reads otherwise");
    Ok(YES.into())
}

fn direct_mixed(place: &Place<'_>) -> Result<String> {
    let buffered = place.file("f", &[1; 65_536])?;
    let path = place.at("f");
    let direct = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path)?;
    let (mut buffer, start) = aligned(0);
    let mut page = [0; 4096];
    for round in 2..20u8 {
        let at = u64::from(round % 16) * 4096;
        direct.read_exact_at(&mut buffer[start..start + 4096], at)?;
        let before = buffer[start];
        buffered.write_all_at(&[round; 4096], at)?;
        direct.read_exact_at(&mut buffer[start..start + 4096], at)?;
        ensure!(buffer[start] == round, "round {round}: direct reads {} ({before} before)", buffer[start]);
        buffer[start..start + 4096].fill(round + 100);
        direct.write_all_at(&buffer[start..start + 4096], at)?;
        buffered.read_exact_at(&mut page, at)?;
        ensure!(page == [round + 100; 4096], "round {round}: buffered reads {}", page[0]);
    }
    Ok(YES.into())
}

fn append(place: &Place<'_>) -> Result<String> {
    let line =
        "w() { i=0; while [ $i -lt 500 ]; do echo $1-$i; i=$((i+1)); done >> f; }; w one & w two & wait";
    ensure!(place.shell(line, true)?, "the shell failed");
    let text = std::fs::read_to_string(place.at("f"))?;
    for word in ["one", "two"] {
        let wanted = (0..500).map(|i| format!("{word}-{i}"));
        ensure!(text.lines().filter(|l| l.starts_with(word)).eq(wanted), "lines of {word} are lost or mixed");
    }
    ensure!(text.lines().count() == 1000, "{} lines of 1000", text.lines().count());
    Ok(YES.into())
}

fn syncing(place: &Place<'_>) -> Result<String> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_SYNC)
        .open(place.at("f"))?;
    file.write_all(b"synced")?;
    file.sync_data()?;
    rustix::fs::syncfs(&file)?;
    File::open(&place.dir)?.sync_all()?;
    let mut text = String::new();
    File::open(place.at("f"))?.read_to_string(&mut text)?;
    ensure!(text == "synced", "it reads {text:?}");
    Ok(YES.into())
}

fn whole_file_locks(place: &Place<'_>) -> Result<String> {
    let (one, two) = (place.file("f", b"")?, File::open(place.at("f"))?);
    flock(&one, FlockOperation::LockExclusive)?;
    refused(flock(&two, FlockOperation::NonBlockingLockShared), libc::EWOULDBLOCK)?;
    ensure!(!place.shell("flock -n f true", true)?, "another process is not kept out");
    flock(&one, FlockOperation::LockShared)?;
    flock(&two, FlockOperation::NonBlockingLockShared)?;
    drop((one, two));
    ensure!(place.shell("flock -n f true", true)?, "a close does not end it");
    Ok(YES.into())
}
