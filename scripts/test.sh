#!/usr/bin/env bash
# Installs what is missing, builds, and runs tests.
#
#   scripts/test.sh             the default suites: main, install and fuzz
#   scripts/test.sh SUITE...    these suites; `all` means every one
#   scripts/test.sh --list      the names of the suites, and what each shows
#
# The last line of the output is "N passed, N failed, N skipped", summed over all test programs. Exits 0 when nothing
# failed, 1 when a build or a test failed, 2 for a wrong argument. With CI=true a compiler's warning is an error.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

suites=(main install fuzz dtypes network guest sanitizers tsan tsan-torch coverage format)
declare -A about=(
  [main]="unit, conformance, frontend, end-to-end and Python tests, op_db among them, release build (build/)"
  [install]="the installed library, programs and Python package, used from outside the tree; the exported symbols"
  [fuzz]="libFuzzer on the decoders of the wire: their corpus, then 100,000 inputs each (build-fuzz/; GENIE_FUZZ_SECONDS)"
  [dtypes]="op_db in every other dtype of the CPU, from bool to complex128: about an hour of a core"
  [network]="the conformance suite of UCX over TCP between network namespaces, over a good wire and a bad one"
  [guest]="RDMA: Soft-RoCE in virtual machines, one and two (QEMU, emulated: slow)"
  [sanitizers]="the main tests under AddressSanitizer and UndefinedBehaviorSanitizer (build-asan/)"
  [tsan]="queues, transports and the other threaded parts below torch under ThreadSanitizer (build-tsan/)"
  [tsan-torch]="capture, sessions, training and every operator on an embedded node under ThreadSanitizer (build-tsan/)"
  [coverage]="the main tests, and those of verbs in a virtual machine, with line coverage, printed per folder (build-coverage/)"
  [format]="clang-format over every source"
)

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

chosen=()
for argument in "$@"; do
  case $argument in
    --list)
      for suite in "${suites[@]}"; do printf '%-12s%s\n' "$suite" "${about[$suite]}"; done
      exit 0
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    all) chosen+=("${suites[@]}") ;;
    *)
      if [ -z "${about[$argument]:-}" ]; then
        printf 'test.sh: no suite is called "%s"; scripts/test.sh --list names them\n' "$argument" >&2
        exit 2
      fi
      chosen+=("$argument")
      ;;
  esac
done
[ "${#chosen[@]}" -gt 0 ] || chosen=(main install fuzz)

results=$(mktemp -d)
trap 'rm -rf "$results" "$results.install"' EXIT

# run_meson_tests SUITE FOLDER [MESON TEST ARGUMENT...]: runs them and counts the cases of every program.
run_meson_tests() {
  local suite=$1 folder=$GENIE_ROOT/$2 rc=0
  shift 2
  say "$suite: running the tests"
  rm -f "$folder/meson-logs/testlog.json"
  meson test -C "$folder" --no-rebuild --print-errorlogs "$@" </dev/null >&2 || rc=$?
  python3 "$GENIE_ROOT/scripts/count_tests.py" "$suite" "$folder/meson-logs/testlog.json" "$rc" >>"$results/$suite" ||
    die "the test log of $suite cannot be read"
}

# check SUITE NAME COMMAND...: one check that is not a test program.
check() {
  local suite=$1 name=$2
  shift 2
  say "$suite: $name"
  if "$@" </dev/null >&2; then
    echo "1 0 0" >>"$results/$suite"
  else
    printf 'FAILED: %s: %s\n' "$suite" "$name" >&2
    echo "0 1 0" >>"$results/$suite"
  fi
}

release_built=no
release_build() {
  [ "$release_built" = no ] || return 0
  # Named, as the quickstart's folder has neither.
  configure build -Dtests=true -Dbench=auto
  build build
  release_built=yes
}

suite_main() {
  release_build
  run_meson_tests main build --suite main --suite python
}

suite_dtypes() {
  release_build
  run_meson_tests dtypes build --suite dtypes
}

suite_network() {
  release_build
  run_meson_tests network build --suite network
}

suite_sanitizers() {
  local notes=$GENIE_ROOT/tests/suppressions
  # One build of all that is ours; torch, gRPC and the other libraries are not instrumented, which is why containers that
  # cross that edge are not checked for overflow of their capacity. vptr wants type information that torch hides.
  configure build-asan -Doptimization=1 -Db_sanitize=address,undefined -Db_lundef=false \
    "-Dcpp_args=-g1 -fno-sanitize=vptr -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
  build build-asan
  ASAN_OPTIONS="detect_container_overflow=0:strict_string_checks=1:detect_stack_use_after_return=1" \
    LSAN_OPTIONS="suppressions=$notes/lsan.txt:print_suppressions=0" \
    UBSAN_OPTIONS="suppressions=$notes/ubsan.txt:print_stacktrace=1" \
    run_meson_tests sanitizers build-asan --suite main --timeout-multiplier 4
}

suite_tsan() { thread_sanitized tsan; }
suite_tsan-torch() { thread_sanitized tsan-torch; }

