#!/usr/bin/env bash
# Runs a command in a guest that has RDMA: a virtual machine with Debian's kernel and Soft-RoCE, this machine's files
# (read-only) and its programs. For machines without an RDMA device; emulated, so nothing in it is a measure of speed.
#
#   scripts/guest/run.sh [--guest N] [--wire FOLDER] [--cpus N] [--memory MIB] [--limit SECONDS] COMMAND [ARGUMENT...]
#
# The guest has two network cards, eth0 (10.77.0.N) and eth1 (10.77.1.N), with rxe0 and rxe1 on them. N is 1, or what
# --guest says. With --wire the guests 1 and 2 that name the same folder are joined, card to card. What the command needs to
# write goes into /tmp; /run/guest is the share: a folder of the host ($GENIE_GUEST_SHARE, by default a temporary one).
#
# Exits as the command does; 77 where QEMU or the kernel is missing, 124 when the limit (600 s, times $GENIE_GUEST_PATIENCE) has
# passed, 125 when the guest ended without the command.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  exit 2
}

guest=1 wire='' cpus=2 memory=2048 limit=600
while [ $# -gt 0 ]; do
  case $1 in
    --guest) guest=$2 ;;
    --wire) wire=$2 ;;
    --cpus) cpus=$2 ;;
    --memory) memory=$2 ;;
    --limit) limit=$2 ;;
    -*) usage ;;
    *) break ;;
  esac
  shift 2
done
[ $# -gt 0 ] || usage

skip() {
  echo "skipped: $*; scripts/setup.sh guest and scripts/guest/prepare.sh bring it" >&2
  exit 77
}
limit=$((limit * ${GENIE_GUEST_PATIENCE:-1}))
folder=$GENIE_ROOT/build-guest
command -v qemu-system-x86_64 >/dev/null || skip "qemu-system-x86_64 is not installed"
[ -e "$folder/vmlinux" ] && [ -e "$folder/initramfs" ] || skip "build-guest/ holds no kernel"

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
share=${GENIE_GUEST_SHARE:-$temporary}
# Guests may have the share in common.
job=job.$guest status=$share/status.$guest
rm -f "$status"
{
  echo "guest=$guest"
  cat "$GENIE_ROOT/scripts/guest/job.sh"
  for name in "${!GENIE_@}" "${!UCX_@}" "${!OMP_@}" "${!GCOV_@}"; do declare -p "$name"; done
  printf 'cd %q || exit 126\n' "$PWD"
  printf '%q ' "$@"
  printf '\n'
} >"$share/$job"

cards=()
for rail in 0 1; do
  if [ -n "$wire" ]; then
    network=dgram,id=net$rail,local.type=unix,local.path=$wire/$guest.$rail
    network+=,remote.type=unix,remote.path=$wire/$((3 - guest)).$rail
  else
    network=user,id=net$rail,restrict=on,ipv6=off
  fi
  # Soft-RoCE takes its speed from the card's; without one it says the slowest there is.
  cards+=(-netdev "$network"
    -device "virtio-net-pci,netdev=net$rail,mac=52:54:00:00:0$rail:0$guest,speed=10000,duplex=full,romfile=")
done

rc=0
# On a busy machine the emulated timer is too late for the kernel's test of it, and for measuring the processor's clock by it:
# a clock measured so can run several times too fast.
timeout --foreground --kill-after=5 "$limit" qemu-system-x86_64 \
  -accel tcg,thread=multi -machine q35 -cpu max -smp "$cpus" -m "$memory" \
  -nodefaults -no-user-config -display none -serial stdio -no-reboot \
  -kernel "$folder/vmlinux" -initrd "$folder/initramfs" \
  -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check clocksource=hpet genie.root=$GENIE_ROOT genie.job=$job" \
  -fsdev "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap" \
  -device virtio-9p-pci,fsdev=host,mount_tag=host \
  -fsdev "local,id=share,path=$share,security_model=none,multidevs=remap" \
  -device virtio-9p-pci,fsdev=share,mount_tag=share \
  "${cards[@]}" </dev/null || rc=$?
[ "$rc" != 124 ] && [ "$rc" != 137 ] || { echo "run.sh: the guest did not end within $limit s" >&2; exit 124; }
[ -s "$status" ] || { echo "run.sh: the guest ended without running the command (QEMU's status: $rc)" >&2; exit 125; }
exit "$(cat "$status")"
