//! Calls about content.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Query, State};
use axum::response::Response;
use bytes::Bytes;
use cid::Cid;
use futures::StreamExt;
use remora_dag::profile::Profile;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::api::Services;
use crate::api::answer::{Answer, blocking, blocking_json};
use crate::content::browse;
use crate::content::send::{self, Emit};
use crate::exit::Failure;
use crate::wire::{Added, Deframer, Listed, NodeStat, Record};

type Shared = State<Arc<Services>>;

/// Chunks on their way to or from a client; each at most about a mebibyte.
const CHUNKS_IN_FLIGHT: usize = 8;

/// Bytes of a refused stream that are read all the same, and how long its next piece may take.
const DRAINED_BYTES_MAX: usize = 64 << 20;
const DRAIN_PAUSE: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
pub(crate) struct PathQuery {
    path: String,
}

#[derive(Deserialize)]
pub(crate) struct AddQuery {
    profile: String,
}

pub(crate) async fn ls(State(services): Shared, Query(query): Query<PathQuery>) -> Answer<Vec<Listed>> {
    blocking_json(move || browse::list(&*services.blocks, &query.path)).await
}

pub(crate) async fn stat(State(services): Shared, Query(query): Query<PathQuery>) -> Answer<NodeStat> {
    blocking_json(move || {
        let is_local = |cid: &Cid| services.blocks.store().has(cid).unwrap_or(false);
        browse::stat(&*services.blocks, &query.path, is_local)
    })
    .await
}

pub(crate) async fn cat(
    State(services): Shared,
    Query(query): Query<PathQuery>,
) -> Result<Response, Failure> {
    stream(services, query.path, |blocks, cid, emit| send::file(blocks, cid, emit), false).await
}

pub(crate) async fn get(
    State(services): Shared,
    Query(query): Query<PathQuery>,
) -> Result<Response, Failure> {
    stream(services, query.path, |blocks, cid, emit| send::tree(blocks, cid, emit), true).await
}

/// Sends content as it is read. What fails before the first byte is an error of its own; what fails later cuts the stream (and
/// is told in a record, where there are records).
async fn stream(
    services: Arc<Services>,
    path: String,
    send: fn(&dyn remora_dag::block::BlockSource, &Cid, &mut Emit<'_>) -> Result<(), Failure>,
    has_records: bool,
) -> Result<Response, Failure> {
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(CHUNKS_IN_FLIGHT);
    let work = tokio::task::spawn_blocking(move || {
        let blocks = &*services.blocks;
        let result = browse::resolve(blocks, &path)
            .and_then(|cid| send(blocks, &cid, &mut |bytes| sender.blocking_send(Ok(bytes)).is_ok()));
        if let Err(failure) = &result {
            let last = if has_records {
                Ok(Bytes::from(Record::Failed(failure.text.clone()).to_frame()))
            } else {
                Err(std::io::Error::other(failure.text.clone()))
            };
            let _gone = sender.blocking_send(last);
        }
        result
    });
    let first = receiver.recv().await;
    if !matches!(first, Some(Ok(_))) || work.is_finished() {
        // Nothing came, or all is there already: the result is known at once.
        if let Ok(Err(failure)) = work.await {
            return Err(failure);
        }
    }
    let head = futures::stream::iter(first);
    let rest = futures::stream::unfold(receiver, |mut r| async { r.recv().await.map(|item| (item, r)) });
    Ok(Response::new(Body::from_stream(head.chain(rest))))
}

/// Reads on for a while what nobody wants any more: a sender whose connection breaks while it writes never reads why.
async fn drain(mut stream: BodyDataStream) {
    let mut left = DRAINED_BYTES_MAX;
    while let Ok(Some(Ok(chunk))) = tokio::time::timeout(DRAIN_PAUSE, stream.next()).await {
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            return;
        }
    }
}

pub(crate) async fn add(State(services): Shared, Query(query): Query<AddQuery>, body: Body) -> Answer<Added> {
    let profile: Profile =
        query.profile.parse().map_err(|_| Failure::usage(format!("no profile {:?}", query.profile)))?;
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, String>>(CHUNKS_IN_FLIGHT);
    let pump = async move {
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            if sender.send(chunk.map_err(|e| e.to_string())).await.is_err() {
                tokio::spawn(drain(stream));
                return;
            }
        }
    };
    let work = blocking(move || {
        let mut deframer = Deframer::default();
        let mut records = || loop {
            if let Some(record) = deframer.next().map_err(Failure::usage)? {
                return Ok(Some(record));
            }
            match receiver.blocking_recv() {
                Some(Ok(chunk)) => deframer.feed(&chunk),
                Some(Err(why)) => return Err(Failure::failed(format!("the stream of files broke: {why}"))),
                None => return Ok(None),
            }
        };
        let _protection = services.blocks.store().protect();
        let added = crate::content::add::add(&mut records, &*services.blocks, profile)?;
        let root = added.cid.parse().map_err(|_| Failure::failed("the root has no sound CID"))?;
        services.added.note(&root)?;
        Ok(added)
    });
    let ((), added) = tokio::join!(pump, work);
    added.map(Json)
}
