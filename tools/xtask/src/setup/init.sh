#!/bin/busybox sh
# The guest's init: mounts what a shell needs, says what the machine looks like, and gives a shell.
#
# The kernel's command line may hold mz.test=WORD, which tells what to do once INIT-OK has been printed:
#   poweroff     power off
#   reboot       reboot, and so again and again
#   interrupts   print /proc/interrupts before and after some work on every CPU, then power off
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

# Links for the applets cost a hundred system calls: not before INIT-OK, which a benchmark waits for.
$busybox --install -s /bin

case $action in
poweroff)
    poweroff -f
    ;;
reboot)
    reboot -f
    ;;
interrupts)
    echo "INTERRUPTS-BEFORE"
    cat /proc/interrupts
    for cpu in $(seq 0 $((cpus - 1))); do
        taskset -c "$cpu" sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done; true' &
    done
    wait
    sleep 1
    echo "INTERRUPTS-AFTER"
    cat /proc/interrupts
    echo "INTERRUPTS-END"
    poweroff -f
    ;;
esac

export PATH HOME=/root TERM=vt100 PS1='guest:\w# '
cd /root
echo "poweroff -f ends the machine, reboot -f starts it again."
# A shell that ends is started again: init must not die. A session of its own on the real terminal gives job control.
while true; do
    setsid cttyhack sh
done
