//! A small client of this host's own container engine.
//!
//! The engine keeps the options and labels of a volume for itself and never asks for them, so a host that only heard of a
//! volume from a peer would show none, and compose would refuse to start there. And Swarm schedules nothing to a host
//! whose engine has not yet used a plugin. Both are cured by talking to the engine first: [`Engine::seed`] for each volume
//! learnt from a peer, *before* anything makes the engine ask us for it, then [`Engine::announce`].
//!
//! No engine on the host is a normal state. Every call is bounded in time and in the bytes it takes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Where engines listen.
pub const ENGINE_SOCKET: &str = "/run/docker.sock";

/// Most bytes of an engine's answer.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long one call may take. An engine that waits for some other, broken plugin needs 15 s for it.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);

/// The engine behind one socket; nothing is connected between calls.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
}

/// What an engine is to know about a volume it has not met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seed {
    /// The volume's name.
    #[serde(rename = "Name")]
    pub name: String,
    /// The plugin's name as the engine knows it: its socket's file name without `.sock`.
    #[serde(rename = "Driver")]
    pub driver: String,
    /// The options as they were typed when the volume was created.
    #[serde(rename = "DriverOpts")]
    pub options: BTreeMap<String, String>,
    /// The labels.
    #[serde(rename = "Labels")]
    pub labels: BTreeMap<String, String>,
}

/// A volume of any driver, as the engine tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct EngineVolume {
    /// Its name.
    #[serde(rename = "Name")]
    pub name: String,
    /// Its driver.
    #[serde(rename = "Driver", default)]
    pub driver: String,
    /// The options it was created with on this engine; `None` if it was created elsewhere and not seeded.
    #[serde(rename = "Options", default)]
    pub options: Option<BTreeMap<String, String>>,
    /// The labels; `None` as above.
    #[serde(rename = "Labels", default)]
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct VolumeList {
    #[serde(rename = "Volumes", default)]
    volumes: Option<Vec<EngineVolume>>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    message: String,
}

/// Why an engine could not be told or asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody listens on the socket. Not a fault; try again when one does.
    #[error("no container engine on {}", socket.display())]
    Absent {
        /// The socket.
        socket: PathBuf,
    },
    /// The engine took too long.
    #[error("container engine on {}: no answer to {what} within {} s", socket.display(), CALL_TIMEOUT.as_secs())]
    Late {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        what: &'static str,
    },
    /// The engine said no; its own words.
    #[error("container engine refused {what} ({status}): {message}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The HTTP status.
        status: u16,
        /// What it said, shortened.
        message: String,
    },
    /// The connection broke, or may not be made (permissions).
    #[error("container engine on {}: {what}: {source}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        what: &'static str,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what an engine would say.
    #[error("container engine on {}: the answer to {what} cannot be understood: {reason}", socket.display())]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

impl Engine {
    /// The engine of this host, at [`ENGINE_SOCKET`].
    pub fn local() -> Engine {
        Engine::at(Path::new(ENGINE_SOCKET))
    }

    /// The engine behind `socket`.
    pub fn at(socket: &Path) -> Engine {
        Engine { socket: socket.to_owned() }
    }

    /// Makes the engine look for volume plugins, so that it, and a Swarm it is in, knows us. Yields whether there is one.
    ///
    /// It asks our own plugin socket meanwhile, which must therefore be served already.
    ///
    /// # Errors
    /// All of [`EngineError`] but `Absent`.
    pub async fn announce(&self) -> Result<bool, EngineError> {
        match self.volumes().await {
            Ok(_) => Ok(true),
            Err(EngineError::Absent { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every volume of every driver the engine knows, with the options and labels it keeps; in no order.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn volumes(&self) -> Result<Vec<EngineVolume>, EngineError> {
        let what = "list volumes";
        let bytes = self.call(what, Method::GET, "/volumes", Bytes::new()).await?;
        let list: VolumeList =
            serde_json::from_slice(&bytes).map_err(|error| self.garbled(what, error.to_string()))?;
        Ok(list.volumes.unwrap_or_default())
    }

    /// Tells the engine the options and labels of a volume. It asks our plugin whether the volume exists, finds it, and
    /// keeps them. A volume the engine already met keeps what it has; that cannot be changed and is a success.
    ///
    /// # Errors
    /// [`EngineError`]; `Refused` if the engine has a volume of that name from another driver.
    pub async fn seed(&self, seed: &Seed) -> Result<(), EngineError> {
        let what = "create volume";
        let body = serde_json::to_vec(seed).map_err(|error| self.garbled(what, error.to_string()))?;
        self.call(what, Method::POST, "/volumes/create", Bytes::from(body)).await.map(drop)
    }

    async fn call(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, EngineError> {
        let called = timeout(CALL_TIMEOUT, self.call_unbounded(what, method, path, body)).await;
        let late = EngineError::Late { socket: self.socket.clone(), what };
        called.unwrap_or(Err(late))
    }

    async fn call_unbounded(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, EngineError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                EngineError::Absent { socket: self.socket.clone() }
            }
            _ => self.broken(what, error),
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(what, error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "docker")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(what, error))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| self.broken(what, error))?;
            let status = response.status();
            let collected = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = collected.map_err(|error| match error.downcast::<LengthLimitError>() {
                Ok(_) => self.garbled(what, format!("it is longer than {ANSWER_BYTES_MAX} bytes")),
                Err(source) => EngineError::Broken { socket: self.socket.clone(), what, source },
            })?;
            Ok((status, bytes.to_bytes()))
        };
        // The connection has to be driven while we wait for the exchange; if it ends first, the exchange says why.
        let driven = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        let (status, bytes) = tokio::select! {
            exchanged = exchange => exchanged?,
            () = driven => return Err(self.garbled(what, "the connection ended".to_owned())),
        };
        if status.is_success() { Ok(bytes) } else { Err(refused(what, status, &bytes)) }
    }

    fn broken(
        &self,
        what: &'static str,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> EngineError {
        EngineError::Broken { socket: self.socket.clone(), what, source: Box::new(error) }
    }

    fn garbled(&self, what: &'static str, reason: String) -> EngineError {
        EngineError::Garbled { socket: self.socket.clone(), what, reason }
    }
}

fn refused(what: &'static str, status: StatusCode, bytes: &[u8]) -> EngineError {
    let told = serde_json::from_slice::<Complaint>(bytes).map(|complaint| complaint.message);
    let message = told.unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned());
    EngineError::Refused { what, status: status.as_u16(), message: message.chars().take(1000).collect() }
}
