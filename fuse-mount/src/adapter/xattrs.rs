//! Extended attributes: which names there are, what is shown to whom, and what a default list of ACLs does to a mode.

use fuser::{Errno as KernelErrno, ReplyXattr};
use remora_vfs::acl;
use remora_vfs::attr::Ino;
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Filesystem, Reply};

/// Where extended attributes may have names; a local file system refuses others, and so do we.
const XATTR_SPACES: [&[u8]; 3] = [b"user.", b"security.", b"trusted."];

/// Whether there may be an attribute of this name.
///
/// What lies in `system.` is the kernel's to act on: where there are no ACLs, one that is kept but not enforced would be a lie, and
/// `cp -a`, which sets modes as ACLs, needs the refusal to set them as modes. A label of SELinux is the mount's, not the file's. Whoever
/// asks for these of every file, as `ls -l` does, stops when told so.
pub(super) fn check_space(name: &[u8], has_acls: bool) -> Reply<()> {
    let is_known = XATTR_SPACES.iter().any(|space| name.starts_with(space)) && name != b"security.selinux";
    let is_list = has_acls && acl::is_acl(name);
    if is_known || is_list { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
}

/// The names that a user is shown, each with a zero behind it: what others than root may not read, they do not see.
pub(super) fn shown(names: Vec<Vec<u8>>, uid: u32) -> Vec<u8> {
    let names = names.into_iter().filter(|name| uid == 0 || !name.starts_with(b"trusted."));
    names.flat_map(|name| name.into_iter().chain([0])).collect()
}

/// The mode that a node asked for with a mode and a umask gets: a default list of its directory takes the umask's place. The kernel
/// holds the directory's lock meanwhile, so the list does not change.
pub(super) fn masked(fs: &dyn Filesystem, parent: Ino, asked: (u32, u32)) -> Reply<u32> {
    match fs.getxattr(parent, acl::DEFAULT) {
        Ok(_) => Ok(asked.0),
        Err(Errno::ENODATA) => Ok(asked.0 & !asked.1),
        Err(errno) => Err(errno),
    }
}

/// Sends a value whose length the kernel may only ask for (`size` 0).
pub(super) fn send_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(len);
    } else if len > size {
        reply.error(KernelErrno::ERANGE);
    } else {
        reply.data(value);
    }
}
