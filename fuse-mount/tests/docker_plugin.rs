//! The volume plugin protocol from an engine's side of the socket, with polite and hostile requests, against a driver in
//! this process whose volumes are all "mounted" at `/proc`.

// Lints that spare tests do not see that everything here is one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proptest::prelude::{ProptestConfig, any, proptest};
use remora_fuse_mount::docker::engine::{Engine, EngineError, Seed};
use remora_fuse_mount::docker::options::VolumeOptions;
use remora_fuse_mount::docker::server::{PluginServer, serve};
use remora_fuse_mount::docker::{Caller, Lookup, Refusal, VolumeDriver, VolumeView};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

/// A driver that notes what it is asked. Volume names steer it: `wait...` mounts when the gate opens, `dir...` mounts at a
/// plain directory, `no...` refuses to be removed.
struct Recorder {
    volumes: Mutex<BTreeMap<String, VolumeOptions>>,
    is_known: Mutex<bool>,
    gate: Semaphore,
    calls: mpsc::UnboundedSender<String>,
    directory: PathBuf,
}

impl Recorder {
    fn view(name: &str) -> VolumeView {
        let mut status = serde_json::Map::new();
        status.insert("holder".to_owned(), json!("host-a"));
        let created = "2026-01-02T03:04:05Z".to_owned();
        VolumeView { name: name.to_owned(), mountpoint: None, created, status }
    }

    fn note(&self, call: String) {
        let _ = self.calls.send(call);
    }
}

impl VolumeDriver for Recorder {
    fn list(&self) -> Vec<VolumeView> {
        self.volumes.lock().keys().map(|name| Recorder::view(name)).collect()
    }

    fn get(&self, name: &str) -> Lookup {
        match self.volumes.lock().contains_key(name) {
            true => Lookup::Found(Recorder::view(name)),
            false if *self.is_known.lock() => Lookup::Absent,
            false => Lookup::Unknown,
        }
    }

    fn create(&self, name: String, options: VolumeOptions) -> BoxFuture<'_, Result<(), Refusal>> {
        self.note(format!("create {name}"));
        self.volumes.lock().entry(name).or_insert(options);
        async { Ok(()) }.boxed()
    }

    fn remove(&self, name: String) -> BoxFuture<'_, Result<(), Refusal>> {
        self.note(format!("remove {name}"));
        async move {
            if name.starts_with("no") {
                return Err(Refusal(format!(
                    "{name} is held by host-b since 12:00; stop its container there"
                )));
            }
            self.volumes.lock().remove(&name);
            Ok(())
        }
        .boxed()
    }

    fn mount(&self, name: String, id: String, caller: Caller) -> BoxFuture<'_, Result<PathBuf, Refusal>> {
        self.note(format!("mount {name} {id}"));
        assert_eq!(caller.pid, Some(std::process::id()), "the caller is this test");
        async move {
            if name.starts_with("wait") {
                self.gate.acquire().await.unwrap().forget();
            }
            Ok(if name.starts_with("dir") { self.directory.clone() } else { PathBuf::from("/proc") })
        }
        .boxed()
    }

    fn unmount(&self, name: String, id: String) -> BoxFuture<'_, Result<(), Refusal>> {
        self.note(format!("unmount {name} {id}"));
        async { Ok(()) }.boxed()
    }
}

