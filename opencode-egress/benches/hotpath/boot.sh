# A systemd of our own over a throw-away copy of the root. $1 is a directory that is shared with it.
# Runs as the first process of fresh namespaces; nothing of it is seen outside.
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mount --rbind /dev dev
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p run/bench run/systemd/system
mount --bind "$1" run/bench
cp run/bench/measure.service run/systemd/system/
mkdir outside
pivot_root . outside
umount -l /outside
container=opencode-egress exec /lib/systemd/systemd --system --unit=measure.service --log-target=null
