//! The daemon's life: everything is started in order, and stopped in reverse.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use remora_fuse_mount::docker::server::PluginServer;
use remora_net::config::NetConfig;
use remora_net::exchange::Exchange;
use remora_net::net::Net;
use remora_store::blocks::{Blocks, BlocksOptions};
use remora_store::disk::RealDisk;
use remora_store::fault::chain;
use remora_store::index::IndexKind;
use remora_store::layout::pack_name;
use remora_store::lock::DataLock;
use remora_store::reserve::Reserve;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{self, Services};
use crate::config::Config;
use crate::content::added::Added;
use crate::content::blocks::NodeBlocks;
use crate::engine::driver::Driver;
use crate::engine::seeding;
use crate::exit::{Code, Context, Failure};
use crate::garbage::collecting::Garbage;
use crate::keepers::desk::Keepers;
use crate::keepers::{heal, hydrate};
use crate::members::membership::Membership;
use crate::members::papers::Papers;
use crate::members::spread;
use crate::paths::DataDir;
use crate::run::peers::Peers;
use crate::volumes::service::Volumes;

mod peers;

/// How long requests under way may take once the daemon is asked to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// How often volumes without users are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Runs the daemon until it is asked to stop (SIGTERM, SIGINT).
pub(crate) fn daemon(
    data: &DataDir,
    socket: &Path,
    docker_plugin: Option<String>,
    log_json: bool,
) -> Result<(), Failure> {
    start_log(log_json);
    let mut config = Config::load(&data.config())?;
    if let Some(choice) = docker_plugin {
        config.docker_plugin = choice;
        config.validate().map_err(Failure::usage)?;
    }
    let _lock = DataLock::take(&data.store()).map_err(|e| Failure::new(Code::Conflict, chain(&e)))?;
    let papers = Papers::load(data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(256)
        .enable_all()
        .build()
        .doing("start the runtime")?;
    let result = runtime.block_on(live(data, socket, config, papers));
    // What still blocks (a fetch from a peer that is away) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn start_log(json: bool) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,libp2p=warn"));
    // A line that cannot be written is lost and nothing else: to tell of it on standard error would panic for the same reason.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    // A second call (in a test) keeps the first log.
    let _already = if json { log.json().try_init() } else { log.with_ansi(false).try_init() };
}

async fn live(data: &DataDir, socket: &Path, config: Config, papers: Papers) -> Result<(), Failure> {
    let (stop, stopping) = watch::channel(false);
    // The engine finds its plugin before anything else: it waits 15 s a volume for one that is not there.
    let driver = Driver::new();
    let (plugin, plugin_warning) = open_plugin(&config, &driver).await?;
    let listener = api::listen(socket).await?;
    let (store, damage) = open_blocks(data, config.reserve_bytes)?;
    let blocks = NodeBlocks::new(store);
    let identity = papers.identity.clone();
    let members = Membership::open(data, papers)?;
    let peers = Peers::new(Arc::clone(&members), blocks.store());
    let net = start_net(&config, identity, &members, &peers)?;
    let keepers = Keepers::open(data, Arc::clone(&members), Arc::clone(&blocks))?;
    let exchange = Exchange::new(net.clone(), keepers.providers());
    blocks.connect(exchange);
    let added = Added::open(data)?;
    let garbage = Garbage::new(&config, Arc::clone(&keepers), Arc::clone(&added));
    let volumes = Volumes::new(data, &config, Arc::clone(&members), Arc::clone(&keepers));
    members.connect(net.clone());
    peers.serve(Arc::clone(&keepers), net.clone());
    let tasks = start_rounds(&members, &net, &keepers, &garbage, &volumes);
    driver.connect(Arc::clone(&volumes));
    let services = Arc::new(Services {
        docker: parking_lot::Mutex::new(plugin.as_ref().map(|(_, path)| path.clone())),
        warnings: parking_lot::Mutex::new(
            plugin_warning.into_iter().chain(damage).chain(added.damage().map(str::to_owned)).collect(),
        ),
        config,
        data: DataDir::new(data.root()),
        members: Arc::clone(&members),
        blocks: Arc::clone(&blocks),
        volumes: Arc::clone(&volumes),
        added: Arc::clone(&added),
        garbage: Arc::clone(&garbage),
        started: Instant::now(),
    });
    let api = tokio::spawn(api::serve(listener, services, stopping.clone()));
    let restore = tokio::task::spawn_blocking({
        let volumes = Arc::clone(&volumes);
        move || volumes.restore()
    });
    let seeding = plugin.as_ref().map(|_| tokio::spawn(seeding::keep(Arc::clone(&members))));
    tracing::info!(peer = %members.me(), socket = %socket.display(), "ready");
    wait_for_signal().await?;
    tracing::info!("stopping: volumes are made durable and handed back");
    let _nobody_listens = stop.send(true);
    if let Some((plugin, _)) = plugin {
        plugin.stop().await;
    }
    finish(api, restore, &volumes).await;
    for task in tasks.into_iter().chain(seeding) {
        task.abort();
    }
    net.stop().await;
    close(garbage, keepers, added, &members, Arc::clone(blocks.store())).await;
    let _gone = std::fs::remove_file(socket);
    tracing::info!("stopped");
    Ok(())
}

/// What a node does again and again beside serving requests.
fn start_rounds(
    members: &Arc<Membership>,
    net: &Net,
    keepers: &Arc<Keepers>,
    garbage: &Arc<Garbage>,
    volumes: &Arc<Volumes>,
) -> [JoinHandle<()>; 6] {
    [
        tokio::spawn(announce(Arc::clone(members), net.clone())),
        tokio::spawn(spread::rounds(Arc::clone(members), net.clone())),
        tokio::spawn(again(SWEEP_EVERY, "look after the volumes", Arc::clone(volumes), |v| v.sweep())),
        tokio::spawn(again(
            hydrate::EVERY,
            "bring volumes to this host",
            Arc::clone(keepers),
            hydrate::round,
        )),
        tokio::spawn(again(garbage.every(), "give back space", Arc::clone(garbage), |g| g.collect_if_due())),
        tokio::spawn(again(heal::EVERY, "heal damaged logs", Arc::clone(keepers), heal::round)),
    ]
}

/// Ends the work on copies; then the store is marked complete, and nothing may be put into it from there on.
async fn close(
    garbage: Arc<Garbage>,
    keepers: Arc<Keepers>,
    added: Arc<Added>,
    members: &Membership,
    store: Arc<Blocks>,
) {
    let ended = tokio::task::spawn_blocking(move || {
        garbage.stop();
        keepers.hydration().stop();
        keepers.close();
        added.close();
    });
    if let Err(e) = ended.await {
        tracing::error!(error = %e, "end the work on copies");
    }
    members.close();
    if let Err(e) = tokio::task::spawn_blocking(move || store.mark_clean()).await.map_err(|e| e.to_string()) {
        tracing::warn!(error = %e, "close the store");
    }
}

/// Lets requests finish, then hands every volume back.
async fn finish(api: JoinHandle<()>, restore: JoinHandle<()>, volumes: &Arc<Volumes>) {
    if tokio::time::timeout(STOP_DEADLINE, async { (api.await, restore.await) }).await.is_err() {
        tracing::warn!("requests under way are given up");
    }
    let volumes = Arc::clone(volumes);
    if let Err(e) = tokio::task::spawn_blocking(move || volumes.stop()).await {
        tracing::error!(error = %e, "hand the volumes back");
    }
}

/// Does blocking work again and again, until the daemon ends; a panic in it is told and does not end it.
async fn again<T: Send + Sync + 'static>(every: Duration, what: &'static str, of: Arc<T>, work: fn(&Arc<T>)) {
    loop {
        tokio::time::sleep(every).await;
        let of = Arc::clone(&of);
        if let Err(e) = tokio::task::spawn_blocking(move || work(&of)).await {
            tracing::error!(error = %e, "{what}");
        }
    }
}

