#!/usr/bin/env bash
# Uses the installed library as somebody else's program would, from outside the tree.
#
#   tests/install/run.sh BUILD_FOLDER SCRATCH_FOLDER STEP
#
# STEP is install (into SCRATCH_FOLDER/tree), symbols, headers, pkg-config or cmake; the later ones need the first.
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

# The program must run with the installed library and with nothing of the build folder.
run_runner() {
  local program=$1 libraries
  libraries=$(ldd "$program")
  grep -q "=> $tree/.*libgenie" <<<"$libraries" || fail "$program does not use the installed library: $libraries"
  if grep -qF "$build" <<<"$libraries"; then fail "$program uses the build folder: $libraries"; fi
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
  *) fail "no step is called $step" ;;
esac
