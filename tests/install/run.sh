#!/usr/bin/env bash
# Uses the installed library as somebody else's program would, from outside the tree.
#
#   tests/install/run.sh BUILD_FOLDER SCRATCH_FOLDER STEP
#
# STEP is install (into SCRATCH_FOLDER/tree), symbols, headers, pkg-config, cmake, programs, python or remote; the later ones
# need the first, and remote the runner of pkg-config.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$1
scratch=$2
step=$3
mkdir -p "$scratch"

fail() {
  printf 'install test: %s\n' "$*" >&2
  exit 1
}

# The prefix of the build folder, below the scratch folder: a moved tree must work.
tree=$scratch/tree$(meson introspect "$build" --buildoptions </dev/null |
  python3 -c 'import json, sys; print(next(o["value"] for o in json.load(sys.stdin) if o["name"] == "prefix"))')
find_one() { find "$tree" -name "$1" | head -n 1; }
compiler=(g++)
if command -v ccache >/dev/null; then compiler=(ccache g++); fi

# check_libraries FILE: it finds all that it is linked to, and nothing of that in the build folder.
check_libraries() {
  local libraries
  libraries=$(env -u LD_LIBRARY_PATH ldd "$1")
  if grep -q "not found" <<<"$libraries"; then fail "$1 does not find all its libraries: $libraries"; fi
  if grep -qF "$build" <<<"$libraries"; then fail "$1 uses the build folder: $libraries"; fi
}
uses_installed() {
  local libraries
  libraries=$(env -u LD_LIBRARY_PATH ldd "$1")
  grep -q "=> $tree/.*libgenie" <<<"$libraries" || fail "$1 does not use the installed library: $libraries"
}

# The program must run with the installed library and with nothing of the build folder.
run_runner() {
  local program=$1
  check_libraries "$program"
  uses_installed "$program"
  "$program" "$here/../../examples/char_gpt/char_gpt.pt"
}

