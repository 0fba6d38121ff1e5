//! The rig and the volume plugin protocol, with a real engine: a throwaway driver whose volumes are tmpfs mounts.
//!
//! The driver has to run on the host, so this test program is started there once more, with only
//! [`throwaway_driver`] selected.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use remora_fuse_mount::docker::engine::{Engine, Seed};
use remora_fuse_mount::docker::options::VolumeOptions;
use remora_fuse_mount::docker::server::serve;
use remora_fuse_mount::docker::{Caller, Lookup, Refusal, VolumeDriver, VolumeView};

use crate::hosts::host::Host;
use crate::hosts::lab::Lab;
use crate::hosts::running::{POLL, Running};
use crate::hosts::{images, needs};

const SOCKET: &str = "/run/docker/plugins/probe.sock";
const VOLUMES: &str = "/run/probe";

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send + 'a>>;

struct TmpfsDriver {
    volumes: Mutex<BTreeMap<String, VolumeOptions>>,
}

impl TmpfsDriver {
    fn view(name: &str, options: &VolumeOptions) -> VolumeView {
        let mut view = VolumeView { name: name.to_owned(), ..VolumeView::default() };
        view.status.insert("size".to_owned(), options.size.into());
        view.created = "2026-01-02T03:04:05Z".to_owned();
        view
    }
}

fn sh(script: &str) -> Result<(), Refusal> {
    let output =
        Command::new("sh").args(["-ec", script]).output().map_err(|error| Refusal(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Refusal(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

impl VolumeDriver for TmpfsDriver {
    fn list(&self) -> Vec<VolumeView> {
        self.volumes.lock().iter().map(|(name, options)| TmpfsDriver::view(name, options)).collect()
    }

    fn get(&self, name: &str) -> Lookup {
        match self.volumes.lock().get(name) {
            Some(options) => Lookup::Found(TmpfsDriver::view(name, options)),
            None => Lookup::Absent,
        }
    }

    fn create(&self, name: String, options: VolumeOptions) -> Answer<'_, ()> {
        self.volumes.lock().entry(name).or_insert(options);
        Box::pin(async { Ok(()) })
    }

    fn remove(&self, name: String) -> Answer<'_, ()> {
        self.volumes.lock().remove(&name);
        let at = format!("{VOLUMES}/{name}");
        Box::pin(async move { sh(&format!("if mountpoint -q {at}; then umount {at}; fi")) })
    }

    fn mount(&self, name: String, _: String, _: Caller) -> Answer<'_, PathBuf> {
        Box::pin(async move {
            let at = format!("{VOLUMES}/{name}");
            sh(&format!("mkdir -p {at}; mountpoint -q {at} || mount -t tmpfs tmpfs {at}"))?;
            Ok(PathBuf::from(at))
        })
    }

    fn unmount(&self, _: String, _: String) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// Not a test of its own: the program that [`start_driver`] runs on a host. Waits to be killed.
#[test]
#[ignore = "run on a host by the tests of this file"]
fn throwaway_driver() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let driver = Arc::new(TmpfsDriver { volumes: Mutex::default() });
        let _server = serve(Path::new(SOCKET), driver).await.unwrap();
        std::future::pending::<()>().await;
    });
}

fn start_driver(host: &Host, entry: &[&str]) -> Running {
    let program = std::env::current_exe().unwrap();
    let this =
        [program.to_str().unwrap(), "throwaway_driver", "--ignored", "--nocapture", "--test-threads=1"];
    // The engine waits for the socket as it would on any machine: by asking again.
    host.spawn(&[entry, &this].concat(), "driver").unwrap()
}

/// A running lab, or `None` where the machine cannot have one.
fn lab() -> Option<Lab> {
    match needs::prerequisites() {
        Ok(()) => Some(Lab::new().unwrap()),
        Err(missing) => {
            eprintln!("not run: {missing:#}");
            None
        }
    }
}

#[test]
fn hosts_are_apart_share_a_network_and_leave_nothing() {
    let Some(lab) = lab() else { return };
    let (one, mut two) = (lab.host(1).unwrap(), lab.host(2).unwrap());
    assert_eq!(one.exec(&["hostname"]).unwrap(), "h1");
    assert_eq!(one.exec(&["cat", "/proc/1/comm"]).unwrap(), "sh");
    one.exec(&["sh", "-c", "echo mine > /run/mine; echo kept > /var/lib/remora/kept"]).unwrap();
    assert!(two.exec(&["cat", "/run/mine"]).is_err());
    assert!(!Path::new("/run/mine").exists());

    let address = two.address().to_string();
    let ping = ["busybox", "ping", "-c1", "-W1", address.as_str()];
    one.exec(&ping).unwrap();
    two.cut().unwrap();
    assert!(one.exec(&ping).is_err());
    two.heal().unwrap();
    one.exec(&ping).unwrap();

    two.exec(&["sh", "-c", "echo volatile > /run/v; echo kept > /var/lib/remora/kept"]).unwrap();
    let mut sleeper = two.spawn(&["sleep", "1000"], "sleeper").unwrap();
    let pid = sleeper.pid();
    assert!(sleeper.is_running());
    two.power_off();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "power failure ends everything");
    assert!(two.exec(&["true"]).is_err());
    two.power_on().unwrap();
    assert_eq!(two.exec(&["cat", "/var/lib/remora/kept"]).unwrap(), "kept");
    assert!(two.exec(&["cat", "/run/v"]).is_err());
    one.exec(&ping).unwrap();

    let (directory, pids) = (lab.directory().to_owned(), [one.pid().unwrap(), two.pid().unwrap()]);
    drop((one, two, lab));
    assert!(!directory.exists());
    assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

