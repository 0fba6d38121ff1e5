//! POSIX ACLs, set and asked by the usual commands, enforced by the kernel.

use crate::live::scene::{Scene, as_nobody};
use remora_fuse_mount::mount::MountOptions;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

fn scene() -> Scene {
    let scene = Scene::with(&MountOptions { acl: true, ..MountOptions::default() });
    fs::set_permissions(scene.place.dir().parent().unwrap(), fs::Permissions::from_mode(0o1777)).unwrap();
    scene
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Runs a shell line in the mount.
fn shell(scene: &Scene, line: &str) -> String {
    let out = Command::new("sh").args(["-c", line]).current_dir(scene.place.dir()).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The lines of `getfacl` without names and comments.
fn list(scene: &Scene, name: &str) -> Vec<String> {
    let text = shell(scene, &format!("getfacl -cnE {name}"));
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn a_list_lets_in_whom_it_names_as_far_as_the_mask_says() {
    let scene = scene();
    let path = scene.file("f", b"secret");
    chmod(&path, 0o600);
    let read = format!("cat {} >/dev/null 2>&1", path.display());
    let write = format!("echo x 2>/dev/null >> {}", path.display());
    assert!(!as_nobody(&read));
    shell(&scene, "setfacl -m u:65534:rw f");
    assert_eq!(list(&scene, "f"), ["user::rw-", "user:65534:rw-", "group::---", "mask::rw-", "other::---"]);
    assert_eq!(mode(&path), 0o660, "the group bits are the mask");
    assert!(as_nobody(&read) && as_nobody(&write));
    chmod(&path, 0o640);
    assert!(as_nobody(&read));
    assert!(!as_nobody(&write), "the mask was narrowed");
    chmod(&path, 0o600);
    assert!(!as_nobody(&read));
    shell(&scene, "setfacl -m m::r f");
    assert_eq!(mode(&path), 0o640);
    assert!(as_nobody(&read));
    assert!(shell(&scene, "ls -l f").contains("-rw-r-----+"));
    shell(&scene, "setfacl -b f");
    assert_eq!(mode(&path), 0o600);
    assert!(!as_nobody(&read));
    assert_eq!(list(&scene, "f"), ["user::rw-", "group::---", "other::---"]);
}

#[test]
fn a_default_list_is_taken_over_in_place_of_the_umask() {
    let scene = scene();
    shell(&scene, "mkdir d && setfacl -m u:65534:rx,d:u:65534:rwx,d:o::- d");
    shell(&scene, "umask 077; echo secret > d/f; mkdir d/e; ln -s f d/l; mkfifo d/p");
    assert_eq!(list(&scene, "d/f"), ["user::rw-", "user:65534:rwx", "group::r-x", "mask::rw-", "other::---"]);
    assert_eq!((mode(&scene.path("d/f")), mode(&scene.path("d/e"))), (0o660, 0o770));
    assert!(list(&scene, "d/e").contains(&"default:user:65534:rwx".to_owned()));
    assert!(list(&scene, "d/p").contains(&"user:65534:rwx".to_owned()));
    let below = scene.path("d/e/g");
    assert!(as_nobody(&format!(
        "cat {} >/dev/null && echo x > {}",
        scene.path("d/f").display(),
        below.display()
    )));
    shell(&scene, "setfacl -k d; setfacl -k d; umask 027; echo x > d/g; mkdir d/h");
    assert_eq!(
        (mode(&scene.path("d/g")), mode(&scene.path("d/h"))),
        (0o640, 0o750),
        "a umask is a umask again"
    );
}

#[test]
fn only_the_owner_sets_a_list_and_gains_no_group_by_it() {
    let scene = scene();
    let path = scene.file("f", b"");
    let set = format!("setfacl -m u:7:r {} 2>/dev/null", path.display());
    assert!(!as_nobody(&set));
    std::os::unix::fs::chown(&path, Some(65534), Some(77)).unwrap();
    chmod(&path, 0o2755);
    assert!(as_nobody(&set));
    assert_eq!(mode(&path), 0o755, "65534 is not in group 77");
    chmod(&path, 0o2755);
    shell(&scene, "setfacl -m u:8:r f");
    assert_eq!(mode(&path), 0o2755, "root may");
}

#[test]
fn lists_are_copied_with_their_files() {
    let scene = scene();
    scene.file("f", b"x");
    shell(&scene, "setfacl -m u:7:rwx,g:8:x f; mkdir d; setfacl -d -m g:9:rw d; cp -a f g; cp -a d e");
    assert_eq!(list(&scene, "f"), list(&scene, "g"));
    assert_eq!(list(&scene, "d"), list(&scene, "e"));
    assert!(list(&scene, "e").contains(&"default:group:9:rw-".to_owned()));
}

#[test]
fn trusted_attributes_are_shown_to_root_alone() {
    let scene = scene();
    let path = scene.file("f", b"x");
    shell(&scene, "setfattr -n trusted.a -v 1 f; setfattr -n user.b -v 2 f");
    assert!(shell(&scene, "getfattr -m - f").contains("trusted.a"));
    assert!(as_nobody(&format!("getfattr --absolute-names -m - {} | grep -q user.b", path.display())));
    assert!(!as_nobody(&format!("getfattr --absolute-names -m - {} | grep -q trusted", path.display())));
}
