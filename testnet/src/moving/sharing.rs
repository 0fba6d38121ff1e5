//! Containers that share a volume on one host, and `docker cp` beside a running one.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::moving::pair::{BUSYBOX, DEBIAN, Pair, run_words};

/// Waits for the other container, then counts up `$2` times, each time under the lock.
const COUNT: &str = "set -e
    touch /v/here.$1; until [ -e /v/here.one ] && [ -e /v/here.two ]; do sleep 0.01; done
    n=0; while [ $n -lt $2 ]; do
        ( flock 9; read -r c </v/counter; echo $((c + 1)) >/v/counter ) 9>/v/lock
        n=$((n + 1))
    done";

/// Two containers count in one file under one lock: no step is lost, and a held lock is seen by the other.
pub(super) fn flock(pair: &Pair, increments: u64) -> Result<String> {
    pair.x.run("shared", BUSYBOX, &["sh", "-c", "echo 0 > /v/counter"])?;
    let times = increments.to_string();
    for name in ["one", "two"] {
        let options = ["-d", "--name", name, "-v", "shared:/v"];
        pair.x.docker(
            &[&run_words(&options), &[DEBIAN, "sh", "-c", COUNT, "count", name, &times][..]].concat(),
        )?;
    }
    for name in ["one", "two"] {
        let code = pair.x.docker(&["wait", name])?;
        ensure!(code == "0", "container {name} ended with {code}: {}", pair.x.said(name)?);
        pair.x.docker(&["rm", name])?;
    }
    let counted = pair.y.run("shared", BUSYBOX, &["cat", "/v/counter"])?;
    ensure!(counted == (2 * increments).to_string(), "2 x {increments} steps were counted as {counted}");
    let holder = pair.x.keep("holds-the-lock", "shared")?;
    let other = pair.x.keep("wants-the-lock", "shared")?;
    let attempt = "flock -n /v/lock true && echo free || echo taken";
    ensure!(other.exec(&["sh", "-c", attempt])? == "free", "a lock nobody holds is taken");
    holder.exec(&[
        "sh",
        "-c",
        "(flock 9; touch /v/locked; sleep 1000) 9>/v/lock >/dev/null 2>&1 & \
        until [ -e /v/locked ]; do sleep 0.01; done",
    ])?;
    ensure!(other.exec(&["sh", "-c", attempt])? == "taken", "two containers hold one lock");
    holder.remove()?;
    ensure!(other.exec(&["sh", "-c", attempt])? == "free", "the lock of a container outlived it");
    other.remove()?;
    Ok(format!("2 x {increments} counted exactly"))
}

/// Copies in and out beside a running container leave it its volume, here and nowhere else.
pub(super) fn copy(pair: &Pair) -> Result<&'static str> {
    let running = pair.x.keep("copied", "copies")?;
    running.exec(&["sh", "-c", "echo out > /v/out"])?;
    let shelf = pair.shelf("copies")?;
    fs::write(shelf.join("in"), "in\n").context("write a file to copy")?;
    let (from, to) = (format!("{}/in", shelf.display()), format!("{}/out", shelf.display()));
    for _ in 0..3 {
        pair.x.docker(&["cp", &from, "copied:/v/in"])?;
        pair.x.docker(&["cp", "copied:/v/out", &to])?;
    }
    let copied = fs::read_to_string(&to).context("read what was copied out")?;
    ensure!(copied == "out\n", "docker cp brought {copied:?} out");
    // The engine unmounted with this container's own id; a second volume of its own would show here.
    let read = running.exec(&["sh", "-c", "echo after > /v/after && cat /v/in"])?;
    ensure!(read == "in", "the container reads {read:?} after docker cp");
    let (text, _) =
        pair.y.refused(&[&run_words(&["--rm", "-v", "copies:/v"]), &[BUSYBOX, "true"][..]].concat())?;
    ensure!(
        text.contains(pair.x.name),
        "after docker cp the volume is not held by its container any more: {text}"
    );
    running.remove()?;
    let moved = pair.y.run("copies", BUSYBOX, &["cat", "/v/in", "/v/out", "/v/after"])?;
    ensure!(moved == "in\nout\nafter", "Y reads {moved:?}");
    Ok("the container kept its volume")
}
