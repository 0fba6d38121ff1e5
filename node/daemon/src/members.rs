//! Who belongs to the cluster, and what all members know: the shell around `remora_cluster::registry`.

pub(crate) mod now;
pub(crate) mod papers;
pub(crate) mod join;
pub(crate) mod found;
pub(crate) mod membership;
pub(crate) mod spread;
