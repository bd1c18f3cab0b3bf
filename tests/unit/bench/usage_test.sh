#!/bin/sh
# genie-bench as a script uses it: exit codes, the JSON file, and a bench or row that does not exist.
bench="$1"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0
check() { # name, expected exit code, actual one
  if [ "$2" != "$3" ]; then
    echo "FAIL: $1: exit code $3 instead of $2"
    failures=$((failures + 1))
  fi
}

"$bench" --help > "$folder/help"
check "--help" 0 $?
for name in capture queue transfer invoke upload fetch step e2e; do
  grep -q "^  $name " "$folder/help" || { echo "FAIL: --help does not list $name"; failures=$((failures + 1)); }
done
# Whatever --help lists can be run.
for name in $(sed -n '/^Subcommands/,$s/^  \([a-z0-9_]*\) .*/\1/p' "$folder/help"); do
  "$bench" "$name" --filter "no such row" > /dev/null 2> "$folder/errors"
  check "$name without rows" 1 $?
  grep -q "does --filter match" "$folder/errors" || { echo "FAIL: $name is listed but not there"; failures=$((failures + 1)); }
done
"$bench" --version > "$folder/version"
check "--version" 0 $?
grep -q "^[0-9]" "$folder/version" || { echo "FAIL: --version says no version"; failures=$((failures + 1)); }
"$bench" > /dev/null 2>&1
check "no subcommand" 2 $?
"$bench" nonsense > /dev/null 2> "$folder/errors"
check "unknown subcommand" 2 $?
grep -q "nonsense.*queue" "$folder/errors" || { echo "FAIL: the unknown subcommand or the known are not named"; failures=$((failures + 1)); }
"$bench" queue --json "$folder/no/such/folder.json" > /dev/null 2>&1
check "unwritable JSON" 2 $?
"$bench" e2e --model nonsense 2> "$folder/errors"
check "unknown model" 2 $?
grep -q "gpt2" "$folder/errors" || { echo "FAIL: --model does not name the models"; failures=$((failures + 1)); }
"$bench" queue --quick --filter "queue.spsc pattern=ping_pong bytes=8" --json "$folder/rows.json" > "$folder/table"
check "one row" 0 $?
python3 - "$folder/rows.json" << 'PYTHON' || failures=$((failures + 1))
import json, sys
report = json.load(open(sys.argv[1]))
assert report["bench"] == "queue" and report["commit"] and report["machine"]["cores"] >= 1, report
assert report["build"]["compiler"], report
assert report["rows"], report
for row in report["rows"]:
    for key in "name params unit median p99 runs peer peer_median ratio better target met".split():
        assert key in row, (key, row)
    assert row["name"] == "queue.spsc" and row["median"] > 0 and row["p99"] >= row["median"], row
PYTHON
[ "$failures" = 0 ]
