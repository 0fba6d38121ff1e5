//! The plugin server: takes connections, reads bounded requests, stops in order.
//!
//! A connection is closed unanswered by failing its service; the engine takes that for a broken line and asks again for
//! 15 s, which is the only way to say "not now" that does not make it forget the volume.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::docker::answer::{Answer, AnswerBody};
use crate::docker::desk::Desk;
use crate::docker::socket::{PluginSocket, ServeError, SocketFile};
use crate::docker::{Caller, VolumeDriver};

/// Most bytes of a request's body that are kept.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an oversized body that are read and thrown away so that its sender reads our answer.
const BODY_BYTES_DRAINED: usize = 8 * 1024 * 1024;
/// How long a sender may take for a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections served at once; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 256;
/// How long a stopping server waits for what is in hand.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failed accept, which means that this process is out of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the plugin socket at `socket` and answers on it from `driver` until the returned server is stopped or dropped.
///
/// The same as [`PluginSocket::open`] and [`PluginServer::start`]; call those apart to open the socket before the driver
/// exists. Must be called inside a tokio runtime.
///
/// # Errors
/// [`ServeError`] if the socket cannot be opened or another process answers on it.
pub async fn serve(socket: &Path, driver: Arc<dyn VolumeDriver>) -> Result<PluginServer, ServeError> {
    PluginServer::start(PluginSocket::open(socket)?, driver)
}

/// A running plugin server. Dropping it ends it at once; [`PluginServer::stop`] lets it finish what it has begun.
#[derive(Debug)]
pub struct PluginServer {
    accepting: JoinHandle<()>,
    stop: watch::Sender<bool>,
    /// Ends when the last driver call does: each holds a sender.
    calls: mpsc::Receiver<Infallible>,
}

impl PluginServer {
    /// Answers on `socket` from `driver`.
    ///
    /// # Errors
    /// [`ServeError::Io`] if the runtime cannot take the socket.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(socket: PluginSocket, driver: Arc<dyn VolumeDriver>) -> Result<PluginServer, ServeError> {
        let (listener, file) = socket.into_parts();
        let listener = UnixListener::from_std(listener).map_err(|source| ServeError::Io {
            doing: "serve on the plugin socket",
            path: Default::default(),
            source,
        })?;
        let (stop, stopped) = watch::channel(false);
        let (calls_sender, calls) = mpsc::channel(1);
        let desk = Desk::new(driver, calls_sender);
        let accepting = tokio::spawn(accept(listener, file, desk, stopped));
        Ok(PluginServer { accepting, stop, calls })
    }

    /// Takes no more connections, answers the requests in hand, waits for the driver calls that run (at most 20 s in
    /// all), and removes the socket's file.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let finish = async {
            let _ = (&mut self.accepting).await;
            while self.calls.recv().await.is_some() {}
        };
        if timeout(STOP_TIMEOUT, finish).await.is_err() {
            tracing::warn!("plugin server stopped with requests in hand");
        }
    }
}

impl Drop for PluginServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts until stopped, then waits for the connections. Owns the socket's file: it goes first.
async fn accept(
    listener: UnixListener,
    file: Option<SocketFile>,
    desk: Desk,
    mut stopped: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = stopped.wait_for(|stop| *stop).map(drop) => break,
            Some(_) = connections.join_next() => continue,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = answer_connection(stream, desk.clone(), stopped.clone());
                connections.spawn(connection.map(|()| drop(permit)));
            }
            Err(error) => {
                tracing::warn!(%error, "plugin socket: cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(file);
    drop(listener);
    drop(desk);
    while connections.join_next().await.is_some() {}
}

async fn answer_connection(stream: UnixStream, desk: Desk, mut stopped: watch::Receiver<bool>) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    // A process that our pid namespace cannot see is told as 0.
    let caller = Caller { pid: pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0) };
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { answer_request(request, &desk, caller).await }
    });
    // No time limit on reading a head: it would also end idle connections, and an engine whose request meets a closing
    // connection repeats it with an empty body.
    let connection =
        http1::Builder::new().max_buf_size(BODY_BYTES_MAX).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped.wait_for(|stop| *stop).map(drop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?caller, "plugin connection ended");
    }
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed unanswered: {0}")]
struct Unanswered(&'static str);

async fn answer_request(
    request: Request<Incoming>,
    desk: &Desk,
    caller: Caller,
) -> Result<Response<AnswerBody>, Unanswered> {
    let (head, body) = request.into_parts();
    let body = match timeout(BODY_TIMEOUT, read_body(body)).await {
        Ok(Ok(body)) => body,
        Ok(Err(broken)) => return Err(broken),
        Err(_) => return Err(Unanswered("the body did not come")),
    };
    let answer = match body {
        _ if head.method != Method::POST => Answer::error(405, "the volume plugin protocol knows POST alone"),
        None => Answer::error(413, &format!("the request is longer than {BODY_BYTES_MAX} bytes")),
        Some(body) => desk.answer(head.uri.path(), &body, caller).await,
    };
    tracing::debug!(path = head.uri.path(), ?answer, "plugin request");
    answer.into_response().ok_or(Unanswered("no answer is safer than a wrong one"))
}

/// The body, or `None` if it is too long.
async fn read_body(mut body: Incoming) -> Result<Option<Vec<u8>>, Unanswered> {
    let mut kept = Vec::new();
    let mut n_bytes = 0usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unanswered("the body broke off"))?;
        let Some(data) = frame.data_ref() else { continue };
        n_bytes = n_bytes.saturating_add(data.len());
        if n_bytes > BODY_BYTES_DRAINED {
            return Err(Unanswered("the body is far too long"));
        }
        if n_bytes <= BODY_BYTES_MAX {
            kept.extend_from_slice(data);
        }
    }
    Ok((n_bytes <= BODY_BYTES_MAX).then_some(kept))
}
