//! Raw bytes on the plugin socket and the API socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::hostile::names::bad_names;
use crate::hostile::{Cases, check_alive};
use crate::nodes::Node;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Connections that are opened and left alone.
const IDLE: usize = 100;

pub(super) fn run(cases: &mut Cases, dir: &Path) -> Result<()> {
    let mut node = Node::init(dir, "solo")?;
    let plugin = dir.join("plugin.sock");
    node.start_with(&plugin.display().to_string())?;
    let pid = node.pid();
    good(cases, &plugin)?;
    bad_bodies(cases, &plugin)?;
    bad_requests(cases, &plugin)?;
    halves(cases, &plugin)?;
    api(cases, &node.data().join("api.sock"))?;
    let answer = post(&plugin, "/VolumeDriver.List", b"{}")?;
    ensure!(answer.matches("\"Name\"").count() == 1, "the list is another one now: {answer}");
    check_alive(&node, pid)?;
    node.stop()?;
    ensure!(!plugin.exists(), "the plugin socket is left behind");
    Ok(())
}

/// Sends raw bytes and answers everything that came back until the other side closed.
fn send(socket: &Path, bytes: &[u8]) -> Result<String> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    // The other side may have answered and closed before it took everything.
    let _cut = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            anyhow::bail!("no answer and no close in {ANSWER_TIMEOUT:?}")
        }
        _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn post(socket: &Path, path: &str, body: &[u8]) -> Result<String> {
    send(socket, &request("POST", path, body))
}

/// A row about an answer that must have this status and an error text in its body.
fn expect(cases: &mut Cases, what: &str, answer: &str, status: u16, error_key: &str) -> Result<()> {
    let text = error_text(what, answer, status, error_key)?;
    cases.row(what, &format!("{status}: {text}"));
    Ok(())
}

fn error_text(what: &str, answer: &str, status: u16, error_key: &str) -> Result<String> {
    let first = answer.lines().next().unwrap_or_default();
    ensure!(first.starts_with(&format!("HTTP/1.1 {status}")), "{what}: expected {status}: {answer:?}");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let json: serde_json::Value =
        serde_json::from_str(body).with_context(|| format!("{what}: no JSON: {body:?}"))?;
    let text = json[error_key].as_str().unwrap_or_default();
    ensure!(!text.is_empty(), "{what}: no error text: {body}");
    Ok(text.to_owned())
}

