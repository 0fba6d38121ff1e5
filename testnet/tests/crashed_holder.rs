//! A daemon that was killed gives back, after its restart, what nobody on its host uses any more.

use std::path::Path;

use remora_testnet::{exe, nodes};
use rustix::mount::{UnmountFlags, unmount};

#[test]
fn a_volume_whose_holder_crashed_can_be_had_elsewhere_once_that_host_is_back() {
    exe::choose(Path::new(env!("CARGO_BIN_EXE_remora-testnet")));
    if let Err(why) = exe::check_fuse() {
        eprintln!("not run: {why}");
        return;
    }
    let dir = exe::scratch("crashed-holder").unwrap();
    let mut hosts = nodes::cluster(dir.path(), &["x", "y"]).unwrap();
    let [x, y] = hosts.as_mut_slice() else { unreachable!("two names make two nodes") };
    x.ok(&["volume", "create", "v"]).unwrap();
    let at = x.mount("v").unwrap();
    let file = std::fs::File::create(at.join("a")).unwrap();
    file.sync_all().unwrap();
    drop(file);
    x.kill().unwrap();
    // As after the crash of a host whose containers do not come back: nothing is remembered, nothing is mounted.
    std::fs::remove_file(x.data().join("mounts.json")).unwrap();
    unmount(&at, UnmountFlags::DETACH).unwrap();
    x.start().unwrap();
    y.wait_until("x gives the volume back", |status| status["volumes"][0]["holder"].is_null()).unwrap();
    let at = y.mount("v").unwrap();
    assert!(at.join("a").exists(), "what was fsynced is there");
    y.unmount(&at).unwrap();
}
