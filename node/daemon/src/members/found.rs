//! How a node comes to be: `remora init` founds a cluster, `remora join` enters one. Both run without a daemon.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use remora_cluster::cert::{Certificate, ClusterKey, Role, SignedCertificate};
use remora_cluster::identity::PeerId;
use remora_cluster::registry::Registry;
use remora_cluster::registry::entry::Key;
use remora_cluster::registry::exchange::RegistryMessage;
use remora_cluster::ticket::Ticket;
use remora_net::config::NetConfig;
use remora_net::handler::{Handler, RequestRefused};
use remora_net::identity::Identity;
use remora_net::net::Net;
use remora_net::protocol::Protocol;
use remora_net::request::RequestError;
use remora_store::disk::RealDisk;
use remora_store::fault::chain;
use remora_store::lock::DataLock;
use remora_store::registry::Registry as RegistryFile;

use crate::config::Config;
use crate::exit::{Code, Context, Failure};
use crate::members::join::{JOIN_VERSION, JoinAnswer, JoinRequest};
use crate::members::now::unix_ms;
use crate::members::papers::{Papers, identity_failure};
use crate::paths::DataDir;

/// How long a newcomer waits for the issuer of its ticket.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

/// What a member weighs in placement unless it is told otherwise.
pub(crate) const WEIGHT_DEFAULT: u32 = 100;

/// Makes this host a node and the founder of a cluster. Answers its peer id; durable on return.
pub(crate) fn init(
    data: &DataDir,
    name: Option<String>,
    zone: Option<String>,
    listen: Vec<String>,
) -> Result<String, Failure> {
    let config = Config::fresh(name, zone, listen)?;
    let _lock = claim(data)?;
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).doing("draw the cluster key")?;
    let key = ClusterKey::from_seed(&seed);
    let identity = identity_of(data)?;
    let certificate = Certificate {
        cluster: key.id(),
        peer: identity.peer_id(),
        name: config.name.clone(),
        zone: config.zone.clone(),
        weight: WEIGHT_DEFAULT,
        roles: BTreeSet::from([Role::Storage]),
        issued_unix_ms: unix_ms(),
        serial: 1,
    };
    let certificate = key.certify(certificate).doing("sign this node's certificate")?;
    let mut registry = Registry::new(identity.peer_id(), key.id());
    let entry = registry
        .put(Key::Member(identity.peer_id()), Some(certificate.encode()), unix_ms())
        .doing("enter this node into the registry")?;
    write_registry(data, &[Registry::frame(&entry)])?;
    config.save(&data.config())?;
    let papers = Papers { identity, certificate, cluster_key: Some(key) };
    papers.save(data)?;
    Ok(papers.peer().to_string())
}

/// What became of a join.
pub(crate) struct Joined {
    pub(crate) peer: String,
    pub(crate) members: u32,
}

/// Enters the cluster of a ticket; durable on return. A ticket that was answered but whose answer was lost can be used
/// again by the same node: its key is kept.
pub(crate) async fn join(
    data: &DataDir,
    line: &str,
    name: Option<String>,
    zone: Option<String>,
    listen: Vec<String>,
) -> Result<Joined, Failure> {
    let ticket = Ticket::parse(line).map_err(|e| Failure::usage(chain(&e)))?;
    ticket.check_expiry(unix_ms()).map_err(|e| Failure::usage(chain(&e)))?;
    let config = Config::fresh(name, zone, listen)?;
    let _lock = claim(data)?;
    let identity = identity_of(data)?;
    if !data.node_key().exists() {
        identity.save(&data.node_key()).map_err(|e| identity_failure(&e))?;
    }
    let answer = ask(&ticket, &identity, &config).await?;
    let certificate = SignedCertificate::decode(&answer.certificate).doing("read the certificate")?;
    certificate.verify(&ticket.cluster, &identity.peer_id()).doing("check the certificate")?;
    let cluster_key = answer.cluster_seed.map(|seed| ClusterKey::from_seed(&seed));
    if cluster_key.as_ref().is_some_and(|key| key.id() != ticket.cluster) {
        return Err(Failure::failed("the issuer sent the key of another cluster; nothing was changed"));
    }
    let mut registry = Registry::new(identity.peer_id(), ticket.cluster);
    let mut frames = Vec::new();
    for news in &answer.news {
        if let Ok(RegistryMessage::News(entries)) = RegistryMessage::decode(news) {
            let merged = registry.merge_news(entries, unix_ms());
            frames.extend(merged.taken.iter().map(Registry::frame));
        }
    }
    write_registry(data, &frames)?;
    config.save(&data.config())?;
    let papers = Papers { identity, certificate, cluster_key };
    papers.save(data)?;
    Ok(Joined { peer: papers.peer().to_string(), members: answer.members })
}

