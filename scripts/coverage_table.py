"""Prints line coverage per folder from gcovr's JSON summary; fails when the whole is below the given percentage.

usage: coverage_table.py SUMMARY_JSON MINIMUM
"""

import json
import os
import sys


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        files = json.load(file)["files"]
    minimum = float(sys.argv[2])
    folders = {}
    for entry in files:
        path = os.path.dirname(entry["filename"])
        top = path.split("/")[0]
        for name in {path, top, "all"}:
            covered, total = folders.get(name, (0, 0))
            folders[name] = covered + entry["line_covered"], total + entry["line_total"]
    if folders.get("all", (0, 0))[1] == 0:
        print("coverage: no line was measured", file=sys.stderr)
        return 1
    print(f"{'folder':<32}{'lines':>8}{'covered':>9}{'%':>8}")
    for name in sorted(folders, key=lambda name: (name == "all", name)):
        covered, total = folders[name]
        print(f"{name:<32}{total:>8}{covered:>9}{100 * covered / max(total, 1):>8.1f}")
    covered, total = folders["all"]
    if 100 * covered < minimum * total:
        print(f"coverage: {100 * covered / total:.1f} % of the lines, less than {minimum:g} %", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