fn good(cases: &mut Cases, plugin: &Path) -> Result<()> {
    let answer = post(plugin, "/VolumeDriver.Create", br#"{"Name":"good","Opts":{}}"#)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "a good request is refused: {answer}");
    cases.row("plugin: a good request", "200");
    Ok(())
}

fn bad_bodies(cases: &mut Cases, plugin: &Path) -> Result<()> {
    for call in ["Create", "Get", "Path", "Mount", "Unmount", "Remove"] {
        let answer = post(plugin, &format!("/VolumeDriver.{call}"), b"")?;
        ensure!(answer.is_empty(), "an empty {call} was answered: {answer}");
    }
    cases.row("plugin: empty body", "closed unanswered, 6 calls");
    for body in [&b"{"[..], b"[]", b"\xff\xfe", br#"{"Name":7}"#, b"null"] {
        let answer = post(plugin, "/VolumeDriver.Create", body)?;
        expect(cases, &format!("plugin: wrong JSON {}", body.escape_ascii()), &answer, 400, "Err")?;
    }
    let nested = ["[".repeat(30_000), "]".repeat(30_000)].concat();
    expect(
        cases,
        "plugin: JSON 30,000 deep",
        &post(plugin, "/VolumeDriver.Create", nested.as_bytes())?,
        400,
        "Err",
    )?;
    let big = vec![b'x'; 1 << 20];
    expect(cases, "plugin: 1 MiB body", &post(plugin, "/VolumeDriver.Create", &big)?, 413, "Err")?;
    for (what, name) in bad_names() {
        let body = serde_json::json!({ "Name": name, "ID": "x" }).to_string();
        let mut text = String::new();
        for call in ["Create", "Mount", "Unmount", "Path", "Get", "Remove"] {
            let answer = post(plugin, &format!("/VolumeDriver.{call}"), body.as_bytes())?;
            text = error_text(&format!("plugin: {call}, name: {what}"), &answer, 400, "Err")?;
        }
        cases.row(&format!("plugin: 6 calls, name: {what}"), &format!("400: {text}"));
    }
    let options = br#"{"Name":"o","Opts":{"colour":"blue"}}"#;
    let answer = post(plugin, "/VolumeDriver.Create", options)?;
    ensure!(answer.contains("replicas"), "the refusal does not list the options: {answer}");
    expect(cases, "plugin: unknown option", &answer, 400, "Err")
}

fn bad_requests(cases: &mut Cases, plugin: &Path) -> Result<()> {
    let answer = send(plugin, &request("GET", "/VolumeDriver.List", b""))?;
    expect(cases, "plugin: GET", &answer, 405, "Err")?;
    expect(cases, "plugin: unknown call", &post(plugin, "/VolumeDriver.Explode", b"{}")?, 404, "Err")?;
    let noise: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let answer = send(plugin, &[noise.as_slice(), b"\r\n\r\n"].concat())?;
    ensure!(!answer.starts_with("HTTP/1.1 200"), "noise was taken for a request: {answer}");
    cases.row("plugin: 4 KiB of noise", answer.lines().next().unwrap_or("closed unanswered"));
    let head = format!("POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    let answer = send(plugin, head.as_bytes())?;
    ensure!(!answer.starts_with("HTTP/1.1 200"), "a head of 1 MiB was taken: {answer}");
    cases.row("plugin: a head of 1 MiB", answer.lines().next().unwrap_or("closed unanswered"));
    Ok(())
}

/// Requests that stop in the middle, and connections that say nothing: others are served meanwhile.
fn halves(cases: &mut Cases, plugin: &Path) -> Result<()> {
    let whole = request("POST", "/VolumeDriver.Create", br#"{"Name":"half","Opts":{}}"#);
    let mut open = Vec::new();
    for cut in [10, whole.len() - 5] {
        let mut stream = UnixStream::connect(plugin)?;
        stream.write_all(&whole[..cut])?;
        open.push(stream);
    }
    for _ in 0..IDLE {
        open.push(UnixStream::connect(plugin)?);
    }
    let answer = post(plugin, "/Plugin.Activate", b"")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "half requests keep others from an answer: {answer}");
    for stream in &mut open[..2] {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.shutdown(Shutdown::Write)?;
        let mut rest = String::new();
        // A reset says the same as a close.
        let _closed = stream.read_to_string(&mut rest);
        ensure!(!rest.starts_with("HTTP/1.1 200"), "half a request was carried out: {rest}");
    }
    cases.row(&format!("plugin: 2 half requests, {IDLE} idle connections"), "others served, nothing done");
    Ok(())
}

fn api(cases: &mut Cases, socket: &Path) -> Result<()> {
    expect(cases, "API: wrong JSON", &post(socket, "/v1/volumes", b"{")?, 400, "error")?;
    expect(cases, "API: empty body", &post(socket, "/v1/volumes", b"")?, 400, "error")?;
    expect(cases, "API: unknown call", &post(socket, "/v1/explode", b"")?, 404, "error")?;
    let answer = post(socket, "/v1/volumes", &vec![b' '; 1 << 20])?;
    ensure!(answer.starts_with("HTTP/1.1 413"), "1 MiB of JSON was taken: {answer}");
    cases.row("API: 1 MiB body", "413");
    let answer = post(socket, "/v1/volumes/..%2f..%2fetc/mount", br#"{"dir":"/tmp","read_only":false}"#)?;
    expect(cases, "API: mount of ../../etc", &answer, 404, "error")?;
    let answer = post(socket, "/v1/dag/add?profile=unixfs-v1-2025", &[0xff; 4096])?;
    expect(cases, "API: noise in place of files", &answer, 400, "error")?;
    let answer = send(socket, &request("GET", "/v1/dag/cat?path=%00%ff", b""))?;
    ensure!(answer.starts_with("HTTP/1.1 400"), "a path that is no text was taken: {answer}");
    cases.row("API: a path that is no text", "400");
    Ok(())
}
