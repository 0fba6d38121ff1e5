//! The first words of a user: create, ls, inspect, run, rm, on both hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::moving::pair::{BUSYBOX, Container, DRIVER, Pair, Side, X, run_words};

const VOLUME: &str = "notes";

/// "At once": a host that is asked for a volume another one holds has nothing to wait for. Most of it is the engine's own time.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Created on X alone, a volume is listed on Y, and both engines tell the same of it.
pub(super) fn shown_before_it_is_used(pair: &Pair) -> Result<String> {
    let options = ["-o", "size=4GiB", "-o", "mode=0750", "--label", "team=a", "--label", "for=the crew"];
    pair.x.docker(&[&["volume", "create", "-d", DRIVER], &options[..], &[VOLUME]].concat())?;
    pair.y.wait_for("a volume made on the other host", || is_listed(&pair.y, &[]))?;
    let wanted = told(&pair.x)?;
    ensure!(
        wanted["Options"]["size"] == "4GiB" && wanted["Labels"]["for"] == "the crew",
        "X tells {wanted:?}"
    );
    // To list is not yet to use: the engine still learns options and labels from its own daemon.
    pair.y
        .wait_for("a label given on the other host", || is_listed(&pair.y, &["--filter", "label=team=a"]))?;
    let found = told(&pair.y)?;
    ensure!(found == wanted, "the engine on X says {wanted:?}, the one on Y {found:?}");
    Ok(format!("{} options, {} labels on both", length(&wanted["Options"]), length(&wanted["Labels"])))
}

fn is_listed(side: &Side, filter: &[&str]) -> Result<bool> {
    let listed = side.docker(&[&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"], filter].concat())?;
    Ok(listed.lines().any(|line| line == format!("{DRIVER} {VOLUME}")))
}

/// What an engine tells of the volume that must be the same everywhere.
fn told(side: &Side) -> Result<BTreeMap<&'static str, Value>> {
    let text = side.docker(&["volume", "inspect", VOLUME])?;
    let answer: Value = serde_json::from_str(&text).context("read what docker volume inspect prints")?;
    let fields = ["Name", "Driver", "Scope", "CreatedAt", "Options", "Labels"];
    Ok(fields.into_iter().map(|field| (field, answer[0][field].clone())).collect())
}

fn length(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

/// A container on X writes, one on Y reads it and answers, and X reads that.
pub(super) fn written_and_read(pair: &Pair) -> Result<&'static str> {
    pair.x.run(VOLUME, BUSYBOX, &["sh", "-c", "echo 'ahoy from x' > /v/a"])?;
    let read = pair.y.run(VOLUME, BUSYBOX, &["cat", "/v/a"])?;
    ensure!(read == "ahoy from x", "Y reads {read:?}");
    pair.y.run(VOLUME, BUSYBOX, &["sh", "-c", "echo 'aye from y' >> /v/a"])?;
    let read = pair.x.run(VOLUME, BUSYBOX, &["cat", "/v/a"])?;
    ensure!(read == "ahoy from x\naye from y", "X reads {read:?}");
    let mode = pair.x.run(VOLUME, BUSYBOX, &["stat", "-c", "%a", "/v"])?;
    ensure!(mode == "750", "the volume was to have mode 750, not {mode}");
    Ok("and back again")
}

/// A misspelt option makes no volume.
pub(super) fn unknown_option(pair: &Pair) -> Result<String> {
    let (text, _) = pair.x.refused(&["volume", "create", "-d", DRIVER, "-o", "sise=1GiB", "misspelt"])?;
    let names_all =
        ["sise", "replicas", "durability", "size", "uid", "gid", "mode"].iter().all(|o| text.contains(o));
    ensure!(names_all, "the refusal does not list the options: {text}");
    let listed = pair.x.docker(&["volume", "ls", "-q"])?;
    ensure!(!listed.lines().any(|name| name == "misspelt"), "the refused volume is there:\n{listed}");
    Ok(last_sentence(&text))
}

/// While a container on X runs, Y neither runs one nor removes the volume, says why, and X notices nothing.
pub(super) fn refused_while_held(pair: &Pair) -> Result<String> {
    let holder = pair.x.keep("holder", VOLUME)?;
    let mount = format!("{VOLUME}:/v");
    let (text, took) =
        pair.y.refused(&[&run_words(&["--rm", "-v", &mount]), &[BUSYBOX, "true"][..]].concat())?;
    ensure!(text.contains(X), "the refusal does not name the host that holds the volume: {text}");
    ensure!(names_a_time(&text), "the refusal does not say since when: {text}");
    ensure!(took < AT_ONCE, "the refusal took {took:?}");
    let (removal, _) = pair.y.refused(&["volume", "rm", VOLUME])?;
    ensure!(removal.contains(X), "the refusal to remove does not name the host: {removal}");
    still_works(&holder)?;
    holder.remove()?;
    pair.y.run(VOLUME, BUSYBOX, &["grep", "-q", "held", "/v/a"])?;
    Ok(last_sentence(&text))
}

fn still_works(holder: &Container<'_>) -> Result<()> {
    let read = holder.exec(&["sh", "-c", "echo held >> /v/a && tail -n 1 /v/a"])?;
    ensure!(read == "held", "the container on X reads {read:?}");
    Ok(())
}

/// Whether a text has a date of this era in it, as RFC 3339 begins.
fn names_a_time(text: &str) -> bool {
    let is_date = |word: &[u8]| {
        word.starts_with(b"20")
            && word[4] == b'-'
            && word[7] == b'-'
            && word[8..].iter().all(u8::is_ascii_digit)
    };
    text.as_bytes().windows(10).any(is_date)
}

/// What the driver said, without the words of the engine before it.
fn last_sentence(text: &str) -> String {
    let line = text.lines().find(|line| line.contains("rror")).unwrap_or(text);
    line.rsplit("VolumeDriver.").next().unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::names_a_time;

    #[test]
    fn a_time_is_found_only_where_there_is_one() {
        assert!(names_a_time("held by larboard since 2026-01-02T03:04:05Z"));
        assert!(!names_a_time("held by larboard since some time"));
        assert!(!names_a_time("2026"));
    }
}
