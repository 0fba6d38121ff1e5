//! `remora store ...`

use clap::{Args, Subcommand};
use hyper::Method;

use super::{Global, render};
use crate::exit::{Code, Failure};
use crate::wire::{StoreStat, Verified};

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
