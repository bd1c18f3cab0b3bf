# Shared by the scripts of this folder: `source` it. Says what is done, knows where the checkout is.
# shellcheck shell=bash

GENIE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export GENIE_ROOT
GENIE_TORCH_VERSION=2.13.0

say() { printf '== %s\n' "$*" >&2; }

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# ccache sees the same paths from every checkout, so that a second clone on the machine builds from the cache.
export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$GENIE_ROOT}
export CCACHE_NOHASHDIR=${CCACHE_NOHASHDIR:-1}
export CCACHE_SLOPPINESS=${CCACHE_SLOPPINESS:-pch_defines,time_macros}

# A source that includes all of torch takes about 2 GB to compile: as many jobs as cores, and as memory allows.
build_jobs() {
  local cores memory
  cores=$(nproc)
  memory=$(awk '/^MemAvailable:/ { print int($2 / 2097152) }' /proc/meminfo)
  if [ "$memory" -lt 1 ]; then memory=1; fi
  if [ "$memory" -lt "$cores" ]; then echo "$memory"; else echo "$cores"; fi
}

# configure FOLDER [MESON OPTION...]: makes the build folder, or brings it up to date. A folder that was copied from
# another machine or left half-made is made anew.
configure() {
  local folder=$GENIE_ROOT/$1
  shift
  local options=("$@")
  # Elsewhere the folder keeps what it has: going back and forth would compile everything again.
  if [ -n "${CI:-}" ] && [ "${CI:-}" != false ]; then options+=(-Dwerror=true); fi
  if [ -f "$folder/build.ninja" ]; then
    say "configuring ${folder#"$GENIE_ROOT"/}: bringing it up to date"
    if meson setup --reconfigure "${options[@]}" "$folder" "$GENIE_ROOT" >"$folder/configure.log" 2>&1; then
      return 0
    fi
    say "its configuration no longer fits this checkout: starting it anew"
    rm -rf "$folder"
  fi
  say "configuring ${folder#"$GENIE_ROOT"/}"
  mkdir -p "$folder"
  if ! meson setup "${options[@]}" "$folder" "$GENIE_ROOT" >"$folder.log" 2>&1; then
    cat "$folder.log" >&2
    rm -f "$folder.log"
    die "meson setup failed (its output is above)"
  fi
  mv "$folder.log" "$folder/configure.log"
}

# build FOLDER [TARGET...]
build() {
  local folder=$GENIE_ROOT/$1 jobs
  shift
  jobs=$(build_jobs)
  say "building ${folder#"$GENIE_ROOT"/} with $jobs jobs"
  ninja -C "$folder" -j "$jobs" "$@" >&2 || die "the build failed"
}
