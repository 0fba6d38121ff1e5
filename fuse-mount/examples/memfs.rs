//! Mounts an in-memory file system until standard input ends: `memfs DIR [--no-xattr]`.

use remora_fuse_mount::mount::{Mount, MountOptions};
use remora_vfs::attr::Timestamp;
use remora_vfs::memfs::MemFs;
use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().ok_or("usage: memfs DIR [--no-xattr]")?;
    let xattr = args.next().is_none();
    let options = MountOptions { fs_name: "memfs".to_owned(), xattr, ..MountOptions::default() };
    let mount = Mount::start(Arc::new(MemFs::new(Timestamp(0))), Path::new(&dir), &options)?;
    println!("mounted at {}; ends with standard input", mount.dir().display());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:?}", mount.unmount()?);
    Ok(())
}
