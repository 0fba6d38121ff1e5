//! The protocols of members and their bounds.
//!
//! What always holds: no frame longer than [`Protocol::request_bytes_max`] or [`Protocol::response_bytes_max`] is sent or
//! taken, and nobody has more than [`Protocol::in_flight_max`] requests of one protocol open with one peer.

/// One purpose of a request; each is a libp2p protocol of its own, `/remora/<name>/1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// Asking to become a member; the only one that is open to strangers.
    Join,
    /// Terms, appends and acknowledgements of the keepers of a volume.
    Keeper,
    /// Blocks by their CID.
    Blocks,
    /// Anti-entropy of what all members know.
    Registry,
    /// Reading the log of a volume.
    Log,
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

impl Protocol {
    /// All of them, in a fixed order.
    pub const ALL: [Protocol; 5] =
        [Protocol::Join, Protocol::Keeper, Protocol::Blocks, Protocol::Registry, Protocol::Log];

    /// The name under which two hosts negotiate it.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Protocol::Join => "/remora/join/1",
            Protocol::Keeper => "/remora/keeper/1",
            Protocol::Blocks => "/remora/blocks/1",
            Protocol::Registry => "/remora/registry/1",
            Protocol::Log => "/remora/log/1",
        }
    }

    /// The longest request, in bytes (inclusive).
    #[must_use]
    pub fn request_bytes_max(self) -> usize {
        match self {
            Protocol::Join => 64 * KIB,
            Protocol::Blocks | Protocol::Registry | Protocol::Log => MIB,
            Protocol::Keeper => 5 * MIB,
        }
    }

    /// The longest response, in bytes (inclusive).
    #[must_use]
    pub fn response_bytes_max(self) -> usize {
        match self {
            Protocol::Join => 64 * KIB,
            Protocol::Registry => MIB,
            Protocol::Keeper => 5 * MIB,
            Protocol::Blocks | Protocol::Log => 9 * MIB,
        }
    }

    /// How many requests we keep open with one peer; more wait on our side, where they can still be taken back.
    #[must_use]
    pub fn in_flight_max(self) -> usize {
        match self {
            Protocol::Join => 2,
            Protocol::Keeper => 64,
            Protocol::Blocks | Protocol::Registry | Protocol::Log => 8,
        }
    }

    /// How many requests of one peer we serve at a time. Twice what a well-behaved peer sends, because it forgets a request
    /// at its deadline while we may still be busy with it; more is answered with "busy".
    #[must_use]
    pub fn serve_max(self) -> usize {
        2 * self.in_flight_max()
    }

    /// How many streams one connection carries for this protocol, both directions together.
    pub(crate) fn streams_max(self) -> usize {
        self.serve_max() + 2 * self.in_flight_max()
    }
}

impl AsRef<str> for Protocol {
    fn as_ref(&self) -> &str {
        self.id()
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id())
    }
}
