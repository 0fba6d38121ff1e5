//! `remora cat`, `ls`, `stat`: looking at what a CID names.

use std::io::Write;

use clap::Args;
use http_body_util::BodyExt;
use hyper::Method;

use super::{Global, render};
use crate::client::{escape, whole};
use crate::exit::{Context, Failure};
use crate::wire::{Listed, NodeStat};

#[derive(Args)]
pub(crate) struct Cat {
    /// CID, or CID/path/in/a/directory
    path: String,
}

impl Cat {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let path = format!("/v1/dag/cat?path={}", escape(&self.path));
        let mut body = global.client()?.send(Method::GET, &path, whole(Vec::new())).await?.into_body();
        let mut out = std::io::stdout().lock();
        while let Some(frame) = body.frame().await {
            let frame = frame.doing(format_args!("read {}", self.path))?;
            if let Some(data) = frame.data_ref() {
                match out.write_all(data) {
                    Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                    other => other.doing("write to standard output")?,
                }
            }
        }
        out.flush().doing("write to standard output")
    }
}

#[derive(Args)]
pub(crate) struct Ls {
    /// CID, or CID/path/in/a/directory
    path: String,
}

impl Ls {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let listed: Vec<Listed> =
            global.client()?.get(&format!("/v1/dag/ls?path={}", escape(&self.path))).await?;
        if global.json {
            return render::json(&listed);
        }
        let rows = listed
            .iter()
            .map(|e| {
                let slash = if e.kind == "directory" { "/" } else { "" };
                vec![e.cid.clone(), e.size.to_string(), format!("{}{slash}", e.name)]
            })
            .collect();
        render::table(&["CID", "SIZE", "NAME"], rows);
        Ok(())
    }
}

#[derive(Args)]
pub(crate) struct Stat {
    /// CID, or CID/path/in/a/directory
    path: String,
}

impl Stat {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let stat: NodeStat =
            global.client()?.get(&format!("/v1/dag/stat?path={}", escape(&self.path))).await?;
        if global.json {
            return render::json(&stat);
        }
        let rows = vec![
            vec!["cid".into(), stat.cid.clone()],
            vec!["kind".into(), stat.kind.clone()],
            vec![if stat.kind == "directory" { "entries" } else { "size" }.into(), stat.size.to_string()],
            vec!["dag bytes".into(), stat.dag_bytes.to_string()],
            vec!["on this host".into(), if stat.local { "yes" } else { "no" }.into()],
        ];
        render::table(&["", ""], rows);
        Ok(())
    }
}
