//! The API on the unix socket: requests become calls. Root and its group only; nothing here listens on TCP.

mod answer;
mod dag;
mod node;
mod volume;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::routing::{delete, get, post};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::config::Config;
use crate::content::added::Added;
use crate::content::blocks::NodeBlocks;
use crate::exit::{Code, Context, Failure};
use crate::garbage::collecting::Garbage;
use crate::members::membership::Membership;
use crate::volumes::service::Volumes;

/// What the API talks to.
pub(crate) struct Services {
    pub(crate) config: Config,
    pub(crate) data: crate::paths::DataDir,
    pub(crate) members: Arc<Membership>,
    pub(crate) blocks: Arc<NodeBlocks>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) added: Arc<Added>,
    pub(crate) garbage: Arc<Garbage>,
    pub(crate) docker: parking_lot::Mutex<Option<String>>,
    pub(crate) warnings: parking_lot::Mutex<Vec<String>>,
    pub(crate) started: Instant,
}

/// The largest JSON body, in bytes; record streams have no such limit.
const JSON_BYTES_MAX: usize = 64 << 10;

fn router(services: Arc<Services>) -> Router {
    let json = Router::new()
        .route("/v1/status", get(node::status))
        .route("/v1/peers", get(node::peers))
        .route("/v1/peers/{peer}", delete(node::exclude))
        .route("/v1/tickets", post(node::ticket))
        .route("/v1/store", get(node::store_stat))
        .route("/v1/store/verify", post(node::store_verify))
        .route("/v1/store/gc", post(node::store_gc))
        .route("/v1/volumes", get(volume::list).post(volume::create))
        .route("/v1/volumes/{name}", get(volume::inspect).delete(volume::remove))
        .route("/v1/volumes/{name}/mount", post(volume::mount))
        .route("/v1/unmount", post(volume::unmount))
        .route("/v1/dag/cat", get(dag::cat))
        .route("/v1/dag/get", get(dag::get))
        .route("/v1/dag/ls", get(dag::ls))
        .route("/v1/dag/stat", get(dag::stat))
        .layer(axum::extract::DefaultBodyLimit::max(JSON_BYTES_MAX));
    let streams =
        Router::new().route("/v1/dag/add", post(dag::add)).layer(axum::extract::DefaultBodyLimit::disable());
    json.merge(streams).fallback(answer::no_such_call).with_state(services)
}

/// Opens the socket; a stale file is replaced, a live daemon's is not.
pub(crate) async fn listen(socket: &Path) -> Result<UnixListener, Failure> {
    use std::os::unix::fs::PermissionsExt;
    if tokio::net::UnixStream::connect(socket).await.is_ok() {
        let text = format!("a daemon answers on {} already", socket.display());
        return Err(Failure::new(Code::Conflict, text));
    }
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir).doing(format_args!("create {}", dir.display()))?;
    }
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::failed(format!("replace {}: {e}", socket.display())));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).doing(format_args!("listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
        .doing(format_args!("set the mode of {}", socket.display()))?;
    Ok(listener)
}

/// Serves until `stop` says so; requests under way are finished.
pub(crate) async fn serve(listener: UnixListener, services: Arc<Services>, mut stop: watch::Receiver<bool>) {
    let until = async move {
        let _closed_is_stop_too = stop.wait_for(|stop| *stop).await;
    };
    if let Err(e) = axum::serve(listener, router(services)).with_graceful_shutdown(until).await {
        tracing::error!(error = %e, "the API ended");
    }
}
