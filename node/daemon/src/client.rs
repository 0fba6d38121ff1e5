//! The command's side of the API socket: one HTTP/1.1 connection a call.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::exit::{Code, Context, Failure};
use crate::wire::ErrorBody;

/// The body of a request.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// The largest JSON answer we take, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Talks to the daemon behind one socket.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: &Path) -> Self {
        Client { socket: socket.to_path_buf() }
    }

    /// Sends a request and answers the response, once its status is a good one.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| {
            Failure::new(
                Code::NoDaemon,
                format!(
                    "no daemon answers on {} ({e}): start one with `remora daemon`",
                    self.socket.display()
                ),
            )
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.doing("speak to the daemon")?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "remora")
            .body(body)
            .doing("make the request")?;
        let response = sender.send_request(request).await.map_err(|e| {
            Failure::new(Code::NoDaemon, format!("the daemon went away while it was asked: {e}"))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = collect(response).await?;
        Err(match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Failure::new(body.code, body.error),
            Err(_) => Failure::failed(format!("the daemon answered {status}")),
        })
    }

    /// A call with a JSON body and a JSON answer.
    pub(crate) async fn call<A: Serialize, B: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &A,
    ) -> Result<B, Failure> {
        let bytes = serde_json::to_vec(body).doing("encode the request")?;
        let response = self.send(method, path, whole(bytes)).await?;
        let bytes = collect(response).await?;
        serde_json::from_slice(&bytes).doing("read the daemon's answer")
    }

    /// A call without a body.
    pub(crate) async fn get<B: DeserializeOwned>(&self, path: &str) -> Result<B, Failure> {
        let response = self.send(Method::GET, path, whole(Vec::new())).await?;
        let bytes = collect(response).await?;
        serde_json::from_slice(&bytes).doing("read the daemon's answer")
    }
}

/// A body that is there at once.
pub(crate) fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let limited = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) => Err(Failure::failed(format!("read the daemon's answer: {e}"))),
    }
}

/// Escapes a text for one segment or value of a URL.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
