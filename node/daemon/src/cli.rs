//! The command line: words in, requests to the daemon out. One command a file.

mod content;
mod get;
mod node;
mod render;
mod send;
mod store;
mod volume;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::client::Client;
use crate::exit::{Context, Failure};
use crate::paths::{DataDir, api_socket, data_dir};

/// Keeps the data of containers where the containers are.
#[derive(Parser)]
#[command(name = "remora", version, about, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong words or options, 3 no daemon answers, 4 not found, \
5 exists already or held by another host, 6 not initialised (or already), 7 damaged key, config or store, \
8 a peer did not answer in time";

/// Options of every command.
#[derive(Args, Clone)]
pub(crate) struct Global {
    /// Data directory [default: /var/lib/remora for root, else $XDG_DATA_HOME/remora]
    #[arg(long, global = true, env = "REMORA_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// API socket of the daemon [default: api.sock in the data directory]
    #[arg(long, global = true, env = "REMORA_API", value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Global {
    pub(crate) fn data(&self) -> Result<DataDir, Failure> {
        Ok(DataDir::new(&data_dir(self.data.as_deref())?))
    }

    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        Ok(api_socket(self.api.as_deref(), self.data()?.root()))
    }

    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(&self.socket()?))
    }
}

#[derive(Subcommand)]
enum Command {
    /// Make this host a node and a cluster of one
    Init(node::Init),
    /// Print a one-use ticket that lets another host join
    Ticket(node::Ticket),
    /// Join the cluster that printed this ticket
    Join(node::Join),
    /// Run the daemon in the foreground
    Daemon(node::Daemon),
    /// Show this node: peers, store, volumes
    Status,
    /// Show the members of the cluster
    Peers(node::Peers),
    /// Add files and directories as UnixFS
    Add(send::Add),
    /// Print a file
    Cat(content::Cat),
    /// Write a file or directory to disk
    Get(get::Get),
    /// List a directory
    Ls(content::Ls),
    /// Show what a CID is
    Stat(content::Stat),
    /// Create, mount and look after volumes
    Volume(volume::Volume),
    /// Look after the block store on this host
    Store(store::Store),
}

/// The whole command: parses, runs, prints an error if there is one, answers the exit code.
///
/// `args` begins with the program's name, as `std::env::args_os` gives it. Ends the process itself for `--help`,
/// `--version` and words it cannot parse (exit code 2).
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let cli = Cli::parse_from(args);
    let json = cli.global.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = if json {
                serde_json::json!({ "error": failure.text, "code": failure.code }).to_string()
            } else {
                format!("remora: {}", failure.text)
            };
            // Who cannot be told still gets the exit code.
            let _told = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(failure.code as u8)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::Daemon(daemon) = cli.command {
        return daemon.run(&cli.global);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start the runtime")?;
    let global = cli.global;
    runtime.block_on(async {
        match cli.command {
            Command::Init(init) => init.run(&global),
            Command::Ticket(ticket) => ticket.run(&global).await,
            Command::Join(join) => join.run(&global).await,
            Command::Status => node::status(&global).await,
            Command::Peers(peers) => peers.run(&global).await,
            Command::Add(add) => add.run(&global).await,
            Command::Cat(cat) => cat.run(&global).await,
            Command::Get(get) => get.run(&global).await,
            Command::Ls(ls) => ls.run(&global).await,
            Command::Stat(stat) => stat.run(&global).await,
            Command::Volume(volume) => volume.run(&global).await,
            Command::Store(store) => store.run(&global).await,
            Command::Daemon(_) => Ok(()),
        }
    })
}
