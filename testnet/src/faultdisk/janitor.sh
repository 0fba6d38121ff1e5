# Takes down what a disk leaves behind when the process that served it dies: mounts, loop device, files.
# Argument: the disk's directory. On stdin: names of its loop devices; "done" when there is nothing to take down.
trap '' INT TERM HUP
loops=
while read -r line; do
  [ "$line" = done ] && exit 0
  loops="$loops $line"
done
tries=0
while [ $tries -lt 200 ]; do
  awk -v dir="$1/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r | while read -r mounted; do
    umount -l "$mounted" 2>/dev/null
  done
  left=
  for device in $loops; do
    # Whoever has the number now, only what lies in our directory is ours.
    case "$(cat "/sys/block/${device#/dev/}/loop/backing_file" 2>/dev/null)" in
      "$1"/*|/disk.img) losetup -d "$device" 2>/dev/null; left=yes ;;
    esac
  done
  if [ -z "$left" ] && rm -rf --one-file-system "$1" 2>/dev/null; then
    exit 0
  fi
  sleep 0.05
  tries=$((tries + 1))
done
exit 1
