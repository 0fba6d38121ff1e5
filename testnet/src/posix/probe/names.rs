//! Names, links and kinds of nodes.

use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Result, ensure};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, linkat, mknodat, renameat_with};

use super::{Place, Probe, YES, chmod, refused};

pub(super) const PROBES: &[(&str, Probe)] = &[
    ("hard link", hard_link),
    ("symlink of 4,095 bytes", long_symlink),
    ("rename over an open file", rename_over_open),
    ("rename NOREPLACE", rename_noreplace),
    ("rename EXCHANGE", rename_exchange),
    ("rename WHITEOUT", rename_whiteout),
    ("rename of a directory below itself refused", rename_below_itself),
    ("unlink while open", unlink_while_open),
    ("O_TMPFILE", tmpfile),
    ("O_EXCL", exclusive),
    ("name of 255 bytes", long_name),
    ("directory links and ENOTEMPTY", directories),
    ("20,000 names listed once", many_names),
    ("fifo", fifo),
    ("unix socket", socket),
    ("device node", device),
    ("exec of a binary", exec),
];

fn hard_link(place: &Place<'_>) -> Result<String> {
    place.file("a", b"x")?;
    std::fs::hard_link(place.at("a"), place.at("b"))?;
    let (a, b) = (place.at("a").metadata()?, place.at("b").metadata()?);
    ensure!((a.ino(), a.nlink()) == (b.ino(), 2), "two names, {} links", a.nlink());
    refused(std::fs::hard_link(&place.dir, place.at("d")), libc::EPERM)?;
    Ok(YES.into())
}

fn long_symlink(place: &Place<'_>) -> Result<String> {
    let target = "t".repeat(4095);
    symlink(&target, place.at("l"))?;
    ensure!(std::fs::read_link(place.at("l"))?.to_str() == Some(&target), "another target");
    Ok(YES.into())
}

fn rename_over_open(place: &Place<'_>) -> Result<String> {
    let mut old = place.file("f", b"old")?;
    place.file("g", b"new")?;
    std::fs::rename(place.at("g"), place.at("f"))?;
    old.rewind()?;
    let mut text = String::new();
    old.read_to_string(&mut text)?;
    ensure!(text == "old" && old.metadata()?.nlink() == 0, "the old file is not what it was");
    ensure!(std::fs::read(place.at("f"))? == b"new", "the new file is not there");
    Ok(YES.into())
}

fn rename_noreplace(place: &Place<'_>) -> Result<String> {
    let (a, b) = (place.at("a"), place.at("b"));
    place.file("a", b"a")?;
    place.file("b", b"b")?;
    refused(renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE), libc::EEXIST)?;
    renameat_with(CWD, &a, CWD, place.at("c"), RenameFlags::NOREPLACE)?;
    Ok(YES.into())
}

fn rename_exchange(place: &Place<'_>) -> Result<String> {
    let (a, d) = (place.at("a"), place.at("d"));
    place.file("a", b"a")?;
    std::fs::create_dir(&d)?;
    renameat_with(CWD, &a, CWD, &d, RenameFlags::EXCHANGE)?;
    ensure!(a.is_dir() && d.is_file(), "not swapped");
    refused(renameat_with(CWD, &a, CWD, place.at("none"), RenameFlags::EXCHANGE), libc::ENOENT)?;
    Ok(YES.into())
}

fn rename_whiteout(place: &Place<'_>) -> Result<String> {
    place.file("a", b"a")?;
    renameat_with(CWD, place.at("a"), CWD, place.at("b"), RenameFlags::WHITEOUT)?;
    Ok(YES.into())
}

fn rename_below_itself(place: &Place<'_>) -> Result<String> {
    std::fs::create_dir_all(place.at("d/e"))?;
    refused(std::fs::rename(place.at("d"), place.at("d/e/f")), libc::EINVAL)?;
    refused(std::fs::rename(place.at("d/e"), place.at("d")), libc::ENOTEMPTY)?;
    Ok(YES.into())
}

fn unlink_while_open(place: &Place<'_>) -> Result<String> {
    let mut file = place.file("f", b"still ")?;
    std::fs::remove_file(place.at("f"))?;
    file.write_all(b"here")?;
    file.sync_all()?;
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    ensure!(text == "still here" && file.metadata()?.nlink() == 0, "it reads {text:?}");
    Ok(YES.into())
}

fn tmpfile(place: &Place<'_>) -> Result<String> {
    let fd = rustix::fs::open(&place.dir, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600))?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    linkat(CWD, path, CWD, place.at("f"), AtFlags::SYMLINK_FOLLOW)?;
    Ok(YES.into())
}

