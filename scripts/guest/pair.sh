#!/usr/bin/env bash
# Runs two commands in two guests that are joined by wires of their own: 10.77.0.1 and 10.77.0.2 (and 10.77.1.x).
#
#   scripts/guest/pair.sh [OPTION OF run.sh...] COMMAND_OF_GUEST_1 COMMAND_OF_GUEST_2
#
# Each command is one argument, for a shell. They share the folder /run/guest. Exits with the first status that is not 0.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

options=()
while [ $# -gt 2 ]; do
  options+=("$1")
  shift
done
[ $# -eq 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2; }

wire=$(mktemp -d)
trap 'rm -rf "$wire"' EXIT
mkdir "$wire/share"
export GENIE_GUEST_SHARE=$wire/share
"$here/run.sh" "${options[@]}" --guest 1 --wire "$wire" bash -c "$1" >"$wire/log" 2>&1 &
first=$!
second_rc=0 first_rc=0
"$here/run.sh" "${options[@]}" --guest 2 --wire "$wire" bash -c "$2" || second_rc=$?
wait "$first" || first_rc=$?
sed 's/^/guest 1: /' "$wire/log"
[ "$first_rc" -ne 0 ] || exit "$second_rc"
exit "$first_rc"