struct Rig {
    runtime: tokio::runtime::Runtime,
    server: Option<PluginServer>,
    driver: Arc<Recorder>,
    calls: mpsc::UnboundedReceiver<String>,
    directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (sender, calls) = mpsc::unbounded_channel();
        let driver = Arc::new(Recorder {
            volumes: Mutex::default(),
            is_known: Mutex::new(true),
            gate: Semaphore::new(0),
            calls: sender,
            directory: directory.path().to_owned(),
        });
        let served: Arc<dyn VolumeDriver> = Arc::clone(&driver) as Arc<dyn VolumeDriver>;
        let server = runtime.block_on(serve(&directory.path().join("r.sock"), served)).unwrap();
        Rig { runtime, server: Some(server), driver, calls, directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("r.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Status and answer, or `None` if the connection was closed unanswered.
    fn ask(&self, question: &str, body: &[u8]) -> Option<(u16, Value)> {
        ask_on(&mut self.connect(), question, body)
    }

    fn ask_json(&self, question: &str, body: &Value) -> Option<(u16, Value)> {
        self.ask(question, format!("{body}\n").as_bytes())
    }

    fn next_call(&mut self) -> String {
        self.calls.blocking_recv().unwrap()
    }

    /// The server still answers, and nothing was asked of the driver.
    fn check_unharmed(&mut self) {
        assert_eq!(self.ask_json("VolumeDriver.List", &json!({})).unwrap().0, 200);
        assert!(self.calls.try_recv().is_err(), "the driver was called");
    }
}

fn request(question: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "POST /{question} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
         Accept: application/vnd.docker.plugins.v1.2+json\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn ask_on(stream: &mut UnixStream, question: &str, body: &[u8]) -> Option<(u16, Value)> {
    // A server that closes early makes the write fail; what it said before can still be read.
    let _ = stream.write_all(&request(question, body));
    read_answer(stream)
}

fn read_answer(stream: &mut UnixStream) -> Option<(u16, Value)> {
    let mut head = Vec::new();
    let mut byte = [0u8];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Ok(_) => return None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("no answer and no end: {error}"),
        }
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = content_length(&head);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

fn content_length(head: &str) -> usize {
    head.lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |text| text.parse().unwrap())
}

#[test]
fn a_volume_lives_from_create_to_remove() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask("Plugin.Activate", b"").unwrap().1, json!({ "Implements": ["VolumeDriver"] }));
    let capabilities = rig.ask_json("VolumeDriver.Capabilities", &json!({})).unwrap().1;
    assert_eq!(capabilities, json!({ "Capabilities": { "Scope": "global" } }));

    let (status, absent) = rig.ask_json("VolumeDriver.Get", &json!({ "Name": "v1" })).unwrap();
    assert_eq!(status, 404);
    assert!(absent["Err"].as_str().unwrap().contains("v1"));

    let create = json!({ "Name": "v1", "Opts": { "size": "10GiB" } });
    assert_eq!(rig.ask_json("VolumeDriver.Create", &create).unwrap(), (200, json!({ "Err": "" })));
    assert_eq!(rig.ask_json("VolumeDriver.Create", &json!({ "Name": "v1", "Opts": null })).unwrap().0, 200);
    assert_eq!(rig.driver.volumes.lock()["v1"].size, Some(10 << 30));

    let (_, got) = rig.ask_json("VolumeDriver.Get", &json!({ "Name": "v1" })).unwrap();
    let volume = json!({
        "Name": "v1", "Mountpoint": "", "CreatedAt": "2026-01-02T03:04:05Z", "Status": { "holder": "host-a" }
    });
    assert_eq!(got, json!({ "Volume": volume, "Err": "" }));
    assert_eq!(rig.ask_json("VolumeDriver.List", &json!({})).unwrap().1["Volumes"][0]["Name"], "v1");
    assert_eq!(rig.ask_json("VolumeDriver.Path", &json!({ "Name": "v1" })).unwrap().1["Mountpoint"], "");

    let mount = json!({ "Name": "v1", "ID": "ab12" });
    let mounted = json!({ "Mountpoint": "/proc", "Err": "" });
    assert_eq!(rig.ask_json("VolumeDriver.Mount", &mount).unwrap(), (200, mounted));
    assert_eq!(rig.ask_json("VolumeDriver.Unmount", &mount).unwrap(), (200, json!({ "Err": "" })));
    assert_eq!(rig.ask_json("VolumeDriver.Remove", &json!({ "Name": "v1" })).unwrap().0, 200);
    let calls: Vec<String> = (0..5).map(|_| rig.next_call()).collect();
    assert_eq!(calls, ["create v1", "create v1", "mount v1 ab12", "unmount v1 ab12", "remove v1"]);
    rig.check_unharmed();
}

