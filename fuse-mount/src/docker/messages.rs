//! The words of the volume plugin protocol: what the engine sends, and how our answers are spelt.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::docker::VolumeView;

/// Most bytes of a mount id; the engines send 64 hexadecimal digits or a short constant.
pub(super) const ID_BYTES_MAX: usize = 256;

/// `Get`, `Remove`, `Path`.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    /// The volume; not validated.
    #[serde(rename = "Name")]
    pub(super) name: String,
}

/// `Create`.
#[derive(Debug, Deserialize)]
pub(super) struct Created {
    /// The volume; not validated.
    #[serde(rename = "Name")]
    pub(super) name: String,
    /// `null` when there are none.
    #[serde(rename = "Opts", default)]
    pub(super) options: Option<BTreeMap<String, String>>,
}

/// `Mount`, `Unmount`.
#[derive(Debug, Deserialize)]
pub(super) struct Mounted {
    /// The volume; not validated.
    #[serde(rename = "Name")]
    pub(super) name: String,
    /// The operation; very old engines send none.
    #[serde(rename = "ID", default)]
    pub(super) id: String,
}

/// Reads a request's body; the error is a text for the person at the other end.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body)
        .map_err(|error| format!("the request is not what the volume plugin protocol says: {error}"))
}

/// The answer to `Plugin.Activate`.
pub(super) fn activation() -> Value {
    json!({ "Implements": ["VolumeDriver"] })
}

/// The answer to `Capabilities`: a volume is the same on every host.
pub(super) fn capabilities() -> Value {
    json!({ "Capabilities": { "Scope": "global" } })
}

/// The answer to `List`.
pub(super) fn list(volumes: &[VolumeView]) -> Value {
    json!({ "Volumes": volumes.iter().map(short_view).collect::<Vec<_>>(), "Err": "" })
}

/// The answer to `Get`.
pub(super) fn volume(view: VolumeView) -> Value {
    let mut object = short_view(&view);
    if !view.status.is_empty() {
        object.insert("Status".to_owned(), Value::Object(view.status));
    }
    json!({ "Volume": object, "Err": "" })
}

/// The answer to `Mount` and `Path`; not mounted is the empty text.
pub(super) fn mountpoint(path: &str) -> Value {
    json!({ "Mountpoint": path, "Err": "" })
}

/// The answer to what has nothing to tell.
pub(super) fn done() -> Value {
    error("")
}

/// Any answer that says why not.
pub(super) fn error(text: &str) -> Value {
    json!({ "Err": text })
}

/// A mountpoint that is not UTF-8 cannot be written in JSON and is left out, as if there were none.
fn short_view(view: &VolumeView) -> Map<String, Value> {
    let mountpoint = view.mountpoint.as_deref().and_then(|path| path.to_str()).unwrap_or("");
    let mut object = Map::new();
    object.insert("Name".to_owned(), Value::from(view.name.as_str()));
    object.insert("Mountpoint".to_owned(), Value::from(mountpoint));
    // The engine parses it and refuses an empty text, so it is left out instead.
    if !view.created.is_empty() {
        object.insert("CreatedAt".to_owned(), Value::from(view.created.as_str()));
    }
    object
}
