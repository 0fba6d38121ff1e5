//! What is agreed with the kernel, once for the mount.

use fuser::{InitFlags, KernelConfig};

/// The most bytes in one read or write request; also the kernel's own limit unless an administrator raised it.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// Requests the kernel may have under way that nobody waits for, such as read-ahead.
const N_BACKGROUND_MAX: u16 = 64;

/// What the kernel is asked for, where it has it.
///
/// `EXPLICIT_INVAL_DATA` keeps cached pages when an mtime changes: only this kernel writes, so they are never old.
/// `ATOMIC_O_TRUNC` is left out on purpose: the kernel then forgets to clear set-user-id bits on `open(O_TRUNC)`.
const CAPABILITIES: [InitFlags; 9] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
];

/// What the kernel has agreed to.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Agreed {
    /// Clearing set-user-id bits is our part.
    pub(super) clears_privileges: bool,
    /// Linux 5.11 or newer.
    pub(super) is_recent: bool,
    /// The kernel enforces ACLs, and leaves umasks to us.
    pub(super) has_acls: bool,
}

/// Settles what this mount uses.
pub(super) fn negotiate(config: &mut KernelConfig, wants_acls: bool) -> Agreed {
    for capability in CAPABILITIES {
        // An older kernel lacks some; each is a matter of speed.
        if config.add_capabilities(capability).is_err() {
            tracing::debug!(?capability, "the kernel does not have it");
        }
    }
    let _ = config.set_max_write(REQUEST_BYTES_MAX);
    if let Err(offered) = config.set_max_readahead(REQUEST_BYTES_MAX) {
        // The mount raises it in sysfs afterwards.
        let _ = config.set_max_readahead(offered);
    }
    let _ = config.set_max_background(N_BACKGROUND_MAX);
    let is_recent = config.capabilities().contains(InitFlags::FUSE_HANDLE_KILLPRIV_V2);
    let clears_privileges = config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV_V2).is_ok();
    // A umask must not touch what takes over a default list, so with ACLs the kernel leaves it to us.
    let acls = InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_DONT_MASK;
    let has_acls = wants_acls && config.add_capabilities(acls).is_ok();
    Agreed { clears_privileges, is_recent, has_acls }
}
