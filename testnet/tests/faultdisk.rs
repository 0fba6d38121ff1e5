//! The disk that fails on demand keeps the rules of a real one, with a real ext4 on it. Needs root, FUSE and loop devices.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use remora_testnet::exe;
use remora_testnet::faultdisk::{FaultDisk, LoopIo};
use rustix::fs::{Mode, OFlags};

const MIB: u64 = 1 << 20;

/// A scratch directory; `None` where this machine cannot run the test, which is said.
fn rig(name: &str) -> Result<Option<tempfile::TempDir>> {
    exe::choose(Path::new(env!("CARGO_BIN_EXE_remora-testnet")));
    if let Err(why) = exe::check_fuse() {
        eprintln!("not run: {why}");
        return Ok(None);
    }
    exe::scratch(name).map(Some)
}

fn put(path: &Path, byte: u8) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&[byte; 20_000])?;
    file.sync_all()?;
    File::open(path.parent().context("a file lies in a directory")?)?.sync_all()?;
    Ok(())
}

/// Writes past the page cache, into the cache of the disk; nothing is flushed.
fn put_into_disk_cache(path: &Path, byte: u8) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::DIRECT;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    // Direct writes want memory at a whole page: there is one in twice as much.
    let memory = vec![byte; 8192];
    let start = memory.as_ptr().align_offset(4096);
    file.write_all_at(&memory[start..start + 4096], 0)?;
    Ok(())
}

/// What was synced is in every crash state; what was not is missing in some.
fn check_power_cuts(io: LoopIo) -> Result<()> {
    let Some(scratch) = rig("faultdisk")? else { return Ok(()) };
    let mut disk = FaultDisk::create_with(&scratch.path().join("disk"), 64 * MIB, io)?;
    let (mut n_old, mut n_new) = (0, 0);
    for round in 0..16u8 {
        let fs = disk.mount()?;
        let before = disk.counts();
        put(&fs.join(format!("synced{round}")), round)?;
        let slot = fs.join("slot");
        put(&slot, 0)?;
        ensure!(disk.counts().flushes > before.flushes, "{io:?}: the loop driver does not pass flushes on");
        put_into_disk_cache(&slot, 1)?;
        disk.cut_power(u64::from(round))?;
        disk.power_on()?;
        let fs = disk.mount()?;
        for earlier in 0..=round {
            let bytes = std::fs::read(fs.join(format!("synced{earlier}")))?;
            ensure!(
                bytes == [earlier; 20_000],
                "{io:?}: what was synced in round {earlier} is gone in {round}"
            );
        }
        for sector in std::fs::read(&slot)?.chunks(512).take(8) {
            ensure!(sector == [0; 512] || sector == [1; 512], "{io:?}: half a sector");
            n_old += usize::from(sector[0] == 0);
            n_new += usize::from(sector[0] == 1);
        }
    }
    ensure!(n_old > 0, "{io:?}: a power cut loses nothing");
    ensure!(n_new > 0, "{io:?}: a power cut loses everything");
    Ok(())
}

#[test]
fn what_was_flushed_survives_every_power_cut_and_what_was_not_does_not() -> Result<()> {
    check_power_cuts(LoopIo::Direct)?;
    check_power_cuts(LoopIo::Buffered)
}

#[test]
fn a_disk_that_fails_says_so_to_whoever_syncs() -> Result<()> {
    let Some(scratch) = rig("faultdisk")? else { return Ok(()) };
    let mut disk = FaultDisk::create(&scratch.path().join("disk"), 64 * MIB)?;
    let fs = disk.mount()?;
    let file = File::create(fs.join("a"))?;
    file.write_all_at(&[1; 4096], 0)?;
    file.sync_all()?;

    disk.fail_flushes(true);
    file.write_all_at(&[2; 4096], 0)?;
    let error = file.sync_data().err().context("a flush failed and nobody was told")?;
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    disk.fail_flushes(false);

    disk.fail_writes(true);
    file.write_all_at(&[3; 4096], 0)?;
    let error = file.sync_data().err().context("a write failed and nobody was told")?;
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(file);

    disk.fail_writes(false);
    disk.power_on()?;
    disk.fail_reads(Some(0..64 * MIB));
    ensure!(disk.mount().is_err(), "a disk that cannot be read was mounted");
    disk.fail_reads(None);
    let fs = disk.mount()?;
    let mut byte = [0];
    File::open(fs.join("a"))?.read_exact(&mut byte)?;
    ensure!(byte[0] != 0, "what was synced first is gone");
    Ok(())
}

#[test]
fn a_disk_that_is_dropped_leaves_nothing() -> Result<()> {
    let Some(scratch) = rig("faultdisk")? else { return Ok(()) };
    let mut disk = FaultDisk::create(&scratch.path().join("disk"), 64 * MIB)?;
    let device = disk.device()?.to_owned();
    let in_use = File::create(disk.mount()?.join("in use"))?;
    drop(disk);
    drop(in_use);
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!table.contains(&*scratch.path().to_string_lossy()), "a mount is left:\n{table}");
    let name = device.file_name().context("a loop device has a name")?;
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    let left = std::fs::read_to_string(backing).unwrap_or_default();
    ensure!(!left.contains(&*scratch.path().to_string_lossy()), "the loop device is left");
    Ok(())
}