# thread_sanitized SUITE
thread_sanitized() {
  local suite=$1
  # It does not model fences; what it cannot see through one it would report, so the warning says nothing more.
  configure build-tsan "-Dcpp_args=-g1 -Wno-tsan" -Db_sanitize=thread -Db_lundef=false
  local programs
  mapfile -t programs < <(python3 "$GENIE_ROOT/scripts/test_programs.py" "$GENIE_ROOT/build-tsan" "$suite")
  [ "${#programs[@]}" -gt 0 ] || die "no test belongs to the suite $suite"
  build build-tsan "${programs[@]}"
  # What libraries do among themselves is not seen, so that what they free and copy would look like races. UCX's memory hooks run
  # on threads that ThreadSanitizer has ended already.
  TSAN_OPTIONS="suppressions=$GENIE_ROOT/tests/suppressions/tsan.txt:second_deadlock_stack=1:ignore_noninstrumented_modules=1" \
    UCX_MEM_EVENTS=no UCX_MEM_MMAP_HOOK_MODE=none \
    run_meson_tests "$suite" build-tsan --suite "$suite" --timeout-multiplier 6
}

suite_coverage() {
  configure build-coverage -Doptimization=0 -Db_coverage=true -Dcpp_args=-fprofile-update=atomic
  build build-coverage
  find "$GENIE_ROOT/build-coverage" -name '*.gcda' -delete
  run_meson_tests coverage build-coverage --suite main --suite python --timeout-multiplier 4
  # Not grep -q, which may end before meson has written everything: with pipefail that would look like a test that is not there.
  if ! meson test -C "$GENIE_ROOT/build-coverage" --list 2>/dev/null | grep guest/transport >/dev/null; then
    echo "skipped: coverage: guests: verbs are not compiled in" >&2
    echo "0 0 1" >>"$results/coverage"
  elif guest_ready coverage; then
    # The verbs' lines, which need a device. The guest adds its counts to the files of the build folder: that is its share.
    local parts=${GENIE_ROOT//[^\/]/}
    GENIE_GUEST_SHARE=$GENIE_ROOT/build-coverage GENIE_GUEST_PATIENCE=4 \
      GCOV_PREFIX=/run/guest GCOV_PREFIX_STRIP=$((${#parts} + 1)) \
      run_meson_tests coverage build-coverage --timeout-multiplier 4 guest/transport guest/verbs_fabric
  fi
  check coverage "line coverage of frontend, src and datapath" \
    "$GENIE_ROOT/scripts/coverage.sh" "$GENIE_ROOT/build-coverage"
}

suite_install() {
  release_build
  local step
  for step in install symbols headers pkg-config cmake programs python remote; do
    check install "$step" "$GENIE_ROOT/tests/install/run.sh" "$GENIE_ROOT/build" "$results.install" "$step"
  done
}

# guest_ready SUITE: whether virtual machines can run here; where not, that is said and counts as one skip.
guest_ready() {
  local why=''
  "$GENIE_ROOT/scripts/setup.sh" guest || why="QEMU cannot be installed here"
  [ -n "$why" ] || "$GENIE_ROOT/scripts/guest/prepare.sh" || why="no kernel for the guest can be had here"
  [ -n "$why" ] || return 0
  printf 'skipped: %s: guests: %s (the reason is above)\n' "$1" "$why" >&2
  echo "0 0 1" >>"$results/$1"
  return 1
}

suite_guest() {
  guest_ready guest || return 0
  release_build
  run_meson_tests guest build --suite guest
}

suite_fuzz() {
  # GCC has no libFuzzer. Warnings are GCC's business: clang's differ from release to release.
  local CI=
  CXX="ccache clang++-14" configure build-fuzz -Dfuzzers=true -Dtests=false -Dbench=disabled -Dpython=disabled \
    -Doptimization=1 -Db_sanitize=address,undefined -Db_lundef=false \
    "-Dcpp_args=-g1 -fno-sanitize=vptr,function -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
  local decoder
  for decoder in session_messages template invocation; do
    build build-fuzz "tests/fuzz/fuzz_$decoder"
    check fuzz "$decoder" fuzz "$decoder"
  done
}

# fuzz DECODER: what it finds stays in build-fuzz/corpus, and what breaks it in build-fuzz/found. The seed is fixed, so that a
# change is judged by itself and not by luck; GENIE_TEST_SEED=0 lets libFuzzer choose.
fuzz() {
  local folder=$GENIE_ROOT/build-fuzz
  mkdir -p "$folder/corpus/$1" "$folder/found"
  # A number of runs, not of seconds: a fast machine is to see what a slow one sees.
  local runs=()
  [ -n "${GENIE_FUZZ_SECONDS:-}" ] || runs=(-runs=100000)
  OMP_NUM_THREADS=1 "$folder/tests/fuzz/fuzz_$1" -max_total_time="${GENIE_FUZZ_SECONDS:-60}" "${runs[@]}" -seed="${GENIE_TEST_SEED:-1}" \
    -timeout=120 -rss_limit_mb=4096 -print_final_stats=1 -verbosity=1 -artifact_prefix="$folder/found/$1-" \
    "$folder/corpus/$1" "$GENIE_ROOT/tests/fuzz/corpus/$1" >"$folder/$1.log" 2>&1 || { tail -n 60 "$folder/$1.log"; return 1; }
  grep -a "^stat::number_of_executed_units" "$folder/$1.log"
}

suite_format() {
  check format "clang-format" format_sources
}

format_sources() {
  cd "$GENIE_ROOT" && git ls-files -z -- '*.h' '*.cc' | xargs -0 -r clang-format --dry-run -Werror
}

"$GENIE_ROOT/scripts/setup.sh"
for suite in "${chosen[@]}"; do
  [ -e "$results/$suite" ] || "suite_$suite"
done
awk '{ p += $1; f += $2; s += $3 } END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 || p + s == 0 }' \
  "$results"/*