/// Not a test of its own: the owner of a lab that is killed by the next one.
#[test]
#[ignore = "run and killed by another test of this file"]
fn doomed_owner() {
    let lab = Lab::new().unwrap();
    let host = lab.host(1).unwrap();
    let _sleeper = host.spawn(&["sleep", "1000"], "sleeper").unwrap();
    println!("\nowns {} {}", host.pid().unwrap(), lab.directory().display());
    std::thread::park();
}

#[test]
fn a_lab_whose_owner_was_killed_leaves_nothing() {
    if lab().is_none() {
        return;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner.args(["doomed_owner", "--ignored", "--nocapture"]).stdout(Stdio::piped());
    let mut owner = owner.spawn().unwrap();
    let said = BufReader::new(owner.stdout.take().unwrap()).lines();
    let line = said.map_while(Result::ok).find(|line| line.starts_with("owns ")).unwrap();
    let mut words = line.split(' ').skip(1);
    let host = PathBuf::from(format!("/proc/{}", words.next().unwrap()));
    let directory = PathBuf::from(words.next().unwrap());
    assert!(host.exists() && directory.exists());
    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while host.exists() || directory.exists() {
        assert!(Instant::now() < deadline, "{line} is still there");
        std::thread::sleep(POLL);
    }
}

#[test]
fn a_real_engine_uses_volumes_through_the_plugin_socket() {
    let Some(lab) = lab() else { return };
    let mut host = lab.host(1).unwrap();
    let busybox = images::busybox().unwrap();
    let _driver = start_driver(&host, &[]);
    let started = host.start_dockerd().unwrap();
    eprintln!("engine up in {started:?}");
    host.load(&busybox).unwrap();

    create_inspect_and_refuse(&host);
    write_and_copy(&host, busybox.name);
    copy_up_is_exact(&host, busybox.name);
    seeded_options_are_shown(&host);

    host.docker(&["volume", "rm", "v1", "up", "seeded"]).unwrap();
    assert!(!host.docker(&["volume", "ls", "-q"]).unwrap().contains("v1"));
    host.stop_dockerd().unwrap();
}

fn create_inspect_and_refuse(host: &Host) {
    host.docker(&["volume", "create", "-d", "probe", "-o", "size=1GiB", "--label", "team=a", "v1"]).unwrap();
    host.docker(&["volume", "create", "-d", "probe", "v1"]).unwrap();
    assert!(
        host.docker(&["volume", "ls", "--format", "{{.Driver}} {{.Name}} {{.Scope}}"])
            .unwrap()
            .contains("probe v1 global")
    );
    let inspected = host
        .docker(&["volume", "inspect", "v1", "--format", "{{.Options}} {{.Labels}} {{.Status}}"])
        .unwrap();
    assert!(inspected.contains("map[size:1GiB] map[team:a]") && inspected.contains("size:"), "{inspected}");

    let refused =
        host.docker(&["volume", "create", "-d", "probe", "-o", "sise=1", "v2"]).unwrap_err().to_string();
    assert!(refused.contains("unknown option \"sise\"; valid options: replicas=3"), "{refused}");
    for name in ["../evil", "a b", &"x".repeat(300)] {
        let refused = host.docker(&["volume", "create", "-d", "probe", name]).unwrap_err().to_string();
        assert!(refused.contains("name"), "{refused}");
    }
}

fn write_and_copy(host: &Host, image: &str) {
    let run = |args: &[&str]| host.docker(&[&["run", "--rm", "--network=none"], args].concat()).unwrap();
    run(&["-v", "v1:/v", image, "sh", "-c", "echo hi > /v/a"]);
    assert_eq!(run(&["-v", "v1:/v:ro", image, "cat", "/v/a"]), "hi");
    host.docker(&["run", "-d", "--network=none", "--name", "c1", "-v", "v1:/v", image, "sleep", "1000"])
        .unwrap();
    host.exec(&["sh", "-c", "echo in > /run/in"]).unwrap();
    host.docker(&["cp", "/run/in", "c1:/v/in"]).unwrap();
    host.docker(&["cp", "c1:/v/a", "/run/out"]).unwrap();
    assert_eq!(host.exec(&["cat", "/run/out"]).unwrap(), "hi");
    // `cp` mounts and unmounts with the live container's own id; the container must still have its volume.
    assert_eq!(host.docker(&["exec", "c1", "cat", "/v/in"]).unwrap(), "in");
    let in_use = host.docker(&["volume", "rm", "v1"]).unwrap_err().to_string();
    assert!(in_use.contains("in use"), "{in_use}");
    host.docker(&["rm", "-f", "c1"]).unwrap();
}

fn copy_up_is_exact(host: &Host, image: &str) {
    // Directories have the time of the copy: so does every engine's own copy-up.
    let look = "cd $1 && stat -c '%n %a %u %g %F' . sub && \
        stat -c '%n %a %u %g %F %h %s %Y' plain hard symbolic sub/private fifo setuid sparse old && \
        readlink symbolic && md5sum plain hard setuid sparse old";
    let see = |volume: &str, path: &str| {
        let args = ["run", "--rm", "--network=none", "-v", volume, image, "sh", "-c", look, "look", path];
        host.docker(&args).unwrap()
    };
    host.docker(&["volume", "create", "-d", "probe", "up"]).unwrap();
    // Under /data the engine copies the image's content into the empty volume; elsewhere nothing hides the image's own.
    let (copied, original) = (see("up:/data", "/data"), see("v1:/v", "/data"));
    assert_eq!(copied, original);
    let old = host.exec(&["stat", "-c", "%y", "/run/probe/up/old"]).unwrap();
    assert!(old.contains("05:06.123456789"), "{old}");
    let color = host.exec(&["getfattr", "-n", "user.color", "--only-values", "/run/probe/up/plain"]);
    // tmpfs keeps user xattrs only on newer kernels; where it does, the value has to be there.
    assert!(color.is_err() || color.unwrap() == "blue");
}

fn seeded_options_are_shown(host: &Host) {
    let options = BTreeMap::from([("size".to_owned(), "2g".to_owned())]);
    let labels = BTreeMap::from([("from".to_owned(), "peer".to_owned())]);
    let seed = Seed { name: "seeded".to_owned(), driver: "probe".to_owned(), options, labels };
    let engine = Engine::at(&host.docker_socket().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(engine.seed(&seed)).unwrap();
    assert!(runtime.block_on(engine.announce()).unwrap());
    let volumes = runtime.block_on(engine.volumes()).unwrap();
    let seeded = volumes.iter().find(|volume| volume.name == "seeded").unwrap();
    assert_eq!(seeded.options.as_ref().unwrap()["size"], "2g");
    assert_eq!(seeded.labels.as_ref().unwrap()["from"], "peer");
}

#[test]
fn a_mount_the_engine_cannot_see_is_not_handed_out() {
    let Some(lab) = lab() else { return };
    let mut host = lab.host(1).unwrap();
    let busybox = images::busybox().unwrap();
    let _driver = start_driver(&host, &["unshare", "--mount", "--propagation", "private"]);
    host.start_dockerd().unwrap();
    host.load(&busybox).unwrap();
    let run = [
        "run",
        "--rm",
        "--network=none",
        "--volume-driver",
        "probe",
        "-v",
        "v:/v",
        busybox.name,
        "touch",
        "/v/lost",
    ];
    let refused = host.docker(&run).unwrap_err().to_string();
    assert!(refused.contains("PrivateMounts"), "{refused}");
    assert!(host.exec(&["sh", "-c", "ls -R /run/probe | grep lost"]).is_err());
}

#[test]
fn a_debian_image_holds_working_databases() {
    let Some(lab) = lab() else { return };
    let image = match images::debian() {
        Ok(image) => image,
        Err(missing) if format!("{missing:#}").contains("apt-get install") => {
            return eprintln!("not run: {missing:#}");
        }
        Err(error) => panic!("{error:#}"),
    };
    let mut host = lab.host(1).unwrap();
    host.start_dockerd().unwrap();
    host.load(&image).unwrap();
    let script = "set -e; sqlite3 /tmp/x 'create table t(a); insert into t values(7); select a from t'; redis-server --version; \
        export LC_ALL=C.UTF-8; cd /tmp; su postgres -c '/usr/lib/postgresql/15/bin/initdb -D /tmp/pg -E UTF8 >/dev/null && \
        /usr/lib/postgresql/15/bin/pg_ctl -w -D /tmp/pg -l /tmp/log start >/dev/null && psql -Atc \"select 6*7\" && \
        /usr/lib/postgresql/15/bin/pgbench -i -q postgres 2>/dev/null && /usr/lib/postgresql/15/bin/pg_ctl -m fast -D /tmp/pg stop >/dev/null'; \
        setfattr --version; setfacl --version; ps --version; flock --version; tar --version";
    let said = host.docker(&["run", "--rm", "--network=none", image.name, "bash", "-c", script]).unwrap();
    assert!(said.starts_with("7\nRedis server v=7") && said.contains("\n42\n"), "{said}");
}
