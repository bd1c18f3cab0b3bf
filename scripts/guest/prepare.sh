#!/usr/bin/env bash
# Makes build-guest/ ready: Debian's own kernel with the modules that a guest loads, and the initramfs.
#
#   scripts/guest/prepare.sh
#
# Needs the packages of `scripts/setup.sh guest`; the kernel's package is downloaded, not installed. A second run changes
# nothing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

here=$GENIE_ROOT/scripts/guest
folder=$GENIE_ROOT/build-guest
# rdma_rxe asks the kernel for crc32 when its device is made, without naming the module.
modules=(virtio_pci virtio_net 9p 9pnet_virtio crc32_generic rdma_rxe rdma_ucm sch_netem)

unpack_package() {
  local package
  package=$(apt-cache depends --important linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')
  [ -n "$package" ] || die "apt knows no linux-image-amd64: guests need Debian's kernel for x86-64 machines"
  say "guest: unpacking $package into build-guest/"
  rm -rf "$folder/package" "$folder/download"
  mkdir -p "$folder/download"
  (cd "$folder/download" && apt-get -qq download "$package" </dev/null >&2) || die "apt-get could not download $package"
  dpkg -x "$folder"/download/*.deb "$folder/package"
  rm -rf "$folder/download"
}

make_initramfs() {
  local version tree module
  version=$(basename "$folder"/package/lib/modules/*)
  tree=$(mktemp -d)
  mkdir -p "$tree/bin" "$tree/modules"
  cp "$(command -v busybox)" "$tree/bin/busybox"
  install -m 755 "$here/init" "$tree/init"
  depmod -b "$folder/package" "$version"
  for module in "${modules[@]}"; do
    modprobe -d "$folder/package" -S "$version" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
    cp "$module" "$tree/modules/"
    basename "$module"
  done >"$tree/modules/order"
  (cd "$tree" && find . | cpio --quiet -o -H newc) >"$folder/initramfs.$$"
  mv "$folder/initramfs.$$" "$folder/initramfs"
  rm -rf "$tree"
}

export PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$folder"
if [ ! -e "$folder/vmlinux" ]; then
  unpack_package
  python3 "$here/unpack_kernel.py" "$folder"/package/boot/vmlinuz-* "$folder/vmlinux.$$"
  mv "$folder/vmlinux.$$" "$folder/vmlinux"
fi
for source in "$here/init" "$here/prepare.sh" "$folder/vmlinux"; do
  if [ "$source" -nt "$folder/initramfs" ]; then
    make_initramfs
    break
  fi
done
