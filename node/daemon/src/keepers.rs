//! The keepers of this host and the writers on it: the shell around `remora_cluster`'s machines.
//!
//! ```text
//!   desk       which volumes are kept here; who is asked for what
//!   kept       one keeper: its promise and log on disk, its machine, one request at a time
//!   chain      a log as the machines see it: headers, tips, checkpoints
//!   acquiring  the candidate: from nothing to the right to write
//!   streaming  commits on their way to the other keepers, and the writer's lease
//!   writing    a volume that is open for writing here, until it is released
//!   hydrate    the blocks that commits and trees refer to, brought or made here: before an acknowledgement, and in the background
//!   heal       a damaged log made whole from another keeper's
//! ```

pub(crate) mod chain;
pub(crate) mod kept;
pub(crate) mod desk;
pub(crate) mod acquiring;
pub(crate) mod streaming;
pub(crate) mod writing;
pub(crate) mod hydrate;
pub(crate) mod heal;
