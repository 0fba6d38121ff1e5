//! How results and failures become HTTP.

use axum::Json;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exit::Failure;
use crate::wire::ErrorBody;

/// What every handler answers.
pub(crate) type Answer<T> = Result<Json<T>, Failure>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.text, code: self.code })).into_response()
    }
}

/// Reads a JSON body whatever its Content-Type says.
pub(crate) fn read_json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|e| Failure::usage(format!("the request is no good JSON: {e}")))
}

/// Runs work that waits for disks and peers on a thread that may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Failure::failed(format!("the request ended in the middle: {e}"))),
    }
}

/// As [`blocking`], answered as JSON.
pub(crate) async fn blocking_json<T: Serialize + Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Answer<T> {
    blocking(work).await.map(Json)
}

/// For paths that are not there.
pub(crate) async fn no_such_call() -> Failure {
    Failure::not_found("the daemon knows no such call: is the command newer than the daemon?")
}
