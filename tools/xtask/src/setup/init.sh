#!/bin/busybox sh
# The guest's init: mounts what a shell needs, says what the machine looks like, and gives a shell.
#
# The kernel's command line may hold mz.test=WORD, which tells what to do once INIT-OK has been printed:
#   poweroff   power off
#   reboot     reboot, and so again and again
# Without it there is a shell on the console; `poweroff -f` and `reboot -f` end it.

PATH=/bin
busybox=/bin/busybox

$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
$busybox mount -t devtmpfs dev /dev 2>/dev/null

online=$($busybox cat /sys/devices/system/cpu/online)
cpus=$($busybox grep -c '^processor' /proc/cpuinfo)
memory=$($busybox awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)

echo
echo "Mezzanine guest: $($busybox uname -srm)"
echo "CPUs: $cpus online ($online)"
echo "Memory: $memory MiB"
echo "INIT-OK"

action=
for word in $($busybox cat /proc/cmdline); do
    case $word in mz.test=*) action=${word#mz.test=} ;; esac
done

case $action in
poweroff | reboot)
    $busybox "$action" -f
    ;;
esac

# Links for the applets cost hundreds of system calls, which a benchmark need not wait for.
$busybox --install -s /bin

export PATH HOME=/root TERM=vt100 PS1='guest:\w# '
cd /root
echo "poweroff -f ends the machine, reboot -f starts it again."
# A shell that ends is started again: init must not die. A session of its own on the real terminal gives job control.
while true; do
    setsid cttyhack sh
done
