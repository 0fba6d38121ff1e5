//! Attributes: owners, modes, times, extended attributes, ACLs.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::fs::{
    AtFlags, CWD, StatxFlags, Timespec, Timestamps, XattrFlags, getxattr, lsetxattr, setxattr, statx,
    utimensat,
};

use super::{Place, Probe, YES, chmod, refused};

pub(super) const PROBES: &[(&str, Probe)] = &[
    ("chmod, chown", mode_and_owner),
    ("permissions keep others out", permissions),
    ("umask", umask),
    ("setgid directory gives its group", setgid_directory),
    ("sticky directory", sticky),
    ("setuid lost on write", |place| setuid_lost(place, "echo x >> f")),
    ("setuid lost on truncate", |place| setuid_lost(place, "truncate -s 1 f")),
    ("setuid lost on fallocate", |place| setuid_lost(place, "fallocate -l 9999 f")),
    ("setuid lost on chown", setuid_lost_on_chown),
    ("times in nanoseconds", nanoseconds),
    ("atime that was set", atime),
    ("times before 1970 and after 2106", far_times),
    ("ctime rules", ctime_rules),
    ("mtime of a directory", directory_times),
    ("creation time (statx)", creation_time),
    ("xattr user", |place| xattr(place, "user.a")),
    ("xattr security", |place| xattr(place, "security.a")),
    ("xattr trusted", |place| xattr(place, "trusted.a")),
    ("xattr rules", xattr_rules),
    ("POSIX ACL", acl),
    ("inode flags (chattr)", inode_flags),
];

fn mode(path: &Path) -> Result<u32> {
    Ok(path.symlink_metadata()?.mode() & 0o7777)
}

fn mode_and_owner(place: &Place<'_>) -> Result<String> {
    place.file("f", b"")?;
    chown(place.at("f"), Some(4_000_000_000), Some(1234))?;
    chmod(&place.at("f"), 0o7751)?;
    let meta = place.at("f").metadata()?;
    ensure!((meta.uid(), meta.gid(), meta.mode() & 0o7777) == (4_000_000_000, 1234, 0o7751), "{meta:?}");
    symlink("f", place.at("l"))?;
    std::os::unix::fs::lchown(place.at("l"), Some(7), None)?;
    ensure!(place.at("l").symlink_metadata()?.uid() == 7, "a link has an owner of its own");
    Ok(YES.into())
}

fn permissions(place: &Place<'_>) -> Result<String> {
    place.file("f", b"secret")?;
    chmod(&place.at("f"), 0o640)?;
    chmod(&place.dir, 0o755)?;
    ensure!(!place.shell("cat f", false)?, "others may read");
    ensure!(!place.shell("touch g", false)?, "others may make files");
    ensure!(!place.shell("chmod 777 f", false)?, "others may chmod");
    chmod(&place.at("f"), 0o604)?;
    ensure!(place.shell("cat f", false)?, "others may not read what they may");
    chmod(&place.dir, 0o700)?;
    ensure!(!place.shell("cat f", false)?, "the directory does not keep them out");
    Ok(YES.into())
}

fn umask(place: &Place<'_>) -> Result<String> {
    ensure!(place.shell("umask 027; echo > f; mkdir d; mkfifo p; ln -s f l", true)?, "the shell failed");
    let modes = (mode(&place.at("f"))?, mode(&place.at("d"))?, mode(&place.at("p"))?, mode(&place.at("l"))?);
    ensure!(modes == (0o640, 0o750, 0o640, 0o777), "modes {modes:?}");
    Ok(YES.into())
}

fn setgid_directory(place: &Place<'_>) -> Result<String> {
    chown(&place.dir, None, Some(77))?;
    chmod(&place.dir, 0o2755)?;
    place.file("f", b"")?;
    std::fs::create_dir(place.at("d"))?;
    let (file, dir) = (place.at("f").metadata()?, place.at("d").metadata()?);
    ensure!((file.gid(), dir.gid(), dir.mode() & 0o2000) == (77, 77, 0o2000), "{file:?} {dir:?}");
    Ok(YES.into())
}

fn sticky(place: &Place<'_>) -> Result<String> {
    chmod(&place.dir, 0o1777)?;
    place.file("f", b"")?;
    ensure!(!place.shell("rm -f f", false)?, "others may remove it");
    ensure!(place.shell("echo > g && mv g h && rm h", false)?, "others may not remove their own");
    chmod(&place.dir, 0o777)?;
    ensure!(place.shell("rm -f f", false)?, "others may not remove it");
    Ok(YES.into())
}

