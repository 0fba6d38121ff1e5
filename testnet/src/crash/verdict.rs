//! What a checker found after a crash.

/// About one workload.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// Where the workload is to go on.
    pub(super) next: u64,
    /// Acknowledged and not there.
    pub(super) lost: u64,
    /// There, and never acknowledged: allowed.
    pub(super) survivors: u64,
    /// What no crash explains: torn, half replaced, strange bytes.
    pub(super) damage: Vec<String>,
}