/// Packs are not made smaller than this, however small the reserve is.
const PACK_BYTES_MIN: u64 = 16 << 20;

/// The part of the reserve that is not set aside, but left free for other programs.
pub(crate) const OTHERS_FRACTION: u64 = 4;

/// The block store, and what of it is damaged: those blocks are asked of peers, all others are served.
fn open_blocks(data: &DataDir, reserve_bytes: u64) -> Result<(Arc<Blocks>, Vec<String>), Failure> {
    let mut options = BlocksOptions::new(IndexKind::Sled(data.store().index()));
    if reserve_bytes > 0 {
        // On a full disk a pack must fit into the reserve, to be written anew without what is unused in it.
        options.pack_bytes = options.pack_bytes.min(reserve_bytes).max(PACK_BYTES_MIN);
    }
    let aside = reserve_bytes - reserve_bytes / OTHERS_FRACTION;
    // The collector fills it, once the node has started.
    options.reserve = Some(Arc::new(Reserve::open(Arc::new(RealDisk), &data.store().reserve(), aside)));
    let blocks = Blocks::open(Arc::new(RealDisk), &data.store().packs(), options)
        .map_err(|e| Failure::new(Code::Damaged, format!("open the block store: {}", chain(&e))))?;
    let recovery = blocks.recovery();
    if *recovery != remora_store::blocks::BlocksRecovery::default() {
        tracing::info!(?recovery, "the block store was not closed cleanly, or its index was gone");
    }
    let damage = |d: &remora_store::blocks::DamagedStretch| {
        let file = data.store().packs().join(pack_name(d.pack));
        format!(
            "{} is damaged at byte {}: blocks there are fetched from other hosts, if they have them",
            file.display(),
            d.at
        )
    };
    let damage = recovery.damaged.iter().map(damage).collect();
    Ok((Arc::new(blocks), damage))
}