fn setuid_lost(place: &Place<'_>, change: &str) -> Result<String> {
    place.file("f", b"program")?;
    chmod(&place.dir, 0o755)?;
    chmod(&place.at("f"), 0o6777)?;
    ensure!(place.shell(change, false)?, "{change} failed");
    ensure!(mode(&place.at("f"))? == 0o777, "mode {:o}", mode(&place.at("f"))?);
    Ok(YES.into())
}

fn setuid_lost_on_chown(place: &Place<'_>) -> Result<String> {
    place.file("f", b"program")?;
    chmod(&place.at("f"), 0o6755)?;
    chown(place.at("f"), Some(1), None)?;
    ensure!(mode(&place.at("f"))? == 0o755, "mode {:o}", mode(&place.at("f"))?);
    chmod(&place.at("f"), 0o2745)?;
    chown(place.at("f"), Some(2), None)?;
    ensure!(mode(&place.at("f"))? == 0o2745, "without group execution it is no privilege");
    Ok(YES.into())
}

const OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };

fn set_times(path: &Path, last_access: Timespec, last_modification: Timespec) -> Result<()> {
    Ok(utimensat(CWD, path, &Timestamps { last_access, last_modification }, AtFlags::empty())?)
}

fn nanoseconds(place: &Place<'_>) -> Result<String> {
    place.file("f", b"")?;
    set_times(&place.at("f"), OMIT, Timespec { tv_sec: 1_700_000_000, tv_nsec: 123_456_789 })?;
    let meta = place.at("f").metadata()?;
    ensure!((meta.mtime(), meta.mtime_nsec()) == (1_700_000_000, 123_456_789), "{}", meta.mtime_nsec());
    Ok(YES.into())
}

fn atime(place: &Place<'_>) -> Result<String> {
    place.file("f", b"")?;
    set_times(&place.at("f"), Timespec { tv_sec: 1_500_000_000, tv_nsec: 7 }, OMIT)?;
    let meta = place.at("f").metadata()?;
    ensure!(
        (meta.atime(), meta.atime_nsec()) == (1_500_000_000, 7),
        "{}.{:09}",
        meta.atime(),
        meta.atime_nsec()
    );
    Ok(YES.into())
}

fn far_times(place: &Place<'_>) -> Result<String> {
    place.file("f", b"")?;
    for secs in [-1_000_000_000, 5_000_000_000] {
        set_times(&place.at("f"), OMIT, Timespec { tv_sec: secs, tv_nsec: 250_000_000 })?;
        let meta = place.at("f").metadata()?;
        ensure!((meta.mtime(), meta.mtime_nsec()) == (secs, 250_000_000), "{secs} reads {}", meta.mtime());
    }
    Ok(YES.into())
}

/// Whether a shell line changes mtime and ctime of `f`.
fn changes(place: &Place<'_>, line: &str) -> Result<(bool, bool)> {
    let times =
        || place.at("f").metadata().map(|m| ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec())));
    let before = times()?;
    // A local file system takes its times from the tick of the kernel, up to 10 ms.
    std::thread::sleep(Duration::from_millis(12));
    ensure!(place.shell(line, true)?, "{line} failed");
    let after = times()?;
    Ok((before.0 != after.0, before.1 != after.1))
}

fn ctime_rules(place: &Place<'_>) -> Result<String> {
    place.file("f", b"0123456789")?;
    for (line, wanted) in [
        ("cat f", (false, false)),
        ("ls -l . f", (false, false)),
        ("echo x >> f", (true, true)),
        ("truncate -s 5 f", (true, true)),
        ("chmod 600 f", (false, true)),
        ("chown 5 f", (false, true)),
        ("ln f g", (false, true)),
        ("mv g h", (false, true)),
        ("rm h", (false, true)),
        ("setfattr -n user.a -v 1 f", (false, true)),
        ("touch -m -d @1 f", (true, true)),
        ("touch -a -d @1 f", (false, true)),
        ("fallocate -p -o 0 -l 2 f", (true, true)),
    ] {
        let found = changes(place, line)?;
        ensure!(found == wanted, "{line}: mtime, ctime change {found:?}");
    }
    Ok(YES.into())
}