/// Takes the data directory for a new node; refuses one that is a node already.
fn claim(data: &DataDir) -> Result<DataLock, Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(data.root())
        .doing(format_args!("create {}", data.root().display()))?;
    let lock = DataLock::take(&data.store()).map_err(|e| Failure::new(Code::Conflict, chain(&e)))?;
    if data.member_cert().exists() {
        let text = format!("{} is a node already: nothing was changed", data.root().display());
        return Err(Failure::new(Code::NotReady, text));
    }
    Ok(lock)
}

/// The identity left by an earlier attempt, or a new one.
fn identity_of(data: &DataDir) -> Result<Identity, Failure> {
    if data.node_key().exists() {
        Identity::load(&data.node_key()).map_err(|e| identity_failure(&e))
    } else {
        Ok(Identity::generate())
    }
}

fn write_registry(data: &DataDir, frames: &[Vec<u8>]) -> Result<(), Failure> {
    let dir = data.store().registry();
    let (file, _) =
        RegistryFile::open(Arc::new(RealDisk), &dir, &mut |_| Ok(())).doing("open the registry")?;
    let mut all = frames.iter().cloned();
    file.compact(&mut all).doing("write the registry")?;
    file.close().doing("close the registry")
}

async fn ask(ticket: &Ticket, identity: &Identity, config: &Config) -> Result<JoinAnswer, Failure> {
    let addresses =
        ticket.addresses.iter().filter_map(|a| remora_net::peer::parse_address(a).ok()).collect::<Vec<_>>();
    let net = Net::start(NetConfig::new(identity.clone()), Arc::new(Nobody)).doing("start the network")?;
    let request = JoinRequest {
        version: JOIN_VERSION,
        secret: ticket.secret.0,
        name: config.name.clone(),
        zone: config.zone.clone(),
    };
    let bytes = Bytes::from(postcard::to_stdvec(&request).doing("encode the request")?);
    let asked = net.request_at(&addresses, Some(ticket.issuer), Protocol::Join, bytes, JOIN_TIMEOUT).await;
    net.stop().await;
    let (_, answer) = asked.map_err(|e| refused(&e))?;
    let answer: JoinAnswer = postcard::from_bytes(&answer).doing("read the issuer's answer")?;
    if answer.version != JOIN_VERSION {
        return Err(Failure::failed(format!(
            "the issuer speaks join version {}: update this host",
            answer.version
        )));
    }
    Ok(answer)
}

fn refused(error: &RequestError) -> Failure {
    match error {
        RequestError::Refused(why) => {
            Failure::new(Code::Conflict, format!("the issuer of this ticket refuses: {why}"))
        }
        other => Failure::new(
            Code::Unreachable,
            format!(
                "the issuer of this ticket does not answer ({}): its daemon must run and this host must reach it",
                chain(other)
            ),
        ),
    }
}

/// A newcomer answers nothing.
struct Nobody;

impl Handler for Nobody {
    fn is_member(&self, _peer: &PeerId) -> bool {
        false
    }

    fn on_request(
        &self,
        _peer: PeerId,
        _protocol: Protocol,
        _request: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
        async { Err(RequestRefused::new("this host is joining a cluster")) }.boxed()
    }

    fn on_gossip(&self, _author: PeerId, _message: Bytes) {}

    fn on_connected(&self, _peer: PeerId) {}

    fn on_disconnected(&self, _peer: PeerId) {}
}
