//! Whole hosts on one machine: each with its own processes, mounts, network, name, `/run` and Docker engine.
//!
//! A [`lab::Lab`] is a switch and the hosts plugged into it; a [`host::Host`] is a set of namespaces around a process that does
//! nothing but be their pid 1. Killing that process is a power failure: everything on the host ends at once.
//!
//! What always holds:
//! * Nothing of a lab is visible in the machine's own network or mount table, so labs do not meet, and nor does the
//!   machine's own engine.
//! * Everything a lab made is gone when its owner is, however that ended: pid 1 of every host and the switch read a pipe
//!   that only the owner writes to, and a janitor outside removes directories and cgroups when it breaks.
//! * A host's disk (`/var/lib/docker`, `/var/lib/remora`) survives its power failure; `/run` does not. The kernel and its page
//!   cache are the machine's, so unsynced data survives too: power loss on a disk is another rig's work.

pub mod needs;
pub mod lab;
pub mod host;
pub mod running;
pub mod engine;
pub mod images;
pub mod debian;
#[cfg(test)]
mod live;
