//! Answers on their way out, and the mount that is taken back if its answer never leaves.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::docker::{VolumeDriver, messages};

/// What an engine is told.
#[derive(Debug)]
pub(super) enum Answer {
    /// A status and a JSON object.
    Json(u16, Value),
    /// As `Json` with status 200, for a mount that is undone if this does not reach the socket.
    Mounted(Value, Box<HeldMount>),
    /// Nothing: the connection is closed.
    HangUp,
}

impl Answer {
    /// Success.
    pub(super) fn ok(value: Value) -> Answer {
        Answer::Json(200, value)
    }

    /// Failure; the engine shows the text to its user as it is.
    pub(super) fn error(status: u16, text: &str) -> Answer {
        Answer::Json(status, messages::error(text))
    }

    /// The response, or `None` to hang up.
    pub(super) fn into_response(self) -> Option<Response<AnswerBody>> {
        let (status, value, held) = match self {
            Answer::Json(status, value) => (status, value, None),
            Answer::Mounted(value, held) => (200, value, Some(held)),
            Answer::HangUp => return None,
        };
        let body = AnswerBody { bytes: Some(Bytes::from(value.to_string())), held };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let json = HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        Some(response)
    }
}

/// One piece of JSON; the moment it is taken for writing is the moment a mount counts as handed over.
#[derive(Debug)]
pub(super) struct AnswerBody {
    bytes: Option<Bytes>,
    held: Option<Box<HeldMount>>,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(held) = self.held.take() {
            held.hand_over();
        }
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let n_bytes = self.bytes.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(u64::try_from(n_bytes).unwrap_or(u64::MAX))
    }
}

/// A mount nobody has been told about yet. Dropping it tells the driver to unmount.
pub(super) struct HeldMount {
    driver: Arc<dyn VolumeDriver>,
    name: String,
    id: String,
    calls: mpsc::Sender<Infallible>,
    runtime: Handle,
    is_handed_over: bool,
}

impl HeldMount {
    /// Holds the mount `id` of volume `name` that `driver` has just made; `calls` keeps a stopping server waiting.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn new(
        driver: Arc<dyn VolumeDriver>,
        name: String,
        id: String,
        calls: mpsc::Sender<Infallible>,
    ) -> HeldMount {
        HeldMount { driver, name, id, calls, runtime: Handle::current(), is_handed_over: false }
    }

    /// The engine has it now; it will unmount.
    pub(super) fn hand_over(mut self) {
        self.is_handed_over = true;
    }
}

impl std::fmt::Debug for HeldMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldMount").field("name", &self.name).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for HeldMount {
    fn drop(&mut self) {
        if self.is_handed_over {
            return;
        }
        let (driver, calls) = (Arc::clone(&self.driver), self.calls.clone());
        let (name, id) = (std::mem::take(&mut self.name), std::mem::take(&mut self.id));
        self.runtime.spawn(async move {
            tracing::info!(name, id, "mount taken back: its caller did not get it");
            if let Err(refusal) = driver.unmount(name.clone(), id).await {
                tracing::warn!(name, %refusal, "mount could not be taken back");
            }
            drop(calls);
        });
    }
}