#[test]
fn a_refusal_reaches_the_user_word_for_word() {
    let rig = Rig::new();
    let (status, answer) = rig.ask_json("VolumeDriver.Remove", &json!({ "Name": "nope" })).unwrap();
    assert_eq!(status, 500);
    assert_eq!(answer["Err"], "nope is held by host-b since 12:00; stop its container there");
}

#[test]
fn one_connection_carries_many_requests() {
    let rig = Rig::new();
    let mut stream = rig.connect();
    for _ in 0..50 {
        assert_eq!(ask_on(&mut stream, "VolumeDriver.List", b"{}\n").unwrap().0, 200);
        assert_eq!(ask_on(&mut stream, "VolumeDriver.Get", b"{\"Name\":\"x\"}\n").unwrap().0, 404);
    }
}

#[test]
fn not_knowing_closes_the_connection_instead_of_telling_an_error() {
    let mut rig = Rig::new();
    *rig.driver.is_known.lock() = false;
    for question in ["VolumeDriver.Get", "VolumeDriver.Path"] {
        assert_eq!(rig.ask_json(question, &json!({ "Name": "v1" })), None);
    }
    rig.check_unharmed();
}

#[test]
fn an_empty_body_is_never_taken_for_a_question_about_a_volume() {
    let mut rig = Rig::new();
    for question in ["Create", "Get", "Path", "Mount", "Unmount", "Remove", "Nonsense"] {
        for body in [&b""[..], b"\n", b"  \r\n"] {
            assert_eq!(rig.ask(&format!("VolumeDriver.{question}"), body), None, "{question}");
        }
    }
    // Podman asks these without a body; they have no argument that could be lost.
    assert_eq!(rig.ask("VolumeDriver.List", b"").unwrap().0, 200);
    assert_eq!(rig.ask("VolumeDriver.Capabilities", b"").unwrap().0, 200);
    rig.check_unharmed();
}

#[test]
fn no_endpoint_passes_a_bad_name_on() {
    let mut rig = Rig::new();
    let long = "x".repeat(300);
    for name in ["", ".", "..", "../evil", "a b", "ünï", "x:y", "/etc", "a/../b", "-v", "a\0b", long.as_str()]
    {
        for question in ["Create", "Get", "Path", "Mount", "Unmount", "Remove"] {
            let body = json!({ "Name": name, "ID": "1" });
            let (status, answer) = rig.ask_json(&format!("VolumeDriver.{question}"), &body).unwrap();
            assert_eq!(status, 400, "{question} {name:?}");
            assert!(answer["Err"].as_str().unwrap().contains("name"), "{answer}");
        }
    }
    rig.check_unharmed();
}

#[test]
fn bad_options_are_refused_with_the_valid_ones_named() {
    let mut rig = Rig::new();
    for options in
        [json!({ "sise": "1g" }), json!({ "size": "big" }), json!({ "flag": "" }), json!({ "mode": "999" })]
    {
        let create = json!({ "Name": "v1", "Opts": options });
        let (status, answer) = rig.ask_json("VolumeDriver.Create", &create).unwrap();
        assert_eq!(status, 400);
        assert!(answer["Err"].as_str().unwrap().contains("replicas=3"), "{answer}");
    }
    rig.check_unharmed();
}

