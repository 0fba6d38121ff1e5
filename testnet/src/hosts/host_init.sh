# Pid 1 of a host: makes it, says so, and ends with it when the lab's end of the pipe on stdin closes.
# Arguments: the host's directory, its name.
set -e
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# This /proc is still the machine's, so the first field is our pid out there.
read -r pid rest </proc/self/stat
echo "pid $pid"
hostname "$2"
mount --make-rprivate /
mount -t proc proc /proc
mkdir -p /etc/docker
mount -t tmpfs -o mode=755 tmpfs /etc/docker
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/docker/plugins /run/lock
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir -p /var/lib/docker /var/lib/remora
mount --bind "$1/docker" /var/lib/docker
mount --bind "$1/remora" /var/lib/remora
# As on a machine with systemd: mounts made by one process of the host are seen by all.
mount --make-rshared /
echo ready
# A shell that waits for one child reaps every orphan meanwhile.
cat >/dev/null
