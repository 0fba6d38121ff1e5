#!/usr/bin/env bash
# Everything that must pass before a change lands: style, lints, the whole test suite, the live rigs in their short form.
# Made for Debian 12 with Rust, as root; what is missing it installs, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

say "what this machine needs"
if [ "$(id -u)" != 0 ]; then
  echo "mounting and namespaces need root: run it as root" >&2
  exit 1
fi
if [ ! -e /dev/fuse ]; then
  echo "/dev/fuse is missing: load the module (modprobe fuse) or give the container --device /dev/fuse" >&2
  exit 1
fi
missing=()
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "$1" ] || missing+=("$2"); }
need dockerd docker.io
need ip iproute2
need fusermount3 fuse3
need /bin/busybox busybox-static
need sqlite3 sqlite3
need redis-server redis-server
need /usr/lib/postgresql/15/bin/postgres postgresql-15
need setfattr attr
need getfacl acl
need cc gcc
need make make
need perl perl-base
need mkfs.ext4 e2fsprogs
need setpriv util-linux
need losetup mount
need git git
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  # The packages' own services are not wanted: the rigs start what they need, in namespaces of their own.
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.remora && chmod +x /usr/sbin/policy-rc.d.remora
  [ -e /usr/sbin/policy-rc.d ] || { cp /usr/sbin/policy-rc.d.remora /usr/sbin/policy-rc.d; trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }
  rm -f /usr/sbin/policy-rc.d.remora
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null ||
    { echo "apt-get could not install ${missing[*]}: install them by hand and try again" >&2; exit 1; }
fi
if ! command -v cargo-nextest >/dev/null 2>&1; then
  echo "installing cargo-nextest"
  cargo install --locked cargo-nextest
fi
export CARGO_INCREMENTAL=0

say "style"
cargo fmt --all --check

say "lints"
cargo clippy --workspace --all-targets --quiet -- -D warnings

say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

say "build"
cargo build --release --workspace

say "tests"
cargo nextest run --workspace --cargo-profile release --no-fail-fast

testnet=target/release/remora-testnet
say "demo"
$testnet demo
say "kill -9 and restart"
$testnet restart --rounds 8
say "hand-off by size"
$testnet sizes --mib 10,256 --rounds 3
say "bad input"
$testnet hostile
say "POSIX: pjdfstest, what a volume can do beside ext4, fsx through hand-offs"
$testnet posix
$testnet posix --probe
$testnet fsx --short
say "kills and power cuts, and planted mistakes"
$testnet crash --short
say "a full disk and a failing one under work"
$testnet faults --short
say "corrupt files"
$testnet corruption --short
say "many files, and a long log"
$testnet scale --short
say "programs at work while volumes change hosts"
$testnet soak --short
say "the keeper protocol in virtual time"
$testnet simulate --seeds 1000
say "containers move between two hosts with a Docker engine each"
$testnet move --short

say "all passed"