#[test]
fn wrong_json_gets_a_clear_error() {
    let mut rig = Rig::new();
    let deep = "[".repeat(60_000);
    for body in [
        "{",
        "[]",
        "null",
        "42",
        "\"v1\"",
        "{}",
        "{\"Name\":1}",
        "{\"Name\":\"v\"}{}",
        "{\"name\":\"v\"}",
        "\u{0}",
        "not json",
        "{\"Name\":\"v\",\"Name\":\"w\"}",
        "{\"Name\":\"v\",\"Opts\":{\"size\":5},\"ID\":5}",
        deep.as_str(),
    ] {
        for question in ["Create", "Mount"] {
            let (status, answer) = rig.ask(&format!("VolumeDriver.{question}"), body.as_bytes()).unwrap();
            assert_eq!(status, 400, "{question} {body:.40}");
            assert!(!answer["Err"].as_str().unwrap().is_empty());
        }
    }
    assert_eq!(rig.ask("VolumeDriver.Get", b"{\"Name\":\"\xff\xfe\"}").unwrap().0, 400);
    rig.check_unharmed();
}

#[test]
fn a_body_that_is_too_long_is_refused_and_too_long_by_far_is_cut_off() {
    let mut rig = Rig::new();
    for n_bytes in [64 * 1024 + 1, 1 << 20] {
        let body = json!({ "Name": "v1", "Opts": { "size": "1".repeat(n_bytes) } });
        assert_eq!(rig.ask_json("VolumeDriver.Create", &body).unwrap().0, 413);
    }
    assert_eq!(rig.ask("VolumeDriver.Create", &vec![b' '; 32 << 20]), None);
    rig.check_unharmed();
}

#[test]
fn half_requests_and_noise_disturb_nobody() {
    let mut rig = Rig::new();
    let whole = request("VolumeDriver.Create", b"{\"Name\":\"v1\"}\n");
    let mut hanging = Vec::new();
    for n_bytes in (0..whole.len()).step_by(7) {
        let mut stream = rig.connect();
        stream.write_all(&whole[..n_bytes]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(read_answer(&mut stream).is_none_or(|(status, _)| status == 400));
        let mut stream = rig.connect();
        stream.write_all(&whole[..n_bytes]).unwrap();
        hanging.push(stream);
    }
    for noise in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", &[b'A'; 200_000]]
    {
        let mut stream = rig.connect();
        let _ = stream.write_all(noise);
        let _ = stream.shutdown(Shutdown::Write);
        assert!(read_answer(&mut stream).is_none_or(|(status, _)| status >= 400));
    }
    let mut stream = rig.connect();
    stream.write_all(b"GET /VolumeDriver.List HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut stream).unwrap().0, 405);
    assert_eq!(rig.ask_json("VolumeDriver.Frobnicate", &json!({ "Name": "v" })).unwrap().0, 404);
    rig.check_unharmed();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_bytes_as_a_body_are_answered_or_closed(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        static RIG: LazyLock<Mutex<Rig>> = LazyLock::new(|| Mutex::new(Rig::new()));
        let mut rig = RIG.lock();
        for question in ["Create", "Get", "Mount", "Unmount", "Remove", "List"] {
            rig.ask(&format!("VolumeDriver.{question}"), &body);
        }
        rig.check_unharmed();
    }
}

#[test]
fn a_path_that_is_not_a_mount_is_not_handed_out_and_is_taken_back() {
    let mut rig = Rig::new();
    let (status, answer) = rig.ask_json("VolumeDriver.Mount", &json!({ "Name": "dir", "ID": "7" })).unwrap();
    assert_eq!(status, 500);
    assert!(answer["Err"].as_str().unwrap().contains("nothing is mounted"), "{answer}");
    assert_eq!([rig.next_call(), rig.next_call()], ["mount dir 7", "unmount dir 7"]);
}

#[test]
fn a_mount_whose_caller_hung_up_is_taken_back() {
    let mut rig = Rig::new();
    let mut stream = rig.connect();
    stream.write_all(&request("VolumeDriver.Mount", b"{\"Name\":\"wait\",\"ID\":\"7\"}\n")).unwrap();
    assert_eq!(rig.next_call(), "mount wait 7");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_answer(&mut stream), None, "the server has noticed");
    rig.driver.gate.add_permits(1);
    assert_eq!(rig.next_call(), "unmount wait 7");
}

#[test]
fn stopping_finishes_what_is_in_hand_and_removes_the_socket() {
    let mut rig = Rig::new();
    let mut idle = rig.connect();
    assert_eq!(ask_on(&mut idle, "VolumeDriver.List", b"{}").unwrap().0, 200);
    let mut busy = rig.connect();
    busy.write_all(&request("VolumeDriver.Mount", b"{\"Name\":\"wait\",\"ID\":\"7\"}\n")).unwrap();
    assert_eq!(rig.next_call(), "mount wait 7");
    let stopping = rig.runtime.spawn(rig.server.take().unwrap().stop());
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "idle connections end");
    rig.driver.gate.add_permits(1);
    assert_eq!(read_answer(&mut busy).unwrap().1["Mountpoint"], "/proc");
    rig.runtime.block_on(stopping).unwrap();
    assert!(!rig.socket().exists());
    assert!(rig.calls.try_recv().is_err(), "a delivered mount stays");
}

