# Fills the directory $1 with a busybox root whose /data is hard to copy: what copy-up into an empty volume must bring along.
set -e
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd "$1"
umask 022
mkdir -p bin etc root proc sys dev tmp data/sub
chmod 1777 tmp
cp "$(command -v busybox)" bin/.busybox
for applet in $(busybox --list); do ln -s busybox "bin/$applet"; done
# It lists itself, so the file takes its name last.
mv -f bin/.busybox bin/busybox
printf 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/tmp:/bin/sh\n' >etc/passwd
printf 'root:x:0:\napp:x:1000:\n' >etc/group
cd data
echo hello >plain
ln plain hard
ln -s plain symbolic
echo secret >sub/private
chmod 600 sub/private
mkfifo fifo
cp ../bin/busybox setuid
chmod 4755 setuid
setfattr -n user.color -v blue plain
truncate -s 8M sparse
echo end | dd of=sparse bs=1 seek=8388604 conv=notrunc status=none
chown 1000:1000 sub sub/private
chmod 2750 sub
echo old >old
touch -d '2001-02-03 04:05:06.123456789 UTC' old
cd ..
chown 1000:1000 data
chmod 0711 data
