#!/usr/bin/env bash
# Brings a Debian 12 machine to the point where Genie builds: the packages it needs, and libtorch.
#
#   scripts/setup.sh build    what building the library, the programs and the Python package needs, and nothing else
#   scripts/setup.sh          that, and what the default tests and the benches need, with the peers that these measure
#   scripts/setup.sh guest    that, and what the suite `guest` needs: a virtual machine with RDMA
#
# Installs the missing packages with apt-get (as root, or through sudo), and the torch wheel into .venv of this checkout.
# With GENIE_LIBTORCH=/folder set, that folder's libtorch is used and no wheel is installed. What is there already is left
# as it is; a second run changes nothing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Why each is there: docs/dependencies.md.
packages=(
  # tools
  g++ meson ninja-build ccache pkg-config binutils git ca-certificates python3 python3-dev python3-venv
  # the runtime
  libspdlog-dev libfmt-dev libyaml-cpp-dev libxxhash-dev libcli11-dev nlohmann-json3-dev
  # wire and control plane
  libflatbuffers-dev flatbuffers-compiler libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  # transports
  libibverbs-dev librdmacm-dev ibverbs-providers libucx-dev
)

# Tests, benches and the peers that they measure.
test_packages=(
  cmake clang-format clang-tidy gcovr valgrind clang-14 libclang-rt-14-dev python3-yaml
  libgtest-dev libgmock-dev libbenchmark-dev libconcurrentqueue-dev libboost-dev libdpdk-dev ucx-utils
)

# QEMU, what its guest's initramfs is made of, and the programs that show Soft-RoCE to work in it. Without recommendations:
# those bring a desktop's libraries.
guest_packages=(
  qemu-system-x86 busybox-static kmod cpio
  ibverbs-utils rdmacm-utils perftest iproute2
)

wheels=(numpy)
modules=numpy
case ${1:-} in
  build) ;;
  '') packages+=("${test_packages[@]}") ;;
  guest) packages+=("${test_packages[@]}" "${guest_packages[@]}") ;;
  -h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  *) die "it takes no argument, or one of build, guest" ;;
esac
if [ "${1:-}" != build ]; then
  wheels+=(pytest expecttest pyyaml)
  modules+=", pytest, expecttest, yaml"
fi

missing_packages() {
  local have
  have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' 2>/dev/null | awk '$2 == "installed" { print $1 }')
  local name
  for name in "${packages[@]}"; do
    grep -qxF -- "$name" <<<"$have" || printf '%s\n' "$name"
  done
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -n "$@" || sudo "$@"
  else
    die "packages are missing: run this script as root, or install sudo"
  fi
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  if [ "${#missing[@]}" -eq 0 ]; then
    say "packages: all ${#packages[@]} are there"
    return
  fi
  say "packages: installing ${missing[*]}"
  # A mirror that is being synchronised fails for a moment: once more before giving up.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null ||
    { sleep 5 && as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null; } ||
    die "apt-get update failed twice: check the network and /etc/apt/sources.list"
  local log
  log=$(mktemp)
  if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 \
    install "${missing[@]}" </dev/null >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    die "apt-get install failed (its output is above)"
  fi
  rm -f "$log"
}

torch_version_in() {
  sed -n "s/^__version__ = '\([^+']*\).*/\1/p" "$1"/lib/python3*/site-packages/torch/version.py 2>/dev/null || true
}

install_torch() {
  if [ -n "${GENIE_LIBTORCH:-}" ]; then
    [ -e "$GENIE_LIBTORCH/lib/libtorch_cpu.so" ] ||
      die "GENIE_LIBTORCH=$GENIE_LIBTORCH holds no lib/libtorch_cpu.so: point it to a folder with include/ and lib/"
    say "libtorch: $GENIE_LIBTORCH (from GENIE_LIBTORCH)"
    return
  fi
  local venv=$GENIE_ROOT/.venv
  if [ "$(torch_version_in "$venv")" = "$GENIE_TORCH_VERSION" ]; then
    say "libtorch: torch $GENIE_TORCH_VERSION in .venv is there"
    return
  fi
  say "libtorch: installing torch==$GENIE_TORCH_VERSION into .venv (a download of 200 MB or more)"
  local python=/usr/bin/python3
  [ -x "$python" ] || python=python3
  [ -x "$venv/bin/pip" ] || "$python" -m venv --clear "$venv" || die "python3 -m venv failed"
  "$venv/bin/pip" install --quiet --no-input "torch==$GENIE_TORCH_VERSION" </dev/null >&2 ||
    die "pip could not install torch==$GENIE_TORCH_VERSION; with a libtorch of that version at hand, set GENIE_LIBTORCH"
  [ "$(torch_version_in "$venv")" = "$GENIE_TORCH_VERSION" ] || die "pip left no torch $GENIE_TORCH_VERSION in .venv"
}

# torch without numpy warns at import; the others are for the tests of the Python side. And `import genie` finds this checkout's build.
install_python() {
  local venv=$GENIE_ROOT/.venv
  [ -x "$venv/bin/python" ] || return 0
  if ! "$venv/bin/python" -c "import $modules" 2>/dev/null; then
    say "python: installing ${wheels[*]} into .venv"
    "$venv/bin/pip" install --quiet --no-input "${wheels[@]}" </dev/null >&2 || die "pip could not install them"
  fi
  local packages
  packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
  printf '%s\n' "$GENIE_ROOT/frontend/python" "$GENIE_ROOT/build/frontend/python" >"$packages/genie.pth"
}

command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
  die "this script knows Debian's packages only; install the counterparts of the list in it by hand"
install_packages
install_torch
install_python
