//! Where the memory of the process comes from.
//!
//! A checkpoint takes tens of MiB for a second, in a thread of its own, and leaves small pieces behind that live long. glibc gives
//! threads up to eight arenas a processor and an arena back to the system only from its end, so each kept what one checkpoint took:
//! half of what the process held was in use. jemalloc gives back unused pages wherever they lie, after ten seconds, by a thread that
//! sleeps while there are none. `docs/design/memory.md` has the figures.

use tikv_jemallocator::Jemalloc;

/// The allocator of every program that contains this crate.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;
