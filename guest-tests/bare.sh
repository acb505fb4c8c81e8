#!/bin/sh
# Runs a payload on bare QEMU, with no hypervisor under it: guest-tests/bare.sh PAYLOAD [-a "BOOT ARGUMENTS"] [QEMU OPTIONS]
# For example: guest-tests/bare.sh devices -a "test=timer seed=7" -cpu cortex-a72 -smp 2
# Promises that only a hypervisor makes are skipped. Needs the component `llvm-tools` or another objcopy in OBJCOPY.
set -eu
cd "$(dirname "$0")/.."
payload=$1
shift
arguments=
if [ "${1-}" = -a ]; then
    arguments=$2
    shift 2
fi
target=aarch64-unknown-none-softfloat
cargo build --quiet --release --target $target --package guest-tests --bin "$payload"
elf=target/$target/release/$payload
: "${OBJCOPY:=$(rustc --print sysroot)/lib/rustlib/$(rustc --version --verbose | sed -n 's/^host: //p')/bin/llvm-objcopy}"
"$OBJCOPY" -O binary "$elf" "$elf.img"
exec timeout "${TIMEOUT:-60}" qemu-system-aarch64 -M virt,gic-version=3 -cpu max -smp 4 -m 256M -nodefaults -display none -serial stdio \
    -kernel "$elf.img" -append "bare $arguments" "$@"
