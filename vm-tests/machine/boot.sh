#!/bin/sh
# Becomes systemd, as pid 1 of fresh namespaces, over a throw-away copy of this machine's root, or of the one in BOOT_ROOT.
#
#   unshare --fork --kill-child --pid --mount --net --cgroup --uts --ipc boot.sh DIRECTORY FILES [FILE=TARGET]…
#
# DIRECTORY is an empty one, for the mounts. What is below FILES is copied over the root; each FILE, or directory, appears
# at TARGET. BOOT_UNIT is what systemd starts, multi-user.target if it is not set.
# Nothing outside the namespaces changes: the root is an overlay whose upper half is in memory, and /tmp and /run,
# which systemd clears, are new ones.
set -eu
directory=$1 files=$2
shift 2

mount --make-rprivate /
mount -t tmpfs tmpfs "$directory"
mkdir "$directory/upper" "$directory/work" "$directory/root"
mount -t overlay -o "lowerdir=${BOOT_ROOT:-/},upperdir=$directory/upper,workdir=$directory/work" overlay "$directory/root"

root=$directory/root
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf -o mode=700 bpf "$root/sys/fs/bpf"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
for pair in "$@"; do
    source=${pair%%=*} target=$root/${pair#*=}
    mkdir -p "$(dirname "$target")"
    rm -f "$target"
    if [ -d "$source" ]; then mkdir "$target"; else touch "$target"; fi
    mount --bind "$source" "$target"
done

# Only what the tests start: no unit that this machine has enabled, and none that would reach for its hardware.
units=$root/etc/systemd/system
rm -rf "$units"
mkdir -p "$units"
for unit in systemd-modules-load systemd-sysctl systemd-udevd systemd-udev-trigger systemd-tmpfiles-setup-dev \
    systemd-binfmt systemd-timesyncd systemd-networkd systemd-resolved systemd-logind console-getty; do
    ln -s /dev/null "$units/$unit.service"
done
ln -s /dev/null "$units/systemd-udevd-kernel.socket"
ln -s /dev/null "$units/systemd-udevd-control.socket"
rm -rf "$root/var/log/journal"
cp -R "$files/." "$root/"

# Debian has PostgreSQL where no PATH leads, and in its place a program that asks which of several is meant.
for program in initdb postgres psql; do
    for found in "$root"/usr/lib/postgresql/*/bin/$program; do
        [ ! -x "$found" ] || ln -sf "${found#"$root"}" "$root/usr/bin/$program"
    done
done

cd "$root"
mkdir -p .old-root
pivot_root . .old-root
umount -l /.old-root
# As on a machine of its own, where systemd does it, and as systemd-nspawn has it. Without this no unit sees its credentials.
mount --make-rshared /
export container=opencode-egress-test
exec /lib/systemd/systemd --system --unit="${BOOT_UNIT:-multi-user.target}"
