//! `remora init`, `ticket`, `join`, `daemon`, `status`, `peers`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;

use super::{Global, render};
use crate::client::escape;
use crate::exit::Failure;
use crate::wire::{Peer, Status, TicketLine, TicketWish};

#[derive(Args)]
pub(crate) struct Identity {
    /// What the cluster calls this host [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// Failure domain of this host
    #[arg(long)]
    zone: Option<String>,
    /// Address to listen on for peers, like /ip4/0.0.0.0/tcp/4717; may be repeated
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Init {
    #[command(flatten)]
    identity: Identity,
}

impl Init {
    pub(crate) fn run(self, global: &Global) -> Result<(), Failure> {
        let data = global.data()?;
        let i = self.identity;
        let peer = crate::members::found::init(&data, i.name, i.zone, i.listen)?;
        if global.json {
            return render::json(&serde_json::json!({ "peer": peer, "data": data.root() }));
        }
        render::line(&format!("this host is {peer}, data in {}", data.root().display()));
        render::line("start it with `remora daemon`; let others in with `remora ticket`");
        Ok(())
    }
}

#[derive(Args)]
pub(crate) struct Ticket {
    /// What the new member is for
    #[arg(long, default_value = "storage", value_parser = ["storage", "witness"])]
    role: String,
    /// How long the ticket can be used
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    expires: Duration,
}

impl Ticket {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let wish = TicketWish { witness: self.role == "witness", expires_secs: self.expires.as_secs() };
        let ticket: TicketLine = global.client()?.call(Method::POST, "/v1/tickets", &wish).await?;
        if global.json {
            return render::json(&ticket);
        }
        render::line(&ticket.ticket);
        Ok(())
    }
}

#[derive(Args)]
pub(crate) struct Join {
    /// The line that `remora ticket` printed on a member
    ticket: String,
    #[command(flatten)]
    identity: Identity,
}

impl Join {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let data = global.data()?;
        let i = self.identity;
        let joined = crate::members::found::join(&data, &self.ticket, i.name, i.zone, i.listen).await?;
        if global.json {
            return render::json(&serde_json::json!({ "peer": joined.peer, "members": joined.members }));
        }
        render::line(&format!("joined as {}; the cluster has {} members", joined.peer, joined.members));
        render::line("start it with `remora daemon`");
        Ok(())
    }
}

#[derive(Args)]
pub(crate) struct Daemon {
    /// Docker's plugin socket: auto, off, or a path; overrides the config
    #[arg(long, value_name = "auto|off|PATH")]
    docker_plugin: Option<String>,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

impl Daemon {
    pub(crate) fn run(self, global: &Global) -> Result<(), Failure> {
        let data = global.data()?;
        let socket: PathBuf = global.socket()?;
        crate::run::daemon(&data, &socket, self.docker_plugin, self.log_json)
    }
}

#[derive(Args)]
pub(crate) struct Peers {
    #[command(subcommand)]
    command: Option<PeersCommand>,
}

#[derive(Subcommand)]
enum PeersCommand {
    /// Take a member out of the cluster for good
    Rm { peer: String },
}

impl Peers {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        if let Some(PeersCommand::Rm { peer }) = self.command {
            return client.call::<_, ()>(Method::DELETE, &format!("/v1/peers/{}", escape(&peer)), &()).await;
        }
        let peers: Vec<Peer> = client.get("/v1/peers").await?;
        if global.json {
            return render::json(&peers);
        }
        let rows = peers
            .iter()
            .map(|p| {
                let state = match (p.this_host, p.connected, p.rtt_us) {
                    (true, ..) => "this host".into(),
                    (_, true, Some(us)) => format!("connected, {us} us"),
                    (_, true, None) => "connected".into(),
                    _ => "away".into(),
                };
                vec![
                    p.name.clone(),
                    p.zone.clone(),
                    p.roles.clone(),
                    state,
                    p.peer.clone(),
                    p.addresses.join(" "),
                ]
            })
            .collect();
        render::table(&["NAME", "ZONE", "ROLE", "STATE", "PEER", "ADDRESSES"], rows);
        Ok(())
    }
}

/// `remora status`: exits 0 when the daemon answers.
pub(crate) async fn status(global: &Global) -> Result<(), Failure> {
    let status: Status = global.client()?.get("/v1/status").await?;
    if global.json {
        return render::json(&status);
    }
    let up = humantime::format_duration(Duration::from_secs(status.uptime_secs));
    let rows = vec![
        vec!["host".into(), format!("{} (zone {}), remora {}", status.name, status.zone, status.version)],
        vec!["peer".into(), status.peer],
        vec!["cluster".into(), format!("{} members, {} connected", status.members, status.connected)],
        vec!["daemon".into(), format!("pid {}, up {up}", status.pid)],
        vec!["listens on".into(), status.listen.join(" ")],
        vec!["docker plugin".into(), status.docker_plugin.unwrap_or_else(|| "off".into())],
        vec![
            "store".into(),
            format!(
                "{} blocks, {}; {} free on disk",
                status.store.blocks,
                render::bytes(status.store.bytes),
                render::bytes(status.store.free_bytes)
            ),
        ],
        vec!["volumes".into(), status.volumes.len().to_string()],
    ];
    render::table(&["", ""], rows);
    for volume in &status.volumes {
        if let Some(here) = &volume.here {
            let state = here.failed.as_ref().map_or_else(
                || format!("commit {}, durable {}", here.seq, here.durable_seq),
                |why| format!("STEPPED DOWN: {why}"),
            );
            render::line(&format!("  {}  {}  {state}", volume.name, here.mounts.join(" ")));
            if let Some(advice) = &here.advice {
                render::line(&format!("    what to do: {advice}"));
            }
        }
    }
    for warning in &status.warnings {
        render::line(&format!("warning: {warning}"));
    }
    Ok(())
}
