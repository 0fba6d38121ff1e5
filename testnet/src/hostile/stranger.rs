//! Peers without a certificate: a raw stranger, and a member that was excluded.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use remora_cluster::identity::PeerId;
use remora_net::config::NetConfig;
use remora_net::handler::{Handler, RequestRefused};
use remora_net::identity::Identity;
use remora_net::net::Net;
use remora_net::protocol::Protocol;
use remora_net::request::RequestError;

use crate::hostile::{Cases, check_alive};
use crate::nodes::{Node, cluster};

/// How long the stranger waits for each answer.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run(cases: &mut Cases, dir: &Path) -> Result<()> {
    let mut nodes = cluster(dir, &["one", "two"])?;
    let [one, two] = nodes.as_mut_slice() else { bail!("two names make two nodes") };
    let (pid, pid_two) = (one.pid(), two.pid());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(knock(cases, one))?;
    check_alive(one, pid)?;
    let members = one.json(&["status"])?["members"].clone();
    ensure!(members.as_u64() == Some(2), "the stranger is a member: {members}");
    excluded(cases, one, two)?;
    check_alive(one, pid)?;
    check_alive(two, pid_two)?;
    Ok(())
}

/// A host with a key of its own and no certificate asks for everything.
async fn knock(cases: &mut Cases, node: &Node) -> Result<()> {
    let status = node.json(&["status"])?;
    let peer: PeerId = status["peer"].as_str().and_then(|p| p.parse().ok()).context("the node's peer id")?;
    let listen = status["listen"].as_array().cloned().unwrap_or_default();
    let addresses: Vec<_> =
        listen.iter().filter_map(|a| remora_net::peer::parse_address(a.as_str()?).ok()).collect();
    ensure!(!addresses.is_empty(), "the node listens nowhere: {status}");
    let mut config = NetConfig::new(Identity::generate());
    config.cluster = status["cluster"].as_str().and_then(|c| c.parse().ok());
    let net = Net::start(config, Arc::new(Trusting))?;
    for protocol in Protocol::ALL {
        let asked =
            net.request_at(&addresses, Some(peer), protocol, Bytes::from_static(&[7; 64]), TIMEOUT).await;
        let error = match asked {
            Ok((_, answer)) => bail!("{protocol} was answered to a stranger with {} bytes", answer.len()),
            Err(error) => error,
        };
        let is_refused = match protocol {
            // The one door that is open says no to who has no ticket.
            Protocol::Join => matches!(error, RequestError::Refused(_)),
            _ => matches!(error, RequestError::NotMember { .. } | RequestError::Broken { .. }),
        };
        ensure!(is_refused, "{protocol}: a stranger was told: {error}");
        cases.row(&format!("stranger asks {protocol}"), &error.to_string());
    }
    net.stop().await;
    Ok(())
}

/// A member that is taken out of the cluster is a stranger from then on.
fn excluded(cases: &mut Cases, one: &Node, two: &Node) -> Result<()> {
    let peer = two.json(&["status"])?["peer"].as_str().context("the peer id")?.to_owned();
    let out = one.run(&["peers", "rm", "nonsense"])?;
    cases.refused("peers rm of no peer", &out, 2, &["no peer id"])?;
    one.ok(&["peers", "rm", &peer])?;
    one.wait_until("the excluded member is cut off", |s| s["connected"].as_u64() == Some(0))?;
    let out = one.run(&["peers", "rm", &peer])?;
    cases.refused("peers rm, twice", &out, 4, &["no member"])?;
    one.ok(&["volume", "create", "secret"])?;
    std::thread::sleep(Duration::from_millis(500));
    let seen = two.json(&["volume", "ls"])?;
    ensure!(seen.as_array().is_some_and(Vec::is_empty), "an excluded member hears news: {seen}");
    let connected = one.json(&["status"])?["connected"].clone();
    ensure!(connected.as_u64() == Some(0), "the excluded member is back: {connected}");
    cases.row("a member that was excluded", "cut off, hears nothing, its daemon lives");
    Ok(())
}

/// Believes everybody, answers nobody.
struct Trusting;

impl Handler for Trusting {
    fn is_member(&self, _peer: &PeerId) -> bool {
        true
    }

    fn on_request(
        &self,
        _peer: PeerId,
        _protocol: Protocol,
        _request: Bytes,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Bytes, RequestRefused>> + Send + 'static>> {
        Box::pin(async { Err(RequestRefused::new("a stranger")) })
    }

    fn on_gossip(&self, _author: PeerId, _message: Bytes) {}

    fn on_connected(&self, _peer: PeerId) {}

    fn on_disconnected(&self, _peer: PeerId) {}
}