fn directory_times(place: &Place<'_>) -> Result<String> {
    std::fs::create_dir(place.at("f"))?;
    for (line, wanted) in [
        ("ls f", false),
        ("echo > f/a", true),
        ("echo x > f/a", false),
        ("mv f/a f/b", true),
        ("ln f/b f/c", true),
        ("mkdir f/d", true),
        ("rm f/c", true),
        ("rmdir f/d", true),
    ] {
        ensure!(changes(place, line)? == (wanted, wanted), "{line}");
    }
    Ok(YES.into())
}

fn creation_time(place: &Place<'_>) -> Result<String> {
    place.file("f", b"")?.write_all(b"x")?;
    let found = statx(CWD, place.at("f"), AtFlags::empty(), StatxFlags::BTIME)?;
    let is_told = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
    ensure!(is_told, "not told");
    Ok(YES.into())
}

fn xattr(place: &Place<'_>, name: &str) -> Result<String> {
    place.file("f", b"")?;
    for path in [place.at("f"), place.dir.clone()] {
        let value = vec![9; 2000];
        setxattr(&path, name, &value, XattrFlags::CREATE)?;
        refused(setxattr(&path, name, b"", XattrFlags::CREATE), libc::EEXIST)?;
        let mut found = vec![0; 4000];
        let n = getxattr(&path, name, &mut found[..])?;
        ensure!(found[..n] == value[..], "another value");
        rustix::fs::removexattr(&path, name)?;
        refused(getxattr(&path, name, &mut found[..]), libc::ENODATA)?;
    }
    Ok(YES.into())
}

fn xattr_rules(place: &Place<'_>) -> Result<String> {
    place.file("f", b"")?;
    symlink("f", place.at("l"))?;
    refused(lsetxattr(place.at("l"), "user.a", b"", XattrFlags::empty()), libc::EPERM)?;
    refused(setxattr(place.at("f"), "other.a", b"", XattrFlags::empty()), libc::EOPNOTSUPP)?;
    setxattr(place.at("f"), "user.a", b"12", XattrFlags::empty())?;
    setxattr(place.at("f"), "trusted.b", b"", XattrFlags::empty())?;
    refused(getxattr(place.at("f"), "user.a", &mut [0u8; 1][..]), libc::ERANGE)?;
    chmod(&place.dir, 0o755)?;
    ensure!(!place.shell("setfattr -n user.c -v 1 f", false)?, "others may set one");
    ensure!(!place.shell("getfattr -m - f | grep trusted", false)?, "others see trusted names");
    ensure!(place.shell("getfattr -m - f | grep trusted", true)?, "root does not see them");
    Ok(YES.into())
}

fn acl(place: &Place<'_>) -> Result<String> {
    place.file("f", b"secret")?;
    chmod(&place.at("f"), 0o600)?;
    chmod(&place.dir, 0o755)?;
    // User 65534 reads; the value is what setfacl -m u:65534:r would set.
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let entries = [entry(1, 6, !0), entry(2, 4, 65534), entry(4, 0, !0), entry(16, 4, !0), entry(32, 0, !0)];
    let value = [2u32.to_le_bytes().to_vec(), entries.concat()].concat();
    setxattr(place.at("f"), "system.posix_acl_access", &value, XattrFlags::empty())?;
    ensure!(mode(&place.at("f"))? == 0o640, "the mask is not in the mode");
    ensure!(place.shell("cat f", false)?, "whom it names is kept out");
    chmod(&place.at("f"), 0o600)?;
    ensure!(!place.shell("cat f", false)?, "chmod does not change the mask");
    std::fs::create_dir(place.at("d"))?;
    setxattr(place.at("d"), "system.posix_acl_default", &value, XattrFlags::empty())?;
    chmod(&place.at("d"), 0o755)?;
    ensure!(place.shell("umask 077; echo x > d/f; mkdir d/e; echo x > d/e/f", true)?, "the shell failed");
    ensure!(place.shell("cat d/f", false)?, "a new file does not take over the default list");
    ensure!(mode(&place.at("d/e/f"))? == 0o640, "a new directory does not hand it on");
    ensure!(!place.shell("setfacl -m u:65534:rw f", false)?, "others may set one");
    Ok(YES.into())
}

fn inode_flags(place: &Place<'_>) -> Result<String> {
    let file = place.file("f", b"")?;
    rustix::fs::ioctl_getflags(&file)?;
    Ok(YES.into())
}
