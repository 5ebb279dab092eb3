#!/bin/sh
# The first and only program of a test guest: prepares the machine, runs the suite, reports, powers off.
# The kernel's console is ttyS0; the suite has ttyS1 to itself, so kernel messages cannot cut its lines in two.

export PATH=/usr/bin:/usr/sbin HOME=/root TERM=dumb
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
exec </dev/null >/dev/ttyS1 2>&1

ip link set lo up
while read -r module; do
    insmod "$module" || echo "BRIDGE-VM-MODULE $module did not load"
done </etc/modules

# The kernel patches its code when netfilter's first hook comes and when its last one goes, and at that the emulator
# may fail (emulator.rs). A chain on each hook of this namespace, in which no trial runs, keeps them from going.
nft add table inet keep
for hook in prerouting input forward output postrouting; do
    nft add chain inet keep "$hook" "{ type filter hook $hook priority 0; }" ||
        echo "BRIDGE-VM-MODULE no chain on $hook"
done

set -a
. /etc/bridge.env
set +a
echo "BRIDGE-VM-START $(uname -r)"
/usr/bin/suite --group "$BRIDGE_GROUP" --test-threads=1 ${BRIDGE_FILTER:+"$BRIDGE_FILTER"}
echo "BRIDGE-VM-OUTCOME exit=$?"
# Lets the serial port run dry.
sleep 1
poweroff -f
reboot -f
