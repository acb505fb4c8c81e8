#!/bin/busybox sh
# The guest's init: mounts what a shell needs, says what the machine looks like, and gives a shell.
#
# The kernel's command line may hold mz.test=WORD, which tells what to do once INIT-OK has been printed:
#   poweroff   power off
#   reboot     reboot, and so again and again
#   judge      load the drivers of virtio devices, look at disk and at mz.tested=N MiB of memory for mz.rounds=N rounds, and
#              power off
#   hidden     look for VMX, send NMIs, take CPUs offline and have them come back, try to read and to write memory that is
#              reserved above RAM, on a PC the hypervisor's, make calls by the control page at mz.page=ADDRESS, where one is
#              named, and power off, or do what mz.end=WORD says instead
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
rounds=1
tested=4
end=poweroff
page=
for word in $($busybox cat /proc/cmdline); do
    case $word in
    mz.test=*) action=${word#mz.test=} ;;
    mz.rounds=*) rounds=${word#mz.rounds=} ;;
    mz.tested=*) tested=${word#mz.tested=} ;;
    mz.end=*) end=${word#mz.end=} ;;
    mz.page=*) page=$((${word#mz.page=})) ;;
    esac
done

# Loads the drivers that an initramfs for a machine with devices has.
load() {
    for module in /lib/modules/*.ko; do insmod "$module"; done
}

# Says what the disk holds, what a file holds that is copied from it, and what the disk holds when the file was written
# back, each time from anew, while a memory test runs. Whoever reads it knows what must come.
judge() {
    $busybox --install -s /bin
    load
    mount -t tmpfs -o size=75% tmp /tmp
    until [ -b /dev/vda ] && [ -c /dev/hwrng ] && [ -c /dev/hvc0 ]; do sleep 1; done
    echo "RANDOM-$(head -c 100 /dev/hwrng | wc -c)"
    echo "CONSOLE-OK" > /dev/hvc0
    sleep 1 # what it says does not end up within a line of the other console
    round=1
    while [ $round -le "$rounds" ]; do
        memtester "${tested}M" 1 > /tmp/memory.log 2>&1 &
        tester=$!
        echo 3 > /proc/sys/vm/drop_caches
        echo "ROUND-$round disk $(sha256sum < /dev/vda)"
        dd if=/dev/vda of=/tmp/file bs=64k 2>/dev/null
        echo "ROUND-$round file $(sha256sum < /tmp/file)"
        dd if=/tmp/file of=/dev/vda bs=64k conv=fsync 2>/dev/null
        echo 3 > /proc/sys/vm/drop_caches
        echo "ROUND-$round rewritten $(sha256sum < /dev/vda)"
        rm /tmp/file
        if wait $tester; then echo "ROUND-$round memory ok"; else cat /tmp/memory.log; fi
        round=$((round + 1))
    done
    echo "STALLS-$(dmesg | grep -c -i -E 'soft lockup|hard lockup|self-detected stall|detected stalls|blocked for more')"
    poweroff -f
}

# Reads and writes a word in every 1088 KiB of reserved memory between 1 MiB and the devices, through /dev/mem, and says how
# often that could be done: it ends in a signal where nothing is behind the address.
hidden() {
    $busybox --install -s /bin
    sleep 1 # what the kernel says must not end up within a line
    echo l > /proc/sysrq-trigger # has every CPU say where it is, the others by an NMI
    sleep 1
    echo "NMI-$(dmesg | grep -c 'NMI backtrace for cpu')"
    echo "VMX-$(grep -c -w vmx /proc/cpuinfo) HYPERVISOR-$(grep -c -w hypervisor /proc/cpuinfo)"
    cpus=/sys/devices/system/cpu
    for cpu in "$cpus"/cpu[1-9]* "$cpus"/cpu[1-9]*; do
        [ "$(cat "$cpu/online")" = 1 ] || continue # it is not to have that one
        echo 0 > "$cpu/online"
        without=$(cat "$cpus/online")
        sleep 1
        echo 1 > "$cpu/online"
        echo "BACK-${cpu##*/} $without $(cat "$cpus/online")"
    done
    echo "ROM-$(devmem 0xffff0 8)" # what may be read can be read
    sed -n 's/^\([0-9a-f]*\)-\([0-9a-f]*\) : Reserved$/\1 \2/p' /proc/iomem | while read -r start final; do
        at=$((0x$start))
        last=$((0x$final))
        if [ $at -lt 1048576 ] || [ $last -ge 3221225472 ]; then continue; fi
        tried=0 read=0 written=0
        while [ $at -lt $last ]; do
            tried=$((tried + 1))
            if devmem $at 32 >/dev/null 2>&1; then read=$((read + 1)); fi
            if devmem $at 32 0xdeadbeef >/dev/null 2>&1; then written=$((written + 1)); fi
            at=$((at + 1114112))
        done
        echo "HIDDEN-$start-$final tried $tried read $read written $written"
    done
    if [ -n "$page" ]; then calls; fi
    sleep 1
    "$end" -f
}

# Makes a call by the control page: the function's number, and up to two arguments. Leaves the status and the first result.
call() {
    devmem $((page + 0x10)) 64 "$1"
    devmem $((page + 0x18)) 64 "${2:-0}"
    devmem $((page + 0x20)) 64 "${3:-0}"
    devmem $((page + 0x48)) 64 1
    status=$(devmem $((page + 0x50)) 64)
    result=$(devmem $((page + 0x58)) 64)
}

# Makes calls on 16 MiB of its own memory; then makes a VM of the first template, waits until it has gone off, and ends it.
calls() {
    continue=0x0000000000000001
    busy=0xFFFFFFFFFFFFFFF0
    echo "PAGE $(devmem "$page" 64) $(devmem "$page" 32) $(devmem "$page" 8)"
    echo "RESERVED $(grep -c "^$(printf %08x "$page")-.* : Reserved" /proc/iomem)"
    call 0xc6000003 0x1000000 0x1000000
    echo "SURVEY $status"
    call 0xc6000004 0x1000000 0x1000000
    echo "SELF-CHECK $status"
    call 0xc6000001 0xc6000060
    echo "CONTROLS $status"
    call 0xc6000001 0xc6000015
    features=$status
    call 0xc6000015 0x1000000 0x200000
    echo "MOVES $features $status"
    call 0xc6000060 0
    handle=$result
    echo "CREATE $status"
    call 0xc6000060 0
    echo "CREATE-AGAIN $status"
    call 0xc6000061 "$handle"
    started=$status
    until call 0xc6000065 "$handle" && [ $((result)) = 0 ]; do sleep 1; done
    echo "START $started" # the VM has its own lines on the console meanwhile
    echo "OFF $status"
    until call 0xc6000064 "$handle" && [ "$status" != $continue ] && [ "$status" != $busy ]; do :; done
    echo "DESTROY $status"
    call 0xc6000065 "$handle"
    echo "STATE $status"
}

case $action in
judge)
    judge
    ;;
hidden)
    hidden
    ;;
poweroff | reboot)
    $busybox "$action" -f
    ;;
esac

# Links for the applets cost hundreds of system calls, which a benchmark need not wait for.
$busybox --install -s /bin

[ -d /lib/modules ] && load

export PATH HOME=/root TERM=vt100 PS1='guest:\w# '
cd /root
echo "poweroff -f ends the machine, reboot -f starts it again."
# A shell that ends is started again: init must not die. A session of its own on the real terminal gives job control.
while true; do
    setsid cttyhack sh
done
