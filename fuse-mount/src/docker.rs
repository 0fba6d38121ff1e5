//! The container engine's side: Remora as a Docker volume driver.
//!
//! The engine finds us by a unix socket in its plugin directory and asks nine questions over HTTP/1.1. [`server`] answers
//! them from a [`VolumeDriver`], which the daemon implements; [`engine`] is the other direction, a small client of the
//! engine's own API. Neither knows what a volume is made of.
//!
//! What always holds:
//! * Names reach a driver only after [`name::VolumeName`] accepted them; options only as [`options::VolumeOptions`].
//! * "I do not know" is never told as an error: an engine that gets an error from `Get` forgets the volume and writes to a
//!   local directory of the same name. The connection is closed unanswered instead, and the engine asks again.
//! * Mount ids are hints. One live container's id is mounted and unmounted again by `docker cp`; a killed engine never
//!   unmounts. A driver must not tear anything down because ids were counted to zero.
//! * Once called, a driver's future runs to its end, also when the engine hung up; it is never dropped half-way.

pub mod name;
pub mod options;
pub mod socket;
pub mod server;
mod desk;
mod messages;
mod answer;
pub mod visibility;
pub mod engine;

use std::path::PathBuf;

use futures::future::BoxFuture;

use crate::docker::options::VolumeOptions;

/// What the daemon does when the container engine asks for volumes.
///
/// Calls for one volume come one after another from one engine, but several engines and retries may overlap: every method
/// may be called at any time from any thread.
pub trait VolumeDriver: Send + Sync + 'static {
    /// Every volume of the cluster, from local state alone. Must not block: it is called on the server's own thread.
    fn list(&self) -> Vec<VolumeView>;

    /// One volume, from local state alone. Must not block. The engine asks this about names of other drivers as well.
    fn get(&self, name: &str) -> Lookup;

    /// Makes the volume if it does not exist.
    ///
    /// Idempotent: a volume of that name which exists already is a success, whatever its options. When it returns `Ok` the
    /// volume is in the catalogue on this host's disk.
    fn create(&self, name: String, options: VolumeOptions) -> BoxFuture<'_, Result<(), Refusal>>;

    /// Removes the volume; refuses while any host holds it.
    fn remove(&self, name: String) -> BoxFuture<'_, Result<(), Refusal>>;

    /// Makes the volume appear on this host for the container operation `id` and says where.
    ///
    /// The answer is an absolute path without symbolic links that *is* a mount point of the volume's file system; the
    /// server checks both that and that the caller sees it, and calls [`VolumeDriver::unmount`] with the same id if it
    /// cannot be handed out. The same id may be mounted twice.
    fn mount(&self, name: String, id: String, caller: Caller) -> BoxFuture<'_, Result<PathBuf, Refusal>>;

    /// Says that the operation `id` needs the volume no longer.
    ///
    /// The engine waits 60 s and ignores errors, so a backlog is flushed after the answer, not before it. An id that is not
    /// known is a success.
    fn unmount(&self, name: String, id: String) -> BoxFuture<'_, Result<(), Refusal>>;
}

/// A volume as the engine and its user see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VolumeView {
    /// Its name; a valid [`name::VolumeName`].
    pub name: String,
    /// Where it is mounted on this host; `None` if it is not.
    pub mountpoint: Option<PathBuf>,
    /// When it was created, as RFC 3339 text in UTC; may be empty if not known.
    pub created: String,
    /// What `docker volume inspect` prints under `Status`: holder, term, replicas, options that are really in force.
    pub status: serde_json::Map<String, serde_json::Value>,
}

/// What local state says about a name.
#[derive(Debug, Clone, PartialEq)]
pub enum Lookup {
    /// The volume exists.
    Found(VolumeView),
    /// The cluster has no volume of that name, as far as this host has heard.
    Absent,
    /// This host cannot tell (its catalogue is not loaded yet). The engine is left without an answer and asks again.
    Unknown,
}

/// Who is asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// Process id of the engine as the kernel knew it when it connected; `None` if it lives in a foreign pid namespace.
    pub pid: Option<u32>,
}

/// Why a driver did not do what it was asked, in one text for the person who typed the command.
///
/// The engine prints it word for word, so it says what is wrong, who or which host is in the way, since when, and what to type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);
