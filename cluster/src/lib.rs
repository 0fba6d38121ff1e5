//! What hosts agree on: who is a member, which volumes exist, and who may write which of them.
//!
//! Owns the rules, not the means: everything here is a value or a state machine that takes an event and the time and
//! returns effects. What always holds:
//!
//! * no IO, no clock, no randomness, no async: `now` and random bytes come in as arguments;
//! * the same events in the same order give the same effects and the same bytes, on every host;
//! * what comes from a wire, a disk or a user is bounded before it is believed, and never panics.
//!
//! It deliberately knows nothing of sockets, files, FUSE or what a commit holds: a commit is a term, a sequence number,
//! a digest and the digest before it.

pub mod identity;

pub mod bounded;

pub mod cert;

pub mod ticket;

pub mod hlc;

pub mod volume_record;

pub mod registry;

pub mod placement;

pub mod tip;

pub mod config;

pub mod promise;

pub mod message;

pub mod lease;

pub mod keeper;

pub mod acquire;

pub mod writer;