case $step in
  install)
    rm -rf "$scratch/tree"
    meson install -C "$build" --no-rebuild --quiet --destdir "$scratch/tree" </dev/null
    for file in 'libgenie.so' genie.h genie.pc GenieConfig.cmake; do
      [ -n "$(find_one "$file")" ] || fail "$file was not installed"
    done
    ;;
  symbols)
    foreign=$(nm -D --defined-only -C "$(find_one libgenie.so)" |
      sed -E 's/^[0-9a-f]* *[A-Za-z] //' |
      grep -vE '^(genie::|(vtable|typeinfo|typeinfo name) for genie::)' || true)
    if [ -n "$foreign" ]; then
      printf '%s\n' "$foreign" | head -n 20 >&2
      fail "the library exports symbols outside of genie::"
    fi
    nm -D --defined-only -C "$(find_one libgenie.so)" | grep -q 'genie::Session::connect' ||
      fail "the library does not export genie::Session::connect"
    said=$(nm -D --defined-only "$(find_one 'libgenie_control-*.so')" | awk '{ print $3 }')
    [ "$said" = genie_control_client ] || fail "the library's module exports $said"
    ;;
  headers)
    flags=$(PKG_CONFIG_PATH=$(dirname "$(find_one genie.pc)") pkg-config --cflags genie)
    for header in "$tree"/include/genie/*.h; do
      echo "#include <genie/$(basename "$header")>" >"$scratch/alone.cc"
      # shellcheck disable=SC2086
      "${compiler[@]}" -std=c++20 -Wall -Wextra -Werror $flags -c "$scratch/alone.cc" -o "$scratch/alone.o" ||
        fail "$(basename "$header") does not compile alone"
    done
    ;;
  pkg-config)
    flags=$(PKG_CONFIG_PATH=$(dirname "$(find_one genie.pc)") pkg-config --cflags --libs genie)
    # shellcheck disable=SC2086
    "${compiler[@]}" -std=c++20 -c "$here/runner.cc" $flags -o "$scratch/runner.o"
    # shellcheck disable=SC2086
    g++ "$scratch/runner.o" $flags -o "$scratch/runner"
    run_runner "$scratch/runner"
    ;;
  cmake)
    rm -rf "$scratch/cmake"
    launcher=()
    if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
    cmake -S "$here" -B "$scratch/cmake" -G Ninja -DCMAKE_BUILD_TYPE=Release "${launcher[@]}" \
      -DGenie_DIR="$(dirname "$(find_one GenieConfig.cmake)")"
    cmake --build "$scratch/cmake"
    run_runner "$scratch/cmake/runner"
    ;;
  programs)
    for program in "$tree"/bin/*; do
      check_libraries "$program"
      version=$(env -u LD_LIBRARY_PATH "$program" --version)
      grep -q '[0-9]\.[0-9]' <<<"$version" || fail "$program --version says no version: $version"
    done
    # Loaded and called; it wants arguments that `genie run` cannot draw.
    said=$("$tree/bin/genie" run "$here/../../examples/char_gpt/char_gpt.pt" --device cpu 2>&1 || true)
    grep -q "missing value for argument" <<<"$said" || fail "the installed genie does not run a model: $said"
    ;;
  python)
    native=$(find_one 'genie_native*.so')
    if [ -z "$native" ]; then
      echo "this build has no Python module" >&2
      exit 0
    fi
    check_libraries "$native"
    uses_installed "$native"
    folder=$(dirname "$native")
    python=$(cd "$here/../.." && ls -d "$PWD/.venv/bin/python" 2>/dev/null || echo python3)
    # Where the prefix is one that Python knows, it has to look there by itself.
    base=$("$python" -c 'import sys; print(sys._base_executable)')
    known=$("$base" -I -c 'import site; print(*site.getsitepackages(), sep="\n")')
    prefix=${tree#"$scratch/tree"}
    if grep -q "^$prefix/lib" <<<"$known" && ! grep -qxF "${folder#"$scratch/tree"}" <<<"$known"; then
      fail "Python does not look in ${folder#"$scratch/tree"}, but in: $known"
    fi
    cd "$scratch"
    env -u LD_LIBRARY_PATH PYTHONPATH="$folder" "$python" - "$tree" <<'PYTHON'
import sys
import genie, genie_native, torch
for module in (genie, genie_native):
    assert module.__file__.startswith(sys.argv[1]), module.__file__
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libgenie" in line}
assert len(libraries) == 1 and libraries.pop().startswith(sys.argv[1]), libraries
genie.connect("embedded:")
x = torch.arange(6.0, device="remote_accelerator:0")
assert torch.equal((x + x).cpu(), 2 * torch.arange(6.0))
PYTHON
    ;;
  remote)
    # What connects to other processes is a module, which the library finds beside itself.
    if ldd "$(find_one libgenie.so)" | grep -q grpc; then fail "the library loads gRPC at the start of every program"; fi
    socket=unix:$scratch/node.sock
    env -u LD_LIBRARY_PATH "$tree/bin/genie-node" --listen "$socket" --transport shm --device cpu --threads 1 \
      </dev/null 2>"$scratch/node.log" &
    node=$!
    trap 'kill "$node"; wait "$node" || true' EXIT
    for _ in $(seq 600); do
      if grep -q ' ready ' "$scratch/node.log"; then break; fi
      kill -0 "$node" || fail "genie-node ended: $(cat "$scratch/node.log")"
      sleep 0.1
    done
    cd /
    # One thread on each side: the same arithmetic in the same order.
    OMP_NUM_THREADS=1 env -u LD_LIBRARY_PATH "$scratch/runner" "$here/../../examples/char_gpt/char_gpt.pt" "$socket" ||
      fail "the installed library does not reach the installed genie-node"
    module=$(find_one 'libgenie_control-*.so')
    check_libraries "$module"
    mv "$module" "$module.away"
    said=$("$scratch/runner" "$here/../../examples/char_gpt/char_gpt.pt" "$socket" 2>&1 || true)
    mv "$module.away" "$module"
    grep -q "$(basename "$module").*install Genie anew" <<<"$said" || fail "without its module the library says: $said"
    ;;
  *) fail "no step is called $step" ;;
esac