fn start_net(
    config: &Config,
    identity: remora_net::identity::Identity,
    members: &Arc<Membership>,
    peers: &Arc<Peers>,
) -> Result<Net, Failure> {
    let mut net = NetConfig::new(identity);
    net.cluster = Some(members.papers().cluster());
    net.mdns = config.mdns;
    for address in &config.listen {
        net.listen.push(remora_net::peer::parse_address(address).map_err(|e| Failure::usage(e.to_string()))?);
    }
    Net::start(net, Arc::clone(peers) as Arc<dyn remora_net::handler::Handler>)
        .map_err(|e| Failure::failed(format!("{}: change `listen` in the config", chain(&e))))
}

/// Opens Docker's plugin socket. In "auto" a failure is a warning: a node without an engine is a good node.
async fn open_plugin(
    config: &Config,
    driver: &Arc<Driver>,
) -> Result<(Option<(PluginServer, String)>, Option<String>), Failure> {
    let Some((path, is_required)) = config.docker_socket() else { return Ok((None, None)) };
    let serving = remora_fuse_mount::docker::server::serve(&path, Arc::clone(driver) as _).await;
    match serving {
        Ok(server) => Ok((Some((server, path.display().to_string())), None)),
        Err(e) if is_required => Err(Failure::failed(format!("open Docker's plugin socket: {}", chain(&e)))),
        Err(e) => {
            let text = format!("no Docker plugin: {}", chain(&e));
            tracing::warn!("{text}");
            Ok((None, Some(text)))
        }
    }
}

/// Tells the others where this host listens, now and when that changes.
async fn announce(members: Arc<Membership>, net: Net) {
    net.listening().await;
    loop {
        let keeper = Arc::clone(&members);
        let told = tokio::task::spawn_blocking(move || keeper.announce_addresses()).await;
        if let Ok(Err(failure)) = told {
            tracing::warn!(error = %failure, "announce the addresses of this host");
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

async fn wait_for_signal() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).doing("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).doing("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
