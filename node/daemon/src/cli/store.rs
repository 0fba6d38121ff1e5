//! `remora store ...`

use clap::{Args, Subcommand};
use hyper::Method;

use super::{Global, render};
use crate::exit::{Code, Failure};
use crate::wire::{Collected, StoreStat, Verified};

#[derive(Args)]
pub(crate) struct Store {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Count blocks and bytes
    Stat,
    /// Read every block back and check its digest
    Verify,
    /// Give back the space of blocks that nothing refers to; the daemon does so by itself, too
    Gc,
}

impl Store {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        match self.command {
            Command::Stat => {
                let stat: StoreStat = client.get("/v1/store").await?;
                if global.json {
                    return render::json(&stat);
                }
                render::table(
                    &["BLOCKS", "BYTES", "PACKS", "DISK FREE"],
                    vec![vec![
                        stat.blocks.to_string(),
                        render::bytes(stat.bytes),
                        stat.packs.to_string(),
                        render::bytes(stat.free_bytes),
                    ]],
                );
                Ok(())
            }
            Command::Gc => {
                let done: Collected = client.call(Method::POST, "/v1/store/gc", &()).await?;
                if global.json {
                    return render::json(&done);
                }
                render::line(&format!(
                    "{} given back in {} packs, {} moved; {} in packs, {} of them unused",
                    render::bytes(done.bytes_removed.saturating_sub(done.bytes_moved)),
                    done.packs_removed,
                    render::bytes(done.bytes_moved),
                    render::bytes(done.bytes_after),
                    render::bytes(done.bytes_unused_left),
                ));
                Ok(())
            }
            Command::Verify => {
                let report: Verified = client.call(Method::POST, "/v1/store/verify", &()).await?;
                if global.json {
                    render::json(&report)?;
                } else {
                    render::line(&format!("{} blocks, {} read", report.blocks, render::bytes(report.bytes)));
                }
                if report.damaged.is_empty() {
                    return Ok(());
                }
                Err(Failure::new(Code::Damaged, format!("damaged: {}", report.damaged.join(", "))))
            }
        }
    }
}