fn exclusive(place: &Place<'_>) -> Result<String> {
    place.file("f", b"")?;
    symlink("nowhere", place.at("l"))?;
    for name in ["f", "l"] {
        refused(std::fs::File::options().write(true).create_new(true).open(place.at(name)), libc::EEXIST)?;
    }
    refused(
        std::fs::File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(place.at("l")),
        libc::ELOOP,
    )?;
    Ok(YES.into())
}

fn long_name(place: &Place<'_>) -> Result<String> {
    place.file(&"n".repeat(255), b"x")?;
    refused(std::fs::write(place.at(&"n".repeat(256)), b"x"), libc::ENAMETOOLONG)?;
    let limit = rustix::fs::statvfs(&place.dir)?.f_namemax;
    ensure!(limit == 255, "statvfs says {limit}");
    Ok(YES.into())
}

fn directories(place: &Place<'_>) -> Result<String> {
    std::fs::create_dir_all(place.at("d/e"))?;
    std::fs::create_dir(place.at("d/f"))?;
    ensure!(place.at("d").metadata()?.nlink() == 4, "{} links", place.at("d").metadata()?.nlink());
    refused(std::fs::remove_dir(place.at("d")), libc::ENOTEMPTY)?;
    refused(rustix::fs::unlink(place.at("d/e")), libc::EISDIR)?;
    refused(std::fs::remove_dir(place.at("d/none")), libc::ENOENT)?;
    std::fs::remove_dir(place.at("d/e"))?;
    ensure!(place.at("d").metadata()?.nlink() == 3, "a link too many");
    Ok(YES.into())
}

fn many_names(place: &Place<'_>) -> Result<String> {
    for i in 0..20_000 {
        mknodat(CWD, place.at(&format!("{i}")), FileType::RegularFile, Mode::from_raw_mode(0o600), 0)?;
    }
    let names = |dir: std::fs::ReadDir| dir.map(|e| e.map(|e| e.file_name())).collect::<Result<Vec<_>, _>>();
    let mut listed = names(std::fs::read_dir(&place.dir)?)?;
    let n_lines = listed.len();
    listed.sort();
    listed.dedup();
    ensure!((n_lines, listed.len()) == (20_000, 20_000), "{n_lines} lines, {} names", listed.len());
    for entry in std::fs::read_dir(&place.dir)? {
        std::fs::remove_file(entry?.path())?;
    }
    ensure!(std::fs::read_dir(&place.dir)?.count() == 0, "removing while listing misses some");
    Ok(YES.into())
}

fn fifo(place: &Place<'_>) -> Result<String> {
    let path = place.at("p");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    ensure!(path.metadata()?.file_type().is_fifo(), "it is something else");
    ensure!(
        place.shell("echo through > p & test \"$(cat p)\" = through; wait", true)?,
        "nothing comes through"
    );
    Ok(YES.into())
}

fn socket(place: &Place<'_>) -> Result<String> {
    // A socket's path may have no more than 107 bytes, so it is named from inside its directory.
    let dir = std::fs::File::open(&place.dir)?;
    let near = format!("/proc/self/fd/{}/s", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let listener = UnixListener::bind(&near)?;
    let mut one = UnixStream::connect(&near)?;
    one.write_all(b"x")?;
    let mut byte = [0];
    listener.accept()?.0.read_exact(&mut byte)?;
    ensure!(place.at("s").metadata()?.file_type().is_socket(), "it is something else");
    Ok(YES.into())
}

fn device(place: &Place<'_>) -> Result<String> {
    let path = place.at("null");
    mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), rustix::fs::makedev(1, 3))?;
    std::fs::File::options().write(true).open(&path)?.write_all(b"gone")?;
    ensure!(std::fs::read(&path)?.is_empty(), "it is not the null device");
    let big = rustix::fs::makedev(0xfff, 0xf_ffff);
    mknodat(CWD, place.at("big"), FileType::BlockDevice, Mode::from_raw_mode(0o600), big)?;
    ensure!(place.at("big").metadata()?.rdev() == big, "another number");
    Ok(YES.into())
}

fn exec(place: &Place<'_>) -> Result<String> {
    std::fs::copy(place.kernel.path(), place.at("program"))?;
    chmod(&place.at("program"), 0o755)?;
    place.file("f", b"x")?;
    ensure!(place.shell("./program private f", true)?, "it does not run");
    ensure!(
        place.shell("printf '#!/bin/sh\\nexit 0\\n' > s && chmod +x s && ./s", true)?,
        "a script does not run"
    );
    Ok(YES.into())
}
