//! `remora volume ...`

use clap::{Args, Subcommand};
use hyper::Method;

use super::{Global, render};
use crate::client::escape;
use crate::exit::{Context, Failure};
use crate::wire::{CreateVolume, LocalCopy, MountVolume, UnmountDir, VolumeState};

#[derive(Args)]
pub(crate) struct Volume {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a volume
    Create(Create),
    /// List the volumes of the cluster
    Ls,
    /// Show one volume
    Inspect { name: String },
    /// Remove a volume that is mounted nowhere
    Rm { name: String },
    /// Mount a volume on a directory; returns when the mount answers
    Mount {
        name: String,
        dir: std::path::PathBuf,
        /// Refuse writes through this mount
        #[arg(long)]
        read_only: bool,
    },
    /// Unmount a directory; the last unmount hands the volume back, durable
    Unmount { dir: std::path::PathBuf },
}

#[derive(Args)]
struct Create {
    name: String,
    /// Hosts that keep it
    #[arg(long, value_name = "N")]
    replicas: Option<u8>,
    /// What an fsync waits for: a majority of keepers, or this host's disk
    #[arg(long, value_parser = ["quorum", "local"])]
    durability: Option<String>,
    /// The most bytes it may hold, like 10GiB
    #[arg(long, value_name = "BYTES")]
    size: Option<String>,
    /// Owner of the root directory
    #[arg(long)]
    uid: Option<u32>,
    /// Group of the root directory
    #[arg(long)]
    gid: Option<u32>,
    /// Mode of the root directory, octal
    #[arg(long, value_name = "OCTAL")]
    mode: Option<String>,
    /// Keep and enforce POSIX ACLs; listings of many files take longer then
    #[arg(long)]
    acl: bool,
}

impl Volume {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        match self.command {
            Command::Create(c) => {
                let wish = CreateVolume {
                    name: c.name,
                    replicas: c.replicas,
                    durability: c.durability,
                    size: c.size,
                    uid: c.uid,
                    gid: c.gid,
                    mode: c.mode,
                    acl: c.acl,
                };
                let made: VolumeState = client.call(Method::POST, "/v1/volumes", &wish).await?;
                if global.json {
                    return render::json(&made);
                }
                render::line(&made.name);
                Ok(())
            }
            Command::Ls => {
                let volumes: Vec<VolumeState> = client.get("/v1/volumes").await?;
                if global.json {
                    return render::json(&volumes);
                }
                print_list(&volumes);
                Ok(())
            }
            Command::Inspect { name } => {
                let volume: VolumeState = client.get(&format!("/v1/volumes/{}", escape(&name))).await?;
                if global.json {
                    return render::json(&volume);
                }
                print_one(&volume);
                Ok(())
            }
            Command::Rm { name } => {
                client.call::<_, ()>(Method::DELETE, &format!("/v1/volumes/{}", escape(&name)), &()).await
            }
            Command::Mount { name, dir, read_only } => {
                let dir = absolute(&dir)?;
                let path = format!("/v1/volumes/{}/mount", escape(&name));
                client.call::<_, ()>(Method::POST, &path, &MountVolume { dir, read_only }).await
            }
            Command::Unmount { dir } => {
                let dir = absolute(&dir)?;
                client.call::<_, ()>(Method::POST, "/v1/unmount", &UnmountDir { dir }).await
            }
        }
    }
}

/// The daemon has another working directory: paths go to it absolute.
fn absolute(dir: &std::path::Path) -> Result<String, Failure> {
    let path = std::path::absolute(dir).doing(format_args!("resolve {}", dir.display()))?;
    path.into_os_string().into_string().map_err(|_| Failure::usage("the directory's path is not UTF-8"))
}

fn print_list(volumes: &[VolumeState]) {
    let rows = volumes
        .iter()
        .map(|v| {
            vec![
                v.name.clone(),
                v.holder.as_ref().map_or_else(|| "-".into(), |h| h.host.clone()),
                v.durability.clone(),
                v.keepers.join(","),
                v.here.as_ref().map_or_else(|| "-".into(), |h| h.mounts.join(",")),
            ]
        })
        .collect();
    render::table(&["NAME", "HOLDER", "DURABILITY", "KEEPERS", "MOUNTED HERE"], rows);
}

fn copy_line(copy: &LocalCopy) -> String {
    match (copy.complete, copy.missing_blocks) {
        (true, _) => format!("complete up to commit {}", copy.seq),
        (false, Some(n)) if n > 0 => format!("{n} blocks could not be had yet"),
        (false, _) => "on its way".into(),
    }
}

fn print_one(v: &VolumeState) {
    let mut rows = vec![
        vec!["name".into(), v.name.clone()],
        vec!["id".into(), v.id.clone()],
        vec!["created".into(), v.created.clone()],
        vec!["durability".into(), v.durability.clone()],
        vec!["replicas".into(), v.replicas.to_string()],
        vec!["keepers".into(), v.keepers.join(", ")],
        vec!["size limit".into(), v.size_limit.map_or_else(|| "none".into(), render::bytes)],
        vec!["ACLs".into(), if v.acl { "yes" } else { "no" }.into()],
        vec![
            "holder".into(),
            v.holder.as_ref().map_or_else(|| "nobody".into(), |h| format!("{} since {}", h.host, h.since)),
        ],
    ];
    if let Some(copy) = &v.copy {
        rows.push(vec!["copy on this host".into(), copy_line(copy)]);
        let made = format!("{} ({} of log)", copy.trees_made, render::bytes(copy.made_bytes));
        rows.push(vec!["trees made here".into(), made]);
        rows.push(vec!["fetched behind the log".into(), render::bytes(copy.fetched_bytes)]);
    }
    if let Some(here) = &v.here {
        rows.push(vec!["mounted here".into(), here.mounts.join(", ")]);
        rows.push(vec![
            "term, commit".into(),
            format!("{}, {} (durable {})", here.term, here.seq, here.durable_seq),
        ]);
        rows.push(vec!["files".into(), here.files.to_string()]);
        rows.push(vec!["bytes".into(), render::bytes(here.bytes)]);
        rows.push(vec!["log".into(), render::bytes(here.log_bytes)]);
        rows.push(vec!["keepers lag".into(), format!("{} commits", here.lag_commits)]);
        if let Some(why) = &here.failed {
            rows.push(vec!["STEPPED DOWN".into(), why.clone()]);
        }
        if let Some(advice) = &here.advice {
            rows.push(vec!["what to do".into(), advice.clone()]);
        }
    }
    render::table(&["", ""], rows);
}
