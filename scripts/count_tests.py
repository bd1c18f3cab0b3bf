"""Counts what the test programs of one `meson test` run did.

usage: count_tests.py SUITE TESTLOG EXIT_STATUS

Prints "PASSED FAILED SKIPPED" on stdout, one line for each program, and the failures and the skips with their reasons on
stderr. GoogleTest programs count by test case, any other program as one. A program that ended badly counts at least one
failure, and so does a run whose exit status says so.
"""

import json
import re
import sys

CASE = re.compile(r"^\[ +(OK|FAILED|SKIPPED) +\] (\S+?)(?:, where .*)? \(\d+ ms\)$")


PYTEST = re.compile(r"^(?:=+ )?((?:\d+ (?:passed|failed|errors?|skipped|warnings?|deselected)(?:, )?)+) in [\d.]+s")


def count_pytest(name, lines):
    """The closing line of pytest, where there is one: "12 passed, 1 failed in 3.21s"."""
    counts = {}
    for line in lines:
        if match := PYTEST.match(line):
            counts = {word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) (\w+)", match.group(1))}
    wrong = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    failed = [f"{name}: {line}" for line in wrong] or [name] * (counts.get("failed", 0) + counts.get("error", 0))
    skipped = [f"{name}: {line}" for line in lines if line.startswith("SKIPPED ")]
    return counts.get("passed", 0), failed, skipped


def skip_reason(lines, index):
    """GoogleTest prints "file:line: Skipped" and the reason above the line that ends the case."""
    reason = []
    for line in reversed(lines[:index]):
        if line.endswith(": Skipped"):
            return " ".join(reversed(reason)) or "no reason given"
        if line.startswith("["):
            break
        if line.strip():
            reason.append(line.strip())
    return "no reason given"


def count(entry):
    name, result = entry["name"], entry["result"]
    passed, failed, skipped = 0, [], []
    lines = entry.get("stdout", "").splitlines()
    for index, line in enumerate(lines):
        match = CASE.match(line)
        if not match:
            continue
        kind, case = match.groups()
        if kind == "OK":
            passed += 1
        elif kind == "FAILED":
            failed.append(f"{name}: {case}")
        else:
            skipped.append(f"{name}: {case}: {skip_reason(lines, index)}")
    if not passed and not failed and not skipped:
        passed, failed, skipped = count_pytest(name, lines)
    if result == "SKIP":
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
        skipped.append(f"{name}: {last}")
    elif result not in ("OK", "EXPECTEDFAIL"):
        if not failed:
            failed.append(f"{name}: the program ended with {result}")
    elif passed + len(failed) + len(skipped) == 0:
        passed = 1
    return passed, failed, skipped


def main():
    _, suite, log, status = sys.argv
    total_failed = 0
    with open(log, encoding="utf-8", errors="replace") as file:
        for line in file:
            passed, failed, skipped = count(json.loads(line))
            total_failed += len(failed)
            print(passed, len(failed), len(skipped))
            for text in failed:
                print(f"FAILED: {suite}: {text}", file=sys.stderr)
            for text in skipped:
                print(f"skipped: {suite}: {text}", file=sys.stderr)
    if status != "0" and total_failed == 0:
        print(f"FAILED: {suite}: meson test ended with status {status}", file=sys.stderr)
        print(0, 1, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