#[test]
fn an_engine_is_asked_and_told_and_may_be_absent() {
    let rig = Rig::new();
    let nobody = Engine::at(Path::new("/nonexistent/docker.sock"));
    assert!(!rig.runtime.block_on(nobody.announce()).unwrap());
    let seed = Seed {
        name: "v1".to_owned(),
        driver: "remora".to_owned(),
        options: BTreeMap::from([("size".to_owned(), "1g".to_owned())]),
        labels: BTreeMap::new(),
    };
    assert!(matches!(rig.runtime.block_on(nobody.seed(&seed)), Err(EngineError::Absent { .. })));

    let path = rig.directory.path().join("engine.sock");
    let engine = Engine::at(&path);
    let list = "{\"Volumes\":[{\"Name\":\"v1\",\"Driver\":\"remora\",\"Labels\":null,\"Options\":{\"size\":\"1g\"}}]}";
    let complaint = "{\"message\":\"v1 exists\"}";
    let heard =
        play_engine(&path, &[(200, list), (409, complaint), (200, "<html>"), (200, "{\"Volumes\":null}")]);
    let volumes = rig.runtime.block_on(engine.volumes()).unwrap();
    assert_eq!(volumes[0].options, Some(seed.options.clone()));
    let refused = rig.runtime.block_on(engine.seed(&seed)).unwrap_err();
    assert!(matches!(&refused, EngineError::Refused { status: 409, message, .. } if message == "v1 exists"));
    assert!(matches!(rig.runtime.block_on(engine.volumes()), Err(EngineError::Garbled { .. })));
    assert!(rig.runtime.block_on(engine.announce()).unwrap());
    let heard = heard.join().unwrap();
    assert!(heard[0].starts_with("GET /volumes HTTP/1.1\r\n"), "{}", heard[0]);
    assert!(heard[1].starts_with("POST /volumes/create HTTP/1.1\r\n"), "{}", heard[1]);
    assert!(heard[1].contains("\"DriverOpts\":{\"size\":\"1g\"}"), "{}", heard[1]);
}

/// Answers one connection after the other with the given answers; yields the requests.
fn play_engine(path: &Path, answers: &[(u16, &str)]) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(path).unwrap();
    let answers: Vec<(u16, String)> =
        answers.iter().map(|(status, body)| (*status, (*body).to_owned())).collect();
    std::thread::spawn(move || {
        let mut heard = Vec::new();
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let n_bytes = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..n_bytes]);
                let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
                if text.split_once("\r\n\r\n").is_some_and(|(head, body)| body.len() >= content_length(head))
                {
                    break;
                }
            }
            heard.push(String::from_utf8(request).unwrap());
            write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
        heard
    })
}
