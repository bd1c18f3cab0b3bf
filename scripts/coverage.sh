#!/usr/bin/env bash
# Prints the line coverage of frontend, src and datapath, per folder, from a build folder whose tests ran.
#
#   scripts/coverage.sh BUILD_FOLDER
#
# Fails when the three together are below $GENIE_COVERAGE_MIN (90) per cent. A page for each file: BUILD_FOLDER/coverage.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
folder=$(cd "$1" && pwd)

mkdir -p "$folder/coverage"
cd "$GENIE_ROOT"
# Branches that exceptions make are not lines; generated sources lie in the build folder and are not ours to cover.
gcovr --root "$GENIE_ROOT" --object-directory "$folder" -j "$(nproc)" \
  --filter 'frontend/' --filter 'src/' --filter 'datapath/' \
  --exclude-throw-branches --exclude-unreachable-branches \
  --json-summary "$folder/coverage/summary.json" --html-details "$folder/coverage/index.html" "$folder" >/dev/null
python3 "$GENIE_ROOT/scripts/coverage_table.py" "$folder/coverage/summary.json" "${GENIE_COVERAGE_MIN:-90}"
