#!/usr/bin/env bash
# Installs what is missing, builds, starts a genie-node, lets a small GPT write text on it, and says what that did.
#
#   scripts/quickstart.sh [OPTION...]
#   scripts/quickstart.sh --help
#
# Options go to the example: --prompt TEXT and --tokens N, say. What is installed: Debian's packages that building needs (as
# root, or through sudo), and the torch wheel into .venv of this checkout; what is built: the programs and the Python
# package, into build/. Tests and benches are left to scripts/test.sh. A second run does what is left to do: next to nothing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case " $* " in
  *' --help '* | *' -h '*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    example=$GENIE_ROOT/build/examples/char_gpt/char_gpt
    if [ -x "$example" ]; then
      printf "\nThe example's options:\n\n"
      "$example" --help
    fi
    exit 0
    ;;
esac

"$GENIE_ROOT/scripts/setup.sh" build
# A folder that is there keeps its options: scripts/test.sh may have made it.
options=()
[ -f "$GENIE_ROOT/build/build.ninja" ] || options=(-Dtests=false -Dbench=disabled)
configure build "${options[@]}"
targets=(tools/genie tools/genie-node examples/char_gpt/char_gpt)
# The Python module, where there is a torch wheel to build it for.
if grep -q '^build python:' "$GENIE_ROOT/build/build.ninja"; then targets+=(python); fi
build build "${targets[@]}"

scratch=$(mktemp -d)
node=
stop_node() {
  local rc=$?
  trap - EXIT
  if [ -n "$node" ] && kill -TERM "$node" 2>/dev/null; then
    wait "$node" || printf 'quickstart.sh: genie-node ended with status %s\n' $? >&2
  fi
  if [ "$rc" -ne 0 ] && [ -s "$scratch/node.log" ]; then
    say "what genie-node said:"
    cat "$scratch/node.log" >&2
  fi
  rm -rf "$scratch"
  exit "$rc"
}
trap stop_node EXIT
trap 'exit 130' INT TERM

# One thread on each side: the same arithmetic in the same order, hence the same text.
socket=unix:$scratch/node.sock
say "starting genie-node on $socket"
"$GENIE_ROOT/build/tools/genie-node" --listen "$socket" --transport shm --device cpu --threads 1 \
  </dev/null 2>"$scratch/node.log" &
node=$!
for _ in $(seq 300); do
  grep -q ready "$scratch/node.log" && break
  kill -0 "$node" 2>/dev/null || die "genie-node did not start"
  sleep 0.1
done
grep -q ready "$scratch/node.log" || die "genie-node was not ready after 30 seconds"

say "char_gpt: 200 tokens on this machine, then 200 on the node"
"$GENIE_ROOT/build/examples/char_gpt/char_gpt" "$GENIE_ROOT/examples/char_gpt/char_gpt.pt" --cluster "$socket" "$@"
say "stopping genie-node"
